//! `kubectl patchwarden approve | decline | waive | leave | reprocess | uninstall`: a person's decision on updates, for one device or for a
//! group. It is written as YAML for Git, or applied; the planner says before what will come of it.

mod apply;
mod change;
mod effect;
#[cfg(test)]
mod tests;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use kube::Client;
use kube::core::DynamicObject;

use self::change::Draft;
use super::live::{Live, Place, Where};
use super::{preview, screen};
use crate::api::ApprovalGroup;
use crate::api::approval_group::{DecisionAction, UpdateDecision};
use crate::{convert, shell};

/// On what, and what is done with the decision.
#[derive(Debug, Args)]
struct On {
    /// The device and the updates, such as `web-1 RHSA-2026:1234`; with --group updates alone. A pattern (`pkg:deb/debian/openssl@*`) or a
    /// CVE stands for all that match or fix it.
    #[arg(required = true, value_name = "[DEVICE] UPDATE")]
    names: Vec<String>,
    /// For this ApprovalGroup and those beneath it. Without it the decision is for the device alone, in a group of its own.
    #[arg(short, long, value_name = "GROUP")]
    group: Option<String>,
    /// Apply it, instead of printing the YAML of the changed ApprovalGroup for Git.
    #[arg(long)]
    apply: bool,
    /// With --apply: also where the object is kept by Argo CD, Flux or Helm, somebody else owns the field, or the decision would not count.
    #[arg(long, requires = "apply")]
    force: bool,
    #[command(flatten)]
    place: Where,
}

/// Flags of `approve`.
#[derive(Debug, Args)]
pub struct Approve {
    #[command(flatten)]
    on: On,
    /// Until when it counts: a duration (14d, 36h), a date, or a time (RFC 3339).
    #[arg(long)]
    until: Option<String>,
    /// Also every later version of the same package; of a Debian or rpm package, not of an advisory.
    #[arg(long)]
    or_later: bool,
    /// In this MaintenanceWindow, instead of those of the policy.
    #[arg(long)]
    window: Option<String>,
    /// No group beneath can say otherwise.
    #[arg(long)]
    locked: bool,
    /// Why, for whoever reads it later.
    #[arg(long)]
    reason: Option<String>,
}

/// Flags of `decline`.
#[derive(Debug, Args)]
pub struct Decline {
    #[command(flatten)]
    on: On,
    /// Also every later version of the same package; of a Debian or rpm package, not of an advisory.
    #[arg(long)]
    or_later: bool,
    /// No group beneath can say otherwise.
    #[arg(long)]
    locked: bool,
    /// Why, for whoever reads it later.
    #[arg(long)]
    reason: Option<String>,
}

/// Flags of `waive`.
#[derive(Debug, Args)]
pub struct Waive {
    #[command(flatten)]
    on: On,
    /// Until when: a duration (14d, 36h), a date, or a time (RFC 3339).
    #[arg(long)]
    until: String,
    /// Why: an exception has a reason.
    #[arg(long)]
    reason: String,
    /// Also every later version of the same package; of a Debian or rpm package, not of an advisory.
    #[arg(long)]
    or_later: bool,
    /// No group beneath can say otherwise.
    #[arg(long)]
    locked: bool,
}

/// Flags of `leave`.
#[derive(Debug, Args)]
pub struct Leave {
    #[command(flatten)]
    on: On,
    /// Until when: a duration (14d, 36h), a date, or a time (RFC 3339).
    #[arg(long)]
    until: Option<String>,
    /// Why, for whoever reads it later.
    #[arg(long)]
    reason: Option<String>,
}

/// Flags of `reprocess`.
#[derive(Debug, Args)]
pub struct Reprocess {
    #[command(flatten)]
    on: On,
    /// Why, for whoever reads it later.
    #[arg(long)]
    reason: Option<String>,
}

/// Flags of `uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    on: On,
    /// In this MaintenanceWindow, instead of those of the policy.
    #[arg(long)]
    window: Option<String>,
    /// Why, for whoever reads it later.
    #[arg(long)]
    reason: Option<String>,
}

/// What is decided, whatever the update.
struct Wish {
    on: On,
    action: DecisionAction,
    until: Option<String>,
    or_later: bool,
    locked: bool,
    window: Option<String>,
    reason: Option<String>,
}

