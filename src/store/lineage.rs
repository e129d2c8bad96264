//! Which processes have spoken with a device's key, so that a copy of its machine is found out.
//!
//! Every process of an agent has an id of its own, and names the process before it on the same state directory. So one machine makes a line:
//!
//! ```text
//!   a <- b <- c          restarts of the agent, also with the machine. Who only connects again is the same process
//!   a <- b <- c          a snapshot is put back: d names a, and c is left
//!    \-- d
//!   a <- b <- c   e      what was left speaks again, and then d: both live, so there are two machines
//!    \-- d    \--/
//! ```
//!
//! Neither addresses, names nor hardware ids decide anything: they are the same for copies, and change on machines that are one.

use jiff::Timestamp;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::report::DeviceRef;
use serde::{Deserialize, Serialize};
use sqlx::{Any, Executor, Row as _};

use super::patience::Connection;
use super::{Store, StoreError, Subject, corrupt};

/// Lines that were left and are remembered. Copies of one machine are two, or a few; an old one that is forgotten is found out later.
const LEFT: usize = 8;

/// How often a line that was left has to speak again: going back to an old snapshot and then to the latest one does it once, on one machine.
const RETURNS: u32 = 2;

/// A process that has spoken with the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Which machine it is on, for people.
    pub about: String,
}

/// More than one machine uses the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// When that was found, in whole seconds.
    pub since: Timestamp,
    /// The two that took turns last.
    pub machines: [Member; 2],
}

/// All that is remembered of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Who spoke last.
    pub current: Member,
    /// The ends of lines that others have followed which do not come from them.
    left: Vec<Member>,
    /// How often one of these has spoken again.
    returns: u32,
    /// What was found, until a person has dealt with it.
    pub found: Option<Found>,
}

/// What a process is in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The one that spoke last, or the first of all, or the next after the last.
    Follows,
    /// It comes from an earlier one: the machine was set back, or this is a copy.
    SetBack,
    /// Of a line that was left before.
    Returned,
    /// Two lines take turns: more than one machine uses the key.
    Duplicate,
}

impl Lineage {
    /// Of a key that nobody has used before.
    fn begin(current: Member) -> Self {
        Self { current, ..Self::default() }
    }

    /// A process speaks that comes from `predecessor`.
    fn meet(&mut self, met: Member, predecessor: &str, now: Timestamp) -> Meeting {
        if self.found.is_some() {
            return Meeting::Duplicate;
        }
        if met.id == self.current.id {
            return Meeting::Follows;
        }
        // Of a copy of a running machine the process that comes from here was left before.
        let follows = predecessor == self.current.id && self.left.iter().all(|left| left.id != met.id);
        let last = std::mem::replace(&mut self.current, met);
        if follows {
            return Meeting::Follows;
        }
        let place = self.left.iter().position(|left| left.id == self.current.id || left.id == predecessor);
        let returned = place.map(|place| self.left.remove(place)).is_some();
        self.left.push(last.clone());
        let surplus = self.left.len().saturating_sub(LEFT);
        self.left.drain(..surplus);
        if !returned {
            return Meeting::SetBack;
        }
        self.returns = self.returns.saturating_add(1);
        if self.returns < RETURNS {
            return Meeting::Returned;
        }
        let since = Timestamp::from_second(now.as_second()).unwrap_or(now);
        self.found = Some(Found { since, machines: [last, self.current.clone()] });
        Meeting::Duplicate
    }
}

impl Store {
    /// What is remembered of a device's key.
    pub async fn lineage(&self, device: &DeviceRef, key: &Fingerprint) -> Result<Option<Lineage>, StoreError> {
        read(&self.readers, device, key).await
    }

