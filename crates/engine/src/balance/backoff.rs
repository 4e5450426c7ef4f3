//! How long a node must have been heard of before leaderships go back to it.
//!
//! A node that dies over and over would get its leaderships back each time that it is there again, and each time its
//! next death would cost its clients an election. So a node that was lost again soon after leaderships went back to it
//! has to be there for twice as long as the last time, up to [`PREFERRED_LEADER_AFTER_MAX`]. Once it has been there for
//! [`PREFERRED_LEADER_STABLE_AFTER`] without a break, it is as good as any other.
//!
//! Every node judges by the leaderships that it gave back itself, and by what it heard itself. One that has just
//! started remembers nothing, and is hasty, but only once, because it sees what comes of it; and one that stood still
//! itself takes that for a loss of the others, which costs them one doubling. Both are cheaper than to write down what
//! happened, or to tell each other.

use std::collections::BTreeMap;

use base::limits::{PREFERRED_LEADER_AFTER, PREFERRED_LEADER_AFTER_MAX, PREFERRED_LEADER_STABLE_AFTER};
use base::{Millis, Mono, NodeId};

/// What became of the nodes to which leaderships went back, as long as that counts.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Not more than there are members.
    nodes: BTreeMap<NodeId, Returns>,
}

#[derive(Debug, Default)]
struct Returns {
    /// When a leadership went back to it last, if it was not lost since.
    last: Option<Mono>,
    /// How often it was lost soon after.
    losses: u32,
}

impl Backoff {
    /// How long the node must have been heard of.
    pub(super) fn span(&self, node: NodeId) -> Millis {
        let losses = self.nodes.get(&node).map_or(0, |returns| returns.losses);
        let factor = 1_u64.checked_shl(losses).unwrap_or(u64::MAX);
        Millis(PREFERRED_LEADER_AFTER.0.saturating_mul(factor)).min(PREFERRED_LEADER_AFTER_MAX)
    }

    /// A leadership goes back to the node.
    pub(super) fn returned(&mut self, node: NodeId, now: Mono) {
        self.nodes.entry(node).or_default().last = Some(now);
    }

    /// Looks who was lost. `heard_for` says for how long a process of a node has been heard of without a break; `None`:
    /// it is not heard of.
    pub(super) fn look(&mut self, now: Mono, heard_for: impl Fn(NodeId) -> Option<Millis>) {
        self.nodes.retain(|node, returns| {
            let heard = heard_for(*node);
            let lost = |at: &mut Mono| heard.is_none_or(|span| span < now.since(*at));
            if returns.last.take_if(lost).is_some() {
                returns.losses = returns.losses.saturating_add(1);
            }
            heard.is_none_or(|span| span < PREFERRED_LEADER_STABLE_AFTER)
        });
    }

    /// Forgets who is no member.
    pub(super) fn forget_others(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| is_member(*node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    fn at(ms: u64) -> Mono {
        Mono(0).plus(Millis(ms))
    }

    /// The node comes up at `up`, gets its leaderships back as soon as it may, and is lost `after` that. Gives the time
    /// by then.
    fn lost_again(backoff: &mut Backoff, up: u64, after: u64) -> u64 {
        let returned = up + backoff.span(NODE).0;
        backoff.returned(NODE, at(returned));
        backoff.look(at(returned + 1), |_| Some(Millis(returned + 1 - up)));
        let lost = returned + after;
        backoff.look(at(lost), |_| None);
        lost
    }

    #[test]
    fn a_node_that_is_lost_again_and_again_waits_longer_each_time() {
        let (mut backoff, mut now, mut spans) = (Backoff::default(), 0, Vec::new());
        for _ in 0..100 {
            spans.push(backoff.span(NODE).0);
            now = lost_again(&mut backoff, now, 2_000);
        }
        assert_eq!(spans[..6], [5_000, 10_000, 20_000, 40_000, 80_000, 160_000]);
        assert!(spans[6..].iter().all(|span| *span == PREFERRED_LEADER_AFTER_MAX.0), "{spans:?}");
        assert_eq!(backoff.span(NodeId(2)), PREFERRED_LEADER_AFTER, "another is not to blame");
    }

    #[test]
    fn a_node_is_lost_by_silence_and_by_a_restart_too_short_to_be_seen() {
        let mut backoff = Backoff::default();
        backoff.returned(NODE, at(5_000));
        backoff.look(at(6_000), |_| Some(Millis(6_000)));
        assert_eq!(backoff.span(NODE), PREFERRED_LEADER_AFTER, "it is there");
        backoff.look(at(7_000), |_| Some(Millis(100)));
        assert_eq!(backoff.span(NODE), Millis(10_000), "another process of it is there");
        backoff.look(at(8_000), |_| None);
        assert_eq!(backoff.span(NODE), Millis(10_000), "nothing had gone back to that one");
        backoff.returned(NODE, at(20_000));
        backoff.look(at(30_000), |_| None);
        assert_eq!(backoff.span(NODE), Millis(20_000));
    }

    #[test]
    fn a_node_that_stays_is_as_good_as_any_other() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        for _ in 0..4 {
            now = lost_again(&mut backoff, now, 1_000);
        }
        assert_eq!(backoff.span(NODE), Millis(80_000));
        backoff.returned(NODE, at(now + 80_000));
        let stable = PREFERRED_LEADER_STABLE_AFTER.0;
        backoff.look(at(now + stable - 1), |_| Some(Millis(stable - 1)));
        assert_eq!(backoff.span(NODE), Millis(80_000), "not yet");
        backoff.look(at(now + stable), |_| Some(Millis(stable)));
        assert_eq!(backoff.span(NODE), PREFERRED_LEADER_AFTER);
        backoff.look(at(now + stable + 1), |_| None);
        assert_eq!(backoff.span(NODE), PREFERRED_LEADER_AFTER, "a death after so long is one like any other");
    }

    #[test]
    fn who_is_no_member_is_forgotten() {
        let mut backoff = Backoff::default();
        lost_again(&mut backoff, 0, 1_000);
        backoff.forget_others(|node| node == NODE);
        assert_eq!(backoff.span(NODE), Millis(10_000));
        backoff.forget_others(|_| false);
        assert_eq!(backoff.span(NODE), PREFERRED_LEADER_AFTER);
        assert!(backoff.nodes.is_empty());
    }
}
