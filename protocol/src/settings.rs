//! What a policy says of a device beside its orders: signed like an order, and standing until a later one or its end.
//!
//! It lies in the device's status, and the gateway passes it on. A gateway can withhold it, and neither make one nor bring back
//! an older one: each is issued later than the one before, and the agent keeps the latest.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::MAX_CLOCK_SKEW_SECONDS;
use crate::applications::{self, Application};
use crate::delegation::Delegation;
use crate::envelope::{Document, Envelope, Refused};
use crate::key::{Fingerprint, PublicKey};
use crate::report::DeviceRef;

/// The longest that settings may count for: half of a delegation's life, which the controller renews when less than that is left of it.
pub const MAX_LIFETIME: SignedDuration = SignedDuration::from_hours(45 * 24);

/// The largest signed settings in bytes, as they travel: with every name as long as it can be they are below 5 KiB.
pub const MAX_BYTES: usize = 8 * 1024;

/// What becomes of the operating system's own updater (unattended-upgrades, dnf-automatic and their like).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OsUpdater {
    /// It does what it is set up to do.
    #[default]
    Leave,
    /// It is switched off while the device is managed, and given back afterwards.
    Disable,
}

/// The settings. Like an order an older agent must not half-understand them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The device by name.
    pub device: DeviceRef,
    /// The device by key: what counts.
    pub device_key: Fingerprint,
    /// The policy in whose name they are; empty where none governs the device any more.
    pub policy: String,
    /// What becomes of the operating system's own updater.
    pub os_updater: OsUpdater,
    /// Applications that are to be installed or not to be there. An agent of an earlier version takes settings in which there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applications: Vec<Application>,
    /// The device follows into this epoch once no order is at work: it takes none of an earlier one any more, and tells its results
    /// again. An agent of an earlier version takes settings of epoch 0.
    #[serde(default, skip_serializing_if = "is_first")]
    pub epoch: u32,
    /// When they were signed, in whole seconds: later than all before.
    pub issued_at: Timestamp,
    /// They say nothing from then on.
    pub not_after: Timestamp,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_first(epoch: &u32) -> bool {
    *epoch == 0
}

impl Document for Settings {
    const TYPE: &'static str = "application/vnd.patchwarden.settings.v1+json";
}

/// Settings with the proof that their signer may give orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignedSettings {
    /// Signed by the order key.
    pub settings: Envelope<Settings>,
    /// Signed by the root.
    pub delegation: Envelope<Delegation>,
}

/// Why settings do not count.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Signature, type or delegation.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// More bytes than settings can have, or no settings.
    #[error("the settings cannot be read: {0}")]
    Unreadable(String),
    /// Of another device.
    #[error("the settings are for {device} ({key})")]
    OtherDevice {
        /// By name.
        device: DeviceRef,
        /// By key.
        key: Fingerprint,
    },
    /// Their time is over.
    #[error("the settings issued at {issued_at} have said nothing since {not_after}")]
    Expired {
        /// When they were signed.
        issued_at: Timestamp,
        /// Until when they counted.
        not_after: Timestamp,
    },
    /// Good for longer than settings may be.
    #[error("the settings issued at {issued_at} are to count until {not_after}, which is more than 45 days")]
    TooLong {
        /// When they were signed.
        issued_at: Timestamp,
        /// Until when they are to count.
        not_after: Timestamp,
    },
    /// Issued in the future: the clocks differ.
    #[error("clock skew: the settings were issued at {issued_at}, more than 2 min ahead of this device's clock")]
    ClockSkew {
        /// When they were signed.
        issued_at: Timestamp,
    },
    /// The device has later ones, or others of the same second.
    #[error("the settings issued at {issued_at} do not come after those of {kept}, which this device has")]
    Older {
        /// When they were signed.
        issued_at: Timestamp,
        /// When those were.
        kept: Timestamp,
    },
}

