//! What else has a say in a device's updates, in words: its operating system's own updater, and who decides what it is offered.

use patchwarden_protocol::report::Report;
use patchwarden_protocol::surroundings::{UpdaterChoice, UpdaterReport, UpdaterState, Upstream, UpstreamKind};

use crate::api::DeviceInventory;
use crate::convert;

/// Both, as the device tells them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Its own updater; nothing where it does not tell.
    pub(super) updater: Option<String>,
    /// Who else than the vendor decides what it is offered; nothing where nobody is known to.
    pub(super) upstream: Option<String>,
}

impl Surroundings {
    /// Of a device, if its report is believed.
    pub(super) fn of(object: &DeviceInventory) -> Self {
        let Ok(Report { os_updater, upstream, .. }) = convert::believed_report(object) else { return Self::default() };
        Self { updater: os_updater.as_ref().map(updater), upstream: upstream.as_ref().map(upstream_words) }
    }
}

fn updater(told: &UpdaterReport) -> String {
    let UpdaterReport { state, by, updaters, settings: _, message } = told;
    let state = match state {
        UpdaterState::Left => "left to itself",
        UpdaterState::Off => "switched off",
        UpdaterState::Partly => "not as it is to be",
    };
    let by = match by {
        UpdaterChoice::Nobody | UpdaterChoice::NoContact | UpdaterChoice::Unsupported => "",
        UpdaterChoice::Policy => ", by its policy",
        UpdaterChoice::Owner => ", by its agent.toml",
        UpdaterChoice::Limits => ", by its limits.toml",
    };
    let which = if updaters.is_empty() { String::new() } else { format!(" ({})", updaters.join(", ")) };
    let why = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!("{state}{which}{by}{why}")
}

fn upstream_words(told: &Upstream) -> String {
    let Upstream { kind, name, partial } = told;
    let kind = match kind {
        UpstreamKind::Wsus => "WSUS",
        UpstreamKind::Snapshot => "snapshot",
        UpstreamKind::Satellite => "Satellite",
        UpstreamKind::SuseManager => "SUSE Manager",
        UpstreamKind::Rmt => "RMT",
    };
    let beside = if *partial { ", beside other repositories" } else { "" };
    format!("{kind} {name}{beside}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_it_is_by_whom_and_why() {
        let told = |state, by, updaters: &[&str], message: &str| {
            let updaters = updaters.iter().map(|name| (*name).to_owned()).collect();
            updater(&UpdaterReport { state, by, updaters, settings: None, message: message.into() })
        };
        let off = told(UpdaterState::Off, UpdaterChoice::Policy, &["apt", "os-update.service"], "");
        assert_eq!(off, "switched off (apt, os-update.service), by its policy");
        let refused = told(UpdaterState::Left, UpdaterChoice::Owner, &[], "agent.toml is Leave");
        assert_eq!(refused, "left to itself, by its agent.toml: agent.toml is Leave");
        let upstream = Upstream { kind: UpstreamKind::Satellite, name: "sat.example".into(), partial: true };
        assert_eq!(upstream_words(&upstream), "Satellite sat.example, beside other repositories");
    }
}
