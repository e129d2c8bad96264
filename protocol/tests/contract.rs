//! What programs of earlier versions say and understand goes on to count: the wire only gains, and documents that were signed once are
//! read, and written again, as the same bytes.
//!
//! A document in `data/contract` is as the version that its name tells of has made it, and never changes. What a later version adds is a
//! document of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::path::Path;

use patchwarden_protocol::canonical;
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::grant::{Grant, SignedGrant};
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::order::{Order, SignedOrder};
use patchwarden_protocol::report::{Report, Software};
use patchwarden_protocol::result::InstallResult;
use patchwarden_protocol::settings::Settings;
use patchwarden_protocol::surroundings::REPORT_VERSION;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// All that the wire has, a line for each field, value and call, as `build.rs` has found it.
const WIRE: &str = include_str!(concat!(env!("OUT_DIR"), "/contract.txt"));

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/contract").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

#[test]
fn the_wire_loses_nothing_and_what_it_gains_is_written_down() {
    let known = read("wire.txt");
    let (known, now): (BTreeSet<&str>, BTreeSet<&str>) = (known.lines().collect(), WIRE.lines().collect());
    let lost: Vec<_> = known.difference(&now).collect();
    assert!(lost.is_empty(), "programs of earlier versions say or expect it, and it is gone or another: {lost:#?}");
    let gained: Vec<_> = now.difference(&known).collect();
    assert!(gained.is_empty(), "add it to tests/data/contract/wire.txt, from where it never goes: {gained:#?}");
}

#[test]
fn no_number_of_a_message_is_given_twice() {
    let mut seen = BTreeSet::new();
    for line in WIRE.lines().filter(|line| line.contains(" = ")) {
        let (left, right) = line.split_once(" = ").unwrap();
        let of = left.split(' ').next().unwrap();
        assert!(seen.insert((of, right.split(' ').next().unwrap())), "{line}");
    }
    assert!(seen.len() > 50, "{seen:?}");
}

/// Each as it was.
fn is_read_and_written_as_it_was<T: DeserializeOwned + Serialize>(name: &str) -> Value {
    let text = read(name);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
    let document: T = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
    let (was, is) = (canonical::to_bytes(&value).unwrap(), canonical::to_bytes(&document).unwrap());
    assert_eq!(String::from_utf8_lossy(&is), String::from_utf8_lossy(&was), "{name}");
    value
}

#[test]
fn documents_of_earlier_versions_are_the_same_bytes() {
    for version in 1..=REPORT_VERSION {
        is_read_and_written_as_it_was::<Report>(&format!("report-{version}.json"));
    }
    for version in [1, 2] {
        is_read_and_written_as_it_was::<Software>(&format!("software-{version}.json"));
        is_read_and_written_as_it_was::<Settings>(&format!("settings-{version}.json"));
        is_read_and_written_as_it_was::<Order>(&format!("order-{version}.json"));
    }
    for version in [1, 4, 5] {
        is_read_and_written_as_it_was::<InstallResult>(&format!("result-{version}.json"));
    }
    for name in ["granted", "denied"] {
        is_read_and_written_as_it_was::<Grant>(&format!("grant-{name}.json"));
    }
    is_read_and_written_as_it_was::<Delegation>("delegation.json");
}

/// By keys that nobody has any more.
#[test]
fn what_was_signed_once_is_believed() {
    let root: PublicKey = serde_json::from_str(&read("root.json")).unwrap();
    let now = "2026-11-30T12:00:00Z".parse().unwrap();
    let order: SignedOrder = serde_json::from_str(&read("signed-order.json")).unwrap();
    let opened = order.open(&root, now).unwrap();
    let plain: Order = serde_json::from_str(&read("order-2.json")).unwrap();
    assert_eq!(opened, plain);
    let grant: SignedGrant = serde_json::from_str(&read("signed-grant.json")).unwrap();
    let Grant { device_key, order_digest, nonce, purpose, issued_at, .. } =
        serde_json::from_str(&read("grant-granted.json")).unwrap();
    assert!(grant.open(&root, &device_key, &order_digest, &nonce, purpose, issued_at).is_ok());
}
