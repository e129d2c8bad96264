//! What is updated, by whose recipes, and what is not.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{Classification, ProblemCode, Report, Severity};
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::{KEPT, Shop, archive, program, signed};
use crate::device::{CONFIGURATION, Package, stdout};
use crate::gateway::digest;
use crate::world::{summary, update};

/// What setcap(8) writes for `cap_net_bind_service=ep` (`struct vfs_cap_data` of linux/capability.h, version 2), and where.
const MAY_BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CAPABILITY: &str = "security.capability";

// covers MW-11
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
    assert!(after.counts.updates == 0 && after.problems.is_empty(), "{after:#?}");
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

/// From the rule to the signed catalogue, with the program that a publisher uses.
// covers MW-11
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
