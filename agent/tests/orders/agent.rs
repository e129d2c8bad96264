//! The agent beside its orders: joining, its certificate, what it reports and what it costs.

use std::time::Duration;

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{ProblemCode, Report, Tristate, Update};
use patchwarden_protocol::result::Outcome;

use crate::device::{self, Device, Package, Running, stdout};
use crate::gateway::Gateway;
use crate::world::{World, update};

// covers MW-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_interrupts_a_service_is_told_by_what_a_package_ships() {
    let ships = |name, version, file| Package { file, ..Package::new(name, version) };
    let all = |version| {
        [
            ships("pw-service", version, "lib/systemd/system/pw.service"),
            ships("pw-library", version, "usr/lib/x86_64-linux-gnu/libpw.so.1"),
            ships("pw-plain", version, ""),
            Package { postinst: "invoke-rc.d pw restart || true", ..Package::new("pw-script", version) },
        ]
    };
    let world = World::of(&all("1.0"), &all("2.0")).await;
    let (_running, report) = world.run().await;
    let of = |name| (update(&report, name).interrupts_service, update(&report, name).requires_restart);
    assert_eq!(of("pw-service"), (Tristate::Yes, Tristate::Unknown));
    assert_eq!(of("pw-library"), (Tristate::Unknown, Tristate::Unknown));
    assert_eq!(of("pw-script"), (Tristate::Unknown, Tristate::Unknown));
    assert_eq!(of("pw-plain"), (Tristate::No, Tristate::No));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_waits_for_an_administrator_and_keeps_the_key() {
    let base = device::base_root();
    let device = Device::new(&base, &[Package::new("pw-a", "1.0")], &[]);
    let world = World { device, gateway: Gateway::start().await };
    world.gateway.set_accepting(false);
    let arguments = [world.gateway.join_arguments(), vec!["--wait".into(), "1s".into()]].concat();
    let output = world.device.agent(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("acceptedKey"), "{said}");
    let key = world.device.read("var/lib/patchwarden/key.pem");
    world.gateway.set_accepting(true);
    assert!(world.join().await.contains("Joined as acme/device-1"));
    assert_eq!(world.device.read("var/lib/patchwarden/key.pem"), key);
    assert!(world.join().await.contains("Joined as"), "joining again is fine");
    assert_eq!(world.device.read("var/lib/patchwarden/key.pem"), key);
    // Another root or CA than the command says: nothing of the identity changes.
    let certificate = world.device.read("var/lib/patchwarden/certificate.pem");
    for flag in ["--root", "--ca"] {
        let mut arguments = world.gateway.join_arguments();
        let at = arguments.iter().position(|argument| argument == flag).unwrap() + 1;
        arguments[at] = patchwarden_protocol::key::Fingerprint::of(b"x").to_string();
        let output = world.device.agent(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        assert!(!output.status.success());
        assert_eq!(world.device.read("var/lib/patchwarden/certificate.pem"), certificate);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_joins_anew_keeps_its_old_key_until_the_new_one_is_accepted() {
    let device = Device::new(&device::base_root(), &[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]);
    let world = World { device, gateway: Gateway::start().await };
    assert!(world.join().await.contains("Joined as acme/device-1"));
    let key = || world.device.read("var/lib/patchwarden/key.pem");
    let (old, certificate) = (key(), world.device.read("var/lib/patchwarden/certificate.pem"));
    world.gateway.set_accepting(false);
    let anew = |wait: &str| {
        let arguments =
            [world.gateway.join_arguments(), ["--force", "--wait", wait].map(str::to_owned).to_vec()].concat();
        world.device.agent(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
    };
    let output = anew("1s");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("acceptedKey"), "{output:?}");
    assert_eq!((key(), world.device.read("var/lib/patchwarden/certificate.pem")), (old.clone(), certificate));
    let next = world.device.read("var/lib/patchwarden/next/key.pem");
    assert_ne!(next, old);
    // It goes on as what it was.
    let (mut running, _) = world.run().await;
    running.kill();
    assert!(!anew("1s").status.success());
    assert_eq!(world.device.read("var/lib/patchwarden/next/key.pem"), next, "the one that an administrator compares");
    world.gateway.set_accepting(true);
    let output = anew("10s");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(key(), next);
    assert!(!world.device.has("var/lib/patchwarden/next"));
    world.gateway.forget_session();
    let _running = world.device.start();
    world.gateway.connected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_past_half_its_life_is_renewed_and_the_session_comes_back() {
    let base = device::base_root();
    let device = Device::new(&base, &[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]);
    let world = World { device, gateway: Gateway::start().await };
    world.gateway.set_certificate_age(jiff::SignedDuration::from_hours(11));
    assert!(world.join().await.contains("Joined"));
    let (mut running, _) = world.run().await;
    assert_eq!(world.gateway.renewals(), 0, "it is not due yet");
    running.kill();
    world.gateway.set_certificate_age(jiff::SignedDuration::from_hours(13));
    assert!(world.join().await.contains("Joined"));
    let _running = world.device.start();
    world.gateway.until("a renewal", |gateway| (gateway.renewals() == 1).then_some(())).await;
    world.gateway.set_down(true);
    world.gateway.until("a refused session", |gateway| (gateway.refused() > 0).then_some(())).await;
    world.gateway.set_down(false);
    world.gateway.connected().await;
    assert_eq!(world.gateway.renewals(), 1, "the renewed one is used");
}

// covers MW-8, MW-13, CL-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_scans_again_by_itself_as_often_as_the_gateway_says() {
    let world = World::new().await;
    world.gateway.set_scan_interval(1);
    let (_running, before) = world.run().await;
    let lacks = |report: &Report| report.updates.iter().any(|update| update.packages[0].name == "pw-b");
    assert!(lacks(&before), "{before:#?}");
    // Nobody tells the agent of it.
    world.device.chroot("dpkg -i /srv/repo/pool/pw-b_2.0_all.deb >/dev/null 2>&1");
    world.gateway.report(|report| !lacks(report) && report.problems.is_empty()).await;
    let scans = world.scans();
    world.gateway.until("scan", |_| (world.scans() > scans).then_some(())).await;
}

/// How often a keep-alive wakes the agent at most.
const KEEP_ALIVE_NAPS: u64 = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_agent_costs_nothing() {
    let world = World::new().await;
    let (running, report) = world.run().await;
    world.order(1, &report, &["pw-a"]).await;
    world.gateway.result(1).await;
    let deadline = tokio::time::Instant::now() + Duration::from_mins(10);
    while running.naps(Duration::from_secs(5)).await > 5 {
        assert!(tokio::time::Instant::now() < deadline, "it does not come to rest");
    }
    assert_eq!(world.scans(), 2, "the first, and the one behind the result");
    // The budget is for what is shipped, of which less than 8 MiB are resident and which is watched for longer; a debug build is larger.
    let is_release = !cfg!(debug_assertions) || std::env::var_os("PATCHWARDEN_AGENT").is_some();
    let (limit, seconds) = if is_release { (12 * 1024, 100) } else { (28 * 1024, 10) };
    let before = running.ticks();
    let naps = running.naps(Duration::from_secs(seconds)).await;
    let (ticks, resident) = (running.ticks() - before, running.resident());
    println!("{resident} KiB resident, {ticks} clock ticks and {naps} naps in {seconds} s");
    // A keep-alive comes every 30 s: it is sent, and answered. On a machine that is busy a nap may take a tick of those of others.
    let most = KEEP_ALIVE_NAPS * (seconds / 30 + 1);
    assert!(naps <= most, "it woke {naps} times in {seconds} s");
    assert!(ticks <= 5, "{ticks} clock ticks in {seconds} s");
    assert!(resident <= limit, "{resident} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repositories_are_asked_some_time_after_the_start_and_neither_a_report_nor_an_order_waits_for_it() {
    let world = World::new().await;
    let served = world.serve().await;
    // As a machine is that somebody has set up.
    world.device.chroot("apt-get -q update");
    let joined = world.device.read(device::CONFIGURATION);
    assert!(joined.contains("refresh_spread_seconds = 0\n"), "{joined}");
    let spread = |spread: &str| {
        let settings = joined.replace("refresh_spread_seconds = 0\n", spread);
        world.device.write(device::CONFIGURATION, &settings);
    };
    let asked = || served.requests("dists/stable-security/InRelease");
    let before = asked();
    spread("refresh_spread_seconds = 86400\n");
    let (mut running, report) = world.run().await;
    let told = |report: &Report| report.problems.iter().map(|it| (it.code, it.message.clone())).collect::<Vec<_>>();
    let message = "since this machine joined no repository was asked yet: they are within 86400 s of the agent's start \
                   (refresh_spread_seconds)";
    let unasked = (ProblemCode::RepositoryUnavailable, message.to_owned());
    assert_eq!((report.counts.updates, told(&report)), (7, vec![unasked.clone()]), "what is known is told at once");
    let result = world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!((result.outcome, asked()), (Outcome::Succeeded, before), "{result:#?}");
    // A start is not the first time.
    let scans = world.scans();
    let report = world.rescan(&mut running, |report| report.counts.updates == 6).await;
    world.gateway.until("scan", |_| (world.scans() > scans).then_some(())).await;
    assert_eq!((told(&report), asked()), (vec![unasked], before));
    spread("refresh_spread_seconds = 4\n");
    let report = world.rescan(&mut running, |report| report.problems.is_empty()).await;
    assert_eq!((report.counts.updates, asked()), (6, before + 1));
    // The mirror is away, which is not forgotten by a start.
    served.hide("dists");
    spread("refresh_spread_seconds = 0\n");
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    spread("");
    let (scans, before) = (world.scans(), asked());
    let again = world.rescan(&mut running, |_| true).await;
    world.gateway.until("scan", |_| (world.scans() > scans).then_some(())).await;
    assert_eq!((told(&again), asked()), (told(&report), before), "within 300 s where nothing is set");
}

/// What a package manager prints is not trusted to be short, whole or text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_output_is_refused_with_a_reason_and_fills_no_memory() {
    let world = World::new().await;
    let (mut running, _) = world.run().await;
    let index = "var/lib/apt/lists/hostile_dists_stable_main_binary-amd64_Packages";
    let cases = [
        ("usr/bin/apt-get", "yes 'Inst a [1] (2 x [all])'", "printed more than 16777216 bytes"),
        ("usr/bin/apt-get", "yes 'Inst a [1] (2 x [all])' | head -n 60000 ", "more than 50000 packages are told"),
        ("usr/bin/apt-get", "cat /dev/zero", "printed more than 16777216 bytes"),
        ("usr/bin/apt-get", "tr '\\0' '\\377' </dev/zero >&2", "printed more than 16777216 bytes"),
        ("usr/bin/apt-get", "printf 'Inst pw-a [1.0] (2.0'", "a line of an unknown form: Inst pw-a [1.0] (2.0"),
        ("usr/bin/apt-get", "printf 'Inst \\377\\033[2J [1'", "a line of an unknown form: Inst"),
        ("usr/bin/dpkg-query", "yes 'ii \ta\tall\t1\ta\t1\t1' | head -n 800000", "more than 50000 packages are told"),
        ("usr/bin/dpkg-query", "head -c 16000000 /dev/urandom", "of an unknown form"),
        ("usr/bin/dpkg", "yes", "printed more than 16777216 bytes"),
    ];
    for (program, prints, why) in cases {
        world.device.chroot(&format!("mv /{program} /aside"));
        world.device.write(program, &format!("#!/bin/sh\ncase $1 in --print*) exec /aside \"$@\" ;; esac\n{prints}\n"));
        world.device.chroot(&format!("chmod 755 /{program}"));
        let is_told = |report: &Report| report.problems.iter().any(|problem| problem.message.contains(why));
        world.rescan(&mut running, is_told).await;
        assert_memory(&running, prints);
        world.device.chroot(&format!("mv /aside /{program}"));
        world.rescan(&mut running, |report| report.problems.is_empty()).await;
    }
    // One paragraph without an end, one field, and versions without number.
    let versions = "seq 1000000000 | sed 's/.*/Package: pw-a\\nVersion: &\\n/'";
    for content in ["yes 'Package: pw-a'", "(printf 'Package: '; tr '\\0' a </dev/zero)", versions] {
        world.device.chroot(&format!("{content} | head -c 200000000 >/{index}"));
        let known = world.scans();
        world.rescan(&mut running, |report| report.counts.updates > 0).await;
        world.gateway.until("scan", |_| (world.scans() > known).then_some(())).await;
        assert_memory(&running, content);
    }
    running.kill();
}

/// The budget is for what is shipped; a debug build is larger by its code.
fn assert_memory(running: &Running, what: &str) {
    let most = running.most_resident();
    println!("{most} KiB at most: {what}");
    let code = if cfg!(debug_assertions) { 16 * 1024 } else { 0 };
    assert!(most <= 64 * 1024 + code, "{most} KiB: {what}");
}

/// With the network: every update that the root's own sources offer, verified by the distribution's signatures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a root with outstanding updates, and its mirror"]
async fn the_distributions_own_updates_are_installed() {
    let base = device::base_root();
    let world = World { device: Device::bare(&base), gateway: Gateway::start().await };
    assert!(world.join().await.contains("Joined"));
    let (running, report) = world.run().await;
    let updates: Vec<&Update> = report.updates.iter().collect();
    world.gateway.send(&world.gateway.sign(&world.gateway.order(1, &report, &updates))).await;
    let result = world.gateway.result(1).await;
    for (phase, text) in world.gateway.progress() {
        println!("{phase}: {text}");
    }
    println!("{result:#?}\n{} KiB resident", running.resident());
    assert_eq!(result.outcome, Outcome::Succeeded);
    world.gateway.report(|report| report.counts.updates == 0 && report.problems.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_packages_and_missing_repositories_are_reported() {
    let world = World::new().await;
    let served = world.serve().await;
    world.device.chroot("apt-mark hold pw-a");
    let (mut running, report) = world.run().await;
    assert!(update(&report, "pw-a").held && !update(&report, "pw-b").held);
    world.order(1, &report, &["pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_ne!(result.outcome, Outcome::Succeeded);
    assert_eq!(world.configured("pw-a"), ["1.0"], "a hold is never forced");
    assert_eq!(world.device.version("pw-a"), "hold ok installed 1.0", "it is still there");
    let before = world.report_after(1).await.counts;
    served.hide("dists");
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    assert_eq!(report.problems[0].code, ProblemCode::RepositoryUnavailable);
    assert!(report.problems[0].message.contains(&served.address.to_string()), "{:?}", report.problems);
    assert_eq!(report.counts, before, "those of yesterday");
}

/// What the indexes tell in one pass is what apt-cache tells of each package; what they do not tell alike is asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_says_the_same_whether_it_reads_the_indexes_or_asks_apt() {
    let world = World::new().await;
    let device = &world.device;
    device.chroot("apt-get -q update");
    let plan = "sha256sum /var/log/apt/eipp.log.xz";
    let planned = device.chroot(plan);
    let scan = || stdout(&mut device.agent(&["scan", "--all"]));
    let without = |program: &str| {
        device.chroot(&format!("mv {program} {program}.away"));
        let scanned = scan();
        device.chroot(&format!("mv {program}.away {program}"));
        scanned
    };
    assert_eq!(without("/usr/bin/apt-cache"), scan(), "it was not needed");
    device.chroot("apt-mark hold pw-b");
    let read = scan();
    let report: Report = serde_json::from_str(&read).unwrap();
    assert!(report.updates.len() > 5 && update(&report, "pw-b").held, "{read}");
    assert_eq!(without("/usr/lib/apt/apt-helper"), read);
    // Another file as the same version: which one counts is apt's to say.
    device.offer_from("srv/other", "Other", &[Package { kilobytes: 50, ..Package::new("pw-a", "2.0") }]);
    device.write("etc/apt/sources.list.d/other.list", "deb [trusted=yes] file:/srv/other stable-security main\n");
    device.chroot("apt-get -q update");
    let both = scan();
    assert_eq!(without("/usr/lib/apt/apt-helper"), both);
    let rivals: Report = serde_json::from_str(&both).unwrap();
    assert!(rivals.problems.is_empty() && rivals.updates.len() == report.updates.len(), "{both}");
    let missing: Report = serde_json::from_str(&without("/usr/bin/apt-cache")).unwrap();
    assert_eq!(missing.problems[0].code, ProblemCode::ScanFailed, "it was needed");
    assert_eq!(device.chroot(plan), planned, "a scan leaves the log of the last real run");
}
