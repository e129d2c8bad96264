//! The record of each client's history: sightings, progress, pauses. What is written only goes forward (`crate::record`).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::patience::Connection;
use super::{Store, StoreError, Subject, corrupt, millis, timestamp};
use crate::record::{Alone, Dates, Entries, Failures, Forward, Kept, MAX_KEPT, Pause, Progress, Sighting};

/// What has not been told of for so long is dropped: an update that nobody has offered for 400 days. A year and a month, so that
/// what comes once a year is still known.
pub const KEPT_FOR: SignedDuration = SignedDuration::from_hours(400 * 24);

/// Rows of a table that are dropped in one transaction: nobody waits for it for long.
const DROPPED_AT_ONCE: i64 = 500;

/// Entries of a page.
const PAGE: i32 = 500;

/// Where the next page of a client's record begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cursor {
    /// With the sightings after this update's.
    Sightings(String),
    /// With the progress after that of this policy and update.
    Progress(String, String),
    /// With the pauses after this policy's.
    Pauses(String),
    /// At the beginning.
    #[default]
    Start,
}

impl Store {
    /// Adds entries to a client's record, all or none, as told at `now`. [`StoreError::RecordMoved`] where one is neither ahead of
    /// what is kept nor behind it, [`StoreError::RecordFull`] where that would be more than is kept.
    pub async fn record(&self, namespace: &str, entries: &Entries, now: Timestamp) -> Result<(), StoreError> {
        let mut transaction = self.begin(&Subject::Record(namespace)).await?;
        let moved = || StoreError::RecordMoved { namespace: namespace.to_owned() };
        for (update, kept) in &entries.sightings {
            let known = known_sighting(&mut transaction, namespace, update).await?;
            let kept = ahead(known.as_ref(), kept).ok_or_else(moved)?;
            write_sighting(&mut transaction, namespace, update, kept, now).await?;
        }
        for ((policy, update), kept) in &entries.progress {
            let known = known_progress(&mut transaction, namespace, policy, update).await?;
            let kept = ahead(known.as_ref(), kept).ok_or_else(moved)?;
            write_progress(&mut transaction, (namespace, policy, update), kept, now).await?;
        }
        for (policy, kept) in &entries.pauses {
            let known = known_pause(&mut transaction, namespace, policy).await?;
            let kept = ahead(known.as_ref(), kept).ok_or_else(moved)?;
            write_pause(&mut transaction, namespace, policy, kept, now).await?;
        }
        for (what, statement) in [
            ("sightings", "SELECT COUNT(*) FROM sighting WHERE namespace = $1"),
            ("progress", "SELECT COUNT(*) FROM progress WHERE namespace = $1"),
            ("pauses", "SELECT COUNT(*) FROM pause WHERE namespace = $1"),
        ] {
            let count: i64 = sqlx::query_scalar(statement).bind(namespace).fetch_one(&mut *transaction).await?;
            if usize::try_from(count).is_ok_and(|count| count > MAX_KEPT) {
                return Err(StoreError::RecordFull { namespace: namespace.to_owned(), what });
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// A page of a client's record, and where the next one begins; none after the last.
    pub async fn recall(&self, namespace: &str, from: Cursor) -> Result<(Entries, Option<Cursor>), StoreError> {
        let mut entries = Entries::default();
        let next = match from {
            Cursor::Start => self.page_of_sightings(namespace, "", &mut entries).await?,
            Cursor::Sightings(after) => self.page_of_sightings(namespace, &after, &mut entries).await?,
            Cursor::Progress(policy, update) => {
                self.page_of_progress(namespace, &policy, &update, &mut entries).await?
            }
            Cursor::Pauses(after) => self.page_of_pauses(namespace, &after, &mut entries).await?,
        };
        Ok((entries, next))
    }

    /// Drops some of what has not been told of since [`KEPT_FOR`] before `now`: at most 500 rows of each kind, all of one client's
    /// record, so that others can write. Returns how many.
    pub async fn forget(&self, now: Timestamp) -> Result<u64, StoreError> {
        let before = now.saturating_sub(KEPT_FOR).unwrap_or(Timestamp::MIN);
        let mut dropped = 0;
        for (old, drop) in [
            (
                "SELECT namespace FROM sighting WHERE told < $1 LIMIT 1",
                "DELETE FROM sighting WHERE (namespace, update_id) IN (
                     SELECT namespace, update_id FROM sighting WHERE told < $1 AND namespace = $2 LIMIT $3)",
            ),
            (
                "SELECT namespace FROM progress WHERE told < $1 LIMIT 1",
                "DELETE FROM progress WHERE (namespace, policy, update_id) IN (
                     SELECT namespace, policy, update_id FROM progress WHERE told < $1 AND namespace = $2 LIMIT $3)",
            ),
            (
                "SELECT namespace FROM pause WHERE told < $1 LIMIT 1",
                "DELETE FROM pause WHERE (namespace, policy) IN (
                     SELECT namespace, policy FROM pause WHERE told < $1 AND namespace = $2 LIMIT $3)",
            ),
        ] {
            let old = sqlx::query_scalar(old).bind(millis(before)).fetch_optional(&self.readers).await?;
            let Some::<String>(namespace) = old else { continue };
            let mut transaction = self.begin(&Subject::Record(&namespace)).await?;
            let delete = sqlx::query(drop).bind(millis(before)).bind(&namespace).bind(DROPPED_AT_ONCE);
            dropped += delete.execute(&mut *transaction).await?.rows_affected();
            transaction.commit().await?;
        }
        Ok(dropped)
    }

