//! What the owner of the machine has a say in: its limits, and the operating system's own updater.

use super::Agent;
use crate::config::OsUpdater;
use crate::limits::{Limits, LimitsError};
use crate::platform;
use crate::provider::{Inventory, Provider};

impl<P: Provider> Agent<P> {
    /// The limits as they are now.
    pub(crate) fn limits(&self) -> Result<Limits, LimitsError> {
        Limits::load(&self.limits)
    }

    /// What its owner's limits do not let be installed is held, and so is a version of the agent that was taken back. Limits that cannot be used are a problem of the report.
    pub(super) fn mark(&self, mut inventory: Inventory) -> Inventory {
        if let Ok(limits) = self.limits() {
            limits.mark(&mut inventory);
        }
        self.successor.hold(&mut inventory);
        inventory
    }

    /// The operating system's own updater is off while the owner wants it so and somebody manages this machine.
    pub(super) async fn tend_updater(&self) {
        if self.link.skew().is_some() {
            self.note_contact();
        }
        let is_over = self.contact.is_over(platform::now()).unwrap_or_else(|error| {
            tracing::warn!("when the gateway was last heard of cannot be written down: {error}");
            false
        });
        let tended = match self.config.os_updater {
            OsUpdater::Disable if !is_over => self.updater.switch_off().await,
            OsUpdater::Disable | OsUpdater::Leave => self.updater.give_back().await,
        };
        match tended {
            Ok(remarks) => {
                for remark in remarks {
                    tracing::warn!("the operating system's own updater: {remark}");
                }
            }
            Err(error) => tracing::error!("the operating system's own updater: {error}"),
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
}
