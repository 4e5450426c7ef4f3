//! From HTTP requests to calls of the pipeline, and back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use base::limits::{API_BODY_BYTES_MAX, API_BODY_TIMEOUT, REQUEST_DEADLINE_MAX};
use base::{ErrorCode, Millis};
use futures::{Stream, StreamExt};
use ops::{Credentials, Invocation, Method, OpError, Output, Permission, Spec};
use serde_json::{Value, json};

use super::RestDoor;
use super::problem::Problem;
use super::waits::Waits;
use crate::http::input_from;

/// How long the caller will wait, in milliseconds.
pub const DEADLINE_HEADER: &str = "muster-deadline-ms";
/// Names a request, so that a retry of it is told apart from another.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// What a probe asks for.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// On a request whose connection has a place in reserve: it may be a probe.
#[derive(Clone, Copy)]
pub(super) struct ProbesOnly;

/// All routes. Streams, and calls that may wait for long, are among `waits`.
pub(super) fn router<C: Send + Sync + 'static>(door: Arc<RestDoor<C>>, waits: &Waits) -> Router {
    let mut router = Router::new();
    for spec in door.pipeline.registry().specs() {
        let (method, path, name) = (filter(spec.route.method), spec.route.path, spec.name);
        let (door, waits) = (Arc::clone(&door), waits.clone());
        let handler = move |path: RawPathParams, request: Request| {
            let (door, waits) = (Arc::clone(&door), waits.clone());
            async move { call(&door, name, waits, path, request).await.unwrap_or_else(IntoResponse::into_response) }
        };
        router = router.route(path, on(method, handler));
    }
    let document = crate::openapi::text(door.pipeline.registry(), &door.version);
    let (ready, metrics) = (Arc::clone(&door), Arc::clone(&door));
    router
        .route("/openapi.json", get(move || std::future::ready(json_response(StatusCode::OK, document.clone()))))
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(move || async move { readiness(ready.probes.ready().await) }))
        .route(
            "/metrics",
            get(move |request: Request| {
                let door = Arc::clone(&metrics);
                async move { exposition(&door, request).await.unwrap_or_else(IntoResponse::into_response) }
            }),
        )
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| {
            let refused = check_reserve(&request)
                .and_then(|()| check_host(&request, &door.host_names).map_err(Problem::from))
                .err();
            async move {
                match refused {
                    Some(problem) => problem.into_response(),
                    None => next.run(request).await,
                }
            }
        }))
}

fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Delete => MethodFilter::DELETE,
    }
}

async fn call<C: Send + Sync + 'static>(
    door: &RestDoor<C>,
    name: &'static str,
    waits: Waits,
    path: RawPathParams,
    request: Request,
) -> Result<Response, Problem> {
    let registry = Arc::clone(door.pipeline.registry());
    let Some(operation) = registry.get(name) else {
        return Err(OpError::new(ErrorCode::Internal, "a route without an operation").into());
    };
    let spec = operation.spec();
    let (parts, body) = request.into_parts();
    let credentials = credentials(&parts)?;
    let invocation = Invocation {
        door: "rest",
        operation: name.into(),
        credentials,
        deadline: deadline(&parts.headers)?,
        idempotency_key: text_header(&parts.headers, IDEMPOTENCY_HEADER)?,
        input: Value::Null,
    };
    let body = read_body(spec, &parts.headers, body).await?;
    let path = path.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let input = input_from(spec, path, query(&parts.uri)?, body)?;
    let mut wait = if waits_long(spec, &input) { Some(waits.enter()?) } else { None };
    let invoked = door.pipeline.invoke(Invocation { input, ..invocation });
    let output = match &mut wait {
        Some(wait) => wait.call(invoked).await?,
        None => invoked.await?,
    };
    match (output, wait) {
        (Output::Value(value), _) => Ok(json_response(StatusCode::OK, value.to_string())),
        (Output::Stream(items), Some(wait)) => Ok(ndjson(wait.stream(items))),
        (Output::Stream(items), None) => Ok(ndjson(items)),
    }
}

/// Whether a call may hold its connection for long.
fn waits_long(spec: &Spec, input: &Value) -> bool {
    let single = spec.single.is_some_and(|field| input[field] == true);
    (spec.streams && !single) || spec.limits.deadline_max > REQUEST_DEADLINE_MAX
}

fn credentials(parts: &Parts) -> Result<Credentials, OpError> {
    let peer = parts.extensions.get::<SocketAddr>().map(SocketAddr::ip);
    Ok(Credentials { peer, token: text_header(&parts.headers, "authorization")? })
}

fn text_header(headers: &HeaderMap, name: &str) -> Result<Option<String>, OpError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(OpError::new(ErrorCode::InvalidArgument, format!("the header {name} is not ASCII text"))),
    }
}

