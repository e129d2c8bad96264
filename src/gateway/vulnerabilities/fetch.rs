//! Files of vulnerability data from their publishers, or from a mirror of them, into the directory that is imported: once, when somebody asks for it.
//!
//! A file takes the place of the one before only after it was read to its end as an import would: what cannot be read, is cut off or is none of the
//! formats changes nothing. It is asked for by the time of the one before (RFC 9110, If-Modified-Since), so that what has not changed is not sent again.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::{IF_MODIFIED_SINCE, LAST_MODIFIED};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use patchwarden_vulnerabilities::ReadError;
use patchwarden_vulnerabilities::directory::read;
use rustls::crypto::ring;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use url::Url;

/// Of one file: all of Debian's and Ubuntu's records are some hundred MB.
const MAX_FILE: u64 = 2 << 30;

/// Name resolution, TCP and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// For one file.
const LIMIT: Duration = Duration::from_mins(30);

/// Publishers send to mirrors and back.
const MAX_REDIRECTS: u32 = 5;

/// A file, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    name: String,
    url: Url,
}

/// Why a text names no source.
#[derive(Debug, thiserror::Error)]
pub enum NoSource {
    /// No URL.
    #[error("{0} is no URL: {1}")]
    Url(String, url::ParseError),
    /// Over a network everybody on the way could say what is vulnerable.
    #[error("{0}: only https:// is taken, and http:// from this machine itself")]
    Scheme(Url),
    /// No name for its file.
    #[error(
        "{0}: \"{1}\" is no name for its file: give NAME=URL, NAME of letters, digits, \"-\", \"_\" and \".\", not first a \".\""
    )]
    Name(Url, String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Source {
    type Err = NoSource;

    /// `URL`, whose last part is the file's name then, or `NAME=URL`.
    fn from_str(text: &str) -> Result<Self, NoSource> {
        let named = text.split_once('=').filter(|(name, _)| !name.contains("://"));
        let (name, url) = named.map_or((None, text), |(name, url)| (Some(name), url));
        let url = Url::parse(url).map_err(|error| NoSource::Url(url.to_owned(), error))?;
        if url.scheme() != "https" && !is_of_this_machine(&url) {
            return Err(NoSource::Scheme(url));
        }
        let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
        let name = name.unwrap_or(last).to_owned();
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            return Err(NoSource::Name(url, name));
        }
        Ok(Self { name, url })
    }
}

fn is_of_this_machine(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && is_loopback
}

/// Why a file was not fetched. The one before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched {
    /// The authorities to believe.
    #[error("ca: {}: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// By the network or the server.
    #[error("{}: {}: {why}", from.name, from.url)]
    Network {
        /// The file.
        from: Box<Source>,
        /// Why.
        why: String,
    },
    /// What was sent cannot be imported.
    #[error("{}: {}: what was sent is refused, and the file before stays: {source}", from.name, from.url)]
    Refused {
        /// The file.
        from: Box<Source>,
        /// Why.
        source: ReadError,
    },
    /// The directory.
    #[error("{}: {source}", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What came of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It has this many bytes.
    New(u64),
    /// The server says that it has not changed.
    Unchanged,
}

