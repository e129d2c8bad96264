//! Entries on the wire, read with limits: both sides check what they are told.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchwarden_protocol::record_v1 as wire;

use super::{Alone, Dates, Entries, FailedOn, Failures, Kept, MAX_FAILED, Pause, Progress, Sighting};

/// Characters of an update's id, and of a name: what the schemas of status allow.
const MAX_NAME: usize = 253;

/// Characters of a ring's name, and the most rings of a policy: as in the schema of PatchPolicy.
const MAX_RING: usize = 63;
const MAX_RINGS: usize = 8;

/// Characters of a signature: base64 of 64 bytes.
const MAX_SIGNATURE: usize = 88;

/// An entry that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadEntry {
    /// Its path in the message.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads entries. An entry that is there twice is the last of them.
pub fn entries(message: wire::Entries) -> Result<Entries, BadEntry> {
    let mut entries = Entries::default();
    for (index, it) in message.sightings.into_iter().enumerate() {
        let field = Field { list: "sightings", index };
        let entry = Sighting {
            first: field.time("first", it.first)?,
            by: field.name("by", it.by, 1, MAX_NAME)?,
            shared: field.optional_time("shared", it.shared)?,
            dates: Dates {
                shared: field.optional_time("published", it.published)?,
                alone: it.published_alone.map(|it| alone(field, it)).transpose()?,
            },
        };
        let (told, signature) =
            (field.time("told", it.told)?, field.name("signature", it.signature, 1, MAX_SIGNATURE)?);
        entries.sightings.insert(field.text("update", it.update, 1, MAX_NAME)?, Kept { entry, told, signature });
    }
    for (index, it) in message.progress.into_iter().enumerate() {
        let field = Field { list: "progress", index };
        if it.rings.len() > MAX_RINGS {
            return Err(field.bad("rings", format!("has {} names; a policy has at most {MAX_RINGS}", it.rings.len())));
        }
        let rings = it.rings.into_iter().map(|ring| field.name("rings", ring, 1, MAX_RING));
        let entry = Progress {
            rings: rings.collect::<Result<_, _>>()?,
            // Empty for an update that was stopped in a policy without rings.
            ring: it.ring.map(|ring| field.name("ring", ring, 0, MAX_RING)).transpose()?,
            opened: field.time("opened", it.opened)?,
            reached: field.optional_time("reached", it.reached)?,
            undone: field.optional_time("undone", it.undone)?,
            stopped: field.optional_time("stopped", it.stopped)?,
            installed: it.installed,
            anywhere: it.anywhere,
            failed: failures(field, it.failed.unwrap_or_default())?,
        };
        let (told, signature) =
            (field.time("told", it.told)?, field.name("signature", it.signature, 1, MAX_SIGNATURE)?);
        let policy = field.name("policy", it.policy, 1, MAX_NAME)?;
        entries
            .progress
            .insert((policy, field.text("update", it.update, 1, MAX_NAME)?), Kept { entry, told, signature });
    }
    for (index, it) in message.pauses.into_iter().enumerate() {
        let field = Field { list: "pauses", index };
        let entry =
            Pause { paused: field.time("paused", it.paused)?, resumed: field.optional_time("resumed", it.resumed)? };
        let (told, signature) =
            (field.time("told", it.told)?, field.name("signature", it.signature, 1, MAX_SIGNATURE)?);
        entries.pauses.insert(field.name("policy", it.policy, 1, MAX_NAME)?, Kept { entry, told, signature });
    }
    Ok(entries)
}

fn alone(field: Field, it: wire::PublishedAlone) -> Result<Alone, BadEntry> {
    let wire::PublishedAlone { at, by } = it;
    Ok(Alone { at: field.time("published_alone.at", at)?, by: field.name("published_alone.by", by, 1, MAX_NAME)? })
}

fn failures(field: Field, it: wire::Failures) -> Result<Failures, BadEntry> {
    let wire::Failures { as_of, on } = it;
    if on.len() > MAX_FAILED {
        return Err(field.bad("failed.on", format!("has {} names; an update has at most {MAX_FAILED}", on.len())));
    }
    let failed_on = |it: wire::FailedOn| {
        Ok(FailedOn {
            device: field.name("failed.on.device", it.device, 1, MAX_NAME)?,
            last: field.time("failed.on.last", it.last)?,
            ring: it.ring.map(|ring| field.name("failed.on.ring", ring, 0, MAX_RING)).transpose()?,
        })
    };
    Ok(Failures {
        as_of: field.optional_time("failed.as_of", as_of)?,
        on: on.into_iter().map(failed_on).collect::<Result<_, _>>()?,
    })
}

