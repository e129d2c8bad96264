//! Machines of which the package manager alone is simulated (`examples/simulated-agents.rs`): many of them cost little.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use patchwarden::api::DeviceInventory;
use patchwarden_agent::simulation::LOG;

use crate::crash::compliance;
use crate::world::{Tenant, World, eventually};

/// Devices of this client.
pub fn devices(tenant: &Tenant<'_>) -> Vec<DeviceInventory> {
    serde_json::from_value(tenant.get(&["devinv"])["items"].take()).expect("DeviceInventories")
}

pub fn has_ended(device: &DeviceInventory) -> bool {
    let compliance = compliance(device);
    compliance.current.is_none() && !compliance.last.is_empty()
}

pub fn ended(tenant: &Tenant<'_>) -> usize {
    devices(tenant).iter().filter(|device| has_ended(device)).count()
}

/// Waits until so many devices are as they should be.
pub fn until(tenant: &Tenant<'_>, number: usize, what: &str, holds: impl Fn(&DeviceInventory) -> bool) {
    let mut last = Vec::new();
    eventually(&format!("{number} devices: each {what}"), || {
        last = devices(tenant);
        (last.iter().filter(|device| holds(device)).count() >= number).then_some(())
    })
    .unwrap_or_else(|why| {
        let others: Vec<_> = last.iter().filter(|device| !holds(device)).take(3).collect();
        panic!("{why}; {} are there, and not so: {}", last.len(), serde_json::to_string_pretty(&others).unwrap())
    });
}

/// The simulated agents, in a process of their own.
pub struct Simulated {
    pub names: Vec<String>,
    directory: PathBuf,
    process: Child,
}

impl Simulated {
    pub fn start(world: &World, tenant: &Tenant<'_>, number: usize) -> Self {
        let names: Vec<_> = (0..number).map(|n| format!("simulated-{n}")).collect();
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let directory = world.state().join("simulated").join(&tenant.name);
        let join = world.enroll(&tenant.name, &["--uses", &number.to_string()]);
        std::fs::create_dir_all(&directory).unwrap();
        let log = File::create(log_of(&directory)).unwrap();
        let mut command = world.inside(&format!("{programs}/examples/simulated-agents"));
        command.arg("--directory").arg(&directory).args(["--names", &names.join(","), "--join", join.trim()]);
        let process =
            command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { names, directory, process }
    }

    /// What a machine's package manager has written down.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.join(name).join(LOG)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(log_of(&self.directory)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- simulated agents\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

fn log_of(directory: &Path) -> PathBuf {
    directory.join("agents.log")
}
