//! Which devices have a session now: at most one each, the newest wins.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use patchwarden_protocol::report::DeviceRef;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// A device without a session is offline after this long, so that a reconnect costs no write.
pub const GRACE: Duration = Duration::from_secs(15);

/// The same after the gateway itself has started: every agent needs the time to come back.
pub const GRACE_AFTER_START: Duration = Duration::from_mins(1);

/// Orders that wait for a session that is busy. A device has one order at a time.
const QUEUE: usize = 8;

/// What others tell a session.
#[derive(Debug)]
pub enum Command {
    /// Send this order (JSON of a `SignedOrder`).
    Deliver(Arc<Vec<u8>>),
    /// End: another session of the same key has begun.
    Replaced,
}

#[derive(Debug)]
struct Handle {
    id: u64,
    commands: mpsc::Sender<Command>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
enum Slot {
    Open(Handle),
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
            && matches!(slot, Slot::Open(handle) if handle.id == self.id)
        {
            *slot = Slot::Ended(Instant::now());
        }
    }
}

/// All sessions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    slots: Arc<Mutex<HashMap<DeviceRef, Slot>>>,
    next: Arc<AtomicU64>,
    started: Instant,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { slots: Arc::default(), next: Arc::default(), started: Instant::now() }
    }
}

impl Sessions {
    /// Opens the session of a device; the one it had is told to end.
    pub fn open(&self, device: &DeviceRef) -> Registration {
        let (sender, commands) = mpsc::channel(QUEUE);
        let changed = Arc::new(Notify::new());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Handle { id, commands: sender, changed: changed.clone() };
        let previous = self.slots().insert(device.clone(), Slot::Open(handle));
        let replaced = match previous {
            Some(Slot::Open(old)) => {
                // A full queue ends it too: its next command finds the channel closed, since its sender is gone.
                let _ = old.commands.try_send(Command::Replaced);
                true
            }
            Some(Slot::Ended(_)) | None => false,
        };
        Registration { commands, changed, replaced, id, device: device.clone(), sessions: self.clone() }
    }

    /// Whether the device has a session.
    pub fn is_open(&self, device: &DeviceRef) -> bool {
        matches!(self.slots().get(device), Some(Slot::Open(_)))
    }

    /// Hands an order to the device's session. False: it has none that takes it now.
    pub fn deliver(&self, device: &DeviceRef, order: &Arc<Vec<u8>>) -> bool {
        match self.slots().get(device) {
            Some(Slot::Open(handle)) => handle.commands.try_send(Command::Deliver(order.clone())).is_ok(),
            Some(Slot::Ended(_)) | None => false,
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
            Some(Slot::Open(_)) => false,
            Some(Slot::Ended(at)) => at.elapsed() >= GRACE,
            None => self.started.elapsed() >= GRACE_AFTER_START,
        };
        online.into_iter().filter(lost).collect()
    }

    /// Drops the memory of sessions that ended long ago.
    pub fn prune(&self) {
        self.slots().retain(|_, slot| match slot {
            Slot::Open(_) => true,
            // Not earlier: a device that vanishes in the first minute keeps its own, shorter grace.
            Slot::Ended(at) => at.elapsed() < GRACE_AFTER_START * 2,
        });
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
