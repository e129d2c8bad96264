//! What is installed where: each package once, and by numbers on each device.
//!
//! Names and versions are the same on many machines, so a device's list is one of numbers: a few KB, instead of the texts three times over with their
//! indices. Devices are numbered as they come, so that what is written of one lies beside what was written of those before it.
//!
//! A list goes to the database and comes from it as one value, of JSON: row by row, sqlx takes longer for it than the database does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use patchwarden_protocol::report::{DeviceRef, Package, Software};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::patience::Connection;
use super::{Store, StoreError, Subject, corrupt, millis, timestamp};

/// Rows that are dropped in one transaction.
const DROPPED_AT_ONCE: i64 = 500;

/// How many times as many are looked at by one call that finds nothing to drop.
const LOOKS: u32 = 20;

/// Where a package is on more machines than this, a page is looked for device by device, and else among all that have it: either is a few
/// milliseconds then.
const MANY_DEVICES: i64 = 5_000;

/// Where a name has more versions than this, each device's packages are gone through instead of looking each version up.
const MANY_VERSIONS: i64 = 32;

/// Held together by all that write what is installed, and alone by what drops packages that are installed nowhere.
pub(super) const USED: &str = "packages that are used";

/// Held by what adds packages: they are looked up again then, and each is there once.
const ADDED: &str = "packages that are added";

