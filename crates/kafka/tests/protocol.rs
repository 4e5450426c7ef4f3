//! What the listener says, frame by frame.
#![allow(clippy::unwrap_used)] // A test's failure is its message.

mod common;

use std::time::{Duration, Instant};

use base::{ErrorCode, NodeId};
use bytes::{Bytes, BytesMut};
use common::{Client, Node, batch, until};
use kafka::Broker;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

fn name(text: &str) -> TopicName {
    TopicName(StrBytes::from_string(text.to_owned()))
}

fn uuid(node: &Node, topic: &str) -> Uuid {
    Uuid::from_bytes(node.topic_id(topic).0)
}

fn produce(topic: &str, acks: i16, records: Vec<(i32, Bytes)>) -> ProduceRequest {
    let partition = |(index, records)| PartitionProduceData::default().with_index(index).with_records(Some(records));
    let topic = TopicProduceData::default()
        .with_name(name(topic))
        .with_partition_data(records.into_iter().map(partition).collect());
    ProduceRequest::default().with_acks(acks).with_timeout_ms(5000).with_topic_data(vec![topic])
}

fn fetch(topic: &str, partitions: &[(i32, i64)], max_wait_ms: i32, min_bytes: i32) -> FetchRequest {
    let partition = |(index, offset): &(i32, i64)| {
        FetchPartition::default().with_partition(*index).with_fetch_offset(*offset).with_partition_max_bytes(1 << 20)
    };
    let topic =
        FetchTopic::default().with_topic(name(topic)).with_partitions(partitions.iter().map(partition).collect());
    FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(min_bytes)
        .with_max_bytes(1 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

async fn produced(client: &mut Client, version: i16, request: &ProduceRequest) -> Vec<(i16, i64)> {
    let response: ProduceResponse = client.ask(ApiKey::Produce, version, request).await;
    let partitions = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    partitions.map(|partition| (partition.error_code, partition.base_offset)).collect()
}

fn values(records: &Bytes) -> Vec<String> {
    let batches = stream::batch::split(records.clone()).unwrap();
    let records = batches.iter().flat_map(|batch| stream::record::decode_batch(batch).unwrap());
    records.map(|(_, record)| String::from_utf8(record.value.unwrap().to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn api_versions_in_every_version_and_beyond() {
    let (_node, address) = Node::start().await;
    let mut client = Client::connect(address).await;
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("test"))
        .with_client_software_version(StrBytes::from_static_str("1.0"));
    for version in 0..=4 {
        let request = if version < 3 { ApiVersionsRequest::default() } else { request.clone() };
        let response: ApiVersionsResponse = client.ask(ApiKey::ApiVersions, version, &request).await;
        assert_eq!(response.error_code, 0);
        let keys: Vec<i16> = response.api_keys.iter().map(|api| api.api_key).collect();
        assert_eq!(keys, [0, 1, 2, 3, 10, 18, 19, 20]);
    }
    // A version from the future is answered in version 0 (KIP-511), and the connection goes on.
    client.send_bytes(&[0, 18, 0, 99, 0, 0, 0, 42, 0xff, 0xff, 1, 2, 3]).await;
    let (id, response) = client.receive::<ApiVersionsResponse>(0).await;
    assert_eq!((id, response.error_code), (42, ResponseError::UnsupportedVersion.code()));
    let own = response.api_keys.iter().map(|api| (api.api_key, api.min_version, api.max_version));
    assert_eq!(own.collect::<Vec<_>>(), [(18, 0, 4)]);
    let nameless = ApiVersionsRequest::default();
    let response: ApiVersionsResponse = client.ask(ApiKey::ApiVersions, 3, &nameless).await;
    assert_eq!(response.error_code, ResponseError::InvalidRequest.code());
}

/// Here and below: every version that is advertised is asked, with a request that does something.
#[tokio::test]
async fn every_version_of_the_data_path_works() {
    let (node, address) = Node::start().await;
    let mut client = Client::connect(address).await;
    node.create("t", 1);
    for version in 3..=13 {
        let mut request = produce("t", -1, vec![(0, batch(&["v"]))]);
        if version >= 13 {
            request.topic_data[0] = request.topic_data[0].clone().with_topic_id(uuid(&node, "t")).with_name(name(""));
        }
        assert_eq!(produced(&mut client, version, &request).await, [(0, i64::from(version) - 3)], "produce {version}");
    }
    for version in 4..=17 {
        let mut request = fetch("t", &[(0, 2)], 0, 1);
        if version >= 13 {
            request.topics[0] = request.topics[0].clone().with_topic_id(uuid(&node, "t")).with_topic(name(""));
        }
        let response: FetchResponse = client.ask(ApiKey::Fetch, version, &request).await;
        let partition = &response.responses[0].partitions[0];
        assert_eq!((response.error_code, response.session_id, partition.error_code), (0, 0, 0), "fetch {version}");
        assert_eq!((partition.high_watermark, partition.last_stable_offset), (11, 11));
        assert_eq!(values(partition.records.as_ref().unwrap()).len(), 9);
    }
    for version in 1..=10 {
        let partition = ListOffsetsPartition::default().with_timestamp(-1);
        let topic = ListOffsetsTopic::default().with_name(name("t")).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        let response: ListOffsetsResponse = client.ask(ApiKey::ListOffsets, version, &request).await;
        let partition = &response.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.offset), (0, 11), "list offsets {version}");
    }
}

#[tokio::test]
async fn every_version_of_metadata_works() {
    let (node, address) = Node::start().await;
    let mut client = Client::connect(address).await;
    node.create("t", 1);
    for version in 0..=13 {
        let request = MetadataRequest::default()
            .with_topics(Some(vec![MetadataRequestTopic::default().with_name(Some(name("t")))]))
            .with_allow_auto_topic_creation(version < 4)
            .with_include_topic_authorized_operations(version >= 8);
        let response: MetadataResponse = client.ask(ApiKey::Metadata, version, &request).await;
        let partition = &response.topics[0].partitions[0];
        assert_eq!(
            (response.topics.len(), partition.error_code, partition.leader_id.0),
            (1, 0, 1),
            "metadata {version}"
        );
        assert_eq!(response.brokers[0].port, i32::from(address.port()));
        if version >= 7 {
            assert_eq!(partition.leader_epoch, 3, "base 0 + term 3");
        }
        if version >= 8 {
            assert!(response.topics[0].topic_authorized_operations > 0);
        }
        if version >= 10 {
            assert_eq!(response.topics[0].topic_id, uuid(&node, "t"));
        }
    }
}

#[tokio::test]
async fn every_version_about_topics_and_coordinators_works() {
    let (node, address) = Node::start().await;
    let mut client = Client::connect(address).await;
    for version in 0..=6 {
        let request = match version {
            0..4 => FindCoordinatorRequest::default().with_key(StrBytes::from_static_str("g")),
            _ => FindCoordinatorRequest::default().with_coordinator_keys(vec![StrBytes::from_static_str("g")]),
        };
        let response: FindCoordinatorResponse = client.ask(ApiKey::FindCoordinator, version, &request).await;
        let (code, message) = match response.coordinators.first() {
            Some(coordinator) => (coordinator.error_code, coordinator.error_message.clone()),
            None => (response.error_code, response.error_message),
        };
        assert_eq!(code, ResponseError::UnsupportedVersion.code(), "find coordinator {version}");
        if version >= 1 {
            assert_eq!(message.unwrap().as_str(), "consumer groups are not available yet");
        }
    }
    for version in 2..=7 {
        let topic = CreatableTopic::default().with_name(name(&format!("c{version}"))).with_num_partitions(2);
        let request =
            CreateTopicsRequest::default().with_topics(vec![topic.with_replication_factor(-1)]).with_timeout_ms(5000);
        let response: CreateTopicsResponse = client.ask(ApiKey::CreateTopics, version, &request).await;
        assert_eq!(response.topics[0].error_code, 0, "create {version}: {:?}", response.topics[0].error_message);
        if version >= 5 {
            assert_eq!((response.topics[0].num_partitions, response.topics[0].replication_factor), (2, 1));
        }
    }
    for version in 1..=6 {
        let topic = format!("c{}", version + 1);
        let request = match version {
            6 => DeleteTopicsRequest::default()
                .with_topics(vec![DeleteTopicState::default().with_name(None).with_topic_id(uuid(&node, &topic))]),
            _ => DeleteTopicsRequest::default().with_topic_names(vec![name(&topic)]),
        };
        let response: DeleteTopicsResponse =
            client.ask(ApiKey::DeleteTopics, version, &request.with_timeout_ms(5000)).await;
        assert_eq!(response.responses[0].error_code, 0, "delete {version}");
    }
    assert_eq!(node.topics(), ["muster.events"]);
}

#[tokio::test]
async fn answers_leave_in_request_order_and_pipelined_produces_keep_theirs() {
    let (node, address) = Node::start().await;
    node.create("t", 2);
    node.hold();
    let mut client = Client::connect(address).await;
    let mut sent = Vec::new();
    for n in 0..20 {
        let request = produce("t", -1, vec![(0, batch(&[&n.to_string()]))]);
        sent.push(client.send(ApiKey::Produce, 9, &request).await);
    }
    // An answer that is ready at once still waits for those before it.
    let last = client.send(ApiKey::Metadata, 9, &MetadataRequest::default().with_topics(Some(vec![]))).await;
    let group = node.group("t", 0);
    until("20 batches are proposed", || node.proposed(group) == 20).await;
    node.commit();
    for (n, id) in sent.into_iter().enumerate() {
        let (got, response) = client.receive::<ProduceResponse>(9).await;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((got, partition.error_code, partition.base_offset), (id, 0, n as i64));
    }
    assert_eq!(client.receive::<MetadataResponse>(9).await.0, last);
    let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &fetch("t", &[(0, 0)], 0, 1)).await;
    let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(values(response.responses[0].partitions[0].records.as_ref().unwrap()), expected);
}

#[tokio::test]
async fn more_requests_than_the_pipeline_holds_are_all_answered() {
    let (node, address) = Node::start().await;
    node.create("t", 1);
    let mut client = Client::connect(address).await;
    let requests = 5 * base::limits::KAFKA_PIPELINE_MAX as i64;
    for _ in 0..requests {
        client.send(ApiKey::Produce, 9, &produce("t", -1, vec![(0, batch(&["v"]))])).await;
    }
    for n in 0..requests {
        let (id, response) = client.receive::<ProduceResponse>(9).await;
        assert_eq!((i64::from(id), response.responses[0].partition_responses[0].base_offset), (n + 1, n));
    }
    // While answers are held back, no more than the pipeline holds reach the engine.
    node.hold();
    for _ in 0..requests {
        client.send(ApiKey::Produce, 9, &produce("t", -1, vec![(0, batch(&["v"]))])).await;
    }
    let group = node.group("t", 0);
    until("the pipeline is full", || node.proposed(group) == base::limits::KAFKA_PIPELINE_MAX).await;
    let mut other = Client::connect(address).await;
    let _: MetadataResponse = other.ask(ApiKey::Metadata, 9, &MetadataRequest::default().with_topics(None)).await;
    assert_eq!(node.proposed(group), base::limits::KAFKA_PIPELINE_MAX);
    node.commit();
    for n in requests..2 * requests {
        let (_, response) = client.receive::<ProduceResponse>(9).await;
        assert_eq!(response.responses[0].partition_responses[0].base_offset, n);
    }
}

#[tokio::test]
async fn partitions_fail_one_by_one_and_say_why() {
    let (node, address) = Node::start().await;
    node.create("t", 4);
    node.add_node(2, "other.example:9092");
    node.lead(node.group("t", 3), Some((NodeId(2), 8)));
    let mut client = Client::connect(address).await;
    let good = batch(&["v"]);
    let mut damaged = BytesMut::from(&good[..]);
    *damaged.last_mut().unwrap() ^= 1;
    let mut old = good.to_vec();
    old[16] = 1;
    let huge =
        stream::encode_batch(&[stream::Record { value: Some(vec![0; 1_040_000].into()), ..Default::default() }], None);
    let mut huge = huge.unwrap().to_vec();
    huge.resize(base::limits::RECORD_BATCH_BYTES_MAX + 1, 0);
    let length = (huge.len() as i32 - 12).to_be_bytes();
    huge[8..12].copy_from_slice(&length);
    let two = [&good[..], &good[..]].concat();
    let cases = [
        (0, good.clone(), None),
        (1, damaged.freeze(), Some(ResponseError::CorruptMessage)),
        (1, good.slice(..good.len() - 1), Some(ResponseError::CorruptMessage)),
        (1, old.into(), Some(ResponseError::UnsupportedForMessageFormat)),
        (1, huge.into(), Some(ResponseError::MessageTooLarge)),
        (1, Bytes::new(), Some(ResponseError::InvalidRecord)),
        (2, two.into(), None),
        (3, good.clone(), Some(ResponseError::NotLeaderOrFollower)),
        (9, good.clone(), Some(ResponseError::UnknownTopicOrPartition)),
        (-1, good.clone(), Some(ResponseError::UnknownTopicOrPartition)),
    ];
    let request = produce("t", -1, cases.iter().map(|(index, records, _)| (*index, records.clone())).collect());
    let response: ProduceResponse = client.ask(ApiKey::Produce, 10, &request).await;
    let got = &response.responses[0].partition_responses;
    assert_eq!(got.len(), cases.len());
    for (partition, (index, _, error)) in got.iter().zip(&cases) {
        let expected = error.map_or(0, |error| error.code());
        assert_eq!((partition.index, partition.error_code), (*index, expected), "{:?}", partition.error_message);
        assert_eq!(partition.base_offset, if error.is_none() { 0 } else { -1 });
        assert_eq!(partition.error_message.is_some(), error.is_some());
    }
    // Who leads is in the answer, and how to get there (KIP-951).
    let leader = &got[7].current_leader;
    assert_eq!((leader.leader_id.0, leader.leader_epoch), (2, 8));
    let endpoint = &response.node_endpoints[0];
    assert_eq!((endpoint.node_id.0, endpoint.host.as_str(), endpoint.port), (2, "other.example", 9092));
    assert_eq!(endpoint.rack.as_deref(), Some("b"));
    assert_eq!(node.reader(node.group("t", 2)).unwrap().read().high_watermark(), 2, "two batches in one request");

    let unknown = produced(&mut client, 9, &produce("nope", -1, vec![(0, good.clone())])).await;
    assert_eq!(unknown, [(ResponseError::UnknownTopicOrPartition.code(), -1)]);
    let by_id = produced(&mut client, 13, &produce("", -1, vec![(0, good.clone())])).await;
    assert_eq!(by_id, [(ResponseError::UnknownTopicId.code(), -1)]);
    let acks = produced(&mut client, 9, &produce("t", 2, vec![(0, good.clone())])).await;
    assert_eq!(acks, [(ResponseError::InvalidRequiredAcks.code(), -1)]);
    let transactional = produce("t", -1, vec![(0, good.clone())])
        .with_transactional_id(Some(TransactionalId(StrBytes::from_static_str("x"))));
    assert_eq!(produced(&mut client, 9, &transactional).await, [(ResponseError::InvalidTxnState.code(), -1)]);
    for (code, error) in [
        (ErrorCode::Busy, ResponseError::NotEnoughReplicas),
        (ErrorCode::DiskFull, ResponseError::KafkaStorageError),
        (ErrorCode::DeadlineExceeded, ResponseError::RequestTimedOut),
        (ErrorCode::Internal, ResponseError::UnknownServerError),
    ] {
        node.refuse(Some(code));
        let got = produced(&mut client, 9, &produce("t", -1, vec![(0, good.clone())])).await;
        assert_eq!(got, [(error.code(), -1)], "{code}");
    }
}

#[tokio::test]
async fn acks_0_is_silent_and_a_failure_closes_the_connection() {
    let (node, address) = Node::start().await;
    node.create("t", 1);
    let mut client = Client::connect(address).await;
    client.send(ApiKey::Produce, 9, &produce("t", 0, vec![(0, batch(&["a"]))])).await;
    // The next answer belongs to the next request.
    assert_eq!(produced(&mut client, 9, &produce("t", 1, vec![(0, batch(&["b"]))])).await, [(0, 1)]);
    client.send(ApiKey::Produce, 9, &produce("nope", 0, vec![(0, batch(&["c"]))])).await;
    assert_eq!(client.receive_bytes().await, None);
}

#[tokio::test]
async fn idempotent_producers_are_answered_with_their_offset_again() {
    let (node, address) = Node::start().await;
    node.create("t", 1);
    let mut client = Client::connect(address).await;
    let stamped = |id, epoch, base_sequence| {
        let stamp = stream::ProducerStamp { id, epoch, base_sequence };
        let request = stream::encode_batch(&[stream::Record::default()], Some(stamp)).unwrap();
        produce("t", -1, vec![(0, request)])
    };
    // An id of muster's own, which would disturb the outbox of events.
    let reserved = stamped(1_000, 0, 0);
    let refused = (ResponseError::InvalidRecord.code(), -1);
    assert_eq!(produced(&mut client, 9, &reserved).await, [refused]);
    for (epoch, sequence, expected) in [
        (1, 0, (0, 0)),
        (1, 1, (0, 1)),
        (1, 0, (0, 0)),
        (1, 3, (ResponseError::OutOfOrderSequenceNumber.code(), -1)),
        (0, 2, (ResponseError::InvalidProducerEpoch.code(), -1)),
        (1, 2, (0, 2)),
    ] {
        assert_eq!(produced(&mut client, 9, &stamped(1_001, epoch, sequence)).await, [expected], "{epoch} {sequence}");
    }
}

#[tokio::test]
async fn a_fetch_waits_for_records_and_no_longer_than_asked() {
    let (node, address) = Node::start().await;
    node.create("t", 2);
    let mut consumer = Client::connect(address).await;
    let started = Instant::now();
    let response: FetchResponse = consumer.ask(ApiKey::Fetch, 11, &fetch("t", &[(0, 0), (1, 0)], 300, 1)).await;
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    assert_eq!(response.responses[0].partitions.len(), 2);
    assert!(
        response.responses[0].partitions.iter().all(|p| p.error_code == 0 && p.records.as_ref().unwrap().is_empty())
    );

    // Records in any of the partitions end the wait; it would take a minute otherwise.
    let long = fetch("t", &[(0, 0), (1, 0)], 60_000, 1);
    let started = Instant::now();
    consumer.send(ApiKey::Fetch, 11, &long).await;
    let mut producer = Client::connect(address).await;
    produced(&mut producer, 9, &produce("t", -1, vec![(1, batch(&["now"]))])).await;
    let (_, response) = consumer.receive::<FetchResponse>(11).await;
    let partition = &response.responses[0].partitions[1];
    assert_eq!((partition.high_watermark, values(partition.records.as_ref().unwrap())), (1, vec!["now".to_owned()]));

    // One small batch is not enough for min_bytes, three are.
    consumer.send(ApiKey::Fetch, 11, &fetch("t", &[(1, 1)], 60_000, 3 * batch(&["more"]).len() as i32)).await;
    for _ in 0..3 {
        produced(&mut producer, 9, &produce("t", -1, vec![(1, batch(&["more"]))])).await;
    }
    let (_, response) = consumer.receive::<FetchResponse>(11).await;
    assert_eq!(values(response.responses[0].partitions[0].records.as_ref().unwrap()).len(), 3);

    // A lost leadership ends it too, and is told.
    consumer.send(ApiKey::Fetch, 12, &fetch("t", &[(0, 0)], 60_000, 1)).await;
    node.add_node(2, "[::1]:9093");
    node.lead(node.group("t", 0), Some((NodeId(2), 9)));
    let (_, response) = consumer.receive::<FetchResponse>(12).await;
    let partition = &response.responses[0].partitions[0];
    assert_eq!(partition.error_code, ResponseError::NotLeaderOrFollower.code());
    assert_eq!((partition.current_leader.leader_id.0, partition.current_leader.leader_epoch), (2, 9));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn fetches_keep_to_bytes_epochs_and_sessions() {
    let (node, address) = Node::start().await;
    node.create("t", 2);
    let mut client = Client::connect(address).await;
    let value = "x".repeat(100_000);
    // Beyond the tail that is kept in memory, so that old offsets come from the log.
    for _ in 0..30 {
        let batches = vec![(0, batch(&[&value])), (1, batch(&[&value]))];
        produced(&mut client, 9, &produce("t", -1, batches)).await;
    }
    let mut offset = 0;
    let mut fetches = 0;
    while offset < 30 {
        let mut request = fetch("t", &[(0, offset)], 0, 1).with_max_bytes(350_000);
        request.topics[0].partitions[0].partition_max_bytes = 350_000;
        let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &request).await;
        let partition = &response.responses[0].partitions[0];
        let records = partition.records.as_ref().unwrap();
        assert!(records.len() <= 350_000 && !records.is_empty(), "{}", records.len());
        let batches = stream::batch::split(records.clone()).unwrap();
        assert_eq!(stream::BatchHeader::parse(&batches[0]).unwrap().base_offset, offset);
        offset += batches.len() as i64;
        fetches += 1;
    }
    assert_eq!(fetches, 10);
    // One batch comes however small the bounds, for the first partition that has any.
    let mut request = fetch("t", &[(0, 30), (0, 3), (1, 3)], 0, 1).with_max_bytes(10);
    request.topics[0].partitions.iter_mut().for_each(|partition| partition.partition_max_bytes = 10);
    let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &request).await;
    let counts = response.responses[0].partitions.iter().map(|p| values(p.records.as_ref().unwrap()).len());
    assert_eq!(counts.collect::<Vec<_>>(), [0, 1, 0]);

    for (offset, epoch, error) in [
        (0, 2, ResponseError::FencedLeaderEpoch),
        (0, 4, ResponseError::UnknownLeaderEpoch),
        (31, -1, ResponseError::OffsetOutOfRange),
        (-5, -1, ResponseError::OffsetOutOfRange),
    ] {
        let mut request = fetch("t", &[(0, offset)], 60_000, 1);
        request.topics[0].partitions[0].current_leader_epoch = epoch;
        let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &request).await;
        assert_eq!(response.responses[0].partitions[0].error_code, error.code(), "an error is told without waiting");
    }
    // Who asks for a session gets none; who believes to have one is told that it does not exist.
    let request = fetch("t", &[(0, 30)], 0, 0).with_session_epoch(0);
    let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &request).await;
    assert_eq!((response.error_code, response.session_id), (0, 0));
    let request = fetch("t", &[], 0, 0).with_session_id(77).with_session_epoch(1);
    let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &request).await;
    assert_eq!(response.error_code, ResponseError::FetchSessionIdNotFound.code());
    // A log that cannot be read now is not "no records".
    node.refuse(Some(ErrorCode::Busy));
    let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &fetch("t", &[(0, 0)], 0, 1)).await;
    assert_eq!(response.responses[0].partitions[0].error_code, ResponseError::KafkaStorageError.code());
}

