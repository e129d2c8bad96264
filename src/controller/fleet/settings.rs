//! What policies say of devices beside orders: signed, and put into the status to be written.

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::settings::SignedSettings;

use super::{Device, Fleet};
use crate::controller::cache::Tenant;
use crate::convert;
use crate::plan::DEFAULT_SETTLE;
use crate::plan::outcome::DevicePlan;
use crate::settings::{self, Facts, Said, Step};

impl Fleet<'_> {
    /// Brings a device's settings to what its policy says. Returns when it is to be looked at again, if it has not settled yet.
    pub(super) fn settle_settings(
        &self,
        device: &mut Device,
        planned: &DevicePlan,
        tenant: &Tenant,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let policy = planned.policy.as_deref().and_then(|name| Some((name, &tenant.policies.get(name)?.spec)));
        if planned.policy.is_some() && policy.is_none() {
            return None;
        }
        let settle = match policy {
            // A time that cannot be read waits for whoever corrects it.
            Some((_, spec)) => convert::settle(spec)?,
            None => DEFAULT_SETTLE,
        };
        let settles = planned.moved.as_ref().and_then(|moved| moved.since.checked_add(settle).ok());
        let applications = policy.map(|(_, spec)| convert::applications(&spec.applications)).unwrap_or_default();
        let said = policy.map(|(name, spec)| (name, Said { os_updater: spec.os_updater, applications: &applications }));
        let says_nothing = said.is_none_or(|(_, said)| said.is_nothing());
        let was_told = device.compliance.settings.is_some() || settings::may_act_by_policy(&device.object);
        if says_nothing && !was_told && self.keys.epoch == 0 {
            return None;
        }
        let report = convert::believed_report(&device.object).ok();
        let order_key = self.keys.order_key.public().fingerprint();
        let facts = Facts {
            held: device.compliance.settings.as_ref(),
            report,
            policy: said,
            settles,
            epoch: self.keys.epoch,
            order_key: &order_key,
            delegated_until: self.keys.delegated_until,
            now,
        };
        match settings::step(&device.object, &facts) {
            Step::Keep => None,
            Step::Wait(until) => Some(until),
            Step::Drop => {
                device.compliance.settings = None;
                None
            }
            Step::Sign(wanted) => {
                match Envelope::seal(&*wanted, &self.keys.order_key) {
                    Ok(settings) => {
                        tracing::info!(device = %device.reference, os_updater = ?wanted.os_updater, applications = wanted.applications.len(), epoch = wanted.epoch, policy = wanted.policy, "signed settings");
                        let delegation = self.keys.delegation.clone();
                        device.compliance.settings = Some(SignedSettings { settings, delegation });
                    }
                    Err(error) => tracing::error!(device = %device.reference, %error, "cannot sign settings"),
                }
                None
            }
        }
    }
}
