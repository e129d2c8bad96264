//! What PostgreSQL alone can do wrong: several gateways at once, settings of the server, the way to it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::{Fingerprint, PrivateKey};
use patchwarden_protocol::report::Tristate;
use patchwarden_protocol::result::{InstallResult, Outcome};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::testing::{Server, Temporary};
use super::*;
use crate::gateway::testing::{order, report, update};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Gateways beside the one that the database was opened by.
async fn others(db: &Temporary) -> Vec<Store> {
    join_all(["b", "c"].map(async |replica| Store::open(&db.database, replica).await.unwrap())).await
}

fn result(outcome: Outcome, key: &PrivateKey) -> (InstallResult, Envelope<InstallResult>) {
    let result = InstallResult {
        device: report("acme", "web").device,
        device_key: key.public().fingerprint(),
        sequence: order("acme", "web", &key.public()).sequence,
        order_digest: "sha256:aa".into(),
        outcome,
        reason: None,
        message: String::new(),
        actions: Vec::new(),
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        restart_required: Tristate::No,
        restarts: 0,
        restart_postponed: String::new(),
        steps: vec![],
        phases: vec![],
    };
    let envelope = Envelope::seal(&result, key).unwrap();
    (result, envelope)
}

#[tokio::test]
async fn gateways_that_are_told_at_once_keep_one_result_and_spend_no_more_than_there_is() {
    let db = Temporary::postgres().await;
    let mut stores = others(&db).await;
    stores.push(db.store.clone());
    let key = PrivateKey::generate();
    let (good, bad) = (result(Outcome::Succeeded, &key), result(Outcome::Failed, &key));
    let device = &good.0.device;
    let told = (0..30).map(|n| {
        let (store, (result, envelope)) = (&stores[n % 3], if n % 2 == 0 { &good } else { &bad });
        async move { store.record_result(device, result, envelope, "", at(1)).await.unwrap() }
    });
    let told = join_all(told).await;
    let count = |of: Recording| told.iter().filter(|recording| **recording == of).count();
    assert_eq!([count(Recording::Unordered), count(Recording::Same), count(Recording::Conflict)], [1, 14, 15]);
    let uses = (0..30u8).map(|n| {
        let store = &stores[usize::from(n) % 3];
        async move {
            let user = TokenUser { key: &Fingerprint::of(&[n]), device, is_enrolled: false };
            store.use_join_token("t", user, 3, at(1)).await.unwrap()
        }
    });
    let spent = join_all(uses).await.into_iter().filter(|one| *one == TokenUse::Spent).count();
    assert_eq!(spent, 3);
}

