//! What the store has of what is gone for good: devices whose DeviceInventory was deleted, join tokens that are over, updates that nobody
//! offers any more. All of it goes some time after that is known (`Retention::gone`), so that what was deleted by mistake, or by a restore
//! that went wrong, is still there when it comes back.
//!
//! | table | what goes, and why nothing is lost by it |
//! |---|---|
//! | `device`, `installed`, `device_details` | all of a device that is gone. Nothing is decided by it: a device that comes back tells it again |
//! | `lineage` | of a device that is gone; not where several machines were found to use its key |
//! | `package_change`, `change_message` | the last change of a device, which otherwise stays for ever: once it is as old as history may be |
//! | `join_token_use` | of a token that has no ConfigMap any more, or whose time is over: it opens nothing, so there is nothing to count |
//! | `update_seen` | an update that no device offers; people alone read it |
//!
//! What stays: orders and results (`install`) go by their age alone. Sightings, progress and pauses have a time of their own (`record`): what
//! failed on devices that are gone is evidence. The number of a device's last order and the counter of its last report, which keep old
//! orders and reports from counting, are in its resource and on the device; the store's copy protects nothing.

use jiff::Timestamp;
use patchwarden_protocol::report::DeviceRef;
use sqlx::{AssertSqlSafe, Row as _};

use super::changes::drop_messages;
use super::patience::Connection;
use super::retention::{AT_ONCE, before};
use super::{Retention, Store, StoreError, Subject, lineage, millis, placeholders, timestamp};

/// A device of which the store has something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Which.
    pub device: DeviceRef,
    /// Since when it is known to be gone; nothing where it is not.
    pub gone: Option<Timestamp>,
}

/// An update of which the store knows when it was first offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldUpdate {
    /// In which namespace, and its id.
    pub key: (String, String),
    /// When a device was last seen to offer it, if somebody has looked.
    pub offered: Option<Timestamp>,
}

