//! Vulnerabilities, history and statistics over the API, on both databases.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::changes::{By, Change, Changed, Changes, LOG_NAME};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::{Sequence, Verb};
use patchwarden_protocol::report::{DeviceRef, Package, Software, Tristate};
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome};
use patchwarden_vulnerabilities::directory::read;
use serde_json::{Value, json};

use super::page::Page;
use super::tests::{Api, report};
use crate::gateway::testing;
use crate::shell;
use crate::store::Retention;
use crate::store::testing::{Temporary, on_both, package};

on_both!(
    what_is_open_is_told_and_what_cannot_be_told_is_unknown,
    a_vulnerability_is_found_on_all_devices_that_have_it,
    what_was_fixed_is_told_with_who_did_it,
    when_a_vulnerability_was_discovered_is_told,
    what_was_fixed_is_found_by_the_source_of_a_package,
    what_was_fixed_by_removing_the_package_is_told,
    installs_are_told_with_their_output,
    statistics_are_of_what_is_recorded,
    an_operator_hears_of_their_client_alone,
);

/// Imports records of OSV, and a KEV and an EPSS list.
async fn import(api: &Api, records: &[Value]) {
    import_at(api, records, shell::now()).await;
}

async fn import_at(api: &Api, records: &[Value], now: Timestamp) {
    let place = tempfile::tempdir().unwrap();
    for (number, record) in records.iter().enumerate() {
        std::fs::write(place.path().join(format!("{number}.json")), record.to_string()).unwrap();
    }
    std::fs::write(place.path().join("kev.csv"), "cveID,dateAdded\nCVE-2026-0001,2026-01-02\n").unwrap();
    std::fs::write(place.path().join("epss.csv"), "cve,epss,percentile\nCVE-2026-0001,0.12345,0.9\n").unwrap();
    let mut entries = Vec::new();
    read(place.path(), &mut |entry| {
        entries.push(entry);
        Ok(())
    })
    .unwrap();
    let store = &api.world.shared.store;
    let mut import = store.begin_vulnerabilities("test", now).await.unwrap().unwrap();
    store.add_vulnerabilities(&mut import, &entries).await.unwrap();
    store.finish_vulnerabilities(import, now).await.unwrap();
}

fn record(id: &str, cves: &[&str], ecosystem: &str, package: &str, fixed: Option<&str>) -> Value {
    let mut events = vec![json!({ "introduced": "0" })];
    events.extend(fixed.map(|fixed| json!({ "fixed": fixed })));
    json!({
        "id": id, "modified": "2026-01-01T00:00:00Z", "upstream": cves,
        "affected": [{ "package": { "ecosystem": ecosystem, "name": package },
                       "ranges": [{ "type": "ECOSYSTEM", "events": events }] }],
    })
}

fn rocky(name: &str) -> patchwarden_protocol::report::Report {
    report_of("acme", name)
}

fn report_of(namespace: &str, name: &str) -> patchwarden_protocol::report::Report {
    let mut report = report(namespace, name, "rocky", vec![]);
    report.os.version = "9.5".into();
    report
}

fn texts<'a>(items: &'a [Value], key: &str) -> Vec<&'a str> {
    items.iter().map(|item| item[key].as_str().unwrap()).collect()
}

