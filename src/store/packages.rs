//! What is installed where: each package once, and by numbers on each device.
//!
//! Names and versions are the same on many machines, so a device's list is one of numbers: a few KB, instead of the texts three times over with their
//! indices. Devices are numbered as they come, so that what is written of one lies beside what was written of those before it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use patchwarden_protocol::report::{DeviceRef, Package, Software};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::patience::Connection;
use super::{Store, StoreError, Subject, corrupt, millis, placeholders, timestamp};

/// Rows of one statement: five values each at most, far below SQLite's 32,766 parameters and PostgreSQL's 65,535.
const ROWS_AT_ONCE: usize = 1000;

/// Rows that are dropped in one transaction.
const DROPPED_AT_ONCE: usize = 500;

/// Where a package is on more machines than this, a page is looked for device by device, and else among all that have it: either is a few
/// milliseconds then.
const MANY_DEVICES: i64 = 5_000;

/// Where a name has more versions than this, each device's packages are gone through instead of looking each version up.
const MANY_VERSIONS: i64 = 32;

/// Held together by all that write what is installed, and alone by what drops packages that are installed nowhere.
pub(super) const USED: &str = "packages that are used";

/// Held by what adds packages: they are looked up again then, and each is there once.
const ADDED: &str = "packages that are added";

/// What a found package is read from.
const FOUND: &str =
    "SELECT device.namespace, device.name AS device, package.name, package.arch, package.version, package.source,
    package.source_version, installed.first_recorded";

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

/// Where a package is, and which it is: in this order packages are listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageKey(pub String, pub String, pub String, pub String, pub String);

impl PackageKey {
    /// Of a package that was found.
    pub fn of(found: &FoundPackage) -> Self {
        let Package { name, arch, version, source: _, source_version: _ } = &found.package;
        let DeviceRef { namespace, name: device } = &found.device;
        Self(namespace.clone(), device.clone(), name.clone(), arch.clone(), version.clone())
    }

    /// Before all others.
    pub fn first() -> Self {
        Self(String::new(), String::new(), String::new(), String::new(), String::new())
    }
}

/// By what a package is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The name of the binary package.
    Binary,
    /// The name of the package that it was built from.
    Source,
}

/// A package of a device, and since when.
struct Known {
    id: i64,
    package: Package,
    first_recorded: Option<i64>,
}

