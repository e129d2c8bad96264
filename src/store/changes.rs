//! What has changed among the packages of each device, and who did it.

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::changes::{By, Change, Changed, Changes, Run};
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::report::DeviceRef;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::patience::Connection;
use super::{Store, StoreError, Subject, corrupt, millis, timestamp};

/// Kept of each device: some years of an ordinary machine, and some MB.
const KEPT_CHANGES: i64 = 10_000;

/// One recorded change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedChange {
    /// The device's log.
    pub log: String,
    /// Its number there.
    pub number: u64,
    /// How many changes before it were never told: the device had no room for them, or this database was set back.
    pub missing: u64,
    /// When the device's scan found it, by its clock.
    pub found_at: Timestamp,
    /// What.
    pub change: Change,
    /// Digest of the order that was carried out meanwhile.
    pub order: Option<String>,
    /// What the package manager's history says.
    pub run: Option<Run>,
}

/// What came of recording changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangesRecording {
    /// All of them are kept, so many for the first time.
    Kept(usize),
    /// This number of the log is kept as another change; nothing was recorded.
    Reused(u64),
}

impl Store {
    /// Keeps verified changes within their limits ([`Changes::check`]), each once, and the message that they came in.
    pub async fn record_changes(
        &self,
        changes: &Changes,
        envelope: &Envelope<Changes>,
        now: Timestamp,
    ) -> Result<ChangesRecording, StoreError> {
        let device = &changes.device;
        let Some(last) = changes.changed.last() else { return Ok(ChangesRecording::Kept(0)) };
        let log = &last.log;
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        let mut known: u64 = highest(&mut transaction, device, log).await?;
        let mut new = 0;
        for changed in &changes.changed {
            for (number, change) in (changed.first..).zip(&changed.packages) {
                if number <= known {
                    if is_another(&mut transaction, device, changed, number, change).await? {
                        return Ok(ChangesRecording::Reused(number));
                    }
                    continue;
                }
                insert(&mut transaction, device, changed, (number, number - known - 1), change, now).await?;
                known = number;
                new += 1;
            }
        }
        if new > 0 {
            let object = device.to_string();
            let text = serde_json::to_string(envelope).map_err(|error| corrupt(&object, "envelope", error))?;
            sqlx::query(
                "INSERT INTO change_message (namespace, device, log, last, envelope) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(&device.namespace)
            .bind(&device.name)
            .bind(log)
            .bind(number_of(known, &object)?)
            .bind(text)
            .execute(&mut *transaction)
            .await?;
            drop_oldest(&mut transaction, device).await?;
        }
        transaction.commit().await?;
        Ok(ChangesRecording::Kept(new))
    }

    /// The last changes of a device, in the order in which they were recorded.
    pub async fn changes(&self, device: &DeviceRef, limit: u32) -> Result<Vec<RecordedChange>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM package_change WHERE namespace = $1 AND device = $2 ORDER BY id DESC LIMIT $3")
                .bind(&device.namespace)
                .bind(&device.name)
                .bind(i64::from(limit))
                .fetch_all(&self.readers)
                .await?;
        rows.iter().rev().map(|row| read(row, &device.to_string())).collect()
    }

    /// Changes of a device with their numbers here, the newest first, of those below a number.
    pub async fn changes_before(
        &self,
        device: &DeviceRef,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, RecordedChange)>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM package_change WHERE namespace = $1 AND device = $2 AND id < $3 ORDER BY id DESC LIMIT $4",
        )
        .bind(device.namespace.clone())
        .bind(device.name.clone())
        .bind(before.unwrap_or(i64::MAX))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, read(row, &device.to_string())?))).collect()
    }

    /// The last changes of a device's package, the latest first.
    pub async fn changes_of_package(
        &self,
        device: &DeviceRef,
        (name, arch): (&str, &str),
        limit: u32,
    ) -> Result<Vec<RecordedChange>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM package_change WHERE namespace = $1 AND device = $2 AND package = $3 AND arch = $4
             ORDER BY id DESC LIMIT $5",
        )
        .bind(device.namespace.clone())
        .bind(device.name.clone())
        .bind(name.to_owned())
        .bind(arch.to_owned())
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| read(row, &device.to_string())).collect()
    }

    /// The signed message that a recorded change came in.
    pub async fn change_message(
        &self,
        device: &DeviceRef,
        log: &str,
        number: u64,
    ) -> Result<Option<Envelope<Changes>>, StoreError> {
        let object = device.to_string();
        let text: Option<String> = sqlx::query_scalar(
            "SELECT envelope FROM change_message WHERE namespace = $1 AND device = $2 AND log = $3 AND last >= $4
             ORDER BY last LIMIT 1",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(log)
        .bind(number_of(number, &object)?)
        .fetch_optional(&self.readers)
        .await?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| corrupt(&object, "envelope", error))).transpose()
    }
}

