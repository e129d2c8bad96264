//! A device to test on: an overlay over a Debian root (`PATCHWARDEN_DEVICE_ROOT`, made by debootstrap) with a small apt
//! repository of its own. Needs root.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

/// The agent under test: this build's, or another one (a release build, to measure it).
pub(crate) fn agent_binary() -> PathBuf {
    std::env::var_os("PATCHWARDEN_AGENT").map_or_else(|| env!("CARGO_BIN_EXE_patchwarden-agent").into(), PathBuf::from)
}

/// The root to build on.
pub(crate) fn base_root() -> PathBuf {
    std::env::var_os("PATCHWARDEN_DEVICE_ROOT")
        .expect("PATCHWARDEN_DEVICE_ROOT names a Debian root file system: these tests are run by \"make agent-tests\"")
        .into()
}

/// One package of the repository.
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) control: &'static str,
    pub(crate) preinst: &'static str,
    pub(crate) postinst: &'static str,
    pub(crate) kilobytes: usize,
    /// Whether it has a configuration file `/etc/NAME.conf`, which holds the version.
    pub(crate) conffile: bool,
    /// A file more, empty.
    pub(crate) file: &'static str,
    /// A shared library, made of its version; none where it is empty.
    pub(crate) library: &'static str,
}

impl Package {
    pub(crate) const fn new(name: &'static str, version: &'static str) -> Self {
        Self {
            name,
            version,
            control: "",
            preinst: "",
            postinst: "",
            kilobytes: 1,
            conffile: false,
            file: "",
            library: "",
        }
    }
}

/// A package's script that ends once [`Device::let_go`] was called.
pub(crate) const SLOW: &str =
    "touch /var/log/slow.begun; while [ ! -e /srv/go ]; do sleep 0.1; done; touch /var/log/slow.done";

/// The suite of the device's repository: apt takes what comes from it for security updates.
const SECURITY: &str = "stable-security";

/// What [`Device::own_boot`] mounts.
const BOOT_ID: &str = "var/lib/boot_id";

/// The device's /proc/stat.
const STAT: &str = "var/lib/stat";

pub(crate) const CONFIGURATION: &str = "etc/patchwarden/agent.toml";

/// A mounted device. Unmounted, and its processes ended, when dropped.
pub(crate) struct Device {
    place: tempfile::TempDir,
    pub(crate) root: PathBuf,
}

