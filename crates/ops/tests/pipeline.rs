//! The pipeline: every stage can refuse, in order; what is declared is enforced; every call is told of once.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base::{ErrorCode, Millis, Mono, Now, Wall};
use futures::executor::block_on;
use futures::future::{BoxFuture, FutureExt, pending};
use futures::stream::StreamExt;
use ops::{
    Authenticator, Call, Clock, Credentials, Ended, Idempotency, Invocation, Limits, Method, Observer, OpError,
    Operation, Output, Permission, Pipeline, Principal, Record, Registry, Stage, Typed,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Default)]
struct World {
    ran: AtomicU32,
}

#[derive(Deserialize, JsonSchema)]
struct Input {
    /// What to do.
    what: String,
}

#[derive(Serialize, JsonSchema)]
struct Done {
    ran: u32,
}

async fn run(call: Call<World>, input: Input) -> Result<Done, OpError> {
    let ran = call.context.ran.fetch_add(1, Ordering::SeqCst) + 1;
    match input.what.as_str() {
        "panic" => panic!("told to"),
        "hang" => pending().await,
        "fail" => Err(OpError::new(ErrorCode::NotFound, "nothing there")),
        "undeclared" => Err(OpError::new(ErrorCode::Corrupt, "surprise")),
        _ => Ok(Done { ran }),
    }
}

async fn count(_: Call<World>, input: Input) -> Result<Typed<u32>, OpError> {
    Ok(match input.what.as_str() {
        "hang" => futures::stream::pending().boxed(),
        "panic" => futures::stream::iter(0..3).map(|n| if n == 2 { panic!("at two") } else { Ok(n) }).boxed(),
        _ => futures::stream::iter([Ok(1), Ok(2)]).boxed(),
    })
}

/// A clock that stands. Nothing else can happen in these tests while a handler hangs, so that sleepers wake at once,
/// unless it is frozen.
#[derive(Default)]
struct TestClock {
    frozen: AtomicBool,
    /// Until when somebody was to sleep last.
    until: AtomicU64,
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        Now { mono: Mono(0), wall: Wall(0) }
    }
    fn sleep_until(&self, until: Mono) -> BoxFuture<'static, ()> {
        self.until.store(until.0, Ordering::SeqCst);
        if self.frozen.load(Ordering::SeqCst) { pending().boxed() } else { std::future::ready(()).boxed() }
    }
}

struct ByToken;

