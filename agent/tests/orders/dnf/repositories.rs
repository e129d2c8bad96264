//! Several repositories, and what stands in the way of one of them.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{ProblemCode, Report};
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::device::{self, Rpm};
use super::{Dnf, at, world};
use crate::rpm::{Signature, make_keys, sign_index};
use crate::world::{World, summary, update};

for_each_dnf! {
    of_two_builds_of_a_version_the_one_that_was_ordered_is_installed,
    a_choice_that_this_machine_leaves_to_dnf_is_refused,
    a_version_with_another_epoch_is_another_version,
    a_repository_that_never_answered_holds_up_nothing,
    what_the_index_states_no_sha256_of_fails_alone,
    of_a_repository_whose_index_is_not_signed_as_it_has_to_be_nothing_is_offered_or_installed,
}

/// Another build of the same version; which one came is in `/var/log/twin`.
const TWINS: [Rpm; 2] = [
    Rpm { post: "echo pw-b >>/var/log/twin", ..Rpm::new("pw-b", "2.0-1") },
    Rpm { post: "echo pw-new >>/var/log/twin", ..Rpm::new("pw-new", "1.0-1") },
];

fn sha256(world: &World, path: &str) -> String {
    world.device.chroot(&format!("sha256sum {path}")).split(' ').next().unwrap().to_owned()
}

async fn of_two_builds_of_a_version_the_one_that_was_ordered_is_installed(world: World) {
    // Before the other by its name, which is what counts for the agent where all else is the same.
    device::offer(&world.device, "another", &TWINS);
    assert_ne!(sha256(&world, "/srv/repo/pw-b-2.0-1.noarch.rpm"), sha256(&world, "/srv/another/pw-b-2.0-1.noarch.rpm"));
    let own = world.device.chroot("dnf --assumeno upgrade pw-b-2.0-1.noarch 2>&1 | grep pw-b");
    assert!(own.contains(" test "), "dnf by itself takes the other one: {own}");
    let (_running, report) = world.run().await;
    assert_eq!(update(&report, "pw-b").origin, "another");
    let result = world.carry_out_all(1, Verb::Install, &["pw-b", "pw-needs"]).await;
    let expected = (Outcome::Succeeded, None, vec![(true, None); 2]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.gateway.output());
    let mut came: Vec<String> = world.device.read("var/log/twin").lines().map(str::to_owned).collect();
    came.sort();
    assert_eq!(came, ["pw-b", "pw-new"], "what it needs comes from there, too");
}

