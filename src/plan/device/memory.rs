//! Looking at updates with what has been worked out for others.

use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_protocol::order::Verb;

use crate::approval::{Ruling, Verdict};
use crate::durations::Share;
use crate::fit::{Bound, Fitting, Together};
use crate::forecast::{self, Outlook};
use crate::gates::{self, Case};
use crate::look::Look;
use crate::model::{Device, Name, Update, UpdateId};
use crate::outcome::{Blocked, CHECKED, DecidedBy, Decision, Install, State, UpdatePlan};
use crate::policy::{Calendars, Opening, Starts};
use crate::roster::number_of;

use super::looked::{Asking, Looked, restart_rule, state};
use super::{Asked, Governed, Memory, Surroundings, zone};

impl<'a> Memory<'a> {
    /// When somebody has said to try again what failed on a device that offers it and that its policy does not ask for, if that is
    /// still to come. Such an update is not told of, but that it failed counts until then.
    pub(super) fn retry_of_unwanted(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'_>,
    ) -> Option<Timestamp> {
        let Device { report: Ok(report), failures, .. } = governed.device else { return None };
        if failures.is_empty() {
            return None;
        }
        let offered = report.offers.iter().filter_map(|offer| Some((offer.update, around.updates.get(offer.update)?)));
        let unwanted = offered.filter(|(_, update)| !around.wants(governed, update));
        let failed = unwanted.filter(|(_, update)| gates::failure(governed.device, &update.id).is_some());
        failed.filter_map(|(place, _)| self.ruling(around, governed, place)?.retry_from).min()
    }

    /// None for an update that is installed and stays, for what no policy asks of an application (any more), and for one of
    /// another catalogue.
    pub(super) fn look_at(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'_>,
        asked: &Asked<'_, 'a>,
        asking: Asking<'_>,
        look: &mut Look,
    ) -> Option<Looked<'a>> {
        let place = asking.update();
        let update = around.updates.get(place).filter(|update| around.wants(governed, update))?;
        let id = around.updates.id_of(place)?;
        let ruling = match asking {
            Asking::Offered(..) | Asking::Installed(_) => self.ruling(around, governed, place),
            // No group approves restarts, but whoever says to try one again may say so of this one.
            Asking::Restart(_) => self.ruling(around, governed, place).map(|ruling| Rc::new(ruling.of_failures())),
        };
        look.at(ruling.as_ref().and_then(|ruling| ruling.until));
        let (mut known_since, mut old_enough_since, mut lacked) = (None, None, None);
        let (offer, verb, verdict) = match asking {
            Asking::Offered(offer, verb) => {
                let since = self.sightings.since(id, governed.number, offer);
                known_since = Some(since);
                let (catalogue, numbers) = (&around.updates, (id, governed.number));
                let lacking = self.sightings.lacking(catalogue, numbers, offer, (since, update.published));
                lacked = Some(lacking);
                let verdict = ruling.as_ref().map(|ruling| {
                    let start = self.sightings.ages_from(catalogue, &lacking, ruling.clock());
                    // A window of its own is always waited for.
                    if ruling.window.is_none() && around.catches_up(governed) {
                        old_enough_since = ruling.old_enough_since(lacking.since, start);
                    }
                    ruling.on(since, lacking.since, start, around.now)
                });
                (Some(offer), verb, verdict)
            }
            Asking::Installed(_) => (None, Verb::Uninstall, Some(ruling.as_ref()?.on_installed()?)),
            Asking::Restart(_) => (None, Verb::Restart, None),
        };
        let own_window = ruling.as_ref().and_then(|ruling| ruling.window.as_ref());
        let own_opening = own_window.and_then(|_| self.opening(around, governed, own_window));
        let opening = if own_window.is_some() { own_opening.as_deref() } else { asked.opening.as_deref() };
        look.at(own_opening.as_ref().and_then(|opening| opening.changes));
        look.at(ruling.as_ref().and_then(|ruling| ruling.retry_from));
        look.at(verdict.as_ref().and_then(|verdict| verdict.approved_at));