impl Store {
    /// Keeps a software list that came after its report.
    pub async fn record_software(
        &self,
        device: &DeviceRef,
        software: &Software,
        digest: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        let id: Option<i64> = sqlx::query_scalar("SELECT id FROM device WHERE namespace = $1 AND name = $2")
            .bind(&device.namespace)
            .bind(&device.name)
            .fetch_optional(&mut *transaction)
            .await?;
        let id = id.ok_or_else(|| corrupt(&device.to_string(), "id", "no report of this device is kept"))?;
        self.replace_software(&mut transaction, id, software, digest, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The software list of a device, sorted.
    pub async fn software(&self, device: &DeviceRef) -> Result<Software, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{FOUND} FROM device JOIN installed ON installed.device = device.id JOIN package ON package.id = installed.package
             WHERE device.namespace = $1 AND device.name = $2"
        )))
        .bind(&device.namespace)
        .bind(&device.name)
        .fetch_all(&self.readers)
        .await?;
        let packages: Result<BTreeSet<_>, _> = rows.iter().map(package).collect();
        Ok(Software { packages: packages?.into_iter().collect() })
    }

    /// The packages of a device, sorted, after this one.
    pub async fn packages_of(
        &self,
        device: &DeviceRef,
        after: Option<&PackageKey>,
        limit: usize,
    ) -> Result<Vec<FoundPackage>, StoreError> {
        let start = PackageKey::first();
        let PackageKey(_, _, name, arch, version) = after.unwrap_or(&start);
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{FOUND} FROM device JOIN installed ON installed.device = device.id JOIN package ON package.id = installed.package
             WHERE device.namespace = $1 AND device.name = $2 AND (package.name, package.arch, package.version) > ($3, $4, $5)
             ORDER BY package.name, package.arch, package.version LIMIT $6"
        )))
        .bind(device.namespace.clone())
        .bind(device.name.clone())
        .bind(name.clone())
        .bind(arch.clone())
        .bind(version.clone())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(found).collect()
    }

    /// One package.
    pub async fn package(&self, key: &PackageKey) -> Result<Option<FoundPackage>, StoreError> {
        let PackageKey(namespace, device, name, arch, version) = key.clone();
        let row = sqlx::query(AssertSqlSafe(format!(
            "{FOUND} FROM device JOIN installed ON installed.device = device.id JOIN package ON package.id = installed.package
             WHERE device.namespace = $1 AND device.name = $2 AND package.name = $3 AND package.arch = $4 AND package.version = $5"
        )));
        let row = row.bind(namespace).bind(device).bind(name).bind(arch).bind(version);
        row.fetch_optional(&self.readers).await?.as_ref().map(found).transpose()
    }

    /// Where packages of a name are installed, in the order of [`PackageKey`], after this one; in one namespace or in all.
    pub async fn packages_named(
        &self,
        named: Named,
        name: &str,
        namespace: Option<&str>,
        after: Option<&PackageKey>,
        limit: usize,
    ) -> Result<Vec<FoundPackage>, StoreError> {
        let column = match named {
            Named::Binary => "name",
            Named::Source => "source",
        };
        // All texts are made of constants.
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT (SELECT COUNT(*) FROM package WHERE {column} = $1) AS versions,
                 (SELECT COUNT(*) FROM (SELECT 1 FROM package JOIN installed ON installed.package = package.id
                     WHERE package.{column} = $1 LIMIT $2) AS place) AS places"
        )));
        let row = row.bind(name.to_owned()).bind(MANY_DEVICES + 1).fetch_one(&self.readers).await?;
        let (versions, places): (i64, i64) = (row.try_get("versions")?, row.try_get("places")?);
        // To SQLite, CROSS JOIN and a plus are what it must do in this order, and without that index (<https://sqlite.org/optoverview.html#manctrl>).
        let from = if places <= MANY_DEVICES {
            format!(
                "FROM package CROSS JOIN installed CROSS JOIN device
                 WHERE package.{column} = $1 AND installed.package = package.id AND device.id = installed.device"
            )
        } else {
            let number = if versions <= MANY_VERSIONS { "installed.package" } else { "+installed.package" };
            format!(
                "FROM device CROSS JOIN installed CROSS JOIN package
                 WHERE installed.device = device.id AND {number} IN (SELECT id FROM package WHERE {column} = $1)
                     AND package.id = installed.package"
            )
        };
        let only = if namespace.is_some() { "device.namespace = $8" } else { "$8 = ''" };
        let text = format!(
            "{FOUND} {from} AND {only} AND (device.namespace, device.name) >= ($2, $3)
                 AND (device.namespace, device.name, package.name, package.arch, package.version) > ($2, $3, $4, $5, $6)
             ORDER BY device.namespace, device.name, package.name, package.arch, package.version LIMIT $7"
        );
        let start = PackageKey::first();
        let PackageKey(in_namespace, device, package, arch, version) = after.unwrap_or(&start);
        let rows = sqlx::query(AssertSqlSafe(text))
            .bind(name.to_owned())
            .bind(in_namespace.clone())
            .bind(device.clone())
            .bind(package.clone())
            .bind(arch.clone())
            .bind(version.clone())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(namespace.unwrap_or_default().to_owned())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(found).collect()
    }

    /// What stays keeps the date when it was first recorded, also where more is told of it than before; a machine on which one package
    /// has changed costs two rows.
    pub(super) async fn replace_software(
        &self,
        connection: &mut Connection,
        device: i64,
        software: &Software,
        digest: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.share(connection, "pg_advisory_xact_lock_shared", USED).await?;
        let known = known(connection, device).await?;
        let known: BTreeMap<_, &Known> = known.iter().map(|known| (key(&known.package), known)).collect();
        // A list that names a package twice keeps one row of it.
        let wanted: BTreeMap<_, &Package> = software.packages.iter().map(|package| (key(package), package)).collect();
        let is_as_known = |package: &Package| known.get(&key(package)).is_some_and(|known| known.package == *package);
        let gone = known.values().filter(|known| wanted.get(&key(&known.package)) != Some(&&known.package));
        for Known { id, .. } in gone {
            let delete = sqlx::query("DELETE FROM installed WHERE device = $1 AND package = $2");
            delete.bind(device).bind(id).execute(&mut *connection).await?;
        }
        let new: Vec<&Package> = wanted.into_values().filter(|package| !is_as_known(package)).collect();
        let numbers = self.numbers(connection, &new).await?;
        for chunk in new.chunks(ROWS_AT_ONCE) {
            let text = format!(
                "INSERT INTO installed (device, package, first_recorded) VALUES {}",
                placeholders(chunk.len(), 3)
            );
            let mut insert = sqlx::query(AssertSqlSafe(text)).persistent(false);
            for package in chunk {
                let number = numbers.get(package).copied();
                let number = number.ok_or_else(|| corrupt(&package.name, "id", "a package was not added"))?;
                let first = known.get(&key(package)).map_or(Some(millis(now)), |known| known.first_recorded);
                insert = insert.bind(device).bind(number).bind(first);
            }
            insert.execute(&mut *connection).await?;
        }
        let update = sqlx::query("UPDATE device SET software_digest = $1 WHERE id = $2");
        update.bind(digest).bind(device).execute(&mut *connection).await?;
        Ok(())
    }

    /// The numbers of packages; those that have none are added.
    async fn numbers<'a>(
        &self,
        connection: &mut Connection,
        packages: &[&'a Package],
    ) -> Result<BTreeMap<&'a Package, i64>, StoreError> {
        let mut numbers = looked_up(connection, packages).await?;
        let missing = |numbers: &BTreeMap<&Package, i64>| -> Vec<&'a Package> {
            packages.iter().filter(|package| !numbers.contains_key(**package)).copied().collect()
        };
        let unknown = missing(&numbers);
        if unknown.is_empty() {
            return Ok(numbers);
        }
        self.share(connection, "pg_advisory_xact_lock", ADDED).await?;
        numbers.extend(looked_up(connection, &unknown).await?);
        let unknown = missing(&numbers);
        for chunk in unknown.chunks(ROWS_AT_ONCE) {
            let values = placeholders(chunk.len(), 5);
            let text = format!("INSERT INTO package (name, arch, version, source, source_version) VALUES {values}");
            let mut insert = sqlx::query(AssertSqlSafe(text)).persistent(false);
            for text in chunk.iter().flat_map(|package| texts(package)) {
                insert = insert.bind(text);
            }
            insert.execute(&mut *connection).await?;
        }
        numbers.extend(looked_up(connection, &unknown).await?);
        Ok(numbers)
    }

    /// Takes one of PostgreSQL's locks until the end of a transaction. In a file one transaction writes at a time.
    async fn share(&self, connection: &mut Connection, lock: &str, what: &str) -> Result<(), StoreError> {
        if self.is_shared() {
            let lock = sqlx::query(AssertSqlSafe(format!("SELECT {lock}(hashtextextended($1, 0))")));
            lock.bind(what).execute(connection).await?;
        }
        Ok(())
    }

    /// Drops some of the packages that are installed nowhere any more. Returns how many; 0 when there is nothing more.
    pub(super) async fn prune_packages(&self) -> Result<u64, StoreError> {
        let unused =
            "SELECT id FROM package WHERE NOT EXISTS (SELECT 1 FROM installed WHERE installed.package = package.id)";
        let unused: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(format!("{unused} LIMIT $1")))
            .bind(i64::try_from(DROPPED_AT_ONCE).unwrap_or(i64::MAX))
            .fetch_all(&self.readers)
            .await?;
        if unused.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.begin(&Subject::Packages).await?;
        let text = format!(
            "DELETE FROM package WHERE id IN ({}) AND NOT EXISTS (SELECT 1 FROM installed WHERE installed.package = package.id)",
            placeholders(1, unused.len()).trim_matches(['(', ')'])
        );
        let mut delete = sqlx::query(AssertSqlSafe(text)).persistent(false);
        for id in unused {
            delete = delete.bind(id);
        }
        let dropped = delete.execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        Ok(dropped)
    }
}

