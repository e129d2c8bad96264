//! Orders that Jobs have brought and devices have not answered yet, with what people see of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::Order;
use patchwarden_protocol::report::DeviceRef;
use tokio::sync::broadcast;

use crate::build::seconds_beyond_limit;

/// Progress lines kept in memory for one order.
const LINES: usize = 200;

/// Events that a slow runner may lag behind before lines are left out for it.
const QUEUE: usize = 256;

/// An order that is over stays in memory for so long, for runners that attach late.
const LINGER: SignedDuration = SignedDuration::from_mins(10);

/// One line of progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When the gateway heard it.
    pub time: Timestamp,
    /// One of `progress::Phase`.
    pub phase: String,
    /// For people.
    pub text: String,
}

/// What an attached runner hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Progress.
    Line(Line),
    /// The end: JSON of the device's `InstallResult`.
    Finished(Arc<Vec<u8>>),
}

#[derive(Debug)]
struct State {
    lines: VecDeque<Line>,
    finished: Option<Arc<Vec<u8>>>,
}

/// One order.
#[derive(Debug)]
pub struct Run {
    /// The device.
    pub device: DeviceRef,
    /// Digest of the order.
    pub digest: String,
    /// JSON of the `SignedOrder`.
    pub order: Arc<Vec<u8>>,
    /// Since when this gateway knows of it.
    pub since: Timestamp,
    /// After this no result is waited for.
    pub deadline: Timestamp,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

impl Run {
    /// Everything so far, and what follows it.
    pub fn attach(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let state = self.state();
        let mut events: Vec<_> = state.lines.iter().cloned().map(Event::Line).collect();
        events.extend(state.finished.clone().map(Event::Finished));
        (events, self.events.subscribe())
    }

    /// Adds a line. True: its phase is another one than the last line's.
    pub fn progress(&self, line: Line) -> bool {
        let mut state = self.state();
        let other_phase = state.lines.back().is_none_or(|last| last.phase != line.phase);
        if state.lines.len() == LINES {
            state.lines.pop_front();
        }
        state.lines.push_back(line.clone());
        // Nobody may be listening.
        let _ = self.events.send(Event::Line(line));
        other_phase
    }

    /// Ends it, once.
    pub fn finish(&self, result: Vec<u8>) {
        let mut state = self.state();
        if state.finished.is_none() {
            let result = Arc::new(result);
            state.finished = Some(result.clone());
            // Nobody may be listening.
            let _ = self.events.send(Event::Finished(result));
        }
    }