/// A package that is installed nowhere, and of which no change is kept: what was fixed by one is found by its source.
const UNUSED: &str = "NOT EXISTS (SELECT 1 FROM installed WHERE installed.package = package.id)
    AND NOT EXISTS (SELECT 1 FROM package_change AS kept WHERE kept.package = package.name AND kept.arch = package.arch
        AND (kept.old_version = package.version OR kept.new_version = package.version))";

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
        let of = "SELECT id FROM device WHERE namespace = $1 AND name = $2";
        let known: String = sqlx::query_scalar(AssertSqlSafe(self.known_of(of)))
            .bind(&device.namespace)
            .bind(&device.name)
            .fetch_one(&self.readers)
            .await?;
        let packages: BTreeSet<_> = read_known(&known)?.into_iter().map(|known| known.package).collect();
        Ok(Software { packages: packages.into_iter().collect() })
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

    /// A package of a device's: whatever device the key names, for keys come from whoever asks.
    pub async fn package(&self, device: &DeviceRef, key: &PackageKey) -> Result<Option<FoundPackage>, StoreError> {
        let DeviceRef { namespace, name: device } = device.clone();
        let PackageKey(_, _, name, arch, version) = key.clone();
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

    /// Packages of these names, architectures and versions that are kept: with what they were built from. Where that was told otherwise by different
    /// agents, who tells a version of the source counts.
    pub async fn built_from(&self, versions: &BTreeSet<(&str, &str, &str)>) -> Result<Vec<Package>, StoreError> {
        let select = format!(
            "SELECT {} FROM {} CROSS JOIN package
             WHERE package.name = one.value ->> 0 AND package.arch = one.value ->> 1 AND package.version = one.value ->> 2",
            self.gathered("package.name, package.arch, package.version, package.source, package.source_version"),
            self.list("$1")
        );
        let found: String =
            sqlx::query_scalar(AssertSqlSafe(select)).bind(json(versions)?).fetch_one(&self.readers).await?;
        let rows: BTreeSet<(String, String, String, String, String)> =
            serde_json::from_str(&found).map_err(|error| corrupt("package", "name", error))?;
        let told: BTreeMap<_, Package> = rows
            .into_iter()
            .map(|(name, arch, version, source, source_version)| {
                let source_version = Some(source_version).filter(|version| !version.is_empty());
                ((name.clone(), arch.clone(), version.clone()), Package { name, arch, version, source, source_version })
            })
            .collect();
        Ok(told.into_values().collect())
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
        let known: String =
            sqlx::query_scalar(AssertSqlSafe(self.known_of("$1"))).bind(device).fetch_one(&mut *connection).await?;
        let known = read_known(&known)?;
        let known: BTreeMap<_, &Known> = known.iter().map(|known| (key(&known.package), known)).collect();
        // A list that names a package twice keeps one row of it.
        let wanted: BTreeMap<_, &Package> = software.packages.iter().map(|package| (key(package), package)).collect();
        let is_as_known = |package: &Package| known.get(&key(package)).is_some_and(|known| known.package == *package);
        let gone = known.values().filter(|known| wanted.get(&key(&known.package)) != Some(&&known.package));
        let gone: Vec<i64> = gone.map(|known| known.id).collect();
        if !gone.is_empty() {
            let delete = format!(
                "DELETE FROM installed WHERE device = $1 AND package IN (SELECT CAST({} AS BIGINT) FROM {})",
                self.item(),
                self.list("$2")
            );
            sqlx::query(AssertSqlSafe(delete)).bind(device).bind(json(&gone)?).execute(&mut *connection).await?;
        }
        let new: Vec<&Package> = wanted.into_values().filter(|package| !is_as_known(package)).collect();
        if !new.is_empty() {
            let numbers = self.numbers(connection, &new).await?;
            let first = |package| known.get(&key(package)).map_or(Some(millis(now)), |known| known.first_recorded);
            let rows: Vec<_> = new.iter().zip(&numbers).map(|(package, number)| (number, first(package))).collect();
            let insert = format!(
                "INSERT INTO installed (device, package, first_recorded)
                 SELECT $1, CAST(one.value ->> 0 AS BIGINT), CAST(one.value ->> 1 AS BIGINT) FROM {}",
                self.list("$2")
            );
            sqlx::query(AssertSqlSafe(insert)).bind(device).bind(json(&rows)?).execute(&mut *connection).await?;
        }
        let update = sqlx::query("UPDATE device SET software_digest = $1 WHERE id = $2");
        update.bind(digest).bind(device).execute(&mut *connection).await?;
        Ok(())
    }

    /// The numbers of packages, in their order; those that have none are added.
    async fn numbers(&self, connection: &mut Connection, packages: &[&Package]) -> Result<Vec<i64>, StoreError> {
        let mut numbers = BTreeMap::new();
        self.look_up(connection, packages, &mut numbers).await?;
        if numbers.len() < packages.len() {
            self.share(connection, "pg_advisory_xact_lock", ADDED).await?;
            self.look_up(connection, packages, &mut numbers).await?;
            let unknown = packages.iter().enumerate().filter(|(index, _)| !numbers.contains_key(index));
            let unknown: Vec<_> = unknown.map(|(_, package)| texts(package)).collect();
            let insert = format!(
                "INSERT INTO package (name, arch, version, source, source_version)
                 SELECT one.value ->> 0, one.value ->> 1, one.value ->> 2, one.value ->> 3, one.value ->> 4 FROM {}",
                self.list("$1")
            );
            sqlx::query(AssertSqlSafe(insert)).bind(json(&unknown)?).execute(&mut *connection).await?;
            self.look_up(connection, packages, &mut numbers).await?;
        }
        let number = |(index, package): (usize, &&Package)| {
            let number = numbers.get(&index).copied();
            number.ok_or_else(|| corrupt(&package.name, "id", "a package was not added"))
        };
        packages.iter().enumerate().map(number).collect()
    }

    /// Adds the numbers of those of these packages that have one, by their places among them.
    async fn look_up(
        &self,
        connection: &mut Connection,
        packages: &[&Package],
        numbers: &mut BTreeMap<usize, i64>,
    ) -> Result<(), StoreError> {
        let unknown = packages.iter().enumerate().filter(|(index, _)| !numbers.contains_key(index));
        let unknown: Vec<_> = unknown.map(|(index, package)| (texts(package), index)).collect();
        let select = format!(
            "SELECT {} FROM {} CROSS JOIN package
             WHERE package.name = one.value -> 0 ->> 0 AND package.arch = one.value -> 0 ->> 1
                 AND package.version = one.value -> 0 ->> 2 AND package.source = one.value -> 0 ->> 3
                 AND package.source_version = one.value -> 0 ->> 4",
            self.gathered("CAST(one.value ->> 1 AS BIGINT), package.id"),
            self.list("$1")
        );
        let found: String =
            sqlx::query_scalar(AssertSqlSafe(select)).bind(json(&unknown)?).fetch_one(&mut *connection).await?;
        let found: Vec<(usize, i64)> = serde_json::from_str(&found).map_err(|error| corrupt("package", "id", error))?;
        numbers.extend(found);
        Ok(())
    }

    /// A statement for [`read_known`], with what the device's number is.
    fn known_of(&self, device: &str) -> String {
        let columns = "package.id, package.name, package.arch, package.version, package.source, package.source_version,
            installed.first_recorded";
        let gathered = self.gathered(columns);
        format!(
            "SELECT {gathered} FROM installed JOIN package ON package.id = installed.package WHERE installed.device = ({device})"
        )
    }

    /// All rows as one value: an array of arrays
    /// (<https://sqlite.org/json1.html>, <https://www.postgresql.org/docs/current/functions-json.html>).
    fn gathered(&self, columns: &str) -> String {
        if self.is_shared() {
            format!("CAST(COALESCE(json_agg(json_build_array({columns})), '[]') AS TEXT)")
        } else {
            format!("json_group_array(json_array({columns}))")
        }
    }

    /// The rows `one.value` of a parameter that is an array.
    fn list(&self, parameter: &str) -> String {
        if self.is_shared() {
            format!("json_array_elements(CAST({parameter} AS JSON)) AS one (value)")
        } else {
            format!("json_each({parameter}) AS one")
        }
    }

    /// An item of such an array that is no array itself.
    fn item(&self) -> &'static str {
        if self.is_shared() { "CAST(one.value AS TEXT)" } else { "one.value" }
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
    ///
    /// It goes on where it has ended before: those that only a change names stay for as long as it does, and may be many.
    pub(super) async fn prune_packages(&self) -> Result<u64, StoreError> {
        for _ in 0..LOOKS {
            let after = self.pruned.load(Ordering::Relaxed);
            let unused: Vec<i64> = sqlx::query_scalar(
                "SELECT id FROM package WHERE id > $1
                     AND NOT EXISTS (SELECT 1 FROM installed WHERE installed.package = package.id) ORDER BY id LIMIT $2",
            )
            .bind(after)
            .bind(DROPPED_AT_ONCE)
            .fetch_all(&self.readers)
            .await?;
            let is_last = i64::try_from(unused.len()).is_ok_and(|found| found < DROPPED_AT_ONCE);
            let dropped = if unused.is_empty() { 0 } else { self.drop_unused(&unused).await? };
            let next = unused.last().filter(|_| !is_last).copied().unwrap_or(0);
            self.pruned.store(next, Ordering::Relaxed);
            if is_last || dropped > 0 {
                return Ok(dropped);
            }
        }
        Ok(0)
    }

    /// Of these packages those that nothing names.
    async fn drop_unused(&self, packages: &[i64]) -> Result<u64, StoreError> {
        let mut transaction = self.begin(&Subject::Packages).await?;
        let text = format!(
            "DELETE FROM package WHERE id IN (SELECT CAST({} AS BIGINT) FROM {}) AND {UNUSED}",
            self.item(),
            self.list("$1")
        );
        let delete = sqlx::query(AssertSqlSafe(text)).bind(json(&packages)?);
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

/// Numbers, packages, and since when.
fn read_known(text: &str) -> Result<Vec<Known>, StoreError> {
    type Row = (i64, String, String, String, String, String, Option<i64>);
    let rows: Vec<Row> = serde_json::from_str(text).map_err(|error| corrupt("package", "name", error))?;
    let known = |(id, name, arch, version, source, source_version, first_recorded): Row| {
        let source_version = Some(source_version).filter(|version| !version.is_empty());
        Known { id, package: Package { name, arch, version, source, source_version }, first_recorded }
    };
    Ok(rows.into_iter().map(known).collect())
}

fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| corrupt("package", "name", error))
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
