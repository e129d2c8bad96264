//! Load on a gateway: a process of its own with a real API server and a real database, and in this process thousands of agents with real keys,
//! certificates, sessions and reports. `hack/bench-gateway` makes what is around it.
//!
//! ```text
//!   this process: agents -- mTLS, loopback --> gateway --> store
//!                 the controller's signer  --> API server <-- gateway
//! ```
//! What the gateway takes is its own time on processors, by the kernel, since it shares them with the agents. It is bounded in count and
//! time, and fails where anything is not as it must be: a write that nothing was changed for, a report that is not shown, a session that is
//! not had.

mod agent;
mod cost;
mod fleet;
mod machine;
mod phases;
mod process;
mod search;
mod world;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use patchwarden::shell::{self, LogFormat};
use patchwarden_agent::simulation::Joined;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::DeviceRef;

use crate::agent::{Agent, Tally};
use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::phases::Bench;
use crate::process::{AGENTS_PORT, Program, SERVER_NAME};
use crate::world::World;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load on a gateway, by simulated agents.
#[derive(Debug, Parser)]
struct Arguments {
    /// The gateway's program.
    #[arg(long)]
    gateway: PathBuf,
    /// With the rights of its service account.
    #[arg(long)]
    gateway_kubeconfig: PathBuf,
    /// Its database, as it takes it.
    #[arg(long)]
    database: String,
    /// What is said of the database.
    #[arg(long)]
    label: String,
    /// A namespace that does not exist.
    #[arg(long)]
    namespace: String,
    /// Where the gateway's log goes.
    #[arg(long)]
    log: PathBuf,
    /// How many agents.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    agents: u32,
    /// Where the machines' names and packages go, a line of JSON each, for what this is compared with.
    #[arg(long)]
    inventory: Option<PathBuf>,
    /// Seconds for each kind of load.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    shell::log_to_stderr("warn", LogFormat::Text)?;
    let world = World::new(&arguments.namespace).await?;
    let tally = Arc::new(Tally::default());
    let names: Vec<_> = (0..arguments.agents).map(|number| format!("device-{number:05}")).collect();
    let keys: Vec<_> = names.iter().map(|_| PrivateKey::generate()).collect();
    println!("{}, {} agents", arguments.label, arguments.agents);
    println!("without devices: {}", world.cost().await?);
    world.make_devices(names.iter().cloned().zip(&keys)).await?;
    println!("with as many that have told nothing: {}", world.cost().await?);
    let mut inventory = arguments.inventory.map(File::create).transpose()?.map(BufWriter::new);
    let mut agents = Vec::new();
    for (number, (name, key)) in names.into_iter().zip(keys).enumerate() {
        // One address would run out of ports for connections that have just ended.
        let gateway = format!("127.0.0.{}:{AGENTS_PORT}", 1 + number % 250);
        let certificate = world.certificate(&name, &key)?;
        let machine = Machine::new(number, DeviceRef { namespace: arguments.namespace.clone(), name }, &key)?;
        if let Some(inventory) = &mut inventory {
            writeln!(inventory, "{}", machine.inventory())?;
        }
        let (ca, root) = (world.keys().ca_pem.clone(), world.keys().root);
        let joined = Joined::new(key, certificate, ca, root, gateway, SERVER_NAME.to_owned());
        agents.push(Agent::new(joined, machine, tally.clone()));
    }
    inventory.map(|mut inventory| inventory.flush()).transpose()?;
    let program = Program {
        path: arguments.gateway,
        kubeconfig: arguments.gateway_kubeconfig,
        database: arguments.database,
        log: arguments.log,
    };
    let bench = Bench {
        world: &world,
        fleet: Fleet::start(agents, tally),
        program,
        time: Duration::from_secs(arguments.seconds),
    };
    tokio::select! {
        done = bench.run() => done,
        () = world.sign() => anyhow::bail!("nobody signs the gateway's certificates any more"),
    }
}
