//! The root key lends its authority to an order key, for at most 90 days.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::envelope::{Document, Envelope, Refused};
use crate::key::PublicKey;

/// The longest time a delegation is believed for.
pub const MAX_LIFETIME: SignedDuration = SignedDuration::from_hours(90 * 24);

/// "This key may sign orders and grants."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delegation {
    /// The order key.
    pub order_key: PublicKey,
    /// From.
    pub not_before: Timestamp,
    /// Until.
    pub not_after: Timestamp,
}

impl Document for Delegation {
    const TYPE: &'static str = "application/vnd.patchwarden.delegation.v1+json";
}

/// The order key that `root` delegated to at `now`.
pub fn order_key(delegation: &Envelope<Delegation>, root: &PublicKey, now: Timestamp) -> Result<PublicKey, Refused> {
    let Delegation { order_key, not_before, not_after } = delegation.open(root)?;
    if now < not_before || now >= not_after || not_after.duration_since(not_before) > MAX_LIFETIME {
        return Err(Refused::Unreadable(format!(
            "the delegation of the order key is valid from {not_before} to {not_after} (90 days at most), and it is {now}"
        )));
    }
    Ok(order_key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn delegation(root: &PrivateKey, from: &str, to: &str) -> (PublicKey, Envelope<Delegation>) {
        let order_key = PrivateKey::generate().public();
        let document = Delegation { order_key, not_before: at(from), not_after: at(to) };
        (order_key, Envelope::seal(&document, root).unwrap())
    }

    #[test]
    fn a_delegation_counts_in_its_time_and_by_its_root_only() {
        let root = PrivateKey::generate();
        let (key, envelope) = delegation(&root, "2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z");
        assert_eq!(order_key(&envelope, &root.public(), at("2026-02-01T00:00:00Z")).unwrap(), key);
        assert!(order_key(&envelope, &root.public(), at("2025-12-31T23:59:59Z")).is_err());
        assert!(order_key(&envelope, &root.public(), at("2026-03-01T00:00:00Z")).is_err());
        assert!(order_key(&envelope, &PrivateKey::generate().public(), at("2026-02-01T00:00:00Z")).is_err());
    }

    #[test]
    fn a_delegation_of_more_than_90_days_is_refused() {
        let root = PrivateKey::generate();
        let (_, envelope) = delegation(&root, "2026-01-01T00:00:00Z", "2026-12-01T00:00:00Z");
        assert!(order_key(&envelope, &root.public(), at("2026-01-02T00:00:00Z")).is_err());
    }
}