fn number_of(number: u64, object: &str) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|error| corrupt(object, "number", error))
}

async fn highest(connection: &mut Connection, device: &DeviceRef, log: &str) -> Result<u64, StoreError> {
    let highest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(number) FROM package_change WHERE namespace = $1 AND device = $2 AND log = $3")
            .bind(&device.namespace)
            .bind(&device.name)
            .bind(log)
            .fetch_one(connection)
            .await?;
    u64::try_from(highest.unwrap_or_default()).map_err(|error| corrupt(&device.to_string(), "number", error))
}

/// Whether another change is kept under this number. What is not kept any more is taken for the same.
async fn is_another(
    connection: &mut Connection,
    device: &DeviceRef,
    changed: &Changed,
    number: u64,
    change: &Change,
) -> Result<bool, StoreError> {
    let object = device.to_string();
    let row =
        sqlx::query("SELECT * FROM package_change WHERE namespace = $1 AND device = $2 AND log = $3 AND number = $4")
            .bind(&device.namespace)
            .bind(&device.name)
            .bind(&changed.log)
            .bind(number_of(number, &object)?)
            .fetch_optional(connection)
            .await?;
    let Some(row) = row else { return Ok(false) };
    let kept = read(&row, &object)?;
    Ok((millis(kept.found_at), &kept.change) != (millis(changed.found_at), change))
}

async fn insert(
    connection: &mut Connection,
    device: &DeviceRef,
    changed: &Changed,
    (number, missing): (u64, u64),
    change: &Change,
    now: Timestamp,
) -> Result<(), StoreError> {
    let object = device.to_string();
    let (by, sequence) = match change.by {
        By::Order(sequence) => ("Order", Some(sequence)),
        By::BesideOrder(sequence) => ("BesideOrder", Some(sequence)),
        By::SomebodyElse => ("SomebodyElse", None),
    };
    let run = changed.run.as_ref();
    sqlx::query(
        "INSERT INTO package_change (namespace, device, log, number, missing, found_at, package, arch, old_version,
             new_version, by_whom, epoch, order_number, order_digest, run_at, told_by, actor, command, recorded)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
    )
    .bind(&device.namespace)
    .bind(&device.name)
    .bind(&changed.log)
    .bind(number_of(number, &object)?)
    .bind(number_of(missing, &object)?)
    .bind(millis(changed.found_at))
    .bind(&change.name)
    .bind(&change.arch)
    .bind(&change.before)
    .bind(&change.after)
    .bind(by)
    .bind(sequence.map(|sequence| i64::from(sequence.epoch)))
    .bind(sequence.map(|sequence| i64::from(sequence.number)))
    .bind(&changed.order)
    .bind(run.map(|run| millis(run.at)))
    .bind(run.map(|run| &run.told_by))
    .bind(run.map(|run| &run.user))
    .bind(run.map(|run| &run.command))
    .bind(millis(now))
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps [`KEPT_CHANGES`] of a device, and the messages that they came in.
async fn drop_oldest(connection: &mut Connection, device: &DeviceRef) -> Result<(), StoreError> {
    let dropped = sqlx::query(
        "DELETE FROM package_change WHERE namespace = $1 AND device = $2 AND id <= (
             SELECT id FROM package_change WHERE namespace = $1 AND device = $2 ORDER BY id DESC LIMIT 1 OFFSET $3)",
    )
    .bind(&device.namespace)
    .bind(&device.name)
    .bind(KEPT_CHANGES)
    .execute(&mut *connection)
    .await?;
    if dropped.rows_affected() > 0 {
        drop_messages(connection, device).await?;
    }
    Ok(())
}

