//! `kill -9` at random instants of an install: of the agent, or of everything on the machine.
//!
//! `PATCHWARDEN_KILLS=200` begins with new machines until there were so many on each (`make test-long`); otherwise one machine is
//! enough.

use std::time::Duration;

use patchwarden_protocol::result::Outcome;

use crate::world::{World, summary};

/// In the middle of one install a machine may die twice: the third time it is given up, which is another test.
const MOST_PLUGS: usize = 2;

/// A life is at most so many milliseconds long, and a tenth more after each: on a slow machine it gets somewhere, too.
struct Lives {
    longest: u64,
    /// The package manager knows which scripts of a new package ran. rpm does not: what died with it is not run again (ARCHITECTURE.md,
    /// known limits).
    knows_scripts: bool,
}

/// What is installed, from one version to the other.
type Packages<'a> = [(&'a str, &'a str, &'a str)];

impl Lives {
    /// Kills until there is a result; how often, and how often of that everything.
    async fn live(&self, world: &World) -> (usize, usize) {
        let (mut running, report) = world.run().await;
        world.order(1, &report, &["pw-slow", "pw-a", "pw-needs"]).await;
        world.gateway.phase("Verified").await;
        let (mut kills, mut plugs) = (0, 0);
        while world.gateway.results().is_empty() {
            let longest = self.longest + self.longest * kills as u64 / 10;
            tokio::time::sleep(Duration::from_millis(rand::random_range(20..longest))).await;
            if plugs < MOST_PLUGS && rand::random_ratio(1, 4) {
                world.device.pull_the_plug();
                plugs += 1;
            }
            running.kill();
            kills += 1;
            assert!(kills < 200, "{}", world.device.log());
            if world.device.has("var/log/slow.begun") {
                world.device.let_go();
            }
            running = world.device.start();
        }
        let result = world.gateway.result(1).await;
        let told = format!("{kills} kills, {plugs} of everything");
        assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 3]), "{told}: {result:#?}");
        assert_eq!(world.report_after(1).await.problems, [], "{told}");
        (kills, plugs)
    }

    async fn kill(&self, make: impl AsyncFn() -> World, packages: &Packages<'_>, at: impl Fn(&World, &str) -> String) {
        let wanted: usize = std::env::var("PATCHWARDEN_KILLS").map_or(1, |number| number.parse().unwrap());
        let (mut kills, mut plugs, mut machines) = (0, 0, 0);
        while kills < wanted {
            let world = make().await;
            let (some, of_everything) = self.live(&world).await;
            for (package, old, new) in packages {
                assert_eq!(at(&world, package), *new, "{package} after {some} kills, {of_everything} of everything");
                let found = world.configured(package);
                let versions: Vec<&str> = [*old, *new].into_iter().filter(|version| !version.is_empty()).collect();
                // What died in its middle is completed: its script may have been run before.
                let mut once = found.clone();
                if of_everything > 0 {
                    once.dedup();
                }
                if of_everything > 0 && !self.knows_scripts && old.is_empty() && once.is_empty() {
                    continue;
                }
                assert_eq!(once, versions, "{package} after {some} kills, {of_everything} of everything");
            }
            kills += some;
            plugs += of_everything;
            machines += 1;
        }
        eprintln!("{kills} kills, {plugs} of them of everything, on {machines} machines");
    }
}

// covers BY-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_changes_each_package_once() {
    let packages =
        [("pw-slow", "1.0", "2.0"), ("pw-a", "1.0", "2.0"), ("pw-needs", "1.0", "2.0"), ("pw-new", "", "1.0")];
    Lives { longest: 1500, knows_scripts: true }.kill(World::new, &packages, World::at).await;
}

/// Of rpm packages.
const RPMS: [(&str, &str, &str); 4] = [
    ("pw-slow", "1.0-1", "2.0-1"),
    ("pw-a", "1.0-1", "3.0-1"),
    ("pw-needs", "1.0-1", "2.0-1"),
    ("pw-new", "", "1.0-1"),
];

fn rpm_at(world: &World, package: &str) -> String {
    crate::rpm::versions(&world.device).remove(package).unwrap_or_default().join(" ")
}

// covers BY-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_4_changes_each_package_once() {
    Lives { longest: 3000, knows_scripts: false }
        .kill(|| crate::dnf::world(crate::dnf::Dnf::Four), &RPMS, rpm_at)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_changes_each_package_once() {
    Lives { longest: 2000, knows_scripts: false }
        .kill(|| crate::dnf::world(crate::dnf::Dnf::Five), &RPMS, rpm_at)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_changes_each_package_once() {
    Lives { longest: 5000, knows_scripts: false }.kill(crate::zypper::world, &RPMS, rpm_at).await;
}
