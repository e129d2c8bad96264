//! What each group says of each update, as far as somebody asks, and each different question asked once.
//!
//! To a group most updates differ in their [profiles](super::profiles) only: it rules once on all of a profile. Decisions
//! are about few updates, which are looked up in the catalogue beforehand; of these each is ruled on by itself.

use std::collections::BTreeMap;
use std::rc::Rc;

use jiff::Timestamp;

use super::approval::{Line, Ruling, Voice};
use super::bits::Bits;
use super::model::{Approvals, Catalogue, Group, Specs, Target, Update, UpdateDecision, UpdateId};
use super::profiles::{Profile, Profiles};

/// Rulings by group and update.
pub(super) struct Rulings<'a> {
    now: Timestamp,
    /// From then on what was ruled counts no longer.
    until: Option<Timestamp>,
    /// So many ids and updates did the catalogue have when the books were made.
    known: (usize, usize),
    profiles: Profiles<'a>,
    /// By the groups' names.
    books: BTreeMap<&'a str, Rc<Book<'a>>>,
    /// By the group's place; nothing until somebody asks it.
    benches: Vec<Option<Bench<'a>>>,
}

/// What a group says, ready to be looked up.
struct Book<'a> {
    group: &'a Group,
    approvals: &'a Approvals,
    /// Numbers of ids with the places of decisions that may be about updates of them, in order.
    about: Vec<(usize, usize)>,
    /// What its rules ask, by its number, in order.
    conditions: Vec<usize>,
}

/// A group with its parents, and how they have ruled.
struct Bench<'a> {
    /// Nearest first; or what is said of every update, because something must be fixed first.
    books: Result<Vec<Rc<Book<'a>>>, Rc<Ruling>>,
    /// Numbers of the ids that any decision may be about.
    decided: Bits,
    by_profile: Vec<Option<Rc<Ruling>>>,
    /// Of those that decisions may be about.
    by_update: BTreeMap<UpdateId, Rc<Ruling>>,
}

impl<'a> Rulings<'a> {
    /// Of so many groups.
    pub(super) fn of(specs: Specs<'a>, groups: usize, now: Timestamp) -> Self {
        let benches = (0..groups).map(|_| None).collect();
        Self { now, until: None, known: (0, 0), profiles: Profiles::of(specs), books: BTreeMap::new(), benches }
    }

    /// Later questions are asked at `now`, of a catalogue that may have grown.
    pub(super) fn renew(&mut self, catalogue: &Catalogue, now: Timestamp) {
        let Self { now: before, until, known, profiles: _, books, benches } = self;
        let size = (catalogue.ids(), catalogue.len());
        if *known != size {
            // A decision may be about an update that is new.
            *known = size;
            books.clear();
            benches.fill_with(|| None);
        } else if until.is_some_and(|until| until <= now) {
            for bench in benches.iter_mut().flatten() {
                bench.by_profile.clear();
                bench.by_update.clear();
            }
        }
        until.take_if(|until| *until <= now);
        *before = now;
    }

    /// What the group at `place`, whose `line` is given, says of an update. None for an update of another catalogue.
    pub(super) fn get(
        &mut self,
        catalogue: &Catalogue,
        place: usize,
        line: &Line<'a>,
        update: UpdateId,
    ) -> Option<Rc<Ruling>> {
        let id = catalogue.id_of(update)?;
        let Self { now, until, known: _, profiles, books, benches } = self;
        let bench = benches.get_mut(place)?.get_or_insert_with(|| {
            Bench::of(line, catalogue, |group, approvals| {
                let book = || Rc::new(Book::of(group, approvals, catalogue, profiles));
                books.entry(&group.name).or_insert_with(book).clone()
            })
        });
        let line = match &bench.books {
            Ok(books) => books,
            Err(ruling) => return Some(ruling.clone()),
        };
        let number = profiles.profile(catalogue, update)?;
        let mut rule = |update: Option<(usize, &Update)>| {
            let profile = profiles.get(number);
            let voices: Vec<Voice<'_>> = line.iter().map(|book| book.voice(update, &profile, *now)).collect();
            let ruling = Ruling::of(&voices, *now);
            let ends = voices.iter().flat_map(|voice| &voice.decisions).filter_map(|decision| decision.until);
            *until = until.iter().copied().chain(ends).chain(ruling.retry_from).min();
            Rc::new(ruling)
        };
        if bench.decided.contains(id) {
            let content = catalogue.get(update)?;
            return Some(bench.by_update.entry(update).or_insert_with(|| rule(Some((id, content)))).clone());
        }
        if bench.by_profile.len() <= number {
            bench.by_profile.resize(number + 1, None);
        }
        Some(bench.by_profile.get_mut(number)?.get_or_insert_with(|| rule(None)).clone())
    }
}