    async fn page_of_sightings(
        &self,
        namespace: &str,
        after: &str,
        entries: &mut Entries,
    ) -> Result<Option<Cursor>, StoreError> {
        let rows = sqlx::query(
            "SELECT update_id, first, by_device, shared, published, published_alone, published_by, told, signature FROM sighting
             WHERE namespace = $1 AND update_id > $2 ORDER BY update_id LIMIT $3",
        );
        let rows = rows.bind(namespace).bind(after).bind(PAGE).fetch_all(&self.readers).await?;
        for row in &rows {
            entries.sightings.insert(row.try_get("update_id")?, sighting(namespace, row)?);
        }
        Ok(Some(match last(&rows, PAGE, &entries.sightings) {
            Some(update) => Cursor::Sightings(update.clone()),
            None => Cursor::Progress(String::new(), String::new()),
        }))
    }

    async fn page_of_progress(
        &self,
        namespace: &str,
        policy: &str,
        update: &str,
        entries: &mut Entries,
    ) -> Result<Option<Cursor>, StoreError> {
        let rows = sqlx::query(
            "SELECT policy, update_id, rings, ring, opened, reached, undone, stopped, installed, anywhere, failed, told, signature FROM progress
             WHERE namespace = $1 AND (policy, update_id) > ($2, $3) ORDER BY policy, update_id LIMIT $4",
        );
        let rows = rows.bind(namespace).bind(policy).bind(update).bind(PAGE).fetch_all(&self.readers).await?;
        for row in &rows {
            let key = (row.try_get("policy")?, row.try_get("update_id")?);
            entries.progress.insert(key, progress(namespace, row)?);
        }
        Ok(Some(match last(&rows, PAGE, &entries.progress) {
            Some((policy, update)) => Cursor::Progress(policy.clone(), update.clone()),
            None => Cursor::Pauses(String::new()),
        }))
    }

    async fn page_of_pauses(
        &self,
        namespace: &str,
        after: &str,
        entries: &mut Entries,
    ) -> Result<Option<Cursor>, StoreError> {
        let rows = sqlx::query(
            "SELECT policy, paused, resumed, told, signature FROM pause WHERE namespace = $1 AND policy > $2 ORDER BY policy LIMIT $3",
        );
        let rows = rows.bind(namespace).bind(after).bind(PAGE).fetch_all(&self.readers).await?;
        for row in &rows {
            entries.pauses.insert(row.try_get("policy")?, pause(namespace, row)?);
        }
        Ok(last(&rows, PAGE, &entries.pauses).map(|policy| Cursor::Pauses(policy.clone())))
    }
}

/// Which of the two is what both come to. Neither may be: no entry can be made here, since its signature cannot.
fn ahead<'k, T: Forward>(known: Option<&'k Kept<T>>, new: &'k Kept<T>) -> Option<&'k Kept<T>> {
    let Some(known) = known else { return Some(new) };
    let both = known.entry.and(&new.entry);
    if both == new.entry { Some(new) } else { Some(known).filter(|known| both == known.entry) }
}

/// The last key of a page that is full.
fn last<'e, K: Ord, V>(rows: &[AnyRow], full: i32, entries: &'e BTreeMap<K, V>) -> Option<&'e K> {
    entries.last_key_value().map(|(key, _)| key).filter(|_| usize::try_from(full).is_ok_and(|full| rows.len() >= full))
}

