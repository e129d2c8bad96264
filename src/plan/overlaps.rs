//! Devices that several policies select: who has them, and whether only the names decide that.
//!
//! A policy that loses devices to a higher priority loses them as somebody meant it, and says so. Where the priorities are the same
//! somebody has forgotten to say who comes first: both policies tell. Between two that lose the same device nothing is decided.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Name, Policy};
use super::outcome::{Others, Overlap};
use super::select::Claimants;

/// Counts of such devices, by the policies' places.
pub(super) struct Overlaps<'a> {
    policies: Vec<(&'a Policy, Counts)>,
    /// How many more or fewer devices a policy loses to another than when that was last asked; none before that was first asked.
    moved: Option<BTreeMap<(usize, usize), i64>>,
}

/// What a policy selects and others do as well.
#[derive(Default)]
struct Counts {
    /// Its own devices that another of the same priority selects, too.
    won: u32,
    /// Devices of each other policy, by its place, as far as anybody was counted.
    lost_to: Vec<u32>,
}

impl<'a> Overlaps<'a> {
    /// Of policies, strongest first.
    pub(super) fn of(policies: impl Iterator<Item = &'a Policy>) -> Self {
        Self { policies: policies.map(|policy| (policy, Counts::default())).collect(), moved: None }
    }

    /// Counts a device, or counts it no more.
    pub(super) fn count(&mut self, claimants: &Claimants, adds: bool) {
        let Some(winner) = claimants.winner else { return };
        let Self { policies, moved } = self;
        let priority = policies.get(winner).map(|(policy, _)| policy.priority);
        let change = |count: &mut u32| *count = if adds { count.saturating_add(1) } else { count.saturating_sub(1) };
        let (all, mut is_tied) = (policies.len(), false);
        for loser in &claimants.shadowed {
            let Some((policy, counts)) = policies.get_mut(*loser) else { continue };
            is_tied |= Some(policy.priority) == priority;
            counts.lost_to.resize(all, 0);
            counts.lost_to.get_mut(winner).into_iter().for_each(change);
            if let Some(moved) = moved {
                let by = moved.entry((*loser, winner)).or_default();
                *by += if adds { 1 } else { -1 };
                // Mostly a device is counted again at once.
                if *by == 0 {
                    moved.remove(&(*loser, winner));
                }
            }
        }
        if is_tied {
            policies.get_mut(winner).into_iter().for_each(|(_, counts)| change(&mut counts.won));
        }
    }

    /// Places of policies that lose other devices than when that was last asked. Those that have the devices are told by them.
    pub(super) fn take_news(&mut self) -> BTreeSet<usize> {
        let moved = self.moved.replace(BTreeMap::new()).unwrap_or_default();
        moved.into_keys().map(|(loser, _)| loser).collect()
    }

    /// What is to be said of the policy at `place`.
    pub(super) fn get(&self, place: usize) -> Option<Overlap> {
        let (policy, Counts { won, .. }) = self.policies.get(place)?;
        let lost = |loser: usize, winner: usize| {
            let counts = self.policies.get(loser).map(|(_, counts)| &counts.lost_to);
            counts.and_then(|lost_to| lost_to.get(winner)).copied().unwrap_or_default()
        };
        let (mut tied, mut stronger) = ((0_u32, vec![]), (0_u32, vec![]));
        for (other, (with, _)) in self.policies.iter().enumerate().filter(|(other, _)| *other != place) {
            let devices = lost(place, other);
            let (count, names) = if with.priority == policy.priority { &mut tied } else { &mut stronger };
            *count = count.saturating_add(devices);
            if devices > 0 || (with.priority == policy.priority && lost(other, place) > 0) {
                names.push(&with.name);
            }
        }
        if !tied.1.is_empty() {
            return Some(Overlap::SamePriority { won: *won, lost: tied.0, others: others(&tied.1) });
        }
        (!stronger.1.is_empty()).then(|| Overlap::HigherPriority { lost: stronger.0, others: others(&stronger.1) })
    }
}

fn others(names: &[&Name]) -> Others {
    Others::of(names.iter().copied(), names.len())
}
