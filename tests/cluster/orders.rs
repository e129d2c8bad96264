//! What else an order does than install: download, take back, try again, restart; and a window that closes meanwhile.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use patchwarden::api::device_inventory::{Decision, InstallPhase, UpdateState};
use patchwarden::build;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::{Outcome, ResultReason, Step};
use patchwarden_protocol::site_cache::{SiteCache, WhenDown};

use crate::Test;
use crate::crash::compliance;
use crate::world::{APPROVE_SECURITY, Device, MAY_GO, OPEN_WINDOW, POLICY, Tenant, World, eventually};

pub const TESTS: &[Test] = &[
    (
        "what_was_downloaded_is_installed_without_its_repository",
        what_was_downloaded_is_installed_without_its_repository,
    ),
    ("an_update_is_taken_back_and_stays_away", an_update_is_taken_back_and_stays_away),
    (
        "an_update_that_failed_is_tried_again_when_somebody_says_so",
        an_update_that_failed_is_tried_again_when_somebody_says_so,
    ),
    (
        "a_window_that_closes_in_the_middle_lets_nothing_more_begin",
        a_window_that_closes_in_the_middle_lets_nothing_more_begin,
    ),
    (
        "what_interrupts_nothing_is_installed_at_once_and_the_rest_in_its_window",
        what_interrupts_nothing_is_installed_at_once_and_the_rest_in_its_window,
    ),
    ("a_restart_follows_where_the_policy_says_so", a_restart_follows_where_the_policy_says_so),
    (
        "an_update_with_which_a_check_fails_has_failed_and_status_says_why",
        an_update_with_which_a_check_fails_has_failed_and_status_says_why,
    ),
    (
        "an_update_with_which_a_check_fails_is_taken_back_and_waits_for_a_person",
        an_update_with_which_a_check_fails_is_taken_back_and_waits_for_a_person,
    ),
];

const DOWNLOAD: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: everything}
spec: {mode: DownloadOnly, rollout: {maxConcurrent: 100%}}
";

// covers MW-6, MW-13
fn what_was_downloaded_is_installed_without_its_repository(world: &World) {
    let repository = world.repository("downloads", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("download-1", &repository, &[]);
    let tenant = join(world, &device, DOWNLOAD);
    let there = tenant.wait_for("download-1", "the update is downloaded", |device| {
        compliance(device).updates.iter().any(|update| update.state == UpdateState::Downloaded)
    });
    let downloaded = compliance(&there);
    assert_eq!((downloaded.counts.missing, downloaded.counts.downloaded), (1, 1));
    assert_eq!(downloaded.last.len(), 1, "{:?}", downloaded.last);
    let action = &downloaded.last[0].updates[0];
    assert_eq!((action.verb, action.done), (Verb::Download, true));
    let blocked = downloaded.updates[0].blocked_by.clone().unwrap_or_default();
    assert!(blocked.starts_with("PolicyDownloadOnly"), "{blocked}");
    assert_eq!((device.version("alpha"), device.upgrades("alpha")), ("1.0".into(), 0));

    // The repository's files are gone; its lists are still on the device.
    let file = deb(&repository, "alpha_1.1");
    std::fs::rename(&file, file.with_extension("away")).unwrap();
    tenant.apply(POLICY);
    let done = tenant.wait_for("download-1", "it is installed", |device| compliance(device).last.len() == 2);
    assert_eq!(compliance(&done).last[0].outcome, Some(Outcome::Succeeded), "{:?}", compliance(&done).last);
    assert_eq!((device.version("alpha"), device.upgrades("alpha")), ("1.1".into(), 1));
    assert_eq!(tenant.jobs().len(), 2, "a download and an install");
}

/// Its window opens in 2099, and for now it is frozen as well.
const AT_ONCE: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: MaintenanceWindow
metadata: {name: one-day}
spec:
  timeZone: UTC
  schedules: [{once: {at: '2099-01-01T00:00'}}]
  duration: 4h
  exclusions: [{name: stop, from: '2020-01-01T00:00:00Z', to: '2098-01-01T00:00:00Z'}]
---
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: everything}
spec: {mode: InstallImmediately, windows: [one-day], rollout: {maxConcurrent: 100%}}
";

