//! The cluster, Patchwarden in it, namespaces and machines: what the tests work with. Everything goes through the same
//! commands that a person uses.

use std::cell::Cell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use patchwarden::api::DeviceInventory;
use serde_json::Value;

/// How long something may take that takes seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_mins(10);

/// The cluster of `hack/cluster run`, with Patchwarden installed.
pub struct World {
    cluster: String,
    state: PathBuf,
    tenants: std::sync::atomic::AtomicU32,
}

/// A namespace of a test's own. Deleted at its end.
pub struct Tenant<'w> {
    world: &'w World,
    /// Its name.
    pub name: String,
}

/// A machine of a test's own. Destroyed at its end.
pub struct Device<'w> {
    world: &'w World,
    /// Its name, also that of its DeviceInventory.
    pub name: String,
    paused: Cell<Option<String>>,
}

impl World {
    /// Installs Patchwarden in the cluster that `hack/cluster run` has started.
    pub fn start() -> Self {
        let world = Self::empty();
        world.vulnerabilities();
        world.hack("patchwarden", &["install", "--cluster", &world.cluster]);
        world
    }

    /// The cluster that `hack/cluster run` has started, without Patchwarden.
    pub fn empty() -> Self {
        let variable = |name: &str| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("{name} is not set: these tests are run by \"make cluster-tests\""))
        };
        let world = Self {
            cluster: variable("PATCHWARDEN_CLUSTER"),
            state: variable("PATCHWARDEN_STATE_DIR").into(),
            tenants: 0.into(),
        };
        variable("PATCHWARDEN_PROGRAMS");
        world
    }

    /// Where the programs read what is known of vulnerabilities.
    pub fn vulnerabilities_directory(&self) -> PathBuf {
        self.state.join("vulnerabilities")
    }

    /// The recipes that the gateway hands out, from its next start on.
    pub fn recipes(&self) -> PathBuf {
        self.state.join("recipes.json")
    }

    /// What the cluster is called.
    pub fn name(&self) -> &str {
        &self.cluster
    }

    /// A new namespace.
    pub fn tenant(&self) -> Tenant<'_> {
        let number = self.tenants.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("client-{number}");
        self.kubectl(&["create", "namespace", &name]);
        Tenant { world: self, name }
    }

    /// A new machine that offers `repository` (a directory of `hack/repository`) and nothing else.
    pub fn device(&self, name: &str, repository: &str, options: &[&str]) -> Device<'_> {
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let agent = format!("{programs}/patchwarden-agent");
        let mut arguments = vec!["create", "--name", &self.cluster, name, "--binary", &agent];
        arguments.extend(["--repository", repository, "--no-security"]);
        arguments.extend(options);
        self.hack("devices", &arguments);
        Device { world: self, name: name.to_owned(), paused: Cell::new(None) }
    }

    /// A signed apt repository with these packages (see `hack/repository --help`), made anew.
    pub fn repository(&self, name: &str, packages: &[&str]) -> String {
        let directory = self.state.join("repositories").join(name).to_string_lossy().into_owned();
        let mut arguments = vec![directory.as_str()];
        arguments.extend(packages);
        self.hack("repository", &arguments);
        directory
    }

    /// A program in the network of the cluster, to which arguments may be added.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new(format!("{}/hack/cluster", env!("CARGO_MANIFEST_DIR")));
        command.args(["exec", "--name", &self.cluster, "--", program]);
        command
    }

    /// Runs `hack/cluster` for this cluster.
    pub fn cluster(&self, command: &str, arguments: &[&str]) -> String {
        self.hack("cluster", &[&[command, "--name", &self.cluster], arguments].concat())
    }

    /// Stops the controller or the gateway, and starts it with more in its environment.
    pub fn restart_with(&self, program: &str, environment: &[(&str, String)]) {
        self.program("stop", program);
        let hack = format!("{}/hack/patchwarden", env!("CARGO_MANIFEST_DIR"));
        let arguments = ["start", "--cluster", &self.cluster, program];
        let mut command = Command::new(&hack);
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        succeeded(&hack, &arguments, &command.output().expect("hack/"));
    }

    /// Starts, stops or kills (-9) the controller or the gateway.
    pub fn program(&self, what: &str, program: &str) -> String {
        self.hack("patchwarden", &[what, "--cluster", &self.cluster, program])
    }

    /// The process of the controller or the gateway, on the host.
    pub fn pid(&self, program: &str) -> String {
        let file = self.state.join("programs").join(format!("{program}.pid"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.split_whitespace().next().expect("a process and when it began").to_owned()
    }

    /// Runs kubectl; what it prints. Panics if it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded("kubectl", arguments, &Command::new("kubectl").args(arguments).output().expect("kubectl"))
    }

    /// Runs kubectl; what it prints on standard error if it fails.
    pub fn kubectl_fails(&self, arguments: &[&str], input: &str) -> String {
        let output = with_input(Command::new("kubectl").args(arguments), input);
        assert!(!output.status.success(), "kubectl {arguments:?} was accepted:\n{input}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs kubectl with something on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        succeeded("kubectl", arguments, &with_input(Command::new("kubectl").args(arguments), input))
    }

    /// Runs kubectl; what it prints, whether it fails or not.
    pub fn kubectl_fails_quietly(&self, arguments: &[&str]) -> String {
        let output = Command::new("kubectl").args(arguments).output().expect("kubectl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the kubectl plugin.
    pub fn run_plugin(&self, arguments: &[&str]) -> Output {
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        with_input(Command::new(format!("{programs}/kubectl-patchwarden")).args(arguments), "")
    }

    /// The join command of a new token whose machines are accepted at once.
    pub fn enroll(&self, tenant: &str, options: &[&str]) -> String {
        self.enroll_at(&format!("{}:8443", self.gateway_address()), tenant, options)
    }

    /// The same, for machines that a person has to accept.
    pub fn enroll_pending(&self, tenant: &str) -> String {
        self.enroll_with(&format!("{}:8443", self.gateway_address()), tenant, &[])
    }

    /// The same, for machines that reach the gateway elsewhere.
    pub fn enroll_at(&self, gateway: &str, tenant: &str, options: &[&str]) -> String {
        self.enroll_with(gateway, tenant, &[&["--accept"], options].concat())
    }

    fn enroll_with(&self, gateway: &str, tenant: &str, options: &[&str]) -> String {
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let program = format!("{programs}/kubectl-patchwarden");
        let mut arguments = vec!["enroll", "--namespace", tenant, "--gateway", gateway];
        arguments.extend(options);
        succeeded(&program, &arguments, &Command::new(&program).args(&arguments).output().expect("kubectl-patchwarden"))
    }

    /// When the token of a join command ends.
    pub fn token_expires(&self, command: &str) -> jiff::Timestamp {
        let token = command.split_whitespace().skip_while(|word| *word != "--token").nth(1).expect("a token");
        let map = format!("join-token-{}", token.split_once('.').expect("<id>.<secret>").0);
        let expires = ["get", "configmap", "-n", "patchwarden-system", &map, "-o", "jsonpath={.data.expires}"];
        self.kubectl(&expires).parse().expect("RFC 3339")
    }

    /// The gateway's database.
    pub fn database(&self) -> PathBuf {
        self.state.join("programs/gateway.db")
    }

    /// Where the gateway listens, for machines and for those who ask its API.
    pub fn gateway_address(&self) -> String {
        self.variable("DEVICE_GATEWAY_ADDRESS")
    }

    /// What the API server signs the tokens of ServiceAccounts with.
    pub fn service_account_key(&self) -> PathBuf {
        self.state.join("pki/service-account.key")
    }

    /// A sample of the controller's or the gateway's metrics: 0 where it is not there.
    pub fn metric(&self, program: &str, sample: &str) -> f64 {
        let text = self.program("metrics", program);
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == sample));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or_default()
    }

    /// Where the cluster keeps its files.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A variable of the cluster's `env`.
    pub fn variable(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.state.join("env")).expect("the cluster's env");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{name} is not in the cluster's env")).to_owned()
    }

    /// Runs one of the commands in `hack/`.
    pub fn hack(&self, command: &str, arguments: &[&str]) -> String {
        let program = format!("{}/hack/{command}", env!("CARGO_MANIFEST_DIR"));
        succeeded(&program, arguments, &Command::new(&program).args(arguments).output().expect("hack/"))
    }

    /// What the API server has recorded: one JSON object a request.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.state.join("audit.log")).expect("the audit log");
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The ends of the programs' logs, for a test that failed.
    pub fn show_logs(&self) {
        for program in ["controller", "controller-2", "gateway"] {
            let path = self.state.join("programs").join(format!("{program}.pid.log"));
            // Of a release of the chart it is a pod's.
            let pods = ["logs", "-n", "patchwarden-system", "--prefix", "--tail=60", "-l"];
            let label = format!("app.kubernetes.io/name=patchwarden-{program}");
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|_| self.kubectl_fails_quietly(&[&pods[..], &[&label]].concat()));
            let lines: Vec<_> = text.lines().collect();
            eprintln!("--- {program}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

impl Tenant<'_> {
    /// Applies YAML in this namespace.
    pub fn apply(&self, yaml: &str) -> String {
        let arguments = ["apply", "-n", &self.name, "-f", "-"];
        succeeded("kubectl apply", &[yaml], &with_input(Command::new("kubectl").args(arguments), yaml))
    }

    /// Objects of a kind, or one object.
    pub fn get(&self, what: &[&str]) -> Value {
        let arguments = [&["get", "-n", &self.name, "-o", "json"], what].concat();
        serde_json::from_str(&self.world.kubectl(&arguments)).expect("kubectl prints JSON")
    }

    /// The same in the network of the cluster, where the gateway's address leads to the gateway whatever the host makes of it.
    pub fn plugin_inside(&self, arguments: &[&str]) -> Output {
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let mut command = self.world.inside(&format!("{programs}/kubectl-patchwarden"));
        with_input(command.args(arguments).args(["--namespace", &self.name]), "")
    }

    /// A device's record.
    pub fn device(&self, name: &str) -> DeviceInventory {
        serde_json::from_value(self.get(&["devinv", name])).expect("a DeviceInventory")
    }

    /// A group that approves what comes from the test repositories, an open window, and a policy that installs in it.
    pub fn install_everything(&self) {
        self.apply(OPEN_WINDOW);
        self.apply(POLICY);
        self.apply(APPROVE_SECURITY);
    }

    /// Joins a machine to this namespace, its key accepted at once.
    pub fn join(&self, device: &Device<'_>) {
        let cluster = &self.world.cluster;
        self.world.hack("patchwarden", &["join", "--cluster", cluster, &device.name, &self.name]);
    }

    /// Runs the kubectl plugin in this namespace.
    pub fn plugin(&self, arguments: &[&str], input: &str) -> Output {
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let mut command = Command::new(format!("{programs}/kubectl-patchwarden"));
        with_input(command.args(arguments).args(["--namespace", &self.name]), input)
    }

    /// Labels a device's record: `app=db tier=back`.
    pub fn label(&self, device: &str, labels: &str) {
        let arguments = ["label", "-n", &self.name, "devinv", device].into_iter().chain(labels.split(' '));
        self.world.kubectl(&arguments.collect::<Vec<_>>());
    }

    /// Waits until the device's record is as it should be, and returns it.
    pub fn wait_for(&self, device: &str, what: &str, holds: impl Fn(&DeviceInventory) -> bool) -> DeviceInventory {
        let mut last = None;
        eventually(&format!("{}/{device}: {what}", self.name), || {
            let exists = ["get", "-n", &self.name, "devinv", device, "--ignore-not-found", "-o", "name"];
            if self.world.kubectl(&exists).is_empty() {
                return None;
            }
            let found = self.device(device);
            let matches = holds(&found);
            last = Some(found.clone());
            matches.then_some(found)
        })
        .unwrap_or_else(|why| panic!("{why}; it is {}", serde_json::to_string_pretty(&last).unwrap_or_default()))
    }

    /// Install Jobs of this namespace.
    pub fn jobs(&self) -> Vec<Value> {
        let list = self.get(&["jobs", "-l", "patchwarden.io/install=true"]);
        list["items"].as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Tenant<'_> {
    fn drop(&mut self) {
        // A test that fails leaves its objects to be looked at; the cluster ends soon.
        if !std::thread::panicking() {
            self.world.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}

impl Device<'_> {
    /// Runs a command on the machine; what it prints.
    pub fn run(&self, command: &[&str]) -> String {
        let arguments = [&["exec", "--name", &self.world.cluster, &self.name, "--"], command].concat();
        self.world.hack("devices", &arguments)
    }

    /// Runs a command on the machine that must fail; what it prints.
    pub fn run_fails(&self, command: &[&str]) -> String {
        let arguments = [&["exec", "--name", &self.world.cluster, &self.name, "--"], command].concat();
        let program = format!("{}/hack/devices", env!("CARGO_MANIFEST_DIR"));
        let output = Command::new(program).args(&arguments).output().expect("hack/devices");
        assert!(!output.status.success(), "{command:?} succeeded on {}", self.name);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// Installs packages, as an administrator would have long ago.
    pub fn install(&self, packages: &[&str]) {
        self.run(&["apt-get", "-qq", "update"]);
        self.run(&[&["apt-get", "-qq", "-y", "install"], packages].concat());
    }

    /// The installed version of a package, by dpkg.
    pub fn version(&self, package: &str) -> String {
        self.run(&["dpkg-query", "-W", "-f", "${Version}", package])
    }

    /// Every installed package and its version, by dpkg.
    pub fn packages(&self) -> String {
        self.run(&["dpkg-query", "-W", "-f", "${Package} ${Version} ${Status}\n"])
    }

    /// How often dpkg unpacked this package from one version to another, by its own log.
    pub fn upgrades(&self, package: &str) -> usize {
        let log = self.run(&["sh", "-c", "cat /var/log/dpkg.log"]);
        log.lines().filter(|line| line.contains(&format!(" upgrade {package}:"))).count()
    }

    /// The agent's process, on the host.
    pub fn agent_pid(&self) -> String {
        let pid = self.world.hack("devices", &["agent-pid", "--name", &self.world.cluster, &self.name]);
        pid.trim().to_owned()
    }

    /// kill -9 of the agent; the machine's init starts it again.
    pub fn kill_agent(&self) {
        signal("-KILL", &self.agent_pid());
    }

    /// What the agent has logged; nothing before it has started for the first time.
    pub fn log(&self) -> String {
        let log = "/var/log/patchwarden-agent.log";
        self.run(&["sh", "-c", &format!("! test -e {log} || cat {log}")])
    }

    /// What the agent has logged since it was killed last.
    pub fn log_since_kill(&self) -> Option<String> {
        self.log().rsplit_once("the agent ended with code 137").map(|(_, since)| since.to_owned())
    }

    /// Packages that wait for [`MAY_GO`] go on.
    pub fn let_go(&self) {
        self.run(&["touch", MAY_GO]);
    }

    /// Stops the agent in its tracks (SIGSTOP) until [`Device::resume_agent`].
    pub fn pause_agent(&self) {
        let pid = self.agent_pid();
        signal("-STOP", &pid);
        self.paused.set(Some(pid));
    }

    /// Lets a paused agent go on.
    pub fn resume_agent(&self) {
        if let Some(pid) = self.paused.take() {
            signal("-CONT", &pid);
        }
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.world.hack("devices", &["destroy", "--name", &self.world.cluster, &self.name]);
        }
    }
}

/// Waits until `holds` gives something; says what it waited for if that never comes.
pub fn eventually<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        if let Some(found) = holds() {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("waited {} s in vain for {what}", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What the configuration of a package waits for (`postinst-waits`).
pub const MAY_GO: &str = "/run/may-go";

/// Always open.
pub const OPEN_WINDOW: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: MaintenanceWindow
metadata: {name: anytime}
spec: {timeZone: UTC, schedules: [{daily: {at: '00:00'}}], duration: 48h}
";

/// Installs in `anytime`, all at once.
pub const POLICY: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: everything}
spec: {mode: Install, windows: [anytime], rollout: {maxConcurrent: 100%}}
";

/// Approves security updates for everybody.
pub const APPROVE_SECURITY: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: everybody}
spec:
  members: {selector: {}}
  rules: [{name: security, match: {classifications: [Security]}, action: Approve}]
  minArtifactAge: 0m
";

/// Sends a process a signal.
pub fn signal(signal: &str, pid: &str) {
    let output = Command::new("kill").args([signal, pid]).output().expect("kill");
    succeeded("kill", &[signal, pid], &output);
}

/// Runs a command with something on its standard input.
pub fn with_input(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the command reads its input");
    child.wait_with_output().expect("the command ends")
}

/// What a command has printed. Panics if it has failed.
pub fn succeeded(program: &str, arguments: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "{program} {}: {}\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
