//! What the policy says of this device beside its orders: `settings.json` in the state directory, as the controller signed it.
//!
//! It is verified whenever it is read, like what the gateway brings. Only later ones replace it, so nobody who has the gateway brings
//! back what a policy no longer says; and it says nothing any more once its time is over.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::key::{Fingerprint, PublicKey};
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::settings::{NotTaken, Settings, SignedSettings};

use crate::files;

const FILE: &str = "settings.json";

/// Why settings are not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
}

/// Whom this device believes, and who it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Believer<'a> {
    /// The pinned root.
    pub(crate) root: &'a PublicKey,
    /// This device by name.
    pub(crate) device: &'a DeviceRef,
    /// This device by key.
    pub(crate) device_key: &'a Fingerprint,
}

/// The place.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    path: PathBuf,
}

impl Kept {
    /// In a state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self { path: state.join(FILE) }
    }

    /// The settings that count now.
    pub(crate) fn load(&self, believer: Believer<'_>, now: Timestamp) -> Option<Settings> {
        let Believer { root, device, device_key } = believer;
        self.read()?.open(root, device, device_key, now).ok()
    }

    /// When those were issued that are here, whether they still count or not.
    pub(crate) fn issued_at(&self, believer: Believer<'_>) -> Option<Timestamp> {
        let kept = self.read()?.settings.peek()?;
        // Of a device that has another key now they say nothing.
        (kept.device_key == *believer.device_key).then_some(kept.issued_at)
    }

    /// Digest of those that are here and count; empty where there are none. The gateway brings its own where they are others.
    pub(crate) fn digest(&self, believer: Believer<'_>, now: Timestamp) -> String {
        self.load(believer, now).and_then(|_| Some(self.read()?.digest())).unwrap_or_default()
    }

    /// Keeps settings that came from the gateway, if they are to be believed and come after those that are here. Whether they are
    /// others.
    pub(crate) fn take(&self, bytes: &[u8], believer: Believer<'_>, now: Timestamp) -> Result<bool, SettingsError> {
        let Believer { root, device, device_key } = believer;
        let signed = SignedSettings::parse(bytes)?;
        let Settings { issued_at, .. } = signed.open(root, device, device_key, now)?;
        if let Some(kept) = self.issued_at(believer)
            && issued_at <= kept
        {
            if self.read().is_some_and(|here| here.settings == signed.settings) {
                return Ok(false);
            }
            return Err(NotTaken::Older { issued_at, kept }.into());
        }
        let bytes = serde_json::to_vec(&signed).map_err(|error| NotTaken::Unreadable(error.to_string()))?;
        let io = |source| SettingsError::Io { path: self.path.clone(), source };
        files::write_atomic(&self.path, &bytes, files::PRIVATE).map_err(io)?;
        Ok(true)
    }

    /// What is here; nothing where it cannot be read.
    fn read(&self) -> Option<SignedSettings> {
        SignedSettings::parse(&files::read_if_exists(&self.path).ok()??).ok()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::delegation::Delegation;
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::settings::OsUpdater;

    use super::*;

    struct World {
        _place: tempfile::TempDir,
        kept: Kept,
        root: PrivateKey,
        order_key: PrivateKey,
        device: DeviceRef,
        device_key: Fingerprint,
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hour * 3600).unwrap()
    }

    fn world() -> World {
        let place = tempfile::tempdir().unwrap();
        World {
            kept: Kept::new(place.path()),
            _place: place,
            root: PrivateKey::generate(),
            order_key: PrivateKey::generate(),
            device: DeviceRef { namespace: "acme".into(), name: "web-1".into() },
            device_key: PrivateKey::generate().public().fingerprint(),
        }
    }

    impl World {
        /// Good for a day.
        fn signed(&self, issued: i64, os_updater: OsUpdater) -> Vec<u8> {
            let settings = Settings {
                device: self.device.clone(),
                device_key: self.device_key.clone(),
                policy: "servers".into(),
                os_updater,
                applications: Vec::new(),
                epoch: 0,
                issued_at: at(issued),
                not_after: at(issued + 24),
            };
            let delegation = Delegation {
                order_key: self.order_key.public(),
                not_before: at(-24),
                not_after: at(-24) + SignedDuration::from_hours(90 * 24),
            };
            let signed = SignedSettings {
                settings: Envelope::seal(&settings, &self.order_key).unwrap(),
                delegation: Envelope::seal(&delegation, &self.root).unwrap(),
            };
            serde_json::to_vec(&signed).unwrap()
        }

        fn with<T>(&self, look: impl FnOnce(Believer<'_>) -> T) -> T {
            let root = self.root.public();
            look(Believer { root: &root, device: &self.device, device_key: &self.device_key })
        }

        fn take(&self, bytes: &[u8], now: i64) -> Result<bool, String> {
            self.with(|it| self.kept.take(bytes, it, at(now))).map_err(|error| error.to_string())
        }

        fn says(&self, now: i64) -> Option<OsUpdater> {
            self.with(|it| self.kept.load(it, at(now))).map(|settings| settings.os_updater)
        }
    }

    #[test]
    fn only_later_settings_replace_those_that_are_here() {
        let world = world();
        let (disable, leave) = (world.signed(5, OsUpdater::Disable), world.signed(6, OsUpdater::Leave));
        assert_eq!((world.says(5), world.take(&disable, 5)), (None, Ok(true)));
        assert_eq!((world.says(5), world.take(&disable, 5)), (Some(OsUpdater::Disable), Ok(false)));
        assert_eq!((world.take(&leave, 6), world.says(6)), (Ok(true), Some(OsUpdater::Leave)));
        let refused = world.take(&disable, 6).unwrap_err();
        assert!(refused.contains("do not come after"), "{refused}");
        let other = world.take(&world.signed(6, OsUpdater::Disable), 6).unwrap_err();
        assert!(other.contains("do not come after"), "others of the same second: {other}");
        assert_eq!(world.says(6), Some(OsUpdater::Leave));
    }

    #[test]
    fn settings_say_nothing_once_their_time_is_over_and_older_ones_do_not_come_back() {
        let world = world();
        let (earlier, later) = (world.signed(10, OsUpdater::Disable), world.signed(11, OsUpdater::Leave));
        world.take(&later, 11).unwrap();
        assert!(world.with(|it| world.kept.digest(it, at(34))).starts_with("sha256:"));
        assert_eq!((world.says(34), world.says(35)), (Some(OsUpdater::Leave), None));
        assert_eq!(world.with(|it| world.kept.digest(it, at(35))), "", "the gateway is asked for others");
        assert!(world.take(&earlier, 33).unwrap_err().contains("do not come after"));
        assert!(world.take(&later, 35).unwrap_err().contains("have said nothing since"));
    }

    #[test]
    fn what_lies_here_is_verified_again_whenever_it_is_read() {
        let world = world();
        world.take(&world.signed(5, OsUpdater::Disable), 5).unwrap();
        let other = PrivateKey::generate().public();
        let believer = |root| Believer { root, device: &world.device, device_key: &world.device_key };
        assert!(world.kept.load(believer(&other), at(5)).is_none(), "another root");
        std::fs::write(&world.kept.path, "{").unwrap();
        assert_eq!(world.says(5), None);
        assert_eq!(world.take(&world.signed(5, OsUpdater::Disable), 5), Ok(true), "a damaged file is replaced");
        let forged = String::from_utf8(world.signed(7, OsUpdater::Leave)).unwrap();
        let mut forged: SignedSettings = serde_json::from_str(&forged).unwrap();
        forged.settings.signatures[0].sig = "AAAA".into();
        std::fs::write(&world.kept.path, serde_json::to_vec(&forged).unwrap()).unwrap();
        assert_eq!(world.says(7), None);
    }
}
