//! What a pass has found, as figures.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use patchwarden_protocol::report::Severity;

use crate::controller::cache::Tenant;
use crate::controller::metrics::TenantMetrics;
use crate::plan::Planner;
use crate::plan::model::{self, Name};
use crate::plan::outcome::{Compliance, Decision, State, UpdatePlan};

/// What a condition's status may be.
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

const SEVERITIES: [Severity; 5] =
    [Severity::Unknown, Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

impl TenantMetrics {
    /// Shows the figures of a client.
    pub(super) fn measure(
        &self,
        namespace: &str,
        tenant: &Tenant,
        planner: &Planner<'_, model::Device>,
        now: Timestamp,
    ) {
        self.running.show(namespace, [([], gauge(planner.at_work()))]);
        self.measure_devices(namespace, planner, now);
        let policies: Vec<_> = planner.policies().collect();
        let overdue = policies.iter().map(|policy| ([&*policy.name], i64::from(policy.overdue)));
        self.overdue.show(namespace, overdue);
        let missing = |forecast: Option<u32>| i64::from(forecast.unwrap_or_default());
        let forecast = policies
            .iter()
            .map(|policy| ([&*policy.name], missing(policy.forecast.as_ref().map(|forecast| forecast.missing))));
        self.forecast_missing.show(namespace, forecast);
        self.measure_objects(namespace, tenant, planner);
    }

    /// Goes through all updates of all devices: what depends on an update alone is asked once for each.
    fn measure_devices(&self, namespace: &str, planner: &Planner<'_, model::Device>, now: Timestamp) {
        let mut stale = 0;
        let mut devices = Compliance::ALL.map(|kind| (kind, 0));
        let mut states = State::ALL.map(|state| (state, 0));
        let mut lacked = vec![0; planner.updates().all().len()];
        for (device, is_stale) in planner.in_use(now) {
            stale += usize::from(is_stale);
            count(&mut devices, device.compliance);
            for update in &device.updates {
                count(&mut states, update.state);
                if is_missing(update)
                    && let Some(lacked) = lacked.get_mut(update.update.index())
                {
                    *lacked += 1;
                }
            }
        }
        self.stale.show(namespace, [([], gauge(stale))]);
        let devices = devices.map(|(kind, count)| (format!("{kind:?}"), gauge(count)));
        self.devices.show(namespace, devices.iter().map(|(kind, count)| ([kind.as_str()], *count)));
        let states = states.map(|(state, count)| (format!("{state:?}"), gauge(count)));
        self.updates.show(namespace, states.iter().map(|(state, count)| ([state.as_str()], *count)));

        let seen = first_seen(planner);
        let mut missing: BTreeMap<Severity, (usize, Option<Timestamp>)> =
            SEVERITIES.map(|severity| (severity, (0, None))).into();
        for (update, devices) in planner.updates().all().zip(lacked).filter(|(_, devices)| *devices > 0) {
            let (count, oldest) = missing.entry(update.severity).or_default();
            *count += devices;
            *oldest = [*oldest, seen.get(&update.id).copied()].into_iter().flatten().min();
        }
        let missing: Vec<_> = missing.into_iter().map(|(severity, it)| (format!("{severity:?}"), it)).collect();
        let counts = missing.iter().map(|(severity, (count, _))| ([severity.as_str()], gauge(*count)));
        self.missing.show(namespace, counts);
        let oldest = missing
            .iter()
            .filter_map(|(severity, (_, oldest))| Some(([severity.as_str()], oldest.as_ref()?.as_second())));
        self.oldest_missing.show(namespace, oldest);
    }

    /// Conditions are told as the API server has them.
    fn measure_objects(&self, namespace: &str, tenant: &Tenant, planner: &Planner<'_, model::Device>) {
        let modes: Vec<_> = tenant
            .policies
            .iter()
            .map(|(name, policy)| (name, format!("{:?}", policy.spec.mode), policy.spec.suspend.to_string()))
            .collect();
        let info = modes.iter().map(|(name, mode, suspended)| ([name.as_str(), mode.as_str(), suspended.as_str()], 1));
        self.policies.show(namespace, info);
        let windows: Vec<_> = planner.windows().collect();
        self.open
            .show(namespace, windows.iter().map(|window| ([&*window.name], i64::from(window.open_until.is_some()))));
        let next =
            windows.iter().filter_map(|window| Some(([&*window.name], window.upcoming.first()?.start.as_second())));
        self.next_opening.show(namespace, next);

        let policies = tenant.policies.iter().map(|(name, object)| {
            ("PatchPolicy", name, object.status.as_ref().map(|status| status.conditions.as_slice()))
        });
        let groups = tenant.groups.iter().map(|(name, object)| {
            ("ApprovalGroup", name, object.status.as_ref().map(|status| status.conditions.as_slice()))
        });
        let windows = tenant.windows.iter().map(|(name, object)| {
            ("MaintenanceWindow", name, object.status.as_ref().map(|status| status.conditions.as_slice()))
        });
        let conditions = policies.chain(groups).chain(windows).flat_map(|(kind, name, conditions)| {
            let of = move |condition| statuses(kind, name, condition);
            conditions.unwrap_or_default().iter().flat_map(of)
        });
        self.conditions.show(namespace, conditions);
    }
}

fn statuses<'c>(kind: &'c str, name: &'c str, condition: &'c Condition) -> impl Iterator<Item = ([&'c str; 4], i64)> {
    let labels = move |status| [kind, name, condition.type_.as_str(), status];
    STATUSES.into_iter().map(move |status| (labels(status), i64::from(condition.status == status)))
}

fn count<K: Copy + PartialEq>(counts: &mut [(K, usize)], kind: K) {
    if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == kind) {
        *count += 1;
    }
}

/// Neither installed nor decided against, as far as the device is heard of.
fn is_missing(update: &UpdatePlan) -> bool {
    let is_lacked = match update.state {
        State::Missing | State::Downloaded | State::Pending | State::Installing | State::Failed | State::Held => true,
        State::Installed | State::Ignored | State::RestartRequired | State::Unknown => false,
    };
    is_lacked && update.decision != Decision::Remove && !update.is_checked()
}

/// Since when updates are known, in any group.
fn first_seen<'p>(planner: &'p Planner<'_, model::Device>) -> BTreeMap<&'p Name, Timestamp> {
    let mut first = BTreeMap::new();
    for seen in planner.groups().flat_map(|group| group.seen.iter()) {
        let known = first.entry(&seen.id).or_insert(seen.first);
        *known = seen.first.min(*known);
    }
    first
}

pub(super) fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
