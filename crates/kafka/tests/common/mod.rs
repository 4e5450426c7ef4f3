//! A node without a cluster: the real metadata, the real partitions and readers, committed as soon as proposed (or when
//! a test says so), behind the real listener on a real socket. And a client that speaks raw frames.
#![allow(dead_code, clippy::unwrap_used)] // Each test binary uses its part; a failure is its message.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::{ClusterId, ErrorCode, GroupId, Millis, NodeId, TopicId, Wall};
use bytes::{BufMut, Bytes, BytesMut};
use engine::{Produce, ReadLog, Reply, Request, RequestError, Target};
use futures::FutureExt;
use futures::future::BoxFuture;
use kafka::{Broker, Listener, ListenerConfig, PartitionReader};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use metadata::{Command, CommandEnvelope, CommandResult, Metadata, NodeRecord};
use runtime::CancellationToken;
use stream::{Partition, Record, StageError, Update, encode_batch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

/// How long any condition may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);
const TERM: u64 = 3;

type Outcome = Result<Reply, RequestError>;
/// A producer that waits, and the offset to tell it.
type Waiter = (i64, oneshot::Sender<Outcome>);

#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    /// A VM of which this node hears only at the next barrier.
    late: Mutex<Option<&'static str>>,
}

struct State {
    metadata: Arc<Metadata>,
    partitions: BTreeMap<GroupId, Replica>,
    /// Entries wait for [`Node::commit`].
    held: bool,
    /// The engine answers every request with this.
    refuse: Option<ErrorCode>,
}

struct Replica {
    partition: Partition,
    reader: Arc<PartitionReader>,
    log: Vec<(u64, Bytes)>,
    proposed: VecDeque<(Bytes, Option<Waiter>)>,
    next_index: u64,
    leader: Option<(NodeId, u64)>,
}

fn wall() -> Wall {
    Wall(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
}

fn failure(code: ErrorCode) -> RequestError {
    RequestError { code, message: format!("the double says {code}"), leader: None }
}

impl Node {
    /// Starts a node; it serves until `CancellationToken` is dropped with the test.
    pub async fn start() -> (Node, SocketAddr) {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut ListenerConfig)) -> (Node, SocketAddr) {
        // Shown if the test fails; a second test in the process finds it in place.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let inner = Inner {
            state: Mutex::new(State {
                metadata: Arc::new(Metadata::default()),
                partitions: BTreeMap::new(),
                held: false,
                refuse: None,
            }),
            changes: watch::Sender::new(0),
            late: Mutex::default(),
        };
        let node = Node(Arc::new(inner));
        let mut config = ListenerConfig::new("127.0.0.1:0".parse().unwrap());
        change(&mut config);
        let listener = Listener::bind(config, node.clone(), &runtime::Registry::new()).await.unwrap();
        let address = listener.local_addr().unwrap();
        node.form(address);
        tokio::spawn(listener.run(CancellationToken::new()));
        (node, address)
    }

    fn form(&self, address: SocketAddr) {
        let mut member = wire::Member { name: "one".into(), ..wire::Member::default() };
        member.address.kafka = address.to_string();
        let metadata = Metadata::bootstrap(ClusterId([7; 16]), member, wall());
        let groups: Vec<GroupId> = metadata.partitions.keys().copied().collect();
        self.state().metadata = Arc::new(metadata);
        groups.into_iter().for_each(|group| self.state().replica(group));
        self.changed();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Another member, which leads nothing unless told so.
    pub fn add_node(&self, id: u64, kafka: &str) {
        let mut state = self.state();
        let mut metadata = (*state.metadata).clone();
        let mut member = wire::Member { node: NodeId(id), name: format!("n{id}"), ..wire::Member::default() };
        member.address.kafka = kafka.to_owned();
        member.labels.insert("zone".into(), "b".into());
        let record = NodeRecord {
            member,
            meta_replica: base::ReplicaId(100 + id),
            joined: wall(),
            lifecycle: metadata::NodeLifecycle::Active,
            successor: None,
        };
        metadata.nodes.insert(NodeId(id), record);
        state.metadata = Arc::new(metadata);
        drop(state);
        self.changed();
    }

    pub fn group(&self, topic: &str, partition: usize) -> GroupId {
        self.state().metadata.topics[topic].partitions[partition]
    }

    pub fn topic_id(&self, topic: &str) -> TopicId {
        self.state().metadata.topics[topic].topic_id
    }

    pub fn topics(&self) -> Vec<String> {
        self.state().metadata.topics.keys().cloned().collect()
    }

    pub fn create(&self, topic: &str, partitions: u32) {
        let command = Command::CreateTopic {
            name: topic.into(),
            topic_id: TopicId([topic.len() as u8; 16]),
            partitions,
            replication_factor: None,
            config: vec![],
        };
        let result = self.command(command);
        assert!(matches!(result, CommandResult::TopicCreated { .. }), "{result:?}");
    }

    /// A VM that was made elsewhere, of which this node hears only at the next barrier.
    pub fn create_vm_unheard(&self, name: &'static str) {
        *self.0.late.lock().unwrap() = Some(name);
    }

    /// From now on entries wait until [`Node::commit`].
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// Commits everything proposed, and stops holding.
    pub fn commit(&self) {
        let mut state = self.state();
        state.held = false;
        state.partitions.values_mut().for_each(Replica::commit);
    }

    pub fn proposed(&self, group: GroupId) -> usize {
        self.state().partitions[&group].proposed.len()
    }

    pub fn refuse(&self, code: Option<ErrorCode>) {
        self.state().refuse = code;
    }

    /// Leadership moves to another node, or to nobody that is known.
    pub fn lead(&self, group: GroupId, leader: Option<(NodeId, u64)>) {
        let mut state = self.state();
        let replica = state.partitions.get_mut(&group).unwrap();
        replica.leader = leader;
        replica.partition.step_down();
        if let Some((NodeId(1), term)) = leader {
            replica.partition.lead(term);
        }
        replica.publish(vec![]);
        drop(state);
        self.changed();
    }

    /// A VM that was made elsewhere, with its console.
    pub fn create_vm(&self, name: &str) {
        let spec = compute::VmSpec { cpus: 1, memory_mib: 128, image: "minimal".into(), node: None };
        let result = self.command(Command::CreateVm { name: name.into(), spec });
        assert!(matches!(result, CommandResult::VmCreated { .. }), "{result:?}");
        let console = self.group(&metadata::console_topic(name), 0);
        self.state().replica(console);
    }

    fn command(&self, command: Command) -> CommandResult {
        let mut state = self.state();
        let mut metadata = (*state.metadata).clone();
        let index = metadata.applied + 1;
        let result = metadata.apply(index, &CommandEnvelope::new(None, wall(), command));
        state.metadata = Arc::new(metadata);
        if let CommandResult::TopicCreated { groups, .. } = &result {
            groups.iter().for_each(|group| state.replica(*group));
        }
        drop(state);
        self.changed();
        result
    }
}

