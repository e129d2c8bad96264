//! The agent's own packages: installed, upgraded, also by the agent itself, removed and purged.

use std::path::{Path, PathBuf};
use std::process::Command;

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::{self, Device, Package, Running, SLOW};
use crate::dnf::Dnf;
use crate::gateway::Gateway;
use crate::world::{World, summary, update};

const UNIT: &str = "patchwarden-agent.service";
const RETURN: &str = "var/lib/patchwarden/return";
const RETURNED: &str = "var/lib/patchwarden/returned.json";

pub(crate) struct Packages {
    place: tempfile::TempDir,
}

impl Packages {
    /// The agent under test without its symbols, so that it is packed in seconds.
    pub(crate) fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let stripped = place.path().join("patchwarden-agent");
        device::run(Command::new("strip").arg("-o").arg(stripped).arg(device::agent_binary()));
        Self { place }
    }

    /// The program that they bring.
    pub(crate) fn program(&self) -> PathBuf {
        self.place.path().join("patchwarden-agent")
    }

    pub(crate) fn build(&self, kind: &str, version: &str) -> PathBuf {
        self.pack(kind, version, &[])
    }

    /// One whose program is another file, as that of another version is.
    pub(crate) fn another(&self, version: &str) -> PathBuf {
        self.pack("deb", version, version.as_bytes())
    }

    fn pack(&self, kind: &str, version: &str, more: &[u8]) -> PathBuf {
        let bytes = std::fs::read(self.program()).unwrap();
        self.pack_program(kind, version, &[&bytes, more].concat())
    }

    pub(crate) fn pack_program(&self, kind: &str, version: &str, program: &[u8]) -> PathBuf {
        let binary = self.place.path().join("program");
        std::fs::write(&binary, program).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = Command::new(source.join("packaging/build"));
        command.args(["--version", version, kind]).arg(&binary);
        // It is not sent anywhere (dpkg-deb(1)).
        command.env("DPKG_DEB_COMPRESSOR_TYPE", "none");
        let said = device::stdout(command.arg(self.place.path()));
        said.trim().into()
    }
}

/// Lays the package on the device and installs it.
fn install(world: &World, package: &Path) {
    std::fs::copy(package, world.device.root.join("agent.deb")).unwrap();
    world.device.chroot("dpkg -i /agent.deb && rm /agent.deb");
}

/// A device without the agent, which its package brings.
async fn world(installed: &[Package], offered: &[Package]) -> World {
    let world =
        World { device: Device::new(&device::base_root(), installed, offered), gateway: Gateway::start().await };
    world.device.chroot("rm /usr/bin/patchwarden-agent");
    world
}

/// Every file and directory but what the package manager itself notes down.
fn everything(world: &World) -> String {
    world.device.chroot(
        "find / -xdev \\( -path /proc -o -path /dev -o -path /var/lib/dpkg -o -path /var/log -o -path /agent.log \\) -prune \
         -o -printf '%M %u:%g %p %l\\n' | sort",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_that_is_purged_leaves_nothing_and_one_that_is_removed_gives_the_systems_updater_back() {
    let packages = Packages::new();
    let world = world(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]).await;
    let before = everything(&world);
    install(&world, &packages.build("deb", "1.0"));
    let files = world.device.chroot("dpkg -L patchwarden-agent");
    for path in [
        "/etc/patchwarden",
        "/usr/bin/patchwarden-agent",
        "/usr/lib/systemd/system/patchwarden-agent.service",
        "/usr/lib/systemd/system/patchwarden-agent-return.service",
        "/usr/share/doc/patchwarden-agent/agent.md",
    ] {
        assert!(files.lines().any(|line| line == path), "{path} in {files}");
    }
    let wanted = format!("etc/systemd/system/multi-user.target.wants/{UNIT}");
    assert!(world.device.root.join(&wanted).is_symlink(), "it is enabled");
    assert_unit_is_understood(&world);
    assert!(world.join().await.contains("Joined as acme/device-1"));
    let configuration = world.device.read("etc/patchwarden/agent.toml");
    world.device.write("etc/patchwarden/agent.toml", &format!("os_updater = 'Disable'\n{configuration}"));
    let (mut running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded);
    assert!(world.device.has("etc/apt/apt.conf.d/zz-patchwarden"));
    running.kill();

    world.device.chroot("dpkg -r patchwarden-agent");
    assert!(!world.device.has("etc/apt/apt.conf.d/zz-patchwarden"), "nobody else installs updates now");
    assert!(world.device.has("var/lib/patchwarden/key.pem") && world.device.has("etc/patchwarden/agent.toml"));
    install(&world, &packages.build("deb", "1.1"));
    let known = world.scans();
    world.gateway.forget_session();
    running = world.device.start();
    // It is still joined.
    world.gateway.connected().await;
    // Nothing of a scan is left to run beside what follows.
    world.gateway.until("scan", |_| (world.scans() > known).then_some(())).await;
    running.kill();

    world.device.chroot("dpkg -P patchwarden-agent; apt-get -y purge pw-a; apt-get -y install pw-a=1.0");
    assert_eq!(everything(&world), before);
}

/// By systemd, where this machine has it. The device has none: that alone may be missed.
fn assert_unit_is_understood(world: &World) {
    let mut command = Command::new("systemd-analyze");
    let Ok(output) = command.arg(format!("--root={}", world.device.root.display())).args(["verify", UNIT]).output()
    else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.lines().all(|line| line.contains("sysinit.target not found")), "{said}");
}

