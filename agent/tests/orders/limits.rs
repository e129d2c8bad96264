//! What the owner of the device does not allow (`limits.toml`), whoever signs the order.

use jiff::ToSpan as _;
use patchwarden_protocol::order::{RestartWhen, Verb};
use patchwarden_protocol::report::ProblemCode;
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::Package;
use crate::gateway::{Granting, action};
use crate::restarts;
use crate::world::{World, summary, update};

const LIMITS: &str = "etc/patchwarden/limits.toml";

const LIMITED: Option<ResultReason> = Some(ResultReason::LimitedByDevice);

/// A freeze of today, by the device's clock, which is on UTC.
fn frozen() -> String {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let (from, to) = (today - 1.day(), today + 1.day());
    format!("[[freezes]]\nfrom = {from}\nto = {to}\n")
}

// covers CL-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_excluded_package_does_not_come_as_a_dependency_either_and_the_other_updates_do() {
    let world = World::new().await;
    world.device.write(LIMITS, "exclude_packages = ['pw-n?w', 'pw-pair-1']\n");
    let (_running, report) = world.run().await;
    assert!(update(&report, "pw-pair-1").held, "what may never be installed is held");
    assert!(!update(&report, "pw-needs").held, "what it brings is seen only in the simulation");
    let result = world.carry_out_all(1, Verb::Install, &["pw-needs", "pw-pair-2", "pw-a"]).await;
    let expected = vec![(false, LIMITED), (false, LIMITED), (true, None)];
    assert_eq!(summary(&result), (Outcome::Failed, LIMITED, expected), "{result:#?}");
    assert!(result.actions[0].message.ends_with("exclude_packages: pw-new"), "{result:#?}");
    assert_eq!(
        (world.at("pw-a"), world.at("pw-needs"), world.at("pw-pair-2")),
        ("2.0".into(), "1.0".into(), "1:1.0".into())
    );
    let result = world.carry_out_all(2, Verb::Install, &["pw-needs"]).await;
    assert_eq!(summary(&result), (Outcome::Refused, LIMITED, vec![]), "{result:#?}");
    let result = world.carry_out_all(3, Verb::Download, &["pw-needs"]).await;
    assert_eq!(summary(&result), (Outcome::Refused, LIMITED, vec![]), "{result:#?}");
    assert!(!world.device.version("pw-new").contains("installed"));
    // Read anew each time.
    world.device.write(LIMITS, "exclude_packages = ['pw-other']\n");
    let result = world.carry_out_all(4, Verb::Install, &["pw-needs"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(world.at("pw-new"), "1.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dependency_from_another_origin_than_those_allowed_is_refused() {
    let installed = ["pw-a", "pw-needs"].map(|name| Package::new(name, "1.0"));
    let needs = Package { control: "Depends: pw-new\n", ..Package::new("pw-needs", "2.0") };
    let world = World::of(&installed, &[Package::new("pw-a", "2.0"), needs]).await;
    world.device.offer_from("srv/other", "Other", &[Package::new("pw-new", "1.0")]);
    world.device.write("etc/apt/sources.list.d/other.list", "deb [trusted=yes] file:/srv/other stable-security main\n");
    world.device.write(LIMITS, "origins = ['Test:*']\n");
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-needs", "pw-a"]).await;
    assert_eq!(summary(&result).2, [(false, LIMITED), (true, None)], "{result:#?}");
    let said = &result.actions[0].message;
    assert!(said.contains("origins: pw-new 1.0 comes from Other:1/stable-security"), "{said}");
    world.device.write(LIMITS, "origins = ['Test:*', 'Other:*']\n");
    let result = world.carry_out_all(2, Verb::Install, &["pw-needs"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_freeze_nothing_begins_not_even_what_was_accepted_before_it() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    world.gateway.set_granting(Granting::Silent);
    world.order(1, &report, &["pw-a"]).await;
    world.gateway.until("grant request", |gateway| gateway.nonces().first().cloned()).await;
    world.device.write(LIMITS, &frozen());
    world.gateway.set_granting(Granting::Grant);
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Refused, LIMITED, vec![]), "{result:#?}");
    assert!(result.message.contains("freezes: nothing begins until 20"), "{}", result.message);
    let asked = world.gateway.nonces().len();
    for (number, verb) in [(2, Verb::Install), (3, Verb::Download)] {
        let result = world.carry_out_all(number, verb, &["pw-a"]).await;
        assert_eq!(summary(&result), (Outcome::Refused, LIMITED, vec![]), "{result:#?}");
    }
    assert_eq!(world.gateway.nonces().len(), asked, "nobody is asked for what must not be");
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_verb_nothing_restarts_the_machine() {
    let world = restarts::world().await;
    world.device.write(LIMITS, "verbs = ['Install', 'Download']\n");
    let (mut running, report) = world.run().await;
    let first = restarts::order(&world, 1, &report, &["pw-kernel"], restarts::rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &first).await;
    restarts::assert_installed(&result, 0, "verbs: Restart");
    let second = restarts::restart_alone(&world, 2, &world.report_after(1).await, restarts::rule(RestartWhen::Always));
    let result = world.restart_for(&mut running, &second).await;
    assert_eq!(summary(&result), (Outcome::Refused, LIMITED, vec![]), "{result:#?}");
    assert_eq!((world.calls(), world.gateway.purposes().len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_its_owner_forbids_meanwhile_is_not_tried_again_after_a_crash() {
    let world = restarts::world().await;
    // As if the agent were killed between the journal and the command.
    world.device.restart_by("die");
    let (mut running, report) = world.run().await;
    world.give(&restarts::order(&world, 1, &report, &["pw-kernel"], restarts::rule(RestartWhen::IfRequired))).await;
    world.gateway.until("restart", |_| (world.calls() == 1 && running_has_ended(&world)).then_some(())).await;
    running.kill();
    world.device.write(LIMITS, &frozen());
    // What is said before anybody listens is said again to the first who does.
    world.gateway.set_down(true);
    running = world.device.start();
    world.gateway.until("start", |gateway| (gateway.refused() > 0).then_some(())).await;
    world.gateway.until("words", |_| world.device.log().contains("has not restarted yet").then_some(())).await;
    world.gateway.set_down(false);
    world.gateway.until("waiting", |_| world.said("has not restarted yet").then_some(())).await;
    assert_eq!(world.calls(), 1);
    running.kill();
    world.device.boot_again();
    world.device.chroot("rm /run/reboot-required");
    running = world.device.start();
    restarts::assert_installed(&world.restarted_result(&mut running, 1).await, 1, "");
    assert_eq!(world.calls(), 1);
}

/// The script has killed it.
fn running_has_ended(world: &World) -> bool {
    !world.device.processes().iter().any(|(_, line)| line.contains("patchwarden-agent run"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_cannot_be_used_allow_nothing_and_are_reported_and_scanning_goes_on() {
    let world = World::new().await;
    world.device.write(LIMITS, "verbs = ['Instal']\n");
    let (_running, report) = world.run().await;
    let problem = |report: &patchwarden_protocol::report::Report| report.problems.first().cloned();
    let found = problem(&report).unwrap();
    assert_eq!(found.code, ProblemCode::LimitsInvalid);
    assert!(found.message.contains("limits.toml") && found.message.contains("Instal"), "{found:?}");
    assert!(report.counts.updates > 5, "the scan goes on");
    let refused = |number, report: patchwarden_protocol::report::Report| {
        let world = &world;
        async move {
            let order = world.gateway.order_of(number, &report, vec![action(Verb::Install, update(&report, "pw-a"))]);
            world.gateway.send(&world.gateway.sign(&order)).await;
            let result = world.gateway.result(number).await;
            assert_eq!(summary(&result), (Outcome::Refused, LIMITED, vec![]), "{result:#?}");
            result.message
        }
    };
    let said = refused(1, report).await;
    assert!(said.starts_with("no order is carried out: /etc/patchwarden/limits.toml"), "{said}");
    // Good, but for who could have written it: the refusal makes the agent look anew.
    world.device.write(LIMITS, "verbs = ['Install']\n");
    for (number, spoil, words) in [
        (2, "chmod 666 /etc/patchwarden/limits.toml", "others than root can write it (mode 0666)"),
        (3, "chmod 644 /etc/patchwarden/limits.toml; chown 4711 /etc/patchwarden/limits.toml", "belongs to user 4711"),
        (4, "chown 0 /etc/patchwarden/limits.toml; chmod 777 /etc/patchwarden", "/etc/patchwarden: others than root"),
    ] {
        world.device.chroot(spoil);
        let report = world.report_after(number - 1).await;
        let said = refused(number, report).await;
        assert!(said.contains(words), "{said}");
        world.gateway.report(|report| problem(report).is_some_and(|found| found.message.contains(words))).await;
    }
    assert_eq!(world.configured("pw-a"), ["1.0"]);
    world.device.chroot("chmod 755 /etc/patchwarden");
    let result = world.carry_out_all(5, Verb::Install, &["pw-a"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(world.report_after(5).await.problems, []);
}
