//! Gateways share a database, and they and the database are killed again and again while many devices install.
//!
//! ```text
//!   simulated agents, real machines --> kube-proxy --> 3 gateways --> PostgreSQL
//!   controller, pods of install Jobs ------'            kill -9       kill -9
//! ```
//! Orders come as they always do: from the controller, by Jobs and their pods. Of the simulated agents the package manager alone is
//! simulated (`examples/simulated-agents.rs`); how often it was run is in its own log.

mod copies;
mod gateways;
pub mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use patchwarden_agent::simulation::{AFTER, BEFORE, PACKAGE};
use patchwarden_protocol::result::Outcome;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use self::gateways::{Gateways, REPLICAS};
use self::postgres::Postgres;
use crate::Test;
use crate::crash::compliance;
use crate::simulated::{Simulated, devices, ended, has_ended, until};
use crate::world::{APPROVE_SECURITY, Device, OPEN_WINDOW, POLICY, Tenant, World, eventually};

pub const TESTS: &[Test] = &[
    (
        "each_install_ends_exactly_once_while_gateways_and_their_database_are_killed",
        each_install_ends_exactly_once_while_gateways_and_their_database_are_killed,
    ),
    ("a_copy_at_another_gateway_is_found", copies::a_copy_at_another_gateway_is_found),
];

/// Between two deaths.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Gateway(usize),
    Database,
}

// covers BY-9
fn each_install_ends_exactly_once_while_gateways_and_their_database_are_killed(world: &World) {
    let seed = number("PATCHWARDEN_SEED").unwrap_or_else(rand::random);
    let simulated = number("PATCHWARDEN_SIMULATED").map_or(20, |number| usize::try_from(number).unwrap());
    let real = number("PATCHWARDEN_REAL").map_or(1, |number| usize::try_from(number).unwrap());
    println!("PATCHWARDEN_SEED={seed} PATCHWARDEN_SIMULATED={simulated} PATCHWARDEN_REAL={real}");
    let mut random = StdRng::seed_from_u64(seed);

    let repository = world.repository("replicas", &["alpha=1.0", "alpha=1.1,postinst-sleep=2"]);
    let machines: Vec<_> = (0..real).map(|n| world.device(&format!("real-{n}"), &repository, &[])).collect();
    for machine in &machines {
        machine.install(&["alpha=1.0"]);
    }
    let mut postgres = Postgres::start();
    let mut gateways = Gateways::start(world, &postgres.url());
    let tenant = world.tenant();
    let agents = Simulated::start(world, &tenant, simulated);
    for machine in &machines {
        tenant.join(machine);
    }
    let all = simulated + real;
    until(&tenant, all, "has reported", |device| {
        let inventory = device.status.as_ref().and_then(|status| status.inventory.as_ref());
        inventory.is_some_and(|it| it.report.as_ref().is_some_and(|report| report.updates.len() == 1))
    });

    // All of them are newly eligible, and that is meant.
    tenant.apply(OPEN_WINDOW);
    tenant.apply(&POLICY.replace("mode: Install", "blastLimit: 100%, mode: Install"));
    tenant.apply(APPROVE_SECURITY);
    let began = Instant::now();
    until(&tenant, 1, "has an order", |device| compliance(device).current.is_some());
    // Each of them once, soon after another; then any of them, further on.
    let mut victims: Vec<_> = (0..REPLICAS).map(Victim::Gateway).chain([Victim::Database]).collect();
    victims.shuffle(&mut random);
    victims.extend((0..all / 5).map(|_| match random.random_range(0..=REPLICAS) {
        REPLICAS => Victim::Database,
        replica => Victim::Gateway(replica),
    }));
    let mut killed: BTreeMap<Victim, usize> = BTreeMap::new();
    for (number, victim) in victims.into_iter().enumerate() {
        let (since, before) = (Instant::now(), ended(&tenant));
        let pause = Duration::from_millis(random.random_range(0..1_500));
        // Never so often that nothing can end.
        let more = if number <= REPLICAS { 0 } else { random.random_range(0..=all / 6) };
        let ended = loop {
            let now = ended(&tenant);
            let waited = since.elapsed();
            if now == all || (waited >= pause && now >= before + more) || waited >= LONGEST_PAUSE {
                break now;
            }
        };
        if ended == all {
            break;
        }
        println!("{:.1} s: {ended} of {all} installs have ended; kill -9 of {victim:?}", began.elapsed().as_secs_f64());
        match victim {
            Victim::Gateway(replica) => gateways.kill(replica),
            Victim::Database => postgres.crash(),
        }
        *killed.entry(victim).or_default() += 1;
    }
    until(&tenant, all, "has no order any more", has_ended);
    println!("{:.1} s: all {all} installs have ended; killed: {killed:?}", began.elapsed().as_secs_f64());
    assert_eq!(killed.len(), REPLICAS + 1, "each was killed while installs were under way: {killed:?}");

    for device in devices(&tenant) {
        let compliance = compliance(&device);
        let outcomes: Vec<_> = compliance.last.iter().map(|past| past.outcome).collect();
        assert_eq!(outcomes, [Some(Outcome::Succeeded)], "{:?}", device.metadata.name);
        assert_eq!((compliance.counts.missing, compliance.counts.failed, compliance.failures.len()), (0, 0, 0));
    }
    for name in &agents.names {
        assert_eq!(agents.log(name), format!("upgrade {BEFORE} {AFTER}\n"), "{name} has installed once");
    }
    for machine in &machines {
        assert_eq!((machine.version("alpha"), machine.upgrades("alpha")), ("1.1".to_owned(), 1), "{}", machine.name);
    }
    check_history(&postgres, &tenant, &agents.names, &machines);
    eventually("every Job is over", || {
        let jobs = tenant.jobs();
        assert_eq!(jobs.len(), all, "one for each device");
        jobs.iter().all(|job| job["status"]["succeeded"] == 1).then_some(())
    })
    .unwrap();
    let logs = (0..REPLICAS).map(|replica| gateways.log(replica)).collect::<String>();
    assert!(!logs.contains("panicked"), "{logs}");
}

