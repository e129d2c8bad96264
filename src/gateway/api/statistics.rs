//! How exposed a fleet is, and how long it takes to deploy updates.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{Classification, DeviceRef};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::auth::Caller;
use super::page::Params;
use super::problem::{Problem, Refusals};
use crate::gateway::devices::Seen;
use crate::shell;
use crate::store::{Store, StoreError};

/// Results that are read at a time, and at most.
const BATCH: usize = 500;
const BATCHES: usize = 40;

/// Of what.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Of this client; without it of all, for which one needs the right in all namespaces.
    #[param(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    namespace: Option<String>,
    /// Installs of so many days.
    #[param(value_type = Option<u16>, minimum = 1, maximum = 1100, default = 30)]
    #[serde(default)]
    days: Days,
}

/// How many days.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u16")]
struct Days(u16);

impl Default for Days {
    fn default() -> Self {
        Self(30)
    }
}

impl TryFrom<u16> for Days {
    type Error = &'static str;

    fn try_from(days: u16) -> Result<Self, Self::Error> {
        if (1..=1100).contains(&days) { Ok(Self(days)) } else { Err("must be from 1 to 1100") }
    }
}

/// How exposed devices are now, and how long deploying took.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Devices that are in use.
    pub devices: u64,
    /// Of these, those that have reported.
    pub reporting: u64,
    /// Of these, those that lack a security update.
    pub exposed: u64,
    /// Of those that have reported, those that offer more than their report has room for.
    pub truncated: u64,
    /// Security updates that are missing, each on each device: for how long their client has known them. Of those that reports have room for.
    pub exposure: Durations,
    /// Updates that orders have installed: the time from when their client first knew them until they were installed.
    pub time_to_deploy: Durations,
    /// The orders of how many days those are.
    pub days: u16,
    /// Whether there were more results than are looked at (20,000, the oldest first).
    pub cut: bool,
}

/// Times, in seconds.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Durations {
    /// How many.
    pub count: u64,
    /// Half of them took no longer.
    pub median: Option<i64>,
    /// Nine of ten took no longer.
    pub p90: Option<i64>,
    /// The longest.
    pub longest: Option<i64>,
}

impl Durations {
    fn of(mut seconds: Vec<i64>) -> Self {
        seconds.sort_unstable();
        // The nearest rank.
        let rank = |percent: usize| seconds.get((seconds.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Self {
            count: u64::try_from(seconds.len()).unwrap_or(u64::MAX),
            median: rank(50),
            p90: rank(90),
            longest: seconds.last().copied(),
        }
    }
}

/// Tells how exposed devices are, and how long deploying took.
#[utoipa::path(get, path = "/statistics", tag = "statistics", params(Filter), responses((status = 200, body = Statistics), Refusals))]
pub async fn tell(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Result<Json<Statistics>, Problem> {
    let scope = caller.scope(&door, filter.namespace.as_deref()).await?;
    let now = shell::now();
    let Days(days) = filter.days;
    let since = now.saturating_sub(SignedDuration::from_hours(24 * i64::from(days))).unwrap_or(Timestamp::MIN);
    let devices = door.shared.devices.all(scope.namespace());
    let counted = door.work_out(move || count(&devices)).await?;
    let Counted { devices, reporting, exposed, truncated, missing } = counted;
    let (exposure, (deployed, cut)) = door
        .ask(move |store| async move {
            let keys: Vec<(String, String)> = missing.keys().cloned().collect();
            let known = store.first_sightings(&keys).await?;
            let ages = missing.iter().filter_map(|(key, devices)| Some((known.get(key)?, *devices)));
            let ages =
                ages.flat_map(|(first, devices)| std::iter::repeat_n(now.duration_since(*first).as_secs(), devices));
            Ok((Durations::of(ages.collect()), deployed(&store, scope.namespace(), since).await?))
        })
        .await?;
    Ok(Json(Statistics {
        devices,
        reporting,
        exposed,
        truncated,
        exposure,
        time_to_deploy: Durations::of(deployed),
        days,
        cut,
    }))
}

#[derive(Default)]
struct Counted {
    devices: u64,
    reporting: u64,
    exposed: u64,
    truncated: u64,
    /// Security updates by namespace and id: on how many devices each is missing.
    missing: BTreeMap<(String, String), usize>,
}

fn count(devices: &[(DeviceRef, Arc<Seen>)]) -> Counted {
    let mut counted = Counted::default();
    for (device, seen) in devices {
        if seen.lifecycle == crate::api::device_inventory::Lifecycle::Retired {
            continue;
        }
        counted.devices += 1;
        let Some(report) = &seen.inventory.report else { continue };
        counted.reporting += 1;
        counted.truncated += u64::from(report.truncated);
        counted.exposed += u64::from(report.counts.security > 0);
        for update in report.updates.iter().filter(|update| update.classification == Classification::Security) {
            *counted.missing.entry((device.namespace.clone(), update.id.clone())).or_default() += 1;
        }
    }
    counted
}

/// Seconds that updates took, and whether there were too many to look at.
async fn deployed(store: &Store, namespace: Option<&str>, since: Timestamp) -> Result<(Vec<i64>, bool), StoreError> {
    let mut seconds = Vec::new();
    let mut after = None;
    for _ in 0..BATCHES {
        let batch = store.results_since(namespace, since, after.as_ref(), BATCH).await?;
        let mut installed: Vec<((String, String), Timestamp)> = Vec::new();
        for (_, result) in &batch {
            let done = result.actions.iter().filter(|action| action.done && action.verb == Verb::Install);
            let namespace = &result.device.namespace;
            installed.extend(done.map(|action| ((namespace.clone(), action.update.clone()), result.finished_at)));
        }
        let keys: Vec<(String, String)> = installed.iter().map(|(key, _)| key.clone()).collect();
        let known = store.first_sightings(&keys).await?;
        let took = installed.iter().filter_map(|(key, at)| Some(at.duration_since(*known.get(key)?).as_secs()));
        // By two clocks: what was faster than they differ took no time.
        seconds.extend(took.map(|seconds| seconds.max(0)));
        if batch.len() < BATCH {
            return Ok((seconds, false));
        }
        after = batch.last().map(|(key, _)| key.clone());
    }
    Ok((seconds, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_what_was_measured() {
        assert_eq!(Durations::of(vec![]), Durations::default());
        let ten = Durations::of((1..=10).rev().collect());
        assert_eq!(ten, Durations { count: 10, median: Some(5), p90: Some(9), longest: Some(10) });
        assert_eq!(Durations::of(vec![7]).p90, Some(7));
    }
}
