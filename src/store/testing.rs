//! Databases for tests: a file in a directory of its own, or a new database of a PostgreSQL server that the tests start.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use patchwarden_protocol::report::Package;
use sqlx::any::AnyConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::sync::OnceCell;
use url::Url;

use super::database::{POSTGRES, SQLITE};
use super::{Database, Store};

/// Makes two tests of each of these functions, which take a [`Temporary`]: one on SQLite, one on PostgreSQL.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {$(
        mod $test {
            #[tokio::test]
            async fn sqlite() {
                super::$test(&$crate::store::testing::Temporary::sqlite().await).await;
            }

            #[tokio::test]
            async fn postgres() {
                super::$test(&$crate::store::testing::Temporary::postgres().await).await;
            }
        }
    )*};
}
pub(crate) use on_both;

/// A package whose source has its name and version.
pub(crate) fn package(name: &str, version: &str) -> Package {
    let (arch, source) = ("amd64".into(), name.into());
    Package { name: name.into(), arch, version: version.into(), source, source_version: None }
}

/// A store of its own. A file dies with it, a database with the server.
pub(crate) struct Temporary {
    pub(crate) store: Store,
    pub(crate) database: Database,
    directory: Option<PathBuf>,
}

impl Temporary {
    pub(crate) async fn sqlite() -> Self {
        let path = std::env::temp_dir().join(format!("patchwarden-store-{:032x}", rand::random::<u128>()));
        std::fs::create_dir(&path).unwrap();
        let database = Database::Sqlite(path.join("gateway.db"));
        Self { store: Store::open(&database, "test").await.unwrap(), database, directory: Some(path) }
    }

    pub(crate) async fn postgres() -> Self {
        let server = Server::get().await;
        let name = format!("test_{:032x}", rand::random::<u128>());
        server.execute(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await;
        let database = Database::Postgres(server.url(&name));
        Self { store: Store::open(&database, "test").await.unwrap(), database, directory: None }
    }

    /// What a gateway that knew the migrations up to this one has left behind: by these statements.
    pub(crate) async fn of_an_older_gateway(on_a_server: bool, version: i64, rows: &'static str) -> Self {
        let name = format!("{:032x}", rand::random::<u128>());
        let (migrator, url, database, directory) = if on_a_server {
            let server = Server::get().await;
            server.execute(&format!("CREATE DATABASE older_{name}")).await;
            let url = server.url(&format!("older_{name}"));
            (&POSTGRES, url.clone(), Database::Postgres(url), None)
        } else {
            let directory = std::env::temp_dir().join(format!("patchwarden-store-{name}"));
            std::fs::create_dir(&directory).unwrap();
            let file = directory.join("gateway.db");
            let url = Url::parse(&format!("sqlite://{}?mode=rwc", file.display())).unwrap();
            (&SQLITE, url, Database::Sqlite(file), Some(directory))
        };
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnectOptions::from_url(&url).unwrap().connect().await.unwrap();
        let steps = migrator.iter().filter(|step| step.version <= version).cloned().collect();
        Migrator::with_migrations(steps).run(&mut connection).await.unwrap();
        sqlx::raw_sql(rows).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        Self { store: Store::open(&database, "test").await.unwrap(), database, directory }
    }

    /// One that is there, or is made.
    pub(crate) async fn at(database: Database) -> Self {
        Self { store: Store::open(&database, "test").await.unwrap(), database, directory: None }
    }

    /// The same database, for a gateway of its own.
    pub(crate) async fn again(&self) -> Self {
        self.store.close().await;
        Self::at(self.database.clone()).await
    }

    /// What SQLite finds wrong in its file, or `ok` (<https://sqlite.org/pragma.html#pragma_integrity_check>).
    pub(crate) async fn integrity(&self) -> Vec<String> {
        sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&self.store.writer).await.unwrap()
    }

    /// A new database of a server of the test's own, in which one statement has `limit` to be answered.
    pub(crate) async fn impatient(server: &Server, limit: Duration) -> Self {
        let database = Database::Postgres(server.url("postgres"));
        let mut store = Store::open(&database, "test").await.unwrap();
        store.writer.limit = Some(limit);
        store.readers.limit = Some(limit);
        Self { store, database, directory: None }
    }

