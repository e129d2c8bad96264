//! PostgreSQL, as Debian has it, that is killed as a whole.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::signal;
use crate::world::{eventually, succeeded};

/// As the account that Debian's package makes: PostgreSQL refuses root.
const ACCOUNT: [&str; 6] = ["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"];

/// A server on a socket in a directory of its own. It ends, and the directory with it, when this is dropped.
pub struct Postgres {
    directory: TempDir,
    programs: PathBuf,
    server: Child,
}

impl Postgres {
    pub fn start() -> Self {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let programs = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists());
        let programs = programs.max().expect("PostgreSQL is missing: run hack/prerequisites");
        let directory = tempfile::Builder::new().prefix("patchwarden-replicas-").tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        succeeded("chown", &[path], &Command::new("chown").args(["postgres:", path]).output().unwrap());
        let mut initdb = Command::new("setpriv");
        initdb.args(ACCOUNT).arg(programs.join("initdb")).current_dir(path);
        let options = ["-D", "data", "-U", "patchwarden", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"];
        succeeded("initdb", &options, &initdb.args(options).output().unwrap());
        let server = server(&directory, &programs);
        let postgres = Self { directory, programs, server };
        eventually("PostgreSQL answers", || postgres.answers().then_some(())).unwrap();
        postgres
    }

    /// What a gateway is told.
    pub fn url(&self) -> String {
        format!("postgres://patchwarden@localhost/postgres?host={}", self.directory.path().display())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join(".s.PGSQL.5432")
    }

    /// `kill -9` of its first process, whereupon the others end in the middle of what they do; and a new one on the same files.
    pub fn crash(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        let data = "PostgreSQL is back";
        eventually(data, || {
            // It refuses to start for as long as one of the others is still there.
            if self.server.try_wait().unwrap().is_some() {
                self.server = server(&self.directory, &self.programs);
            }
            self.answers().then_some(())
        })
        .unwrap();
    }

    fn answers(&self) -> bool {
        let mut command = Command::new(self.programs.join("pg_isready"));
        command.arg("-q").arg("-h").arg(self.directory.path()).status().unwrap().success()
    }

    /// The rows of a question: a line for each, `|` between its columns.
    pub fn rows(&self, question: &str) -> Vec<String> {
        let mut command = Command::new(self.programs.join("psql"));
        command.arg("-h").arg(self.directory.path()).args(["-U", "patchwarden", "-XAtc", question, "postgres"]);
        let text = succeeded("psql", &[question], &command.output().unwrap());
        text.lines().map(str::to_owned).collect()
    }
}

fn server(directory: &TempDir, programs: &std::path::Path) -> Child {
    let path = directory.path();
    let log = std::fs::File::options().create(true).append(true).open(path.join("log")).unwrap();
    let mut command = Command::new("setpriv");
    command.args(ACCOUNT).arg(programs.join("postgres")).current_dir(path).arg("-D").arg("data");
    command.arg("-k").arg(path).args(["-c", "listen_addresses="]).stdin(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- PostgreSQL\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        // At once, without a checkpoint (SIGQUIT): it leaves no shared memory behind.
        signal("-QUIT", self.server.id());
        _ = self.server.wait();
    }
}
