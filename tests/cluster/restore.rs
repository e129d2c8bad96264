//! etcd, the gateway's store, or both are set back to a backup in the middle of a rollout.
//!
//! They come last: an epoch that was raised stays, and names the Jobs of all that come after.

use std::path::PathBuf;
use std::process::Command;

use patchwarden_protocol::order::Sequence;
use serde_json::Value;

use crate::Test;
use crate::crash::compliance;
use crate::quiet::condition;
use crate::rollout::{RINGS, with_devices};
use crate::world::{Device, MAY_GO, Tenant, World, eventually, succeeded};

pub const TESTS: &[Test] = &[
    ("etcd_is_restored_in_the_middle_of_a_rollout", |world| in_the_middle_of_a_rollout(world, "etcd", &[Part::Etcd])),
    ("the_store_is_restored_in_the_middle_of_a_rollout", |world| {
        in_the_middle_of_a_rollout(world, "store", &[Part::Store]);
    }),
    ("etcd_and_the_store_are_restored_in_the_middle_of_a_rollout", |world| {
        in_the_middle_of_a_rollout(world, "both", &[Part::Etcd, Part::Store]);
    }),
];

/// What is set back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Etcd,
    Store,
}

/// A backup of everything.
struct Backup {
    place: tempfile::TempDir,
}

/// The first device of the first ring installs while its world is set back to before it was ordered to. The second is of the same
/// service, and the third of the last ring.
fn in_the_middle_of_a_rollout(world: &World, name: &str, parts: &[Part]) {
    let repository = world.repository(name, &["alpha=1.0", &format!("alpha=1.1,postinst-waits={MAY_GO}")]);
    let [first, second, rest] = ["a", "b", "rest"].map(|one| world.device(&format!("{name}-{one}"), &repository, &[]));
    second.let_go();
    rest.let_go();
    let tenant = world.tenant();
    tenant.reader(world);
    let ledger = RINGS.replace("  rollout:", "  disruption: {groupBy: app, maxUnavailable: 1}\n  rollout:");
    let (pilot, none) = ("patch-ring=pilot app=db", "patch-ring=none app=web");
    let policy = with_devices(&tenant, &ledger, &[(&first, pilot), (&second, pilot), (&rest, none)]);
    let policy = policy.replace("suspend: true", "suspend: false");
    let backup = Backup::of(world);
    tenant.apply(&policy);
    eventually("the package manager is configuring alpha", || {
        first.run(&["cat", "/var/log/dpkg.log"]).contains(" configure alpha:all 1.1").then_some(())
    })
    .unwrap();

    let Sequence { epoch, number } = compliance(&tenant.device(&first.name)).sequence;
    let interrupted = format!("{epoch}.{number}");
    let epoch = backup.restore(world, parts);
    tenant.apply(&policy);

    // Nobody but the device knows whether its install is at work: until it has told, its service counts it as down.
    eventually("the others have followed into the epoch", || {
        [&second, &rest].iter().all(|device| ready(&tenant, device)["status"] == "True").then_some(())
    })
    .unwrap();
    eventually("the first has not, and that is told", || {
        (ready(&tenant, &first)["reason"] == "EpochNotFollowed").then_some(())
    })
    .unwrap();
    let waits = explained(&tenant, &second, "ServiceAtLimit");
    assert!(waits.contains("of the devices with app=db 1 may be unavailable at a time"), "{waits}");
    let waits = explained(&tenant, &rest, "RingWaits");
    assert!(waits.contains("ring pilot of PatchPolicy/everything must prove it first"), "{waits}");
    assert_eq!([&second, &rest].map(|device| device.version("alpha")), ["1.0", "1.0"]);

    first.let_go();
    for device in [&second, &rest] {
        let done = tenant.wait_for(&device.name, "it has the update", |device| compliance(device).last.len() == 1);
        assert_eq!(compliance(&done).last[0].sequence.to_string(), format!("{epoch}-1"));
    }
    assert_eq!(ready(&tenant, &first)["status"], "True");
    let known = compliance(&tenant.device(&first.name));
    assert!(known.current.is_none() && known.updates.is_empty(), "{known:?}");
    for device in [&first, &second, &rest] {
        assert_eq!((device.version("alpha"), device.upgrades("alpha")), ("1.1".to_owned(), 1), "{}", device.name);
    }
    let told = |device: &Device<'_>, sequence: String| {
        eventually(&format!("order {sequence} of {} is in the store", device.name), || {
            let known = installs(world, &tenant, device);
            known.iter().any(|it| it["sequence"] == sequence && it["outcome"] == "Succeeded").then_some(())
        })
        .unwrap_or_else(|why| panic!("{why}: {:?}", installs(world, &tenant, device)));
    };
    told(&first, interrupted.clone());
    if parts != [Part::Store] {
        return;
    }

    // Once more, when all of it is over: what the store has confirmed and lost since, devices tell again.
    let later = backup.restore(world, parts);
    assert!(later > epoch);
    told(&first, interrupted.clone());
    for device in [&second, &rest] {
        told(device, format!("{epoch}.1"));
    }
    for device in [&first, &second, &rest] {
        eventually("it follows", || (ready(&tenant, device)["status"] == "True").then_some(())).unwrap();
        assert_eq!((device.upgrades("alpha"), compliance(&tenant.device(&device.name)).last.len()), (1, 1));
    }
}