/// Fetches one file. The authorities in `ca` (PEM) are believed instead of the public ones; proxies are those of the environment. Blocks.
pub fn fetch(directory: &Path, source: &Source, ca: Option<&Path>) -> Result<Fetched, NotFetched> {
    let Source { name, url } = source;
    let failed = |why: String| NotFetched::Network { from: Box::new(source.clone()), why };
    let target = directory.join(name);
    let disk = |source: io::Error| NotFetched::Disk { path: target.clone(), source };
    // Beside the files, so that it can take the place of one; of names with a dot nothing is read.
    let place = tempfile::Builder::new().prefix(".fetch-").tempdir_in(directory);
    let place = place.map_err(|source| NotFetched::Disk { path: directory.to_owned(), source })?;
    let mut request = agent(url, ca)?.get(url.as_str());
    if let Some(time) = fs::metadata(&target).ok().and_then(|file| file.modified().ok()).and_then(http_date) {
        request = request.header(IF_MODIFIED_SINCE, time);
    }
    let mut response = request.call().map_err(|error| failed(error.to_string()))?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED => return Ok(Fetched::Unchanged),
        other => return Err(failed(format!("the server answers {other}"))),
    }
    let modified = response.headers().get(LAST_MODIFIED).and_then(|time| time.to_str().ok()).and_then(system_time);
    let fetched = place.path().join(name);
    let mut file = File::create(&fetched).map_err(disk)?;
    let mut body = response.body_mut().as_reader().take(MAX_FILE + 1);
    let mut buffer = vec![0; 128 << 10];
    let mut bytes = 0;
    loop {
        let read = body.read(&mut buffer).map_err(|error| failed(error.to_string()))?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        file.write_all(&buffer[..read]).map_err(disk)?;
    }
    if bytes > MAX_FILE {
        return Err(failed(format!("it has more than {} GiB", MAX_FILE >> 30)));
    }
    read(place.path(), &mut |_| Ok(()))
        .map_err(|error| NotFetched::Refused { from: Box::new(source.clone()), source: error })?;
    if let Some(modified) = modified {
        file.set_modified(modified).map_err(disk)?;
    }
    file.sync_all().map_err(disk)?;
    fs::rename(&fetched, &target).map_err(disk)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(disk)?;
    Ok(Fetched::New(bytes))
}

