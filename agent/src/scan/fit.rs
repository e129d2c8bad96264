//! What of a scan a report has room for. Pure.
//!
//! What the schema of the report or its limits would refuse is refused as a whole: so nothing of the kind is ever sent.

use patchwarden_protocol::canonical;
use patchwarden_protocol::order::{MAX_ARCH, MAX_NAME, MAX_VERSION};
use patchwarden_protocol::report::{
    MAX_CVE, MAX_CVES, MAX_ID, MAX_ORIGIN, MAX_PACKAGES, MAX_REMOVABLE, MAX_REMOVABLE_BYTES, MAX_TITLE, MAX_UPDATES,
    MAX_UPDATES_BYTES, Problem, ProblemCode, Removable, Update,
};

use super::ReportError;
use crate::provider::bounded;

/// Canonical JSON has its numbers as IEEE 754 doubles (RFC 8785): larger integers would change.
const MAX_INTEGER: u64 = 1 << 53;

/// What a report has room for.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// Worst first.
    pub(super) kept: Vec<Update>,
    /// Whether something was left out.
    pub(super) truncated: bool,
    /// What never fits, with the reason.
    pub(super) too_large: Vec<String>,
}

/// In the order of a report.
pub(crate) fn worst_first(updates: &mut [Update]) {
    updates.sort_by(|a, b| {
        b.severity.cmp(&a.severity).then(a.classification.cmp(&b.classification)).then_with(|| a.id.cmp(&b.id))
    });
}

/// Worst first, within the limits. An update that does not fit does not hold back smaller ones below it. The worst one is
/// always in, or it would never be installed; but for one that never fits: the gateway refuses a report with that as a whole.
pub(super) fn cut(mut updates: Vec<Update>) -> Result<Cut, ReportError> {
    worst_first(&mut updates);
    let mut cut = Cut::default();
    // The brackets of the list.
    let mut bytes = 2;
    for update in updates {
        let Fitted { update, bytes: size, is_shortened } = match fitted(update)? {
            Ok(fitted) => fitted,
            Err(why) => {
                cut.too_large.push(why);
                cut.truncated = true;
                continue;
            }
        };
        cut.truncated |= is_shortened;
        if cut.kept.len() < MAX_UPDATES && bytes + size <= MAX_UPDATES_BYTES {
            bytes += size;
            cut.kept.push(update);
        } else {
            cut.truncated = true;
        }
    }
    Ok(cut)
}

/// An update that fits a report by itself.
struct Fitted {
    update: Update,
    /// In a list, with its comma.
    bytes: usize,
    /// Whether CVEs were left out.
    is_shortened: bool,
}

/// The update within the limits of a report, with as many of its CVEs as there is room for, the latest; or why it has none.
fn fitted(mut update: Update) -> Result<Result<Fitted, String>, ReportError> {
    update.title = bounded(&update.title, MAX_TITLE);
    update.origin = bounded(&update.origin, MAX_ORIGIN);
    update.size_bytes = update.size_bytes.min(MAX_INTEGER);
    let of_update = |why: String| format!("{}: {why}", bounded(&update.id, 80));
    if let Some(why) = over_limit(&update) {
        return Ok(Err(of_update(why)));
    }
    let all = update.cves.len();
    update.cves.retain(|cve| cve.chars().count() <= MAX_CVE);
    update.cves.drain(..update.cves.len().saturating_sub(MAX_CVES));
    loop {
        let bytes = canonical::to_bytes(&update)?.len() + 1;
        if bytes + 2 <= MAX_UPDATES_BYTES {
            let is_shortened = update.cves.len() < all;
            return Ok(Ok(Fitted { update, bytes, is_shortened }));
        }
        if update.cves.is_empty() {
            let packages = update.packages.len();
            return Ok(Err(of_update(format!("{packages} packages, {bytes} bytes of {MAX_UPDATES_BYTES}"))));
        }
        update.cves.remove(0);
    }
}

/// The first field that the schema of a report has no room for, and that cannot be cut.
fn over_limit(update: &Update) -> Option<String> {
    let too_long = |field: &str, text: &str, limit: usize| {
        let length = text.chars().count();
        (length > limit).then(|| format!("{field} has {length} characters of {limit}"))
    };
    let packages = update.packages.len();
    if packages == 0 || packages > MAX_PACKAGES {
        return Some(format!("{packages} packages of {MAX_PACKAGES}"));
    }
    if update.id.is_empty() || update.packages.iter().any(|package| package.name.is_empty()) {
        return Some("a name is missing".to_owned());
    }
    too_long("id", &update.id, MAX_ID).or_else(|| {
        update.packages.iter().find_map(|package| {
            too_long("package name", &package.name, MAX_NAME)
                .or_else(|| too_long("architecture", &package.arch, MAX_ARCH))
                .or_else(|| too_long("installed version", &package.installed, MAX_VERSION))
                .or_else(|| too_long("offered version", &package.candidate, MAX_VERSION))
        })
    })
}

pub(super) fn left_out(too_large: &[String]) -> Option<Problem> {
    let message = format!("left out, to be installed by hand: {}", too_large.join("; "));
    (!too_large.is_empty()).then_some(Problem { code: ProblemCode::UpdateTooLarge, message })
}

