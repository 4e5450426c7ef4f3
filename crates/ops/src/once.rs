//! What makes the commands of one call recognisable to the cluster when the call is repeated through another node.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The commands of a call with an Idempotency-Key, each of which is carried out once, whichever node is asked again.
#[derive(Debug)]
pub struct Once {
    call: [u8; 32],
    next: AtomicU32,
}

impl Once {
    /// Of a call: the same for whoever repeats it with the same key and the same input.
    pub(crate) fn of(principal: &str, operation: &str, key: &str, input: &Value) -> Once {
        let mut hash = Sha256::new();
        for part in [principal, operation, key, &input.to_string()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Once { call: hash.finalize().into(), next: AtomicU32::new(0) }
    }

    /// Tells the call from every other one, also from one with the same key and another input.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.call
    }

    /// The name of the call's next command: calls that are repeated give the same names in the same order.
    pub fn next_command(&self) -> [u8; 16] {
        let mut hash = Sha256::new_with_prefix(self.call);
        hash.update(self.next.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let mut name = [0; 16];
        name.copy_from_slice(&hash.finalize()[..16]);
        name
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_repeated_call_gives_its_commands_the_same_names_and_no_other_call_does() {
        let names = |principal: &str, key: &str, n: u32| {
            let once = Once::of(principal, "vm.create", key, &json!({ "n": n }));
            [once.next_command(), once.next_command()]
        };
        let [first, second] = names("a", "k", 1);
        assert_ne!(first, second);
        assert_eq!(names("a", "k", 1), [first, second]);
        for other in [names("b", "k", 1), names("a", "l", 1), names("a", "k", 2), names("ak", "", 1)] {
            assert!(!other.contains(&first) && !other.contains(&second));
        }
    }
}
