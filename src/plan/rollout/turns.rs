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

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Bound;
use std::sync::Arc;

use super::{Candidate, Ledger, Service, Stake, at_least_one, places, rank};
use crate::bits::Bits;
use crate::model::{Device, Name, TurnOrder};
use crate::outcome::Blocked;
use crate::policy::Governor;
use crate::summary::Tally;

/// Candidates in their order.
#[derive(Default)]
pub(super) struct Sorted(Vec<Candidate>);

impl Sorted {
    /// Where `candidate` is, or would be: so many are before it.
    fn search(&self, candidate: &Candidate) -> Result<usize, usize> {
        // Where all are asked, each comes after those that were.
        match self.0.last() {
            Some(last) if last < candidate => Err(self.0.len()),
            None => Err(0),
            Some(_) => self.0.binary_search(candidate),
        }
    }

    fn before(&self, candidate: &Candidate) -> usize {
        self.search(candidate).unwrap_or_else(|place| place)
    }

    /// Whether it was not among them.
    fn insert(&mut self, candidate: &Candidate) -> bool {
        self.search(candidate).is_err_and(|place| {
            self.0.insert(place, candidate.clone());
            true
        })
    }

    /// Whether it was among them.
    fn remove(&mut self, candidate: &Candidate) -> bool {
        self.search(candidate).is_ok_and(|place| {
            self.0.remove(place);
            true
        })
    }

    fn put(&mut self, candidate: &Candidate, adds: bool) -> bool {
        if adds { self.insert(candidate) } else { self.remove(candidate) }
    }
}

/// The candidates of a policy that no service holds back.
#[derive(Default)]
pub(super) struct Line {
    /// What the policy has for them.
    places: Option<Places>,
    granted: Sorted,
    /// For a place.
    waiting: BTreeSet<Candidate>,
}

struct Places {
    limit: u32,
    /// Beside those that are taken.
    free: usize,
    reached: Arc<Blocked>,
}

impl Line {
    fn free(&self) -> usize {
        self.places.as_ref().map_or(0, |places| places.free)
    }

    /// Whose answer is another one because of the others': who has a place too many, or waits though there is one.
    fn wrong(&self) -> Option<&Candidate> {
        let free = self.free();
        let waiting = || self.waiting.first().filter(|_| self.granted.0.len() < free);
        self.granted.0.get(free).or_else(waiting)
    }
}

/// What has moved since turns were given.
#[derive(Default)]
pub(super) struct Asked {
    /// Numbers of services.
    pub services: BTreeSet<usize>,
    /// Places of policies.
    pub policies: BTreeSet<usize>,
    /// Those that are new.
    candidates: Vec<Candidate>,
    /// How many there are in all.
    all: usize,
}

/// A service while turns are given.
struct Turn<'a> {
    /// That of the strongest policy that states one: of two that contradict each other neither could ever begin.
    order: Option<&'a TurnOrder>,
    /// Of those that are at work or could be the least far behind in the order.
    first: Option<usize>,
    healthy_peers: bool,
    /// Without those that have a turn.
    unavailable: u32,
    limit: u32,
}

/// Who is yet to be asked, in order.
struct Queue {
    /// From the beginning on: the last is the first.
    new: Vec<Candidate>,
    later: BinaryHeap<Reverse<Candidate>>,
    numbers: Bits,
    /// Everybody is asked anyway.
    has_all: bool,
    /// Services of which all are asked from here on.
    followed: BTreeSet<usize>,
}

impl Queue {
    fn of(mut new: Vec<Candidate>, all: usize) -> Self {
        let mut numbers = Bits::default();
        new.retain(|candidate| {
            numbers.grow(candidate.number + 1);
            numbers.insert(candidate.number)
        });
        new.sort_by(|a, b| b.cmp(a));
        let has_all = new.len() == all;
        Self { new, later: BinaryHeap::new(), numbers, has_all, followed: BTreeSet::new() }
    }

