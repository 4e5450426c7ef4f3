//! Mistakes that can be planted in the product's own code, to prove that the checkers would find them.

super::table! {
    /// A broken rule. Each variant stands in the code that keeps the rule, and nowhere else.
    Plant {
        TermNeedNotBeDurable "term-need-not-be-durable"
            "What leaders send leaves before their term and vote are durable.",
        VoteNotAwaited "vote-not-awaited"
            "Leaders lead, and their messages leave, before their term and vote are durable: the `raft` crate by itself.",
        ForgetPersistedMessages "forget-persisted-messages"
            "What waits for the disk is never sent: no votes, no acknowledgements.",
        AcknowledgeBeforeDurable "acknowledge-before-durable"
            "Followers acknowledge entries and votes that are not durable yet.",
        LeadBeforeDurable "lead-before-durable"
            "A new leader is announced before its term is durable.",
        SameTimeouts "same-timeouts"
            "All replicas draw the same election timeout.",
        ReplayMissedTicks "replay-missed-ticks"
            "Time that the process did not live through is made up for with a burst of ticks.",
        PauseUnnoticed "pause-unnoticed"
            "A leader that stood still for longer than an election timeout goes on leading.",
        ForwardsCarriedOutTwice "forwards-carried-out-twice"
            "A forwarded request that must not be done twice is done as often as it arrives.",

        // ---- multiraft ----
        VoteNotSaved "vote-not-saved"
            "The term goes to disk without the vote.",
        VoteTwice "vote-twice"
            "A replica asked again in its term votes again.",
        PreVoteOff "pre-vote-off"
            "A replica that hears nobody campaigns, and raises its term each time.",
        CheckQuorumOff "check-quorum-off"
            "A leader that hears nobody goes on leading.",
        CampaignBeforeLogDurable "campaign-before-log-durable"
            "A replica campaigns with entries that its disk does not have yet.",
        LeaderCountsUndurable "leader-counts-undurable"
            "A leader counts itself among those who have an entry before its disk does.",
        ConflictingSuffixKept "conflicting-suffix-kept"
            "Entries that contradict the leader's stay in the log.",
        MembersCommitNotSaved "members-commit-not-saved"
            "That a change of members is committed goes to disk with the next write, which may never come.",
        JointLeftAtOnce "joint-left-at-once"
            "Two configurations never decide together: the second one takes over as soon as it is entered.",
        ReadsTrustLease "reads-trust-lease"
            "A read point is answered without asking a quorum.",
        ClaimsNotBelieved "claims-not-believed"
            "What a leader at rest has its node say does not keep its followers from standing for election.",
        RestWithoutQuorum "rest-without-quorum"
            "A leader at rest does not look whether it hears a quorum.",

        // ---- journal ----
        FramesNotSynced "frames-not-synced"
            "A round is called durable when it is written, before it is synced.",
        CheckpointNotSynced "checkpoint-not-synced"
            "A checkpoint's file gets its name before its bytes are synced.",
        OldCheckpointRemovedEarly "old-checkpoint-removed-early"
            "A checkpoint's file is removed before the place of the next one is durable.",
        SegmentReusedEarly "segment-reused-early"
            "A segment is reused before it is durable that nothing needs it.",
        SegmentHeadForgetsVotes "segment-head-forgets-votes"
            "The states at the head of a segment lack the votes.",
        OldLivesAccepted "old-lives-accepted"
            "What an earlier life of a recycled segment left is taken for what follows: no seed, no sequence numbers.",
        TornFramesAccepted "torn-frames-accepted"
            "The checksums of records and frames are not looked at.",
        UncertainNotRewritten "uncertain-not-rewritten"
            "What recovery read and cannot know to be durable is not made so.",
        WriteErrorsIgnored "write-errors-ignored"
            "A write that failed counts as durable.",

        // ---- stream ----
        SpeculationKept "speculation-kept"
            "Offsets given out and not committed outlive a step-down.",
        InFlightSequencesIgnored "in-flight-sequences-ignored"
            "A producer's sequence is checked against what is applied only.",
        ProducersOnLeaderOnly "producers-on-leader-only"
            "Only the leader remembers what idempotent producers wrote.",

        // ---- metadata and compute ----
        SnapshotMissesSessions "snapshot-misses-sessions"
            "A checkpoint of `__meta` lacks a table.",
        CommandsRepeated "commands-repeated"
            "A command that comes again in its session is applied again.",
        AdmittedTwice "admitted-twice"
            "A node that asks again to be admitted becomes another node.",
        ImpostorsAdmitted "impostors-admitted"
            "Whoever comes with a member's key is that member, whatever became of its data.",
        ExpiredTokensTaken "expired-tokens-taken"
            "A join token is good for ever.",
        OnceForgotten "once-forgotten"
            "A command that is to be carried out once is carried out for every process that sends it.",
        KeyExpectationIgnored "key-expectation-ignored"
            "A key is changed whatever it was expected to be.",
        HistoryNotInSnapshot "history-not-in-snapshot"
            "A checkpoint of `__meta` lacks the history of keys: whoever watches misses what was in it.",
        StaleReportAccepted "stale-report-accepted"
            "A VM's report is believed under whatever epoch and incarnation.",

        // ---- engine ----
        LeadBeforeNoop "lead-before-noop"
            "A new leader gives out offsets before it has applied what its predecessors left.",
        SpeculateThoughRefused "speculate-though-refused"
            "Offsets move on though Raft refused the proposal.",
        AnsweredBeforeCommit "answered-before-commit"
            "Producers are answered when their batch is proposed.",
        CommandsAnsweredBeforeCommit "commands-answered-before-commit"
            "Commands are answered when they are proposed, with what they would do to the state of that moment.",
        AcksOneBeforeDurable "acks-one-before-durable"
            "A producer that waits for the leader only is answered before the leader's disk has its batch.",
        ReplacedEntryAnswered "replaced-entry-answered"
            "Whoever waits for an index is told of success, whichever entry came there.",
        PlainProduceRepeated "plain-produce-repeated"
            "A produce request without sequences is tried again though it may have been carried out.",
        AnsweredBeforeApplied "answered-before-applied"
            "A node passes on an answer whose effect it has not applied itself.",
        ReadsNotShown "reads-not-shown"
            "Whoever asks for a read point is answered before the keys that he must see are shown.",
        UndoneBeforeDone "undone-before-done"
            "Who leaves the queue for a lock does so while the put of his place may still be carried out.",
        RequestNamesReused "request-names-reused"
            "A restarted process names its requests as the process before did.",
        MembershipLostOnRestart "membership-lost-on-restart"
            "A restarted replica has the members of its checkpoint, without the changes behind it.",
        CheckpointIndexTooHigh "checkpoint-index-too-high"
            "A checkpoint claims one entry more than it holds.",
        DamagedCheckpointTaken "damaged-checkpoint-taken"
            "The checksum of a checkpoint that was pulled is not compared.",
        AppliedAgainAtRestart "applied-again-at-restart"
            "Raft is told of one entry less than a restarted replica has applied, and hands that one out again.",
        JoinerFormsItsOwn "joiner-forms-its-own"
            "A node that joins begins as the only voter of a cluster of its own.",
        UnknownReplicaRemoved "unknown-replica-removed"
            "A replica that the table does not know yet is removed, and born again without its memory.",
        StaleTablesActedOn "stale-tables-acted-on"
            "A restarted node acts on the VMs that its journal shows before it knows that this is current.",
        LocalClockInApply "local-clock-in-apply"
            "Applying a command reads this node's clock.",
        UnappliableSkipped "unappliable-skipped"
            "An entry of `__meta` that cannot be applied is passed over.",
        OutboxUnnumbered "outbox-unnumbered"
            "Events are published without their sequence: again by each leader that does not know better.",
        OutboxIgnoresFailures "outbox-ignores-failures"
            "An event counts as published though its publication failed.",
        ReasonsRepeated "reasons-repeated"
            "Why a VM waits is written down again though it was written down before.",
        OlderLeaderBelieved "older-leader-believed"
            "News of a leader is believed though a later one is known.",
        LearnersPromotedAtOnce "learners-promoted-at-once"
            "Replicas become voters though they have not caught up.",
        VotersDroppedTooEarly "voters-dropped-too-early"
            "A voter goes though those who stay are too few without it.",
        VotersDroppedFirst "voters-dropped-first"
            "A voter goes before the one that takes its place votes.",
        SuccessorsIgnored "successors-ignored"
            "What a node that is replaced has is made wherever there is room, not on its successor.",
        MembersNotTold "members-not-told"
            "A node that is behind hears of new members from nobody but the leader, which may be one of them.",
        LeasesNotRenewed "leases-not-renewed"
            "A renewal of a lease is granted and forgotten.",
        ReadsShareAnOlderRound "reads-share-an-older-round"
            "A read takes part in a quorum round that began before it was asked for.",
        ReadsShareAnOlderForward "reads-share-an-older-forward"
            "A read is answered by what was sent to the leader, for another one, before it was asked for.",
        LeadersNotReturned "leaders-not-returned"
            "Whoever took a partition over leads it for good.",
        StuckDiskIgnored "stuck-disk-ignored"
            "A leader whose disk is stuck goes on leading.",
        StuckWaitersKept "stuck-waiters-kept"
            "Whoever waits at a former leader whose disk is stuck waits on until that moves.",
        VersionNotAwaited "version-not-awaited"
            "The cluster version rises to what some member can, though others cannot.",
        CommandsNotGated "commands-not-gated"
            "Commands are proposed before all members can read them.",
    }
}

#[cfg(feature = "simulation")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Whether the code that asks shall break its rule.
#[cfg(feature = "simulation")]
#[must_use]
pub fn planted(plant: Plant) -> bool {
    PLANTED.get() == Some(plant)
}

/// Whether the code that asks shall break its rule: never, in the product.
#[cfg(not(feature = "simulation"))]
#[must_use]
#[inline(always)]
pub const fn planted(_plant: Plant) -> bool {
    false
}

/// Plants a mistake on this thread in the place of the one before, or none.
#[cfg(feature = "simulation")]
pub fn plant(plant: Option<Plant>) {
    PLANTED.set(plant);
}

/// Runs `run` with a mistake planted, and without it afterwards, even if `run` panics.
#[cfg(feature = "simulation")]
pub fn with_plant<T>(it: Plant, run: impl FnOnce() -> T) -> T {
    struct Unplant;
    impl Drop for Unplant {
        fn drop(&mut self) {
            plant(None);
        }
    }
    plant(Some(it));
    let _unplant = Unplant;
    run()
}
