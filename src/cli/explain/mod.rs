//! `kubectl patchwarden explain`: for each update of a device what decided, what blocks it now, and when it is next
//! eligible; computed by the planner itself on what the API server has at this moment.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use kube::Client;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{HeldReason, Report};
use serde::Serialize;

use super::live::{Live, Where};
use super::surroundings::Surroundings;
use super::unseen;
use super::{Format, screen};
use crate::api::DeviceInventory;
use crate::plan::model::{Catalogue, Name};
use crate::plan::outcome::{DevicePlan, Eligible, Foresight, NAMED, PolicyPlan, Unproved, UpdatePlan};
use crate::plan::{Blocked, foresee};
use crate::{convert, shell, status};

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
    /// Other groups that perhaps have it.
    possible_groups: Vec<String>,
    compliance: String,
    /// Why nothing that it says is believed: then it is not known what it offers.
    not_believed: Option<Reason>,
    /// Why it may offer more than it tells of.
    incomplete: Option<String>,
    os_updater: Option<String>,
    upstream: Option<String>,
    updates: Vec<UpdateExplanation>,
    /// What its package manager leaves out by itself: it is no offer, and nothing is decided of it.
    left_out: Vec<LeftOut>,
}

/// A reason's code and its words.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Reason {
    reason: String,
    why: String,
}

/// An update that a device tells of and does not offer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct LeftOut {
    update: String,
    #[serde(flatten)]
    because: Reason,
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
    /// Why, as whoever made the decision says; absent where none was given, and where it was no decision.
    pub decision_reason: Option<String>,
    /// The reason code of what blocks it; absent if it is its turn.
    pub blocked_by: Option<String>,
    /// That reason in words.
    pub why: String,
    /// The first instant at which nothing blocks it that can be foreseen; absent if it is its turn, and where that is not known.
    pub eligible_at: Option<Timestamp>,
    /// Why that is not known.
    pub not_known: Option<NotKnown>,
}

/// Why it is not known when an update is eligible.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct NotKnown {
    /// From then on this blocks it, and no clock ends it. Until then it is not eligible either.
    from: Timestamp,
    #[serde(flatten)]
    because: Reason,
    /// Whether it is what blocks it now.
    #[serde(skip)]
    is_now: bool,
}

/// Explains.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { device, update, place, output } = arguments;
    let place = place.resolve(client);
    let now = convert::whole_seconds(shell::now());
    let live = Live::load(client, &place).await?;
    let snapshot = live.snapshot(&place, now);
    let foresight = foresee(&snapshot, Some(&device), now);
    let planned = foresight.plan.devices.iter().find(|planned| *planned.name == *device);
    let (Some(planned), Some(object)) = (planned, live.devices.get(&device)) else {
        bail!("DeviceInventory {}/{device} does not exist", place.namespace)
    };
    let explanation = explain((planned, object), &foresight, (&live, &snapshot.updates), update.as_deref(), now);
    if let Some(update) = &update {
        explanation.has(update)?;
    }
    match output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Format::Text => {
            let unseen = unseen::of_device(&snapshot, planned, &place);
            print!("{}{}", text(&explanation), unseen.map_or_else(String::new, |hint| format!("\n{hint}\n")));
        }
    }
    Ok(())
}

impl Explanation {
    /// Else the words of an error.
    fn has(&self, update: &str) -> anyhow::Result<()> {
        let Self { device, not_believed, incomplete, updates, left_out, .. } = self;
        match not_believed {
            _ if !updates.is_empty() || !left_out.is_empty() => Ok(()),
            Some(Reason { reason, why }) => {
                bail!(
                    "whether {device} offers {update} is not known: nothing that it says is believed ({reason}: {why})"
                )
            }
            None if incomplete.is_some() => {
                let why = incomplete.as_deref().unwrap_or_default();
                bail!("whether {device} offers {update} is not known: {why}")
            }
            None => bail!("{device} does not offer {update}: it is installed, or the device never needed it"),
        }
    }
}