    /// Whether a runner hears it at this gateway.
    pub fn is_followed(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Whether the result is there.
    pub fn is_finished(&self) -> bool {
        self.state().finished.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Lines and result are each put into it in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the time of an order is over: nobody waits for its result any more.
pub fn deadline(order: &Order) -> Timestamp {
    let runs = [order.limit_seconds, order.safeguards.seconds(), seconds_beyond_limit(order)].map(i64::from);
    order.not_after.checked_add(SignedDuration::from_secs(runs.iter().sum())).unwrap_or(Timestamp::MAX)
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    runs: Arc<Mutex<HashMap<DeviceRef, Vec<Arc<Run>>>>>,
}

impl Orders {
    /// The run of an order; begins it if this is the first that is heard of it.
    pub fn begin(&self, order: &Order, digest: &str, signed: Vec<u8>, now: Timestamp) -> Arc<Run> {
        let mut runs = self.runs();
        let of_device = runs.entry(order.device.clone()).or_default();
        if let Some(run) = of_device.iter().find(|run| run.digest == digest) {
            return run.clone();
        }
        let run = Arc::new(Run {
            device: order.device.clone(),
            digest: digest.to_owned(),
            order: Arc::new(signed),
            since: now,
            deadline: deadline(order),
            state: Mutex::new(State { lines: VecDeque::new(), finished: None }),
            events: broadcast::Sender::new(QUEUE),
        });
        of_device.push(run.clone());
        run
    }

    /// The run of an order, if a Job has brought it.
    pub fn find(&self, device: &DeviceRef, digest: &str) -> Option<Arc<Run>> {
        self.runs().get(device)?.iter().find(|run| run.digest == digest).cloned()
    }

    /// What a device has not answered yet and may still.
    pub fn open(&self, device: &DeviceRef, now: Timestamp) -> Vec<Arc<Run>> {
        let runs = self.runs();
        let open = runs.get(device).into_iter().flatten();
        open.filter(|run| !run.is_finished() && now < run.deadline).cloned().collect()
    }

    /// All that have no result yet.
    pub fn unfinished(&self) -> Vec<Arc<Run>> {
        self.runs().values().flatten().filter(|run| !run.is_finished()).cloned().collect()
    }

    /// Drops what is over and no longer asked for.
    pub fn prune(&self, now: Timestamp) {
        self.runs().retain(|_, of_device| {
            of_device.retain(|run| {
                let over = run.is_finished() || now >= run.deadline;
                let last = run.state().lines.back().map_or(run.deadline, |line| line.time);
                let lingers = now.duration_since(last.min(run.deadline)) < LINGER;
                !over || lingers || run.events.receiver_count() > 0
            });
            !of_device.is_empty()
        });
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<DeviceRef, Vec<Arc<Run>>>> {
        // Whole values only are ever put into it.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::Fingerprint;
    use patchwarden_protocol::order::{Dependencies, Sequence};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn order() -> Order {
        Order {
            device: DeviceRef { namespace: "acme".into(), name: "web".into() },
            device_key: Fingerprint::of(b"key"),
            sequence: Sequence { epoch: 1, number: 1 },
            actions: Vec::new(),
            dependencies: Dependencies::Strict,
            report_digest: String::new(),
            decisions_digest: String::new(),
            policy: "p".into(),
            not_before: at(0),
            not_after: at(1000),
            limit_seconds: 100,
            restart: patchwarden_protocol::order::RestartRule::never(),
            safeguards: patchwarden_protocol::safeguards::Safeguards::default(),
            site_cache: None,
        }
    }

    fn line(second: i64, phase: &str) -> Line {
        Line { time: at(second), phase: phase.into(), text: String::new() }
    }

    #[test]
    fn attaching_twice_is_one_run_and_late_runners_hear_everything() {
        let orders = Orders::default();
        let run = orders.begin(&order(), "d", b"signed".to_vec(), at(0));
        let (so_far, mut events) = run.attach();
        assert!(so_far.is_empty());
        assert!(run.progress(line(1, "Delivered")));
        assert!(!run.progress(line(2, "Delivered")));
        run.finish(b"result".to_vec());
        run.finish(b"another".to_vec());
        let again = orders.begin(&order(), "d", b"signed".to_vec(), at(0));
        let finished = Event::Finished(Arc::new(b"result".to_vec()));
        let all = [Event::Line(line(1, "Delivered")), Event::Line(line(2, "Delivered")), finished];
        assert_eq!(again.attach().0, all);
        for expected in all {
            assert_eq!(events.try_recv().unwrap(), expected);
        }
        assert!(orders.open(&order().device, at(3)).is_empty());
    }

    #[test]
    fn lines_are_bounded() {
        let run = Orders::default().begin(&order(), "d", Vec::new(), at(0));
        for second in 0..500 {
            run.progress(line(second, "Installing"));
        }
        let (lines, _) = run.attach();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0], Event::Line(line(300, "Installing")));
    }

    #[test]
    fn an_order_is_open_until_its_deadline_and_forgotten_later() {
        let orders = Orders::default();
        orders.begin(&order(), "d", Vec::new(), at(0));
        let device = order().device;
        assert_eq!(orders.open(&device, at(1099)).len(), 1);
        assert!(orders.open(&device, at(1100)).is_empty());
        orders.prune(at(1100));
        assert!(orders.find(&device, "d").is_some());
        orders.prune(at(1100 + 601));
        assert!(orders.find(&device, "d").is_none());
    }
}
