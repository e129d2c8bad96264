//! Which devices have a session now, here or at another gateway that shares the database: at most one each, the newest wins.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use patchwarden_protocol::report::DeviceRef;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::budget::Budget;
use crate::store::Place;

/// A device without a session is offline after this long, so that a reconnect costs no write.
pub const GRACE: Duration = Duration::from_secs(15);

/// The same after the gateway itself has started: every agent needs the time to come back.
pub const GRACE_AFTER_START: Duration = Duration::from_mins(1);

/// Orders that wait for a session that is busy. A device has one order at a time.
const QUEUE: usize = 8;

/// Sessions that a device begins: so many at once, then one in this time. One that fails comes back ever later (`agent/src/session.rs`), and a gateway
/// that restarts begins with the first again.
pub const STARTS: (u32, Duration) = (10, Duration::from_secs(5));

/// What costs a write (changed reports, requests, results, changes of packages): so many at once, then one a second. An install needs four.
pub const CHANGES: (u32, Duration) = (20, Duration::from_secs(1));

/// Progress lines that go to the store, the first of each phase: so many at once, then one a second.
const PHASES: (u32, Duration) = (20, Duration::from_secs(1));

/// Progress lines that other gateways are told, for runners that are there: so many at once, then ten a second.
const LINES: (u32, Duration) = (50, Duration::from_millis(100));

/// What a device may spend, whichever of its sessions does it.
#[derive(Debug)]
pub struct Spending {
    starts: Budget,
    /// See [`CHANGES`].
    pub changes: Budget,
    /// See [`PHASES`].
    pub phases: Budget,
    /// See [`LINES`].
    pub lines: Budget,
}

/// Shared by a device's sessions.
pub type Purse = Arc<Mutex<Spending>>;

impl Default for Spending {
    fn default() -> Self {
        let [starts, changes, phases, lines] =
            [STARTS, CHANGES, PHASES, LINES].map(|(burst, every)| Budget::new(burst, every));
        Self { starts, changes, phases, lines }
    }
}

/// Nothing that can panic is done with it.
pub fn open(purse: &Purse) -> MutexGuard<'_, Spending> {
    purse.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What others tell a session.
#[derive(Debug)]
pub enum Command {
    /// Send this order (JSON of a `SignedOrder`).
    Deliver(Arc<Vec<u8>>),
    /// End: another session of the same key has begun.
    Replaced,
    /// End: the other gateways do not know of it.
    Forgotten,
}

#[derive(Debug)]
struct Handle {
    id: u64,
    commands: mpsc::Sender<Command>,
    changed: Arc<Notify>,
    /// Its number among all sessions of the device, when that is known.
    number: Option<i64>,
    /// The newest at another gateway that was heard of.
    elsewhere: Option<Place>,
}

#[derive(Debug)]
enum Slot {
    Open(Handle),
    /// At another gateway.
    Elsewhere(Place),
    Ended(Instant),
}

/// A session's own end of its registration; dropping it gives the place up.
#[derive(Debug)]
pub struct Registration {
    /// What others tell it.
    pub commands: mpsc::Receiver<Command>,
    /// The device's resource has changed.
    pub changed: Arc<Notify>,
    /// Whether it took the place of another session.
    pub replaced: bool,
    id: u64,
    device: DeviceRef,
    sessions: Sessions,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut slots = self.sessions.slots();
        if let Some(slot) = slots.get_mut(&self.device)
            && let Slot::Open(handle) = slot
            && handle.id == self.id
        {
            *slot = handle.elsewhere.take().map_or_else(|| Slot::Ended(Instant::now()), Slot::Elsewhere);
        }
    }
}

impl Registration {
    /// The session's number among all gateways. False: another gateway has a later one.
    pub fn is_newest(&self, number: i64) -> bool {
        match self.sessions.slots().get_mut(&self.device) {
            Some(Slot::Open(handle)) if handle.id == self.id => {
                handle.number = Some(number);
                handle.elsewhere.take_if(|place| place.number < number);
                handle.elsewhere.is_none()
            }
            Some(_) | None => true,
        }
    }
}

/// All sessions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    slots: Arc<Mutex<HashMap<DeviceRef, Slot>>>,
    /// Kept for as long as the slot is, which is longer than it takes until all can be spent again.
    purses: Arc<Mutex<HashMap<DeviceRef, Purse>>>,
    next: Arc<AtomicU64>,
    started: Instant,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { slots: Arc::default(), purses: Arc::default(), next: Arc::default(), started: Instant::now() }
    }
}

