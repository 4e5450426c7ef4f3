//! QEMU's machine protocol, as much of it as a supervisor needs: JSON objects, one per line.
//!
//! Source: docs/interop/qmp-spec.txt of QEMU 7.2. QEMU runs code of strangers, so what it says is bounded and may be
//! wrong: a line that is not understood ends the connection, and with it the supervisor's trust in this QEMU.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::{CONTROL_QUEUE, Control, ControlAnswer, ControlCommand, ControlEvent};

/// One line from QEMU; its longest answers to what we ask are below 1 KiB.
const LINE_BYTES_MAX: usize = 64 << 10;
/// How long greeting and negotiation may take.
const NEGOTIATED_WITHIN: Duration = Duration::from_secs(5);
/// Commands without an answer yet.
const PENDING_MAX: usize = 32;

/// One line from QEMU.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Message {
    Greeting,
    Event { name: String, data: Value },
    Return { id: Option<u64>, value: Value },
    Error { id: Option<u64>, description: String },
}

/// Understands one line.
pub(crate) fn parse(line: &[u8]) -> Result<Message, String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "QMP")]
        greeting: Option<Value>,
        event: Option<String>,
        #[serde(default)]
        data: Value,
        #[serde(rename = "return")]
        value: Option<Value>,
        error: Option<ErrorBody>,
        id: Option<u64>,
    }
    #[derive(Deserialize)]
    struct ErrorBody {
        #[serde(default)]
        desc: String,
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if line.greeting.is_some() {
        Ok(Message::Greeting)
    } else if let Some(name) = line.event {
        Ok(Message::Event { name, data: line.data })
    } else if let Some(error) = line.error {
        Ok(Message::Error { id: line.id, description: error.desc })
    } else if let Some(value) = line.value {
        Ok(Message::Return { id: line.id, value })
    } else {
        Err("neither greeting, event, return nor error".to_owned())
    }
}

/// What an event means to a supervisor, if anything.
fn meaning(name: &str, data: &Value) -> Option<ControlEvent> {
    match name {
        "SHUTDOWN" => {
            let reason = data["reason"].as_str().unwrap_or("unknown");
            Some(ControlEvent::ShuttingDown { reason: reason.chars().take(64).collect() })
        }
        "GUEST_PANICKED" => Some(ControlEvent::Panicked),
        _ => None,
    }
}

/// Lines of a stream, bounded.
struct Lines<R> {
    stream: R,
    buffer: Vec<u8>,
}

impl<R: tokio::io::AsyncRead + Unpin> Lines<R> {
    fn new(stream: R) -> Lines<R> {
        Lines { stream, buffer: Vec::new() }
    }

    /// The next message; none at the end of the stream. Dropping the future loses nothing.
    async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let text = line.trim_ascii();
                if text.is_empty() {
                    continue;
                }
                let invalid = |reason| io::Error::new(io::ErrorKind::InvalidData, format!("QMP: {reason}"));
                return parse(text).map(Some).map_err(invalid);
            }
            if self.buffer.len() >= LINE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "QMP: a line without end"));
            }
            self.buffer.reserve(4096);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Greets, negotiates, and leaves the connection to a task that ends with it (or when `Control` is dropped).
pub(crate) async fn connect(stream: UnixStream) -> io::Result<Control> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader);
    let negotiate = async {
        expect(&mut lines, |message| matches!(message, Message::Greeting)).await?;
        writer.write_all(b"{\"execute\":\"qmp_capabilities\",\"id\":0}\n").await?;
        expect(&mut lines, |message| matches!(message, Message::Return { id: Some(0), .. })).await
    };
    tokio::time::timeout(NEGOTIATED_WITHIN, negotiate)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "QMP: no answer within 5 s"))??;
    let (commands, command_queue) = mpsc::channel(CONTROL_QUEUE);
    let (event_queue, events) = mpsc::channel(CONTROL_QUEUE);
    tokio::spawn(async move {
        let reason = match serve(lines, writer, command_queue, &event_queue).await {
            Ok(()) => "closed".to_owned(),
            Err(error) => error.to_string(),
        };
        let _ = event_queue.send(ControlEvent::Closed { reason }).await;
    });
    Ok(Control { commands, events })
}

async fn expect<R: tokio::io::AsyncRead + Unpin>(
    lines: &mut Lines<R>,
    wanted: impl Fn(&Message) -> bool,
) -> io::Result<()> {
    loop {
        match lines.next().await? {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(message) if wanted(&message) => return Ok(()),
            Some(Message::Error { description, .. }) => return Err(io::Error::other(format!("QMP: {description}"))),
            Some(_) => {}
        }
    }
}

type CommandQueue = mpsc::Receiver<(ControlCommand, oneshot::Sender<ControlAnswer>)>;

