//! Every bound in muster, named, in one place. A queue, a batch or a loop without an entry here is a defect.

use crate::Millis;

// ---- Consensus (DESIGN 3) ----

/// One Raft tick.
pub const TICK: Millis = Millis(50);
/// Between heartbeats of a leader.
pub const HEARTBEAT_INTERVAL: Millis = Millis(150);
/// A heartbeat that comes this much later than the interval is counted as late.
pub const HEARTBEAT_LATE_AFTER: Millis = Millis(50);
/// Least election timeout; the greatest is twice this.
pub const ELECTION_TIMEOUT_MIN: Millis = Millis(1000);
/// Largest heartbeat interval that a node can be told: some must leave before a group rests.
pub const HEARTBEAT_INTERVAL_MAX: Millis = Millis(500);
/// Largest least election timeout that a node can be told: a leadership that does not get to its next leader is given up
/// after this long, before it is handed on again. None is below [`ELECTION_TIMEOUT_MIN`], on which groups at rest rely, whose
/// heartbeats are the gossip's.
pub const ELECTION_TIMEOUT_TOLD_MAX: Millis = Millis(5_000);
/// So many heartbeats fit into the least election timeout, or a lost one or two would end a leadership.
pub const HEARTBEATS_PER_ELECTION_MIN: u64 = 4;
/// A node that handed its leaderships away takes none for this long; by then it has stopped, or did not mean to.
pub const STEP_DOWN_HOLD: Millis = Millis(5_000);
/// Bytes of entries in one append message.
pub const RAFT_MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages under way to one replica.
pub const RAFT_INFLIGHT_MAX: usize = 64;
/// ... and to one that is a learner of a partition: it is being made, and gets the partition's log from the first entry on.
/// With [`RAFT_MESSAGE_BYTES_MAX`] in each and [`REPLICAS_BUILDING_MAX`] of them, 256 MiB at most are under way to all that
/// are being made, in the whole cluster, even if all of them are made on one node whose disk is slow; what counts as lost
/// is sent again. Fewer would leave a learner too far behind a busy partition to become a voter: one message holds what a
/// turn of the leader's core brought, and is acknowledged some turns later.
pub const RAFT_LEARNER_INFLIGHT_MAX: usize = 4;
/// Bytes proposed and not yet committed in one group; above it proposals answer "busy".
pub const RAFT_UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of applied entries that one group keeps in memory for followers that lag a little.
pub const RAFT_RESIDENT_BYTES_MAX: usize = 1 << 20;
/// Bytes of committed entries that one flush of the core applies, over all groups. What is left comes with the next one, and
/// ticks and messages in between: a node that is far behind misses no heartbeat over it. ...
pub const APPLY_BYTES_MAX: u64 = 32 << 20;
/// ... Small entries take as long as larger ones, so each counts for this much at least: 4,096 of them are as many bytes.
pub const APPLY_ENTRY_BYTES_MIN: u64 = 8 << 10;
/// Requests for votes kept for replicas that are not born or recovered yet, one per group.
pub const EARLY_VOTES_MAX: usize = 1_024;
/// Bytes that one read of the log returns.
pub const LOG_READ_BYTES_MAX: usize = 4 << 20;

// ---- Journal (DESIGN 4) ----