/// `approve`.
pub async fn approve(client: &Client, arguments: Approve) -> anyhow::Result<()> {
    let Approve { on, until, or_later, window, locked, reason } = arguments;
    run(client, Wish { on, action: DecisionAction::Approve, until, or_later, locked, window, reason }).await
}

/// `decline`.
pub async fn decline(client: &Client, arguments: Decline) -> anyhow::Result<()> {
    let Decline { on, or_later, locked, reason } = arguments;
    run(client, Wish { on, action: DecisionAction::Ignore, until: None, or_later, locked, window: None, reason }).await
}

/// `waive`.
pub async fn waive(client: &Client, arguments: Waive) -> anyhow::Result<()> {
    let Waive { on, until, reason, or_later, locked } = arguments;
    let (until, reason) = (Some(until), Some(reason));
    run(client, Wish { on, action: DecisionAction::Ignore, until, or_later, locked, window: None, reason }).await
}

/// `leave`.
pub async fn leave(client: &Client, arguments: Leave) -> anyhow::Result<()> {
    let Leave { on, until, reason } = arguments;
    let (or_later, locked, window) = (false, false, None);
    run(client, Wish { on, action: DecisionAction::DoNothing, until, or_later, locked, window, reason }).await
}

/// `reprocess`.
pub async fn reprocess(client: &Client, arguments: Reprocess) -> anyhow::Result<()> {
    let Reprocess { on, reason } = arguments;
    let (until, or_later, locked, window) = (None, false, false, None);
    run(client, Wish { on, action: DecisionAction::Reprocess, until, or_later, locked, window, reason }).await
}

/// `uninstall`.
pub async fn uninstall(client: &Client, arguments: Uninstall) -> anyhow::Result<()> {
    let Uninstall { on, window, reason } = arguments;
    let (until, or_later, locked) = (None, false, false);
    run(client, Wish { on, action: DecisionAction::Uninstall, until, or_later, locked, window, reason }).await
}

async fn run(client: &Client, wish: Wish) -> anyhow::Result<()> {
    let now = convert::whole_seconds(shell::now());
    let place = wish.on.place.clone().resolve(client);
    let live = Live::load(client, &place).await?;
    let device = device(&wish.on)?;
    let draft = match (&wish.on.group, device) {
        (Some(group), _) => Draft::of_group(&live, &place, group)?,
        (None, device) => Draft::of_device(&live, &place, device, now)?,
    };
    let decisions = decisions(&wish, now)?;
    if wish.on.apply {
        return apply::run(client, &live, &place, draft, &decisions, wish.on.force, now).await;
    }
    let changed = draft.changed(&decisions);
    let checked = checked(client, &place, &changed).await?;
    effect::of(&live, &place, checked, &decisions, now).tell();
    if let Some(keeper) = draft.keeper() {
        screen::note(&format!("{} is kept by {keeper}: commit this there", change::named(&changed)));
    }
    screen::print(&change::manifest(&changed)?)
}

/// The device comes first, where no group is named.
fn device(on: &On) -> anyhow::Result<&str> {
    match (&on.group, on.names.as_slice()) {
        (None, [_]) => bail!(
            "{:?} alone: name the device before the update (DEVICE UPDATE), or with --group the ApprovalGroup that decides",
            on.names[0]
        ),
        (_, names) => names.first().map(String::as_str).context("no update is named"),
    }
}

fn decisions(wish: &Wish, now: Timestamp) -> anyhow::Result<Vec<UpdateDecision>> {
    let until = wish.until.as_deref().map(|text| self::until(text, now)).transpose()?;
    let updates = if wish.on.group.is_some() { &wish.on.names[..] } else { &wish.on.names[1..] };
    let cve = updates.iter().find(|update| wish.action == DecisionAction::Uninstall && update.starts_with("CVE-"));
    if let Some(cve) = cve {
        bail!(
            "{cve}: uninstall is for updates and not for a CVE: what is installed does not tell which vulnerabilities it has fixed"
        );
    }
    let one = |update: &String| UpdateDecision {
        update: update.clone(),
        action: wish.action,
        or_later: wish.or_later.then_some(true),
        until,
        failed_before: (wish.action == DecisionAction::Reprocess).then_some(now),
        locked: wish.locked.then_some(true),
        window: wish.window.clone(),
        reason: wish.reason.clone(),
    };
    Ok(updates.iter().map(one).collect())
}