async fn known_sighting(
    connection: &mut Connection,
    namespace: &str,
    update: &str,
) -> Result<Option<Kept<Sighting>>, StoreError> {
    let row = sqlx::query(
        "SELECT first, by_device, shared, published, published_alone, published_by, told, signature FROM sighting
         WHERE namespace = $1 AND update_id = $2",
    );
    let row = row.bind(namespace).bind(update).fetch_optional(connection).await?;
    row.as_ref().map(|row| sighting(namespace, row)).transpose()
}

async fn known_progress(
    connection: &mut Connection,
    namespace: &str,
    policy: &str,
    update: &str,
) -> Result<Option<Kept<Progress>>, StoreError> {
    let row = sqlx::query(
        "SELECT rings, ring, opened, reached, undone, stopped, installed, anywhere, failed, told, signature FROM progress
         WHERE namespace = $1 AND policy = $2 AND update_id = $3",
    );
    let row = row.bind(namespace).bind(policy).bind(update).fetch_optional(connection).await?;
    row.as_ref().map(|row| progress(namespace, row)).transpose()
}

async fn known_pause(
    connection: &mut Connection,
    namespace: &str,
    policy: &str,
) -> Result<Option<Kept<Pause>>, StoreError> {
    let row = sqlx::query("SELECT paused, resumed, told, signature FROM pause WHERE namespace = $1 AND policy = $2");
    let row = row.bind(namespace).bind(policy).fetch_optional(connection).await?;
    row.as_ref().map(|row| pause(namespace, row)).transpose()
}

