//! `kill -9` at random instants of an order for applications, as of one for packages: the files are the judge.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use patchwarden_protocol::applications::Ensure;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::wanted::kinds;
use super::{Shop, program};
use crate::guards::rollback::rolling_back;
use crate::kills::{on_machines, until_result};
use crate::world::summary;

/// Files of a directory, beside its program: to unpack and to remove them takes a while.
const PARTS: usize = 400;

/// The longest life of an agent, in milliseconds.
const LONGEST: u64 = 1500;

/// To ask it for its version takes a while, too.
fn slow(version: &str) -> Vec<u8> {
    [program(version), b"sleep 0.2\n".to_vec()].concat()
}

/// An application, and what was at its place one after the other.
struct Watched {
    path: PathBuf,
    parts: usize,
    states: Vec<State>,
}

/// The inode and the version of what is there, if something is. What is installed once more is another inode.
type State = Option<(u64, &'static str)>;

impl Watched {
    fn new(shop: &Shop, path: &str, parts: usize) -> Self {
        let mut watched = Self { path: shop.world.device.root.join(path), parts, states: Vec::new() };
        watched.look();
        watched
    }

    fn look(&mut self) {
        let state = self.state();
        if self.states.last() != Some(&state) {
            self.states.push(state);
        }
    }

    fn state(&self) -> State {
        loop {
            let inode = inode(&self.path)?;
            let found = content(&self.path);
            // An install that outlives the agent may put something else there meanwhile.
            if self::inode(&self.path) != Some(inode) {
                continue;
            }
            let found = found.unwrap();
            let version = ["1.0", "2.0"].into_iter().find(|version| found == self.whole(version));
            let files = found.keys().collect::<Vec<_>>();
            return Some((
                inode,
                version.unwrap_or_else(|| panic!("{} is half-installed: {files:?}", self.path.display())),
            ));
        }
    }

    /// Everything in it.
    fn whole(&self, version: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        if self.parts == 0 {
            return [(self.path.clone(), slow(version))].into();
        }
        let parts =
            (0..self.parts).map(|number| (self.path.join(format!("part-{number}")), version.as_bytes().to_vec()));
        parts.chain([(self.path.join("bin/app"), slow(version))]).collect()
    }

    /// It has gone from one version to the other, and nothing else was there in between or since.
    fn assert_changed_once(&self, from: Option<&str>, to: Option<&str>, told: &str) {
        let versions: Vec<Option<&str>> = self.states.iter().map(|state| state.map(|(_, version)| version)).collect();
        assert_eq!(versions, [from, to], "{}: {:?}\n{told}", self.path.display(), self.states);
    }
}

fn inode(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|metadata| metadata.ino())
}

fn content(path: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![path.to_owned()]);
    while let Some(path) = left.pop() {
        if path.symlink_metadata()?.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else {
            found.insert(path.clone(), std::fs::read(&path)?);
        }
    }
    Ok(found)
}

// covers BY-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipes_change_each_application_once() {
    on_machines(async || {
        let shop = Shop::new().await;
        let world = &shop.world;
        let recipes = [
            shop.tree_of("pw-tree", PARTS, slow),
            shop.recipe("pw-tool", &slow("2.0")),
            shop.tree_of("pw-new", PARTS, slow),
            shop.tree_of("pw-old", PARTS, slow),
        ];
        shop.install("usr/local/bin/pw-tool", &slow("1.0"));
        world.device.chroot("rm -r /opt/pw-new");
        let places =
            [("opt/pw-tree", PARTS), ("usr/local/bin/pw-tool", 0), ("opt/pw-new", PARTS), ("opt/pw-old", PARTS)];
        let mut watched = places.map(|(path, parts)| Watched::new(&shop, path, parts));
        let before = ["opt/pw-tree", "usr/local/bin/pw-tool"].map(|path| inode(&world.device.root.join(path)));
        shop.say(&shop.policy(0, &[("pw-new", Ensure::Installed), ("pw-old", Ensure::Absent)])).await;
        let (mut running, _) = shop.run(1, &recipes).await;
        // Two that come or go, and two that are updated.
        let report =
            world.gateway.report(|report| kinds(report).len() == 4 && kinds(report)[2].1 != kinds(report)[0].1).await;
        world.order(1, &report, &["recipe:pw-tree", "recipe:pw-tool", "recipe:pw-new", "recipe:pw-old", "pw-a"]).await;
        // Most machines die in the middle of it, and not of what comes before.
        world.gateway.phase(if rand::random_ratio(1, 4) { "Verified" } else { "Installing" }).await;
        let kills = until_result(world, &mut running, LONGEST, || watched.iter_mut().for_each(Watched::look)).await;
        let result = world.gateway.result(1).await;
        watched.iter_mut().for_each(Watched::look);
        let told = format!("{kills}: {result:#?}\n{}", world.device.log());
        assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 5]), "{told}");
        let (old, new) = (Some("1.0"), Some("2.0"));
        for (watched, (from, to)) in watched.iter().zip([(old, new), (old, new), (None, new), (old, None)]) {
            watched.assert_changed_once(from, to, &told);
        }
        // What is kept of what was replaced is what was there at first: nothing was there in between.
        let kept = ["opt/.patchwarden~pw-tree/of-pw-tree", "usr/local/bin/.patchwarden~pw-tool/of-pw-tool"];
        assert_eq!(kept.map(|path| inode(&world.device.root.join(path))), before, "{told}");
        assert_eq!(shop.left(), "", "{told}");
        let mut configured = world.configured("pw-a");
        configured.dedup();
        assert_eq!(
            (configured, world.at("pw-a")),
            (vec!["1.0".to_owned(), "2.0".to_owned()], "2.0".to_owned()),
            "{told}"
        );
        let after = world.report_after(1).await;
        assert!(after.problems.is_empty() && kinds(&after).is_empty(), "{after:#?}\n{told}");
        kills
    })
    .await;
}

/// Between the check that fails and the result.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipes_put_each_application_back_once() {
    on_machines(async || {
        let shop = Shop::new().await;
        let world = &shop.world;
        let recipe = shop.tree_of("pw-tree", PARTS, slow);
        world.script("healthy", "grep -q 1.0 /opt/pw-tree/part-9 || { touch /var/log/sick; exit 1; }");
        let mut watched = Watched::new(&shop, "opt/pw-tree", PARTS);
        let (mut running, report) = shop.run(1, &[recipe]).await;
        world.send_guarded(1, &report, &["recipe:pw-tree"], rolling_back(&[])).await;
        world.until_on_device("var/log/sick").await;
        watched.look();
        let kills = until_result(world, &mut running, LONGEST, || watched.look()).await;
        let result = world.gateway.result(1).await;
        watched.look();
        let back = Some(ResultReason::RolledBack);
        let told = format!("{kills}: {result:#?}\n{}", world.device.log());
        assert_eq!(summary(&result), (Outcome::Failed, back, vec![(false, back)]), "{told}");
        let [Some((before, "1.0")), Some((_, "2.0")), Some((after, "1.0"))] = watched.states[..] else {
            panic!("{:?}\n{told}", watched.states);
        };
        assert_eq!(before, after, "{told}");
        assert_eq!(shop.left() + &shop.kept(), "", "{told}");
        kills
    })
    .await;
}
