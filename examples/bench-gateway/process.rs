//! The gateway as a process of its own, and what the kernel and it itself tell of it.

use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Where its agents come in.
pub const AGENTS_PORT: u16 = 8443;

/// The name in its certificate.
pub const SERVER_NAME: &str = "gateway.bench";

/// Where people's programs come in.
pub const API: &str = "127.0.0.1:8445";

const HEALTH: &str = "127.0.0.1:8080";

/// The unit of times in /proc/PID/stat (USER_HZ), which is part of Linux's interface to programs.
const TICK: Duration = Duration::from_millis(10);

/// With 10,000 devices it takes seconds until it is ready.
const START: Duration = Duration::from_mins(3);

/// How it is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// With the rights of its service account.
    pub kubeconfig: PathBuf,
    /// Its database.
    pub database: String,
    /// Where its log goes.
    pub log: PathBuf,
}

impl Program {
    /// Starts it. It is not ready yet.
    pub fn start(&self) -> anyhow::Result<Gateway> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| self.log.display().to_string())?;
        let child = Command::new(&self.path)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1")
            .args(["--namespace", crate::world::SYSTEM, "--database", &self.database, "--server-name", SERVER_NAME])
            .args(["--server-name", "127.0.0.1", "--api-address", API])
            .args(["--agents-address", &format!("0.0.0.0:{AGENTS_PORT}"), "--health-address", HEALTH])
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| self.path.display().to_string())?;
        let id = child.id().context("the gateway has ended")?;
        Ok(Gateway { child, id, log: self.log.clone() })
    }
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    id: u32,
    log: PathBuf,
}

impl Gateway {
    /// Waits until its door is open.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.ended(status));
            }
            let answer = get(HEALTH, "/readyz").await;
            match answer {
                Ok(text) if text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200") => return Ok(()),
                other if Instant::now() >= deadline => bail!("the gateway is not ready: {other:?}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("the gateway has ended ({status}); its log: {}", self.log.display())
    }

    /// `kill -9`.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("killing the gateway")
    }

    /// Time on processors since its start.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id))?;
        // The second field is the name in parentheses; utime and stime are the 14th and 15th.
        let fields = stat.rsplit_once(") ").context("/proc/PID/stat")?.1;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>()?;
        Ok(TICK * ticks)
    }

    /// Bytes that are resident, when they have stopped to change by more than 1%.
    pub async fn resident(&self) -> anyhow::Result<u64> {
        let mut before = self.resident_now()?;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.resident_now()?;
            if now.abs_diff(before) * 100 <= before {
                return Ok(now);
            }
            before = now;
        }
        Ok(before)
    }

    fn resident_now(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/PID/status: VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }

    /// A sample of its own metrics.
    pub async fn metric(&self, sample: &str) -> anyhow::Result<u64> {
        let text = get(HEALTH, "/metrics").await?;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("the gateway has no metric {sample}"))?.trim().parse()?)
    }
}

/// What a door without TLS answers, with its headers.
pub async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    ensure!(!text.is_empty(), "{address}{path}: no answer");
    Ok(text)
}
