//! How install Jobs' pods and the controller call the gateway: TLS by Patchwarden's CA, and the token of their service account.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Request;
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error};

/// For the connection as a whole, with TLS.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Finds a gateway that vanished without a word.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A token that cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum NoToken {
    /// Its file.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("{}: not a token", path.display())]
    NotAToken {
        /// Which.
        path: PathBuf,
        /// Why.
        source: InvalidMetadataValue,
    },
}

/// A connection to `https://host:port` that is made when it is needed, and made again; `ca` are the CA's certificates in PEM.
pub fn channel(url: &str, ca: &str) -> Result<Channel, Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .tls_config(tls)?
        .connect_timeout(CONNECT_TIME)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

/// A request that shows the token in the file, which is read anew each time: it is replaced as it ages.
pub async fn authorized<T>(message: T, token_file: &Path) -> Result<Request<T>, NoToken> {
    let path = || token_file.to_owned();
    let token =
        tokio::fs::read_to_string(token_file).await.map_err(|source| NoToken::Unreadable { path: path(), source })?;
    let bearer = format!("Bearer {}", token.trim());
    let bearer = bearer.parse().map_err(|source| NoToken::NotAToken { path: path(), source })?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer);
    Ok(request)
}
