//! Waiting for a condition instead of for a while.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Looks until `condition` gives a value, at most `limit` long, at least once.
///
/// # Errors
/// After `limit`: what was waited for, and what the last look saw instead.
pub fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        // Looked at before the clock: a condition that holds at the last moment counts.
        let late = start.elapsed() >= limit;
        match condition() {
            Ok(value) => return Ok(value),
            Err(seen) if late => bail!("after {limit:.1?} still not: {what}\nseen instead: {seen:#}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Looks for as long as `period`: whether `condition` holds all the time.
///
/// # Errors
/// The first look at which it does not.
pub fn holds_for(period: Duration, mut condition: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < period {
        condition()?;
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_waited_for_and_what_was_seen_is_told() {
        let mut looks = 0;
        let third = wait_until(Duration::from_secs(10), "the third look", || {
            looks += 1;
            if looks < 3 { Err(anyhow::anyhow!("look {looks}")) } else { Ok(looks) }
        });
        assert_eq!(third.ok(), Some(3));
        let never = wait_until::<()>(Duration::from_millis(1), "a pig that flies", || bail!("a pig that walks"));
        let text = format!("{:#}", never.expect_err("it cannot hold"));
        assert!(text.contains("a pig that flies") && text.contains("a pig that walks"), "{text}");
    }

    #[test]
    fn a_condition_that_breaks_is_noticed() {
        let mut looks = 0;
        let broken = holds_for(Duration::from_secs(60), || {
            looks += 1;
            anyhow::ensure!(looks < 3, "gone");
            Ok(())
        });
        assert!(broken.is_err() && looks == 3);
    }
}