impl Backup {
    /// Of etcd as a copy, and of the store in the words of docs/backup.md.
    fn of(world: &World) -> Self {
        let backup = Self { place: tempfile::tempdir().unwrap() };
        // The copy may take longer than a controller leads without an API server; as a pod it would be begun anew.
        world.program("stop", "controller");
        world.cluster("save-etcd", &[&backup.path(Part::Etcd).to_string_lossy()]);
        world.program("start", "controller");
        let statement = format!("VACUUM INTO '{}'", backup.path(Part::Store).display());
        let saved = Command::new("sqlite3").arg(world.database()).arg(&statement).output().expect("sqlite3");
        succeeded("sqlite3", &[&statement], &saved);
        backup
    }

    /// In the order of docs/backup.md; the epoch from then on.
    fn restore(&self, world: &World, parts: &[Part]) -> u32 {
        world.program("stop", "controller");
        world.program("stop", "gateway");
        for part in parts {
            self.put_back(world, *part);
        }
        let raise = ["raise-epoch"];
        let said = succeeded("kubectl-patchwarden", &raise, &world.run_plugin(&raise));
        world.program("start", "controller");
        world.program("start", "gateway");
        said.lines().next().and_then(|line| line.strip_prefix("epoch ")?.parse().ok()).expect("an epoch")
    }

    fn put_back(&self, world: &World, part: Part) {
        match part {
            Part::Etcd => {
                world.cluster("restore-etcd", &[&self.path(part).to_string_lossy()]);
            }
            Part::Store => {
                let database = world.database();
                for leftover in ["-wal", "-shm"] {
                    let path = PathBuf::from(format!("{}{leftover}", database.display()));
                    if path.exists() {
                        std::fs::remove_file(path).unwrap();
                    }
                }
                std::fs::copy(self.path(part), database).unwrap();
            }
        }
    }

    fn path(&self, part: Part) -> PathBuf {
        self.place.path().join(match part {
            Part::Etcd => "etcd",
            Part::Store => "gateway.db",
        })
    }
}

fn ready(tenant: &Tenant<'_>, device: &Device<'_>) -> Value {
    condition(&tenant.get(&["devinv", &device.name]), "Ready")
}

/// Orders of a device and what came of them, by the gateway's API.
pub fn installs(world: &World, tenant: &Tenant<'_>, device: &Device<'_>) -> Vec<Value> {
    let url = format!("https://{}:8445", world.gateway_address());
    let arguments = ["history", &device.name, "--installs", "-o", "json", "--api-url", &url];
    let told = succeeded("kubectl-patchwarden", &arguments, &tenant.plugin_inside(&arguments));
    let told: Value = serde_json::from_str(&told).expect("JSON");
    told["items"].as_array().cloned().unwrap_or_default()
}

/// What `explain` says of a device, once that is in it.
fn explained(tenant: &Tenant<'_>, device: &Device<'_>, why: &str) -> String {
    let explain = || {
        let told = tenant.plugin(&["explain", &device.name], "");
        String::from_utf8_lossy(&told.stdout).into_owned()
    };
    eventually(&format!("{} is blocked by {why}", device.name), || Some(explain()).filter(|told| told.contains(why)))
        .unwrap_or_else(|error| panic!("{error}: {}", explain()))
}