async fn serve<R, W>(
    mut lines: Lines<R>,
    mut writer: W,
    mut commands: CommandQueue,
    events: &mpsc::Sender<ControlEvent>,
) -> io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut pending: BTreeMap<u64, oneshot::Sender<ControlAnswer>> = BTreeMap::new();
    let mut last_id = 0;
    loop {
        tokio::select! {
            message = lines.next() => match message? {
                None => return Ok(()),
                Some(Message::Event { name, data }) => {
                    if let Some(event) = meaning(&name, &data) && events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
                Some(Message::Return { id, value }) => {
                    let status = value["status"].as_str().unwrap_or_default().to_owned();
                    answer(&mut pending, id, Ok(status));
                }
                Some(Message::Error { id, description }) => answer(&mut pending, id, Err(description)),
                Some(Message::Greeting) => {}
            },
            command = commands.recv() => {
                let Some((command, reply)) = command else { return Ok(()) };
                pending.retain(|_, reply| !reply.is_closed());
                if pending.len() >= PENDING_MAX {
                    let _ = reply.send(Err("too many commands without an answer".to_owned()));
                    continue;
                }
                last_id += 1;
                pending.insert(last_id, reply);
                let line = json!({ "execute": execute(command), "id": last_id });
                writer.write_all(format!("{line}\n").as_bytes()).await?;
            }
        }
    }
}

fn answer(pending: &mut BTreeMap<u64, oneshot::Sender<ControlAnswer>>, id: Option<u64>, answer: ControlAnswer) {
    if let Some(reply) = id.and_then(|id| pending.remove(&id)) {
        let _ = reply.send(answer);
    }
}

fn execute(command: ControlCommand) -> &'static str {
    match command {
        ControlCommand::Resume => "cont",
        ControlCommand::PowerDown => "system_powerdown",
        ControlCommand::Quit => "quit",
        ControlCommand::Status => "query-status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GREETING: &[u8] = b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n";

    #[test]
    fn lines_are_what_the_specification_says() {
        assert_eq!(parse(br#"{"QMP":{"version":{}}}"#), Ok(Message::Greeting));
        assert_eq!(parse(br#"{"return":{},"id":3}"#), Ok(Message::Return { id: Some(3), value: json!({}) }));
        assert_eq!(
            parse(br#"{"error":{"class":"GenericError","desc":"no"},"id":3}"#),
            Ok(Message::Error { id: Some(3), description: "no".into() })
        );
        let line = br#"{"timestamp":{"seconds":1},"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"}}"#;
        let Ok(Message::Event { name, data }) = parse(line) else { panic!("not an event") };
        assert_eq!(meaning(&name, &data), Some(ControlEvent::ShuttingDown { reason: "guest-reset".into() }));
        assert_eq!(meaning("GUEST_PANICKED", &Value::Null), Some(ControlEvent::Panicked));
        assert_eq!(meaning("NIC_RX_FILTER_CHANGED", &Value::Null), None);
        assert_eq!(meaning("SHUTDOWN", &json!([1])), Some(ControlEvent::ShuttingDown { reason: "unknown".into() }));
        for garbage in [&b"{}"[..], b"[]", b"nonsense", b"{\"id\":1}", b"{\"event\":7}", b"\xff"] {
            assert!(parse(garbage).is_err(), "{garbage:?} was understood");
        }
    }

    /// A control connection to a QEMU that says `script` after the negotiation.
    async fn against(script: &[u8]) -> (Control, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(GREETING).await.unwrap();
        theirs.write_all(b"{\"return\":{},\"id\":0}\r\n").await.unwrap();
        theirs.write_all(script).await.unwrap();
        (connect(ours).await.unwrap(), theirs)
    }

    #[tokio::test]
    async fn answers_find_their_command_and_events_their_way() {
        let (mut control, mut qemu) = against(b"{\"event\":\"GUEST_PANICKED\",\"data\":{}}\r\n").await;
        assert_eq!(control.events.recv().await, Some(ControlEvent::Panicked));
        let serve = async {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\"id\":1}\n") {
                qemu.read_buf(&mut seen).await.unwrap();
            }
            assert!(String::from_utf8_lossy(&seen).contains("query-status"));
            let answer = b"{\"return\":{},\"id\":77}\n{\"return\":{\"status\":\"running\"},\"id\":1}\n";
            qemu.write_all(answer).await.unwrap();
        };
        let (status, ()) = tokio::join!(control.call(ControlCommand::Status), serve);
        assert_eq!(status, Ok("running".into()));
        drop(qemu);
        assert!(matches!(control.events.recv().await, Some(ControlEvent::Closed { .. })));
        assert!(control.call(ControlCommand::Quit).await.is_err());
    }

    #[tokio::test]
    async fn garbage_and_endless_lines_end_the_connection() {
        for script in [b"what?\n".to_vec(), vec![b'x'; LINE_BYTES_MAX + 1]] {
            let (mut control, _qemu) = against(&script).await;
            let Some(ControlEvent::Closed { reason }) = control.events.recv().await else { panic!("still open") };
            assert!(reason.contains("QMP"), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_stranger_behind_the_socket_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
        assert!(connect(ours).await.is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
            let _ = parse(&line);
            let _ = parse(text.as_bytes());
            let _ = parse(format!("{{\"event\":{text:?},\"data\":{text:?}}}").as_bytes());
        }
    }
}
