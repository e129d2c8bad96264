//! Downloads through the cache of the device's site, for one order.
//!
//! ```text
//!   does it answer? -> the package manager downloads through it
//!        no, or that failed: WhenDown::Direct -> downloads without it     WhenDown::Wait -> the order has failed
//! ```
//! Nothing is configured on the machine: the package manager is told by its environment, and verifies what it gets as ever.

use std::io;
use std::time::Duration;

use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::ResultReason;
use patchwarden_protocol::site_cache::{SiteCache, WhenDown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Execution;
use crate::provider::{Failure, Line, Provider};

/// For a connection and the first words of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Reasons for which a download without the cache may succeed.
const BY_ANOTHER_WAY: [ResultReason; 2] = [ResultReason::DownloadFailed, ResultReason::TimedOut];

/// What every answer of HTTP/1 begins with (RFC 9112, 2.3).
const HTTP: &[u8; 5] = b"HTTP/";

impl<P: Provider> Execution<'_, P> {
    /// Lets `fetch` bring files within `limit`: through the site's cache where the order names one, and where that fails without it if
    /// it may.
    pub(super) async fn bring_files(
        &self,
        limit: Duration,
        fetch: impl AsyncFn(Line<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let direct = Line { limit, proxy: None };
        let cache = self.order().site_cache.as_ref().filter(|_| self.provider.takes_proxy());
        let Some(cache) = cache else { return fetch(direct).await };
        let began = Instant::now();
        let limits = self.agent.limits().map_err(|error| Failure::from(&error))?;
        let usable = match limits.check_site_cache(&cache.url) {
            Ok(()) => answers(cache)
                .await
                .map_err(|why| failure_of(cache, ResultReason::SiteCacheDown, &format!("does not answer: {why}"))),
            Err(failure) => Err(failure),
        };
        let failure = if let Err(failure) = usable {
            failure
        } else {
            self.progress(Phase::Simulated, &format!("downloads through the site's cache {}", cache.url));
            // One that takes for ever leaves as much time to what comes without it.
            let share = match cache.when_down {
                WhenDown::Direct => limit / 2,
                WhenDown::Wait => limit,
            };
            match fetch(Line { limit: share, proxy: Some(&cache.url) }).await {
                // Only what another way could bring.
                Err(failure) if BY_ANOTHER_WAY.contains(&failure.reason) => {
                    failure_of(cache, failure.reason, &format!("has failed: {}", failure.message))
                }
                ended => return ended,
            }
        };
        match cache.when_down {
            WhenDown::Wait => Err(failure),
            WhenDown::Direct => {
                self.progress(Phase::Simulated, &format!("downloads directly: {}", failure.message));
                fetch(Line { limit: limit.saturating_sub(began.elapsed()), ..direct }).await
            }
        }
    }
}

fn failure_of(cache: &SiteCache, reason: ResultReason, what: &str) -> Failure {
    Failure::new(reason, format!("the site's cache {} {what}", cache.url))
}

/// Whether something that speaks HTTP is there. What it says of a request for itself is its own affair.
async fn answers(cache: &SiteCache) -> Result<(), String> {
    let (host, port) = cache.authority()?;
    let asked = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        // Its name as it is in the address: `url` is `http://` and that.
        let name = cache.url.trim_start_matches("http://").trim_end_matches('/');
        stream.write_all(format!("HEAD / HTTP/1.0\r\nHost: {name}\r\n\r\n").as_bytes()).await?;
        let mut begin = [0; HTTP.len()];
        stream.read_exact(&mut begin).await?;
        if begin == *HTTP { Ok(()) } else { Err(io::Error::other("it does not speak HTTP")) }
    };
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(answered) => answered.map_err(|error: io::Error| error.to_string()),
        Err(_) => Err(format!("nothing came within {} s", ANSWER_LIMIT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server that says this, and then nothing more, is taken for.
    async fn told(answer: &'static [u8]) -> Result<(), String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"HEAD / HTTP/1.0\r\nHost: 127.0.0.1:"));
            stream.write_all(answer).await.unwrap();
        };
        let cache = SiteCache { url, when_down: WhenDown::Wait };
        tokio::join!(answers(&cache), server).0
    }

    #[tokio::test]
    async fn a_cache_is_what_speaks_http_whatever_it_says() {
        assert_eq!(told(b"HTTP/1.0 406 Usage Information\r\n\r\n").await, Ok(()));
        assert!(told(b"SSH-2.0-OpenSSH\r\n").await.unwrap_err().contains("does not speak HTTP"));
        assert!(told(b"HT").await.is_err());
        let nobody = SiteCache { url: "http://127.0.0.1:1".into(), when_down: WhenDown::Wait };
        assert!(answers(&nobody).await.unwrap_err().contains("refused"));
    }
}