#[tokio::test]
async fn offsets_by_time() {
    let (node, address) = Node::start().await;
    node.create("t", 1);
    let mut client = Client::connect(address).await;
    let at = |timestamp| stream::Record { timestamp, ..Default::default() };
    for times in [[10, 30], [20, 50], [40, 45]] {
        let records = stream::encode_batch(&times.map(at), None).unwrap();
        produced(&mut client, 9, &produce("t", -1, vec![(0, records)])).await;
    }
    for (asked, expected) in [
        (-2, (0, 0, -1)),
        (-1, (0, 6, -1)),
        (-3, (0, 3, 50)),
        (-4, (0, 0, -1)),
        (-5, (0, -1, -1)),
        (0, (0, 0, 10)),
        (25, (0, 1, 30)),
        (31, (0, 3, 50)),
        (51, (0, -1, -1)),
        (-7, (ResponseError::UnsupportedVersion.code(), -1, -1)),
    ] {
        let partition = ListOffsetsPartition::default().with_timestamp(asked).with_current_leader_epoch(-1);
        let topic = ListOffsetsTopic::default().with_name(name("t")).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        let response: ListOffsetsResponse = client.ask(ApiKey::ListOffsets, 9, &request).await;
        let got = &response.topics[0].partitions[0];
        assert_eq!((got.error_code, got.offset, got.timestamp), expected, "asked for {asked}");
    }
}