/// The latest first, within the limits. One that does not fit does not hold back smaller ones.
pub(super) fn cut_removable(removable: Vec<Removable>) -> Result<Vec<Removable>, ReportError> {
    let mut kept = Vec::new();
    // The brackets of the list.
    let mut bytes = 2;
    for entry in removable {
        let size = canonical::to_bytes(&entry)?.len() + 1;
        if kept.len() < MAX_REMOVABLE && bytes + size <= MAX_REMOVABLE_BYTES && entry.packages.len() <= MAX_PACKAGES {
            bytes += size;
            kept.push(entry);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::report::{Classification, Severity};

    use super::*;
    use crate::scan::tests::update;

    fn ids(updates: &[Update]) -> Vec<&str> {
        updates.iter().map(|update| update.id.as_str()).collect()
    }

    #[test]
    fn the_worst_updates_come_first() {
        use Classification::{Security, Unclassified, Updates};
        let updates = vec![
            update("a", Severity::Unknown, Unclassified, 1),
            update("d", Severity::Unknown, Security, 1),
            update("c", Severity::Unknown, Security, 1),
            update("b", Severity::High, Updates, 1),
        ];
        let Cut { kept, truncated, too_large } = cut(updates).unwrap();
        assert_eq!((ids(&kept), truncated, too_large), (vec!["b", "c", "d", "a"], false, vec![]));
    }

    #[test]
    fn a_report_is_cut_and_says_so() {
        let security = Classification::Security;
        let many = (0..30).map(|n| update(&format!("{n:02}"), Severity::Unknown, security, 1)).collect();
        let Cut { kept, truncated, too_large } = cut(many).unwrap();
        assert!(truncated && too_large.is_empty() && !kept.is_empty() && kept.len() <= MAX_UPDATES);
        assert!(canonical::to_bytes(&kept).unwrap().len() <= MAX_UPDATES_BYTES);
        // What does not fit beside a worse one comes in a later pass.
        let medium = vec![update("a", Severity::High, security, 40), update("b", Severity::Unknown, security, 40)];
        let Cut { kept, truncated, too_large } = cut(medium).unwrap();
        assert_eq!((ids(&kept), truncated, too_large), (vec!["a"], true, vec![]));
    }

    #[test]
    fn an_update_that_never_fits_does_not_hold_back_the_others_and_is_named() {
        let small = || update("small", Severity::Unknown, Classification::Security, 1);
        let worst = |packages| update("worst", Severity::Critical, Classification::Security, packages);
        let changed = |change: &dyn Fn(&mut Update)| {
            let mut update = worst(2);
            change(&mut update);
            update
        };
        let long = |limit: usize| "x".repeat(limit + 1);
        for (bad, words) in [
            (worst(100), "worst: 100 packages, "),
            (worst(129), "worst: 129 packages of 128"),
            (worst(0), "worst: 0 packages of 128"),
            (changed(&|u| u.id = long(MAX_ID)), "id has 254 characters of 253"),
            (changed(&|u| u.id = String::new()), "a name is missing"),
            (changed(&|u| u.packages[1].name = long(MAX_NAME)), "worst: package name has 129 characters of 128"),
            (changed(&|u| u.packages[1].arch = long(MAX_ARCH)), "worst: architecture has 21 characters of 20"),
            (changed(&|u| u.packages[0].installed = long(MAX_VERSION)), "worst: installed version has 129"),
            (changed(&|u| u.packages[0].candidate = long(MAX_VERSION)), "worst: offered version has 129"),
        ] {
            let Cut { kept, truncated, too_large } = cut(vec![bad, small()]).unwrap();
            assert_eq!((ids(&kept), truncated), (vec!["small"], true));
            let problem = left_out(&too_large).unwrap();
            assert_eq!(problem.code, ProblemCode::UpdateTooLarge);
            assert!(problem.message.contains(words), "{}", problem.message);
        }
    }

    #[test]
    fn what_can_be_cut_of_an_update_is_cut() {
        let mut large = update("a", Severity::High, Classification::Security, 60);
        large.title = "é".repeat(300);
        large.origin = "x".repeat(300);
        large.size_bytes = u64::MAX;
        large.cves = (0..70).map(|n| format!("CVE-2026-{n:04}")).collect();
        large.cves.push("x".repeat(21));
        let Cut { kept, truncated, too_large } = cut(vec![large]).unwrap();
        assert_eq!((ids(&kept), truncated, too_large), (vec!["a"], true, vec![]));
        assert!(canonical::to_bytes(&kept).unwrap().len() <= MAX_UPDATES_BYTES);
        let Update { title, origin, size_bytes, cves, .. } = &kept[0];
        assert!(title.chars().count() <= MAX_TITLE && origin.len() <= MAX_ORIGIN && *size_bytes <= MAX_INTEGER);
        assert!(cves.len() < MAX_CVES && cves.last().unwrap() == "CVE-2026-0069", "the latest: {cves:?}");
    }

    #[test]
    fn what_can_be_taken_back_is_cut_from_the_oldest_on() {
        let entry = |id: &str, packages| {
            let Update { id, packages, artifacts_digest, .. } =
                update(id, Severity::Unknown, Classification::Updates, packages);
            Removable { id, packages, artifacts_digest }
        };
        let names = |kept: &[Removable]| kept.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>();
        let kept = cut_removable((0..20).map(|n| entry(&format!("{n}"), 1)).collect()).unwrap();
        assert_eq!(names(&kept), (0..kept.len()).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(!kept.is_empty() && kept.len() <= MAX_REMOVABLE);
        assert!(canonical::to_bytes(&kept).unwrap().len() <= MAX_REMOVABLE_BYTES);
        let kept = cut_removable(vec![entry("large", 60), entry("small", 1)]).unwrap();
        assert_eq!(names(&kept), ["small"]);
    }
}
