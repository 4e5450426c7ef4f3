//! Keys, leases and locks against real tables: calls that are repeated, and callers that go away.

use base::ErrorCode;
use serde_json::json;

use crate::testing::World;

#[test]
fn a_put_or_a_delete_that_is_repeated_under_its_key_undoes_nothing() {
    let world = World::new(3);
    let first = json!({ "key": "a", "value": "first" });
    let put = world.keyed("put-1", "kv.put", first.clone()).unwrap();
    world.value("kv.put", json!({ "key": "a", "value": "later" })).unwrap();
    assert_eq!(world.keyed("put-1", "kv.put", first.clone()).unwrap(), put);
    let now = world.value("kv.get", json!({ "key": "a" })).unwrap();
    assert_eq!((&now["value"], &now["version"]), (&json!("later"), &json!(2)));

    let going = json!({ "key": "a", "revision": now["revision"] });
    let deleted = world.keyed("delete-1", "kv.delete", going.clone()).unwrap();
    world.value("kv.put", json!({ "key": "a", "value": "anew" })).unwrap();
    assert_eq!(world.keyed("delete-1", "kv.delete", going).unwrap(), deleted);
    assert_eq!(world.value("kv.get", json!({ "key": "a" })).unwrap()["value"], "anew");

    // Under another key, or under none, they are other calls.
    for key in ["put-2", "put-3"] {
        world.keyed(key, "kv.put", first.clone()).unwrap();
    }
    assert_eq!(world.value("kv.put", first).unwrap()["version"], 4);
    assert_eq!(world.value("kv.delete", json!({ "key": "a" })).unwrap()["deleted"], 1);
    let gone = world.value("kv.get", json!({ "key": "a" })).unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
}
