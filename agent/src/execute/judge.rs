//! Whether what the package manager would do is what was ordered. Pure.

use patchwarden_protocol::order::{Dependencies, PackageChange};
use patchwarden_protocol::result::ResultReason;

use crate::provider::{self, Change, Direction, Failure, Installed, Simulation, bounded};

/// Longest message: an action's has room for 1000.
const MAX_MESSAGE: usize = 900;

/// Every line of the simulation must be covered by `allowed`, or be a new package that `dependencies` allows; and it
/// must bring each of `wanted` to its version, unless the database (`rows`) has it there already.
pub(super) fn judge(
    simulation: &Simulation,
    wanted: &[PackageChange],
    allowed: &[PackageChange],
    dependencies: Dependencies,
    rows: &[Installed],
) -> Result<(), Failure> {
    let more = simulation.beyond(allowed, dependencies);
    if !more.is_empty() {
        let message = bounded(&format!("the package manager would also {}", more.join(", ")), MAX_MESSAGE);
        return Err(Failure::new(ResultReason::WouldDoMore, message));
    }
    let changes = &simulation.changes;
    let mut moved: Vec<String> = changes
        .iter()
        .filter_map(|change| Some((ordered(allowed, change)?, change.old.as_deref())))
        .filter(|(ordered, old)| match old {
            // The candidate itself as the old version: completing what was interrupted.
            Some(old) => *old != ordered.installed && *old != ordered.candidate,
            None => !ordered.is_first_install(),
        })
        .map(|(ordered, old)| planned_from(ordered, old))
        .collect();
    let mut left = Vec::new();
    for package in wanted {
        let changes_it = changes.iter().any(|change| change.name == package.name && change.arch == package.arch);
        if changes_it || is_done(rows, package) {
            continue;
        }
        match provider::row(rows, package) {
            Some(row) if row.version == package.installed => {
                left.push(format!("{} would stay at {}", package.name, row.version));
            }
            // Left so by a run that was interrupted.
            Some(row) if row.version == package.candidate => {
                moved.push(format!("{} is at {} already, not complete", package.name, row.version));
            }
            row => moved.push(planned_from(package, row.map(|row| row.version.as_str()))),
        }
    }
    if !moved.is_empty() {
        return Err(Failure::new(ResultReason::ReportMismatch, bounded(&moved.join(", "), MAX_MESSAGE)));
    }
    if !left.is_empty() {
        return Err(Failure::new(ResultReason::PackageManagerFailed, bounded(&left.join(", "), MAX_MESSAGE)));
    }
    Ok(())
}

fn ordered<'a>(allowed: &'a [PackageChange], change: &Change) -> Option<&'a PackageChange> {
    allowed.iter().find(|ordered| ordered.name == change.name && ordered.arch == change.arch)
}

/// Each of `wanted` that is there is at the version that the order was planned from, or has been brought to its own.
pub(super) fn check_versions(wanted: &[PackageChange], rows: &[Installed]) -> Result<(), Failure> {
    let moved: Vec<String> = wanted
        .iter()
        .filter_map(|package| provider::row(rows, package).map(|row| (package, row.version.as_str())))
        .filter(|(package, version)| *version != package.installed && *version != package.candidate)
        .map(|(package, version)| planned_from(package, Some(version)))
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    Err(Failure::new(ResultReason::ReportMismatch, bounded(&moved.join(", "), MAX_MESSAGE)))
}

