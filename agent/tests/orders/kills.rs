//! `kill -9` at random instants of an install: of the agent, or of everything on the machine.
//!
//! `PATCHWARDEN_KILLS=200` begins with new machines until there were so many on each (`make test-long`); otherwise one machine is
//! enough.

use std::fmt;
use std::time::Duration;

use patchwarden_protocol::order::{Dependencies, Order};
use patchwarden_protocol::result::Outcome;
use tokio::time::Instant;

use crate::beside;
use crate::device::Running;
use crate::world::{World, summary, update};

/// In the middle of one install a machine may die twice: the third time it is given up, which is another test.
const MOST_PLUGS: usize = 2;

/// How often is looked what there is: often enough to see what an install does in between.
const LOOKS: Duration = Duration::from_millis(50);

/// How often something died, and how often of that everything.
#[derive(Clone, Copy, Default)]
pub(crate) struct Kills {
    all: usize,
    of_everything: usize,
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kills, {} of them of everything", self.all, self.of_everything)
    }
}

/// Begins with new machines until there were so many kills as are wanted; `live` is the life of one.
pub(crate) async fn on_machines(live: impl AsyncFn() -> Kills) {
    let wanted: usize = std::env::var("PATCHWARDEN_KILLS").map_or(1, |number| number.parse().unwrap());
    let (mut kills, mut machines) = (Kills::default(), 0);
    while kills.all < wanted {
        let Kills { all, of_everything } = live().await;
        kills.all += all;
        kills.of_everything += of_everything;
        machines += 1;
    }
    eprintln!("{kills}, on {machines} machines");
}

/// Kills until there is a result. A life is at most `longest` milliseconds long, and a tenth more after each: on a slow machine it
/// gets somewhere, too. `look` sees what there is meanwhile, and what each one left.
pub(crate) async fn until_result(world: &World, running: &mut Running, longest: u64, mut look: impl FnMut()) -> Kills {
    let mut kills = Kills::default();
    while world.gateway.results().is_empty() {
        let longest = longest + longest * kills.all as u64 / 10;
        let end = Instant::now() + Duration::from_millis(rand::random_range(20..longest));
        while Instant::now() < end {
            tokio::time::sleep(LOOKS.min(end.saturating_duration_since(Instant::now()))).await;
            look();
        }
        if kills.of_everything < MOST_PLUGS && rand::random_ratio(1, 4) {
            world.device.pull_the_plug();
            kills.of_everything += 1;
        }
        running.kill();
        kills.all += 1;
        assert!(kills.all < 200, "{}", world.device.log());
        look();
        *running = world.device.start();
    }
    kills
}

/// Of packages.
struct Lives {
    longest: u64,
    /// The updates that are ordered.
    names: &'static [&'static str],
    /// What may be done beside them.
    dependencies: Dependencies,
    /// The package manager knows which scripts of a new package ran. rpm does not: what died with it is not run again (ARCHITECTURE.md,
    /// known limits).
    knows_scripts: bool,
}

const INSTALLS: Lives = Lives {
    longest: 2000,
    names: &["pw-slow", "pw-a", "pw-needs"],
    dependencies: Dependencies::AllowInstalls,
    knows_scripts: false,
};

/// With others that are changed and removed.
const CLEARS: Lives = Lives { names: &["pw-slow", "pw-app", "pw-a"], dependencies: Dependencies::AllowAll, ..INSTALLS };

/// What is installed or removed, from one version to the other.
type Packages<'a> = [(&'a str, &'a str, &'a str)];