/// One row for each install, with one end and its output; one change of the package, by that order; nothing that was refused.
fn check_history(postgres: &Postgres, tenant: &Tenant<'_>, simulated: &[String], machines: &[Device<'_>]) {
    let expected = |row: &dyn Fn(&str, &str) -> String| {
        let of_simulated = simulated.iter().map(|name| row(name, PACKAGE));
        let of_real = machines.iter().map(|machine| row(&machine.name, "alpha"));
        of_simulated.chain(of_real).collect::<BTreeSet<_>>()
    };
    let found = |question: &str| postgres.rows(question).into_iter().collect::<BTreeSet<_>>();
    let namespace = &tenant.name;
    let installs = found(&format!(
        "SELECT device, count(*), count(signed_order), count(result), bool_and(output LIKE CASE WHEN device LIKE 'real-%'
           THEN '%Setting up alpha (1.1)%' ELSE '%{PACKAGE} is at {AFTER}%' END)
         FROM install WHERE namespace = '{namespace}' GROUP BY device"
    ));
    assert_eq!(installs, expected(&|name, _| format!("{name}|1|1|1|t")), "one row with one end and its output");
    eventually("each device's change of its package is in the history", || {
        let changes = found(&format!(
            "SELECT c.device, c.package, c.old_version, c.new_version, count(*), count(i.order_digest)
             FROM package_change c LEFT JOIN install i USING (namespace, device, order_digest)
             WHERE namespace = '{namespace}' GROUP BY 1, 2, 3, 4"
        ));
        let complete = expected(&|name, package| format!("{name}|{package}|1.0|1.1|1|1"));
        (changes == complete).then_some(()).or_else(|| (changes.len() > complete.len()).then(|| panic!("{changes:#?}")))
    })
    .unwrap();
    let refused = postgres
        .rows("SELECT who, what, object, outcome FROM audit WHERE outcome LIKE '%Conflict%' OR what = 'Result'");
    assert_eq!(refused, [""; 0], "no device has told two ends");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{variable}: {error}")))
}

fn signal(signal: &str, process: u32) {
    let output = Command::new("kill").args([signal, &process.to_string()]).output().expect("kill");
    crate::world::succeeded("kill", &[signal], &output);
}