/// Size of one write-ahead log segment.
pub const WAL_SEGMENT_BYTES: u64 = 64 << 20;
/// Kept free in the data directory for the few bytes that a node must write to start on a full disk.
pub const DATA_DIR_RESERVE_BYTES: usize = 64 << 10;
/// Bytes in one commit round.
pub const ROUND_BYTES_MAX: usize = 4 << 20;
/// Commit rounds under way at once.
pub const ROUNDS_IN_FLIGHT_MAX: usize = 2;
/// A durable mark is written when the log was idle for this long.
pub const DURABLE_MARK_IDLE: Millis = Millis(100);
/// Recycled segments kept for reuse.
pub const WAL_SPARE_SEGMENTS_MAX: usize = 2;
/// Bytes that recovery reads at once.
pub const WAL_RECOVERY_READ_BYTES: usize = 1 << 20;
/// Records of other groups that one read of the log skips over rather than being split in two.
pub const WAL_READ_GAP_BYTES: u64 = 16 << 10;
/// Disk reads that one read of the log causes; a group that wrote little lies scattered among the others, and its
/// readers take what they get.
pub const WAL_READ_STRETCHES_MAX: usize = 64;
/// Between tries of an operation for which the disk was full.
pub const DISK_FULL_RETRY: Millis = Millis(200);
/// Bytes of a checkpoint file written at once, so that the log's small writes come in between.
pub const CHECKPOINT_WRITE_BYTES: usize = 4 << 20;
/// The metadata group's log is truncated behind a checkpoint after this many bytes of entries.
pub const META_CHECKPOINT_BYTES: u64 = 8 << 20;
/// ... or this many entries.
pub const META_CHECKPOINT_ENTRIES: u64 = 30_000;
/// Applied entries kept behind a checkpoint, so that a follower that lags a little needs no snapshot.
pub const META_CHECKPOINT_KEEP_ENTRIES: u64 = 1_000;
/// Bytes of a checkpoint sent in one message.
pub const CHECKPOINT_CHUNK_BYTES: usize = 512 << 10;
/// Size of a checkpoint's state, at most. Above three quarters of it nothing more is taken into the state.
pub const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;

// ---- Requests ----

/// Requests waiting in one engine for a leader or an answer; above it requests answer "busy".
pub const REQUESTS_PENDING_MAX: usize = 16_384;
/// Requests of one other node that must not be carried out twice, remembered by their ids. More than one node has under
/// way at a time.
pub const FORWARDS_REMEMBERED_MAX: usize = 20_000;
/// Questions that one engine has asked of its driver and that are not answered; above it requests that need one answer
/// "busy".
pub const DRIVER_QUESTIONS_MAX: usize = 1_024;
/// Read points that one engine has asked of Raft and that are not known; above it reads answer "busy".
pub const READ_POINTS_MAX: usize = 16_384;
/// Quorum rounds for read points under way at once, and what a node that does not lead asks of the leader for its own; whoever
/// asks meanwhile shares the next one.
pub const READ_ROUNDS_MAX: usize = 2;
/// Reads of the log and of checkpoints under way in one engine for consumers and other nodes, each of which takes up to
/// [`LOG_READ_BYTES_MAX`]; above it consumers are told "busy", and nodes ask again. A group's own reads are one at a time.
pub const LOG_READS_FOR_OTHERS_MAX: usize = 256;
/// Results kept per session for retries.
pub const SESSION_RESULTS_MAX: usize = 1_024;
/// Sessions in the cluster.
pub const SESSIONS_MAX: usize = 4_096;
/// Deadline of a request that names none.
pub const REQUEST_DEADLINE_DEFAULT: Millis = Millis(30_000);
/// Longest deadline that a request may name.
pub const REQUEST_DEADLINE_MAX: Millis = Millis(600_000);
/// Events handed to the engine before one flush. What peers said by the control channel before a tick comes on top.
pub const EVENTS_PER_FLUSH_MAX: usize = 1_024;
/// Bytes of one command.
pub const COMMAND_BYTES_MAX: usize = KV_VALUE_BYTES_MAX + (64 << 10);

// ---- The key-value store ----

/// Bytes of one key.
pub const KV_KEY_BYTES_MAX: usize = 1_024;
/// Bytes of one value.
pub const KV_VALUE_BYTES_MAX: usize = 1 << 20;
/// Bytes of all keys and values, with [`KV_RECORD_BYTES`] for each: every node holds them in memory.
pub const KV_BYTES_MAX: u64 = 256 << 20;
/// What a key is counted for besides its own and its value's bytes.
pub const KV_RECORD_BYTES: u64 = 128;
/// Changes that are kept for whoever watches from a revision on; above it the oldest go, ...
pub const KV_HISTORY_CHANGES_MAX: usize = 65_536;
/// ... as they do above so many bytes, counted like [`KV_BYTES_MAX`].
pub const KV_HISTORY_BYTES_MAX: u64 = 32 << 20;
/// Keys that one command deletes, or one lease holds.
pub const KV_KEYS_AT_ONCE_MAX: usize = 10_000;
/// Keys in one answer.
pub const KV_LIST_MAX: usize = 10_000;
/// Leases in the cluster.
pub const LEASES_MAX: usize = 65_536;
/// Least time to live of a lease: a change of leaders takes up to two, and starts it anew.
pub const LEASE_TTL_MIN: Millis = Millis(1_000);
/// Longest time to live of a lease.
pub const LEASE_TTL_MAX: Millis = Millis(7 * 24 * 3_600_000);

