//! Which vulnerabilities are known to be exploited (KEV), and how likely that is of others (EPSS), for rules that ask it.
//!
//! The controller reads both files itself: what they say can approve updates, and the gateway must not be able to. Both are needed:
//! with one alone a rule that asks for the other would never match, and the rules after it would decide instead. While there is
//! nothing such rules wait (`VulnerabilitiesUnknown`). A file that is refused changes nothing: what was read before counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use patchwarden_vulnerabilities::{ReadError, Refused, read_epss, read_kev};
use tokio::sync::watch;

use super::metrics::VulnerabilityMetrics;
use super::now;
use crate::plan::model::{Name, Probability, Vulnerability};

/// Between two looks at the files: the kubelet takes up to a minute to show a ConfigMap's change.
const PAUSE: Duration = Duration::from_secs(30);

/// The two files.
#[derive(Clone, Debug)]
pub struct Files {
    /// CISA's catalogue, JSON or CSV.
    pub kev: PathBuf,
    /// FIRST's list, CSV, perhaps packed with gzip.
    pub epss: PathBuf,
}

/// What is known, and of which reading.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Another number for other data.
    pub(super) reading: u64,
    pub(super) vulnerabilities: Option<Arc<BTreeMap<Name, Vulnerability>>>,
}

/// Length of each file, and when it was changed; nothing of one that is not there.
type Stamp = [Option<(u64, Option<SystemTime>)>; 2];

fn stamp(files: &Files) -> Stamp {
    [&files.kev, &files.epss].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()))
    })
}

/// Both files, whole.
fn read(files: &Files) -> Result<BTreeMap<Name, Vulnerability>, ReadError> {
    let mut known: BTreeMap<Name, Vulnerability> = BTreeMap::new();
    read_epss(&files.epss, &mut |cve, epss| {
        known.insert(cve.into(), Vulnerability { known_exploited: false, epss: Some(Probability(epss)) });
    })?;
    let exploited = read_kev(&files.kev).map_err(|refused: Refused| ReadError::Refused(refused))?;
    for cve in exploited.into_keys() {
        known.entry(cve.into()).or_default().known_exploited = true;
    }
    Ok(known)
}

/// Looks at the files again and again.
pub(super) async fn watch(files: Files, known: watch::Sender<Known>, metrics: VulnerabilityMetrics) {
    let mut seen = None;
    loop {
        let files = files.clone();
        let looked = tokio::task::spawn_blocking(move || look(&files, seen)).await;
        match looked {
            Ok((stamp, outcome)) => {
                seen = Some(stamp);
                if let Some(outcome) = outcome {
                    tell(outcome, &known, &metrics);
                }
            }
            Err(error) => tracing::error!(%error, "vulnerabilities: reading ended"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

type Outcome = Result<BTreeMap<Name, Vulnerability>, ReadError>;

/// Nothing where the files are as they were.
fn look(files: &Files, seen: Option<Stamp>) -> (Stamp, Option<Outcome>) {
    // Taken before: what is changed meanwhile is read again.
    let stamp = stamp(files);
    (stamp, (seen != Some(stamp)).then(|| read(files)))
}

fn tell(outcome: Outcome, known: &watch::Sender<Known>, metrics: &VulnerabilityMetrics) {
    match outcome {
        Ok(vulnerabilities) => {
            let exploited = vulnerabilities.values().filter(|it| it.known_exploited).count();
            tracing::info!(exploited, all = vulnerabilities.len(), "vulnerability data are read");
            metrics.read.set(now().as_second());
            metrics.refused.set(0);
            known.send_if_modified(|known| {
                let is_news = known.vulnerabilities.as_deref() != Some(&vulnerabilities);
                if is_news {
                    *known = Known { reading: known.reading + 1, vulnerabilities: Some(Arc::new(vulnerabilities)) };
                }
                is_news
            });
        }
        Err(error) => {
            metrics.refused.set(1);
            tracing::error!(%error, "vulnerabilities: what was read before still counts, if anything was");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::controller::metrics::Metrics;

    const KEV: &str = "cveID,dateAdded\nCVE-2026-0001,2026-01-02\n";
    const EPSS: &str = "cve,epss,percentile\nCVE-2026-0001,0.1,0.9\nCVE-2026-0002,0.2,0.9\n";

    #[test]
    fn both_files_count_once_both_are_whole_and_a_bad_one_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let files = Files { kev: place.path().join("kev.csv"), epss: place.path().join("epss.csv") };
        let metrics = Metrics::new().unwrap().vulnerabilities;
        let (sender, receiver) = watch::channel(Known::default());
        let mut seen = None;
        let mut see = |content: Option<(&PathBuf, &str)>| {
            if let Some((path, content)) = content {
                fs::write(path, content).unwrap();
            }
            let (stamp, outcome) = look(&files, seen);
            seen = Some(stamp);
            if let Some(outcome) = outcome {
                tell(outcome, &sender, &metrics);
            }
            let known = receiver.borrow().clone();
            let told =
                known.vulnerabilities.map(|it| it.iter().map(|(cve, it)| (cve.to_string(), *it)).collect::<Vec<_>>());
            (known.reading, told, metrics.refused.get())
        };
        assert_eq!(see(None), (0, None, 1));
        assert_eq!(see(Some((&files.kev, KEV))), (0, None, 1), "one alone is not enough");
        let of = |known_exploited, epss| Vulnerability { known_exploited, epss };
        let first = vec![
            ("CVE-2026-0001".to_owned(), of(true, Some(Probability(10_000)))),
            ("CVE-2026-0002".to_owned(), of(false, Some(Probability(20_000)))),
        ];
        assert_eq!(see(Some((&files.epss, EPSS))), (1, Some(first.clone()), 0));
        assert_eq!(see(None), (1, Some(first.clone()), 0));
        assert_eq!(see(Some((&files.epss, "cve,epss,percentile\nCVE-2026-0002,2,1\n"))), (1, Some(first.clone()), 1));
        assert_eq!(see(Some((&files.epss, &EPSS.replace('\n', "\r\n")))), (1, Some(first), 0), "it says the same");
        let second = vec![
            ("CVE-2026-0001".to_owned(), of(true, None)),
            ("CVE-2026-0009".to_owned(), of(false, Some(Probability(1)))),
        ];
        assert_eq!(see(Some((&files.epss, "cve,epss,percentile\nCVE-2026-0009,0.00001,0.1\n"))), (2, Some(second), 0));
    }
}
