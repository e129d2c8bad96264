//! Hooks and checks around an order's actions.

pub(crate) mod rollback;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Order, RestartRule, RestartWhen};
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason, Step};
use patchwarden_protocol::safeguards::{Check, Hook, OnFailure, Probe, Safeguards};

use crate::gateway::Granting;
use crate::world::{World, removable, summary, update};

/// Prints the version of pw-a.
const VERSION: &str = "version=$(dpkg-query -W -f '${Version}' pw-a)\n";

pub(crate) fn hook(name: &str) -> Hook {
    Hook { name: name.into(), timeout_seconds: 60, on_failure: OnFailure::Abort }
}

fn check(name: &str, probe: Probe) -> Check {
    Check { name: name.into(), probe, timeout_seconds: 60, settle_seconds: 120 }
}

pub(crate) fn command(name: &str) -> Check {
    check(name, Probe::Command { name: name.into() })
}

pub(crate) fn hooks(before: &[Hook], after: &[Hook]) -> Safeguards {
    Safeguards { before: before.to_vec(), after: after.to_vec(), ..Safeguards::default() }
}

pub(crate) fn checks(checks: &[Check]) -> Safeguards {
    Safeguards { checks: checks.to_vec(), ..Safeguards::default() }
}

/// Where the machine or a hook asks for it.
fn restarting() -> RestartRule {
    RestartRule {
        when: RestartWhen::IfRequired,
        not_after: Timestamp::now() + SignedDuration::from_mins(30),
        within_seconds: 1800,
        warning_seconds: 0,
        message: String::new(),
        limit: 3,
        services: false,
    }
}

/// Kind, name and whether it succeeded.
pub(crate) fn steps(result: &InstallResult) -> Vec<(Step, &str, bool)> {
    result.steps.iter().map(|one| (one.step, one.name.as_str(), one.ok)).collect()
}

impl World {
    /// A script that an order may name.
    pub(crate) fn script(&self, name: &str, body: &str) {
        self.device.chroot("mkdir -p /etc/patchwarden/hooks.d");
        let path = format!("etc/patchwarden/hooks.d/{name}");
        self.device.write(&path, &format!("#!/bin/sh\n{body}\n"));
        self.device.chroot(&format!("chmod 755 /{path}"));
    }

    fn guarded_order(&self, number: u32, report: &Report, names: &[&str], safeguards: Safeguards) -> Order {
        let updates: Vec<_> = names.iter().map(|name| update(report, name)).collect();
        Order { safeguards, ..self.gateway.order(number, report, &updates) }
    }

    pub(crate) async fn send_guarded(&self, number: u32, report: &Report, names: &[&str], safeguards: Safeguards) {
        let order = self.guarded_order(number, report, names, safeguards);
        self.gateway.send(&self.gateway.sign(&order)).await;
    }

    pub(crate) async fn guard(&self, number: u32, names: &[&str], safeguards: Safeguards) -> InstallResult {
        let report = self.report_after(number - 1).await;
        self.send_guarded(number, &report, names, safeguards).await;
        self.gateway.result(number).await
    }

    pub(crate) fn lines(&self, path: &str) -> Vec<String> {
        self.device.read(path).lines().map(str::to_owned).collect()
    }
}

