//! What is installed where, on both databases.

use std::collections::BTreeMap;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::changes::{By, Change, Changed, Changes, LOG_NAME};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::{DeviceRef, Package, Software};

use super::testing::{Temporary, on_both, package};
use super::*;
use crate::gateway::testing::report;

on_both!(
    software_is_replaced_not_added_to,
    what_several_devices_have_is_kept_once_and_goes_with_the_last_of_them,
    devices_that_tell_of_the_same_new_packages_at_once_add_each_once,
    what_is_told_of_a_package_later_keeps_its_date,
    software_of_a_device_without_a_report_is_not_kept,
    what_only_changes_name_does_not_keep_the_rest,
    pages_are_the_same_however_they_are_found,
);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn device(name: &str) -> DeviceRef {
    DeviceRef { namespace: "acme".into(), name: name.into() }
}

/// Keeps a report with this software.
async fn keep(db: &Temporary, name: &str, software: &Software, second: i64) {
    let key = PrivateKey::generate();
    let document = report("acme", name);
    let envelope = Envelope::seal(&document, &key).unwrap();
    let kept = StoredReport { digest: envelope.digest(), counter: document.counter, envelope };
    db.store.record_report(&key.public().fingerprint(), &document, &kept, Some(software), at(second)).await.unwrap();
}

async fn found(db: &Temporary, name: &str) -> Vec<FoundPackage> {
    db.store.packages_named(Named::Binary, name, None, None, 100).await.unwrap()
}

async fn count(db: &Temporary, of: &'static str) -> i64 {
    sqlx::query_scalar(of).fetch_one(&db.store.readers).await.unwrap()
}

const PACKAGES: &str = "SELECT COUNT(*) FROM package";

async fn software_is_replaced_not_added_to(db: &Temporary) {
    let many = Software { packages: (0..2500).map(|n| package(&format!("p{n}"), "1")).collect() };
    keep(db, "web", &many, 1).await;
    let web = device("web");
    let first = FoundPackage { device: web.clone(), package: package("p2499", "1"), first_recorded: Some(at(1)) };
    assert_eq!(found(db, "p2499").await, [first]);
    assert_eq!(db.store.software(&web).await.unwrap().packages.len(), 2500);
    let few = Software { packages: vec![package("p0", "2"), package("p1", "1")] };
    db.store.record_software(&web, &few, "sha256:new", at(2)).await.unwrap();
    assert!(found(db, "p2499").await.is_empty());
    assert_eq!(db.store.software(&web).await.unwrap(), few);
    for (name, second) in [("p0", 2), ("p1", 1)] {
        assert_eq!(found(db, name).await[0].first_recorded, Some(at(second)), "{name}");
    }
    assert_eq!(found(db, "p0").await[0].package.version, "2");
    let record = db.store.device(&web).await.unwrap().unwrap();
    assert_eq!(record.software_digest.as_deref(), Some("sha256:new"));
}

async fn what_several_devices_have_is_kept_once_and_goes_with_the_last_of_them(db: &Temporary) {
    let software = Software { packages: vec![package("curl", "7"), package("openssl", "3")] };
    for name in ["db", "mail", "web"] {
        keep(db, name, &software, 1).await;
    }
    assert_eq!(count(db, PACKAGES).await, 2);
    assert_eq!(found(db, "curl").await.len(), 3);
    let less = Software { packages: vec![package("openssl", "3")] };
    let nothing_is_old =
        Retention { audit: SignedDuration::MAX, history: SignedDuration::MAX, gone: SignedDuration::MAX };
    for (name, dropped, left) in [("db", 0, 2), ("mail", 0, 2), ("web", 1, 1)] {
        db.store.record_software(&device(name), &less, "sha256:less", at(2)).await.unwrap();
        assert_eq!(db.store.prune(nothing_is_old, at(3)).await.unwrap(), dropped, "after {name}");
        assert_eq!(count(db, PACKAGES).await, left, "after {name}");
    }
    keep(db, "web", &software, 4).await;
    assert_eq!(found(db, "curl").await[0].first_recorded, Some(at(4)), "it is back, and new");
}

async fn devices_that_tell_of_the_same_new_packages_at_once_add_each_once(db: &Temporary) {
    let software = |n: usize| {
        let mut packages: Vec<_> = (0..200).map(|n| package(&format!("p{n}"), "1")).collect();
        packages.rotate_left(n * 13);
        Software { packages }
    };
    let names: Vec<_> = (0..12).map(|n| format!("web-{n}")).collect();
    join_all(names.iter().enumerate().map(async |(n, name)| keep(db, name, &software(n), 1).await)).await;
    assert_eq!(count(db, PACKAGES).await, 200);
    assert_eq!(count(db, "SELECT COUNT(*) FROM installed").await, 12 * 200);
    let numbers =
        "SELECT COUNT(*) FROM (SELECT DISTINCT name, arch, version, source, source_version FROM package) AS each_one";
    assert_eq!(count(db, numbers).await, 200);
}

