//! What a change would leave for a person to mend: objects that would be `Stalled`, or name what is not there, in the words that their
//! status would have.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use super::live::Live;
use crate::api::conditions as c;
use crate::plan::Plan;
use crate::plan::outcome::Blocked;
use crate::status;

/// An object that would be `Stalled`, or name what is not there.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Stalled {
    /// Its kind.
    pub kind: &'static str,
    name: String,
    /// The type of the condition that says so.
    condition: &'static str,
    message: String,
}

impl Stalled {
    /// Whether anything stops for it.
    pub fn stops(&self) -> bool {
        self.condition == c::STALLED
    }
}

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, name, condition, message } = self;
        let verb = if self.stops() { "be" } else { "have" };
        write!(f, "{kind}/{name} would {verb} {condition}: {message}")
    }
}

/// What would be so after a change and is not before it, or for another reason.
pub(super) fn newly(before: (&Live, &Plan), after: (&Live, &Plan), now: Timestamp) -> Vec<Stalled> {
    let known = of(before, now);
    of(after, now).into_iter().filter(|stalled| !known.contains(stalled)).collect()
}

fn of((live, plan): (&Live, &Plan), now: Timestamp) -> Vec<Stalled> {
    let mut found = Vec::new();
    let mut look = |kind, name: &str, conditions: &[Condition], more: &str| {
        for (condition, more) in [(c::STALLED, more), (c::NAMES_UNKNOWN, "")] {
            let told = conditions.iter().find(|other| other.type_ == condition);
            found.extend(told.map(|it| Stalled {
                kind,
                name: name.to_owned(),
                condition,
                message: format!("{}{more}", it.message),
            }));
        }
    };
    for planned in &plan.groups {
        let Some(object) = live.groups.get(&*planned.name) else { continue };
        let more = match (planned.stalled.as_deref(), &planned.failed) {
            // The controller's own data are not read here.
            (Some(Blocked::VulnerabilitiesUnknown { .. }), None) => {
                " (the controller's data were not named by --vulnerabilities)"
            }
            _ => "",
        };
        look("ApprovalGroup", &planned.name, &status::group(object, planned, now).conditions, more);
    }
    for planned in &plan.windows {
        let Some(object) = live.windows.get(&*planned.name) else { continue };
        look("MaintenanceWindow", &planned.name, &status::window(object, planned, now).conditions, "");
    }
    for planned in &plan.policies {
        let Some(object) = live.policies.get(&*planned.name) else { continue };
        look("PatchPolicy", &planned.name, &status::policy(object, planned, false, now).conditions, "");
    }
    found
}
