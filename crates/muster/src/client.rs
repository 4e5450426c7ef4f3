//! Calls to a node's API.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use base::ErrorCode;
use doors::http::request_for;
use ops::{OpError, Spec};
use serde_json::Value;

/// One line of a stream, at most; items are bounded by the API itself.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// How long a call may take beyond the deadline that it asked for.
const GRACE: Duration = Duration::from_secs(5);

/// The API of one node.
pub(crate) struct Client {
    agent: ureq::Agent,
    /// `host:port`.
    address: String,
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
        Client { agent: config.into(), address }
    }

    /// Carries out an operation there. The input must be valid.
    pub(crate) fn call(&self, spec: &Spec, input: &Value) -> Result<Answer, OpError> {
        let call = request_for(spec, input);
        let request = ureq::http::Request::builder()
            .method(call.method)
            .uri(format!("http://{}{}", self.address, call.target))
            .header("content-type", "application/json");
        let bad = |error: ureq::http::Error| {
            OpError::new(
                ErrorCode::InvalidArgument,
                format!("`{}` is not the address of an API: {error}", self.address),
            )
            .hint("write --api HOST:PORT")
        };
        let wait = Duration::from_millis(spec.limits.deadline.0) + GRACE;
        let response = match call.body {
            Some(body) => {
                let request = request.body(body.to_string()).map_err(bad)?;
                let request = self.agent.configure_request(request).timeout_recv_response(Some(wait)).build();
                self.agent.run(request)
            }
            None => {
                let request = request.body(()).map_err(bad)?;
                let request = self.agent.configure_request(request).timeout_recv_response(Some(wait)).build();
                self.agent.run(request)
            }
        };
        let response = response.map_err(|error| self.no_answer(&error))?;
        let status = response.status();
        if status.is_success() && spec.streams {
            return Ok(Answer::Items(Items { lines: BufReader::new(response.into_body().into_reader()), over: false }));
        }
        let text = response.into_body().read_to_string().map_err(|error| self.no_answer(&error))?;
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

    fn no_answer(&self, error: &ureq::Error) -> OpError {
        let refused = match error {
            ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            ureq::Error::ConnectionFailed => true,
            _ => false,
        };
        let address = &self.address;
        match error {
            _ if refused => OpError::new(
                ErrorCode::Unreachable,
                format!("no node answers at {address}: start one with `muster up`, or name one with --api"),
            ),
            ureq::Error::Timeout(_) => {
                OpError::new(ErrorCode::DeadlineExceeded, format!("the node at {address} did not answer in time"))
                    .hint("what was asked for may still have been done: look before you ask again")
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