async fn what_is_open_is_told_and_what_cannot_be_told_is_unknown(db: &Temporary) {
    let api = Api::on(db).await;
    api.report(&rocky("web"), &[("openssl", "3.0.7-1.el9", "openssl"), ("zlib", "1.2-1.el9", "zlib")]).await;
    api.report(&report("acme", "deb", "debian", vec![]), &[("libssl3", "3.0.1-1", "openssl")]).await;
    api.report(&report("acme", "pc", "windows", vec![]), &[]).await;
    let (status, refused) = api.get("admin", "/namespaces/acme/devices/web/vulnerabilities").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "no data must not look like no vulnerabilities: {refused}");
    import(
        &api,
        &[
            record("RLSA-1", &["CVE-2026-0001", "CVE-2026-0002"], "Rocky Linux:9", "openssl", Some("3.0.7-2.el9")),
            record("RLSA-2", &["CVE-2026-0003"], "Rocky Linux:9", "openssl", None),
            record("RLSA-3", &["CVE-2026-0004"], "Rocky Linux:9", "openssl", Some("3.0.7-1.el9")),
            record("RLSA-4", &[], "Rocky Linux:9", "zlib", Some("1.3-1.el9")),
            record("RLSA-5", &["CVE-2026-0005"], "Rocky Linux:8", "zlib", Some("1.3-1.el9")),
            record("DSA-1", &["CVE-2026-0001"], "Debian:12", "openssl", Some("3.0.2-1")),
        ],
    )
    .await;
    for limit in [1, 2, 3, 100] {
        let open = api.all("/namespaces/acme/devices/web/vulnerabilities", limit).await;
        assert_eq!(texts(&open, "id"), ["CVE-2026-0001", "CVE-2026-0002", "CVE-2026-0003", "RLSA-4"], "{limit}");
        assert!(open.iter().all(|one| one["status"] == "Open"), "{open:?}");
        assert_eq!((&open[0]["fixedIn"], &open[2]["fixedIn"]), (&json!("3.0.7-2.el9"), &Value::Null));
        assert_eq!((&open[0]["exploitedSince"], &open[0]["epss"]), (&json!("2026-01-02"), &json!(0.12345)));
        assert_eq!(open[0]["installedSince"], "2026-11-01T00:00:00Z");
        let unknown = api.all("/namespaces/acme/devices/deb/vulnerabilities", limit).await;
        assert_eq!((texts(&unknown, "id"), texts(&unknown, "status")), (vec!["CVE-2026-0001"], vec!["Unknown"]));
    }
    assert_eq!(api.all("/namespaces/acme/devices/deb/vulnerabilities?status=Open", 10).await.len(), 0);
    let (status, refused) = api.get("admin", "/namespaces/acme/devices/pc/vulnerabilities").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(refused["detail"].as_str().unwrap().contains("it runs windows 12.11"), "{refused}");

    api.report(&report_of("other", "db"), &[("openssl", "3.0.7-1.el9", "openssl")]).await;
    let made_up = Page::<()>::token(&(("other", "db", "openssl", "amd64", "3.0.7-1.el9"), ""));
    let (status, page) =
        api.get("admin", &format!("/namespaces/acme/devices/deb/vulnerabilities?cursor={made_up}")).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert_eq!(page["items"], json!([]), "a place that somebody has made up leads to no other device's");

    let known = api.see("/vulnerabilities/CVE-2026-0001").await;
    assert_eq!(texts(known["statements"].as_array().unwrap(), "advisory"), ["RLSA-1", "DSA-1"]);
    assert_eq!((&known["epss"], known["importedAt"].is_string()), (&json!(0.12345), true));
    assert_eq!(api.get("admin", "/vulnerabilities/CVE-1999-0001").await.0, StatusCode::NOT_FOUND);
}

