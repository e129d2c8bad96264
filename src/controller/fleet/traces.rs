//! What the controller tells of installs by OpenTelemetry.

use jiff::Timestamp;
use patchwarden_protocol::order::Order;
use patchwarden_protocol::report::DeviceRef;

use super::Fleet;
use crate::api::device_inventory::CurrentInstall;
use crate::install::Settled;
use crate::shell;
use crate::telemetry::words::{self, Key, Name};
use crate::telemetry::{Install, Service, Span, Value};

/// How a claim ended, for the attribute `patchwarden.outcome`, and why.
fn outcome(settled: &Settled) -> Option<(String, Option<String>)> {
    match settled {
        Settled::Recorded(past) => {
            let outcome = past.outcome.map_or_else(|| "Unknown".to_owned(), |outcome| format!("{outcome:?}"));
            Some((outcome, past.reason.map(|reason| format!("{reason:?}"))))
        }
        Settled::TimedOut(_) => Some(("TimedOut".to_owned(), None)),
        Settled::Released(_) => Some(("Released".to_owned(), None)),
        Settled::NoClaim | Settled::Holds | Settled::ResultRefused(_) => None,
    }
}

impl Fleet<'_> {
    /// The claim is in the device's status.
    pub(super) fn tell_claimed(&self, order: &Order, digest: &str, since: Timestamp) {
        let Some(trace) = self.traces.install(digest) else { return };
        tell(
            &trace,
            &words::CLAIM,
            &order.device,
            (since, shell::now()),
            vec![words::POLICY.is(order.policy.as_str())],
        );
    }

    /// Its Job is there, or was refused.
    pub(super) fn tell_job(&self, order: &Order, digest: &str, job: &str, since: Timestamp, is_made: bool) {
        let Some(trace) = self.traces.install(digest) else { return };
        let mut span = below(&trace, &words::CREATE_JOB, &order.device, (since, shell::now()));
        span.attributes.push(words::JOB.is(job));
        span.failed = (!is_made).then(|| "the API server refuses it".to_owned());
        trace.tell(Service::Own, span);
    }

    /// The claim's end is in the device's status: this ends the trace.
    pub(super) fn tell_settled(
        &self,
        device: &DeviceRef,
        claim: Option<&CurrentInstall>,
        settled: &Settled,
        now: Timestamp,
    ) {
        let (Some(claim), Some((outcome, reason))) = (claim, outcome(settled)) else { return };
        let Some(trace) = self.traces.install(&claim.order_digest) else { return };
        let ended = shell::now();
        tell(&trace, &words::RECORD, device, (now, ended), vec![]);
        let mut span = below(&trace, &words::INSTALL, device, (claim.since, ended));
        (span.id, span.parent) = (trace.root(), None);
        span.attributes.extend([
            words::DIGEST.is(claim.order_digest.as_str()),
            words::SEQUENCE.is(claim.sequence.to_string()),
            words::JOB.is(claim.job.as_str()),
            words::POLICY.is(claim.policy.as_str()),
            words::VERB.is(format!("{:?}", claim.verb)),
            words::UPDATES.is(i64::try_from(claim.updates.len()).unwrap_or(i64::MAX)),
            words::OUTCOME.is(outcome.as_str()),
        ]);
        span.attributes.extend(reason.clone().map(|reason| words::REASON.is(reason)));
        span.failed = (outcome != "Succeeded").then(|| reason.unwrap_or(outcome));
        trace.tell(Service::Own, span);
    }
}

fn tell(
    trace: &Install<'_>,
    name: &'static Name,
    device: &DeviceRef,
    time: (Timestamp, Timestamp),
    more: Vec<(&'static Key, Value)>,
) {
    let mut span = below(trace, name, device, time);
    span.attributes.extend(more);
    trace.tell(Service::Own, span);
}

fn below(trace: &Install<'_>, name: &'static Name, device: &DeviceRef, (start, end): (Timestamp, Timestamp)) -> Span {
    Span { attributes: words::device(device).to_vec(), ..Span::below(trace.root(), name, start, end) }
}
