//! Who leads, by a Lease, as Kubernetes' own controllers do it (client-go's `tools/leaderelection`): the rule, without a clock or a
//! network.
//!
//! - A lease is taken on the very version that was looked at, so of two candidates one is refused.
//! - A candidate goes by its own clock: the lease is over when it has not changed for its duration since the candidate first saw it
//!   so. The times in it were written by another machine's clock, and are for people.
//! - A leader stops acting [`DEADLINE`] after it began its last successful renewal, whatever it hears from the API server. That is
//!   before any candidate may take over.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// For so long after its last renewal a lease belongs to its holder.
pub const DURATION: Duration = Duration::from_secs(12);

/// For so long after it began its last renewal a leader acts.
pub const DEADLINE: Duration = Duration::from_secs(8);

/// A leader renews so often.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);

/// A candidate looks so often, and a leader tries again so long after a failure.
pub const RETRY_EVERY: Duration = Duration::from_secs(1);

/// What a replica knows of the lease.
#[derive(Debug)]
pub struct Election {
    identity: String,
    /// The number of transitions of the lease that this process has written, or tried to. Another one of its name is not it.
    term: Option<i32>,
    /// What the lease of another holder says, and since when it does.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What to do about a lease.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// It is another replica's: look again.
    Wait,
    /// Write this one, on the version that was looked at: then it is ours.
    Write(Box<Lease>),
}

impl Election {
    /// A replica that holds nothing yet.
    pub fn new(identity: impl Into<String>) -> Self {
        Self { identity: identity.into(), term: None, seen: None }
    }

    /// What to do about a lease that says `found`, which was asked for not before `now`.
    pub fn look(&mut self, found: Lease, now: Instant, clock: Timestamp) -> Next {
        let spec = found.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        let is_ours = holder == Some(self.identity.as_str());
        if holder.is_some() && !is_ours && !self.is_over(&spec, now) {
            return Next::Wait;
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        let is_renewed = is_ours && self.term == Some(transitions);
        let term =
            if is_renewed { transitions } else { transitions.max(self.term.unwrap_or_default()).saturating_add(1) };
        self.term = Some(term);
        let renewed = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(seconds(DURATION)),
            acquire_time: spec.acquire_time.clone().filter(|_| is_renewed).or(Some(MicroTime(clock))),
            renew_time: Some(MicroTime(clock)),
            lease_transitions: Some(term),
            ..spec
        };
        Next::Write(Box::new(Lease { spec: Some(renewed), ..found }))
    }

    /// The lease given back, if it is ours: whoever looks next takes it.
    pub fn release(&self, found: Lease, clock: Timestamp) -> Option<Lease> {
        let spec = found.spec.clone().filter(|spec| spec.holder_identity.as_deref() == Some(self.identity.as_str()))?;
        let released = LeaseSpec {
            holder_identity: Some(String::new()),
            // The schema allows no zero.
            lease_duration_seconds: Some(1),
            renew_time: Some(MicroTime(clock)),
            ..spec
        };
        Some(Lease { spec: Some(released), ..found })
    }

    fn is_over(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                // A lease that says nothing, or less than another replica may act for, is waited for as long as ours.
                now.duration_since(*since) >= seconds.map_or(DURATION, Duration::from_secs).max(DURATION)
            }
            _ => {
                self.seen = Some((spec.clone(), now));
                false
            }
        }
    }
}

/// What the API server's admission compares with a leader's writes: `<holderIdentity>/<leaseTransitions>`.
pub fn token(lease: &Lease) -> String {
    let spec = lease.spec.clone().unwrap_or_default();
    format!("{}/{}", spec.holder_identity.unwrap_or_default(), spec.lease_transitions.unwrap_or_default())
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
