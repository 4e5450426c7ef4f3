use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn supervisor() -> Supervisor {
    Supervisor::new(Handle::current())
}

/// Waits until `check` accepts the task's listing.
async fn until(tree: &Supervisor, name: &str, check: impl Fn(&TaskSnapshot) -> bool) -> TaskSnapshot {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = tree.list().into_iter().find(|task| task.name == name);
        match found {
            Some(task) if check(&task) => return task,
            other => assert!(Instant::now() < deadline, "{name}: {other:?}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn until_cancelled(context: TaskContext) -> TaskResult {
    context.cancel.cancelled().await;
    Ok(())
}

#[tokio::test]
async fn a_task_that_fails_is_restarted_and_its_history_says_why() {
    let tree = supervisor();
    tree.set_node(NodeId(3), Incarnation(7));
    let body = |context: TaskContext| async move {
        match context.run {
            1 => Err(TaskFailure::new("no luck")),
            2 => panic!("oh {}", "dear"),
            3 => Ok(()),
            4 => Err(TaskFailure::from(SupervisorError::NotFound("x".into()))),
            _ => until_cancelled(context).await,
        }
    };
    tree.start(TaskSpec::new("a/b"), body).expect("starts");
    tree.start(TaskSpec::new("other"), until_cancelled).expect("starts");
    let task = until(&tree, "a/b", |task| task.run == 5).await;
    assert_eq!(task.address, "3/7/a/b");
    let causes: Vec<_> = task.history.iter().map(|entry| entry.cause.clone()).collect();
    let no_task = Cause::Failed("no task \"x\" on this node".into());
    let expected = [Cause::Failed("no luck".into()), Cause::Panicked("oh dear".into()), Cause::Finished, no_task];
    assert_eq!(causes, expected);
    let other = until(&tree, "other", |_| true).await;
    assert_eq!((other.run, other.history.len()), (1, 0), "one for one: the other task did not notice");
}

#[tokio::test]
async fn a_critical_task_beyond_its_intensity_ends_the_node_with_the_reason() {
    let tree = supervisor();
    let spec = TaskSpec::new("engine").critical().intensity(2, Duration::from_secs(60));
    tree.start(spec, |_| async { Err(TaskFailure::new("disk gone")) }).expect("starts");
    let end = timeout(PATIENCE, tree.ended()).await.expect("the node ends");
    assert_eq!(end.task, "engine");
    assert!(end.reason.contains("3 times") && end.reason.contains("disk gone"), "{}", end.reason);
    let task = until(&tree, "engine", |task| task.state == TaskState::Failed).await;
    assert_eq!(task.run, 3);
}

#[tokio::test]
async fn a_task_that_is_not_critical_is_given_up_alone_and_can_be_restarted() {
    let tree = supervisor();
    let spec = TaskSpec::new("weak").intensity(0, Duration::from_secs(60));
    let body = |context: TaskContext| async move {
        if context.run == 1 { Err(TaskFailure::new("once")) } else { until_cancelled(context).await }
    };
    tree.start(spec, body).expect("starts");
    until(&tree, "weak", |task| task.state == TaskState::Failed).await;
    assert!(timeout(Duration::from_millis(1), tree.ended()).await.is_err(), "the node goes on");
    tree.restart("weak").expect("known");
    until(&tree, "weak", |task| task.state == TaskState::Running && task.run == 2).await;
}

#[tokio::test]
async fn policies_say_when_to_restart() {
    let tree = supervisor();
    let runs = Arc::new(AtomicU64::new(0));
    let counted = runs.clone();
    let spec = TaskSpec::new("transient").policy(RestartPolicy::OnFailure);
    let body = move |context: TaskContext| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { if context.run == 1 { Err(TaskFailure::new("first")) } else { Ok(()) } }
    };
    tree.start(spec, body).expect("starts");
    tree.start(TaskSpec::new("once").policy(RestartPolicy::Never), |_| async { panic!("gone") }).expect("starts");
    let deadline = Instant::now() + PATIENCE;
    while !tree.list().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", tree.list());
        tokio::task::yield_now().await;
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn restart_kill_and_stop_do_what_they_say() {
    let tree = supervisor();
    // Kill must work on a task that ignores its token.
    let stubborn = |_| std::future::pending::<TaskResult>();
    tree.start(TaskSpec::new("polite"), until_cancelled).expect("starts");
    tree.start(TaskSpec::new("stubborn"), stubborn).expect("starts");
    assert_eq!(tree.start(TaskSpec::new("polite"), stubborn), Err(SupervisorError::NameTaken("polite".into())));
    until(&tree, "stubborn", |task| task.run == 1).await;
    until(&tree, "polite", |task| task.run == 1).await;
    tree.restart("polite").expect("known");
    tree.kill("stubborn").expect("known");
    let polite = until(&tree, "polite", |task| task.run == 2).await;
    let stubborn = until(&tree, "stubborn", |task| task.run == 2).await;
    assert_eq!(polite.history[0].cause, Cause::Restarted);
    assert_eq!(stubborn.history[0].cause, Cause::Killed);
    // The orders are used up: neither task is disturbed again.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(tree.list().iter().all(|task| task.run == 2 && task.state == TaskState::Running), "{:?}", tree.list());
    tree.stop("polite").expect("known");
    assert_eq!(tree.restart("polite"), Err(SupervisorError::NotFound("polite".into())));
    tree.start(TaskSpec::new("polite"), until_cancelled).expect("the name is free again");
}

#[tokio::test]
async fn shutdown_goes_backwards_and_drops_who_does_not_listen() {
    let tree = supervisor();
    let order = Arc::new(Mutex::new(Vec::new()));
    for name in ["first", "second", "third"] {
        let order = order.clone();
        let body = move |context: TaskContext| {
            let order = order.clone();
            async move {
                context.cancel.cancelled().await;
                order.lock().expect("not poisoned").push(name);
                if name == "second" {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        };
        tree.start(TaskSpec::new(name), body).expect("starts");
        until(&tree, name, |task| task.run == 1).await;
    }
    let report = tree.shutdown(Duration::from_millis(200)).await;
    assert_eq!(*order.lock().expect("not poisoned"), ["third", "second", "first"]);
    assert_eq!(report.stopped, ["third", "first"]);
    assert_eq!(report.aborted, ["second"]);
    assert!(tree.root().is_cancelled());
    assert_eq!(tree.start(TaskSpec::new("late"), until_cancelled), Err(SupervisorError::ShuttingDown));
}

#[tokio::test]
async fn history_is_bounded_and_so_are_its_texts() {
    let tree = supervisor();
    let spec = TaskSpec::new("busy").intensity(u32::MAX, Duration::ZERO);
    let body = |context: TaskContext| async move {
        if context.run <= 40 { Err(TaskFailure::new("é".repeat(5_000))) } else { until_cancelled(context).await }
    };
    tree.start(spec, body).expect("starts");
    let task = until(&tree, "busy", |task| task.run == 41).await;
    assert_eq!((task.history.len(), task.history[0].run), (32, 9));
    let Cause::Failed(text) = &task.history[0].cause else { panic!("{:?}", task.history[0]) };
    assert!(text.len() < 1_100 && text.ends_with("é..."));
}
