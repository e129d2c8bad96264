//! Who this device is and whom it believes: its key, its certificate, the CA of the gateways and the pinned root.
//!
//! All of it lies in the state directory, readable by root only.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::{Fingerprint, PrivateKey, PublicKey};
use patchwarden_protocol::trust::{self, Trust};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::files;

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";
const CA: &str = "ca.pem";
const ROOT: &str = "root.pub";
const SINCE: &str = "trust.since";

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("{0} is missing: this machine has not joined: run `patchwarden-agent join`")]
    Missing(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {why}")]
    Invalid { path: PathBuf, why: String },
    #[error("cannot make a certificate request: {0}")]
    Request(rcgen::Error),
}

/// A joined device.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The device's key.
    pub(crate) key: PrivateKey,
    /// Certificate for it and those above, PEM.
    pub(crate) chain_pem: String,
    /// The gateways' CA, PEM.
    pub(crate) ca_pem: String,
    /// The pinned root.
    pub(crate) root: PublicKey,
    /// When that and the CA were said by a root; none where the join command has.
    pub(crate) since: Option<Timestamp>,
}

impl Identity {
    /// Reads everything.
    pub(crate) fn load(state: &Path) -> Result<Self, IdentityError> {
        let chain_pem = read(&state.join(CERTIFICATE))?;
        let root_path = state.join(ROOT);
        let root = PublicKey::try_from(read(&root_path)?.trim().to_owned())
            .map_err(|error| IdentityError::Invalid { path: root_path, why: error.to_string() })?;
        let since_path = state.join(SINCE);
        let since =
            match read(&since_path) {
                Err(IdentityError::Missing(_)) => None,
                text => Some(text?.trim().parse().map_err(|error: jiff::Error| IdentityError::Invalid {
                    path: since_path,
                    why: error.to_string(),
                })?),
            };
        let identity = Self {
            key: load_key(state)?.ok_or_else(|| IdentityError::Missing(state.join(KEY)))?,
            ca_pem: read(&state.join(CA))?,
            chain_pem,
            root,
            since,
        };
        check_chain(&identity.chain_pem, &identity.key.public())
            .map_err(|why| IdentityError::Invalid { path: state.join(CERTIFICATE), why })?;
        Ok(identity)
    }

    /// Writes everything of a device that has just joined. Where a crash leaves the key of one and the certificate of another, the key is
    /// still the next one ([`next`]).
    pub(crate) fn save(&self, state: &Path) -> Result<(), IdentityError> {
        let root = String::from(self.root);
        remove(&state.join(SINCE))?;
        save_key(&self.key, state)?;
        for (name, content) in [(CA, &self.ca_pem), (ROOT, &root), (CERTIFICATE, &self.chain_pem)] {
            write(&state.join(name), content)?;
        }
        remove_next(state)
    }

    /// What it pins, in few letters.
    pub(crate) fn trust_digest(&self) -> String {
        trust::digest(&self.root, &self.ca_pem)
    }

    /// Pins what the chain leads to, in the word of what is pinned. Whether that is anything else.
    pub(crate) fn follow(&mut self, chain: &[Envelope<Trust>], state: &Path) -> Result<bool, IdentityError> {
        let Some(Trust { root, ca_pem, issued_at }) = trust::follow(&self.root, self.since, chain) else {
            return Ok(false);
        };
        certificates(&ca_pem).map_err(|why| IdentityError::Invalid { path: state.join(CA), why })?;
        // In this order: until the root is written the chain leads to the same again, and the CAs are never behind it.
        write(&state.join(CA), &ca_pem)?;
        write(&state.join(ROOT), &String::from(root))?;
        write(&state.join(SINCE), &issued_at.to_string())?;
        (self.root, self.ca_pem, self.since) = (root, ca_pem, Some(issued_at));
        Ok(true)
    }

    /// Takes a renewed certificate.
    pub(crate) fn renew(&mut self, chain_pem: String, state: &Path) -> Result<(), IdentityError> {
        let path = state.join(CERTIFICATE);
        check_chain(&chain_pem, &self.key.public())
            .map_err(|why| IdentityError::Invalid { path: path.clone(), why: format!("renewed certificate: {why}") })?;
        write(&path, &chain_pem)?;
        self.chain_pem = chain_pem;
        Ok(())
    }

    /// When the certificate is valid.
    pub(crate) fn validity(&self) -> Result<Validity, String> {
        validity(&self.chain_pem)
    }
}

/// A certificate's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    /// From.
    pub(crate) from: Timestamp,
    /// Until.
    pub(crate) until: Timestamp,
}

