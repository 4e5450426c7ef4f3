//! Every operation against real tables and nodes that do not always answer.

use base::{ErrorCode, Millis, NodeId};
use compute::VmReportEvent;
use metadata::{Command, CommandResult};
use serde_json::{Value, json};
use wire::Pace;

use crate::testing::{Mood, World};

fn code(result: Result<Value, ops::OpError>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn a_node_that_does_not_answer_is_listed_with_the_reason() {
    let world = World::new(4);
    world.mood(2, Mood::Fails("connection refused"));
    world.mood(3, Mood::Hangs);
    world.mood(4, Mood::Joining("waits for the checkpoint of __meta"));
    let status = world.value("cluster.status", json!({})).unwrap();
    let nodes: Vec<_> = status["nodes"].as_array().unwrap().iter().map(|n| (&n["state"], &n["reason"])).collect();
    assert_eq!(
        nodes,
        [
            (&json!("ready"), &json!("")),
            (&json!("unreachable"), &json!("connection refused")),
            (&json!("unreachable"), &json!("no answer within 2.000 s")),
            (&json!("joining"), &json!("waits for the checkpoint of __meta")),
        ]
    );
    assert_eq!(status["nodes"][1]["vms_running"], Value::Null, "what nobody said is not invented");
    let groups = world.value("group.list", json!({})).unwrap();
    assert_eq!(groups["nodes"].as_array().unwrap().len(), 4);
    assert_eq!((&groups["nodes"][2]["reachable"], &groups["nodes"][2]["groups"]), (&json!(false), &json!([])));
    let tasks = world.value("task.list", json!({})).unwrap();
    assert_eq!(tasks["nodes"][1]["reason"], "connection refused");
    assert_eq!(tasks["nodes"][0]["tasks"][0]["path"], "engine");
}

#[test]
fn the_status_fits_one_screen_and_says_what_can_be_lost() {
    let world = World::new(3);
    for n in 0..30 {
        world.value("vm.create", json!({ "name": format!("vm{n}") })).unwrap();
    }
    let shown = world.shown("cluster.status", json!({}));
    assert!(shown.lines().count() <= 40, "{shown}");
    assert!(
        shown.starts_with("cluster abababab: 3 nodes, no fault tolerance: muster.events/0 has 1 voter\n"),
        "{shown}"
    );
    assert!(shown.contains("__meta: leader node1, term 2"), "{shown}");
    assert!(shown.contains("... and 22 more: `muster vm list`"), "{shown}");
    let one = World::new(1).shown("cluster.status", json!({}));
    assert!(one.starts_with("cluster abababab: 1 node, no fault tolerance: 1 node\n"), "{one}");
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

/// The row that begins with `name`, cell by cell with the titles, in that table of a text whose second column is `second`.
fn under_titles<'a>(text: &'a str, second: &str, name: &str) -> Vec<(&'a str, &'a str)> {
    let mut lines = text.lines().skip_while(|line| cells(line).get(1) != Some(&second));
    let titles = lines.next().map(cells).unwrap_or_default();
    let row = lines.map(cells).find(|row| row.first() == Some(&name)).unwrap_or_default();
    assert_eq!(titles.len(), row.len(), "{text}");
    titles.into_iter().zip(row).collect()
}

#[test]
fn consensus_is_told_node_by_node_and_the_restless_groups_by_name() {
    let world = World::new(3);
    world.mood(3, Mood::Fails("connection refused"));
    let told = world.value("cluster.consensus", json!({})).unwrap();
    let sent = &told["nodes"][1]["consensus"]["heartbeats_sent"];
    assert_eq!((&sent["count"], &sent["late"], &sent["p999_us"]), (&json!(3), &json!(1), &json!(200_001)));
    assert_eq!(told["nodes"][1]["consensus"]["commits"]["p50_us"], 1_500);
    assert_eq!(told["nodes"][1]["consensus"]["syncs"]["max_us"], Value::Null, "nothing was synced yet");
    assert_eq!((&told["nodes"][2]["reachable"], &told["nodes"][2]["consensus"]), (&json!(false), &Value::Null));
    assert_eq!(told["nodes"][2]["reason"], "connection refused");
    let expected = json!([{
        "group": 1, "name": "muster.events/0", "term": 5, "leader": "node1", "without_leader_on": [],
        "elections": 4, "leader_changes": 4, "unapplied": 2,
    }]);
    assert_eq!(told["groups"], expected, "__meta is in term 2, as it should be");

    let shown = world.shown("cluster.consensus", json!({}));
    assert!(
        shown.starts_with("consensus as 2 of 3 nodes tell it\nnode3: unreachable: connection refused\n"),
        "{shown}"
    );
    let row = shown.lines().find(|line| line.starts_with("node2  between heartbeats sent")).unwrap_or_default();
    let sent = ["node2", "between heartbeats sent", "3", "200ms", "200ms", "200ms", "200ms", "1"];
    assert_eq!(cells(row), sent, "{shown}");
    assert!(shown.lines().count() <= 40 && shown.contains("muster.events/0  5"), "{shown}");

    world.no_leader();
    let told = world.value("cluster.consensus", json!({})).unwrap();
    let first = &told["groups"][1];
    assert_eq!((&first["name"], &first["leader"]), (&json!("__meta"), &Value::Null));
    assert_eq!(first["without_leader_on"], json!(["node1", "node2"]));
}

#[test]
fn what_a_node_counts_of_its_consensus_stands_under_its_own_name_in_both_forms() {
    let world = World::new(2);
    let told = world.value("cluster.consensus", json!({})).unwrap();
    let said = &told["nodes"][1]["consensus"];
    let queues = json!({
        "requests": 241, "requests_waiting": 242, "proposals": 243, "rounds": 244, "unapplied": 245,
        "unapplied_max": 246, "log_reads": 247, "questions": 248, "outbox": 249,
    });
    assert_eq!(said["queues"], queues);
    let arrivals = json!({ "control": 261, "bulk": 262, "disk": 263, "vms": 264, "requests": 265 });
    assert_eq!(said["arrivals"], arrivals);
    assert_eq!(said["ticks"], json!({ "passed": 231, "skipped": 232, "pauses": 233 }));
    let elections = json!({
        "pre_votes": 221, "started": 222, "won": 223, "term_changes": 224, "leader_changes": 225, "step_downs": 226,
    });
    assert_eq!(said["elections"], elections);
    let groups = json!({ "all": 251, "led": 252, "without_leader": 253, "recovering": 254, "term_max": 255 });
    assert_eq!(said["groups"], groups);
    assert_eq!(told["nodes"][0]["consensus"]["queues"]["requests"], 141);

    let shown = world.shown("cluster.consensus", json!({}));
    let elections = [
        ("NODE", "node2"),
        ("SINCE", "1m1s"),
        ("GROUPS", "251"),
        ("LED", "252"),
        ("NO LEADER", "253"),
        ("TERM MAX", "255"),
        ("ELECTIONS", "222"),
        ("WON", "223"),
        ("PRE-VOTES", "221"),
        ("TERMS", "224"),
        ("LEADERS", "225"),
        ("STEP-DOWNS", "226"),
        ("SKIPPED TICKS", "232"),
        ("PAUSES", "233"),
    ];
    assert_eq!(under_titles(&shown, "SINCE", "node2"), elections, "{shown}");
    let queues = [
        ("NODE", "node2"),
        ("REQUESTS", "241"),
        ("WAITING", "242"),
        ("PROPOSALS", "243"),
        ("ROUNDS", "244"),
        ("UNAPPLIED", "245"),
        ("WORST", "246"),
        ("LOG READS", "247"),
        ("QUESTIONS", "248"),
        ("OUTBOX", "249"),
    ];
    assert_eq!(under_titles(&shown, "REQUESTS", "node2"), queues, "{shown}");
    let arrivals = [
        ("NODE", "node2"),
        ("NEW REQUESTS", "265"),
        ("FROM PEERS", "261"),
        ("IN BULK", "262"),
        ("FROM DISK", "263"),
        ("FROM VMS", "264"),
    ];
    assert_eq!(under_titles(&shown, "NEW REQUESTS", "node2"), arrivals, "{shown}");
}

#[test]
fn the_status_says_at_which_version_the_cluster_is_and_whether_it_is_held_there() {
    let world = World::new(3);
    assert!(world.shown("cluster.status", json!({})).contains("\ncluster version: 2\n"));
    assert_eq!(world.value("cluster.hold", json!({})).unwrap(), json!({ "active": 2, "held_at": 2 }));
    assert!(world.shown("cluster.status", json!({})).contains("\ncluster version: 2 (held at 2)\n"));
    assert_eq!(world.value("cluster.release", json!({})).unwrap(), json!({ "active": 2, "held_at": null }));
    let version = &world.value("cluster.status", json!({})).unwrap()["version"];
    assert_eq!(*version, json!({ "active": 2, "possible": 2, "held_at": null, "waits_for": [] }));
}

#[test]
fn the_version_has_a_command_of_its_own_that_asks_the_leader() {
    let world = World::new(3);
    assert_eq!(world.shown("cluster.version", json!({})), "cluster version: 2");
    world.value("cluster.hold", json!({})).unwrap();
    assert_eq!(world.shown("cluster.version", json!({})), "cluster version: 2 (held at 2)");
    let held = json!({ "active": 2, "possible": 2, "held_at": 2, "waits_for": [] });
    assert_eq!(world.value("cluster.version", json!({})).unwrap(), held);
    world.no_leader();
    assert_eq!(code(world.value("cluster.version", json!({}))), ErrorCode::NoLeader);
    assert_eq!(world.value("cluster.version", json!({ "stale": true })).unwrap(), held);
}

#[test]
fn nodes_that_keep_the_version_from_rising_are_named() {
    let text = |held_at: Value, waits_for: Value| {
        crate::cluster::version::text(&json!({ "active": 1, "held_at": held_at, "waits_for": waits_for }))
    };
    let waits = "cluster version: 1 (rises when a, b can more: upgrade muster there)";
    assert_eq!(text(Value::Null, json!(["a", "b"])), waits);
    assert_eq!(text(json!(1), json!(["b"])), "cluster version: 1 (held at 1, and b can less than the others)");
}

#[test]
fn the_status_warns_of_nodes_that_do_not_keep_one_pace_and_says_which() {
    let world = World::new(4);
    let pace = |interval, timeout| Pace { heartbeat_interval: Millis(interval), election_timeout: Millis(timeout) };
    // The fourth one is older and does not say.
    (1..=3).for_each(|node| world.pace(node, pace(150, 1_000)));
    assert_eq!(world.value("cluster.status", json!({})).unwrap()["warnings"], json!([]));
    assert!(!world.shown("cluster.status", json!({})).contains("warning"));
    world.pace(2, pace(300, 2_000));
    let warning = "the nodes do not keep one pace: node1, node3 with heartbeats every 150 ms and an election timeout of \
                   1000 ms; node2 with heartbeats every 300 ms and an election timeout of 2000 ms; start all with the same \
                   --heartbeat-interval-ms and --election-timeout-ms, or leaders that are alive may be replaced";
    assert_eq!(world.value("cluster.status", json!({})).unwrap()["warnings"], json!([warning]));
    let shown = world.shown("cluster.status", json!({}));
    assert!(shown.contains(&format!("\nwarning: {warning}\n")), "{shown}");
}

#[test]
fn a_token_leads_back_to_the_cluster_and_only_its_hash_stays() {
    let world = World::new(2);
    let made = world.value("token.create", json!({ "uses": 3 })).unwrap();
    let token: wire::JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    assert_eq!((token.cluster.0, token.id, token.secret), ([0xab; 16], made["id"].as_u64().unwrap(), [7; 32]));
    assert_eq!(
        token.seeds.iter().map(|s| s.direct[0].as_str()).collect::<Vec<_>>(),
        ["10.0.0.1:7401", "10.0.0.2:7401"]
    );
    assert_eq!(made["command"], format!("muster join {token} --peer-listen ADDR:PORT"));
    let listed = world.value("token.list", json!({})).unwrap();
    assert_eq!((&listed["tokens"][0]["uses_left"], &listed["tokens"][0]["state"]), (&json!(3), &json!("usable")));
    assert!(!listed.to_string().contains(made["token"].as_str().unwrap()));
    world.value("token.revoke", json!({ "id": made["id"] })).unwrap();
    assert_eq!(code(world.value("token.revoke", json!({ "id": made["id"] }))), ErrorCode::NotFound);
}

#[test]
fn tokens_are_listed_as_usable_used_or_expired() {
    let world = World::new(2);
    let states = || {
        let listed = world.value("token.list", json!({})).unwrap();
        let tokens = listed["tokens"].as_array().unwrap().iter();
        tokens.map(|it| json!([it["state"], it["uses_left"], it["expires_in_ms"]])).collect::<Vec<_>>()
    };
    let made = world.value("token.create", json!({ "expires_in_minutes": 2 })).unwrap();
    world.value("token.create", json!({ "uses": 3, "expires_in_minutes": 1 })).unwrap();
    assert_eq!(states(), [json!(["usable", 1, 120_000]), json!(["usable", 3, 60_000])]);

    let member = wire::Member {
        address: wire::NodeAddress { endpoint: base::EndpointId([9; 32]), ..wire::NodeAddress::default() },
        versions: base::VersionRange::BINARY,
        ..wire::Member::default()
    };
    let admit = Command::AdmitNode { token_id: made["id"].as_u64().unwrap(), secret: [7; 32], member };
    let admitted = world.apply(admit);
    assert!(matches!(admitted, CommandResult::NodeAdmitted { .. }), "{admitted:?}");
    world.pass(Millis(60_000));
    assert_eq!(states(), [json!(["used", 0, 60_000]), json!(["usable", 3, 0])], "it admits to the last millisecond");
    world.pass(Millis(1));
    assert_eq!(states(), [json!(["used", 0, 59_999]), json!(["expired", 3, 0])]);
    assert!(world.shown("token.list", json!({})).contains("expired"));
    world.pass(Millis(60_000));
    assert_eq!(states()[0], json!(["used", 0, 0]), "that it was used says more");
}

#[test]
fn topics_live_and_die() {
    let world = World::new(3);
    let made = world.value("topic.create", json!({ "name": "orders", "partitions": 2 })).unwrap();
    assert_eq!((&made["partitions"], &made["replication_factor"]), (&json!(2), &Value::Null));
    assert_eq!(code(world.value("topic.create", json!({ "name": "orders" }))), ErrorCode::AlreadyExists);
    let described = world.value("topic.describe", json!({ "name": "orders" })).unwrap();
    assert_eq!(described["partitions"][1]["leader"], "node1");
    assert_eq!(described["partitions"][1]["high_watermark"], 5);
    let shown = world.shown("topic.describe", json!({ "name": "orders" }));
    assert!(shown.contains("\nage         0ms\n"), "{shown}");
    for (input, field) in [
        (json!({ "name": "a b" }), "name"),
        (json!({ "name": "x", "partitions": 0 }), "partitions"),
        (json!({ "name": "x", "config": { "retention.sm": "1" } }), "config"),
        (json!({ "name": "x", "config": { "retention.ms": "soon" } }), "config"),
    ] {
        let error = world.value("topic.create", input).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::InvalidArgument, Some(field)), "{error:?}");
    }
    let error = world.value("topic.delete", json!({ "name": "order" })).unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("did you mean `orders`?"));
    world.value("topic.delete", json!({ "name": "orders" })).unwrap();
    assert_eq!(code(world.value("topic.describe", json!({ "name": "orders" }))), ErrorCode::NotFound);
    assert_eq!(code(world.value("topic.delete", json!({ "name": "muster.events" }))), ErrorCode::InvalidArgument);
}

