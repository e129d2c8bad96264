//! What devices pin, and how a root hands it over: to another root, or to other CAs of the gateways.
//!
//! Each time that one of them changes, the root that counts until then signs a [`Trust`]. All of these together are a chain that
//! leads a device from whatever it pins to what counts now, however long it was off. Whoever brings the chain can withhold it, and can neither
//! make nor change a link.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::canonical;
use crate::envelope::{Document, Envelope};
use crate::key::PublicKey;

/// "This is what you pin from here on", in the word of the root that is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trust {
    /// The root from here on; it may be the same.
    pub root: PublicKey,
    /// Certificates of the CAs that gateways and devices may have theirs of, PEM.
    pub ca_pem: String,
    /// When it was said: a device takes nothing that is older than what it holds.
    pub issued_at: Timestamp,
}

impl Document for Trust {
    const TYPE: &'static str = "application/vnd.patchwarden.trust.v1+json";
}

/// Where `chain` leads a device that pins `root`, and holds what was said at `since` or what its join command said. None
/// where it leads nowhere: then the device pins what it pinned before.
pub fn follow(root: &PublicKey, since: Option<Timestamp>, chain: &[Envelope<Trust>]) -> Option<Trust> {
    let mut held: Option<Trust> = None;
    for link in chain {
        let (root, since) = held.as_ref().map_or((root, since), |held| (&held.root, Some(held.issued_at)));
        // Links of roots that came before, or that this device never had.
        let Ok(next) = link.open(root) else { continue };
        if since.is_none_or(|since| since < next.issued_at) {
            held = Some(next);
        }
    }
    held
}

/// What a device pins, in few letters: by it a gateway knows whether the device has to follow.
pub fn digest(root: &PublicKey, ca_pem: &str) -> String {
    canonical::digest(format!("{}\n{ca_pem}", String::from(*root)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn link(by: &PrivateKey, root: &PrivateKey, ca: &str, second: i64) -> Envelope<Trust> {
        let trust = Trust { root: root.public(), ca_pem: ca.to_owned(), issued_at: at(second) };
        Envelope::seal(&trust, by).unwrap()
    }

    #[test]
    fn a_chain_leads_from_any_of_its_links_to_the_last_one() {
        let [first, second, third] = [(); 3].map(|()| PrivateKey::generate());
        let chain = [link(&first, &first, "a b", 1), link(&first, &second, "a b", 2), link(&second, &third, "b", 3)];
        let end = Trust { root: third.public(), ca_pem: "b".to_owned(), issued_at: at(3) };
        for (root, since) in [(&first, None), (&first, Some(1)), (&second, None), (&second, Some(2))] {
            assert_eq!(follow(&root.public(), since.map(at), &chain), Some(end.clone()), "{since:?}");
        }
        assert_eq!(follow(&third.public(), Some(at(3)), &chain), None, "it is there already");
        assert_eq!(follow(&PrivateKey::generate().public(), None, &chain), None, "of another fleet");
        assert_eq!(follow(&first.public(), None, &chain[1..]).map(|it| it.root), Some(third.public()));
        assert_eq!(follow(&first.public(), None, &chain[2..]), None, "a link is missing");
    }

    #[test]
    fn nobody_is_led_back_nor_by_anybody_else() {
        let [root, stranger] = [(); 2].map(|()| PrivateKey::generate());
        let (old, new) = (link(&root, &root, "stolen", 1), link(&root, &root, "new", 2));
        assert_eq!(follow(&root.public(), Some(at(2)), &[old.clone(), new.clone()]), None);
        assert_eq!(follow(&root.public(), Some(at(2)), std::slice::from_ref(&old)), None);
        // Whatever the order in which they come.
        assert_eq!(follow(&root.public(), None, &[new, old]).map(|it| it.ca_pem).as_deref(), Some("new"));
        assert_eq!(follow(&root.public(), None, &[link(&stranger, &stranger, "theirs", 9)]), None);
        // A root that has handed over has no say any more.
        let next = PrivateKey::generate();
        let chain = [link(&root, &next, "a", 3), link(&root, &stranger, "b", 4)];
        assert_eq!(follow(&root.public(), None, &chain).map(|it| it.root), Some(next.public()));
    }

    #[test]
    fn what_is_pinned_has_a_digest_of_its_own() {
        let [a, b] = [(); 2].map(|()| PrivateKey::generate().public());
        assert_eq!(digest(&a, "ca"), digest(&a, "ca"));
        assert!(digest(&a, "ca") != digest(&b, "ca") && digest(&a, "ca") != digest(&a, "cb"));
    }
}
