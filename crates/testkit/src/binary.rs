//! Where the binary under test is.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The binary named by `MUSTER_BIN`, or the one that Cargo put beside the running test.
///
/// # Errors
/// If there is none, with what to do.
pub fn muster_binary() -> anyhow::Result<PathBuf> {
    let path = match std::env::var_os("MUSTER_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let test = std::env::current_exe().context("where does this test run from?")?;
            // TARGET/PROFILE/deps/test-HASH -> TARGET/PROFILE/muster
            let profile = test.ancestors().nth(2).context("the test stands in no target folder")?;
            profile.join("muster")
        }
    };
    ensure!(
        path.is_file(),
        "there is no muster at {}: build it first (`cargo build -p muster`, or `make test`), or set MUSTER_BIN",
        path.display()
    );
    Ok(path)
}
