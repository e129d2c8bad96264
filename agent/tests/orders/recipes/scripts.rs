//! Scripts that a publisher has signed, for hooks and checks.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason, Step};
use patchwarden_protocol::safeguards::Safeguards;

use super::{KEPT, Shop, signed_with};
use crate::device::{CONFIGURATION, Package};
use crate::guards::{checks, command, hook, hooks, steps};
use crate::world::summary;

/// Says who it is, and what its file may be read and run by.
const TELL: &str =
    "echo signed $PATCHWARDEN_PHASE $PATCHWARDEN_VERB $(stat -c '%a:%u' \"$0\" \"${0%/*}\") >>/var/log/scripts";

/// Nothing was installed, since the hook could not be run.
fn refusal(result: &InstallResult) -> &str {
    let refused = Some(ResultReason::HookFailed);
    assert_eq!(summary(result), (Outcome::Failed, refused, vec![(false, refused)]), "{result:#?}");
    assert_eq!(steps(result).last(), Some(&(Step::HookBefore, "drain", false)));
    &result.message
}

/// The device has these, and the gateway no others, whatever the device makes of them.
async fn hold(shop: &Shop, catalogue: &str) {
    shop.world.gateway.offer_recipes(catalogue.as_bytes().to_vec()).await;
    shop.world.device.write(KEPT, catalogue);
}

/// What becomes of the next order after that of `number`. Recipes that the device has just taken or refused change its report, which an order
/// must have been planned from.
async fn next(shop: &Shop, number: &mut u32, name: &str, safeguards: &Safeguards) -> InstallResult {
    loop {
        *number += 1;
        let result = shop.world.guard(*number, &[name], safeguards.clone()).await;
        if result.reason != Some(ResultReason::ReportMismatch) {
            return result;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_of_a_publisher_is_run_where_the_device_wants_his_and_has_none_of_its_own() {
    let names = ["pw-a", "pw-b"];
    let packages = |version| names.map(|name| Package::new(name, version));
    let shop = Shop::of(&packages("1.0"), &packages("2.0")).await;
    let world = &shop.world;
    let (hour, before) = (SignedDuration::from_hours(1), || hooks(&[hook("drain")], &[]));
    let sign = |serial, expires, scripts: &[(&str, &str)]| {
        String::from_utf8(signed_with(&shop.key, serial, expires, &[], scripts)).unwrap()
    };
    let all = [("drain", TELL), ("undrain", TELL), ("healthy", TELL)];
    let offered = sign(1, Timestamp::now() + hour, &all);
    world.gateway.offer_recipes(offered.clone().into_bytes()).await;
    let (mut running, _) = world.run().await;
    world.gateway.until("the scripts", |_| world.device.has(KEPT).then_some(())).await;
    // His recipes are believed, and that is all.
    let mut number = 0;
    let result = next(&shop, &mut number, "pw-a", &before()).await;
    let why = refusal(&result);
    assert!(why.contains("/etc/patchwarden/hooks.d: No such file"), "{why}");
    assert!(why.contains("script drain: agent.toml names nobody in script_publishers"), "{why}");
    // Whoever else is named.
    let (publisher, configuration) = (String::from(shop.key.public()), world.device.read(CONFIGURATION));
    let started_with = |configuration: String| {
        world.device.write(CONFIGURATION, &configuration);
        |report: &Report| report.counts.updates > 0
    };
    let wants = format!("script_publishers = ['{publisher}']\n{configuration}");
    world.rescan(&mut running, started_with(wants)).await;
    // A changed byte, what has expired and what was withdrawn are refused.
    let expired = sign(2, Timestamp::now() - hour, &all);
    let without = sign(3, Timestamp::now() + hour, &all[1..]);
    let mut changed = offered.clone();
    let middle = changed.find("\"payload\":\"").unwrap() + 100;
    changed.replace_range(middle..=middle, if &offered[middle..=middle] == "A" { "B" } else { "A" });
    for (catalogue, words) in [
        (&changed, "script drain: recipes: "),
        (&expired, "script drain: recipes: the catalogue with serial 2 expired at"),
        (&without, "script drain: the catalogue with serial 3 of Shop has no script of this name"),
    ] {
        hold(&shop, catalogue).await;
        let result = next(&shop, &mut number, "pw-a", &before()).await;
        assert!(refusal(&result).contains(words), "{result:#?}");
    }
    hold(&shop, &offered).await;
    let limits = "etc/patchwarden/limits.toml";
    world.device.write(limits, "publishers_scripts = ['undrain']\n");
    let result = next(&shop, &mut number, "pw-a", &before()).await;
    assert!(refusal(&result).contains("publishers_scripts: drain is not among those that are allowed"), "{result:#?}");
    world.device.chroot(&format!("rm /{limits}"));
    assert!(!world.device.has("var/log/scripts"), "nothing has run so far");
    // By name, before and after the install, and as a check.
    let signed =
        Safeguards { checks: checks(&[command("healthy")]).checks, ..hooks(&[hook("drain")], &[hook("undrain")]) };
    let result = next(&shop, &mut number, "pw-a", &signed).await;
    let installed = number;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    let phases = ["check", "before", "after", "check"];
    assert_eq!(world.lines("var/log/scripts"), phases.map(|phase| format!("signed {phase} Install 700:0 700:0")));
    // What is the device's own wins, and where that is not fit to be run nothing else is.
    world.script("drain", "echo the device >>/var/log/scripts");
    world.device.chroot("chmod 777 /etc/patchwarden/hooks.d/drain");
    let result = next(&shop, &mut number, "pw-b", &before()).await;
    assert!(refusal(&result).contains("hooks.d/drain: may be written by others than root"), "{result:#?}");
    world.device.chroot("chmod 755 /etc/patchwarden/hooks.d/drain");
    let result = next(&shop, &mut number, "pw-b", &before()).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(world.lines("var/log/scripts")[4..], ["the device"]);
    world.until_cleaned_up(&format!("1-{installed}")).await;
}
