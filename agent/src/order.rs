//! Whether an order is to be carried out. Pure: everything that is known of the machine comes in as [`Facts`].
//!
//! The checks run in a fixed order and the first refusal wins; each has its [`ResultReason`].

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::MAX_CLOCK_SKEW_SECONDS;
use patchwarden_protocol::canonical;
use patchwarden_protocol::envelope;
use patchwarden_protocol::key::{Fingerprint, PublicKey};
use patchwarden_protocol::order::{
    Action, Order, PackageChange, RESTART, RestartRule, RestartWhen, Sequence, SignedOrder, Verb,
};
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::result::ResultReason;
use patchwarden_protocol::safeguards::Safeguards;
use patchwarden_protocol::site_cache::SiteCache;

use crate::limits::{Limits, LimitsError};
use crate::provider::{Failure, bounded, recipes};

/// An order of more actions than a report can list updates was not planned from a report.
const MAX_ACTIONS: usize = patchwarden_protocol::report::MAX_UPDATES;

/// Bounds of a [`RestartRule`], which are those of a policy: characters, restarts, and seconds (a day, and four hours).
const MAX_RESTART_MESSAGE: usize = 300;
const MAX_RESTARTS: u32 = 10;
const MAX_RESTART_WITHIN: u32 = 24 * 3600;
const MAX_RESTART_WARNING: u32 = 4 * 3600;

/// What is true of this machine now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The pinned root.
    pub(crate) root: &'a PublicKey,
    /// This device by name.
    pub(crate) device: &'a DeviceRef,
    /// This device by key.
    pub(crate) device_key: &'a Fingerprint,
    /// The highest order that was ever accepted.
    pub(crate) highest: Option<Sequence>,
    /// Digest of the current report.
    pub(crate) report_digest: &'a str,
    /// This device's clock.
    pub(crate) now: Timestamp,
    /// How far the gateway's clock is ahead, when it has said so.
    pub(crate) skew: Option<SignedDuration>,
    /// What this device's owner allows.
    pub(crate) limits: &'a Result<Limits, LimitsError>,
}

/// Why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Code.
    pub(crate) reason: ResultReason,
    /// For people.
    pub(crate) message: String,
    /// Digest of the order as it claims to be.
    pub(crate) digest: String,
    /// Sequence as the order claims it.
    pub(crate) sequence: Sequence,
    /// Signed by the order key, for this device, and above what was accepted before: refusing it uses its sequence up,
    /// so that a refused order is never carried out later. Otherwise anyone could use up sequences.
    pub(crate) uses_sequence: bool,
}

/// Reads a `SignedOrder`.
pub(crate) fn parse(bytes: &[u8]) -> Result<SignedOrder, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal {
        reason: ResultReason::Unreadable,
        message: format!("the order cannot be read: {error}"),
        digest: canonical::digest(bytes),
        sequence: Sequence::default(),
        uses_sequence: false,
    })
}

/// The order, if it is to be carried out now. The caller has made sure that the journal can be read and that the order
/// is not one it knows already.
pub(crate) fn verify(signed: &SignedOrder, facts: &Facts<'_>) -> Result<Order, Refusal> {
    let claimed = signed.order.peek().map(|order| order.sequence).unwrap_or_default();
    let refuse = |reason, message: String, uses_sequence| Refusal {
        reason,
        message,
        digest: signed.order.digest(),
        sequence: claimed,
        uses_sequence,
    };
    let order = signed.open(facts.root, facts.now).map_err(|refused| {
        let reason = match &refused {
            envelope::Refused::Unreadable(_) => ResultReason::Unreadable,
            envelope::Refused::Unsigned | envelope::Refused::WrongType { .. } | envelope::Refused::BadSignature(_) => {
                ResultReason::BadSignature
            }
        };
        refuse(reason, refused.to_string(), false)
    })?;
    for check in [device, sequence] {
        check(&order, facts).map_err(|(reason, message)| refuse(reason, message, false))?;
    }
    for check in [clock, report, content, limits] {
        check(&order, facts).map_err(|(reason, message)| refuse(reason, message, true))?;
    }
    Ok(order)
}

type Check = Result<(), (ResultReason, String)>;

fn device(order: &Order, facts: &Facts<'_>) -> Check {
    if order.device_key != *facts.device_key || order.device != *facts.device {
        return Err((
            ResultReason::OtherDevice,
            format!(
                "the order is for {} ({}), this is {} ({})",
                order.device, order.device_key, facts.device, facts.device_key
            ),
        ));
    }
    Ok(())
}

/// Before the clock, so that an old order cannot be refused a second time under a sequence that was used.
fn sequence(order: &Order, facts: &Facts<'_>) -> Check {
    match facts.highest {
        Some(highest) if order.sequence <= highest => Err((
            ResultReason::Replayed,
            format!("order {} is not above {highest}, the last one accepted", order.sequence),
        )),
        _ => Ok(()),
    }
}

