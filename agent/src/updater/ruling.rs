//! Who decides what becomes of the operating system's own updater, and what is told of it. Pure.
//!
//! The first that says something counts: `limits.toml`, `agent.toml`, the policy's signed settings. Nobody: it is left to itself.

use jiff::Timestamp;
use patchwarden_protocol::settings::{OsUpdater, Settings};
use patchwarden_protocol::surroundings::{
    MAX_UPDATER, MAX_UPDATER_MESSAGE, MAX_UPDATERS, UpdaterChoice, UpdaterReport, UpdaterState,
};

use super::State;
use crate::limits::{Limits, LimitsError};
use crate::provider::bounded;

/// What is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Voices<'a> {
    pub(crate) limits: &'a Result<Limits, LimitsError>,
    /// `os_updater` in `agent.toml`.
    pub(crate) owner: Option<OsUpdater>,
    /// Those that count.
    pub(crate) settings: Option<&'a Settings>,
    /// Whether the gateway was not heard of for too long.
    pub(crate) is_over: bool,
    /// Why this system's updater cannot be switched off.
    pub(crate) why_not: Option<&'a str>,
}

/// What is to become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// Nothing: it stays as it is, since the device's limits cannot be read.
    pub(crate) choice: Option<OsUpdater>,
    pub(crate) by: UpdaterChoice,
    /// Why it is not as somebody else says, for people.
    pub(crate) note: String,
}

impl Ruling {
    pub(crate) fn of(voices: &Voices<'_>) -> Self {
        let Voices { limits, owner, settings, is_over, why_not } = voices;
        let policy = settings.map(|settings| settings.os_updater);
        let limits = match limits {
            Ok(limits) => limits.os_updater(),
            Err(error) => return Self { choice: None, by: UpdaterChoice::Limits, note: error.to_string() },
        };
        let (choice, by, place) = match (limits, *owner, policy) {
            (Some(choice), _, _) => (choice, UpdaterChoice::Limits, "limits.toml"),
            (None, Some(choice), _) => (choice, UpdaterChoice::Owner, "agent.toml"),
            (None, None, Some(choice)) => (choice, UpdaterChoice::Policy, ""),
            (None, None, None) => (OsUpdater::Leave, UpdaterChoice::Nobody, ""),
        };
        if let (OsUpdater::Disable, Some(why)) = (choice, why_not) {
            return Self { choice: Some(OsUpdater::Leave), by: UpdaterChoice::Unsupported, note: (*why).to_owned() };
        }
        if choice == OsUpdater::Disable && *is_over {
            let note = "given back: the gateway was not heard of for 30 days".to_owned();
            return Self { choice: Some(OsUpdater::Leave), by: UpdaterChoice::NoContact, note };
        }
        let note = match settings {
            Some(settings) if settings.os_updater != choice => {
                let Settings { policy, os_updater, .. } = settings;
                format!("os_updater of this device's {place} is {choice:?}, PatchPolicy/{policy} says {os_updater:?}")
            }
            _ => String::new(),
        };
        Self { choice: Some(choice), by, note }
    }

