//! Who may join, and who is told why not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Finished, Folder, Node, Start, free_port, wait_until};

use crate::support::{PATIENCE, machine_shared, wait_tolerant};

/// A token made for a minute has expired after this at the latest.
const EXPIRY_LIMIT: Duration = Duration::from_secs(70);

#[test]
fn tokens_that_are_used_up_revoked_damaged_or_expired_admit_nobody() {
    let machine = machine_shared();
    Folder::scenario("tokens", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let expiring = cluster.nodes[0].api().post("/v1/tokens", &json!({ "expires_in_minutes": 1 }))?.ok()?;
        let expires_ms = expiring["expires_ms"].as_u64().context("no time of expiry")?;
        let expiring = expiring["token"].as_str().context("no token")?.to_owned();

        let used = cluster.token(1)?;
        cluster.add()?.start(&Start::Join(used.clone()))?;
        cluster.wait_ready(PATIENCE)?;
        let stranger = Node::new("stranger", folder.path())?;
        refused(&cluster, &stranger, &used, &["used already"])?;

        let revoked = cluster.nodes[0].api().post("/v1/tokens", &json!({}))?.ok()?;
        cluster.nodes[0].api().delete(&format!("/v1/tokens/{}", revoked["id"]))?.ok()?;
        refused(
            &cluster,
            &stranger,
            revoked["token"].as_str().context("no token")?,
            &["is unknown here or was revoked"],
        )?;

        let fresh = cluster.token(1)?;
        refused(&cluster, &stranger, &fresh[..fresh.len() - 3], &["damaged"])?;
        refused(&cluster, &stranger, "not-a-token", &["muster token create"])?;

        // Nothing happens here for most of a minute: others may have the machine alone.
        drop(machine);
        wait_until(EXPIRY_LIMIT, "a minute has passed", || {
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            ensure!(now_ms > u128::from(expires_ms), "it is {now_ms}, the token expires at {expires_ms}");
            Ok(())
        })?;
        let _machine = machine_shared();
        refused(&cluster, &stranger, &expiring, &["expired"])?;
        // After all that the door is still open for who may enter.
        cluster.add()?.start(&Start::Join(fresh))?;
        cluster.wait_ready(PATIENCE)?;
        ensure!(cluster.nodes[0].members()?.len() == 3, "the members are {:?}", cluster.nodes[0].members()?);
        Ok(())
    });
}

#[test]
fn who_asks_to_join_while_nobody_leads_is_admitted_by_the_next_leader() {
    let _machine = machine_shared();
    Folder::scenario("join-without-leader", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let token = cluster.token(1)?;
        let leader = cluster.meta_leader(PATIENCE)?;
        cluster.nodes[leader].kill()?;
        cluster.add()?.start(&Start::Join(token))?;
        cluster.nodes[3].wait_ready(PATIENCE)?;
        // The one that was away learns of it.
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        let members = cluster.nodes[leader].members()?;
        ensure!(members.len() == 4, "the members are {members:?}");
        Ok(())
    });
}

#[test]
fn a_node_stays_in_its_cluster() {
    let _machine = machine_shared();
    Folder::scenario("foreign", |folder| {
        let mut ours = Cluster::start(folder, 2)?;
        let mut theirs = Node::new("theirs", folder.path())?;
        theirs.start(&Start::Up)?;
        theirs.wait_ready(PATIENCE)?;
        let foreign = theirs.api().post("/v1/tokens", &json!({}))?.ok()?;
        let foreign = foreign["token"].as_str().context("no token")?.to_owned();

        // A member does not change over, and does not mix the two.
        ours.nodes[1].stop()?;
        let ended = ours.nodes[1].start_again(&Start::Join(foreign))?;
        ensure!(!ended.status.success(), "it joined a second cluster:\n{}", ended.text());
        ensure!(ended.text().contains("the token is for cluster"), "the reason is not given:\n{}", ended.text());
        ensure!(theirs.members()?.len() == 1, "they took in {:?}", theirs.members()?);

        // Nor does a full data directory form a cluster of its own.
        ours.nodes[1].start(&Start::Up)?;
        ours.wait_ready(PATIENCE)?;
        ensure!(ours.nodes[1].members()?.len() == 2, "it sees {:?}", ours.nodes[1].members()?);
        Ok(())
    });
}

