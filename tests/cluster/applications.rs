//! Third-party applications, by a policy's word and a publisher's recipes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Stdio};

use patchwarden::api::DeviceInventory;
use patchwarden::api::device_inventory::{Decision, UpdateState};
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::Outcome;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::Test;
use crate::crash::compliance;
use crate::world::{APPROVE_SECURITY, Device, OPEN_WINDOW, POLICY, World, eventually, succeeded};

pub const TESTS: &[Test] = &[(
    "an_application_that_a_policy_wants_is_installed_and_one_that_it_does_not_want_is_removed",
    an_application_that_a_policy_wants_is_installed_and_one_that_it_does_not_want_is_removed,
)];

const PORT: u16 = 9600;

const TOOL: &str = "#!/bin/sh\necho tool 2.1\n";

const APPROVE_APPLICATIONS: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: everybody}
spec:
  members: {selector: {}}
  rules: [{name: applications, match: {classifications: [FirstInstall, Removal]}, action: Approve}]
  minArtifactAge: 0m
";

/// A vendor's server, in the network of the cluster. It ends when this is dropped.
struct Vendor<'w> {
    world: &'w World,
    /// With what it serves, and what the publisher makes of it.
    place: TempDir,
    server: Child,
}

impl<'w> Vendor<'w> {
    /// It serves the tool, with a certificate by an authority of its own: `ca.pem`.
    fn start(world: &'w World) -> Self {
        let place = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&key).unwrap();
        let issuer = Issuer::new(parameters, key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![world.gateway_address()]).unwrap().signed_by(&key, &issuer).unwrap();
        let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{TOOL}", TOOL.len());
        let files =
            [("ca.pem", authority.pem()), ("leaf.pem", leaf.pem() + &key.serialize_pem()), ("tool-2.1", answer)];
        for (name, content) in files {
            fs::write(place.path().join(name), content).unwrap();
        }
        let mut command = world.inside("openssl");
        command.args(["s_server", "-quiet", "-HTTP", "-accept", &PORT.to_string(), "-cert", "leaf.pem"]);
        let server = command.current_dir(place.path()).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let vendor = Self { world, place, server };
        eventually("the vendor's server listens", || {
            let connect = format!("exec 3<>/dev/tcp/{}/{PORT}", world.gateway_address());
            world.inside("bash").args(["-c", &connect]).output().unwrap().status.success().then_some(())
        })
        .unwrap();
        vendor
    }

    fn path(&self, name: &str) -> String {
        self.place.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a publisher's command; what it prints.
    fn publish(&self, arguments: &[&str]) -> String {
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let mut command = self.world.inside("env");
        command.arg(format!("SSL_CERT_FILE={}", self.path("ca.pem"))).arg(format!("{programs}/patchwarden-agent"));
        succeeded("patchwarden-agent recipes", arguments, &command.arg("recipes").args(arguments).output().unwrap())
    }

    /// Pins and signs the tool's recipe; the publisher's public key.
    fn catalogue(&self, out: &Path) -> String {
        let address: IpAddr = self.world.gateway_address().parse().unwrap();
        let arch = std::env::consts::ARCH;
        let rule = format!(
            "name = 'tool'\ntitle = 'The tool'\n[install]\npath = '/usr/local/bin/tool'\ncontent = 'file'\n[detect.program]\n\
             arguments = ['--version']\npattern = 'tool ([0-9.]+)'\n[source]\nurl = 'https://{address}:{PORT}/tool-{{version}}'\n\
             arch = {{ {arch} = '{arch}' }}\n"
        );
        fs::create_dir(self.path("recipes")).unwrap();
        fs::write(self.path("recipes/tool.toml"), rule).unwrap();
        let key = self.publish(&["key", &self.path("key.pem")]);
        self.publish(&["pin", &self.path("recipes/tool.toml"), "2.1", "--published", "2026-11-01"]);
        let (recipes, key_file) = (self.path("recipes"), self.path("key.pem"));
        self.publish(&["sign", &recipes, "--key", &key_file, "--publisher", "Vendor", "--out", out.to_str().unwrap()]);
        key.trim().to_owned()
    }
}