// covers CL-6
async fn a_vulnerability_is_found_on_all_devices_that_have_it(db: &Temporary) {
    let api = Api::on(db).await;
    for name in ["a", "b", "c"] {
        // The package of the source's name, and another one that was built from it.
        let packages = [("openssl", "3.0.7-1.el9", "openssl"), ("openssl-libs", "3.0.7-1.el9", "openssl")];
        api.report(&rocky(name), &packages[..if name == "c" { 1 } else { 2 }]).await;
    }
    api.report(&rocky("fixed"), &[("openssl", "3.0.7-2.el9", "openssl")]).await;
    let signed = [("linux-image-6.1.0-1-amd64", "6.1.1-1", "linux-signed-amd64")];
    api.report(&report("acme", "deb", "debian", vec![]), &signed).await;
    import(
        &api,
        &[
            record("RLSA-1", &["CVE-2026-0001"], "Rocky Linux:9", "openssl", Some("3.0.7-2.el9")),
            record("RLSA-2", &["CVE-2026-0001"], "Rocky Linux:9", "openssl-libs", Some("3.0.7-2.el9")),
            record("DSA-1", &["CVE-2026-0001"], "Debian:12", "linux", Some("6.1.2-1")),
        ],
    )
    .await;
    for limit in [1, 2, 100] {
        let found = api.all("/vulnerabilities?id=CVE-2026-0001", limit).await;
        let found: Vec<_> = texts(&found, "device").into_iter().zip(texts(&found, "package")).collect();
        let libs = "openssl-libs";
        let expected = [
            ("a", "openssl"),
            ("b", "openssl"),
            ("c", "openssl"),
            ("a", libs),
            ("b", libs),
            ("deb", "linux-image-6.1.0-1-amd64"),
        ];
        assert_eq!(found, expected, "{limit}");
    }
    assert_eq!(api.all("/vulnerabilities?id=CVE-2026-0009", 10).await.len(), 0);
}

async fn change(api: &Api, number: u64, versions: (&str, &str), by: By) {
    change_of(api, ("web", "openssl"), number, versions, by).await;
}

async fn change_of(api: &Api, place: (&str, &str), number: u64, (before, after): (&str, &str), by: By) {
    change_to(api, place, number, (before, Some(after)), by).await;
}

/// To another version, or to none.
async fn change_to(
    api: &Api,
    (device, package): (&str, &str),
    number: u64,
    (before, after): (&str, Option<&str>),
    by: By,
) {
    let changes = Changes {
        device: DeviceRef { namespace: "acme".into(), name: device.into() },
        changed: vec![Changed {
            log: "a".repeat(LOG_NAME),
            first: number,
            found_at: Timestamp::from_second(i64::try_from(number).unwrap()).unwrap(),
            from: "sha256:a".into(),
            to: "sha256:b".into(),
            order: None,
            run: None,
            packages: vec![Change {
                name: package.into(),
                arch: "amd64".into(),
                before: Some(before.into()),
                after: after.map(Into::into),
                by,
            }],
        }],
    };
    let envelope = Envelope::seal(&changes, &PrivateKey::generate()).unwrap();
    api.world.shared.store.record_changes(&changes, &envelope, shell::now()).await.unwrap();
}

// covers CL-11
async fn what_was_fixed_is_told_with_who_did_it(db: &Temporary) {
    let api = Api::on(db).await;
    api.report(&rocky("web"), &[("openssl", "3.0.7-3.el9", "openssl")]).await;
    change(&api, 1, ("3.0.7-1.el9", "3.0.7-2.el9"), By::SomebodyElse).await;
    change(&api, 2, ("3.0.7-2.el9", "3.0.7-3.el9"), By::Order(Sequence { epoch: 1, number: 7 })).await;
    import(
        &api,
        &[
            record("RLSA-1", &["CVE-2026-0001", "CVE-2026-0002"], "Rocky Linux:9", "openssl", Some("3.0.7-2.el9")),
            record("RLSA-2", &["CVE-2026-0003"], "Rocky Linux:9", "openssl", Some("3.0.7-3.el9")),
        ],
    )
    .await;
    for limit in [1, 2, 100] {
        let fixed = api.all("/namespaces/acme/devices/web/vulnerabilities/fixed", limit).await;
        assert_eq!(texts(&fixed, "id"), ["CVE-2026-0003", "CVE-2026-0001", "CVE-2026-0002"], "{limit}");
        assert_eq!(texts(&fixed, "by"), ["Order", "SomebodyElse", "SomebodyElse"]);
        assert_eq!((&fixed[0]["sequence"], &fixed[0]["fixedAt"]), (&json!("1.7"), &json!("1970-01-01T00:00:02Z")));
        assert_eq!((&fixed[1]["from"], &fixed[1]["to"]), (&json!("3.0.7-1.el9"), &json!("3.0.7-2.el9")));
        let changes = api.all("/namespaces/acme/devices/web/changes", limit).await;
        assert_eq!(texts(&changes, "after"), ["3.0.7-3.el9", "3.0.7-2.el9"]);
    }
}

