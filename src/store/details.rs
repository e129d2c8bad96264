//! What each device is made of.

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::details::Details;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::report::DeviceRef;
use sqlx::Row as _;

use super::{Store, StoreError, corrupt, millis, timestamp};

/// What is kept of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptDetails {
    /// As the device signed it.
    pub envelope: Envelope<Details>,
    /// By this key.
    pub key: Fingerprint,
    /// When it came.
    pub recorded: Timestamp,
}

impl Store {
    /// Keeps the last that a device has sent, as it was signed by this key.
    pub async fn record_details(
        &self,
        device: &DeviceRef,
        key: &Fingerprint,
        envelope: &Envelope<Details>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let text = serde_json::to_string(envelope).map_err(|error| corrupt(&device.to_string(), "envelope", error))?;
        sqlx::query(
            "INSERT INTO device_details (namespace, device, key, digest, envelope, recorded) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (namespace, device) DO UPDATE SET key = excluded.key, digest = excluded.digest,
                 envelope = excluded.envelope, recorded = excluded.recorded",
        )
        .bind(&device.namespace)
        .bind(&device.name)
        .bind(key.as_str())
        .bind(envelope.digest())
        .bind(text)
        .bind(millis(now))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Digest of what is kept of a device and was signed by this key; empty where there is nothing.
    pub async fn details_digest(&self, device: &DeviceRef, key: &Fingerprint) -> Result<String, StoreError> {
        let digest: Option<String> =
            sqlx::query_scalar("SELECT digest FROM device_details WHERE namespace = $1 AND device = $2 AND key = $3")
                .bind(&device.namespace)
                .bind(&device.name)
                .bind(key.as_str())
                .fetch_optional(&self.readers)
                .await?;
        Ok(digest.unwrap_or_default())
    }

    /// What a device is made of.
    pub async fn details(&self, device: &DeviceRef) -> Result<Option<KeptDetails>, StoreError> {
        let row =
            sqlx::query("SELECT envelope, key, recorded FROM device_details WHERE namespace = $1 AND device = $2")
                .bind(&device.namespace)
                .bind(&device.name)
                .fetch_optional(&self.readers)
                .await?;
        let Some(row) = row else { return Ok(None) };
        let object = device.to_string();
        let (envelope, key): (String, String) = (row.try_get("envelope")?, row.try_get("key")?);
        Ok(Some(KeptDetails {
            envelope: serde_json::from_str(&envelope).map_err(|error| corrupt(&object, "envelope", error))?,
            key: key.parse().map_err(|error| corrupt(&object, "key", error))?,
            recorded: timestamp(row.try_get("recorded")?, &object, "recorded")?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::details::Hardware;
    use patchwarden_protocol::key::PrivateKey;

    use super::*;
    use crate::store::testing::{Temporary, on_both};

    on_both!(the_last_that_a_device_sent_is_kept_and_known_by_its_digest);

    async fn the_last_that_a_device_sent_is_kept_and_known_by_its_digest(db: &Temporary) {
        let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
        let device = DeviceRef { namespace: "acme".into(), name: "web".into() };
        let sealed = |memory_bytes| {
            let hardware = Hardware { memory_bytes, ..Hardware::default() };
            let details = Details { device: device.clone(), since: Timestamp::UNIX_EPOCH, hardware };
            Envelope::seal(&details, &key).unwrap()
        };
        let fingerprint = key.public().fingerprint();
        assert_eq!(db.store.details_digest(&device, &fingerprint).await.unwrap(), "");
        for memory in [1, 2] {
            let envelope = sealed(memory);
            db.store.record_details(&device, &fingerprint, &envelope, Timestamp::UNIX_EPOCH).await.unwrap();
            let kept = db.store.details(&device).await.unwrap().unwrap();
            assert_eq!((kept.envelope, kept.key), (envelope.clone(), fingerprint.clone()));
            assert_eq!(db.store.details_digest(&device, &fingerprint).await.unwrap(), envelope.digest());
        }
        let digest = db.store.details_digest(&device, &other.public().fingerprint()).await.unwrap();
        assert_eq!(digest, "", "a device with another key signs it anew");
    }
}
