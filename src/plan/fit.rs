//! What fits into what is left of the windows: how long an install is expected to take, and which updates go into it.
//!
//! In: the updates of a device that nothing blocks, each with the windows that it follows, or with the last instant at which
//! it may start where no window lets it. Out: those that are installed together and the last instant at which that may start:
//! in the report's order, each that fits with those before it.

use std::collections::BTreeMap;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};

use super::durations::{Durations, Expected, Share};
use super::model::{Catalogue, Policy};
use super::policy::{Opening, Starts};

/// How long installs are expected to take, and whether they may start.
pub(super) struct Fit {
    /// As in the list of policies.
    expected: Vec<Expected>,
    /// By the opening's number and how long an install is expected to take.
    starts: BTreeMap<(usize, SignedDuration), Rc<Starts>>,
}

/// What an install would do of one update, under one id.
pub(super) struct Together<'a> {
    /// The number of its id.
    pub number: usize,
    /// How long it is expected to take.
    pub share: Share,
    /// Since when it is known.
    pub since: Option<Timestamp>,
    /// What bounds its start.
    pub bound: Bound<'a>,
    /// What bounds the start of other updates of this id.
    pub twins: Vec<Bound<'a>>,
}

/// What bounds the start of an update.
pub(super) enum Bound<'a> {
    /// The windows that it follows must have room for all of the install.
    Windows(Rc<Opening<'a>>),
    /// The install starts by then.
    Until(Timestamp),
}

/// What goes into an install.
pub(super) struct Fitting<'a> {
    /// In the report's order.
    pub taken: Vec<Together<'a>>,
    /// The numbers of the ids for which there is not enough room.
    pub left_out: Vec<usize>,
    /// The last instant at which it may start.
    pub not_after: Timestamp,
    /// How long it may take.
    pub limit: SignedDuration,
    /// How long it is expected to take.
    pub expected: SignedDuration,
}

impl Fit {
    /// By how long the updates of `policies` took, as that was written down.
    pub(super) fn of(policies: &[&Policy], catalogue: &Catalogue) -> Self {
        let of = |policy: &&Policy| Expected::of(limit(policy), &policy.progress.durations, catalogue);
        Self { expected: policies.iter().map(of).collect(), starts: BTreeMap::new() }
    }

    /// By how long the updates of the policy at `place` took.
    pub(super) fn expect(&mut self, place: usize, policy: &Policy, durations: &Durations, catalogue: &Catalogue) {
        if let Some(expected) = self.expected.get_mut(place) {
            *expected = Expected::of(limit(policy), durations, catalogue);
        }
    }

    /// Nothing is known any more of when installs may start.
    pub(super) fn forget_starts(&mut self) {
        self.starts.clear();
    }

    /// What is expected of a policy's installs.
    pub(super) fn expectation(&self, policy: usize) -> Option<&Expected> {
        self.expected.get(policy)
    }

    /// Whether an install that is expected to take so long may start at `now`. Worked out once, until that is over.
    pub(super) fn starts(&mut self, opening: &Opening<'_>, expected: SignedDuration, now: Timestamp) -> Rc<Starts> {
        if let Some(known) = opening.known(expected) {
            return known;
        }
        let work_out = || Rc::new(opening.starts(expected, now));
        let Some(number) = opening.number else { return work_out() };
        let starts = self.starts.entry((number, expected)).or_insert_with(work_out);
        if starts.over().is_some_and(|over| over <= now) {
            *starts = work_out();
        }
        starts.clone()
    }

    /// What of a device's updates is installed together; none where nothing fits.
    pub(super) fn choose<'a>(
        &mut self,
        policy: usize,
        offered: Vec<Together<'a>>,
        now: Timestamp,
    ) -> Option<Fitting<'a>> {
        let mut left_out = Vec::new();
        let mut taken = offered;
        let mut last = self.last_start(policy, &taken, now);
        if last.is_none() {
            for one in std::mem::take(&mut taken) {
                let number = one.number;
                taken.push(one);
                if let Some(fits) = self.last_start(policy, &taken, now) {
                    last = Some(fits);
                } else {
                    taken.pop();
                    left_out.push(number);
                }
            }
        }
        let expectation = self.expectation(policy)?;
        Some(Fitting {
            left_out,
            not_after: last?,
            limit: expectation.limit(),
            expected: expectation.install(taken.iter().map(|one| one.share)),
            taken,
        })
    }

    /// The last instant at which an install of all of them may start: it fits into what is left of each one's windows.
    fn last_start(&mut self, policy: usize, together: &[Together<'_>], now: Timestamp) -> Option<Timestamp> {
        let expected = self.expectation(policy)?.install(together.iter().map(|one| one.share));
        let mut last: Option<Timestamp> = None;
        for bound in together.iter().flat_map(|one| std::iter::once(&one.bound).chain(&one.twins)) {
            let of_it = match bound {
                Bound::Windows(opening) => self.starts(opening, expected, now).last.as_ref().ok().copied()?,
                Bound::Until(until) => *until,
            };
            last = Some(last.map_or(of_it, |last| last.min(of_it)));
        }
        last
    }
}

fn limit(policy: &Policy) -> SignedDuration {
    policy.settings.as_ref().map_or(SignedDuration::ZERO, |settings| settings.install_limit)
}
