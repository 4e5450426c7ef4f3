//! The REST door over real TCP, with a registry of its own.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::{ErrorCode, Millis, Mono, Now, Wall};
use doors::rest::{Probes, RestDoor, Served, ServerLimits, serve};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::StreamExt;
use ops::{
    Call, Clock, Idempotency, Limits, LoopbackOnly, Method, Observer, OpError, Operation, Pipeline, Record, Registry,
    Typed,
};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout};

/// What the tests see and steer of handlers.
struct World {
    /// Calls under way of those that do not end by themselves.
    under_way: watch::Sender<usize>,
    /// Lets slow calls end.
    released: Semaphore,
}

/// A call that is under way until this is dropped.
struct UnderWay(Arc<World>);

impl UnderWay {
    fn of(call: &Call<World>) -> UnderWay {
        call.context.under_way.send_modify(|count| *count += 1);
        UnderWay(Arc::clone(&call.context))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|count| *count -= 1);
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Which thing.
    name: String,
    #[serde(default)]
    size: u32,
    #[serde(default)]
    big: bool,
    #[serde(default)]
    once: bool,
}

#[derive(Serialize, JsonSchema)]
struct Thing {
    name: String,
    size: u32,
    big: bool,
    deadline_ms: u64,
}

async fn make(call: Call<World>, input: Input) -> Result<Thing, OpError> {
    match input.name.as_str() {
        "panic" => panic!("told to"),
        "gone" => Err(OpError::new(ErrorCode::NotFound, "no such thing").hint("make one")),
        _ => {
            let deadline_ms = call.deadline.since(call.clock.now().mono).0;
            Ok(Thing { name: input.name, size: input.size, big: input.big, deadline_ms })
        }
    }
}

async fn follow(_: Call<World>, input: Input) -> Result<Typed<u32>, OpError> {
    let end = async move { Err(OpError::new(ErrorCode::Unreachable, "it broke")) };
    let items = futures::stream::iter((0..input.size).map(Ok));
    if input.once {
        return Ok(items.boxed());
    }
    Ok(if input.big { items.chain(futures::stream::pending()).boxed() } else { items.chain(end.into_stream()).boxed() })
}

/// Ends when it is let.
async fn slow(call: Call<World>, input: Input) -> Result<Thing, OpError> {
    let _under_way = UnderWay::of(&call);
    let released = call.context.released.acquire().await;
    released.map_err(|_| OpError::new(ErrorCode::Internal, "it is never released"))?.forget();
    Ok(Thing { name: input.name, size: input.size, big: input.big, deadline_ms: 0 })
}

/// Never ends.
async fn wait(call: Call<World>, _: Input) -> Result<Thing, OpError> {
    let _under_way = UnderWay::of(&call);
    std::future::pending().await
}

struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Now {
        Now { mono: Mono(self.0.elapsed().as_nanos() as u64), wall: Wall(0) }
    }
    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        tokio::time::sleep_until(self.0 + Duration::from_nanos(deadline.0)).boxed()
    }
}

struct Nobody;

impl Observer for Nobody {
    fn audit(&self, _: &Record) {}
    fn metrics(&self, _: &Record) {}
}

struct NotReady;

impl Probes for NotReady {
    fn ready(&self) -> BoxFuture<'static, Result<(), String>> {
        std::future::ready(Err("joining".into())).boxed()
    }
    fn metrics(&self) -> BoxFuture<'static, String> {
        std::future::ready("muster_up 1\n".into()).boxed()
    }
}

struct Server {
    address: SocketAddr,
    world: Arc<World>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Served>,
}

