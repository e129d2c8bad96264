//! Restarts after an order's actions, and orders to restart. The machine is restarted by a script (`restart_command`).

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::grant::Purpose;
use patchwarden_protocol::order::{Action, Order, RESTART, RestartRule, RestartWhen, Verb};
use patchwarden_protocol::report::{Report, Tristate};
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason};

use crate::device::{Package, Running, stdout};
use crate::gateway::Granting;
use crate::world::{World, summary, update};

/// A restart that is required is so from the install of `pw-kernel` on.
pub(crate) async fn world() -> World {
    let installed = ["pw-a", "pw-bad", "pw-kernel"].map(|name| Package::new(name, "1.0"));
    let offered = [
        Package::new("pw-a", "2.0"),
        Package { postinst: "exit 3", ..Package::new("pw-bad", "2.0") },
        Package { postinst: "touch /run/reboot-required", ..Package::new("pw-kernel", "2.0") },
    ];
    let world = World::of(&installed, &offered).await;
    world.device.own_boot();
    world.device.restart_by("restart");
    world
}

pub(crate) fn rule(when: RestartWhen) -> RestartRule {
    RestartRule {
        when,
        not_after: Timestamp::now() + SignedDuration::from_mins(30),
        within_seconds: 1800,
        warning_seconds: 0,
        message: String::new(),
        limit: 3,
        services: false,
    }
}

pub(crate) fn order(world: &World, number: u32, report: &Report, names: &[&str], restart: RestartRule) -> Order {
    let updates: Vec<_> = names.iter().map(|name| update(report, name)).collect();
    Order { restart, ..world.gateway.order(number, report, &updates) }
}

pub(crate) fn restart_alone(world: &World, number: u32, report: &Report, restart: RestartRule) -> Order {
    let update = RESTART.to_owned();
    let action = Action { verb: Verb::Restart, update, packages: vec![], artifacts_digest: String::new() };
    Order { restart, ..world.gateway.order_of(number, report, vec![action]) }
}

impl World {
    pub(crate) async fn give(&self, order: &Order) {
        self.gateway.send(&self.gateway.sign(order)).await;
    }

    /// Gives the order and waits for its result, as [`Self::until_restarting`] does.
    pub(crate) async fn restart_for(&self, running: &mut Running, order: &Order) -> InstallResult {
        self.give(order).await;
        self.restarted_result(running, order.sequence.number).await
    }

    pub(crate) async fn restarted_result(&self, running: &mut Running, number: u32) -> InstallResult {
        self.until_restarting(running, "result", || {
            self.gateway.results().into_iter().find(|result| result.sequence.number == number)
        })
        .await
    }

    /// Waits until `find` finds; meanwhile, as an init system does, starts the agent again whenever it has ended.
    pub(crate) async fn until_restarting<T>(
        &self,
        running: &mut Running,
        what: &str,
        find: impl Fn() -> Option<T>,
    ) -> T {
        let find = || {
            if running.has_ended() {
                *running = self.device.start();
            }
            find()
        };
        self.gateway.until_mut(what, find).await
    }

    /// How often the command was run that restarts the machine.
    pub(crate) fn calls(&self) -> usize {
        self.device.read("var/log/restarts").lines().count()
    }

    pub(crate) fn said(&self, words: &str) -> bool {
        self.gateway.progress().iter().any(|(phase, text)| phase == "Restarting" && text.contains(words))
    }
}

/// Every action is done, so many restarts, and a part of why no more.
pub(crate) fn assert_installed(result: &InstallResult, restarts: u32, postponed: &str) {
    assert_eq!((result.outcome, result.restarts), (Outcome::Succeeded, restarts), "{result:#?}");
    let why = &result.restart_postponed;
    assert!(why.contains(postponed) && why.is_empty() == postponed.is_empty(), "{why}");
}