        let share = if verb == Verb::Install { self.share(governed, id, update) } else { None };
        let measured = opening.and_then(|opening| self.starts(governed, opening, share, around.now));
        let starts = opening.map(|opening| measured.as_deref().unwrap_or(opening.at_limit()));
        let outside = offer
            .zip(opening.zip(starts))
            .zip(old_enough_since)
            .and_then(|((offer, windows), since)| around.outside(governed, asked, offer, windows, since));
        let tried_again = ruling.as_ref().and_then(|ruling| ruling.retry_failed_before);
        let case = Case {
            update,
            verb,
            offer,
            stopped: around.rings.stopped(id, tried_again),
            ring_waits: governed.reign.place.and_then(|place| around.rings.waits(place, id)),
            ruling: ruling.as_deref(),
            verdict: verdict.as_ref(),
            opening,
            starts,
            outside: outside.as_ref(),
        };
        let (blocked, eligible_at) = asked.around.refusal_of(&case, asked.gates, asked.refusal.as_ref()).unzip();
        let eligible_at = eligible_at.flatten();
        look.at(eligible_at);
        // Of what something else blocks it does not matter.
        let asks_windows = blocked.as_ref().is_none_or(|blocked| blocked.is_of_windows());
        look.at(outside.as_ref().and_then(|outside| outside.changes).filter(|_| asks_windows));
        let (decision, decided_by) = match asking {
            Asking::Offered(..) | Asking::Installed(_) => decided(verdict.as_ref(), ruling.as_deref()),
            Asking::Restart(_) => around.restart_decision(governed),
        };
        let last_known = state(governed.device, update, asking, decision);
        let plan = UpdatePlan {
            update: place,
            verb,
            state: if asked.is_stale { State::Unknown } else { last_known },
            last_known,
            decision,
            decided_by,
            blocked,
            eligible_at,
        };
        let missing_from = verdict.as_ref().and_then(|verdict| verdict.missing_from);
        look.at(missing_from);
        let is_missing = missing_from.is_some_and(|from| from <= around.now);
        // Of what is blocked nobody asks.
        let last_start = if plan.blocked.is_none() { gates::last_start(&asked.around, &case).ok() } else { None };
        let follows_policy = last_start.is_some() && gates::follows_policy(&asked.around, &case);
        let approved_at = verdict.as_ref().and_then(|verdict| verdict.approved_at);
        let deadlines = around.deadlines(governed).filter(|_| is_missing || approved_at.is_some());
        let deadline = deadlines.zip(lacked).and_then(|(deadlines, lacking)| {
            deadlines.of(update, |clock| self.sightings.ages_from(&around.updates, &lacking, clock))
        });
        look.at(deadline);
        Some(Looked {
            outside_from: around.outside_from(governed, asked, &case, old_enough_since),
            plan,
            id,
            is_missing,
            last_start,
            own_opening,
            follows_policy,
            share,
            since: known_since,
            deadline,
            approved_at,
        })
    }

    /// Updates after which a check failed and that the device, which tells of those that were `looked` at, tells of no more: for
    /// they are installed. Those to which a person has seen, by the numbers of their ids, are `pardoned`.
    pub(super) fn checked(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'_>,
        (looked, pardoned): (&[Looked<'a>], &[usize]),
        look: &mut Look,
    ) -> Vec<UpdatePlan> {
        let device = governed.device;
        let mut checked = Vec::new();
        let mut failures: Vec<_> = gates::checked(device).collect();
        failures.sort_by_key(|(failure, _)| (failure.last, &failure.update));
        for (failure, update) in failures {
            let Some(id) = around.updates.id_of(update) else { continue };
            let ruling = self.ruling(around, governed, update);
            look.at(ruling.as_ref().and_then(|ruling| ruling.until));
            let seen_to_from = ruling.as_ref().and_then(|ruling| ruling.retry_from);
            look.at(seen_to_from);
            if device.report.is_err() || pardoned.contains(&id) || looked.iter().any(|one| one.id == id) {
                continue;
            }
            // It was approved, whoever has decided that: what was offered then is not known any more.
            let removed = ruling.as_ref().filter(|ruling| ruling.on_installed().is_some());
            checked.push(UpdatePlan {
                update,
                verb: Verb::Install,
                state: if gates::is_stale(device, around.now) { State::Unknown } else { State::Failed },
                last_known: State::Failed,
                decision: if removed.is_some() { Decision::Remove } else { Decision::Approved },
                decided_by: removed.and_then(|ruling| ruling.by.clone()),
                blocked: Some(Arc::new(Blocked::CheckFailed { at: failure.last })),
                eligible_at: seen_to_from,
            });
        }
        checked.drain(..checked.len().saturating_sub(CHECKED));
        checked
    }

    /// What the device has before it, if it has a deadline.
    pub(super) fn outlook(
        &self,
        around: &Surroundings<'a>,
        governed: &Governed<'_>,
        looked: &[Looked<'a>],
        look: &mut Look,
    ) -> Option<Outlook> {
        let place = governed.reign.place.filter(|_| !governed.device.retired)?;
        let deadline = looked.iter().filter_map(|one| one.deadline).min()?;
        let expectation = self.fit.expectation(place.policy)?;
        let counts = |one: &&Looked<'a>| one.is_missing || one.approved_at.is_some();
        let takes = expectation.install(looked.iter().filter(counts).map(|one| one.share));
        let (mut ready, mut outside) = (Some(i64::MIN), Some(i64::MIN));
        for one in looked.iter().filter(|one| one.deadline.is_some()) {
            let from = around.ready(place, one).filter(|from| one.deadline.is_some_and(|by| *from <= by.as_second()));
            ready = ready.zip(from).map(|(a, b)| a.max(b));
            outside = outside.zip(one.outside_from).map(|(a, b)| a.max(b.as_second()));
            // Soak times that have not begun are counted from each day on.
            let waits = matches!(one.plan.blocked.as_deref(), Some(Blocked::RingWaits { until: None, .. }));
            look.at(forecast::tomorrow(around.now).filter(|_| waits));
        }
        Some(Outlook { deadline: deadline.as_second(), ready, takes: takes.as_secs(), outside })
    }

    /// What is expected of an update on a device: all of the limit where it failed there before.
    pub(super) fn share(&self, governed: &Governed<'_>, id: usize, update: &Update) -> Share {
        let share = self.fit.expectation(governed.reign.policy.winner?)?.share(id, update.classification)?;
        let failed = gates::failure(governed.device, &update.id).is_some_and(|failure| failure.attempts > 0);
        (!failed).then_some(share)
    }

    /// Whether an install of an update with such a share may start, or one that was claimed; none where it is expected to
    /// take its limit.
    pub(super) fn starts(
        &mut self,
        governed: &Governed<'_>,
        opening: &Opening<'a>,
        share: Share,
        now: Timestamp,
    ) -> Option<Rc<Starts>> {
        let expected = match governed.expected {
            Some(expected) => expected,
            None => self.fit.expectation(governed.reign.policy.winner?)?.install(std::iter::once(Some(share?))),
        };
        Some(self.fit.starts(opening, expected, now))
    }

    /// All that nothing blocks and that fits into what is left of its windows, in one order; an id that a report tells
    /// twice, once. The others are blocked. `windows` are the policy's.
    pub(super) fn install(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'_>,
        windows: Option<&Rc<Opening<'a>>>,
        looked: &mut [Looked<'a>],
    ) -> Option<Install> {
        let is_free = |looked: &Looked<'a>| looked.plan.blocked.is_none();
        // Whatever is free is of one verb.
        let verb = looked.iter().find(|looked| is_free(looked))?.plan.verb;
        let governor = around.governor(governed)?;
        let resolved = governor.resolved.as_ref().ok()?;
        let mut offered: Vec<Together<'a>> = Vec::new();
        for one in looked.iter().filter(|looked| is_free(looked)) {
            let last = one.last_start?;
            let bound = match one.own_opening.as_ref().or(windows) {
                Some(opening) if last.by_windows => Bound::Windows(opening.clone()),
                _ => Bound::Until(last.at),
            };
            match offered.iter_mut().find(|other| other.number == one.id) {
                None => {
                    let (number, share, since) = (one.id, one.share, one.since);
                    offered.push(Together { number, share, since, bound, twins: vec![] });
                }
                Some(twin) => {
                    twin.share = twin.share.zip(one.share).map(|(a, b)| a.max(b));
                    twin.since = twin.since.into_iter().chain(one.since).min();
                    twin.twins.push(bound);
                }
            }
        }
        let Fitting { taken, left_out, not_after, limit, expected } =
            self.fit.choose(governed.reign.policy.winner?, offered, around.now)?;
        for one in looked.iter_mut().filter(|looked| is_free(looked) && left_out.contains(&looked.id)) {
            // It waits for the others of the install, not for the clock alone.
            one.plan.blocked = one.own_opening.as_ref().or(windows).map(|opening| opening.closed().clone());
        }
        let keeps_to_policy =
            |one: &Looked<'a>| one.follows_policy && one.last_start.is_some_and(|last| last.by_windows);
        let restarts = looked.iter().filter(|looked| is_free(looked)).all(keeps_to_policy);
        let restart_until = windows.filter(|_| restarts).and_then(|windows| windows.open_until());
        let catalogue = &around.updates;
        Some(Install {
            verb,
            updates: taken.iter().map(|one| catalogue.id_at(one.number).cloned()).collect::<Option<_>>()?,
            since: taken.iter().filter_map(|one| one.since).collect(),
            policy: governor.policy.name.clone(),
            dependencies: resolved.settings.dependencies,
            not_after,
            limit,
            expected,
            restart: restart_rule(&resolved.settings.restart, verb, restart_until),
        })
    }

    /// Whether a device's report tells an id twice.
    pub(super) fn has_twins(&mut self, looked: &[Looked<'_>]) -> bool {
        let new = looked.iter().filter(|looked| self.ids.insert(looked.id)).count();
        for looked in looked {
            self.ids.remove(looked.id);
        }
        new < looked.len()
    }

    pub(super) fn ruling(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'_>,
        update: UpdateId,
    ) -> Option<Rc<Ruling>> {
        let group = governed.reign.group.winner.filter(|_| governed.reign.group.doubt.is_none())?;
        self.rulings.get(&around.updates, group, around.lines.get(group)?, update)
    }

    /// Worked out once for each policy, own window and zone, until something of it changes.
    pub(super) fn opening(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'_>,
        own: Option<&(Name, Name)>,
    ) -> Option<Rc<Opening<'a>>> {
        let governor = around.governor(governed)?;
        let resolved = governor.resolved.as_ref().ok()?;
        let (zone, limit, now) = (zone(governed.device), governed.limit, around.now);
        let install_limit = resolved.settings.install_limit;
        let work_out = |number: Option<usize>| {
            let opening = match own {
                None => resolved.windows.opening(zone, limit, now),
                Some((window, group)) => {
                    match Calendars::own(window, group, &governor.policy.name, install_limit, &around.windows) {
                        Ok(calendars) => calendars.opening(zone, limit, now),
                        Err(why) => Opening::none(why, limit),
                    }
                }
            };
            Rc::new(opening.numbered(number))
        };
        let zone = match zone {
            None => None,
            // Only windows on the device's clock depend on its zone.
            Some(_) if own.is_none() && resolved.windows.needs_zone().is_none() => None,
            Some(zone) => match zone.iana_name() {
                Some(name) => Some(number_of(&mut self.zones, name)),
                // Nothing to know it by again.
                None => return Some(work_out(None)),
            },
        };
        let key = (governed.reign.policy.winner?, limit, own.cloned(), zone);
        let Self { openings, next_over, numbered, .. } = self;
        let number_and_work_out = || {
            *numbered += 1;
            let opening = work_out(Some(*numbered));
            *next_over = next_over.iter().copied().chain(opening.over).min();
            opening
        };
        Some(openings.entry(key).or_insert_with(number_and_work_out).clone())
    }
}

/// What approval comes to for an update, and what has decided it.
fn decided(verdict: Option<&Verdict>, ruling: Option<&Ruling>) -> (Decision, Option<Arc<DecidedBy>>) {
    let decision = verdict.map_or(Decision::AwaitingApproval, |verdict| verdict.decision);
    (decision, ruling.and_then(|ruling| ruling.by.clone()))
}
