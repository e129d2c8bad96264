//! What is not installed, and does not hold up what can be.

use patchwarden_protocol::order::{Dependencies, Verb};
use patchwarden_protocol::report::{ProblemCode, Report};
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::device::{index, use_repository};
use super::{at, world};
use crate::device::serve;
use crate::rpm::{Rpm, Signature, build, make_keys, sign, sign_index};
use crate::world::{World, summary, update};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_update_does_not_hold_up_the_others() {
    use ResultReason::{PackageManagerFailed, Superseded, WouldDoMore};
    let world = world().await;
    let (_running, report) = world.run().await;
    let names = ["pw-greedy", "pw-a", "pw-needs", "pw-b", "pw-bad", "pw-epoch", "pw-sad", "pw-z"];
    let updates: Vec<_> = names.iter().map(|name| update(&report, name)).collect();
    let mut order = world.gateway.order(1, &report, &updates);
    order.dependencies = Dependencies::Strict;
    order.actions[3].artifacts_digest = "sha256:other".into();
    order.actions[5].packages[0].candidate = "1:2.5-1".into();
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    let expected = [
        Some(WouldDoMore),
        None,
        Some(WouldDoMore),
        Some(Superseded),
        Some(PackageManagerFailed),
        Some(Superseded),
        None,
        None,
    ];
    let expected = expected.map(|reason| (reason.is_none(), reason)).to_vec();
    assert_eq!(
        summary(&result),
        (Outcome::Failed, Some(WouldDoMore), expected),
        "{result:#?}\n{}",
        world.gateway.output()
    );
    let messages: Vec<&str> = result.actions.iter().map(|action| action.message.as_str()).collect();
    assert!(messages[0].contains("remove pw-victim"), "{messages:?}");
    assert!(messages[2].contains("install pw-new 1.0-1"), "{messages:?}");
    assert!(messages[4].contains("error: %prein(pw-bad-2.0-1.noarch) scriptlet failed"), "{messages:?}");
    // A script that fails after the files are there does not undo the update; it is not kept secret either.
    assert!(messages[6].contains("%post(pw-sad-2.0-1.noarch) scriptlet failed, exit status 3"), "{messages:?}");
    let versions = ["pw-a", "pw-victim", "pw-needs", "pw-b", "pw-bad", "pw-sad", "pw-z"].map(|name| at(&world, name));
    let expected = ["3.0-1", "1.0-1", "1.0-1", "1.0-1", "1.0-1", "2.0-1", "2.0-1"];
    assert_eq!(versions, expected.map(|version| vec![version.to_owned()]));
    assert_eq!(world.configured("pw-a"), ["1.0-1", "3.0-1"], "what was done is not done again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_of_files_is_found_before_the_grant_and_does_not_hold_up_the_others() {
    let world = world().await;
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-clash"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).1, Some(ResultReason::PackageManagerFailed));
    assert_eq!(result.message, "file /usr/share/pw-b-1/1.0 is in pw-clash and in pw-b");
    assert_eq!(world.gateway.nonces().len(), 0, "nobody was asked for a grant");
    let result = world.carry_out_all(2, Verb::Install, &["pw-a", "pw-clash", "pw-epoch"]).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    let expected = vec![(true, None), (false, failed), (true, None)];
    assert_eq!(summary(&result), (Outcome::Failed, failed, expected), "{result:#?}");
    let versions = ["pw-a", "pw-clash", "pw-epoch"].map(|name| at(&world, name));
    assert_eq!(versions, ["3.0-1", "1.0-1", "1:2.0~rc1-1"].map(|version| vec![version.to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_solver_finds_no_way_for_is_told_in_its_words() {
    let world = world().await;
    build(&world.device, &[Rpm { tags: "Requires: pw-absent\n", ..Rpm::new("pw-b", "2.0-2") }]);
    index(&world.device);
    let (_running, report) = world.run().await;
    let b = update(&report, "pw-b");
    assert_eq!(b.packages[0].candidate, "2.0-1", "what cannot be installed is not offered");
    let mut order = world.gateway.order(1, &report, &[b]);
    order.actions[0].packages[0].candidate = "2.0-2".into();
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).1, Some(ResultReason::PackageManagerFailed), "{result:#?}");
    assert!(result.message.contains("nothing provides"), "{}", result.message);
    assert_eq!(at(&world, "pw-b"), ["1.0-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_signed_by_an_accepted_key_is_installed() {
    let world = world().await;
    let signed =
        [("vendor", "pw-a-3.0"), ("vendor", "pw-needs-2.0"), ("vendor", "pw-new-1.0"), ("other", "pw-epoch-2.0")];
    sign(&world.device, &signed);
    index(&world.device);
    let policy = "repo_gpgcheck=0\npkg_gpgcheck=1\ngpgkey=file:///srv/key.asc";
    use_repository(&world.device, "file:///srv/repo", policy);
    let (_running, _) = world.run().await;
    // Its key is the repository's, and nobody has accepted it yet.
    let refused = "Signature verification failed";
    for (number, name, words) in [(1, "pw-a", "public key is not available"), (2, "pw-b", "File is unsigned")] {
        let result = world.carry_out_all(number, Verb::Install, &[name]).await;
        assert_eq!(summary(&result).1, Some(ResultReason::PackageManagerFailed), "{result:#?}");
        assert!(result.message.contains(words) && result.message.contains(refused), "{}", result.message);
    }
    assert_eq!(world.gateway.nonces().len(), 0, "what is not signed is noticed before the grant");
    world.device.chroot("rpm --import /srv/key.asc 2>&1");
    let result = world.carry_out_all(3, Verb::Install, &["pw-a", "pw-epoch", "pw-b", "pw-needs"]).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    let expected = vec![(true, None), (false, failed), (false, failed), (true, None)];
    assert_eq!(summary(&result), (Outcome::Failed, failed, expected), "{result:#?}");
    let versions = ["pw-a", "pw-b", "pw-epoch", "pw-needs"].map(|name| at(&world, name));
    assert_eq!(versions, ["3.0-1", "1.0-1", "1:1.0-1", "2.0-1"].map(|version| vec![version.to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_repository_whose_index_is_not_signed_as_it_has_to_be_nothing_is_offered_or_installed() {
    // Its packages are signed by nobody: the index alone vouches for them.
    const POLICY: &str = "gpgcheck=1\nrepo_gpgcheck=1\npkg_gpgcheck=0\ngpgkey=file:///srv/key.asc";
    let world = world().await;
    let served = serve(world.device.root.join("srv/repo")).await;
    make_keys(&world.device);
    let (mut running, before) = world.run().await;
    world.device.pull_the_plug();
    use_repository(&world.device, &format!("http://{}", served.address), POLICY);
    // zypper does not look at what it has already.
    world.device.chroot("rm -r /var/cache/zypp");
    let told = |report: &Report| report.problems.first().map(|problem| problem.message.clone()).unwrap_or_default();
    let unknown =
        |name| format!("repository 'Test' is signed with the key {}, which nobody has accepted", key(&world, name));
    for (number, signature, words) in [
        (1, Signature::None, "File 'repomd.xml' from repository 'Test' is unsigned".to_owned()),
        (2, Signature::Other, unknown("other")),
        // Its key is the repository's, and nobody has accepted it yet.
        (3, Signature::Good, unknown("vendor")),
        (
            4,
            Signature::Spoiled,
            "Signature verification failed for file 'repomd.xml' from repository 'Test'.".to_owned(),
        ),
    ] {
        if signature == Signature::Spoiled {
            world.device.chroot("rpm --import /srv/key.asc 2>&1");
        }
        world.device.pull_the_plug();
        index(&world.device);
        sign_index(&world.device, signature);
        let report = world.rescan(&mut running, |report| told(report).starts_with(&words)).await;
        assert_eq!(report.problems[0].code, ProblemCode::RepositoryUnavailable);
        // As if the controller did not know yet.
        let ordered = Report { updates: before.updates.clone(), ..report };
        let result = world.order_of(number, &ordered, &["pw-b"]).await;
        assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Superseded), vec![]), "{result:#?}");
        let after = world.report_after(number).await;
        assert_eq!(after.updates, [], "{signature:?}");
        assert!(told(&after).starts_with(&words), "{:?}", after.problems);
    }
    assert_eq!((at(&world, "pw-b"), world.gateway.nonces().len()), (vec!["1.0-1".to_owned()], 0));
    world.device.pull_the_plug();
    index(&world.device);
    sign_index(&world.device, Signature::Good);
    let report = world.rescan(&mut running, |report| report.problems.is_empty()).await;
    assert_eq!(report.counts.updates, before.counts.updates);
    let result = world.order_of(5, &report, &["pw-b"]).await;
    assert_eq!((result.outcome, at(&world, "pw-b")), (Outcome::Succeeded, vec!["2.0-1".to_owned()]), "{result:#?}");
    // What comes later by somebody else is not there; what was signed yesterday is.
    world.device.pull_the_plug();
    build(&world.device, &[Rpm::new("pw-b", "2.1-1"), Rpm::new("pw-z", "2.1-1")]);
    index(&world.device);
    sign_index(&world.device, Signature::Other);
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    assert!(told(&report).starts_with(&unknown("other")), "{}", told(&report));
    let offered = report.updates.iter().map(|update| update.packages[0].name.as_str()).collect::<Vec<_>>();
    assert!(!offered.contains(&"pw-b") && offered.len() == before.updates.len() - 1, "{offered:?}");
    let result = world.order_of(6, &report, &["pw-z"]).await;
    assert_eq!((result.outcome, at(&world, "pw-z")), (Outcome::Succeeded, vec!["2.0-1".to_owned()]), "{result:#?}");
    let keys = world.device.chroot("rpm -qa gpg-pubkey --qf '%{SUMMARY}\\n' 2>&1");
    assert!(keys.contains("vendor") && !keys.contains("other"), "no key was taken: {keys}");
}

/// The fingerprint of a key that was made.
fn key(world: &World, name: &str) -> String {
    let list = format!("HOME=/root gpg --batch --with-colons --fingerprint {name}@example.invalid 2>/dev/null");
    let listed = world.device.chroot(&list);
    listed.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap().trim_matches(':').to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_gone_is_superseded() {
    let world = world().await;
    let (_running, report) = world.run().await;
    build(&world.device, &[Rpm::new("pw-b", "2.1-1")]);
    world.device.chroot("rm /srv/repo/pw-b-2.0-1.noarch.rpm");
    index(&world.device);
    // The agent's own next look at the repository, which only another program's may be ahead of.
    world.device.chroot("ZYPP_LOCK_TIMEOUT=120 zypper -n refresh");
    world.order(1, &report, &["pw-b"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Superseded), vec![]), "{result:#?}");
    assert_eq!(at(&world, "pw-b"), ["1.0-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_is_full_stops_only_what_goes_there() {
    let world = world().await;
    let big = Rpm { file: "/usr/share/pw-full/big", kilobytes: 3000, ..Rpm::new("pw-b", "2.2-1") };
    build(&world.device, &[big]);
    index(&world.device);
    world.device.chroot("mkdir -p /usr/share/pw-full; mount -t tmpfs -o size=1m tmpfs /usr/share/pw-full");
    let (_running, report) = world.run().await;
    assert_eq!(update(&report, "pw-b").packages[0].candidate, "2.2-1");
    world.order(1, &report, &["pw-a", "pw-b", "pw-z"]).await;
    let result = world.gateway.result(1).await;
    world.device.chroot("umount /usr/share/pw-full");
    let full = Some(ResultReason::DiskFull);
    let expected = vec![(true, None), (false, full), (true, None)];
    assert_eq!(summary(&result), (Outcome::Failed, full, expected), "{result:#?}\n{}", world.gateway.output());
    assert!(result.message.contains("more space on the /usr/share/pw-full filesystem"), "{}", result.message);
    let versions = ["pw-a", "pw-b", "pw-z"].map(|name| at(&world, name));
    assert_eq!(versions, ["3.0-1", "1.0-1", "2.0-1"].map(|version| vec![version.to_owned()]));
}
