//! A small HTTP client for a node's API.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use ureq::Agent;

/// In which a call says how long the node may take.
const DEADLINE_HEADER: &str = "muster-deadline-ms";
/// In which a call says which other call it repeats.
const KEY_HEADER: &str = "idempotency-key";
/// By so much an answer may come late that the node gives at its deadline.
const ON_THE_WAY: Duration = Duration::from_millis(1_000);
/// Longest time that one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// The API of one node.
#[derive(Clone, Debug)]
pub struct Api {
    address: SocketAddr,
    agent: Agent,
    /// As said to the node.
    deadline_ms: Option<String>,
    /// As said to the node.
    idempotency_key: Option<String>,
}

/// What the API said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// JSON null if the body is no JSON.
    pub body: Value,
}

/// What the API said, as it said it.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

/// Whether a call failed because nobody listened: nothing was asked of anybody.
#[must_use]
pub fn nobody_listened(error: &anyhow::Error) -> bool {
    let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    matches!(error.downcast_ref::<ureq::Error>(), Some(ureq::Error::Io(error)) if refused(error))
}

impl Answer {
    /// The body, if the call succeeded.
    ///
    /// # Errors
    /// With status and body otherwise.
    pub fn ok(self) -> anyhow::Result<Value> {
        ensure!((200..300).contains(&self.status), "the API answered {}: {}", self.status, self.body);
        Ok(self.body)
    }
}

