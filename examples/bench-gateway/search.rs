//! A person who asks the API where a package is, as the plugin does.

use std::time::Duration;

use clap::Parser as _;
use kube::api::{Api, PostParams};
use patchwarden::cli::access::{Access, Gateway, escaped};
use tokio::time::Instant;

use crate::machine;
use crate::process::API;
use crate::world::World;

/// How often it is asked.
const SEARCHES: usize = 200;

/// Answers are pages of so many.
const PAGE: usize = 100;

#[derive(Debug, clap::Parser)]
struct Plugin {
    #[command(flatten)]
    access: Access,
}

/// What came of all searches.
pub struct Searches {
    /// Sorted.
    times: Vec<Duration>,
    /// Machines that were found.
    pub found: usize,
}

impl Searches {
    /// How many.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// What so many in a hundred did not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        self.times.get((self.times.len() * percent / 100).min(self.times.len() - 1)).copied().unwrap_or_default()
    }
}

/// Asks for one package after the other, on one connection, with a reader's rights.
pub async fn search(world: &World) -> anyhow::Result<Searches> {
    let mut gateway = connect(world).await?;
    let (mut times, mut found) = (Vec::new(), 0);
    for number in 0..SEARCHES {
        let name = escaped(&machine::name(number % machine::FEWEST));
        let path = format!("/search/software?namespace={}&name={name}&limit={PAGE}", world.namespace());
        let began = Instant::now();
        let answer = gateway.get(&path).await?;
        times.push(began.elapsed());
        found += answer["items"].as_array().map_or(0, Vec::len);
    }
    times.sort_unstable();
    Ok(Searches { times, found })
}

async fn connect(world: &World) -> anyhow::Result<Gateway> {
    let (client, namespace) = (world.client(), world.namespace());
    let reader = serde_json::json!({ "metadata": { "name": "patchwarden-reader" } });
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), namespace);
    accounts.create(&PostParams::default(), &serde_json::from_value(reader)?).await?;
    let binding = serde_json::json!({
        "metadata": { "name": "patchwarden-reader" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "patchwarden-reader" },
        "subjects": [{ "kind": "ServiceAccount", "name": "patchwarden-reader", "namespace": namespace }],
    });
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> = Api::namespaced(client.clone(), namespace);
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    let url = format!("https://{API}");
    let plugin = Plugin::try_parse_from(["search", "--namespace", namespace, "--api-url", &url])?;
    plugin.access.connect(client).await
}