// ---- Wire ----

/// One frame between peers.
pub const PEER_FRAME_BYTES_MAX: usize = 32 << 20;
/// Messages queued for one peer on one channel; above it bulk messages are dropped (Raft sends again).
pub const PEER_QUEUE_MAX: usize = 16_384;
/// One hello or join frame, before the other side is known.
pub const HELLO_FRAME_BYTES_MAX: usize = 64 << 10;
/// Bytes of messages queued for one peer on the bulk channel, over all its streams.
pub const PEER_BULK_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes of messages queued for one peer on the control channel.
pub const PEER_CONTROL_QUEUE_BYTES_MAX: usize = 16 << 20;
/// Streams of one peer's bulk channel; a Raft group always takes the same one.
pub const PEER_BULK_STREAMS: usize = 4;
/// Frames received on one channel that wait for the engine.
pub const INBOX_FRAMES_MAX: usize = 1_024;
/// Bytes of frames received on one channel that wait for the engine.
pub const INBOX_BYTES_MAX: usize = 64 << 20;
/// QUIC handshakes and hellos of incoming connections under way at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Endpoints that are no members and are connected at once, to join or to be refused.
pub const STRANGERS_MAX: usize = 32;
/// A hello that has not arrived after this long ends the connection.
pub const HELLO_DEADLINE: Millis = Millis(5_000);
/// How long a join may take to be decided.
pub const JOIN_DEADLINE: Millis = Millis(30_000);
/// The answer to a join, which names every member.
pub const JOIN_ANSWER_BYTES_MAX: usize = 4 << 20;
/// Between a node's gossip messages (who leads what).
pub const GOSSIP_INTERVAL: Millis = Millis(150);
/// A node is taken to have space on its disk when it has said so for this long: leadership moves there from a full one, and
/// must not wander between disks on the brink.
pub const DISK_SPACE_TRUSTED_AFTER: Millis = Millis(3_000);
/// A node without a leader that is told that its cluster was recovered without it goes on for this long.
pub const SUPERSEDED_AFTER: Millis = Millis(30_000);
/// A process that is told for this long that another one of its node is there ends. Longer than connections outlive their
/// process.
pub const TWIN_AFTER: Millis = Millis(5_000);
/// A node not heard of for this long is shown as unreachable.
pub const NODE_UNREACHABLE_AFTER: Millis = Millis(1_500);
/// Leaders named in one gossip message, if each has its turn in time so; ...
pub const GOSSIP_LEADERS: usize = 1_024;
/// ... and at most. Four messages must name all that a node leads, or groups that do nothing send heartbeats all the same.
pub const GOSSIP_LEADERS_MAX: usize = 4_096;

// ---- What is measured ----

/// Groups by themselves in one node's `GET /metrics`, those without a leader and those with the highest terms first; the
/// rest are in the totals.
pub const METRICS_GROUPS_MAX: u32 = 2_000;
/// Groups by themselves in one node's answer to `cluster.consensus`, chosen likewise.
pub const VITALS_GROUPS_LISTED_MAX: u32 = 64;

// ---- Kafka and streams ----

