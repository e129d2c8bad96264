//! What is the same whichever device is looked at.

use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_protocol::applications::Ensure;
use patchwarden_protocol::order::{RestartWhen, Verb};

use crate::blast::{self};
use crate::catch_up::{self, Outside};
use crate::deadlines::Deadlines;
use crate::forecast::{self};
use crate::gates::{self, Around, Case};
use crate::model::{Claim, DeviceReport, Mode, Name, Offer, Update};
use crate::outcome::{Blocked, DecidedBy, Decision, State};
use crate::policy::{Governor, Opening, Starts};
use crate::rings::Place;
use crate::window::later;

use super::looked::Looked;
use super::{Asked, Governed, Surroundings};

impl<'a> Surroundings<'a> {
    /// By what was written down: specs wait for a person, and the device was not eligible by those that are in force.
    pub(super) fn held(&self, governed: &Governed<'_>) -> Option<Arc<Blocked>> {
        let policy = self.governor(governed)?.policy;
        let blast = &self.rings.progress(governed.reign.policy.winner?)?.blast;
        let pending = blast.pending.as_ref().filter(|_| !blast::was_eligible(governed.device, self.now))?;
        Some(Arc::new(Blocked::BlastLimit { policy: policy.name.clone(), devices: pending.devices }))
    }

    /// From when on the device's policy and group act on it, if it had others before.
    pub(super) fn settles(&self, governed: &Governed<'_>) -> Option<Timestamp> {
        let moved = governed.reign.moved.as_ref()?;
        let settings = self.governor(governed)?.policy.settings.as_ref().ok()?;
        Some(later(moved.since, settings.settle))
    }

    /// From when on an update may start outside its windows, freezes aside; none if it waits for one. `since`: when it was old enough
    /// to be approved, as far as that was asked.
    pub(super) fn outside_from(
        &self,
        governed: &Governed<'_>,
        asked: &Asked<'_, 'a>,
        case: &Case<'_>,
        since: Option<Timestamp>,
    ) -> Option<Timestamp> {
        if gates::needs_no_window(&asked.around, case) {
            return Some(Timestamp::MIN);
        }
        let settings = self.governor(governed)?.resolved.as_ref().ok()?.settings.catch_up?;
        catch_up::due(settings, (governed.device, asked.around.report), since?.max(case.offer?.missing_since))
    }

    /// Whether an update may start though its windows do not let it; none where they do, or nothing catches up. `since`:
    /// when it was old enough to be approved.
    pub(super) fn outside(
        &self,
        governed: &Governed<'_>,
        asked: &Asked<'_, 'a>,
        offer: &Offer,
        (opening, starts): (&Opening<'a>, &Starts),
        since: Timestamp,
    ) -> Option<Outside> {
        let settings = self.governor(governed)?.resolved.as_ref().ok()?.settings.catch_up?;
        let closed = starts.last.as_ref().err()?;
        let windows = (opening.freezes.as_slice(), &**closed);
        let since = since.max(offer.missing_since);
        let device = (governed.device, asked.around.report);
        catch_up::outside(settings, device, windows, since, governed.limit, self.now)
    }

    pub(super) fn asked<'g>(
        &'g self,
        governed: &Governed<'g>,
        report: &'g DeviceReport,
        is_asking: bool,
        claim: Option<&'g Claim>,
        opening: Option<Rc<Opening<'a>>>,
    ) -> Asked<'g, 'a> {
        let no_group = match (&governed.reign.group.doubt, governed.reign.group.winner) {
            (Some(doubt), _) => Some(doubt.clone()),
            (None, None) => Some(Arc::new(Blocked::NoGroup)),
            (None, Some(_)) => None,
        };
        let governor = self.governor(governed);
        let progress = governed.reign.policy.winner.and_then(|policy| self.rings.progress(policy));
        let paused = progress.and_then(|progress| progress.paused);
        let (now, device) = (self.now, governed.device);
        let settles = self.settles(governed);
        let around = Around { now, device, report, is_asking, claim, no_group, governor, paused, settles };
        let refusal = around.refusal();
        let gates = around.asked(refusal.as_ref());
        Asked { refusal, gates, is_stale: gates::is_stale(device, now), around, opening }
    }