// covers MW-6
fn what_interrupts_nothing_is_installed_at_once_and_the_rest_in_its_window(world: &World) {
    let packages = ["alpha=1.0", "beta=1.0,service", "alpha=1.1", "beta=1.1,service"];
    let repository = world.repository("at-once", &packages);
    let device = world.device("at-once-1", &repository, &[]);
    device.install(&["beta=1.0"]);
    let tenant = join(world, &device, AT_ONCE);
    let explained = |words: &[&str]| {
        eventually(&format!("explain says {words:?}"), || {
            let told = tenant.plugin(&["explain", "at-once-1"], "");
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            words.iter().all(|one| told.contains(one)).then_some(())
        })
        .unwrap();
    };
    // A freeze holds for what needs no window, too.
    explained(&["alpha@1.1", "beta@1.1", "Frozen: exclusion stop keeps MaintenanceWindow/one-day closed"]);
    assert!(tenant.jobs().is_empty(), "nothing has begun");

    let thawed: String =
        AT_ONCE.lines().filter(|line| !line.contains("exclusions")).flat_map(|line| [line, "\n"]).collect();
    tenant.apply(&thawed);
    let done = tenant.wait_for("at-once-1", "the one is installed", |device| compliance(device).last.len() == 1);
    let updates: Vec<_> = compliance(&done).last[0].updates.iter().map(|it| it.update.clone()).collect();
    assert_eq!(
        (updates.as_slice(), compliance(&done).last[0].outcome),
        (&["pkg:deb/debian/alpha@1.1".to_owned()][..], Some(Outcome::Succeeded))
    );
    explained(&["beta@1.1", "WindowClosed", "2099-01-01T00:00:00Z"]);
    assert_eq!((device.version("alpha"), device.version("beta"), tenant.jobs().len()), ("1.1".into(), "1.0".into(), 1));

    // The rest once its window is open.
    tenant.apply(OPEN_WINDOW);
    let (_, policy) = AT_ONCE.split_once("---").unwrap();
    tenant.apply(&policy.replace("one-day", "anytime"));
    tenant.wait_for("at-once-1", "the other one is installed", |device| compliance(device).last.len() == 2);
    assert_eq!(device.version("beta"), "1.1");
}