    /// A process speaks with the key. It is remembered before anything follows from it.
    pub async fn meet(
        &self,
        device: &DeviceRef,
        key: &Fingerprint,
        met: Member,
        predecessor: &str,
        now: Timestamp,
    ) -> Result<(Meeting, Lineage), StoreError> {
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        let known = read(&mut *transaction, device, key).await?;
        let (meeting, lineage) = match known {
            Some(mut lineage) => (lineage.meet(met, predecessor, now), lineage),
            None => (Meeting::Follows, Lineage::begin(met)),
        };
        let state = serde_json::to_string(&lineage).map_err(|error| corrupt(&device.to_string(), "state", error))?;
        sqlx::query(
            "INSERT INTO lineage (namespace, device, key, state) VALUES ($1, $2, $3, $4)
             ON CONFLICT (namespace, device) DO UPDATE SET key = excluded.key, state = excluded.state",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(key.as_str())
        .bind(state)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok((meeting, lineage))
    }

    /// A person has dealt with what was found at that time: who speaks next is the first. Whether there was anything.
    pub async fn forget_lineage(
        &self,
        device: &DeviceRef,
        key: &Fingerprint,
        since: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        let known = read(&mut *transaction, device, key).await?;
        // Another gateway may have done it, and found more since.
        if known.and_then(|known| known.found).is_none_or(|found| found.since != since) {
            return Ok(false);
        }
        sqlx::query("DELETE FROM lineage WHERE namespace = $1 AND device = $2")
            .bind(&device.namespace)
            .bind(&device.name)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }
}

/// Forgets the lines of a device that is gone, but for a key that several machines were found to use: whoever accepts it once more is to be
/// told at once, and not after it has happened again. One that cannot be read stays, too. How many rows that was.
pub(super) async fn drop_gone(connection: &mut Connection, device: &DeviceRef) -> Result<u64, StoreError> {
    let state = sqlx::query_scalar("SELECT state FROM lineage WHERE namespace = $1 AND device = $2");
    let state = state.bind(&device.namespace).bind(&device.name).fetch_optional(&mut *connection).await?;
    let known: Option<Lineage> = state.and_then(|state: String| serde_json::from_str(&state).ok());
    if known.is_none_or(|known| known.found.is_some()) {
        return Ok(0);
    }
    let delete = sqlx::query("DELETE FROM lineage WHERE namespace = $1 AND device = $2");
    let delete = delete.bind(&device.namespace).bind(&device.name).execute(connection);
    Ok(delete.await?.rows_affected())
}

async fn read(
    connection: impl Executor<'_, Database = Any>,
    device: &DeviceRef,
    key: &Fingerprint,
) -> Result<Option<Lineage>, StoreError> {
    let row = sqlx::query("SELECT state FROM lineage WHERE namespace = $1 AND device = $2 AND key = $3")
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(key.as_str())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let state: &str = row.try_get("state")?;
    serde_json::from_str(state).map(Some).map_err(|error| corrupt(&device.to_string(), "state", error))
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;

    use super::*;
    use crate::store::testing::{Temporary, on_both};

    on_both!(what_is_found_is_kept_until_it_is_dealt_with, another_key_begins_anew);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn member(id: &str) -> Member {
        Member { id: id.into(), about: format!("machine of {id}") }
    }

    /// What comes of processes that speak one after another, each with the one that it comes from.
    fn story(lineage: &mut Lineage, speakers: &[(&str, &str)]) -> Vec<Meeting> {
        speakers.iter().map(|(id, from)| lineage.meet(member(id), from, at(1))).collect()
    }

    use Meeting::{Duplicate, Follows, Returned, SetBack};

    #[test]
    fn one_machine_makes_one_line() {
        let mut lineage = Lineage::begin(member("a"));
        // It connects again, the agent or the machine is restarted, it connects again.
        assert_eq!(story(&mut lineage, &[("a", ""), ("b", "a"), ("b", "a"), ("c", "b")]), [Follows; 4]);
        assert_eq!(lineage, Lineage::begin(member("c")), "nothing else is remembered");
    }

    #[test]
    fn a_machine_that_is_set_back_every_night_is_one() {
        let mut lineage = Lineage::begin(member("a"));
        for night in 0..20 {
            let (morning, noon) = (format!("m{night}"), format!("n{night}"));
            let met = story(&mut lineage, &[(&morning, "a"), (&noon, &morning)]);
            assert_eq!(met, [if night == 0 { Follows } else { SetBack }, Follows]);
        }
        assert!(lineage.left.len() <= LEFT && lineage.found.is_none());
        // With its memory: the very process speaks again.
        let mut lineage = Lineage::begin(member("a"));
        assert_eq!(
            story(&mut lineage, &[("b", "a"), ("a", ""), ("c", "a"), ("a", "")]),
            [Follows, SetBack, Follows, SetBack]
        );
    }

    #[test]
    fn one_way_back_and_forward_again_is_no_second_machine() {
        let mut lineage = Lineage::begin(member("a"));
        assert_eq!(story(&mut lineage, &[("b", "a"), ("old", "before"), ("c", "b")]), [Follows, SetBack, Returned]);
    }

    #[test]
    fn two_that_run_at_once_are_found_whenever_the_copy_was_made() {
        for from in ["a", "b", "long ago", ""] {
            let mut lineage = Lineage::begin(member("a"));
            let met = story(
                &mut lineage,
                &[("b", "a"), ("copy", from), ("b", "a"), ("copy", from), ("b", "a"), ("copy", from)],
            );
            let first = if from == "b" { Follows } else { SetBack };
            // The first one speaks on: what came after it was no restart.
            let second = if from == "b" { SetBack } else { Returned };
            let third = if from == "b" { Returned } else { Duplicate };
            assert_eq!(met, [Follows, first, second, third, Duplicate, Duplicate], "{from}");
            let found = lineage.found.unwrap();
            let mut ids = found.machines.map(|one| one.id);
            ids.sort();
            assert_eq!(ids, ["b", "copy"], "{from}");
        }
    }

    #[test]
    fn two_that_never_run_at_once_are_found_too() {
        let mut lineage = Lineage::begin(member("a"));
        // By day the one and by night the other, each started anew; and three of them.
        assert_eq!(
            story(&mut lineage, &[("x1", "a"), ("y1", "a"), ("x2", "x1"), ("y2", "y1")]),
            [Follows, SetBack, Returned, Duplicate]
        );
        let mut lineage = Lineage::begin(member("a"));
        let met = story(&mut lineage, &[("x", "a"), ("y", "a"), ("z", "a"), ("x", "a"), ("y", "a")]);
        assert_eq!(met, [Follows, SetBack, SetBack, Returned, Duplicate]);
    }

    #[test]
    fn a_store_that_was_set_back_takes_no_machine_for_two() {
        let mut lineage = Lineage::begin(member("yesterday"));
        assert_eq!(story(&mut lineage, &[("e", "d"), ("e", "d"), ("f", "e")]), [SetBack, Follows, Follows]);
    }

    fn device() -> DeviceRef {
        DeviceRef { namespace: "acme".into(), name: "web".into() }
    }

    async fn what_is_found_is_kept_until_it_is_dealt_with(db: &Temporary) {
        let (store, key, device) = (&db.store, PrivateKey::generate().public().fingerprint(), device());
        let mut met = Vec::new();
        for (id, from) in [("b", "a"), ("copy", ""), ("b", "a"), ("copy", ""), ("copy2", "copy")] {
            met.push(store.meet(&device, &key, member(id), from, at(7)).await.unwrap().0);
        }
        assert_eq!(met, [Follows, SetBack, Returned, Duplicate, Duplicate]);
        let store = &db.reopened().await;
        let found = store.lineage(&device, &key).await.unwrap().unwrap().found.unwrap();
        assert_eq!(found, Found { since: at(7), machines: [member("b"), member("copy")] });
        assert!(!store.forget_lineage(&device, &key, at(6)).await.unwrap(), "something else was dealt with");
        assert!(store.lineage(&device, &key).await.unwrap().unwrap().found.is_some());
        assert!(store.forget_lineage(&device, &key, at(7)).await.unwrap());
        assert_eq!(store.lineage(&device, &key).await.unwrap(), None);
        assert_eq!(store.meet(&device, &key, member("b"), "a", at(8)).await.unwrap().0, Follows);
    }

    async fn another_key_begins_anew(db: &Temporary) {
        let (store, device) = (&db.store, device());
        let [first, second] = [(); 2].map(|()| PrivateKey::generate().public().fingerprint());
        for (id, key) in [("b", &first), ("copy", &first), ("b", &first), ("c", &second)] {
            store.meet(&device, key, member(id), "", at(1)).await.unwrap();
        }
        assert_eq!(store.lineage(&device, &first).await.unwrap(), None);
        assert_eq!(store.lineage(&device, &second).await.unwrap(), Some(Lineage::begin(member("c"))));
    }
}
