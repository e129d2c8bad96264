//! What stands in the way of apt, as of dnf and zypper; dpkg's own database is the judge.

use std::process::Command;

use patchwarden_protocol::order::{Action, PackageChange, Verb};
use patchwarden_protocol::report::{Classification, HeldReason, ProblemCode, Report};
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::{Package, run, serve, stdout};
use crate::gateway::action;
use crate::rpm::start;
use crate::world::{World, summary, update};

const FAILED: Option<ResultReason> = Some(ResultReason::PackageManagerFailed);

/// Each at its first version, and the versions that are offered of some.
async fn world(names: &[&'static str], offered: &[Package]) -> World {
    let installed: Vec<Package> = names.iter().map(|name| Package::new(name, "1.0")).collect();
    World::of(&installed, offered).await
}

fn is_at(report: &Report, name: &str, candidate: &str) -> bool {
    report.updates.iter().flat_map(|update| &update.packages).any(|p| p.name == name && p.candidate == candidate)
}

/// Every package that dpkg calls installed, and whether it finds nothing to complain of.
fn installed<const N: usize>(world: &World, names: [&str; N]) -> [String; N] {
    assert_eq!(world.device.chroot("dpkg --audit"), "");
    names.map(|name| {
        let status = world.device.version(name);
        status.strip_prefix("install ok installed ").unwrap_or_else(|| panic!("{name}: {status}")).to_owned()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security_and_ordinary_updates_are_told_apart_by_where_apt_has_them_from() {
    let world =
        world(&["pw-a", "pw-b", "pw-both"], &[Package::new("pw-a", "2.0"), Package::new("pw-both", "2.0")]).await;
    let ordinary = [Package::new("pw-b", "2.0"), Package::new("pw-both", "2.1")];
    world.device.offer_in("srv/updates", "Test", "stable-updates", &ordinary);
    let source = "deb [trusted=yes] file:/srv/updates stable-updates main\n";
    world.device.write("etc/apt/sources.list.d/updates.list", source);
    let (_running, report) = world.run().await;
    assert_eq!((report.counts.updates, report.counts.security, report.problems.len()), (3, 1, 0), "{report:#?}");
    let of = |name| (update(&report, name).classification, update(&report, name).packages[0].candidate.as_str());
    assert_eq!(of("pw-a"), (Classification::Security, "2.0"));
    assert_eq!(of("pw-b"), (Classification::Updates, "2.0"));
    assert_eq!(of("pw-both"), (Classification::Updates, "2.1"));
    let own = world.device.chroot("apt-get -s dist-upgrade | grep ^Inst");
    let security: Vec<&str> = own.lines().filter(|line| line.contains("-security")).collect();
    assert!(security.len() == 1 && security[0].starts_with("Inst pw-a "), "{own}");
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-b"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    assert_eq!(installed(&world, ["pw-a", "pw-b", "pw-both"]), ["2.0", "2.0", "1.0"]);
    let after = world.report_after(1).await;
    assert_eq!((after.counts.updates, after.counts.security), (1, 0), "{after:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_programs_install_is_waited_for() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    let mut other = start(&world.device, "DEBIAN_FRONTEND=noninteractive apt-get -q -y install pw-slow=2.0");
    world.until_on_device("var/log/slow.begun").await;
    world.order(1, &report, &["pw-b"]).await;
    world.gateway.waits_for_another().await;
    assert_eq!((world.at("pw-b"), world.gateway.nonces().len()), ("1.0".into(), 0));
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert!(world.device.has("var/log/slow.done"), "the order began after the other install had ended");
    assert!(other.wait().unwrap().success());
    assert_eq!(installed(&world, ["pw-slow", "pw-b"]), ["2.0", "2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_has_left_half_done_is_told_and_waits_for_a_person() {
    let world = World::new().await;
    let mut other = start(&world.device, "DEBIAN_FRONTEND=noninteractive apt-get -q -y install pw-slow=2.0");
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    other.wait().unwrap();
    assert_eq!(world.device.version("pw-slow"), "install ok half-configured 2.0", "what dpkg leaves");
    world.device.let_go();
    let (mut running, report) = world.run().await;
    let told = &report.problems[0];
    assert_eq!(told.code, ProblemCode::PackageManagerBroken);
    assert!(told.message.contains("pw-slow"), "{told:?}");
    // apt would complete it before anything else, which no order has allowed.
    let result = world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]), "{result:#?}");
    assert!(result.message.ends_with("the package manager would also configure pw-slow"), "{}", result.message);
    assert_eq!(world.device.version("pw-slow"), "install ok half-configured 2.0", "as it was left");
    assert!(!world.device.has("var/log/slow.done"));
    world.device.chroot("dpkg --configure -a");
    let report = world.rescan(&mut running, |report| report.problems.is_empty()).await;
    world.order(2, &report, &["pw-a"]).await;
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(installed(&world, ["pw-slow", "pw-a"]), ["2.0", "2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_refused_while_dpkg_has_a_journal_of_somebody_elses_and_what_is_half_unpacked_is_told_and_left() {
    let world = World::new().await;
    let (mut running, _) = world.run().await;
    // Between two steps: no package is half done.
    world.device.chroot("dpkg-query -s pw-b >/var/lib/dpkg/updates/0001");
    let result = world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]), "{result:#?}");
    assert!(result.message.ends_with("dpkg was interrupted; `dpkg --configure -a` completes its work"), "{result:#?}");
    assert_eq!((world.gateway.nonces().len(), world.at("pw-a")), (0, "1.0".into()));
    let report = world.report_after(1).await;
    assert_eq!(report.problems[0].code, ProblemCode::PackageManagerBroken);
    assert!(world.device.has("var/lib/dpkg/updates/0001"), "as it was left");
    world.device.chroot("dpkg --configure -a");
    // In the middle of its files: nothing but its own next version touches it.
    let half = "/^Package: pw-b$/,/^$/ s/install ok installed/install reinstreq half-installed/";
    world.device.chroot(&format!("sed -i '{half}' /var/lib/dpkg/status"));
    let is_told = |report: &Report| report.problems.iter().any(|problem| problem.message.contains("pw-b"));
    let report = world.rescan(&mut running, is_told).await;
    assert_eq!(report.problems[0].code, ProblemCode::PackageManagerBroken, "so the controller orders nothing");
    let result = world.carry_out_all(2, Verb::Install, &["pw-a"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(world.device.version("pw-b"), "install reinstreq half-installed 1.0", "as it was left");
    running.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_version_heals_a_package_whose_script_an_order_has_seen_fail() {
    let sad = |version| Package { postinst: "echo sad >&2; exit 3", ..Package::new("pw-bad", version) };
    let needs = |version| Package { control: "Depends: pw-bad (>= 2.0)\n", ..Package::new("pw-dep", version) };
    let late = Package { control: "Depends: pw-bad (>= 2.0)\n", ..Package::new("pw-late", "2.0") };
    let offered = [sad("2.0"), needs("2.0"), late, Package::new("pw-b", "2.0")];
    let world = world(&["pw-b", "pw-bad", "pw-dep", "pw-late"], &offered).await;
    let (mut running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-bad", "pw-dep"]).await;
    assert_eq!(result.outcome, Outcome::Failed, "{result:#?}");
    let left = ["half-configured", "unpacked"].map(|state| format!("install ok {state} 2.0"));
    assert_eq!(["pw-bad", "pw-dep"].map(|name| world.device.version(name)), left);
    // Nothing heals it: a person has to.
    let report = world.report_after(1).await;
    assert_eq!(report.problems[0].code, ProblemCode::PackageManagerBroken);

    world.device.offer(&[Package::new("pw-bad", "2.1")]);
    let report = world.rescan(&mut running, |report| is_at(report, "pw-bad", "2.1")).await;
    assert_eq!(report.problems, [], "what is offered heals it");
    // Unless the owner does not let it be installed.
    world.device.write("etc/patchwarden/limits.toml", "exclude_packages = ['pw-bad']\n");
    let scanned: Report = serde_json::from_str(&stdout(&mut world.device.agent(&["scan"]))).unwrap();
    let report = world.rescan(&mut running, |report| update(report, "pw-bad").held).await;
    for told in [&scanned.problems, &report.problems] {
        assert_eq!(told.iter().map(|it| it.code).collect::<Vec<_>>(), [ProblemCode::PackageManagerBroken]);
    }
    world.device.write("etc/patchwarden/limits.toml", "");
    let report = world.rescan(&mut running, |report| report.problems.is_empty()).await;
    // Others wait for that: its script would fail again, and leave what needs it half done, too.
    world.order(2, &report, &["pw-late"]).await;
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::OtherFailed), vec![]), "{result:#?}");
    assert_eq!(world.device.version("pw-late"), "install ok installed 1.0");
    let result = world.carry_out_all(3, Verb::Install, &["pw-bad"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(installed(&world, ["pw-bad", "pw-dep", "pw-late"]), ["2.1", "2.0", "1.0"]);
    let report = world.report_after(3).await;
    assert_eq!((report.problems, world.device.read("var/lib/patchwarden/unfinished.json").as_str()), (vec![], "[]"));

    // The same by somebody else, beside it, although an order was to bring it.
    world.device.offer(&[sad("3.0")]);
    let report = world.rescan(&mut running, |report| is_at(report, "pw-bad", "3.0")).await;
    world.device.chroot("apt-get -q update; apt-get -q -y install pw-bad=3.0 || true");
    world.order(4, &report, &["pw-bad"]).await;
    let result = world.gateway.result(4).await;
    assert_eq!((result.outcome, result.actions.len()), (Outcome::Refused, 0), "{result:#?}");
    world.device.offer(&[Package::new("pw-bad", "3.1")]);
    let report = world.rescan(&mut running, |report| is_at(report, "pw-bad", "3.1")).await;
    assert_eq!(report.problems[0].code, ProblemCode::PackageManagerBroken);
    let result = world.carry_out_all(5, Verb::Install, &["pw-b"]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]), "{result:#?}");
    assert_eq!(world.device.version("pw-bad"), "install ok half-configured 3.0", "as it was left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_of_files_fails_alone_and_leaves_the_old_version_whole() {
    let clash = Package { file: "usr/share/pw-b/version", ..Package::new("pw-clash", "2.0") };
    // apt lets dpkg unpack it once the first one is configured, which it does not come to.
    let last = Package { control: "Pre-Depends: pw-a (>= 2.0)\n", ..Package::new("pw-z", "2.0") };
    let world = world(&["pw-a", "pw-b", "pw-clash", "pw-z"], &[Package::new("pw-a", "2.0"), clash, last]).await;
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-clash", "pw-z"]).await;
    let expected = (Outcome::Failed, FAILED, vec![(true, None), (false, FAILED), (true, None)]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.gateway.output());
    let words = "trying to overwrite '/usr/share/pw-b/version', which is also in package pw-b 1.0";
    assert!(result.actions[1].message.contains(words), "{}", result.actions[1].message);
    assert_eq!(installed(&world, ["pw-a", "pw-clash", "pw-z", "pw-b"]), ["2.0", "1.0", "2.0", "1.0"]);
    assert_eq!(world.device.read("usr/share/pw-b/version"), "1.0");
    assert_eq!(["pw-a", "pw-z"].map(|name| world.configured(name)), [["1.0", "2.0"]; 2], "each once");
    assert_eq!(world.report_after(1).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_apt_finds_no_way_for_is_told_in_its_words() {
    let unmet = Package { control: "Depends: pw-absent\n", ..Package::new("pw-b", "2.0") };
    let world = world(&["pw-a", "pw-b"], &[Package::new("pw-a", "2.0"), unmet]).await;
    let (_running, report) = world.run().await;
    assert!(!is_at(&report, "pw-b", "2.0"), "what cannot be installed is not offered");
    let a = action(Verb::Install, update(&report, "pw-a"));
    let mut b = a.clone();
    b.update = b.update.replace("pw-a", "pw-b");
    b.packages = vec![PackageChange { name: "pw-b".into(), ..a.packages[0].clone() }];
    let result = world.carry_out(1, vec![a, b]).await;
    let expected = (Outcome::Failed, FAILED, vec![(true, None), (false, FAILED)]);
    assert_eq!(summary(&result), expected, "{result:#?}");
    assert!(result.actions[1].message.contains("pw-b : Depends: pw-absent but it is not"), "{result:#?}");
    assert_eq!(installed(&world, ["pw-a", "pw-b"]), ["2.0", "1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_fills_up_meanwhile_stops_only_what_goes_there() {
    // It becomes too small when nobody but dpkg finds out any more.
    let first = Package { postinst: "mount -t tmpfs -o size=1m tmpfs /usr/share/pw-b", ..Package::new("pw-a", "2.0") };
    let big = Package { kilobytes: 3000, control: "Pre-Depends: pw-a (>= 2.0)\n", ..Package::new("pw-b", "2.0") };
    let world = world(&["pw-a", "pw-b", "pw-z"], &[first, big, Package::new("pw-z", "2.0")]).await;
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-b", "pw-z"]).await;
    world.device.chroot("umount /usr/share/pw-b");
    let full = Some(ResultReason::DiskFull);
    let expected = (Outcome::Failed, full, vec![(true, None), (false, full), (true, None)]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.gateway.output());
    assert!(result.actions[1].message.contains("No space left on device"), "{}", result.actions[1].message);
    assert_eq!(installed(&world, ["pw-a", "pw-b", "pw-z"]), ["2.0", "1.0", "2.0"]);
    assert_eq!(["pw-a", "pw-z"].map(|name| world.configured(name)), [["1.0", "2.0"]; 2], "each once");
    assert_eq!(world.report_after(1).await.problems, []);
}

/// Signs the repository's Release by a key of this name, as it is now. The first of a name makes its key, `srv/NAME.gpg`.
fn sign(world: &World, home: &std::path::Path, name: &str) {
    let user = format!("{name}@example.invalid");
    let suite = world.device.root.join("srv/repo/dists/stable-security");
    let key = world.device.root.join(format!("srv/{name}.gpg"));
    let gpg = || {
        let mut command = Command::new("gpg");
        command.arg("--homedir").arg(home).args(["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"]);
        command.args(["--passphrase", ""]);
        command
    };
    if !key.exists() {
        run(gpg().args(["--quick-generate-key", &user, "ed25519", "sign", "never"]));
        run(gpg().arg("--output").arg(&key).args(["--export", &user]));
    }
    run(gpg()
        .args(["--local-user", &user, "--clear-sign", "--output"])
        .arg(suite.join("InRelease"))
        .arg(suite.join("Release")));
    run(Command::new("gpgconf").arg("--homedir").arg(home).args(["--kill", "all"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_an_accepted_key_has_signed_is_offered_and_installed() {
    let home = tempfile::tempdir().unwrap();
    let world = world(&["pw-a", "pw-b"], &[Package::new("pw-a", "2.0")]).await;
    sign(&world, home.path(), "vendor");
    // What lies on the machine itself apt reads in place.
    let served = serve(world.device.root.join("srv/repo")).await;
    world.device.use_source(&format!("[signed-by=/srv/vendor.gpg] http://{}", served.address));
    let (mut running, report) = world.run().await;
    assert_eq!(report.problems, []);
    assert!(!update(&report, "pw-a").unauthenticated && !update(&report, "pw-a").held, "{report:#?}");
    let a = action(Verb::Install, update(&report, "pw-a"));
    let result = world.carry_out(1, vec![a.clone()]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");

    // An index by another key does not take the place of the one that is there.
    world.device.offer(&[Package::new("pw-b", "2.0")]);
    sign(&world, home.path(), "other");
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    assert_eq!(report.problems[0].code, ProblemCode::RepositoryUnavailable);
    assert!(report.problems[0].message.contains("NO_PUBKEY"), "{:?}", report.problems);
    assert!(!is_at(&report, "pw-b", "2.0"), "{report:#?}");
    let b = vec![PackageChange { name: "pw-b".into(), ..a.packages[0].clone() }];
    let result = world.carry_out(2, vec![Action { packages: b, ..a }]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Superseded), vec![]), "{result:#?}");

    // One that somebody has let in without any signature is seen, and nothing of it is installed.
    world.device.chroot("rm /srv/repo/dists/stable-security/InRelease");
    world.device.use_source(&format!("[allow-insecure=yes allow-downgrade-to-insecure=yes] http://{}", served.address));
    let report = world.rescan(&mut running, |report| is_at(report, "pw-b", "2.0")).await;
    let b = update(&report, "pw-b");
    assert_eq!((b.held, b.held_reason, b.unauthenticated), (true, HeldReason::Unauthenticated, true), "{report:#?}");
    world.order(3, &report, &["pw-b"]).await;
    let result = world.gateway.result(3).await;
    assert_eq!(summary(&result).1, Some(ResultReason::DownloadFailed), "{result:#?}");
    assert!(result.message.contains("unauthenticated packages"), "{}", result.message);
    assert_eq!(world.gateway.nonces().len(), 1, "nobody was asked for a grant but for the first order");
    assert_eq!(installed(&world, ["pw-a", "pw-b"]), ["2.0", "1.0"]);

    // Nor where its signature is good, and the owner does not trust it.
    sign(&world, home.path(), "vendor");
    world.device.use_source(&format!("[signed-by=/srv/vendor.gpg trusted=no] http://{}", served.address));
    let report = world.rescan(&mut running, |report| report.problems.is_empty()).await;
    assert_eq!(update(&report, "pw-b").held_reason, HeldReason::Unauthenticated, "{report:#?}");
    let refused = "apt-get -y -o APT::Get::AllowUnauthenticated=false install pw-b 2>&1 || true";
    assert!(world.device.chroot(refused).contains("unauthenticated packages"), "in apt's own words");

    // What the owner trusts without any signature is told, and installed.
    world.device.use_source(&format!("[trusted=yes allow-downgrade-to-insecure=yes] http://{}", served.address));
    world.device.chroot("rm /srv/repo/dists/stable-security/InRelease");
    let report = world.rescan(&mut running, |report| !update(report, "pw-b").held).await;
    assert!(update(&report, "pw-b").unauthenticated, "{report:#?}");
    world.order(4, &report, &["pw-b"]).await;
    let result = world.gateway.result(4).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(installed(&world, ["pw-a", "pw-b"]), ["2.0", "2.0"]);
}

// covers CL-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_steps_are_taken_in_three_orders() {
    // Each brings the repository that has the next one, as the release of a distribution does.
    let step = |version, postinst| Package { postinst, ..Package::new("pw-step", version) };
    let world = world(&["pw-step"], &[step("2.0", "mv /srv/second.list /etc/apt/sources.list.d/")]).await;
    let later = [("second", step("3.0", "mv /srv/third.list /etc/apt/sources.list.d/")), ("third", step("4.0", ""))];
    for (name, package) in later {
        world.device.offer_from(&format!("srv/{name}"), "Test", &[package]);
        let source = format!("deb [trusted=yes] file:/srv/{name} stable-security main\n");
        world.device.write(&format!("srv/{name}.list"), &source);
    }
    let (mut running, _) = world.run().await;
    for (number, version) in [(1, "2.0"), (2, "3.0"), (3, "4.0")] {
        let report = world.rescan(&mut running, |report| is_at(report, "pw-step", version)).await;
        assert_eq!(report.updates.len(), 1, "one step at a time: {report:#?}");
        world.order(number, &report, &["pw-step"]).await;
        let result = world.gateway.result(number).await;
        assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
        assert_eq!(installed(&world, ["pw-step"]), [version]);
    }
    assert_eq!(world.configured("pw-step"), ["1.0", "2.0", "3.0", "4.0"]);
    let report = world.rescan(&mut running, |report| report.updates.is_empty()).await;
    assert_eq!(report.problems, []);
}
