//! Whose turn it is to have something kept.
//!
//! When all devices of a fleet come at once with all that they know (the database is new, or was put back), there is more to write than the
//! database takes in the time that a connection to it may be waited for. What a session has received waits for its turn first, in
//! the order in which it came, as long as that takes; the session reads on only after it. So the devices wait in their own
//! connections, no session ends for it, and connections are left for everything else.

use std::pin::Pin;
use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Sessions that may have something kept at the same time: half of a gateway's connections to PostgreSQL. SQLite takes one after the other.
pub const AT_ONCE: usize = 8;

/// The queue of one gateway.
#[derive(Debug)]
pub struct Turns {
    free: Arc<Semaphore>,
    waiting: IntGauge,
}

/// The right to have something kept; given back by its end.
pub type Turn = OwnedSemaphorePermit;

/// A place in the queue, taken once it is polled and kept until it is dropped. Nothing when there are no turns any more: they are never ended.
pub type Place = Pin<Box<dyn Future<Output = Option<Turn>> + Send + Sync>>;

impl Turns {
    /// A queue that counts in `waiting` who is in it.
    pub fn new(waiting: IntGauge) -> Self {
        Self { free: Arc::new(Semaphore::new(AT_ONCE)), waiting }
    }

    /// A turn, if nobody waits for one.
    pub fn now(&self) -> Option<Turn> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// The last place of the queue.
    pub fn next(&self) -> Place {
        let (free, waiting) = (self.free.clone(), self.waiting.clone());
        Box::pin(async move {
            if let Ok(turn) = free.clone().try_acquire_owned() {
                return Some(turn);
            }
            let _counted = Counted::new(waiting);
            free.acquire_owned().await.ok()
        })
    }
}

/// One more in the gauge for as long as it lives.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
