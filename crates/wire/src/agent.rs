//! Frames between host and guest agent, over a virtio-serial port: a byte stream without a notion of a connection.
//!
//! The port outlives both ends: a daemon that comes back reads the rest of a frame that its predecessor did not take,
//! and a guest that reboots leaves half a frame behind. A plain length prefix would then be misread forever. So each
//! frame opens with a magic number and carries a checksum, and the reader looks for the next frame after anything that
//! is not one. The host trusts nothing here: a frame's length is bounded before a byte is kept for it, and the work of
//! looking for a frame is bounded too, so that a guest cannot keep the host busy with headers that lead nowhere.
//!
//! ```text
//! | "mag\x01" | length: u32 LE | CRC-32C of length and payload: u32 LE | payload: format byte, CBOR |
//! ```

use base::limits::AGENT_FRAME_BYTES_MAX;
use minicbor::{Decode, Encode};

use crate::codec::{WireError, decode, encode};

/// The agent protocol that this version speaks. Each side reports its own in the hello.
pub const AGENT_PROTOCOL_VERSION: u32 = base::version::AGENT_PROTOCOL;

/// The name of the virtio-serial port, as found in `/sys/class/virtio-ports/*/name`.
pub const AGENT_PORT_NAME: &str = "org.muster.agent";

/// How a frame begins. No byte of it occurs twice, so a search never has to step back.
const MAGIC: [u8; 4] = *b"mag\x01";
/// Magic, length, checksum.
const HEADER_BYTES: usize = 12;
/// Bytes checksummed in vain, per buffer, after which the buffer is thrown away: bounds the work that a hostile
/// sender can cause to a small multiple of what it sends.
const SEARCH_BYTES_MAX: usize = 4 * AGENT_FRAME_BYTES_MAX;

/// What the host says.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum HostMessage {
    /// The first words of a host that opened the port: the agent answers with [`AgentMessage::Hello`].
    #[n(0)]
    Hello {
        /// The host's [`AGENT_PROTOCOL_VERSION`].
        #[n(0)]
        protocol: u32,
    },
    /// Answered with a pong of the same nonce.
    #[n(1)]
    Ping {
        #[n(0)]
        nonce: u64,
    },
    /// Power the guest off in an orderly way. Answered before it begins.
    #[n(2)]
    Stop,
}

/// What the guest agent says.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum AgentMessage {
    /// The guest is up. Sent when the port was opened and in answer to each [`HostMessage::Hello`].
    #[n(0)]
    Hello(#[n(0)] AgentHello),
    /// The answer to a ping.
    #[n(1)]
    Pong {
        #[n(0)]
        nonce: u64,
    },
    /// The guest begins to power off.
    #[n(2)]
    StopAck,
}

/// What a guest says of itself: claims, never trusted beyond showing them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct AgentHello {
    /// The agent's [`AGENT_PROTOCOL_VERSION`].
    #[n(0)]
    pub protocol: u32,
    /// The agent's release.
    #[n(1)]
    pub version: String,
    /// The kernel's random id of this boot: tells a reboot from a reconnect.
    #[n(2)]
    pub boot_id: String,
    /// The kernel's release.
    #[n(3)]
    pub kernel: String,
    /// Processors that the guest sees.
    #[n(4)]
    pub cpus: u32,
    /// Memory that the guest sees, in MiB.
    #[n(5)]
    pub memory_mib: u64,
    /// Since the guest's kernel started, in milliseconds.
    #[n(6)]
    pub uptime_ms: u64,
}

