//! Where the entries of one group lie on disk: 16 bytes for each, and its terms as runs.

use std::collections::VecDeque;

/// Where a record lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub segment: u64,
    /// Of the record's head, in the file.
    pub offset: u32,
    /// Of the payload.
    pub bytes: u32,
}

/// The terms of a range of indexes: (first index, term) of each run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct TermRuns(VecDeque<(u64, u64)>);

impl TermRuns {
    fn push(&mut self, index: u64, term: u64) {
        if self.0.back().is_none_or(|run| run.1 != term) {
            self.0.push_back((index, term));
        }
    }

    fn truncate(&mut self, from: u64) {
        while self.0.back().is_some_and(|run| run.0 >= from) {
            self.0.pop_back();
        }
    }

    fn trim(&mut self, first: u64) {
        while self.0.get(1).is_some_and(|run| run.0 <= first) {
            self.0.pop_front();
        }
        if let Some(run) = self.0.front_mut() {
            run.0 = run.0.max(first);
        }
    }

    /// As the API shows them.
    pub(crate) fn to_vec(&self) -> Vec<(u64, u64)> {
        self.0.iter().copied().collect()
    }
}

/// The durable log of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Log {
    /// First index that stays readable.
    first: u64,
    /// Index of `places[0]`. Above `first` only during recovery, while the segments that hold what is between are known
    /// to be gone because a later record moves `first` beyond it.
    start: u64,
    places: VecDeque<Place>,
    terms: TermRuns,
}

impl Log {
    /// A log without entries; the next one is `next`.
    pub(crate) fn empty(first: u64, next: u64) -> Self {
        Log { first, start: next, places: VecDeque::new(), terms: TermRuns::default() }
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn next(&self) -> u64 {
        self.start + self.places.len() as u64
    }

    /// Whether every index from `first` on has its place.
    pub(crate) fn is_whole(&self) -> bool {
        self.start <= self.first
    }

    pub(crate) fn terms(&self) -> &TermRuns {
        &self.terms
    }

    pub(crate) fn place(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.start)?).ok()?).copied()
    }

    /// The oldest segment that this log needs.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.places.front().map(|place| place.segment)
    }

    /// Adds an entry; what stood at its index and behind is gone.
    ///
    /// # Errors
    /// If it would leave a gap, or lies before the log.
    pub(crate) fn append(&mut self, index: u64, term: u64, place: Place) -> Result<(), &'static str> {
        if index < self.first {
            return Err("an entry before the start of its log");
        }
        if index > self.next() {
            return Err("an entry that leaves a gap in its log");
        }
        if index < self.next() {
            self.terms.truncate(index);
            let keep = index.saturating_sub(self.start);
            self.places.truncate(usize::try_from(keep).expect("below the number of places"));
            self.start = self.start.min(index);
        }
        self.places.push_back(place);
        self.terms.push(index, term);
        Ok(())
    }

    /// Forgets what lies before `first`.
    pub(crate) fn trim(&mut self, first: u64) {
        if first <= self.first {
            return;
        }
        self.first = first;
        while self.start < first && self.places.pop_front().is_some() {
            self.start += 1;
        }
        self.start = self.start.max(first);
        if self.places.is_empty() {
            self.terms = TermRuns::default();
        } else {
            self.terms.trim(self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: &[(u64, u64)]) -> Log {
        let mut log = Log::empty(2, 2);
        for &(index, term) in entries {
            log.append(index, term, Place { segment: term, offset: index as u32, bytes: 1 }).expect("no gap");
        }
        log
    }

    #[test]
    fn an_entry_takes_sixteen_bytes() {
        assert_eq!(size_of::<Place>(), 16);
    }

    #[test]
    fn a_conflicting_suffix_is_replaced_with_its_terms() {
        let log = log(&[(2, 1), (3, 1), (4, 2), (5, 2), (4, 3)]);
        assert_eq!((log.first(), log.next()), (2, 5));
        assert_eq!(log.terms().to_vec(), [(2, 1), (4, 3)]);
        assert_eq!(log.place(4).map(|place| place.segment), Some(3));
        assert_eq!(log.place(5), None);
    }

    #[test]
    fn gaps_and_the_past_are_refused() {
        let mut log = log(&[(2, 1), (3, 1)]);
        let place = Place { segment: 1, offset: 0, bytes: 0 };
        assert!(log.append(5, 1, place).is_err());
        log.trim(3);
        assert!(log.append(2, 1, place).is_err());
    }

    #[test]
    fn trimming_keeps_the_rest_and_its_terms() {
        let mut log = log(&[(2, 1), (3, 1), (4, 2), (5, 2)]);
        log.trim(3);
        assert_eq!(log.terms().to_vec(), [(3, 1), (4, 2)]);
        log.trim(5);
        assert_eq!((log.first(), log.next(), log.terms().to_vec()), (5, 6, vec![(5, 2)]));
        log.trim(9);
        assert_eq!((log.first(), log.next(), log.oldest_segment()), (9, 9, None));
    }

    #[test]
    fn what_lies_in_lost_segments_may_be_missing_only_until_it_is_trimmed() {
        let mut log = Log::empty(2, 5);
        log.append(5, 1, Place { segment: 3, offset: 0, bytes: 0 }).expect("no gap");
        assert!(!log.is_whole());
        log.trim(5);
        assert!(log.is_whole() && log.place(5).is_some());
    }
}