/// Nothing goes the other way: an install brings no package to an earlier version, taking back none to a later one. Each of
/// `moves` is a name with the version that is there and the one to come.
pub(super) fn check_direction<'a>(
    direction: Direction,
    moves: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>,
    comes_after: impl Fn(&str, &str, &str) -> bool,
) -> Result<(), Failure> {
    let wrong: Vec<String> = moves
        .into_iter()
        .filter_map(|(name, there, new)| match direction {
            // What is removed goes to no version.
            Direction::Forward | Direction::Removing => (!new.is_empty() && comes_after(name, there, new))
                .then(|| format!("downgrade {name} from {there} to {new}")),
            Direction::Back => comes_after(name, new, there).then(|| format!("upgrade {name} from {there} to {new}")),
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let message = bounded(&format!("the package manager would {}", wrong.join(", ")), MAX_MESSAGE);
    Err(Failure::new(ResultReason::WouldDoMore, message))
}

/// Whether the database has the package at its ordered version, whole; or has it not, where it is ordered away.
pub(super) fn is_done(rows: &[Installed], package: &PackageChange) -> bool {
    match provider::row(rows, package) {
        Some(row) => row.version == package.candidate && row.complete,
        None => package.is_removal(),
    }
}

/// Whether the package is at the version that the order was planned from; not there at all, if that is none.
pub(super) fn is_as_before(rows: &[Installed], package: &PackageChange) -> bool {
    match provider::row(rows, package) {
        Some(row) => row.version == package.installed,
        None => package.is_first_install(),
    }
}

fn planned_from(package: &PackageChange, found: Option<&str>) -> String {
    let at = |version: &str| if version.is_empty() { "not installed".to_owned() } else { format!("at {version}") };
    let before = if package.is_first_install() { "its not being there" } else { &package.installed };
    format!("{} is {}, the order was planned from {before}", package.name, at(found.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(name: &str) -> PackageChange {
        PackageChange { name: name.into(), arch: "amd64".into(), installed: "1".into(), candidate: "2".into() }
    }

    fn change(name: &str, old: Option<&str>, new: &str) -> Change {
        Change {
            name: name.into(),
            arch: "amd64".into(),
            old: old.map(Into::into),
            new: new.into(),
            origin: String::new(),
        }
    }

    fn at(name: &str, version: &str, complete: bool) -> Installed {
        Installed { name: name.into(), arch: "amd64".into(), version: version.into(), source: name.into(), complete }
    }

    #[test]
    fn only_what_is_ordered_passes() {
        use Dependencies::{AllowAll, AllowInstalls, Strict};
        use ResultReason::{PackageManagerFailed, ReportMismatch, WouldDoMore};
        let upgrade = || change("a", Some("1"), "2");
        let plain = |changes| Simulation { changes, ..Simulation::default() };
        let table: Vec<(&str, Simulation, Dependencies, Result<(), ResultReason>)> = vec![
            ("exactly the order", plain(vec![upgrade()]), Strict, Ok(())),
            ("completing it", plain(vec![change("a", Some("2"), "2")]), Strict, Ok(())),
            ("another ordered one", plain(vec![upgrade(), change("b", Some("1"), "2")]), Strict, Ok(())),
            ("a new package", plain(vec![upgrade(), change("n", None, "5")]), AllowInstalls, Ok(())),
            ("a new package, strictly", plain(vec![upgrade(), change("n", None, "5")]), Strict, Err(WouldDoMore)),
            ("another upgrade", plain(vec![upgrade(), change("x", Some("1"), "2")]), AllowInstalls, Err(WouldDoMore)),
            ("another upgrade, allowed", plain(vec![upgrade(), change("x", Some("1"), "2")]), AllowAll, Ok(())),
            ("a later version", plain(vec![change("a", Some("1"), "3")]), AllowInstalls, Err(WouldDoMore)),
            ("a later version in any case", plain(vec![change("a", Some("1"), "3")]), AllowAll, Err(WouldDoMore)),
            (
                "another architecture",
                plain(vec![upgrade(), Change { arch: "i386".into(), ..upgrade() }]),
                AllowInstalls,
                Err(WouldDoMore),
            ),
            (
                "a removal",
                Simulation { changes: vec![upgrade()], removals: vec!["x".into()], ..Simulation::default() },
                AllowInstalls,
                Err(WouldDoMore),
            ),
            (
                "a removal, allowed",
                Simulation { changes: vec![upgrade()], removals: vec!["x".into()], ..Simulation::default() },
                AllowAll,
                Ok(()),
            ),
            (
                "a removal of what is ordered",
                Simulation { changes: vec![upgrade()], removals: vec!["b".into()], ..Simulation::default() },
                AllowAll,
                Err(WouldDoMore),
            ),
            (
                "another's unfinished work in any case",
                Simulation { changes: vec![upgrade()], configures: vec!["x".into()], ..Simulation::default() },
                AllowAll,
                Err(WouldDoMore),
            ),
            (
                "another's unfinished work",
                Simulation { changes: vec![upgrade()], configures: vec!["x".into()], ..Simulation::default() },
                AllowInstalls,
                Err(WouldDoMore),
            ),
            ("from another version", plain(vec![change("a", Some("1.5"), "2")]), Strict, Err(ReportMismatch)),
            ("an installation of an upgrade", plain(vec![change("a", None, "2")]), Strict, Err(ReportMismatch)),
            ("nothing at all", plain(vec![]), Strict, Err(PackageManagerFailed)),
        ];
        for (name, simulation, dependencies, expected) in table {
            let allowed = [ordered("a"), ordered("b")];
            let found = judge(&simulation, &allowed[..1], &allowed, dependencies, &[at("a", "1", true)]);
            assert_eq!(found.map_err(|failure| failure.reason), expected, "{name}");
        }
    }

    #[test]
    fn what_does_not_change_must_be_there_already() {
        let wanted = [ordered("a")];
        let found = |rows: &[Installed]| judge(&Simulation::default(), &wanted, &wanted, Dependencies::Strict, rows);
        let mismatch = |words: &str| Err(Failure::new(ResultReason::ReportMismatch, words));
        assert_eq!(found(&[at("a", "2", true)]), Ok(()));
        assert_eq!(found(&[at("a", "2", false)]), mismatch("a is at 2 already, not complete"));
        assert_eq!(found(&[at("a", "3", true)]), mismatch("a is at 3, the order was planned from 1"));
        assert_eq!(found(&[]), mismatch("a is not installed, the order was planned from 1"));
    }

    #[test]
    fn an_install_goes_forward_and_taking_back_goes_back() {
        use Direction::{Back, Forward};
        let check = |direction, moves: &[(&str, &str, &str)]| {
            check_direction(direction, moves.iter().copied(), |_, a, b| a > b).map_err(|failure| failure.message)
        };
        let (up, down, same) = (("a", "1", "2"), ("b", "2", "1"), ("c", "2", "2"));
        assert_eq!((check(Forward, &[up, same]), check(Back, &[down, same])), (Ok(()), Ok(())));
        let wrong = check(Forward, &[up, down]).unwrap_err();
        assert_eq!(wrong, "the package manager would downgrade b from 2 to 1");
        assert_eq!(check(Back, &[up, down]).unwrap_err(), "the package manager would upgrade a from 1 to 2");
    }

    #[test]
    fn an_order_is_for_the_versions_that_it_was_planned_from() {
        let found = |rows: &[Installed]| check_versions(&[ordered("a")], rows).map_err(|failure| failure.message);
        for rows in [vec![], vec![at("a", "1", true)], vec![at("a", "2", false)], vec![at("b", "3", true)]] {
            assert_eq!(found(&rows), Ok(()), "{rows:?}");
        }
        assert_eq!(found(&[at("a", "3", true)]).unwrap_err(), "a is at 3, the order was planned from 1");
    }

    #[test]
    fn the_message_lists_what_more_would_be_done() {
        let simulation = Simulation {
            changes: vec![change("x", Some("1"), "2"), change("n", None, "5")],
            removals: vec!["old".into()],
            ..Simulation::default()
        };
        let failure = judge(&simulation, &[], &[], Dependencies::Strict, &[]).unwrap_err();
        assert_eq!(failure.message, "the package manager would also remove old, change x from 1 to 2, install n 5");
    }
}