/// Puts `message` into a frame.
///
/// # Errors
/// [`WireError::TooLarge`] when the message does not fit into [`AGENT_FRAME_BYTES_MAX`].
pub fn encode_frame<T: Encode<()>>(message: &T) -> Result<Vec<u8>, WireError> {
    let payload = encode(message);
    if payload.len() > AGENT_FRAME_BYTES_MAX {
        return Err(WireError::TooLarge { what: "agent frame", size: payload.len(), max: AGENT_FRAME_BYTES_MAX });
    }
    let length = u32::try_from(payload.len()).expect("the bound above is below 4 GiB").to_le_bytes();
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&checksum(length, &payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

/// Finds frames in a stream of bytes, whatever lies between them.
///
/// [`push`](Self::push) bytes as they come, then take messages with [`next_message`](Self::next_message) until it has none.
/// Holds at most one frame of [`AGENT_FRAME_BYTES_MAX`] and what one push adds.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already dealt with.
    start: usize,
    /// Bytes checksummed in vain since the buffer was last empty.
    searched: usize,
    skipped: u64,
}

impl FrameReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        FrameReader::default()
    }

    /// Takes in bytes from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, or none until more bytes come.
    ///
    /// # Errors
    /// A frame whose checksum is right but whose content is not a `T`: a sender of another version or a broken one.
    /// The frame is dropped and the next call goes on behind it.
    pub fn next_message<T>(&mut self) -> Result<Option<T>, WireError>
    where
        T: for<'b> Decode<'b, ()>,
    {
        loop {
            self.seek_magic();
            let rest = &self.buffer[self.start..];
            let Some((header, body)) = rest.split_at_checked(HEADER_BYTES) else { return Ok(None) };
            let length_bytes = [header[4], header[5], header[6], header[7]];
            let length = u32::from_le_bytes(length_bytes) as usize;
            if length > AGENT_FRAME_BYTES_MAX {
                self.skip(1);
                continue;
            }
            let Some(payload) = body.get(..length) else { return Ok(None) };
            if checksum(length_bytes, payload).to_le_bytes() != header[8..] {
                self.searched += length;
                let unread = self.buffer.len() - self.start;
                self.skip(if self.searched > SEARCH_BYTES_MAX { unread } else { 1 });
                continue;
            }
            let message = decode(payload);
            self.start += HEADER_BYTES + length;
            self.searched = 0;
            return message.map(Some);
        }
    }

    /// True while the beginning of a frame waits for its rest.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Gives up the frame whose rest does not come, so that frames behind its beginning are found.
    /// For the caller whose timer says that a partial frame has waited too long.
    pub fn abandon_partial(&mut self) {
        if self.is_partial() {
            self.skip(1);
        }
    }

    /// Bytes thrown away so far because they were no frame.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        self.skipped += count as u64;
        if self.start == self.buffer.len() {
            self.searched = 0;
        }
    }

    /// Moves to the next bytes that are a magic number or could become one.
    fn seek_magic(&mut self) {
        let rest = &self.buffer[self.start..];
        let found = (0..rest.len()).find(|&at| {
            let candidate = &rest[at..rest.len().min(at + MAGIC.len())];
            MAGIC.starts_with(candidate)
        });
        self.skip(found.unwrap_or(rest.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(reader: &mut FrameReader) -> Vec<HostMessage> {
        let mut messages = Vec::new();
        loop {
            match reader.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return messages,
                Err(_) => {}
            }
        }
    }

    fn ping(nonce: u64) -> Vec<u8> {
        encode_frame(&HostMessage::Ping { nonce }).unwrap()
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_messages() {
        let stream = [ping(1), encode_frame(&HostMessage::Stop).unwrap(), ping(u64::MAX)].concat();
        for cut in 0..=stream.len() {
            let mut reader = FrameReader::new();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                reader.push(part);
                seen.extend(drain(&mut reader));
            }
            let expect = [HostMessage::Ping { nonce: 1 }, HostMessage::Stop, HostMessage::Ping { nonce: u64::MAX }];
            assert_eq!(seen, expect, "cut at {cut}");
            assert_eq!(reader.skipped(), 0);
        }
    }

    #[test]
    fn a_frame_that_lost_its_end_does_not_hide_the_next() {
        let whole = ping(1);
        for kept in 1..whole.len() {
            let mut reader = FrameReader::new();
            reader.push(&whole[..kept]);
            reader.push(&ping(2));
            let mut seen = drain(&mut reader);
            // What is missing of the first frame is taken from the second: only time tells that it will not come.
            for _ in 0..whole.len() {
                reader.abandon_partial();
                seen.extend(drain(&mut reader));
            }
            assert_eq!(seen, [HostMessage::Ping { nonce: 2 }], "kept {kept} bytes");
        }
    }

    #[test]
    fn headers_that_lead_nowhere_cost_bounded_work() {
        let mut liar = MAGIC.to_vec();
        liar.extend_from_slice(&(AGENT_FRAME_BYTES_MAX as u32 / 2).to_le_bytes());
        liar.extend_from_slice(&[0; 4]);
        let mut reader = FrameReader::new();
        reader.push(&liar.repeat(AGENT_FRAME_BYTES_MAX / liar.len()));
        assert_eq!(drain(&mut reader), []);
        assert!(!reader.is_partial(), "the buffer was thrown away");
        reader.push(&ping(3));
        assert_eq!(drain(&mut reader), [HostMessage::Ping { nonce: 3 }]);
    }

    #[test]
    fn too_large_and_misshapen_frames_are_named() {
        let big = AgentMessage::Hello(AgentHello { version: "x".repeat(AGENT_FRAME_BYTES_MAX), ..Default::default() });
        assert!(matches!(encode_frame(&big), Err(WireError::TooLarge { .. })));
        let mut reader = FrameReader::new();
        reader.push(&encode_frame(&"not a message").unwrap());
        assert!(matches!(reader.next_message::<HostMessage>(), Err(WireError::Malformed { .. })));
        reader.push(&ping(4));
        assert_eq!(drain(&mut reader), [HostMessage::Ping { nonce: 4 }]);
    }

    #[test]
    fn the_encoding_is_fixed() {
        // A guest of an older image speaks to a newer host: these bytes must never change.
        let frame = encode_frame(&HostMessage::Ping { nonce: 7 }).unwrap();
        assert_eq!(frame, b"mag\x01\x05\0\0\0\xd1\x6d\x28\xdd\x01\x82\x01\x81\x07", "{frame:02x?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_frames_among_them_found(
            noise in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 1..8),
            chunk in 1usize..40,
        ) {
            let mut stream = Vec::new();
            for (nonce, part) in noise.iter().enumerate() {
                stream.extend_from_slice(part);
                stream.extend_from_slice(&ping(nonce as u64));
            }
            let mut reader = FrameReader::new();
            let mut seen = Vec::new();
            for part in stream.chunks(chunk) {
                reader.push(part);
                seen.extend(drain(&mut reader));
            }
            while reader.is_partial() {
                reader.abandon_partial();
                seen.extend(drain(&mut reader));
            }
            let expect: Vec<_> = (0..noise.len() as u64).map(|nonce| HostMessage::Ping { nonce }).collect();
            prop_assert_eq!(seen, expect);
        }

        #[test]
        fn damage_never_yields_another_message(at in 0usize..17, flip in 1u8..=255) {
            let mut frame = ping(9);
            prop_assume!(at < frame.len());
            frame[at] ^= flip;
            let mut reader = FrameReader::new();
            reader.push(&frame);
            prop_assert_eq!(drain(&mut reader), vec![]);
        }
    }
}