fn agent(url: &Url, ca: Option<&Path>) -> Result<ureq::Agent, NotFetched> {
    let roots = match ca {
        None => RootCerts::WebPki,
        Some(path) => {
            let refuse = |why: String| NotFetched::Ca { path: path.to_owned(), why };
            let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let all = all.map_err(|error| refuse(error.to_string()))?;
            if all.is_empty() {
                return Err(refuse("has no certificate in PEM".to_owned()));
            }
            let all = all.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
            RootCerts::Specific(Arc::new(all))
        }
    };
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(roots)
        .build();
    let is_local = is_of_this_machine(url);
    let config = ureq::Agent::config_builder()
        .https_only(!is_local)
        // This machine's own server must not send elsewhere without TLS.
        .max_redirects(if is_local { 0 } else { MAX_REDIRECTS })
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_global(Some(LIMIT))
        .user_agent(concat!("patchwarden-gateway/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    Ok(ureq::Agent::new_with_config(config))
}

fn http_date(time: SystemTime) -> Option<String> {
    let time = Timestamp::try_from(time).ok()?;
    rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()
}

fn system_time(text: &str) -> Option<SystemTime> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    const KEV: &str = "cveID,dateAdded\nCVE-2026-0001,2026-01-02\n";
    const LATER: &str = "cveID,dateAdded\nCVE-2026-0001,2026-01-02\nCVE-2026-0002,2026-01-03\n";

    /// An answer: status line and headers, and what follows.
    type Answer = (&'static str, &'static str);

    /// A server on loopback that answers each connection's one request with the next of these. It ends with the last.
    struct Publisher {
        url: String,
        ca: PathBuf,
        thread: thread::JoinHandle<Vec<String>>,
    }

    impl Publisher {
        fn start(place: &Path, answers: Vec<Answer>) -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let key = KeyPair::generate().unwrap();
            let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
            let ca = place.join("ca.pem");
            fs::write(&ca, issuer.pem()).unwrap();
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap());
            let config = Arc::new(config.unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("https://{}/kev.csv", listener.local_addr().unwrap());
            let thread = thread::spawn(move || {
                let mut asked = Vec::new();
                for (head, body) in answers {
                    let (stream, _) = listener.accept().unwrap();
                    let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
                    let (mut request, mut byte) = (Vec::new(), [0]);
                    // A peer that does not believe the certificate hangs up.
                    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                        request.push(byte[0]);
                    }
                    asked.push(String::from_utf8(request).unwrap().to_lowercase());
                    let _ = write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\n\r\n{body}");
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
                asked
            });
            Self { url, ca, thread }
        }

        fn source(&self) -> Source {
            self.url.parse().unwrap()
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn what_has_changed_takes_the_place_of_the_file_and_what_cannot_be_read_does_not() {
        let (place, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let new = "200 OK\r\ncontent-length: 41\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT";
        let publisher = Publisher::start(
            place.path(),
            vec![
                (new, KEV),
                ("304 Not Modified", ""),
                ("200 OK\r\ncontent-length: 5000", LATER),
                ("200 OK", "<html>maintenance</html>"),
                ("200 OK\r\ncontent-length: 0", ""),
                ("503 Service Unavailable\r\ncontent-length: 0", ""),
                ("204 No Content", ""),
                ("302 Found\r\nlocation: http://192.0.2.1/kev.csv\r\ncontent-length: 0", ""),
                ("200 OK\r\ncontent-length: 66", LATER),
            ],
        );
        let target = directory.path().join("kev.csv");
        let fetched = || fetch(directory.path(), &publisher.source(), Some(&publisher.ca));
        assert_eq!(fetched().unwrap(), Fetched::New(41));
        assert_eq!(fs::read_to_string(&target).unwrap(), KEV);
        assert_eq!(fetched().unwrap(), Fetched::Unchanged);
        for why in
            ["kev.csv: https://127", "is refused, and the file before stays", "is refused", "503", "204", "https"]
        {
            let refused = fetched().unwrap_err().to_string();
            assert!(refused.contains(why), "{why}: {refused}");
            assert_eq!(fs::read_to_string(&target).unwrap(), KEV, "{why}");
            assert_eq!(names(directory.path()), ["kev.csv"], "{why}: nothing else is left");
        }
        assert_eq!(fetched().unwrap(), Fetched::New(66));
        assert_eq!(fs::read_to_string(&target).unwrap(), LATER);
        let asked = publisher.thread.join().unwrap();
        assert!(!asked[0].contains("if-modified-since"), "{}", asked[0]);
        assert!(asked[1].contains("if-modified-since: sun, 06 nov 1994 08:49:37 gmt\r\n"), "{}", asked[1]);
        assert!(asked[1].contains("user-agent: patchwarden-gateway/"), "{}", asked[1]);
    }

    #[test]
    fn a_server_that_is_not_believed_or_not_there_changes_nothing() {
        let (place, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let publisher = Publisher::start(place.path(), vec![("200 OK", KEV)]);
        let source = publisher.source();
        let refused = fetch(directory.path(), &source, None).unwrap_err().to_string();
        assert!(refused.contains("certificate"), "{refused}");
        publisher.thread.join().unwrap();
        let refused = fetch(directory.path(), &source, Some(&publisher.ca)).unwrap_err().to_string();
        assert!(refused.starts_with("kev.csv: https://127.0.0.1:"), "{refused}");
        let missing = place.path().join("missing.pem");
        let refused = fetch(directory.path(), &source, Some(&missing)).unwrap_err().to_string();
        assert!(refused.starts_with("ca: ") && refused.contains("missing.pem"), "{refused}");
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }

    #[test]
    fn a_source_is_a_url_with_or_without_a_name() {
        let read = |text: &str| text.parse::<Source>().map(|source| source.name);
        assert_eq!(read("https://example.com/a/kev.json?x=1").unwrap(), "kev.json");
        assert_eq!(read("debian.zip=https://example.com/Debian/all.zip").unwrap(), "debian.zip");
        assert_eq!(read("http://127.0.0.1:8000/kev.csv").unwrap(), "kev.csv");
        for (text, why) in [
            ("kev.csv", "is no URL"),
            ("http://example.com/kev.csv", "only https:// is taken"),
            ("file:///etc/kev.csv", "only https:// is taken"),
            ("https://example.com/", "give NAME=URL"),
            (".kev.csv=https://example.com/kev.csv", "give NAME=URL"),
            ("../kev.csv=https://example.com/kev.csv", "give NAME=URL"),
        ] {
            let refused = read(text).unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