impl Drop for Vendor<'_> {
    fn drop(&mut self) {
        _ = self.server.kill();
        _ = self.server.wait();
    }
}

// covers MW-11
fn an_application_that_a_policy_wants_is_installed_and_one_that_it_does_not_want_is_removed(world: &World) {
    let vendor = Vendor::start(world);
    let key = vendor.catalogue(&world.recipes());
    world.program("stop", "gateway");
    world.program("start", "gateway");
    let device = world.device("tool-1", &world.repository("tool", &["alpha=1.0"]), &[]);
    world.hack(
        "devices",
        &["copy", "--name", world.name(), "tool-1", &vendor.path("ca.pem"), "/etc/ssl/certs/ca-certificates.crt"],
    );
    let tenant = world.tenant();
    let policy = |ensure: &str| {
        POLICY.replace("mode: Install", &format!("applications: [{{name: tool, ensure: {ensure}}}], mode: Install"))
    };
    for object in [OPEN_WINDOW, APPROVE_SECURITY, &policy("Installed")] {
        tenant.apply(object);
    }
    tenant.join(&device);
    tenant.wait_for("tool-1", "it has reported", |device| {
        device.status.as_ref().and_then(|status| status.inventory.as_ref()).is_some_and(|known| known.report.is_some())
    });
    believe(&device, &key);

    // That the policy wants it is no approval.
    let first = "pkg:generic/tool@2.1";
    let told = tenant.wait_for("tool-1", "its first install is offered", |device| decision(device, first).is_some());
    assert_eq!(decision(&told, first), Some((Decision::AwaitingApproval, UpdateState::Missing)));
    assert!(tenant.jobs().is_empty() && !is_there(&device));

    tenant.apply(APPROVE_APPLICATIONS);
    let done = tenant.wait_for("tool-1", "it is installed", |device| compliance(device).last.len() == 1);
    let past = &compliance(&done).last[0];
    assert_eq!((past.outcome, past.reason), (Some(Outcome::Succeeded), None), "{past:?}");
    assert_eq!(
        (past.updates[0].update.as_str(), past.updates[0].verb, past.updates[0].done),
        (first, Verb::Install, true)
    );
    assert_eq!(device.run(&["/usr/local/bin/tool"]), "tool 2.1\n");
    assert_eq!(device.run(&["stat", "-c", "%a %U", "/usr/local/bin/tool"]), "755 root\n");
    let job = format!("job/{}", past.job);
    world.kubectl(&["wait", "-n", &tenant.name, "--for=condition=Complete", "--timeout=600s", &job]);
    let log = world.kubectl(&["logs", "-n", &tenant.name, &job]);
    assert!(log.contains("recipe:tool"), "{log}");
    tenant.wait_for("tool-1", "it is compliant", |device| decision(device, first).is_none());
    eventually("the policy tells of it", || {
        (tenant.get(&["pp", "everything"])["status"]["compliant"] == "1/1").then_some(())
    })
    .unwrap();

    tenant.apply(&policy("Absent"));
    let gone = tenant.wait_for("tool-1", "it is removed", |device| compliance(device).last.len() == 2);
    let past = &compliance(&gone).last[0];
    assert_eq!(
        (past.outcome, past.updates[0].update.as_str()),
        (Some(Outcome::Succeeded), "remove:generic/tool"),
        "{past:?}"
    );
    assert!(!is_there(&device));
}

/// The machine's owner takes this publisher's recipes.
fn believe(device: &Device<'_>, key: &str) {
    let script = format!("sed -i \"1i recipe_publishers = ['{key}']\" /etc/patchwarden/agent.toml");
    device.run(&["sh", "-c", &script]);
    device.kill_agent();
}

fn is_there(device: &Device<'_>) -> bool {
    device.run(&["find", "/usr/local/bin", "-name", "*tool*"]).contains("tool")
}

fn decision(device: &DeviceInventory, id: &str) -> Option<(Decision, UpdateState)> {
    let compliance = device.status.as_ref()?.compliance.as_ref()?;
    compliance.updates.iter().find(|update| update.id == id).map(|update| (update.decision, update.state))
}
