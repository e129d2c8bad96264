//! The catalogue of recipes: a file, signed by a publisher, that is handed to every device that takes recipes.
//!
//! The gateway does not know whom devices believe, and could neither make a catalogue nor change one. The file is read again
//! every few seconds, so that a ConfigMap may be mounted there.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use patchwarden_protocol::recipes::{self, CatalogueError, MAX_BYTES};
use tokio::sync::watch;

/// Between two looks at the file: the kubelet takes up to a minute to show a ConfigMap's change.
const PAUSE: Duration = Duration::from_secs(10);

/// A catalogue as it is sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Offered {
    /// Its digest, by which a device says which one it has.
    pub digest: String,
    /// The signed envelope.
    pub envelope: Vec<u8>,
}

/// What is offered now, if anything.
pub type Offers = watch::Receiver<Option<Arc<Offered>>>;

/// Why a file is not offered.
#[derive(Debug, thiserror::Error)]
pub enum NotOffered {
    /// It cannot be read.
    #[error("recipes: {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no signed catalogue.
    #[error("recipes: {path}: {source}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CatalogueError,
    },
}

/// Reads the file.
pub fn read(path: &Path) -> Result<Offered, NotOffered> {
    let io = |source| NotOffered::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    let envelope = recipes::envelope(&bytes).map_err(|source| NotOffered::Invalid { path: path.to_owned(), source })?;
    Ok(Offered { digest: envelope.digest(), envelope: bytes })
}

/// Reads the file again and again. What cannot be read changes nothing.
pub(super) async fn watch(path: PathBuf, offers: watch::Sender<Option<Arc<Offered>>>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        look(&path, &offers);
    }
}

fn look(path: &Path, offers: &watch::Sender<Option<Arc<Offered>>>) {
    match read(path) {
        Ok(read) => {
            let is_new = offers.send_if_modified(|offered| {
                let is_new = offered.as_deref() != Some(&read);
                if is_new {
                    *offered = Some(Arc::new(read));
                }
                is_new
            });
            if is_new {
                tracing::info!(path = %path.display(), "the recipes have changed");
            }
        }
        Err(error) => tracing::error!(%error, "the recipes that were there before are still offered"),
    }
}

/// Resolves when another catalogue is offered than before.
pub(super) async fn changed(offers: &mut Offers) {
    // Nobody offers anything any more: the gateway ends, or was told of no file.
    if offers.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::recipes::Catalogue;

    use super::*;

    pub(crate) fn signed(serial: u64) -> Vec<u8> {
        let made = Timestamp::UNIX_EPOCH;
        let expires = made + SignedDuration::from_hours(1);
        let catalogue = Catalogue { publisher: "p".into(), serial, made, expires, recipes: vec![], scripts: vec![] };
        serde_json::to_vec(&Envelope::seal(&catalogue, &PrivateKey::generate()).unwrap()).unwrap()
    }

    #[test]
    fn a_file_that_changes_is_offered_anew_and_one_that_breaks_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("recipes.json");
        let missing = read(&path).unwrap_err().to_string();
        assert!(missing.contains("recipes.json"), "{missing}");
        let [first, second] = [1, 2].map(signed);
        let (sender, mut offers) = watch::channel(None);
        let mut offered = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            look(&path, &sender);
            let is_new = offers.has_changed().unwrap();
            (is_new, offers.borrow_and_update().as_ref().unwrap().envelope.clone())
        };
        assert_eq!(offered(&first), (true, first.clone()));
        assert_eq!(offered(&first), (false, first.clone()));
        assert_eq!(offered(&second), (true, second.clone()));
        assert_eq!(offered(b"{"), (false, second.clone()));
        assert_eq!(offered(&vec![b' '; MAX_BYTES + 1]), (false, second));
        assert!(read(&path).unwrap_err().to_string().contains("at most 1000000 are allowed"));
    }
}