/// An instant that is to come, in whole seconds. A date ends with its last second, in UTC.
fn until(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let time = if let Ok(time) = text.parse::<Timestamp>() {
        time
    } else if let Some(date) = text.parse::<Date>().ok().filter(|date| date.to_string() == text) {
        let midnight = date.tomorrow().and_then(|next| next.to_zoned(TimeZone::UTC));
        midnight.with_context(|| format!("--until {text}"))?.timestamp() - SignedDuration::from_secs(1)
    } else {
        let span: Span = text.parse().ok().with_context(|| {
            format!("--until {text:?} is no duration (14d, 36h), no date (2027-01-31) and no time (RFC 3339)")
        })?;
        let later = now.to_zoned(TimeZone::UTC).checked_add(span);
        later.with_context(|| format!("--until {text}"))?.timestamp()
    };
    ensure!(time > now, "--until {text}: {time} is over");
    Ok(convert::whole_seconds(time))
}

/// As the API server would have it. Whoever commits to Git may lack the right to write it: then it is checked there.
async fn checked(client: &Client, place: &Place, changed: &ApprovalGroup) -> anyhow::Result<ApprovalGroup> {
    let mut sent = changed.clone();
    sent.metadata.managed_fields = None;
    sent.status = None;
    let object: DynamicObject = serde_json::from_value(serde_json::to_value(&sent)?)?;
    match preview::dry_run::<ApprovalGroup>(client, &place.namespace, &object).await {
        Ok(mut checked) => {
            checked.status.clone_from(&changed.status);
            Ok(checked)
        }
        Err(error) => {
            // Whatever it is that forbids it: a right that is missing, a policy of admission, a namespace that ends.
            let Some(why) = forbidden(&error) else { return Err(error) };
            let named = change::named(changed);
            screen::note(&format!("{named} was not checked by the API server, which forbids you to write it: {why}"));
            Ok(changed.clone())
        }
    }
}

/// What the API server says where it forbids something.
fn forbidden(error: &anyhow::Error) -> Option<&str> {
    match error.downcast_ref::<kube::Error>()? {
        kube::Error::Api(status) if status.code == 403 => Some(&status.message),
        _ => None,
    }
}

#[cfg(test)]
mod arguments_tests {
    use super::*;

    #[test]
    fn an_end_is_a_duration_a_date_or_a_time_and_is_to_come() {
        let now: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
        let read = |text| until(text, now).map(|time| time.to_string()).map_err(|error| error.to_string());
        assert_eq!(read("14d").unwrap(), "2026-12-13T12:00:00Z");
        assert_eq!(read("1d12h").unwrap(), "2026-12-01T00:00:00Z");
        assert_eq!(read("2026-12-24").unwrap(), "2026-12-24T23:59:59Z");
        assert_eq!(read("2026-11-29").unwrap(), "2026-11-29T23:59:59Z");
        assert_eq!(read("2027-01-01T00:00:00+01:00").unwrap(), "2026-12-31T23:00:00Z");
        assert_eq!(read("2026-11-28").unwrap_err(), "--until 2026-11-28: 2026-11-28T23:59:59Z is over");
        assert!(read("soon").unwrap_err().contains("is no duration"));
        assert!(read("2027-01-31T08:00").unwrap_err().contains("is no duration"), "of which time zone?");
        assert!(read("-1d").unwrap_err().contains("is over"));
    }

    #[test]
    fn a_device_comes_before_its_updates_unless_a_group_is_named() {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            approve: Approve,
        }
        let parsed = |words: &[&str]| {
            let all = ["approve"].into_iter().chain(words.iter().copied());
            let Approve { on, until, or_later, window, locked, reason } =
                <Only as clap::Parser>::try_parse_from(all).unwrap().approve;
            Wish { on, action: DecisionAction::Approve, until, or_later, locked, window, reason }
        };
        let updates = |wish: &Wish| {
            let decisions = decisions(wish, Timestamp::UNIX_EPOCH).unwrap();
            decisions.into_iter().map(|decision| decision.update).collect::<Vec<_>>()
        };
        let one = parsed(&["web-1", "KB1", "KB2"]);
        assert_eq!((device(&one.on).unwrap(), updates(&one)), ("web-1", vec!["KB1".to_owned(), "KB2".to_owned()]));
        assert_eq!(updates(&parsed(&["--group", "servers", "KB1"])), ["KB1"]);
        let alone = device(&parsed(&["KB1"]).on).unwrap_err().to_string();
        assert!(alone.contains("\"KB1\" alone") && alone.contains("--group"), "{alone}");
    }
}
