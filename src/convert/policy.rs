//! What a policy says of deadlines, and what its status keeps of how long installs took.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::Severity;
use patchwarden_protocol::result::Outcome;

use crate::api;
use crate::api::device_inventory::PastInstall;
use crate::plan::model::{Deadline, Deadlines, Durations, Invalid, Measured};

/// Until when updates must be installed.
pub(super) fn deadlines(spec: &[api::patch_policy::Deadline]) -> Result<Deadlines, Invalid> {
    use api::patch_policy::DeadlineSeverity as Of;
    let mut deadlines = BTreeMap::new();
    for (index, one) in spec.iter().enumerate() {
        let field = format!("spec.deadlines[{index}]");
        let severity = match one.severity {
            Of::Any => None,
            Of::Critical => Some(Severity::Critical),
            Of::High => Some(Severity::High),
            Of::Medium => Some(Severity::Medium),
            Of::Low => Some(Severity::Low),
            Of::Unknown => Some(Severity::Unknown),
        };
        let within = super::optional_duration(&format!("{field}.within"), Some(&one.within))?.unwrap_or_default();
        if within <= SignedDuration::ZERO {
            return Err(Invalid(format!("{field}.within: must be at least 1h")));
        }
        let deadline = Deadline { within, clock: super::group::age_clock(one.clock) };
        if deadlines.insert(severity, deadline).is_some() {
            return Err(Invalid(format!("{field}.severity: {:?} is there twice", one.severity)));
        }
    }
    Ok(Deadlines(deadlines))
}

/// What was written down with a policy.
pub(super) fn durations(status: &api::patch_policy::Durations) -> Durations {
    Durations {
        updates: status.updates.iter().map(|update| (update.id.as_str().into(), update.seconds)).collect(),
        kinds: status.kinds.iter().map(|kind| (kind.classification, kind.seconds)).collect(),
    }
}

/// How long an install took, if it did all that it was to do: one that broke off tells nothing of the rest.
pub(super) fn measured(past: &PastInstall) -> Option<Measured> {
    let did_all = past.outcome == Some(Outcome::Succeeded)
        && !past.updates.is_empty()
        && past.updates.iter().all(|update| update.done && update.verb == Verb::Install);
    Some(Measured {
        seconds: past.seconds.filter(|_| did_all)?,
        updates: past.updates.iter().map(|update| update.update.as_str().into()).collect(),
        kinds: past.kinds.clone(),
        at: past.finished_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::AgeClock;
    use patchwarden_protocol::report::Classification;
    use serde_json::json;

    #[test]
    fn a_deadline_is_in_days_and_hours_and_names_its_field_where_it_is_not() {
        let read = |spec: serde_json::Value| deadlines(&serde_json::from_value::<Vec<_>>(spec).unwrap());
        let good = read(
            json!([{"severity": "Critical", "within": "2d12h", "clock": "Published"}, {"severity": "Any", "within": "30d"}]),
        );
        let deadline = |hours, clock| Deadline { within: SignedDuration::from_hours(hours), clock };
        let expected = BTreeMap::from([
            (Some(Severity::Critical), deadline(60, AgeClock::Published)),
            (None, deadline(720, AgeClock::FirstSeen)),
        ]);
        assert_eq!(good.unwrap(), Deadlines(expected));
        let wrong = |spec| read(spec).unwrap_err().0;
        assert_eq!(
            wrong(json!([{"severity": "Any", "within": "0d"}])),
            "spec.deadlines[0].within: must be at least 1h"
        );
        assert_eq!(
            wrong(json!([{"severity": "Any", "within": "1d"}, {"severity": "Any", "within": "2d"}])),
            "spec.deadlines[1].severity: Any is there twice"
        );
        assert!(wrong(json!([{"severity": "Any", "within": "soon"}])).starts_with("spec.deadlines[0].within: `soon`"));
    }

    #[test]
    fn only_an_install_that_did_everything_tells_how_long_it_took() {
        let past = |change: serde_json::Value| {
            let mut past = json!({
                "sequence": {"epoch": 0, "number": 3}, "job": "web-1-0-3", "outcome": "Succeeded",
                "updates": [{"update": "a", "done": true}, {"update": "b", "done": true}],
                "finishedAt": "2026-01-10T22:05:00Z", "seconds": 90, "kinds": ["Security"],
            });
            for (field, value) in change.as_object().unwrap() {
                past[field] = value.clone();
            }
            measured(&serde_json::from_value(past).unwrap())
        };
        let all = past(json!({})).unwrap();
        assert_eq!((all.seconds, all.updates.len(), all.kinds.as_slice()), (90, 2, &[Classification::Security][..]));
        assert_eq!(past(json!({"seconds": null})), None);
        assert_eq!(past(json!({"outcome": "Failed"})), None);
        assert_eq!(past(json!({"updates": []})), None);
        assert_eq!(past(json!({"updates": [{"update": "a", "done": true}, {"update": "b", "done": false}]})), None);
        assert_eq!(past(json!({"updates": [{"update": "a", "done": true, "verb": "Download"}]})), None);
    }
}
