//! The gateway's database: what does not belong into etcd (software lists, outputs, history), what must outlive the gateway
//! (reports, results, uses of join tokens, the audit), and what must outlive etcd's objects (the record of each client's
//! history).
//!
//! Embedded SQLite for one gateway, or PostgreSQL for any number of them: `database` tells what differs. Every commit is on the disk
//! before it is answered: a result is confirmed to the device only after it cannot be lost, and the device forgets it then.

mod audit;
mod changes;
mod database;
mod details;
mod devices;
mod gone;
mod installs;
mod lineage;
mod lock;
mod packages;
mod patience;
mod record;
mod replicas;
mod retention;
mod search;
mod tokens;
mod vulnerabilities;

#[cfg(test)]
mod packages_tests;
#[cfg(test)]
mod postgres_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use jiff::Timestamp;
use patchwarden_protocol::report::DeviceRef;

pub use audit::{AuditEntry, AuditRecord};
pub use changes::{ChangesRecording, RecordedChange};
pub use database::{Database, NoDatabase};
pub use details::KeptDetails;
pub use devices::{DeviceRecord, StoredReport};
pub use gone::{OldUpdate, Remembered};
pub use installs::{RecordedResult, Recording};
pub use lineage::{Found, Lineage, Meeting, Member};
pub use packages::{FoundPackage, Named, PackageKey};
pub use record::{Cursor, KEPT_FOR};
pub use replicas::{Listener, Notice, Place};
pub use retention::Retention;
pub use search::{InstallKey, RecordedInstall, ResultKey};
pub use tokens::{TokenUse, TokenUser};
pub use vulnerabilities::{Exploitation, Import};

use self::lock::Lock;
use self::patience::{Pool, Writing};
use crate::record::MAX_KEPT;

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Cannot be opened.
    #[error("cannot open the database {database}: {source}")]
    Open {
        /// Which.
        database: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The file that says who has the database.
    #[error("cannot lock the database: {}: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another gateway has the file.
    #[error(
        "the database {} is in use by the gateway {holder}: a file (SQLite) serves one gateway. Run one replica, or give all of them \
         a PostgreSQL database (--database postgres://USER@HOST/DATABASE)",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who.
        holder: String,
    },
    /// The schema cannot be brought up to date.
    #[error("cannot migrate the database {database}: {source}")]
    Migrate {
        /// Which.
        database: String,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
    /// A later version of the gateway has been here.
    #[error(
        "the database {database} has migration {version} of a later gateway: run that version or a later one, or restore the backup \
         from before its upgrade"
    )]
    Newer {
        /// Which.
        database: String,
        /// Its migration.
        version: i64,
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
    /// What was imported belongs to an import that was given up.
    #[error("the import of vulnerability data took too long, and another gateway has taken its place")]
    ImportGone,
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
    writer: Pool,
    readers: Pool,
    database: Database,
    /// Another one each time that it is opened.
    opening: String,
    /// SQLite's: one gateway has the file, and all of its transactions that write are one after the other.
    lock: Option<Lock>,
    /// Up to which number packages have been looked at that may be installed nowhere any more, in this round.
    pruned: Arc<AtomicI64>,
}

/// What a transaction is about: of those about the same thing, one runs at a time, whichever gateway it is.
enum Subject<'a> {
    Device(&'a DeviceRef),
    /// When devices were last heard of.
    LastSeen,
    /// A client's record.
    Record(&'a str),
    /// Uses of a join token.
    Token(&'a str),
    /// Vulnerability data.
    Vulnerabilities,
    /// Packages that are installed nowhere any more.
    Packages,
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "device {device}"),
            Self::LastSeen => f.write_str("last seen"),
            Self::Record(namespace) => write!(f, "record {namespace}"),
            Self::Token(token) => write!(f, "token {token}"),
            Self::Vulnerabilities => f.write_str("vulnerabilities"),
            Self::Packages => f.write_str(packages::USED),
        }
    }
}

impl Store {
    /// Opens the database (makes the file if needed) and brings its schema up to date. `replica` is this gateway's name.
    pub async fn open(database: &Database, replica: &str) -> Result<Self, StoreError> {
        let (writer, readers, lock) = database.open(replica).await?;
        let opening = format!("{:032x}", rand::random::<u128>());
        Ok(Self { writer, readers, database: database.clone(), opening, lock, pruned: Arc::default() })
    }

    /// Waits for what is being written and closes the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        if let Some(lock) = &self.lock {
            lock.release();
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.readers.ping().await?)
    }

    /// Begins to write. In PostgreSQL others write meanwhile: a lock of the transaction's own, on its subject, keeps what it has read
    /// true (<https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS>).
    async fn begin(&self, subject: &Subject<'_>) -> Result<Writing, StoreError> {
        if self.lock.is_some() {
            return Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?);
        }
        let mut transaction = self.writer.begin().await?;
        let lock = sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))").bind(subject.to_string());
        lock.execute(&mut *transaction).await?;
        Ok(transaction)
    }
}

/// `($1, $2), ($3, $4)`: so many rows of so many values.
fn placeholders(rows: usize, columns: usize) -> String {
    let mut text = String::new();
    for value in 0..rows * columns {
        let before = match value {
            0 => "(",
            _ if value % columns == 0 => "), (",
            _ => ", ",
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{before}${}", value + 1);
    }
    text.push(')');
    text
}

/// Text as both databases keep it: PostgreSQL takes no NUL (<https://www.postgresql.org/docs/current/datatype-character.html>), and what
/// was printed must not keep a result from being kept.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// How a time is kept.
fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// A kept time.
fn timestamp(millis: i64, object: &str, column: &'static str) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(millis).map_err(|error| corrupt(object, column, error))
}

fn corrupt(object: &str, column: &'static str, detail: impl fmt::Display) -> StoreError {
    StoreError::Corrupt { object: object.to_owned(), column, detail: detail.to_string() }
}
