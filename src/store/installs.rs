//! Orders and their results.

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::order::{Sequence, SignedOrder};
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::result::InstallResult;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::replicas::notify;
use super::{Notice, Store, StoreError, Subject, corrupt, millis, storable};

/// A result that the store keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedResult {
    /// As the device signed it.
    pub envelope: Envelope<InstallResult>,
    /// What the package manager printed last.
    pub output: String,
}

/// What came of recording a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// It is the first for this order.
    New,
    /// Likewise, and of the order nothing is known here but what the device says.
    Unordered,
    /// The very same was recorded before.
    Same,
    /// Another was recorded for this order, and stays.
    Conflict,
}

impl Store {
    /// Keeps the order before it is delivered. An order that is known stays as it is.
    pub async fn record_order(
        &self,
        device: &DeviceRef,
        digest: &str,
        sequence: Sequence,
        order: &SignedOrder,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let order = serde_json::to_string(order).map_err(|error| corrupt(digest, "signed_order", error))?;
        sqlx::query(
            "INSERT INTO install (namespace, device, order_digest, epoch, number, signed_order, first_seen, deadline)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (namespace, device, order_digest)
             DO UPDATE SET signed_order = excluded.signed_order, deadline = excluded.deadline
             WHERE install.signed_order IS NULL",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(digest)
        .bind(i64::from(sequence.epoch))
        .bind(i64::from(sequence.number))
        .bind(order)
        .bind(millis(now))
        .bind(millis(deadline))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Orders without a result whose time is not over.
    pub async fn open_orders(&self, now: Timestamp) -> Result<Vec<SignedOrder>, StoreError> {
        let rows = sqlx::query(
            "SELECT order_digest, signed_order FROM install
             WHERE result IS NULL AND signed_order IS NOT NULL AND deadline > $1",
        );
        rows.bind(millis(now)).fetch_all(&self.readers).await?.iter().map(read_order).collect()
    }

    /// Those of a device.
    pub async fn open_orders_of(&self, device: &DeviceRef, now: Timestamp) -> Result<Vec<SignedOrder>, StoreError> {
        let rows = sqlx::query(
            "SELECT order_digest, signed_order FROM install
             WHERE result IS NULL AND signed_order IS NOT NULL AND deadline > $1 AND namespace = $2 AND device = $3",
        )
        .bind(millis(now))
        .bind(&device.namespace)
        .bind(&device.name)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_order).collect()
    }

    /// Keeps the last thing the device said of a running order.
    pub async fn record_progress(&self, device: &DeviceRef, digest: &str, line: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE install SET progress = $1 WHERE namespace = $2 AND device = $3 AND order_digest = $4")
            .bind(storable(line))
            .bind(&device.namespace)
            .bind(&device.name)
            .bind(digest)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Keeps a verified result, once.
    pub async fn record_result(
        &self,
        device: &DeviceRef,
        result: &InstallResult,
        envelope: &Envelope<InstallResult>,
        output: &str,
        now: Timestamp,
    ) -> Result<Recording, StoreError> {
        let digest = &result.order_digest;
        let text = serde_json::to_string(envelope).map_err(|error| corrupt(digest, "result", error))?;
        let mut transaction = self.begin(&Subject::Device(device)).await?;
        let known: Option<Option<String>> =
            sqlx::query_scalar("SELECT result FROM install WHERE namespace = $1 AND device = $2 AND order_digest = $3")
                .bind(&device.namespace)
                .bind(&device.name)
                .bind(digest)
                .fetch_optional(&mut *transaction)
                .await?;
        if let Some(Some(known)) = known {
            return Ok(if known == text { Recording::Same } else { Recording::Conflict });
        }
        sqlx::query(
            "INSERT INTO install (namespace, device, order_digest, epoch, number, result, output, first_seen, recorded)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (namespace, device, order_digest)
             DO UPDATE SET result = excluded.result, output = excluded.output, recorded = excluded.recorded",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(digest)
        .bind(i64::from(result.sequence.epoch))
        .bind(i64::from(result.sequence.number))
        .bind(text)
        .bind(storable(output))
        .bind(millis(now))
        .bind(millis(now))
        .execute(&mut *transaction)
        .await?;
        if self.is_shared() {
            let notice = Notice::Result { device: device.clone(), digest: digest.clone() };
            notify(&mut *transaction, &notice).await?;
        }
        transaction.commit().await?;
        Ok(if known.is_some() { Recording::New } else { Recording::Unordered })
    }

    /// The result of an order, if the device has sent one.
    pub async fn result(&self, device: &DeviceRef, digest: &str) -> Result<Option<RecordedResult>, StoreError> {
        let row = sqlx::query(
            "SELECT result, output FROM install
             WHERE namespace = $1 AND device = $2 AND order_digest = $3 AND result IS NOT NULL",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(digest)
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let text: String = row.try_get("result")?;
        let envelope = serde_json::from_str(&text).map_err(|error| corrupt(digest, "result", error))?;
        let output: Option<String> = row.try_get("output")?;
        Ok(Some(RecordedResult { envelope, output: output.unwrap_or_default() }))
    }

    /// The last progress line of an order.
    pub async fn progress(&self, device: &DeviceRef, digest: &str) -> Result<Option<String>, StoreError> {
        let line: Option<Option<String>> = sqlx::query_scalar(
            "SELECT progress FROM install WHERE namespace = $1 AND device = $2 AND order_digest = $3",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(digest)
        .fetch_optional(&self.readers)
        .await?;
        Ok(line.flatten())
    }
}

fn read_order(row: &AnyRow) -> Result<SignedOrder, StoreError> {
    let (digest, order): (String, String) = (row.try_get("order_digest")?, row.try_get("signed_order")?);
    serde_json::from_str(&order).map_err(|error| corrupt(&digest, "signed_order", error))
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::report::Tristate;
    use patchwarden_protocol::result::Outcome;

    use super::*;
    use crate::gateway::testing;
    use crate::store::testing::{Temporary, on_both};

    on_both!(
        a_result_is_recorded_once_and_never_replaced,
        a_device_cannot_answer_for_another_ones_order,
        an_order_is_open_until_its_result_or_its_deadline,
        results_outlive_the_process,
    );

    fn device(name: &str) -> DeviceRef {
        DeviceRef { namespace: "acme".into(), name: name.into() }
    }

    fn result(name: &str, outcome: Outcome, key: &PrivateKey) -> (InstallResult, Envelope<InstallResult>) {
        let result = InstallResult {
            device: device(name),
            device_key: key.public().fingerprint(),
            sequence: Sequence { epoch: 1, number: 2 },
            order_digest: "sha256:aa".into(),
            outcome,
            reason: None,
            message: String::new(),
            actions: Vec::new(),
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            restart_required: Tristate::No,
            restarts: 0,
            restart_postponed: String::new(),
            steps: vec![],
            phases: vec![],
        };
        let envelope = Envelope::seal(&result, key).unwrap();
        (result, envelope)
    }

    async fn a_result_is_recorded_once_and_never_replaced(db: &Temporary) {
        let key = PrivateKey::generate();
        let web = device("web");
        let now = Timestamp::UNIX_EPOCH;
        let (good, envelope) = result("web", Outcome::Succeeded, &key);
        assert_eq!(db.store.record_result(&web, &good, &envelope, "out", now).await.unwrap(), Recording::Unordered);
        assert_eq!(db.store.record_result(&web, &good, &envelope, "out", now).await.unwrap(), Recording::Same);
        let (other, forged) = result("web", Outcome::Failed, &key);
        assert_eq!(db.store.record_result(&web, &other, &forged, "", now).await.unwrap(), Recording::Conflict);
        let kept = db.store.result(&web, "sha256:aa").await.unwrap().unwrap();
        assert_eq!(kept, RecordedResult { envelope, output: "out".into() });
    }

    async fn a_device_cannot_answer_for_another_ones_order(db: &Temporary) {
        let (document, envelope) = result("evil", Outcome::Succeeded, &PrivateKey::generate());
        db.store.record_result(&device("evil"), &document, &envelope, "", Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(db.store.result(&device("web"), "sha256:aa").await.unwrap(), None);
    }

    async fn an_order_is_open_until_its_result_or_its_deadline(db: &Temporary) {
        let key = PrivateKey::generate();
        let signed = testing::signed_order(&testing::order("acme", "web", &key.public()), &key);
        let (web, digest) = (device("web"), signed.order.digest());
        let at = |second| Timestamp::from_second(second).unwrap();
        let sequence = Sequence { epoch: 1, number: 1 };
        db.store.record_order(&web, &digest, sequence, &signed, at(100), at(0)).await.unwrap();
        assert_eq!(db.store.open_orders(at(99)).await.unwrap(), [signed]);
        assert_eq!(db.store.open_orders(at(100)).await.unwrap(), []);
        let (mut document, _) = result("web", Outcome::Succeeded, &key);
        document.order_digest = digest;
        let envelope = Envelope::seal(&document, &key).unwrap();
        assert_eq!(db.store.record_result(&web, &document, &envelope, "", at(1)).await.unwrap(), Recording::New);
        assert_eq!(db.store.open_orders(at(99)).await.unwrap(), []);
    }

    async fn results_outlive_the_process(db: &Temporary) {
        let (document, envelope) = result("web", Outcome::Succeeded, &PrivateKey::generate());
        db.store.record_result(&device("web"), &document, &envelope, "", Timestamp::UNIX_EPOCH).await.unwrap();
        let again = db.reopened().await;
        assert!(again.result(&device("web"), "sha256:aa").await.unwrap().is_some());
    }
}