/// Entries as a message.
pub fn to_wire(entries: Entries) -> wire::Entries {
    let second = |time: Option<Timestamp>| time.map(Timestamp::as_second);
    let Entries { sightings, progress, pauses } = entries;
    let sighting = |(update, Kept { entry, told, signature }): (String, Kept<Sighting>)| wire::Sighting {
        update,
        first: entry.first.as_second(),
        by: entry.by,
        shared: second(entry.shared),
        told: told.as_second(),
        signature,
        published: second(entry.dates.shared),
        published_alone: entry.dates.alone.map(|Alone { at, by }| wire::PublishedAlone { at: at.as_second(), by }),
    };
    let failed_on = |FailedOn { device, last, ring }| wire::FailedOn { device, last: last.as_second(), ring };
    let failed =
        |Failures { as_of, on }| wire::Failures { as_of: second(as_of), on: on.into_iter().map(failed_on).collect() };
    let progressed =
        |((policy, update), Kept { entry, told, signature }): ((String, String), Kept<Progress>)| wire::Progress {
            policy,
            update,
            rings: entry.rings,
            ring: entry.ring,
            opened: entry.opened.as_second(),
            reached: second(entry.reached),
            undone: second(entry.undone),
            stopped: second(entry.stopped),
            installed: entry.installed,
            anywhere: entry.anywhere,
            failed: Some(entry.failed).filter(|it| *it != Failures::default()).map(failed),
            told: told.as_second(),
            signature,
        };
    let pause = |(policy, Kept { entry, told, signature }): (String, Kept<Pause>)| wire::Pause {
        policy,
        paused: entry.paused.as_second(),
        resumed: second(entry.resumed),
        told: told.as_second(),
        signature,
    };
    wire::Entries {
        sightings: map(sightings, sighting),
        progress: map(progress, progressed),
        pauses: map(pauses, pause),
    }
}

fn map<K: Ord, V, W>(entries: BTreeMap<K, V>, to_wire: impl Fn((K, V)) -> W) -> Vec<W> {
    entries.into_iter().map(to_wire).collect()
}

/// An entry of a list.
#[derive(Clone, Copy)]
struct Field {
    list: &'static str,
    index: usize,
}

impl Field {
    fn bad(self, name: &str, problem: String) -> BadEntry {
        let Self { list, index } = self;
        BadEntry { field: format!("entries.{list}[{index}].{name}"), problem }
    }

    /// Whatever a device calls an update.
    fn text(self, name: &str, text: String, least: usize, most: usize) -> Result<String, BadEntry> {
        let length = text.chars().count();
        if (least..=most).contains(&length) {
            return Ok(text);
        }
        Err(self.bad(name, format!("must have from {least} to {most} characters; it has {length}")))
    }

    /// What Kubernetes knows by this name.
    fn name(self, name: &str, text: String, least: usize, most: usize) -> Result<String, BadEntry> {
        let text = self.text(name, text, least, most)?;
        if text.chars().any(char::is_control) {
            return Err(self.bad(name, "must not have control characters".to_owned()));
        }
        Ok(text)
    }

    fn time(self, name: &str, second: i64) -> Result<Timestamp, BadEntry> {
        let out_of_range = || self.bad(name, format!("{second} is no time in seconds since 1970"));
        Timestamp::from_second(second).ok().filter(|_| second >= 0).ok_or_else(out_of_range)
    }