#[test]
fn consoles_belong_to_their_vms() {
    let world = World::new(1);
    let error = world.value("topic.create", json!({ "name": "vm.web.console" })).unwrap_err();
    let says = "`name` is refused: the topic name vm.web.console is kept for the console of a VM named web: only muster \
                makes and writes it";
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::InvalidArgument, says));
    world.value("vm.create", json!({ "name": "web" })).unwrap();
    let error = world.value("topic.delete", json!({ "name": "vm.web.console" })).unwrap_err();
    let says = "vm.web.console is the console of VM web: it can be deleted once the VM is";
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::FailedPrecondition, says));
    world.value("vm.delete", json!({ "name": "web" })).unwrap();
    world.value("topic.delete", json!({ "name": "vm.web.console" })).unwrap();
}

#[test]
fn a_vm_is_recorded_with_its_defaults_and_shown() {
    let world = World::new(2);
    let made = world.value("vm.create", json!({ "name": "web" })).unwrap();
    assert_eq!((&made["cpus"], &made["memory_mib"], &made["image"]), (&json!(1), &json!(128), &json!("minimal")));
    assert_eq!((&made["phase"], &made["node"]), (&json!("Pending"), &Value::Null));
    world.vm_events("web", 2, &[VmReportEvent::Started, VmReportEvent::Ready]);
    let shown = world.shown("vm.list", json!({}));
    let row: Vec<_> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["web", "Running", "node2", "1"], "{shown}");
    assert_eq!(world.value("vm.inspect", json!({ "name": "web" })).unwrap()["placement"], "the only one");
    let shown = world.shown("vm.inspect", json!({ "name": "web" }));
    let expect = "\
name           web
id             1
phase          Running
in it for      0ms
desired        running
node           node2
placement      the only one
epoch          1
incarnation    1
restarts       0
cpus           1
memory         128 MiB
image          minimal
console topic  vm.web.console
age            0ms";
    assert_eq!(shown, expect);
    assert_eq!(world.value("vm.stop", json!({ "name": "web" })).unwrap()["phase"], "Stopping");
    assert_eq!(world.value("vm.delete", json!({ "name": "web" })).unwrap()["gone"], false);
}

