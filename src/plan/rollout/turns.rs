//! Who is asked again whether it is its turn.
//!
//! Turns are given in the order of the candidates, each by what those before it have left:
//!
//! ```text
//! policy    granted granted granted | waiting waiting ...     so many places, then nobody
//! service   granted behind granted at-limit ...               so many at a time, and the first in its order first
//! ```
//!
//! So a turn depends on the candidates before it in its policy and in its services alone. Asked again are: who is new; of a
//! service that has moved all, from there on where it has moved; of a policy, where a place has become free, the first who
//! waits for one, and where there is one too few the last who has one. That goes on, in the order, until nobody is left.
//! Since everyone whose answer could be another one is asked after those before it, it comes to what asking all would.
//!
//! It rests on this: in a [`Line`] those with a place come before those that wait for one, but for who is yet to be asked;
//! and whoever has become wrong by an answer comes after the one that was asked, and is queued with it. So nobody is queued
//! before the one that was asked last, and there is an end.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Bound;
use std::sync::Arc;

use super::sorted::Sorted;
use super::{Candidate, Health, Ledger, Service, Stake, at_least_one, places, put, rank};
use crate::bits::Bits;
use crate::model::{Device, Name, TurnOrder};
use crate::outcome::Blocked;
use crate::policy::Governor;
use crate::summary::Tally;

/// The candidates of a policy that no service holds back.
pub(super) struct Line {
    limit: u32,
    /// Places for them, beside those that are taken.
    free: usize,
    reached: Arc<Blocked>,
    granted: Sorted,
    /// For a place.
    waiting: BTreeSet<Candidate>,
}

/// What has moved since turns were given.
#[derive(Default)]
pub(super) struct Moved {
    /// Numbers of services, and whether all their candidates are asked, whatever has moved.
    services: BTreeMap<usize, bool>,
    /// Places of policies.
    policies: BTreeSet<usize>,
    /// Those that are new.
    candidates: Vec<Candidate>,
}

/// What the policies that govern a service's devices come to.
#[derive(PartialEq)]
pub(super) struct Limits<'a> {
    /// That of the strongest policy that states one: of two that contradict each other neither could ever begin.
    order: Option<Order<'a>>,
    healthy_peers: bool,
    /// Without those that have a turn.
    unavailable: u32,
    /// Of the others, those that wait for a restart, and that those that are well wait for.
    due: u32,
    limit: u32,
    behind: Arc<Blocked>,
    at_limit: Arc<Blocked>,
}

/// Which devices of a service come first.
#[derive(Clone, Copy, PartialEq)]
struct Order<'a> {
    says: &'a TurnOrder,
    /// The place of the policy that says so: the strongest is the first.
    policy: usize,
    /// Of those that are at work or could be the least far behind.
    first: usize,
    /// Whether others of them are farther behind.
    parts: bool,
}

/// Who is yet to be asked, in order.
struct Queue {
    /// The last is the first.
    new: Vec<Candidate>,
    later: BinaryHeap<Reverse<Candidate>>,
    /// Of both.
    numbers: Bits,
    /// Everybody is asked anyway.
    has_all: bool,
    /// Numbers of services of which all are asked from here on.
    followed: BTreeSet<usize>,
}

impl Moved {
    /// All that a stake counts for has moved.
    pub(super) fn add(&mut self, stake: &Stake, claimed: Option<usize>) {
        for service in &stake.services {
            self.services.entry(*service).or_default();
        }
        self.policies.extend(stake.place.map(|place| place.policy).into_iter().chain(claimed));
    }

    /// All candidates of its services are asked.
    pub(super) fn ask_services(&mut self, stake: &Stake) {
        self.services.extend(stake.services.iter().map(|service| (*service, true)));
    }
}

impl Queue {
    fn of(mut new: Vec<Candidate>, all: usize) -> Self {
        new.sort_unstable_by(|a, b| b.cmp(a));
        let mut queue = Self {
            has_all: new.len() == all,
            new: vec![],
            later: BinaryHeap::new(),
            numbers: Bits::default(),
            followed: BTreeSet::new(),
        };
        for candidate in &new {
            queue.mark(candidate.number);
        }
        queue.new = new;
        queue
    }

    /// Whether it was not there.
    fn mark(&mut self, number: usize) -> bool {
        self.numbers.grow(number + 1);
        self.numbers.insert(number)
    }

    fn push(&mut self, candidate: &Candidate) {
        if self.mark(candidate.number) {
            self.later.push(Reverse(candidate.clone()));
        }
    }

    fn pop(&mut self) -> Option<Candidate> {
        let is_later = match (self.new.last(), self.later.peek()) {
            (Some(new), Some(Reverse(later))) => later < new,
            (new, _) => new.is_none(),
        };
        let next = if is_later { self.later.pop().map(|Reverse(it)| it) } else { self.new.pop() }?;
        self.numbers.remove(next.number);
        Some(next)
    }

