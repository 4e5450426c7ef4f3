//! A data set that nearly fills the key-value store: few keys with large values, each of which can be made again to be
//! compared with what a node holds.

use std::ops::Range;

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::{Node, wait_until};

use crate::look::PATIENCE;

/// The least value; the greatest is just below what the store takes, 1 MiB.
const VALUE_BYTES_MIN: usize = 256 << 10;
const STEPS: usize = 64;
const STEP_BYTES: usize = 12 << 10;

/// Bytes of each key's value, by the keys' numbers.
#[derive(Debug)]
pub struct DataSet(Vec<usize>);

impl DataSet {
    /// As many keys as it takes for so many MiB of values.
    pub fn of_mib(mib: usize) -> DataSet {
        // 37 and 64 have no common factor: every size comes, and neighbours differ.
        let mut sizes = (0..).map(|number| VALUE_BYTES_MIN + number * 37 % STEPS * STEP_BYTES);
        let (mut left, mut all) = (mib << 20, Vec::new());
        while left > 0 {
            let bytes = sizes.next().unwrap_or(VALUE_BYTES_MIN);
            all.push(bytes);
            left = left.saturating_sub(bytes);
        }
        DataSet(all)
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Bytes of all values, in MiB.
    pub fn mib(&self) -> usize {
        self.0.iter().sum::<usize>() >> 20
    }

    /// Puts some of the keys through a node, one after the other.
    ///
    /// # Errors
    /// If one is not taken, however often it is tried.
    pub fn put(&self, node: &Node, keys: Range<usize>) -> anyhow::Result<()> {
        let api = node.api();
        for number in keys {
            let body = json!({ "value": value(number, self.0[number]) });
            wait_until(PATIENCE, "a key of the data set is put", || api.put(&path(number), &body)?.ok())?;
        }
        Ok(())
    }

    /// Whether a node holds every key, each byte as it was put.
    ///
    /// # Errors
    /// With the first that it does not.
    pub fn verify(&self, node: &Node) -> anyhow::Result<()> {
        let api = node.api();
        for (number, bytes) in self.0.iter().enumerate() {
            let held = api.get(&path(number))?.ok().with_context(|| format!("key {number} through {}", node.name))?;
            let held = held["value"].as_str().context("a key without a text")?;
            let same = held == value(number, *bytes);
            ensure!(same, "{} holds {} other bytes in key {number} of {bytes}", node.name, held.len());
        }
        Ok(())
    }
}

fn path(number: usize) -> String {
    format!("/v1/kv/data%2F{number:06}")
}

/// Letters that differ from key to key all along.
fn value(number: usize, bytes: usize) -> String {
    let mut random = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        // Xorshift (Marsaglia 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        char::from(b'a' + (random % 26) as u8)
    };
    (0..bytes).map(letter).collect()
}
