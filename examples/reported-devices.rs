//! DeviceInventories of machines that do not exist, each with a signed report of real size as a gateway writes it. `hack/bench-devices`
//! measures what so many cost.
//!
//! A gateway would need some 10 ms of its time for each first report (benches/RESULTS.md); what its objects cost others is the same.

#[allow(dead_code, reason = "of the machines it needs the first report alone")]
#[path = "bench-gateway/machine.rs"]
mod machine;

use std::ops::Range;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource as _};
use patchwarden::api::device_inventory::{DeviceType, Inventory, Lifecycle};
use patchwarden::api::{DeviceInventory, DeviceInventorySpec, MANAGER_GATEWAY};
use patchwarden::shell;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::{DeviceRef, Report};
use tokio::time::Instant;

use crate::machine::Machine;

/// Requests at the same time.
const REQUESTS: usize = 16;

/// Said how far it is after so many.
const PROGRESS: usize = 10_000;

/// DeviceInventories of machines that do not exist, with signed reports.
#[derive(Debug, Parser)]
struct Arguments {
    /// Their namespace, which exists.
    #[arg(long)]
    namespace: String,
    /// With the rights of the gateway's service account, which alone may write what a device tells.
    #[arg(long)]
    gateway_kubeconfig: PathBuf,
    /// Number of the first.
    #[arg(long)]
    from: usize,
    /// Number of the one after the last.
    #[arg(long)]
    to: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { namespace, gateway_kubeconfig, from, to } = Arguments::parse();
    let admin = shell::kube_client("patchwarden-bench").await?;
    let kubeconfig =
        Kubeconfig::read_from(&gateway_kubeconfig).with_context(|| gateway_kubeconfig.display().to_string())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    make(&admin, &Client::try_from(config)?, &namespace, from..to).await
}

async fn make(admin: &Client, gateway: &Client, namespace: &str, numbers: Range<usize>) -> anyhow::Result<()> {
    let (began, first) = (Instant::now(), numbers.start);
    let devices = Api::namespaced(admin.clone(), namespace);
    let statuses = Api::namespaced(gateway.clone(), namespace);
    let each = stream::iter(numbers).map(|number| one(&devices, &statuses, namespace, number));
    let done = each.buffered(REQUESTS).enumerate().map(|(done, made)| made.map(|()| done + 1));
    done.try_for_each(async |done| {
        if done % PROGRESS == 0 {
            eprintln!("{} devices after {} s", first + done, began.elapsed().as_secs());
        }
        Ok(())
    })
    .await
}

/// As the gateway makes and writes them, of a device that has left: nobody has a session.
async fn one(
    devices: &Api<DeviceInventory>,
    statuses: &Api<DeviceInventory>,
    namespace: &str,
    number: usize,
) -> anyhow::Result<()> {
    let name = format!("device-{number:06}");
    let key = PrivateKey::generate();
    let spec = DeviceInventorySpec {
        device_type: DeviceType::Server,
        time_zone: None,
        accepted_key: Some(key.public().fingerprint().into()),
        lifecycle: Lifecycle::Active,
        suspend: false,
        duplicate_resolved: None,
    };
    devices.create(&PostParams::default(), &DeviceInventory::new(&name, spec)).await.context(name.clone())?;
    let machine = Machine::new(number, DeviceRef { namespace: namespace.to_owned(), name: name.clone() }, &key)?;
    let envelope: Envelope<Report> = serde_json::from_slice(&machine.report(false)?.envelope)?;
    let inventory = Inventory {
        report: Some(envelope.open(&key.public())?),
        signature: envelope.signatures.into_iter().next(),
        public_key: Some(key.public()),
        last_transition_time: Some(shell::now()),
        ..Inventory::default()
    };
    let body = serde_json::json!({
        "apiVersion": DeviceInventory::api_version(&()),
        "kind": DeviceInventory::kind(&()),
        "metadata": { "name": name, "namespace": namespace },
        "status": { "inventory": inventory },
    });
    let parameters = PatchParams::apply(MANAGER_GATEWAY).force();
    statuses.patch_status(&name, &parameters, &Patch::Apply(&body)).await.context(name)?;
    Ok(())
}