    /// Asks the next one of a service after `candidate`, or its first, and from there on all.
    fn follow(&mut self, (number, service): (usize, &Service<'_>), candidate: Option<&Candidate>) {
        if self.has_all {
            return;
        }
        self.followed.insert(number);
        let after = candidate.map_or(Bound::Unbounded, Bound::Excluded);
        if let Some(next) = service.candidates.range((after, Bound::Unbounded)).next() {
            self.push(next);
        }
    }
}

impl<'a> Ledger<'a> {
    /// A candidate that has no answer yet.
    pub(super) fn enter(&mut self, candidate: Candidate, stake: &Stake) {
        for service in stake.contended() {
            if let Some(service) = self.services.get_mut(*service) {
                service.candidates.insert(candidate.clone());
            }
        }
        self.candidates += 1;
        self.moved.candidates.push(candidate);
    }

    /// One that is none any more.
    pub(super) fn leave(&mut self, candidate: &Candidate, stake: &Stake) {
        for number in stake.contended() {
            let Some(service) = self.services.get_mut(*number) else { continue };
            service.candidates.remove(candidate);
            let Service { well_granted, due_granted, ill_granted, .. } = service;
            if well_granted.remove(candidate) | due_granted.remove(candidate) | ill_granted.remove(candidate) {
                self.moved.services.insert(*number, true);
            }
        }
        if let Some(line) = stake.place.and_then(|place| self.lines.get_mut(place.policy)) {
            line.granted.remove(candidate);
            line.waiting.remove(candidate);
        }
        self.candidates -= 1;
    }

    /// Asks who has to be asked. Returns them in their order, and why it is not their turn, if it is not.
    pub(super) fn ask<'d>(
        &mut self,
        devices: impl Fn(usize) -> Option<(&'d Device, &'d Stake)>,
        governors: &[Governor<'_>],
        tally: &Tally<'_>,
    ) -> Vec<(usize, Option<Arc<Blocked>>)> {
        let Moved { services, policies, candidates } = std::mem::take(&mut self.moved);
        let mut queue = Queue::of(candidates, self.candidates);
        for (number, asks_all) in services {
            let Some(service) = self.services.get(number) else { continue };
            let limits = self.limits(service, &devices);
            let Some(service) = self.services.get_mut(number) else { continue };
            if asks_all || service.limits != limits {
                service.limits = limits;
                queue.follow((number, service), None);
            }
        }
        for place in policies {
            if let (Some(line), Some(governor)) = (self.lines.get_mut(place), governors.get(place)) {
                line.renew((place, governor), tally, &mut queue);
            }
        }
        let mut turns = vec![];
        let mut last: Option<Candidate> = None;
        while let Some(candidate) = queue.pop() {
            debug_assert!(last.as_ref().is_none_or(|last| *last < candidate), "each after those before it, once");
            // Whoever is a candidate has a stake and a policy.
            let Some((device, stake)) = devices(candidate.number) else { continue };
            let Some(line) = stake.place.and_then(|place| self.lines.get_mut(place.policy)) else { continue };
            let services = || stake.contended().iter().filter_map(|number| self.services.get(*number));
            // By the strongest of several orders alone: by two devices could wait for one another, in two services.
            let strongest = services().filter_map(Service::parting).min();
            // In any of its services those that are well may wait for it: it waits for nobody's order in the others.
            let mends = stake.health != Health::Well && services().any(Service::has_healthy_peers);
            let order = strongest.filter(|_| !mends);
            let held = services().find_map(|service| service.refusal((&candidate, device), stake, order));
            let (refusal, has_moved) = line.answer(&candidate, held);
            if let Some(wrong) = line.wrong() {
                queue.push(wrong);
            }
            for number in stake.contended() {
                let Some(service) = self.services.get_mut(*number) else { continue };
                if has_moved {
                    service.count_turn(&candidate, stake, refusal.is_none());
                }
                // One that has lost its limits is followed to the end, too.
                if queue.followed.contains(number) || (has_moved && service.limits.is_some()) {
                    queue.follow((*number, service), Some(&candidate));
                }
            }
            turns.push((candidate.number, refusal));
            last = Some(candidate);
        }
        debug_assert!(
            self.lines.iter().all(|line| line.wrong().is_none()),
            "nobody is left who would have to be asked"
        );
        turns
    }