async fn write_sighting(
    connection: &mut Connection,
    namespace: &str,
    update: &str,
    kept: &Kept<Sighting>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let alone = kept.entry.dates.alone.as_ref();
    sqlx::query(
        "INSERT INTO sighting
             (namespace, update_id, first, by_device, shared, published, published_alone, published_by, told, signature)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (namespace, update_id) DO UPDATE SET first = excluded.first, by_device = excluded.by_device,
             shared = excluded.shared, published = excluded.published, published_alone = excluded.published_alone,
             published_by = excluded.published_by, told = excluded.told, signature = excluded.signature",
    )
    .bind(namespace)
    .bind(update)
    .bind(millis(kept.entry.first))
    .bind(&kept.entry.by)
    .bind(kept.entry.shared.map(millis))
    .bind(kept.entry.dates.shared.map(millis))
    .bind(alone.map(|alone| millis(alone.at)))
    .bind(alone.map(|alone| &alone.by))
    .bind(millis(now))
    .bind(&kept.signature)
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_progress(
    connection: &mut Connection,
    (namespace, policy, update): (&str, &str, &str),
    kept: &Kept<Progress>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let failed = Some(&kept.entry.failed).filter(|failed| **failed != Failures::default());
    let failed = failed.map(serde_json::to_string).transpose();
    let failed = failed.map_err(|error| corrupt(&format!("the record of {namespace}"), "failed", error))?;
    sqlx::query(
        "INSERT INTO progress
             (namespace, policy, update_id, rings, ring, opened, reached, undone, stopped, installed, anywhere, failed, told, signature)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (namespace, policy, update_id) DO UPDATE SET rings = excluded.rings, ring = excluded.ring,
             opened = excluded.opened, reached = excluded.reached, undone = excluded.undone, stopped = excluded.stopped,
             installed = excluded.installed, anywhere = excluded.anywhere, failed = excluded.failed, told = excluded.told,
             signature = excluded.signature",
    )
    .bind(namespace)
    .bind(policy)
    .bind(update)
    .bind(kept.entry.rings.join("\n"))
    .bind(&kept.entry.ring)
    .bind(millis(kept.entry.opened))
    .bind(kept.entry.reached.map(millis))
    .bind(kept.entry.undone.map(millis))
    .bind(kept.entry.stopped.map(millis))
    .bind(i64::from(kept.entry.installed))
    .bind(i64::from(kept.entry.anywhere))
    .bind(failed)
    .bind(millis(now))
    .bind(&kept.signature)
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_pause(
    connection: &mut Connection,
    namespace: &str,
    policy: &str,
    kept: &Kept<Pause>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO pause (namespace, policy, paused, resumed, told, signature) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (namespace, policy) DO UPDATE SET paused = excluded.paused, resumed = excluded.resumed,
             told = excluded.told, signature = excluded.signature",
    )
    .bind(namespace)
    .bind(policy)
    .bind(millis(kept.entry.paused))
    .bind(kept.entry.resumed.map(millis))
    .bind(millis(now))
    .bind(&kept.signature)
    .execute(connection)
    .await?;
    Ok(())
}

fn sighting(namespace: &str, row: &AnyRow) -> Result<Kept<Sighting>, StoreError> {
    let alone = optional_time(namespace, row, "published_alone")?.zip(row.try_get("published_by")?);
    let entry = Sighting {
        first: time(namespace, row, "first")?,
        by: row.try_get("by_device")?,
        shared: optional_time(namespace, row, "shared")?,
        dates: Dates {
            shared: optional_time(namespace, row, "published")?,
            alone: alone.map(|(at, by)| Alone { at, by }),
        },
    };
    Ok(Kept { entry, told: time(namespace, row, "told")?, signature: row.try_get("signature")? })
}

fn progress(namespace: &str, row: &AnyRow) -> Result<Kept<Progress>, StoreError> {
    let rings: String = row.try_get("rings")?;
    let failed: Option<String> = row.try_get("failed")?;
    let failed = failed.map(|failed| serde_json::from_str(&failed)).transpose();
    let failed: Option<Failures> =
        failed.map_err(|error| corrupt(&format!("the record of {namespace}"), "failed", error))?;
    let entry = Progress {
        rings: rings.lines().map(str::to_owned).collect(),
        ring: row.try_get("ring")?,
        opened: time(namespace, row, "opened")?,
        reached: optional_time(namespace, row, "reached")?,
        undone: optional_time(namespace, row, "undone")?,
        stopped: optional_time(namespace, row, "stopped")?,
        installed: count(namespace, row, "installed")?,
        anywhere: count(namespace, row, "anywhere")?,
        failed: failed.unwrap_or_default(),
    };
    Ok(Kept { entry, told: time(namespace, row, "told")?, signature: row.try_get("signature")? })
}

fn pause(namespace: &str, row: &AnyRow) -> Result<Kept<Pause>, StoreError> {
    let entry = Pause { paused: time(namespace, row, "paused")?, resumed: optional_time(namespace, row, "resumed")? };
    Ok(Kept { entry, told: time(namespace, row, "told")?, signature: row.try_get("signature")? })
}

fn time(namespace: &str, row: &AnyRow, column: &'static str) -> Result<Timestamp, StoreError> {
    timestamp(row.try_get(column)?, &format!("the record of {namespace}"), column)
}

fn optional_time(namespace: &str, row: &AnyRow, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
    let millis: Option<i64> = row.try_get(column)?;
    millis.map(|millis| timestamp(millis, &format!("the record of {namespace}"), column)).transpose()
}

fn count(namespace: &str, row: &AnyRow, column: &'static str) -> Result<u32, StoreError> {
    let count: i64 = row.try_get(column)?;
    u32::try_from(count).map_err(|error| corrupt(&format!("the record of {namespace}"), column, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::FailedOn;
    use crate::store::testing::{Temporary, on_both};

    on_both!(
        what_is_written_late_or_twice_takes_nothing_back,
        what_was_decided_without_what_is_kept_is_refused_whole,
        a_record_of_many_pages_is_read_whole,
        a_record_that_is_full_takes_nothing_more_and_keeps_what_it_has,
        what_nobody_tells_of_any_more_is_dropped_in_the_end,
        the_record_outlives_the_process,
        dates_are_kept_as_they_were_told,
        the_devices_on_which_an_update_failed_are_kept,
    );

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Signed by its own words: what was signed cannot be changed.
    fn kept<T: std::fmt::Debug>(entry: T) -> Kept<T> {
        let signature = format!("{entry:?}");
        Kept { signature, ..Kept::new(entry) }
    }

    fn seen(update: &str, first: i64, by: &str, shared: Option<i64>) -> Entries {
        let entry = Sighting { first: at(first), by: by.into(), shared: shared.map(at), dates: Dates::default() };
        Entries { sightings: [(update.to_owned(), kept(entry))].into(), ..Entries::default() }
    }

    fn progressed(policy: &str, update: &str, entry: Progress) -> Entries {
        let progress = [((policy.to_owned(), update.to_owned()), kept(entry))].into();
        Entries { progress, ..Entries::default() }
    }

    fn in_ring(ring: Option<&str>, opened: i64, stopped: Option<i64>) -> Progress {
        Progress {
            rings: vec!["pilot".into(), "most".into()],
            ring: ring.map(Into::into),
            opened: at(opened),
            reached: None,
            undone: None,
            stopped: stopped.map(at),
            installed: 3,
            anywhere: 58,
            failed: Failures::default(),
        }
    }

    fn paused(policy: &str, paused: i64, resumed: Option<i64>) -> Entries {
        let entry = Pause { paused: at(paused), resumed: resumed.map(at) };
        Entries { pauses: [(policy.to_owned(), kept(entry))].into(), ..Entries::default() }
    }

    async fn all(store: &Store, namespace: &str) -> Entries {
        let (mut all, mut cursor) = (Entries::default(), Some(Cursor::Start));
        while let Some(from) = cursor {
            let (page, next) = store.recall(namespace, from).await.unwrap();
            assert!(page.len() <= usize::try_from(PAGE).unwrap());
            all.sightings.extend(page.sightings);
            all.progress.extend(page.progress);
            all.pauses.extend(page.pauses);
            cursor = next;
        }
        all
    }

    async fn what_is_written_late_or_twice_takes_nothing_back(db: &Temporary) {
        let rest = progressed("servers", "u", in_ring(None, 30, Some(12)));
        for entries in [
            seen("u", 20, "b", None),
            seen("u", 10, "a", Some(20)),
            seen("u", 20, "b", None),
            progressed("servers", "u", in_ring(Some("pilot"), 10, Some(12))),
            rest.clone(),
            progressed("servers", "u", in_ring(Some("most"), 20, None)),
            rest,
            paused("servers", 10, None),
            paused("servers", 10, Some(10)),
            paused("servers", 10, None),
        ] {
            db.store.record("acme", &entries, at(100)).await.unwrap();
        }
        let now = all(&db.store, "acme").await;
        let told = at(100);
        let sighting = Sighting { first: at(10), by: "a".into(), shared: Some(at(20)), dates: Dates::default() };
        assert_eq!(now.sightings["u"], Kept { told, ..kept(sighting) });
        let key = ("servers".to_owned(), "u".to_owned());
        assert_eq!(now.progress[&key], Kept { told, ..kept(in_ring(None, 30, Some(12))) });
        assert_eq!(now.pauses["servers"], Kept { told, ..kept(Pause { paused: at(10), resumed: Some(at(10)) }) });
        assert!(all(&db.store, "other").await.is_empty(), "a client's record is its own");
    }

    async fn the_devices_on_which_an_update_failed_are_kept(db: &Temporary) {
        let on = |device: &str, ring: Option<&str>| FailedOn {
            device: device.into(),
            last: at(40),
            ring: ring.map(Into::into),
        };
        let failed = |as_of: i64, on: &[FailedOn]| {
            let failed = Failures { as_of: Some(at(as_of)), on: on.to_vec() };
            progressed("servers", "u", Progress { failed, ..in_ring(Some("pilot"), 10, None) })
        };
        let told = [
            progressed("servers", "u", in_ring(Some("pilot"), 10, None)),
            failed(50, &[on("web-1", Some("pilot")), on("web-2", None)]),
            failed(60, &[]),
        ];
        for entries in &told {
            db.store.record("acme", entries, at(100)).await.unwrap();
            let kept_now = all(&db.store, "acme").await;
            assert_eq!(
                kept_now.progress.values().next().unwrap().entry,
                entries.progress.values().next().unwrap().entry
            );
            db.store.record("acme", &told[0], at(100)).await.unwrap();
            assert_eq!(all(&db.store, "acme").await, kept_now, "what is behind takes nothing back");
        }
    }

    async fn dates_are_kept_as_they_were_told(db: &Temporary) {
        let dated = |shared: Option<i64>, alone: Option<(i64, &str)>| {
            let alone = alone.map(|(at, by)| Alone { at: self::at(at), by: by.into() });
            let dates = Dates { shared: shared.map(at), alone };
            let entry = Sighting { first: at(10), by: "a".into(), shared: Some(at(20)), dates };
            Entries { sightings: [("u".to_owned(), kept(entry))].into(), ..Entries::default() }
        };
        let told =
            [dated(None, None), dated(None, Some((9, "a"))), dated(Some(8), Some((7, "b"))), dated(Some(6), None)];
        for entries in &told {
            db.store.record("acme", entries, at(100)).await.unwrap();
            let kept_now = all(&db.store, "acme").await;
            assert_eq!(kept_now.sightings["u"].entry, entries.sightings["u"].entry);
            db.store.record("acme", &told[0], at(100)).await.unwrap();
            assert_eq!(all(&db.store, "acme").await, kept_now, "what is behind takes nothing back");
        }
        let refused = db.store.record("acme", &dated(Some(9), Some((5, "c"))), at(100)).await.unwrap_err();
        assert!(matches!(refused, StoreError::RecordMoved { .. }), "{refused}");
    }

    async fn what_was_decided_without_what_is_kept_is_refused_whole(db: &Temporary) {
        let mut before = seen("u", 20, "b", None);
        before.progress = progressed("servers", "u", in_ring(Some("pilot"), 10, Some(12))).progress;
        db.store.record("acme", &before, at(100)).await.unwrap();
        let before = all(&db.store, "acme").await;
        // The stop would be lost, and that another device has seen it.
        let mut unread = seen("v", 10, "a", None);
        unread.progress = progressed("servers", "u", in_ring(Some("most"), 20, None)).progress;
        for entries in [unread, seen("u", 10, "a", None)] {
            let refused = db.store.record("acme", &entries, at(100)).await.unwrap_err();
            assert!(matches!(refused, StoreError::RecordMoved { .. }), "{refused}");
            assert_eq!(all(&db.store, "acme").await, before);
        }
    }

    async fn a_record_of_many_pages_is_read_whole(db: &Temporary) {
        let mut entries = Entries::default();
        for number in 0..1001 {
            entries.sightings.extend(seen(&format!("u{number:04}"), number, "a", None).sightings);
            let policy = format!("p{}", number % 3);
            entries
                .progress
                .extend(progressed(&policy, &format!("u{number:04}"), in_ring(Some("most"), 5, None)).progress);
        }
        entries.pauses = paused("p0", 5, Some(4)).pauses;
        db.store.record("acme", &entries, at(7)).await.unwrap();
        entries.sightings.values_mut().for_each(|it| it.told = at(7));
        entries.progress.values_mut().for_each(|it| it.told = at(7));
        entries.pauses.values_mut().for_each(|it| it.told = at(7));
        assert_eq!(all(&db.store, "acme").await, entries);
    }

    async fn a_record_that_is_full_takes_nothing_more_and_keeps_what_it_has(db: &Temporary) {
        let mut many = Entries::default();
        for number in 0..MAX_KEPT {
            many.sightings.extend(seen(&format!("u{number}"), 10, "a", None).sightings);
        }
        db.store.record("acme", &many, at(100)).await.unwrap();
        let mut more = seen("one more", 10, "a", None);
        more.sightings.extend(seen("u0", 5, "b", Some(10)).sightings);
        let refused = db.store.record("acme", &more, at(100)).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the record of namespace acme is full: 20000 sightings are kept, and none is taken until some have not been offered for 400 days"
        );
        let kept_now = all(&db.store, "acme").await;
        assert_eq!(
            (kept_now.sightings.len(), &kept_now.sightings["u0"].entry.by),
            (MAX_KEPT, &"a".to_owned()),
            "all or none"
        );
        db.store.record("acme", &seen("u0", 5, "b", Some(10)), at(100)).await.unwrap();
        db.store.record("other", &more, at(100)).await.unwrap();
    }

    async fn what_nobody_tells_of_any_more_is_dropped_in_the_end(db: &Temporary) {
        let mut entries = Entries::default();
        for number in 0..1200 {
            entries.sightings.extend(seen(&format!("u{number}"), 10, "a", None).sightings);
        }
        entries.progress = progressed("p", "u0", in_ring(None, 10, Some(10))).progress;
        entries.pauses = paused("p", 10, None).pauses;
        let told = at(1_700_000_000);
        db.store.record("acme", &entries, told).await.unwrap();
        let again = told + SignedDuration::from_hours(24);
        db.store.record("acme", &seen("u7", 10, "a", None), again).await.unwrap();
        assert_eq!(db.store.forget(told + KEPT_FOR).await.unwrap(), 0);
        let mut dropped = Vec::new();
        for _ in 0..4 {
            dropped.push(db.store.forget(again + KEPT_FOR).await.unwrap());
        }
        assert_eq!(dropped, [500 + 2, 500, 199, 0]);
        let kept_now = all(&db.store, "acme").await;
        assert_eq!((kept_now.len(), kept_now.sightings.contains_key("u7")), (1, true));
    }

    async fn the_record_outlives_the_process(db: &Temporary) {
        db.store.record("acme", &progressed("p", "u", in_ring(Some("most"), 10, Some(11))), at(100)).await.unwrap();
        let before = all(&db.store, "acme").await;
        let again = db.reopened().await;
        assert_eq!(all(&again, "acme").await, before);
    }
}
