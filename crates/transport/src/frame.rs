//! Frames on a stream: a length (u32, big-endian) and that many bytes, which hold one encoded value.
//!
//! A reader's memory grows with the bytes that have arrived, never with the length that was announced.

use bytes::Bytes;
use iroh::endpoint::{ReadError, RecvStream, SendStream, WriteError};
use wire::WireError;

/// Room made at once for a frame, whatever length it announces.
const READ_STEP_BYTES: usize = 64 << 10;

/// A frame that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection or the stream is gone; nothing is wrong with what was sent.
    #[error("the stream was lost: {0}")]
    Lost(#[from] ReadError),
    /// The stream ended in the middle of a frame.
    #[error("the stream ended inside a frame")]
    Cut,
    /// The announced length is beyond the bound.
    #[error("a frame of {size} bytes was announced; at most {max} are allowed")]
    TooLarge {
        /// As announced.
        size: usize,
        /// The bound.
        max: usize,
    },
    /// The bytes are not what they should be.
    #[error(transparent)]
    Malformed(#[from] WireError),
}

/// Reads one frame of at most `max` bytes; None if the stream ended before it began.
pub async fn read(stream: &mut RecvStream, max: usize) -> Result<Option<Vec<u8>>, FrameError> {
    let mut header = Vec::with_capacity(4);
    fill(stream, &mut header, 4).await?;
    let Ok(length) = <[u8; 4]>::try_from(header.as_slice()) else {
        return if header.is_empty() { Ok(None) } else { Err(FrameError::Cut) };
    };
    let size = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if size > max {
        return Err(FrameError::TooLarge { size, max });
    }
    let mut body = Vec::with_capacity(size.min(READ_STEP_BYTES));
    fill(stream, &mut body, size).await?;
    if body.len() < size { Err(FrameError::Cut) } else { Ok(Some(body)) }
}

/// Reads until `into` holds `size` bytes or the stream ends.
async fn fill(stream: &mut RecvStream, into: &mut Vec<u8>, size: usize) -> Result<(), FrameError> {
    while into.len() < size {
        match stream.read_chunk(size - into.len()).await? {
            Some(chunk) => into.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(())
}

/// Writes one frame. Its bytes are shared with the send buffer, not copied.
pub async fn write(stream: &mut SendStream, body: Bytes) -> Result<(), WriteError> {
    let length = u32::try_from(body.len()).expect("every frame's size is checked against a bound below 4 GiB");
    stream.write_all_chunks(&mut [Bytes::copy_from_slice(&length.to_be_bytes()), body]).await
}