#[test]
fn a_node_that_lost_its_data_and_kept_its_key_is_refused_until_it_is_given_up() {
    let _machine = machine_shared();
    Folder::scenario("impostor", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let token = cluster.token(2)?;
        cluster.nodes[2].kill()?;
        // Whatever it knew of its cluster is gone, but for who it is.
        let data_dir = cluster.nodes[2].data_dir.clone();
        std::fs::remove_dir_all(data_dir.join("journal"))?;
        let ended = cluster.nodes[2].start_again(&Start::Up)?;
        ensure!(!ended.status.success(), "it runs without its data:\n{}", ended.text());
        ensure!(ended.text().contains("its data is gone"), "the reason is not given:\n{}", ended.text());
        std::fs::remove_file(data_dir.join("cluster"))?;
        // Started as the first host of a cluster is, it forms none of its own, however often.
        for _ in 0..2 {
            let ended = cluster.nodes[2].start_again(&Start::Up)?;
            ensure!(!ended.status.success(), "it runs without its data:\n{}", ended.text());
            for expect in ["identity.key is there", "neither comes back", "it was told to be called node3"] {
                ensure!(ended.text().contains(expect), "it does not say {expect:?}:\n{}", ended.text());
            }
        }
        let ended = cluster.nodes[2].start_again(&Start::Join(token.clone()))?;
        ensure!(!ended.status.success(), "it was let in:\n{}", ended.text());
        for expect in ["whose data is gone does not come back", "muster node remove node3", "join anew"] {
            ensure!(ended.text().contains(expect), "it does not say {expect:?}:\n{}", ended.text());
        }
        // As it was told.
        let removed = cluster.nodes[0].cli(&["node", "remove", "node3"])?;
        ensure!(removed.status.success(), "{}", removed.text());
        wait_until(PATIENCE, "node3 is forgotten", || {
            let members = cluster.nodes[0].members()?;
            ensure!(members.iter().all(|member| member["name"] != "node3"), "{members:?}");
            Ok(())
        })?;
        std::fs::remove_dir_all(&data_dir)?;
        cluster.nodes[2].start(&Start::Join(token))?;
        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[0])
    });
}

#[test]
fn a_host_that_is_told_of_its_cluster_forms_no_other_one_when_all_its_data_is_gone() {
    let _machine = machine_shared();
    Folder::scenario("wiped-founder", |folder| {
        let mut cluster = Cluster::start(folder, 2)?;
        let used = cluster.token(1)?;
        cluster.add()?.start(&Start::Join(used.clone()))?;
        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[0])?;
        // As README advises: a token of its own cluster, used up by now, in the first host's file.
        let file = Start::Config(cluster.nodes[0].write_config(&format!("join = \"{used}\"\n"))?);
        cluster.nodes[0].stop()?;
        cluster.nodes[0].start(&file)?;
        cluster.wait_ready(PATIENCE)?;

        cluster.nodes[0].kill()?;
        let data_dir = cluster.nodes[0].data_dir.clone();
        for (told_by, start) in [("a token", file), ("--peer", Start::Up)] {
            std::fs::remove_dir_all(&data_dir)?;
            cluster.nodes[0].arguments.clear();
            if start == Start::Up {
                cluster.nodes[0].arguments = vec!["--peer".to_owned(), cluster.nodes[1].peer.to_string()];
            }
            let ended = cluster.nodes[0].start_again(&start)?;
            ensure!(!ended.status.success(), "told by {told_by}, it runs without its data:\n{}", ended.text());
            ensure!(!data_dir.join("cluster").exists(), "told by {told_by}, it goes on by itself at the next start");
        }
        cluster.nodes[0].arguments.clear();

        let removed = cluster.nodes[1].cli(&["node", "remove", "node1"])?;
        ensure!(removed.status.success(), "{}", removed.text());
        wait_until(PATIENCE, "node1 is forgotten", || {
            let members = cluster.nodes[1].members()?;
            ensure!(members.iter().all(|member| member["name"] != "node1"), "{members:?}");
            Ok(())
        })?;
        let token = cluster.token(1)?;
        cluster.nodes[0].start(&Start::Join(token))?;
        cluster.wait_ready(PATIENCE)?;
        ensure!(cluster.nodes[1].members()?.len() == 3, "the members are {:?}", cluster.nodes[1].members()?);
        wait_tolerant(&cluster.nodes[1])
    });
}

#[test]
fn a_first_start_that_failed_is_simply_repeated() {
    let _machine = machine_shared();
    Folder::scenario("first-start", |folder| {
        let mut node = Node::new("node1", folder.path())?;
        let taken = UdpSocket::bind(node.peer).context("the port is free")?;
        let ended = node.start_again(&Start::Up)?;
        ensure!(!ended.status.success(), "it runs without its port:\n{}", ended.text());
        ensure!(node.data_dir.join("identity.key").exists(), "it had no key yet: this shows nothing\n{}", ended.text());
        drop(taken);
        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)?;
        ensure!(node.id()? == 1, "the members are {:?}", node.members()?);
        Ok(())
    });
}