    fn push(&mut self, candidate: &Candidate) {
        self.numbers.grow(candidate.number + 1);
        if self.numbers.insert(candidate.number) {
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

    /// Asks the next one of a service after `candidate`, or its first.
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
        for service in &stake.services {
            if let Some(service) = self.services.get_mut(*service) {
                service.candidates.insert(candidate.clone());
            }
        }
        self.asked.all += 1;
        self.asked.candidates.push(candidate);
    }

    /// One that is none any more.
    pub(super) fn leave(&mut self, candidate: &Candidate, stake: &Stake) {
        for service in &stake.services {
            if let Some(service) = self.services.get_mut(*service) {
                service.candidates.remove(candidate);
                service.well.remove(candidate);
                service.unwell.remove(candidate);
            }
        }
        if let Some(line) = stake.place.and_then(|place| self.lines.get_mut(place.policy)) {
            line.granted.remove(candidate);
            line.waiting.remove(candidate);
        }
        self.asked.all = self.asked.all.saturating_sub(1);
    }

    /// Gives turns where something has moved. Returns whom was asked, and why it is not its turn, if it is not. `devices` are
    /// known by their numbers.
    pub(crate) fn turns<'d>(
        &mut self,
        devices: impl Fn(usize) -> Option<(&'d Device, &'d Stake)>,
        governors: &[Governor<'_>],
        tally: &Tally,
    ) -> Vec<(usize, Option<Arc<Blocked>>)> {
        let Asked { services, policies, candidates, all } = std::mem::take(&mut self.asked);
        self.asked.all = all;
        let mut queue = Queue::of(candidates, all);
        for place in policies {
            if let (Some(line), Some(governor)) = (self.lines.get_mut(place), governors.get(place)) {
                line.renew((place, governor), tally, &mut queue);
            }
        }
        for number in services {
            if let Some(service) = self.services.get(number) {
                queue.follow((number, service), None);
            }
        }
        let mut open: BTreeMap<usize, Turn<'a>> = BTreeMap::new();
        let mut turns = vec![];
        while let Some(candidate) = queue.pop() {
            let Some((device, stake)) = devices(candidate.number) else { continue };
            // One that was new, and is not there as such any more.
            let Some(place) = stake.place.filter(|_| stake.is_candidate && stake.failed == candidate.failed) else {
                continue;
            };
            for number in &stake.services {
                let service = self.services.get(*number).filter(|service| service.is_asked());
                if let Some(service) = service {
                    open.entry(*number).or_insert_with(|| self.turn(service, &devices));
                }
            }
            let held = self
                .asked(stake)
                .find_map(|(service, number)| open.get(&number)?.refusal((&candidate, device), stake, service));
            let Some(line) = self.lines.get_mut(place.policy) else { continue };
            let (refusal, has_moved) = line.answer(&candidate, held);
            if let Some(wrong) = line.wrong() {
                queue.push(wrong);
            }
            for number in &stake.services {
                let Some(service) = self.services.get_mut(*number) else { continue };
                if has_moved {
                    service.count_turn(&candidate, stake, refusal.is_none());
                }
                if service.is_asked() && (has_moved || queue.followed.contains(number)) {
                    queue.follow((*number, service), Some(&candidate));
                }
            }
            turns.push((candidate.number, refusal));
        }
        turns
    }

    /// The services of a device, with their numbers, for which any policy that governs one of their devices says something.
    fn asked(&self, stake: &Stake) -> impl Iterator<Item = (&Service<'a>, usize)> {
        let services = stake.services.iter().filter_map(|number| Some((self.services.get(*number)?, *number)));
        services.filter(|(service, _)| service.is_asked())
    }

    fn turn<'d>(&self, service: &Service<'a>, devices: impl Fn(usize) -> Option<(&'d Device, &'d Stake)>) -> Turn<'a> {
        let order = service.settings(&self.settings).find_map(|disruption| disruption.order.as_ref());
        let healthy_peers = service.settings(&self.settings).any(|it| it.healthy_peers);
        let limits = service.settings(&self.settings).map(|it| at_least_one(it.max_unavailable, service.devices));
        let ranks = order.into_iter().flat_map(|order| {
            service.at_work.iter().filter_map(|number| Some(rank(devices(*number)?.0, order))).collect::<Vec<_>>()
        });
        Turn {
            order,
            first: ranks.min(),
            healthy_peers,
            unavailable: service.down.saturating_add(if healthy_peers { service.unhealthy } else { 0 }),
            limit: limits.min().unwrap_or_default(),
        }
    }
}

impl Line {
    /// What its policy has for it may have changed.
    fn renew(&mut self, (place, governor): (usize, &Governor<'_>), tally: &Tally, queue: &mut Queue) {
        let policy = &governor.policy.name;
        let limit = places((place, governor), tally);
        let free = usize::try_from(limit.saturating_sub(tally.taken(policy))).unwrap_or(usize::MAX);
        match &mut self.places {
            Some(places) if places.limit == limit => places.free = free,
            places => {
                let reached = Arc::new(Blocked::ConcurrencyReached { policy: policy.clone(), limit });
                *places = Some(Places { limit, free, reached });
                // They are told of the limit.
                self.waiting.iter().for_each(|candidate| queue.push(candidate));
            }
        }
        if let Some(wrong) = self.wrong() {
            queue.push(wrong);
        }
    }

    /// Why it is not the turn of `candidate`, which its services may hold, and whether that is others' business.
    fn answer(&mut self, candidate: &Candidate, held: Option<Arc<Blocked>>) -> (Option<Arc<Blocked>>, bool) {
        let has_place = self.granted.before(candidate) < self.free();
        let reached = || self.places.as_ref().filter(|_| !has_place).map(|places| places.reached.clone());
        let is_held = held.is_some();
        let refusal = held.or_else(reached);
        let has_moved = self.granted.put(candidate, refusal.is_none());
        super::put(&mut self.waiting, candidate.clone(), !is_held && refusal.is_some());
        (refusal, has_moved)
    }
}

impl Service<'_> {
    /// Whether any policy that governs one of its devices says something of it.
    fn is_asked(&self) -> bool {
        !self.policies.is_empty()
    }

    fn count_turn(&mut self, candidate: &Candidate, stake: &Stake, has_turn: bool) {
        if !stake.is_unavailable(false) {
            let list = if stake.is_unavailable(true) { &mut self.unwell } else { &mut self.well };
            list.put(candidate, has_turn);
        }
    }
}

impl Turn<'_> {
    fn refusal(
        &self,
        (candidate, device): (&Candidate, &Device),
        stake: &Stake,
        service: &Service<'_>,
    ) -> Option<Arc<Blocked>> {
        let name = || (Name::from(service.label), service.value.clone());
        let behind = self.order.zip(self.first).is_some_and(|(order, first)| rank(device, order) > first);
        if behind {
            let (label, service) = name();
            return Some(Arc::new(Blocked::PeersFirst { label, service }));
        }
        let unwell = if self.healthy_peers { 0 } else { service.unwell.before(candidate) };
        let granted = u32::try_from(service.well.before(candidate) + unwell).unwrap_or(u32::MAX);
        // One that counts already, because it is not well, does not count twice.
        let own = u32::from(stake.is_unavailable(self.healthy_peers));
        let others = self.unavailable.saturating_add(granted).saturating_sub(own);
        let limit = self.limit;
        (others >= limit).then(|| {
            let (label, service) = name();
            Arc::new(Blocked::ServiceAtLimit { label, service, limit })
        })
    }
}
