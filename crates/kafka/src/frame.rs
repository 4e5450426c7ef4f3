//! Frames: a big-endian 32-bit length, then that many bytes. Memory grows with what has arrived, not with what a
//! length promises.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes asked of the socket at once.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {length} bytes is announced, at most {max} are taken")]
    Length { length: i32, max: usize },
    #[error("the connection ended inside a frame, after {have} bytes")]
    Truncated { have: usize },
    #[error("reading failed")]
    Io(#[from] io::Error),
}

pub(crate) struct FrameReader {
    buffer: BytesMut,
    frame_bytes_max: usize,
}

impl FrameReader {
    pub(crate) fn new(frame_bytes_max: usize) -> FrameReader {
        FrameReader { buffer: BytesMut::new(), frame_bytes_max }
    }

    /// The next frame, or `None` at the end of the stream. May be dropped and called again: what was read is kept.
    pub(crate) async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Bytes>, FrameError> {
        loop {
            let missing = match self.take()? {
                Ok(frame) => return Ok(Some(frame)),
                Err(missing) => missing,
            };
            self.buffer.reserve(missing.min(CHUNK_BYTES));
            if from.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.len() {
                    0 => Ok(None),
                    have => Err(FrameError::Truncated { have }),
                };
            }
        }
    }

    /// A whole frame out of the buffer, or how many bytes are missing at least.
    fn take(&mut self) -> Result<Result<Bytes, usize>, FrameError> {
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(Err(CHUNK_BYTES)) };
        let length = i32::from_be_bytes(*head);
        let error = || FrameError::Length { length, max: self.frame_bytes_max };
        let bytes = usize::try_from(length).ok().filter(|bytes| *bytes <= self.frame_bytes_max).ok_or_else(error)?;
        let have = self.buffer.len() - head.len();
        if have < bytes {
            return Ok(Err(bytes - have));
        }
        self.buffer.advance(4);
        Ok(Ok(self.buffer.split_to(bytes).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn frame(bytes: usize) -> Vec<u8> {
        [&(bytes as i32).to_be_bytes()[..], &vec![7; bytes]].concat()
    }

    #[tokio::test]
    async fn frames_come_whole_in_whatever_pieces_they_arrive() {
        let all = [frame(0), frame(1), frame(200_000), frame(3)].concat();
        for piece in [1, 3, 4, 5, 1000, all.len()] {
            // A pipe that holds no more than a piece hands over no more at once.
            let (mut to, mut from) = tokio::io::duplex(piece);
            let bytes = all.clone();
            let writer = tokio::spawn(async move { to.write_all(&bytes).await });
            let mut reader = FrameReader::new(200_000);
            for bytes in [0, 1, 200_000, 3] {
                let frame = reader.next(&mut from).await.unwrap().unwrap();
                assert_eq!(frame, vec![7; bytes], "pieces of {piece}");
            }
            writer.await.unwrap().unwrap();
            assert!(reader.next(&mut from).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn lengths_are_bounded_and_not_trusted() {
        for length in [-1, i32::MIN, 1001, i32::MAX] {
            let bytes = length.to_be_bytes();
            let error = FrameReader::new(1000).next(&mut &bytes[..]).await.unwrap_err();
            assert!(matches!(error, FrameError::Length { max: 1000, .. }), "{error}");
        }
        // A promise of 100 MB with 3 bytes behind it costs no more than a chunk.
        let bytes = [&100_000_000i32.to_be_bytes()[..], b"abc"].concat();
        let mut reader = FrameReader::new(100_000_000);
        let error = reader.next(&mut &bytes[..]).await.unwrap_err();
        assert!(matches!(error, FrameError::Truncated { have: 7 }), "{error}");
        assert!(reader.buffer.capacity() <= 2 * CHUNK_BYTES, "{}", reader.buffer.capacity());
    }
}