#[test]
fn a_configuration_file_with_a_token_makes_a_member_and_later_starts_with_it_no_second_one() {
    let _machine = machine_shared();
    Folder::scenario("join-by-file", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let token = cluster.token(1)?;
        let node = cluster.add()?;
        let file = Start::Config(node.write_config(&format!("join = \"{token}\"\n"))?);
        node.start(&file)?;
        cluster.wait_ready(PATIENCE)?;
        let before = identities(&cluster.nodes[0])?;
        ensure!(before.len() == 2 && identities(&cluster.nodes[1])? == before, "the members are {before:?}");

        // The file stays as it is, the token is used up, and a member needs none: after a stop, and after a crash.
        cluster.nodes[1].stop()?;
        cluster.nodes[1].start(&file)?;
        cluster.wait_ready(PATIENCE)?;
        cluster.nodes[1].kill()?;
        cluster.nodes[1].start(&file)?;
        cluster.wait_ready(PATIENCE)?;
        for node in &cluster.nodes {
            let after = identities(node)?;
            ensure!(after == before, "the members were {before:?}, and {} now sees {after:?}", node.name);
        }
        let tokens = cluster.nodes[1].api().get("/v1/tokens")?.ok()?;
        ensure!(tokens["tokens"][0]["state"] == "used", "the tokens are {tokens}");
        cluster.nodes[1].kcat().produce("t", [(&b"k"[..], &b"v"[..])], &[], &[])?;
        ensure!(cluster.nodes[0].kcat().consume("t")?.len() == 1, "the two are no cluster any more");
        Ok(())
    });
}

#[test]
fn two_nodes_that_want_one_name_get_two_and_an_order_by_name_reaches_who_has_it() {
    let _machine = machine_shared();
    Folder::scenario("one-name", |folder| {
        let cluster = Cluster::start(folder, 1)?;
        // As hosts that were made from one image, or two nodes on one host, that take its name.
        let elsewhere = folder.path().join("elsewhere");
        std::fs::create_dir(&elsewhere)?;
        let mut second = Node::new("node1", &elsewhere)?;
        second.start(&Start::Join(cluster.token(1)?))?;
        second.wait_ready(PATIENCE)?;
        wait_until(PATIENCE, "it shows how it is called", || {
            let shown = std::fs::read_to_string(elsewhere.join("node1.out"))?;
            ensure!(shown.contains("node-2 (node 2) is ready"), "{shown}");
            Ok(())
        })?;
        ensure!(second.log().contains("another member is called node1"), "it does not say so:\n{}", second.log());

        // Once the cluster has its new address, it has also heard again how it wants to be called.
        second.stop()?;
        second.kafka = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        second.start(&Start::Up)?;
        second.wait_ready(PATIENCE)?;
        let names = wait_until(PATIENCE, "the second node has said where it is", || {
            let members = cluster.nodes[0].members()?;
            let at = second.kafka.to_string();
            ensure!(members.iter().any(|member| member["kafka"] == at.as_str()), "{members:?}");
            let name = |member: &Value| (member["id"].to_string(), member["name"].to_string());
            Ok(members.iter().map(name).collect::<BTreeMap<_, _>>())
        })?;
        let expected = [("1", "\"node1\""), ("2", "\"node-2\"")].map(|(id, name)| (id.to_owned(), name.to_owned()));
        ensure!(names == BTreeMap::from(expected), "the members are {names:?}");
        for (name, id) in [("node1", 1), ("node-2", 2)] {
            let drained = second.cli_json(&["node", "drain", name])?;
            ensure!(drained["id"] == id && drained["lifecycle"] == "draining", "{drained}");
            second.cli_json(&["node", "resume", name])?;
        }
        Ok(())
    });
}

/// Name, id and key of every member, as that node sees them.
fn identities(node: &Node) -> anyhow::Result<BTreeSet<[String; 3]>> {
    let members = node.members()?;
    Ok(members.iter().map(|member| ["name", "id", "endpoint"].map(|field| member[field].to_string())).collect())
}

/// A stranger is refused with one of `reasons`, on its own side and, if the token was one, in a member's log; and it
/// is not among the members afterwards.
fn refused(cluster: &Cluster, stranger: &Node, token: &str, reasons: &[&str]) -> anyhow::Result<()> {
    let ended: Finished = stranger.start_again(&Start::Join(token.to_owned()))?;
    let text = ended.text();
    ensure!(!ended.status.success(), "it was let in:\n{text}");
    ensure!(reasons.iter().any(|reason| text.contains(reason)), "none of {reasons:?} is given as the reason:\n{text}");
    let members = cluster.nodes[0].members()?;
    ensure!(members.iter().all(|member| member["name"] != "stranger"), "the members are {members:?}");
    let heard = || cluster.nodes.iter().any(|node| reasons.iter().any(|reason| node.log().contains(reason)));
    let was_a_token = token.starts_with("muster1_") && !reasons.contains(&"damaged");
    ensure!(!was_a_token || heard(), "no member logged one of {reasons:?}");
    Ok(())
}
