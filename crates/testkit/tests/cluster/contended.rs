//! Linearizability of the key-value store: clients contend for a few keys, through every node, while leaders die. What they
//! were told must be what one copy could have told them ([`linear`]).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use linear::{History, Key, KeyOp, KeyTold, Nanos, Verdict, judge};
use serde_json::json;
use testkit::{Answer, Api, Cluster, Folder, Start, nobody_listened, wait_until};

use crate::support::{PATIENCE, machine_shared, wait_tolerant};

/// Few, so that clients meet at each of them.
const KEYS: usize = 3;
const CLIENTS: usize = 6;
/// How often a leader dies.
const DEATHS: usize = 2;
/// So many calls are answered between what happens to leaders.
const CALLS_BETWEEN: u64 = 300;
/// What became of a call without an answer by then is unknown.
const DEADLINE: Duration = Duration::from_secs(4);
/// Steps that the search may take per key: some times what is needed.
const STEPS_MAX: u64 = 2_000_000;

/// One call of a client.
#[derive(Clone, Debug)]
struct Call {
    client: usize,
    key: usize,
    what: KeyOp,
    invoked: Nanos,
    fate: Fate,
    /// When the client knew of it.
    known: Nanos,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Told(KeyTold),
    /// Nothing was done, for certain.
    Nothing,
    /// It may have been done, or may be done later.
    Unknown,
}

/// What the clients have in common.
struct Contest {
    began: Instant,
    stop: AtomicBool,
    answered: AtomicU64,
    /// The last value that was given out: nobody else uses it.
    value: AtomicU64,
    /// What each key held when somebody heard of it last; 0: nothing. A good guess of what it holds.
    heard: [AtomicU64; KEYS],
}

#[test]
fn what_clients_are_told_of_contended_keys_fits_one_copy_while_leaders_die() {
    let _machine = machine_shared();
    Folder::scenario("contended", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let nodes: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.api).collect();
        let contest = Contest::new();
        let calls = std::thread::scope(|scope| {
            let (nodes, contest) = (&nodes, &contest);
            let clients: Vec<_> = (0..CLIENTS).map(|it| scope.spawn(move || contest.contend(it, nodes))).collect();
            let died = leaders_die(&mut cluster, contest);
            contest.stop.store(true, Ordering::SeqCst);
            let calls = clients.into_iter().map(|it| it.join().unwrap_or_else(|_| bail!("a client panicked")));
            let calls: anyhow::Result<Vec<_>> = calls.collect();
            died.and(calls)
        });
        let mut calls = calls?.concat();
        // What was acknowledged is there, whoever is asked.
        for (node, key) in (0..nodes.len()).flat_map(|node| (0..KEYS).map(move |key| (node, key))) {
            let last = contest.call(&Api::at(nodes[node]), (CLIENTS, key), KeyOp::Look)?;
            ensure!(matches!(last.fate, Fate::Told(_)), "{last:?}");
            calls.push(last);
        }
        std::fs::write(folder.path().join("calls"), format!("{calls:#?}"))?;
        ensure_contended(&calls)?;
        ensure_linearizable(&calls)
    });
}

fn leaders_die(cluster: &mut Cluster, contest: &Contest) -> anyhow::Result<()> {
    for _ in 0..DEATHS {
        contest.wait_for_more()?;
        wait_tolerant(&cluster.nodes[0])?;
        let leader = cluster.meta_leader(PATIENCE)?;
        cluster.nodes[leader].kill()?;
        // By the next one, before the dead one is back.
        contest.wait_for_more()?;
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
    }
    contest.wait_for_more()
}

impl Contest {
    fn new() -> Contest {
        Contest {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            value: AtomicU64::new(0),
            heard: Default::default(),
        }
    }

