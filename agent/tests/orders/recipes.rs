//! Third-party applications, by recipes: from a server with TLS, on a device that has apt beside it.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::recipes::{Artifact, Catalogue, Content, Detect, Install, Recipe, Release};
use patchwarden_protocol::report::{Classification, ProblemCode, Report, Severity};
use patchwarden_protocol::result::{Outcome, ResultReason};
use sha2::{Digest as _, Sha256};

use crate::device::{self, CONFIGURATION, Package, Running, SLOW, Served, hex, stdout};
use crate::gateway::{action, digest};
use crate::world::{World, summary, update};

/// The catalogue that the device keeps.
const KEPT: &str = "var/lib/patchwarden/recipes.json";

/// What setcap(8) writes for `cap_net_bind_service=ep` (`struct vfs_cap_data` of linux/capability.h, version 2), and where.
const MAY_BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CAPABILITY: &str = "security.capability";

/// A world whose device believes one publisher, and the server that his recipes name.
struct Shop {
    world: World,
    key: PrivateKey,
    served: Served,
    place: PathBuf,
}

impl Shop {
    async fn new() -> Self {
        Self::of(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]).await
    }

    async fn of(installed: &[Package], offered: &[Package]) -> Self {
        let world = World::of(installed, offered).await;
        let key = PrivateKey::generate();
        let configuration = world.device.read(CONFIGURATION);
        let publisher = String::from(key.public());
        world.device.write(CONFIGURATION, &format!("recipe_publishers = ['{publisher}']\n{configuration}"));
        let place = world.device.root.join("srv/shop");
        std::fs::create_dir_all(&place).unwrap();
        let (served, authority) = device::serve_with_tls(place.clone()).await;
        world.device.write("etc/hosts", "127.0.0.1 localhost\n");
        std::fs::create_dir_all(world.device.root.join("etc/ssl/certs")).unwrap();
        world.device.write("etc/ssl/certs/ca-certificates.crt", &authority);
        Self { world, key, served, place }
    }

    /// What the server has under this name, as a recipe says it.
    fn artifact(&self, name: &str, bytes: &[u8], unpacked: u64) -> Artifact {
        std::fs::write(self.place.join(name), bytes).unwrap();
        Artifact {
            arch: std::env::consts::ARCH.into(),
            url: format!("https://localhost:{}/{name}", self.served.address.port()),
            sha256: hex(&Sha256::digest(bytes)),
            size: bytes.len() as u64,
            unpacked,
        }
    }

    /// A program, at its path in version 1.0, and its recipe for version 2.0.
    fn tool(&self, name: &str) -> Recipe {
        self.install(&format!("usr/local/bin/{name}"), &program("1.0"));
        self.recipe(name, &program("2.0"))
    }

    /// The recipe of a program for version 2.0, whatever `bytes` are.
    fn recipe(&self, name: &str, bytes: &[u8]) -> Recipe {
        let install = Install { path: format!("/usr/local/bin/{name}"), content: Content::File };
        recipe(name, install, String::new(), self.artifact(name, bytes, bytes.len() as u64))
    }

    /// A directory, at its path in version 1.0, and its recipe for version 2.0.
    fn tree(&self, name: &str, files: usize) -> Recipe {
        self.install(&format!("opt/{name}/bin/app"), &program("1.0"));
        for number in 0..files {
            self.install(&format!("opt/{name}/part-{number}"), b"1.0");
        }
        let mut entries = vec![(format!("{name}-2.0/bin/app"), 0o755, program("2.0"))];
        entries.extend((0..files).map(|number| (format!("{name}-2.0/part-{number}"), 0o644, b"2.0".to_vec())));
        let unpacked = entries.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
        let artifact = self.artifact(&format!("{name}.tar.gz"), &archive(&entries), unpacked);
        let install = Install { path: format!("/opt/{name}"), content: Content::Tree { strip: 1 } };
        recipe(name, install, "bin/app".into(), artifact)
    }

    fn install(&self, path: &str, bytes: &[u8]) {
        let path = self.world.device.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        self.world
            .device
            .chroot(&format!("chmod 755 /{}", path.strip_prefix(&self.world.device.root).unwrap().display()));
    }

    fn sign(&self, serial: u64, recipes: &[Recipe]) -> Vec<u8> {
        signed(&self.key, serial, Timestamp::now() + SignedDuration::from_hours(1), recipes)
    }

    async fn run(&self, serial: u64, recipes: &[Recipe]) -> (Running, Report) {
        self.world.gateway.offer_recipes(self.sign(serial, recipes)).await;
        let running = self.world.device.start();
        let has_recipes = |report: &Report| report.updates.iter().any(|update| update.id.starts_with("pkg:generic/"));
        let report = self.world.gateway.report(has_recipes).await;
        (running, report)
    }

    /// The version that a program says, whoever runs it.
    fn says(&self, program: &str) -> String {
        let said = self.world.device.chroot(&format!("{program} --version"));
        said.trim().rsplit_once(' ').unwrap().1.to_owned()
    }

    /// Directories that an install has left beside an application.
    fn left(&self) -> String {
        self.world.device.chroot("ls -d /opt/.patchwarden-* /usr/local/bin/.patchwarden-* 2>/dev/null || true")
    }
}

