//! A decision that is applied: by server-side apply, in the plugin's own name, so that what others own stays theirs.

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::change::{Draft, LAST_APPLIED, MANAGER, named};
use super::effect;
use crate::api::ApprovalGroup;
use crate::api::approval_group::UpdateDecision;
use crate::cli::live::{Live, Place};
use crate::cli::screen;

/// So often at most an apply is tried again because the controller has written the group's status.
const ATTEMPTS: u32 = 5;

/// Applies it, unless it would not count or somebody else keeps the object.
pub(super) async fn run(
    client: &Client,
    live: &Live,
    place: &Place,
    draft: Draft,
    decisions: &[UpdateDecision],
    force: bool,
    now: Timestamp,
) -> anyhow::Result<()> {
    let named = named(&draft.group);
    if let Some(keeper) = draft.keeper() {
        let undone =
            format!("{named} is kept by {keeper}, which would undo what is applied here or report a difference");
        if !force {
            bail!("{undone}. Without --apply the YAML for Git is printed; --force applies it all the same")
        }
        screen::warn(&undone);
    }
    if draft.group.annotations().contains_key(LAST_APPLIED) {
        screen::warn(&format!(
            "{named} was made by a client-side apply: the next one of a changed file replaces spec.decisions as a whole. Commit the decision \
             too, or apply with --server-side"
        ));
    }
    let api: Api<ApprovalGroup> = Api::namespaced(client.clone(), &place.namespace);
    let mut object = draft.applied(decisions)?;
    let params = PatchParams { force, ..PatchParams::apply(MANAGER) };
    let dry = PatchParams { dry_run: true, ..params.clone() };
    let tried = on_the_same_spec(&api, &draft.group, &mut object, &dry).await;
    let tried = tried.map_err(|error| refused(&named, error))?;
    let effect = effect::of(live, place, tried, decisions, now);
    effect.tell();
    if !effect.against.is_empty() && !force {
        bail!(
            "{named} was not changed: the decision would not count everywhere (above). Without --apply the YAML with the decision in the \
             first place is printed; --force applies it all the same"
        )
    }
    let read = if draft.is_new {
        // It is made first, and then applied: of two who decide for it at the same time one is refused here.
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let made = api.create(&params, &draft.group).await.map_err(|error| refused(&named, error))?;
        object["metadata"]["resourceVersion"] = json!(made.metadata.resource_version);
        made
    } else {
        draft.group
    };
    let applied = on_the_same_spec(&api, &read, &mut object, &params).await;
    let applied = applied.map_err(|error| refused(&named, error))?;
    let generation = applied.metadata.generation.context("the API server gave no generation")?;
    screen::print(&format!("{named} applied (generation {generation})\n"))
}

/// Applies the object also if only the status of the group has changed since it was read, as it does after each decision.
async fn on_the_same_spec(
    api: &Api<ApprovalGroup>,
    read: &ApprovalGroup,
    object: &mut Value,
    params: &PatchParams,
) -> Result<ApprovalGroup, kube::Error> {
    let name = read.name_any();
    let mut attempts = 0;
    loop {
        attempts += 1;
        match api.patch(&name, params, &Patch::Apply(&*object)).await {
            Err(kube::Error::Api(status)) if is_outdated(&status) && attempts < ATTEMPTS => {
                let now = api.get(&name).await?;
                if now.metadata.generation != read.metadata.generation || now.metadata.uid != read.metadata.uid {
                    return Err(kube::Error::Api(status));
                }
                object["metadata"]["resourceVersion"] = json!(now.metadata.resource_version);
            }
            answer => return answer,
        }
    }
}

/// Whether the object is another than was read, or there already: a conflict over a field names the field and who owns it as its cause.
fn is_outdated(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 409 && !causes.into_iter().any(|cause| cause.reason == "FieldManagerConflict")
}

fn refused(named: &str, error: kube::Error) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if is_outdated(status) => {
            anyhow!("{named} was changed by somebody else just now, and is as they left it: give the command again")
        }
        kube::Error::Api(status) if status.code == 409 => {
            anyhow!(
                "{named}: {}. --force takes over the field, and whoever owned it will differ from it",
                status.message
            )
        }
        _ => anyhow::Error::new(error).context(format!("the API server refuses {named}")),
    }
}