#[test]
fn mistaken_vms_are_refused_with_what_to_write() {
    let world = World::new(2);
    world.value("vm.create", json!({ "name": "web" })).unwrap();
    for (operation, input, expect, says) in [
        ("vm.create", json!({ "name": "web" }), ErrorCode::AlreadyExists, "VM web exists already"),
        ("vm.create", json!({ "name": "Web" }), ErrorCode::InvalidArgument, "`name` is refused"),
        (
            "vm.create",
            json!({ "name": "a", "memory_mib": 1 }),
            ErrorCode::InvalidArgument,
            "`memory_mib` must be at least 80",
        ),
        ("vm.create", json!({ "name": "a", "cpus": 257 }), ErrorCode::InvalidArgument, "`cpus` must be at most 256"),
        ("vm.create", json!({ "name": "a", "node": "node9" }), ErrorCode::NotFound, "no node is named \"node9\""),
        (
            "vm.create",
            json!({ "name": "a", "image": "ubuntu" }),
            ErrorCode::InvalidArgument,
            "`image` is refused: no image is called \"ubuntu\", there is minimal, full",
        ),
        ("vm.stop", json!({ "name": "wbe" }), ErrorCode::NotFound, "there is no VM \"wbe\""),
        ("vm.inspect", json!({ "name": "x" }), ErrorCode::NotFound, "there is no VM \"x\""),
        ("vm.delete", json!({ "name": "x" }), ErrorCode::NotFound, "there is no VM \"x\""),
    ] {
        let error = world.value(operation, input).unwrap_err();
        assert_eq!(error.code, expect, "{error:?}");
        assert!(error.message.starts_with(says), "{error:?}");
    }
    assert_eq!(world.value("vm.list", json!({})).unwrap()["vms"].as_array().unwrap().len(), 1, "nothing was recorded");
    for (image, hint) in [("minimla", "did you mean `minimal`?"), ("/srv/disk.img", "an image has a name, not a path")]
    {
        let error = world.value("vm.create", json!({ "name": "a", "image": image })).unwrap_err();
        assert!(error.hint.as_deref().unwrap_or_default().starts_with(hint), "{error:?}");
    }
    world.value("vm.create", json!({ "name": "a", "image": "full" })).unwrap();
}