/// Drops the messages of which no change is kept any more.
pub(super) async fn drop_messages(connection: &mut Connection, device: &DeviceRef) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM change_message WHERE namespace = $1 AND device = $2 AND NOT EXISTS (
             SELECT 1 FROM package_change AS kept WHERE kept.namespace = $1 AND kept.device = $2
                 AND kept.log = change_message.log AND kept.number <= change_message.last)",
    )
    .bind(&device.namespace)
    .bind(&device.name)
    .execute(connection)
    .await?;
    Ok(())
}

fn read(row: &AnyRow, object: &str) -> Result<RecordedChange, StoreError> {
    let unsigned = |column: &'static str| -> Result<u64, StoreError> {
        u64::try_from(row.try_get::<i64, _>(column)?).map_err(|error| corrupt(object, column, error))
    };
    let sequence = match (row.try_get::<Option<i64>, _>("epoch")?, row.try_get::<Option<i64>, _>("order_number")?) {
        (Some(epoch), Some(number)) => Some(Sequence {
            epoch: u32::try_from(epoch).map_err(|error| corrupt(object, "epoch", error))?,
            number: u32::try_from(number).map_err(|error| corrupt(object, "order_number", error))?,
        }),
        _ => None,
    };
    let by_whom: String = row.try_get("by_whom")?;
    let by = match (by_whom.as_str(), sequence) {
        ("Order", Some(sequence)) => By::Order(sequence),
        ("BesideOrder", Some(sequence)) => By::BesideOrder(sequence),
        ("SomebodyElse", None) => By::SomebodyElse,
        _ => return Err(corrupt(object, "by_whom", by_whom)),
    };
    let run = match row.try_get::<Option<i64>, _>("run_at")? {
        Some(at) => Some(Run {
            at: timestamp(at, object, "run_at")?,
            told_by: row.try_get("told_by")?,
            user: row.try_get("actor")?,
            command: row.try_get("command")?,
        }),
        None => None,
    };
    Ok(RecordedChange {
        log: row.try_get("log")?,
        number: unsigned("number")?,
        missing: unsigned("missing")?,
        found_at: timestamp(row.try_get("found_at")?, object, "found_at")?,
        change: Change {
            name: row.try_get("package")?,
            arch: row.try_get("arch")?,
            before: row.try_get("old_version")?,
            after: row.try_get("new_version")?,
            by,
        },
        order: row.try_get("order_digest")?,
        run,
    })
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::changes::{LOG_NAME, MAX_CHANGES};
    use patchwarden_protocol::key::PrivateKey;

    use super::*;
    use crate::store::testing::{Temporary, on_both};

    on_both!(
        a_change_is_kept_once_with_all_that_is_told_of_it,
        what_is_missing_is_counted_and_a_number_means_one_change,
        the_oldest_changes_of_a_device_go_with_their_messages,
    );

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn device() -> DeviceRef {
        DeviceRef { namespace: "acme".into(), name: "web".into() }
    }

    /// Changes of these numbers, each a group of its own.
    fn changes(log: char, numbers: impl IntoIterator<Item = u64>) -> Changes {
        let changed = |number: u64| Changed {
            log: log.to_string().repeat(LOG_NAME),
            first: number,
            found_at: at(i64::try_from(number).unwrap()),
            from: "sha256:a".into(),
            to: "sha256:b".into(),
            order: number.is_multiple_of(2).then(|| "sha256:order".to_owned()),
            run: number.is_multiple_of(3).then(|| Run {
                at: at(7),
                told_by: "apt".into(),
                user: "alice (1000)".into(),
                command: "apt-get install x".into(),
            }),
            packages: vec![Change {
                name: format!("p{number}"),
                arch: "amd64".into(),
                before: Some("1".into()),
                after: None,
                by: match number % 3 {
                    0 => By::SomebodyElse,
                    1 => By::Order(Sequence { epoch: 1, number: 5 }),
                    _ => By::BesideOrder(Sequence { epoch: 1, number: 5 }),
                },
            }],
        };
        Changes { device: device(), changed: numbers.into_iter().map(changed).collect() }
    }

    async fn record(store: &Store, changes: &Changes) -> ChangesRecording {
        assert_eq!(changes.check(), Ok(()));
        let envelope = Envelope::seal(changes, &PrivateKey::generate()).unwrap();
        store.record_changes(changes, &envelope, at(100)).await.unwrap()
    }

    async fn kept(store: &Store) -> Vec<(char, u64, u64)> {
        let all = store.changes(&device(), 100_000).await.unwrap();
        all.iter().map(|one| (one.log.chars().next().unwrap(), one.number, one.missing)).collect()
    }

    async fn a_change_is_kept_once_with_all_that_is_told_of_it(db: &Temporary) {
        let first = changes('a', 1..=3);
        assert_eq!(record(&db.store, &first).await, ChangesRecording::Kept(3));
        assert_eq!(record(&db.store, &first).await, ChangesRecording::Kept(0), "the acknowledgement was lost");
        assert_eq!(record(&db.store, &changes('a', 2..=4)).await, ChangesRecording::Kept(1), "and more came meanwhile");
        let all = db.store.changes(&device(), 10).await.unwrap();
        let sent = changes('a', 1..=4);
        let expected: Vec<RecordedChange> = sent
            .changed
            .into_iter()
            .map(|Changed { log, first, found_at, from: _, to: _, order, run, mut packages }| RecordedChange {
                log,
                number: first,
                missing: 0,
                found_at,
                change: packages.remove(0),
                order,
                run,
            })
            .collect();
        assert_eq!(all, expected);
        assert_eq!(db.store.changes(&device(), 1).await.unwrap(), expected[3..], "the last ones");
        let other = DeviceRef { name: "db".into(), ..device() };
        assert_eq!(db.store.changes(&other, 10).await.unwrap(), []);
        let log = &all[0].log;
        let of = device();
        let message = |number| db.store.change_message(&of, log, number);
        assert_eq!(message(2).await.unwrap().unwrap().peek(), Some(first));
        assert_eq!(message(4).await.unwrap().unwrap().peek(), Some(changes('a', 2..=4)));
        assert_eq!(message(5).await.unwrap(), None);
    }

    async fn what_is_missing_is_counted_and_a_number_means_one_change(db: &Temporary) {
        record(&db.store, &changes('a', 3..=4)).await;
        record(&db.store, &changes('a', 8..=8)).await;
        record(&db.store, &changes('b', 1..=1)).await;
        let expected = [('a', 3, 2), ('a', 4, 0), ('a', 8, 3), ('b', 1, 0)];
        assert_eq!(kept(&db.store).await, expected);
        // Below what is kept, and never told: too late to know.
        assert_eq!(record(&db.store, &changes('a', 1..=3)).await, ChangesRecording::Kept(0));
        for spoil in [
            (|one| one.packages[0].after = Some("2".into())) as fn(&mut Changed),
            |one| one.packages[0].by = By::SomebodyElse,
            |one| one.found_at = at(99),
        ] {
            let mut other = changes('a', 7..=9);
            spoil(&mut other.changed[1]);
            assert_eq!(record(&db.store, &other).await, ChangesRecording::Reused(8));
        }
        assert_eq!(kept(&db.store).await, expected, "all of a message or nothing");
    }

    async fn the_oldest_changes_of_a_device_go_with_their_messages(db: &Temporary) {
        let step = u64::try_from(MAX_CHANGES).unwrap();
        let messages = u64::try_from(KEPT_CHANGES).unwrap() / step + 1;
        let other = Changes { device: DeviceRef { name: "db".into(), ..device() }, ..changes('a', 1..=1) };
        record(&db.store, &other).await;
        for message in 0..messages {
            record(&db.store, &changes('a', message * step + 1..=(message + 1) * step)).await;
        }
        let kept = kept(&db.store).await;
        let (total, limit) = (messages * step, u64::try_from(KEPT_CHANGES).unwrap());
        assert_eq!((kept.len(), kept[0].1, kept.last().unwrap().1), (10_000, total - limit + 1, total));
        assert_eq!(db.store.changes(&other.device, 10).await.unwrap().len(), 1, "another device's stay");
        let log = "a".repeat(LOG_NAME);
        let oldest = db.store.change_message(&device(), &log, 1).await.unwrap().unwrap().peek().unwrap();
        assert!(
            oldest.changed.iter().any(|changed| changed.first == kept[0].1),
            "the one with the oldest that is kept"
        );
        record(&db.store, &changes('a', total + 1..=total + step)).await;
        let oldest = db.store.change_message(&device(), &log, 1).await.unwrap().unwrap().peek().unwrap();
        assert_eq!(oldest.changed[0].first, step + 1, "the first message is gone");
    }
}