// covers CL-11
async fn when_a_vulnerability_was_discovered_is_told(db: &Temporary) {
    let api = Api::on(db).await;
    let at = |second| Timestamp::from_second(second).unwrap();
    let rocky_9 = |id, cves: &[&str]| record(id, cves, "Rocky Linux:9", "openssl", Some("3.0.7-4.el9"));
    api.report(&rocky("web"), &[("openssl", "3.0.7-3.el9", "openssl")]).await;
    change(&api, 100, ("3.0.7-1.el9", "3.0.7-2.el9"), By::SomebodyElse).await;
    change(&api, 200, ("3.0.7-2.el9", "3.0.7-3.el9"), By::SomebodyElse).await;
    let [a, b, c] =
        [rocky_9("RLSA-A", &["CVE-2026-0001"]), rocky_9("RLSA-B", &["CVE-2026-0002"]), rocky_9("RLSA-C", &[])];
    import_at(&api, std::slice::from_ref(&a), at(50)).await;
    import_at(&api, &[a.clone(), b.clone()], at(150)).await;
    import_at(&api, &[a.clone(), b.clone()], at(300)).await;
    let expected = ["1970-01-01T00:01:40Z", "1970-01-01T00:02:30Z"];
    let open = api.all("/namespaces/acme/devices/web/vulnerabilities", 10).await;
    assert_eq!(texts(&open, "id"), ["CVE-2026-0001", "CVE-2026-0002"]);
    assert_eq!(texts(&open, "discoveredAt"), expected, "the later of the version before, and of the first import");
    let affected = api.all("/vulnerabilities?id=CVE-2026-0002", 10).await;
    assert_eq!(texts(&affected, "discoveredAt"), expected[1..]);
    change(&api, 400, ("3.0.7-3.el9", "3.0.7-4.el9"), By::SomebodyElse).await;
    import_at(&api, &[a, b, c], at(500)).await;
    for limit in [1, 10] {
        let fixed = api.all("/namespaces/acme/devices/web/vulnerabilities/fixed", limit).await;
        assert_eq!(texts(&fixed, "id"), ["CVE-2026-0001", "CVE-2026-0002", "RLSA-C"]);
        assert_eq!(texts(&fixed[..2], "discoveredAt"), expected);
        assert_eq!(fixed[2]["discoveredAt"], Value::Null, "it was fixed before anybody knew of it");
    }
}

// covers CL-11
async fn what_was_fixed_by_removing_the_package_is_told(db: &Temporary) {
    let api = Api::on(db).await;
    api.report(&rocky("web"), &[]).await;
    change(&api, 100, ("3.0.7-1.el9", "3.0.7-2.el9"), By::SomebodyElse).await;
    change_to(&api, ("web", "openssl"), 200, ("3.0.7-2.el9", None), By::SomebodyElse).await;
    let rocky_9 = |id, cve, fixed| record(id, &[cve], "Rocky Linux:9", "openssl", fixed);
    let data = [
        rocky_9("RLSA-1", "CVE-2026-0001", Some("3.0.7-2.el9")),
        rocky_9("RLSA-2", "CVE-2026-0002", Some("3.0.7-3.el9")),
        rocky_9("RLSA-3", "CVE-2026-0003", None),
    ];
    import_at(&api, &data, Timestamp::from_second(150).unwrap()).await;
    for limit in [1, 10] {
        let fixed = api.all("/namespaces/acme/devices/web/vulnerabilities/fixed", limit).await;
        assert_eq!(texts(&fixed, "id"), ["CVE-2026-0002", "CVE-2026-0003", "CVE-2026-0001"], "{limit}");
        assert_eq!((&fixed[0]["to"], &fixed[2]["to"]), (&Value::Null, &json!("3.0.7-2.el9")));
        assert_eq!(texts(&fixed, "from"), ["3.0.7-2.el9", "3.0.7-2.el9", "3.0.7-1.el9"]);
        assert_eq!(texts(&fixed[..2], "discoveredAt"), ["1970-01-01T00:02:30Z"; 2], "{fixed:?}");
        assert_eq!(texts(&fixed, "fixedAt"), ["1970-01-01T00:03:20Z", "1970-01-01T00:03:20Z", "1970-01-01T00:01:40Z"]);
    }
}