fn deadline(headers: &HeaderMap) -> Result<Option<Millis>, OpError> {
    let Some(text) = text_header(headers, DEADLINE_HEADER)? else { return Ok(None) };
    match text.parse() {
        Ok(ms) if ms > 0 => Ok(Some(Millis(ms))),
        _ => Err(OpError::new(
            ErrorCode::InvalidArgument,
            format!("the header {DEADLINE_HEADER} must be a number of milliseconds above 0, is {text:?}"),
        )),
    }
}

fn query(uri: &Uri) -> Result<Vec<(String, String)>, OpError> {
    let Query(pairs) = Query::try_from_uri(uri)
        .map_err(|error| OpError::new(ErrorCode::InvalidArgument, format!("the query cannot be read: {error}")))?;
    Ok(pairs)
}

/// The JSON value in the body; `None` if it is empty.
async fn read_body(spec: &Spec, headers: &HeaderMap, body: Body) -> Result<Option<Value>, Problem> {
    let whole = to_bytes(body, API_BODY_BYTES_MAX);
    let bytes: Bytes = match tokio::time::timeout(Duration::from_millis(API_BODY_TIMEOUT.0), whole).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if error.to_string().contains("length limit") => {
            let message = format!("the body is larger than {API_BODY_BYTES_MAX} bytes");
            return Err(OpError::new(ErrorCode::TooLarge, message).into());
        }
        Ok(Err(error)) => {
            return Err(OpError::new(ErrorCode::InvalidArgument, format!("the body was cut short: {error}")).into());
        }
        Err(_) => {
            let message = format!("the body did not arrive within {API_BODY_TIMEOUT}");
            return Err(Problem(OpError::new(ErrorCode::DeadlineExceeded, message), StatusCode::REQUEST_TIMEOUT));
        }
    };
    if !spec.route.method.has_body() {
        return match bytes.is_empty() {
            true => Ok(None),
            false => Err(OpError::new(
                ErrorCode::InvalidArgument,
                format!("{} takes no body: its input stands in the path and the query", spec.name),
            )
            .into()),
        };
    }
    // Checked even for an empty body: a browser may send a form across sites, but not JSON.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let message = format!("the body must be application/json, the content type is {kind:?}");
        return Err(Problem(OpError::new(ErrorCode::InvalidArgument, message), StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| OpError::new(ErrorCode::InvalidArgument, format!("the body is not JSON: {error}")).into())
}

fn json_response(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// One line per item. A failure is the last line: `{"error": ...}`.
fn ndjson(items: impl Stream<Item = Result<Value, OpError>> + Send + 'static) -> Response {
    let lines = items.map(|item| {
        let mut line = item.unwrap_or_else(|error| json!({ "error": error })).to_string();
        line.push('\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    (StatusCode::OK, [(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response()
}

fn readiness(ready: Result<(), String>) -> Response {
    match ready {
        Ok(()) => json_response(StatusCode::OK, json!({ "ready": true }).to_string()),
        Err(reason) => {
            json_response(StatusCode::SERVICE_UNAVAILABLE, json!({ "ready": false, "reason": reason }).to_string())
        }
    }
}

/// The metrics name topics, peers and VMs' numbers: they are for those who may see these anyway.
async fn exposition<C: Send + Sync + 'static>(door: &RestDoor<C>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    door.pipeline.authorize(&credentials(&parts)?, "GET /metrics", Permission::Read)?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], door.probes.metrics().await).into_response())
}

async fn no_such_route(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let error = OpError::new(ErrorCode::NotFound, format!("nothing is at {path}"));
    Problem::from(error.hint("GET /openapi.json lists what there is")).into_response()
}

async fn no_such_method(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let error = OpError::new(ErrorCode::InvalidArgument, format!("{path} does not take {}", request.method()))
        .hint("GET /openapi.json lists what there is");
    Problem(error, StatusCode::METHOD_NOT_ALLOWED).into_response()
}

/// Where all other connections are taken, those in reserve must not be taken by what took them.
fn check_reserve(request: &Request) -> Result<(), Problem> {
    if request.extensions().get::<ProbesOnly>().is_none() || PROBES.contains(&request.uri().path()) {
        return Ok(());
    }
    let error = OpError::new(ErrorCode::Busy, "too many connections").hint("ask another node, or try again in a while");
    Err(Problem(error, StatusCode::SERVICE_UNAVAILABLE))
}

/// A page in a browser may have its own name resolve to this machine (DNS rebinding); its requests then carry that name.
fn check_host(request: &Request, own: &[String]) -> Result<(), OpError> {
    let Some(host) = request.headers().get(header::HOST) else { return Ok(()) };
    let host = host.to_str().unwrap_or("?");
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let known = bare.parse::<IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || own.iter().any(|own| own.eq_ignore_ascii_case(bare));
    if known {
        return Ok(());
    }
    let shown: String = bare.chars().take(100).collect();
    Err(OpError::new(ErrorCode::PermissionDenied, format!("this API does not go by the name {shown:?}"))
        .hint("call it by its address"))
}
