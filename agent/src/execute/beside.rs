//! What the package manager does to packages that no order names, where the order's `dependencies` allow it: [`Dependencies::AllowAll`].
//!
//! ```text
//!   simulation -> nothing that stays is removed -> journal -> package manager -> database -> told with each action
//! ```
//! New packages are none of this: they are allowed without it, and nothing that was there before is another one for them. There is
//! no way back from what is: what was removed is not kept, and of what was changed no earlier file is saved.

use patchwarden_protocol::order::{Dependencies, PackageChange};
use patchwarden_protocol::result::{ActionResult, ResultReason};

use super::{Ending, Execution, MAX_MESSAGE, judge};
use crate::journal::Started;
use crate::provider::{Direction, Failure, Installed, Provider, Simulation, bounded};

/// Longest list of what was done beside an action.
const MAX_BESIDE: usize = 400;

impl<P: Provider> Execution<'_, P> {
    /// What may be done beyond the actions. What is taken back removes nothing and moves nothing else.
    pub(super) fn dependencies(&self) -> Dependencies {
        let most = match Direction::from(self.verb()) {
            Direction::Forward | Direction::Removing => Dependencies::AllowAll,
            Direction::Back => Dependencies::AllowInstalls,
        };
        self.order().dependencies.min(most)
    }

    /// Nothing goes without which the machine would not start, or nobody could install anything any more.
    pub(super) async fn check_removals(&self, simulation: &Simulation) -> Result<(), Failure> {
        let rows = self.rows_of(&simulation.removals).await?;
        // Of what the database does not have it is not known what it is.
        let stays = |name: &&String| {
            let mut of_it = rows.iter().filter(|row| row.name == **name).peekable();
            of_it.peek().is_none() || of_it.any(|row| self.provider.stays(&row.name, &row.source))
        };
        match simulation.removals.iter().find(stays) {
            None => Ok(()),
            Some(name) => {
                let message = format!(
                    "the package manager would also remove {name}, which no dependency of an update ever removes"
                );
                Err(Failure::new(ResultReason::WouldDoMore, message))
            }
        }
    }

    /// What will be done to other packages that are there.
    pub(super) async fn beside(
        &self,
        simulation: &Simulation,
        ordered: &[PackageChange],
    ) -> Result<Vec<PackageChange>, Failure> {
        let is_other = |name: &str, arch: &str| {
            !ordered.iter().any(|ordered| (ordered.name.as_str(), ordered.arch.as_str()) == (name, arch))
        };
        let changed =
            simulation.changes.iter().filter(|change| is_other(&change.name, &change.arch)).filter_map(|change| {
                Some(PackageChange {
                    name: change.name.clone(),
                    arch: change.arch.clone(),
                    installed: change.old.clone()?,
                    candidate: change.new.clone(),
                })
            });
        let mut beside: Vec<PackageChange> = changed.collect();
        let removed = self.rows_of(&simulation.removals).await?;
        beside.extend(removed.into_iter().map(|Installed { name, arch, version, .. }| PackageChange {
            name,
            arch,
            installed: version,
            candidate: String::new(),
        }));
        Ok(beside)
    }

    /// Says with each action that was tried what was done beside them, as the database has it.
    pub(super) async fn tell_beside(&self, started: &Started, mut ending: Ending) -> Ending {
        if started.beside.is_empty() {
            return ending;
        }
        let words = match self.provider.installed(&started.beside).await {
            Ok(rows) => words(&started.beside, &rows),
            Err(failure) => format!("what was done to other packages is not known: {failure}"),
        };
        if words.is_empty() {
            return ending;
        }
        let actions = &self.order().actions;
        let tried = |update: &str| {
            started.tried.iter().filter_map(|index| actions.get(*index)).any(|action| action.update == update)
        };
        ending.actions.iter_mut().filter(|result| tried(&result.update)).for_each(|result| add(result, &words));
        ending
    }

    async fn rows_of(&self, names: &[String]) -> Result<Vec<Installed>, Failure> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let any = |name: &String| PackageChange {
            name: name.clone(),
            arch: String::new(),
            installed: String::new(),
            candidate: String::new(),
        };
        self.provider.installed(&names.iter().map(any).collect::<Vec<_>>()).await
    }
}

/// `other 1 -> 2, x 1 removed`: what has been done by now. What was to go and is there is told, too.
fn words(beside: &[PackageChange], rows: &[Installed]) -> String {
    let told = beside.iter().filter_map(|package| {
        let PackageChange { name, installed, candidate, .. } = package;
        match (package.is_removal(), judge::is_done(rows, package)) {
            (true, true) => Some(format!("{name} {installed} removed")),
            (true, false) => Some(format!("{name} {installed} was to be removed and is there")),
            (false, true) => Some(format!("{name} {installed} -> {candidate}")),
            (false, false) => None,
        }
    });
    told.collect::<Vec<_>>().join(", ")
}

fn add(result: &mut ActionResult, words: &str) {
    let beside = format!("beside it: {}", bounded(words, MAX_BESIDE));
    result.message = match result.message.as_str() {
        "" => beside,
        message => format!("{}; {beside}", bounded(message, MAX_MESSAGE - MAX_BESIDE - "; beside it: ".len())),
    };
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::order::Verb;

    use super::*;

    fn change(name: &str, candidate: &str) -> PackageChange {
        PackageChange { name: name.into(), arch: "all".into(), installed: "1".into(), candidate: candidate.into() }
    }

    fn there(name: &str, version: &str) -> Installed {
        Installed {
            name: name.into(),
            arch: "all".into(),
            version: version.into(),
            source: name.into(),
            complete: true,
        }
    }

    #[test]
    fn what_was_done_is_told_as_the_database_has_it() {
        let beside = [change("y", "2"), change("x", "")];
        for (rows, expected) in [
            (vec![there("y", "2")], "y 1 -> 2, x 1 removed"),
            (vec![there("y", "1"), there("x", "1")], "x 1 was to be removed and is there"),
            (vec![there("y", "1")], "x 1 removed"),
        ] {
            assert_eq!(words(&beside, &rows), expected);
        }
    }

    #[test]
    fn it_is_added_to_what_is_said_already_within_the_room_of_a_message() {
        let told = |message: &str| {
            let (update, verb, message) = ("u".to_owned(), Verb::Install, message.to_owned());
            let mut result = ActionResult { update, verb, done: true, reason: None, message };
            add(&mut result, &"x".repeat(MAX_BESIDE + 1));
            result.message
        };
        assert!(told("").starts_with("beside it: x"));
        assert!(told("a remark").starts_with("a remark; beside it: x"));
        assert_eq!(told(&"m".repeat(MAX_MESSAGE)).len(), MAX_MESSAGE);
    }
}
