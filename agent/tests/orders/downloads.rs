//! Orders to download, and installs from what was downloaded.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::gateway::action;
use crate::world::{World, summary, update};

const KEEP: &str = "var/lib/patchwarden/downloads";
const PW_A: &str = "pool/pw-a_2.0_all.deb";
const PW_B: &str = "pool/pw-b_2.0_all.deb";

/// The files that are kept, without the index.
fn kept(world: &World) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(world.device.root.join(KEEP)) else { return vec![] };
    entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("index.json")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_changes_nothing_and_an_install_needs_no_repository_then() {
    let world = World::new().await;
    let served = world.serve().await;
    let (_running, report) = world.run().await;
    assert!(report.updates.iter().all(|update| !update.downloaded));
    let names = ["pw-a", "pw-needs", "pw-pair-1"];
    let before = world.device.chroot("cat /var/lib/dpkg/status /var/lib/apt/extended_states | sha256sum");
    let result = world.carry_out_all(1, Verb::Download, &names).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 3]), "{}", world.device.log());
    assert!(result.actions.iter().all(|action| action.verb == Verb::Download));
    assert_eq!(world.gateway.phases(), ["Verified", "Simulated", "Downloaded", "Done"]);
    let texts: Vec<String> = world.gateway.progress().into_iter().map(|(_, text)| text).collect();
    assert!(texts[0].ends_with("3 updates to download") && texts[1].starts_with("an install would do: "), "{texts:?}");
    assert_eq!(world.gateway.nonces(), [""; 0], "nobody was asked for a grant");
    assert_eq!(before, world.device.chroot("cat /var/lib/dpkg/status /var/lib/apt/extended_states | sha256sum"));
    assert_eq!((world.at("pw-a"), world.at("pw-new")), ("1.0".into(), String::new()));
    assert_eq!(world.gateway.arrivals().last(), Some(&"result"), "the report that shows it came first");
    let report = world.report_after(1).await;
    for name in names {
        assert!(update(&report, name).downloaded, "{name}");
    }
    assert!(!update(&report, "pw-b").downloaded);
    // Both of the pair, and the new package that pw-needs needs.
    assert_eq!(kept(&world).len(), 5);
    let mode = fs::metadata(world.device.root.join(KEEP)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    world.until_cleaned_up("1-1").await;

    served.hide("pool");
    let requests = served.requests(PW_A);
    let result = world.carry_out_all(2, Verb::Install, &names).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 3]), "{}", world.device.log());
    for (package, version) in [("pw-a", "2.0"), ("pw-new", "1.0"), ("pw-pair-2", "1:2.0+x"), ("pw-b", "1.0")] {
        assert_eq!(world.at(package), version);
    }
    assert_eq!(served.requests(PW_A), requests);
    assert!(!world.device.has(KEEP), "{:?}", kept(&world));
    // The repository was gone indeed.
    let result = world.carry_out_all(3, Verb::Install, &["pw-b"]).await;
    assert_eq!(summary(&result).1, Some(ResultReason::DownloadFailed));
}

// covers RM-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_here_is_not_fetched_again_and_what_is_not_needed_any_more_is_deleted() {
    let world = World::new().await;
    let served = world.serve().await;
    let (mut running, _) = world.run().await;
    assert_eq!(world.carry_out_all(1, Verb::Download, &["pw-a"]).await.outcome, Outcome::Succeeded);
    assert_eq!(world.carry_out_all(2, Verb::Download, &["pw-a", "pw-b"]).await.outcome, Outcome::Succeeded);
    assert_eq!((served.requests(PW_A), served.requests(PW_B)), (1, 1));
    assert!(world.gateway.progress().iter().any(|(_, text)| text.ends_with("; 1 were here already")));
    assert_eq!(kept(&world).len(), 2);
    world.device.chroot("apt-get -q -y install pw-a");
    let report = world.rescan(&mut running, |report| report.counts.updates == 6).await;
    world.gateway.until("deletion", |_| (kept(&world).len() == 1).then_some(())).await;
    assert!(update(&report, "pw-b").downloaded);
}