#[test]
fn without_a_leader_writes_fail_and_reads_say_how_to_go_on() {
    let world = World::new(3);
    world.no_leader();
    assert_eq!(code(world.value("vm.create", json!({ "name": "web" }))), ErrorCode::NoLeader);
    let error = world.value("vm.list", json!({})).unwrap_err();
    assert!(error.hint.unwrap().contains("--stale"));
    assert!(world.value("vm.list", json!({ "stale": true })).is_ok());
    let status = world.value("cluster.status", json!({})).unwrap();
    assert_eq!(status["meta"]["leader"], Value::Null);
}

#[test]
fn logs_need_the_topic_but_not_the_vm() {
    let world = World::new(1);
    let error = world.items("vm.logs", json!({ "name": "web" })).unwrap_err();
    assert_eq!(error.message, "there is no VM \"web\"");
    world.value("vm.create", json!({ "name": "web" })).unwrap();
    world.value("vm.delete", json!({ "name": "web" })).unwrap();
    assert_eq!(code(world.value("vm.inspect", json!({ "name": "web" }))), ErrorCode::NotFound, "it had no node: gone");
    let lines = world.items("vm.logs", json!({ "name": "web", "tail": 3, "follow": true })).unwrap();
    assert_eq!(lines[0].as_ref().unwrap()["line"], "vm.web.console Tail(3) true");
}