/// What tells a device's packages apart.
fn key(package: &Package) -> (&str, &str, &str) {
    (&package.name, &package.arch, &package.version)
}

/// All of a package, as it is kept.
fn texts(package: &Package) -> [&str; 5] {
    let Package { name, arch, version, source, source_version } = package;
    [name, arch, version, source, source_version.as_deref().unwrap_or_default()]
}

async fn known(connection: &mut Connection, device: i64) -> Result<Vec<Known>, StoreError> {
    let rows = sqlx::query(
        "SELECT package.id, package.name, package.arch, package.version, package.source, package.source_version,
             installed.first_recorded
         FROM installed JOIN package ON package.id = installed.package WHERE installed.device = $1",
    )
    .bind(device)
    .fetch_all(connection)
    .await?;
    let known = |row: &AnyRow| {
        Ok(Known { id: row.try_get("id")?, package: package(row)?, first_recorded: row.try_get("first_recorded")? })
    };
    rows.iter().map(known).collect()
}

/// Of these packages, the numbers of those that have one.
async fn looked_up<'a>(
    connection: &mut Connection,
    packages: &[&'a Package],
) -> Result<BTreeMap<&'a Package, i64>, StoreError> {
    let mut numbers = BTreeMap::new();
    for chunk in packages.chunks(ROWS_AT_ONCE) {
        let values = placeholders(chunk.len(), 5);
        let text = format!(
            "WITH wanted (name, arch, version, source, source_version) AS (VALUES {values})
             SELECT package.id, package.name, package.arch, package.version, package.source, package.source_version
             FROM wanted CROSS JOIN package
             WHERE package.name = wanted.name AND package.arch = wanted.arch AND package.version = wanted.version
                 AND package.source = wanted.source AND package.source_version = wanted.source_version"
        );
        let mut select = sqlx::query(AssertSqlSafe(text)).persistent(false);
        for text in chunk.iter().flat_map(|package| texts(package)) {
            select = select.bind(text);
        }
        let rows = select.fetch_all(&mut *connection).await?;
        let rows: Result<Vec<(Package, i64)>, StoreError> =
            rows.iter().map(|row| Ok((package(row)?, row.try_get("id")?))).collect();
        let rows = rows?;
        let ids: BTreeMap<_, i64> = rows.iter().map(|(package, id)| (texts(package), *id)).collect();
        numbers.extend(chunk.iter().filter_map(|package| ids.get(&texts(package)).map(|id| (*package, *id))));
    }
    Ok(numbers)
}

fn package(row: &AnyRow) -> Result<Package, StoreError> {
    let source_version: String = row.try_get("source_version")?;
    Ok(Package {
        name: row.try_get("name")?,
        arch: row.try_get("arch")?,
        version: row.try_get("version")?,
        source: row.try_get("source")?,
        source_version: Some(source_version).filter(|version| !version.is_empty()),
    })
}

fn found(row: &AnyRow) -> Result<FoundPackage, StoreError> {
    let package = package(row)?;
    let first: Option<i64> = row.try_get("first_recorded")?;
    Ok(FoundPackage {
        device: DeviceRef { namespace: row.try_get("namespace")?, name: row.try_get("device")? },
        first_recorded: first.map(|first| timestamp(first, &package.name, "first_recorded")).transpose()?,
        package,
    })
}
