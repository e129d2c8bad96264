//! What happened outlasts the objects that told of it: the store keeps it.

use patchwarden::record::Entries;
use patchwarden::store::{Cursor, Database, Store};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::Test;
use crate::crash::compliance;
use crate::quiet::condition;
use crate::rollout::{RINGS, with_devices};
use crate::world::{APPROVE_SECURITY, OPEN_WINDOW, POLICY, Tenant, World, eventually};

pub const TESTS: &[Test] = &[
    (
        "a_policy_and_a_group_that_are_made_again_have_their_history",
        a_policy_and_a_group_that_are_made_again_have_their_history,
    ),
    (
        "a_new_policy_waits_for_the_record_and_the_others_do_not",
        a_new_policy_waits_for_the_record_and_the_others_do_not,
    ),
];

// covers EM-3, EM-9
fn a_policy_and_a_group_that_are_made_again_have_their_history(world: &World) {
    let repository = world.repository("history", &["alpha=1.0", "alpha=1.1"]);
    let pilot = world.device("history-pilot", &repository, &[]);
    let rest = world.device("history-rest", &repository, &[]);
    let tenant = world.tenant();
    let policy = with_devices(&tenant, RINGS, &[(&pilot, "patch-ring=pilot"), (&rest, "patch-ring=none")]);
    let policy = policy.replace("suspend: true", "suspend: false");
    // It keeps on offering the update.
    let suspend = |suspend: bool| {
        let patch = format!("{{\"spec\": {{\"suspend\": {suspend}}}}}");
        world.kubectl(&["patch", "devinv", "-n", &tenant.name, "history-rest", "--type=merge", "-p", &patch]);
    };
    suspend(true);
    tenant.apply(&policy);
    let before = eventually("the rest may have the update", || {
        let status = tenant.get(&["pp", "everything"])["status"].clone();
        (status["updates"][0]["ring"] == "rest").then_some(status["updates"].clone())
    })
    .unwrap();
    let seen = eventually("both devices have been seen to offer it", || {
        let seen = tenant.get(&["agrp", "everybody"])["status"]["seen"].clone();
        seen[0]["since"].is_string().then_some(seen)
    })
    .unwrap();
    eventually("the store has both", || {
        let record = recorded(world, &tenant);
        let promoted = record.progress.values().any(|kept| kept.entry.ring.is_none());
        (promoted && record.sightings.values().any(|kept| kept.entry.shared.is_some())).then_some(())
    })
    .unwrap();

    // All that told of it goes, the device that proved the update with it.
    world.program("stop", "controller");
    let uid = || tenant.get(&["pp", "everything"])["metadata"]["uid"].clone();
    let of_the_first = uid();
    for (kind, name) in [("pp", "everything"), ("agrp", "everybody"), ("devinv", "history-pilot")] {
        world.kubectl(&["delete", "-n", &tenant.name, kind, name]);
    }
    tenant.apply(APPROVE_SECURITY);
    tenant.apply(&policy);
    assert!(tenant.get(&["pp", "everything"])["status"]["updates"].is_null());
    assert_ne!(uid(), of_the_first);
    world.program("start", "controller");

    eventually("the policy tells of it as before", || {
        (tenant.get(&["pp", "everything"])["status"]["updates"] == before).then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}: it was {before}, it is {}", tenant.get(&["pp", "everything"])["status"]));
    eventually("the group tells of it as before", || {
        (tenant.get(&["agrp", "everybody"])["status"]["seen"] == seen).then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}: it was {seen}, it is {}", tenant.get(&["agrp", "everybody"])["status"]));
    assert_eq!(rest.version("alpha"), "1.0");
    suspend(false);
    tenant.wait_for("history-rest", "its install has ended", |device| compliance(device).last.len() == 1);
    assert_eq!(rest.version("alpha"), "1.1", "no device is left that could prove it, and none has to");
}

fn a_new_policy_waits_for_the_record_and_the_others_do_not(world: &World) {
    let tenant = world.tenant();
    tenant.apply(OPEN_WINDOW);
    tenant.apply(POLICY);
    let is_ready = |name: &str, status: &str, reason: &str| {
        let ready = condition(&tenant.get(&["pp", name]), "Ready");
        (ready["status"] == status && ready["reason"] == reason).then_some(ready)
    };
    eventually("the first policy is enforced", || is_ready("everything", "True", "Enforced")).unwrap();

    world.program("stop", "controller");
    world.program("stop", "gateway");
    world.program("start", "controller");
    tenant.apply(&POLICY.replace("name: everything", "name: another"));
    let waits = eventually("the new policy waits", || is_ready("another", "False", "RecordUnread")).unwrap();
    assert!(waits["message"].as_str().is_some_and(|why| why.contains("gateway's store")), "{waits}");
    assert!(is_ready("everything", "True", "Enforced").is_some());
    assert!(world.metric("controller", "patchwarden_record_reachable") < 1.0);
    assert!(world.metric("controller", "patchwarden_record_unread") >= 1.0);

    world.program("start", "gateway");
    eventually("the new policy is enforced", || is_ready("another", "True", "Enforced")).unwrap();
    assert!(world.metric("controller", "patchwarden_record_reachable") > 0.0);
}

/// What the store has of a client: the gateway has the file, so a backup is read.
fn recorded(world: &World, tenant: &Tenant<'_>) -> Entries {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let backup = directory.path().join("backup.db");
        let options = SqliteConnectOptions::new().filename(world.database()).read_only(true);
        let mut connection = options.connect().await.unwrap();
        sqlx::query("VACUUM INTO $1").bind(backup.to_str().unwrap()).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let store = Store::open(&Database::Sqlite(backup), "test").await.unwrap();
        let (mut all, mut cursor) = (Entries::default(), Some(Cursor::Start));
        while let Some(from) = cursor {
            let (page, next) = store.recall(&tenant.name, from).await.unwrap();
            all.sightings.extend(page.sightings);
            all.progress.extend(page.progress);
            cursor = next;
        }
        store.close().await;
        all
    })
}
