//! What is known of vulnerabilities, as it was imported last.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use patchwarden_vulnerabilities::{Entry, Platform, Statement};

use super::{Store, StoreError, Subject, corrupt, millis, storable, timestamp};

/// Rows that one statement deletes: others wait that long for the one connection that writes.
const ROWS_PER_DELETE: i64 = 5_000;

/// An import of another gateway that began longer ago was given up: the whole of Debian's takes a minute or two.
const GIVEN_UP_AFTER: SignedDuration = SignedDuration::from_mins(15);

/// Ids that are noted in one transaction.
const IDS_AT_ONCE: i64 = 2_000;

/// Names of one statement: far below SQLite's 32,766 parameters and PostgreSQL's 65,535.
const NAMES_AT_ONCE: usize = 1_000;

/// An import that is being written.
#[derive(Debug)]
pub struct Import {
    id: i64,
    /// Of the next row.
    number: i64,
}

/// What is known of a vulnerability, wherever it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exploitation {
    /// Since when it is known to be exploited.
    pub added: Option<Date>,
    /// How likely that is within 30 days, in units of 10^-5.
    pub epss: Option<u32>,
}

impl Store {
    /// Digest of the files whose import counts.
    pub async fn vulnerabilities_digest(&self) -> Result<Option<String>, StoreError> {
        let current = sqlx::query_scalar(
            "SELECT digest FROM vulnerability_import WHERE imported IS NOT NULL ORDER BY id DESC LIMIT 1",
        );
        Ok(current.fetch_optional(&self.readers).await?)
    }

