//! Codes with which a connection is closed. The reason beside them is for people.

use iroh::endpoint::{Connection, ConnectionError, VarInt};

/// The node stops, or the peer was removed; nothing is wrong.
pub const GOODBYE: VarInt = VarInt::from_u32(0);
/// The hello was refused.
pub const REFUSED: VarInt = VarInt::from_u32(1);
/// The peer sent what no peer sends.
pub const VIOLATION: VarInt = VarInt::from_u32(2);
/// A newer connection from the same node took this one's place.
pub const SUPERSEDED: VarInt = VarInt::from_u32(3);
/// Too many strangers, or too many handshakes, at once.
pub const BUSY: VarInt = VarInt::from_u32(4);

/// Closes, telling the other side.
pub fn close(conn: &Connection, code: VarInt, reason: &str) {
    conn.close(code, reason.as_bytes());
}

/// Why a connection ended, in words.
pub fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            if reason.is_empty() {
                "the peer closed the connection".to_owned()
            } else {
                format!("the peer closed the connection: {reason}")
            }
        }
        ConnectionError::TimedOut => "the peer stopped answering".to_owned(),
        ConnectionError::LocallyClosed => "closed by this node".to_owned(),
        other => other.to_string(),
    }
}
