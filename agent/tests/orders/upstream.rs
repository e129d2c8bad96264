//! Who else than the vendor decides what is offered: it is named, and nobody goes around it.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::{Outcome, ResultReason};
use patchwarden_protocol::surroundings::{Upstream, UpstreamKind};

use crate::device::{Package, serve};
use crate::gateway::action;
use crate::world::{World, summary, update};
use crate::{dnf, zypper};

#[allow(clippy::unnecessary_wraps, reason = "it is compared with such")]
fn named(kind: UpstreamKind, name: &str, partial: bool) -> Option<Upstream> {
    Some(Upstream { kind, name: name.into(), partial })
}

// covers CL-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_dated_archive_nothing_later_is_offered_or_installed() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    assert_eq!(report.upstream, None, "it has an archive like any other");
    world.device.chroot("cp -r /srv/repo /srv/20260301T024500Z");
    world.device.use_repository("file:/srv/20260301T024500Z");
    // What the vendor has published since then lies where the machine does not look any more.
    world.device.offer(&[Package::new("pw-a", "3.0")]);
    let report = world.rescan(&mut running, |report| report.upstream.is_some()).await;
    assert_eq!(report.upstream, named(UpstreamKind::Snapshot, "20260301T024500Z", false));
    let of_archive = update(&report, "pw-a");
    assert_eq!(of_archive.packages[0].candidate, "2.0");
    let mut later = action(Verb::Install, of_archive);
    later.packages[0].candidate = "3.0".into();
    let result = world.carry_out(1, vec![later]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Superseded), vec![]), "{result:#?}");
    assert_eq!(world.at("pw-a"), "1.0");
    let result = world.carry_out_all(2, Verb::Install, &["pw-a"]).await;
    assert_eq!((result.outcome, world.at("pw-a").as_str()), (Outcome::Succeeded, "2.0"));
}

// covers CL-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_satellite_and_what_is_beside_it_are_told_with_dnf() {
    let world = dnf::world(dnf::Dnf::Five).await;
    let served = serve(world.device.root.join("srv/repo")).await;
    let address = format!("http://{}", served.address);
    let own = "[beside]\nname=Beside\nbaseurl=file:///srv/repo\ngpgcheck=0\n";
    world.device.chroot("mkdir -p /etc/rhsm /etc/dnf/repos.override.d; rm /etc/yum.repos.d/test.repo");
    world.device.write("etc/yum.repos.d/beside.repo", own);
    let its = format!("[its]\nname = Its\nbaseurl = {address}\nenabled = 1\ngpgcheck = 0\n");
    world.device.write("etc/yum.repos.d/redhat.repo", &its);
    let rhsm = format!("[server]\nhostname = satellite.example.com\n\n[rhsm]\nbaseurl = {address}/pulp/content\n");
    world.device.write("etc/rhsm/rhsm.conf", &rhsm);
    let (mut running, report) = world.run().await;
    assert_eq!(report.upstream, named(UpstreamKind::Satellite, "satellite.example.com", true));
    world.device.write("etc/dnf/repos.override.d/99-config_manager.repo", "[beside]\nenabled=0\n");
    let report = world.rescan(&mut running, |report| report.upstream.as_ref().is_some_and(|it| !it.partial)).await;
    assert!(report.problems.is_empty() && report.counts.updates > 0, "{report:#?}");
    assert!(report.updates.iter().all(|update| update.origin == "its"), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_channels_of_suse_manager_are_told_with_zypper() {
    let world = zypper::world().await;
    let served = serve(world.device.root.join("srv/repo")).await;
    let channels = format!(
        "[susemanager:test]\nname=Test\nenabled=1\nautorefresh=1\nbaseurl=http://me:secret@{}\ntype=rpm-md\ngpgcheck=0\n",
        served.address
    );
    world.device.chroot("rm /etc/zypp/repos.d/test.repo");
    world.device.write("etc/zypp/repos.d/susemanager:channels.repo", &channels);
    let (_running, report) = world.run().await;
    let Report { upstream, updates, .. } = report;
    assert_eq!(upstream, named(UpstreamKind::SuseManager, "127.0.0.1", false));
    assert!(updates.iter().all(|update| !update.origin.contains("secret")), "{updates:#?}");
}
