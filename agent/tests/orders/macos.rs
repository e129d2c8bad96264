//! Orders on a device that calls itself macOS, whose `softwareupdate` and `system_profiler` are stand-ins: scripts that answer in the shape
//! that users of macOS have published (`agent/tests/data/macos`). They show that the agent asks, decides and reports as it should,
//! and nothing about macOS.

use std::os::unix::fs::PermissionsExt as _;

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{ProblemCode, Report};
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::Package;
use crate::world::{World, summary, update};

/// Offers are files by their label, installs files with an entry of the history. `fails` says what it prints instead of installing,
/// with the exit code of a success.
const SOFTWARE_UPDATE: &str = r#"#!/bin/sh
cd /srv/macos
echo "$*" >>/var/log/softwareupdate
echo 'Software Update Tool'
mode=$1
shift
case $mode in
  --list)
    if [ -z "$(ls offers)" ]; then
      echo 'No new software available.' >&2
    else
      echo 'Software Update found the following new or updated software:'
      cat offers/*
    fi
    ;;
  --download)
    for label; do echo "Downloaded: $label"; done
    ;;
  --install)
    if [ -e fails ]; then
      cat fails
      exit 0
    fi
    for label; do
      details=$(sed -n 's/^.Title: //p' "offers/$label")
      title=${details%%, Version*}
      version=${details#*Version: }
      echo "{\"_name\": \"$title\", \"install_version\": \"${version%%,*}\", \"install_date\": \"2026-11-28T00:00:00Z\"}" >"history/$label"
      rm "offers/$label"
      echo "Done with $title"
    done
    ;;
esac
"#;

const SYSTEM_PROFILER: &str = r#"#!/bin/sh
cd /srv/macos/history
echo '{"SPHardwareDataType": [{"machine_model": "Mac16,1", "chip_type": "Apple M4"}], "SPInstallHistoryDataType": ['
separator=
for entry in *; do
  echo "$separator"
  cat "$entry"
  separator=,
done
echo ']}'
"#;

const SAFARI: &str = "Safari27.0TahoeAuto-27.0";
const TOOLS: &str = "Command Line Tools for Xcode-16.4";

fn offer(world: &World, label: &str, title: &str, version: &str, more: &str) {
    let text =
        format!("* Label: {label}\n\tTitle: {title}, Version: {version}, Size: 10KiB, Recommended: YES, {more}\n");
    world.device.write(&format!("srv/macos/offers/{label}"), &text);
}

fn entry(title: &str, version: &str) -> String {
    format!(r#"{{"_name": "{title}", "install_version": "{version}", "install_date": "2026-10-28T07:55:03Z"}}"#)
}

/// A joined device whose agent does not run yet.
async fn world() -> World {
    let world = World::of(&[Package::new("pw-a", "1.0")], &[]).await;
    let device = &world.device;
    device.write("usr/lib/os-release", "ID=macos\nVERSION_ID=26.7\n");
    for (program, script) in [("softwareupdate", SOFTWARE_UPDATE), ("system_profiler", SYSTEM_PROFILER)] {
        let path = format!("usr/sbin/{program}");
        device.write(&path, script);
        std::fs::set_permissions(device.root.join(path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    device.chroot("mkdir -p /srv/macos/offers /srv/macos/history");
    device.write("srv/macos/history/1", &entry("Safari", "26.6"));
    offer(&world, SAFARI, "Safari", "27.0", "");
    offer(&world, TOOLS, "Command Line Tools for Xcode", "16.4", "");
    offer(&world, "macOS Tahoe 26.7.1-25H300", "macOS Tahoe 26.7.1", "26.7.1", "Action: restart, ");
    let settings = device.read("etc/patchwarden/agent.toml");
    device.write("etc/patchwarden/agent.toml", &format!("preview_macos = true\n{settings}"));
    world
}

fn installs(world: &World) -> Vec<String> {
    let calls = world.device.read("var/log/softwareupdate");
    calls.lines().filter(|line| line.starts_with("--install")).map(str::to_owned).collect()
}

fn names(report: &Report) -> Vec<&str> {
    report.updates.iter().map(|update| update.packages[0].name.as_str()).collect()
}

// covers BY-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_carried_out_exactly_and_the_history_is_the_judge() {
    let world = world().await;
    let (_running, report) = world.run().await;
    assert_eq!((report.counts.updates, &report.problems), (3, &vec![]), "{report:#?}");
    assert_eq!(update(&report, "Safari").packages[0].installed, "26.6");
    world.order(1, &report, &["Safari", "Command_Line_Tools_for_Xcode"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None); 2]),
        "{result:#?}\n{}",
        world.device.log()
    );
    assert_eq!(installs(&world), [format!("--install {SAFARI} {TOOLS}")], "once, and nothing else");
    let after = world.report_after(1).await;
    assert_eq!(names(&after), ["macOS_Tahoe_26.7.1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_volume_owner_can_install_is_held_and_not_tried() {
    let world = world().await;
    let (_running, report) = world.run().await;
    let system = update(&report, "macOS_Tahoe_26.7.1");
    assert!(system.held && system.title.contains("volume owner's password or MDM"), "{system:#?}");
    world.order(1, &report, &["macOS_Tahoe_26.7.1", "Safari"]).await;
    let result = world.gateway.result(1).await;
    let (held, safari) = (&result.actions[0], &result.actions[1]);
    assert_eq!((held.done, held.reason), (false, Some(ResultReason::PackageManagerFailed)), "{result:#?}");
    assert!(held.message.contains("volume owner"), "{}", held.message);
    assert!(safari.done, "one that cannot be installed does not hold up the other: {result:#?}");
    assert_eq!(installs(&world), [format!("--install {SAFARI}")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_that_calls_itself_successful_and_is_not_has_failed() {
    for (words, reason) in [
        ("Not enough free disk space: a total of 17.13 GB is required.", ResultReason::DiskFull),
        ("Done.", ResultReason::NotInstalled),
    ] {
        let world = world().await;
        world.device.write("srv/macos/fails", words);
        let (_running, report) = world.run().await;
        world.order(1, &report, &["Safari"]).await;
        let result = world.gateway.result(1).await;
        assert_eq!(summary(&result), (Outcome::Failed, Some(reason), vec![(false, Some(reason))]), "{result:#?}");
        assert_eq!(names(&world.report_after(1).await).len(), 3, "it is still missing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_changes_nothing_and_is_told() {
    let world = world().await;
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Download, &["Safari"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let after = world.report_after(1).await;
    assert!(update(&after, "Safari").downloaded && !update(&after, "Command_Line_Tools_for_Xcode").downloaded);
    assert_eq!(installs(&world), [] as [&str; 0]);
    assert!(world.device.read("var/log/softwareupdate").contains(&format!("--download {SAFARI}\n")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_setting_a_mac_is_not_supported() {
    let world = world().await;
    let settings = world.device.read("etc/patchwarden/agent.toml").replace("preview_macos = true\n", "");
    world.device.write("etc/patchwarden/agent.toml", &settings);
    let _running = world.device.start();
    let report = world.gateway.report(|report| !report.problems.is_empty()).await;
    assert_eq!((report.problems[0].code, report.updates.len()), (ProblemCode::Unsupported, 0));
    assert!(report.problems[0].message.contains("`preview_macos = true`"), "{:?}", report.problems);
    assert!(!world.device.has("var/log/softwareupdate"), "it is not even asked");
}