/// As Debian's data name it. The versions of a change are kept with what they were built from.
async fn what_was_fixed_is_found_by_the_source_of_a_package(db: &Temporary) {
    let api = Api::on(db).await;
    let deb = report("acme", "deb", "debian", vec![]);
    api.report(&deb, &[]).await;
    let store = &api.world.shared.store;
    let versions = ["1:3.0.1-1+b1", "1:3.0.1-1+b2", "1:3.0.2-1"];
    for version in versions {
        let source_version = Some(version.trim_start_matches("1:").split('+').next().unwrap().to_owned());
        let libssl = Package { source: "openssl".into(), source_version, ..package("libssl3", version) };
        let software = Software { packages: vec![libssl] };
        store.record_software(&deb.device, &software, "sha256:x", shell::now()).await.unwrap();
    }
    change_of(&api, ("deb", "libssl3"), 100, (versions[0], versions[1]), By::SomebodyElse).await;
    change_of(&api, ("deb", "libssl3"), 200, (versions[1], versions[2]), By::SomebodyElse).await;
    let kept = Retention { audit: SignedDuration::MAX, history: SignedDuration::MAX, gone: SignedDuration::MAX };
    assert_eq!(store.prune(kept, shell::now()).await.unwrap(), 0, "what is in a change stays");
    let data = [record("DSA-1", &["CVE-2026-0001"], "Debian:12", "openssl", Some("3.0.2-1"))];
    import_at(&api, &data, Timestamp::from_second(50).unwrap()).await;
    let fixed = api.all("/namespaces/acme/devices/deb/vulnerabilities/fixed", 10).await;
    assert_eq!(texts(&fixed, "id"), ["CVE-2026-0001"]);
    assert_eq!(fixed[0]["discoveredAt"], "1970-01-01T00:01:40Z");
    assert_eq!(api.all("/namespaces/acme/devices/deb/vulnerabilities", 10).await.len(), 0);
}

/// A result of an order of today that installed this, at this time by the device's clock.
async fn install(api: &Api, number: u32, update: &str, at: Timestamp) {
    let (store, key) = (&api.world.shared.store, PrivateKey::generate());
    let mut order = testing::order("acme", "web", &key.public());
    order.sequence = Sequence { epoch: 1, number };
    let signed = testing::signed_order(&order, &key);
    let digest = signed.order.digest();
    store.record_order(&order.device, &digest, order.sequence, &signed, order.not_after, shell::now()).await.unwrap();
    let action =
        ActionResult { update: update.into(), verb: Verb::Install, done: true, reason: None, message: String::new() };
    let result = InstallResult {
        device: order.device.clone(),
        device_key: key.public().fingerprint(),
        sequence: order.sequence,
        order_digest: digest,
        outcome: Outcome::Succeeded,
        reason: None,
        message: String::new(),
        actions: vec![action],
        steps: vec![],
        phases: vec![],
        started_at: at,
        finished_at: at,
        restart_required: Tristate::No,
        restarts: 0,
        restart_postponed: String::new(),
    };
    let envelope = Envelope::seal(&result, &key).unwrap();
    let output = format!("{}the end", "x".repeat(10_000));
    store.record_result(&order.device, &result, &envelope, &output, shell::now()).await.unwrap();
}