impl<'a> Bench<'a> {
    fn of(
        line: &Line<'a>,
        catalogue: &Catalogue,
        mut book: impl FnMut(&'a Group, &'a Approvals) -> Rc<Book<'a>>,
    ) -> Self {
        let books: Result<Vec<Rc<Book<'_>>>, _> = match &line.resolved {
            Ok(groups) => Ok(groups.iter().map(|(group, approvals)| book(group, approvals)).collect()),
            Err(blocked) => Err(Rc::new(Ruling::refused(None, blocked.clone()))),
        };
        let mut decided = Bits::below(catalogue.ids());
        for (id, _) in books.iter().flatten().flat_map(|book| &book.about) {
            decided.insert(*id);
        }
        Self { books, decided, by_profile: vec![], by_update: BTreeMap::new() }
    }
}

impl<'a> Book<'a> {
    fn of(group: &'a Group, approvals: &'a Approvals, catalogue: &Catalogue, profiles: &Profiles<'_>) -> Self {
        let mut about: Vec<(usize, usize)> = Vec::new();
        for (place, decision) in approvals.decisions.iter().enumerate() {
            about.extend(decision.target.ids(catalogue).into_iter().map(|id| (id, place)));
        }
        about.sort_unstable();
        about.dedup();
        Self { group, approvals, about, conditions: profiles.conditions_of(approvals) }
    }

    /// Decisions that may be about updates of an id, in order.
    fn about(&self, id: usize) -> impl Iterator<Item = &'a UpdateDecision> {
        let from = self.about.partition_point(|(other, _)| *other < id);
        let about = self.about.iter().skip(from).take_while(move |(other, _)| *other == id);
        about.filter_map(|(_, place)| self.approvals.decisions.get(*place))
    }

    /// What of it has to do with an update of such a profile; none is given where no decision may be about it.
    fn voice<'v>(&'v self, update: Option<(usize, &Update)>, profile: &Profile<'v>, now: Timestamp) -> Voice<'v> {
        let in_force = |(id, update)| self.about(id).filter(move |decision| decision.is_in_force(update, now));
        let rules = self.approvals.rules.iter().zip(&self.conditions);
        let mut rules = rules.map(|(rule, condition)| (rule, profile.holds(*condition)));
        Voice {
            group: self.group,
            approvals: self.approvals,
            decisions: update.into_iter().flat_map(in_force).collect(),
            rule: rules.find(|(_, holds)| *holds != Ok(false)),
        }
    }
}

impl Target {
    /// Numbers of the ids of all updates that it covers, and perhaps some more.
    fn ids(&self, catalogue: &Catalogue) -> Vec<usize> {
        match self {
            Self::Id(id) => catalogue.number_of(id).into_iter().collect(),
            Self::Ids(glob) => {
                let ids = catalogue.ids_from(glob.literal()).filter(|(id, _)| glob.matches(id));
                ids.map(|(_, number)| number).collect()
            }
            Self::Cves(glob) => {
                let cves = catalogue.cves_from(glob.literal()).filter(|(cve, _)| glob.matches(cve));
                cves.flat_map(|(_, ids)| ids).collect()
            }
            Self::From(version) => {
                let ids = catalogue.ids_from(version.package()).filter(|(id, _)| version.is_reached_by(id));
                ids.map(|(_, number)| number).collect()
            }
        }
    }
}