    /// What holds for a service, if any policy that governs one of its devices says something of it.
    fn limits<'d>(
        &self,
        service: &Service<'a>,
        devices: impl Fn(usize) -> Option<(&'d Device, &'d Stake)>,
    ) -> Option<Limits<'a>> {
        let said = || service.policies.keys().filter_map(|place| self.settings.get(*place).copied().flatten());
        let limit = said().map(|it| at_least_one(it.max_unavailable, service.devices)).min()?;
        let mut policies = service.policies.keys();
        let order =
            policies.find_map(|place| Some((*place, self.settings.get(*place).copied().flatten()?.order.as_ref()?)));
        let order = order.and_then(|(policy, says)| {
            let ranks = || service.at_work.iter().filter_map(|number| Some(rank(devices(*number)?.0, says)));
            let first = ranks().min()?;
            Some(Order { says, policy, first, parts: ranks().any(|rank| rank != first) })
        });
        let healthy_peers = said().any(|it| it.healthy_peers);
        let (label, name) = (Name::from(service.label), service.value.clone());
        Some(Limits {
            order,
            healthy_peers,
            unavailable: service.down.saturating_add(if healthy_peers { service.ill } else { 0 }),
            due: if healthy_peers { service.due } else { 0 },
            limit,
            behind: Arc::new(Blocked::PeersFirst { label: label.clone(), service: name.clone() }),
            at_limit: Arc::new(Blocked::ServiceAtLimit { label, service: name, limit }),
        })
    }
}

impl Line {
    /// With no places.
    pub(super) fn of(governor: &Governor<'_>) -> Self {
        let reached = Blocked::ConcurrencyReached { policy: governor.policy.name.clone(), limit: 0 };
        Self { limit: 0, free: 0, reached: Arc::new(reached), granted: Sorted::default(), waiting: BTreeSet::new() }
    }

    /// Whose answer is another one because of the others': who has a place too many, or waits though there is one.
    fn wrong(&self) -> Option<&Candidate> {
        let waiting = || self.waiting.first().filter(|_| self.granted.len() < self.free);
        self.granted.get(self.free).or_else(waiting)
    }

    /// What its policy has for it may have changed.
    fn renew(&mut self, (place, governor): (usize, &Governor<'_>), tally: &Tally<'_>, queue: &mut Queue) {
        let policy = &governor.policy.name;
        let limit = places((place, governor), tally);
        self.free = usize::try_from(limit.saturating_sub(tally.taken(policy))).unwrap_or(usize::MAX);
        if self.limit != limit {
            self.limit = limit;
            self.reached = Arc::new(Blocked::ConcurrencyReached { policy: policy.clone(), limit });
            // They are told of the limit.
            self.waiting.iter().for_each(|candidate| queue.push(candidate));
        }
        if let Some(wrong) = self.wrong() {
            queue.push(wrong);
        }
    }

    /// Why it is not the turn of `candidate`, which a service may hold, and whether that is the others' business.
    fn answer(&mut self, candidate: &Candidate, held: Option<Arc<Blocked>>) -> (Option<Arc<Blocked>>, bool) {
        let waits = held.is_none() && self.granted.before(candidate) >= self.free;
        let refusal = held.or_else(|| waits.then(|| self.reached.clone()));
        let has_moved = self.granted.put(candidate, refusal.is_none());
        put(&mut self.waiting, candidate.clone(), waits);
        (refusal, has_moved)
    }
}

impl Service<'_> {
    fn count_turn(&mut self, candidate: &Candidate, stake: &Stake, has_turn: bool) {
        if !stake.is_unavailable(false) {
            let list = match stake.health {
                Health::Well => &mut self.well_granted,
                Health::Due => &mut self.due_granted,
                Health::Ill => &mut self.ill_granted,
            };
            list.put(candidate, has_turn);
        }
    }

    /// The policy whose order has some of its devices wait for others.
    fn parting(&self) -> Option<usize> {
        self.limits.as_ref()?.order.filter(|order| order.parts).map(|order| order.policy)
    }

    pub(super) fn has_healthy_peers(&self) -> bool {
        self.limits.as_ref().is_some_and(|limits| limits.healthy_peers)
    }

    /// Why it is not the turn of a candidate, which keeps to the order of one policy, if to any.
    fn refusal(
        &self,
        (candidate, device): (&Candidate, &Device),
        stake: &Stake,
        keeps_to: Option<usize>,
    ) -> Option<Arc<Blocked>> {
        let Limits { order, healthy_peers, unavailable, due, limit, behind, at_limit } = self.limits.as_ref()?;
        let is_well = stake.health == Health::Well;
        let order = order.filter(|order| Some(order.policy) == keeps_to);
        if order.is_some_and(|order| rank(device, order.says) > order.first) {
            return Some(behind.clone());
        }
        // Nobody counts twice: neither those that are missed already, nor the candidate itself.
        let mut granted = self.well_granted.before(candidate);
        if !(*healthy_peers && is_well) {
            granted += self.due_granted.before(candidate);
        }
        if !*healthy_peers {
            granted += self.ill_granted.before(candidate);
        }
        let own = u32::from(stake.is_unavailable(*healthy_peers));
        let missed = unavailable.saturating_add(if is_well { *due } else { 0 }).saturating_sub(own);
        let others = missed.saturating_add(u32::try_from(granted).unwrap_or(u32::MAX));
        (others >= *limit).then(|| at_limit.clone())
    }
}
