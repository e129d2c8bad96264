//! Applications that a policy wants and that are not there, and those that it does not want and that are.

use jiff::SignedDuration;
use patchwarden_protocol::applications::{Application, Ensure};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::{Action, Verb};
use patchwarden_protocol::recipes::Recipe;
use patchwarden_protocol::report::{Classification, ProblemCode, Report, Severity};
use patchwarden_protocol::result::{Outcome, ResultReason, Step};
use patchwarden_protocol::settings::{OsUpdater, Settings};

use super::{Shop, program};
use crate::device::{Package, stdout};
use crate::gateway::{action, taking_back};
use crate::guards::rollback::rolling_back;
use crate::guards::steps;
use crate::world::{removable, summary, update};

const LIMITS: &str = "etc/patchwarden/limits.toml";

impl Shop {
    /// What the policy says, so many seconds later than the first time.
    pub(super) fn policy(&self, seconds: i64, wanted: &[(&str, Ensure)]) -> Settings {
        let mut settings = self.world.gateway.settings(OsUpdater::Leave);
        settings.issued_at += SignedDuration::from_secs(seconds);
        let application = |(name, ensure): &(&str, Ensure)| Application { name: (*name).into(), ensure: *ensure };
        settings.applications = wanted.iter().map(application).collect();
        settings
    }

    pub(super) async fn say(&self, settings: &Settings) {
        self.world.gateway.offer_settings(&self.world.gateway.sign_settings(settings)).await;
    }

    /// The recipe of a program that is not there.
    fn new_tool(&self, name: &str) -> Recipe {
        self.recipe(name, &[program("2.0"), format!("# {name}\n").into_bytes()].concat())
    }

    /// The recipe of a directory that is not there.
    fn new_tree(&self, name: &str, files: usize) -> Recipe {
        let recipe = self.tree(name, files);
        self.world.device.chroot(&format!("rm -r /opt/{name}"));
        recipe
    }
}

pub(super) fn kinds(report: &Report) -> Vec<(&str, Classification)> {
    let mut kinds: Vec<_> = report.updates.iter().map(|update| (update.id.as_str(), update.classification)).collect();
    kinds.retain(|(id, _)| id.contains("generic"));
    kinds.sort_unstable();
    kinds
}

