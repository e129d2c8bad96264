//! Checks: whether the machine is healthy.
//!
//! All but a script of the machine's own reach the machine itself and nothing beyond it: what an order names can neither
//! make the agent call other machines nor tell what is to be found there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use patchwarden_protocol::result::{Step, StepResult};
use patchwarden_protocol::safeguards::{Check, Probe};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::script::{self, Ended};
use super::{Execution, detached};
use crate::agent::order_directory;
use crate::platform;
use crate::provider::{Provider, bounded};

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Where a service of this machine listens that listens on all addresses.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Longest message.
const MAX_MESSAGE: usize = 400;

impl<P: Provider> Execution<'_, P> {
    /// Once.
    pub(super) async fn try_before(&self, check: &Check) -> StepResult {
        step_result(Step::CheckBefore, check, self.try_once(check).await)
    }

    /// Until it succeeds, or its time is over.
    pub(super) async fn try_after(&self, step: Step, check: &Check) -> StepResult {
        let until = Instant::now() + Duration::from_secs(check.settle_seconds.into());
        loop {
            let found = self.try_once(check).await;
            if found.is_ok() || Instant::now() + PAUSE > until {
                return step_result(step, check, found);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What it says for itself, or why it failed.
    async fn try_once(&self, check: &Check) -> Result<String, String> {
        let seconds = check.timeout_seconds;
        match &check.probe {
            Probe::ServiceActive { unit } => {
                within(seconds, platform::service_active(unit)).await.map(|()| String::new())
            }
            Probe::Tcp { port } => within(seconds, connect(*port)).await.map(|_| String::new()),
            Probe::Http { port, path, status } => within(seconds, get(*port, path, *status)).await,
            Probe::FileExists { path } => within(seconds, platform::file_exists(path)).await.map(|()| String::new()),
            // It has a limit of its own, which also kills.
            Probe::Command { name } => self.try_script(name, seconds).await,
        }
    }

    async fn try_script(&self, name: &str, seconds: u32) -> Result<String, String> {
        let sequence = self.order().sequence;
        let directory = order_directory(&self.agent.state, sequence).join("check");
        let told = self.environment("check").map_err(|error| error.to_string())?;
        let command = self.script(name, seconds, told)?;
        let ran = async {
            let unit = format!("patchwarden-check-{sequence}-{:08x}", rand::random::<u32>());
            let waiting = detached::prepare(&command, &directory, &unit)?;
            let (process, at) = (waiting.process.clone(), platform::now());
            waiting.go().await?;
            script::follow(&directory, &process, at, seconds).await
        };
        let said = || script::said(&directory);
        match ran.await.map_err(|error| error.to_string())? {
            Ended::Code(0) => Ok(said()),
            Ended::Code(code) => Err(format!("ended with code {code}: {}", said())),
            Ended::TookTooLong => Err(format!("did not end within {seconds} s and was killed: {}", said())),
            Ended::Died => Err("was killed".to_owned()),
        }
    }
}

fn step_result(step: Step, check: &Check, found: Result<String, String>) -> StepResult {
    let (ok, message) = found.map_or_else(|why| (false, why), |said| (true, said));
    StepResult { step, name: check.name.clone(), ok, message: bounded(message.trim(), MAX_MESSAGE) }
}

async fn within<T>(seconds: u32, tried: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let tried = tokio::time::timeout(Duration::from_secs(seconds.into()), tried).await;
    tried.unwrap_or_else(|_| Err(format!("no answer within {seconds} s")))
}

async fn connect(port: u16) -> Result<TcpStream, String> {
    let mut refused = None;
    for address in LOOPBACK {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = refused.or_else(|| Some(format!("port {port}: {error}"))),
        }
    }
    Err(refused.unwrap_or_default())
}

async fn get(port: u16, path: &str, status: u16) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("GET {path} at port {port}: {error}");
    let stream = TokioIo::new(connect(port).await?);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| failed(&error))?;
    let request = http::Request::get(path)
        .header(http::header::HOST, format!("localhost:{port}"))
        .header(http::header::USER_AGENT, concat!("patchwarden-agent/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    // The connection ends with this function: nobody reads a body.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await;
    let found = response.map_err(|error| failed(&error))?.status().as_u16();
    if found == status { Ok(String::new()) } else { Err(failed(&format!("status {found} instead of {status}"))) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with this, and returns what was asked.
    async fn serve(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind((LOOPBACK[0], 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 1024];
            let length = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        (port, served)
    }

    async fn http(answer: &'static str, status: u16) -> (Result<String, String>, String) {
        let (port, served) = serve(answer).await;
        let found = get(port, "/health?full", status).await;
        (found, served.await.unwrap())
    }

    #[tokio::test]
    async fn a_page_is_asked_for_without_a_body_and_its_status_counts() {
        let (found, asked) = http("HTTP/1.1 204 No Content\r\n\r\n", 204).await;
        assert_eq!(found, Ok(String::new()));
        assert!(asked.starts_with("GET /health?full HTTP/1.1\r\nhost: localhost:"), "{asked}");
        assert!(asked.ends_with("\r\n\r\n"), "{asked}");
        // A redirect is an answer like any other.
        let (found, _) = http("HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\n\r\n", 200).await;
        assert!(found.unwrap_err().contains("status 302 instead of 200"));
        let (found, _) = http("SSH-2.0-OpenSSH\r\n", 200).await;
        assert!(found.is_err());
        let (found, _) = http("", 200).await;
        assert!(found.is_err());
    }

    #[tokio::test]
    async fn a_port_takes_connections_or_does_not() {
        let listener = TcpListener::bind((LOOPBACK[0], 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(connect(port).await.is_ok());
        drop(listener);
        let refused = connect(port).await.unwrap_err();
        assert!(refused.contains("refused"), "{refused}");
    }

    #[tokio::test]
    async fn a_file_exists_or_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_string_lossy().into_owned();
        assert_eq!(platform::file_exists(&path).await, Ok(()));
        drop(file);
        assert!(platform::file_exists(&path).await.unwrap_err().contains("does not exist"));
    }

    #[tokio::test]
    async fn who_does_not_answer_in_time_has_failed() {
        let listener = TcpListener::bind((LOOPBACK[0], 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(within(1, get(port, "/", 200)).await, Err("no answer within 1 s".to_owned()));
    }
}