#[tokio::test]
async fn metadata_never_guesses_and_makes_topics_only_if_allowed() {
    let (node, address) = Node::start().await;
    node.create("t", 2);
    node.lead(node.group("t", 1), None);
    let mut client = Client::connect(address).await;
    let all: MetadataResponse = client.ask(ApiKey::Metadata, 9, &MetadataRequest::default().with_topics(None)).await;
    assert_eq!((all.controller_id.0, all.brokers.len()), (1, 1));
    assert_eq!(all.cluster_id.as_deref(), Some("07".repeat(16).as_str()));
    let topic = all.topics.iter().find(|topic| topic.name.as_ref().unwrap().as_str() == "t").unwrap();
    let unknown = &topic.partitions[1];
    assert_eq!(unknown.error_code, ResponseError::LeaderNotAvailable.code());
    assert_eq!((unknown.leader_id.0, unknown.leader_epoch), (-1, -1));

    let ask = |topic: &str, allow| {
        let topic = MetadataRequestTopic::default().with_name(Some(name(topic)));
        MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(allow)
    };
    for (topic, allow, error, partitions) in [
        ("made", false, Some(ResponseError::UnknownTopicOrPartition), 0),
        ("made", true, None, 1),
        ("made", false, None, 1),
        ("bad name", true, Some(ResponseError::InvalidTopicException), 0),
    ] {
        let response: MetadataResponse = client.ask(ApiKey::Metadata, 9, &ask(topic, allow)).await;
        let got = &response.topics[0];
        assert_eq!((got.error_code, got.partitions.len()), (error.map_or(0, |e| e.code()), partitions), "{topic}");
    }
    let stranger = MetadataRequestTopic::default().with_name(None).with_topic_id(Uuid::from_bytes([9; 16]));
    let request = MetadataRequest::default().with_topics(Some(vec![stranger]));
    let response: MetadataResponse = client.ask(ApiKey::Metadata, 12, &request).await;
    assert_eq!(response.topics[0].error_code, ResponseError::UnknownTopicId.code());
    let none: MetadataResponse =
        client.ask(ApiKey::Metadata, 9, &MetadataRequest::default().with_topics(Some(vec![]))).await;
    assert_eq!(none.topics.len(), 0);

    let (_off, address) = Node::start_with(|config| config.auto_create_topics = false).await;
    let mut client = Client::connect(address).await;
    let response: MetadataResponse = client.ask(ApiKey::Metadata, 9, &ask("made", true)).await;
    assert_eq!(response.topics[0].error_code, ResponseError::UnknownTopicOrPartition.code());
}

