//! Which run of a package manager has brought about which change. Pure.
//!
//! The two software lists say what has changed, the package manager's own history who did it: where it names steps that lead from
//! the one version to the other, each is a change of its own. What no history tells stays a change of nobody's.

use std::collections::BTreeMap;

use patchwarden_protocol::changes::{By, Change, MAX_COMMAND, MAX_WORD, Run};

use crate::provider::{PastRun, Step, bounded};

/// So many versions are followed from one scan to the next.
const MAX_STEPS: usize = 16;

/// Changes by the runs that made them, the earliest run first, and what no run tells of last. `order_place` is the directory of the
/// order that is carried out: what names it was done by the agent.
pub(super) fn attributed(
    changes: Vec<Change>,
    runs: &[PastRun],
    order_place: Option<&str>,
) -> Vec<(Option<Run>, Vec<Change>)> {
    let mut named: BTreeMap<&str, Vec<(usize, &Step)>> = BTreeMap::new();
    for (index, run) in runs.iter().enumerate() {
        for step in &run.steps {
            named.entry(&step.name).or_default().push((index, step));
        }
    }
    let mut found: Vec<(usize, Change)> = Vec::new();
    for change in changes {
        let steps = steps(&change, named.get(change.name.as_str()).map_or(&[], Vec::as_slice));
        if steps.is_empty() {
            found.push((runs.len(), change));
            continue;
        }
        for (run, before, after) in steps {
            let by = by(change.by, &change, after.as_deref(), &runs[run], order_place);
            found.push((run, Change { before, after, by, ..change.clone() }));
        }
    }
    // Stable: by name within a run.
    found.sort_by_key(|(run, _)| *run);
    let mut groups: Vec<(usize, Vec<Change>)> = Vec::new();
    for (run, change) in found {
        match groups.last_mut().filter(|(last, _)| *last == run) {
            Some((_, changes)) => changes.push(change),
            None => groups.push((run, vec![change])),
        }
    }
    groups.into_iter().map(|(run, changes)| (runs.get(run).map(told), changes)).collect()
}

/// The way from one version to the other, the earliest step first: by which run, from what, to what. Empty where no history tells
/// its end. `told` is what runs did to this package, the earliest first.
fn steps(change: &Change, told: &[(usize, &Step)]) -> Vec<(usize, Option<String>, Option<String>)> {
    let mut way = Vec::new();
    let mut to = change.after.clone();
    for (index, step) in told.iter().rev() {
        if step.after != to {
            continue;
        }
        let from = if step.is_before_told { step.before.clone() } else { change.before.clone() };
        way.push((*index, from.clone(), to));
        if from == change.before {
            way.reverse();
            return way;
        }
        to = from;
        if way.len() == MAX_STEPS {
            break;
        }
    }
    // The end is told, and not how it began.
    way.truncate(1);
    way.into_iter().map(|(run, _, to)| (run, change.before.clone(), to)).collect()
}

/// What the order names is the order's, in the version that it names. What changed beside it is somebody else's where the history
/// tells another command.
fn by(by: By, change: &Change, after: Option<&str>, run: &PastRun, order_place: Option<&str>) -> By {
    match by {
        By::Order(_) if after == change.after.as_deref() => by,
        By::Order(sequence) | By::BesideOrder(sequence) => {
            let is_own = run.command.is_empty() || order_place.is_none_or(|place| run.command.contains(place));
            if is_own { By::BesideOrder(sequence) } else { By::SomebodyElse }
        }
        By::SomebodyElse => By::SomebodyElse,
    }
}