/// Says its version and who runs it: a recipe's pattern wants to see nobody.
fn program(version: &str) -> Vec<u8> {
    format!("#!/bin/sh\necho \"run by $(id -u):$(id -G) version {version}\"\n").into_bytes()
}

fn recipe(name: &str, install: Install, path: String, artifact: Artifact) -> Recipe {
    Recipe {
        name: name.into(),
        title: format!("The application {name}"),
        install,
        detect: Detect::Program {
            path,
            arguments: vec!["--version".into()],
            pattern: "run by 65534:65534 version ([0-9.]+)".into(),
        },
        release: Release {
            version: "2.0".into(),
            published: "2026-11-01T00:00:00Z".parse().unwrap(),
            classification: Classification::Security,
            severity: Severity::High,
            cves: vec!["CVE-2026-12345".into()],
            artifacts: vec![artifact],
        },
    }
}

fn signed(key: &PrivateKey, serial: u64, expires: Timestamp, recipes: &[Recipe]) -> Vec<u8> {
    let made = expires - SignedDuration::from_hours(24);
    let catalogue = Catalogue { publisher: "Shop".into(), serial, made, expires, recipes: recipes.to_vec() };
    assert_eq!(catalogue.check(), Ok(()));
    serde_json::to_vec(&Envelope::seal(&catalogue, key).unwrap()).unwrap()
}