#[test]
fn waiting_shows_each_change_and_how_it_ended() {
    let world = World::new(1);
    world.patient();
    world.value("vm.create", json!({ "name": "web" })).unwrap();
    let changes = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| world.items("vm.wait", json!({ "name": "web" })).unwrap());
        world.vm_events("web", 1, &[VmReportEvent::Started, VmReportEvent::Ready]);
        waiting.join().unwrap()
    });
    let last = changes.last().unwrap().as_ref().unwrap();
    assert_eq!(last["vm"]["phase"], "Running");

    world.value("vm.create", json!({ "name": "bad" })).unwrap();
    world.vm_events("bad", 1, &[VmReportEvent::Failed { reason: "no such image".into() }]);
    let changes = world.items("vm.wait", json!({ "name": "bad" })).unwrap();
    let error = changes.last().unwrap().as_ref().unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::FailedPrecondition, "VM bad failed: no such image"));

    let world = World::new(1);
    world.value("vm.create", json!({ "name": "web" })).unwrap();
    let changes = world.items("vm.wait", json!({ "name": "web", "timeout_s": 5 })).unwrap();
    let error = changes.last().unwrap().as_ref().unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::DeadlineExceeded, "after 5 s VM web is Pending"));
    let gone = world.items("vm.wait", json!({ "name": "never", "until": "gone" })).unwrap();
    assert_eq!(gone[0].as_ref().unwrap()["vm"], Value::Null);
}