fn explain(
    (planned, object): (&DevicePlan, &DeviceInventory),
    foresight: &Foresight,
    known: (&Live, &Catalogue),
    only: Option<&str>,
    now: Timestamp,
) -> Explanation {
    let Surroundings { updater, upstream } = Surroundings::of(object);
    let report = convert::believed_report(object);
    let names = |names: &[crate::plan::model::Name]| names.iter().map(ToString::to_string).collect();
    let is_asked = |update: &str| only.is_none_or(|only| update == only);
    let eligible = foresight.eligible.get(&planned.name).map(Vec::as_slice).unwrap_or_default();
    let absent = foresight.absent.get(&planned.name).map(Vec::as_slice).unwrap_or_default();
    let absent: Vec<String> = absent.iter().map(|(name, absence)| format!("{name} ({absence})")).collect();
    let updates = planned.updates.iter().enumerate().map(|(place, update)| {
        let mut told = of_update(update, known, eligible.get(place), now);
        if matches!(update.blocked.as_deref(), Some(Blocked::ServiceAtLimit { .. })) && !absent.is_empty() {
            let _ = write!(told.why, ": {}", first(&absent));
        }
        let not_known = match eligible.get(place) {
            Some(Eligible::Unknown { why, .. }) => Some(&**why),
            _ => None,
        };
        let id = told.update.clone();
        let not_known = not_known.zip(told.not_known.as_mut().map(|it| &mut it.because.why));
        for (blocked, why) in update.blocked.as_deref().zip(Some(&mut told.why)).into_iter().chain(not_known) {
            if let (Blocked::RingWaits { until: None, .. }, Some(unproved)) =
                (blocked, foresight.unproved.get(id.as_str()))
            {
                let _ = write!(why, "; {}", not_proved(unproved));
            }
            if let Some(failed) = failed_on(blocked, &id, foresight) {
                let _ = write!(why, "; it failed on {failed}");
            }
            if is_beyond_status(blocked, known.0) {
                let _ = write!(
                    why,
                    "; status tells of {} updates of it, and not what went farther before these",
                    status::FOLLOWED
                );
            }
        }
        told
    });
    let left_out = report.as_ref().map(|report| report.updates.as_slice()).unwrap_or_default();
    let left_out = left_out.iter().filter(|update| !convert::is_offered(update) && is_asked(&update.id));
    Explanation {
        device: planned.name.to_string(),
        at: now,
        policy: planned.policy.as_deref().map(str::to_owned),
        shadowed_policies: names(&planned.shadowed_policies),
        approval_group: planned.group.as_deref().map(str::to_owned),
        shadowed_groups: names(&planned.shadowed_groups),
        possible_groups: names(&planned.possible_groups),
        compliance: format!("{:?}", planned.compliance),
        os_updater: updater,
        upstream,
        updates: updates.filter(|update| is_asked(&update.update)).collect(),
        left_out: left_out
            .map(|update| LeftOut { update: update.id.clone(), because: left_out_because(update.held_reason) })
            .collect(),
        incomplete: report.as_ref().ok().and_then(|report| incomplete(report)),
        not_believed: report.err().map(|why| {
            let (reason, why) = status::no_report_words(object, why);
            Reason { reason: reason.to_owned(), why }
        }),
    }
}