impl State {
    fn replica(&mut self, group: GroupId) {
        let mut partition = Partition::new(self.metadata.partitions[&group].epoch_base);
        partition.lead(TERM);
        let mut replica = Replica {
            partition,
            reader: Arc::new(PartitionReader::new()),
            log: Vec::new(),
            proposed: VecDeque::new(),
            next_index: 3,
            leader: Some((NodeId(1), TERM)),
        };
        replica.publish(vec![]);
        self.partitions.insert(group, replica);
    }

    fn produce(&mut self, produce: Produce) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        let held = self.held;
        let not_found = || Err(failure(ErrorCode::NotFound));
        let replica = self.partitions.get_mut(&produce.group).ok_or_else(not_found)?;
        let staged = match replica.partition.stage(&produce.batches, wall()) {
            Ok(staged) => staged,
            Err(StageError::Duplicate { base_offset, .. }) => {
                return Err(Ok(Reply::Produced { base_offset, log_start_offset: 0 }));
            }
            Err(error) => {
                let code = error.code().unwrap();
                return Err(Err(RequestError { code, message: error.to_string(), leader: None }));
            }
        };
        let (reply, answer) = oneshot::channel();
        let base_offset = staged[0].base_offset;
        let mut reply = Some((base_offset, reply));
        for (at, one) in staged.iter().enumerate() {
            replica.partition.staged(one);
            let last = at + 1 == staged.len();
            replica.proposed.push_back((one.data.clone(), reply.take_if(|_| last)));
        }
        if !held {
            replica.commit();
        }
        Ok(answer)
    }

    fn read_log(&self, read: &ReadLog) -> Outcome {
        let replica = self.partitions.get(&read.group).ok_or(failure(ErrorCode::NotFound))?;
        let (mut indexes, mut batches, mut bytes) = (vec![], vec![], 0);
        for (index, data) in replica.log.iter().filter(|(index, _)| (read.low..=read.high).contains(index)) {
            bytes += data.len();
            if bytes > read.bytes_max as usize && !batches.is_empty() {
                break;
            }
            indexes.push(*index);
            batches.push(data.clone());
        }
        Ok(Reply::Batches { indexes, batches })
    }
}

impl Replica {
    fn commit(&mut self) {
        let mut committed = Vec::new();
        let mut replies = Vec::new();
        for (data, reply) in self.proposed.drain(..) {
            // Every other index is an entry that is no batch.
            self.next_index += 2;
            let batch = self.partition.apply(self.next_index, TERM, wire::EntryKind::Batch, &data).unwrap().unwrap();
            self.log.push((batch.index, data));
            committed.push(batch);
            replies.extend(reply);
        }
        self.publish(committed);
        for (base_offset, reply) in replies {
            drop(reply.send(Ok(Reply::Produced { base_offset, log_start_offset: 0 })));
        }
    }

