//! What status keeps of how long installs took.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::Outcome;

use crate::api;
use crate::api::device_inventory::PastInstall;
use crate::plan::model::{Durations, Measured};

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
    use patchwarden_protocol::report::Classification;
    use serde_json::json;

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
