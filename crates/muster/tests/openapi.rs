//! The committed OpenAPI document is that of the registry. `UPDATE=1 cargo test -p muster --test openapi` rewrites it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn the_committed_document_is_that_of_the_registry() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let document = doors::openapi::text(&operations::registry().unwrap(), env!("CARGO_PKG_VERSION"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &document).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let first = committed.lines().zip(document.lines()).position(|(a, b)| a != b);
    assert!(
        committed == document,
        "docs/openapi.json differs from the operations, first at line {:?}; if the change is meant, rewrite it with \
         `UPDATE=1 cargo test -p muster --test openapi`",
        first.map(|line| line + 1)
    );
}
