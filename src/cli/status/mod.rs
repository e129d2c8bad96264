//! `kubectl patchwarden status`: one screen of how a client's devices stand, and of what a person must do. It shows what the controller has
//! written, and computes nothing of its own about patching.

mod screens;
mod summary;
#[cfg(test)]
mod tests;
mod todo;

pub use todo::stalled_action;

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use kube::Client;
use serde::Serialize;

use self::summary::Summary;
use super::live;
use super::screen;
use crate::api::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy};
use crate::{convert, shell};

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Namespace of the client. Default: that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Of all clients.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A screen.
    Text,
    /// With all groups and windows, each ring, and all devices that a person must look at.
    Wide,
    /// For programs.
    Json,
    /// The same.
    Yaml,
}

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    at: Timestamp,
    clients: Vec<Summary>,
}

/// The objects of one client.
#[derive(Default)]
struct Objects {
    policies: Vec<PatchPolicy>,
    groups: Vec<ApprovalGroup>,
    windows: Vec<MaintenanceWindow>,
    devices: Vec<DeviceInventory>,
}

/// Shows it.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { namespace, all_namespaces, output } = arguments;
    let namespace = (!all_namespaces).then(|| namespace.unwrap_or_else(|| client.default_namespace().to_owned()));
    let at = convert::whole_seconds(shell::now());
    let clients = load(client, namespace.as_deref()).await?;
    let clients = clients.into_iter().map(|(namespace, objects)| Summary::of(namespace, &objects, at)).collect();
    let status = Status { at, clients };
    match output {
        Form::Text | Form::Wide => screen::print(&screens::text(&status, output == Form::Wide)),
        Form::Json => screen::print(&format!("{}\n", serde_json::to_string_pretty(&status)?)),
        Form::Yaml => screen::print(&serde_saphyr::to_string(&status)?),
    }
}

/// By namespace. A client that is named is there also where it has nothing.
async fn load(client: &Client, namespace: Option<&str>) -> anyhow::Result<BTreeMap<String, Objects>> {
    let mut clients: BTreeMap<String, Objects> = BTreeMap::new();
    if let Some(namespace) = namespace {
        clients.insert(namespace.to_owned(), Objects::default());
    }
    for policy in live::all::<PatchPolicy>(client, namespace).await? {
        clients.entry(client_of(&policy)).or_default().policies.push(policy);
    }
    for group in live::all::<ApprovalGroup>(client, namespace).await? {
        clients.entry(client_of(&group)).or_default().groups.push(group);
    }
    for window in live::all::<MaintenanceWindow>(client, namespace).await? {
        clients.entry(client_of(&window)).or_default().windows.push(window);
    }
    for device in live::all::<DeviceInventory>(client, namespace).await? {
        clients.entry(client_of(&device)).or_default().devices.push(device);
    }
    Ok(clients)
}

fn client_of<K: kube::Resource>(object: &K) -> String {
    object.meta().namespace.clone().unwrap_or_default()
}
