//! The host's end of a guest agent's port, served by a task of its own.
//!
//! Everything that arrives is a stranger's: frames are bounded and searched for with bounded work (`wire::agent`),
//! texts are cut, and a guest that talks without end waits for the supervisor, not the other way round.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use wire::agent::{AGENT_PROTOCOL_VERSION, AgentHello, AgentMessage, FrameReader, HostMessage, encode_frame};

use crate::event::AgentInfo;

/// Messages that wait in either direction.
const QUEUE: usize = 16;
/// How long the rest of a frame may take.
const FRAME_WITHIN: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 64 << 10;
/// A text in a hello.
const TEXT_BYTES_MAX: usize = 256;

/// The connection. Dropping it ends the task.
pub(crate) struct AgentLink {
    to_guest: mpsc::Sender<HostMessage>,
    from_guest: mpsc::Receiver<AgentMessage>,
}

impl AgentLink {
    /// Serves `stream`, beginning with a hello, which waits in the port until the guest has opened it.
    pub(crate) fn new(stream: UnixStream) -> AgentLink {
        let (to_guest, to_guest_queue) = mpsc::channel(QUEUE);
        let (from_guest_queue, from_guest) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, to_guest_queue, from_guest_queue).await {
                tracing::debug!(%error, "a guest agent's port is closed");
            }
        });
        let link = AgentLink { to_guest, from_guest };
        link.send(HostMessage::Hello { protocol: AGENT_PROTOCOL_VERSION });
        link
    }

    /// Hands a message in. One that the guest has no room for is dropped: nothing here waits for a guest.
    pub(crate) fn send(&self, message: HostMessage) {
        if let Err(error) = self.to_guest.try_send(message) {
            tracing::debug!(%error, "the guest agent takes no messages");
        }
    }

    /// The next message; pends for ever once the port is closed. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> AgentMessage {
        match self.from_guest.recv().await {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }
}

async fn serve(
    stream: UnixStream,
    mut to_guest: mpsc::Receiver<HostMessage>,
    from_guest: mpsc::Sender<AgentMessage>,
) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    // Apart from the reading, because a guest that does not read would otherwise not be heard either.
    let write = async {
        while let Some(message) = to_guest.recv().await {
            let frame = encode_frame(&message).map_err(std::io::Error::other)?;
            writer.write_all(&frame).await?;
        }
        Ok(())
    };
    let read = async {
        let mut frames = FrameReader::new();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let limit = if frames.is_partial() { FRAME_WITHIN } else { Duration::from_secs(3600) };
            match tokio::time::timeout(limit, reader.read(&mut chunk)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(count) => frames.push(&chunk[..count?]),
                Err(_) => frames.abandon_partial(),
            }
            loop {
                match frames.next_message::<AgentMessage>() {
                    Ok(None) => break,
                    Ok(Some(message)) => {
                        if from_guest.send(message).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(error) => tracing::debug!(%error, "a guest agent's message is not understood"),
                }
            }
        }
    };
    tokio::select! {
        done = write => done,
        done = read => done,
    }
}

/// What a guest says of itself, with its texts cut and printable.
pub(crate) fn agent_info(hello: &AgentHello) -> AgentInfo {
    let clean = |text: &str| {
        let mut clean: String = text.chars().filter(|char| !char.is_control()).take(TEXT_BYTES_MAX).collect();
        clean.truncate(clean.floor_char_boundary(TEXT_BYTES_MAX));
        clean
    };
    AgentInfo {
        version: clean(&hello.version),
        boot_id: clean(&hello.boot_id),
        kernel: clean(&hello.kernel),
        cpus: hello.cpus,
        memory_mib: hello.memory_mib,
        uptime_ms: hello.uptime_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_are_heard_through_garbage() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut link = AgentLink::new(ours);
        let mut frames = FrameReader::new();
        let mut chunk = [0; 256];
        let count = guest.read(&mut chunk).await.unwrap();
        frames.push(&chunk[..count]);
        assert_eq!(frames.next_message(), Ok(Some(HostMessage::Hello { protocol: AGENT_PROTOCOL_VERSION })));

        guest.write_all(b"login: \xff").await.unwrap();
        guest.write_all(&encode_frame(&AgentMessage::Pong { nonce: 5 }).unwrap()).await.unwrap();
        assert_eq!(link.next().await, AgentMessage::Pong { nonce: 5 });
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_frame_hides_the_next_for_a_moment_only() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut link = AgentLink::new(ours);
        let frame = encode_frame(&AgentMessage::Pong { nonce: 1 }).unwrap();
        guest.write_all(&frame[..frame.len() - 1]).await.unwrap();
        guest.write_all(&encode_frame(&AgentMessage::StopAck).unwrap()[..13]).await.unwrap();
        guest.write_all(&encode_frame(&AgentMessage::Pong { nonce: 2 }).unwrap()).await.unwrap();
        assert_eq!(link.next().await, AgentMessage::Pong { nonce: 2 });
    }

    #[test]
    fn a_guests_texts_are_cut_and_printable() {
        let hello = AgentHello { version: "\u{1b}[31m".into(), kernel: "é".repeat(4000), ..Default::default() };
        let info = agent_info(&hello);
        assert_eq!(info.version, "[31m");
        assert!(info.kernel.len() <= TEXT_BYTES_MAX);
    }
}