impl Lives {
    async fn live(&self, world: &World) -> Kills {
        let (mut running, report) = world.run().await;
        let updates: Vec<_> = self.names.iter().map(|name| update(&report, name)).collect();
        let order = Order { dependencies: self.dependencies, ..world.gateway.order(1, &report, &updates) };
        world.gateway.send(&world.gateway.sign(&order)).await;
        world.gateway.phase("Verified").await;
        let look = || {
            if world.device.has("var/log/slow.begun") {
                world.device.let_go();
            }
        };
        let kills = until_result(world, &mut running, self.longest, look).await;
        let result = world.gateway.result(1).await;
        assert_eq!(
            summary(&result),
            (Outcome::Succeeded, None, vec![(true, None); self.names.len()]),
            "{kills}: {result:#?}"
        );
        assert_eq!(world.report_after(1).await.problems, [], "{kills}");
        kills
    }

    async fn kill(&self, make: impl AsyncFn() -> World, packages: &Packages<'_>, at: impl Fn(&World, &str) -> String) {
        on_machines(async || {
            let world = make().await;
            let kills = self.live(&world).await;
            for (package, old, new) in packages {
                assert_eq!(at(&world, package), *new, "{package} after {kills}");
                if new.is_empty() {
                    continue;
                }
                let found = world.configured(package);
                let versions: Vec<&str> = [*old, *new].into_iter().filter(|version| !version.is_empty()).collect();
                // What died in its middle is completed: its script may have been run before.
                let mut once = found.clone();
                if kills.of_everything > 0 {
                    once.dedup();
                }
                if kills.of_everything > 0 && !self.knows_scripts && old.is_empty() && once.is_empty() {
                    continue;
                }
                assert_eq!(once, versions, "{package} after {kills}");
            }
            kills
        })
        .await;
    }
}

// covers BY-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_changes_each_package_once() {
    let packages =
        [("pw-slow", "1.0", "2.0"), ("pw-a", "1.0", "2.0"), ("pw-needs", "1.0", "2.0"), ("pw-new", "", "1.0")];
    Lives { longest: 1500, knows_scripts: true, ..INSTALLS }.kill(World::new, &packages, World::at).await;
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
    Lives { longest: 3000, ..INSTALLS }.kill(|| crate::dnf::world(crate::dnf::Dnf::Four), &RPMS, rpm_at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_changes_each_package_once() {
    INSTALLS.kill(|| crate::dnf::world(crate::dnf::Dnf::Five), &RPMS, rpm_at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_changes_each_package_once() {
    Lives { longest: 5000, ..INSTALLS }.kill(crate::zypper::world, &RPMS, rpm_at).await;
}

/// What is there of each package afterwards where others change and go.
const CLEARED: [(&str, &str, &str); 7] = [
    ("pw-slow", "1.0-1", "2.0-2"),
    ("pw-app", "1.0-1", "2.0-1"),
    ("pw-a", "1.0-1", "3.0-1"),
    ("pw-lib", "1.0-1", "2.0-1"),
    ("pw-lib2", "1.0-1", "2.0-1"),
    ("pw-old", "1.0-1", ""),
    ("pw-old2", "1.0-1", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_changes_and_removes_others_once() {
    let packages = ["pw-slow", "pw-app", "pw-a", "pw-lib", "pw-lib2"].map(|name| (name, "1.0", "2.0"));
    let gone = ["pw-old", "pw-old2"].map(|name| (name, "1.0", ""));
    // Removed, and dpkg's last word on it is missing.
    let at = |world: &World, package: &str| {
        world.at(package).replace(beside::GONE, "").replace("deinstall ok config-files 1.0", "")
    };
    Lives { longest: 1500, knows_scripts: true, ..CLEARS }
        .kill(beside::apt, &[&packages[..], &gone].concat(), at)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_4_changes_and_removes_others_once() {
    Lives { longest: 3000, ..CLEARS }.kill(|| beside::with_dnf(crate::dnf::Dnf::Four), &CLEARED, rpm_at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_changes_and_removes_others_once() {
    CLEARS.kill(|| beside::with_dnf(crate::dnf::Dnf::Five), &CLEARED, rpm_at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_changes_and_removes_others_once() {
    Lives { longest: 5000, ..CLEARS }.kill(beside::with_zypper, &CLEARED, rpm_at).await;
}