fn told(run: &PastRun) -> Run {
    let PastRun { at, until: _, told_by, user, command, steps: _ } = run;
    Run { at: *at, told_by: bounded(told_by, MAX_WORD), user: user.clone(), command: bounded(command, MAX_COMMAND) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use patchwarden_protocol::order::Sequence;

    use super::super::tests::change;
    use super::*;

    const SOMEBODY: By = By::SomebodyElse;

    fn run(second: i64, command: &str, steps: &[(&str, Option<&str>, Option<&str>)]) -> PastRun {
        let at = Timestamp::from_second(second).unwrap();
        let steps = steps.iter().map(|(name, before, after)| Step {
            name: (*name).into(),
            before: before.map(Into::into),
            is_before_told: true,
            after: after.map(Into::into),
        });
        PastRun { at, until: at, told_by: "apt", user: "root".into(), command: command.into(), steps: steps.collect() }
    }

    /// The commands, and what each did: `name before after`.
    fn found(changes: Vec<Change>, runs: &[PastRun]) -> Vec<(String, Vec<String>)> {
        let text = |version: Option<String>| version.unwrap_or_else(|| "-".into());
        attributed(changes, runs, None)
            .into_iter()
            .map(|(run, changes)| {
                let changes = changes.into_iter().map(|c| format!("{} {} {}", c.name, text(c.before), text(c.after)));
                (run.map_or_else(|| "?".into(), |run| run.command), changes.collect())
            })
            .collect()
    }

    fn expected(groups: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        groups
            .iter()
            .map(|(run, changes)| ((*run).into(), changes.iter().map(|change| (*change).into()).collect()))
            .collect()
    }

    #[test]
    fn each_step_from_one_version_to_the_other_is_a_change_of_the_run_that_took_it() {
        let runs = [
            run(1, "old", &[("a", Some("1"), Some("3"))]),
            run(2, "first", &[("a", Some("1"), Some("2")), ("b", None, Some("1"))]),
            run(3, "second", &[("a", Some("2"), Some("3")), ("c", Some("1"), None)]),
        ];
        let changes = vec![
            change("a", Some("1"), Some("3"), SOMEBODY),
            change("b", None, Some("1"), SOMEBODY),
            change("c", Some("1"), None, SOMEBODY),
            change("d", None, Some("1"), SOMEBODY),
        ];
        let groups = expected(&[("first", &["a 1 2", "b - 1"]), ("second", &["a 2 3", "c 1 -"]), ("?", &["d - 1"])]);
        assert_eq!(found(changes, &runs), groups);
    }

    #[test]
    fn where_the_beginning_is_not_told_the_end_is() {
        let changes = || vec![change("a", Some("1"), Some("3"), SOMEBODY)];
        let end = expected(&[("end", &["a 1 3"])]);
        assert_eq!(found(changes(), &[run(1, "end", &[("a", Some("2"), Some("3"))])]), end);
        let mut untold = run(1, "end", &[("a", None, Some("3"))]);
        untold.steps[0].is_before_told = false;
        assert_eq!(found(changes(), std::slice::from_ref(&untold)), end);
        let removed = run(0, "removed", &[("a", Some("1"), None)]);
        assert_eq!(found(changes(), &[removed, untold]), end, "it is not said that it came from nothing");
        assert_eq!(
            found(changes(), &[run(1, "other", &[("a", Some("1"), Some("2"))])]),
            expected(&[("?", &["a 1 3"])])
        );
        // Round and round.
        let circle: Vec<PastRun> = (0..40)
            .map(|n| run(n, "r", &[if n % 2 == 0 { ("a", Some("9"), Some("3")) } else { ("a", Some("3"), Some("9")) }]))
            .collect();
        assert_eq!(found(changes(), &circle).len(), 1);
    }

    #[test]
    fn what_another_command_did_while_an_order_was_at_work_is_somebody_elses() {
        let sequence = Sequence { epoch: 1, number: 7 };
        let (order, beside) = (By::Order(sequence), By::BesideOrder(sequence));
        let runs = [
            run(1, "apt-get install a", &[("a", Some("1"), Some("2")), ("x", None, Some("1"))]),
            run(
                2,
                "apt-get -o Dir::Cache::archives=/state/orders/1-7/archives install a=3",
                &[("a", Some("2"), Some("3")), ("new", None, Some("1"))],
            ),
            run(3, "", &[("y", None, Some("1"))]),
        ];
        let changes = vec![
            change("a", Some("1"), Some("3"), order),
            change("new", None, Some("1"), beside),
            change("x", None, Some("1"), beside),
            change("y", None, Some("1"), beside),
            change("z", None, Some("1"), beside),
        ];
        let by: Vec<(String, By)> = attributed(changes, &runs, Some("/state/orders/1-7"))
            .into_iter()
            .flat_map(|(_, changes)| changes.into_iter().map(|change| (change.name, change.by)))
            .collect();
        let expected = [("a", SOMEBODY), ("x", SOMEBODY), ("a", order), ("new", beside), ("y", beside), ("z", beside)];
        assert_eq!(by, expected.map(|(name, by)| (name.to_owned(), by)));
    }
}