// covers RM-2, EM-11
fn an_update_is_taken_back_and_stays_away(world: &World) {
    let repository = world.repository("taken-back", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("back-1", &repository, &[]);
    let tenant = join(world, &device, POLICY);
    tenant.wait_for("back-1", "the update is installed", |device| compliance(device).last.len() == 1);
    assert_eq!(device.version("alpha"), "1.1");

    let uninstall = format!(
        "{APPROVE_SECURITY}  decisions: [{{update: 'pkg:deb/debian/alpha@1.1', action: Uninstall, reason: it is bad}}]\n"
    );
    tenant.apply(&uninstall);
    let back = tenant.wait_for("back-1", "it is taken back", |device| compliance(device).last.len() == 2);
    let back = compliance(&back);
    let action = &back.last[0].updates[0];
    assert_eq!((action.verb, action.done), (Verb::Uninstall, true), "{:?}", back.last);
    assert_eq!(device.version("alpha"), "1.0");
    let away = tenant.wait_for("back-1", "it is offered again and stays away", |device| {
        let of_it = |state| {
            move |update: &patchwarden::api::device_inventory::UpdateCompliance| {
                update.state == state && update.decision == Decision::Remove
            }
        };
        compliance(device).updates.iter().any(of_it(UpdateState::Ignored))
    });
    assert_eq!(compliance(&away).counts.to_be_removed, 0);
    assert_eq!((device.version("alpha"), tenant.jobs().len()), ("1.0".into(), 2));

    tenant.apply(APPROVE_SECURITY);
    tenant.wait_for("back-1", "it is installed again", |device| compliance(device).last.len() == 3);
    assert_eq!(device.version("alpha"), "1.1");
}

// covers RM-2
fn an_update_that_failed_is_tried_again_when_somebody_says_so(world: &World) {
    let repository = world.repository("reprocess", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("again-1", &repository, &[]);
    let file = deb(&repository, "alpha_1.1");
    let away = file.with_extension("away");
    std::fs::rename(&file, &away).unwrap();
    let tenant = join(world, &device, &POLICY.replace("mode: Install", "retries: {limit: 0}, mode: Install"));
    // What could not be downloaded is tried again by itself, in a quarter of an hour.
    let failed = tenant.wait_for("again-1", "it has failed", |device| compliance(device).last.len() == 1);
    let failures: Vec<_> = compliance(&failed).failures.iter().map(|it| (it.attempts, it.reason)).collect();
    assert_eq!(failures, [(1, Some(ResultReason::DownloadFailed))]);
    assert_eq!(device.version("alpha"), "1.0");

    std::fs::rename(&away, &file).unwrap();
    let again = format!(
        "{APPROVE_SECURITY}  decisions: [{{update: 'pkg:deb/debian/alpha@*', action: Reprocess, failedBefore: '{}'}}]\n",
        Timestamp::now()
    );
    tenant.apply(&again);
    let done = tenant.wait_for("again-1", "it is installed", |device| compliance(device).last.len() == 2);
    assert_eq!(compliance(&done).last[0].outcome, Some(Outcome::Succeeded), "{:?}", compliance(&done).last);
    assert!(compliance(&done).failures.is_empty());
    assert_eq!(device.version("alpha"), "1.1");
}

// covers MW-6, MW-13
fn a_window_that_closes_in_the_middle_lets_nothing_more_begin(world: &World) {
    let repository = world.repository("closes", &["alpha=1.0", &format!("alpha=1.1,postinst-waits={MAY_GO}")]);
    let devices = ["closes-1", "closes-2"].map(|name| world.device(name, &repository, &[]));
    let tenant = world.tenant();
    tenant.apply(OPEN_WINDOW);
    tenant.apply(APPROVE_SECURITY);
    let one_at_a_time = POLICY.replace("maxConcurrent: 100%", "maxConcurrent: 1");
    tenant.apply(&one_at_a_time.replace("mode: Install", "suspend: true, mode: Install"));
    for device in &devices {
        device.install(&["alpha=1.0"]);
        tenant.join(device);
        tenant.wait_for(&device.name, "its update is approved", |device| compliance(device).counts.missing == 1);
    }
    tenant.apply(&one_at_a_time);
    tenant.wait_for("closes-1", "it is installing", |device| {
        compliance(device).current.as_ref().is_some_and(|current| current.phase == InstallPhase::Installing)
    });
    let now = Timestamp::now();
    let freeze = format!(
        "exclusions: [{{name: stop, from: '{now}', to: '{}'}}], timeZone",
        now + SignedDuration::from_hours(24)
    );
    tenant.apply(&OPEN_WINDOW.replace("timeZone", &freeze));
    eventually("the window is closed", || (tenant.get(&["mw", "anytime"])["status"]["active"] == false).then_some(()))
        .unwrap();
    for device in &devices {
        device.let_go();
    }
    let done = tenant.wait_for("closes-1", "its install has ended", |device| compliance(device).last.len() == 1);
    assert_eq!(compliance(&done).last[0].outcome, Some(Outcome::Succeeded), "what has begun goes on");
    eventually("the other one is told why it waits", || {
        let told = tenant.plugin(&["explain", "closes-2"], "");
        String::from_utf8_lossy(&told.stdout)
            .contains("Frozen: exclusion stop keeps MaintenanceWindow/anytime closed")
            .then_some(())
    })
    .unwrap();
    assert_eq!(tenant.jobs().len(), 1, "nothing more has begun");
    assert_eq!(devices.each_ref().map(|device| device.version("alpha")), ["1.1", "1.0"]);

    tenant.apply(OPEN_WINDOW);
    tenant.wait_for("closes-2", "its install has ended", |device| compliance(device).last.len() == 1);
    assert_eq!(devices[1].version("alpha"), "1.1");
}

// covers CL-8, EM-4, MW-13
fn a_restart_follows_where_the_policy_says_so(world: &World) {
    let repository = world.repository("restarts", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("restart-1", &repository, &[]);
    // As a package's configuration says that it wants one.
    device.run(&["sh", "-c", "touch /run/reboot-required && echo alpha > /run/reboot-required.pkgs"]);
    let tenant = join(world, &device, POLICY);
    let waits = tenant.wait_for("restart-1", "it is installed and waits for a restart", |device| {
        compliance(device).last.len() == 1
            && compliance(device).updates.iter().any(|update| update.state == UpdateState::RestartRequired)
    });
    let blocked = compliance(&waits).updates[0].blocked_by.clone().unwrap_or_default();
    assert!(blocked.starts_with("NeverRestarts: spec.restart of PatchPolicy/everything says Never"), "{blocked}");
    let boot = boot_id(&waits);

    let restart = "restart: {when: IfRequired, warning: 0m}, mode: Install";
    tenant.apply(&POLICY.replace("mode: Install", restart));
    let done = tenant.wait_for("restart-1", "it has been restarted", |device| compliance(device).last.len() == 2);
    let past = &compliance(&done).last[0];
    assert_eq!(past.outcome, Some(Outcome::Succeeded), "{past:?}");
    assert_eq!((past.updates[0].verb, past.updates[0].done), (Verb::Restart, true), "{past:?}");
    let up = tenant.wait_for("restart-1", "it waits for no restart any more", |device| {
        compliance(device).updates.is_empty() && boot_id(device) != boot
    });
    assert_eq!(compliance(&up).last.len(), 2, "and was restarted once");
}

// covers CC-3, CC-5
fn an_update_with_which_a_check_fails_has_failed_and_status_says_why(world: &World) {
    let repository = world.repository("guarded", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("guarded-1", &repository, &[]);
    script(&device, "drain", "echo $PATCHWARDEN_POLICY >>/var/log/hooks");
    script(&device, "healthy", "dpkg-query -W alpha | grep -q 1.0 || { echo alpha is sick; exit 1; }");
    let safeguards = "hooks: {before: [{name: drain}]}, checks: [{name: web, command: {name: healthy}, settleSeconds: 2}], siteCache: {url: 'http://cache.example.com:3142'}";
    let policy = POLICY.replace("mode: Install", &format!("{safeguards}, mode: Install"));
    let tenant = join(world, &device, &policy);
    let done = tenant.wait_for("guarded-1", "its install has ended", |device| !compliance(device).last.is_empty());
    let compliance = compliance(&done);
    let past = &compliance.last[0];
    assert_eq!((past.outcome, past.reason), (Some(Outcome::Failed), Some(ResultReason::CheckFailed)), "{past:?}");
    let steps: Vec<_> = past.steps.iter().map(|one| (one.step, one.name.as_str(), one.message.as_str())).collect();
    assert_eq!(steps, [(Step::CheckAfter, "web", "ended with code 1: alpha is sick")]);
    let failures: Vec<_> = compliance.failures.iter().map(|failure| (failure.reason, failure.attempts)).collect();
    assert_eq!(failures, [(Some(ResultReason::CheckFailed), 1)], "it is told although it is installed");
    assert_eq!(device.version("alpha"), "1.1");
    assert_eq!(device.run(&["cat", "/var/log/hooks"]).trim(), "everything");
    let job = format!("job/{}", past.job);
    world.kubectl(&["wait", "-n", &tenant.name, "--for=condition=Failed", "--timeout=600s", &job]);
    let log = world.kubectl(&["logs", "-n", &tenant.name, &job]);
    assert!(log.contains("check after web failed: ended with code 1: alpha is sick"), "{log}");
    let order = build::order_of(&serde_json::from_value(tenant.get(&[&job])).expect("a Job")).expect("its order");
    let cache = SiteCache { url: "http://cache.example.com:3142".into(), when_down: WhenDown::Direct };
    assert_eq!(order.order.peek().expect("an order").site_cache, Some(cache));
}

// covers CC-5, EM-11
fn an_update_with_which_a_check_fails_is_taken_back_and_waits_for_a_person(world: &World) {
    let repository = world.repository("rolledback", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("rolledback-1", &repository, &[]);
    script(&device, "healthy", "dpkg-query -W alpha | grep -q 1.0 || { echo alpha is sick; exit 1; }");
    let safeguards = "checks: [{name: web, command: {name: healthy}, settleSeconds: 2}], rollback: {when: CheckFailed}";
    let policy = POLICY.replace("mode: Install", &format!("{safeguards}, mode: Install"));
    let tenant = join(world, &device, &policy);
    let back = tenant.wait_for("rolledback-1", "it is held", |device| {
        let blocked = compliance(device).updates.first().and_then(|update| update.blocked_by.clone());
        blocked.is_some_and(|blocked| blocked.starts_with("RolledBack: brought back at "))
    });
    assert_eq!(compliance(&back).updates[0].state, UpdateState::Failed);
    let past = &compliance(&back).last[0];
    assert_eq!((past.outcome, past.reason), (Some(Outcome::Failed), Some(ResultReason::RolledBack)), "{past:?}");
    let steps: Vec<_> = past.steps.iter().map(|one| (one.step, one.ok, one.message.as_str())).collect();
    let sick = "ended with code 1: alpha is sick";
    let told =
        [(Step::CheckAfter, false, sick), (Step::Rollback, true, "alpha 1.0"), (Step::CheckRolledBack, true, "")];
    assert_eq!(steps, told);
    let failure = &compliance(&back).failures[0];
    assert_eq!(failure.reason, Some(ResultReason::RolledBack));
    assert_eq!(failure.message, format!("check web failed: {sick}; taken back to alpha 1.0"));
    assert_eq!(device.version("alpha"), "1.0");
    let job = format!("job/{}", past.job);
    world.kubectl(&["wait", "-n", &tenant.name, "--for=condition=Failed", "--timeout=60s", &job]);
    let log = world.kubectl(&["logs", "-n", &tenant.name, &job]);
    assert!(
        log.contains("check after web failed") && log.contains("rollback of packages succeeded: alpha 1.0"),
        "{log}"
    );

    script(&device, "healthy", "true");
    let again = format!(
        "{APPROVE_SECURITY}  decisions: [{{update: 'pkg:deb/debian/alpha@*', action: Reprocess, failedBefore: '{}'}}]\n",
        Timestamp::now()
    );
    tenant.apply(&again);
    let done = tenant.wait_for("rolledback-1", "it is installed", |device| compliance(device).last.len() == 2);
    assert_eq!(compliance(&done).last[0].outcome, Some(Outcome::Succeeded), "{:?}", compliance(&done).last);
    assert!(compliance(&done).failures.is_empty());
    assert_eq!(device.version("alpha"), "1.1");
}

/// A script of the machine's own that an order may name.
fn script(device: &Device<'_>, name: &str, body: &str) {
    let path = format!("/etc/patchwarden/hooks.d/{name}");
    let write =
        format!("mkdir -p /etc/patchwarden/hooks.d; printf '#!/bin/sh\\n%s\\n' '{body}' >{path}; chmod 755 {path}");
    device.run(&["sh", "-c", &write]);
}

/// Installs alpha 1.0, and joins the machine under `policy` with everything of security approved.
fn join<'w>(world: &'w World, device: &Device<'_>, policy: &str) -> Tenant<'w> {
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.apply(OPEN_WINDOW);
    tenant.apply(APPROVE_SECURITY);
    tenant.apply(policy);
    tenant.join(device);
    tenant
}

fn boot_id(device: &patchwarden::api::DeviceInventory) -> String {
    let inventory = device.status.as_ref().and_then(|status| status.inventory.as_ref());
    inventory.and_then(|inventory| inventory.report.as_ref()).map(|report| report.boot_id.clone()).unwrap_or_default()
}

/// The file of a package in a repository.
fn deb(repository: &str, name: &str) -> PathBuf {
    fn find(directory: &Path, name: &str) -> Option<PathBuf> {
        let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
        entries.into_iter().find_map(|path| {
            let is_it = || path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
            if path.is_dir() { find(&path, name) } else { is_it().then_some(path) }
        })
    }
    find(Path::new(repository), name).unwrap_or_else(|| panic!("no {name} in {repository}"))
}
