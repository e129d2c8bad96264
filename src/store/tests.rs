//! Of the whole store, on both databases: its schema, who may open it, what comes back from a backup.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::{Package, Software};

use super::testing::{Temporary, on_both};
use super::*;
use crate::gateway::testing::{report, update};
use crate::record::{Entries, Kept, Pause};

on_both!(
    a_database_of_a_later_gateway_is_left_alone,
    what_was_printed_is_kept_whatever_it_is,
    a_backup_has_everything_and_can_be_gone_on_with,
    a_schema_that_is_there_is_not_made_again,
    what_several_gateways_see_is_told_once,
);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn entry(detail: &str) -> AuditEntry<'_> {
    AuditEntry { who: "who", what: "what", object: "object", outcome: "outcome", detail }
}

/// Every database out there has the digests of the migrations that made it: what is out is never edited, another one follows it.
#[test]
fn a_migration_that_is_out_stays_as_it_is() {
    let digests = |migrations: &sqlx::migrate::Migrator| -> Vec<(i64, String)> {
        let short = |bytes: &[u8]| format!("{:08x}", u32::from_be_bytes(bytes[..4].try_into().unwrap()));
        migrations.iter().map(|one| (one.version, short(&one.checksum))).collect()
    };
    let all = |digests: [(i64, &str); 4]| digests.map(|(version, digest)| (version, digest.to_owned())).to_vec();
    let sqlite = all([(1, "22f7e21a"), (2, "6f4d4516"), (3, "71b189a6"), (4, "2f8a1a15")]);
    let postgres = all([(1, "620262ff"), (2, "2b183b76"), (3, "8f0affd5"), (4, "92804805")]);
    assert_eq!(digests(&database::SQLITE)[..4], sqlite);
    assert_eq!(
        digests(&database::SQLITE)[4..],
        [
            (7, "8046e7fa"),
            (8, "9e24e6c9"),
            (9, "75de50a0"),
            (10, "36849774"),
            (11, "f8a41be6"),
            (12, "a2a54e9c"),
            (13, "a60ac410"),
            (14, "ded5f063"),
            (15, "92205bc6"),
            (16, "5c331e13"),
            (17, "6aee891f"),
            (18, "9ac091ef"),
        ]
        .map(|(version, digest)| (version, digest.to_owned()))
    );
    assert_eq!(digests(&database::POSTGRES)[..4], postgres);
    assert_eq!(
        digests(&database::POSTGRES)[4..],
        [
            (6, "180ec4f8"),
            (7, "8046e7fa"),
            (8, "981551d5"),
            (9, "090d8b5a"),
            (10, "36849774"),
            (11, "50697034"),
            (12, "a2a54e9c"),
            (13, "9308d9a3"),
            (14, "deef4b2d"),
            (15, "92205bc6"),
            (16, "5c331e13"),
            (17, "6aee891f"),
            (18, "28ebbb70"),
        ]
        .map(|(version, digest)| (version, digest.to_owned()))
    );
}

/// Columns: their types, and whether they are always there.
async fn columns(db: &Temporary, query: &'static str) -> BTreeMap<String, (String, i64)> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(query).fetch_all(&db.store.readers).await.unwrap();
    rows.into_iter().map(|(column, kind, required)| (column, (kind, required))).collect()
}

/// But for what several gateways need, and one with a file does not.
#[tokio::test]
async fn both_databases_have_the_same_tables() {
    let of_file = "SELECT t.name || '.' || c.name, replace(lower(c.type), 'integer', 'bigint'), max(c.\"notnull\", c.pk > 0)
                   FROM sqlite_schema AS t, pragma_table_info(t.name) AS c WHERE t.type = 'table' AND substr(t.name, 1, 1) <> '_'";
    let of_server =
        "SELECT (table_name || '.' || column_name)::text, data_type::text, (is_nullable = 'NO')::int::bigint
                     FROM information_schema.columns WHERE table_schema = 'public' AND left(table_name, 1) <> '_'
                         AND table_name NOT IN ('replica', 'session')";
    let of_file = columns(&Temporary::sqlite().await, of_file).await;
    assert!(of_file.len() > 50, "{of_file:?}");
    assert_eq!(columns(&Temporary::postgres().await, of_server).await, of_file);
}

async fn what_several_gateways_see_is_told_once(db: &Temporary) {
    let device = report("acme", "web").device;
    let told = |second, detail: &'static str| {
        let (store, device) = (db.store.clone(), device.clone());
        async move { store.audit_once(&device, entry(detail), at(second - 10), at(second)).await.unwrap() }
    };
    futures::future::join_all((100..105).map(|second| told(second, "generation 1"))).await;
    assert_eq!(db.store.audit_tail(100).await.unwrap().len(), 1);
    told(106, "generation 2").await;
    told(200, "generation 1").await;
    assert_eq!(db.store.audit_tail(100).await.unwrap().len(), 3, "another one, and the same long after");
}