async fn a_choice_that_this_machine_leaves_to_dnf_is_refused(world: World) {
    device::offer(&world.device, "another", &TWINS[..1]);
    world.device.chroot("echo disable_excludes=all >>/etc/dnf/dnf.conf");
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-b", "pw-epoch"]).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed), (true, None)]), "{result:#?}");
    assert!(result.actions[0].message.contains("leaves the choice to dnf"), "{result:#?}");
    assert_eq!(at(&world, "pw-b"), ["1.0-1"]);
}

async fn a_version_with_another_epoch_is_another_version(world: World) {
    let (_running, report) = world.run().await;
    device::offer(&world.device, "another", &[Rpm::new("pw-b", "1:2.0-1")]);
    world.device.chroot("dnf -q makecache --refresh");
    world.order(1, &report, &["pw-b"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(at(&world, "pw-b"), ["2.0-1"]);
    assert_eq!(update(&world.report_after(1).await, "pw-b").packages[0].candidate, "1:2.0-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_of_the_machine_makes_nothing_else_of_an_order() {
    let world = world(Dnf::Four).await;
    world.device.chroot("dnf alias add upgrade=remove; dnf -y -C upgrade pw-victim 2>&1");
    assert!(at(&world, "pw-victim").is_empty(), "for everybody else it is in force");
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-b"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(at(&world, "pw-b"), ["2.0-1"]);
}

async fn a_repository_that_never_answered_holds_up_nothing(world: World) {
    device::add_repository(&world.device, "dead", "http://127.0.0.1:9");
    let (_running, report) = world.run().await;
    let codes: Vec<ProblemCode> = report.problems.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, [ProblemCode::RepositoryUnavailable], "{:?}", report.problems);
    let result = world.carry_out_all(1, Verb::Install, &["pw-b"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}

async fn what_the_index_states_no_sha256_of_fails_alone(world: World) {
    world.device.chroot(
        "mkdir /srv/weak; mv /srv/repo/pw-epoch-2* /srv/repo/pw-new-1* /srv/weak; createrepo_c -q -s sha512 --no-database /srv/weak",
    );
    device::index(&world.device);
    device::add_repository(&world.device, "weak", "file:///srv/weak");
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-epoch", "pw-needs"]).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    let expected = vec![(true, None), (false, failed), (false, failed)];
    assert_eq!(summary(&result), (Outcome::Failed, failed, expected), "{result:#?}");
    for (action, name) in [(1, "pw-epoch 1:2.0~rc1-1"), (2, "pw-new 1.0-1")] {
        let message = &result.actions[action].message;
        assert!(message.starts_with(name) && message.contains("states no SHA-256"), "{message}");
    }
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-needs")), (vec!["3.0-1".into()], vec!["1.0-1".into()]));
}

async fn of_a_repository_whose_index_is_not_signed_as_it_has_to_be_nothing_is_offered_or_installed(world: World) {
    // Its packages are signed by nobody: the index alone vouches for them.
    const POLICY: &str = "gpgcheck=0\nrepo_gpgcheck=1\ngpgkey=file:///srv/key.asc";
    let dnf = Dnf::of(&world);
    make_keys(&world.device);
    let (mut running, before) = world.run().await;
    device::use_repository(&world.device, "file:///srv/repo", POLICY);
    let not_signed = "GPG verification is enabled, but GPG signature is not available";
    let failed = "repomd.xml GPG signature verification error: ";
    for (number, signature, words) in [
        // What is in the cache from before is not signed either.
        (1, Signature::None, not_signed.to_owned()),
        (2, Signature::Other, failed.to_owned() + dnf.either("Bad GPG signature", "Signing key not found")),
        (3, Signature::Spoiled, failed.to_owned() + dnf.either("Bad GPG signature", "Bad PGP signature")),
    ] {
        // What dnf has started to check it would stay.
        world.device.pull_the_plug();
        device::index(&world.device);
        sign_index(&world.device, signature);
        let report = world.rescan(&mut running, |report| told(report).contains(&words)).await;
        assert!(told(&report).starts_with("test: Failed to download metadata"), "{}", told(&report));
        // As if the controller did not know yet.
        let ordered = Report { updates: before.updates.clone(), ..report };
        let result = world.order_of(number, &ordered, &["pw-b"]).await;
        assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Superseded), vec![]), "{result:#?}");
        let after = world.report_after(number).await;
        assert_eq!(after.updates, [], "{signature:?}");
        assert!(told(&after).contains(&words), "until it is asked again: {:?}", after.problems);
    }
    assert_eq!((at(&world, "pw-b"), world.gateway.nonces().len()), (vec!["1.0-1".to_owned()], 0));
    world.device.pull_the_plug();
    device::index(&world.device);
    sign_index(&world.device, Signature::Good);
    let report = world.rescan(&mut running, |report| report.problems.is_empty()).await;
    assert_eq!(report.counts.updates, 10);
    let result = world.order_of(4, &report, &["pw-b"]).await;
    assert_eq!((result.outcome, at(&world, "pw-b")), (Outcome::Succeeded, vec!["2.0-1".to_owned()]), "{result:#?}");
    // What comes later by somebody else is not there; what was signed yesterday is.
    world.device.pull_the_plug();
    crate::rpm::build(&world.device, &[Rpm::new("pw-b", "2.1-1"), Rpm::new("pw-epoch", "1:2.1-1")]);
    device::index(&world.device);
    sign_index(&world.device, Signature::Other);
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    assert!(told(&report).contains(failed), "{}", told(&report));
    let offered = report.updates.iter().map(|update| update.packages[0].name.as_str()).collect::<Vec<_>>();
    assert!(!offered.contains(&"pw-b") && offered.len() == 9, "{offered:?}");
    assert_eq!(update(&report, "pw-epoch").packages[0].candidate, "1:2.0~rc1-1");
    let result = world.order_of(5, &report, &["pw-epoch"]).await;
    let found = at(&world, "pw-epoch");
    assert_eq!((result.outcome, found), (Outcome::Succeeded, vec!["1:2.0~rc1-1".to_owned()]), "{result:#?}");
}

/// What the report says of repositories.
fn told(report: &Report) -> &str {
    report.problems.first().map_or("", |problem| &problem.message)
}

/// Told to dnf's plugins: each question is a line of `/var/log/asked`, and fails once `/broken` is there.
const BREAKING: &str = "import os, dnf\nclass Breaking(dnf.Plugin):\n    name = 'breaking'\n    def sack(self):\n        \
    open('/var/log/asked', 'a').write('x\\n')\n        if os.path.exists('/broken'):\n            \
    raise dnf.exceptions.Error('broken on purpose')\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_dnf_itself_is_not_tried_once_more_for_each_update() {
    let world = world(Dnf::Four).await;
    world.device.write("usr/lib/python3/dist-packages/dnf-plugins/breaking.py", BREAKING);
    let (_running, report) = world.run().await;
    assert!(world.device.has("var/log/asked"));
    world.device.chroot("touch /broken; rm /var/log/asked");
    world.order(1, &report, &["pw-a", "pw-b", "pw-epoch"]).await;
    let result = world.gateway.result(1).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed); 3]), "{result:#?}");
    assert!(result.message.contains("broken on purpose"), "{result:#?}");
    let asked = world.device.read("var/log/asked").lines().count();
    assert!(asked < 4, "{asked} questions: the plan, the report behind the result, perhaps the next");
}

/// Takes the lock that dnf 5 holds from before it decides until it is done: `lockf(3)`.
const LOCKING: &str = "exec python3 -c 'import fcntl, time; file = open(\"/var/lib/dnf/system-repo.lock\", \"w\"); \
    fcntl.lockf(file, fcntl.LOCK_EX); open(\"/var/log/locked\", \"w\"); time.sleep(600)'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dnf_5_that_still_decides_is_waited_for() {
    let world = world(Dnf::Five).await;
    let (_running, report) = world.run().await;
    let mut other = device::start(&world.device, LOCKING);
    world.until_on_device("var/log/locked").await;
    world.order(1, &report, &["pw-epoch"]).await;
    world.gateway.waits_for_another().await;
    other.kill().unwrap();
    other.wait().unwrap();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_reads_the_indexes_is_waited_for() {
    let world = world(Dnf::Four).await;
    let (_running, report) = world.run().await;
    let mut other = device::start(&world.device, "exec python3 -c 'import time; time.sleep(600)'");
    // The lock counts while that process is a Python, which the shell before it is not.
    let exe = format!("/proc/{}/exe", other.id());
    let is_python = || std::fs::read_link(&exe).is_ok_and(|path| path.to_string_lossy().contains("/python"));
    world.gateway.until("the other program", |_| is_python().then_some(())).await;
    world.device.write("var/cache/dnf/metadata_lock.pid", &other.id().to_string());
    world.order(1, &report, &["pw-epoch"]).await;
    world.gateway.waits_for_another().await;
    other.kill().unwrap();
    other.wait().unwrap();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}