    fn now(&self) -> Nanos {
        Nanos::try_from(self.began.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    fn wait_for_more(&self) -> anyhow::Result<()> {
        let before = self.answered.load(Ordering::SeqCst);
        wait_until(PATIENCE, &format!("{CALLS_BETWEEN} more calls are answered"), || {
            let more = self.answered.load(Ordering::SeqCst) - before;
            ensure!(more >= CALLS_BETWEEN, "{more} were");
            Ok(())
        })
    }

    /// One client: call after call, through one node after the other, until it is to stop.
    fn contend(&self, client: usize, nodes: &[SocketAddr]) -> anyhow::Result<Vec<Call>> {
        let apis: Vec<Api> = nodes.iter().map(|node| Api::with_deadline(*node, DEADLINE)).collect();
        let mut calls = Vec::new();
        for step in client.. {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            let (key, node) = (step % KEYS, (step / KEYS + client) % apis.len());
            let call = self.call(&apis[node], (client, key), self.choose(step, key))?;
            if let Fate::Told(told) = call.fate {
                self.hear(key, call.what, told);
            }
            calls.push(call);
        }
        Ok(calls)
    }

    /// Some of everything, most of it on a condition.
    fn choose(&self, step: usize, key: usize) -> KeyOp {
        let value = || self.value.fetch_add(1, Ordering::SeqCst) + 1;
        let guess = || Some(self.heard[key].load(Ordering::SeqCst)).filter(|heard| *heard > 0);
        match step % 8 {
            0 => KeyOp::Put(value()),
            1 | 4 | 6 => KeyOp::Cas(guess(), value()),
            3 => KeyOp::Delete,
            _ => KeyOp::Look,
        }
    }

    fn hear(&self, key: usize, what: KeyOp, told: KeyTold) {
        let holds = match (what, told) {
            (KeyOp::Put(value) | KeyOp::Cas(_, value), KeyTold::Done) => value,
            (_, KeyTold::Is(value)) => value.unwrap_or(0),
            (_, KeyTold::Deleted(_)) => 0,
            _ => return,
        };
        self.heard[key].store(holds, Ordering::SeqCst);
    }

    fn call(&self, api: &Api, (client, key): (usize, usize), what: KeyOp) -> anyhow::Result<Call> {
        let invoked = self.now();
        let said = ask(api, &format!("/v1/kv/contended-{key}"), what);
        let known = self.now();
        let fate = fate_of(what, said)?;
        if matches!(fate, Fate::Told(_)) {
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Call { client, key, what, invoked, fate, known })
    }
}

fn ask(api: &Api, path: &str, what: KeyOp) -> anyhow::Result<Answer> {
    let cas = format!("{path}/cas");
    match what {
        KeyOp::Put(value) => api.put(path, &json!({ "value": value.to_string() })),
        KeyOp::Cas(None, value) => api.post(&cas, &json!({ "value": value.to_string(), "revision": 0 })),
        KeyOp::Cas(Some(expected), value) => {
            api.post(&cas, &json!({ "value": value.to_string(), "expect": expected.to_string() }))
        }
        KeyOp::Delete => api.delete(path),
        KeyOp::Look => api.get(path),
    }
}

/// What became of a call, by what was said of it.
///
/// # Errors
/// If that is no answer to it.
fn fate_of(what: KeyOp, said: anyhow::Result<Answer>) -> anyhow::Result<Fate> {
    let answer = match said {
        Ok(answer) => answer,
        Err(error) if nobody_listened(&error) => return Ok(Fate::Nothing),
        Err(_) => return Ok(if what == KeyOp::Look { Fate::Nothing } else { Fate::Unknown }),
    };
    let (body, code) = (&answer.body, answer.body["code"].as_str().unwrap_or_default());
    let told = match (what, answer.status, code) {
        (KeyOp::Look, 200, _) => {
            let value = body["value"].as_str().and_then(|value| value.parse::<u64>().ok());
            KeyTold::Is(Some(value.with_context(|| format!("nobody put {body}"))?))
        }
        (KeyOp::Look, 404, "not_found") => KeyTold::Is(None),
        (KeyOp::Delete, 200, _) => KeyTold::Deleted(body["deleted"].as_u64().with_context(|| body.to_string())?),
        (KeyOp::Put(_) | KeyOp::Cas(..), 200, _) => KeyTold::Done,
        (KeyOp::Cas(..), 409, "failed_precondition") => KeyTold::Other,
        // Said before anything was proposed.
        (_, _, "no_leader" | "not_leader" | "busy" | "unknown_session") => return Ok(Fate::Nothing),
        (_, _, "deadline_exceeded" | "leader_changed" | "unreachable" | "shutting_down") => {
            return Ok(if what == KeyOp::Look { Fate::Nothing } else { Fate::Unknown });
        }
        _ => bail!("{what:?} was answered with {answer:?}"),
    };
    Ok(Fate::Told(told))
}

/// Everything that may come of a contest did come of it; otherwise a history says little.
fn ensure_contended(calls: &[Call]) -> anyhow::Result<()> {
    let count = |of: &dyn Fn(&Call) -> bool| calls.iter().filter(|call| of(call)).count();
    let cas = |told| count(&move |call: &Call| matches!(call.what, KeyOp::Cas(..)) && call.fate == Fate::Told(told));
    let found = count(&|call: &Call| matches!(call.fate, Fate::Told(KeyTold::Is(Some(_)))));
    let deleted = count(&|call: &Call| call.fate == Fate::Told(KeyTold::Deleted(1)));
    let (set, refused) = (cas(KeyTold::Done), cas(KeyTold::Other));
    let all = [set, refused, found, deleted];
    ensure!(all.iter().all(|count| *count >= 20), "no contest: set, refused, found, deleted {all:?}");
    Ok(())
}

fn ensure_linearizable(calls: &[Call]) -> anyhow::Result<()> {
    let mut history = History::default();
    for call in calls {
        let id = history.begin(call.key, call.client, call.what, call.invoked);
        match call.fate {
            Fate::Told(told) => history.answered(id, told, call.known),
            Fate::Nothing => history.refused(id),
            Fate::Unknown => {}
        }
    }
    for (key, operations) in history.by_key() {
        match judge(&Key, &operations, STEPS_MAX) {
            Verdict::Linearizable => {}
            Verdict::Impossible(why) => bail!("key {key}: {why}"),
            Verdict::Undecided => bail!("key {key}: {} operations are too much to judge", operations.len()),
        }
    }
    Ok(())
}
