//! `kill -9` at random instants of an install: of the agent, or of everything on the machine, which is another boot then. What Windows Update
//! does by itself once it is asked, and goes on with, is not played.
//!
//! `PATCHWARDEN_KILLS=200` begins with new machines until there were so many (`make test-long`); otherwise one machine is enough.

use std::time::Duration;

use patchwarden_protocol::result::Outcome;

use crate::joined;

/// A life is so many milliseconds long at most, and a tenth more after each: on a slow machine it gets somewhere, too.
const LONGEST: u64 = 3000;

/// In the middle of one install a machine may die twice: the third time it is given up.
const MOST_CUTS: u64 = 2;

// covers BY-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_update_is_installed_once() {
    let wanted: u64 = std::env::var("PATCHWARDEN_KILLS").map_or(1, |number| number.parse().unwrap());
    let (mut all, mut of_everything, mut machines) = (0, 0_u64, 0_u64);
    while all < wanted {
        let (kills, cuts) = one_machine().await;
        (all, of_everything, machines) = (all + kills, of_everything + cuts, machines + 1);
    }
    eprintln!("{all} kills, {of_everything} of them of everything, on {machines} machines");
}

/// How often something died until there was a result, and how often of that everything.
async fn one_machine() -> (u64, u64) {
    let (machine, gateway) = joined().await;
    let mut running = machine.start();
    let report = gateway.report(|report| report.counts.updates > 0).await;
    machine.slow_down(Duration::from_millis(800));
    let updates: Vec<_> = report.updates.iter().collect();
    gateway.send(&gateway.sign(&gateway.order(1, &report, &updates))).await;
    gateway.phase("Verified").await;
    let (mut kills, mut cuts) = (0, 0);
    while gateway.results().is_empty() {
        let longest = LONGEST + LONGEST * kills / 10;
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..longest))).await;
        if cuts < MOST_CUTS && rand::random_ratio(1, 4) {
            machine.restart(running);
            cuts += 1;
        } else {
            running.kill();
        }
        kills += 1;
        assert!(kills < 100, "{}", machine.log());
        gateway.forget_session();
        running = machine.start();
    }
    let result = gateway.result(1).await;
    assert_eq!(
        result.outcome,
        Outcome::Succeeded,
        "{kills} kills, {cuts} of everything: {result:#?}\n{}",
        machine.log()
    );
    assert!(result.actions.iter().all(|action| action.done), "{result:#?}");
    let after = gateway.report(|report| report.last_sequence == Some(result.sequence)).await;
    assert_eq!((after.counts.updates, &after.problems), (0, &vec![]), "{after:#?}");
    assert_eq!(machine.installs(), [1, 1], "{kills} kills, {cuts} of everything");
    drop(running);
    (kills, cuts)
}