#[test]
fn nodes_go_as_ordered_and_orders_that_make_no_sense_say_what_does() {
    let world = World::new(4);
    let order = |operation: &str, input: Value| world.value(operation, input);
    let drained = order("node.drain", json!({ "node": "node2" })).unwrap();
    assert_eq!((&drained["lifecycle"], &drained["id"]), (&json!("draining"), &json!(2)));
    assert_eq!(order("node.resume", json!({ "node": "2" })).unwrap()["lifecycle"], "active");
    assert_eq!(code(order("node.drain", json!({ "node": "node9" }))), ErrorCode::NotFound);

    let alive = order("node.remove", json!({ "node": "node3" })).unwrap_err();
    assert_eq!(alive.code, ErrorCode::FailedPrecondition);
    assert!(alive.hint.unwrap().contains("node leave node3"));
    world.mood(3, Mood::Hangs);
    let dead = order("node.leave", json!({ "node": "node3" })).unwrap_err();
    assert!(dead.hint.unwrap().contains("node remove node3"));
    assert_eq!(order("node.remove", json!({ "node": "node3" })).unwrap()["lifecycle"], "removing");
    assert_eq!(code(order("node.resume", json!({ "node": "node3" }))), ErrorCode::FailedPrecondition);

    order("topic.create", json!({ "name": "three", "replication_factor": 3 })).unwrap();
    let short = order("node.leave", json!({ "node": "node4" })).unwrap_err();
    assert!(
        short.message.contains("1 topic would have fewer replicas") && short.message.contains("three"),
        "{short:?}"
    );
    assert_eq!(order("node.leave", json!({ "node": "node4", "force": true })).unwrap()["lifecycle"], "leaving");
    assert_eq!(code(order("node.replace", json!({ "node": "node1", "with": "node4" }))), ErrorCode::FailedPrecondition);
    assert_eq!(order("node.replace", json!({ "node": "node1", "with": "node2" })).unwrap()["lifecycle"], "leaving");
    let listed = world.value("node.list", json!({})).unwrap();
    let lifecycles: Vec<_> = listed["nodes"].as_array().unwrap().iter().map(|n| n["lifecycle"].clone()).collect();
    assert_eq!(lifecycles, ["leaving", "active", "removing", "leaving"]);
}

#[test]
fn a_node_that_leaves_already_is_replaced_and_said_again_once_it_is_gone_that_is_no_failure() {
    let world = World::new(3);
    let input = |with: &str| json!({ "node": "node3", "with": with });
    world.value("node.leave", json!({ "node": "node3" })).unwrap();
    assert_eq!(world.value("node.replace", input("node2")).unwrap()["lifecycle"], "leaving");
    assert_eq!(crate::Core::metadata(&*world).nodes[&NodeId(3)].successor, Some(NodeId(2)));
    assert_eq!(code(world.value("node.replace", input("node1"))), ErrorCode::FailedPrecondition);

    assert_eq!(world.apply(Command::ForgetNode { node: NodeId(3) }), CommandResult::Done);
    assert_eq!(world.value("node.replace", input("node2")).unwrap()["lifecycle"], "gone");
    assert!(world.shown("node.replace", input("node2")).starts_with("node3 is gone"));
    assert_eq!(code(world.value("node.replace", input("node9"))), ErrorCode::NotFound);
}
