//! What the rest of the agent sees of the gateway: a place to put messages, and grants that come.
//!
//! Nothing waits for a session here. What must not be lost is in the journal and the report store, and every session
//! begins by sending it.

use std::cell::{Cell, RefCell};

use jiff::SignedDuration;
use patchwarden_protocol::agent_v1::{FromAgent, from_agent};
use tokio::sync::{Notify, mpsc, watch};

/// Messages that may wait for a slow gateway before the session is given up.
pub(crate) const CAPACITY: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    sender: RefCell<Option<mpsc::Sender<FromAgent>>>,
    opened: Notify,
    grants: watch::Sender<Vec<u8>>,
    skew: Cell<Option<SignedDuration>>,
}

impl Link {
    /// Without a session.
    pub(crate) fn new() -> Self {
        Self {
            sender: RefCell::new(None),
            opened: Notify::new(),
            grants: watch::Sender::new(Vec::new()),
            skew: Cell::new(None),
        }
    }

    /// A session is open; `skew` is how far the gateway's clock is ahead of ours.
    pub(crate) fn open(&self, sender: mpsc::Sender<FromAgent>, skew: SignedDuration) {
        self.sender.replace(Some(sender));
        self.skew.set(Some(skew));
        self.opened.notify_waiters();
    }

    /// The session is over.
    pub(crate) fn close(&self) {
        self.sender.replace(None);
        self.skew.set(None);
    }

    /// How far the gateway's clock is ahead, while there is a session.
    pub(crate) fn skew(&self) -> Option<SignedDuration> {
        self.skew.get()
    }

    /// Sends if there is a session. Whether there is one.
    pub(crate) fn send(&self, message: from_agent::Message) -> bool {
        let mut sender = self.sender.borrow_mut();
        let Some(open) = sender.as_ref() else { return false };
        if open.try_send(FromAgent { message: Some(message) }).is_err() {
            // Ended, or so slow that messages pile up: the next session begins anew.
            *sender = None;
            return false;
        }
        true
    }

    /// Waits for the next session.
    pub(crate) async fn opened(&self) {
        self.opened.notified().await;
    }

    /// A grant came.
    pub(crate) fn grant(&self, signed_grant: Vec<u8>) {
        self.grants.send_replace(signed_grant);
    }

    /// Grants that come from now on; only the last one counts.
    pub(crate) fn grants(&self) -> watch::Receiver<Vec<u8>> {
        let mut receiver = self.grants.subscribe();
        receiver.mark_unchanged();
        receiver
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::agent_v1::Progress;

    use super::*;

    fn message() -> from_agent::Message {
        from_agent::Message::Progress(Progress::default())
    }

    #[test]
    fn without_a_session_nothing_is_sent_and_a_jammed_session_is_given_up() {
        let link = Link::new();
        assert!(!link.send(message()));
        let (sender, mut receiver) = mpsc::channel(1);
        link.open(sender, SignedDuration::ZERO);
        assert!(link.send(message()));
        assert!(!link.send(message()), "one more than fits");
        assert!(receiver.try_recv().is_ok());
        assert!(!link.send(message()), "the session was given up");
    }
}
