//! Downloads through the cache of the device's site: on a real apt, dnf and zypper.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason};
use patchwarden_protocol::site_cache::{SiteCache, WhenDown};

use crate::device::{Served, serve};
use crate::gateway::action;
use crate::world::{World, summary, update};
use crate::{dnf, zypper};

const PW_A: &str = "pool/pw-a_2.0_all.deb";
const PW_A_RPM: &str = "pw-a-3.0-1.noarch.rpm";

/// Nothing listens there.
const NOBODY: &str = "http://127.0.0.1:1";

/// A proxy that has all that the repository has.
async fn cache(world: &World) -> (Served, String) {
    let served = serve(world.device.root.join("srv/repo")).await;
    let url = format!("http://{}", served.address);
    (served, url)
}

/// Gives an order for one update, through this cache.
async fn carry_out(world: &World, number: u32, name: &str, url: &str, when_down: WhenDown) -> InstallResult {
    let report = world.report_after(number - 1).await;
    let mut order = world.gateway.order_of(number, &report, vec![action(Verb::Install, update(&report, name))]);
    order.site_cache = Some(SiteCache { url: url.to_owned(), when_down });
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.gateway.result(number).await
}

fn said(world: &World, words: &str) -> bool {
    world.gateway.progress().iter().any(|(_, text)| text.contains(words))
}

/// Files below `/etc` that name the cache.
fn configured(world: &World, url: &str) -> String {
    let port = url.rsplit(':').next().unwrap();
    world.device.chroot(&format!("grep -rl ':{port}' /etc || true"))
}

/// The repository itself has no packages, so that they can only have come through the cache.
async fn comes_through_the_cache(world: &World, repository: &Served, packages: &str, file: &str) {
    let (cache, url) = cache(world).await;
    let (_running, _) = world.run().await;
    repository.hide(packages);
    let result = carry_out(world, 1, "pw-a", &url, WhenDown::Wait).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}\n{}", world.device.log());
    assert_eq!((repository.requests(file), cache.requests(file)), (0, 1));
    assert!(said(world, &format!("downloads through the site's cache {url}")), "{:#?}", world.gateway.progress());
    assert_eq!(configured(world, &url), "");
}

// covers MW-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_downloads_through_it() {
    let world = World::new().await;
    let served = world.serve().await;
    comes_through_the_cache(&world, &served, "pool", PW_A).await;
    assert_eq!(world.at("pw-a"), "2.0");
}

// covers MW-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_4_downloads_through_it() {
    by_dnf(dnf::world(dnf::Dnf::Four).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_downloads_through_it() {
    by_dnf(dnf::world(dnf::Dnf::Five).await).await;
}

async fn by_dnf(world: World) {
    let served = serve(world.device.root.join("srv/repo")).await;
    dnf::use_repository(&world.device, &format!("http://{}", served.address), "gpgcheck=0");
    comes_through_the_cache(&world, &served, "pw-", PW_A_RPM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_downloads_through_it() {
    let world = zypper::world().await;
    let served = serve(world.device.root.join("srv/repo")).await;
    zypper::use_repository(&world.device, &format!("http://{}", served.address), "gpgcheck=0");
    comes_through_the_cache(&world, &served, "pw-", PW_A_RPM).await;
}

// covers MW-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_is_down_the_policy_says_what_follows() {
    let world = World::new().await;
    let served = world.serve().await;
    let (_running, _) = world.run().await;
    let result = carry_out(&world, 1, "pw-a", NOBODY, WhenDown::Wait).await;
    assert_eq!(
        summary(&result),
        (Outcome::Failed, Some(ResultReason::SiteCacheDown), vec![(false, Some(ResultReason::SiteCacheDown))])
    );
    let why = format!("the site's cache {NOBODY} does not answer: ");
    assert!(result.message.starts_with(&why), "{}", result.message);
    assert_eq!(
        (world.gateway.nonces().len(), served.requests(PW_A)),
        (0, 0),
        "nothing was downloaded, and nobody asked"
    );
    let result = carry_out(&world, 2, "pw-a", NOBODY, WhenDown::Direct).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert!(said(&world, &format!("downloads directly: {why}")), "{:#?}", world.gateway.progress());
    assert_eq!(served.requests(PW_A), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_not_what_is_wanted_is_as_good_as_down() {
    let world = World::new().await;
    let served = world.serve().await;
    let (cache, url) = cache(&world).await;
    cache.hide("pool");
    let (_running, _) = world.run().await;
    let result = carry_out(&world, 1, "pw-a", &url, WhenDown::Wait).await;
    assert_eq!(summary(&result).1, Some(ResultReason::DownloadFailed), "{result:#?}");
    assert!(result.message.starts_with(&format!("the site's cache {url} has failed: ")), "{}", result.message);
    assert!(cache.requests(PW_A) > 0 && served.requests(PW_A) == 0);
    let result = carry_out(&world, 2, "pw-a", &url, WhenDown::Direct).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!((served.requests(PW_A), world.at("pw-a")), (1, "2.0".to_owned()));
    // What it spoils is noticed as ever.
    cache.mend();
    cache.spoil("pool/pw-b_2.0_all.deb");
    let result = carry_out(&world, 3, "pw-b", &url, WhenDown::Wait).await;
    assert_eq!(
        (summary(&result).1, world.at("pw-b")),
        (Some(ResultReason::DownloadFailed), "1.0".to_owned()),
        "{result:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machines_owner_has_the_last_word() {
    let world = World::new().await;
    let served = world.serve().await;
    let (cache, url) = cache(&world).await;
    let (_running, _) = world.run().await;
    world.device.write("etc/patchwarden/limits.toml", "site_caches = ['http://10.*']\n");
    let result = carry_out(&world, 1, "pw-a", &url, WhenDown::Wait).await;
    assert_eq!(summary(&result).1, Some(ResultReason::LimitedByDevice), "{result:#?}");
    assert!(
        result.message.contains(&format!("site_caches: {url} is not among those that are allowed")),
        "{}",
        result.message
    );
    let result = carry_out(&world, 2, "pw-a", &url, WhenDown::Direct).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!((cache.requests(""), cache.requests(PW_A), served.requests(PW_A)), (0, 0, 1));
    // A proxy of the package manager's own counts, also where the order names another one.
    world.device.write("etc/patchwarden/limits.toml", "");
    let (own, own_url) = self::cache(&world).await;
    world.device.write("etc/apt/apt.conf.d/90proxy", &format!("Acquire::http::Proxy \"{own_url}\";\n"));
    let result = carry_out(&world, 3, "pw-b", &url, WhenDown::Wait).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    let pw_b = "pool/pw-b_2.0_all.deb";
    assert_eq!((cache.requests(pw_b), own.requests(pw_b), served.requests(pw_b)), (0, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_no_caches_is_refused() {
    let world = World::new().await;
    let (_running, _) = world.run().await;
    let result = carry_out(&world, 1, "pw-a", "http://me:secret@cache:3142", WhenDown::Direct).await;
    assert_eq!(summary(&result).1, Some(ResultReason::Unreadable), "{result:#?}");
    assert!(result.message.contains("siteCache.url: must be http://HOST:PORT"), "{}", result.message);
}
