//! Who did what, and what came of it.

use jiff::Timestamp;
use patchwarden_protocol::report::DeviceRef;
use sqlx::Row as _;

use super::{Store, StoreError, Subject, millis, storable, timestamp};

/// One line of the audit, to be written.
#[derive(Clone, Copy, Debug)]
pub struct AuditEntry<'a> {
    /// Who: `device <namespace>/<name>`, `key SHA256:...`, `pod <namespace>/<name>`.
    pub who: &'a str,
    /// What they tried: `Enroll`, `Report`, `Run`.
    pub what: &'a str,
    /// On what.
    pub object: &'a str,
    /// What came of it: a reason code.
    pub outcome: &'a str,
    /// For people.
    pub detail: &'a str,
}

/// One line of the audit, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// When.
    pub time: Timestamp,
    /// Who.
    pub who: String,
    /// What they tried.
    pub what: String,
    /// On what.
    pub object: String,
    /// What came of it.
    pub outcome: String,
    /// For people.
    pub detail: String,
}

impl Store {
    /// Writes one line of the audit.
    pub async fn audit(&self, entry: AuditEntry<'_>, now: Timestamp) -> Result<(), StoreError> {
        let AuditEntry { who, what, object, outcome, detail } = entry;
        sqlx::query("INSERT INTO audit (time, who, what, object, outcome, detail) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(millis(now))
            .bind(storable(who))
            .bind(storable(what))
            .bind(storable(object))
            .bind(storable(outcome))
            .bind(storable(detail))
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Writes one line of the audit about a device, unless it is there since `since`: several gateways see the same.
    pub async fn audit_once(
        &self,
        device: &DeviceRef,
        entry: AuditEntry<'_>,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let AuditEntry { who, what, object, outcome, detail } = entry;
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        sqlx::query(
            "INSERT INTO audit (time, who, what, object, outcome, detail)
             SELECT CAST($1 AS BIGINT), CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS TEXT), CAST($6 AS TEXT)
             WHERE NOT EXISTS (SELECT 1 FROM audit WHERE time >= $7 AND who = $2 AND what = $3 AND object = $4
                 AND outcome = $5 AND detail = $6)",
        )
        .bind(millis(now))
        .bind(storable(who))
        .bind(storable(what))
        .bind(storable(object))
        .bind(storable(outcome))
        .bind(storable(detail))
        .bind(millis(since))
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// The newest lines of the audit, newest first.
    pub async fn audit_tail(&self, lines: usize) -> Result<Vec<AuditRecord>, StoreError> {
        Ok(self.audit_before(None, lines).await?.into_iter().map(|(_, record)| record).collect())
    }

    /// Lines of the audit with their numbers, newest first, of those below a number.
    pub async fn audit_before(&self, before: Option<i64>, lines: usize) -> Result<Vec<(i64, AuditRecord)>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, time, who, what, object, outcome, detail FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(before.unwrap_or(i64::MAX))
        .bind(i64::try_from(lines).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                let record = AuditRecord {
                    time: timestamp(row.try_get("time")?, "audit", "time")?,
                    who: row.try_get("who")?,
                    what: row.try_get("what")?,
                    object: row.try_get("object")?,
                    outcome: row.try_get("outcome")?,
                    detail: row.try_get("detail")?,
                };
                Ok((row.try_get("id")?, record))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Temporary, on_both};

    on_both!(the_audit_is_read_newest_first);

    async fn the_audit_is_read_newest_first(db: &Temporary) {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        for outcome in ["first", "second"] {
            let entry = AuditEntry { who: "key k", what: "Enroll", object: "acme/web", outcome, detail: "" };
            db.store.audit(entry, now).await.unwrap();
        }
        let tail = db.store.audit_tail(10).await.unwrap();
        assert_eq!(tail.iter().map(|line| line.outcome.as_str()).collect::<Vec<_>>(), ["second", "first"]);
        assert_eq!(tail[0].time, now);
    }
}
