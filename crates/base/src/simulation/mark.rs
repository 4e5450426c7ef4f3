//! Coverage that means something: rare states of the protocol, counted where the code reaches them. A state that a
//! night of runs never reached was not tested, whatever the line coverage says.

super::table! {
    /// A rare state. Each variant stands where the code knows that it is in it.
    Mark {
        // multiraft: time and elections
        PausedBeyondElectionTimeout "paused-beyond-election-timeout"
            "A process found that it stood still for longer than an election timeout.",
        TickedEarly "ticked-early"
            "A tick was given some milliseconds before its time, which the next look would have missed by more.",
        SteppedDownAfterPause "stepped-down-after-pause"
            "A replica that led or campaigned before its process stood still gave that up.",
        CampaignDeferred "campaign-deferred"
            "A campaign was due, but not all of the log was durable or the node must not lead.",
        CandidacyEndedByDisk "candidacy-ended-by-disk"
            "A candidacy ended because the node's disk got stuck, or because the node is about to stop.",
        LeaderBeforeItsTermWasDurable "leader-before-its-term-was-durable"
            "A replica won an election before its term was durable, and did not say so yet.",
        LeaderLostItsQuorum "leader-lost-its-quorum"
            "A leader stepped down because it had not heard from a quorum for an election timeout.",
        CandidateLost "candidate-lost"
            "A candidate followed another replica that won the term.",
        CandidateRefusedLeaderLives "candidate-refused-leader-lives"
            "A candidate was told that there is no need for it: a leader was heard lately.",
        VoteRefusedVoteGiven "vote-refused-vote-given"
            "A second candidate asked in a term in which the vote was given already.",
        VoteRefusedOlderLog "vote-refused-older-log"
            "A candidate whose log lacks entries asked for a vote.",
        ElectedInJointConsensus "elected-in-joint-consensus"
            "A leader was elected while two configurations were in force.",
        // multiraft: leadership handed over
        TransferBegun "transfer-begun"
            "A leader began to hand its leadership over.",
        TransferTaken "transfer-taken"
            "A follower campaigned because its leader asked it to.",
        TransferTimedOut "transfer-timed-out"
            "A leader gave up handing its leadership over after an election timeout.",
        TransferRefusedStale "transfer-refused-stale"
            "Leadership was offered by a replica that no longer has it.",
        TransferRefusedNotElectable "transfer-refused-not-electable"
            "Leadership was offered to a node whose disk is stuck, or that is about to stop.",
        // multiraft: rest
        LeaderFoundByClaim "leader-found-by-claim"
            "A replica that followed nobody heard from its leader's node who leads.",
        GroupWoke "group-woke"
            "A leader that had nothing to do has something to do again.",
        // multiraft: the log
        ProposalForEndedTerm "proposal-for-ended-term"
            "A proposal came from a layer that had not heard yet that its term as leader was over.",
        ProposalDropped "proposal-dropped"
            "The `raft` crate dropped a proposal: leadership was being handed over, or too much was uncommitted.",
        ConflictingEntryTruncated "conflicting-entry-truncated"
            "A follower threw away an entry that contradicts its leader's log.",
        AppendRefused "append-refused"
            "A follower refused an append behind an entry that it does not have.",
        HeldMessageOutdated "held-message-outdated"
            "A message that waited for the disk was dropped: its term was over when it might have left.",
        HeldMessagesOverflowed "held-messages-overflowed"
            "So many messages waited for the disk that the oldest was dropped.",
        CatchUpReadFromDisk "catch-up-read-from-disk"
            "A follower lagged so far behind that its entries were read from disk.",
        CatchUpReadShared "catch-up-read-shared"
            "Two followers waited for one read from disk.",
        CatchUpReadTooLate "catch-up-read-too-late"
            "A read for a follower ended when nobody waited for it any more.",
        CatchUpReadCompacted "catch-up-read-compacted"
            "A read for a follower found that its entries had left the disk.",
        // multiraft: membership, reads, snapshots
        MembershipChangeBusy "membership-change-busy"
            "A membership change was refused because another one was under way.",
        JointConsensusEntered "joint-consensus-entered"
            "A change of several members put two configurations in force.",
        JointConsensusLeft "joint-consensus-left"
            "The second of two configurations took over.",
        ReadBeforeFirstCommitOfTerm "read-before-first-commit-of-term"
            "A read point was refused because its leader had not committed in its term.",
        ReadRoundShared "read-round-shared"
            "One quorum round served several read points.",
        StrangerRefused "stranger-refused"
            "A message was refused because its sender is no member that this replica knows, and never was asked.",
        SnapshotOffered "snapshot-offered"
            "A leader offered its checkpoint to a follower that lagged behind the log.",
        SnapshotOfferRepeated "snapshot-offer-repeated"
            "A leader offered a checkpoint again because nothing was heard of the first offer.",
        SnapshotRefusedWhileInstalling "snapshot-refused-while-installing"
            "A checkpoint was refused because another one was being installed.",
        SnapshotWithoutItsReplica "snapshot-without-its-replica"
            "A checkpoint was taken in that is older than the entry that added the replica.",
        InstallWaitedForWrite "install-waited-for-write"
            "A checkpoint was to be installed while a write was under way, and waited for it.",
        InstallAfterItsTerm "install-after-its-term"
            "A checkpoint came under a new term, which was written first, on its own.",
        WriteWaitedForInstall "write-waited-for-install"
            "Entries or a vote were to be written while a checkpoint was being installed, and waited for it.",
        RoundEndedAfterRemoval "round-ended-after-removal"
            "A round ended that holds a part of a replica that was removed meanwhile.",
        AppliedBeyondDurableCommit "applied-beyond-durable-commit"
            "A replica started with more applied than the commit index on its disk says.",
        FirstTermLostAtStart "first-term-lost-at-start"
            "The first entry that a replica started with was alone in its term, which the log then forgets.",
        VoterDemoted "voter-demoted"
            "A voter became a learner, in one change with whoever votes in its place.",
        VotersSpread "voters-spread"
            "Somebody else was chosen to vote than the first in line, because of the failure domains.",
        VotersWaitForZone "voters-wait-for-zone"
            "Voters stayed as they were: a failure domain would have had the majority until somebody else has caught up.",
        ReplicaSpread "replica-spread"
            "A partition that has all its replicas got another one in a failure domain where it has fewer.",
        ReplicaForSuccessor "replica-for-successor"
            "A replica was to be made on the node that takes its former node's place.",
        LeaderGaveWay "leader-gave-way"
            "A leader that is not to vote any more handed its leadership to one that is.",
        LeaderHadNoSuccessor "leader-had-no-successor"
            "A leader that is not to vote any more first made voters of those that are.",
        ReplicaLeft "replica-left"
            "A retired replica left its group.",
        MembersAheadOfTable "members-ahead-of-table"
            "A new leader had yet to hear why the leader before it changed the members of their group.",
        NodeForgotten "node-forgotten"
            "Nothing of the cluster was left on a node that goes, and it was forgotten.",
        ClusterRecovered "cluster-recovered"
            "A survivor of a lost majority became the only member of a new incarnation of its cluster.",
        RecoveredBeyondCommit "recovered-beyond-commit"
            "A survivor held entries of `__meta` of which it did not know that they were committed.",
        RecoveredInJointConsensus "recovered-in-joint-consensus"
            "A survivor's partition was between two configurations.",
        NodeSuperseded "node-superseded"
            "A node without a leader was told that its cluster goes on without it.",
        NodeExpelled "node-expelled"
            "A node was told that it is no member any more.",
        NodeLost "node-lost"
            "A node was silent for so long that its replicas are made anew elsewhere.",
        LostNodeReturned "lost-node-returned"
            "A node that was given up for lost was heard of again.",
        CommandOnceAgain "command-once-again"
            "A command came again through another process, and was recognised by its name.",
        EncodedInVain "encoded-in-vain"
            "A checkpoint's state was encoded, and by then a leader's checkpoint was being installed.",
        LeaseExpired "lease-expired"
            "A lease of the key-value store was not renewed in time, and its keys went.",
        LeaseKeptTooLate "lease-kept-too-late"
            "A lease was to be renewed that had ended, or whose end was proposed.",
        VmMovedAway "vm-moved-away"
            "A VM left a node that is to be free of it.",
        DrainedNodeHandedOver "drained-node-handed-over"
            "A node that is to be free of leaderships handed one over.",
        // journal: frames and segments
        FramesInFlight "frames-in-flight"
            "Two frames were under way at once.",
        FrameDoneOutOfOrder "frame-done-out-of-order"
            "A frame's write ended before that of the frame in front of it.",
        RoundCutInTwo "round-cut-in-two"
            "A round was larger than a frame or a segment and was written in parts.",
        GroupCutInTwo "group-cut-in-two"
            "The cut of a round went through the entries of one group: each part got a hard state.",
        UndurableEntryReplaced "undurable-entry-replaced"
            "An entry was replaced while its own write was under way.",
        DurableMarkWritten "durable-mark-written"
            "An idle log got a mark that says how much of it is durable.",
        LogWaitedForSpare "log-waited-for-spare"
            "The log needed a new segment when no spare was there.",
        SegmentRecycled "segment-recycled"
            "A segment that nothing needed became a spare.",
        SegmentRemoved "segment-removed"
            "A segment that nothing needed was removed because there were spares enough.",
        SpareCameFromRecycling "spare-came-from-recycling"
            "The disk had no room for a new spare, and a recycled segment took its place.",
        OperationWaitedForSpace "operation-waited-for-space"
            "A disk operation found the disk full, and waited.",
        CheckpointReplacedWhileRead "checkpoint-replaced-while-read"
            "A checkpoint's file was replaced while somebody read it.",
        // journal: recovery
        FrameTorn "frame-torn"
            "The last frame's head was whole and its body was not.",
        FrameHeadUnreadable "frame-head-unreadable"
            "The log ended where something stands that is no frame of this life of the file.",
        FrameBehindTheEnd "frame-behind-the-end"
            "A frame was found behind the end of the log, and zeroed.",
        FrameWrittenAgain "frame-written-again"
            "Frames that may not have been durable were written once more.",
        SegmentOpeningTorn "segment-opening-torn"
            "The opening of the last segment was torn: the log goes on in the one before.",
        UnopenedSegmentFound "unopened-segment-found"
            "A segment was found that had its name and was never opened.",
        OldHeaderFound "old-header-found"
            "A segment file still had the header of an earlier life.",
        UnfinishedSpareFound "unfinished-spare-found"
            "A spare was found whose creation did not end.",
        HalfWrittenCheckpointFound "half-written-checkpoint-found"
            "A checkpoint file was found under its temporary name.",
        StrayCheckpointFound "stray-checkpoint-found"
            "A checkpoint file was found to which the log does not refer.",
        StateFromSegmentHead "state-from-segment-head"
            "A replica's vote and checkpoint came from the head of a segment: what was before is recycled.",
        // stream
        StepDownWithSpeculation "step-down-with-speculation"
            "A leader stepped down with offsets given out that were not committed.",
        RepeatInFlight "repeat-in-flight"
            "A producer repeated a batch while the first was not committed yet.",
        RepeatCommitted "repeat-committed"
            "A producer repeated a batch that was committed.",
        SequenceOutOfOrder "sequence-out-of-order"
            "A producer's batch did not follow the one before it.",
        ProducerEpochStale "producer-epoch-stale"
            "A producer wrote under an epoch that is over.",
        RequestPartlyRepeated "request-partly-repeated"
            "A produce request was partly a repeat.",
        // compute
        VmReportStale "vm-report-stale"
            "A report of another epoch, node or start than the current one was refused.",
        VmReportOutdatedLocally "vm-report-outdated-locally"
            "A node's hypervisor side spoke of an older start than the one asked for.",
        VmFoundGone "vm-found-gone"
            "A restarted node found that a VM it should run is gone.",
        VmOldStartStillRuns "vm-old-start-still-runs"
            "A VM was to start again while an older start of it still ran.",
        VmStartedWhileStopping "vm-started-while-stopping"
            "A VM said that it came up when it had been asked to stop.",
        VmStrayRemoved "vm-stray-removed"
            "A node removed a VM that the tables do not give to it.",
        VmStartedAgainWhileStopping "vm-started-again-while-stopping"
            "A VM's stop ended when it was wanted to run again.",
        VmDeletedBeforeItRan "vm-deleted-before-it-ran"
            "A VM was deleted before any node had it.",
        VmGaveUp "vm-gave-up"
            "A VM ended so often in a row that it was not started again.",
        VmPlacedTooLate "vm-placed-too-late"
            "A decision to place a VM came when the VM waited for none any more.",
        VmCommandTooLate "vm-command-too-late"
            "A report on a VM or a decision about it came when the VM was gone.",
        // metadata
        CommandRepeated "command-repeated"
            "A command was applied before, and got the same result again.",
        CommandRepeatedTooLate "command-repeated-too-late"
            "A command was repeated after its process had said that it needs no answer.",
        SessionUnknown "session-unknown"
            "A command came under a session that has ended.",
        SessionOpenedTwice "session-opened-twice"
            "A process asked for its session again.",
        SessionOfOlderProcess "session-of-older-process"
            "A process asked for a session when a later process of its node had one.",
        NodeAdmittedTwice "node-admitted-twice"
            "A node that is a member was admitted again, as the same member.",
        // engine: replicas
        EarlyVoteKept "early-vote-kept"
            "A candidate asked for the vote of a replica that does not run yet.",
        EarlyVoteAnswered "early-vote-answered"
            "A replica answered, at its start, a candidate that had asked before.",
        ReplicaParked "replica-parked"
            "A restarted node found a replica of which its tables do not know yet.",
        ParkedReplicaRemoved "parked-replica-removed"
            "A restarted node found a replica that was removed meanwhile.",
        ReplicaRemovedWithRound "replica-removed-with-round"
            "A replica was removed while its entries were on their way to the disk.",
        CheckpointEndedAfterRemoval "checkpoint-ended-after-removal"
            "A checkpoint became durable for a replica that was removed meanwhile.",
        UncommittedEntryAtStart "uncommitted-entry-at-start"
            "A restarted replica found an entry of which it does not know whether it is committed.",
        FormedBeforeItWasNoted "formed-before-it-was-noted"
            "A process died when its replica of `__meta` was durable and that was not noted yet.",
        StepDownWithRound "step-down-with-round"
            "A leader stepped down while its entries were on their way to the disk.",
        MembersHeardFromAnother "members-heard-from-another"
            "A node learned from another who the members are: its own table was behind.",
        MessageToUnknownNode "message-to-unknown-node"
            "A message was for a replica whose node is not known yet.",
        RequestBeforeOwnNoop "request-before-own-noop"
            "A request reached a leader that had not applied its own Noop yet.",
        WaiterLostToNewerTerm "waiter-lost-to-newer-term"
            "Somebody waited for an entry in whose place a newer leader put another.",
        WaiterLostToSnapshot "waiter-lost-to-snapshot"
            "Somebody waited for an entry when a checkpoint replaced the log.",
        WaiterLostAtStepDown "waiter-lost-at-step-down"
            "Somebody waited for a leader's disk, or for a batch under way, when the leader stepped down.",
        WaiterLostToStuckDisk "waiter-lost-to-stuck-disk"
            "Somebody waited for an entry at a node that led no more, and whose disk was stuck.",
        LeaderClaimStale "leader-claim-stale"
            "A leader of a term that is over was named.",
        LeaderClaimOfDeletedGroup "leader-claim-of-deleted-group"
            "A leader of a deleted group was named.",
        // engine: checkpoints
        CheckpointWithRound "checkpoint-with-round"
            "A checkpoint was taken while a round of its group was under way.",
        CheckpointSuperseded "checkpoint-superseded"
            "A checkpoint was installed while the replica's own was being written.",
        SnapshotNotPulled "snapshot-not-pulled"
            "A checkpoint was offered that is not needed, or while another was being installed.",
        SnapshotOfferedWhilePulling "snapshot-offered-while-pulling"
            "A checkpoint was offered again while it was being pulled.",
        CheckpointHeldBack "checkpoint-held-back"
            "A checkpoint was due, but somebody needed the last one still.",
        PullReplaced "pull-replaced"
            "Another checkpoint was offered while one was being pulled.",
        PullAskedAgain "pull-asked-again"
            "A part of a checkpoint did not come and was asked for again.",
        PullGivenUp "pull-given-up"
            "A checkpoint was given up because no part of it came.",
        PullPartTwice "pull-part-twice"
            "A part of a checkpoint came twice.",
        InstallBegun "install-begun"
            "A checkpoint that was pulled whole began to take the place of the log.",
        CheckpointInstalled "checkpoint-installed"
            "A checkpoint that was pulled whole took the place of the log.",
        PulledCheckpointRefused "pulled-checkpoint-refused"
            "A checkpoint that was pulled whole was refused or ignored by Raft: its term was over, say.",
        PulledCheckpointGone "pulled-checkpoint-gone"
            "A part was asked for of a checkpoint that a newer one had replaced.",
        PullAtRestart "pull-at-restart"
            "A part of a checkpoint was asked of a process that was still recovering.",
        // engine: disk
        DiskStuck "disk-stuck"
            "A round was under way for longer than an election timeout.",
        DiskFull "disk-full"
            "The disk became full.",
        DiskFullOver "disk-full-over"
            "The disk had room again.",
        WriteRefusedDiskFull "write-refused-disk-full"
            "A leader refused a write because its disk was full.",
        LeadershipHandedOver "leadership-handed-over"
            "A node offered a leadership to another one: its disk is stuck, or it is about to stop.",
        LeadershipLeftFullDisk "leadership-left-full-disk"
            "A node whose disk was full offered a leadership to one with space.",
        LeadershipReturned "leadership-returned"
            "A leadership went back to the replica that comes first in the table.",
        NobodyToHandOverTo "nobody-to-hand-over-to"
            "A node would hand a leadership over, and there is no other voter that it hears.",
        // engine: requests
        ReadPointDropped "read-point-dropped"
            "A read point was dropped because leadership changed.",
        ForwardAtRestart "forward-at-restart"
            "A request was passed on to a process that was still recovering.",
        ForwardReplyTooLate "forward-reply-too-late"
            "An answer to a passed-on request came when nobody waited for it.",
        ForwardLostWithConnection "forward-lost-with-connection"
            "The connection broke over which a request had been passed on.",
        ForwardRepeated "forward-repeated"
            "A request was passed on again because no answer came.",
        ForwardFollowedLeader "forward-followed-leader"
            "A request was passed on to a new leader before the one that was asked first had answered.",
        LeaderUnlearned "leader-unlearned"
            "A node that was believed to lead refused, and is not believed to lead any more.",
        DeadlineWithoutLeader "deadline-without-leader"
            "A request's deadline passed before there was a leader to carry it out.",
        DeadlineUnknownOutcome "deadline-unknown-outcome"
            "A request's deadline passed while it was being carried out.",
        // engine: outbox, planner, VMs
        OutboxInherited "outbox-inherited"
            "A new leader of `__meta` found events in the outbox, published already or not.",
        EventRecognised "event-recognised"
            "An event was published again, and recognised.",
        EventPublishedForOldLeader "event-published-for-old-leader"
            "An event was published when the leader that had begun it had lost its office.",
        EventNotPublished "event-not-published"
            "An event could not be published, and is tried again.",
        OutboxTrimRepeated "outbox-trim-repeated"
            "The outbox was not trimmed in time, and that was proposed again.",
        NoNodeForVm "no-node-for-vm"
            "The planner found no node for a VM.",
        VmReportRepeated "vm-report-repeated"
            "The cluster did not take a report on a VM, and it is sent again.",
        // sim: what only the world knows
        AllNodesDown "all-nodes-down"
            "No node had power.",
        LeaderCrashedInWrite "leader-crashed-in-write"
            "A leader lost power while a write was under way.",
        LeaderCrashedInSend "leader-crashed-in-send"
            "A leader lost power while its messages were under way.",
        CrashedInCheckpoint "crashed-in-checkpoint"
            "A node lost power while a checkpoint file was being written.",
        CrashedInInstall "crashed-in-install"
            "A node lost power while the log was being replaced by a checkpoint.",
        CrashedInInstallAgain "crashed-in-install-again"
            "A node lost power in an install, and its last one ended so too.",
        CrashedInRecovery "crashed-in-recovery"
            "A node lost power while its journal was being read.",
        PausedWhileLeading "paused-while-leading"
            "A leader's process stood still.",
        MetaLeaderIsolated "meta-leader-isolated"
            "A partition cut the leader of `__meta` off from all others, in at least one direction.",
        // metadata: versions
        VersionRaised "version-raised"
            "The cluster version rose.",
        VersionRaisedTooEarly "version-raised-too-early"
            "The cluster version was to rise, but an older member was there by then.",
        VersionRefused "version-refused"
            "A node that cannot work at the active cluster version was refused.",
        CommandTooEarly "command-too-early"
            "A command was refused because not all members can read it yet.",
    }
}

#[cfg(feature = "simulation")]
thread_local! {
    static REACHED: std::cell::RefCell<std::collections::BTreeMap<Mark, u64>> =
        const { std::cell::RefCell::new(std::collections::BTreeMap::new()) };
}

/// Counts that this state was reached, on this thread.
#[cfg(feature = "simulation")]
pub fn mark(mark: Mark) {
    REACHED.with_borrow_mut(|reached| *reached.entry(mark).or_default() += 1);
}

/// Counts that this state was reached: nothing, in the product.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub const fn mark(_mark: Mark) {}

/// Counts that this state was reached if `reached` says so: for a state that the product does not have to know.
#[cfg(feature = "simulation")]
pub fn mark_if(it: Mark, reached: impl FnOnce() -> bool) {
    if reached() {
        mark(it);
    }
}

/// Counts that this state was reached if `reached` says so: in the product nothing, and nobody asks.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub fn mark_if(_it: Mark, _reached: impl FnOnce() -> bool) {}

/// What was reached on this thread since the last call, with how often.
#[cfg(feature = "simulation")]
#[must_use]
pub fn take_marks() -> std::collections::BTreeMap<Mark, u64> {
    REACHED.take()
}