    /// Begins an import. None where another gateway is writing one of the same files.
    pub async fn begin_vulnerabilities(&self, digest: &str, now: Timestamp) -> Result<Option<Import>, StoreError> {
        let mut transaction = self.begin(&Subject::Vulnerabilities).await?;
        let others: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM vulnerability_import WHERE imported IS NULL AND digest = $1 AND begun >= $2",
        )
        .bind(digest)
        .bind(self.alive_since(now))
        .fetch_one(&mut *transaction)
        .await?;
        if others > 0 {
            return Ok(None);
        }
        let last: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM vulnerability_import")
            .fetch_one(&mut *transaction)
            .await?;
        // Never one that was deleted: whoever still writes to that must not reach another's.
        let id = millis(now).max(last + 1);
        sqlx::query("INSERT INTO vulnerability_import (id, digest, begun) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(digest)
            .bind(millis(now))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some(Import { id, number: 0 }))
    }

    /// An import that is not complete and began before that is nobody's any more. A file has one gateway, which writes one at a time.
    fn alive_since(&self, now: Timestamp) -> i64 {
        if self.lock.is_some() {
            i64::MAX
        } else {
            millis(now.saturating_sub(GIVEN_UP_AFTER).unwrap_or(Timestamp::MIN))
        }
    }

    /// Adds to an import that does not count yet, in one transaction.
    pub async fn add_vulnerabilities(&self, import: &mut Import, entries: &[Entry]) -> Result<(), StoreError> {
        let mut transaction = self.begin(&Subject::Vulnerabilities).await?;
        for entry in entries {
            match entry {
                Entry::Statement(statement) => {
                    let text = serde_json::to_string(statement)
                        .map_err(|error| corrupt(&statement.advisory, "statement", error))?;
                    sqlx::query(
                        "INSERT INTO vulnerability_statement (import, number, platform, package, statement)
                         VALUES ($1, $2, $3, $4, $5)",
                    )
                    .bind(import.id)
                    .bind(import.number)
                    .bind(statement.platform.as_str())
                    .bind(storable(&statement.package))
                    .bind(text)
                    .execute(&mut *transaction)
                    .await?;
                    for id in subjects(statement) {
                        sqlx::query(
                            "INSERT INTO vulnerability_subject (import, id, number) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                        )
                        .bind(import.id)
                        .bind(storable(id))
                        .bind(import.number)
                        .execute(&mut *transaction)
                        .await?;
                    }
                    import.number += 1;
                }
                Entry::Exploited { cve, added } => {
                    sqlx::query(
                        "INSERT INTO vulnerability_known (import, cve, added) VALUES ($1, $2, $3)
                         ON CONFLICT (import, cve) DO UPDATE SET added = excluded.added",
                    )
                    .bind(import.id)
                    .bind(storable(cve))
                    .bind(added.to_string())
                    .execute(&mut *transaction)
                    .await?;
                }
                Entry::Likelihood { cve, epss } => {
                    sqlx::query(
                        "INSERT INTO vulnerability_known (import, cve, epss) VALUES ($1, $2, $3)
                         ON CONFLICT (import, cve) DO UPDATE SET epss = excluded.epss",
                    )
                    .bind(import.id)
                    .bind(storable(cve))
                    .bind(i64::from(*epss))
                    .execute(&mut *transaction)
                    .await?;
                }
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// From now on an import counts, and no other. What the data say for the first time is known since now.
    pub async fn finish_vulnerabilities(&self, import: Import, now: Timestamp) -> Result<(), StoreError> {
        self.note_first(&import, now).await?;
        let finished = sqlx::query("UPDATE vulnerability_import SET imported = $1 WHERE id = $2")
            .bind(millis(now))
            .bind(import.id)
            .execute(&self.writer)
            .await?;
        if finished.rows_affected() == 1 { Ok(()) } else { Err(StoreError::ImportGone) }
    }

    /// By so many ids in one transaction.
    async fn note_first(&self, import: &Import, now: Timestamp) -> Result<(), StoreError> {
        let mut after = Some(String::new());
        while let Some(from) = after {
            let next =
                "SELECT id FROM vulnerability_subject WHERE import = $1 AND id > $2 ORDER BY id LIMIT 1 OFFSET $3";
            let next = sqlx::query_scalar(next).bind(import.id).bind(from.clone()).bind(IDS_AT_ONCE);
            after = next.fetch_optional(&self.readers).await?;
            sqlx::query(
                "INSERT INTO vulnerability_first (platform, id, known)
                 SELECT DISTINCT said.platform, subject.id, CAST($1 AS BIGINT) FROM vulnerability_subject AS subject
                 JOIN vulnerability_statement AS said ON said.import = subject.import AND said.number = subject.number
                 WHERE subject.import = $2 AND subject.id > $3 AND ($4 = '' OR subject.id <= $4)
                 ON CONFLICT DO NOTHING",
            )
            .bind(millis(now))
            .bind(import.id)
            .bind(from)
            .bind(after.clone().unwrap_or_default())
            .execute(&self.writer)
            .await?;
        }
        Ok(())
    }

    /// Since when the data say something of a release about these vulnerabilities.
    pub async fn known_since(
        &self,
        platform: &Platform,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Timestamp>, StoreError> {
        let mut since = BTreeMap::new();
        for id in ids {
            let known: Option<i64> =
                sqlx::query_scalar("SELECT known FROM vulnerability_first WHERE platform = $1 AND id = $2")
                    .bind(platform.as_str().to_owned())
                    .bind(id.clone())
                    .fetch_optional(&self.readers)
                    .await?;
            if let Some(known) = known {
                since.insert(id.clone(), timestamp(known, id, "known")?);
            }
        }
        Ok(since)
    }

    /// Deletes what does not count: earlier imports, and those that were given up.
    pub async fn prune_vulnerabilities(&self, now: Timestamp) -> Result<(), StoreError> {
        let kept = "SELECT id FROM vulnerability_import WHERE imported IS NULL AND begun >= $1
                    UNION SELECT MAX(id) FROM vulnerability_import WHERE imported IS NOT NULL HAVING MAX(id) IS NOT NULL";
        let rows = |table: &str, key: &str| {
            format!(
                "DELETE FROM {table} WHERE (import, {key}) IN
                 (SELECT import, {key} FROM {table} WHERE import NOT IN ({kept}) LIMIT {ROWS_PER_DELETE})"
            )
        };
        let since = self.alive_since(now);
        for sql in [
            rows("vulnerability_subject", "id, number"),
            rows("vulnerability_statement", "number"),
            rows("vulnerability_known", "cve"),
        ] {
            // The text is made of constants.
            let delete = || sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).bind(since);
            while delete().execute(&self.writer).await?.rows_affected() > 0 {}
        }
        let sql = format!("DELETE FROM vulnerability_import WHERE id NOT IN ({kept})");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(since).execute(&self.writer).await?;
        Ok(())
    }

    /// What advisories say of a release's package of this name, binary or source.
    pub async fn statements(&self, platform: &Platform, package: &str) -> Result<Vec<Statement>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT statement FROM vulnerability_statement WHERE platform = $1 AND package = $2 AND import =
                 (SELECT MAX(id) FROM vulnerability_import WHERE imported IS NOT NULL) ORDER BY number",
        )
        .bind(platform.as_str().to_owned())
        .bind(package.to_owned())
        .fetch_all(&self.readers)
        .await?;
        let unreadable = |error| corrupt(&format!("{platform} {package}"), "statement", error);
        rows.iter().map(|text| serde_json::from_str(text).map_err(unreadable)).collect()
    }

    /// When what counts was imported.
    pub async fn vulnerabilities_imported(&self) -> Result<Option<Timestamp>, StoreError> {
        let imported: Option<i64> = sqlx::query_scalar(
            "SELECT imported FROM vulnerability_import WHERE imported IS NOT NULL ORDER BY id DESC LIMIT 1",
        )
        .fetch_optional(&self.readers)
        .await?;
        imported.map(|time| timestamp(time, "vulnerability_import", "imported")).transpose()
    }

    /// What advisories say of a release's packages of these names, binary or source.
    pub async fn statements_about(
        &self,
        platform: &Platform,
        packages: &BTreeSet<String>,
    ) -> Result<Vec<Statement>, StoreError> {
        let packages: Vec<&String> = packages.iter().collect();
        let mut statements = Vec::new();
        for chunk in packages.chunks(NAMES_AT_ONCE) {
            let names: Vec<String> = (0..chunk.len()).map(|number| format!("${}", number + 2)).collect();
            let text = format!(
                "SELECT statement FROM vulnerability_statement WHERE platform = $1 AND package IN ({}) AND import =
                     (SELECT MAX(id) FROM vulnerability_import WHERE imported IS NOT NULL) ORDER BY number",
                names.join(", ")
            );
            // The text is made of numbers of parameters.
            let mut query = sqlx::query_scalar(sqlx::AssertSqlSafe(text)).bind(platform.as_str().to_owned());
            for package in chunk {
                query = query.bind((*package).clone());
            }
            let rows: Vec<String> = query.persistent(false).fetch_all(&self.readers).await?;
            let unreadable = |error| corrupt(platform.as_str(), "statement", error);
            for text in rows {
                statements.push(serde_json::from_str(&text).map_err(unreadable)?);
            }
        }
        Ok(statements)
    }

    /// What advisories say of a vulnerability, the first so many.
    pub async fn statements_on(&self, id: &str, limit: usize) -> Result<Vec<Statement>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT said.statement FROM vulnerability_subject AS subject
             JOIN vulnerability_statement AS said ON said.import = subject.import AND said.number = subject.number
             WHERE subject.id = $1 AND subject.import =
                 (SELECT MAX(id) FROM vulnerability_import WHERE imported IS NOT NULL) ORDER BY said.number LIMIT $2",
        )
        .bind(id.to_owned())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let unreadable = |error| corrupt(id, "statement", error);
        rows.iter().map(|text| serde_json::from_str(text).map_err(unreadable)).collect()
    }

    /// What is known of the exploitation of several vulnerabilities; those of which nothing is are not in it.
    pub async fn exploitations(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Exploitation>, StoreError> {
        let mut found = BTreeMap::new();
        for id in ids {
            let known = self.exploitation(id).await?;
            if known != Exploitation::default() {
                found.insert(id.clone(), known);
            }
        }
        Ok(found)
    }

    /// What is known of a vulnerability's exploitation.
    pub async fn exploitation(&self, cve: &str) -> Result<Exploitation, StoreError> {
        let row: Option<(Option<String>, Option<i64>)> = sqlx::query_as(
            "SELECT added, epss FROM vulnerability_known WHERE cve = $1 AND import =
                 (SELECT MAX(id) FROM vulnerability_import WHERE imported IS NOT NULL)",
        )
        .bind(cve)
        .fetch_optional(&self.readers)
        .await?;
        let (added, epss) = row.unwrap_or_default();
        Ok(Exploitation {
            added: added.map(|text| text.parse().map_err(|error| corrupt(cve, "added", error))).transpose()?,
            epss: epss.map(|it| u32::try_from(it).map_err(|error| corrupt(cve, "epss", error))).transpose()?,
        })
    }
}

/// What a statement is about: as [`patchwarden_vulnerabilities::matching`] names it.
fn subjects(statement: &Statement) -> impl Iterator<Item = &str> {
    let advisory = statement.cves.is_empty().then_some(statement.advisory.as_str());
    statement.cves.iter().map(String::as_str).chain(advisory)
}