// covers MW-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_policy_wants_comes_and_what_it_does_not_want_goes() {
    use Classification::{FirstInstall, Removal, Security};
    use Ensure::{Absent, Installed};
    let owned = |version| Package { file: "usr/local/bin/pw-owned", ..Package::new("pw-a", version) };
    let shop = Shop::of(&[owned("1.0")], &[owned("2.0")]).await;
    let world = &shop.world;
    let recipes = [
        shop.new_tool("pw-tool"),
        shop.new_tree("pw-tree", 2),
        shop.tool("pw-old"),
        shop.tree("pw-oldtree", 2),
        // There already, by hand; a package's; not there, and wanted by nobody.
        shop.recipe("pw-hand", &program("2.0")),
        shop.recipe("pw-owned", &program("2.0")),
        shop.new_tool("pw-extra"),
    ];
    shop.install("usr/local/bin/pw-hand", &program("2.0"));
    shop.install("opt/.patchwarden~pw-oldtree/of-pw-oldtree/part", b"what was kept of it");
    let (mut running, report) = shop.run(7, &recipes).await;
    let updates = [("pkg:generic/pw-old@2.0", Security), ("pkg:generic/pw-oldtree@2.0", Security)];
    assert_eq!((kinds(&report), &report.problems[..]), (updates.to_vec(), &[][..]), "nobody wants anything");

    let wanted = [
        ("pw-tool", Installed),
        ("pw-tree", Installed),
        ("pw-hand", Installed),
        ("pw-owned", Installed),
        ("pw-old", Absent),
        ("pw-oldtree", Absent),
    ];
    shop.say(&shop.policy(0, &wanted)).await;
    let asked = [
        ("pkg:generic/pw-tool@2.0", FirstInstall),
        ("pkg:generic/pw-tree@2.0", FirstInstall),
        ("remove:generic/pw-old", Removal),
        ("remove:generic/pw-oldtree", Removal),
    ];
    let report = world.gateway.report(|report| kinds(report) == asked).await;
    assert_eq!(report.problems, []);
    let first = update(&report, "recipe:pw-tool");
    assert_eq!(
        (first.title.as_str(), first.severity),
        ("The application pw-tool 2.0 (first install)", Severity::Unknown)
    );
    assert!(first.cves.is_empty() && first.packages[0].installed.is_empty() && first.size_bytes > 0, "{first:?}");
    let removal = update(&report, "recipe:pw-old");
    assert_eq!((removal.title.as_str(), removal.downloaded), ("The application pw-old 1.0 (removal)", true));
    assert!(removal.packages[0].candidate.is_empty() && removal.artifacts_digest != first.artifacts_digest);

    let names = ["recipe:pw-tool", "recipe:pw-tree", "recipe:pw-old", "recipe:pw-oldtree", "pw-a"];
    let downloaded = world.carry_out_all(1, Verb::Download, &names[..2]).await;
    assert_eq!(summary(&downloaded).2, [(true, None); 2], "{downloaded:#?}");
    assert!(!world.device.has("usr/local/bin/pw-tool") && update(&world.report_after(1).await, names[0]).downloaded);
    let result = world.carry_out_all(2, Verb::Install, &names).await;
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None); 5]),
        "{result:#?}\n{}",
        world.device.log()
    );
    for program in ["/usr/local/bin/pw-tool", "/opt/pw-tree/bin/app"] {
        assert_eq!(shop.says(program), "2.0");
    }
    assert_eq!(world.device.chroot("stat -c '%a %u:%g' /usr/local/bin/pw-tool /opt/pw-tree"), "755 0:0\n755 0:0\n");
    assert!(!world.device.has("usr/local/bin/pw-old") && !world.device.has("opt/pw-oldtree"));
    assert_eq!(shop.left() + &shop.kept(), "", "also what was kept of an earlier version");
    let after = world.report_after(2).await;
    assert!(kinds(&after).is_empty() && after.problems.is_empty(), "{after:#?}");
    let changes = stdout(&mut world.device.agent(&["changes"]));
    let told = |name: &str| changes.lines().any(|line| line.contains(name) && line.contains("order 1-2"));
    assert!(told("recipe:pw-old") && told("recipe:pw-tree"), "{changes}");

    // Who removes it by hand is offered it again; who takes its installation back, too.
    world.device.chroot("rm -r /opt/pw-tree");
    let report = world.rescan(&mut running, |report| kinds(report) == asked[1..2]).await;
    let back = taking_back(removable(&report, names[0]).unwrap());
    assert_eq!(back.packages[0].candidate, "");
    let result = world.carry_out(3, vec![back]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert!(!world.device.has("usr/local/bin/pw-tool"));
    let after = world.report_after(3).await;
    assert!(kinds(&after) == asked[..2] && after.removable.iter().all(|one| !one.id.contains("generic")), "{after:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_controller_says_what_is_wanted_and_what_is_not_wanted_any_more_is_refused() {
    use Ensure::{Absent, Installed};
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipes = [shop.new_tool("pw-tool"), shop.tool("pw-old"), shop.tool("pw-other")];
    let (_running, _) = shop.run(1, &recipes).await;
    // Of somebody else.
    let wanted = shop.policy(0, &[("pw-tool", Installed), ("pw-old", Absent)]);
    let mut forged = world.gateway.sign_settings(&wanted);
    forged.settings = patchwarden_protocol::Envelope::seal(&wanted, &PrivateKey::generate()).unwrap();
    world.gateway.offer_settings(&forged).await;
    let refused = || world.device.log().contains("settings are refused: no valid signature").then_some(());
    world.gateway.until("its refusal", |_| refused()).await;
    shop.say(&wanted).await;
    let is_asked = |report: &Report| report.updates.iter().filter(|it| Ensure::of(it.classification).is_some()).count();
    let before = world.gateway.report(|report| is_asked(report) == 2).await;
    // The policy has lost both, and names what has no recipe; what it said before does not come back.
    shop.say(&shop.policy(60, &[("pw-unheard-of", Installed)])).await;
    let after = world.gateway.report(|report| is_asked(report) == 0 && !report.problems.is_empty()).await;
    assert_eq!(after.problems[0].code, ProblemCode::RecipesRefused);
    let why = "recipes: the policy says something of pw-unheard-of, and this device has no recipe for it";
    assert_eq!(after.problems[0].message, why);
    shop.say(&wanted).await;
    let refused = || world.device.log().contains("do not come after those of").then_some(());
    world.gateway.until("its refusal", |_| refused()).await;
    // Orders of whoever still thinks that it is wanted.
    let actions: Vec<Action> =
        ["recipe:pw-tool", "recipe:pw-old"].map(|name| action(Verb::Install, update(&before, name))).into();
    let result =
        world.carry_out(1, [actions.clone(), vec![action(Verb::Install, update(&after, "pw-a"))]].concat()).await;
    let mismatch = (false, Some(ResultReason::ReportMismatch));
    assert_eq!(summary(&result).2, [mismatch, mismatch, (true, None)], "{result:#?}");
    assert!(result.actions[0].message.contains("the policy does not say Installed of it"), "{result:#?}");
    assert!(result.actions[1].message.contains("the policy does not say Absent of it"), "{result:#?}");
    assert!(!world.device.has("usr/local/bin/pw-tool") && shop.says("/usr/local/bin/pw-old") == "1.0");
    // A removal is of one version, and only of an application.
    let mut other = actions[1].clone();
    other.packages[0].installed = "0.9".into();
    shop.say(&shop.policy(120, &[("pw-old", Absent)])).await;
    world.gateway.report(|report| is_asked(report) == 1).await;
    let result = world.carry_out(2, vec![other]).await;
    assert_eq!(summary(&result), (Outcome::Refused, mismatch.1, vec![]), "{result:#?}");
    assert!(result.message.contains("pw-old is at 1.0, the order was planned from 0.9"), "{result:#?}");
    let mut native = action(Verb::Install, update(&before, "pw-a"));
    (native.packages[0].installed, native.packages[0].candidate) = ("2.0".into(), String::new());
    let result = world.carry_out(3, vec![native]).await;
    assert_eq!((result.outcome, result.reason), (Outcome::Refused, Some(ResultReason::Unreadable)), "{result:#?}");
    assert_eq!((world.at("pw-a"), shop.says("/usr/local/bin/pw-old")), ("2.0".into(), "1.0".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_says_whether_applications_come_and_go() {
    use Ensure::{Absent, Installed};
    let owned = |version| Package { file: "opt/pw-shared/lib", ..Package::new("pw-a", version) };
    let shop = Shop::of(&[owned("1.0")], &[owned("2.0")]).await;
    let world = &shop.world;
    let mut data = shop.tool("pw-data");
    data.stateful = true;
    let recipes = [
        shop.new_tool("pw-tool"),
        shop.tool("pw-old"),
        data,
        // Of this a part is a package's; of that something is mounted.
        shop.tree("pw-shared", 1),
        shop.tree("pw-mounted", 1),
        shop.new_tool("pw-taken"),
    ];
    world.device.chroot(
        "mkdir /opt/pw-mounted/data /usr/local/bin/pw-taken; mount -t tmpfs -o mode=755 tmpfs /opt/pw-mounted/data",
    );
    world.device.write(LIMITS, "first_installs = false\nremovals = 'Never'\n");
    let wanted = [
        ("pw-tool", Installed),
        ("pw-taken", Installed),
        ("pw-old", Absent),
        ("pw-data", Absent),
        ("pw-shared", Absent),
        ("pw-mounted", Absent),
    ];
    shop.say(&shop.policy(0, &wanted)).await;
    world.gateway.offer_recipes(shop.sign(1, &recipes)).await;
    let mut running = world.device.start();
    let report = world.gateway.report(|report| kinds(report).len() == 3 && report.problems.len() == 3).await;
    let mut told: Vec<&str> = report.problems.iter().map(|problem| problem.message.as_str()).collect();
    told.sort_unstable();
    let expected = [
        "recipes: pw-mounted: something is mounted at /opt/pw-mounted/data: unmount it, or update this by hand",
        "recipes: pw-shared: the policy does not want it, and /opt/pw-shared is a package's: remove that package",
        "recipes: pw-taken: /usr/local/bin/pw-taken: something else is there already: move it away",
    ];
    assert_eq!(told, expected);
    let names = ["recipe:pw-tool", "recipe:pw-old", "recipe:pw-data"];
    assert!(names.iter().all(|name| update(&report, name).held), "{report:#?}");
    // Whoever orders it all the same.
    let result = world.carry_out_all(1, Verb::Install, &[&names[..], &["pw-a"]].concat()).await;
    let limited = (false, Some(ResultReason::LimitedByDevice));
    assert_eq!(summary(&result).2, [limited, limited, limited, (true, None)], "{result:#?}");
    assert!(result.actions[0].message.contains("first_installs: recipe:pw-tool is not installed"), "{result:#?}");
    assert!(result.actions[1].message.contains("removals: recipe:pw-old is not to be removed"), "{result:#?}");
    assert!(!world.device.has("usr/local/bin/pw-tool") && shop.says("/usr/local/bin/pw-old") == "1.0");
    // Without limits nothing goes that keeps data.
    world.device.write(LIMITS, "");
    let result = world.carry_out_all(2, Verb::Install, &names).await;
    assert_eq!(summary(&result).2, [(true, None), (true, None), limited], "{result:#?}");
    assert!(result.actions[2].message.contains("pw-data keeps data of its own"), "{result:#?}");
    assert!(update(&world.report_after(2).await, names[2]).held && shop.says("/usr/local/bin/pw-data") == "1.0");
    // What is a package's, or has come to be mounted since: neither goes, nor anything in it.
    let kept = world.device.chroot("ls -A /opt/pw-shared /opt/pw-mounted");
    world.device.write(LIMITS, "removals = 'All'\n");
    let report = world.rescan(&mut running, |report| kinds(report).len() == 1 && !update(report, names[2]).held).await;
    let forged = ["pw-shared", "pw-mounted"].map(|name| {
        let mut action = action(Verb::Install, update(&report, names[2]));
        action.update = format!("remove:generic/{name}");
        action.packages[0].name = format!("recipe:{name}");
        action
    });
    let right = action(Verb::Install, update(&report, names[2]));
    let result = world.carry_out(3, [vec![right], forged.into()].concat()).await;
    assert_eq!(
        result.actions.iter().map(|action| action.done).collect::<Vec<_>>(),
        [true, false, false],
        "{result:#?}"
    );
    assert!(result.actions[1].message.contains("/opt/pw-shared belongs to a package by now"), "{result:#?}");
    assert!(result.actions[2].message.contains("mounted at /opt/pw-mounted/data"), "{result:#?}");
    assert_eq!(world.device.chroot("ls -A /opt/pw-shared /opt/pw-mounted"), kept);
    assert!(!world.device.has("usr/local/bin/pw-data"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_with_which_a_check_fails_is_uninstalled_again() {
    use Ensure::{Absent, Installed};
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipes = [shop.new_tool("pw-tool"), shop.new_tree("pw-tree", 2), shop.tool("pw-old")];
    world.script("healthy", "[ ! -e /usr/local/bin/pw-tool ] && [ ! -e /opt/pw-tree ] && exit 0; echo sick; exit 1");
    shop.say(&shop.policy(0, &[("pw-tool", Installed), ("pw-tree", Installed), ("pw-old", Absent)])).await;
    let (_running, _) = shop.run(1, &recipes).await;
    world
        .gateway
        .report(|report| kinds(report).iter().filter(|(_, kind)| *kind != Classification::Security).count() == 3)
        .await;
    let names = ["recipe:pw-tool", "recipe:pw-tree", "recipe:pw-old"];
    let result = world.guard(1, &names, rolling_back(&[])).await;
    let (back, stays) = (Some(ResultReason::RolledBack), Some(ResultReason::CheckFailed));
    let expected = vec![(false, back), (false, back), (false, stays)];
    assert_eq!(summary(&result), (Outcome::Failed, back, expected), "{result:#?}\n{}", world.gateway.output());
    assert!(result.actions[0].message.ends_with("taken back to no recipe:pw-tool"), "{result:#?}");
    assert!(result.actions[2].message.ends_with("recipe:pw-old is not kept once it is removed"), "{result:#?}");
    assert!(steps(&result).ends_with(&[(Step::Rollback, "packages", true), (Step::CheckRolledBack, "healthy", true)]));
    let gone = ["usr/local/bin/pw-tool", "opt/pw-tree", "usr/local/bin/pw-old"];
    assert!(gone.iter().all(|path| !world.device.has(path)));
    assert_eq!(shop.left() + &shop.kept(), "");
}

/// Each instant of a removal, and one of a first install: moved aside and not deleted; unpacked and not in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_first_install_or_removal_has_left_is_removed() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipe = shop.new_tree("pw-tree", 2);
    shop.say(&shop.policy(0, &[("pw-tree", Ensure::Installed)])).await;
    let (running, report) = shop.run(1, &[recipe]).await;
    world.order(1, &report, &["recipe:pw-tree"]).await;
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    let whole = || world.device.chroot("ls /opt/pw-tree") == "bin\npart-0\npart-1\n";
    drop(running);
    let apply = |step: &str| stdout(&mut world.device.agent(&["recipes", "apply", "--archives", "/srv", step]));
    world.device.chroot("mkdir /opt/.patchwarden-pw-tree; mv /opt/pw-tree /opt/.patchwarden-pw-tree/of-pw-tree");
    assert_eq!(apply("pw-tree=remove:2.0"), "recipe pw-tree: 2.0 is removed\n");
    assert_eq!((shop.left(), world.device.has("opt/pw-tree")), (String::new(), false));
    world.device.chroot("cp /srv/shop/pw-tree.tar.gz /srv/recipe_pw-tree_2.0_$(uname -m)");
    shop.install("opt/.patchwarden-pw-tree/of-pw-tree/part-0", b"half of it");
    assert_eq!(apply("pw-tree=first:2.0"), "recipe pw-tree: installed as 2.0\n");
    assert_eq!((shop.left(), whole()), (String::new(), true));
    // Once more: it is done. And nothing goes that is another version.
    assert_eq!(apply("pw-tree=first:2.0"), "recipe pw-tree: installed as 2.0\n");
    let mut refused = world.device.agent(&["recipes", "apply", "--archives", "/srv", "pw-tree=remove:1.0"]);
    let refused = String::from_utf8(refused.output().unwrap().stdout).unwrap();
    assert!(refused.contains("/opt/pw-tree is at version 2.0") && whole(), "{refused}");
}
