//! Several gateways on one database, behind the addresses at which the cluster's only one is otherwise.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::world::{World, eventually};

/// Gateways.
pub const REPLICAS: usize = 3;

const SYSTEM: &str = "patchwarden-system";

/// The Service of the cluster's gateway, which install Jobs use.
const SERVICE: &str = "patchwarden-gateway";

/// One for agents and the controller, as a load balancer would be: kube-proxy leads its address to any gateway, also to one that is gone.
const BALANCER: &str = "patchwarden-gateways";

/// The gateways, in the place of the cluster's own until this is dropped.
pub struct Gateways<'w> {
    world: &'w World,
    database: String,
    processes: Vec<Child>,
}

impl<'w> Gateways<'w> {
    pub fn start(world: &'w World, database: &str) -> Self {
        world.program("stop", "gateway");
        let mut gateways = Self { world, database: database.to_owned(), processes: Vec::new() };
        gateways.processes = (0..REPLICAS).map(|replica| gateways.process(replica)).collect();
        for replica in 0..REPLICAS {
            gateways.until_ready(replica);
        }
        let address = world.gateway_address();
        let balancer = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {BALANCER}, namespace: {SYSTEM}}}\nspec:\n  type: LoadBalancer\n  \
             ports: [{{name: agents, port: 8443}}, {{name: runners, port: 8444}}]\n"
        );
        world.kubectl_with(&["apply", "-f", "-"], &balancer);
        let status = format!("{{\"status\": {{\"loadBalancer\": {{\"ingress\": [{{\"ip\": \"{address}\"}}]}}}}}}");
        world.kubectl(&[
            "patch",
            "service",
            "-n",
            SYSTEM,
            BALANCER,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
        world.kubectl(&["delete", "endpointslice", "-n", SYSTEM, SERVICE]);
        for service in [SERVICE, BALANCER] {
            for replica in 0..REPLICAS {
                let ports = [("agents", agents_port(replica)), ("runners", runners_port(replica))];
                endpoint(world, service, &format!("{service}-{replica}"), &ports);
            }
        }
        eventually("kube-proxy leads to the gateways", || {
            let connect = ["-c", "exec 3<>\"/dev/tcp/$1/8443\"", "-", &address];
            world.inside("bash").args(connect).output().unwrap().status.success().then_some(())
        })
        .unwrap();
        gateways
    }

    /// `kill -9`, and another in its place.
    pub fn kill(&mut self, replica: usize) {
        self.processes[replica].kill().unwrap();
        self.processes[replica].wait().unwrap();
        self.processes[replica] = self.process(replica);
    }

    /// Waits until a gateway has a certificate and its database, as Kubernetes does before it sends anybody.
    pub fn until_ready(&self, replica: usize) {
        let ask = "exec 3<>\"/dev/tcp/127.0.0.1/$1\" && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
        let port = health_port(replica).to_string();
        eventually(&format!("gateway {replica} is ready"), || {
            let output = self.world.inside("bash").args(["-c", ask, "-", &port]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).starts_with("HTTP/1.0 200").then_some(())
        })
        .unwrap_or_else(|why| panic!("{why}: {}", self.log(replica)));
    }

    /// What a gateway has written, also those before it.
    pub fn log(&self, replica: usize) -> String {
        std::fs::read_to_string(log_of(self.world, replica)).unwrap_or_default()
    }

    fn process(&self, replica: usize) -> Child {
        let log = File::options().create(true).append(true).open(log_of(self.world, replica)).unwrap();
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let kubeconfig = self.world.state().join("programs/gateway.kubeconfig");
        let mut command = self.world.inside("env");
        command.arg(format!("KUBECONFIG={}", kubeconfig.display())).arg("NO_COLOR=1");
        command.arg(format!("{programs}/patchwarden-gateway"));
        command.args(["--namespace", SYSTEM, "--database", &self.database]);
        command.args([
            "--server-name",
            &self.world.gateway_address(),
            "--server-name",
            &format!("{SERVICE}.{SYSTEM}.svc"),
        ]);
        for (door, port) in [("agents", agents_port(replica)), ("runners", runners_port(replica))] {
            command.arg(format!("--{door}-address=0.0.0.0:{port}"));
        }
        for (door, port) in [("api", 9445 + offset(replica)), ("health", health_port(replica))] {
            command.arg(format!("--{door}-address=127.0.0.1:{port}"));
        }
        command.stdin(Stdio::null()).stderr(log).spawn().unwrap()
    }
}

impl Drop for Gateways<'_> {
    fn drop(&mut self) {
        for process in &mut self.processes {
            _ = process.kill();
            _ = process.wait();
        }
        if std::thread::panicking() {
            for replica in 0..REPLICAS {
                let log = self.log(replica);
                let lines: Vec<_> = log.lines().collect();
                eprintln!("--- gateway {replica}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
            return;
        }
        self.world.kubectl(&["delete", "service", "-n", SYSTEM, BALANCER]);
        let slices = format!("kubernetes.io/service-name={SERVICE}");
        self.world.kubectl(&["delete", "endpointslice", "-n", SYSTEM, "-l", &slices]);
        endpoint(self.world, SERVICE, SERVICE, &[("runners", 8444)]);
        self.world.program("start", "gateway");
    }
}

fn offset(replica: usize) -> usize {
    10 * replica
}

pub fn agents_port(replica: usize) -> usize {
    9443 + offset(replica)
}

fn runners_port(replica: usize) -> usize {
    9444 + offset(replica)
}

fn health_port(replica: usize) -> usize {
    9080 + offset(replica)
}

fn log_of(world: &World, replica: usize) -> PathBuf {
    world.state().join(format!("logs/gateway-{replica}.log"))
}

/// One address for a Service.
fn endpoint(world: &World, service: &str, name: &str, ports: &[(&str, usize)]) {
    let ports: Vec<_> = ports.iter().map(|(name, port)| format!("{{name: {name}, port: {port}}}")).collect();
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata:\n  name: {name}\n  namespace: {SYSTEM}\n  \
         labels: {{kubernetes.io/service-name: {service}}}\nendpoints: [{{addresses: ['{}'], conditions: {{ready: true}}}}]\n\
         ports: [{}]\n",
        world.variable("NODE_ADDRESS"),
        ports.join(", ")
    );
    world.kubectl_with(&["apply", "-f", "-"], &slice);
}
