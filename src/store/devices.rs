//! Devices: last seen, last report, first sightings of updates.

use std::collections::BTreeSet;

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::report::{DeviceRef, Report, Software};
use sqlx::{AssertSqlSafe, Row as _};

use super::{Store, StoreError, Subject, corrupt, millis, placeholders, timestamp};

/// Rows of one statement: three values each, far below SQLite's 32,766 parameters and PostgreSQL's 65,535.
const ROWS_AT_ONCE: usize = 1000;

/// What the store knows of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceRecord {
    /// The key that the report was accepted from.
    pub key: Fingerprint,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// The last accepted report.
    pub report: Option<StoredReport>,
    /// Digest of the software that the store has of it.
    pub software_digest: Option<String>,
}

/// An accepted report.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredReport {
    /// As the device signed it.
    pub envelope: Envelope<Report>,
    /// Digest of its payload.
    pub digest: String,
    /// Its counter.
    pub counter: u64,
}

impl Store {
    /// What is known of a device.
    pub async fn device(&self, device: &DeviceRef) -> Result<Option<DeviceRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT key, last_seen, report, digest, counter, software_digest FROM device
             WHERE namespace = $1 AND name = $2",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let object = device.to_string();
        let key: String = row.try_get("key")?;
        let columns: (Option<String>, Option<String>, Option<i64>) =
            (row.try_get("report")?, row.try_get("digest")?, row.try_get("counter")?);
        let report = match columns {
            (Some(report), Some(digest), Some(counter)) => Some(StoredReport {
                envelope: serde_json::from_str(&report).map_err(|error| corrupt(&object, "report", error))?,
                digest,
                counter: u64::try_from(counter).map_err(|error| corrupt(&object, "counter", error))?,
            }),
            _ => None,
        };
        Ok(Some(DeviceRecord {
            key: key.parse().map_err(|error| corrupt(&object, "key", error))?,
            last_seen: timestamp(row.try_get("last_seen")?, &object, "last_seen")?,
            report,
            software_digest: row.try_get("software_digest")?,
        }))
    }

    /// Keeps an accepted report with everything that came with it, in one transaction.
    pub async fn record_report(
        &self,
        key: &Fingerprint,
        report: &Report,
        stored: &StoredReport,
        software: Option<&Software>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let device = &report.device;
        let object = device.to_string();
        let counter = i64::try_from(stored.counter).map_err(|error| corrupt(&object, "counter", error))?;
        let envelope = serde_json::to_string(&stored.envelope).map_err(|error| corrupt(&object, "report", error))?;
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO device (namespace, name, key, last_seen, report, digest, counter) VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (namespace, name) DO UPDATE SET key = excluded.key, last_seen = excluded.last_seen,
                 report = excluded.report, digest = excluded.digest, counter = excluded.counter
             RETURNING id",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(key.as_str())
        .bind(millis(now))
        .bind(envelope)
        .bind(&stored.digest)
        .bind(counter)
        .fetch_one(&mut *transaction)
        .await?;
        // In order: two devices that tell of the same updates must not wait for each other.
        let updates: BTreeSet<&str> = report.updates.iter().map(|update| update.id.as_str()).collect();
        if !updates.is_empty() {
            let values = placeholders(updates.len(), 3);
            let text =
                format!("INSERT INTO update_seen (namespace, id, first_seen) VALUES {values} ON CONFLICT DO NOTHING");
            let mut insert = sqlx::query(AssertSqlSafe(text));
            for update in updates {
                insert = insert.bind(&device.namespace).bind(update).bind(millis(now));
            }
            insert.execute(&mut *transaction).await?;
        }
        if let Some(software) = software {
            self.replace_software(&mut transaction, id, software, &report.software_digest, now).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Keeps when devices were last heard of, in one transaction.
    pub async fn touch(&self, seen: &[(DeviceRef, Timestamp)]) -> Result<(), StoreError> {
        let mut transaction = self.begin(&Subject::LastSeen).await?;
        for chunk in seen.chunks(ROWS_AT_ONCE) {
            let values = placeholders(chunk.len(), 3);
            let text = format!(
                "WITH seen (namespace, name, time) AS (VALUES {values})
                 UPDATE device SET last_seen = seen.time FROM seen
                 WHERE device.namespace = seen.namespace AND device.name = seen.name AND device.last_seen < seen.time"
            );
            let mut update = sqlx::query(AssertSqlSafe(text)).persistent(false);
            for (device, time) in chunk {
                update = update.bind(&device.namespace).bind(&device.name).bind(millis(*time));
            }
            update.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// When an update was first offered anywhere in a client's namespace.
    pub async fn first_seen(&self, namespace: &str, update: &str) -> Result<Option<Timestamp>, StoreError> {
        let time: Option<i64> =
            sqlx::query_scalar("SELECT first_seen FROM update_seen WHERE namespace = $1 AND id = $2")
                .bind(namespace)
                .bind(update)
                .fetch_optional(&self.readers)
                .await?;
        time.map(|time| timestamp(time, update, "first_seen")).transpose()
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;

    use super::*;
    use crate::gateway::testing::{report, update};
    use crate::store::testing::{Temporary, on_both, package};

    on_both!(
        a_report_is_kept_whole,
        an_update_keeps_its_first_sighting_within_its_namespace,
        last_seen_never_goes_back,
    );

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn stored(report: &Report, key: &PrivateKey) -> StoredReport {
        let envelope = Envelope::seal(report, key).unwrap();
        StoredReport { digest: envelope.digest(), counter: report.counter, envelope }
    }

    async fn a_report_is_kept_whole(db: &Temporary) {
        let key = PrivateKey::generate();
        let mut document = report("acme", "web");
        document.updates = vec![update("pkg:deb/debian/openssl@3.0.17-1")];
        let kept = stored(&document, &key);
        let software = Software { packages: vec![package("curl", "7.88"), package("openssl", "3.0.16-1")] };
        let fingerprint = key.public().fingerprint();
        db.store.record_report(&fingerprint, &document, &kept, Some(&software), at(100)).await.unwrap();

        let record = db.store.device(&document.device).await.unwrap().unwrap();
        assert_eq!(record.key, fingerprint);
        assert_eq!(record.report, Some(kept));
        assert_eq!(record.last_seen, at(100));
        assert_eq!(record.software_digest.as_deref(), Some(document.software_digest.as_str()));
        assert_eq!(db.store.software(&document.device).await.unwrap(), software);
    }

    async fn an_update_keeps_its_first_sighting_within_its_namespace(db: &Temporary) {
        let key = PrivateKey::generate();
        for (name, second) in [("web-1", 100), ("web-2", 200)] {
            let mut document = report("acme", name);
            document.updates = vec![update("DSA-1")];
            let kept = stored(&document, &key);
            db.store.record_report(&key.public().fingerprint(), &document, &kept, None, at(second)).await.unwrap();
        }
        assert_eq!(db.store.first_seen("acme", "DSA-1").await.unwrap(), Some(at(100)));
        assert_eq!(db.store.first_seen("other", "DSA-1").await.unwrap(), None);
    }

    async fn last_seen_never_goes_back(db: &Temporary) {
        let key = PrivateKey::generate();
        let document = report("acme", "web");
        let kept = stored(&document, &key);
        db.store.record_report(&key.public().fingerprint(), &document, &kept, None, at(100)).await.unwrap();
        for (seen, expected) in [(200, 200), (150, 200)] {
            db.store.touch(&[(document.device.clone(), at(seen))]).await.unwrap();
            assert_eq!(db.store.device(&document.device).await.unwrap().unwrap().last_seen, at(expected));
        }
    }
}
