//! `kubectl patchwarden rotate`: new keys in the place of old ones.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use patchwarden_protocol::key::Fingerprint;
use serde_json::json;

use crate::api::TRUST_CONFIG_MAP;
use crate::controller::SECRET;
use crate::controller::rotation::{ANNOTATION, ANNOTATION_REFUSED, What};
use crate::gateway::trust::Trust;

/// The controller looks every 10 s.
const PATIENCE: Duration = Duration::from_mins(1);

/// Between looks whether it has.
const PAUSE: Duration = Duration::from_millis(500);

/// What is replaced.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which keys get a successor. Devices that are off follow when they are back.
    #[arg(required = true, value_enum)]
    what: Vec<What>,
    /// Namespace of the controller.
    #[arg(long, default_value = "patchwarden-system")]
    patchwarden_namespace: String,
}

/// Asks the controller for it, and waits until it has.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { mut what, patchwarden_namespace: namespace } = arguments;
    what.sort_unstable();
    what.dedup();
    let is_pinned = what.iter().any(|what| matches!(what, What::Root | What::Ca));
    let words: Vec<&str> = what.into_iter().map(What::word).collect();
    let words = words.join(",");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let named = || format!("Secret {namespace}/{SECRET}");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let trust = async || {
        let map =
            maps.get(TRUST_CONFIG_MAP).await.with_context(|| format!("ConfigMap {namespace}/{TRUST_CONFIG_MAP}"))?;
        anyhow::Ok(Trust::of(&map)?)
    };
    let before = trust().await?;
    let patch = json!({"metadata": {"annotations": {ANNOTATION: words, ANNOTATION_REFUSED: null}}});
    secrets.patch_metadata(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await.with_context(named)?;
    eprintln!("asked the controller for new keys: {words}");
    let done = async {
        loop {
            let secret = secrets.get_metadata(SECRET).await.with_context(named)?;
            let annotations = secret.annotations();
            if let Some(why) = annotations.get(ANNOTATION_REFUSED) {
                bail!("no new keys were made: {why}");
            }
            // What is pinned is published once the keys are there.
            let now = trust().await?;
            if !annotations.contains_key(ANNOTATION) && (!is_pinned || now != before) {
                return Ok(now);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, done).await;
    let trust =
        waited.context("the controller has not made new keys within a minute: is it running? It will when it is")??;
    println!("root {}", trust.root.fingerprint());
    for ca in &trust.ca {
        println!("ca   {}", Fingerprint::of(ca));
    }
    println!("Join commands that were printed before may name keys that are no more: print new ones.");
    Ok(())
}
