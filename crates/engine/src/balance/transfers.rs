//! Leaderships on their way to other nodes, and those that did not get there.
//!
//! Few are under way at a time, and each that comes to nothing keeps its place for [`RETRY_AFTER`]. So whatever failed
//! is tried again after all that failed less often: otherwise the same few groups would take all places, and the others
//! would never have their turn.

use std::collections::BTreeMap;

use base::limits::LEADERSHIPS_RETURNING_MAX;
use base::{GroupId, Millis, Mono};

/// Before a transfer that came to nothing is tried again.
const RETRY_AFTER: Millis = Millis(5_000);

/// Of groups that this node leads, and of no others.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// Since when they are being handed over.
    under_way: BTreeMap<GroupId, Mono>,
    /// How often handing them over came to nothing.
    failed: BTreeMap<GroupId, u32>,
}

impl Transfers {
    /// Looks what came of them: `leads` says whether this node leads a group still.
    pub(super) fn look(&mut self, now: Mono, leads: impl Fn(GroupId) -> bool) {
        let Transfers { under_way, failed } = self;
        failed.retain(|group, _| leads(*group));
        under_way.retain(|group, since| {
            let still = leads(*group);
            let over = now.since(*since) >= RETRY_AFTER;
            if still && over {
                let times = failed.entry(*group).or_default();
                *times = times.saturating_add(1);
            }
            still && !over
        });
    }

    /// How many more may be handed over now.
    pub(super) fn room(&self) -> usize {
        LEADERSHIPS_RETURNING_MAX.saturating_sub(self.under_way.len())
    }

    pub(super) fn is_under_way(&self, group: GroupId) -> bool {
        self.under_way.contains_key(&group)
    }

    /// When it is a group's turn: the least comes first.
    pub(super) fn turn(&self, group: GroupId) -> (u32, GroupId) {
        (self.failed.get(&group).copied().unwrap_or(0), group)
    }

    pub(super) fn begin(&mut self, group: GroupId, now: Mono) {
        self.under_way.insert(group, now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(0).plus(Millis(ms))
    }

    /// Hands over as many of the groups that are led as may be, in turn: those that it began with.
    fn begin(transfers: &mut Transfers, led: &BTreeSet<GroupId>, now: Mono) -> Vec<GroupId> {
        transfers.look(now, |group| led.contains(&group));
        let mut waiting: Vec<GroupId> = led.iter().copied().filter(|group| !transfers.is_under_way(*group)).collect();
        waiting.sort_by_key(|group| transfers.turn(*group));
        waiting.truncate(transfers.room());
        waiting.iter().for_each(|group| transfers.begin(*group, now));
        waiting
    }

    fn groups(ids: std::ops::Range<usize>) -> Vec<GroupId> {
        ids.map(|id| GroupId(id as u64)).collect()
    }

    const FULL: usize = LEADERSHIPS_RETURNING_MAX;

    #[test]
    fn groups_whose_transfers_fail_keep_no_other_from_its_turn() {
        let mut transfers = Transfers::default();
        let led: BTreeSet<GroupId> = groups(0..FULL * 2 + 3).into_iter().collect();
        assert_eq!(begin(&mut transfers, &led, at(0)), groups(0..FULL));
        assert_eq!(begin(&mut transfers, &led, at(4_999)), [], "all places are taken");
        assert_eq!(begin(&mut transfers, &led, at(5_000)), groups(FULL..FULL * 2));
        let last = [groups(FULL * 2..FULL * 2 + 3), groups(0..FULL - 3)].concat();
        assert_eq!(begin(&mut transfers, &led, at(10_000)), last, "those that had no turn yet come first");
        let again = [groups(FULL - 3..FULL), groups(FULL..FULL * 2 - 3)].concat();
        assert_eq!(begin(&mut transfers, &led, at(15_000)), again);
    }

    #[test]
    fn a_place_is_free_as_soon_as_another_leads() {
        let mut transfers = Transfers::default();
        let mut led: BTreeSet<GroupId> = groups(0..FULL + 2).into_iter().collect();
        begin(&mut transfers, &led, at(0));
        led.remove(&GroupId(3));
        led.remove(&GroupId(5));
        assert_eq!(begin(&mut transfers, &led, at(250)), groups(FULL..FULL + 2));
    }

    #[test]
    fn failures_are_forgotten_with_the_leadership() {
        let mut transfers = Transfers::default();
        let led: BTreeSet<GroupId> = groups(0..4).into_iter().collect();
        begin(&mut transfers, &led, at(0));
        transfers.look(at(5_000), |group| led.contains(&group));
        assert_eq!((transfers.turn(GroupId(2)), transfers.room()), ((1, GroupId(2)), FULL));
        transfers.look(at(6_000), |group| group != GroupId(2));
        assert_eq!(transfers.turn(GroupId(2)), (0, GroupId(2)));
        transfers.look(at(7_000), |_| false);
        assert!(transfers.failed.is_empty() && transfers.under_way.is_empty());
    }
}
