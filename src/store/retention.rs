//! What is dropped when it is old: in small batches, so that nobody waits for it for long.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::report::DeviceRef;
use sqlx::Row as _;

use super::changes::drop_messages;
use super::{Store, StoreError, Subject, millis};

/// Rows that are dropped in one transaction.
pub(super) const AT_ONCE: i64 = 500;

/// Devices whose changes one call looks at.
const DEVICES: usize = 20;

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Lines of the audit.
    pub audit: SignedDuration,
    /// Orders, their results, and changes of packages. The last change of each device stays: the next one is counted from it.
    pub history: SignedDuration,
    /// What is told of devices that were deleted, of join tokens that are over, and of updates that nobody offers any more: see `gone`.
    pub gone: SignedDuration,
}

/// What is older than this is dropped.
pub(super) fn before(kept: SignedDuration, now: Timestamp) -> i64 {
    millis(now.saturating_sub(kept).unwrap_or(Timestamp::MIN))
}

impl Store {
    /// Drops some of what is older than it is kept, as of `now`. Returns how many rows; 0 when there is nothing more.
    pub async fn prune(&self, retention: Retention, now: Timestamp) -> Result<u64, StoreError> {
        let Retention { audit, history, gone: _ } = retention;
        let (audit, history) = (before(audit, now), before(history, now));
        let mut dropped = 0;
        for (statement, before) in [
            ("DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE time < $1 ORDER BY time LIMIT $2)", audit),
            (
                "DELETE FROM install WHERE (namespace, device, order_digest) IN (
                     SELECT namespace, device, order_digest FROM install
                     WHERE first_seen < $1 AND (deadline IS NULL OR deadline < $1) ORDER BY first_seen LIMIT $2)",
                history,
            ),
        ] {
            let delete = sqlx::query(statement).bind(before).bind(AT_ONCE);
            dropped += delete.execute(&self.writer).await?.rows_affected();
        }
        for _ in 0..DEVICES {
            match self.prune_changes(history).await? {
                0 => break,
                rows => dropped += rows,
            }
        }
        dropped += self.prune_packages().await?;
        Ok(dropped)
    }

    /// Of the device with the oldest change that may go.
    async fn prune_changes(&self, before: i64) -> Result<u64, StoreError> {
        let oldest = sqlx::query(
            "SELECT namespace, device FROM package_change AS old WHERE recorded < $1 AND EXISTS (
                 SELECT 1 FROM package_change AS later
                 WHERE later.namespace = old.namespace AND later.device = old.device AND later.id > old.id)
             ORDER BY recorded LIMIT 1",
        );
        let Some(row) = oldest.bind(before).fetch_optional(&self.readers).await? else { return Ok(0) };
        let device = DeviceRef { namespace: row.try_get("namespace")?, name: row.try_get("device")? };
        let mut transaction = self.begin(&Subject::Device(&device)).await?;
        let delete = sqlx::query(
            "DELETE FROM package_change WHERE id IN (
                 SELECT id FROM package_change WHERE namespace = $1 AND device = $2 AND recorded < $3
                     AND id < (SELECT MAX(id) FROM package_change WHERE namespace = $1 AND device = $2)
                 ORDER BY id LIMIT $4)",
        );
        let delete = delete.bind(&device.namespace).bind(&device.name).bind(before).bind(AT_ONCE);
        let dropped = delete.execute(&mut *transaction).await?.rows_affected();
        drop_messages(&mut transaction, &device).await?;
        transaction.commit().await?;
        Ok(dropped)
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::changes::{By, Change, Changed, Changes, LOG_NAME};
    use patchwarden_protocol::key::PrivateKey;

    use super::*;
    use crate::gateway::testing;
    use crate::store::AuditEntry;
    use crate::store::testing::{Temporary, on_both};

    on_both!(what_is_old_goes_in_small_batches_and_the_rest_stays, the_last_change_of_a_device_stays);

    const DAY: SignedDuration = SignedDuration::from_hours(24);
    const KEPT: Retention =
        Retention { audit: DAY, history: SignedDuration::from_hours(48), gone: SignedDuration::MAX };

    fn at(day: i32) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + DAY * day
    }

    async fn what_is_old_goes_in_small_batches_and_the_rest_stays(db: &Temporary) {
        let line = AuditEntry { who: "who", what: "what", object: "object", outcome: "outcome", detail: "" };
        let old = if db.store.is_shared() {
            "INSERT INTO audit (time, who, what, object, outcome, detail) SELECT 0, 'x', '', '', '', '' FROM generate_series(1, 700)"
        } else {
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 700)
             INSERT INTO audit (time, who, what, object, outcome, detail) SELECT 0, 'x', '', '', '', '' FROM n"
        };
        db.execute(old).await;
        db.store.audit(line, at(0)).await.unwrap();
        let key = PrivateKey::generate();
        let signed = testing::signed_order(&testing::order("acme", "web", &key.public()), &key);
        let (device, sequence) =
            (testing::report("acme", "web").device, testing::order("acme", "web", &key.public()).sequence);
        // Kept at the same time; the second may still be answered.
        for (digest, deadline) in [("sha256:a", at(0)), ("sha256:b", at(9))] {
            db.store.record_order(&device, digest, sequence, &signed, deadline, at(0)).await.unwrap();
        }
        let mut dropped = Vec::new();
        for _ in 0..3 {
            dropped.push(db.store.prune(KEPT, at(1)).await.unwrap());
        }
        assert_eq!(dropped, [500, 200, 0], "what is a day old stays until it is more");
        assert_eq!(db.store.prune(KEPT, at(2)).await.unwrap(), 1, "the audit's line; orders are kept for two days");
        assert_eq!(db.store.prune(KEPT, at(3)).await.unwrap(), 1, "the order whose time is over");
        assert_eq!(db.store.open_orders(at(8)).await.unwrap(), [signed]);
        assert_eq!(db.store.prune(KEPT, at(12)).await.unwrap(), 1);
    }

    async fn the_last_change_of_a_device_stays(db: &Temporary) {
        let record = async |name: &str, number: u64, now: Timestamp| {
            let change =
                Change { name: "p".into(), arch: "amd64".into(), before: None, after: None, by: By::SomebodyElse };
            let one = Changed {
                log: "a".repeat(LOG_NAME),
                first: number,
                found_at: now,
                from: "sha256:a".into(),
                to: "sha256:b".into(),
                order: None,
                run: None,
                packages: vec![change],
            };
            let changes = Changes { device: testing::report("acme", name).device, changed: vec![one] };
            let envelope = Envelope::seal(&changes, &PrivateKey::generate()).unwrap();
            db.store.record_changes(&changes, &envelope, now).await.unwrap();
        };
        for (name, number) in [("web", 1), ("web", 2), ("db", 1), ("web", 3)] {
            record(name, number, at(0)).await;
        }
        assert_eq!(db.store.prune(KEPT, at(2)).await.unwrap(), 0);
        assert_eq!(db.store.prune(KEPT, at(3)).await.unwrap(), 2);
        record("web", 4, at(3)).await;
        let web = testing::report("acme", "web").device;
        let kept = db.store.changes(&web, 10).await.unwrap();
        assert_eq!(kept.iter().map(|one| (one.number, one.missing)).collect::<Vec<_>>(), [(3, 0), (4, 0)]);
        let log = "a".repeat(LOG_NAME);
        let oldest = db.store.change_message(&web, &log, 1).await.unwrap().unwrap().peek().unwrap();
        assert_eq!(oldest.changed[0].first, 3, "the messages of what is gone are gone");
        assert_eq!(db.store.changes(&testing::report("acme", "db").device, 10).await.unwrap().len(), 1);
    }
}