/// Why a ring has not proved an update.
fn not_proved(Unproved { installed, needed, percent, offering, silent }: &Unproved) -> String {
    let names = |devices: &[Name]| first(&devices.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mut words = format!("it is installed on {installed} of its devices, and must be on {needed}");
    if *percent > 0 {
        let _ = write!(words, " and on {percent}% of those that try it");
    }
    if !offering.is_empty() {
        let _ = write!(words, "; those that offer it: {}", names(offering));
    }
    if !silent.is_empty() {
        let _ = write!(words, "; those that do not tell whether they need it: {}", names(silent));
    }
    if offering.is_empty() && silent.is_empty() {
        words.push_str("; none of them offers it");
    }
    words
}

/// The devices whose failures of an update are why a ring has not proved it, or why it is stopped, as far as they are written down.
fn failed_on<'f>(blocked: &Blocked, update: &str, foresight: &'f Foresight) -> Option<String> {
    let policies = foresight.plan.policies.iter();
    let of = |policy: &'f PolicyPlan| policy.progress.updates.get(update);
    let failed: BTreeSet<&Name> = match blocked {
        Blocked::RingWaits { policy, ring, until: None } => {
            // One that has reached its minimum waits for its soak time alone.
            let progress = policies.filter(|it| it.name == *policy).filter_map(of).filter(|it| it.reached.is_none());
            let failed = progress.flat_map(|it| &it.failed).filter(|it| it.ring.as_ref() == Some(ring));
            failed.map(|it| &it.device).collect()
        }
        Blocked::UpdateStopped { .. } => {
            policies.filter_map(of).flat_map(|it| &it.failed).map(|it| &it.device).collect()
        }
        _ => return None,
    };
    let is_there = |name: &Name| foresight.plan.devices.iter().any(|device| device.name == *name);
    let names = failed.into_iter().map(|name| if is_there(name) { name.to_string() } else { format!("{name} (gone)") });
    let names: Vec<String> = names.collect();
    (!names.is_empty()).then(|| first(&names))
}

/// Whether the policy that waits may have let an update pass long ago: the controller has a record of that, and `live` its status alone.
fn is_beyond_status(blocked: &Blocked, live: &Live) -> bool {
    let Blocked::RingWaits { policy, until: None, .. } = blocked else { return false };
    let status = live.policies.get(&**policy).and_then(|policy| policy.status.as_ref());
    status.is_some_and(|told| told.updates.len() >= status::FOLLOWED)
}

/// Why a device may offer more than its report tells of.
fn incomplete(report: &Report) -> Option<String> {
    if report.truncated {
        return Some("it offers more than its report has room for".to_owned());
    }
    let hiding = report.problems.iter().find(|problem| problem.code.hides_updates())?;
    Some(format!("it has a problem with which it does not tell all ({:?})", hiding.code))
}

fn left_out_because(reason: HeldReason) -> Reason {
    let why = match reason {
        HeldReason::Hold => "held back on the device itself",
        HeldReason::Pinned => "a pin in apt_preferences(5) keeps apt from taking this version",
        HeldReason::Phased => {
            "the version is being phased, and it is not this machine's turn yet: apt offers it once it is"
        }
        HeldReason::Unauthenticated => {
            "it comes from a repository that no signature vouches for, and the package manager does not install that"
        }
    };
    Reason { reason: format!("{reason:?}"), why: why.to_owned() }
}

/// The first few of several, and how many more there are.
pub(super) fn first(names: &[String]) -> String {
    let (shown, more) = names.split_at(names.len().min(NAMED));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    format!("{}{more}", shown.join(", "))
}

