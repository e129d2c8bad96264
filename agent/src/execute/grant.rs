//! "May I act now?", and the start.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::agent_v1::{GrantPurpose, GrantRequest, from_agent};
use patchwarden_protocol::grant::{NotGranted, Purpose, SignedGrant, Verdict};
use patchwarden_protocol::progress::Phase;

use super::prepare::Prepared;
use super::{ExecuteError, Execution, Way, archives, detached};
use crate::journal::{Record, RollingBack, Started};
use crate::platform;
use crate::provider::{Direction, Provider};

/// A grant is asked for again this often.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// A nonce is used for so long.
const NONCE_LIFE: SignedDuration = SignedDuration::from_secs(60);

/// The controller's answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// `at`: when, by this device's clock, and at the latest now.
    Granted {
        nonce: String,
        at: Timestamp,
    },
    Denied {
        reason: String,
        message: String,
    },
    TimeOver,
}

impl<P: Provider> Execution<'_, P> {
    /// May it begin now? What the order allows if a check fails is not asked about again: who could say no might not be reached any
    /// more, by what has failed. `started`: the package manager was let go for it before.
    pub(super) async fn may_begin(&self, started: bool) -> Answer {
        let until = self.order().not_after;
        match self.way {
            Way::Forth => self.ask(Purpose::Act, until).await,
            // What was begun is completed, however long the machine was off.
            Way::Back(_) if !started && platform::now() > until => Answer::TimeOver,
            Way::Back(_) => Answer::Granted { nonce: String::new(), at: platform::now() },
        }
    }

    /// Asks for the grant until there is an answer, but no longer than `until`.
    pub(super) async fn ask(&self, purpose: Purpose, until: Timestamp) -> Answer {
        let digest = &self.active.accepted.digest;
        let mut grants = self.agent.link.grants();
        let mut nonce = (new_nonce(), platform::now());
        loop {
            let now = platform::now();
            if now > until {
                return Answer::TimeOver;
            }
            if now.duration_since(nonce.1) >= NONCE_LIFE {
                nonce = (new_nonce(), now);
            }
            let wanted = match purpose {
                Purpose::Act => GrantPurpose::Act,
                Purpose::Restart => GrantPurpose::Restart,
            };
            let request = GrantRequest { order_digest: digest.clone(), nonce: nonce.0.clone(), purpose: wanted.into() };
            self.agent.link.send(from_agent::Message::GrantRequest(request));
            let again = tokio::time::sleep(ASK_AGAIN);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    () = self.agent.link.opened() => break,
                    changed = grants.changed() => if changed.is_err() { break },
                }
                let bytes = grants.borrow_and_update().clone();
                match self.open(&bytes, &nonce.0, purpose) {
                    Ok((Verdict::Granted, at)) if platform::now() <= until => {
                        return Answer::Granted { nonce: nonce.0, at };
                    }
                    Ok((Verdict::Granted, _)) => return Answer::TimeOver,
                    Ok((Verdict::Denied { reason, message }, _)) => return Answer::Denied { reason, message },
                    Err(why) => tracing::warn!("a grant is not accepted: {why}"),
                }
            }
        }
    }

    /// What the controller says, and since when by this device's clock: it may have been long under way.
    fn open(&self, bytes: &[u8], nonce: &str, purpose: Purpose) -> Result<(Verdict, Timestamp), String> {
        let signed: SignedGrant = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let root = self.agent.identity.borrow().root;
        let digest = &self.active.accepted.digest;
        // By the gateway's clock, as far as it may differ: with a clock that is a minute ahead no grant would ever be young
        // enough. A gateway that lies about the time gains nothing by it: the nonce is of this minute.
        let skew = self.agent.link.skew().unwrap_or_default();
        let here = platform::now();
        let now = here.saturating_add(skew).unwrap_or(Timestamp::MAX);
        let opened = signed.open(&root, &self.agent.device_key, digest, nonce, purpose, now);
        let grant = opened.map_err(|why: NotGranted| why.to_string())?;
        let issued_at = grant.issued_at.saturating_sub(skew).unwrap_or(Timestamp::MIN);
        Ok((grant.verdict, issued_at.min(here)))
    }

    pub(super) async fn start(
        &self,
        prepared: Prepared,
        nonce: String,
        before: Option<&Started>,
    ) -> Result<Started, ExecuteError> {
        let attempt = before.map_or(1, |started| started.attempt + 1);
        let Prepared { settled, packages, artifacts, simulation, beside, stamp: _ } = prepared;
        let mut tried = before.map(|started| started.tried.clone()).unwrap_or_default();
        tried.extend(super::open(&settled));
        let mut all_beside = before.map(|started| started.beside.clone()).unwrap_or_default();
        all_beside.retain(|before| !beside.iter().any(|now| (&now.name, &now.arch) == (&before.name, &before.arch)));
        all_beside.extend(beside);
        let sequence = self.order().sequence;
        let place = archives(&self.place());
        // It may remove what its simulation removes, and is not let go with that option where this is nothing.
        let direction = match self.direction() {
            Direction::Removing if simulation.removals.is_empty() => Direction::Forward,
            direction => direction,
        };
        let command = self.provider.install_command(direction, &packages, &artifacts, &place);
        let unit = format!("patchwarden-{}install-{sequence}-{attempt}", self.way.word());
        let waiting = detached::prepare(&command, &self.attempt_directory(attempt), &unit)?;
        let started = Started {
            digest: self.active.accepted.digest.clone(),
            attempt,
            nonce,
            at: platform::now(),
            first_at: before.map(Started::since),
            process: waiting.process.clone(),
            settled,
            tried,
            beside: all_beside,
        };
        self.agent.append(match self.way {
            Way::Forth => Record::Started(Box::new(started.clone())),
            Way::Back(rolling) => {
                Record::RollingBack(Box::new(RollingBack { started: Some(started.clone()), ..rolling.clone() }))
            }
        })?;
        waiting.go().await?;
        let goes = match self.direction() {
            Direction::Forward | Direction::Removing => "",
            Direction::Back => " to earlier versions",
        };
        self.progress(Phase::Installing, &format!("{} packages{goes}", packages.len()));
        Ok(started)
    }
}

/// 128 random bits.
fn new_nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}