#[tokio::test]
async fn musters_own_topics_are_read_by_clients_and_neither_made_nor_written() {
    let (node, address) = Node::start().await;
    node.create_vm("web");
    let mut client = Client::connect(address).await;
    let invalid = ResponseError::InvalidTopicException;
    for topic in ["vm.web.console", "vm.none.console", "muster.events"] {
        let request = produce(topic, -1, vec![(0, batch(&["forged"]))]);
        assert_eq!(produced(&mut client, 9, &request).await, [(invalid.code(), -1)], "{topic}");
    }
    let by_id = |topic: &str| {
        let mut request = produce("", -1, vec![(0, batch(&["forged"]))]);
        request.topic_data[0].topic_id = uuid(&node, topic);
        request
    };
    let response: ProduceResponse = client.ask(ApiKey::Produce, 13, &by_id("vm.web.console")).await;
    let refused = &response.responses[0].partition_responses[0];
    assert_eq!(refused.error_code, invalid.code());
    let message = refused.error_message.as_deref().unwrap();
    assert!(message.contains("kept for the console of a VM named web"), "{message}");
    let response: FetchResponse = client.ask(ApiKey::Fetch, 11, &fetch("vm.web.console", &[(0, 0)], 0, 1)).await;
    let partition = &response.responses[0].partitions[0];
    assert_eq!((partition.error_code, partition.high_watermark), (0, 0), "readable, and nothing was appended");

    let ask = |topic: &str, allow| {
        let topic = MetadataRequestTopic::default().with_name(Some(name(topic)));
        MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(allow)
    };
    // Who may only read it waits for it to come; who wants it made is told that it never is, unless it is there.
    node.create_vm_unheard("late");
    for (topic, allow, error) in [
        ("vm.late.console", false, Some(ResponseError::UnknownTopicOrPartition)),
        ("vm.late.console", true, None),
        ("vm.none.console", false, Some(ResponseError::UnknownTopicOrPartition)),
        ("vm.none.console", true, Some(invalid)),
    ] {
        let response: MetadataResponse = client.ask(ApiKey::Metadata, 9, &ask(topic, allow)).await;
        assert_eq!(response.topics[0].error_code, error.map_or(0, |e| e.code()), "{topic} {allow}");
    }

    let topic = CreatableTopic::default().with_name(name("vm.none.console")).with_num_partitions(1);
    for validate_only in [true, false] {
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic.clone().with_replication_factor(-1)])
            .with_validate_only(validate_only);
        let response: CreateTopicsResponse = client.ask(ApiKey::CreateTopics, 7, &request).await;
        assert_eq!(response.topics[0].error_code, invalid.code());
    }
    let names = ["vm.web.console", "muster.events"].map(name).to_vec();
    let request = DeleteTopicsRequest::default().with_topic_names(names).with_timeout_ms(5000);
    let response: DeleteTopicsResponse = client.ask(ApiKey::DeleteTopics, 5, &request).await;
    let codes: Vec<i16> = response.responses.iter().map(|topic| topic.error_code).collect();
    assert_eq!(codes, [ResponseError::PolicyViolation.code(); 2]);
    let message = response.responses[0].error_message.as_deref().unwrap();
    assert!(message.contains("the console of VM web"), "{message}");
    assert_eq!(node.topics(), ["muster.events", "vm.late.console", "vm.web.console"]);
}

