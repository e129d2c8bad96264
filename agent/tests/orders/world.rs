//! A joined device and its gateway.

use std::time::Duration;

use patchwarden_protocol::order::{Action, Verb};
use patchwarden_protocol::report::{Removable, Report, Update};
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason};

use crate::device::{self, Device, Package, Running, SLOW, Served};
use crate::gateway::{Gateway, action};

fn installed() -> Vec<Package> {
    let mut packages: Vec<Package> = ["pw-a", "pw-b", "pw-slow", "pw-bad", "pw-needs", "pw-greedy", "pw-victim"]
        .map(|name| Package::new(name, "1.0"))
        .into();
    packages.push(Package { control: "Source: pw-pair (1:1.0)\n", ..Package::new("pw-pair-1", "1:1.0") });
    packages.push(Package { control: "Source: pw-pair (1:1.0)\n", ..Package::new("pw-pair-2", "1:1.0") });
    packages
}

fn offered() -> Vec<Package> {
    vec![
        Package { kilobytes: 200, ..Package::new("pw-a", "2.0") },
        Package::new("pw-b", "2.0"),
        Package { postinst: SLOW, ..Package::new("pw-slow", "2.0") },
        Package { postinst: "echo sad >&2; exit 3", ..Package::new("pw-bad", "2.0") },
        Package { control: "Depends: pw-new\n", ..Package::new("pw-needs", "2.0") },
        Package::new("pw-new", "1.0"),
        Package { control: "Conflicts: pw-victim\n", ..Package::new("pw-greedy", "2.0") },
        Package { control: "Source: pw-pair (1:2.0+x)\n", ..Package::new("pw-pair-1", "1:2.0+x") },
        Package { control: "Source: pw-pair (1:2.0+x)\n", ..Package::new("pw-pair-2", "1:2.0+x") },
    ]
}

pub(crate) struct World {
    pub(crate) device: Device,
    pub(crate) gateway: Gateway,
}

impl World {
    /// A joined device whose agent does not run yet.
    pub(crate) async fn new() -> Self {
        Self::of(&installed(), &offered()).await
    }

    /// The same with these packages.
    pub(crate) async fn of(installed: &[Package], offered: &[Package]) -> Self {
        let device = Device::new(&device::base_root(), installed, offered);
        let gateway = Gateway::start().await;
        let world = Self { device, gateway };
        let joined = world.join().await;
        assert!(joined.starts_with("Joined as acme/device-1, key SHA256:"), "{joined}");
        world
    }

    pub(crate) async fn join(&self) -> String {
        let arguments = self.gateway.join_arguments();
        let mut command = self.device.agent(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    pub(crate) async fn run(&self) -> (Running, Report) {
        let running = self.device.start();
        let report = self.gateway.report(|report| report.counts.updates > 0).await;
        (running, report)
    }

    pub(crate) async fn order(&self, number: u32, report: &Report, names: &[&str]) {
        let updates: Vec<&Update> = names.iter().map(|name| update(report, name)).collect();
        let order = self.gateway.order(number, report, &updates);
        self.gateway.send(&self.gateway.sign(&order)).await;
    }

    /// The same, and its result.
    pub(crate) async fn order_of(&self, number: u32, report: &Report, names: &[&str]) -> InstallResult {
        self.order(number, report, names).await;
        self.gateway.result(number).await
    }

    /// The repository comes over HTTP from now on.
    pub(crate) async fn serve(&self) -> Served {
        let served = device::serve(self.device.root.join("srv/repo")).await;
        self.device.use_repository(&format!("http://{}", served.address));
        served
    }

    /// Gives an order for these actions and waits for its result.
    pub(crate) async fn carry_out(&self, number: u32, actions: Vec<Action>) -> InstallResult {
        let report = self.report_after(number - 1).await;
        let order = self.gateway.order_of(number, &report, actions);
        self.gateway.send(&self.gateway.sign(&order)).await;
        self.gateway.result(number).await
    }

    /// Gives an order for these updates of the current report and waits for its result.
    pub(crate) async fn carry_out_all(&self, number: u32, verb: Verb, names: &[&str]) -> InstallResult {
        let report = self.report_after(number - 1).await;
        self.carry_out(number, names.iter().map(|name| action(verb, update(&report, name))).collect()).await
    }

    /// The report that the order of this number left behind; 0 is any with updates.
    pub(crate) async fn report_after(&self, number: u32) -> Report {
        self.gateway
            .report(|report| match report.last_sequence {
                Some(last) => last.number == number,
                None => number == 0 && report.counts.packages > 0,
            })
            .await
    }

    /// Starts the agent again, so that it scans. What the killed one has started has ended by then.
    pub(crate) async fn rescan(&self, running: &mut Running, is: impl Fn(&Report) -> bool) -> Report {
        running.kill();
        self.gateway.forget_session();
        self.gateway.until("its end", |_| self.device.processes().is_empty().then_some(())).await;
        *running = self.device.start();
        self.gateway.report(is).await
    }

    /// Kills the agent again and again until there is a result; how often. A life is at most so many milliseconds long, and a
    /// tenth more after each: on a slow machine it gets somewhere, too. What is slow goes on once an agent has died beside it.
    pub(crate) async fn kill_again_and_again(&self, running: &mut Running, longest: u64) -> u64 {
        let mut kills = 0;
        while self.gateway.results().is_empty() {
            let life = rand::random_range(20..longest + longest * kills / 10);
            tokio::time::sleep(Duration::from_millis(life)).await;
            running.kill();
            kills += 1;
            assert!(kills < 200, "{}", self.device.log());
            if self.device.has("var/log/slow.begun") {
                self.device.let_go();
            }
            *running = self.device.start();
        }
        kills
    }

    /// How often the agent has scanned.
    pub(crate) fn scans(&self) -> usize {
        self.device.log().matches("scanned: ").count()
    }

    pub(crate) fn at(&self, package: &str) -> String {
        self.device.version(package).trim_start_matches("install ok installed ").to_owned()
    }

    pub(crate) fn configured(&self, package: &str) -> Vec<String> {
        self.device.read(&format!("var/log/{package}.configured")).lines().map(str::to_owned).collect()
    }

    pub(crate) async fn until_on_device(&self, path: &str) {
        self.gateway.until(path, |_| self.device.has(path).then_some(())).await;
    }

    /// The agent removes the place of an order once its result is recorded, and no package manager runs.
    pub(crate) async fn until_cleaned_up(&self, sequence: &str) {
        let place = format!("var/lib/patchwarden/orders/{sequence}");
        self.gateway.until("no order directory", |_| (!self.device.has(&place)).then_some(())).await;
    }
}

pub(crate) fn update<'a>(report: &'a Report, name: &str) -> &'a Update {
    report
        .updates
        .iter()
        .find(|update| update.packages.iter().any(|package| package.name == name))
        .unwrap_or_else(|| panic!("no update of {name} in {report:#?}"))
}

pub(crate) fn removable<'a>(report: &'a Report, name: &str) -> Option<&'a Removable> {
    report.removable.iter().find(|entry| entry.packages.iter().any(|package| package.name == name))
}

pub(crate) type Summary = (Outcome, Option<ResultReason>, Vec<(bool, Option<ResultReason>)>);

pub(crate) fn summary(result: &InstallResult) -> Summary {
    let actions = result.actions.iter().map(|action| (action.done, action.reason)).collect();
    (result.outcome, result.reason, actions)
}
