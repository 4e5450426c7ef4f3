//! Requests of this node that wait for an earlier one of its own.
//!
//! Commands that are under way together are carried out in any order: each is tried again by itself when another node leads, the
//! state is full, or a frame was lost. Only one kind must not overtake. Who hangs up while his put is under way has the key
//! deleted if it holds what he put (so a call leaves the queue for a lock, `operations/src/lock/acquire.rs`). Carried out first,
//! that would find nothing, and the put would stay. So it is held until the put has its outcome. If that is that nobody knows
//! (at its deadline, say), the delete is sent all the same, and a copy of the put may come behind it: only if an older command of the session
//! is still under way, for the delete acknowledges all below ([`metadata::CommandOrigin`]), which is then refused.

use base::simulation::{Plant, planted};
use metadata::{Command, KeyExpect};

use super::{Pending, Wait};
use crate::Request;
use crate::core::NodeCore;

impl NodeCore {
    /// Takes a request as far as it gets now, unless it has to wait for an earlier one.
    pub(super) fn begin(&mut self, key: u64) {
        let Some(pending) = self.requests.pending.get(&key) else { return };
        match self.put_undone_by(key, &pending.request).filter(|_| !planted(Plant::UndoneBeforeDone)) {
            Some(put) => {
                self.set_wait(key, Wait::Held);
                self.requests.held.entry(put).or_default().push(key);
            }
            None => {
                self.set_wait(key, Wait::Queued);
                self.advance(key);
            }
        }
    }

    /// The earlier put, under way, of just what a request is to delete.
    fn put_undone_by(&self, key: u64, request: &Request) -> Option<u64> {
        let Request::Command(Command::DeleteKeys { key: name, expect: Some(KeyExpect::Value(value)), .. }) = request
        else {
            return None;
        };
        let puts = |pending: &Pending| match &pending.request {
            Request::Command(Command::PutKey { key: of, value: put, .. }) => of == name && put == value,
            _ => false,
        };
        self.requests.pending.range(..key).find(|(_, pending)| puts(pending)).map(|(put, _)| *put)
    }
}

#[cfg(test)]
mod tests {
    use base::{ErrorCode, GroupId, Incarnation, NodeId, RequestId, SessionId};
    use bytes::Bytes;
    use metadata::{CommandResult, KeyLife};

    use super::*;
    use crate::requests::tests::{at, core};
    use crate::requests::{Client, busy};
    use crate::{Effect, Reply, Target};

    fn put(key: &str, value: &'static str) -> Command {
        let (value, life) = (Bytes::from_static(value.as_bytes()), KeyLife::Ttl(60_000));
        Command::PutKey { key: key.into(), value, expect: Some(KeyExpect::Absent), life }
    }

    fn undo(key: &str, value: &'static str) -> Command {
        let expect = Some(KeyExpect::Value(Bytes::from_static(value.as_bytes())));
        Command::DeleteKeys { key: key.into(), prefix: false, expect }
    }

    /// A core with a session, of which node 2 leads `__meta`.
    fn follower() -> NodeCore {
        let mut core = core();
        let result = CommandResult::SessionOpened { session: SessionId(1) };
        core.session_opened(Ok(Reply::Command { index: 0, result }));
        core.peer_up(NodeId(2), Incarnation(1));
        core.leaders.learn(GroupId::META, 2, Some(NodeId(2)));
        core
    }

    fn ask(core: &mut NodeCore, id: u64, deadline_ms: u64, command: Command) {
        let target = Target::Leader(GroupId::META);
        core.take_request(RequestId(id), at(deadline_ms).mono, target, Request::Command(command));
    }

    fn later(core: &mut NodeCore, ms: u64) {
        core.now = at(ms);
        core.peers.heard(NodeId(2), core.now.mono);
        core.requests_tick();
    }

    fn find(core: &NodeCore, id: u64) -> (u64, &Pending) {
        let is = |(_, pending): &(&u64, &Pending)| pending.client == Client::Request(RequestId(id));
        let (key, pending) = core.requests.pending.iter().find(is).expect("it is under way");
        (*key, pending)
    }

    /// How often each was sent to the leader so far.
    fn sent<const N: usize>(core: &NodeCore, ids: [u64; N]) -> [usize; N] {
        ids.map(|id| find(core, id).1.sends.len())
    }

    #[test]
    fn what_undoes_a_put_is_sent_once_that_has_its_outcome_however_often_it_is_tried() {
        let mut core = follower();
        ask(&mut core, 1, 60_000, put("place", "mine"));
        ask(&mut core, 2, 60_000, undo("place", "mine"));
        ask(&mut core, 3, 60_000, undo("place", "another's"));
        ask(&mut core, 4, 60_000, undo("another", "mine"));
        assert_eq!(sent(&core, [1, 2, 3, 4]), [1, 0, 1, 1], "only one of them waits");
        later(&mut core, 1_000);
        assert_eq!(sent(&core, [1, 2]), [2, 0], "the put was lost, and is sent again");
        let (key, first) = find(&core, 1);
        let sequence = first.command.expect("it has a session").sequence;
        core.resolve(key, Err(busy(1, "commands")));
        later(&mut core, 1_010);
        assert_eq!(sent(&core, [1, 2]), [3, 0], "the leader was busy");

        let result = CommandResult::KeyPut { revision: 0, version: 1, lease: None };
        core.resolve(key, Ok(Reply::Command { index: 0, result }));
        assert!(matches!(core.effects[..], [Effect::Reply { id: RequestId(1), outcome: Ok(_) }]), "{:?}", core.effects);
        let undo = find(&core, 2).1;
        assert_eq!(undo.sends.len(), 1);
        // No copy of the put is carried out behind it.
        assert!(undo.command.expect("it has a session").acknowledged >= sequence);
        assert!(core.requests.held.is_empty(), "{:?}", core.requests.held);
    }

    #[test]
    fn what_undoes_a_put_does_not_wait_for_longer_than_that_may_take() {
        let mut core = follower();
        ask(&mut core, 1, 1_500, put("place", "mine"));
        ask(&mut core, 2, 900, undo("place", "mine"));
        ask(&mut core, 3, 60_000, undo("place", "mine"));
        later(&mut core, 1_000);
        assert_eq!(sent(&core, [1, 3]), [2, 0]);
        core.effects.clear();
        later(&mut core, 1_500);
        let [Effect::Reply { id: RequestId(1), outcome: Err(unknown) }] = &core.effects[..] else {
            panic!("{:?}", core.effects);
        };
        assert_eq!(unknown.code, ErrorCode::DeadlineExceeded);
        assert_eq!(sent(&core, [3]), [1]);
        // Nothing is left of the one that was over before.
        assert!(core.requests.held.is_empty() && core.requests.queued.is_empty());
        assert_eq!(core.requests.pending.len(), 1);
    }
}
