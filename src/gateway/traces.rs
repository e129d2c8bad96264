//! What the gateway tells of installs by OpenTelemetry: its own spans, and the agent's, which it makes of the signed result.
//!
//! A device's times are by its own clock. They are moved by what its clock was behind when the session began, and never to after the
//! result had come.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{InstallResult, Outcome};
use tonic::metadata::MetadataMap;

use super::orders::Run;
use crate::shell;
use crate::telemetry::ids::{Context, SpanId, TRACEPARENT, TraceId};
use crate::telemetry::words::{self, Name};
use crate::telemetry::{Kind, Service, Span, Traces};

/// No order is older than that when its result comes, whatever its device says.
const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What a runner says of its trace.
pub(super) fn context(metadata: &MetadataMap) -> Option<Context> {
    metadata.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

/// A runner's call was served.
pub(super) fn received(traces: &Traces, run: &Run, caller: Option<Context>, since: Timestamp) {
    let Some(trace) = traces.install(&run.digest) else { return };
    let span = Span::below(trace.root(), &words::RECEIVE, since, shell::now());
    let parent = parent(trace.id(), trace.root(), caller);
    let attributes = words::device(&run.device).to_vec();
    trace.tell(Service::Own, Span { parent: Some(parent), kind: Kind::Server, attributes, ..span });
}

/// Whoever calls can name a span of this trace at most.
fn parent(trace: TraceId, root: SpanId, caller: Option<Context>) -> SpanId {
    caller.filter(|caller| caller.trace == trace).map_or(root, |caller| caller.span)
}

/// An order was handed to its device's session.
pub(super) fn delivered(traces: &Traces, run: &Run, now: Timestamp) {
    let Some(trace) = traces.install(&run.digest) else { return };
    let attributes = words::device(&run.device).to_vec();
    trace.tell(Service::Own, Span { attributes, ..Span::below(trace.root(), &words::DELIVER, run.since, now) });
}

/// A new result, which had come at `received`, is in the store.
pub(super) fn recorded(traces: &Traces, result: &InstallResult, skew: SignedDuration, received: Timestamp) {
    let Some(trace) = traces.install(&result.order_digest) else { return };
    for span in agent(trace.root(), result, skew, received) {
        trace.tell(Service::Agent, span);
    }
    let attributes = words::device(&result.device).to_vec();
    trace.tell(Service::Own, Span { attributes, ..Span::below(trace.root(), &words::KEEP, received, shell::now()) });
}

/// The agent's spans: of the order, and of each phase until the next one.
fn agent(root: SpanId, result: &InstallResult, skew: SignedDuration, received: Timestamp) -> Vec<Span> {
    let moved = skew.min(received.duration_since(result.finished_at));
    let earliest = received.saturating_sub(LONGEST).unwrap_or(received);
    let by_this_clock = |at: Timestamp| at.saturating_add(moved).unwrap_or(at).clamp(earliest, received);
    let (start, end) = (by_this_clock(result.started_at), by_this_clock(result.finished_at));
    let digest = &result.order_digest;
    let reason = result.reason.map(|reason| format!("{reason:?}"));
    let mut attributes = words::device(&result.device).to_vec();
    attributes.extend([
        words::OUTCOME.is(format!("{:?}", result.outcome)),
        words::RESTARTS.is(result.restarts),
        words::SKEW.is(i64::try_from(moved.as_millis()).unwrap_or(i64::MAX)),
    ]);
    attributes.extend(reason.clone().map(|reason| words::REASON.is(reason)));
    let failed =
        (result.outcome != Outcome::Succeeded).then(|| reason.unwrap_or_else(|| format!("{:?}", result.outcome)));
    let order = Span {
        id: SpanId::derived(digest, "order"),
        attributes,
        failed,
        ..Span::below(root, &words::ORDER, start, end)
    };
    let begun = |after: u64| {
        let after = SignedDuration::from_millis(i64::try_from(after).unwrap_or(i64::MAX));
        start.saturating_add(after).unwrap_or(end).clamp(start, end.max(start))
    };
    let ends = result.phases.iter().skip(1).map(|next| begun(next.after_millis)).chain([end]);
    let phases = result.phases.iter().zip(ends).enumerate().filter_map(|(index, (time, ended))| {
        let span = Span::below(root, phase(&time.phase)?, begun(time.after_millis), ended);
        let attributes = words::device(&result.device).to_vec();
        Some(Span {
            id: SpanId::derived(digest, &format!("phase {index}")),
            parent: Some(order.id),
            attributes,
            ..span
        })
    });
    let phases: Vec<_> = phases.collect();
    std::iter::once(order).chain(phases).collect()
}

/// What is done in a phase. A later agent's phase that is not known here leaves a gap.
fn phase(word: &str) -> Option<&'static Name> {
    let known = [
        (Phase::Delivered, &words::WAIT),
        (Phase::Verified, &words::SIMULATE),
        (Phase::Simulated, &words::DOWNLOAD),
        (Phase::Downloaded, &words::AWAIT_GRANT),
        (Phase::Granted, &words::PREPARE),
        (Phase::Guarding, &words::GUARD),
        (Phase::Installing, &words::PACKAGES),
        (Phase::Checking, &words::CHECK),
        (Phase::Restarting, &words::RESTART),
    ];
    known.into_iter().find(|(phase, _)| phase.as_str() == word).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::Fingerprint;
    use patchwarden_protocol::order::Sequence;
    use patchwarden_protocol::report::{DeviceRef, Tristate};
    use patchwarden_protocol::result::PhaseTime;

    use super::*;

    const DIGEST: &str = "sha256:4bf92f3577b34da6a3ce929d0e0e47364bf92f3577b34da6a3ce929d0e0e4736";

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    /// Of a device that was at it from its second 1000 to 1010.
    fn result(phases: &[(&str, u64)]) -> InstallResult {
        let phase =
            |(phase, after_millis): &(&str, u64)| PhaseTime { phase: (*phase).into(), after_millis: *after_millis };
        InstallResult {
            device: DeviceRef { namespace: "acme".into(), name: "web".into() },
            device_key: Fingerprint::of(b"k"),
            sequence: Sequence { epoch: 0, number: 1 },
            order_digest: DIGEST.into(),
            outcome: Outcome::Succeeded,
            reason: None,
            message: "what a package manager has printed".into(),
            actions: vec![],
            steps: vec![],
            phases: phases.iter().map(phase).collect(),
            started_at: at(1_000_000),
            finished_at: at(1_010_000),
            restart_required: Tristate::No,
            restarts: 0,
            restart_postponed: String::new(),
        }
    }

    /// Name, start and end in milliseconds.
    fn spans(result: &InstallResult, skew: i64, received: i64) -> Vec<(&'static str, i64, i64)> {
        let told = agent(SpanId::root(DIGEST), result, SignedDuration::from_millis(skew), at(received));
        told.iter().map(|span| (span.name.name, span.start.as_millisecond(), span.end.as_millisecond())).collect()
    }

    #[test]
    fn a_phase_lasts_until_the_next_one_and_all_are_moved_by_what_the_clock_was_behind() {
        let result = result(&[("Verified", 0), ("Simulated", 2000), ("Installing", 3500), ("Checking", 9000)]);
        let expected = [
            ("order", 1_060_000, 1_070_000),
            ("simulate", 1_060_000, 1_062_000),
            ("download", 1_062_000, 1_063_500),
            ("install packages", 1_063_500, 1_069_000),
            ("check packages", 1_069_000, 1_070_000),
        ];
        assert_eq!(spans(&result, 60_000, 1_071_000), expected);
        // A clock that was ahead.
        assert_eq!(spans(&result, -60_000, 951_000)[0], ("order", 940_000, 950_000));
    }

    #[test]
    fn nothing_ends_after_its_result_had_come() {
        let result = result(&[("Verified", 0), ("Installing", 4000)]);
        // The Hello took half a second to come, which counted as the clock's.
        let told = spans(&result, 500, 1_010_100);
        assert_eq!(told[0], ("order", 1_000_100, 1_010_100));
        assert_eq!(told[2], ("install packages", 1_004_100, 1_010_100));
        // The clock was set forward since.
        assert_eq!(spans(&result, 0, 1_009_000)[0], ("order", 999_000, 1_009_000));
    }

    #[test]
    fn what_a_device_says_of_its_times_can_be_anything() {
        let wild = result(&[("Verified", u64::MAX), ("Brewing", 1), ("Installing", 1), ("Checking", 0)]);
        let told = spans(&wild, i64::MAX, 1_010_000);
        assert_eq!(told.len(), 4, "what is not known leaves a gap: {told:?}");
        for (name, start, end) in told {
            assert!((1_000_000..=1_010_000).contains(&start) && end <= 1_010_000, "{name} from {start} to {end}");
        }
        let backwards = InstallResult { started_at: at(1_020_000), ..result(&[("Verified", 5)]) };
        assert_eq!(spans(&backwards, 0, 1_011_000)[0].0, "order");
        assert_eq!(spans(&result(&[]), 0, 1_010_000).len(), 1, "an older agent tells no phases");
    }

    #[test]
    fn spans_of_a_result_are_always_the_same_and_say_nothing_that_was_printed() {
        let result = result(&[("Verified", 0), ("Installing", 4000)]);
        let told = || agent(SpanId::root(DIGEST), &result, SignedDuration::ZERO, at(1_010_000));
        assert_eq!(told(), told());
        let [order, simulate, _] = told().try_into().unwrap();
        assert_eq!(order.parent, Some(SpanId::root(DIGEST)));
        assert_eq!(simulate.parent, Some(order.id));
        assert!(!format!("{:?}", told()).contains("printed"));
    }

    #[test]
    fn a_caller_that_speaks_of_another_trace_is_not_followed() {
        let metadata = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(TRACEPARENT, text.parse().unwrap());
            metadata
        };
        let context = context(&metadata("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")).unwrap();
        let trace = TraceId::of_order(DIGEST).unwrap();
        assert_eq!(parent(trace, SpanId::root(DIGEST), Some(context)), context.span);
        let other = Context { trace: "00000000000000000000000000000001".parse().unwrap(), ..context };
        assert_eq!(parent(trace, SpanId::root(DIGEST), Some(other)), SpanId::root(DIGEST));
        assert_eq!(super::context(&metadata("nonsense")), None);
        assert_eq!(super::context(&MetadataMap::new()), None);
    }
}
