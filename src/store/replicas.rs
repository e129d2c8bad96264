//! Several gateways on one PostgreSQL database: which of them live, which device has its session where, and what they tell each other.
//!
//! What counts is in tables; a notice (LISTEN and NOTIFY: <https://www.postgresql.org/docs/current/sql-notify.html>) says only where to
//! look, but for lines of progress, of which nothing depends. Whoever has missed notices reads the tables again.

use jiff::Timestamp;
use patchwarden_protocol::report::DeviceRef;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgListener;
use sqlx::{Any, Executor, Row as _};

use super::patience::{Writing, connected};
use super::{Database, Store, StoreError, corrupt};

/// What notices go through.
const CHANNEL: &str = "patchwarden";

/// What one gateway tells the others. PostgreSQL takes 8,000 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// A gateway lives.
    Beat,
    /// A device has opened a session.
    Opened(Place),
    /// It is over.
    Closed(Place),
    /// Whoever has the device's session brings it this order.
    Order {
        /// The device.
        device: DeviceRef,
        /// Digest of the order.
        digest: String,
    },
    /// A device has said something of an order, and nobody follows it at its own gateway.
    Progress {
        /// The device's gateway.
        replica: String,
        /// The device.
        device: DeviceRef,
        /// Digest of the order.
        digest: String,
        /// When.
        time: Timestamp,
        /// One of `progress::Phase`.
        phase: String,
        /// For people, of at most 1,000 characters.
        text: String,
    },
    /// The result of an order is in the store.
    Result {
        /// The device.
        device: DeviceRef,
        /// Digest of the order.
        digest: String,
    },
}

/// Where a device has its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The device.
    pub device: DeviceRef,
    /// The gateway.
    pub replica: String,
    /// Later sessions of a device have higher numbers.
    pub number: i64,
}

/// Hears the notices of all gateways, its own among them.
pub struct Listener(PgListener);

impl Listener {
    /// The next notice; none when the connection was lost and some may have been missed. What a later version tells is left out.
    pub async fn next(&mut self) -> Result<Option<Notice>, StoreError> {
        while let Some(notification) = self.0.try_recv().await? {
            match serde_json::from_str(notification.payload()) {
                Ok(notice) => return Ok(Some(notice)),
                Err(error) => tracing::debug!(%error, "a notice of another version"),
            }
        }
        Ok(None)
    }
}

impl Store {
    /// Whether other gateways may use this database, too.
    pub fn is_shared(&self) -> bool {
        self.lock.is_none()
    }

    /// Names the history that this database has: another name after it was lost, set back by a backup, or restarted. Gateways that
    /// share it say the same.
    pub async fn identity(&self) -> Result<String, StoreError> {
        if !self.is_shared() {
            return Ok(self.opening.clone());
        }
        let identity = sqlx::query_scalar(
            "SELECT extract(epoch FROM pg_postmaster_start_time())::text || '-' || pg_relation_filenode('sighting')::text
                 || '-' || (SELECT oid::text FROM pg_database WHERE datname = current_database())",
        );
        Ok(identity.fetch_one(&self.readers).await?)
    }

    /// A gateway begins.
    pub async fn join(&self, replica: &str) -> Result<(), StoreError> {
        let insert =
            sqlx::query("INSERT INTO replica (name, beat) VALUES ($1, 0) ON CONFLICT DO NOTHING").bind(replica);
        insert.execute(&self.writer).await?;
        Ok(())
    }

    /// A gateway lives. Returns all that do, with their beats; none if this one was taken for dead.
    pub async fn beat(&self, replica: &str) -> Result<Option<Vec<(String, i64)>>, StoreError> {
        let beat = sqlx::query("UPDATE replica SET beat = beat + 1 WHERE name = $1").bind(replica);
        if beat.execute(&self.writer).await?.rows_affected() == 0 {
            return Ok(None);
        }
        self.tell(&Notice::Beat).await?;
        Ok(Some(sqlx::query_as("SELECT name, beat FROM replica").fetch_all(&self.readers).await?))
    }

    /// A gateway is dead unless it has gone on since this beat: it and its sessions are forgotten.
    pub async fn bury(&self, replica: &str, beat: i64) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM replica WHERE name = $1 AND beat = $2").bind(replica).bind(beat);
        delete.execute(&self.writer).await?;
        Ok(())
    }

    /// A gateway ends.
    pub async fn leave(&self, replica: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM replica WHERE name = $1").bind(replica).execute(&self.writer).await?;
        Ok(())
    }

    /// A device has opened a session here; the one that it had elsewhere is over.
    pub async fn open_session(&self, device: &DeviceRef, replica: &str) -> Result<Place, StoreError> {
        let mut transaction = self.begin_lightly().await?;
        let number = sqlx::query_scalar(
            "INSERT INTO session (namespace, device, replica, number) VALUES ($1, $2, $3, nextval('session_number'))
             ON CONFLICT (namespace, device) DO UPDATE SET replica = excluded.replica, number = nextval('session_number')
             RETURNING number",
        );
        let number =
            number.bind(&device.namespace).bind(&device.name).bind(replica).fetch_one(&mut *transaction).await?;
        let place = Place { device: device.clone(), replica: replica.to_owned(), number };
        notify(&mut *transaction, &Notice::Opened(place.clone())).await?;
        transaction.commit().await?;
        Ok(place)
    }

    /// A session has ended.
    pub async fn close_session(&self, place: &Place) -> Result<(), StoreError> {
        let mut transaction = self.begin_lightly().await?;
        sqlx::query("DELETE FROM session WHERE namespace = $1 AND device = $2 AND number = $3")
            .bind(&place.device.namespace)
            .bind(&place.device.name)
            .bind(place.number)
            .execute(&mut *transaction)
            .await?;
        notify(&mut *transaction, &Notice::Closed(place.clone())).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Begins to write what needs no disk: after a crash of the server devices open their sessions anew. Transactions that tell something
    /// are committed one by one.
    async fn begin_lightly(&self) -> Result<Writing, StoreError> {
        let mut transaction = self.writer.begin().await?;
        sqlx::query("SELECT set_config('synchronous_commit', 'off', true)").execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// All sessions.
    pub async fn sessions(&self) -> Result<Vec<Place>, StoreError> {
        let rows =
            sqlx::query("SELECT namespace, device, replica, number FROM session").fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                let device = DeviceRef { namespace: row.try_get("namespace")?, name: row.try_get("device")? };
                Ok(Place { device, replica: row.try_get("replica")?, number: row.try_get("number")? })
            })
            .collect()
    }

    /// Tells all gateways.
    pub async fn tell(&self, notice: &Notice) -> Result<(), StoreError> {
        notify(&self.writer, notice).await
    }

    /// Hears what they tell from now on.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let Database::Postgres(url) = &self.database else {
            return Err(corrupt("database", "replica", "a file has no other gateways"));
        };
        let listening = async {
            let mut listener = PgListener::connect(url.as_str()).await?;
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        Ok(Listener(connected(listening).await?))
    }
}

/// Tells all gateways, when the transaction is committed.
pub(super) async fn notify(connection: impl Executor<'_, Database = Any>, notice: &Notice) -> Result<(), StoreError> {
    let payload = serde_json::to_string(notice).map_err(|error| corrupt("notice", "payload", error))?;
    sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload).execute(connection).await?;
    Ok(())
}
