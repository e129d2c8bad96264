//! Events: what a person would want to read, one for each install that ends.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use patchwarden_protocol::result::Outcome;

use crate::api::device_inventory::PastInstall;
use crate::api::{DeviceInventory, PatchPolicy};
use crate::install::Settled;
use crate::plan::model::{Name, Progress};

/// Publishes events on devices.
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// In the controller's name.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: "patchwarden-controller".into(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// The end of a claim, if it is one.
    pub async fn settled(&self, device: &DeviceInventory, settled: &Settled) {
        let event = match settled {
            Settled::Recorded(past) => recorded(past),
            Settled::TimedOut(past) => {
                warning("InstallTimedOut", &format!("install {}: {}", past.sequence, past.message))
            }
            Settled::Released(claim) => warning(
                "InstallReleased",
                &format!("install {} was given up before it began: its Job {} is not there", claim.sequence, claim.job),
            ),
            Settled::NoClaim | Settled::Holds | Settled::ResultRefused(_) => return,
        };
        self.publish(device, event).await;
    }

    /// A Job that could not be created.
    pub async fn job_refused(&self, device: &DeviceInventory, job: &str, error: &kube::Error) {
        self.publish(device, warning("JobNotCreated", &format!("Job {job}: {error}"))).await;
    }

    /// What has become of a policy's updates: stopped, or the whole rollout paused.
    pub async fn progress(&self, policy: &PatchPolicy, before: &Progress, now: &Progress) {
        if now.paused.is_some() && before.paused.is_none() {
            let note = "more devices failed than spec.rollout.failureBudget allows: nothing is started until \
                        spec.rollout.resumed is set";
            self.publish(policy, warning("RolloutPaused", note)).await;
        }
        if let Some(pending) = now.blast.pending.as_ref().filter(|_| now.blast.pending != before.blast.pending) {
            let note = format!(
                "a change makes {} devices newly eligible, more than spec.blastLimit allows: nothing is installed on them \
                 until spec.confirm is {}",
                pending.devices, pending.specs
            );
            self.publish(policy, warning("BlastLimitExceeded", &note)).await;
        }
        let was = |id: &Name| before.updates.get(id).and_then(|update| update.stopped);
        for (id, _) in now.updates.iter().filter(|(id, update)| update.stopped.is_some() && update.stopped != was(id)) {
            let note = format!("{id} failed on several devices and is installed nowhere any more");
            self.publish(policy, warning("UpdateStopped", &note)).await;
        }
    }

    async fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, event: Event) {
        let reference: ObjectReference = object.object_ref(&());
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(object = ?reference.name, %error, "cannot write an Event");
        }
    }
}

fn recorded(past: &PastInstall) -> Event {
    let installed = past.updates.iter().filter(|update| update.done).count();
    let total = past.updates.len();
    match past.outcome {
        Some(Outcome::Succeeded) => Event {
            type_: EventType::Normal,
            reason: "InstallSucceeded".to_owned(),
            note: Some(format!("install {}: {installed} of {total} updates installed", past.sequence)),
            action: "Install".to_owned(),
            secondary: None,
        },
        outcome => {
            let reason = past.reason.map(|reason| format!(" ({reason:?})")).unwrap_or_default();
            let outcome = outcome.map_or_else(|| "unknown".to_owned(), |outcome| format!("{outcome:?}"));
            warning(
                &format!("Install{outcome}"),
                &format!(
                    "install {}: {outcome}{reason}, {installed} of {total} updates installed: {}",
                    past.sequence, past.message
                ),
            )
        }
    }
}

fn warning(reason: &str, note: &str) -> Event {
    Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: "Install".to_owned(),
        secondary: None,
    }
}
