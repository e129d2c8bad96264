//! A proxy of the device's site, which keeps what was downloaded: a site downloads each file once.

use serde::{Deserialize, Serialize};

/// Longest address, in characters.
pub const MAX_ADDRESS: usize = 200;

/// What a device does where its site's cache does not answer, or does not have what is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum WhenDown {
    /// It downloads without the cache: as if there were none.
    #[default]
    Direct,
    /// It downloads nothing. What was ordered is tried again: after each backoff where nothing answers, which is no attempt.
    Wait,
}

/// The cache that a device downloads packages through: for this order, and for `http://` alone. What is signed is verified as ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteCache {
    /// `http://HOST:PORT`.
    pub url: String,
    /// What follows where it is down.
    pub when_down: WhenDown,
}

impl SiteCache {
    /// Whether the address is that of a proxy, and nothing more: neither a path nor a password.
    pub fn validate(&self) -> Result<(), String> {
        self.authority().map(|_| ())
    }

    /// Host and port, as a connection wants them; 80 where none is given.
    pub fn authority(&self) -> Result<(&str, u16), String> {
        let wrong = || {
            "siteCache.url: must be http://HOST:PORT, of at most 200 characters, without a path, a name or a password"
                .to_owned()
        };
        let rest = self.url.strip_prefix("http://").filter(|_| self.url.len() <= MAX_ADDRESS).ok_or_else(wrong)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // An IPv6 address has colons of its own, and stands in brackets: RFC 3986, 3.2.2.
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, after)) => (host, after),
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        let is_address = rest.starts_with('[');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
        let is_host = if is_address { host.parse::<std::net::Ipv6Addr>().is_ok() } else { host.chars().all(is_plain) };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => Some(80),
            None => None,
            Some(digits) => digits.parse().ok().filter(|port| *port != 0),
        };
        let port = port.filter(|_| is_host && !host.is_empty()).ok_or_else(wrong)?;
        Ok((host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let authority = |url: &str| {
            let cache = SiteCache { url: url.to_owned(), when_down: WhenDown::Wait };
            cache.authority().map(|(host, port)| (host.to_owned(), port))
        };
        for (url, host, port) in [
            ("http://cache:3142", "cache", 3142),
            ("http://cache.site-a.example.com", "cache.site-a.example.com", 80),
            ("http://10.0.0.1:8080/", "10.0.0.1", 8080),
            ("http://[2001:db8::1]:3128", "2001:db8::1", 3128),
            ("http://[::1]", "::1", 80),
        ] {
            assert_eq!(authority(url), Ok((host.to_owned(), port)), "{url}");
        }
        let long = format!("http://{}", "a".repeat(MAX_ADDRESS));
        for url in [
            "",
            "cache:3142",
            "https://cache:3142",
            "http://",
            "http://:80",
            "http://cache:",
            "http://cache:0",
            "http://cache:65536",
            "http://cache:80/debian",
            "http://me:secret@cache:80",
            "http://cache:80?x",
            "http://[::1",
            "http://[x]:80",
            "http://[::1]80",
            "http://c ache",
            "http://cache:80 -o x",
            &long,
        ] {
            assert!(authority(url).unwrap_err().contains("siteCache.url: must be http://HOST:PORT"), "{url}");
        }
    }
}