impl Api {
    /// A client of the API at `address`.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        Self::with_limit(address, CALL_LIMIT)
    }

    /// As [`Api::at`], giving up after `limit`.
    #[must_use]
    pub fn with_limit(address: SocketAddr, limit: Duration) -> Self {
        let config = Agent::config_builder().timeout_global(Some(limit)).http_status_as_error(false).build();
        Api { address, agent: config.into(), deadline_ms: None, idempotency_key: None }
    }

    /// As [`Api::at`], and the node too is to give up after `deadline`: it says why then.
    #[must_use]
    pub fn with_deadline(address: SocketAddr, deadline: Duration) -> Self {
        let deadline_ms = Some(deadline.as_millis().to_string());
        Api { deadline_ms, ..Self::with_limit(address, deadline + ON_THE_WAY) }
    }

    /// A client for [`Api::follow`], which waits so long until a stream begins, and then follows it for `stream`.
    pub(crate) fn following(address: SocketAddr, answer: Duration, stream: Duration) -> Self {
        let config = Agent::config_builder().timeout_global(Some(answer + stream)).timeout_recv_body(Some(stream));
        let agent = config.http_status_as_error(false).build().into();
        Api { agent, ..Self::at(address) }
    }

    /// The same client, whose calls all carry this Idempotency-Key.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        Api { idempotency_key: Some(key.to_owned()), ..self }
    }

    /// GET.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        let answer = self.with_headers(self.agent.get(self.url(path))).call();
        Self::read(answer).with_context(|| format!("GET {}", self.url(path)))
    }

    /// GET of something that is no JSON.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn text(&self, path: &str) -> anyhow::Result<Text> {
        let mut answer = self.agent.get(self.url(path)).call().with_context(|| format!("GET {}", self.url(path)))?;
        let content_type = answer.headers().get("content-type").and_then(|it| it.to_str().ok()).unwrap_or_default();
        let (status, content_type) = (answer.status().as_u16(), content_type.to_owned());
        Ok(Text { status, content_type, body: answer.body_mut().read_to_string()? })
    }

    /// POST with a JSON body.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let request = self.with_headers(self.agent.post(self.url(path))).header("content-type", "application/json");
        Self::read(request.send(body.to_string())).with_context(|| format!("POST {}", self.url(path)))
    }

    /// PUT with a JSON body.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn put(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let request = self.with_headers(self.agent.put(self.url(path))).header("content-type", "application/json");
        Self::read(request.send(body.to_string())).with_context(|| format!("PUT {}", self.url(path)))
    }

    /// The first `count` lines of a stream.
    ///
    /// # Errors
    /// If it ends before, or they do not come in time.
    pub fn lines(&self, path: &str, count: usize) -> anyhow::Result<Vec<String>> {
        let answer = self.agent.get(self.url(path)).call().with_context(|| format!("GET {}", self.url(path)))?;
        let lines = BufReader::new(answer.into_body().into_reader()).lines().take(count);
        let lines = lines.collect::<Result<Vec<_>, _>>().with_context(|| format!("GET {}", self.url(path)))?;
        ensure!(lines.len() == count, "{} gave only {lines:?}", self.url(path));
        Ok(lines)
    }

    /// The lines of a stream, until it ends or breaks, its time is over, or `take` wants no more. A line that broke off is
    /// none. What is no stream is given as it is.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) fn follow(&self, path: &str, mut take: impl FnMut(&str) -> bool) -> anyhow::Result<Answer> {
        let answer = self.agent.get(self.url(path)).call();
        let answer = match answer {
            Ok(answer) if answer.status().as_u16() == 200 => answer,
            other => return Self::read(other).with_context(|| format!("GET {}", self.url(path))),
        };
        let (mut reader, mut line) = (BufReader::new(answer.into_body().into_reader()), String::new());
        while reader.read_line(&mut line).is_ok() && line.ends_with('\n') && take(&line) {
            line.clear();
        }
        Ok(Answer { status: 200, body: Value::Null })
    }

    /// DELETE.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        let answer = self.with_headers(self.agent.delete(self.url(path))).call();
        Self::read(answer).with_context(|| format!("DELETE {}", self.url(path)))
    }

    fn with_headers<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        let headers = [(DEADLINE_HEADER, &self.deadline_ms), (KEY_HEADER, &self.idempotency_key)];
        headers.into_iter().fold(request, |request, (name, value)| match value {
            Some(value) => request.header(name, value),
            None => request,
        })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Answer> {
        let mut answer = answer?;
        let text = answer.body_mut().read_to_string()?;
        Ok(Answer { status: answer.status().as_u16(), body: serde_json::from_str(&text).unwrap_or(Value::Null) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::ports::free_port;

    #[test]
    fn a_stream_is_followed_to_its_last_whole_line_and_no_longer_than_wanted() -> anyhow::Result<()> {
        const HEAD: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
        for (wanted, expected) in [(9, ["one\n", "two\n"].as_slice()), (1, ["one\n"].as_slice())] {
            let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            let api = Api::following(listener.local_addr()?, CALL_LIMIT, CALL_LIMIT);
            let server = std::thread::spawn(move || -> std::io::Result<()> {
                let mut stream = listener.accept()?.0;
                let asked = stream.read(&mut [0; 4_096])?;
                assert!(asked > 0, "nothing was asked for");
                stream.write_all(format!("{HEAD}one\ntwo\nthr").as_bytes())
            });
            let mut lines = Vec::new();
            let answer = api.follow("/", |line| {
                lines.push(line.to_owned());
                lines.len() < wanted
            })?;
            server.join().expect("it does not panic")?;
            assert!(answer.status == 200 && lines == expected, "{lines:?}");
        }
        Ok(())
    }

    #[test]
    fn a_call_that_reached_nobody_is_told_from_one_that_was_not_answered() -> anyhow::Result<()> {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let error = Api::at(loopback(free_port()?)).put("/v1/kv/a", &Value::Null).expect_err("nobody is there");
        assert!(nobody_listened(&error), "{error:#}");
        // It takes the call, and hangs up.
        let listener = std::net::TcpListener::bind(loopback(0))?;
        let api = Api::at(listener.local_addr()?);
        let error = std::thread::scope(|scope| {
            let call = scope.spawn(|| api.put("/v1/kv/a", &Value::Null).expect_err("there is no answer"));
            listener.accept().map(drop).map(|()| call.join().expect("it does not panic"))
        })?;
        assert!(!nobody_listened(&error), "{error:#}");
        Ok(())
    }
}
