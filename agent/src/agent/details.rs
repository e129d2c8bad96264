//! What the machine is made of, on its way to the gateway: sent where that has something else, so that an unchanged machine sends
//! nothing.
//!
//! `details.json` in the state directory holds it, with when a scan first found it so.

use patchwarden_protocol::agent_v1::{self, from_agent};
use patchwarden_protocol::details::Details;
use patchwarden_protocol::{Envelope, canonical};

use super::Agent;
use crate::provider::Provider;
use crate::scan::ReportError;
use crate::{files, platform};

const FILE: &str = "details.json";

impl<P: Provider> Agent<P> {
    /// A session begins with a gateway that has this; `None` where it keeps no details.
    pub(crate) fn deliver_details(&self, known: Option<String>) {
        self.details_known.replace(known);
        if let Some(details) = self.read_details() {
            self.send_details(&details);
        }
    }

    /// Looks at the machine, and sends what is new. A system that does not tell has nothing to send.
    pub(super) fn take_details(&self) -> Result<(), ReportError> {
        let Some(hardware) = platform::hardware(self.config.omit_personal_data) else { return Ok(()) };
        let device = &self.config.device;
        let known = self.read_details();
        let is_this = |known: &Details| (&known.device, &known.hardware) == (device, &hardware);
        let details = if let Some(known) = known.filter(is_this) {
            known
        } else {
            let details = Details { device: device.clone(), since: platform::now(), hardware };
            let path = self.state.join(FILE);
            files::write_atomic(&path, &canonical::to_bytes(&details)?, files::PRIVATE)
                .map_err(|source| ReportError::Io { path, source })?;
            details
        };
        self.send_details(&details);
        Ok(())
    }

    /// A file that cannot be read is as good as none: the next scan makes it anew.
    fn read_details(&self) -> Option<Details> {
        serde_json::from_slice(&files::read_if_exists(&self.state.join(FILE)).ok()??).ok()
    }

    fn send_details(&self, details: &Details) {
        let mut known = self.details_known.borrow_mut();
        let (Some(theirs), Ok(ours)) = (known.as_mut(), canonical::digest_of(details)) else { return };
        if *theirs == ours {
            return;
        }
        let sealed = Envelope::seal(details, &self.identity.borrow().key).map_err(|error| error.to_string());
        match sealed.and_then(|sealed| serde_json::to_vec(&sealed).map_err(|error| error.to_string())) {
            Ok(envelope) => {
                if self.link.send(from_agent::Message::Details(agent_v1::Details { envelope })) {
                    *theirs = ours;
                }
            }
            Err(error) => tracing::error!("what this machine is made of cannot be sent: {error}"),
        }
    }
}