impl Validity {
    /// From half its life on it is to be renewed.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        let half = self.until.duration_since(self.from).as_secs() / 2;
        now.as_second() >= self.from.as_second().saturating_add(half)
    }
}

/// Whether the device has joined before.
pub(crate) fn has_joined(state: &Path) -> bool {
    state.join(CERTIFICATE).exists()
}

/// Where the key of a device that joins anew is until it has a certificate.
pub(crate) fn next(state: &Path) -> PathBuf {
    state.join("next")
}

fn remove_next(state: &Path) -> Result<(), IdentityError> {
    let path = next(state);
    files::remove_tree(&path).map_err(|source| IdentityError::Io { path, source })
}

/// Removes all of it, the keys first: what is left is of no use to anybody.
pub(crate) fn forget(state: &Path) -> Result<(), IdentityError> {
    remove_next(state)?;
    for name in [KEY, CERTIFICATE, CA, ROOT, SINCE] {
        remove(&state.join(name))?;
    }
    files::sync_directory(state).map_err(|source| IdentityError::Io { path: state.to_owned(), source })
}

/// The key, if there is one.
pub(crate) fn load_key(state: &Path) -> Result<Option<PrivateKey>, IdentityError> {
    let path = state.join(KEY);
    match read(&path) {
        Ok(pem) => PrivateKey::from_pem(&pem)
            .map(Some)
            .map_err(|error| IdentityError::Invalid { path, why: error.to_string() }),
        Err(IdentityError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a new key.
pub(crate) fn save_key(key: &PrivateKey, state: &Path) -> Result<(), IdentityError> {
    let path = state.join(KEY);
    let pem = key.to_pem().map_err(|error| IdentityError::Invalid { path: path.clone(), why: error.to_string() })?;
    write(&path, &pem)
}

/// A PKCS #10 request for the device's key, DER. Its subject is empty: the name is the gateway's to give.
pub(crate) fn certificate_request(key: &PrivateKey) -> Result<Vec<u8>, IdentityError> {
    let pem = key.to_pem().map_err(|_| IdentityError::Request(rcgen::Error::CouldNotParseKeyPair))?;
    let pair = rcgen::KeyPair::from_pem(&pem).map_err(IdentityError::Request)?;
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    let request = parameters.serialize_request(&pair).map_err(IdentityError::Request)?;
    Ok(request.der().to_vec())
}

/// The certificates of a PEM file.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|error| format!("not PEM: {error}"))?;
    if found.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(found) }
}

/// Whether one of `certificates` is the pinned one.
pub(crate) fn contains_pinned(certificates: &[CertificateDer<'_>], pin: &Fingerprint) -> bool {
    certificates.iter().any(|certificate| Fingerprint::of(certificate) == *pin)
}

fn leaf<T>(pem: &str, look: impl FnOnce(&x509_parser::certificate::X509Certificate<'_>) -> T) -> Result<T, String> {
    let chain = certificates(pem)?;
    let first = chain.first().ok_or("no certificate in it")?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(first).map_err(|error| format!("not a certificate: {error}"))?;
    Ok(look(&parsed))
}

/// The certificate must be for the device's own key.
fn check_chain(pem: &str, key: &PublicKey) -> Result<(), String> {
    let fits = leaf(pem, |certificate| certificate.public_key().subject_public_key.data.as_ref() == key.to_bytes())?;
    if fits { Ok(()) } else { Err("the certificate is for another key".to_owned()) }
}

fn validity(pem: &str) -> Result<Validity, String> {
    let (from, until) = leaf(pem, |certificate| {
        let validity = certificate.validity();
        (validity.not_before.timestamp(), validity.not_after.timestamp())
    })?;
    let at = |second| Timestamp::from_second(second).map_err(|error| error.to_string());
    Ok(Validity { from: at(from)?, until: at(until)? })
}

fn read(path: &Path) -> Result<String, IdentityError> {
    let bytes = files::read_if_exists(path)
        .map_err(|source| IdentityError::Io { path: path.to_owned(), source })?
        .ok_or_else(|| IdentityError::Missing(path.to_owned()))?;
    String::from_utf8(bytes).map_err(|_| IdentityError::Invalid { path: path.to_owned(), why: "not UTF-8".to_owned() })
}

fn remove(path: &Path) -> Result<(), IdentityError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(IdentityError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, content: &str) -> Result<(), IdentityError> {
    files::write_atomic(path, content.as_bytes(), files::PRIVATE)
        .map_err(|source| IdentityError::Io { path: path.to_owned(), source })
}

/// Any text in the place of a certificate.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(pem: &str) {
    let _ = (validity(pem), certificates(pem));
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::FromDer as _;

    use super::*;

    fn self_signed(key: &PrivateKey) -> String {
        let pair = rcgen::KeyPair::from_pem(&key.to_pem().unwrap()).unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, 1, 11);
        parameters.self_signed(&pair).unwrap().pem()
    }

    #[test]
    fn an_identity_survives_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate();
        let identity = Identity {
            chain_pem: self_signed(&key),
            ca_pem: self_signed(&PrivateKey::generate()),
            root: PrivateKey::generate().public(),
            since: None,
            key,
        };
        assert!(!has_joined(directory.path()));
        save_key(&identity.key, directory.path()).unwrap();
        identity.save(directory.path()).unwrap();
        let again = Identity::load(directory.path()).unwrap();
        assert_eq!((again.key.public(), again.root), (identity.key.public(), identity.root));
        assert!(has_joined(directory.path()));
    }

    #[test]
    fn a_certificate_of_another_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate();
        let mut identity =
            Identity { chain_pem: self_signed(&key), ca_pem: self_signed(&key), root: key.public(), since: None, key };
        let error = identity.renew(self_signed(&PrivateKey::generate()), directory.path()).unwrap_err().to_string();
        assert!(error.contains("another key"), "{error}");
    }

    #[test]
    fn a_device_follows_a_chain_and_pins_the_same_after_a_crash_at_any_write() {
        let [old, new] = [(); 2].map(|()| PrivateKey::generate());
        let (key, ca) = (PrivateKey::generate(), self_signed(&PrivateKey::generate()));
        let link = |ca_pem: &str| {
            let trust = Trust {
                root: new.public(),
                ca_pem: ca_pem.to_owned(),
                issued_at: "2026-03-01T00:00:00Z".parse().unwrap(),
            };
            [Envelope::seal(&trust, &old).unwrap()]
        };
        let joined = |directory: &Path| {
            let (chain_pem, ca_pem) = (self_signed(&key), self_signed(&PrivateKey::generate()));
            save_key(&key, directory).unwrap();
            Identity { chain_pem, ca_pem, root: old.public(), since: None, key: key.clone() }.save(directory).unwrap();
            Identity::load(directory).unwrap()
        };
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let mut identity = joined(state);
        assert!(identity.follow(&link("no certificate"), state).is_err());
        assert_eq!(Identity::load(state).unwrap().root, old.public());
        assert!(identity.follow(&link(&ca), state).unwrap());
        assert!(!identity.follow(&link(&ca), state).unwrap(), "it is there");
        let there = Identity::load(state).unwrap();
        assert_eq!((there.root, &there.ca_pem, there.since), (new.public(), &ca, identity.since));
        assert_eq!(there.trust_digest(), trust::digest(&new.public(), &ca));

        // What a crash leaves of the three files, and the chain again.
        for written in [vec![], vec![CA], vec![CA, ROOT]] {
            let crashed = tempfile::tempdir().unwrap();
            joined(crashed.path());
            for name in &written {
                std::fs::copy(state.join(name), crashed.path().join(name)).unwrap();
            }
            let mut identity = Identity::load(crashed.path()).unwrap();
            let follows = identity.follow(&link(&ca), crashed.path()).unwrap();
            assert_eq!(follows, !written.contains(&ROOT));
            let there = Identity::load(crashed.path()).unwrap();
            assert_eq!((there.root, &there.ca_pem), (new.public(), &ca), "{written:?}");
        }
        // Who joins again begins with the join command's word.
        identity.save(state).unwrap();
        assert_eq!(Identity::load(state).unwrap().since, None);
    }

    #[test]
    fn a_certificate_is_due_from_half_its_life() {
        let validity = validity(&self_signed(&PrivateKey::generate())).unwrap();
        assert!(!validity.is_due("2026-01-05T23:59:59Z".parse().unwrap()));
        assert!(validity.is_due("2026-01-06T00:00:00Z".parse().unwrap()));
        assert!(validity.is_due("2027-01-06T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn a_request_is_for_the_devices_key_and_names_nobody() {
        let key = PrivateKey::generate();
        let request = certificate_request(&key).unwrap();
        let (_, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(&request).unwrap();
        let info = &parsed.certification_request_info;
        assert_eq!(info.subject_pki.subject_public_key.data.as_ref(), key.public().to_bytes());
        assert_eq!(info.subject.iter().count(), 0);
    }
}