// covers CC-5, CL-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_after_the_grant_before_and_after_the_install_and_are_told_what_for() {
    let world = World::new().await;
    let tell = "echo $PATCHWARDEN_PHASE $PATCHWARDEN_VERB $PATCHWARDEN_SEQUENCE $PATCHWARDEN_POLICY $version \
                $PATCHWARDEN_OUTCOME $(cat $PATCHWARDEN_UPDATES) >>/var/log/hooks\n";
    world.script("drain", &format!("{VERSION}{tell}echo drained; echo as told >&2"));
    world.script("undrain", &format!("{VERSION}{tell}env >/var/log/environment"));
    let (_running, report) = world.run().await;
    world.gateway.set_granting(Granting::Silent);
    let safeguards = hooks(&[hook("drain")], &[hook("undrain")]);
    world.send_guarded(1, &report, &["pw-a"], safeguards).await;
    world.gateway.until("grant request", |gateway| gateway.nonces().first().cloned()).await;
    assert!(!world.device.has("var/log/hooks"), "nobody has said yet that it may begin");
    world.gateway.set_granting(Granting::Grant);
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(steps(&result), [(Step::HookBefore, "drain", true), (Step::HookAfter, "undrain", true)]);
    assert_eq!(result.steps[0].message, "drained as told");
    let id = &update(&report, "pw-a").id;
    let expected =
        [format!("before Install 1-1 servers 1.0 {id}"), format!("after Install 1-1 servers 2.0 Succeeded {id}")];
    assert_eq!(world.lines("var/log/hooks"), expected);
    let mut known: Vec<String> = world.lines("var/log/environment");
    // Beside those of the shell itself, and of the network around the tests.
    let others = ["PATCHWARDEN_", "PWD=", "OLDPWD=", "_=", "SHLVL=", "TZ="];
    known.retain(|line| {
        !others.iter().any(|begins| line.starts_with(begins)) && !line.to_lowercase().contains("_proxy=")
    });
    known.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(known, ["HOME=/root", "LC_ALL=C", path], "nothing of the agent's own");
    assert!(world.gateway.progress().iter().any(|(phase, text)| phase == "Guarding" && text.starts_with("hook drain")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_before_that_fails_stops_the_install_and_what_was_begun_is_ended() {
    let world = World::new().await;
    world.script("drain", "echo drain >>/var/log/hooks");
    world.script("backup", "echo backup >>/var/log/hooks; echo no room; exit 3");
    world.script("undrain", "echo undrain $PATCHWARDEN_OUTCOME >>/var/log/hooks");
    let (_running, _) = world.run().await;
    let before = [hook("drain"), hook("backup"), hook("drain-again")];
    let result = world.guard(1, &["pw-a"], hooks(&before, &[hook("undrain")])).await;
    let failed = Some(ResultReason::HookFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed)]), "{result:#?}");
    assert_eq!(result.message, "hook backup: ended with code 3: no room");
    let expected =
        [(Step::HookBefore, "drain", true), (Step::HookBefore, "backup", false), (Step::HookAfter, "undrain", true)];
    assert_eq!(steps(&result), expected);
    assert_eq!(world.lines("var/log/hooks"), ["drain", "backup", "undrain Failed"]);
    assert_eq!(world.configured("pw-a"), ["1.0"]);
    // One that may fail is told, and no more.
    let may_fail = Hook { on_failure: OnFailure::Continue, ..hook("backup") };
    let result = world.guard(2, &["pw-a"], hooks(&[may_fail], &[])).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(steps(&result), [(Step::HookBefore, "backup", false)]);
    // After the install one that must not fails the order, and no later one runs; what is installed stays so.
    let result = world.guard(3, &["pw-b"], hooks(&[], &[hook("backup"), hook("undrain")])).await;
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(true, None)]), "{result:#?}");
    assert_eq!(steps(&result), [(Step::HookAfter, "backup", false)]);
    assert_eq!(world.at("pw-b"), "2.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_takes_too_long_is_killed_with_its_children() {
    let world = World::new().await;
    world.script("slow", "sleep 4711 &\necho waits; touch /var/log/slow-hook; wait");
    world.script("chatty", "while :; do echo yes; done");
    let (_running, _) = world.run().await;
    let slow = Hook { timeout_seconds: 10, ..hook("slow") };
    let result = world.guard(1, &["pw-a"], hooks(&[slow], &[])).await;
    assert_eq!(summary(&result).1, Some(ResultReason::HookFailed), "{result:#?}");
    let begins = "hook slow: did not end within 10 s and was killed: waits";
    assert!(result.message.starts_with(begins), "{}", result.message);
    assert!(world.device.has("var/log/slow-hook"));
    let left: Vec<_> = world.device.processes().into_iter().filter(|(_, line)| line.contains("4711")).collect();
    assert_eq!(left, []);
    assert_eq!(world.configured("pw-a"), ["1.0"]);
    // What is printed without end does not fill the result.
    let chatty = Hook { timeout_seconds: 10, ..hook("chatty") };
    let result = world.guard(2, &["pw-a"], hooks(&[chatty], &[])).await;
    let begins = "hook chatty: did not end within 10 s and was killed: ";
    let is_told = result.message.starts_with(begins) && result.message.contains("yes yes yes");
    assert!(is_told && result.message.len() < 500, "{}", result.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_somebody_else_than_root_could_change_is_not_run() {
    let world = World::new().await;
    world.script("drain", "touch /var/log/ran");
    world.script("undrain", "touch /var/log/ended");
    let (_running, _) = world.run().await;
    let spoilt = [
        ("chown 1000 /etc/patchwarden/hooks.d/drain", "drain: does not belong to root"),
        (
            "chown 0 /etc/patchwarden/hooks.d/drain; chmod 757 /etc/patchwarden/hooks.d/drain",
            "drain: may be written by",
        ),
        ("chmod 755 /etc/patchwarden/hooks.d/drain; chmod 777 /etc/patchwarden/hooks.d", "hooks.d: may be written by"),
        ("chmod 755 /etc/patchwarden/hooks.d; rm /etc/patchwarden/hooks.d/drain", "drain: No such file"),
    ];
    for (number, (spoil, words)) in (1..).zip(spoilt) {
        world.device.chroot(spoil);
        let result = world.guard(number, &["pw-a"], hooks(&[hook("drain")], &[hook("undrain")])).await;
        assert_eq!(summary(&result).1, Some(ResultReason::HookFailed), "{result:#?}");
        assert!(result.message.contains(words), "{words}: {}", result.message);
        assert_eq!(steps(&result), [(Step::HookBefore, "drain", false)], "nothing was begun that is to be ended");
    }
    assert!(!world.device.has("var/log/ended"));
    assert!(!world.device.has("var/log/ran"));
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

// covers CC-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_not_healthy_is_left_alone() {
    let world = World::new().await;
    world.script("drain", "touch /var/log/drained");
    world.script("healthy", "echo sick; exit 1");
    world.device.write(
        "usr/bin/systemctl",
        "#!/bin/sh\n[ \"$*\" = 'is-active -- pw.service' ] || exit 9\necho failed\nexit 3\n",
    );
    world.device.chroot("chmod 755 /usr/bin/systemctl");
    let (_running, _) = world.run().await;
    // A port on which nobody listens, and that no test is given by chance.
    let port = 9;
    let unhealthy = Some(ResultReason::Unhealthy);
    let sick = [
        (command("healthy"), "check healthy failed before anything was done: ended with code 1: sick"),
        (check("file", Probe::FileExists { path: "/var/log/gone".into() }), "/var/log/gone does not exist"),
        (check("unit", Probe::ServiceActive { unit: "pw.service".into() }), "pw.service is failed"),
        (check("port", Probe::Tcp { port }), "Connection refused"),
        (check("page", Probe::Http { port, path: "/".into(), status: 200 }), "Connection refused"),
    ];
    for (number, (check, words)) in (1..).zip(sick) {
        let all = [check.clone(), command("never-asked")];
        let safeguards = Safeguards { before: vec![hook("drain")], ..checks(&all) };
        let result = world.guard(number, &["pw-a"], safeguards).await;
        assert_eq!(summary(&result), (Outcome::Failed, unhealthy, vec![(false, unhealthy)]), "{result:#?}");
        assert!(result.message.contains(words), "{words}: {}", result.message);
        assert_eq!(steps(&result), [(Step::CheckBefore, check.name.as_str(), false)]);
    }
    assert!(!world.device.has("var/log/drained"));
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_with_which_a_check_fails_has_failed_and_can_be_taken_back() {
    let world = World::new().await;
    world.script("healthy", &format!("{VERSION}[ $version = 1.0 ] || {{ echo sick with $version; exit 1; }}"));
    let (_running, _) = world.run().await;
    let soon = Check { settle_seconds: 3, ..command("healthy") };
    let result = world.guard(1, &["pw-a", "pw-bad"], checks(&[soon])).await;
    let (failed, own) = (Some(ResultReason::CheckFailed), Some(ResultReason::PackageManagerFailed));
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed), (false, own)]), "{result:#?}");
    assert_eq!(result.actions[0].message, "check healthy failed: ended with code 1: sick with 2.0");
    assert_eq!(steps(&result), [(Step::CheckBefore, "healthy", true), (Step::CheckAfter, "healthy", false)]);
    let report = world.report_after(1).await;
    assert!(removable(&report, "pw-a").is_some(), "{:#?}", report.removable);
    assert_eq!(world.at("pw-a"), "2.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_has_time_to_settle_after_the_install() {
    let world = World::new().await;
    let body = "[ $version = 1.0 ] && exit 0\necho try >>/var/log/tries\n[ $(wc -l </var/log/tries) -ge 3 ]";
    world.script("healthy", &format!("{VERSION}{body}"));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a"], checks(&[command("healthy")])).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(steps(&result), [(Step::CheckBefore, "healthy", true), (Step::CheckAfter, "healthy", true)]);
    assert_eq!(world.lines("var/log/tries").len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_outlives_the_agent_and_runs_again_where_it_died_with_the_machine() {
    let world = World::new().await;
    let slow = "echo begun >>/var/log/$PATCHWARDEN_PHASE\nwhile [ ! -e /srv/$PATCHWARDEN_PHASE ]; do sleep 0.1; done\n\
                echo ended >>/var/log/$PATCHWARDEN_PHASE";
    world.script("slow", slow);
    let begun = async |phase| {
        let path = format!("var/log/{phase}");
        world.gateway.until(phase, |_| (world.device.read(&path) == "begun\n").then_some(())).await;
    };
    let (mut running, report) = world.run().await;
    world.send_guarded(1, &report, &["pw-a"], hooks(&[hook("slow")], &[hook("slow")])).await;
    begun("before").await;
    running.kill();
    running = world.device.start();
    world.device.write("srv/before", "");
    begun("after").await;
    assert_eq!(world.lines("var/log/before"), ["begun", "ended"], "it was followed");
    world.device.pull_the_plug();
    running.kill();
    world.device.write("srv/after", "");
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(steps(&result), [(Step::HookBefore, "slow", true), (Step::HookAfter, "slow", true)]);
    assert_eq!(world.lines("var/log/after"), ["begun", "begun", "ended"], "it was run again");
    assert_eq!(world.lines("var/log/before").len(), 2);
    assert_eq!(world.configured("pw-a"), ["1.0", "2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_is_waited_for_where_the_grant_is_withdrawn_meanwhile() {
    let world = World::new().await;
    let drain = "touch /var/log/begun; while [ ! -e /srv/go ]; do sleep 0.1; done; echo drained >>/var/log/hooks";
    world.script("drain", drain);
    world.script("undrain", "echo undrained $PATCHWARDEN_OUTCOME >>/var/log/hooks");
    let (mut running, report) = world.run().await;
    world.send_guarded(1, &report, &["pw-a"], hooks(&[hook("drain")], &[hook("undrain")])).await;
    world.until_on_device("var/log/begun").await;
    running.kill();
    world.gateway.set_granting(Granting::Deny);
    let asked = world.gateway.nonces().len();
    let _again = world.device.start();
    world.gateway.until("denial", |gateway| (gateway.nonces().len() > asked).then_some(())).await;
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Withdrawn, Some(ResultReason::Denied), vec![]), "{result:#?}");
    assert_eq!(steps(&result), [(Step::HookBefore, "drain", true), (Step::HookAfter, "undrain", true)]);
    assert_eq!(world.lines("var/log/hooks"), ["drained", "undrained Withdrawn"]);
    assert_eq!(steps(&result), [(Step::HookBefore, "drain", true), (Step::HookAfter, "undrain", true)]);
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_asks_for_a_restart_and_checks_follow_it() {
    let world = World::new().await;
    world.device.own_boot();
    world.device.restart_by("restart");
    world.script("rebuild", "echo hook >>/var/log/story; exit 194");
    world.script("healthy", &format!("{VERSION}echo check $version $(cat /var/log/restarts) >>/var/log/story"));
    let (mut running, report) = world.run().await;
    let safeguards = Safeguards { after: vec![hook("rebuild")], ..checks(&[command("healthy")]) };
    let order = Order { restart: restarting(), ..world.guarded_order(1, &report, &["pw-a"], safeguards.clone()) };
    let result = world.restart_for(&mut running, &order).await;
    assert_eq!((result.outcome, result.restarts), (Outcome::Succeeded, 1), "{result:#?}");
    assert_eq!(world.lines("var/log/story"), ["check 1.0", "hook", "check 2.0 called"]);
    // Where the order allows none it is told.
    let result = world.guard(2, &["pw-b"], safeguards).await;
    assert_eq!((result.outcome, result.restarts), (Outcome::Succeeded, 0), "{result:#?}");
    assert!(result.restart_postponed.contains("a hook asked for it"), "{}", result.restart_postponed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_again_and_again_runs_each_hook_once_and_changes_each_package_once() {
    let world = World::new().await;
    world.script("drain", "echo drain >>/var/log/hooks; sleep 1");
    world.script("undrain", "echo undrain >>/var/log/hooks; sleep 1");
    world.script("healthy", "sleep 1");
    let (mut running, report) = world.run().await;
    let safeguards =
        Safeguards { before: vec![hook("drain")], after: vec![hook("undrain")], ..checks(&[command("healthy")]) };
    world.send_guarded(1, &report, &["pw-slow", "pw-a"], safeguards).await;
    world.gateway.phase("Verified").await;
    // Some lives are long enough for a scan and the checks after it, which begin again with each.
    let kills = world.kill_again_and_again(&mut running, 8000).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{kills} kills: {result:#?}");
    let kinds = [Step::CheckBefore, Step::HookBefore, Step::HookAfter, Step::CheckAfter];
    assert_eq!(result.steps.iter().map(|one| one.step).collect::<Vec<_>>(), kinds, "{kills} kills");
    // Killed between the journal and the start it runs a second time, and never more than once at a time.
    let ran = world.lines("var/log/hooks");
    let of = |word: &str| ran.iter().filter(|line| *line == word).count();
    assert!((1..=3).contains(&of("drain")) && (1..=3).contains(&of("undrain")), "{kills} kills: {ran:?}");
    for package in ["pw-slow", "pw-a"] {
        assert_eq!(world.configured(package).len(), 2, "{package} after {kills} kills");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_and_hooks_that_take_longer_than_a_grant_counts_are_not_begun_again_with_the_next_one() {
    let world = World::new().await;
    world.script("drain", "echo drain >>/var/log/story; sleep 12");
    world.script("healthy", &format!("{VERSION}echo check $version >>/var/log/story"));
    let (_running, _) = world.run().await;
    world.gateway.set_granting(Granting::Late);
    let safeguards = Safeguards { before: vec![hook("drain")], ..checks(&[command("healthy")]) };
    let result = world.guard(1, &["pw-a"], safeguards).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(world.lines("var/log/story"), ["check 1.0", "drain", "check 2.0"]);
    let mut nonces = world.gateway.nonces();
    nonces.dedup();
    assert!(nonces.len() > 1, "asked for one grant only");
    // Checks alone.
    world.script("healthy", &format!("{VERSION}echo slow check $version >>/var/log/story; sleep 12"));
    let slow = Check { timeout_seconds: 60, ..command("healthy") };
    let result = world.guard(2, &["pw-b"], checks(&[slow])).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(world.lines("var/log/story")[3..], ["slow check 2.0", "slow check 2.0"], "before and after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_that_leave_no_time_for_the_grant_after_them_are_not_begun() {
    let world = World::new().await;
    world.script("drain", "touch /var/log/drained");
    let (_running, report) = world.run().await;
    let long = Hook { timeout_seconds: 600, ..hook("drain") };
    let order = Order {
        not_after: Timestamp::now() + SignedDuration::from_secs(120),
        ..world.guarded_order(1, &report, &["pw-a"], hooks(&[long], &[]))
    };
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Expired, Some(ResultReason::Expired), vec![]), "{result:#?}");
    assert!(result.message.starts_with("checks and hooks before it may take until "), "{}", result.message);
    assert!(!world.device.has("var/log/drained"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_has_installed_meanwhile_is_neither_blamed_nor_taken_back() {
    let world = World::new().await;
    world.script("healthy", &format!("{VERSION}[ $version = 1.0 ] || {{ echo sick with $version; exit 1; }}"));
    let (_running, report) = world.run().await;
    world.device.chroot("apt-get -q -y install pw-b");
    let soon = Check { settle_seconds: 0, ..command("healthy") };
    world.send_guarded(1, &report, &["pw-b", "pw-a"], checks(&[soon])).await;
    let result = world.gateway.result(1).await;
    let failed = Some(ResultReason::CheckFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(true, None), (false, failed)]), "{result:#?}");
    let report = world.report_after(1).await;
    assert!(removable(&report, "pw-a").is_some(), "{:#?}", report.removable);
    assert!(removable(&report, "pw-b").is_none(), "{:#?}", report.removable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_is_killed_each_time_says_so_and_a_restart_that_it_asked_for_is_told_although_nothing_was_installed()
 {
    let world = World::new().await;
    // The shell around `timeout`, and that.
    let die = "echo gone; read -r _ _ _ parent _ </proc/$PPID/stat; kill -9 $parent $PPID; sleep 100";
    world.script("dies", &format!("echo run >>/var/log/runs; {die}"));
    world.script("rebuild", "exit 194");
    let (_running, report) = world.run().await;
    let safeguards = hooks(&[hook("dies")], &[hook("rebuild")]);
    let order = Order { restart: restarting(), ..world.guarded_order(1, &report, &["pw-a"], safeguards) };
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).1, Some(ResultReason::HookFailed), "{result:#?}");
    assert_eq!(result.message, "hook dies: was interrupted, 3 times of at most 3: gone");
    assert_eq!(world.lines("var/log/runs").len(), 3);
    assert_eq!(result.restart_postponed, "a hook asked for it, and nothing was installed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_do_not_follow_a_package_manager_that_still_runs_and_the_result_says_so() {
    let world = World::new().await;
    world.script("undrain", "touch /var/log/undrained");
    let (_running, report) = world.run().await;
    let order =
        Order { limit_seconds: 1, ..world.guarded_order(1, &report, &["pw-slow"], hooks(&[], &[hook("undrain")])) };
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).1, Some(ResultReason::TimedOut), "{result:#?}");
    assert_eq!(steps(&result), [(Step::HookAfter, "undrain", false)]);
    assert_eq!(result.steps[0].message, "was not run: the package manager still runs");
    assert!(!world.device.has("var/log/undrained"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_hook_is_begun_for_what_the_owner_has_excluded_meanwhile() {
    let world = World::new().await;
    world.script("drain", "touch /var/log/drained");
    let (_running, report) = world.run().await;
    world.gateway.set_granting(Granting::Silent);
    world.send_guarded(1, &report, &["pw-a"], hooks(&[hook("drain")], &[])).await;
    world.gateway.until("grant request", |gateway| gateway.nonces().first().cloned()).await;
    world.device.write("etc/patchwarden/limits.toml", "exclude_packages = ['pw-a']\n");
    world.gateway.set_granting(Granting::Grant);
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).1, Some(ResultReason::LimitedByDevice), "{result:#?}");
    assert!(!world.device.has("var/log/drained"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_before_an_install_cannot_ask_for_a_restart() {
    let world = World::new().await;
    world.script("drain", "exit 194");
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a"], hooks(&[hook("drain")], &[])).await;
    assert_eq!(summary(&result).1, Some(ResultReason::HookFailed), "{result:#?}");
    assert!(result.message.starts_with("hook drain: ended with code 194"), "{}", result.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_hook_that_must_not_fail_and_has_the_machine_is_not_restarted() {
    let world = World::new().await;
    world.device.own_boot();
    world.device.restart_by("restart");
    world.script("rebuild", "exit 194");
    world.script("backup", "exit 3");
    let (_running, report) = world.run().await;
    let safeguards = hooks(&[], &[hook("rebuild"), hook("backup")]);
    let order = Order { restart: restarting(), ..world.guarded_order(1, &report, &["pw-a"], safeguards) };
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    assert_eq!((result.reason, result.restarts), (Some(ResultReason::HookFailed), 0), "{result:#?}");
    assert_eq!(result.restart_postponed, "a hook failed after which nothing more is done");
}
