//! Changes on their way to the gateway: one message at a time, the next once that one is recorded.

use patchwarden_protocol::Envelope;
use patchwarden_protocol::agent_v1::{self, from_agent};
use patchwarden_protocol::changes::{Changes, NUMBER_REUSED};
use patchwarden_protocol::report::{COUNTER_BACKWARDS, COUNTER_REUSED};

use super::Agent;
use crate::provider::Provider;

/// What the gateway calls this message when it refuses it.
const WHAT: &str = "Changes";

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Whether this session's gateway records changes.
    is_wanted: bool,
    /// Log and number of the last change that was sent and is not recorded yet.
    sent: Option<(String, u64)>,
}

impl<P: Provider> Agent<P> {
    /// A session begins: what the last one had not recorded is sent once more.
    pub(crate) fn deliver_changes(&self, is_wanted: bool) {
        self.delivery.replace(Delivery { is_wanted, sent: None });
        self.send_changes();
    }

    /// Sends what is not recorded yet, if nothing is on its way.
    pub(super) fn send_changes(&self) {
        let mut delivery = self.delivery.borrow_mut();
        if !delivery.is_wanted || delivery.sent.is_some() {
            return;
        }
        let changed = match self.changes.pending() {
            Ok(changed) => changed,
            Err(error) => return tracing::warn!("{}: {error}: it is not sent", self.changes.path().display()),
        };
        let Some(last) = changed.last().map(|last| (last.log.clone(), last.last())) else { return };
        let document = Changes { device: self.config.device.clone(), changed };
        let sealed = Envelope::seal(&document, &self.identity.borrow().key).map_err(|error| error.to_string());
        match sealed.and_then(|sealed| serde_json::to_vec(&sealed).map_err(|error| error.to_string())) {
            Ok(envelope) => {
                if self.link.send(from_agent::Message::Changes(agent_v1::Changes { envelope })) {
                    delivery.sent = Some(last);
                }
            }
            Err(error) => tracing::error!("changes cannot be sent: {error}"),
        }
    }

    /// The gateway has what was sent.
    pub(crate) fn changes_recorded(&self, recorded: &agent_v1::ChangesRecorded) {
        let agent_v1::ChangesRecorded { log, number } = recorded;
        if self.delivery.borrow_mut().sent.take_if(|sent| (&sent.0, &sent.1) == (log, number)).is_none() {
            return tracing::warn!("the gateway has recorded changes that were not sent");
        }
        match self.changes.set_recorded(log, *number) {
            Ok(()) => self.send_changes(),
            // The next session sends it again.
            Err(error) => tracing::error!("changes up to {number} will be sent again: {error}"),
        }
    }

    /// The gateway has refused something. Changes under numbers that it has already go into a new log.
    pub(crate) fn was_refused(&self, refused: &agent_v1::Refused) {
        tracing::warn!("the gateway refused {}: {}: {}", refused.what, refused.reason, refused.message);
        if refused.what == "Report" && [COUNTER_BACKWARDS, COUNTER_REUSED].contains(&refused.reason.as_str()) {
            return self.tell_anew();
        }
        if refused.what != WHAT || refused.reason != NUMBER_REUSED || self.delivery.borrow_mut().sent.take().is_none() {
            return;
        }
        match self.changes.begin_new_log() {
            Ok(()) => self.send_changes(),
            Err(error) => tracing::error!("{}: {error}: no new log is begun", self.changes.path().display()),
        }
    }
}