impl Store {
    /// The first devices after this one, by namespace and name, of which the store has anything that goes with them.
    pub async fn remembered(&self, after: Option<&DeviceRef>, limit: usize) -> Result<Vec<Remembered>, StoreError> {
        let of = |table: &str, name: &str| {
            format!(
                "SELECT * FROM (SELECT namespace, {name} AS device FROM {table} WHERE (namespace, {name}) > ($1, $2)
                     ORDER BY namespace, {name} LIMIT $3) AS of_{table}"
            )
        };
        let tables =
            [("device", "name"), ("device_details", "device"), ("lineage", "device"), ("gone_device", "device")];
        let all = tables.map(|(table, name)| of(table, name)).join(" UNION ");
        let text = format!(
            "SELECT known.namespace AS namespace, known.device AS device, gone.since AS since FROM ({all}) AS known
             LEFT JOIN gone_device AS gone ON gone.namespace = known.namespace AND gone.device = known.device
             ORDER BY known.namespace, known.device LIMIT $3"
        );
        let start = DeviceRef { namespace: String::new(), name: String::new() };
        let DeviceRef { namespace, name } = after.unwrap_or(&start).clone();
        // All texts are made of constants.
        let rows = sqlx::query(AssertSqlSafe(text)).bind(namespace).bind(name);
        let rows = rows.bind(i64::try_from(limit).unwrap_or(i64::MAX)).fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                let device = DeviceRef { namespace: row.try_get("namespace")?, name: row.try_get("device")? };
                let since: Option<i64> = row.try_get("since")?;
                let gone = since.map(|since| timestamp(since, &device.to_string(), "since")).transpose()?;
                Ok(Remembered { device, gone })
            })
            .collect()
    }

    /// These have no DeviceInventory. What is known of it already stays.
    pub async fn note_gone(&self, devices: &[DeviceRef], now: Timestamp) -> Result<(), StoreError> {
        if devices.is_empty() {
            return Ok(());
        }
        let values = placeholders(devices.len(), 3);
        let text = format!("INSERT INTO gone_device (namespace, device, since) VALUES {values} ON CONFLICT DO NOTHING");
        let mut insert = sqlx::query(AssertSqlSafe(text)).persistent(false);
        for device in devices {
            insert = insert.bind(device.namespace.clone()).bind(device.name.clone()).bind(millis(now));
        }
        insert.execute(&self.writer).await?;
        Ok(())
    }

    /// These have one again, or still.
    pub async fn note_there(&self, devices: &[DeviceRef]) -> Result<(), StoreError> {
        if devices.is_empty() {
            return Ok(());
        }
        let values = placeholders(devices.len(), 2);
        let text = format!("DELETE FROM gone_device WHERE (namespace, device) IN (VALUES {values})");
        let mut delete = sqlx::query(AssertSqlSafe(text)).persistent(false);
        for device in devices {
            delete = delete.bind(device.namespace.clone()).bind(device.name.clone());
        }
        delete.execute(&self.writer).await?;
        Ok(())
    }

    /// Drops some of what the store has of a device that was gone for long enough. Returns how many rows; 0 when there is nothing more.
    pub async fn drop_gone(&self, device: &DeviceRef, retention: Retention, now: Timestamp) -> Result<u64, StoreError> {
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        // It may have come back since somebody looked.
        let is_gone: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM gone_device AS gone WHERE gone.namespace = $1 AND gone.device = $2 AND gone.since < $3
                 AND NOT EXISTS (SELECT 1 FROM device WHERE device.namespace = $1 AND device.name = $2 AND device.last_seen >= $3)",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(before(retention.gone, now))
        .fetch_one(&mut *transaction)
        .await?;
        if is_gone == 0 {
            return Ok(0);
        }
        let (mut dropped, is_all) = drop_installed(&mut transaction, device).await?;
        if is_all {
            for text in [
                "DELETE FROM device WHERE namespace = $1 AND name = $2",
                "DELETE FROM device_details WHERE namespace = $1 AND device = $2",
            ] {
                let delete = sqlx::query(text).bind(&device.namespace).bind(&device.name);
                dropped += delete.execute(&mut *transaction).await?.rows_affected();
            }
            dropped += lineage::drop_gone(&mut transaction, device).await?;
            let changes = sqlx::query(
                "DELETE FROM package_change WHERE id IN (
                     SELECT id FROM package_change WHERE namespace = $1 AND device = $2 AND recorded < $3 ORDER BY id LIMIT $4)",
            );
            let changes = changes.bind(&device.namespace).bind(&device.name).bind(before(retention.history, now));
            dropped += changes.bind(AT_ONCE).execute(&mut *transaction).await?.rows_affected();
            drop_messages(&mut transaction, device).await?;
            // As long as there is something left it is looked at again.
            sqlx::query(
                "DELETE FROM gone_device WHERE namespace = $1 AND device = $2
                     AND NOT EXISTS (SELECT 1 FROM package_change AS kept WHERE kept.namespace = $1 AND kept.device = $2)
                     AND NOT EXISTS (SELECT 1 FROM lineage AS kept WHERE kept.namespace = $1 AND kept.device = $2)",
            )
            .bind(&device.namespace)
            .bind(&device.name)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(dropped)
    }

    /// Whether anything of a device can be told to people: what it is, what was installed on it, what has changed.
    pub async fn knows(&self, device: &DeviceRef) -> Result<bool, StoreError> {
        let known: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM (SELECT 1 FROM device WHERE namespace = $1 AND name = $2
                 UNION ALL SELECT 1 FROM (SELECT 1 FROM install WHERE namespace = $1 AND device = $2 LIMIT 1) AS of_install
                 UNION ALL SELECT 1 FROM (SELECT 1 FROM package_change WHERE namespace = $1 AND device = $2 LIMIT 1) AS of_change) AS known",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .fetch_one(&self.readers)
        .await?;
        Ok(known > 0)
    }

    /// The first join tokens after this one that were used, and when that was last.
    pub async fn used_tokens(&self, after: &str, limit: usize) -> Result<Vec<(String, Timestamp)>, StoreError> {
        let rows = sqlx::query(
            "SELECT token, MAX(time) AS last FROM join_token_use WHERE token IN (
                 SELECT DISTINCT token FROM join_token_use WHERE token > $1 ORDER BY token LIMIT $2)
             GROUP BY token ORDER BY token",
        );
        let rows = rows.bind(after).bind(i64::try_from(limit).unwrap_or(i64::MAX)).fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                let token: String = row.try_get("token")?;
                let last = timestamp(row.try_get("last")?, &token, "time")?;
                Ok((token, last))
            })
            .collect()
    }

    /// Drops some of the uses of a token that is over, unless it was used since. Returns how many; 0 when there is nothing more.
    pub async fn drop_token_uses(&self, token: &str, retention: Retention, now: Timestamp) -> Result<u64, StoreError> {
        let mut transaction = self.begin(&Subject::Token(token)).await?;
        let delete = sqlx::query(
            "DELETE FROM join_token_use WHERE token = $1 AND (key, namespace, device) IN (
                 SELECT key, namespace, device FROM join_token_use WHERE token = $1 ORDER BY key, namespace, device LIMIT $3)
             AND NOT EXISTS (SELECT 1 FROM join_token_use AS later WHERE later.token = $1 AND later.time >= $2)",
        );
        let delete = delete.bind(token).bind(before(retention.gone, now)).bind(AT_ONCE);
        let dropped = delete.execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        Ok(dropped)
    }

    /// The first updates after this one, by namespace and id, of which it is known when they were first offered.
    pub async fn known_updates(&self, after: &(String, String), limit: usize) -> Result<Vec<OldUpdate>, StoreError> {
        let rows = sqlx::query(
            "SELECT namespace, id, offered FROM update_seen WHERE (namespace, id) > ($1, $2) ORDER BY namespace, id LIMIT $3",
        );
        let rows = rows.bind(&after.0).bind(&after.1).bind(i64::try_from(limit).unwrap_or(i64::MAX));
        rows.fetch_all(&self.readers)
            .await?
            .iter()
            .map(|row| {
                let id: String = row.try_get("id")?;
                let offered: Option<i64> = row.try_get("offered")?;
                let offered = offered.map(|offered| timestamp(offered, &id, "offered")).transpose()?;
                Ok(OldUpdate { key: (row.try_get("namespace")?, id), offered })
            })
            .collect()
    }

    /// Devices offer these now.
    pub async fn note_offered(&self, updates: &[(String, String)], now: Timestamp) -> Result<(), StoreError> {
        if updates.is_empty() {
            return Ok(());
        }
        let values = placeholders(updates.len(), 2);
        let time = updates.len() * 2 + 1;
        let text = format!("UPDATE update_seen SET offered = ${time} WHERE (namespace, id) IN (VALUES {values})");
        let mut update = sqlx::query(AssertSqlSafe(text)).persistent(false);
        for (namespace, id) in updates {
            update = update.bind(namespace.clone()).bind(id.clone());
        }
        update.bind(millis(now)).execute(&self.writer).await?;
        Ok(())
    }

    /// No device has offered these for long enough: when that began is forgotten.
    pub async fn drop_updates(
        &self,
        updates: &[(String, String)],
        retention: Retention,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        if updates.is_empty() {
            return Ok(0);
        }
        let values = placeholders(updates.len(), 2);
        let time = updates.len() * 2 + 1;
        let text = format!("DELETE FROM update_seen WHERE offered < ${time} AND (namespace, id) IN (VALUES {values})");
        let mut delete = sqlx::query(AssertSqlSafe(text)).persistent(false);
        for (namespace, id) in updates {
            delete = delete.bind(namespace.clone()).bind(id.clone());
        }
        Ok(delete.bind(before(retention.gone, now)).execute(&self.writer).await?.rows_affected())
    }
}