// covers CC-3
async fn installs_are_told_with_their_output(db: &Temporary) {
    let api = Api::on(db).await;
    api.report(&rocky("web"), &[]).await;
    for number in 1..=3 {
        install(&api, number, &format!("RLSA-{number}"), Timestamp::UNIX_EPOCH).await;
    }
    for limit in [1, 2, 100] {
        let installs = api.all("/namespaces/acme/devices/web/installs", limit).await;
        assert_eq!(texts(&installs, "sequence"), ["1.3", "1.2", "1.1"]);
        assert_eq!((&installs[0]["outcome"], &installs[0]["policy"]), (&json!("Succeeded"), &json!("p")));
        assert_eq!(
            (&installs[0]["actions"][0]["update"], &installs[0]["actions"][0]["done"]),
            (&json!("RLSA-3"), &json!(true))
        );
        let output = installs[0]["output"].as_str().unwrap();
        assert!(output.len() == 4_096 && output.ends_with("the end"), "{}", output.len());
    }
}

// covers CC-4, EM-8, EM-14
async fn statistics_are_of_what_is_recorded(db: &Temporary) {
    let api = Api::on(db).await;
    let mut exposed = report("acme", "web", "debian", vec![testing::update("DSA-1"), testing::update("DSA-2")]);
    exposed.counts.security = 2;
    api.report(&exposed, &[]).await;
    api.report(&report("acme", "db", "debian", vec![]), &[]).await;
    // First seen at 2026-11-01 by the report above.
    let seen: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
    install(&api, 1, "DSA-1", seen + SignedDuration::from_hours(1)).await;
    install(&api, 2, "DSA-2", seen + SignedDuration::from_hours(3)).await;
    install(&api, 3, "never-seen", seen).await;
    let told = api.see("/statistics?namespace=acme&days=1100").await;
    let took = json!({ "count": 2, "median": 3600, "p90": 10800, "longest": 10800 });
    assert_eq!(told["timeToDeploy"], took, "{told}");
    assert_eq!(["devices", "reporting", "exposed", "truncated"].map(|key| told[key].as_u64().unwrap()), [2, 2, 1, 0]);
    assert_eq!(told["exposure"]["count"], 2);
    assert!(told["exposure"]["median"].as_i64().unwrap() > 0, "{told}");
    let other = api.see("/statistics?namespace=other&days=1100").await;
    assert_eq!((&other["timeToDeploy"]["count"], &other["devices"]), (&json!(0), &json!(0)));
}

async fn an_operator_hears_of_their_client_alone(db: &Temporary) {
    let api = Api::on(db).await;
    api.report(&rocky("web"), &[("openssl", "3.0.7-1.el9", "openssl")]).await;
    let mut other = rocky("web");
    other.device.namespace = "other".into();
    api.report(&other, &[("openssl", "3.0.7-1.el9", "openssl")]).await;
    import(&api, &[record("RLSA-1", &["CVE-2026-0001"], "Rocky Linux:9", "openssl", None)]).await;
    let own = api.get("acme-operator", "/vulnerabilities?id=CVE-2026-0001&namespace=acme").await.1;
    assert_eq!(texts(own["items"].as_array().unwrap(), "namespace"), ["acme"]);
    assert_eq!(api.all("/vulnerabilities?id=CVE-2026-0001", 10).await.len(), 2);
    let of_other = ["", "/software", "/changes", "/installs", "/vulnerabilities", "/vulnerabilities/fixed"];
    let of_other = of_other.map(|one| format!("/namespaces/other/devices/web{one}"));
    let lists =
        ["/vulnerabilities?id=CVE-2026-0001&namespace=other", "/vulnerabilities?id=CVE-2026-0001", "/statistics"];
    for path in of_other.iter().map(String::as_str).chain(lists).chain(["/statistics?namespace=other", "/audit"]) {
        assert_eq!(api.get("acme-operator", path).await.0, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(api.get("admin", path).await.0, StatusCode::OK, "{path}");
    }
    let audit = api.all("/audit", 3).await;
    assert!(audit.len() > 8 && audit.iter().all(|line| line["outcome"] == "Forbidden"), "{audit:?}");
}
