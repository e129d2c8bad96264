//! What has happened on a device: changes of its packages, whoever made them, and installs with their output.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use patchwarden_protocol::changes::By;
use patchwarden_protocol::order::{Sequence, Verb};
use patchwarden_protocol::result::{ActionResult, Outcome, StepResult};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::auth::{Caller, OfDevice};
use super::page::{Cursor, Limit, Page, Params, Segments};
use super::problem::{Problem, Refusals};
use crate::gateway::{clean, tail};
use crate::store::{InstallKey, RecordedChange, RecordedInstall};

/// Bytes of an install's output that are shown, its last.
const OUTPUT: usize = 4_096;

/// Which changes.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ChangesFilter {
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<[i64; 1]>>,
}

/// Which installs.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct InstallsFilter {
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<InstallKey>>,
}

/// A change of a package.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PackageChange {
    /// When the device's scan found it, by the device's clock: it happened before.
    pub found_at: Timestamp,
    /// Binary package name.
    pub package: String,
    /// Architecture.
    pub arch: String,
    /// The version before; absent where it was not there.
    pub before: Option<String>,
    /// The version after; absent where it is gone.
    pub after: Option<String>,
    /// `Order`: an order of Patchwarden's. `BesideOrder`: while one was carried out, not named by it. `SomebodyElse`.
    pub by: String,
    /// Sequence of that order, `epoch.number`.
    pub sequence: Option<String>,
    /// Digest of that order.
    pub order: Option<String>,
    /// What the package manager's history says of it.
    pub run: Option<Run>,
    /// How many changes before it were never told.
    pub missing_before: u64,
}

/// A run of the package manager, as its own history tells it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// When it began.
    pub at: Timestamp,
    /// Whose history that is.
    pub told_by: String,
    /// Who asked for it.
    pub user: String,
    /// How.
    pub command: String,
}

/// An order that was carried to a device, and what came of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Install {
    /// Its sequence, `epoch.number`.
    pub sequence: String,
    /// Digest of the order.
    pub order: String,
    /// The policy in whose name it was given; absent where only the result is known.
    pub policy: Option<String>,
    /// What was to be done with which update.
    pub actions: Vec<Action>,
    /// `Succeeded`, `Failed`, `Refused`, `Withdrawn` or `Expired`; absent while there is no result.
    pub outcome: Option<String>,
    /// Why it did not succeed.
    pub reason: Option<String>,
    /// For people.
    pub message: Option<String>,
    /// When the gateway first had it.
    pub first_seen: Timestamp,
    /// When the device accepted it, by its clock.
    pub started_at: Option<Timestamp>,
    /// When the device was done, by its clock.
    pub finished_at: Option<Timestamp>,
    /// How often the device was restarted for it.
    pub restarts: Option<u32>,
    /// The hooks and checks that were run, and the services that were restarted.
    pub steps: Vec<HookOrCheck>,
    /// The last of what the package manager printed, 4,096 bytes at most.
    pub output: String,
}

/// What was to be done with an update, and whether it is done.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Action {
    /// `Install`, `Download`, `Uninstall` or `Restart`.
    pub verb: String,
    /// The update.
    pub update: String,
    /// Whether it is done; absent while there is no result.
    pub done: Option<bool>,
    /// Why not.
    pub reason: Option<String>,
    /// For people.
    pub message: String,
}

/// A hook, a check, or the restart of a service.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookOrCheck {
    /// When in the install: `CheckBefore`, `HookBefore` and so on.
    pub step: String,
    /// Its name.
    pub name: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// For people.
    pub message: String,
}

impl PackageChange {
    fn of(recorded: RecordedChange) -> Self {
        let RecordedChange { log: _, number: _, missing, found_at, change, order, run } = recorded;
        let (by, sequence) = by_whom(change.by);
        Self {
            found_at,
            package: change.name,
            arch: change.arch,
            before: change.before,
            after: change.after,
            by: by.to_owned(),
            sequence,
            order,
            run: run.map(|run| Run { at: run.at, told_by: run.told_by, user: run.user, command: run.command }),
            missing_before: missing,
        }
    }
}

/// Who made a change, and for which order.
pub(super) fn by_whom(by: By) -> (&'static str, Option<String>) {
    match by {
        By::Order(sequence) => ("Order", Some(sequence_text(sequence))),
        By::BesideOrder(sequence) => ("BesideOrder", Some(sequence_text(sequence))),
        By::SomebodyElse => ("SomebodyElse", None),
    }
}

fn sequence_text(sequence: Sequence) -> String {
    format!("{}.{}", sequence.epoch, sequence.number)
}