impl Device {
    /// With the sources of packages that the root has.
    pub(crate) fn bare(base: &Path) -> Self {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = place.path().join("root");
        for name in ["upper", "work", "root"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            base.display(),
            place.path().join("upper").display(),
            place.path().join("work").display()
        );
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&root));
        let device = Self { place, root };
        run(Command::new("mount").args(["--bind", "/proc"]).arg(device.root.join("proc")));
        run(Command::new("mount").args(["--bind", "/dev"]).arg(device.root.join("dev")));
        // Private first: what is mounted here must not show in the host's own /proc.
        run(Command::new("mount").arg("--make-private").arg(device.root.join("proc")));
        // The root may have been made after the host's start.
        device.start_now();
        device.own_proc("stat", STAT);
        fs::copy(agent_binary(), device.root.join("usr/bin/patchwarden-agent")).unwrap();
        device
    }

    /// `installed` are there, `offered` lie in the repository, which is offered as `file:`.
    pub(crate) fn new(base: &Path, installed: &[Package], offered: &[Package]) -> Self {
        let device = Self::bare(base);
        let sources = device.root.join("etc/apt/sources.list.d");
        for entry in fs::read_dir(&sources).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        device.offer(installed);
        device.use_repository("file:/srv/repo");
        device.chroot("apt-get -q update");
        let names: Vec<String> = installed.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
        device.chroot(&format!("apt-get -q -y install {}", names.join(" ")));
        device.offer(offered);
        device
    }

    pub(crate) fn use_repository(&self, uri: &str) {
        self.use_source(&format!("[trusted=yes] {uri}"));
    }

    /// The same with the options of sources.list(5) before it, or none.
    pub(crate) fn use_source(&self, source: &str) {
        self.write("etc/apt/sources.list", &format!("deb {source} {SECURITY} main\n"));
    }

    /// Adds packages to the repository.
    pub(crate) fn offer(&self, packages: &[Package]) {
        self.offer_from("srv/repo", "Test", packages);
    }

    /// Adds packages to the repository in this directory, which calls itself `origin`.
    pub(crate) fn offer_from(&self, repository: &str, origin: &str, packages: &[Package]) {
        self.offer_in(repository, origin, SECURITY, packages);
    }

    /// The same in another suite.
    pub(crate) fn offer_in(&self, repository: &str, origin: &str, suite: &str, packages: &[Package]) {
        let repository = self.root.join(repository);
        for package in packages {
            build(package, &repository.join("pool"));
        }
        let pool = repository.join("pool");
        let mut index = String::new();
        let mut files: Vec<PathBuf> = fs::read_dir(&pool).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files {
            let fields = stdout(Command::new("dpkg-deb").arg("--field").arg(&file));
            let bytes = fs::read(&file).unwrap();
            let name = file.file_name().unwrap().to_str().unwrap();
            let size = bytes.len();
            let sha256 = hex(&Sha256::digest(&bytes));
            write!(index, "{fields}Filename: pool/{name}\nSize: {size}\nSHA256: {sha256}\n\n").unwrap();
        }
        let place = repository.join("dists").join(suite);
        fs::create_dir_all(place.join("main/binary-amd64")).unwrap();
        fs::write(place.join("main/binary-amd64/Packages"), &index).unwrap();
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S UTC");
        let release = format!(
            "Origin: {origin}\nLabel: {origin}\nDate: {date}\nSuite: {suite}\nCodename: {suite}\nVersion: 1\nArchitectures: amd64\n\
             Components: main\nSHA256:\n {} {} main/binary-amd64/Packages\n",
            hex(&Sha256::digest(index.as_bytes())),
            index.len()
        );
        fs::write(place.join("Release"), release).unwrap();
    }

    /// Runs a shell command on the device.
    pub(crate) fn chroot(&self, script: &str) -> String {
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(["/bin/sh", "-c", script]);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        stdout(&mut command)
    }

    /// A command of the agent on the device.
    pub(crate) fn agent(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .arg("/usr/bin/patchwarden-agent")
            .args(arguments)
            .env("PATCHWARDEN_LOG", "debug,h2=info,hyper=info");
        command
    }

    /// Starts `run`; its log is `/agent.log`.
    pub(crate) fn start(&self) -> Running {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("agent.log")).unwrap();
        let child = self.agent(&["run"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Running(child)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.join("agent.log")).unwrap_or_default()
    }

    pub(crate) fn version(&self, package: &str) -> String {
        self.chroot(&format!("dpkg-query -W -f '${{Status}} ${{Version}}' {package} 2>/dev/null || true"))
    }

    /// Whether a file of the device exists.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.root.join(path.trim_start_matches('/')).exists()
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        fs::write(self.root.join(path.trim_start_matches('/')), content).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path.trim_start_matches('/'))).unwrap_or_default()
    }

    /// [`SLOW`] goes on, now and whenever it runs from now on.
    pub(crate) fn let_go(&self) {
        self.write("srv/go", "");
    }

    /// Makes the state directory a file system of its own of this size.
    pub(crate) fn shrink_state(&self, size: &str) {
        let state = self.root.join("var/lib/patchwarden");
        let aside = self.place.path().join("state");
        run(Command::new("cp").arg("-a").arg(&state).arg(&aside));
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size},mode=711"), "tmpfs"]).arg(&state));
        run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(&state));
    }

    /// From now on the device's boot has an id of its own, which [`Self::boot_again`] changes. What is installed from now on
    /// is later than the start: both are told to the second.
    pub(crate) fn own_boot(&self) {
        self.boot_again();
        self.own_proc("sys/kernel/random/boot_id", BOOT_ID);
        let started = jiff::Timestamp::now().as_second();
        while jiff::Timestamp::now().as_second() <= started {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// From now on this file of /proc is that one of the device.
    pub(crate) fn own_proc(&self, place: &str, file: &str) {
        run(Command::new("mount").arg("--bind").arg(self.root.join(file)).arg(self.root.join("proc").join(place)));
    }

    /// What a restart changes that outlasts it.
    pub(crate) fn boot_again(&self) {
        self.write(BOOT_ID, &fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap());
        self.start_now();
    }

    /// The device has been started at this second.
    fn start_now(&self) {
        self.started_at(jiff::Timestamp::now());
    }

    /// The device was started before anything was installed on it.
    pub(crate) fn started_long_ago(&self) {
        self.started_at(jiff::Timestamp::from_second(1_000_000_000).unwrap());
    }

    fn started_at(&self, time: jiff::Timestamp) {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let (before, after) = stat.split_once("btime ").unwrap();
        let (_, after) = after.split_once('\n').unwrap();
        self.write(STAT, &format!("{before}btime {}\n{after}", time.as_second()));
    }

    /// The device is restarted by this script, which has a function `restart`: another boot, nothing in /run, and the
    /// agent is dead. Each call is a line of /var/log/restarts.
    pub(crate) fn restart_by(&self, script: &str) {
        let functions = format!(
            "#!/bin/sh\ndie() {{ grep -q ^patchwarden /proc/$PPID/comm && kill -9 $PPID; }}\n\
             boot() {{ stat=$(sed \"s/^btime .*/btime $(date +%s)/\" /{STAT}); echo \"$stat\" >/{STAT}; }}\n\
             restart() {{ rm -f /run/reboot-required /run/reboot-needed; boot; cat /proc/sys/kernel/random/uuid >/{BOOT_ID}; die; }}\n\
             echo called >>/var/log/restarts\n{script}\n"
        );
        self.write("usr/local/sbin/pw-restart", &functions);
        self.chroot("chmod 755 /usr/local/sbin/pw-restart");
        let configuration = self.read(CONFIGURATION);
        if !configuration.contains("restart_command") {
            self.write(CONFIGURATION, &format!("restart_command = ['pw-restart', 'now']\n{configuration}"));
        }
    }

    /// Processes whose root is the device.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            if fs::read_link(entry.path().join("root")).is_ok_and(|root| root == self.root) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// As if the plug were pulled: every process of the device dies. Afterwards none holds a lock any more: a killed process
    /// leaves some time after the signal.
    pub(crate) fn pull_the_plug(&self) {
        for _ in 0..3000 {
            let alive = self.processes();
            if alive.is_empty() {
                return;
            }
            for (pid, _) in alive {
                kill(pid);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
        self.pull_the_plug();
        for name in ["var/lib/patchwarden", "proc", "dev", ""] {
            let _ = Command::new("umount").arg("-l").arg(self.root.join(name)).stderr(Stdio::null()).status();
        }
    }
}

/// A running agent, killed when dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to stop, as systemd does, and says whether it has within this time.
    pub(crate) async fn stops_within(&mut self, time: Duration) -> bool {
        let pid = rustix::process::Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let until = tokio::time::Instant::now() + time;
        while self.0.try_wait().unwrap().is_none() {
            if tokio::time::Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that was ever resident, in KiB.
    pub(crate) fn most_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Clock ticks that it has used.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// How often its threads have gone to sleep within this time; those that end meanwhile do not count.
    pub(crate) async fn naps(&self, time: Duration) -> u64 {
        let nap = |task: std::io::Result<fs::DirEntry>| -> Option<(PathBuf, u64)> {
            let path = task.ok()?.path();
            let status = fs::read_to_string(path.join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            Some((path, line.trim().parse().unwrap()))
        };
        let tasks = || -> BTreeMap<PathBuf, u64> {
            fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().filter_map(nap).collect()
        };
        let before = tasks();
        tokio::time::sleep(time).await;
        tasks().into_iter().map(|(path, naps)| naps - before.get(&path).copied().unwrap_or_default()).sum()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn build(package: &Package, pool: &Path) {
    let Package { name, version, control, preinst, postinst, kilobytes, conffile, file, library } = package;
    let tree = tempfile::tempdir().unwrap();
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let debian = tree.path().join("DEBIAN");
    let share = tree.path().join(format!("usr/share/{name}"));
    fs::create_dir_all(&debian).unwrap();
    fs::create_dir_all(&share).unwrap();
    fs::write(share.join("version"), version).unwrap();
    if *conffile {
        fs::create_dir(tree.path().join("etc")).unwrap();
        fs::write(tree.path().join(format!("etc/{name}.conf")), version).unwrap();
        fs::write(debian.join("conffiles"), format!("/etc/{name}.conf\n")).unwrap();
    }
    if !file.is_empty() {
        let path = tree.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    if !library.is_empty() {
        let path = tree.path().join(library);
        let source = tree.path().join("source.c");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&source, format!("const char *pw_version(void) {{ return \"{version}\"; }}\n")).unwrap();
        run(Command::new("cc").args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(&path).arg(&source));
        fs::remove_file(&source).unwrap();
    }
    let noise: Vec<u8> = (0..kilobytes * 1024).map(|_| rand::random()).collect();
    fs::write(share.join("data"), noise).unwrap();
    let text = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nInstalled-Size: {kilobytes}\n\
         Maintainer: Test <test@example.invalid>\nDescription: test\n{control}"
    );
    fs::write(debian.join("control"), text).unwrap();
    let noted = format!("echo {version} >>/var/log/{name}.configured\n{postinst}");
    for (script, body) in [("preinst", *preinst), ("postinst", &noted)].into_iter().filter(|(_, body)| !body.is_empty())
    {
        fs::write(debian.join(script), format!("#!/bin/sh\nset -e\n{body}\n")).unwrap();
        fs::set_permissions(debian.join(script), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::create_dir_all(pool).unwrap();
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Zgzip", "--build"]).arg(tree.path()).arg(pool));
}

pub(crate) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

pub(crate) fn run(command: &mut Command) {
    stdout(command);
}

pub(crate) fn stdout(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{text}\n{}", String::from_utf8_lossy(&stderr));
    text
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A directory served over HTTP/1.0.
pub(crate) struct Served {
    pub(crate) address: std::net::SocketAddr,
    faults: Arc<Mutex<Faults>>,
}

#[derive(Default)]
struct Faults {
    spoiled: Vec<String>,
    gone: Vec<String>,
    stalled: Vec<String>,
    requests: Vec<String>,
}

impl Served {
    /// From now on this file's last byte is another one.
    pub(crate) fn spoil(&self, path: &str) {
        self.faults.lock().unwrap().spoiled.push(path.to_owned());
    }

    /// From now on nothing below this directory is there.
    pub(crate) fn hide(&self, directory: &str) {
        self.faults.lock().unwrap().gone.push(format!("{directory}/"));
    }

    /// From now on only a part of this file comes, until all faults are mended.
    pub(crate) fn stall(&self, path: &str) {
        self.faults.lock().unwrap().stalled.push(path.to_owned());
    }

    pub(crate) fn mend(&self) {
        let mut faults = self.faults.lock().unwrap();
        *faults = Faults { requests: std::mem::take(&mut faults.requests), ..Faults::default() };
    }

    /// How often this file was asked for.
    pub(crate) fn requests(&self, path: &str) -> usize {
        self.faults.lock().unwrap().requests.iter().filter(|request| *request == path).count()
    }
}

pub(crate) async fn serve(directory: PathBuf) -> Served {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let faults: Arc<Mutex<Faults>> = Arc::default();
    let shared = faults.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, directory.clone(), shared.clone()));
        }
    });
    Served { address, faults }
}

/// The same over TLS, with a certificate for `localhost` by an authority of its own, whose certificate comes back.
pub(crate) async fn serve_with_tls(directory: PathBuf) -> (Served, String) {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&key).unwrap();
    let issuer = Issuer::new(parameters, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let faults: Arc<Mutex<Faults>> = Arc::default();
    let shared = faults.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, directory, shared) = (acceptor.clone(), directory.clone(), shared.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream, directory, shared).await;
                }
            });
        }
    });
    (Served { address, faults }, authority.pem())
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, directory: PathBuf, faults: Arc<Mutex<Faults>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let target = text.split(' ').nth(1).unwrap_or_default();
    // A proxy is asked with the whole address (RFC 9112, 3.2.2): it has what any other server would.
    let path = target.strip_prefix("http://").map_or(target, |rest| rest.split_once('/').map_or("", |(_, path)| path));
    let path = path.trim_start_matches('/').replace("%2b", "+");
    let (is_spoiled, is_gone) = {
        let mut faults = faults.lock().unwrap();
        faults.requests.push(path.clone());
        (faults.spoiled.contains(&path), faults.gone.iter().any(|gone| path.starts_with(gone)))
    };
    let answer = match fs::read(directory.join(&path)) {
        Ok(mut bytes) if !is_gone => {
            if let Some(last) = bytes.last_mut().filter(|_| is_spoiled) {
                *last ^= 1;
            }
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
            [head.into_bytes(), bytes].concat()
        }
        _ => b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    };
    let (first, rest) = answer.split_at(answer.len() / 2);
    let _ = stream.write_all(first).await;
    while faults.lock().unwrap().stalled.contains(&path) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = stream.write_all(rest).await;
    let _ = stream.shutdown().await;
}