    fn publish(&mut self, committed: Vec<stream::CommittedBatch>) {
        let leader_epoch = self.partition.leading().and_then(|term| self.partition.leader_epoch(term));
        let high_watermark = self.partition.next_offset();
        self.reader.publish(Update { leader_epoch, high_watermark, committed, ..Update::default() }).unwrap();
    }
}

impl Broker for Node {
    fn request(
        &self,
        target: Target,
        _deadline: Millis,
        request: Request,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let done = |outcome: Outcome| -> BoxFuture<'static, Outcome> { std::future::ready(outcome).boxed() };
        if let Some(code) = self.state().refuse {
            return done(Err(failure(code)));
        }
        match (target, request) {
            (Target::Leader(GroupId::META), Request::Command(command)) => {
                let result = self.command(command);
                done(Ok(Reply::Command { index: self.state().metadata.applied, result }))
            }
            (Target::Here, Request::Produce(produce)) => match self.state().produce(produce) {
                Err(outcome) => done(outcome),
                Ok(answer) => {
                    async move { answer.await.unwrap_or_else(|_| Err(failure(ErrorCode::LeaderChanged))) }.boxed()
                }
            },
            (Target::Here, Request::Barrier) => {
                let late = self.0.late.lock().unwrap().take();
                late.into_iter().for_each(|name| self.create_vm(name));
                done(Ok(Reply::Done))
            }
            (Target::Here, Request::ReadLog(read)) => done(self.state().read_log(&read)),
            (target, request) => panic!("not a request of this listener: {target:?} {request:?}"),
        }
    }

    fn metadata(&self) -> Arc<Metadata> {
        self.state().metadata.clone()
    }

    fn leader(&self, group: GroupId) -> Option<(NodeId, u64)> {
        match group {
            GroupId::META => Some((NodeId(1), TERM)),
            group => self.state().partitions.get(&group)?.leader,
        }
    }

    fn reader(&self, group: GroupId) -> Option<Arc<PartitionReader>> {
        self.state().partitions.get(&group).map(|replica| replica.reader.clone())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }
}

/// A client that says exactly what it is told to.
pub struct Client {
    pub stream: TcpStream,
    next: i32,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        Client { stream: TcpStream::connect(address).await.unwrap(), next: 0 }
    }

    /// Sends without waiting; gives the correlation id.
    pub async fn send<R: Encodable>(&mut self, api: ApiKey, version: i16, body: &R) -> i32 {
        self.next += 1;
        let frame = encode_request(api, version, self.next, body);
        self.stream.write_all(&frame).await.unwrap();
        self.next
    }

    pub async fn send_bytes(&mut self, frame: &[u8]) {
        let length = (frame.len() as i32).to_be_bytes();
        self.stream.write_all(&[&length, frame].concat()).await.unwrap();
    }

    /// The next answer; `None` if the connection was closed.
    pub async fn receive_bytes(&mut self) -> Option<Bytes> {
        let read = async {
            let length = match self.stream.read_i32().await {
                Ok(length) => length,
                Err(_) => return None,
            };
            let mut frame = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut frame).await.unwrap();
            Some(Bytes::from(frame))
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer, or the end of the connection")
    }

    pub async fn receive<R: Decodable + HeaderVersion>(&mut self, version: i16) -> (i32, R) {
        let mut frame = self.receive_bytes().await.expect("an answer");
        let header = ResponseHeader::decode(&mut frame, R::header_version(version)).unwrap();
        let body = R::decode(&mut frame, version).unwrap();
        assert!(frame.is_empty(), "bytes left over: {frame:?}");
        (header.correlation_id, body)
    }

    pub async fn ask<Q, R>(&mut self, api: ApiKey, version: i16, body: &Q) -> R
    where
        Q: Encodable,
        R: Decodable + HeaderVersion,
    {
        let sent = self.send(api, version, body).await;
        let (id, body) = self.receive(version).await;
        assert_eq!(id, sent);
        body
    }
}

pub fn encode_request<R: Encodable>(api: ApiKey, version: i16, correlation_id: i32, body: &R) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(0);
    let header = RequestHeader::default()
        .with_request_api_key(api as i16)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_static_str("test")));
    header.encode(&mut out, api.request_header_version(version)).unwrap();
    body.encode(&mut out, version).unwrap();
    let length = (out.len() as i32 - 4).to_be_bytes();
    out[..4].copy_from_slice(&length);
    out.freeze()
}

/// A batch of one record per value, as a producer sends it.
pub fn batch(values: &[&str]) -> Bytes {
    let timestamp = wall().0;
    let record =
        |value: &&str| Record { value: Some(Bytes::copy_from_slice(value.as_bytes())), timestamp, ..Record::default() };
    encode_batch(&values.iter().map(record).collect::<Vec<_>>(), None).unwrap()
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}
