//! The gateway's database: what does not belong into etcd (software lists, outputs, history), what must outlive the gateway
//! (reports, results, uses of join tokens, the audit), and what must outlive etcd's objects (the record of each client's
//! history).
//!
//! Embedded SQLite in WAL mode. Every commit is synced to disk (`synchronous=FULL`): a result is confirmed to the device
//! only after it cannot be lost, and the device forgets it then. One connection writes, a few read.

mod audit;
mod changes;
mod details;
mod devices;
mod installs;
mod record;
mod tokens;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

pub use audit::{AuditEntry, AuditRecord};
pub use changes::{ChangesRecording, RecordedChange};
pub use devices::{DeviceRecord, FoundPackage, StoredReport};
pub use installs::{RecordedResult, Recording};
pub use record::{Cursor, KEPT_FOR};
pub use tokens::TokenUse;

use crate::record::MAX_KEPT;

/// Readers beside the one writer: as many as a busy gateway has cores for.
const READERS: u32 = 4;

/// How long a statement waits for a lock; only a backup or a checkpoint holds one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Cannot be opened.
    #[error("cannot open the database {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// The schema cannot be brought up to date.
    #[error("cannot migrate the database {}: {source}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("database: {0}")]
    Query(#[from] sqlx::Error),
    /// An entry was decided without what is kept.
    #[error(
        "the record of namespace {namespace} has gone on otherwise meanwhile: read it, and write what comes of both"
    )]
    RecordMoved {
        /// Whose record.
        namespace: String,
    },
    /// A client has more updates than are kept.
    #[error(
        "the record of namespace {namespace} is full: {} {what} are kept, and none is taken until some have not been offered for \
         {} days",
        MAX_KEPT,
        KEPT_FOR.as_hours() / 24
    )]
    RecordFull {
        /// Whose record.
        namespace: String,
        /// Of what there are too many.
        what: &'static str,
    },
    /// A row holds what this program never writes.
    #[error("database: {column} of {object} cannot be read: {detail}")]
    Corrupt {
        /// Whose row.
        object: String,
        /// Which column.
        column: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens the file (makes it if needed) and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.map_err(failed)?;
        sqlx::migrate!("./migrations")
            .run(&writer)
            .await
            .map_err(|source| StoreError::Migrate { path: path.to_owned(), source })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(failed)?;
        Ok(Self { writer, readers })
    }

    /// Waits for what is being written and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        Ok(())
    }
}

/// How a time is kept.
fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// A kept time.
fn timestamp(millis: i64, object: &str, column: &'static str) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(millis).map_err(|error| corrupt(object, column, error))
}

fn corrupt(object: &str, column: &'static str, detail: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { object: object.to_owned(), column, detail: detail.to_string() }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A database in a directory of its own.

    use super::Store;

    /// The store and the directory that it dies with.
    pub(crate) struct Temporary {
        pub(crate) store: Store,
        pub(crate) path: std::path::PathBuf,
    }

    impl Temporary {
        pub(crate) async fn open() -> Self {
            let path = std::env::temp_dir().join(format!("patchwarden-store-{:032x}", rand::random::<u128>()));
            std::fs::create_dir(&path).unwrap();
            Self { store: Store::open(&path.join("gateway.db")).await.unwrap(), path }
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            // Left behind in the worst case, in the system's own directory for such things.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
