//! Whether the machine is to be restarted, whether it may be, and whether it was. Pure.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::grant;
use patchwarden_protocol::order::{RestartRule, RestartWhen};
use patchwarden_protocol::report::Tristate;

use crate::journal::Restarting;

/// A machine that is not back so long after the command will not come back by itself. The controller holds the device
/// for 20 minutes after the last restart that may begin.
pub(super) const TAKES: SignedDuration = SignedDuration::from_mins(15);

/// Whether a restart is due after `restarts` of them; `changed` says whether the order has changed anything, or is to
/// restart and nothing else.
pub(super) fn is_due(when: RestartWhen, required: Tristate, restarts: u32, changed: bool) -> bool {
    match when {
        RestartWhen::Never => false,
        RestartWhen::Always if restarts == 0 => changed,
        RestartWhen::IfRequired | RestartWhen::Always => required == Tristate::Yes,
    }
}

/// No restart for an order that began at `since` begins after this.
pub(in crate::execute) fn deadline(rule: &RestartRule, since: Timestamp) -> Timestamp {
    rule.not_after.min(after(since, rule.within_seconds))
}

/// Whether one more restart may begin `warning_seconds` from `now`; else what stands against it, for people.
pub(super) fn may_begin(
    rule: &RestartRule,
    since: Timestamp,
    restarts: u32,
    warning_seconds: u32,
    now: Timestamp,
) -> Result<(), String> {
    let RestartRule { when: _, not_after, within_seconds, warning_seconds: _, message: _, limit, services: _ } = rule;
    if restarts >= *limit {
        return Err(format!("it was restarted {restarts} times, and no more than {limit} in a row are allowed"));
    }
    let begins = after(now, warning_seconds);
    if begins > after(since, *within_seconds) {
        return Err(format!(
            "it would begin at {}, and the order began at {}: more than {} min later",
            clock(begins),
            clock(since),
            within_seconds / 60
        ));
    }
    if begins > *not_after {
        return Err(format!(
            "it would begin at {}, and none may begin after {}, the end of the window",
            clock(begins),
            clock(*not_after)
        ));
    }
    Ok(())
}

/// What became of a restart whose command was about to be run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This is another boot.
    Restarted,
    /// It may be that the command was never run, and the grant still counts.
    RunAgain,
    /// The machine may be going down.
    Wait,
}

/// As an agent sees it that has just come back.
pub(super) fn look(restarting: &Restarting, rule: &RestartRule, since: Timestamp, boot: &str, now: Timestamp) -> Found {
    if restarting.boot_id != boot {
        return Found::Restarted;
    }
    let age = now.duration_since(restarting.granted_at);
    let is_granted = age >= SignedDuration::ZERO && age <= grant::LIFETIME;
    let restarts = restarting.number.saturating_sub(1);
    if restarting.run == 1 && is_granted && may_begin(rule, since, restarts, 0, now).is_ok() {
        Found::RunAgain
    } else {
        Found::Wait
    }
}

/// How long a restart is still waited for. A clock that was set back does not make it longer.
pub(super) fn patience(restarting: &Restarting, now: Timestamp) -> SignedDuration {
    TAKES.saturating_sub(now.duration_since(restarting.at)).clamp(SignedDuration::ZERO, TAKES)
}

/// `2026-01-10 12:00:00 UTC`.
pub(in crate::execute) fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// So long before.
pub(super) fn before(at: Timestamp, seconds: u32) -> Timestamp {
    at.saturating_sub(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MIN)
}