    fn optional_time(self, name: &str, second: Option<i64>) -> Result<Option<Timestamp>, BadEntry> {
        second.map(|second| self.time(name, second)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept<T>(entry: T) -> Kept<T> {
        Kept { entry, told: Timestamp::from_second(9).unwrap(), signature: "c2ln".into() }
    }

    fn full() -> Entries {
        let at = |second| Timestamp::from_second(second).unwrap();
        let dates = Dates { shared: Some(at(8)), alone: Some(Alone { at: at(7), by: "web-2".into() }) };
        let sighting = Sighting { first: at(1), by: "web-1".into(), shared: Some(at(2)), dates };
        let progress = Progress {
            rings: vec!["pilot".into()],
            ring: Some("pilot".into()),
            opened: at(3),
            reached: None,
            undone: Some(at(4)),
            stopped: Some(at(5)),
            installed: 7,
            anywhere: 58,
            failed: Failures {
                as_of: Some(at(6)),
                on: vec![
                    FailedOn { device: "web-1".into(), last: at(5), ring: Some("pilot".into()) },
                    FailedOn { device: "web-2".into(), last: at(4), ring: None },
                ],
            },
        };
        let rest = Progress { ring: None, rings: vec![], failed: Failures::default(), ..progress.clone() };
        let pause = Pause { paused: at(6), resumed: None };
        Entries {
            sightings: [("u".to_owned(), kept(sighting))].into(),
            progress: [
                (("p".to_owned(), "u".to_owned()), kept(progress)),
                (("p".to_owned(), "v".to_owned()), kept(rest)),
            ]
            .into(),
            pauses: [("p".to_owned(), kept(pause))].into(),
        }
    }

    #[test]
    fn entries_are_read_as_they_were_written() {
        assert_eq!(entries(to_wire(full())), Ok(full()));
    }

    #[test]
    fn an_entry_over_its_limits_is_named() {
        let refused = |change: &dyn Fn(&mut wire::Entries)| {
            let mut message = to_wire(full());
            change(&mut message);
            entries(message).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&|it| it.sightings[0].update = "u".repeat(254)),
            "entries.sightings[0].update: must have from 1 to 253 characters; it has 254"
        );
        assert!(refused(&|it| it.sightings[0].by = String::new()).starts_with("entries.sightings[0].by: "));
        assert_eq!(
            refused(&|it| it.progress[1].policy = "a\nb".into()),
            "entries.progress[1].policy: must not have control characters"
        );
        assert!(refused(&|it| it.progress[0].ring = Some("r".repeat(64))).starts_with("entries.progress[0].ring: "));
        let rings = vec!["r".to_owned(); 9];
        assert_eq!(
            refused(&|it| it.progress[0].rings.clone_from(&rings)),
            "entries.progress[0].rings: has 9 names; a policy has at most 8"
        );
        let failed = |it: &mut wire::Entries, change: &dyn Fn(&mut wire::FailedOn)| {
            change(&mut it.progress[0].failed.as_mut().unwrap().on[1]);
        };
        assert_eq!(
            refused(&|it| failed(it, &|on| on.device = String::new())),
            "entries.progress[0].failed.on.device: must have from 1 to 253 characters; it has 0"
        );
        assert!(refused(&|it| failed(it, &|on| on.last = -1)).starts_with("entries.progress[0].failed.on.last: "));
        let ring = || Some("r".repeat(64));
        assert!(refused(&|it| failed(it, &|on| on.ring = ring())).starts_with("entries.progress[0].failed.on.ring: "));
        let as_of = |it: &mut wire::Entries| it.progress[0].failed.as_mut().unwrap().as_of = Some(-1);
        assert!(refused(&as_of).starts_with("entries.progress[0].failed.as_of: "));
        let many = |it: &mut wire::Entries| {
            let on = &mut it.progress[0].failed.as_mut().unwrap().on;
            *on = vec![on[0].clone(); 17];
        };
        assert_eq!(refused(&many), "entries.progress[0].failed.on: has 17 names; an update has at most 16");
        assert_eq!(
            refused(&|it| it.pauses[0].paused = -1),
            "entries.pauses[0].paused: -1 is no time in seconds since 1970"
        );
        assert!(refused(&|it| it.pauses[0].signature.clear()).starts_with("entries.pauses[0].signature: "));
        assert!(refused(&|it| it.sightings[0].shared = Some(i64::MAX)).starts_with("entries.sightings[0].shared: "));
        assert!(refused(&|it| it.sightings[0].published = Some(-1)).starts_with("entries.sightings[0].published: "));
        let alone = |at: i64, by: &str| Some(wire::PublishedAlone { at, by: by.to_owned() });
        assert_eq!(
            refused(&|it| it.sightings[0].published_alone = alone(-1, "web-2")),
            "entries.sightings[0].published_alone.at: -1 is no time in seconds since 1970"
        );
        assert_eq!(
            refused(&|it| it.sightings[0].published_alone = alone(7, "")),
            "entries.sightings[0].published_alone.by: must have from 1 to 253 characters; it has 0"
        );
    }
}
