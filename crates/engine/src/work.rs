//! What takes long in proportion to the cluster's state, and is done beside the core: heartbeats must not wait for it.

use bytes::Bytes;
use metadata::Metadata;

/// Something to be done; pure, and the same wherever it is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// The state of `__meta`, as of one index, becomes the bytes of a checkpoint.
    Encode { index: u64, state: Box<Metadata> },
    /// The bytes of a checkpoint, our own at the start or an installed one, become the state.
    Decode { index: u64, bytes: Bytes },
}

/// What it came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Worked {
    Encoded {
        index: u64,
        bytes: Bytes,
    },
    /// The state, or why the bytes hold none.
    Decoded {
        index: u64,
        state: Result<Box<Metadata>, String>,
    },
}

impl Work {
    /// Does it. Takes some milliseconds per megabyte of state.
    #[must_use]
    pub fn carry_out(self) -> Worked {
        match self {
            Work::Encode { index, state } => Worked::Encoded { index, bytes: state.encode() },
            Work::Decode { index, bytes } => {
                let state = Metadata::decode(&bytes).map(Box::new).map_err(|error| error.to_string());
                Worked::Decoded { index, state }
            }
        }
    }
}
