//! The exceptions to the rules, each with its reason.

use super::Finding;

/// One place where a rule makes the code worse.
pub struct Exception {
    pub rule: &'static str,
    /// The file.
    pub path: &'static str,
    /// The item that the finding names (a function, a word); empty: any in the file.
    pub item: &'static str,
    /// Why the rule is broken here.
    pub reason: &'static str,
}

/// Every exception. Keep it short.
pub const EXCEPTIONS: &[Exception] = &[
    Exception {
        rule: "sleep-in-test",
        path: "crates/testkit/src/wait.rs",
        item: "sleep(",
        reason: "this is the one place that polls, so that no test has to",
    },
    Exception {
        rule: "sleep-in-test",
        path: "crates/testkit/src/load/producer.rs",
        item: "sleep(",
        reason: "it is a client that rests between two runs; nothing is judged by it",
    },
    Exception {
        rule: "sleep-in-test",
        path: "crates/testkit/src/load/writer.rs",
        item: "sleep(",
        reason: "it is a client that rests between two writes, and before it tries one again; nothing is judged by it",
    },
    Exception {
        rule: "sleep-in-test",
        path: "crates/testkit/src/load/watcher.rs",
        item: "sleep(",
        reason: "it is a client that rests before it follows again; nothing is judged by it",
    },
    Exception {
        rule: "sleep-in-test",
        path: "crates/testkit/src/trickle.rs",
        item: "sleep(",
        reason: "it is a client that rests between two records; nothing is judged by it",
    },
    Exception {
        rule: "sleep-in-test",
        path: "crates/transport/tests/common/mod.rs",
        item: "sleep(",
        reason: "it polls a condition under a deadline, as testkit does, which is blocking and above it",
    },
    Exception {
        rule: "clock",
        path: "crates/multiraft/src/tests/cost.rs",
        item: "Instant",
        reason: "it measures what idle groups cost; no decision hangs on the clock",
    },
    Exception {
        rule: "sleep-in-test",
        path: "crates/doors/tests/rest.rs",
        item: "sleep_until(",
        reason: "it implements the trait `Clock` with the real clock; no test waits there",
    },
    Exception {
        rule: "sleep-in-test",
        path: "crates/muster/tests/dev.rs",
        item: "sleep(",
        reason: "it polls conditions under deadlines; testkit, which does the same, is its sibling",
    },
];

/// What is left of `findings`, and a finding for each exception that excepts nothing or gives no reason.
pub fn without_exceptions(findings: Vec<Finding>, exceptions: &[Exception]) -> Vec<Finding> {
    let covers = |exception: &Exception, finding: &Finding| {
        exception.rule == finding.rule
            && exception.path == finding.path
            && (exception.item.is_empty() || exception.item == finding.item)
    };
    let stale = exceptions.iter().filter_map(|exception| {
        let message = if exception.reason.trim().is_empty() {
            "has no reason: say why the rule makes the code worse there"
        } else if !findings.iter().any(|finding| covers(exception, finding)) {
            "excepts nothing any more: delete it"
        } else {
            return None;
        };
        Some(Finding {
            path: "xtask/src/tidy/allow.rs".into(),
            line: 1,
            rule: "exception",
            item: exception.path.into(),
            message: format!("the exception ({}, {}, {:?}) {message}", exception.rule, exception.path, exception.item),
        })
    });
    let stale: Vec<_> = stale.collect();
    let left = findings.into_iter().filter(|finding| !exceptions.iter().any(|exception| covers(exception, finding)));
    left.chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(item: &str) -> Finding {
        Finding { path: "a.rs".into(), line: 1, rule: "unwrap", item: item.into(), message: String::new() }
    }

    fn exception(item: &'static str, reason: &'static str) -> Exception {
        Exception { rule: "unwrap", path: "a.rs", item, reason }
    }

    #[test]
    fn an_exception_takes_out_what_it_names_and_no_more() {
        let left = without_exceptions(vec![finding("f"), finding("g")], &[exception("f", "because")]);
        assert_eq!(left, [finding("g")]);
        assert_eq!(without_exceptions(vec![finding("f")], &[exception("", "because")]), []);
    }

    #[test]
    fn an_exception_that_nothing_needs_is_a_finding() {
        let left = without_exceptions(vec![], &[exception("f", "because")]);
        assert_eq!(left.len(), 1);
        assert!(left[0].message.contains("excepts nothing"), "{}", left[0].message);
        let left = without_exceptions(vec![finding("f")], &[exception("f", " ")]);
        assert!(left[0].message.contains("no reason"), "{}", left[0].message);
    }
}
