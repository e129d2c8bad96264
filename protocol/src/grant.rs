//! The grant: the controller's signed "now", good for one order, one nonce and a minute.
//!
//! The agent asks before its first action, so that a decision withdrawn or a policy suspended takes effect within
//! seconds, also on orders already delivered.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::MAX_CLOCK_SKEW_SECONDS;
use crate::delegation::Delegation;
use crate::envelope::{Document, Envelope, Refused};
use crate::key::{Fingerprint, PublicKey};

/// A grant is good for so long after it was issued.
pub const LIFETIME: SignedDuration = SignedDuration::from_secs(60);

/// What the agent asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Purpose {
    /// To carry out the order's actions.
    #[default]
    Act,
    /// To restart the device, after them.
    Restart,
}

/// The controller's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all_fields = "camelCase")]
pub enum Verdict {
    /// Act now.
    Granted,
    /// Do not act; the order is void.
    Denied {
        /// Reason code, one of the planner's.
        reason: String,
        /// For people.
        message: String,
    },
}

/// The grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The device's key.
    pub device_key: Fingerprint,
    /// The order.
    pub order_digest: String,
    /// The nonce that the agent sent.
    pub nonce: String,
    /// What it asked for: a gateway cannot make a grant to act one to restart.
    pub purpose: Purpose,
    /// When the controller decided.
    pub issued_at: Timestamp,
    /// What it decided.
    pub verdict: Verdict,
}

impl Document for Grant {
    const TYPE: &'static str = "application/vnd.patchwarden.grant.v1+json";
}

/// A grant with the proof that its signer may give orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignedGrant {
    /// Signed by the order key.
    pub grant: Envelope<Grant>,
    /// Signed by the root.
    pub delegation: Envelope<Delegation>,
}

/// Why a grant does not count. The agent asks again, or gives up when the order's time is over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// Signature, type or delegation.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// For another device, order, nonce or purpose.
    #[error("grant is for another {0}")]
    Other(&'static str),
    /// Issued too long ago.
    #[error("grant was issued at {issued_at} and is good for 60 s")]
    Expired {
        /// When it was issued.
        issued_at: Timestamp,
    },
    /// Issued in the future: the clocks differ.
    #[error("clock skew: grant was issued at {issued_at}, more than 2 min ahead of this device's clock")]
    ClockSkew {
        /// When it was issued.
        issued_at: Timestamp,
    },
}

impl SignedGrant {
    /// The grant, if this answers `nonce` for `purpose` of `order_digest` on the device with `device_key`, `now`.
    pub fn open(
        &self,
        root: &PublicKey,
        device_key: &Fingerprint,
        order_digest: &str,
        nonce: &str,
        purpose: Purpose,
        now: Timestamp,
    ) -> Result<Grant, NotGranted> {
        let grant = self.grant.open(&crate::delegation::order_key(&self.delegation, root, now)?)?;
        let others = [
            ("device", grant.device_key != *device_key),
            ("order", grant.order_digest != order_digest),
            ("nonce", grant.nonce != nonce),
            ("purpose", grant.purpose != purpose),
        ];
        if let Some((what, _)) = others.into_iter().find(|(_, differs)| *differs) {
            return Err(NotGranted::Other(what));
        }
        let age = now.duration_since(grant.issued_at);
        if age < SignedDuration::from_secs(-MAX_CLOCK_SKEW_SECONDS) {
            return Err(NotGranted::ClockSkew { issued_at: grant.issued_at });
        }
        if age > LIFETIME {
            return Err(NotGranted::Expired { issued_at: grant.issued_at });
        }
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    struct World {
        root: PrivateKey,
        device: Fingerprint,
        signed: SignedGrant,
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn world() -> World {
        world_of(Purpose::Act)
    }

    fn world_of(purpose: Purpose) -> World {
        let (root, order_key) = (PrivateKey::generate(), PrivateKey::generate());
        let device = PrivateKey::generate().public().fingerprint();
        let delegation = Delegation {
            order_key: order_key.public(),
            not_before: at("2026-01-01T00:00:00Z"),
            not_after: at("2026-02-01T00:00:00Z"),
        };
        let grant = Grant {
            device_key: device.clone(),
            order_digest: "sha256:1".into(),
            nonce: "n".into(),
            purpose,
            issued_at: at("2026-01-10T12:00:00Z"),
            verdict: Verdict::Granted,
        };
        let signed = SignedGrant {
            grant: Envelope::seal(&grant, &order_key).unwrap(),
            delegation: Envelope::seal(&delegation, &root).unwrap(),
        };
        World { root, device, signed }
    }

    fn ask(w: &World, order: &str, nonce: &str, now: &str) -> Result<Verdict, NotGranted> {
        w.signed.open(&w.root.public(), &w.device, order, nonce, Purpose::Act, at(now)).map(|grant| grant.verdict)
    }

    #[test]
    fn a_grant_counts_for_a_minute() {
        let w = world();
        assert_eq!(ask(&w, "sha256:1", "n", "2026-01-10T12:00:00Z"), Ok(Verdict::Granted));
        assert_eq!(ask(&w, "sha256:1", "n", "2026-01-10T12:01:00Z"), Ok(Verdict::Granted));
        assert!(matches!(ask(&w, "sha256:1", "n", "2026-01-10T12:01:01Z"), Err(NotGranted::Expired { .. })));
        assert!(matches!(ask(&w, "sha256:1", "n", "2026-01-10T11:57:00Z"), Err(NotGranted::ClockSkew { .. })));
    }

    #[test]
    fn a_grant_counts_for_its_order_nonce_and_device_only() {
        let w = world();
        let now = "2026-01-10T12:00:00Z";
        assert_eq!(ask(&w, "sha256:2", "n", now), Err(NotGranted::Other("order")));
        assert_eq!(ask(&w, "sha256:1", "m", now), Err(NotGranted::Other("nonce")));
        let stranger = PrivateKey::generate().public().fingerprint();
        assert_eq!(
            w.signed.open(&w.root.public(), &stranger, "sha256:1", "n", Purpose::Act, at(now)),
            Err(NotGranted::Other("device"))
        );
        let root = PrivateKey::generate().public();
        assert!(matches!(
            w.signed.open(&root, &w.device, "sha256:1", "n", Purpose::Act, at(now)),
            Err(NotGranted::Refused(Refused::BadSignature(_)))
        ));
    }

    #[test]
    fn a_grant_to_act_is_none_to_restart_and_the_other_way_round() {
        for granted in [Purpose::Act, Purpose::Restart] {
            for asked in [Purpose::Act, Purpose::Restart] {
                let w = world_of(granted);
                let now = at("2026-01-10T12:00:00Z");
                let found = w.signed.open(&w.root.public(), &w.device, "sha256:1", "n", asked, now);
                let expected = if asked == granted { Ok(Verdict::Granted) } else { Err(NotGranted::Other("purpose")) };
                assert_eq!(found.map(|grant| grant.verdict), expected, "{granted:?} for {asked:?}");
            }
        }
    }
}