/// As if systemd ran here: it restarts the unit, that is, ends the agent; who started it starts it again.
fn systemd(world: &World) {
    let scope = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n";
    world.device.write("usr/bin/systemd-run", scope);
    let systemctl = "#!/bin/sh\necho \"$@\" >>/var/log/systemctl\n\
        case \"$*\" in\n\
        *is-active* | *is-enabled*) echo enabled ;;\n\
        *restart*) if [ -e /run/agent.pid ]; then kill $(cat /run/agent.pid); rm /run/agent.pid; fi ;;\n\
        *start*-return.service) \
        setsid /var/lib/patchwarden/return/patchwarden-agent watch-successor >>/var/log/return 2>&1 </dev/null & ;;\n\
        esac\n";
    world.device.write("usr/bin/systemctl", systemctl);
    world.device.chroot("chmod 755 /usr/bin/systemd-run /usr/bin/systemctl; mkdir -p /run/systemd/system");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_installs_its_own_next_version_among_others() {
    let packages = Packages::new();
    let installed = ["pw-a", "pw-zz"].map(|name| Package::new(name, "1.0"));
    // Configured after the agent, whose restart comes in the middle then.
    let after = Package { control: "Depends: patchwarden-agent (>= 1.1)\n", ..Package::new("pw-zz", "2.0") };
    let offered = [Package::new("pw-a", "2.0"), Package { postinst: SLOW, ..after }];
    let world = world(&installed, &offered).await;
    offer_next(&world, &packages.build("deb", "1.0"), &packages.another("1.1")).await;
    let _ended = until_it_is_replaced(&world, &["patchwarden-agent", "pw-zz", "pw-a"]).await;
    assert!(!world.device.has("var/log/slow.done"));
    let mut running = world.device.start();
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 3]), "{}", world.device.log());
    for package in ["pw-a", "pw-zz"] {
        assert_eq!(world.configured(package), ["1.0", "2.0"], "{package} is changed once");
    }
    assert!(world.device.has("var/log/slow.done"));
    assert_eq!(world.at("patchwarden-agent"), "1.1");
    world.gateway.until("its check-in", |_| (!world.device.has(RETURN)).then_some(())).await;
    assert!(!world.device.has(RETURNED), "{}", world.device.read("var/log/return"));
    running.kill();
}

/// Installs `now`, and has the repository offer both.
async fn offer_next(world: &World, now: &Path, next: &Path) {
    install(world, now);
    for package in [now, next] {
        std::fs::copy(package, world.device.root.join("srv/repo/pool").join(package.file_name().unwrap())).unwrap();
    }
    world.device.offer(&[]);
    world.join().await;
    let configuration = world.device.read("etc/patchwarden/agent.toml");
    world.device.write("etc/patchwarden/agent.toml", &format!("check_in_seconds = 10\n{configuration}"));
    systemd(world);
}

