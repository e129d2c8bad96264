//! `kubectl patchwarden raise-epoch`: a new life of all devices' orders, after a restore.

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::controller::SECRET;
use crate::controller::keys::{self, EPOCH};
use crate::shell;

/// Flags of `raise-epoch`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Namespace of the controller.
    #[arg(long, default_value = "patchwarden-system")]
    patchwarden_namespace: String,
}

/// Raises it.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { patchwarden_namespace: namespace } = arguments;
    let named = || format!("Secret {namespace}/{SECRET}");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let secret = secrets.get_metadata(SECRET).await.with_context(named)?;
    // One that cannot be read is replaced by a later one all the same.
    let before = keys::epoch(&secret.metadata).unwrap_or_default();
    let epoch = after(before, shell::now());
    let patch = json!({"metadata": {
        "resourceVersion": secret.metadata.resource_version,
        "annotations": { EPOCH: epoch.to_string() },
    }});
    secrets.patch_metadata(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await.with_context(named)?;
    println!("epoch {epoch}");
    println!(
        "Each device gets orders again once it has reported in this epoch: until then its condition Ready says EpochNotFollowed."
    );
    Ok(())
}

/// By the clock: etcd may not know any more which epochs there were.
fn after(before: u32, now: Timestamp) -> u32 {
    let now = u32::try_from(now.as_second()).unwrap_or_default();
    before.saturating_add(1).max(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_later_than_all_before_also_those_that_etcd_has_lost() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let lost = after(0, at(1_800_000_000));
        assert!(after(0, at(1_800_000_001)) > lost);
        assert_eq!(after(lost, at(1_700_000_000)), lost + 1, "the clock was set back");
    }
}