#[tokio::test]
async fn topics_are_checked_before_they_are_made() {
    let (node, address) = Node::start().await;
    node.create("a.b", 1);
    let mut client = Client::connect(address).await;
    let topic = |text: &str, partitions, factor| {
        let topic = CreatableTopic::default().with_name(name(text)).with_num_partitions(partitions);
        topic.with_replication_factor(factor)
    };
    let config = |key: &str, value: &str| {
        let config = CreatableTopicConfig::default().with_name(StrBytes::from_string(key.to_owned()));
        vec![config.with_value(Some(StrBytes::from_string(value.to_owned())))]
    };
    let cases = [
        (topic("good", -1, -1), None, ""),
        (topic("twice", 1, 1), Some(ResponseError::InvalidRequest), "more than once"),
        (topic("twice", 1, 1), Some(ResponseError::InvalidRequest), "more than once"),
        (topic("bad name", 1, 1), Some(ResponseError::InvalidTopicException), "' '"),
        (topic("a.b", 1, 1), Some(ResponseError::TopicAlreadyExists), "exists"),
        (topic("a_b", 1, 1), Some(ResponseError::InvalidTopicException), "'a.b'"),
        (topic("none", 0, 1), Some(ResponseError::InvalidPartitions), "1 to 1024"),
        (topic("factor", 1, 2), Some(ResponseError::InvalidReplicationFactor), "number of nodes, 1"),
        (
            topic("hand", -1, -1).with_assignments(vec![CreatableReplicaAssignment::default()]),
            Some(ResponseError::InvalidReplicaAssignment),
            "by hand",
        ),
        (
            topic("typo", 1, 1).with_configs(config("retention_ms", "1")),
            Some(ResponseError::InvalidConfig),
            "retention.ms",
        ),
        (
            topic("kept", 1, 1).with_configs(config("retention.ms", "60000")),
            Some(ResponseError::InvalidConfig),
            "kept until their topic is deleted",
        ),
        (topic("config", 1, 1).with_configs(config("retention.ms", "-1")), None, ""),
    ];
    let request = CreateTopicsRequest::default()
        .with_timeout_ms(5000)
        .with_topics(cases.iter().map(|(topic, ..)| topic.clone()).collect());
    for validate_only in [true, false] {
        let request = request.clone().with_validate_only(validate_only);
        let response: CreateTopicsResponse = client.ask(ApiKey::CreateTopics, 7, &request).await;
        for (got, (topic, error, message)) in response.topics.iter().zip(&cases) {
            let text = got.error_message.as_deref().unwrap_or_default();
            assert_eq!(
                (got.name.as_str(), got.error_code),
                (topic.name.as_str(), error.map_or(0, |e| e.code())),
                "{text}"
            );
            assert!(text.contains(message), "{text}");
        }
        let expected: &[&str] =
            if validate_only { &["a.b", "muster.events"] } else { &["a.b", "config", "good", "muster.events"] };
        assert_eq!(node.topics(), expected);
    }
    let names = ["good", "nope", "muster.events"].map(name).to_vec();
    let request = DeleteTopicsRequest::default().with_topic_names(names).with_timeout_ms(5000);
    let response: DeleteTopicsResponse = client.ask(ApiKey::DeleteTopics, 5, &request).await;
    let codes: Vec<i16> = response.responses.iter().map(|topic| topic.error_code).collect();
    let expected = [0, ResponseError::UnknownTopicOrPartition.code(), ResponseError::PolicyViolation.code()];
    assert_eq!(codes, expected);
    assert!(response.responses[2].error_message.as_deref().unwrap().contains("built in"));
    node.refuse(Some(ErrorCode::NoLeader));
    let request = CreateTopicsRequest::default().with_topics(vec![topic("late", 1, 1)]).with_timeout_ms(100);
    let response: CreateTopicsResponse = client.ask(ApiKey::CreateTopics, 7, &request).await;
    assert_eq!(response.topics[0].error_code, ResponseError::RequestTimedOut.code());
}