/// Orders these, and waits until the new package has ended the agent that installs it.
async fn until_it_is_replaced(world: &World, names: &[&str]) -> Running {
    let (mut running, report) = world.run().await;
    world.device.write("run/agent.pid", &running.pid().to_string());
    world.order(1, &report, names).await;
    world
        .gateway
        .until("its restart", |_| world.device.read("var/log/systemctl").contains("restart").then_some(()))
        .await;
    world.gateway.until_mut("its end", || running.has_ended().then_some(())).await;
    running
}

/// What the earlier version tells of the next one, which it has replaced.
async fn assert_taken_back(world: &World) {
    let result = world.gateway.result(1).await;
    let back = Some(ResultReason::RolledBack);
    assert_eq!(summary(&result), (Outcome::Failed, back, vec![(false, back), (true, None)]), "{}", world.device.log());
    let told = "the agent's version 1.1 had no session within 10 s and was taken back to 1.0";
    assert_eq!(result.message, told);
    assert_eq!((world.at("patchwarden-agent"), world.at("pw-a")), ("1.0".into(), "2.0".into()));
    assert!(!world.device.has(RETURN));
    let report = world.report_after(1).await;
    assert!(update(&report, "patchwarden-agent").held, "it is not installed again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_version_that_does_not_even_start_is_taken_back_also_after_a_power_cut() {
    let packages = Packages::new();
    let world = world(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]).await;
    let whole = std::fs::read(packages.program()).unwrap();
    let broken = packages.pack_program("deb", "1.1", &whole[..8192]);
    offer_next(&world, &packages.build("deb", "1.0"), &broken).await;
    let _ended = until_it_is_replaced(&world, &["patchwarden-agent", "pw-a"]).await;
    world.gateway.until("1.1", |_| (world.at("patchwarden-agent") == "1.1").then_some(())).await;
    let mut start = world.device.agent(&["--version"]);
    assert!(!start.output().unwrap().status.success(), "it does not start");
    world.device.pull_the_plug();
    assert!(world.device.has(&format!("{RETURN}/plan.json")), "what its unit asks for");
    world.device.chroot(&format!("/{RETURN}/patchwarden-agent watch-successor >>/var/log/return 2>&1"));
    let mut running = world.device.start();
    assert_taken_back(&world).await;
    running.kill();
    let said = world.device.chroot(&format!("patchwarden-agent watch-successor; ls /{RETURN} 2>&1 || true"));
    assert!(said.starts_with("No new version of the agent is awaited."), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_version_that_runs_and_gets_no_session_is_taken_back_and_tells_nothing_before() {
    let packages = Packages::new();
    let world = world(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]).await;
    offer_next(&world, &packages.build("deb", "1.0"), &packages.another("1.1")).await;
    let _ended = until_it_is_replaced(&world, &["patchwarden-agent", "pw-a"]).await;
    let configuration = world.device.read("etc/patchwarden/agent.toml");
    world
        .device
        .write("etc/patchwarden/agent.toml", &configuration.replace("server_name = \"", "server_name = \"not-"));
    let mut next = world.device.start();
    world.device.write("run/agent.pid", &next.pid().to_string());
    world.gateway.until_mut("the end of the next one", || next.has_ended().then_some(())).await;
    assert!(world.device.log().contains("the agent's next version has no session yet"), "{}", world.device.log());
    world.device.write("etc/patchwarden/agent.toml", &configuration);
    world.gateway.until("the way back", |_| (!world.device.has(RETURN)).then_some(())).await;
    let mut running = world.device.start();
    assert_taken_back(&world).await;
    running.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_rpm_that_is_upgraded_keeps_the_systems_updater_off_and_one_that_is_removed_gives_it_back() {
    const DROP_IN: &str = "etc/systemd/system/dnf-automatic.service.d/zz-patchwarden.conf";
    let base = std::env::var_os("PATCHWARDEN_DNF_ROOT").expect("PATCHWARDEN_DNF_ROOT names a root with rpm");
    let world = World { device: Device::bare(Path::new(&base)), gateway: Gateway::start().await };
    // A database of its own; the system's shell is no package there.
    let rpm = |arguments: &str| world.device.chroot(&format!("rpm --dbpath /var/lib/rpm-agent {arguments}"));
    world.device.chroot("rm /usr/bin/patchwarden-agent");
    world.device.write("lib/systemd/system/dnf-automatic.service", "[Service]\nExecStart=/bin/true\n");
    let packages = Packages::new();
    for (version, how) in [("1.0", "-i"), ("1.1", "-U")] {
        std::fs::copy(packages.build("rpm", version), world.device.root.join("agent.rpm")).unwrap();
        rpm(&format!("{how} --nodeps /agent.rpm"));
        assert_eq!(rpm("-q patchwarden-agent --queryformat '%{VERSION}'"), version);
        if version == "1.0" {
            assert!(world.join().await.contains("Joined as acme/device-1"));
            let configuration = world.device.read("etc/patchwarden/agent.toml");
            world.device.write("etc/patchwarden/agent.toml", &format!("os_updater = 'Disable'\n{configuration}"));
            let mut running = world.device.start();
            world.until_on_device("var/lib/patchwarden/report.json").await;
            running.kill();
        }
        assert!(world.device.has(DROP_IN), "{version}");
    }
    rpm("-e --nodeps patchwarden-agent");
    assert!(!world.device.has("etc/systemd/system/dnf-automatic.service.d"));
    assert!(!world.device.has("usr/bin/patchwarden-agent") && world.device.has("var/lib/patchwarden/key.pem"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_version_by_dnf_4_that_does_not_even_start_is_taken_back() {
    an_rpm_that_does_not_even_start_is_taken_back(crate::dnf::world(Dnf::Four).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_version_by_dnf_5_that_does_not_even_start_is_taken_back() {
    an_rpm_that_does_not_even_start_is_taken_back(crate::dnf::world(Dnf::Five).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_version_by_zypper_that_does_not_even_start_is_taken_back() {
    an_rpm_that_does_not_even_start_is_taken_back(crate::zypper::world().await).await;
}

async fn an_rpm_that_does_not_even_start_is_taken_back(world: World) {
    let packages = Packages::new();
    let whole = std::fs::read(packages.program()).unwrap();
    let both = [packages.build("rpm", "1.0"), packages.pack_program("rpm", "1.1", &whole[..8192])];
    for package in &both {
        std::fs::copy(package, world.device.root.join("srv/repo").join(package.file_name().unwrap())).unwrap();
    }
    world
        .device
        .chroot("rpm -i --nodeps /srv/repo/patchwarden-agent-1.0-1.*.rpm; createrepo_c -q --no-database /srv/repo");
    let configuration = world.device.read("etc/patchwarden/agent.toml");
    world.device.write("etc/patchwarden/agent.toml", &format!("check_in_seconds = 10\n{configuration}"));
    systemd(&world);
    let at = |package: &str| crate::rpm::versions(&world.device).remove(package).unwrap_or_default();
    let _ended = until_it_is_replaced(&world, &["patchwarden-agent", "pw-a"]).await;
    world.gateway.until("pw-a", |_| (at("pw-a") == ["3.0-1"]).then_some(())).await;
    assert!(!world.device.agent(&["--version"]).output().unwrap().status.success(), "it does not start");
    world.device.pull_the_plug();
    world.device.chroot(&format!("/{RETURN}/patchwarden-agent watch-successor >>/var/log/return 2>&1"));
    assert_eq!(at("patchwarden-agent"), ["1.0-1"], "{}", world.device.read("var/log/return"));
    let mut running = world.device.start();
    let result = world.gateway.result(1).await;
    let back = Some(ResultReason::RolledBack);
    assert_eq!(summary(&result), (Outcome::Failed, back, vec![(false, back), (true, None)]), "{}", world.device.log());
    assert!(
        result.message.contains("version 1.1-1 had no session within 10 s and was taken back to 1.0-1"),
        "{result:?}"
    );
    assert!(!world.device.has(RETURN));
    assert!(update(&world.report_after(1).await, "patchwarden-agent").held, "it is not installed again");
    running.kill();
}
