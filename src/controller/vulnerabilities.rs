//! What is known of vulnerabilities: a directory that is looked at again and again.
//!
//! A directory that is refused changes nothing: what was read before counts. While nothing is known of KEV and EPSS, rules that ask
//! for them wait (`VulnerabilitiesUnknown`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use patchwarden_vulnerabilities::directory::{self, Stamp};
use tokio::sync::watch;

use super::metrics::VulnerabilityMetrics;
use super::now;
use crate::vulnerabilities::{NotRead, Vulnerabilities, read};

/// Between two looks at the files: the kubelet takes up to a minute to show a ConfigMap's change.
const PAUSE: Duration = Duration::from_secs(30);

/// What is known, and of which reading.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Another number for other data.
    pub(super) reading: u64,
    pub(super) vulnerabilities: Vulnerabilities,
}

/// How the directory was when it was read last, or why it could not be listed.
type Seen = Result<Stamp, String>;

/// Looks at the directory again and again.
pub(super) async fn watch(directory: PathBuf, known: watch::Sender<Known>, metrics: VulnerabilityMetrics) {
    let mut seen = None;
    loop {
        let (directory, before) = (directory.clone(), seen.clone());
        let looked = tokio::task::spawn_blocking(move || look(&directory, before.as_ref())).await;
        match looked {
            Ok((now_seen, outcome)) => {
                seen = Some(now_seen);
                if let Some(outcome) = outcome {
                    tell(outcome, &known, &metrics);
                }
            }
            Err(error) => tracing::error!(%error, "vulnerabilities: reading ended"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Nothing where the files are as they were.
fn look(directory: &Path, seen: Option<&Seen>) -> (Seen, Option<Result<Vulnerabilities, NotRead>>) {
    // Taken before: what is changed meanwhile is read again.
    let stamp = directory::stamp(directory).map_err(|error| error.to_string());
    let is_news = seen != Some(&stamp);
    (stamp, is_news.then(|| read(directory)))
}

fn tell(outcome: Result<Vulnerabilities, NotRead>, known: &watch::Sender<Known>, metrics: &VulnerabilityMetrics) {
    match outcome {
        Ok(vulnerabilities) => {
            let all = vulnerabilities.known.as_deref().into_iter().flatten();
            let exploited = all.clone().filter(|(_, it)| it.known_exploited).count();
            tracing::info!(exploited, all = all.count(), "vulnerability data are read");
            metrics.read.set(now().as_second());
            metrics.refused.set(0);
            known.send_if_modified(|known| {
                let is_news = known.vulnerabilities != vulnerabilities;
                if is_news {
                    *known = Known { reading: known.reading + 1, vulnerabilities };
                }
                is_news
            });
        }
        // It is read again at the next look.
        Err(error @ NotRead::Moving(_)) => tracing::info!(%error, "vulnerabilities"),
        Err(error) => {
            metrics.refused.set(1);
            tracing::error!(%error, "vulnerabilities: what was read before still counts, if anything was");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use patchwarden_vulnerabilities::Platform;

    use super::*;
    use crate::controller::metrics::Metrics;
    use crate::plan::model::{Probability, Vulnerability};

    const KEV: &str = "cveID,dateAdded\nCVE-2026-0001,2026-01-02\n";
    const OSV: &str = r#"{"id": "DEBIAN-CVE-2026-0001", "modified": "2026-01-02T03:04:05Z", "upstream": ["CVE-2026-0001"],
        "affected": [{"package": {"ecosystem": "Debian:12", "name": "openssl"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.0.17-1~deb12u2"}]}]}]}"#;
    const EPSS: &str = "cve,epss,percentile\nCVE-2026-0001,0.1,0.9\nCVE-2026-0002,0.2,0.9\n";

    #[test]
    fn both_lists_count_once_both_are_whole_and_a_bad_file_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let [kev, epss, osv] = ["kev.csv", "epss.csv", "osv.json"].map(|name| place.path().join(name));
        let metrics = Metrics::new().unwrap().vulnerabilities;
        let (sender, receiver) = watch::channel(Known::default());
        let mut seen = None;
        let mut see = |content: Option<(&PathBuf, &str)>| {
            if let Some((path, content)) = content {
                fs::write(path, content).unwrap();
            }
            let (stamp, outcome) = look(place.path(), seen.as_ref());
            seen = Some(stamp);
            if let Some(outcome) = outcome {
                tell(outcome, &sender, &metrics);
            }
            let known = receiver.borrow().clone();
            let told = known.vulnerabilities.known;
            let told = told.map(|it| it.iter().map(|(cve, it)| (cve.to_string(), *it)).collect::<Vec<_>>());
            (known.reading, told, metrics.refused.get())
        };
        assert_eq!(see(None), (0, None, 1));
        assert_eq!(see(Some((&kev, KEV))), (0, None, 1), "one alone is not enough");
        let of = |known_exploited, epss| Vulnerability { known_exploited, epss };
        let first = vec![
            ("CVE-2026-0001".to_owned(), of(true, Some(Probability(10_000)))),
            ("CVE-2026-0002".to_owned(), of(false, Some(Probability(20_000)))),
        ];
        assert_eq!(see(Some((&epss, EPSS))), (1, Some(first.clone()), 0));
        assert_eq!(see(None), (1, Some(first.clone()), 0));
        assert_eq!(see(Some((&epss, "cve,epss,percentile\nCVE-2026-0002,2,1\n"))), (1, Some(first.clone()), 1));
        assert_eq!(see(Some((&epss, &EPSS.replace('\n', "\r\n")))), (1, Some(first), 0), "it says the same");
        let second = vec![
            ("CVE-2026-0001".to_owned(), of(true, None)),
            ("CVE-2026-0009".to_owned(), of(false, Some(Probability(1)))),
        ];
        assert_eq!(
            see(Some((&epss, "cve,epss,percentile\nCVE-2026-0009,0.00001,0.1\n"))),
            (2, Some(second.clone()), 0)
        );
        assert_eq!(see(Some((&osv, "{}"))), (2, Some(second.clone()), 1), "of another format that is refused, too");
        assert_eq!(see(Some((&osv, OSV))), (3, Some(second), 0));
        let platform = Platform::of_device("debian", "12").unwrap();
        assert!(receiver.borrow().vulnerabilities.advisories.knows(&platform));
    }
}
