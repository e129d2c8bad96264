//! Who speaks in a session: the one machine of the device, one that was set back, or a copy of it.
//!
//! ```text
//!   Hello: an unknown process -> a report is asked for; no orders, no grants
//!   the answer                -> it lives, and is remembered: orders go on, or two machines take turns and both stop
//! ```
//!
//! It is remembered with its answer and not with its Hello, which may have waited somewhere for longer than its process has lived. So nothing
//! is written for a process that is known, and no session waits for the database before its Welcome.

use patchwarden_protocol::DUPLICATE_IDENTITY;
use patchwarden_protocol::agent_v1 as wire;
use patchwarden_protocol::key::Fingerprint;

use super::Session;
use super::end::End;
use crate::api::device_inventory::DuplicateIdentity;
use crate::gateway::clean;
use crate::shell;
use crate::store::{Found, Meeting, Member};

/// Characters of an id: 128 bits in hexadecimal.
const ID: usize = 32;

/// The maximum of `duplicateIdentity.machines[]` in the resource's schema.
const ABOUT: usize = 256;

/// A process that is not remembered yet.
pub(super) struct Unproven {
    member: Member,
    predecessor: String,
}

impl Session {
    /// Looks at who has said Hello. Ends the session while several machines use the key.
    pub(super) async fn recognise(&mut self, instance: Option<wire::Instance>) -> Result<(), End> {
        let (device, shared) = (self.identity.device.clone(), self.shared.clone());
        let seen = shared.devices.get(&device).await.map_err(|error| End::Revoked(error.to_string()))?;
        let mut known = shared.store.lineage(&device, &self.fingerprint).await?;
        if let Some(found) = known.as_ref().and_then(|known| known.found.clone()) {
            if seen.duplicate_resolved != Some(found.since) {
                return Err(self.stop_duplicates(&found).await);
            }
            if shared.store.forget_lineage(&device, &self.fingerprint, found.since).await? {
                let detail = format!("spec.duplicateResolved is {}: whoever speaks now is the device", found.since);
                let who = self.fingerprint.as_str();
                shared.audit(who, "Session", &device.to_string(), "DuplicateResolved", &detail).await;
            }
            known = None;
        }
        if seen.inventory.duplicate_identity.is_some() && seen.duplicate().is_none() {
            let cleared = shared.devices.write(&device, |inventory| inventory.duplicate_identity = None).await;
            if let Err(error) = cleared {
                tracing::warn!(%device, %error, "what is resolved stays in the status until the next session");
            }
        }
        let id = |text: &str| text.len() == ID && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(instance) = instance.filter(|instance| id(&instance.id)) else { return Ok(()) };
        if known.is_none_or(|known| known.current.id != instance.id) {
            let wire::Instance { id, predecessor, host_name, started } = instance;
            let (host_name, started) = (clean(&host_name, 63), clean(&started, 30));
            let about = format!("{host_name} at {}, its agent started {started}", self.peer);
            self.unproven = Some(Unproven { member: Member { id, about }, predecessor });
        }
        Ok(())
    }

    /// Whether there are neither orders nor grants for now.
    pub(super) fn is_held(&self) -> bool {
        self.unproven.is_some() || self.is_set_back
    }

    /// The device has answered: its process lives.
    pub(super) async fn prove(&mut self) -> Result<(), End> {
        let Some(Unproven { member, predecessor }) = self.unproven.take() else { return Ok(()) };
        let (device, shared) = (self.identity.device.clone(), self.shared.clone());
        let about = member.about.clone();
        let met = shared.store.meet(&device, &self.fingerprint, member, &predecessor, shell::now()).await?;
        match met {
            (Meeting::Follows, _) => {}
            (Meeting::SetBack, _) => tracing::warn!(%device, about, "this machine was set back, or is a copy"),
            (Meeting::Returned, lineage) => {
                tracing::warn!(%device, about, before = lineage.current.about, "it speaks again: is it a copy of this machine?");
                let detail = format!("{about} speaks again after another one has: is it a copy of this machine?");
                shared.audit(self.fingerprint.as_str(), "Session", &device.to_string(), "Returned", &detail).await;
            }
            (Meeting::Duplicate, lineage) => {
                if let Some(found) = lineage.found {
                    let detail = told(&found, &self.fingerprint).words();
                    tracing::error!(%device, "{detail}");
                    let (who, object) = (self.fingerprint.as_str(), device.to_string());
                    shared.audit(who, "Session", &object, DUPLICATE_IDENTITY, &detail).await;
                    return Err(self.stop_duplicates(&found).await);
                }
            }
        }
        self.release().await
    }

    /// Says in the device's status what was found; the reason to end the session for.
    async fn stop_duplicates(&self, found: &Found) -> End {
        let device = &self.identity.device;
        let shown = told(found, &self.fingerprint);
        let words = shown.words();
        let written = self.shared.devices.write(device, |inventory| {
            // A request of one of them is not answered, and does not wait for the time after.
            inventory.grant_request = None;
            inventory.duplicate_identity = Some(shown);
        });
        if let Err(error) = written.await {
            tracing::warn!(%device, %error, "the status does not tell yet; it is written when one of them comes again");
        }
        End::Duplicate(words)
    }

    /// What a session that was held has missed.
    pub(super) async fn release(&mut self) -> Result<(), End> {
        if self.is_held() {
            return Ok(());
        }
        for run in self.shared.orders.open(&self.identity.device, shell::now()) {
            self.deliver(&run.order).await?;
        }
        self.resource_changed().await
    }
}

/// What was found of this key, as the device's status says it.
fn told(found: &Found, key: &Fingerprint) -> DuplicateIdentity {
    let machines = found.machines.iter().map(|one| one.about.chars().take(ABOUT).collect()).collect();
    DuplicateIdentity { since: found.since, key: key.as_str().to_owned(), machines }
}