/// Drops packages of a device; how many, and whether that were all. While there are more the list counts as unknown: a device that comes
/// back sends all of it.
async fn drop_installed(connection: &mut Connection, device: &DeviceRef) -> Result<(u64, bool), StoreError> {
    let id = sqlx::query_scalar("SELECT id FROM device WHERE namespace = $1 AND name = $2");
    let id: Option<i64> = id.bind(&device.namespace).bind(&device.name).fetch_optional(&mut *connection).await?;
    let Some(id) = id else { return Ok((0, true)) };
    let delete = sqlx::query(
        "DELETE FROM installed WHERE device = $1 AND package IN (
             SELECT package FROM installed WHERE device = $1 ORDER BY package LIMIT $2)",
    );
    let dropped = delete.bind(id).bind(AT_ONCE).execute(&mut *connection).await?.rows_affected();
    let left: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM (SELECT 1 FROM installed WHERE device = $1 LIMIT 1) AS kept")
            .bind(id)
            .fetch_one(&mut *connection)
            .await?;
    if left > 0 {
        let unknown = sqlx::query("UPDATE device SET software_digest = NULL WHERE id = $1").bind(id);
        unknown.execute(connection).await?;
    }
    Ok((dropped, left == 0))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::changes::{By, Change, Changed, Changes, LOG_NAME};
    use patchwarden_protocol::details::{Details, Hardware};
    use patchwarden_protocol::key::{Fingerprint, PrivateKey};
    use patchwarden_protocol::report::Software;

    use super::*;
    use crate::gateway::testing::{self, update};
    use crate::store::testing::{Temporary, on_both, package};
    use crate::store::{Member, StoredReport, TokenUse, TokenUser};

    on_both!(
        all_of_a_device_that_is_gone_goes_in_small_batches_and_nothing_of_others,
        a_device_that_is_back_or_was_heard_of_keeps_everything,
        a_key_of_several_machines_is_not_forgotten,
        uses_of_a_token_go_when_it_was_not_used_for_long_enough,
        an_update_is_forgotten_when_nobody_has_offered_it_for_long_enough,
    );

    const DAY: SignedDuration = SignedDuration::from_hours(24);
    const KEPT: Retention =
        Retention { audit: DAY, history: SignedDuration::from_hours(480), gone: SignedDuration::from_hours(240) };

    fn at(day: i32) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + DAY * day
    }

    fn named(name: &str) -> DeviceRef {
        DeviceRef { namespace: "acme".into(), name: name.into() }
    }

    /// A device with something in every table, of day 0.
    async fn full(db: &Temporary, name: &str, packages: usize) -> Fingerprint {
        let (store, key, device) = (&db.store, PrivateKey::generate(), named(name));
        let fingerprint = key.public().fingerprint();
        let mut report = testing::report("acme", name);
        report.updates = vec![update("DSA-1")];
        let envelope = Envelope::seal(&report, &key).unwrap();
        let kept = StoredReport { digest: envelope.digest(), counter: 1, envelope };
        let packages = (0..packages).map(|n| package(&format!("p{n}"), "1")).collect();
        let software = Software { packages };
        store.record_report(&fingerprint, &report, &kept, Some(&software), at(0)).await.unwrap();
        let details = Details { device: device.clone(), since: Timestamp::UNIX_EPOCH, hardware: Hardware::default() };
        let envelope = Envelope::seal(&details, &key).unwrap();
        store.record_details(&device, &fingerprint, &envelope, at(0)).await.unwrap();
        let member = Member { id: "a".into(), about: "a machine".into() };
        store.meet(&device, &fingerprint, member, "", at(0)).await.unwrap();
        let change = Change {
            name: "p0".into(),
            arch: "amd64".into(),
            before: None,
            after: Some("1".into()),
            by: By::SomebodyElse,
        };
        let changed = Changed {
            log: "a".repeat(LOG_NAME),
            first: 1,
            found_at: at(0),
            from: "sha256:a".into(),
            to: "sha256:b".into(),
            order: None,
            run: None,
            packages: vec![change],
        };
        let told = Changes { device: device.clone(), changed: vec![changed] };
        store.record_changes(&told, &Envelope::seal(&told, &key).unwrap(), at(0)).await.unwrap();
        fingerprint
    }

    /// Rows of a device, in each table that it is in.
    async fn rows(db: &Temporary, name: &str) -> [i64; 7] {
        let tables = [
            "SELECT COUNT(*) FROM device WHERE name = $1",
            "SELECT COUNT(*) FROM installed JOIN device ON device.id = installed.device WHERE device.name = $1",
            "SELECT COUNT(*) FROM device_details WHERE device = $1",
            "SELECT COUNT(*) FROM lineage WHERE device = $1",
            "SELECT COUNT(*) FROM package_change WHERE device = $1",
            "SELECT COUNT(*) FROM change_message WHERE device = $1",
            "SELECT COUNT(*) FROM gone_device WHERE device = $1",
        ];
        let mut counted = [0; 7];
        for (count, text) in counted.iter_mut().zip(tables) {
            *count = sqlx::query_scalar(text).bind(name).fetch_one(&db.store.readers).await.unwrap();
        }
        counted
    }

    async fn all_of_a_device_that_is_gone_goes_in_small_batches_and_nothing_of_others(db: &Temporary) {
        let store = &db.store;
        for (name, packages) in [("web", 1200), ("db", 3)] {
            full(db, name, packages).await;
        }
        let web = named("web");
        let there = |name: &str, gone| Remembered { device: named(name), gone };
        assert_eq!(store.remembered(None, 10).await.unwrap(), [there("db", None), there("web", None)]);
        assert_eq!(store.remembered(Some(&named("db")), 10).await.unwrap(), [there("web", None)]);
        assert_eq!(store.remembered(None, 1).await.unwrap(), [there("db", None)]);
        assert_eq!(store.drop_gone(&web, KEPT, at(100)).await.unwrap(), 0, "nobody has said that it is gone");
        store.note_gone(std::slice::from_ref(&web), at(1)).await.unwrap();
        store.note_gone(std::slice::from_ref(&web), at(9)).await.unwrap();
        assert_eq!(store.remembered(None, 10).await.unwrap()[1], there("web", Some(at(1))), "since it was found first");
        assert_eq!(store.drop_gone(&web, KEPT, at(11)).await.unwrap(), 0, "it stays for ten days");
        let mut dropped = Vec::new();
        for _ in 0..4 {
            dropped.push(store.drop_gone(&web, KEPT, at(12)).await.unwrap());
            let known = store.device(&web).await.unwrap();
            assert!(known.is_none_or(|known| known.software_digest.is_none()), "half a list is none");
        }
        // The packages, then the rest with the device, its details and its line.
        assert_eq!(dropped, [500, 500, 203, 0]);
        assert_eq!(rows(db, "web").await, [0, 0, 0, 0, 1, 1, 1], "history has a time of its own");
        assert!(store.knows(&web).await.unwrap(), "and is there to be read");
        assert_eq!(store.drop_gone(&web, KEPT, at(21)).await.unwrap(), 1);
        assert_eq!(rows(db, "web").await, [0; 7]);
        assert!(!store.knows(&web).await.unwrap());
        assert_eq!(rows(db, "db").await, [1, 3, 1, 1, 1, 1, 0]);
        assert_eq!(store.software(&named("db")).await.unwrap().packages.len(), 3);
    }

    async fn a_device_that_is_back_or_was_heard_of_keeps_everything(db: &Temporary) {
        let store = &db.store;
        for name in ["back", "heard"] {
            full(db, name, 3).await;
        }
        let (back, heard) = (named("back"), named("heard"));
        store.note_gone(&[back.clone(), heard.clone()], at(1)).await.unwrap();
        store.note_there(std::slice::from_ref(&back)).await.unwrap();
        store.touch(&[(heard.clone(), at(95))]).await.unwrap();
        for device in [&back, &heard] {
            assert_eq!(store.drop_gone(device, KEPT, at(100)).await.unwrap(), 0, "{device}");
        }
        assert_eq!(rows(db, "back").await, [1, 3, 1, 1, 1, 1, 0]);
        assert_eq!(rows(db, "heard").await, [1, 3, 1, 1, 1, 1, 1]);
        assert_eq!(store.drop_gone(&heard, KEPT, at(106)).await.unwrap(), 7, "ten days after it was heard of");
    }

    async fn a_key_of_several_machines_is_not_forgotten(db: &Temporary) {
        let (store, web) = (&db.store, named("web"));
        let key = full(db, "web", 1).await;
        for (id, from) in [("copy", ""), ("a", ""), ("copy", "")] {
            let member = Member { id: id.into(), about: "a machine".into() };
            store.meet(&web, &key, member, from, at(0)).await.unwrap();
        }
        assert!(store.lineage(&web, &key).await.unwrap().unwrap().found.is_some());
        store.note_gone(std::slice::from_ref(&web), at(1)).await.unwrap();
        while store.drop_gone(&web, KEPT, at(100)).await.unwrap() > 0 {}
        assert_eq!(rows(db, "web").await, [0, 0, 0, 1, 0, 0, 1], "it is looked at again");
        assert!(store.lineage(&web, &key).await.unwrap().unwrap().found.is_some());
    }

    async fn uses_of_a_token_go_when_it_was_not_used_for_long_enough(db: &Temporary) {
        let store = &db.store;
        let used = async |token: &str, n: usize, day| {
            let (key, device) = (Fingerprint::of(n.to_string().as_bytes()), named("web"));
            let user = TokenUser { key: &key, device: &device, is_enrolled: false };
            store.use_join_token(token, user, 10_000, at(day)).await.unwrap()
        };
        for n in 0..600 {
            assert_eq!(used("old", n, 0).await, TokenUse::Spent);
        }
        used("other", 1, 3).await;
        let tokens = [("old".to_owned(), at(0)), ("other".to_owned(), at(3))];
        assert_eq!(store.used_tokens("", 10).await.unwrap(), tokens);
        assert_eq!(store.used_tokens("old", 10).await.unwrap(), tokens[1..]);
        assert_eq!(store.used_tokens("", 1).await.unwrap(), tokens[..1]);
        assert_eq!(store.drop_token_uses("old", KEPT, at(10)).await.unwrap(), 0, "it stays for ten days");
        let mut dropped = Vec::new();
        for _ in 0..3 {
            dropped.push(store.drop_token_uses("old", KEPT, at(11)).await.unwrap());
        }
        assert_eq!(dropped, [500, 100, 0]);
        assert_eq!(store.used_tokens("", 10).await.unwrap(), tokens[1..]);
        used("other", 2, 30).await;
        assert_eq!(store.drop_token_uses("other", KEPT, at(31)).await.unwrap(), 0, "not even its first use");
        assert_eq!(used("other", 1, 31).await, TokenUse::Repeated);
    }

    async fn an_update_is_forgotten_when_nobody_has_offered_it_for_long_enough(db: &Temporary) {
        let store = &db.store;
        full(db, "web", 1).await;
        let key = |id: &str| ("acme".to_owned(), id.to_owned());
        let one = |offered| OldUpdate { key: key("DSA-1"), offered };
        let start = (String::new(), String::new());
        assert_eq!(store.known_updates(&start, 10).await.unwrap(), [one(None)]);
        assert_eq!(store.known_updates(&key("DSA-1"), 10).await.unwrap(), []);
        assert_eq!(store.drop_updates(&[key("DSA-1")], KEPT, at(100)).await.unwrap(), 0, "nobody has looked");
        store.note_offered(&[key("DSA-1"), key("DSA-2")], at(1)).await.unwrap();
        assert_eq!(store.known_updates(&start, 10).await.unwrap(), [one(Some(at(1)))]);
        assert_eq!(store.drop_updates(&[key("DSA-1")], KEPT, at(11)).await.unwrap(), 0, "it stays for ten days");
        assert_eq!(store.drop_updates(&[key("DSA-2")], KEPT, at(12)).await.unwrap(), 0, "it is another one");
        assert_eq!(store.drop_updates(&[key("DSA-1"), key("DSA-2")], KEPT, at(12)).await.unwrap(), 1);
        assert_eq!(store.first_seen("acme", "DSA-1").await.unwrap(), None);
    }
}
