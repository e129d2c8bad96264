//! What a policy says of applications, and what a device knows of that.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchwarden_protocol::applications::{self as protocol, Ensure, PACKAGE_PREFIX};
use patchwarden_protocol::report::Report;
use patchwarden_protocol::settings::SignedSettings;

use crate::api::applications::Application;
use crate::plan::model::{Catalogue, Invalid, Name};

/// What is signed for a device, in the order of names.
pub fn of(spec: &[Application]) -> Vec<protocol::Application> {
    let mut applications: Vec<_> = spec
        .iter()
        .map(|Application { name, ensure }| protocol::Application { name: name.clone(), ensure: *ensure })
        .collect();
    applications.sort_unstable();
    applications
}

/// What a policy says, by the names of packages.
pub(super) fn wanted(spec: &[Application]) -> Result<BTreeMap<Name, Ensure>, Invalid> {
    protocol::check(&of(spec)).map_err(|why| Invalid(format!("spec.applications: {why}")))?;
    Ok(spec.iter().map(|one| (package(&one.name).into(), one.ensure)).collect())
}

/// What a device knows: what was signed for it last, if it tells that it has that and it still counts.
pub(super) fn known(
    held: Option<&SignedSettings>,
    report: &Report,
    catalogue: &mut Catalogue,
    now: Timestamp,
) -> BTreeMap<Name, Ensure> {
    let told = report.os_updater.as_ref().and_then(|told| told.settings);
    let settings = held.and_then(|held| held.settings.peek());
    let settings = settings.filter(|settings| told == Some(settings.issued_at) && now < settings.not_after);
    let applications = settings.map(|settings| settings.applications).unwrap_or_default();
    applications.iter().map(|one| (catalogue.name(&package(&one.name)), one.ensure)).collect()
}

fn package(name: &str) -> String {
    format!("{PACKAGE_PREFIX}{name}")
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::delegation::Delegation;
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::report::DeviceRef;
    use patchwarden_protocol::settings::{OsUpdater, Settings};
    use patchwarden_protocol::surroundings::{UpdaterChoice, UpdaterReport, UpdaterState};

    use super::*;
    use crate::gateway::testing;

    fn application(name: &str, ensure: Ensure) -> Application {
        Application { name: name.into(), ensure }
    }

    #[test]
    fn a_device_knows_what_it_says_that_it_has_and_what_counts() {
        let (key, at) = (PrivateKey::generate(), Timestamp::from_second(1_800_000_000).unwrap());
        let settings = Settings {
            device: DeviceRef { namespace: "acme".into(), name: "web".into() },
            device_key: key.public().fingerprint(),
            policy: "servers".into(),
            os_updater: OsUpdater::Leave,
            applications: of(&[application("kubectl", Ensure::Installed), application("go", Ensure::Absent)]),
            epoch: 0,
            issued_at: at,
            not_after: at + SignedDuration::from_hours(1),
        };
        let delegation = Delegation { order_key: key.public(), not_before: at, not_after: settings.not_after };
        let held = SignedSettings {
            settings: Envelope::seal(&settings, &key).unwrap(),
            delegation: Envelope::seal(&delegation, &key).unwrap(),
        };
        let mut report = testing::report("acme", "web");
        let mut knows = |held: Option<&SignedSettings>, told: Option<Timestamp>, now: Timestamp| {
            report.os_updater = Some(UpdaterReport {
                state: UpdaterState::Left,
                by: UpdaterChoice::Nobody,
                updaters: vec![],
                settings: told,
                message: String::new(),
            });
            known(held, &report, &mut Catalogue::default(), now)
        };
        let all = BTreeMap::from([("recipe:kubectl".into(), Ensure::Installed), ("recipe:go".into(), Ensure::Absent)]);
        assert_eq!(knows(Some(&held), Some(at), at), all);
        let spec = [application("kubectl", Ensure::Installed), application("go", Ensure::Absent)];
        assert_eq!(wanted(&spec), Ok(all));
        let second = SignedDuration::from_secs(1);
        for (held, told, now) in [
            (None, Some(at), at),
            (Some(&held), None, at),
            (Some(&held), Some(at - second), at),
            (Some(&held), Some(at), settings.not_after),
        ] {
            assert!(knows(held, told, now).is_empty(), "{told:?} {now}");
        }
        let twice = [application("go", Ensure::Installed), application("go", Ensure::Absent)];
        assert_eq!(wanted(&twice), Err(Invalid("spec.applications: go is there twice".to_owned())));
    }
}
