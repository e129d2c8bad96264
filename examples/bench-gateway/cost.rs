//! What the devices' objects cost Kubernetes, by its own word.

use std::fmt;

use anyhow::Context as _;
use kube::Client;

use crate::process::get;

/// Where etcd tells its metrics.
const ETCD: &str = "127.0.0.1:2381";

/// Bytes, at one time.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Resident of the API server.
    api_server: f64,
    /// Resident of etcd.
    etcd: f64,
    /// etcd's file.
    file: f64,
    /// Of that what is not free again.
    in_use: f64,
}

impl Cost {
    /// Now.
    pub async fn now(client: &Client) -> anyhow::Result<Self> {
        let api_server = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        let etcd = get(ETCD, "/metrics").await?;
        Ok(Self {
            api_server: sample(&api_server, "process_resident_memory_bytes")?,
            etcd: sample(&etcd, "process_resident_memory_bytes")?,
            file: sample(&etcd, "etcd_mvcc_db_total_size_in_bytes")?,
            in_use: sample(&etcd, "etcd_mvcc_db_total_size_in_use_in_bytes")?,
        })
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api_server, etcd, file, in_use } = self;
        let mebi = |bytes: &f64| bytes / f64::from(1 << 20);
        write!(
            f,
            "API server {:.0} MiB resident, etcd {:.0} MiB resident, etcd's file {:.1} MiB ({:.1} MiB in use)",
            mebi(api_server),
            mebi(etcd),
            mebi(file),
            mebi(in_use)
        )
    }
}

fn sample(text: &str, name: &str) -> anyhow::Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).with_context(|| name.to_owned())
}
