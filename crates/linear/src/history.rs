//! What clients asked for and were told, with the moments of both.

use std::collections::BTreeMap;

use crate::Nanos;

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<O, R> {
    pub client: usize,
    pub what: O,
    pub invoked: Nanos,
    /// What the client was told, and when; `None` while it is open.
    pub answer: Option<(Nanos, R)>,
}

/// An operation's place in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId(u64);

/// All operations, by the key they concern.
#[derive(Debug)]
pub struct History<K, O, R> {
    operations: BTreeMap<u64, (K, Operation<O, R>)>,
    begun: u64,
}

impl<K, O, R> Default for History<K, O, R> {
    fn default() -> Self {
        History { operations: BTreeMap::new(), begun: 0 }
    }
}

impl<K: Clone + Ord, O, R> History<K, O, R> {
    /// A client asks for something. Until more is said of it, the operation is open.
    pub fn begin(&mut self, key: K, client: usize, what: O, now: Nanos) -> OperationId {
        self.begun += 1;
        self.operations.insert(self.begun, (key, Operation { client, what, invoked: now, answer: None }));
        OperationId(self.begun)
    }

    /// The client was told this.
    pub fn answered(&mut self, id: OperationId, outcome: R, now: Nanos) {
        if let Some((_, operation)) = self.operations.get_mut(&id.0) {
            operation.answer = Some((now, outcome));
        }
    }

    /// The client was told that nothing was done, for certain: the operation never was.
    pub fn refused(&mut self, id: OperationId) {
        self.operations.remove(&id.0);
    }

    /// Operations so far, those refused not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The operations of each key, in the order of their invocations.
    #[must_use]
    pub fn by_key(&self) -> BTreeMap<K, Vec<&Operation<O, R>>> {
        let mut keys: BTreeMap<K, Vec<&Operation<O, R>>> = BTreeMap::new();
        for (key, operation) in self.operations.values() {
            keys.entry(key.clone()).or_default().push(operation);
        }
        keys
    }
}