    /// Writes what the store never does.
    pub(crate) async fn execute(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.store.writer).await.unwrap();
    }

    /// A copy that was made while the gateway works, as docs/backup.md says, where it was restored.
    pub(crate) async fn backup(&self) -> Database {
        let url = match &self.database {
            Database::Sqlite(path) => {
                let copy = path.with_file_name("backup.db");
                let statement = format!("VACUUM INTO '{}'", copy.display());
                sqlx::raw_sql(AssertSqlSafe(statement)).execute(&self.store.readers).await.unwrap();
                return Database::Sqlite(copy);
            }
            Database::Postgres(url) => url,
        };
        let server = Server::get().await;
        let dump = server.directory.join(format!("{:016x}.dump", rand::random::<u64>()));
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(server.programs.join(program));
            assert!(command.args(arguments).arg(&dump).status().unwrap().success(), "{program}");
        };
        run("pg_dump", &[url.as_str(), "--format=custom", "--file"]);
        let name = format!("restored_{:032x}", rand::random::<u128>());
        server.execute(&format!("CREATE DATABASE {name}")).await;
        let restored = server.url(&name);
        run("pg_restore", &["--exit-on-error", "--single-transaction", "--dbname", restored.as_str()]);
        Database::Postgres(restored)
    }

    /// Another gateway on the same database of a server.
    pub(crate) async fn beside(&self) -> Self {
        let (store, database) = (Store::open(&self.database, "beside").await.unwrap(), self.database.clone());
        Self { store, database, directory: None }
    }

    /// The same store, for what takes one of its own. It dies with this one.
    pub(crate) fn same(&self) -> Self {
        Self { store: self.store.clone(), database: self.database.clone(), directory: None }
    }

    /// Another process on the same database, after this one.
    pub(crate) async fn reopened(&self) -> Store {
        self.store.close().await;
        Store::open(&self.database, "another").await.unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // Left behind in the worst case, in the system's own directory for such things.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// The database that the others are copies of: it has the schema.
const TEMPLATE: &str = "patchwarden";

/// Who PostgreSQL runs as where the tests are root, which it refuses: Debian's package makes the account.
const ACCOUNT: &str = "postgres";

/// Makes a server in the directory $1, by the programs in $2; says so; crashes it and starts it again for each line; ends it when the tests are gone, however they end: their end of
/// the pipe is closed then. Everything that a test has confirmed to it is synced, as the gateway demands.
const SERVE: &str = r#"
trap '' INT TERM
trap 'cd / && rm -rf "$1"' EXIT
cd "$1" || exit
"$2/initdb" -D data -U patchwarden -A trust -E UTF8 --no-locale --no-sync >log 2>&1 &&
  "$2/pg_ctl" -D data -l log -w -s start \
    -o "-k '$1' -c listen_addresses= -c max_connections=500 -c shared_buffers=32MB -c autovacuum=off $3" >>log 2>&1 ||
  { tail -n 5 log; exit 1; }
echo ready
while read -r _; do
  "$2/pg_ctl" -D data -l log -w -s -m immediate restart >>log 2>&1 || exit
  echo ready
done
"$2/pg_ctl" -D data -s -m immediate stop
"#;

/// PostgreSQL, one for all tests of a process, on a socket in its own directory.
pub(crate) struct Server {
    pub(crate) directory: PathBuf,
    /// Where its programs are.
    pub(crate) programs: PathBuf,
    /// Lives as long as this end of its pipe.
    process: Child,
    said: Mutex<BufReader<ChildStdout>>,
}

impl Server {
    /// The one that is shared.
    pub(crate) async fn get() -> &'static Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        let start = async {
            let server = Self::start("", |_| {});
            server.execute(&format!("CREATE DATABASE {TEMPLATE}")).await;
            let template = Store::open(&Database::Postgres(server.url(TEMPLATE)), "test").await.unwrap();
            template.close().await;
            server
        };
        SERVER.get_or_init(|| start).await
    }

    /// A new one, with more settings (`-c NAME=VALUE`) and with files in its directory, in which it has its own under `data`.
    pub(crate) fn start(settings: &str, files: impl FnOnce(&Path)) -> Self {
        let directory = std::env::temp_dir().join(format!("patchwarden-pg-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&directory).unwrap();
        files(&directory);
        let programs = programs();
        let mut command = as_account(&directory, "sh");
        command.args(["-c", SERVE, "sh"]).arg(&directory).arg(&programs).arg(settings);
        let mut server = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = Mutex::new(BufReader::new(server.stdout.take().unwrap()));
        let server = Self { directory, programs, process: server, said };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        let mut said = String::new();
        self.said.lock().unwrap().read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "PostgreSQL does not start");
    }

    /// Ends it in the middle of whatever it does, as a crash would, and starts it again on the same files.
    pub(crate) fn crash(&self) {
        self.process.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
        self.wait_until_ready();
    }

    /// Where one of its databases is.
    pub(crate) fn url(&self, database: &str) -> Url {
        let mut url = Url::parse(&format!("postgres://patchwarden@localhost/{database}")).unwrap();
        url.query_pairs_mut().append_pair("host", self.directory.to_str().unwrap());
        url
    }

    /// Stops all its processes in their tracks (SIGSTOP) until the guard is dropped: to its clients it has vanished.
    pub(crate) fn vanish(&self) -> Vanished {
        let file = std::fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap();
        let first = file.lines().next().unwrap().to_owned();
        // It comes first: then it makes no more of them.
        signal("-STOP", &first);
        let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap();
        let children: Vec<_> = children.split_whitespace().map(str::to_owned).collect();
        for child in &children {
            signal("-STOP", child);
        }
        Vanished([vec![first], children].concat())
    }

    /// Runs a statement of an administrator.
    pub(crate) async fn execute(&self, statement: &str) {
        Self::execute_at(&self.url("postgres"), statement).await;
    }

    /// The same by another way to it.
    pub(crate) async fn execute_at(url: &Url, statement: &str) {
        sqlx::any::install_default_drivers();
        let options = AnyConnectOptions::from_url(url).unwrap();
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // It has ended or it will.
        let _ = self.process.wait();
    }
}

/// See [`Server::vanish`].
pub(crate) struct Vanished(Vec<String>);

impl Drop for Vanished {
    fn drop(&mut self) {
        for process in &self.0 {
            signal("-CONT", process);
        }
    }
}

fn signal(signal: &str, process: &str) {
    assert!(Command::new("kill").args([signal, process]).status().unwrap().success(), "kill {signal} {process}");
}

/// Debian's newest PostgreSQL.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin")).filter(|path| path.join("initdb").exists()).max();
    programs.expect("PostgreSQL is missing: run hack/prerequisites")
}

/// A program that may use the directory and is not root.
fn as_account(directory: &Path, program: &str) -> Command {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata(directory).unwrap().uid() != 0 {
        return Command::new(program);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let account = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == ACCOUNT);
    let account = account.expect("there is no account postgres: run hack/prerequisites");
    let id = |field: usize| Some(account[field].parse::<u32>().unwrap());
    let inside = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    for path in inside.chain([directory.to_owned()]) {
        std::os::unix::fs::chown(path, id(2), id(3)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", ACCOUNT, "--regid", account[3], "--clear-groups", "--", program]);
    command
}