    /// Whether the policy still asks for it, if it is one of those that only a policy asks for: what a device offers of its
    /// applications it offers by what it was told.
    pub(super) fn wants(&self, governed: &Governed<'_>, update: &Update) -> bool {
        let Some(ensure) = Ensure::of(update.classification) else { return true };
        let settings = self.governor(governed).and_then(|governor| governor.policy.settings.as_ref().ok());
        // Of a policy that cannot be understood nobody knows: it is blocked.
        settings.is_none_or(|settings| update.packages.iter().all(|it| settings.applications.get(it) == Some(&ensure)))
    }

    /// Whether the device knows what its policy says of applications: what it lacks of them is in its report only then.
    pub(super) fn knows_applications(&self, governed: &Governed<'_>, report: &DeviceReport) -> bool {
        let settings = self.governor(governed).and_then(|governor| governor.policy.settings.as_ref().ok());
        let is_known = |(name, ensure): (&Name, &Ensure)| report.applications.get(name) == Some(ensure);
        settings.is_none_or(|settings| settings.applications.iter().all(is_known))
    }

    /// Whether its policy lets workstations catch up.
    pub(super) fn catches_up(&self, governed: &Governed<'_>) -> bool {
        let resolved = self.governor(governed).and_then(|governor| governor.resolved.as_ref().ok());
        resolved.is_some_and(|resolved| resolved.settings.catch_up.is_some())
    }

    /// What is done with what the device offers.
    pub(super) fn verb_of_offers(&self, governed: &Governed<'_>) -> Verb {
        let resolved = self.governor(governed).and_then(|governor| governor.resolved.as_ref().ok());
        match resolved.map(|resolved| resolved.settings.mode) {
            Some(Mode::DownloadOnly) => Verb::Download,
            Some(Mode::Audit | Mode::Install | Mode::InstallImmediately) | None => Verb::Install,
        }
    }

    /// What the policy says of a restart that is due.
    pub(super) fn restart_decision(&self, governed: &Governed<'_>) -> (Decision, Option<Arc<DecidedBy>>) {
        let governor = self.governor(governed);
        let resolved = governor.and_then(|governor| Some((governor, governor.resolved.as_ref().ok()?)));
        let Some((governor, resolved)) = resolved else { return (Decision::AwaitingApproval, None) };
        let when = resolved.settings.restart.when;
        let decision = if when == RestartWhen::Never { Decision::AwaitingApproval } else { Decision::Approved };
        (decision, Some(Arc::new(DecidedBy::Restart { policy: governor.policy.name.clone(), when })))
    }

    /// Until when updates must be installed on the device, if its policy can be read.
    pub(super) fn deadlines(&self, governed: &Governed<'_>) -> Option<&'a Deadlines> {
        Some(&self.governor(governed)?.policy.settings.as_ref().ok()?.deadlines)
    }

    /// From when on an update can be installed as far as it goes by itself, in seconds; never if only a person, or the device,
    /// can help: nor where updates are downloaded only.
    pub(super) fn ready(&self, place: Place, one: &Looked<'a>) -> Option<i64> {
        match one.plan.blocked.as_deref() {
            _ if one.plan.verb == Verb::Download => None,
            // Whoever has a grant goes on.
            _ if one.plan.state == State::Installing => Some(i64::MIN),
            Some(Blocked::Aging { until } | Blocked::RingWaits { until: Some(until), .. }) => Some(until.as_second()),
            Some(Blocked::RingWaits { ring, until: None, .. }) => {
                let rings = &self.governors.get(place.policy)?.policy.settings.as_ref().ok()?.rollout.rings;
                let before = rings.iter().take(place.ring).skip_while(|one| one.name != *ring);
                Some(before.fold(forecast::today(self.now), |at, ring| at.saturating_add(ring.soak.as_secs())))
            }
            Some(blocked) if !blocked.is_passing() => None,
            Some(_) | None => Some(i64::MIN),
        }
    }

    pub(super) fn governor(&self, governed: &Governed<'_>) -> Option<&Governor<'a>> {
        governed.reign.policy.winner.and_then(|place| self.governors.get(place))
    }
}