impl SignedSettings {
    /// Reads them.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotTaken> {
        if bytes.len() > MAX_BYTES {
            return Err(NotTaken::Unreadable(format!("{} bytes, at most {MAX_BYTES} are allowed", bytes.len())));
        }
        serde_json::from_slice(bytes).map_err(|error| NotTaken::Unreadable(error.to_string()))
    }

    /// The settings, if they count `now` on the device with this name and key.
    pub fn open(
        &self,
        root: &PublicKey,
        device: &DeviceRef,
        device_key: &Fingerprint,
        now: Timestamp,
    ) -> Result<Settings, NotTaken> {
        let settings = self.settings.open(&crate::delegation::order_key(&self.delegation, root, now)?)?;
        let Settings { issued_at, not_after, .. } = settings;
        if settings.device != *device || settings.device_key != *device_key {
            return Err(NotTaken::OtherDevice { device: settings.device, key: settings.device_key });
        }
        if issued_at.duration_since(now) > SignedDuration::from_secs(MAX_CLOCK_SKEW_SECONDS) {
            return Err(NotTaken::ClockSkew { issued_at });
        }
        if now >= not_after {
            return Err(NotTaken::Expired { issued_at, not_after });
        }
        if not_after.duration_since(issued_at) > MAX_LIFETIME {
            return Err(NotTaken::TooLong { issued_at, not_after });
        }
        applications::check(&settings.applications)
            .map_err(|why| NotTaken::Unreadable(format!("applications: {why}")))?;
        Ok(settings)
    }

    /// Their digest, by which a device says which it has.
    pub fn digest(&self) -> String {
        self.settings.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    struct World {
        root: PrivateKey,
        order_key: PrivateKey,
        settings: Settings,
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn world() -> World {
        let settings = Settings {
            device: DeviceRef { namespace: "acme".into(), name: "web".into() },
            device_key: PrivateKey::generate().public().fingerprint(),
            policy: "servers".into(),
            os_updater: OsUpdater::Disable,
            applications: Vec::new(),
            epoch: 0,
            issued_at: at("2026-01-10T12:00:00Z"),
            not_after: at("2026-02-20T12:00:00Z"),
        };
        World { root: PrivateKey::generate(), order_key: PrivateKey::generate(), settings }
    }

    impl World {
        fn signed_by(&self, key: &PrivateKey) -> SignedSettings {
            let delegation = Delegation {
                order_key: self.order_key.public(),
                not_before: at("2026-01-01T00:00:00Z"),
                not_after: at("2026-03-01T00:00:00Z"),
            };
            SignedSettings {
                settings: Envelope::seal(&self.settings, key).unwrap(),
                delegation: Envelope::seal(&delegation, &self.root).unwrap(),
            }
        }

        fn open(&self, now: &str) -> Result<Settings, NotTaken> {
            let World { root, order_key, settings } = self;
            self.signed_by(order_key).open(&root.public(), &settings.device, &settings.device_key, at(now))
        }
    }

    const NOW: &str = "2026-01-10T12:00:01Z";

    #[test]
    fn settings_of_the_order_key_count_until_their_end() {
        let world = world();
        assert_eq!(world.open(NOW).as_ref(), Ok(&world.settings));
        assert!(world.open("2026-02-20T11:59:59Z").is_ok());
        assert!(matches!(world.open("2026-02-20T12:00:00Z"), Err(NotTaken::Expired { .. })));
        assert!(matches!(world.open("2026-01-10T11:57:59Z"), Err(NotTaken::ClockSkew { .. })));
        assert!(world.open("2026-01-10T11:58:00Z").is_ok(), "clocks may differ");
    }

    #[test]
    fn nobody_else_makes_settings_and_they_are_of_one_device() {
        let world = world();
        let World { root, order_key, settings } = &world;
        let open = |signed: &SignedSettings, device: &DeviceRef, key: &Fingerprint| {
            signed.open(&root.public(), device, key, at(NOW))
        };
        let (device, key) = (&settings.device, &settings.device_key);
        let forged = open(&world.signed_by(&PrivateKey::generate()), device, key);
        assert!(matches!(forged, Err(NotTaken::Refused(Refused::BadSignature(_)))), "{forged:?}");
        let good = world.signed_by(order_key);
        let elsewhere = good.open(&PrivateKey::generate().public(), device, key, at(NOW));
        assert!(matches!(elsewhere, Err(NotTaken::Refused(_))), "another root");
        let other = DeviceRef { name: "db".into(), ..device.clone() };
        assert!(matches!(open(&good, &other, key), Err(NotTaken::OtherDevice { .. })));
        let other = PrivateKey::generate().public().fingerprint();
        assert!(matches!(open(&good, device, &other), Err(NotTaken::OtherDevice { .. })));
        // Neither does what was signed as something else.
        let mut other = good.clone();
        other.settings.payload_type = "application/vnd.patchwarden.grant.v1+json".into();
        assert!(matches!(open(&other, device, key), Err(NotTaken::Refused(Refused::WrongType { .. }))));
    }

    #[test]
    fn settings_that_would_count_for_too_long_are_refused() {
        let mut world = world();
        world.settings.not_after = world.settings.issued_at + MAX_LIFETIME;
        assert!(world.open(NOW).is_ok());
        world.settings.not_after += SignedDuration::from_secs(1);
        assert!(matches!(world.open(NOW), Err(NotTaken::TooLong { .. })));
    }

    #[test]
    fn applications_are_signed_with_them_and_hostile_names_are_refused() {
        let mut world = world();
        let wants = |name: String| Application { name, ensure: applications::Ensure::Installed };
        let plain = serde_json::to_value(&world.settings).unwrap();
        assert!(plain.get("applications").is_none(), "earlier agents take settings without any");
        assert!(plain.get("epoch").is_none(), "and those of the first epoch");
        world.settings.applications =
            (10..10 + applications::MAX_APPLICATIONS).map(|number| wants(number.to_string().repeat(31))).collect();
        assert_eq!(world.open(NOW).as_ref(), Ok(&world.settings));
        let bytes = serde_json::to_vec(&world.signed_by(&world.order_key)).unwrap();
        assert!(bytes.len() < 5 * 1024, "{}", bytes.len());
        world.settings.applications = vec![wants("../../etc".to_owned())];
        assert!(matches!(world.open(NOW), Err(NotTaken::Unreadable(_))));
    }

    #[test]
    fn what_is_too_large_or_has_more_fields_is_not_read() {
        let world = world();
        let signed = world.signed_by(&world.order_key);
        let bytes = serde_json::to_vec(&signed).unwrap();
        assert_eq!(SignedSettings::parse(&bytes), Ok(signed));
        assert!(bytes.len() < 2048, "{}", bytes.len());
        let padded = [bytes, vec![b' '; MAX_BYTES]].concat();
        assert!(matches!(SignedSettings::parse(&padded), Err(NotTaken::Unreadable(_))));
        assert!(matches!(SignedSettings::parse(b"{}"), Err(NotTaken::Unreadable(_))));
        let mut wider = serde_json::to_value(&world.settings).unwrap();
        wider["more"] = 1.into();
        assert!(serde_json::from_value::<Settings>(wider).is_err());
    }
}
