//! Calls to a node's API.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use base::{ErrorCode, Millis};
use data_encoding::HEXLOWER;
use doors::http::{HttpCall, request_for};
use doors::rest::{DEADLINE_HEADER, IDEMPOTENCY_HEADER};
use ops::{Idempotency, OpError, Spec};
use serde_json::Value;

/// One line of a stream, at most; items are bounded by the API itself.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// A whole answer, at most: of what the API itself bounds in items the longest is far below.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// How long a call may take beyond the deadline that it asked for.
const GRACE: Duration = Duration::from_secs(5);
const MAYBE_DONE: &str = "what was asked for may still have been done: look before you ask again";

/// The API of one node.
pub(crate) struct Client {
    agent: ureq::Agent,
    /// `host:port`.
    address: String,
    /// How long the node may try, if not as long as the operation itself allows.
    deadline: Option<Millis>,
}

/// What a call gave.
pub(crate) enum Answer {
    Value(Value),
    Items(Items),
}

/// Items of a stream, as they come.
pub(crate) struct Items {
    lines: BufReader<ureq::BodyReader<'static>>,
    over: bool,
}

impl Client {
    /// A client of the API at `address` (`host:port`, or a `http://` URL).
    pub(crate) fn new(address: &str) -> Client {
        let address = address.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(3)))
            .proxy(None)
            .build();
        Client { agent: config.into(), address, deadline: None }
    }

    /// The same, whose calls give up after so long.
    pub(crate) fn with_deadline(self, deadline: Option<Millis>) -> Client {
        Client { deadline, ..self }
    }

    /// Carries out an operation there. The input must be valid. What must not be done twice goes under a key of its own.
    pub(crate) fn call(&self, spec: &Spec, input: &Value) -> Result<Answer, OpError> {
        let call = request_for(spec, input);
        let key = key_for(spec)?;
        match self.ask(spec, &call, key.as_deref()) {
            // A cluster that is still at cluster version 1 keeps no keys: it refused, and nothing was done.
            Err(error) if key.is_some() && error.code == ErrorCode::UnsupportedVersion => self.ask(spec, &call, None),
            answer => answer,
        }
    }

    /// Asks once more if the connection breaks before the answer and the key makes that harmless.
    fn ask(&self, spec: &Spec, call: &HttpCall, key: Option<&str>) -> Result<Answer, OpError> {
        let allowed = self.deadline.unwrap_or(spec.limits.deadline).min(spec.limits.deadline_max);
        let wait = Duration::from_millis(allowed.0) + GRACE;
        let response = match self.send(call, key, wait) {
            Err(error) if key.is_some() && broke_off(&error) => {
                self.send(call, key, wait).map_err(|_| self.no_answer(&error).hint(MAYBE_DONE))?
            }
            sent => sent.map_err(|error| self.no_answer(&error))?,
        };
        let status = response.status();
        if status.is_success() && spec.streams {
            return Ok(Answer::Items(Items { lines: BufReader::new(response.into_body().into_reader()), over: false }));
        }
        let body = response.into_body().into_with_config().limit(ANSWER_BYTES_MAX);
        let text = body.read_to_string().map_err(|error| self.no_answer(&error))?;
        let value: Option<Value> = serde_json::from_str(&text).ok();
        match value {
            Some(value) if status.is_success() => Ok(Answer::Value(value)),
            Some(problem) if problem.get("code").is_some() => Err(failure(&problem, "detail")),
            _ => Err(OpError::new(ErrorCode::Internal, format!("{} answered HTTP {status}", self.address))
                .hint("is that the API of a muster node? `--api` names another address")),
        }
    }

    /// Carries out an operation that answers with one value.
    pub(crate) fn value(&self, spec: &Spec, input: &Value) -> Result<Value, OpError> {
        match self.call(spec, input)? {
            Answer::Value(value) => Ok(value),
            Answer::Items(items) => items.collect::<Result<Vec<_>, _>>().map(Value::Array),
        }
    }

    /// Sends a request, and waits for the head of the answer.
    fn send(
        &self,
        call: &HttpCall,
        key: Option<&str>,
        wait: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = ureq::http::Request::builder()
            .method(call.method)
            .uri(format!("http://{}{}", self.address, call.target))
            .header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_HEADER, key);
        }
        if let Some(deadline) = self.deadline {
            request = request.header(DEADLINE_HEADER, deadline.0.to_string());
        }
        match &call.body {
            Some(body) => {
                let request = request.body(body.to_string())?;
                self.agent.run(self.agent.configure_request(request).timeout_recv_response(Some(wait)).build())
            }
            None => {
                let request = request.body(())?;
                self.agent.run(self.agent.configure_request(request).timeout_recv_response(Some(wait)).build())
            }
        }
    }

    fn no_answer(&self, error: &ureq::Error) -> OpError {
        let refused = match error {
            ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            ureq::Error::ConnectionFailed => true,
            _ => false,
        };
        let address = &self.address;
        match error {
            ureq::Error::Http(error) => {
                OpError::new(ErrorCode::InvalidArgument, format!("`{address}` is not the address of an API: {error}"))
                    .hint("write --api HOST:PORT")
            }
            _ if refused => OpError::new(
                ErrorCode::Unreachable,
                format!("no node answers at {address}: start one with `muster up`, or name one with --api"),
            ),
            ureq::Error::Timeout(_) => {
                OpError::new(ErrorCode::DeadlineExceeded, format!("the node at {address} did not answer in time"))
                    .hint(MAYBE_DONE)
            }
            _ => OpError::new(ErrorCode::Unreachable, format!("the node at {address} cannot be asked: {error}"))
                .hint("name another with --api"),
        }
    }
}

impl Iterator for Items {
    type Item = Result<Value, OpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let mut line = Vec::new();
        let read = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let broken = |why: String| {
            let failed = OpError::new(ErrorCode::Unreachable, format!("the stream broke off: {why}"));
            Some(Err(failed.hint("ask again when the node is back, or another one with --api")))
        };
        match read {
            Ok(0) => {
                self.over = true;
                None
            }
            Err(error) => {
                self.over = true;
                broken(error.to_string())
            }
            Ok(_) => match serde_json::from_slice::<Value>(&line) {
                Ok(value) => match value.get("error") {
                    Some(error) => {
                        self.over = true;
                        Some(Err(failure(error, "message")))
                    }
                    None => Some(Ok(value)),
                },
                Err(error) => {
                    self.over = true;
                    broken(error.to_string())
                }
            },
        }
    }
}

/// A new key for a call that would be done again, or fail, if it were sent twice; `None` for any other.
fn key_for(spec: &Spec) -> Result<Option<String>, OpError> {
    if spec.idempotency != Idempotency::Keyed || spec.streams {
        return Ok(None);
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        OpError::new(ErrorCode::Internal, format!("the operating system gives no random bytes: {error}"))
    })?;
    Ok(Some(HEXLOWER.encode(&bytes)))
}

/// Whether the connection was there and ended before the answer: the call may have been carried out.
fn broke_off(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ureq::Error::Io(error) = error else { return false };
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// A failure as the API writes it.
fn failure(value: &Value, message: &str) -> OpError {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let code = text("code").and_then(|code| ErrorCode::ALL.iter().find(|known| known.as_str() == code).copied());
    OpError {
        code: code.unwrap_or(ErrorCode::Internal),
        message: text(message).unwrap_or_else(|| "it failed without saying why".into()),
        hint: text("hint"),
        field: text("field"),
    }
}
