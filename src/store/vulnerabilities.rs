//! What is known of vulnerabilities, as it was imported last.

use jiff::Timestamp;
use jiff::civil::Date;
use patchwarden_vulnerabilities::{Entry, Platform, Statement};

use super::{Store, StoreError, corrupt, millis};

/// Rows that one statement deletes: others wait that long for the one connection that writes.
const ROWS_PER_DELETE: i64 = 5_000;

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

    /// Begins an import. Only one at a time is written.
    pub async fn begin_vulnerabilities(&self, digest: &str) -> Result<Import, StoreError> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT MAX(id) FROM vulnerability_import").fetch_one(&mut *transaction).await?;
        let id = last.unwrap_or(0) + 1;
        sqlx::query("INSERT INTO vulnerability_import (id, digest) VALUES (?, ?)")
            .bind(id)
            .bind(digest)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Import { id, number: 0 })
    }

    /// Adds to an import that does not count yet, in one transaction.
    pub async fn add_vulnerabilities(&self, import: &mut Import, entries: &[Entry]) -> Result<(), StoreError> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        for entry in entries {
            match entry {
                Entry::Statement(statement) => {
                    let text = serde_json::to_string(statement)
                        .map_err(|error| corrupt(&statement.advisory, "statement", error))?;
                    sqlx::query(
                        "INSERT INTO vulnerability_statement (import, number, platform, package, statement)
                         VALUES (?, ?, ?, ?, ?)",
                    )
                    .bind(import.id)
                    .bind(import.number)
                    .bind(statement.platform.as_str())
                    .bind(&statement.package)
                    .bind(text)
                    .execute(&mut *transaction)
                    .await?;
                    import.number += 1;
                }
                Entry::Exploited { cve, added } => {
                    sqlx::query(
                        "INSERT INTO vulnerability_known (import, cve, added) VALUES (?, ?, ?)
                         ON CONFLICT (import, cve) DO UPDATE SET added = excluded.added",
                    )
                    .bind(import.id)
                    .bind(cve)
                    .bind(added.to_string())
                    .execute(&mut *transaction)
                    .await?;
                }
                Entry::Likelihood { cve, epss } => {
                    sqlx::query(
                        "INSERT INTO vulnerability_known (import, cve, epss) VALUES (?, ?, ?)
                         ON CONFLICT (import, cve) DO UPDATE SET epss = excluded.epss",
                    )
                    .bind(import.id)
                    .bind(cve)
                    .bind(i64::from(*epss))
                    .execute(&mut *transaction)
                    .await?;
                }
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// From now on an import counts, and no other.
    pub async fn finish_vulnerabilities(&self, import: Import, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE vulnerability_import SET imported = ? WHERE id = ?")
            .bind(millis(now))
            .bind(import.id)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Deletes what does not count: earlier imports, and those that were given up. Not while one is written.
    pub async fn prune_vulnerabilities(&self) -> Result<(), StoreError> {
        let current = "COALESCE((SELECT MAX(id) FROM vulnerability_import WHERE imported IS NOT NULL), 0)";
        let rows = |table: &str, key: &str| {
            format!(
                "DELETE FROM {table} WHERE (import, {key}) IN
                 (SELECT import, {key} FROM {table} WHERE import <> {current} LIMIT {ROWS_PER_DELETE})"
            )
        };
        for sql in [rows("vulnerability_statement", "number"), rows("vulnerability_known", "cve")] {
            // The text is made of constants.
            while sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&self.writer).await?.rows_affected() > 0 {}
        }
        let sql = format!("DELETE FROM vulnerability_import WHERE id <> {current}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&self.writer).await?;
        Ok(())
    }

    /// What advisories say of a release's package of this name, binary or source.
    pub async fn statements(&self, platform: &Platform, package: &str) -> Result<Vec<Statement>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT statement FROM vulnerability_statement WHERE platform = ? AND package = ? AND import =
                 (SELECT MAX(id) FROM vulnerability_import WHERE imported IS NOT NULL) ORDER BY number",
        )
        .bind(platform.as_str())
        .bind(package)
        .fetch_all(&self.readers)
        .await?;
        let unreadable = |error| corrupt(&format!("{platform} {package}"), "statement", error);
        rows.iter().map(|text| serde_json::from_str(text).map_err(unreadable)).collect()
    }

    /// What is known of a vulnerability's exploitation.
    pub async fn exploitation(&self, cve: &str) -> Result<Exploitation, StoreError> {
        let row: Option<(Option<String>, Option<i64>)> = sqlx::query_as(
            "SELECT added, epss FROM vulnerability_known WHERE cve = ? AND import =
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
