//! Downloads by HTTPS. What a file is says its hash; what a server says is only believed as far as that.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use patchwarden_protocol::result::ResultReason;
use rustls::crypto::ring;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::files;
use crate::provider::{Failure, megabytes};

/// Name resolution, and TCP.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Vendors send to mirrors and back.
const MAX_REDIRECTS: u32 = 5;

/// Downloads what the address has to `to`: exactly `size` bytes, or at most so many where it is not known how many there are. Not
/// verified yet. Blocks.
pub(crate) fn fetch(url: &str, size: Size, to: &Path, limit: Duration) -> Result<(), Failure> {
    let failed = |why: String| Failure::new(ResultReason::DownloadFailed, format!("{url}: {why}"));
    let agent = agent(limit).map_err(failed)?;
    let mut response = agent.get(url).call().map_err(|error| failed(error.to_string()))?;
    let (Size::Exactly(most) | Size::AtMost(most)) = size;
    let refuse = |found: u64| match size {
        Size::Exactly(size) => failed(format!("has {found} bytes, the recipe says {size}")),
        Size::AtMost(size) => failed(format!("has more than {}", megabytes(size))),
    };
    let told = response.body().content_length();
    if let Some(told) = told.filter(|told| *told > most) {
        return Err(refuse(told));
    }
    let to_disk = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull => Failure::new(ResultReason::DiskFull, format!("{}: {error}", to.display())),
        _ => failed(error.to_string()),
    };
    let mut file = files::options(files::PRIVATE).write(true).create(true).truncate(true).open(to).map_err(to_disk)?;
    let mut body = response.body_mut().as_reader().take(most.saturating_add(1));
    let mut buffer = vec![0; 128 << 10];
    let mut found = 0;
    loop {
        let read = body.read(&mut buffer).map_err(|error| failed(error.to_string()))?;
        if read == 0 {
            break;
        }
        found += read as u64;
        file.write_all(&buffer[..read]).map_err(to_disk)?;
    }
    let is_right = match size {
        Size::Exactly(size) => found == size,
        Size::AtMost(size) => found <= size,
    };
    if is_right { Ok(()) } else { Err(refuse(found)) }
}

/// How large a file is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    /// In bytes.
    Exactly(u64),
    /// In bytes.
    AtMost(u64),
}

/// Believes whom the system believes, its owner's own authorities among them; proxies are those of the environment.
fn agent(limit: Duration) -> Result<ureq::Agent, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!("this system knows no certificate authority (ca-certificates): {}", why.join(", ")));
    }
    let roots: Vec<Certificate<'static>> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .build();
    let config = ureq::Agent::config_builder()
        .https_only(true)
        .max_redirects(MAX_REDIRECTS)
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_global(Some(limit))
        .user_agent(concat!("patchwarden-agent/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    Ok(ureq::Agent::new_with_config(config))
}
