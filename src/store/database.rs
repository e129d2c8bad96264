//! Where the database is, and how a connection to it is made.
//!
//! One code serves SQLite and PostgreSQL, through sqlx's `Any`: statements are in what both understand (`$1`, `ON CONFLICT`, row
//! values), text and 64-bit integers are all that is kept. What differs is here, and in the two directories of migrations.

use std::fmt;
use std::path::{Path, PathBuf};

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::{Any, AnyConnection, ConnectOptions as _, Connection as _, Row as _};
use url::{Host, Url};

use super::StoreError;
use super::lock::Lock;
use super::patience::{CONNECT, PING, Pool, connected};

/// Readers of SQLite beside its one writer: as many as a busy gateway has cores for.
const READERS: u32 = 4;

/// Connections of one gateway to PostgreSQL: with three gateways far below the 100 that a server takes by default.
const CONNECTIONS: u32 = 16;

/// For each connection to SQLite. A commit is on the disk (<https://sqlite.org/pragma.html#pragma_synchronous>: in WAL mode NORMAL
/// could lose the last ones with the power).
///
/// A device's packages lie in hundreds of pages all over the indices, and the next device's in mostly the same ones. So there is room for them in memory
/// (<https://sqlite.org/pragma.html#pragma_cache_size>, in KiB where negative), and the log is copied back once they have been written often
/// (<https://sqlite.org/pragma.html#pragma_wal_autocheckpoint>, pages of 4 KiB) instead of after each other device.
const SQLITE_SESSION: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000;
    PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = 16384";

/// For each reading connection to SQLite.
const SQLITE_READER: &str = "PRAGMA busy_timeout = 10000";

/// For each connection to PostgreSQL. A commit is on the disk of the server, and of the synchronous standbys if there are such
/// (<https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-SYNCHRONOUS-COMMIT>; `remote_apply` is more than `on`). A
/// gateway that is stuck within a transaction keeps the others waiting for half a minute at most, and one whose host has vanished
/// hardly longer. The longest statements, batches of deletions, take a few seconds.
const POSTGRES_SESSION: &str = "SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '30s';
    SET statement_timeout = '20s';
    SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = '35s';
    SET default_transaction_isolation = 'read committed';
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')";

/// What [`unfit`] is asked of.
const POSTGRES_SETTINGS: &str =
    "SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit, current_setting('server_encoding') AS server_encoding,
    current_setting('transaction_read_only') AS transaction_read_only";

/// The schema, step by step. What one has the other one has, too, under the same number.
pub(super) static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
pub(super) static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// Where the gateway keeps everything.
#[derive(Clone)]
pub enum Database {
    /// In this file, for one gateway.
    Sqlite(PathBuf),
    /// On this server, for any number of gateways.
    Postgres(Url),
}

/// Why what was given as the database is none.
#[derive(Debug, thiserror::Error)]
pub enum NoDatabase {
    /// Not a URL.
    #[error("database: the URL cannot be read: {0}; it is like postgres://patchwarden@db.example.com/patchwarden")]
    Url(#[from] url::ParseError),
    /// Something is missing in it.
    #[error("database: the URL names no {0}; it is like postgres://patchwarden@db.example.com/patchwarden")]
    Missing(&'static str),
    /// Another kind of database.
    #[error("database: {0}:// is neither a file nor PostgreSQL; give a path (SQLite) or postgres://USER@HOST/DATABASE")]
    Scheme(String),
    /// The file cannot be read.
    #[error("database-password-file: {} cannot be read: {source}", path.display())]
    Password {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has no password.
    #[error(
        "database-password-file: SQLite has no password; leave it out, or give a database like postgres://patchwarden@db.example.com/patchwarden"
    )]
    Useless,
}

impl Database {
    /// Reads what a person gave: the path of a file, or a `postgres://` URL as libpq reads it
    /// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>). The password may be in a file of its
    /// own. Over a network the connection is TLS and the server's certificate is verified, unless the URL's `sslmode` is another one.
    pub fn parse(text: &str, password_file: Option<&Path>) -> Result<Self, NoDatabase> {
        match text.split_once("://").map(|(scheme, _)| scheme) {
            None if password_file.is_some() => return Err(NoDatabase::Useless),
            None => return Ok(Self::Sqlite(PathBuf::from(text))),
            Some("postgres" | "postgresql") => {}
            Some(other) => return Err(NoDatabase::Scheme(other.to_owned())),
        }
        let mut url = Url::parse(text)?;
        if url.path().trim_matches('/').is_empty() && option(&url, &["dbname"]).is_none() {
            return Err(NoDatabase::Missing("database"));
        }
        if url.username().is_empty() && option(&url, &["user"]).is_none() {
            return Err(NoDatabase::Missing("user"));
        }
        if let Some(path) = password_file {
            let failed = |source| NoDatabase::Password { path: path.to_owned(), source };
            let password = std::fs::read_to_string(path).map_err(failed)?;
            url.set_password(Some(password.trim_end_matches(['\r', '\n'])))
                .map_err(|()| NoDatabase::Missing("host"))?;
        }
        if option(&url, &["sslmode", "ssl-mode"]).is_none() && !is_local(&url) {
            url.query_pairs_mut().append_pair("sslmode", "verify-full");
        }
        Ok(Self::Postgres(url))
    }

