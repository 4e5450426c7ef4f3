//! Topics, partitions, leaders and brokers as Kafka's clients name them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use base::{GroupId, Millis, NodeId, TopicId};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::StrBytes;
use metadata::{Metadata, NodeRecord, TopicRecord};
use tokio::time::{Instant, timeout_at};

use crate::Broker;
use crate::listener::Shared;

/// Kafka's ids are 16 bytes, zero for none.
pub(crate) type Uuid = uuid::Uuid;

type Names = Arc<BTreeMap<TopicId, String>>;

/// Topic names by topic id, made once per state of the metadata.
#[derive(Default)]
pub(crate) struct Directory {
    cached: RwLock<Option<(Arc<Metadata>, Names)>>,
}

impl Directory {
    fn names(&self, metadata: &Arc<Metadata>) -> Names {
        let cached = self.cached.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((of, names)) = cached
            && Arc::ptr_eq(&of, metadata)
        {
            return names;
        }
        let names: Names =
            Arc::new(metadata.topics.values().map(|topic| (topic.topic_id, topic.name.clone())).collect());
        *self.cached.write().unwrap_or_else(PoisonError::into_inner) = Some((metadata.clone(), names.clone()));
        names
    }
}

/// How a request names a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum TopicRef {
    Name(StrBytes),
    Id(TopicId),
}

impl TopicRef {
    /// By id from version `ids_since` on, by name before.
    pub(crate) fn of(name: &TopicName, id: Uuid, version: i16, ids_since: i16) -> TopicRef {
        if version >= ids_since { TopicRef::Id(TopicId(id.into_bytes())) } else { TopicRef::Name(name.0.clone()) }
    }
}

/// The cluster at one moment.
pub(crate) struct View {
    pub(crate) metadata: Arc<Metadata>,
    names: Option<Names>,
}

impl View {
    pub(crate) fn topic(&self, topic: &TopicRef) -> Result<&TopicRecord, ResponseError> {
        match topic {
            TopicRef::Name(name) => {
                self.metadata.topics.get(name.as_str()).ok_or(ResponseError::UnknownTopicOrPartition)
            }
            TopicRef::Id(id) => {
                let name = self.names.as_ref().and_then(|names| names.get(id));
                name.and_then(|name| self.metadata.topics.get(name)).ok_or(ResponseError::UnknownTopicId)
            }
        }
    }

    /// The name that a request means, whether there is such a topic or not.
    pub(crate) fn name<'a>(&'a self, topic: &'a TopicRef) -> Option<&'a str> {
        match topic {
            TopicRef::Name(name) => Some(name),
            TopicRef::Id(_) => self.topic(topic).ok().map(|topic| topic.name.as_str()),
        }
    }

    pub(crate) fn partition(&self, topic: &TopicRef, partition: i32) -> Result<GroupId, ResponseError> {
        let partitions = &self.topic(topic)?.partitions;
        let group = usize::try_from(partition).ok().and_then(|partition| partitions.get(partition));
        group.copied().ok_or(ResponseError::UnknownTopicOrPartition)
    }

    /// A broker that clients can connect to.
    pub(crate) fn broker(&self, node: NodeId) -> Option<BrokerAddress> {
        self.metadata.nodes.get(&node).and_then(BrokerAddress::of)
    }

    pub(crate) fn brokers(&self) -> impl Iterator<Item = BrokerAddress> + '_ {
        self.metadata.nodes.values().filter_map(BrokerAddress::of)
    }
}

/// Where a node's Kafka listener is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BrokerAddress {
    pub(crate) id: i32,
    pub(crate) host: StrBytes,
    pub(crate) port: i32,
    pub(crate) rack: Option<StrBytes>,
}

impl BrokerAddress {
    fn of(record: &NodeRecord) -> Option<BrokerAddress> {
        let member = &record.member;
        let (host, port) = member.address.kafka.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let rack = member.labels.get("rack").or_else(|| member.labels.get("zone"));
        Some(BrokerAddress {
            id: broker_id(member.node)?,
            host: StrBytes::from_string(host.to_owned()),
            port: i32::from(port.parse::<u16>().ok()?),
            rack: rack.map(|rack| StrBytes::from_string(rack.clone())),
        })
    }
}

/// Kafka's broker ids have 31 bits.
pub(crate) fn broker_id(node: NodeId) -> Option<i32> {
    i32::try_from(node.0).ok()
}

/// A partition's leader as clients see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leader {
    pub(crate) node: NodeId,
    pub(crate) id: i32,
    pub(crate) epoch: i32,
}

impl<B: Broker> Shared<B> {
    /// The cluster now, with topic ids if the request uses them.
    pub(crate) fn view(&self, by_id: bool) -> View {
        let metadata = self.broker.metadata();
        let names = by_id.then(|| self.directory.names(&metadata));
        View { metadata, names }
    }

    /// The partition's leader, if it is known and can be reached by clients.
    pub(crate) fn leader(&self, view: &View, group: GroupId) -> Option<Leader> {
        let (node, term) = self.broker.leader(group)?;
        let base = view.metadata.partitions.get(&group)?.epoch_base;
        let epoch = i32::try_from(u64::from(base).checked_add(term)?).ok()?;
        Some(Leader { node, id: view.broker(node)?.id, epoch })
    }

    /// Waits until `ready` says so, looking again whenever the cluster changes; whether it did by then.
    pub(crate) async fn wait_until(&self, wait: Millis, ready: impl Fn(&View) -> bool) -> bool {
        let deadline = Instant::now() + std::time::Duration::from_millis(wait.0);
        let mut changes = self.broker.changes();
        loop {
            changes.borrow_and_update();
            if ready(&self.view(false)) {
                return true;
            }
            match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return ready(&self.view(false)),
            }
        }
    }

    /// Whether all partitions of a topic have leaders.
    pub(crate) fn has_leaders(&self, view: &View, topic: &str) -> bool {
        let topic = view.metadata.topics.get(topic);
        topic.is_some_and(|topic| topic.partitions.iter().all(|group| self.leader(view, *group).is_some()))
    }
}