// covers RM-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_download_is_never_used() {
    let world = World::new().await;
    let served = world.serve().await;
    let (mut running, _) = world.run().await;
    world.carry_out_all(1, Verb::Download, &["pw-a"]).await;
    // Of the same size, and as old as before: only its hash tells.
    let [path] = kept(&world).try_into().unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    served.hide("pool");
    let result = world.carry_out_all(2, Verb::Install, &["pw-a"]).await;
    assert_eq!(summary(&result).1, Some(ResultReason::DownloadFailed), "{result:#?}");
    assert_eq!(world.configured("pw-a"), ["1.0"]);
    assert!(!update(&world.report_after(2).await, "pw-a").downloaded);
    served.mend();
    world.carry_out_all(3, Verb::Download, &["pw-a"]).await;
    assert!(update(&world.report_after(3).await, "pw-a").downloaded);
    // This one a scan notices.
    fs::write(&kept(&world)[0], "x").unwrap();
    let report = world.rescan(&mut running, |report| !update(report, "pw-a").downloaded).await;
    assert_eq!(report.counts.updates, 7);
    let result = world.carry_out_all(4, Verb::Install, &["pw-a"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(served.requests(PW_A), 4, "downloaded, hidden, downloaded, installed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_in_the_middle_of_a_download_does_not_lose_it() {
    let world = World::new().await;
    let served = world.serve().await;
    let (mut running, report) = world.run().await;
    served.stall(PW_B);
    let actions = ["pw-a", "pw-b"].map(|name| action(Verb::Download, update(&report, name))).to_vec();
    world.gateway.send(&world.gateway.sign(&world.gateway.order_of(1, &report, actions))).await;
    let asked = async |times| {
        world.gateway.until("requests", |_| (served.requests(PW_B) >= times).then_some(())).await;
    };
    asked(1).await;
    running.kill();
    assert!(kept(&world).is_empty(), "a part of a file is none");
    // The killed agent's apt is still there when the new one's begins.
    let _again = world.device.start();
    asked(2).await;
    served.mend();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    let report = world.report_after(1).await;
    assert!(update(&report, "pw-a").downloaded && update(&report, "pw-b").downloaded);
    assert_eq!((kept(&world).len(), world.at("pw-a"), world.at("pw-b")), (2, "1.0".into(), "1.0".into()));
    served.hide("pool");
    assert_eq!(world.carry_out_all(2, Verb::Install, &["pw-a", "pw-b"]).await.outcome, Outcome::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_again_and_again_still_ends_a_download() {
    let world = World::new().await;
    let _served = world.serve().await;
    let (mut running, report) = world.run().await;
    let actions = ["pw-a", "pw-b", "pw-needs"].map(|name| action(Verb::Download, update(&report, name))).to_vec();
    world.gateway.send(&world.gateway.sign(&world.gateway.order_of(1, &report, actions))).await;
    world.gateway.phase("Verified").await;
    let kills = world.kill_again_and_again(&mut running, 1500).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 3]), "{kills} kills: {result:#?}");
    let report = world.gateway.report(|report| update(report, "pw-a").downloaded).await;
    assert!(update(&report, "pw-b").downloaded && update(&report, "pw-needs").downloaded);
    assert_eq!((kept(&world).len(), world.at("pw-a")), (4, "1.0".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_download_that_failed_the_rest_is_kept() {
    let world = World::new().await;
    let served = world.serve().await;
    let (_running, _) = world.run().await;
    served.spoil(PW_B);
    let result = world.carry_out_all(1, Verb::Download, &["pw-b", "pw-a"]).await;
    let failed = Some(ResultReason::DownloadFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed), (true, None)]), "{result:#?}");
    let report = world.report_after(1).await;
    assert!(update(&report, "pw-a").downloaded && !update(&report, "pw-b").downloaded);
    assert_eq!(kept(&world).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_is_judged_like_an_install() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    let result = world.carry_out_all(1, Verb::Download, &["pw-greedy"]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]));
    assert!(result.message.contains("remove pw-victim"), "{}", result.message);
    let two =
        [(Verb::Download, "pw-a"), (Verb::Install, "pw-b")].map(|(verb, name)| action(verb, update(&report, name)));
    let result = world.carry_out(2, two.to_vec()).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Unreadable), vec![]));
    assert!(result.message.contains("pw-b") && result.message.contains("one verb"), "{}", result.message);
    assert_eq!((world.at("pw-b"), kept(&world).len()), ("1.0".into(), 0));
    // A repository on this machine, which apt would use in place: its file is kept too.
    // No scan follows what cannot be read.
    let report = world.report_after(1).await;
    let order = world.gateway.order_of(3, &report, vec![action(Verb::Download, update(&report, "pw-b"))]);
    world.gateway.send(&world.gateway.sign(&order)).await;
    assert_eq!(world.gateway.result(3).await.outcome, Outcome::Succeeded);
    world.device.chroot("mv /srv/repo/pool /srv/repo/gone");
    let result = world.carry_out_all(4, Verb::Install, &["pw-b"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(world.at("pw-b"), "2.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_have_a_limit_of_their_own() {
    let world = World::new().await;
    let config = world.device.read("etc/patchwarden/agent.toml");
    world.device.write("etc/patchwarden/agent.toml", &format!("downloads_max_mb = 0\n{config}"));
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Download, &["pw-a"]).await;
    let full = Some(ResultReason::DiskFull);
    assert_eq!(summary(&result), (Outcome::Failed, full, vec![(false, full)]));
    assert!(result.message.contains("downloads_max_mb"), "{}", result.message);
    assert_eq!(kept(&world).len(), 0);
    // It is no limit to installs.
    assert_eq!(world.carry_out_all(2, Verb::Install, &["pw-a"]).await.outcome, Outcome::Succeeded);
}