impl Authenticator for ByToken {
    fn authenticate(&self, credentials: &Credentials) -> Result<Principal, OpError> {
        let permission = match credentials.token.as_deref() {
            Some("reader") => Permission::Read,
            Some("operator") => Permission::Operate,
            _ => return Err(OpError::new(ErrorCode::Unauthenticated, "who are you?")),
        };
        Ok(Principal { name: credentials.token.clone().unwrap(), permission })
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<(&'static str, Record)>>);

impl Observer for Log {
    fn audit(&self, record: &Record) {
        self.0.lock().unwrap().push(("audit", record.clone()));
    }
    fn metrics(&self, record: &Record) {
        self.0.lock().unwrap().push(("metrics", record.clone()));
    }
}

struct Bench {
    pipeline: Pipeline<World>,
    world: Arc<World>,
    clock: Arc<TestClock>,
    log: Arc<Log>,
}

fn bench() -> Bench {
    let limits = Limits { concurrent: 1, per_second: 1, burst: 3, deadline: Millis(50), deadline_max: Millis(100) };
    let registry = Registry::new(vec![
        Operation::new("thing.do", "Does it", (Method::Post, "/v1/things"), run)
            .permission(Permission::Operate)
            .idempotency(Idempotency::Keyed)
            .errors(&[ErrorCode::NotFound])
            .limits(limits),
        Operation::streaming("thing.count", "Counts", (Method::Get, "/v1/things"), count).limits(limits),
    ]);
    let (world, log) = (Arc::new(World::default()), Arc::new(Log::default()));
    let clock = Arc::new(TestClock::default());
    let pipeline = Pipeline::new(
        Arc::new(registry.unwrap()),
        Arc::clone(&world),
        Arc::clone(&clock) as Arc<dyn Clock>,
        Arc::new(ByToken),
        Arc::clone(&log) as Arc<dyn Observer>,
    );
    Bench { pipeline, world, clock, log }
}

fn call(operation: &str, token: &str, input: Value) -> Invocation {
    Invocation {
        door: "test",
        operation: operation.into(),
        credentials: Credentials { peer: None, token: Some(token.into()) },
        input,
        deadline: None,
        idempotency_key: None,
    }
}

impl Bench {
    fn invoke(&self, invocation: Invocation) -> Result<Value, OpError> {
        match block_on(self.pipeline.invoke(invocation))? {
            Output::Value(value) => Ok(value),
            Output::Stream(_) => panic!("a stream"),
        }
    }

    /// Audited once, then counted once; both the same.
    fn last(&self) -> Record {
        let mut log = std::mem::take(&mut *self.log.0.lock().unwrap());
        assert_eq!(log.iter().map(|(what, _)| *what).collect::<Vec<_>>(), ["audit", "metrics"]);
        assert_eq!(log[0].1, log[1].1);
        log.pop().unwrap().1
    }
}

#[test]
fn each_stage_refuses_before_the_next_is_asked() {
    let bench = bench();
    let bad_input = json!({"wat": 1});
    for (operation, token, input, code, stage) in [
        ("thing.do", "stranger", bad_input.clone(), ErrorCode::Unauthenticated, Stage::Authenticate),
        ("thing.undo", "stranger", bad_input.clone(), ErrorCode::Unauthenticated, Stage::Authenticate),
        ("thing.undo", "reader", bad_input.clone(), ErrorCode::NotFound, Stage::Authorize),
        ("thing.do", "reader", bad_input.clone(), ErrorCode::PermissionDenied, Stage::Authorize),
        ("thing.do", "operator", bad_input, ErrorCode::InvalidArgument, Stage::Validate),
        ("thing.do", "operator", json!({"what": "fail"}), ErrorCode::NotFound, Stage::Run),
        ("thing.do", "operator", json!({"what": "panic"}), ErrorCode::Internal, Stage::Run),
        ("thing.do", "operator", json!({"what": "hang"}), ErrorCode::DeadlineExceeded, Stage::Run),
        ("thing.do", "operator", json!({"what": "ok"}), ErrorCode::Busy, Stage::RateLimit),
    ] {
        let error = bench.invoke(call(operation, token, input)).unwrap_err();
        let record = bench.last();
        assert_eq!((error.code, record.stage, record.ended), (code, stage, Ended::Failed(code)), "{error:?}");
        assert_eq!(record.principal.is_none(), stage == Stage::Authenticate);
        assert_eq!(record.panicked, code == ErrorCode::Internal);
    }
    assert_eq!(bench.world.ran.load(Ordering::SeqCst), 3, "only what passed every stage ran");
}

#[test]
fn mistakes_come_with_the_nearest_name() {
    let bench = bench();
    let error = bench.invoke(call("thing.od", "reader", json!({}))).unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("did you mean `thing.do`?"));
    let error = bench.invoke(call("thing.do", "operator", json!({"waht": "x"}))).unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("did you mean `what`?"));
    assert_eq!(error.field.as_deref(), Some("waht"));
}

#[test]
fn a_panic_disturbs_nobody_else_and_frees_its_place() {
    let bench = bench();
    for _ in 0..2 {
        let error = bench.invoke(call("thing.do", "operator", json!({"what": "panic"}))).unwrap_err();
        assert_eq!(error.message, "thing.do panicked: told to");
        bench.last();
    }
    assert_eq!(bench.invoke(call("thing.do", "operator", json!({"what": "ok"}))), Ok(json!({"ran": 3})));
}

#[test]
fn an_undeclared_error_is_marked() {
    let bench = bench();
    bench.invoke(call("thing.do", "operator", json!({"what": "undeclared"}))).unwrap_err();
    assert!(bench.last().undeclared);
    bench.invoke(call("thing.do", "operator", json!({"what": "fail"}))).unwrap_err();
    assert!(!bench.last().undeclared);
}

#[test]
fn a_deadline_is_cut_at_the_longest_allowed() {
    let bench = bench();
    for (asked, expect) in [(None, "50 ms"), (Some(Millis(7)), "7 ms"), (Some(Millis(1 << 40)), "100 ms")] {
        let invocation = Invocation { deadline: asked, ..call("thing.do", "operator", json!({"what": "hang"})) };
        assert_eq!(bench.invoke(invocation).unwrap_err().message, format!("thing.do did not end within {expect}"));
        // What is asked inside gives up at the deadline, and its reason must come before that.
        let allowed = asked.map_or(50, |asked| asked.0.min(100));
        let until = Mono(0).plus(Millis(allowed)).plus(base::limits::OPERATION_LAST_WORD);
        assert_eq!(bench.clock.until.load(Ordering::SeqCst), until.0);
        bench.last();
    }
}

#[test]
fn a_retry_with_the_same_key_gets_the_first_result() {
    let bench = bench();
    let keyed = |key: &str, what: &str| Invocation {
        idempotency_key: Some(key.into()),
        ..call("thing.do", "operator", json!({"what": what}))
    };
    assert_eq!(bench.invoke(keyed("k", "ok")), Ok(json!({"ran": 1})));
    assert_eq!(bench.last().ended, Ended::Ok);
    assert_eq!(bench.invoke(keyed("k", "ok")), Ok(json!({"ran": 1})));
    assert_eq!(bench.last().ended, Ended::Replayed);
    assert_eq!(bench.invoke(keyed("k", "other")).unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(bench.world.ran.load(Ordering::SeqCst), 1);
    bench.last();
    assert_eq!(bench.invoke(keyed(&"k".repeat(256), "ok")).unwrap_err().code, ErrorCode::InvalidArgument);
}

#[test]
fn a_stream_holds_its_place_until_it_ends() {
    let bench = bench();
    let open = |what: &str| block_on(bench.pipeline.invoke(call("thing.count", "reader", json!({"what": what}))));
    let Ok(Output::Stream(mut hanging)) = open("hang") else { panic!("no stream") };
    assert!(hanging.next().now_or_never().is_none());
    assert_eq!(open("two").err().map(|e| e.code), Some(ErrorCode::Busy));
    bench.last();
    drop(hanging);
    assert_eq!(bench.last().ended, Ended::Abandoned);
    let Ok(Output::Stream(items)) = open("two") else { panic!("no stream") };
    assert_eq!(block_on(items.collect::<Vec<_>>()), [Ok(json!(1)), Ok(json!(2))]);
    let record = bench.last();
    assert_eq!((record.ended, record.items), (Ended::Ok, 2));
    let Ok(Output::Stream(items)) = open("panic") else { panic!("no stream") };
    let items = block_on(items.collect::<Vec<_>>());
    assert_eq!(items.len(), 3);
    assert_eq!(items[2].as_ref().map_err(|e| e.message.as_str()), Err("thing.count panicked: at two"));
    assert!(bench.last().panicked);
}

#[test]
fn an_abandoned_call_is_told_of() {
    let bench = bench();
    bench.clock.frozen.store(true, Ordering::SeqCst);
    let invocation = call("thing.do", "operator", json!({"what": "hang"}));
    assert!(bench.pipeline.invoke(invocation).now_or_never().is_none());
    assert_eq!(bench.last().ended, Ended::Abandoned);
}

#[test]
fn operations_that_contradict_themselves_are_refused() {
    let op = |name, path| Operation::new(name, "x", (Method::Post, path), run);
    let problem = |list| Registry::new(list).err().map(|e| e.problem).unwrap_or_default();
    assert_eq!(problem(vec![op("a.b", "/x"), op("a.b", "/y")]), "`a.b` is taken");
    assert_eq!(problem(vec![op("a.b", "/x/{what}"), op("a.c", "/x/{what}")]), "`POST /x/{}` is taken");
    assert_eq!(problem(vec![op("a.b", "/x/{who}")]), "`who` is not a field of its input");
    assert_eq!(problem(vec![op("a.b", "/x").positional(&["who"])]), "`who` is not a field of its input");
    assert_eq!(problem(vec![op("a.b", "/x").words(&["q"]), op("a.c", "/y").words(&["q"])]), "`command q` is taken");
}
