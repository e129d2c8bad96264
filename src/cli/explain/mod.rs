//! `kubectl patchwarden explain`: for each update of a device what decided, what blocks it now, and when it is next
//! eligible; computed by the planner itself on what the API server has at this moment.

use std::fmt::Write as _;

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use kube::Client;
use serde::Serialize;

use super::Format;
use super::live::{Live, Where};
use super::surroundings::Surroundings;
use crate::plan::model::Catalogue;
use crate::plan::outcome::{DevicePlan, UpdatePlan};
use crate::{convert, plan, shell};

/// So many of the vulnerabilities that an update fixes are named in a text.
const SHOWN_FIXES: usize = 8;

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The device.
    device: String,
    /// Only this update; without it every update that the device offers.
    update: Option<String>,
    #[command(flatten)]
    place: Where,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What is true of a device.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    device: String,
    at: Timestamp,
    policy: Option<String>,
    shadowed_policies: Vec<String>,
    approval_group: Option<String>,
    shadowed_groups: Vec<String>,
    compliance: String,
    os_updater: Option<String>,
    upstream: Option<String>,
    updates: Vec<UpdateExplanation>,
}

/// What is true of an update on it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpdateExplanation {
    /// The update.
    pub update: String,
    /// Vulnerabilities that it fixes, as far as that is known.
    pub fixes: Vec<String>,
    /// What is true of it.
    pub state: String,
    /// What approval says.
    pub decision: String,
    /// What decided.
    pub rule: Option<String>,
    /// The reason code of what blocks it; absent if it is installed next.
    pub blocked_by: Option<String>,
    /// That reason in words.
    pub why: String,
    /// The first instant at which the clock alone could lift it.
    pub eligible_at: Option<Timestamp>,
}

/// Explains.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { device, update, place, output } = arguments;
    let place = place.resolve(client);
    let now = convert::whole_seconds(shell::now());
    let live = Live::load(client, &place).await?;
    let snapshot = live.snapshot(&place, now);
    let answer = plan::plan(&snapshot, now);
    let Some(planned) = answer.devices.iter().find(|planned| *planned.name == *device) else {
        bail!("DeviceInventory {}/{device} does not exist", place.namespace)
    };
    let surroundings = live.devices.get(&device).map(Surroundings::of).unwrap_or_default();
    let explanation = explain(planned, &snapshot.updates, surroundings, update.as_deref(), now);
    if let (Some(update), true) = (&update, explanation.updates.is_empty()) {
        bail!("{device} does not offer {update}: it is installed, or the device never needed it")
    }
    match output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Format::Text => print!("{}{}", text(&explanation), hint(&explanation, place.vulnerabilities.is_some())),
    }
    Ok(())
}

fn explain(
    planned: &DevicePlan,
    catalogue: &Catalogue,
    surroundings: Surroundings,
    only: Option<&str>,
    now: Timestamp,
) -> Explanation {
    let Surroundings { updater, upstream } = surroundings;
    let names = |names: &[crate::plan::model::Name]| names.iter().map(ToString::to_string).collect();
    let updates = planned.updates.iter().map(|update| of_update(update, catalogue));
    Explanation {
        device: planned.name.to_string(),
        at: now,
        policy: planned.policy.as_deref().map(str::to_owned),
        shadowed_policies: names(&planned.shadowed_policies),
        approval_group: planned.group.as_deref().map(str::to_owned),
        shadowed_groups: names(&planned.shadowed_groups),
        compliance: format!("{:?}", planned.compliance),
        os_updater: updater,
        upstream,
        updates: updates.filter(|update| only.is_none_or(|only| update.update == only)).collect(),
    }
}

/// What the planner decided of one update, in words.
pub(super) fn of_update(planned: &UpdatePlan, catalogue: &Catalogue) -> UpdateExplanation {
    let update = catalogue.get(planned.update);
    UpdateExplanation {
        update: update.map(|update| update.id.to_string()).unwrap_or_default(),
        fixes: update.map(|update| update.cves.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        state: format!("{:?}", planned.state),
        decision: format!("{:?}", planned.decision),
        rule: planned.decided_by.as_ref().map(ToString::to_string),
        blocked_by: planned.blocked.as_ref().map(|blocked| blocked.code().to_owned()),
        why: planned.blocked.as_ref().map_or_else(|| "it is installed next".to_owned(), ToString::to_string),
        eligible_at: planned.eligible_at,
    }
}

/// What this command was not told and the controller may have been.
fn hint(explanation: &Explanation, has_vulnerabilities: bool) -> &'static str {
    let is_unknown = |update: &UpdateExplanation| update.blocked_by.as_deref() == Some("VulnerabilitiesUnknown");
    if has_vulnerabilities || !explanation.updates.iter().any(is_unknown) {
        return "";
    }
    "\nA rule asks for KEV or EPSS, which this command was not told: give it the controller's data with --vulnerabilities DIRECTORY.\n"
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        device,
        at,
        policy,
        shadowed_policies,
        approval_group,
        shadowed_groups,
        compliance,
        os_updater,
        upstream,
        updates,
    } = explanation;
    let over =
        |names: &[String]| if names.is_empty() { String::new() } else { format!(" (over {})", names.join(", ")) };
    let none = "none";
    let mut text = format!("Device:      {device}, as of {at}\n");
    let _ = writeln!(text, "Policy:      {}{}", policy.as_deref().unwrap_or(none), over(shadowed_policies));
    let _ = writeln!(text, "Group:       {}{}", approval_group.as_deref().unwrap_or(none), over(shadowed_groups));
    let _ = writeln!(text, "Compliance:  {compliance}");
    for (name, told) in [("OS updater", os_updater), ("Upstream", upstream)] {
        if let Some(told) = told {
            let _ = writeln!(text, "{:<12} {told}", format!("{name}:"));
        }
    }
    if updates.is_empty() {
        text.push_str("\nThe device offers no updates.\n");
    }
    for update in updates {
        let UpdateExplanation { update, fixes, state, decision, rule, blocked_by, why, eligible_at } = update;
        let _ = writeln!(text, "\n{update}");
        if !fixes.is_empty() {
            let (shown, more) = fixes.split_at(fixes.len().min(SHOWN_FIXES));
            let more = if more.is_empty() { String::new() } else { format!(" and {} more (-o json)", more.len()) };
            let _ = writeln!(text, "  Fixes:     {}{more}", shown.join(", "));
        }
        let _ = writeln!(text, "  State:     {state}");
        let by = rule.as_ref().map(|rule| format!(", by {rule}")).unwrap_or_default();
        let _ = writeln!(text, "  Decision:  {decision}{by}");
        match blocked_by {
            Some(code) => {
                let _ = writeln!(text, "  Blocked:   {code}: {why}");
                let eligible =
                    eligible_at.map_or_else(|| "not by time alone".to_owned(), |at| format!("{at} at the earliest"));
                let _ = writeln!(text, "  Eligible:  {eligible}");
            }
            None => {
                let _ = writeln!(text, "  Blocked:   no, {why}");
            }
        }
    }
    text
}