/// Two that hold what the other one wants next: PostgreSQL ends one of them with an error.
#[tokio::test]
async fn two_devices_that_tell_of_the_same_updates_do_not_wait_for_each_other() {
    let db = Temporary::postgres().await;
    let key = PrivateKey::generate();
    let mut others = db.store.begin(&Subject::LastSeen).await.unwrap();
    let held = "INSERT INTO update_seen (namespace, id, first_seen) VALUES ('acme', 'M', 0)";
    sqlx::query(held).execute(&mut *others).await.unwrap();
    let told = [("web-1", ["A", "M", "B"]), ("web-2", ["B", "M", "A"])].map(|(name, updates)| {
        let mut document = report("acme", name);
        document.updates = updates.map(update).to_vec();
        let envelope = Envelope::seal(&document, &key).unwrap();
        let (store, fingerprint) = (db.store.clone(), key.public().fingerprint());
        tokio::spawn(async move {
            let kept = StoredReport { digest: envelope.digest(), counter: 1, envelope };
            store.record_report(&fingerprint, &document, &kept, None, at(10)).await
        })
    });
    let waiting =
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let both_wait = async {
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&db.store.readers).await.unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), both_wait).await.unwrap();
    others.commit().await.unwrap();
    for done in told {
        done.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_has_vanished_is_waited_for_no_longer_than_the_limit_and_nothing_is_half_done() {
    let server = Server::start("", |_| {});
    let Temporary { store, .. } = &Temporary::impatient(&server, Duration::from_secs(1)).await;
    let on_the_server: String =
        sqlx::query_scalar("SELECT current_setting('statement_timeout')").fetch_one(&store.readers).await.unwrap();
    assert_eq!(on_the_server, "20s");
    let mut half = store.begin(&Subject::LastSeen).await.unwrap();
    let write = || sqlx::query("INSERT INTO replica (name, beat) VALUES ('half', 0)");
    write().execute(&mut *half).await.unwrap();
    let gone = server.vanish();
    let began = tokio::time::Instant::now();
    let refused = StoreError::from(write().execute(&mut *half).await.unwrap_err()).to_string();
    assert!(refused.contains("the server has not answered for 1 s"), "{refused}");
    let refused = StoreError::from(half.commit().await.unwrap_err()).to_string();
    assert!(refused.contains("the server has not answered for 1 s"), "{refused}");
    let refused = store.ping().await.unwrap_err().to_string();
    assert!(refused.contains("the server has not answered for 5 s"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(gone);
    store.ping().await.unwrap();
    let live: Vec<String> = sqlx::query_scalar("SELECT name FROM replica").fetch_all(&store.readers).await.unwrap();
    assert_eq!(live, Vec::<String>::new(), "what was not committed is not there");
    store.join("whole").await.unwrap();
    assert_eq!(store.beat("whole").await.unwrap(), Some(vec![("whole".to_owned(), 1)]));
}

#[tokio::test]
async fn a_commit_is_on_the_servers_disk_whatever_the_server_does_by_default() {
    let db = Temporary::postgres().await;
    let Database::Postgres(url) = &db.database else { panic!("not PostgreSQL") };
    let name = url.path().trim_matches('/');
    Server::get().await.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    let store = Store::open(&db.database, "another").await.unwrap();
    let mut transaction = store.begin(&Subject::LastSeen).await.unwrap();
    let setting: String =
        sqlx::query_scalar("SELECT current_setting('synchronous_commit')").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(setting, "on");
}

#[tokio::test]
async fn a_server_that_could_lose_what_was_confirmed_is_refused() {
    let db = Temporary::postgres().await;
    let Database::Postgres(url) = &db.database else { panic!("not PostgreSQL") };
    let name = url.path().trim_matches('/');
    let server = Server::get().await;
    server.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    let refused = Store::open(&db.database, "another").await.unwrap_err().to_string();
    assert!(refused.contains("transaction_read_only is on") && refused.contains("the primary server"), "{refused}");
    server.execute("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII'").await;
    let refused = Store::open(&Database::Postgres(server.url("bytes")), "another").await.unwrap_err().to_string();
    assert!(refused.contains("server_encoding is SQL_ASCII") && refused.contains("ENCODING 'UTF8'"), "{refused}");
    let careless = Server::start("-c fsync=off", |_| {});
    let refused = Store::open(&Database::Postgres(careless.url("postgres")), "another").await.unwrap_err().to_string();
    assert!(refused.contains("fsync is off") && refused.contains("turn it on in postgresql.conf"), "{refused}");
}

#[test]
fn what_is_no_database_is_refused_with_what_to_do() {
    let refused = |text: &str| Database::parse(text, None).unwrap_err().to_string();
    assert!(refused("mysql://root@db/patchwarden").contains("give a path (SQLite) or postgres://USER@HOST/DATABASE"));
    assert!(refused("postgres://patchwarden@db").contains("names no database"));
    assert!(refused("postgres://db/patchwarden").contains("names no user"));
    assert!(refused("postgres://a@b:x/c").contains("cannot be read"));
    let file = Database::parse("/x/gateway.db", Some(Path::new("/password"))).unwrap_err().to_string();
    assert!(file.contains("SQLite has no password"), "{file}");
    let missing = Database::parse("postgres://a@b/c", Some(Path::new("/nowhere/password"))).unwrap_err().to_string();
    assert!(missing.contains("database-password-file: /nowhere/password cannot be read"), "{missing}");
}

#[test]
fn a_server_elsewhere_has_to_prove_itself_and_no_password_is_shown() {
    let mode = |text: &str| match Database::parse(text, None).unwrap() {
        Database::Postgres(url) => {
            url.query_pairs().find(|(name, _)| name == "sslmode").map(|(_, mode)| mode.into_owned())
        }
        Database::Sqlite(_) => panic!("{text} is no file"),
    };
    for elsewhere in
        ["postgres://a@db.example.com/c", "postgresql://a@10.1.2.3/c", "postgres://a@localhost/c?host=10.1.2.3"]
    {
        assert_eq!(mode(elsewhere).as_deref(), Some("verify-full"), "{elsewhere}");
    }
    for here in [
        "postgres://a@localhost/c",
        "postgres://a@[::1]/c",
        "postgres://a@%2Frun%2Fpostgresql/c",
        "postgres:///c?user=a&host=/run",
    ] {
        assert_eq!(mode(here), None, "{here}");
    }
    assert_eq!(mode("postgres://a@db.example.com/c?sslmode=require").as_deref(), Some("require"));
    let secret = Database::parse("postgres://a:secret@db.example.com/c?password=secret", None).unwrap();
    assert_eq!(format!("{secret} {secret:?}"), "postgres://db.example.com/c postgres://db.example.com/c");
}

/// A CA, and a server's certificate and key of it, for localhost.
fn certificates() -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    (ca.pem(), certificate.pem(), key.serialize_pem())
}

#[tokio::test]
async fn over_a_network_the_server_shows_its_certificate_and_the_gateway_its_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let (ca, certificate, key) = certificates();
    let settings = format!("-c port={port} -c listen_addresses=localhost -c ssl=on -c hba_file=hba.conf");
    let settings = format!("{settings} -c ssl_cert_file=../server.crt -c ssl_key_file=../server.key");
    let server = Server::start(&settings, |directory| {
        std::fs::write(directory.join("server.crt"), certificate).unwrap();
        std::fs::write(directory.join("server.key"), key).unwrap();
        std::fs::set_permissions(directory.join("server.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(directory.join("hba.conf"), "local all all trust\nhostssl all all all scram-sha-256\n").unwrap();
    });
    let mut socket = server.url("postgres");
    socket.query_pairs_mut().append_pair("port", &port.to_string());
    for statement in ["CREATE DATABASE warden", "ALTER USER patchwarden PASSWORD 'it is/secret?'"] {
        Server::execute_at(&socket, statement).await;
    }
    let files = Temporary::sqlite().await;
    let Database::Sqlite(path) = &files.database else { panic!("not SQLite") };
    let file = |name: &str, text: &str| {
        let path = path.with_file_name(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (right, wrong) = (file("ca.pem", &ca), file("other.pem", &certificates().0));
    let (password, bad) = (file("password", "it is/secret?\n"), file("bad", "guess"));
    let open = async |options: &str, password: &Path| {
        let text = format!("postgres://patchwarden@localhost:{port}/warden?{options}");
        Store::open(&Database::parse(&text, Some(password)).unwrap(), "test").await
    };
    let verified = |ca: &Path| format!("sslmode=verify-full&sslrootcert={}", ca.display());
    open(&verified(&right), &password).await.unwrap().ping().await.unwrap();
    for (options, password, words) in [
        (verified(&wrong), &password, "certificate"),
        ("sslmode=verify-full".to_owned(), &password, "certificate"),
        ("sslmode=disable".to_owned(), &password, "no encryption"),
        (verified(&right), &bad, "password authentication failed"),
    ] {
        let refused = open(&options, password).await.unwrap_err().to_string();
        assert!(refused.contains(words) && !refused.contains("secret"), "{options}: {refused}");
    }
}