    /// For the report. `state` is how it stands, or what stood in the way; `kept` is when the settings were issued that are here.
    pub(crate) fn report(&self, state: &Result<State, String>, kept: Option<Timestamp>) -> UpdaterReport {
        let (off, mut words, is_unfinished) = match state {
            Ok(State { off, remarks, is_unfinished }) => (off.as_slice(), remarks.clone(), *is_unfinished),
            Err(error) => ([].as_slice(), vec![error.clone()], true),
        };
        let is_as_told = words.is_empty() && !is_unfinished;
        let is_to_be_off = self.choice.map_or(!off.is_empty(), |choice| choice == OsUpdater::Disable);
        let state = if !is_as_told || (!is_to_be_off && !off.is_empty()) {
            UpdaterState::Partly
        } else if is_to_be_off {
            UpdaterState::Off
        } else {
            UpdaterState::Left
        };
        if !self.note.is_empty() {
            words.insert(0, self.note.clone());
        }
        let mut updaters: Vec<String> =
            off.iter().map(|path| bounded(&super::means::name_of(path), MAX_UPDATER)).collect();
        updaters.sort();
        updaters.truncate(MAX_UPDATERS);
        UpdaterReport {
            state,
            by: self.by,
            updaters,
            settings: kept,
            message: bounded(&words.join("; "), MAX_UPDATER_MESSAGE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::report::DeviceRef;

    use super::*;

    const NONE: &str = "";
    const LEAVE: &str = "os_updater = 'Leave'";
    const DISABLE: &str = "os_updater = 'Disable'";

    fn settings(os_updater: OsUpdater) -> Settings {
        Settings {
            device: DeviceRef { namespace: "acme".into(), name: "web-1".into() },
            device_key: PrivateKey::generate().public().fingerprint(),
            policy: "servers".into(),
            os_updater,
            applications: Vec::new(),
            epoch: 0,
            issued_at: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::MAX,
        }
    }

    fn ruling(limits: &str, owner: Option<OsUpdater>, policy: Option<OsUpdater>, is_over: bool) -> Ruling {
        let limits = Limits::of(limits);
        let settings = policy.map(settings);
        Ruling::of(&Voices { limits: &limits, owner, settings: settings.as_ref(), is_over, why_not: None })
    }

    #[test]
    fn the_owner_has_the_last_word_over_the_policy_and_limits_over_both() {
        use OsUpdater::{Disable, Leave};
        use UpdaterChoice as By;
        for (limits, owner, policy, choice, by) in [
            (NONE, None, None, Leave, By::Nobody),
            (NONE, None, Some(Disable), Disable, By::Policy),
            (NONE, None, Some(Leave), Leave, By::Policy),
            (NONE, Some(Leave), Some(Disable), Leave, By::Owner),
            (NONE, Some(Disable), Some(Leave), Disable, By::Owner),
            (LEAVE, Some(Disable), Some(Disable), Leave, By::Limits),
            (DISABLE, Some(Leave), None, Disable, By::Limits),
        ] {
            let Ruling { choice: found, by: whose, note } = ruling(limits, owner, policy, false);
            assert_eq!((found, whose), (Some(choice), by), "{limits} {owner:?} {policy:?}");
            assert_eq!(note.is_empty(), policy.is_none_or(|policy| policy == choice), "{note}");
        }
        let note = ruling(NONE, Some(Leave), Some(Disable), false).note;
        assert_eq!(note, "os_updater of this device's agent.toml is Leave, PatchPolicy/servers says Disable");
    }

    #[test]
    fn without_contact_it_is_given_back_and_with_limits_that_cannot_be_read_nothing_changes() {
        let alone = ruling(NONE, None, Some(OsUpdater::Disable), true);
        assert_eq!((alone.choice, alone.by), (Some(OsUpdater::Leave), UpdaterChoice::NoContact));
        assert_eq!(ruling(NONE, None, None, true).by, UpdaterChoice::Nobody);
        let unread = ruling("os_updater = 'Never'", None, Some(OsUpdater::Disable), false);
        assert_eq!((unread.choice, unread.by), (None, UpdaterChoice::Limits));
        assert!(unread.note.contains("limits.toml"), "{}", unread.note);
    }

    #[test]
    fn a_system_whose_updater_stays_says_so_to_whoever_wants_it_off() {
        let limits = Limits::of(NONE);
        let of = |settings: &Settings| {
            let settings = Some(settings);
            let why_not = Some("cannot");
            Ruling::of(&Voices { limits: &limits, owner: None, settings, is_over: false, why_not })
        };
        let refused = of(&settings(OsUpdater::Disable));
        assert_eq!((refused.choice, refused.by), (Some(OsUpdater::Leave), UpdaterChoice::Unsupported));
        assert_eq!(refused.note, "cannot");
        assert_eq!(of(&settings(OsUpdater::Leave)).by, UpdaterChoice::Policy);
    }

    #[test]
    fn a_report_says_what_is_off_and_what_is_not_as_it_was_to_be() {
        let state = |off: &[&str], remarks: &[&str]| {
            Ok(State {
                off: off.iter().map(PathBuf::from).collect(),
                remarks: remarks.iter().map(|text| (*text).to_owned()).collect(),
                is_unfinished: false,
            })
        };
        let disable = ruling(NONE, None, Some(OsUpdater::Disable), false);
        let files =
            ["/etc/systemd/system/dnf-automatic.service.d/zz-patchwarden.conf", "/etc/apt/apt.conf.d/zz-patchwarden"];
        let off = disable.report(&state(&files, &[]), Some(Timestamp::UNIX_EPOCH));
        assert_eq!((off.state, off.by, off.message.as_str()), (UpdaterState::Off, UpdaterChoice::Policy, ""));
        assert_eq!(off.updaters, ["apt", "dnf-automatic.service"]);
        assert_eq!(off.settings, Some(Timestamp::UNIX_EPOCH));
        let partly = disable.report(&state(&files[..1], &["changed by somebody else"]), None);
        assert_eq!((partly.state, partly.message.as_str()), (UpdaterState::Partly, "changed by somebody else"));
        let failed = disable.report(&Err("x".repeat(400)), None);
        assert_eq!(failed.state, UpdaterState::Partly);
        assert!(failed.message.starts_with("xxx") && failed.message.chars().count() <= MAX_UPDATER_MESSAGE);
        let nobody = ruling(NONE, None, None, false);
        assert_eq!(nobody.report(&state(&[], &[]), None).state, UpdaterState::Left);
        assert_eq!(nobody.report(&state(&files, &[]), None).state, UpdaterState::Partly, "it is to be given back");
        assert_eq!(super::super::means::name_of(Path::new("/else/where")), "where");
    }
}