// covers CL-8, CL-13, EM-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_that_requires_a_restart_is_followed_by_one_of_which_users_are_warned() {
    let world = world().await;
    world.device.write("usr/bin/wall", "#!/bin/sh\ncat >/var/log/wall\n");
    // systemd's own is not on this device.
    let busctl = "#!/bin/sh\n{ id -u; id -G; env; printf '%s\\n' \"$@\"; } >/run/user/1234/told\n";
    world.device.write("usr/bin/busctl", busctl);
    world.device.chroot("chmod 755 /usr/bin/busctl; mkdir -p /run/user/1234; chown 1234:1234 /run/user/1234");
    let _bus = std::os::unix::net::UnixListener::bind(world.device.root.join("run/user/1234/bus")).unwrap();
    let (mut running, report) = world.run().await;
    let restart = RestartRule { warning_seconds: 2, message: "Coffee!".into(), ..rule(RestartWhen::IfRequired) };
    let order = order(&world, 1, &report, &["pw-a", "pw-kernel"], restart);
    let result = world.restart_for(&mut running, &order).await;
    assert_installed(&result, 1, "");
    assert_eq!((world.calls(), result.actions.len()), (1, 2));
    assert_ne!(result.restart_required, Tristate::Yes);
    assert_eq!(world.gateway.purposes(), [Purpose::Act, Purpose::Restart]);
    let after = world.report_after(1).await;
    assert_ne!(after.boot_id, report.boot_id);
    assert_eq!(after.removable.len(), 2, "what was installed before the restart is remembered");
    let told = world.device.read("var/log/wall");
    assert!(told.starts_with("Coffee!\nThis machine restarts in 1 min, at 20"), "{told}");
    let shown = world.device.read("run/user/1234/told");
    assert!(shown.starts_with("1234\n1234\n") && !shown.contains("PATCHWARDEN"), "as its user alone: {shown}");
    let words = "--address=unix:path=/run/user/1234/bus\n--\ncall\norg.freedesktop.Notifications\n";
    assert!(shown.contains(words) && shown.contains("\nCoffee!\nThis machine restarts in 1 min, at 20"), "{shown}");
    for words in ["users who are logged in were told", "restarts now (1 of at most 3): pw-restart now", "restarted (1)"]
    {
        // What is said right before the agent dies need not come to the gateway.
        let is_said = world.said(words) || world.device.log().contains(words);
        assert!(is_said, "{words}: {:#?}", world.gateway.progress());
    }
    assert_eq!(world.configured("pw-kernel"), ["1.0", "2.0"]);
}