    /// Makes one connection, and with it everything that can be wrong told in words; brings the schema up to date; then the pools: to
    /// write and to read. The lock is SQLite's.
    pub(super) async fn open(&self, replica: &str) -> Result<(Pool, Pool, Option<Lock>), StoreError> {
        sqlx::any::install_default_drivers();
        let failed = |source| StoreError::Open { database: self.to_string(), source };
        let (lock, writing) = match self {
            Self::Sqlite(path) => (Some(Lock::take(path, replica)?), sqlite_url(path, "rwc").map_err(failed)?),
            Self::Postgres(url) => (None, url.clone()),
        };
        let writing = AnyConnectOptions::from_url(&writing).map_err(failed)?;
        let mut first = connected(writing.connect()).await.map_err(failed)?;
        connected(self.prepare(&mut first)).await.map_err(failed)?;
        self.migrate(&mut first).await?;
        first.close().await.map_err(failed)?;
        match self {
            Self::Sqlite(path) => {
                let writer = pool(1, SQLITE_SESSION).connect_with(writing).await.map_err(failed)?;
                let reading = AnyConnectOptions::from_url(&sqlite_url(path, "ro").map_err(failed)?).map_err(failed)?;
                let readers = pool(READERS, SQLITE_READER).connect_with(reading).await.map_err(failed)?;
                Ok((Pool::unlimited(writer), Pool::unlimited(readers), lock))
            }
            Self::Postgres(_) => {
                // A server that was restarted with other settings, or is a standby now, is not taken either.
                let options: AnyPoolOptions = PoolOptions::new()
                    .max_connections(CONNECTIONS)
                    .acquire_timeout(CONNECT)
                    .after_connect(|connection, _| Box::pin(prepare_postgres(connection)))
                    .after_release(|connection, _| Box::pin(answers(connection)));
                let pool = Pool::limited(connected(options.connect_with(writing)).await.map_err(failed)?);
                Ok((pool.clone(), pool, None))
            }
        }
    }

    /// Makes a connection what it must be, and refuses a server that would lose what it has confirmed.
    async fn prepare(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(_) => {
                sqlx::raw_sql(SQLITE_SESSION).execute(connection).await?;
                Ok(())
            }
            Self::Postgres(_) => prepare_postgres(connection).await,
        }
    }

    async fn migrate(&self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        let migrations = match self {
            Self::Sqlite(_) => &SQLITE,
            Self::Postgres(_) => &POSTGRES,
        };
        let database = self.to_string();
        if matches!(self, Self::Postgres(_)) {
            // A step over a large table takes as long as it takes.
            let forever = sqlx::raw_sql("SET statement_timeout = 0").execute(&mut *connection).await;
            forever.map_err(|source| StoreError::Open { database: database.clone(), source })?;
        }
        migrations.run(connection).await.map_err(|source| match source {
            MigrateError::VersionMissing(version) => StoreError::Newer { database, version },
            source => StoreError::Migrate { database, source },
        })
    }
}

/// Without the password.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url) => {
                let host = option(url, &["host", "hostaddr"]).or(url.host_str().map(str::to_owned)).unwrap_or_default();
                let name = option(url, &["dbname"]).unwrap_or_else(|| url.path().trim_matches('/').to_owned());
                write!(f, "postgres://{host}/{name}")
            }
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The last of these options in a URL.
fn option(url: &Url, names: &[&str]) -> Option<String> {
    url.query_pairs().filter(|(name, _)| names.contains(&name.as_ref())).last().map(|(_, value)| value.into_owned())
}

/// Whether a server is on this machine: a socket's directory or a loopback address.
fn is_local(url: &Url) -> bool {
    if let Some(host) = option(url, &["host", "hostaddr"]) {
        return host.starts_with('/') || is_loopback(&host);
    }
    match url.host() {
        None => true,
        Some(Host::Domain(name)) => name.starts_with("%2F") || name.starts_with("%2f") || is_loopback(name),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// As sqlx takes a file: absolute and percent-encoded.
fn sqlite_url(path: &Path, mode: &str) -> Result<Url, sqlx::Error> {
    let unusable = || sqlx::Error::Configuration("it is not the path of a file, in UTF-8".into());
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(unusable()),
    };
    let absolute = directory.canonicalize()?.join(path.file_name().ok_or_else(unusable)?);
    let mut url = Url::parse("sqlite:///").map_err(|error| sqlx::Error::Configuration(error.into()))?;
    url.set_path(&absolute.to_str().ok_or_else(unusable)?.replace('%', "%25"));
    url.query_pairs_mut().append_pair("mode", mode);
    Ok(url)
}

fn pool(connections: u32, session: &'static str) -> AnyPoolOptions {
    PoolOptions::<Any>::new().max_connections(connections).acquire_timeout(CONNECT).after_connect(
        move |connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(session).execute(connection).await?;
                Ok(())
            })
        },
    )
}

async fn prepare_postgres(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(POSTGRES_SESSION).execute(&mut *connection).await?;
    let row = sqlx::query(POSTGRES_SETTINGS).fetch_one(connection).await?;
    for (setting, advice) in [
        ("fsync", "turn it on in postgresql.conf"),
        ("full_page_writes", "turn it on in postgresql.conf"),
        ("synchronous_commit", "allow the gateway's user to set it"),
        ("server_encoding", "create the database with ENCODING 'UTF8'"),
        ("transaction_read_only", "connect to the primary server"),
    ] {
        let value: String = row.try_get(setting)?;
        if unfit(setting, &value) {
            let problem = format!("{setting} is {value}: a result could be lost, or not be kept at all; {advice}");
            return Err(sqlx::Error::Configuration(problem.into()));
        }
    }
    Ok(())
}

/// Whether a connection that was used can be used again: of one whose transaction was given up the server may not have heard yet.
async fn answers(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    tokio::time::timeout(PING, connection.ping()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
    Ok(true)
}

/// Whether a setting of the server is one with which nothing may be confirmed to a device.
fn unfit(setting: &str, value: &str) -> bool {
    match setting {
        "synchronous_commit" => !matches!(value, "on" | "remote_apply"),
        "server_encoding" => value != "UTF8",
        "transaction_read_only" => value != "off",
        _ => value != "on",
    }
}
