//! Vulnerability data: a directory of files, which are imported into the store, all or none, whenever any of them changes.
//!
//! What is refused is told once for each change, in the log and by a metric; what was imported before goes on counting.

pub mod fetch;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchwarden_vulnerabilities::directory::{Entry, Stamp, Summary, digest, read, stamp};
use patchwarden_vulnerabilities::{ReadError, Refused};
use tokio::sync::mpsc;

use super::metrics::VulnerabilityMetrics;
use crate::shell;
use crate::store::{Store, StoreError};

/// Between two looks at the files: the kubelet takes up to a minute to show a ConfigMap's change.
const PAUSE: Duration = Duration::from_secs(30);

/// What one transaction adds: so many things, of which a CVE, a version and an architecture is one each. It takes some milliseconds.
const BATCH: usize = 2_000;

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum NotImported {
    /// A file is not as it must be.
    #[error("vulnerabilities: {0}")]
    Read(#[from] ReadError),
    /// The store.
    #[error("vulnerabilities: {0}")]
    Store(#[from] StoreError),
    /// Somebody writes to the directory.
    #[error("vulnerabilities: {} changed while it was read: it is read again", .0.display())]
    Moving(PathBuf),
    /// Another gateway.
    #[error("vulnerabilities: another gateway imports them")]
    Elsewhere,
    /// The thread that reads.
    #[error("vulnerabilities: reading ended: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// Reads a directory as it would be imported, and says what is in it.
pub fn check(directory: &Path) -> Result<String, ReadError> {
    let summary = read(directory, &mut |_| Ok(()))?;
    Ok(told(&summary))
}

fn told(summary: &Summary) -> String {
    let Summary { files, records, statements, exploited, likelihoods, withdrawn, unreadable, left_out } = summary;
    let mut text = format!(
        "{files} files, {records} records: {statements} statements about packages, {exploited} vulnerabilities known to be \
         exploited, {likelihoods} likelihoods\n"
    );
    let mut line = |count: &u64, what: &str| {
        if *count > 0 {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "left out: {count} {what}");
        }
    };
    line(withdrawn, "withdrawn records");
    line(unreadable, "statements with a version that the package manager would not take");
    for (kind, count) in left_out {
        line(count, &format!("about {kind}"));
    }
    text
}

/// Looks at the directory again and again.
pub(super) async fn watch(directory: PathBuf, store: Store, metrics: VulnerabilityMetrics) {
    let mut seen = None;
    loop {
        look(&directory, &store, &metrics, &mut seen).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(
    directory: &Path,
    store: &Store,
    metrics: &VulnerabilityMetrics,
    seen: &mut Option<Result<Stamp, String>>,
) {
    let stamped = blocking(directory, stamp).await;
    // What cannot be listed is told once, too.
    let now = stamped.as_ref().map(Clone::clone).map_err(ToString::to_string);
    if seen.as_ref() == Some(&now) {
        return;
    }
    let outcome = match stamped {
        Ok(stamped) => import(directory, store, &stamped).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(Some(summary)) => {
            metrics.imports.with_label_values(&["imported"]).inc();
            metrics.imported.set(shell::now().as_second());
            metrics.refused.set(0);
            let Summary { files, records, statements, exploited, likelihoods, withdrawn, unreadable, left_out } =
                summary;
            let left_out: u64 = left_out.values().sum();
            tracing::info!(
                directory = %directory.display(), files, records, statements, exploited, likelihoods, withdrawn, unreadable,
                left_out, "vulnerability data are imported"
            );
        }
        Ok(None) => metrics.refused.set(0),
        // Whether it has is seen at the next look.
        Err(NotImported::Elsewhere) => return,
        Err(error) => {
            let is_refused = matches!(error, NotImported::Read(ReadError::Refused(_)));
            metrics.imports.with_label_values(&[if is_refused { "refused" } else { "failed" }]).inc();
            metrics.refused.set(i64::from(is_refused));
            tracing::error!(%error, "the vulnerability data that were imported before still count");
            if !is_refused {
                return;
            }
        }
    }
    *seen = Some(now);
}

/// Imports what is not imported already. Nothing where it is.
async fn import(directory: &Path, store: &Store, before: &Stamp) -> Result<Option<Summary>, NotImported> {
    let digested = blocking(directory, digest).await?;
    // What a gateway that ended left behind.
    store.prune_vulnerabilities(shell::now()).await?;
    if store.vulnerabilities_digest().await?.as_ref() == Some(&digested) {
        return Ok(None);
    }
    let begun = store.begin_vulnerabilities(&digested, shell::now()).await?;
    let mut import = begun.ok_or(NotImported::Elsewhere)?;
    let (sender, mut batches) = mpsc::channel(1);
    let path = directory.to_owned();
    let reading = tokio::task::spawn_blocking(move || in_batches(&path, &sender));
    while let Some(batch) = batches.recv().await {
        store.add_vulnerabilities(&mut import, &batch).await?;
    }
    let summary = reading.await??;
    if blocking(directory, stamp).await? != *before {
        return Err(NotImported::Moving(directory.to_owned()));
    }
    store.finish_vulnerabilities(import, shell::now()).await?;
    store.prune_vulnerabilities(shell::now()).await?;
    Ok(Some(summary))
}

fn in_batches(directory: &Path, sender: &mpsc::Sender<Vec<Entry>>) -> Result<Summary, ReadError> {
    let mut batch = Vec::new();
    let mut weight = 0;
    let summary = read(directory, &mut |entry| {
        weight += weight_of(&entry);
        batch.push(entry);
        if weight < BATCH {
            return Ok(());
        }
        weight = 0;
        sender.blocking_send(std::mem::take(&mut batch)).map_err(|_| ReadError::Stopped)
    })?;
    sender.blocking_send(batch).map_err(|_| ReadError::Stopped)?;
    Ok(summary)
}

fn weight_of(entry: &Entry) -> usize {
    match entry {
        Entry::Statement(it) => {
            1 + it.cves.len() + it.arches.len() + it.affected.spans.len() + it.affected.versions.len()
        }
        Entry::Exploited { .. } | Entry::Likelihood { .. } => 1,
    }
}

async fn blocking<T: Send + 'static>(
    directory: &Path,
    work: fn(&Path) -> Result<T, Refused>,
) -> Result<T, NotImported> {
    let path = directory.to_owned();
    Ok(tokio::task::spawn_blocking(move || work(&path)).await?.map_err(ReadError::from)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use patchwarden_vulnerabilities::Platform;

    use super::*;
    use crate::gateway::metrics::Metrics;
    use crate::store::Exploitation;
    use crate::store::testing::{Temporary, on_both};

    on_both!(
        files_are_imported_when_they_change_and_a_bad_one_changes_nothing,
        what_was_imported_before_a_restart_is_not_imported_again,
        an_import_that_is_not_finished_counts_for_nothing_and_is_deleted,
        kev_and_epss_of_one_vulnerability_are_told_together,
    );

    const RECORD: &str = r#"{"id": "DSA-1-1", "modified": "2026-01-01T00:00:00Z", "upstream": ["CVE-2026-0001"], "affected": [
        {"package": {"ecosystem": "Debian:12", "name": "openssl"},
         "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "FIXED"}]}]}]}"#;

    fn record(fixed: &str) -> String {
        RECORD.replace("FIXED", fixed)
    }

    struct World<'a> {
        db: &'a Temporary,
        place: tempfile::TempDir,
        metrics: VulnerabilityMetrics,
        seen: Option<Result<Stamp, String>>,
    }

    impl<'a> World<'a> {
        fn new(db: &'a Temporary) -> Self {
            let metrics = Metrics::new().unwrap().vulnerabilities;
            Self { db, place: tempfile::tempdir().unwrap(), metrics, seen: None }
        }

        async fn write(&mut self, name: &str, content: &str) {
            fs::write(self.place.path().join(name), content).unwrap();
            self.look().await;
        }

        async fn look(&mut self) {
            look(self.place.path(), &self.db.store, &self.metrics, &mut self.seen).await;
        }

        /// What has the fix, and how often there was an import, and a refusal.
        async fn told(&self) -> (Vec<String>, u64, u64) {
            let debian = Platform::of_device("debian", "12.1").unwrap();
            let statements = self.db.store.statements(&debian, "openssl").await.unwrap();
            let fixed = statements.iter().map(|it| it.affected.fixed_in(debian.order(), "0").unwrap().to_owned());
            let count = |result| self.metrics.imports.with_label_values(&[result]).get();
            (fixed.collect(), count("imported"), count("refused"))
        }
    }

    async fn files_are_imported_when_they_change_and_a_bad_one_changes_nothing(db: &Temporary) {
        let mut world = World::new(db);
        world.look().await;
        assert_eq!(world.told().await, (vec![], 0, 1), "an empty directory is no data");
        world.write("a.json", &record("1.2")).await;
        let first = vec!["1.2".to_owned()];
        assert_eq!(world.told().await, (first.clone(), 1, 1));
        world.look().await;
        assert_eq!(world.told().await, (first.clone(), 1, 1), "nothing has changed");

        world.write("b.json", &record("1.10")[..100]).await;
        assert_eq!(world.told().await, (first.clone(), 1, 2));
        assert_eq!(world.metrics.refused.get(), 1);
        world.look().await;
        assert_eq!(world.told().await, (first.clone(), 1, 2), "it is told once");

        world.write("b.json", &record("1.10")).await;
        assert_eq!(world.told().await, (vec!["1.2".to_owned(), "1.10".to_owned()], 2, 2));
        assert_eq!(world.metrics.refused.get(), 0);
        fs::remove_file(world.place.path().join("a.json")).unwrap();
        world.look().await;
        assert_eq!(world.told().await, (vec!["1.10".to_owned()], 3, 2));
    }

    async fn what_was_imported_before_a_restart_is_not_imported_again(db: &Temporary) {
        let mut world = World::new(db);
        world.write("a.json", &record("1.2")).await;
        world.seen = None;
        world.look().await;
        assert_eq!(world.told().await, (vec!["1.2".to_owned()], 1, 0));
    }

    async fn an_import_that_is_not_finished_counts_for_nothing_and_is_deleted(db: &Temporary) {
        let mut world = World::new(db);
        world.write("a.json", &record("1.2")).await;
        let store = world.db.store.clone();
        // Longer ago than another gateway may take.
        let begun = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut torn = store.begin_vulnerabilities("other", begun).await.unwrap().unwrap();
        let likely = Entry::Likelihood { cve: "CVE-2026-0001".into(), epss: 1 };
        store.add_vulnerabilities(&mut torn, &[likely]).await.unwrap();
        assert_eq!(store.exploitation("CVE-2026-0001").await.unwrap(), Exploitation::default());
        world.write("a.json", &record("1.3")).await;
        assert_eq!(world.told().await, (vec!["1.3".to_owned()], 2, 0));
        let finished = store.finish_vulnerabilities(torn, shell::now()).await;
        assert!(matches!(finished, Err(StoreError::ImportGone)), "{finished:?}");
        assert_eq!(world.told().await.0, ["1.3"], "its rows are gone");
    }

    #[tokio::test]
    async fn of_several_gateways_one_imports_and_the_others_wait_for_it() {
        let db = Temporary::postgres().await;
        let mut world = World::new(&db);
        fs::write(world.place.path().join("a.json"), record("1.2")).unwrap();
        let digested = digest(world.place.path()).unwrap();
        let other = db.store.begin_vulnerabilities(&digested, shell::now()).await.unwrap().unwrap();
        world.look().await;
        assert_eq!(world.told().await, (vec![], 0, 0), "the other one's import is neither doubled nor deleted");
        db.store.finish_vulnerabilities(other, shell::now()).await.unwrap();
        world.look().await;
        assert_eq!(world.told().await, (vec![], 0, 0), "what the other one has imported counts");
        world.write("a.json", &record("1.3")).await;
        assert_eq!(world.told().await, (vec!["1.3".to_owned()], 1, 0));
    }

    async fn kev_and_epss_of_one_vulnerability_are_told_together(db: &Temporary) {
        let mut world = World::new(db);
        fs::write(world.place.path().join("a.csv"), "cve,epss,percentile\nCVE-2026-0001,0.12345,0.9\n").unwrap();
        world.write("b.csv", "cveID,dateAdded\nCVE-2026-0001,2026-01-02\nCVE-2026-0002,2026-01-03\n").await;
        let known = |cve| world.db.store.exploitation(cve);
        let expected = Exploitation { added: Some("2026-01-02".parse().unwrap()), epss: Some(12_345) };
        assert_eq!(known("CVE-2026-0001").await.unwrap(), expected);
        assert_eq!(known("CVE-2026-0002").await.unwrap().epss, None);
        assert_eq!(known("CVE-2026-0003").await.unwrap(), Exploitation::default());
    }

    #[test]
    fn a_check_says_what_is_there_or_what_is_wrong() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("a.json"), record("1.2")).unwrap();
        fs::write(place.path().join("b.json"), record("<end>").replace("Debian:12", "Debian:sid")).unwrap();
        let said = check(place.path()).unwrap();
        let expected = "2 files, 2 records: 1 statements about packages, 0 vulnerabilities known to be exploited, 0 likelihoods\n\
                        left out: 1 about Debian:sid\n";
        assert_eq!(said, expected);
        fs::write(place.path().join("c.csv"), "x,y\n").unwrap();
        let said = check(place.path()).unwrap_err().to_string();
        assert!(said.ends_with("c.csv: line 1: has no column cveID: this is no KEV catalogue"), "{said}");
    }
}