/// Nothing on this device writes /run/reboot-required.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_running_in_its_old_version_is_followed_by_a_restart() {
    let of = |source: &'static str, name, version| Package { control: source, ..Package::new(name, version) };
    let library = |version| of("Source: glibc (9.0)\n", "libpw1", version);
    let tools = |version| of("Source: glibc (8.0)\n", "pw-locales", version);
    let kernel = Package::new("linux-image-6.1.0-37-amd64", "6.1.140-1");
    let world = World::of(&[library("1.0"), tools("1.0"), kernel], &[library("2.0"), tools("2.0")]).await;
    world.device.own_boot();
    for (name, content) in
        [("osrelease", "6.1.0-37-amd64\n"), ("version", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)\n")]
    {
        let file = format!("var/lib/{name}");
        world.device.write(&file, content);
        world.device.own_proc(&format!("sys/kernel/{name}"), &file);
    }
    world.device.restart_by("restart");
    let (mut running, report) = world.run().await;
    assert_eq!((report.restart.required, &report.restart.reasons[..]), (Tristate::No, &[][..]));
    assert_eq!(update(&report, "libpw1").requires_restart, Tristate::Yes);
    let result =
        world.restart_for(&mut running, &order(&world, 1, &report, &["pw-locales"], rule(RestartWhen::Never))).await;
    assert_installed(&result, 0, "");
    assert_eq!(result.restart_required, Tristate::No, "no process has old code of it");
    let report = world.report_after(1).await;
    let result =
        world.restart_for(&mut running, &order(&world, 2, &report, &["libpw1"], rule(RestartWhen::Never))).await;
    assert_installed(&result, 0, "");
    assert_eq!(result.restart_required, Tristate::Yes);
    let report = world.report_after(2).await;
    assert_eq!(report.restart.reasons, ["libpw1 2.0 was installed after the start"]);
    let alone = restart_alone(&world, 3, &report, rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &alone).await;
    assert_installed(&result, 1, "");
    assert_eq!((result.restart_required, world.calls()), (Tristate::No, 1));
    let report = world.report_after(3).await;
    assert_eq!((report.restart.required, report.restart.reasons), (Tristate::No, vec![]));
    // A container's processes have not started with the kernel.
    world.device.write(".dockerenv", "");
    world.rescan(&mut running, |report| report.restart.required == Tristate::Unknown).await;
    world.device.chroot("rm /.dockerenv");
    world.rescan(&mut running, |report| report.restart.required == Tristate::No).await;
    // An own build: whether another would start next cannot be told.
    world.device.write("var/lib/osrelease", "6.1.99-own\n");
    let scanned: Report = serde_json::from_str(&stdout(&mut world.device.agent(&["scan"]))).unwrap();
    assert_eq!((scanned.restart.required, scanned.restart.reasons), (Tristate::Unknown, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_the_rule_does_not_ask_for_does_not_take_place() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    let first = order(&world, 1, &report, &["pw-a"], rule(RestartWhen::IfRequired));
    assert_installed(&world.restart_for(&mut running, &first).await, 0, "");
    let report = world.report_after(1).await;
    let second = order(&world, 2, &report, &["pw-bad"], rule(RestartWhen::Always));
    let result = world.restart_for(&mut running, &second).await;
    assert_eq!((result.outcome, result.restarts), (Outcome::Failed, 0), "nothing was changed");
    world.device.chroot("dpkg --purge --force-all pw-bad");
    let packages = report.counts.packages;
    let report = world.rescan(&mut running, |report| report.counts.packages < packages).await;
    let third = order(&world, 3, &report, &["pw-kernel"], rule(RestartWhen::Never));
    let result = world.restart_for(&mut running, &third).await;
    assert_installed(&result, 0, "");
    assert_eq!((result.restart_required, world.calls()), (Tristate::Yes, 0));
    assert!(!world.gateway.purposes().contains(&Purpose::Restart));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn always_restarts_once_after_a_change() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    let order = order(&world, 1, &report, &["pw-a"], rule(RestartWhen::Always));
    assert_installed(&world.restart_for(&mut running, &order).await, 1, "");
    assert_eq!(world.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_controller_denies_is_postponed_with_its_reason() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    world.gateway.set_granting_restarts(Granting::Deny);
    let order = order(&world, 1, &report, &["pw-kernel"], rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &order).await;
    assert_installed(&result, 0, "Suspended: the policy is suspended");
    assert_eq!((world.calls(), result.restart_required), (0, Tristate::Yes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_to_act_restarts_nothing_and_one_to_restart_installs_nothing() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    let refusals = || world.device.log().matches("grant is for another purpose").count();
    world.gateway.set_granting_restarts(Granting::Confuse);
    let soon = RestartRule { within_seconds: 45, ..rule(RestartWhen::IfRequired) };
    let first = order(&world, 1, &report, &["pw-kernel"], soon);
    assert_installed(&world.restart_for(&mut running, &first).await, 0, "no grant came until 20");
    assert_eq!(world.calls(), 0);
    let before = refusals();
    assert!(before > 0, "{}", world.device.log());
    world.gateway.set_granting(Granting::Confuse);
    let report = world.report_after(1).await;
    world.give(&order(&world, 2, &report, &["pw-a"], rule(RestartWhen::IfRequired))).await;
    world.gateway.until("refusal", |_| (refusals() > before).then_some(())).await;
    // It goes on asking.
    world.gateway.set_granting(Granting::Deny);
    assert_eq!(summary(&world.restarted_result(&mut running, 2).await).0, Outcome::Withdrawn);
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

// covers CL-8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_its_time_a_restart_is_postponed_and_nobody_is_asked() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    let closed = RestartRule { not_after: Timestamp::now(), ..rule(RestartWhen::IfRequired) };
    let first = order(&world, 1, &report, &["pw-kernel"], closed);
    assert_installed(&world.restart_for(&mut running, &first).await, 0, "the end of the window");
    let late = RestartRule { within_seconds: 0, ..rule(RestartWhen::Always) };
    let second = order(&world, 2, &world.report_after(1).await, &["pw-a"], late);
    assert_installed(&world.restart_for(&mut running, &second).await, 0, "more than 0 min later");
    let warned_too_long = RestartRule { warning_seconds: 1801, ..rule(RestartWhen::IfRequired) };
    let third = restart_alone(&world, 3, &world.report_after(2).await, warned_too_long);
    let result = world.restart_for(&mut running, &third).await;
    let postponed = Some(ResultReason::RestartPostponed);
    assert_eq!(summary(&result), (Outcome::Failed, postponed, vec![(false, postponed)]), "{result:#?}");
    assert_eq!((world.calls(), world.gateway.purposes()), (0, vec![Purpose::Act; 2]));
}

// covers CL-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_that_always_wants_a_restart_is_restarted_up_to_the_limit() {
    let world = world().await;
    world.device.restart_by("restart() { cat /proc/sys/kernel/random/uuid >/var/lib/boot_id; die; }; restart");
    let (mut running, report) = world.run().await;
    let twice = RestartRule { limit: 2, ..rule(RestartWhen::IfRequired) };
    let first = order(&world, 1, &report, &["pw-kernel"], twice.clone());
    let result = world.restart_for(&mut running, &first).await;
    assert_installed(&result, 2, "restarted 2 times, and no more than 2 in a row");
    assert_eq!((world.calls(), result.restart_required), (2, Tristate::Yes));
    assert_eq!(world.gateway.purposes(), [Purpose::Act, Purpose::Restart, Purpose::Restart], "a grant for each");
    let second = restart_alone(&world, 2, &world.report_after(1).await, twice);
    let result = world.restart_for(&mut running, &second).await;
    assert_installed(&result, 2, "restarted 2 times, and no more than 2 in a row");
    assert_eq!(world.calls(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_is_told_in_its_own_words() {
    let world = world().await;
    world.device.restart_by("echo not today >&2; exit 3");
    let (mut running, report) = world.run().await;
    let first = order(&world, 1, &report, &["pw-kernel"], rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &first).await;
    assert_installed(&result, 0, "pw-restart now: ended with code 3: not today");
    world.device.chroot("rm /usr/local/sbin/pw-restart");
    let second = restart_alone(&world, 2, &world.report_after(1).await, rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &second).await;
    let reason = Some(ResultReason::RestartFailed);
    assert_eq!(summary(&result), (Outcome::Failed, reason, vec![(false, reason)]), "{result:#?}");
    assert!(result.message.contains("pw-restart now: No such file"), "{}", result.message);
    assert_eq!((world.calls(), result.restarts), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_the_command_runs_it_once_more_by_the_same_grant_and_not_twice() {
    let world = world().await;
    // As if the agent were killed between the journal and the command.
    world.device.restart_by("die");
    let (mut running, report) = world.run().await;
    world.give(&order(&world, 1, &report, &["pw-kernel"], rule(RestartWhen::IfRequired))).await;
    let waits = || world.said("has not restarted yet").then_some(());
    world.until_restarting(&mut running, "waiting", waits).await;
    assert_eq!((world.calls(), world.gateway.results().len()), (2, 0), "{}", world.device.log());
    running.kill();
    running = world.device.start();
    world.gateway.report(|report| report.restart.required == Tristate::Yes).await;
    assert_eq!(world.calls(), 2);
    // The machine was going down all the time.
    running.kill();
    world.device.boot_again();
    world.device.chroot("rm /run/reboot-required");
    running = world.device.start();
    assert_installed(&world.restarted_result(&mut running, 1).await, 1, "");
    assert_eq!(world.calls(), 2);
    assert_eq!(world.gateway.purposes(), [Purpose::Act, Purpose::Restart]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_again_and_again_restarts_the_machine_once() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    let order = order(&world, 1, &report, &["pw-kernel"], rule(RestartWhen::IfRequired));
    world.give(&order).await;
    world.gateway.phase("Verified").await;
    let kills = world.kill_again_and_again(&mut running, 2500).await;
    assert_installed(&world.gateway.result(1).await, 1, "");
    assert!((1..=2).contains(&world.calls()), "{} after {kills} kills", world.calls());
    assert_eq!(world.configured("pw-kernel").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_withdrawn_while_users_are_warned_does_not_take_place() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    let restart = RestartRule { warning_seconds: 61, ..rule(RestartWhen::IfRequired) };
    world.give(&order(&world, 1, &report, &["pw-kernel"], restart)).await;
    world.gateway.until("warning", |_| world.said("restarts at").then_some(())).await;
    world.gateway.set_granting_restarts(Granting::Deny);
    let result = world.restarted_result(&mut running, 1).await;
    assert_installed(&result, 0, "Suspended");
    assert_eq!((world.calls(), world.gateway.purposes().len()), (0, 3), "asked before the warning and after it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_restart_restarts_while_that_is_required() {
    let world = world().await;
    world.device.write("run/reboot-required", "");
    let (mut running, report) = world.run().await;
    assert_eq!(report.restart.required, Tristate::Yes);
    let first = restart_alone(&world, 1, &report, rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &first).await;
    assert_installed(&result, 1, "");
    assert_eq!((world.calls(), world.gateway.purposes()), (1, vec![Purpose::Act, Purpose::Restart]));
    let second = restart_alone(&world, 2, &world.report_after(1).await, rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &second).await;
    assert_installed(&result, 0, "");
    assert_eq!(result.actions[0].message, "no restart is required any more");
    assert_eq!((world.calls(), world.gateway.purposes().len()), (1, 2), "nobody is asked");
    let third = restart_alone(&world, 3, &world.report_after(2).await, rule(RestartWhen::Always));
    assert_installed(&world.restart_for(&mut running, &third).await, 1, "");
    assert_eq!(world.calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_restart_that_is_denied_or_cannot_be_carried_out_says_so() {
    let world = world().await;
    world.device.write("run/reboot-required", "");
    let (mut running, report) = world.run().await;
    world.gateway.set_granting(Granting::Deny);
    let first = restart_alone(&world, 1, &report, rule(RestartWhen::IfRequired));
    let denied = Some(ResultReason::Denied);
    assert_eq!(summary(&world.restart_for(&mut running, &first).await), (Outcome::Withdrawn, denied, vec![]));
    world.gateway.set_granting(Granting::Grant);
    world.gateway.set_granting_restarts(Granting::Deny);
    let second = restart_alone(&world, 2, &world.report_after(1).await, rule(RestartWhen::IfRequired));
    let postponed = Some(ResultReason::RestartPostponed);
    let result = world.restart_for(&mut running, &second).await;
    assert_eq!(summary(&result), (Outcome::Failed, postponed, vec![(false, postponed)]));
    assert!(result.restart_postponed.contains("Suspended"), "{result:#?}");
    // A container, of which nobody has said how it is restarted.
    running.kill();
    world.gateway.forget_session();
    let path = "etc/patchwarden/agent.toml";
    let configuration = world.device.read(path);
    world.device.write(path, configuration.split_once('\n').unwrap().1);
    world.device.write(".dockerenv", "");
    running = world.device.start();
    let asked = world.gateway.purposes().len();
    let third = restart_alone(&world, 3, &world.report_after(2).await, rule(RestartWhen::IfRequired));
    let impossible = Some(ResultReason::RestartImpossible);
    let result = world.restart_for(&mut running, &third).await;
    assert_eq!(summary(&result), (Outcome::Failed, impossible, vec![(false, impossible)]));
    assert!(result.message.contains("/.dockerenv") && result.message.contains("restart_command"), "{result:#?}");
    assert_eq!((world.calls(), world.gateway.purposes().len()), (0, asked));
}
