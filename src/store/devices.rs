//! Devices: last seen, last report, installed software, first sightings of updates.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::report::{DeviceRef, Package, Report, Software};
use sqlx::any::AnyRow;
use sqlx::{Any, AssertSqlSafe, Executor, Row as _};

use super::patience::Connection;
use super::{Store, StoreError, Subject, corrupt, millis, placeholders, timestamp};

/// Rows of one statement: eight values each, far below SQLite's 32,766 parameters and PostgreSQL's 65,535.
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

/// A package somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPackage {
    /// Where.
    pub device: DeviceRef,
    /// What.
    pub package: Package,
    /// When it was first recorded there in this version, where that is known.
    pub first_recorded: Option<Timestamp>,
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
        sqlx::query(
            "INSERT INTO device (namespace, name, key, last_seen, report, digest, counter) VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (namespace, name) DO UPDATE SET key = excluded.key, last_seen = excluded.last_seen,
                 report = excluded.report, digest = excluded.digest, counter = excluded.counter",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(key.as_str())
        .bind(millis(now))
        .bind(envelope)
        .bind(&stored.digest)
        .bind(counter)
        .execute(&mut *transaction)
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
            replace_software(&mut transaction, device, software, &report.software_digest, now).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Keeps a software list that came after its report.
    pub async fn record_software(
        &self,
        device: &DeviceRef,
        software: &Software,
        digest: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        replace_software(&mut transaction, device, software, digest, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The software list of a device, sorted.
    pub async fn software(&self, device: &DeviceRef) -> Result<Software, StoreError> {
        Ok(Software { packages: packages_of(&self.readers, device).await?.into_iter().collect() })
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

    /// Where a package is installed, and in which versions; by device.
    pub async fn find_package(&self, name: &str) -> Result<Vec<FoundPackage>, StoreError> {
        let rows = sqlx::query(
            "SELECT namespace, device, name, arch, version, source, source_version, first_recorded FROM package WHERE name = $1
             ORDER BY namespace, device, arch, version",
        )
        .bind(name)
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                let first: Option<i64> = row.try_get("first_recorded")?;
                Ok(FoundPackage {
                    device: DeviceRef { namespace: row.try_get("namespace")?, name: row.try_get("device")? },
                    package: package_of(row)?,
                    first_recorded: first.map(|first| timestamp(first, name, "first_recorded")).transpose()?,
                })
            })
            .collect()
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

/// What tells a device's packages apart.
fn key(package: &Package) -> (&str, &str, &str) {
    (&package.name, &package.arch, &package.version)
}

pub(super) fn package_of(row: &AnyRow) -> Result<Package, StoreError> {
    Ok(Package {
        name: row.try_get("name")?,
        arch: row.try_get("arch")?,
        version: row.try_get("version")?,
        source: row.try_get("source")?,
        source_version: row.try_get("source_version")?,
    })
}

async fn packages_of(
    connection: impl Executor<'_, Database = Any>,
    device: &DeviceRef,
) -> Result<BTreeSet<Package>, StoreError> {
    let rows = sqlx::query(
        "SELECT name, arch, version, source, source_version FROM package WHERE namespace = $1 AND device = $2",
    )
    .bind(&device.namespace)
    .bind(&device.name)
    .fetch_all(connection)
    .await?;
    rows.iter().map(package_of).collect()
}

/// What stays keeps the date when it was first recorded, also where more is told of it than before; a machine on which one package
/// has changed costs two rows.
async fn replace_software(
    connection: &mut Connection,
    device: &DeviceRef,
    software: &Software,
    digest: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let known = packages_of(&mut *connection, device).await?;
    // A list that names a package twice keeps one row of it.
    let wanted: BTreeMap<_, &Package> = software.packages.iter().map(|package| (key(package), package)).collect();
    for package in known.iter().filter(|package| !wanted.contains_key(&key(package))) {
        let (name, arch, version) = key(package);
        sqlx::query(
            "DELETE FROM package WHERE namespace = $1 AND device = $2 AND name = $3 AND arch = $4 AND version = $5",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(name)
        .bind(arch)
        .bind(version)
        .execute(&mut *connection)
        .await?;
    }
    let new: Vec<&Package> = wanted.into_values().filter(|package| !known.contains(*package)).collect();
    for chunk in new.chunks(ROWS_AT_ONCE) {
        let values = placeholders(chunk.len(), 8);
        let text = format!(
            "INSERT INTO package (namespace, device, name, arch, version, source, source_version, first_recorded)
             VALUES {values}
             ON CONFLICT (namespace, device, name, arch, version)
             DO UPDATE SET source = excluded.source, source_version = excluded.source_version"
        );
        let mut insert = sqlx::query(AssertSqlSafe(text)).persistent(false);
        for Package { name, arch, version, source, source_version } in chunk {
            insert = insert.bind(&device.namespace).bind(&device.name).bind(name).bind(arch).bind(version).bind(source);
            insert = insert.bind(source_version).bind(millis(now));
        }
        insert.execute(&mut *connection).await?;
    }
    sqlx::query("UPDATE device SET software_digest = $1 WHERE namespace = $2 AND name = $3")
        .bind(digest)
        .bind(&device.namespace)
        .bind(&device.name)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;

    use super::*;
    use crate::gateway::testing::{report, update};
    use crate::store::testing::{Temporary, on_both};

    on_both!(
        a_report_is_kept_whole,
        an_update_keeps_its_first_sighting_within_its_namespace,
        software_is_replaced_not_added_to,
        last_seen_never_goes_back,
    );

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn package(name: &str, version: &str) -> Package {
        let (arch, source) = ("amd64".into(), name.into());
        Package { name: name.into(), arch, version: version.into(), source, source_version: None }
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
        let software = Software { packages: vec![package("openssl", "3.0.16-1"), package("curl", "7.88")] };
        let fingerprint = key.public().fingerprint();
        db.store.record_report(&fingerprint, &document, &kept, Some(&software), at(100)).await.unwrap();

        let record = db.store.device(&document.device).await.unwrap().unwrap();
        assert_eq!(record.key, fingerprint);
        assert_eq!(record.report, Some(kept));
        assert_eq!(record.last_seen, at(100));
        assert_eq!(record.software_digest.as_deref(), Some(document.software_digest.as_str()));
        let found = db.store.find_package("openssl").await.unwrap();
        let expected = FoundPackage {
            device: document.device.clone(),
            package: package("openssl", "3.0.16-1"),
            first_recorded: Some(at(100)),
        };
        assert_eq!(found, [expected]);
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

    async fn software_is_replaced_not_added_to(db: &Temporary) {
        let key = PrivateKey::generate();
        let document = report("acme", "web");
        let kept = stored(&document, &key);
        let many = Software { packages: (0..2500).map(|n| package(&format!("p{n}"), "1")).collect() };
        let fingerprint = key.public().fingerprint();
        db.store.record_report(&fingerprint, &document, &kept, Some(&many), at(1)).await.unwrap();
        assert_eq!(db.store.find_package("p2499").await.unwrap().len(), 1);
        assert_eq!(db.store.software(&document.device).await.unwrap().packages.len(), 2500);
        let few = Software { packages: vec![package("p0", "2"), package("p1", "1")] };
        db.store.record_software(&document.device, &few, "sha256:new", at(2)).await.unwrap();
        assert!(db.store.find_package("p2499").await.unwrap().is_empty());
        assert_eq!(db.store.software(&document.device).await.unwrap(), few);
        for (name, second) in [("p0", 2), ("p1", 1)] {
            let found = db.store.find_package(name).await.unwrap();
            assert_eq!(found[0].first_recorded, Some(at(second)), "{name}");
        }
        assert_eq!(db.store.find_package("p0").await.unwrap()[0].package.version, "2");
        let record = db.store.device(&document.device).await.unwrap().unwrap();
        assert_eq!(record.software_digest.as_deref(), Some("sha256:new"));
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