async fn what_is_told_of_a_package_later_keeps_its_date(db: &Temporary) {
    let told = |source_version: Option<&str>| Software {
        packages: vec![Package { source_version: source_version.map(str::to_owned), ..package("curl", "7") }],
    };
    keep(db, "web", &told(None), 1).await;
    // One version is listed twice: the last one counts. An empty one is none.
    for (second, list, expected) in [(2, told(Some("6")), told(Some("6"))), (3, told(Some("")), told(None))] {
        let twice = Software { packages: [told(None).packages, list.packages].concat() };
        db.store.record_software(&device("web"), &twice, "sha256:x", at(second)).await.unwrap();
        assert_eq!(db.store.software(&device("web")).await.unwrap(), expected);
        assert_eq!(found(db, "curl").await[0].first_recorded, Some(at(1)));
    }
}

async fn software_of_a_device_without_a_report_is_not_kept(db: &Temporary) {
    let software = Software { packages: vec![package("curl", "7")] };
    let refused = db.store.record_software(&device("web"), &software, "sha256:x", at(1)).await.unwrap_err();
    assert!(refused.to_string().contains("no report of this device is kept"), "{refused}");
    assert_eq!(count(db, PACKAGES).await, 0);
}

/// More packages that only a change names than are looked at in one go, before one that nothing names.
async fn what_only_changes_name_does_not_keep_the_rest(db: &Temporary) {
    let nothing_is_old =
        Retention { audit: SignedDuration::MAX, history: SignedDuration::MAX, gone: SignedDuration::MAX };
    let many: Vec<_> = (0..600).map(|n| package(&format!("p{n}"), "1")).collect();
    keep(db, "web", &Software { packages: many.clone() }, 1).await;
    let change = |package: &Package| Change {
        name: package.name.clone(),
        arch: package.arch.clone(),
        before: Some(package.version.clone()),
        after: None,
        by: By::SomebodyElse,
    };
    let removed = Changed {
        log: "a".repeat(LOG_NAME),
        first: 1,
        found_at: at(2),
        from: "sha256:a".into(),
        to: "sha256:b".into(),
        order: None,
        run: None,
        packages: many.iter().map(change).collect(),
    };
    let changes = Changes { device: device("web"), changed: vec![removed] };
    let envelope = Envelope::seal(&changes, &PrivateKey::generate()).unwrap();
    db.store.record_changes(&changes, &envelope, at(2)).await.unwrap();
    keep(db, "web", &Software { packages: vec![package("odd", "1")] }, 2).await;
    keep(db, "web", &Software { packages: vec![package("kept", "1")] }, 3).await;
    assert_eq!(count(db, PACKAGES).await, 602);
    for (dropped, left) in [(1, 601), (0, 601), (0, 601)] {
        assert_eq!(db.store.prune(nothing_is_old, at(4)).await.unwrap(), dropped);
        assert_eq!(count(db, PACKAGES).await, left);
    }
    keep(db, "web", &Software { packages: vec![package("other", "1")] }, 5).await;
    let more = db.store.prune(nothing_is_old, at(6)).await.unwrap();
    assert_eq!((more, count(db, PACKAGES).await), (1, 601), "it begins again at the first");
}

