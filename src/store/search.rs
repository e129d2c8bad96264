//! What the API asks, page by page. Every page is found by an index, and has a limit.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::order::{Order, SignedOrder};
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::result::InstallResult;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::{Store, StoreError, corrupt, millis, placeholders, timestamp};

/// Pairs of one statement.
const PAIRS_AT_ONCE: usize = 500;

/// In this order results are gone through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultKey {
    /// Milliseconds since 1970.
    first_seen: i64,
    digest: String,
}

/// In this order installs of a device are listed, backwards: epoch, number, and digest of the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallKey(pub i64, pub i64, pub String);

/// An order, its result, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedInstall {
    /// Which.
    pub key: InstallKey,
    /// The order, where it was brought to this store.
    pub order: Option<Order>,
    /// The result, where there is one.
    pub result: Option<InstallResult>,
    /// What the package manager printed last.
    pub output: String,
    /// When either was first here.
    pub first_seen: Timestamp,
}

impl Store {
    /// Installs of a device, the latest first, of those before one.
    pub async fn installs_before(
        &self,
        device: &DeviceRef,
        before: Option<InstallKey>,
        limit: usize,
    ) -> Result<Vec<RecordedInstall>, StoreError> {
        let InstallKey(epoch, number, digest) = before.unwrap_or(InstallKey(i64::MAX, 0, String::new()));
        let rows = sqlx::query(
            "SELECT order_digest, epoch, number, signed_order, result, output, first_seen FROM install
             WHERE namespace = $1 AND device = $2 AND (epoch, number, order_digest) < ($3, $4, $5)
             ORDER BY epoch DESC, number DESC, order_digest DESC LIMIT $6",
        )
        .bind(device.namespace.clone())
        .bind(device.name.clone())
        .bind(epoch)
        .bind(number)
        .bind(digest)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(install).collect()
    }

    /// Results of orders that first came here since a time, in one namespace or in all; by that time, after this one.
    pub async fn results_since(
        &self,
        namespace: Option<&str>,
        since: Timestamp,
        after: Option<&ResultKey>,
        limit: usize,
    ) -> Result<Vec<(ResultKey, InstallResult)>, StoreError> {
        let start = ResultKey { first_seen: millis(since), digest: String::new() };
        let ResultKey { first_seen, digest } = after.unwrap_or(&start);
        let only = if namespace.is_some() { "namespace = $4" } else { "$4 = ''" };
        let text = format!(
            "SELECT order_digest, result, first_seen FROM install
             WHERE result IS NOT NULL AND {only} AND first_seen >= $1 AND (first_seen, order_digest) > ($1, $2)
             ORDER BY first_seen, order_digest LIMIT $3"
        );
        // The text is made of constants.
        let rows = sqlx::query(AssertSqlSafe(text))
            .bind(*first_seen)
            .bind(digest.clone())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(namespace.unwrap_or_default().to_owned())
            .fetch_all(&self.readers)
            .await?;
        let mut results = Vec::new();
        for row in rows {
            let (digest, text): (String, String) = (row.try_get("order_digest")?, row.try_get("result")?);
            let envelope: Envelope<InstallResult> =
                serde_json::from_str(&text).map_err(|error| corrupt(&digest, "result", error))?;
            let result = envelope.peek().ok_or_else(|| corrupt(&digest, "result", "no result"))?;
            results.push((ResultKey { first_seen: row.try_get("first_seen")?, digest }, result));
        }
        Ok(results)
    }

    /// When updates were first offered, each in its namespace.
    pub async fn first_sightings(
        &self,
        updates: &[(String, String)],
    ) -> Result<BTreeMap<(String, String), Timestamp>, StoreError> {
        let mut found = BTreeMap::new();
        for chunk in updates.chunks(PAIRS_AT_ONCE) {
            let values = placeholders(chunk.len(), 2);
            let text =
                format!("SELECT namespace, id, first_seen FROM update_seen WHERE (namespace, id) IN (VALUES {values})");
            let mut query = sqlx::query(AssertSqlSafe(text)).persistent(false);
            for (namespace, id) in chunk {
                query = query.bind(namespace.clone()).bind(id.clone());
            }
            for row in query.fetch_all(&self.readers).await? {
                let (namespace, id): (String, String) = (row.try_get("namespace")?, row.try_get("id")?);
                let time = timestamp(row.try_get("first_seen")?, &id, "first_seen")?;
                found.insert((namespace, id), time);
            }
        }
        Ok(found)
    }
}

fn install(row: &AnyRow) -> Result<RecordedInstall, StoreError> {
    let digest: String = row.try_get("order_digest")?;
    let (order, result): (Option<String>, Option<String>) = (row.try_get("signed_order")?, row.try_get("result")?);
    let order: Option<SignedOrder> = order
        .map(|text| serde_json::from_str(&text).map_err(|error| corrupt(&digest, "signed_order", error)))
        .transpose()?;
    let result: Option<Envelope<InstallResult>> = result
        .map(|text| serde_json::from_str(&text).map_err(|error| corrupt(&digest, "result", error)))
        .transpose()?;
    let output: Option<String> = row.try_get("output")?;
    Ok(RecordedInstall {
        order: order.and_then(|order| order.order.peek()),
        result: result.and_then(|result| result.peek()),
        output: output.unwrap_or_default(),
        first_seen: timestamp(row.try_get("first_seen")?, &digest, "first_seen")?,
        key: InstallKey(row.try_get("epoch")?, row.try_get("number")?, digest),
    })
}
