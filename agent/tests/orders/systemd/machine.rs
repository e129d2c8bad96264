//! A device that systemd has started: a container of `systemd-nspawn`, with a boot id of its own for each start. The network is
//! the host's, where the gateway listens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::device::{self, Device, Package};
use crate::gateway::Gateway;
use crate::world::World;

/// Puts itself into control groups of its own, hides the host's systemd, so that nothing is left in its directories, and starts the
/// machine, and again where it has restarted itself (133, says systemd-nspawn(1) of `--keep-unit`): the arguments are the name, the
/// root and where the first process' output goes.
const START: &str = "set -e\n\
    for hierarchy in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do\n\
      case $hierarchy in\n\
        /sys/fs/cgroup/cgroup.procs | /sys/fs/cgroup/systemd/* | /sys/fs/cgroup/unified/*) [ -e $hierarchy ] || continue ;;\n\
        *) continue ;;\n\
      esac\n\
      mkdir ${hierarchy%/cgroup.procs}/$1\n\
      echo $$ >${hierarchy%/cgroup.procs}/$1/cgroup.procs\n\
    done\n\
    mkdir -p /run/systemd\n\
    mount -t tmpfs tmpfs /run/systemd\n\
    exec >$3 2>&1\n\
    set +e\n\
    ended=133\n\
    while [ $ended = 133 ]; do\n\
      systemd-nspawn --quiet --boot --directory=$2 --machine=$1 --register=no --keep-unit --console=pipe\n\
      ended=$?\n\
    done\n";

/// Where they are: one of v2, or two of v1.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"];

/// A machine starts within a second, and within some where others work beside it.
const START_LIMIT: Duration = Duration::from_mins(2);

/// A joined device. Ended when dropped.
pub(super) struct Machine {
    starter: Child,
    name: String,
    pub(super) world: World,
}

impl Machine {
    /// With these packages, and no agent yet.
    pub(super) async fn start(installed: &[Package], offered: &[Package]) -> Self {
        let base = std::env::var_os("PATCHWARDEN_SYSTEMD_ROOT").expect(
            "PATCHWARDEN_SYSTEMD_ROOT names a Debian root with systemd: these tests are run by \"make agent-tests\"",
        );
        let device = Device::new(Path::new(&base), installed, offered);
        for name in ["proc", "dev"] {
            device::run(Command::new("umount").arg("-l").arg(device.root.join(name)));
        }
        fs::remove_file(device.root.join("usr/bin/patchwarden-agent")).unwrap();
        let world = World { device, gateway: Gateway::start().await };
        let name = format!("pw-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let console = world.device.root.parent().unwrap().join("console");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", START, "sh", &name]).arg(&world.device.root).arg(console);
        let mut machine = Self { starter: command.stdin(Stdio::null()).spawn().unwrap(), name, world };
        machine.until_up().await;
        machine
    }

    /// The machine's first process, while there is one.
    fn first_process(&self) -> Option<u32> {
        let child = |id: u32| -> Option<u32> {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        };
        child(child(self.starter.id())?)
    }

    /// Runs a shell command on the machine.
    fn command(&self, script: &str) -> Option<Command> {
        let first = self.first_process()?.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &first, "--all", "--root", "--wd", "/usr/bin/env", "-i", "LC_ALL=C"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "/bin/sh", "-c", script]);
        Some(command)
    }

    /// What a shell command prints, which must succeed.
    pub(super) fn run(&self, script: &str) -> String {
        device::stdout(&mut self.command(script).unwrap()).trim_end().to_owned()
    }

    /// What it prints, whether it succeeds or not.
    pub(super) fn say(&self, script: &str) -> String {
        let Some(output) = self.command(script).and_then(|mut command| command.output().ok()) else {
            return String::new();
        };
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Waits until systemd has started all that it was to start.
    async fn until_up(&mut self) {
        let is_up = |machine: &mut Self| {
            let ended = machine.starter.try_wait().unwrap();
            assert!(ended.is_none(), "the machine did not start: {ended:?}");
            ["running", "degraded"].contains(&machine.say("systemctl is-system-running").as_str())
        };
        let until = std::time::Instant::now() + START_LIMIT;
        while !is_up(self) {
            assert!(std::time::Instant::now() < until, "the machine was not up within {START_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) fn boot_id(&self) -> String {
        self.say("cat /proc/sys/kernel/random/boot_id")
    }

    /// Lays the package on the machine and installs it.
    pub(super) fn install(&self, package: &Path) {
        fs::copy(package, self.world.device.root.join("agent.deb")).unwrap();
        self.run("dpkg -i /agent.deb && rm /agent.deb");
    }

    /// Joins, with this in front of the configuration, and starts the service, as an administrator does.
    pub(super) fn join(&self, settings: &str) {
        let arguments: Vec<String> =
            self.world.gateway.join_arguments().iter().map(|argument| format!("'{argument}'")).collect();
        let said = self.run(&format!("patchwarden-agent {}", arguments.join(" ")));
        assert!(said.contains("Joined as acme/device-1"), "{said}");
        let configuration = self.world.device.read(device::CONFIGURATION);
        self.world.device.write(device::CONFIGURATION, &format!("{settings}{configuration}"));
        self.run("systemctl start patchwarden-agent");
    }

    /// Waits until the agent that systemd has started then has a session.
    pub(super) async fn restart_the_service(&self) {
        self.run("systemctl stop patchwarden-agent");
        self.world.gateway.forget_session();
        self.run("systemctl start patchwarden-agent");
        self.world.gateway.connected().await;
    }

    /// What the agent has told systemd's journal.
    pub(super) fn log(&self) -> String {
        self.say("journalctl --no-pager --output=cat --unit=patchwarden-agent.service")
    }

    /// The control group of each process with this name.
    pub(super) fn groups_of(&self, process: &str) -> Vec<String> {
        let script = format!(
            "for comm in /proc/[0-9]*/comm; do \
               [ \"$(cat $comm 2>/dev/null)\" != {process} ] || grep -h name=systemd: ${{comm%/comm}}/cgroup || grep -h ^0:: ${{comm%/comm}}/cgroup; \
             done"
        );
        let lines = self.run(&script);
        lines.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(str::to_owned).collect()
    }

    /// Ends the machine: with its first process everything on it ends, and then what has started it. One that is only about to start has
    /// no first process yet.
    fn end(&mut self, time: Duration) -> Option<ExitStatus> {
        let until = std::time::Instant::now() + time;
        loop {
            if let Some(status) = self.starter.try_wait().unwrap() {
                return Some(status);
            }
            if std::time::Instant::now() >= until {
                return None;
            }
            if let Some(first) = self.first_process() {
                device::kill(first);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log on the machine:\n{}", self.log());
            let console = self.world.device.root.parent().unwrap().join("console");
            eprintln!("the machine's console:\n{}", fs::read_to_string(console).unwrap_or_default());
        }
        if self.end(Duration::from_secs(30)).is_none() {
            eprintln!("the machine {} does not end", self.name);
            device::kill(self.starter.id());
            let _ = self.starter.wait();
        }
        for hierarchy in HIERARCHIES {
            let group = PathBuf::from(hierarchy).join(&self.name);
            let _ = Command::new("find")
                .arg(&group)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"])
                .stderr(Stdio::null())
                .status();
        }
    }
}
