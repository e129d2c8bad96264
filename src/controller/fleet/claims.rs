//! What the fleet's devices may do: grants, claims and the orders that go with them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::canonical::NotCanonical;
use patchwarden_protocol::grant::{Grant, Purpose, SignedGrant, Verdict};
use patchwarden_protocol::order::{Order, SignedOrder};

use super::{Device, Fleet, job_presence};
use crate::api::device_inventory::{AnsweredGrant, CurrentInstall, GrantRequest, InstallPhase, KnownUpdate};
use crate::api::{DeviceInventory, PatchPolicySpec};
use crate::build;
use crate::controller::cache::Tenant;
use crate::controller::client::ClientPlan;
use crate::convert;
use crate::install::JobPresence;
use crate::plan::Blocked;
use crate::plan::model::{self, Catalogue};
use crate::plan::outcome::{DevicePlan, Install};
use crate::status;
use crate::telemetry::trace_id;

impl Fleet<'_> {
    /// Claims every device that is to install something.
    pub(super) fn claim_all(
        &self,
        client: &ClientPlan,
        devices: &mut BTreeMap<String, Device>,
        namespace: &str,
        tenant: &Tenant,
        forgetful: &BTreeSet<model::Name>,
        now: Timestamp,
    ) {
        for planned in client.planner().devices() {
            let install = planned.install.as_ref().filter(|install| !forgetful.contains(&install.policy));
            let (Some(install), Some(object)) = (install, tenant.devices.get(&*planned.name)) else { continue };
            if self.is_behind(object) {
                continue;
            }
            let device = devices.entry(planned.name.to_string());
            let device = device.or_insert_with(|| self.settled(namespace, tenant, object, now));
            let policy = tenant.policies.get(&*install.policy);
            self.claim(device, install, planned, policy.map(|policy| &policy.spec), client.planner().updates(), now);
        }
    }

    /// Answers the device's question whether it may act, once for each nonce.
    pub(super) fn answer_grant(&self, device: &mut Device, tenant: &Tenant, client: &mut ClientPlan, now: Timestamp) {
        let Some(request) = grant_request(&device.object) else { return };
        let Some(current) = &mut device.compliance.current else { return };
        let answered = current.grant.as_ref().is_some_and(|grant| grant.nonce == request.nonce);
        if answered || request.order_digest != current.order_digest || self.is_behind(&device.object) {
            return;
        }
        let verdict = if current.phase == InstallPhase::Claimed
            && job_presence(tenant, &current.job) != JobPresence::Present
        {
            // Whoever deletes the Job of an install that has not begun does not want it.
            Verdict::Denied { reason: "JobDeleted".to_owned(), message: format!("its Job {} was deleted", current.job) }
        } else {
            let answer = match request.purpose {
                Purpose::Act => client.ask(|planner| planner.may_act(&device.reference.name, now)),
                Purpose::Restart => client.ask(|planner| planner.may_restart(&device.reference.name, now)),
            };
            answer.map_or_else(|blocked| denied(&blocked), |()| Verdict::Granted)
        };
        let granted = verdict == Verdict::Granted;
        match self.sign_grant(&device.object, request, verdict, now) {
            Ok(signed) => {
                if granted {
                    current.phase = InstallPhase::Installing;
                }
                device.is_moved = true;
                current.leader.clone_from(&self.leader);
                current.grant = Some(AnsweredGrant { nonce: request.nonce.clone(), signed });
                let label = if granted { "granted" } else { "denied" };
                self.metrics.grants.with_label_values(&[label]).inc();
                let trace_id = trace_id(&current.order_digest);
                tracing::info!(device = %device.reference, sequence = %current.sequence, label, trace_id, "answered a grant request");
            }
            Err(error) => tracing::error!(device = %device.reference, %error, "cannot sign a grant"),
        }
    }

    /// Whether the device has not followed into the epoch. The plan knows so only once the epoch is in the device's settings, which
    /// the first pass after it was raised writes at its end.
    fn is_behind(&self, object: &DeviceInventory) -> bool {
        let report = convert::believed_report(object).ok();
        report.is_some_and(|report| report.last_sequence.unwrap_or_default().epoch < self.keys.epoch)
    }

    fn sign_grant(
        &self,
        device: &DeviceInventory,
        request: &GrantRequest,
        verdict: Verdict,
        now: Timestamp,
    ) -> Result<SignedGrant, NotCanonical> {
        // The accepted key is a valid fingerprint: the schema allows no other, and the report that led here was signed by it.
        let key = device.spec.accepted_key.as_deref().and_then(|key| key.parse().ok());
        let grant = Grant {
            device_key: key.unwrap_or_else(|| self.keys.root.fingerprint()),
            order_digest: request.order_digest.clone(),
            nonce: request.nonce.clone(),
            purpose: request.purpose,
            issued_at: now,
            verdict,
        };
        Ok(SignedGrant {
            grant: Envelope::seal(&grant, &self.keys.order_key)?,
            delegation: self.keys.delegation.clone(),
        })
    }

    /// Makes the order and puts the claim into the status to be written.
    fn claim(
        &self,
        device: &mut Device,
        install: &Install,
        planned: &DevicePlan,
        policy: Option<&PatchPolicySpec>,
        catalogue: &Catalogue,
        now: Timestamp,
    ) {
        match self.order(device, install, planned, policy, catalogue, now) {
            Ok((order, signed)) => {
                device.compliance.sequence = order.sequence;
                device.compliance.current = Some(CurrentInstall {
                    sequence: order.sequence,
                    job: build::job_name(&order.device.name, order.sequence),
                    order_digest: signed.order.digest(),
                    leader: self.leader.clone(),
                    policy: order.policy.clone(),
                    verb: install.verb,
                    phase: InstallPhase::Claimed,
                    since: convert::whole_seconds(now),
                    not_after: order.not_after,
                    limit_seconds: order.limit_seconds.saturating_add(order.safeguards.seconds()),
                    restart_seconds: build::seconds_beyond_limit(&order),
                    expected_seconds: u32::try_from(install.expected.as_secs()).ok(),
                    known: known(install, &order, planned, catalogue),
                    updates: order.actions.iter().map(|action| action.update.clone()).collect(),
                    grant: None,
                });
                device.claimed = Some((order, signed));
                device.is_moved = true;
            }
            Err(why) => tracing::error!(device = %device.reference, why, "cannot make an order"),
        }
    }

    fn order(
        &self,
        device: &Device,
        install: &Install,
        planned: &DevicePlan,
        policy: Option<&PatchPolicySpec>,
        catalogue: &Catalogue,
        now: Timestamp,
    ) -> Result<(Order, SignedOrder), String> {
        let report = convert::believed_report(&device.object).map_err(|why| format!("no report: {why:?}"))?;
        let key = device.object.spec.accepted_key.as_deref().unwrap_or_default();
        let key = key.parse().map_err(|error| format!("spec.acceptedKey: {error}"))?;
        let sequence = device.compliance.sequence.max(report.last_sequence.unwrap_or_default()).next();
        let decided: Vec<_> = status::updates(planned, catalogue, &device.compliance.updates, now).collect();
        let policy = policy.ok_or_else(|| format!("PatchPolicy/{} is not there", install.policy))?;
        let safeguards = convert::safeguards(policy, install.limit).map_err(|invalid| invalid.0)?;
        let order = build::order(
            &device.reference,
            key,
            report,
            install,
            &safeguards,
            policy.site_cache.as_ref().map(convert::site_cache).transpose().map_err(|invalid| invalid.0)?,
            &decided,
            sequence,
            convert::whole_seconds(now),
        )
        .map_err(|error| error.to_string())?;
        let signed = SignedOrder {
            order: Envelope::seal(&order, &self.keys.order_key).map_err(|error| error.to_string())?,
            delegation: self.keys.delegation.clone(),
        };
        Ok((order, signed))
    }
}

/// What is known of the updates of an order, for whoever records what came of it.
fn known(install: &Install, order: &Order, planned: &DevicePlan, catalogue: &Catalogue) -> Vec<KnownUpdate> {
    let known = |id: &str| {
        let since = install.updates.iter().zip(&install.since).find(|(other, _)| &***other == id);
        let mut of_device = planned.updates.iter().filter_map(|planned| catalogue.get(planned.update));
        let update = of_device.find(|update| *update.id == *id)?;
        let first_seen = convert::whole_seconds(*since?.1);
        Some(KnownUpdate { classification: update.classification, first_seen, published: update.published })
    };
    // All of them or none: they go by their places.
    order.actions.iter().map(|action| known(&action.update)).collect::<Option<_>>().unwrap_or_default()
}

fn grant_request(device: &DeviceInventory) -> Option<&GrantRequest> {
    device.status.as_ref()?.inventory.as_ref()?.grant_request.as_ref()
}

fn denied(blocked: &Blocked) -> Verdict {
    Verdict::Denied { reason: blocked.code().to_owned(), message: blocked.to_string() }
}