/// More machines than are sorted at once, and more versions than are looked up one by one.
async fn pages_are_the_same_however_they_are_found(db: &Temporary) {
    let numbers = |upto: u32| {
        if db.store.is_shared() {
            format!("SELECT n FROM generate_series(1, {upto}) AS n")
        } else {
            format!("WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {upto}) SELECT n FROM n")
        }
    };
    // Numbered in another order than they are named. Each has libc in one of 3 versions, the kernel in two of 50, every 100th nginx.
    let statements = format!(
        "INSERT INTO device (namespace, name, key, last_seen)
             SELECT 'ns' || (n % 2), 'd' || substr(CAST(1000000 + n * 7919 % 10007 AS TEXT), 2), 'k', 0 FROM ({tens}) AS n;
         INSERT INTO package (name, arch, version, source, source_version)
             SELECT 'libc6', 'amd64', CAST(n AS TEXT), 'glibc', '' FROM ({three}) AS n;
         INSERT INTO package (name, arch, version, source, source_version)
             SELECT 'linux-image', 'amd64', CAST(n AS TEXT), 'linux', '' FROM ({fifty}) AS n;
         INSERT INTO package (name, arch, version, source, source_version) VALUES ('nginx', 'amd64', '1', 'nginx', '');
         INSERT INTO installed (device, package) SELECT device.id, package.id FROM device JOIN package
             ON (package.name = 'libc6' AND CAST(package.version AS BIGINT) = device.id % 3 + 1)
             OR (package.name = 'linux-image' AND CAST(package.version AS BIGINT) IN (device.id % 50 + 1, (device.id * 7 + 1) % 50 + 1))
             OR (package.name = 'nginx' AND device.id % 100 = 0);",
        tens = numbers(6_000),
        three = numbers(3),
        fifty = numbers(50),
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&db.store.writer).await.unwrap();
    let everything =
        "SELECT device.namespace, device.name AS device, package.name, package.arch, package.version, package.source
        FROM device, installed, package WHERE device.id = installed.device AND package.id = installed.package";
    let rows: Vec<(String, String, String, String, String, String)> =
        sqlx::query_as(everything).fetch_all(&db.store.readers).await.unwrap();
    let mut expected: BTreeMap<(&str, &str), Vec<PackageKey>> = BTreeMap::new();
    for (namespace, device, name, arch, version, source) in &rows {
        let key = || PackageKey(namespace.clone(), device.clone(), name.clone(), arch.clone(), version.clone());
        expected.entry(("name", name)).or_default().push(key());
        expected.entry(("source", source)).or_default().push(key());
    }
    let lookups =
        [("name", "libc6"), ("name", "linux-image"), ("name", "nginx"), ("source", "glibc"), ("source", "linux")];
    let places = lookups.map(|lookup| {
        expected
            .get_mut(&lookup)
            .unwrap()
            .sort_by(|a, b| (&a.0, &a.1, &a.2, &a.3, &a.4).cmp(&(&b.0, &b.1, &b.2, &b.3, &b.4)));
        expected[&lookup].len()
    });
    assert!(places[0] == 6_000 && places[1] > 11_000 && places[2] == 60, "{places:?}");
    for (column, name) in lookups {
        let named = if column == "name" { Named::Binary } else { Named::Source };
        for namespace in [None, Some("ns1")] {
            // An odd number: pages end between two kernels of a machine.
            let mut pages: Vec<PackageKey> = Vec::new();
            loop {
                let page = db.store.packages_named(named, name, namespace, pages.last(), 1_701).await.unwrap();
                pages.extend(page.iter().map(PackageKey::of));
                if page.len() < 1_701 {
                    break;
                }
            }
            let all = expected[&(column, name)].iter();
            let of_it: Vec<_> = all.filter(|key| namespace.is_none_or(|only| key.0 == only)).cloned().collect();
            assert!(pages == of_it, "{column} {name} {namespace:?}: {} of {}", pages.len(), of_it.len());
        }
    }
}

/// Rows of the schema before packages had numbers.
const OLDER: &str = "
    INSERT INTO device (namespace, name, key, last_seen, software_digest) VALUES
        ('acme', 'web', 'SHA256:9Ym0c3Uv8VnCkO7rMCGdJ1XAvxwTDDGkqTtgWb0G0xo', 7000, 'sha256:web'),
        ('acme', 'db', 'SHA256:9Ym0c3Uv8VnCkO7rMCGdJ1XAvxwTDDGkqTtgWb0G0xo', 8000, NULL);
    INSERT INTO package (namespace, device, name, arch, version, source, source_version, first_recorded) VALUES
        ('acme', 'web', 'curl', 'amd64', '7', 'curl', NULL, 5000), ('acme', 'db', 'curl', 'amd64', '7', 'curl', NULL, 6000),
        ('acme', 'db', 'libc6', 'amd64', '2', 'glibc', '1', NULL);";

async fn what_an_older_gateway_has_kept_is_kept(on_a_server: bool) {
    let db = Temporary::of_an_older_gateway(on_a_server, 10, OLDER).await;
    let curl = |name: &str, second: i64| FoundPackage {
        device: device(name),
        package: package("curl", "7"),
        first_recorded: Some(at(second)),
    };
    assert_eq!(found(&db, "curl").await, [curl("db", 6), curl("web", 5)]);
    let libc = Package { source: "glibc".into(), source_version: Some("1".into()), ..package("libc6", "2") };
    assert_eq!(db.store.software(&device("db")).await.unwrap().packages, [package("curl", "7"), libc.clone()]);
    let found = FoundPackage { device: device("db"), package: libc, first_recorded: None };
    assert_eq!(db.store.packages_named(Named::Source, "glibc", None, None, 9).await.unwrap(), [found]);
    let web = db.store.device(&device("web")).await.unwrap().unwrap();
    assert_eq!((web.last_seen, web.software_digest.as_deref()), (at(7), Some("sha256:web")));
    assert_eq!(count(&db, PACKAGES).await, 2);
    keep(&db, "mail", &Software { packages: vec![package("curl", "7")] }, 9).await;
    assert_eq!(count(&db, PACKAGES).await, 2);
}

#[tokio::test]
async fn what_an_older_gateway_has_kept_in_a_file_is_kept() {
    what_an_older_gateway_has_kept_is_kept(false).await;
}

#[tokio::test]
async fn what_an_older_gateway_has_kept_on_a_server_is_kept() {
    what_an_older_gateway_has_kept_is_kept(true).await;
}