impl Install {
    fn of(recorded: RecordedInstall) -> Self {
        let RecordedInstall { key, order, result, output, first_seen } = recorded;
        let InstallKey(epoch, number, digest) = key;
        let ordered = order.as_ref().map(|order| order.actions.as_slice()).unwrap_or_default();
        let actions = match &result {
            Some(result) if !result.actions.is_empty() => result.actions.iter().map(Action::done).collect(),
            _ => ordered.iter().map(|action| Action::ordered(action.verb, &action.update)).collect(),
        };
        let outcome = result.as_ref().map(|result| match result.outcome {
            Outcome::Succeeded => "Succeeded",
            Outcome::Failed => "Failed",
            Outcome::Refused => "Refused",
            Outcome::Withdrawn => "Withdrawn",
            Outcome::Expired => "Expired",
        });
        let steps = result.as_ref().map(|result| result.steps.iter().map(HookOrCheck::of).collect());
        Self {
            sequence: format!("{epoch}.{number}"),
            order: digest,
            policy: order.map(|order| order.policy),
            actions,
            outcome: outcome.map(str::to_owned),
            reason: result.as_ref().and_then(|result| result.reason).map(code),
            message: result.as_ref().map(|result| result.message.clone()),
            first_seen,
            started_at: result.as_ref().map(|result| result.started_at),
            finished_at: result.as_ref().map(|result| result.finished_at),
            restarts: result.as_ref().map(|result| result.restarts),
            steps: steps.unwrap_or_default(),
            output: tail(&output, OUTPUT).to_owned(),
        }
    }
}

impl Action {
    fn ordered(verb: Verb, update: &str) -> Self {
        Self { verb: code(verb), update: update.to_owned(), done: None, reason: None, message: String::new() }
    }

    fn done(action: &ActionResult) -> Self {
        Self {
            done: Some(action.done),
            reason: action.reason.map(code),
            message: action.message.clone(),
            ..Self::ordered(action.verb, &action.update)
        }
    }
}

impl HookOrCheck {
    fn of(step: &StepResult) -> Self {
        let StepResult { step, name, ok, message } = step.clone();
        Self { step: code(step), name, ok, message }
    }
}

/// A code as it is written in documents: the name of the variant.
fn code(value: impl Serialize) -> String {
    let text = serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned));
    clean(&text.unwrap_or_default(), 63)
}

/// Lists what has changed among a device's packages, the newest first.
#[utoipa::path(
    get,
    path = "/namespaces/{namespace}/devices/{name}/changes",
    tag = "history",
    params(
        ("namespace" = String, Path, description = "Its client.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ("name" = String, Path, description = "Name of its DeviceInventory.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ChangesFilter
    ),
    responses((status = 200, body = Page<PackageChange>), Refusals)
)]
pub async fn changes(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Segments((namespace, name)): Segments<(String, String)>,
    Params(filter): Params<ChangesFilter>,
) -> Result<Json<Page<PackageChange>>, Problem> {
    let of = caller.device(&door, &namespace, &name).await?;
    package_changes(&door, of, filter.cursor, filter.limit.get()).await.map(Json)
}

/// A page of what has changed among the packages of a device.
pub async fn package_changes(
    door: &Door,
    of: OfDevice,
    cursor: Option<Cursor<[i64; 1]>>,
    limit: usize,
) -> Result<Page<PackageChange>, Problem> {
    super::devices::known(door, &of).await?;
    let before = Cursor::read(cursor.as_ref())?.map(|[id]| id);
    let found =
        door.ask(move |store| async move { store.changes_before(of.device(), before, limit + 1).await }).await?;
    let page = Page::of(found, limit, |(id, _)| [*id]);
    Ok(page.map(|(_, change)| PackageChange::of(change)))
}

/// Lists a device's installs, the latest order first.
#[utoipa::path(
    get,
    path = "/namespaces/{namespace}/devices/{name}/installs",
    tag = "history",
    params(
        ("namespace" = String, Path, description = "Its client.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ("name" = String, Path, description = "Name of its DeviceInventory.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        InstallsFilter
    ),
    responses((status = 200, body = Page<Install>), Refusals)
)]
pub async fn installs(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Segments((namespace, name)): Segments<(String, String)>,
    Params(filter): Params<InstallsFilter>,
) -> Result<Json<Page<Install>>, Problem> {
    let of = caller.device(&door, &namespace, &name).await?;
    orders(&door, of, filter.cursor, filter.limit.get()).await.map(Json)
}

/// A page of the orders that were carried to a device.
pub async fn orders(
    door: &Door,
    of: OfDevice,
    cursor: Option<Cursor<InstallKey>>,
    limit: usize,
) -> Result<Page<Install>, Problem> {
    super::devices::known(door, &of).await?;
    let before = Cursor::read(cursor.as_ref())?;
    let found =
        door.ask(move |store| async move { store.installs_before(of.device(), before, limit + 1).await }).await?;
    let page = Page::of(found, limit, |install| install.key.clone());
    Ok(page.map(Install::of))
}