/// What the planner decided of one update, in words.
pub(super) fn of_update(
    planned: &UpdatePlan,
    (live, catalogue): (&Live, &Catalogue),
    eligible: Option<&Eligible>,
    now: Timestamp,
) -> UpdateExplanation {
    let update = catalogue.get(planned.update);
    let next = match planned.verb {
        Verb::Install => "it is installed next",
        Verb::Download => "it is downloaded next",
        Verb::Uninstall => "it is taken back next",
        Verb::Restart => "the device is restarted next",
    };
    let (eligible_at, not_known) = match eligible.filter(|_| planned.blocked.is_some()) {
        Some(Eligible::From(at)) => (Some(*at), None),
        Some(Eligible::Unknown { from, why }) => {
            let because = Reason { reason: why.code().to_owned(), why: why.to_string() };
            (None, Some(NotKnown { from: *from, because, is_now: *from == now }))
        }
        None => (None, None),
    };
    UpdateExplanation {
        update: update.map(|update| update.id.to_string()).unwrap_or_default(),
        fixes: update.map(|update| update.cves.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        state: format!("{:?}", planned.state),
        decision: format!("{:?}", planned.decision),
        rule: planned.decided_by.as_ref().map(ToString::to_string),
        decision_reason: live.reason(planned).map(str::to_owned),
        blocked_by: planned.blocked.as_ref().map(|blocked| blocked.code().to_owned()),
        why: planned.blocked.as_ref().map_or_else(|| next.to_owned(), ToString::to_string),
        eligible_at,
        not_known,
    }
}

impl UpdateExplanation {
    /// When it is eligible, in words; none if it is its turn.
    pub(super) fn when(&self) -> Option<String> {
        match (self.eligible_at, &self.not_known) {
            (Some(at), _) => Some(format!("{at} at the earliest")),
            (None, Some(NotKnown { is_now: true, .. })) => Some("not known: no clock ends that".to_owned()),
            (None, Some(NotKnown { from, because: Reason { reason, why }, .. })) => {
                Some(format!("not known: not before {from}, and then no clock ends {reason}: {why}"))
            }
            (None, None) => None,
        }
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        device,
        at,
        policy,
        shadowed_policies,
        approval_group,
        shadowed_groups,
        possible_groups,
        compliance,
        not_believed,
        incomplete,
        os_updater,
        upstream,
        updates,
        left_out,
    } = explanation;
    let over =
        |names: &[String]| if names.is_empty() { String::new() } else { format!(" (over {})", names.join(", ")) };
    let none = "none";
    let mut text = format!("Device:      {device}, as of {at}\n");
    let _ = writeln!(text, "Policy:      {}{}", policy.as_deref().unwrap_or(none), over(shadowed_policies));
    let group = approval_group.as_deref().unwrap_or(none);
    let perhaps = possible_groups.join(", ");
    let perhaps = if perhaps.is_empty() { perhaps } else { format!(" (perhaps {perhaps})") };
    let _ = writeln!(text, "Group:       {group}{perhaps}{}", over(shadowed_groups));
    let _ = writeln!(text, "Compliance:  {compliance}");
    if let Some(Reason { reason, why }) = not_believed {
        let _ = writeln!(text, "Report:      none that is believed, {reason}: {why}");
    }
    let more = ("Report", incomplete.as_ref().filter(|_| not_believed.is_none()));
    for (name, told) in [more, ("OS updater", os_updater.as_ref()), ("Upstream", upstream.as_ref())] {
        if let Some(told) = told {
            let _ = writeln!(text, "{:<12} {told}", format!("{name}:"));
        }
    }
    match not_believed {
        Some(_) => text.push_str("\nWhat the device offers is not known.\n"),
        None if updates.is_empty() && left_out.is_empty() => text.push_str("\nThe device offers no updates.\n"),
        None => {}
    }
    for told in updates {
        let UpdateExplanation { update, fixes, state, decision, rule, decision_reason, blocked_by, why, .. } = told;
        let _ = writeln!(text, "\n{update}");
        if !fixes.is_empty() {
            let (shown, more) = fixes.split_at(fixes.len().min(SHOWN_FIXES));
            let more = if more.is_empty() { String::new() } else { format!(" and {} more (-o json)", more.len()) };
            let _ = writeln!(text, "  Fixes:     {}{more}", shown.join(", "));
        }
        let _ = writeln!(text, "  State:     {state}");
        let by = rule.as_ref().map(|rule| format!(", by {rule}")).unwrap_or_default();
        let _ = writeln!(text, "  Decision:  {decision}{by}");
        if let Some(reason) = decision_reason {
            let _ = writeln!(text, "  Reason:    {}", screen::safe(reason));
        }
        match blocked_by {
            Some(code) => {
                let _ = writeln!(text, "  Blocked:   {code}: {why}");
                if let Some(when) = told.when() {
                    let _ = writeln!(text, "  Eligible:  {when}");
                }
            }
            None => {
                let _ = writeln!(text, "  Blocked:   no, {why}");
            }
        }
    }
    for LeftOut { update, because: Reason { reason, why } } in left_out {
        let _ = writeln!(text, "\n{update}\n  Left out by the device: {reason}: {why}");
    }
    text
}

#[cfg(test)]
mod tests;