fn clock(order: &Order, facts: &Facts<'_>) -> Check {
    if let Some(skew) = facts.skew.filter(|skew| skew.as_secs().abs() > MAX_CLOCK_SKEW_SECONDS) {
        let seconds = skew.as_secs();
        return Err((
            ResultReason::Expired,
            format!("clock skew: this device's clock is {seconds} s behind the gateway's, 120 are allowed"),
        ));
    }
    if facts.now > order.not_after {
        return Err((
            ResultReason::Expired,
            format!("it is {}, and the order was good until {}", facts.now, order.not_after),
        ));
    }
    if facts.now < order.not_before {
        return Err((
            ResultReason::TooEarly,
            format!("it is {}, and the order is good from {}", facts.now, order.not_before),
        ));
    }
    Ok(())
}

fn report(order: &Order, facts: &Facts<'_>) -> Check {
    if order.report_digest == facts.report_digest {
        return Ok(());
    }
    Err((
        ResultReason::ReportMismatch,
        format!(
            "the order was planned from report {}, the current one is {}",
            order.report_digest, facts.report_digest
        ),
    ))
}

/// What goes on a package manager's command line is checked although it is signed.
pub(crate) fn content(order: &Order, _: &Facts<'_>) -> Check {
    let unreadable = |message: String| Err((ResultReason::Unreadable, message));
    if order.actions.is_empty() || order.actions.len() > MAX_ACTIONS {
        return unreadable(format!("an order has 1 to {MAX_ACTIONS} actions, this one has {}", order.actions.len()));
    }
    if let Err(why) = restart_rule(&order.restart) {
        return unreadable(format!("restart: {why}"));
    }
    if let Err(why) = order.safeguards.validate() {
        return unreadable(why);
    }
    if let Some(Err(why)) = order.site_cache.as_ref().map(SiteCache::validate) {
        return unreadable(why);
    }
    let mut seen = std::collections::BTreeSet::new();
    let verb = order.actions[0].verb;
    if matches!(verb, Verb::Download | Verb::Restart) && order.safeguards != Safeguards::default() {
        return unreadable(format!("hooks and checks in an order to {verb:?}: it changes no package"));
    }
    if matches!(verb, Verb::Download | Verb::Restart) && order.restart.services {
        return unreadable(format!("restart: services in an order to {verb:?}: it changes no package"));
    }
    for action in &order.actions {
        if action.verb != verb {
            let (update, other) = (bounded(&action.update, 253), action.verb);
            return unreadable(format!("{update}: {other:?} in an order to {verb:?}: an order has one verb"));
        }
        if verb == Verb::Restart || action.update == RESTART {
            if is_restart_alone(order, action) {
                return Ok(());
            }
            return unreadable(
                "a restart is an order's only action, without packages and files, and its rule allows one".to_owned(),
            );
        }
        if action.packages.is_empty() {
            return unreadable(format!("{}: no packages", action.update));
        }
        for change in &action.packages {
            if !is_safe(change) {
                return unreadable(format!("{}: not a package, architecture and version: {change:?}", action.update));
            }
            if !seen.insert((&change.name, &change.arch)) {
                return unreadable(format!("{}: {}:{} is ordered twice", action.update, change.name, change.arch));
            }
        }
    }
    Ok(())
}

/// Last: what is limited is an order that would be carried out.
fn limits(order: &Order, facts: &Facts<'_>) -> Check {
    let checked = match facts.limits {
        Ok(limits) => limits.check_order(order, facts.now),
        Err(error) => Err(error.into()),
    };
    checked.map_err(|Failure { reason, message, .. }| (reason, message))
}

fn is_restart_alone(order: &Order, action: &Action) -> bool {
    let Action { verb, update, packages, artifacts_digest } = action;
    order.actions.len() == 1
        && *verb == Verb::Restart
        && update == RESTART
        && packages.is_empty()
        && artifacts_digest.is_empty()
        && order.restart.when != RestartWhen::Never
}

fn restart_rule(rule: &RestartRule) -> Result<(), String> {
    let RestartRule { when, not_after: _, within_seconds, warning_seconds, message, limit, services: _ } = rule;
    let at_most = |what: &str, found: u32, most: u32| {
        if found > most { Err(format!("{what} is at most {most}, and {found} is ordered")) } else { Ok(()) }
    };
    at_most("limit", *limit, MAX_RESTARTS)?;
    at_most("withinSeconds", *within_seconds, MAX_RESTART_WITHIN)?;
    at_most("warningSeconds", *warning_seconds, MAX_RESTART_WARNING)?;
    if message.chars().count() > MAX_RESTART_MESSAGE {
        return Err(format!("the message is longer than {MAX_RESTART_MESSAGE} characters"));
    }
    // It goes to terminals.
    if message.chars().any(char::is_control) {
        return Err("the message contains control characters".to_owned());
    }
    if *when != RestartWhen::Never && *limit == 0 {
        return Err(format!("{when:?}, and at most 0 restarts"));
    }
    Ok(())
}

/// Debian policy 5.6.1 and 5.6.12, which also fit RPM but for `_` and `^`.
fn is_safe(change: &PackageChange) -> bool {
    let PackageChange { name, arch, installed, candidate } = change;
    let only = |text: &str, more: &str| {
        text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    // Only applications come and go as a whole: they are at no version then.
    let may_be_none = recipes::is_recipe(name) && installed != candidate;
    let version = |text: &str| (text.is_empty() && may_be_none) || only(text, "+-.~:^_");
    let name = recipes::application_of(name).unwrap_or(name);
    only(name, "+-._") && only(arch, "-_") && version(installed) && version(candidate)
}

#[cfg(test)]
pub(crate) mod tests;