async fn a_schema_that_is_there_is_not_made_again(db: &Temporary) {
    db.store.audit(entry("kept"), at(1)).await.unwrap();
    let again = db.reopened().await;
    assert_eq!(again.audit_tail(10).await.unwrap()[0].detail, "kept");
}

async fn a_database_of_a_later_gateway_is_left_alone(db: &Temporary) {
    db.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', TRUE, '', 0)",
    )
    .await;
    db.store.close().await;
    let refused = Store::open(&db.database, "older").await.unwrap_err();
    assert!(matches!(refused, StoreError::Newer { version: 9999, .. }), "{refused}");
    assert!(refused.to_string().contains("run that version or a later one, or restore the backup"), "{refused}");
}

async fn what_was_printed_is_kept_whatever_it_is(db: &Temporary) {
    db.store.audit(entry("a\0b"), at(1)).await.unwrap();
    assert_eq!(db.store.audit_tail(1).await.unwrap()[0].detail, "a\u{fffd}b");
    let hostile = "'; DROP TABLE audit; -- \u{1f4a5} $1 ?";
    db.store.audit(entry(hostile), at(2)).await.unwrap();
    assert_eq!(db.store.audit_tail(1).await.unwrap()[0].detail, hostile);
}

async fn a_backup_has_everything_and_can_be_gone_on_with(db: &Temporary) {
    let key = PrivateKey::generate();
    let mut document = report("acme", "web");
    document.updates = vec![update("DSA-1"), update("DSA-1"), update("DSA-0")];
    let envelope = Envelope::seal(&document, &key).unwrap();
    let stored = StoredReport { digest: envelope.digest(), counter: 1, envelope };
    let openssl = Package {
        name: "openssl".into(),
        arch: "amd64".into(),
        version: "3".into(),
        source: "openssl".into(),
        source_version: None,
    };
    let software = Software { packages: vec![openssl] };
    let fingerprint = key.public().fingerprint();
    db.store.record_report(&fingerprint, &document, &stored, Some(&software), at(100)).await.unwrap();
    let pause = Kept::new(Pause { paused: at(10), resumed: None });
    let entries = Entries { pauses: [("servers".to_owned(), pause)].into(), ..Entries::default() };
    db.store.record("acme", &entries, at(100)).await.unwrap();
    let user = TokenUser { key: &fingerprint, device: &document.device, is_enrolled: false };
    db.store.use_join_token("token", user, 1, at(100)).await.unwrap();
    db.store.audit(entry("before"), at(100)).await.unwrap();

    let backup = db.backup().await;
    db.store.audit(entry("after"), at(101)).await.unwrap();
    let restored = Store::open(&backup, "another").await.unwrap();
    let tail = restored.audit_tail(10).await.unwrap();
    assert_eq!(tail.iter().map(|line| line.detail.as_str()).collect::<Vec<_>>(), ["before"]);
    assert_eq!(restored.device(&document.device).await.unwrap(), db.store.device(&document.device).await.unwrap());
    assert_eq!(restored.software(&document.device).await.unwrap(), software);
    assert_eq!(restored.first_seen("acme", "DSA-0").await.unwrap(), Some(at(100)));
    let recalled = restored.recall("acme", Cursor::Pauses(String::new())).await.unwrap();
    assert_eq!(recalled.0.pauses["servers"].entry.paused, at(10));
    assert_eq!(restored.use_join_token("token", user, 1, at(102)).await.unwrap(), TokenUse::Repeated);
    restored.audit(entry("goes on"), at(103)).await.unwrap();
    assert_eq!(restored.audit_tail(1).await.unwrap()[0].detail, "goes on");
    restored.close().await;
}

#[tokio::test]
async fn a_file_serves_one_gateway_and_says_whose_it_is() {
    let db = Temporary::sqlite().await;
    let refused = Store::open(&db.database, "gateway-1").await.unwrap_err().to_string();
    let holder = format!("is in use by the gateway test (process {})", std::process::id());
    assert!(refused.contains(&holder) && refused.contains("--database postgres://"), "{refused}");
    let next = db.reopened().await;
    let refused = Store::open(&db.database, "gateway-1").await.unwrap_err().to_string();
    assert!(refused.contains("is in use by the gateway another (process "), "{refused}");
    next.close().await;
}

#[test]
fn placeholders_are_numbered_row_by_row() {
    assert_eq!(placeholders(1, 1), "($1)");
    assert_eq!(placeholders(2, 3), "($1, $2, $3), ($4, $5, $6)");
}