/// So long after.
pub(super) fn after(at: Timestamp, seconds: u32) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::at;

    /// Until second 7200, within 3600 s, warned 300 s before, at most 3.
    fn rule() -> RestartRule {
        RestartRule {
            when: RestartWhen::IfRequired,
            not_after: at(7200),
            within_seconds: 3600,
            warning_seconds: 300,
            message: String::new(),
            limit: 3,
            services: false,
        }
    }

    fn restarting() -> Restarting {
        Restarting {
            digest: "sha256:1".into(),
            boot_id: "old".into(),
            number: 1,
            run: 1,
            granted_at: at(100),
            at: at(130),
            settled: vec![],
            trial: None,
        }
    }

    #[test]
    fn a_restart_is_due_when_it_is_required_or_always_after_a_change() {
        use RestartWhen::{Always, IfRequired, Never};
        use Tristate::{No, Unknown, Yes};
        for (when, required, restarts, changed, expected) in [
            (Never, Yes, 0, true, false),
            (IfRequired, Yes, 0, true, true),
            (IfRequired, Yes, 0, false, true),
            (IfRequired, Yes, 2, true, true),
            (IfRequired, No, 0, true, false),
            (IfRequired, Unknown, 0, true, false),
            (Always, No, 0, true, true),
            (Always, Unknown, 0, true, true),
            (Always, Yes, 0, false, false),
            (Always, No, 1, true, false),
            (Always, Unknown, 1, true, false),
            (Always, Yes, 1, true, true),
        ] {
            let found = is_due(when, required, restarts, changed);
            assert_eq!(found, expected, "{when:?} {required:?} {restarts} {changed}");
        }
    }

    #[test]
    fn a_restart_begins_within_every_limit_or_not_at_all() {
        // (restarts, since, now, warning) and a part of what stands against it.
        for (restarts, since, now, warning, expected) in [
            (0, 0, 0, 300, None),
            (2, 0, 0, 300, None),
            (3, 0, 0, 300, Some("restarted 3 times, and no more than 3")),
            (4, 0, 0, 0, Some("no more than 3")),
            (0, 0, 3300, 300, None),
            (0, 0, 3301, 300, Some("more than 60 min later")),
            (0, 0, 3600, 0, None),
            (0, 0, 3601, 0, Some("more than 60 min later")),
            (0, 5000, 6900, 300, None),
            (0, 5000, 6901, 300, Some("the end of the window")),
            (0, 5000, 7200, 0, None),
            (0, 5000, 7201, 0, Some("the end of the window")),
        ] {
            let found = may_begin(&rule(), at(since), restarts, warning, at(now));
            let says = |words: &str| found.as_ref().is_err_and(|why| why.contains(words));
            assert!(expected.map_or(found.is_ok(), says), "{restarts} {since} {now} {warning}: {found:?}");
        }
        assert_eq!((deadline(&rule(), at(0)), deadline(&rule(), at(5000))), (at(3600), at(7200)));
    }

    #[test]
    fn an_agent_that_comes_back_in_the_same_boot_runs_the_command_once_more_at_most_and_only_while_the_grant_counts() {
        let look = |restarting: &Restarting, boot: &str, now| look(restarting, &rule(), at(0), boot, at(now));
        assert_eq!(look(&restarting(), "new", 131), Found::Restarted);
        assert_eq!(look(&restarting(), "new", 99_999), Found::Restarted);
        assert_eq!(look(&restarting(), "old", 131), Found::RunAgain);
        assert_eq!(look(&restarting(), "old", 160), Found::RunAgain);
        assert_eq!(look(&restarting(), "old", 161), Found::Wait, "a minute after the grant");
        assert_eq!(look(&restarting(), "old", 99), Found::Wait, "the clock was set back");
        assert_eq!(look(&Restarting { run: 2, ..restarting() }, "old", 131), Found::Wait);
        assert_eq!(look(&Restarting { number: 4, ..restarting() }, "old", 131), Found::Wait);
        let late = Restarting { granted_at: at(3590), at: at(3595), ..restarting() };
        assert_eq!((look(&late, "old", 3600), look(&late, "old", 3601)), (Found::RunAgain, Found::Wait));
    }

    #[test]
    fn a_restart_is_waited_for_a_quarter_of_an_hour() {
        let left = |now| patience(&restarting(), at(now)).as_secs();
        assert_eq!((left(130), left(1029), left(1030), left(5000)), (900, 1, 0, 0));
        assert_eq!(left(-99_999), 900);
    }
}