impl Sessions {
    /// What a device may spend in the session that it wants to begin now. Nothing: it has begun too many of late.
    pub fn begin(&self, device: &DeviceRef, now: Instant) -> Option<Purse> {
        let mut purses = self.purses.lock().unwrap_or_else(PoisonError::into_inner);
        let purse = purses.entry(device.clone()).or_default().clone();
        drop(purses);
        let may_begin = open(&purse).starts.try_spend(now);
        may_begin.then_some(purse)
    }

    /// As when every device has been quiet for long.
    #[cfg(test)]
    pub fn refill(&self) {
        self.purses.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Opens the session of a device; the one it had is told to end.
    pub fn open(&self, device: &DeviceRef) -> Registration {
        let (sender, commands) = mpsc::channel(QUEUE);
        let changed = Arc::new(Notify::new());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut slots = self.slots();
        let previous = slots.remove(device);
        let elsewhere = match &previous {
            Some(Slot::Elsewhere(place)) => Some(place.clone()),
            Some(Slot::Open(old)) => old.elsewhere.clone(),
            Some(Slot::Ended(_)) | None => None,
        };
        let handle = Handle { id, commands: sender, changed: changed.clone(), number: None, elsewhere };
        slots.insert(device.clone(), Slot::Open(handle));
        drop(slots);
        let replaced = match previous {
            Some(Slot::Open(old)) => {
                // A full queue ends it too: its next command finds the channel closed, since its sender is gone.
                let _ = old.commands.try_send(Command::Replaced);
                true
            }
            Some(Slot::Elsewhere(_) | Slot::Ended(_)) | None => false,
        };
        Registration { commands, changed, replaced, id, device: device.clone(), sessions: self.clone() }
    }

    /// Whether the device has a session, at any gateway.
    pub fn is_open(&self, device: &DeviceRef) -> bool {
        matches!(self.slots().get(device), Some(Slot::Open(_) | Slot::Elsewhere(_)))
    }

    /// Whether the device has a session at this gateway.
    pub fn is_here(&self, device: &DeviceRef) -> bool {
        matches!(self.slots().get(device), Some(Slot::Open(_)))
    }

    /// Hands an order to the device's session. False: it has none that takes it now.
    pub fn deliver(&self, device: &DeviceRef, order: &Arc<Vec<u8>>) -> bool {
        match self.slots().get(device) {
            Some(Slot::Open(handle)) => handle.commands.try_send(Command::Deliver(order.clone())).is_ok(),
            Some(Slot::Elsewhere(_) | Slot::Ended(_)) | None => false,
        }
    }

    /// A device has opened a session at another gateway: what it has here ends, unless that is newer.
    pub fn opened_elsewhere(&self, place: Place) {
        let mut slots = self.slots();
        match slots.get_mut(&place.device) {
            Some(Slot::Elsewhere(known)) if known.number > place.number => {}
            Some(Slot::Open(handle)) if handle.number.is_some_and(|number| number > place.number) => {}
            // It gets its number at this moment, and then knows which of the two is newer.
            Some(Slot::Open(handle)) if handle.number.is_none() => {
                if handle.elsewhere.as_ref().is_none_or(|known| known.number < place.number) {
                    handle.elsewhere = Some(place);
                }
            }
            // Its commands end with its handle, and the session with them.
            Some(_) | None => _ = slots.insert(place.device.clone(), Slot::Elsewhere(place)),
        }
    }

    /// A session at another gateway is over.
    pub fn closed_elsewhere(&self, place: &Place) {
        let mut slots = self.slots();
        match slots.get_mut(&place.device) {
            Some(Slot::Open(handle)) => _ = handle.elsewhere.take_if(|known| known.number == place.number),
            Some(slot) => {
                if matches!(slot, Slot::Elsewhere(known) if known.number == place.number) {
                    *slot = Slot::Ended(Instant::now());
                }
            }
            None => {}
        }
    }

    /// These are all sessions at other gateways.
    pub fn elsewhere(&self, places: Vec<Place>) {
        let numbers: HashMap<_, _> = places.iter().map(|place| (place.device.clone(), place.number)).collect();
        self.end_elsewhere(|place| numbers.get(&place.device) != Some(&place.number));
        for place in places {
            self.opened_elsewhere(place);
        }
    }

    /// These gateways live no more: their sessions are over.
    pub fn gone(&self, replicas: &[String]) {
        self.end_elsewhere(|place| replicas.contains(&place.replica));
    }

    fn end_elsewhere(&self, is_over: impl Fn(&Place) -> bool) {
        for slot in self.slots().values_mut() {
            match slot {
                Slot::Open(handle) => _ = handle.elsewhere.take_if(|place| is_over(place)),
                Slot::Elsewhere(place) if is_over(place) => *slot = Slot::Ended(Instant::now()),
                Slot::Elsewhere(_) | Slot::Ended(_) => {}
            }
        }
    }

    /// Sessions at this gateway that the others were told of, each with its number.
    pub fn here(&self) -> HashMap<DeviceRef, i64> {
        let number = |slot: &Slot| if let Slot::Open(handle) = slot { handle.number } else { None };
        self.slots().iter().filter_map(|(device, slot)| Some((device.clone(), number(slot)?))).collect()
    }

    /// Ends those of these sessions at this gateway that are still there.
    pub fn forget(&self, numbers: &HashMap<DeviceRef, i64>) {
        for (device, number) in numbers {
            if let Some(slot) = self.slots().get_mut(device)
                && let Slot::Open(handle) = slot
                && handle.number == Some(*number)
            {
                // A full queue ends it, too: its commands end with its handle.
                let _ = handle.commands.try_send(Command::Forgotten);
                *slot = Slot::Ended(Instant::now());
            }
        }
    }

    /// Ends all sessions at this gateway.
    pub fn end_all(&self) {
        for slot in self.slots().values_mut() {
            if let Slot::Open(handle) = slot {
                // A full queue ends it, too: its commands end with its handle.
                let _ = handle.commands.try_send(Command::Forgotten);
                *slot = Slot::Ended(Instant::now());
            }
        }
    }

    /// Wakes the device's session: its resource has changed.
    pub fn changed(&self, device: &DeviceRef) {
        if let Some(Slot::Open(handle)) = self.slots().get(device) {
            handle.changed.notify_one();
        }
    }

    /// Of `online` devices, those that have been without a session for long enough.
    pub fn lost(&self, online: Vec<DeviceRef>) -> Vec<DeviceRef> {
        let slots = self.slots();
        let lost = |device: &DeviceRef| match slots.get(device) {
            Some(Slot::Open(_) | Slot::Elsewhere(_)) => false,
            Some(Slot::Ended(at)) => at.elapsed() >= GRACE,
            None => self.started.elapsed() >= GRACE_AFTER_START,
        };
        online.into_iter().filter(lost).collect()
    }

    /// Drops the memory of sessions that ended long ago.
    pub fn prune(&self) {
        let mut slots = self.slots();
        slots.retain(|_, slot| match slot {
            Slot::Open(_) | Slot::Elsewhere(_) => true,
            // Not earlier: a device that vanishes in the first minute keeps its own, shorter grace.
            Slot::Ended(at) => at.elapsed() < GRACE_AFTER_START * 2,
        });
        let mut purses = self.purses.lock().unwrap_or_else(PoisonError::into_inner);
        // A session that begins at this moment has its purse before its slot.
        purses.retain(|device, purse| slots.contains_key(device) || Arc::strong_count(purse) > 1);
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<DeviceRef, Slot>> {
        // Whole values only are ever put into it.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceRef {
        DeviceRef { namespace: "acme".into(), name: "web".into() }
    }

    #[tokio::test]
    async fn the_newest_session_wins_and_the_old_one_is_told() {
        let sessions = Sessions::default();
        let mut old = sessions.open(&device());
        assert!(!old.replaced);
        let mut new = sessions.open(&device());
        assert!(new.replaced);
        assert!(matches!(old.commands.recv().await, Some(Command::Replaced)));
        assert!(old.commands.recv().await.is_none());
        drop(old);
        assert!(sessions.is_open(&device()), "the old one's end does not close the new one");
        assert!(sessions.deliver(&device(), &Arc::new(b"order".to_vec())));
        assert!(matches!(new.commands.recv().await, Some(Command::Deliver(order)) if *order == b"order"));
        drop(new);
        assert!(!sessions.deliver(&device(), &Arc::new(Vec::new())));
    }

    fn place(number: i64) -> Place {
        Place { device: device(), replica: "b".into(), number }
    }

    #[tokio::test]
    async fn of_sessions_at_two_gateways_the_one_with_the_higher_number_stays() {
        for (here, there) in [(1, 2), (2, 1)] {
            for told_before_its_number in [true, false] {
                let sessions = Sessions::default();
                let registration = sessions.open(&device());
                if told_before_its_number {
                    sessions.opened_elsewhere(place(there));
                    assert_eq!(registration.is_newest(here), here > there);
                } else {
                    assert!(registration.is_newest(here));
                    sessions.opened_elsewhere(place(there));
                    assert_eq!(registration.commands.is_closed(), here < there);
                }
                drop(registration);
                assert_eq!(sessions.is_open(&device()), here < there, "{here} {there} {told_before_its_number}");
                assert!(!sessions.is_here(&device()));
            }
        }
    }

    #[test]
    fn a_device_is_not_lost_while_another_gateway_has_it() {
        let mut sessions = Sessions::default();
        sessions.started = sessions.started.checked_sub(GRACE_AFTER_START).unwrap();
        let ended = |sessions: &Sessions| matches!(sessions.slots().get(&device()), Some(Slot::Ended(_)));
        sessions.elsewhere(vec![place(5)]);
        assert!(sessions.lost(vec![device()]).is_empty());
        assert!(!sessions.deliver(&device(), &Arc::new(Vec::new())));
        sessions.closed_elsewhere(&place(4));
        assert!(!ended(&sessions), "the end of an older one");
        sessions.closed_elsewhere(&place(5));
        assert!(ended(&sessions), "now its grace begins");
        sessions.opened_elsewhere(place(6));
        sessions.gone(&["c".to_owned()]);
        assert!(!ended(&sessions));
        sessions.gone(&["b".to_owned()]);
        assert!(ended(&sessions), "its gateway is dead");
        sessions.opened_elsewhere(place(7));
        sessions.elsewhere(Vec::new());
        assert!(ended(&sessions), "the end was not heard of");
    }

    #[tokio::test]
    async fn what_a_device_has_spent_is_spent_in_its_next_session_too() {
        let sessions = Sessions::default();
        let first = sessions.begin(&device(), Instant::now()).unwrap();
        let now = Instant::now();
        let spent = (0..100).filter(|_| open(&first).changes.try_spend(now)).count();
        assert_eq!(spent, 20);
        drop((first, sessions.open(&device())));
        sessions.prune();
        let second = sessions.begin(&device(), now).unwrap();
        assert!(!open(&second).changes.try_spend(now), "a new session is no new burst");
        let begun = (0..100).filter(|_| sessions.begin(&device(), now).is_some()).count();
        assert_eq!(begun, 8, "ten in all");
        assert!(sessions.begin(&device(), now + STARTS.1).is_some());
        assert!(sessions.begin(&device(), now + STARTS.1).is_none());
        let other = DeviceRef { name: "db".into(), ..device() };
        assert!(sessions.begin(&other, now).is_some());
        sessions.prune();
        assert!(!sessions.purses.lock().unwrap().contains_key(&other), "without a session nobody is remembered");
    }

    #[tokio::test]
    async fn sessions_that_the_others_do_not_know_of_end() {
        let sessions = Sessions::default();
        let mut registration = sessions.open(&device());
        sessions.end_all();
        assert!(matches!(registration.commands.recv().await, Some(Command::Forgotten)));
        assert!(!sessions.is_here(&device()));
    }

    #[test]
    fn a_device_is_lost_only_after_its_grace() {
        let sessions = Sessions::default();
        let registration = sessions.open(&device());
        assert!(sessions.lost(vec![device()]).is_empty());
        drop(registration);
        assert!(sessions.lost(vec![device()]).is_empty(), "within its grace");
        sessions.slots().insert(device(), Slot::Ended(Instant::now().checked_sub(GRACE).unwrap()));
        assert_eq!(sessions.lost(vec![device()]), [device()]);
        let stranger = DeviceRef { namespace: "acme".into(), name: "db".into() };
        assert!(sessions.lost(vec![stranger.clone()]).is_empty(), "the gateway has just started");
        let mut later = Sessions::default();
        later.started = later.started.checked_sub(GRACE_AFTER_START).unwrap();
        assert_eq!(later.lost(vec![stranger.clone()]), [stranger]);
    }
}