/// Names as they are: the library would refuse to write some of them.
fn archive(entries: &[(String, u32, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, mode, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, &bytes[..]).unwrap();
    }
    let mut encoder = builder.into_inner().unwrap();
    encoder.flush().unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_are_updated_beside_packages() {
    let owned = |version| Package { file: "usr/local/bin/pw-owned", ..Package::new("pw-a", version) };
    let shop = Shop::of(&[owned("1.0")], &[owned("2.0")]).await;
    let world = &shop.world;
    let mut recipes = vec![shop.tool("pw-tool"), shop.tree("pw-tree", 3)];
    // Not here; the package manager's; a link to something else.
    recipes.extend(["pw-absent", "pw-owned", "pw-link"].map(|name| shop.recipe(name, &program("2.0"))));
    world
        .device
        .chroot("ln -s pw-tool /usr/local/bin/pw-link; cd /usr/local/bin; chgrp 1234 pw-tool; chmod 705 pw-tool");
    let file = world.device.root.join("usr/local/bin/pw-tool");
    rustix::fs::setxattr(&file, CAPABILITY, &MAY_BIND, rustix::fs::XattrFlags::empty()).unwrap();
    let (mut running, report) = shop.run(7, &recipes).await;
    assert_eq!(report.problems, [], "{report:#?}");
    assert_eq!(report.counts.updates, 3, "{report:#?}");
    let tool = update(&report, "recipe:pw-tool");
    assert_eq!((tool.id.as_str(), tool.origin.as_str()), ("pkg:generic/pw-tool@2.0", "recipes:Shop"));
    assert_eq!((tool.severity, &tool.cves[..]), (Severity::High, &["CVE-2026-12345".to_owned()][..]));
    assert_eq!((tool.packages[0].installed.as_str(), tool.title.as_str()), ("1.0", "The application pw-tool 2.0"));
    world.order(1, &report, &["recipe:pw-tool", "pw-a", "recipe:pw-tree"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None); 3]),
        "{result:#?}\n{}",
        world.device.log()
    );
    for program in ["/usr/local/bin/pw-tool", "/opt/pw-tree/bin/app"] {
        assert_eq!(shop.says(program), "2.0");
    }
    assert_eq!(world.device.chroot("stat -c '%a %g' /usr/local/bin/pw-tool /opt/pw-tree/bin/app"), "705 1234\n755 0\n");
    let mut kept = [0; 64];
    let length = rustix::fs::getxattr(&file, CAPABILITY, &mut kept).unwrap();
    assert_eq!(kept[..length], MAY_BIND);
    assert_eq!(world.device.read("opt/pw-tree/part-2"), "2.0");
    assert_eq!(world.at("pw-a"), "2.0");
    assert_eq!(shop.left(), "");
    let output = world.gateway.output();
    assert!(output.contains("recipe pw-tool: 1.0 -> 2.0") && output.contains("Setting up pw-a (2.0)"), "{output}");
    let after = world.report_after(1).await;
    assert!(after.counts.updates == 0 && after.removable.iter().all(|one| !one.id.contains("generic")), "{after:#?}");
    let changes = stdout(&mut world.device.agent(&["changes"]));
    assert!(changes.contains("recipe:pw-tool"), "{changes}");
    // An older catalogue changes nothing, and is told.
    world.gateway.offer_recipes(shop.sign(6, &[])).await;
    let told = world.gateway.report(|report| !report.problems.is_empty()).await;
    assert_eq!(told.problems[0].code, ProblemCode::RecipesRefused);
    assert!(told.problems[0].message.contains("serial 6 was refused: this device has 7"), "{:?}", told.problems);
    // What is kept is told the gateway in the next session.
    running.kill();
    let later = shop.sign(8, &recipes[..1]);
    world.gateway.offer_recipes(later.clone()).await;
    let mut running = world.device.start();
    let has_no_tree = |report: &Report| report.counts.packages + 1 == after.counts.packages;
    world.gateway.report(|report| has_no_tree(report) && report.problems.is_empty()).await;
    running.kill();
    let _running = world.device.start();
    world.gateway.until("what it has", |gateway| (gateway.recipes_held() == Some(digest(&later))).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_file_changes_nothing_and_does_not_hold_up_the_others() {
    use ResultReason::{DiskFull, DownloadFailed, PackageManagerFailed};
    let shop = Shop::new().await;
    let world = &shop.world;
    let hostile = |name: &str, entry: &str, mode| {
        let mut recipe = shop.tree(name, 0);
        let entries =
            [(format!("{name}-2.0/bin/app"), 0o755, program("2.0")), (entry.to_owned(), mode, b"hostile".to_vec())];
        recipe.release.artifacts = vec![shop.artifact(&format!("{name}.tar.gz"), &archive(&entries), 10_000)];
        recipe
    };
    let climbs = hostile("pw-climbs", "pw-climbs-2.0/../../../../etc/hostile", 0o644);
    let setuid = hostile("pw-setuid", "pw-setuid-2.0/bin/root", 0o4755);
    // Its archive says that it is another version.
    shop.tool("pw-liar");
    let liar = shop.recipe("pw-liar", &program("1.5"));
    shop.tool("pw-broken");
    let broken = shop.recipe("pw-broken", b"\x7fELF no program");
    world.device.chroot("mkdir -p /opt/small; mount -t tmpfs -o size=1m,mode=755 tmpfs /opt/small");
    shop.install("opt/small/pw-large", &program("1.0"));
    let mut large = shop.recipe("pw-large", &program("2.0"));
    large.install.path = "/opt/small/pw-large".into();
    let good = shop.tool("pw-good");
    let (mut running, report) = shop.run(1, &[climbs, setuid, liar, broken, large, good.clone()]).await;
    assert_eq!(report.problems, [], "{report:#?}");
    let names =
        ["pw-climbs", "pw-setuid", "pw-liar", "pw-broken", "pw-large", "pw-good"].map(|name| format!("recipe:{name}"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let result = world.carry_out_all(1, Verb::Install, &names).await;
    let failed = |reason| (false, Some(reason));
    let bad = failed(PackageManagerFailed);
    let expected = vec![bad, bad, bad, bad, failed(DiskFull), (true, None)];
    assert_eq!(summary(&result).2, expected, "{result:#?}");
    let words = [
        "leads out of the archive",
        "is setuid or setgid",
        "says that it is 1.5: the recipe is wrong",
        "does not run here",
        "are needed",
    ];
    for (action, words) in result.actions.iter().zip(words) {
        assert!(action.message.contains(words), "{}", action.message);
    }
    assert!(!world.device.has("etc/hostile") && !world.device.has("opt/pw-setuid/bin/root"));
    for program in ["/opt/pw-climbs/bin/app", "/opt/pw-setuid/bin/app", "/usr/local/bin/pw-liar", "/opt/small/pw-large"]
    {
        assert_eq!(shop.says(program), "1.0", "{program}");
    }
    assert_eq!(shop.says("/usr/local/bin/pw-good"), "2.0");
    assert_eq!(shop.left() + &world.device.chroot("ls -A /opt/small"), "pw-large\n");
    // What comes is not what the publisher has signed.
    let spoiled = shop.tool("pw-good");
    shop.served.spoil("pw-good");
    running.kill();
    world.gateway.offer_recipes(shop.sign(2, &[spoiled])).await;
    let _running = world.device.start();
    let report = world.gateway.report(|report| report.counts.updates == 2).await;
    world.order(2, &report, &["recipe:pw-good"]).await;
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result).2, [failed(DownloadFailed)], "{result:#?}");
    assert!(result.message.contains("has SHA-256"), "{}", result.message);
    assert_eq!(shop.says("/usr/local/bin/pw-good"), "1.0");
    assert_eq!(world.gateway.purposes().len(), 1, "for that nobody was asked for a grant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipes_of_nobody_who_is_believed_count_for_nothing() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipes = [shop.tool("pw-tool")];
    let hour = SignedDuration::from_hours(1);
    world.gateway.offer_recipes(signed(&PrivateKey::generate(), 1, Timestamp::now() + hour, &recipes)).await;
    let mut running = world.device.start();
    let told = async |words: &str| {
        let says = |report: &Report| report.problems.iter().any(|problem| problem.message.contains(words));
        let report = world.gateway.report(says).await;
        assert_eq!((report.problems[0].code, report.updates.len()), (ProblemCode::RecipesRefused, 1), "{report:#?}");
    };
    told("no publisher that this device believes").await;
    world.gateway.offer_recipes(signed(&shop.key, 1, Timestamp::now() - hour, &recipes)).await;
    told("expired").await;
    assert!(!world.device.has(KEPT));
    let taken = shop.sign(1, &recipes);
    world.gateway.offer_recipes(taken.clone()).await;
    world.gateway.report(|report| report.problems.is_empty() && report.updates.len() == 2).await;
    // What was refused is forgotten where the next session does not bring it again.
    world.gateway.offer_recipes(signed(&PrivateKey::generate(), 2, Timestamp::now() + hour, &recipes)).await;
    world.gateway.report(|report| !report.problems.is_empty()).await;
    world.gateway.set_down(true);
    world.gateway.offer_recipes(taken).await;
    world.gateway.set_down(false);
    let result = world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(world.report_after(1).await.problems, []);
    // Its owner believes nobody any more.
    running.kill();
    let configuration = world.device.read(CONFIGURATION);
    let without = configuration.lines().filter(|line| !line.contains("recipe_")).collect::<Vec<_>>().join("\n") + "\n";
    world.device.write(CONFIGURATION, &without);
    let _running = world.device.start();
    world.gateway.report(|report| report.updates.is_empty()).await;
    assert_eq!(world.gateway.recipes_held(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vendor_who_does_not_answer_holds_up_nobody_else() {
    let shop = Shop::new().await;
    let world = &shop.world;
    // Each with other bytes: files that are the same are one.
    let mut recipes = ["pw-down", "pw-gone", "pw-good"].map(|name| {
        shop.tool(name);
        shop.recipe(name, &[program("2.0"), format!("# {name}\n").into_bytes()].concat())
    });
    recipes[0].release.artifacts[0].url = "https://localhost:1/pw-down".into();
    std::fs::remove_file(shop.place.join("pw-gone")).unwrap();
    let (_running, report) = shop.run(1, &recipes).await;
    let names = ["recipe:pw-down", "recipe:pw-gone", "recipe:pw-good", "pw-a"];
    let missed = (false, Some(ResultReason::DownloadFailed));
    let actions = |verb| names.iter().map(|name| action(verb, update(&report, name))).collect();
    let downloaded = world.carry_out(1, actions(Verb::Download)).await;
    assert_eq!(summary(&downloaded).2, [missed, missed, (true, None), (true, None)], "{downloaded:#?}");
    // Without what is here already, too.
    world.device.chroot("rm -r /var/lib/patchwarden/downloads");
    let result = world.carry_out(2, actions(Verb::Install)).await;
    for (result, name) in [(&downloaded, "downloaded"), (&result, "installed")] {
        let said: Vec<&str> = result.actions.iter().map(|action| action.message.as_str()).collect();
        assert!(said[0].contains("localhost:1/pw-down") && said[1].contains("404"), "{name}: {said:?}");
    }
    assert_eq!(summary(&result).2, [missed, missed, (true, None), (true, None)], "{result:#?}");
    assert_eq!((world.at("pw-a"), shop.says("/usr/local/bin/pw-good")), ("2.0".into(), "2.0".into()));
    assert_eq!(shop.says("/usr/local/bin/pw-down"), "1.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_download() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipe = shop.tool("pw-tool");
    let (mut running, report) = shop.run(1, &[recipe]).await;
    shop.served.stall("pw-tool");
    world.order(1, &report, &["recipe:pw-tool"]).await;
    world.gateway.until("the download", |_| (shop.served.requests("pw-tool") == 1).then_some(())).await;
    assert!(running.stops_within(Duration::from_secs(20)).await, "{}", world.device.log());
    shop.served.mend();
    let _running = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_that_goes_away_during_an_order_falsifies_nothing() {
    const LATE: &str = "touch /var/log/late.begun; while [ ! -e /srv/late ]; do sleep 0.1; done";
    let names = ["pw-slow", "pw-late", "pw-a"];
    let offered = [
        Package { postinst: SLOW, ..Package::new("pw-slow", "2.0") },
        Package { postinst: LATE, ..Package::new("pw-late", "2.0") },
        Package::new("pw-a", "2.0"),
    ];
    let shop = Shop::of(&names.map(|name| Package::new(name, "1.0")), &offered).await;
    let world = &shop.world;
    let recipes = ["pw-one", "pw-two", "pw-three"].map(|name| shop.tool(name));
    let (_running, report) = shop.run(1, &recipes).await;
    let both = (Outcome::Succeeded, None, vec![(true, None); 2]);
    // Another one comes, without the application, after that was replaced.
    world.order(1, &report, &["recipe:pw-one", "pw-slow"]).await;
    world.until_on_device("var/log/slow.begun").await;
    let later = shop.sign(2, &recipes[1..]);
    world.gateway.offer_recipes(later.clone()).await;
    let waits = || world.device.log().contains("looked at after the order").then_some(());
    world.gateway.until("the recipes", |_| waits()).await;
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), both, "{result:#?}");
    let is_taken = |now: &Report| now.last_sequence.is_some() && now.counts.packages + 1 == report.counts.packages;
    world.gateway.report(is_taken).await;
    assert_eq!(world.device.read(KEPT).as_bytes(), later);
    // It expires after the application was replaced.
    let report = world.report_after(1).await;
    world.order(2, &report, &["recipe:pw-two", "pw-late"]).await;
    world.until_on_device("var/log/late.begun").await;
    let hour = SignedDuration::from_hours(1);
    let expired = String::from_utf8(signed(&shop.key, 3, Timestamp::now() - hour, &recipes[1..])).unwrap();
    world.device.write(KEPT, &expired);
    world.device.write("srv/late", "");
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result), both, "{result:#?}");
    // It has expired before anything is done.
    let actions = ["recipe:pw-three", "pw-a"].map(|name| action(Verb::Install, update(&report, name)));
    let result = world.carry_out(3, actions.into()).await;
    let superseded = (false, Some(ResultReason::Superseded));
    assert_eq!(summary(&result).2, [superseded, (true, None)], "{result:#?}");
    assert_eq!((world.at("pw-a"), shop.says("/usr/local/bin/pw-three")), ("2.0".into(), "1.0".into()));
}

/// What is at its old version is what is ordered, whatever the machine's life was like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_an_application_is_the_old_one_or_the_new_one() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let slow = |version: &str| [program(version), b"sleep 0.2\n".to_vec()].concat();
    let mut recipe = shop.tree("pw-tree", 400);
    shop.install("opt/pw-tree/bin/app", &slow("1.0"));
    let mut entries = vec![("x/bin/app".to_owned(), 0o755, slow("2.0"))];
    entries.extend((0..400).map(|number| (format!("x/part-{number}"), 0o644, b"2.0".to_vec())));
    let unpacked = entries.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
    recipe.release.artifacts = vec![shop.artifact("pw-tree.tar.gz", &archive(&entries), unpacked)];
    let (mut running, report) = shop.run(1, &[recipe]).await;
    world.order(1, &report, &["recipe:pw-tree"]).await;
    world.gateway.phase("Verified").await;
    let (mut kills, mut plugs) = (0_u64, 0);
    while world.gateway.results().is_empty() {
        let life = rand::random_range(20..1500 + 150 * kills);
        tokio::time::sleep(Duration::from_millis(life)).await;
        // In the middle of one install a machine may die twice: the third time it is given up.
        if plugs < 2 && rand::random_ratio(1, 2) {
            world.device.pull_the_plug();
            plugs += 1;
        }
        running.kill();
        kills += 1;
        assert!(kills < 200, "{}", world.device.log());
        let versions: Vec<String> =
            (0..400).map(|number| world.device.read(&format!("opt/pw-tree/part-{number}"))).collect();
        // An install that outlives the agent may end between two of these.
        let steps = versions.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(steps <= 1 && versions.iter().all(|version| version == "1.0" || version == "2.0"), "{versions:?}");
        running = world.device.start();
    }
    let result = world.gateway.result(1).await;
    let told = format!("{kills} kills, {plugs} of everything: {result:#?}\n{}", world.device.log());
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{told}");
    assert!((0..400).all(|number| world.device.read(&format!("opt/pw-tree/part-{number}")) == "2.0"), "{told}");
    assert_eq!(shop.left(), "", "{told}");
    assert_eq!(world.report_after(1).await.problems, [], "{told}");
    println!("{kills} kills, {plugs} of them of everything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_an_interrupted_run_is_removed() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipe = shop.tree("pw-tree", 1);
    shop.install("opt/.patchwarden-pw-tree/pw-tree/bin/app", b"half of it");
    let (_running, report) = shop.run(1, &[recipe]).await;
    world.order(1, &report, &["recipe:pw-tree"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!((shop.left(), shop.says("/opt/pw-tree/bin/app")), (String::new(), "2.0".to_owned()));
}

/// What is mounted in an application would move along with the old version, and go with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_mounted_in_an_application_is_kept() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let [early, late] = ["pw-early", "pw-late"].map(|name| shop.tree(name, 1));
    let mount = |name: &str| {
        let data = format!("/opt/{name}/data");
        world.device.chroot(&format!("mkdir {data}; mount -t tmpfs -o mode=755 tmpfs {data}; echo x > {data}/kept"));
    };
    mount("pw-early");
    let (_running, report) = shop.run(1, &[early, late]).await;
    let [problem] = &report.problems[..] else { panic!("{report:#?}") };
    let why = "recipes: pw-early: something is mounted at /opt/pw-early/data: unmount it, or update this by hand";
    assert_eq!((problem.code, problem.message.as_str()), (ProblemCode::RecipesRefused, why));
    assert!(report.updates.iter().all(|update| !update.id.contains("pw-early")), "{report:#?}");
    // Between the scan and the order.
    mount("pw-late");
    world.order(1, &report, &["recipe:pw-late", "pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).2, [(false, Some(ResultReason::PackageManagerFailed)), (true, None)], "{result:#?}");
    assert!(result.actions[0].message.contains("mounted at /opt/pw-late/data"), "{result:#?}");
    assert_eq!(shop.says("/opt/pw-late/bin/app"), "1.0");
    assert_eq!(world.device.chroot("cat /opt/pw-early/data/kept /opt/pw-late/data/kept"), "x\nx\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_can_change_is_neither_run_nor_replaced() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let read = |name: &str, directory: &str| {
        let mut recipe = shop.recipe(name, &program("2.0"));
        recipe.install.path = format!("{directory}/{name}");
        shop.install(&recipe.install.path[1..], &program("1.0"));
        recipe.detect = Detect::File { path: String::new(), pattern: "version ([0-9.]+)".into() };
        recipe
    };
    // What is read can be read of anybody's: it is not replaced.
    let recipes =
        [shop.tool("pw-users"), read("pw-group", "/opt/group"), read("pw-real", "/opt/real"), shop.tool("pw-good")];
    let mut linked = recipes[2].clone();
    linked.install.path = "/opt/link/pw-real".into();
    world.device.chroot(
        "chown 1000 /usr/local/bin/pw-users; chgrp 1000 /opt/group; chmod 775 /opt/group; ln -s real /opt/link",
    );
    let recipes = [recipes[0].clone(), recipes[1].clone(), linked, recipes[3].clone()];
    let (_running, report) = shop.run(1, &recipes).await;
    let told: Vec<&str> = report.problems.iter().map(|problem| problem.message.as_str()).collect();
    let expected = [
        "recipes: pw-users: /usr/local/bin/pw-users: /usr/local/bin/pw-users belongs to user 1000, not to root: chown root it",
        "recipes: pw-group: /opt/group can be written by group 1000 (mode 0775): chmod g-w it",
        "recipes: pw-real: /opt/link is not a directory",
    ];
    assert_eq!(told, expected);
    let ids: Vec<&str> =
        report.updates.iter().map(|update| update.id.as_str()).filter(|id| id.contains("generic")).collect();
    assert_eq!(ids, ["pkg:generic/pw-good@2.0"]);
    // Before the order.
    world.device.chroot("chgrp 1000 /usr/local/bin; chmod 775 /usr/local/bin");
    world.order(1, &report, &["recipe:pw-good", "pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).2[1], (true, None), "{result:#?}");
    assert!(!result.actions[0].done && shop.says("/usr/local/bin/pw-good") == "1.0", "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_paths_do_not_hold_up_packages() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let mut recipes = ["pw-loop", "pw-file", "pw-self"].map(|name| shop.recipe(name, &program("2.0")));
    recipes[0].install.path = "/usr/local/loop/pw-loop".into();
    recipes[1].install.path = "/usr/local/plain/pw-file".into();
    world.device.chroot("ln -s loop /usr/local/loop; touch /usr/local/plain; ln -s pw-self /usr/local/bin/pw-self");
    let good = shop.tool("pw-good");
    let (_running, report) = shop.run(1, &[&recipes[..], &[good]].concat()).await;
    assert_eq!(report.problems, [], "{report:#?}");
    let result = world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_package_has_put_there_since_the_scan_is_its_own() {
    let offered = Package { file: "opt/pw-tree/lib/part", ..Package::new("pw-b", "1.0") };
    let shop = Shop::of(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0"), offered]).await;
    let world = &shop.world;
    let (_running, report) = shop.run(1, &[shop.tree("pw-tree", 1)]).await;
    world.device.chroot("apt-get -q update; apt-get -q -y install pw-b");
    world.order(1, &report, &["recipe:pw-tree", "pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).2, [(false, Some(ResultReason::ReportMismatch)), (true, None)], "{result:#?}");
    assert!(result.actions[0].message.contains("/opt/pw-tree belongs to a package"), "{result:#?}");
    assert!(world.device.has("opt/pw-tree/lib/part") && shop.says("/opt/pw-tree/bin/app") == "1.0");
}

/// From the rule to the signed catalogue, with the program that a publisher uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_publisher_pins_and_signs_is_installed() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipe = shop.tree("pw-tree", 2);
    let url = recipe.release.artifacts[0].url.replace("pw-tree.tar.gz", "pw-tree-{version}-{arch}.tar.gz");
    let (arch, port) = (std::env::consts::ARCH, shop.served.address.port());
    std::fs::rename(shop.place.join("pw-tree.tar.gz"), shop.place.join("pw-tree-2.0-any.tar.gz")).unwrap();
    let rule = format!(
        "name = 'pw-tree'\ntitle = 'Tree'\n[install]\npath = '/opt/pw-tree'\ncontent = {{ tree = {{ strip = 1 }} }}\n\
         [detect.program]\npath = 'bin/app'\narguments = ['--version']\npattern = 'version ([0-9.]+)'\n\
         [source]\nurl = '{url}'\narch = {{ {arch} = 'any' }}\n"
    );
    std::fs::create_dir(world.device.root.join("srv/rules")).unwrap();
    world.device.write("srv/rules/pw-tree.toml", &rule);
    let said = |arguments: &[&str]| stdout(&mut world.device.agent(arguments));
    let public = said(&["recipes", "key", "/srv/key.pem"]);
    let pin =
        ["recipes", "pin", "/srv/rules/pw-tree.toml", "2.0", "--published", "2026-11-01", "--cve", "CVE-2026-12345"];
    let pinned = said(&pin);
    assert!(pinned.contains(&recipe.release.artifacts[0].sha256), "{pinned}");
    let sign = [
        "recipes",
        "sign",
        "/srv/rules",
        "--key",
        "/srv/key.pem",
        "--publisher",
        "Other shop",
        "--out",
        "/srv/recipes.json",
    ];
    assert!(said(&sign).contains(public.trim()));
    let mut missing =
        world.device.agent(&["recipes", "pin", "/srv/rules/pw-tree.toml", "3.0", "--published", "2026-11-01"]);
    let missing = String::from_utf8(missing.output().unwrap().stderr).unwrap();
    assert!(
        missing.contains(&format!("https://localhost:{port}/pw-tree-3.0-any.tar.gz")) && missing.contains("404"),
        "{missing}"
    );
    let configuration = world.device.read(CONFIGURATION).replace(&String::from(shop.key.public()), public.trim());
    world.device.write(CONFIGURATION, &configuration);
    world.gateway.offer_recipes(std::fs::read(world.device.root.join("srv/recipes.json")).unwrap()).await;
    let _running = world.device.start();
    let report = world.gateway.report(|report| report.updates.len() == 2).await;
    let found = update(&report, "recipe:pw-tree");
    assert_eq!((found.classification, found.origin.as_str()), (Classification::Security, "recipes:Other shop"));
    // First downloaded, then installed without a network.
    let downloaded = world.carry_out_all(1, Verb::Download, &["recipe:pw-tree"]).await;
    assert_eq!(downloaded.outcome, Outcome::Succeeded, "{downloaded:#?}");
    std::fs::remove_file(shop.place.join("pw-tree-2.0-any.tar.gz")).unwrap();
    assert!(update(&world.report_after(1).await, "recipe:pw-tree").downloaded);
    let installed = world.carry_out_all(2, Verb::Install, &["recipe:pw-tree"]).await;
    assert_eq!(installed.outcome, Outcome::Succeeded, "{installed:#?}");
    assert_eq!(shop.says("/opt/pw-tree/bin/app"), "2.0");
    assert_eq!(world.gateway.phases().iter().filter(|phase| *phase == "Granted").count(), 1);
}
