//! What the owner of the machine has a say in: its limits, and the operating system's own updater.

use std::path::Path;

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::applications::Application;
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::settings::OsUpdater;
use patchwarden_protocol::surroundings::UpdaterReport;
use patchwarden_protocol::trust::Trust;

use super::Agent;
use crate::config::Config;
use crate::identity::Identity;
use crate::limits::{Limits, LimitsError};
use crate::platform;
use crate::provider::{Inventory, Provider};
use crate::settings::{Believer, Kept};
use crate::updater::{Contact, PATIENCE, Ruling, Voices};

impl<P: Provider> Agent<P> {
    /// The limits as they are now.
    pub(crate) fn limits(&self) -> Result<Limits, LimitsError> {
        Limits::load(&self.limits)
    }

    /// What its owner's limits do not let be installed is held, and so is a version of the agent that was taken back. Limits that cannot be used are a problem of the report.
    pub(super) fn mark(&self, mut inventory: Inventory) -> Inventory {
        if let Ok(limits) = self.limits() {
            // Of an application whose recipe is not here nobody knows whether it keeps data.
            let goes_back = |name: &str| self.provider.as_ref().is_ok_and(|provider| provider.goes_back(name, ""));
            limits.mark(&mut inventory, |name| !goes_back(name));
        }
        self.successor.hold(&mut inventory);
        inventory
    }

    /// The operating system's own updater is off while limits, owner or policy want it so and somebody manages this machine.
    pub(super) async fn tend_updater(&self) {
        if self.link.skew().is_some() {
            self.note_contact();
        }
        let now = platform::now();
        let is_over = self.contact.is_over(now).unwrap_or_else(|error| {
            tracing::warn!("when the gateway was last heard of cannot be written down: {error}");
            false
        });
        let (limits, settings) = (self.limits(), self.believing(|it| self.settings.load(it, now)));
        let ruling = Ruling::of(&Voices {
            limits: &limits,
            owner: self.config.os_updater,
            settings: settings.as_ref(),
            is_over,
            why_not: platform::WHY_UPDATER_STAYS,
        });
        let tended = match ruling.choice {
            Some(OsUpdater::Disable) => self.updater.switch_off().await,
            Some(OsUpdater::Leave) => self.updater.give_back().await,
            None => Ok(Vec::new()),
        };
        let state = match tended {
            Ok(remarks) => {
                for remark in remarks {
                    tracing::warn!("the operating system's own updater: {remark}");
                }
                self.updater.state().map_err(|error| error.to_string())
            }
            Err(error) => {
                tracing::error!("the operating system's own updater: {error}");
                Err(error.to_string())
            }
        };
        let issued_at = self.believing(|it| self.settings.issued_at(it));
        let report = ruling.report(&state, issued_at);
        let before = self.os_updater.replace(Some(report.clone()));
        if before.is_none_or(|before| (before.state, before.by) != (report.state, report.by)) {
            let UpdaterReport { state, by, message, .. } = report;
            let message = if message.is_empty() { message } else { format!(": {message}") };
            tracing::info!("the operating system's own updater: {state:?} (decided by: {by:?}){message}");
        }
    }

    /// The gateway is heard of. If it was not for too long, what was given back meanwhile is seen to.
    pub(crate) fn note_contact(&self) {
        let now = platform::now();
        let noted = self.contact.is_over(now).and_then(|was_over| self.contact.note(now).map(|()| was_over));
        match noted {
            Ok(true) => self.rescan.notify_one(),
            Ok(false) => {}
            Err(error) => tracing::warn!("that the gateway was heard of cannot be written down: {error}"),
        }
    }

    /// Digest of the settings that are here and count.
    pub(crate) fn settings_digest(&self) -> String {
        self.believing(|it| self.settings.digest(it, platform::now()))
    }

    /// The gateway brings settings. Those that are not believed change nothing: whatever was there before still counts.
    pub(crate) fn receive_settings(&self, bytes: &[u8]) {
        match self.believing(|it| self.settings.take(bytes, it, platform::now())) {
            Ok(true) => {
                tracing::info!("the policy's settings were taken");
                self.rescan.notify_one();
            }
            Ok(false) => {}
            Err(error) => tracing::warn!("settings are refused: {error}"),
        }
    }

    /// The epoch of orders, as the settings name it.
    pub(super) fn epoch(&self) -> u32 {
        self.believing(|it| self.settings.load(it, platform::now())).map_or(0, |settings| settings.epoch)
    }

    /// The gateway brings the chain that leads to another root, or to other CAs. One that does not lead on from what is pinned changes nothing.
    pub(crate) fn receive_trust(&self, chain: &[u8]) {
        let chain: Vec<Envelope<Trust>> = match serde_json::from_slice(chain) {
            Ok(chain) => chain,
            Err(error) => return tracing::warn!("the chain to another root or CA cannot be read: {error}"),
        };
        let mut identity = self.identity.borrow_mut();
        match identity.follow(&chain, &self.state) {
            Ok(true) => {
                tracing::info!("the root key {} and its CAs are pinned from here on", identity.root.fingerprint());
            }
            Ok(false) => {
                tracing::warn!("the gateway has another root or CA than is pinned, and no chain that leads there");
            }
            Err(error) => tracing::error!("another root or CA cannot be pinned: {error}"),
        }
    }

    /// What the policy says of applications, as long as its settings count. Whoever looks at them or changes them is told first.
    pub(crate) fn note_wanted_applications(&self) {
        let settings = self.believing(|it| self.settings.load(it, platform::now()));
        if let Ok(provider) = &self.provider {
            provider.want(settings.map(|settings| settings.applications).unwrap_or_default());
        }
    }

    fn believing<T>(&self, look: impl FnOnce(Believer<'_>) -> T) -> T {
        let root = self.identity.borrow().root;
        look(Believer { root: &root, device: &self.config.device, device_key: &self.device_key })
    }
}

/// What the policy says of applications, for whoever looks beside an agent.
pub(crate) fn wanted_applications(
    device: &DeviceRef,
    identity: &Identity,
    state: &Path,
    now: Timestamp,
) -> Vec<Application> {
    let device_key = identity.key.public().fingerprint();
    let believer = Believer { root: &identity.root, device, device_key: &device_key };
    Kept::new(state).load(believer, now).map(|settings| settings.applications).unwrap_or_default()
}

/// What is to become of the operating system's own updater, for whoever looks beside an agent.
pub(crate) fn ruling(
    config: &Config,
    limits: &Result<Limits, LimitsError>,
    identity: Option<&Identity>,
    state: &Path,
    now: Timestamp,
) -> Ruling {
    let settings = identity.and_then(|identity| {
        let device_key = identity.key.public().fingerprint();
        let believer = Believer { root: &identity.root, device: &config.device, device_key: &device_key };
        Kept::new(state).load(believer, now)
    });
    let is_over = Contact::new(state).last().is_some_and(|last| now.duration_since(last) > PATIENCE);
    Ruling::of(&Voices {
        limits,
        owner: config.os_updater,
        settings: settings.as_ref(),
        is_over,
        why_not: platform::WHY_UPDATER_STAYS,
    })
}
