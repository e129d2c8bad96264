//! The proxy of a site that devices download through.

use patchwarden_protocol::site_cache::WhenDown;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A proxy that keeps what was downloaded (apt-cacher-ng, squid), so that a site downloads each file once. The package manager uses it for
/// the downloads of an order, for `http://` alone, and only where its own configuration names no proxy; nothing on the device is changed. What is
/// signed is verified as ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SiteCache {
    /// `http://HOST:PORT`, without a path, a name or a password.
    #[schemars(
        length(max = 200),
        regex(pattern = r"^http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?/?$")
    )]
    pub url: String,
    /// What a device does where the cache does not answer, or fails: it downloads without it, or not at all until the next try.
    #[serde(default)]
    pub when_down: WhenDown,
}