/// One Kafka frame. There is no authentication yet; once there is, frames before it get a bound of their own.
pub const KAFKA_FRAME_BYTES_MAX: usize = 100 << 20;
/// One record batch, Kafka's `message.max.bytes`.
pub const RECORD_BATCH_BYTES_MAX: usize = 1_048_588;
/// Producer ids from 0 up to this one are muster's own; clients may not write under them.
pub const PRODUCER_ID_RESERVED_MAX: i64 = 1_000;
/// Bytes of recent batches that one partition keeps in memory for consumers.
pub const PARTITION_TAIL_BYTES: usize = 1 << 20;
/// Bytes of one partition proposed and not yet applied; above it produce answers "busy".
pub const PARTITION_INFLIGHT_BYTES_MAX: usize = 32 << 20;
/// Batches of one idempotent producer that a partition remembers, to recognize retries (Kafka's number).
pub const PRODUCER_BATCHES_KEPT: usize = 5;
/// Idempotent producers that one partition remembers; beyond it the one that wrote longest ago is forgotten.
pub const PARTITION_PRODUCERS_MAX: usize = 10_000;
/// How far ahead of the leader's clock a record's timestamp may be (Kafka's `message.timestamp.after.max.ms`).
pub const RECORD_TIMESTAMP_AHEAD_MAX: Millis = Millis(3_600_000);
/// Batches in one fetch from one partition.
pub const FETCH_BATCHES_MAX: usize = 1_024;
/// Partitions of one topic.
pub const TOPIC_PARTITIONS_MAX: u32 = 1_024;
/// Length of a topic name (Kafka's bound).
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Replicas that a topic without an explicit factor aims for.
pub const ELASTIC_REPLICATION_FACTOR: usize = 3;
/// Kafka connections on one listener.
pub const KAFKA_CONNECTIONS_MAX: usize = 4_096;
/// Requests of one Kafka connection under way at once.
pub const KAFKA_PIPELINE_MAX: usize = 64;
/// Bytes of one Kafka connection's requests under way, with the most that their answers may take; above it nothing
/// more is read until answers are gone. One request passes however large.
pub const KAFKA_CONNECTION_BYTES_MAX: usize = 128 << 20;
/// Topics, partitions and other elements named in one Kafka request.
pub const KAFKA_REQUEST_ELEMENTS_MAX: usize = 100_000;
/// A Kafka connection with nothing under way is closed after this long (Kafka's `connections.max.idle.ms`).
pub const KAFKA_IDLE_TIMEOUT: Millis = Millis(600_000);
/// A Kafka client that takes no byte of its answer for this long is given up.
pub const KAFKA_WRITE_TIMEOUT: Millis = Millis(60_000);
/// Bytes of records in one fetch answer (Kafka's `fetch.max.bytes`).
pub const FETCH_BYTES_MAX: usize = 57_671_680;
/// Longest that a fetch waits for records.
pub const FETCH_WAIT_MAX: Millis = Millis(30_000);
/// How long a request that made a topic waits for its partitions to have leaders.
pub const TOPIC_READY_WAIT: Millis = Millis(3_000);

// ---- Cluster ----

/// Nodes in one cluster.
pub const NODES_MAX: usize = 512;
/// Former members that are remembered, so that they can be told what became of them.
pub const NODES_DEPARTED_MAX: usize = 1_024;
/// A member that was silent for this long is lost, by default: its replicas are made anew elsewhere.
pub const NODE_LOST_AFTER: Millis = Millis(10 * 60_000);
/// A leadership goes back to the partition's first replica when that one's node has been heard of for this long, and
/// whoever leads instead has led for as long: what has just changed may change again.
pub const PREFERRED_LEADER_AFTER: Millis = Millis(5_000);
/// The first of the two spans doubles, up to this, each time that the node was lost again soon after leaderships went
/// back to it, ...
pub const PREFERRED_LEADER_AFTER_MAX: Millis = Millis(5 * 60_000);
/// ... and is what it was once the node has been heard of for this long.
pub const PREFERRED_LEADER_STABLE_AFTER: Millis = Millis(10 * 60_000);
/// Leaderships that one node is giving back at once.
pub const LEADERSHIPS_RETURNING_MAX: usize = 16;
/// Replicas of partitions that are being made at once, in the whole cluster.
pub const REPLICAS_BUILDING_MAX: usize = 64;
/// Voters of `__meta`, at most.
pub const META_VOTERS_MAX: usize = 5;
/// A recovered cluster leaves out so many indexes of `__meta` and ids of every kind but nodes: whatever those that are gone
/// gave out, and the survivor never heard of, is not given out again.
pub const RECOVERY_IDS_SKIPPED: u64 = 1_000_000;
/// The same of ids of nodes, which people read and Kafka's clients keep in 31 bits.
pub const RECOVERY_NODES_SKIPPED: u64 = 1_000;
/// The same of terms, so that no leader epoch that a client saw comes again. Epochs have 31 bits.
pub const RECOVERY_TERMS_SKIPPED: u32 = 100_000;
/// The same of the leader epochs of a partition that is lost, of whose terms the survivor knows nothing.
pub const RECOVERY_EPOCHS_SKIPPED: u32 = 1_000_000;
/// Events waiting in the outbox; above it new ones are dropped and counted.
pub const OUTBOX_EVENTS_MAX: usize = 65_536;
/// Events published and not yet trimmed: as many as a partition remembers of one producer, so that a new leader that
/// publishes them again is recognised.
pub const OUTBOX_WINDOW: usize = 5;
/// Join tokens outstanding.
pub const JOIN_TOKENS_MAX: usize = 1_024;
/// How long a join token is good for, if not said otherwise.
pub const JOIN_TOKEN_TTL_DEFAULT: Millis = Millis(24 * 3_600_000);

