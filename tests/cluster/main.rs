//! Tests against a real Kubernetes, with real pods and real machines: `make cluster-tests`.
//!
//! They run one after another in one cluster (`hack/cluster run`), with one controller and one gateway; each test has a
//! namespace, and machines, of its own. Those of the Helm chart have a cluster without Patchwarden: `hack/chart cluster`.

#![allow(clippy::unused_self, reason = "what talks to the cluster is a method of the world that has one")]
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]
#![allow(clippy::disallowed_methods, reason = "what is tested here runs on the real clock")]

mod admission;
mod aggregation;
mod alertmanager;
mod api;
mod applications;
mod attacker;
mod chart;
mod copies;
mod crash;
mod failover;
mod gitops;
mod keys;
mod left;
mod mended;
mod metrics;
mod orders;
mod path;
mod plugin;
mod quiet;
mod record;
mod refusals;
mod replicas;
mod restore;
mod rights;
mod rollout;
mod simulated;
mod traces;
mod updater;
mod vulnerabilities;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use world::World;

/// A test: it fails by a panic, as everywhere in Rust.
type Test = (&'static str, fn(&World));

fn main() -> ExitCode {
    if let Some(directory) = std::env::var_os(traces::COLLECT) {
        return traces::collect(directory.as_ref());
    }
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let of_chart = std::env::var_os("PATCHWARDEN_HELM").is_some();
    let mut tests: Vec<Test> = if of_chart { chart::TESTS.to_vec() } else { of_installation() };
    if !of_chart && arguments.filter.is_none() && arguments.skip.is_empty() {
        tests.push(rights::LAST);
    }
    let start = if of_chart { World::empty } else { World::start };
    let world = if arguments.list { None } else { Some(Arc::new(start())) };
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            let world = world.clone();
            Trial::test(name, move || {
                if let Some(world) = world {
                    test(&world);
                }
                Ok(())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed()
        && let Some(world) = &world
    {
        world.show_logs();
    }
    conclusion.exit_code()
}

/// The tests in the cluster in which Patchwarden was installed by `hack/patchwarden`.
fn of_installation() -> Vec<Test> {
    [
        admission::TESTS,
        path::TESTS,
        traces::TESTS,
        plugin::TESTS,
        gitops::TESTS,
        quiet::TESTS,
        crash::TESTS,
        failover::TESTS,
        rollout::TESTS,
        mended::TESTS,
        orders::TESTS,
        record::TESTS,
        refusals::TESTS,
        updater::TESTS,
        applications::TESTS,
        keys::TESTS,
        vulnerabilities::TESTS,
        api::TESTS,
        aggregation::TESTS,
        attacker::TESTS,
        copies::TESTS,
        replicas::TESTS,
        // The last: it raises the epoch.
        restore::TESTS,
    ]
    .concat()
}
