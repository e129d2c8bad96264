//! A Windows machine: a Wine prefix with the agent in it, and a stand-in for PowerShell.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Debian's.
const WINE: &str = "/usr/lib/wine/wine64";

/// What its programs have in common: not every package of Wine puts it where programs are looked for.
const SERVER: &str = "/usr/lib/wine/wineserver";

/// Where `make windows-tests` has put the programs for Windows.
fn programs() -> PathBuf {
    std::env::var_os("PATCHWARDEN_WINDOWS").expect("PATCHWARDEN_WINDOWS: make windows-tests sets it").into()
}

pub(crate) struct Machine {
    place: tempfile::TempDir,
}

/// An agent that runs; it dies with this.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Self { place: tempfile::tempdir().unwrap() };
        let mut boot = machine.wine(WINE);
        let status = boot.args(["wineboot", "--init"]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "wineboot: {status}");
        std::fs::create_dir_all(machine.powershell()).unwrap();
        std::fs::create_dir(machine.program().parent().unwrap()).unwrap();
        let random = programs().join("bcryptprimitives.dll");
        for directory in [machine.powershell(), machine.program().parent().unwrap().to_owned()] {
            std::fs::copy(&random, directory.join("bcryptprimitives.dll")).unwrap();
        }
        let stand_in = machine.powershell().join("powershell.exe");
        let _ = std::fs::remove_file(&stand_in);
        std::fs::copy(programs().join("examples/powershell.exe"), stand_in).unwrap();
        std::fs::copy(Machine::built(), machine.program()).unwrap();
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/windows/inventory.json");
        std::fs::copy(recorded, machine.powershell().join("inventory.json")).unwrap();
        machine.owned_by("BA");
        machine
    }

    fn wine(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("WINEPREFIX", self.place.path()).env("WINEDEBUG", "-all");
        // Neither .NET nor a browser is set up.
        command.env("WINEDLLOVERRIDES", "mscoree,mshtml=");
        command
    }

    fn drive(&self) -> PathBuf {
        self.place.path().join("drive_c")
    }

    /// The agent as it was built.
    pub(crate) fn built() -> PathBuf {
        programs().join("patchwarden-agent.exe")
    }

    /// Where the agent's program lies.
    pub(crate) fn program(&self) -> PathBuf {
        self.drive().join("Program Files/Patchwarden/patchwarden-agent.exe")
    }

    fn powershell(&self) -> PathBuf {
        self.drive().join("windows/system32/WindowsPowerShell/v1.0")
    }

    /// The agent with these arguments.
    pub(crate) fn agent(&self, arguments: &[&str]) -> Command {
        let mut command = self.wine(WINE);
        command.arg(self.program()).args(arguments).stdin(Stdio::null());
        command
    }

    /// What the agent prints.
    pub(crate) fn said(&self, arguments: &[&str]) -> String {
        let output = self.agent(arguments).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    pub(crate) fn start(&self) -> Running {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.place.path().join("log")).unwrap();
        let mut command = self.agent(&["run"]);
        Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }

    /// What a program of Windows prints, and whether it has ended well.
    pub(crate) fn windows(&self, words: &[&str]) -> (bool, String) {
        let output = self.wine(WINE).args(words).stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).replace('\r', ""))
    }

    /// Somebody who is logged in: without anybody Wine shuts the machine down. It starts only once it is down: a service control manager
    /// that is being shut down takes services, and forgets them. Returns once it has started: what starts it is inherited by all that
    /// it starts, pipes too.
    pub(crate) fn log_in(&self) -> Running {
        let status = self.wine(SERVER).arg("--wait").status().unwrap();
        assert!(status.success(), "wineserver: {status}");
        let mut command = self.wine(WINE);
        // Wine prints what is reported to the event log and keeps none.
        let events =
            std::fs::OpenOptions::new().create(true).append(true).open(self.place.path().join("events")).unwrap();
        command.env("WINEDEBUG", "-all,+eventlog").args(["cmd.exe", "/k"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(events);
        let mut child = command.spawn().unwrap();
        let mut first = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        Running(child)
    }

    /// What services have reported to the event log, as Wine prints it: `err:eventlog:ReportEventW L"text"`.
    pub(crate) fn events(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.place.path().join("events")).unwrap_or_default()).into_owned()
    }

    /// A file of the agent's state.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.drive().join("ProgramData/Patchwarden").join(name)
    }

    /// What PowerShell was asked, in order.
    pub(crate) fn questions(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.powershell().join("questions")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Whose all files are. Wine's `icacls` does nothing.
    pub(crate) fn owned_by(&self, owner: &str) {
        std::fs::write(self.powershell().join("sddl"), format!("O:{owner}G:SYD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"))
            .unwrap();
    }

    /// From now on an install takes so long.
    pub(crate) fn slow_down(&self, by: Duration) {
        std::fs::write(self.powershell().join("slow"), by.as_millis().to_string()).unwrap();
    }

    /// How often each update was installed.
    pub(crate) fn installs(&self) -> Vec<u64> {
        let state: Value =
            serde_json::from_slice(&std::fs::read(self.powershell().join("state.json")).unwrap()).unwrap();
        state["installs"].as_object().unwrap().values().map(|times| times.as_u64().unwrap()).collect()
    }

    /// Everything that runs ends at once.
    pub(crate) fn pull_the_plug(&self) {
        let status = self.wine(SERVER).arg("--kill").status().unwrap();
        assert!(status.success(), "wineserver: {status}");
    }

    /// Everything that runs ends, and what is volatile is gone. What waits for a restart is installed then.
    pub(crate) fn restart(&self, running: Running) {
        self.pull_the_plug();
        drop(running);
        let path = self.powershell().join("state.json");
        // Nothing may have been asked of it yet.
        let Ok(bytes) = std::fs::read(&path) else { return };
        let mut state: Value = serde_json::from_slice(&bytes).unwrap();
        let pending = state["pending"].take().as_array().unwrap().clone();
        state["pending"] = Value::Array(vec![]);
        state["installed"].as_array_mut().unwrap().extend(pending);
        std::fs::write(path, state.to_string()).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The server outlives its last program for a moment, and would write into a directory that is gone.
        let _ = self.wine(SERVER).arg("--kill").status();
        let _ = self.wine(SERVER).arg("--wait").status();
    }
}