// ---- VMs ----

/// Virtual machines in one cluster.
pub const VMS_MAX: usize = 10_000;
/// Length of a VM name (it is part of a topic name and of a host name).
pub const VM_NAME_BYTES_MAX: usize = 63;
/// Least guest memory.
pub const VM_MEMORY_MIB_MIN: u64 = 80;
/// Virtual CPUs of one VM.
pub const VM_CPUS_MAX: u32 = 256;
/// One frame between host and guest agent.
pub const AGENT_FRAME_BYTES_MAX: usize = 1 << 20;
/// One console line; longer ones are split.
pub const CONSOLE_LINE_BYTES_MAX: usize = 16 << 10;
/// Pieces of one VM's console that wait for its topic; above it lines are lost, and told of in the log.
pub const CONSOLE_WAITING_MAX: usize = 1_024;
/// Bytes of one VM's console that wait for its topic; the same.
pub const CONSOLE_WAITING_BYTES_MAX: usize = 4 << 20;
/// Starts of one VM before it is held in `Failed`, when each ends within a minute.
pub const VM_RESTARTS_MAX: u32 = 10;

// ---- Operations and doors ----

/// (principal, operation) pairs whose rates one node tracks at once.
pub const OPERATION_LIMITS_TRACKED_MAX: usize = 4_096;
/// So long after its deadline an operation may still say why it has no result.
pub const OPERATION_LAST_WORD: Millis = Millis(250);
/// Results that one node keeps for retries with the same Idempotency-Key.
pub const IDEMPOTENCY_RESULTS_MAX: usize = 1_024;
/// How long it keeps them.
pub const IDEMPOTENCY_KEPT: Millis = Millis(600_000);
/// Results that the cluster keeps for retries through another node, as long as nodes keep theirs.
pub const ONCE_MAX: usize = 16_384;
/// Length of an Idempotency-Key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Body of one API request: a key's value in JSON, and what belongs to it. The value may be text of which each character is
/// escaped: a quote takes two bytes for one, one of two bytes such as ä takes six. Control characters, which take six for one,
/// are meant to come in base64.
pub const API_BODY_BYTES_MAX: usize = 3 * KV_VALUE_BYTES_MAX + (64 << 10);
/// Connections on the API's listener.
pub const API_CONNECTIONS_MAX: usize = 1_024;
/// Connections beyond these, each for one probe: whether a node is well is asked most when it has too much to do.
pub const API_CONNECTIONS_RESERVED: usize = 32;
/// Streams and calls that may wait for hours, such as watches and waits for locks: others find room beside them.
pub const API_WAITS_MAX: u32 = 768;
/// An API connection that has not sent a whole request head after this long is closed.
pub const API_HEADER_TIMEOUT: Millis = Millis(10_000);
/// A request body must arrive within this.
pub const API_BODY_TIMEOUT: Millis = Millis(30_000);
/// Bytes of one request head.
pub const API_HEAD_BYTES_MAX: usize = 64 << 10;
