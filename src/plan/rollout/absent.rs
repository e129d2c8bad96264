//! Who keeps the others of a service waiting.

use super::{Health, Ledger, Stake, disrupts};
use crate::outcome::{Absence, Blocked};

impl Ledger<'_> {
    /// The number of the service that is `blocked` by its limit.
    pub(crate) fn service_at_limit(&self, blocked: &Blocked) -> Option<usize> {
        let Blocked::ServiceAtLimit { label, service, .. } = blocked else { return None };
        self.services.iter().position(|one| *one.label == **label && one.value == *service)
    }

    /// Why a device of the service of this number, which has got its turn or not, counts as unavailable for one that is well or not.
    pub(crate) fn absence(
        &self,
        service: usize,
        (stake, has_turn): (&Stake, bool),
        waiting: &Stake,
    ) -> Option<Absence> {
        let healthy_peers =
            self.services.get(service).filter(|_| stake.services.contains(&service))?.has_healthy_peers();
        let would = stake.would.is_some_and(disrupts) && has_turn;
        match stake.health {
            _ if stake.is_disrupted() || would => Some(Absence::AtWork),
            _ if !stake.counts => None,
            _ if !stake.online => Some(Absence::Offline),
            _ if stake.may_be_at_work => Some(Absence::MayBeAtWork),
            Health::Ill if healthy_peers => Some(Absence::Unwell),
            Health::Due if healthy_peers && waiting.health == Health::Well => Some(Absence::WaitsForRestart),
            Health::Well | Health::Due | Health::Ill => None,
        }
    }
}