async fn server(limits: ServerLimits) -> Server {
    let registry = Registry::new(vec![
        Operation::new("thing.make", "Make a thing", (Method::Post, "/v1/things"), make)
            .idempotency(Idempotency::Keyed)
            .errors(&[ErrorCode::NotFound]),
        Operation::new("thing.get", "Get a thing", (Method::Get, "/v1/things/{name}"), make),
        Operation::streaming("thing.follow", "Follow a thing", (Method::Get, "/v1/things/{name}/follow"), follow)
            .single("once"),
        Operation::new("thing.slow", "Get a thing, at leisure", (Method::Get, "/v1/things/{name}/slow"), slow),
        Operation::new("thing.wait", "Wait for a thing", (Method::Get, "/v1/things/{name}/wait"), wait)
            .limits(Limits { deadline_max: Millis(86_400_000), ..Limits::default() }),
    ])
    .unwrap();
    let clock = Arc::new(RealClock(Instant::now()));
    let world = Arc::new(World { under_way: watch::Sender::new(0), released: Semaphore::new(0) });
    let context = Arc::clone(&world);
    let pipeline = Pipeline::new(Arc::new(registry), context, clock, Arc::new(LoopbackOnly), Arc::new(Nobody));
    let door = Arc::new(RestDoor {
        pipeline: Arc::new(pipeline),
        probes: Arc::new(NotReady),
        version: "1.2.3".into(),
        host_names: vec!["node1.example.org".into()],
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(serve(listener, door, limits, async move {
        let _ = stopped.await;
    }));
    Server { address, world, stop, served }
}

impl Server {
    /// Sends bytes, and that there will be no more, and reads until the server closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        Self::rest(stream).await
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection stays open after {:?}", String::from_utf8_lossy(&answer));
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One request; (status, body).
    async fn send(&self, head: &str, body: &str) -> (u16, Value) {
        let head =
            if head.to_lowercase().contains("host:") { head.to_owned() } else { format!("{head}\r\nhost: localhost") };
        let request = format!("{head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let answer = Self::rest(stream).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
    }

    async fn post(&self, body: &str) -> (u16, Value) {
        self.send("POST /v1/things HTTP/1.1\r\ncontent-type: application/json", body).await
    }

    /// A connection that follows a stream.
    async fn following(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(b"GET /v1/things/a/follow?size=1&big HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        stream
    }

    /// Asks until there is room.
    async fn until_ok(&self, head: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.send(head, "").await.0 != 200 {
            assert!(Instant::now() < deadline, "the places were not freed");
            tokio::task::yield_now().await;
        }
    }

    /// A connection on which something is asked for; the answer is still to be read, to the end.
    async fn asking(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    async fn healthy(&self) {
        assert_eq!(self.send("GET /healthz HTTP/1.1", "").await, (200, json!("ok\n")));
    }
}

#[tokio::test]
async fn inputs_come_from_path_query_and_body() {
    let server = server(ServerLimits::default()).await;
    let (status, body) = server.post(r#"{"name": "a", "size": 3}"#).await;
    assert_eq!((status, &body["size"], body["deadline_ms"].as_u64() > Some(20_000)), (200, &json!(3), true), "{body}");
    let get = "GET /v1/things/caf%C3%A9%2Fx?size=7&big HTTP/1.1\r\nmuster-deadline-ms: 1500";
    let (status, body) = server.send(get, "").await;
    assert_eq!((status, &body["name"], &body["size"], &body["big"]), (200, &json!("café/x"), &json!(7), &json!(true)));
    assert!(body["deadline_ms"].as_u64().unwrap() <= 1500, "{body}");
}

#[tokio::test]
async fn failures_are_problem_documents() {
    let server = server(ServerLimits::default()).await;
    let json = "POST /v1/things HTTP/1.1\r\ncontent-type: application/json";
    for (head, body, status, code, detail) in [
        (json, "{\"name\": \"gone\"}", 404, "not_found", "no such thing"),
        (json, "{\"name\": \"panic\"}", 500, "internal", "thing.make panicked: told to"),
        (json, "{\"nam\": 1}", 400, "invalid_argument", "`nam` is not a field of this operation"),
        (json, "{", 400, "invalid_argument", "the body is not JSON: EOF while parsing an object at line 1 column 1"),
        (json, "[1]", 400, "invalid_argument", "the input must be a JSON object, not an array"),
        (json, "", 400, "invalid_argument", "`name` is required"),
        (
            "POST /v1/things HTTP/1.1",
            "{}",
            415,
            "invalid_argument",
            "the body must be application/json, the content type is \"\"",
        ),
        ("GET /v1/things/a?size=x HTTP/1.1", "", 400, "invalid_argument", "`size` must be an integer, is \"x\""),
        ("GET /v1/things/a?name=b HTTP/1.1", "", 400, "invalid_argument", "`name` is given twice, differently"),
        (
            "GET /v1/things/a HTTP/1.1",
            "{}",
            400,
            "invalid_argument",
            "thing.get takes no body: its input stands in the path and the query",
        ),
        ("GET /v1/thing HTTP/1.1", "", 404, "not_found", "nothing is at /v1/thing"),
        ("DELETE /v1/things HTTP/1.1", "", 405, "invalid_argument", "/v1/things does not take DELETE"),
        (
            "GET /v1/things/a HTTP/1.1\r\nmuster-deadline-ms: soon",
            "",
            400,
            "invalid_argument",
            "the header muster-deadline-ms must be a number of milliseconds above 0, is \"soon\"",
        ),
        (
            "GET /v1/things/a HTTP/1.1\r\nhost: evil.example:7400",
            "",
            403,
            "permission_denied",
            "this API does not go by the name \"evil.example\"",
        ),
    ] {
        let (got, problem) = server.send(head, body).await;
        assert_eq!(
            (got, problem["code"].as_str(), problem["detail"].as_str()),
            (status, Some(code), Some(detail)),
            "{head} {body} {problem}"
        );
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:muster:error:{code}"));
    }
    for host in ["127.0.0.1:7400", "[::1]:7400", "localhost:1", "node1.example.org:7400"] {
        let (status, body) = server.send(&format!("GET /v1/things/a HTTP/1.1\r\nhost: {host}"), "").await;
        assert_eq!(status, 200, "{host} {body}");
    }
}

#[tokio::test]
async fn a_value_of_full_length_fits_however_its_characters_are_escaped() {
    let server = server(ServerLimits::default()).await;
    for (text, escaped) in [("ä", r"\u00e4"), ("€", r"\u20ac"), ("😀", r"\ud83d\ude00"), ("\"", r#"\""#)] {
        let count = base::limits::KV_VALUE_BYTES_MAX / text.len();
        let (status, answer) = server.post(&format!(r#"{{"name": "{}"}}"#, escaped.repeat(count))).await;
        assert_eq!(status, 200, "{escaped}: {:.200}", answer.to_string());
        assert!(answer["name"] == text.repeat(count), "{escaped} came as something else");
    }
}

#[tokio::test]
async fn a_retry_with_its_key_gets_the_first_answer() {
    let server = server(ServerLimits::default()).await;
    let head = "POST /v1/things HTTP/1.1\r\ncontent-type: application/json\r\nidempotency-key: k1";
    assert_eq!(server.send(head, r#"{"name": "a"}"#).await.0, 200);
    assert_eq!(server.send(head, r#"{"name": "a"}"#).await.0, 200);
    let (status, problem) = server.send(head, r#"{"name": "b"}"#).await;
    assert_eq!((status, problem["code"].as_str()), (400, Some("invalid_argument")));
}

#[tokio::test]
async fn streams_are_lines_and_a_failure_is_the_last() {
    let server = server(ServerLimits::default()).await;
    let (status, body) = server.send("GET /v1/things/a/follow?size=3 HTTP/1.1", "").await;
    assert_eq!(status, 200);
    // The chunked coding: a line with the size, then the item.
    let lines = body.as_str().unwrap().lines().filter(|line| !line.is_empty()).skip(1).step_by(2);
    let error = r#"{"error":{"code":"unreachable","message":"it broke"}}"#;
    assert_eq!(lines.collect::<Vec<_>>(), ["0", "1", "2", error]);
}

#[tokio::test]
async fn probes_answer() {
    let server = server(ServerLimits::default()).await;
    server.healthy().await;
    let (status, body) = server.send("GET /readyz HTTP/1.1", "").await;
    assert_eq!((status, body), (503, json!({ "ready": false, "reason": "joining" })));
    assert_eq!(server.send("GET /metrics HTTP/1.1", "").await, (200, json!("muster_up 1\n")));
    let (status, document) = server.send("GET /openapi.json HTTP/1.1", "").await;
    assert_eq!((status, &document["openapi"], &document["info"]["version"]), (200, &json!("3.1.0"), &json!("1.2.3")));
    let make = &document["paths"]["/v1/things"]["post"];
    assert_eq!(make["operationId"], "thing.make");
    assert_eq!(make["requestBody"]["content"]["application/json"]["schema"]["required"], json!(["name"]));
    assert_eq!(document["paths"]["/v1/things/{name}"]["get"]["parameters"][1]["in"], "path");
}

#[tokio::test]
async fn too_much_is_refused() {
    let header_timeout = Millis(300);
    let server =
        server(ServerLimits { header_timeout, connections_max: 2, reserved: 0, ..ServerLimits::default() }).await;
    let (status, problem) = server.post(&"x".repeat(base::limits::API_BODY_BYTES_MAX + 1)).await;
    assert_eq!((status, problem["code"].as_str()), (413, Some("too_large")));
    let head = format!("GET /v1/things/{} HTTP/1.1", "x".repeat(base::limits::API_HEAD_BYTES_MAX));
    let (status, _) = server.send(&head, "").await;
    assert!([414, 431].contains(&status), "{status}");
    // Two that follow a stream fill the listener; a third is told so, until they go.
    let held = [server.following().await, server.following().await];
    let (status, problem) = server.send("GET /healthz HTTP/1.1", "").await;
    assert_eq!((status, problem["detail"].as_str()), (503, Some("too many connections")));
    drop(held);
    server.until_ok("GET /healthz HTTP/1.1").await;
    // Who sends no head is closed.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    silent.write_all(b"GET / HT").await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(10), silent.read_to_end(&mut rest)).await.expect("closed").unwrap();
}

#[tokio::test]
async fn probes_find_room_where_all_connections_are_taken_and_nothing_else_does() {
    let server = server(ServerLimits { connections_max: 2, reserved: 2, ..ServerLimits::default() }).await;
    let held = [server.following().await, server.following().await];
    for _ in 0..3 {
        server.healthy().await;
        assert_eq!(server.send("GET /metrics HTTP/1.1", "").await, (200, json!("muster_up 1\n")));
        assert_eq!(server.send("GET /readyz HTTP/1.1", "").await.0, 503);
        let (status, problem) = server.post(r#"{"name": "a"}"#).await;
        assert_eq!((status, problem["detail"].as_str()), (503, Some("too many connections")));
    }
    // The reserve is for one probe after the other: nobody keeps a place in it.
    let mut kept = TcpStream::connect(server.address).await.unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let answer = Server::rest(kept).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    drop(held);
    server.until_ok("GET /v1/things/a HTTP/1.1").await;
}

#[tokio::test]
async fn streams_leave_room_for_other_calls() {
    let server = server(ServerLimits { waits_max: 2, ..ServerLimits::default() }).await;
    let held = [server.following().await, server.following().await];
    let follow = "GET /v1/things/a/follow?size=1 HTTP/1.1";
    let (status, problem) = server.send(follow, "").await;
    let detail = "too many streams and waiting calls are under way on this node";
    assert_eq!((status, problem["detail"].as_str()), (429, Some(detail)));
    assert_eq!(server.post(r#"{"name": "a"}"#).await.0, 200);
    // So does a stream of one item find room: a lease is renewed whoever watches.
    assert_eq!(server.send("GET /v1/things/a/follow?size=1&once HTTP/1.1", "").await.0, 200);
    drop(held);
    server.until_ok(follow).await;
}

#[tokio::test]
async fn garbage_closes_its_connection_and_harms_nobody() {
    let server = server(ServerLimits::default()).await;
    let mut other = TcpStream::connect(server.address).await.unwrap();
    let mut random = base::SplitMix64::new(1);
    for _ in 0..200 {
        let length = random.below(300) as usize;
        let garbage: Vec<u8> = (0..length).map(|_| random.next_u64() as u8).collect();
        server.raw(&garbage).await;
        server
            .raw(
                &[b"POST /v1/things HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n", &garbage[..]]
                    .concat(),
            )
            .await;
    }
    for strange in ["\x16\x03\x01\x02\x00\x01\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET  HTTP/9.9\r\n\r\n"] {
        server.raw(strange.as_bytes()).await;
    }
    other.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(10), other.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn stopping_ends_at_once_what_waits_and_lets_requests_end() {
    let server = server(ServerLimits { drain: Millis(600_000), ..ServerLimits::default() }).await;
    let stream = server.following().await;
    let (waiting, slow) = (server.asking("/v1/things/a/wait").await, server.asking("/v1/things/a/slow").await);
    let Server { address, world, stop, served } = server;
    let mut under_way = world.under_way.subscribe();
    under_way.wait_for(|count| *count == 2).await.unwrap();
    stop.send(()).unwrap();

    // These do not wait for the one that is slow.
    let followed = Server::rest(stream).await;
    let last = followed.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down", "{followed}");
    assert!(last["error"]["hint"].is_string() && followed.ends_with("\r\n0\r\n\r\n"), "it broke off: {followed}");
    let waited = Server::rest(waiting).await;
    assert!(waited.starts_with("HTTP/1.1 503 ") && waited.contains(r#""code":"shutting_down""#), "{waited}");
    assert_eq!(*under_way.borrow(), 1, "the call that was answered goes on");

    assert!(!served.is_finished(), "it does not wait for what is under way");
    world.released.add_permits(1);
    let answer = Server::rest(slow).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(r#""name":"a""#), "{answer}");
    let served = timeout(Duration::from_secs(10), served).await.unwrap().unwrap();
    assert_eq!((served.connections, served.ended, served.cut), (3, 2, 0));
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn stopping_cuts_what_does_not_end_in_time() {
    let server = server(ServerLimits { drain: Millis(200), ..ServerLimits::default() }).await;
    let slow = server.asking("/v1/things/a/slow").await;
    server.world.under_way.subscribe().wait_for(|count| *count == 1).await.unwrap();
    server.stop.send(()).unwrap();
    let served = timeout(Duration::from_secs(10), server.served).await.unwrap().unwrap();
    assert_eq!((served.connections, served.ended, served.cut), (1, 0, 1));
    drop(slow);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_json_and_any_text_is_answered(body in any_body()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = server(ServerLimits::default()).await;
            let (status, answer) = server.post(&body).await;
            assert!([200, 400].contains(&status), "{status} {answer}");
        });
    }
}

fn any_body() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z]{0,8}".prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(6, 64, 6, |inner| {
        let key = prop_oneof![Just("name".to_owned()), Just("size".to_owned()), Just("big".to_owned()), "[a-z]{1,4}"];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let deep = (1usize..2_000).prop_map(|depth| format!("{{\"name\":{}", "[".repeat(depth)));
    prop_oneof![tree.prop_map(|value| value.to_string()), deep, any::<String>()]
}
