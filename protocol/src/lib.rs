//! The contract between Patchwarden's controller, gateway and agents.
//!
//! ```text
//!    order, grant, settings (signed by the controller's order key, delegated by the root)
//!   controller ------------------------------> gateway ------------------------------> agent
//!              <------------------------------         <------------------------------
//!              report, result (signed by the device's key)
//! ```
//!
//! Everything that decides anything is a *document*: a serde type with a [`Document::TYPE`], canonical JSON
//! ([`canonical`]), signed in a DSSE [`envelope`]. The gateway carries documents; it holds no key that could make one.
//! The gRPC services that carry them (feature `wire`)
//! are in `agent_v1`, `runner_v1` and `record_v1`.

pub mod applications;
pub mod canonical;
pub mod changes;
#[cfg(feature = "wire")]
pub mod codec;
pub mod delegation;
pub mod delta;
pub mod details;
pub mod envelope;
pub mod grant;
pub mod join;
pub mod key;
pub mod order;
pub mod progress;
pub mod recipes;
pub mod report;
pub mod result;
pub mod safeguards;
pub mod settings;
pub mod site_cache;
pub mod surroundings;
pub mod trust;
pub mod versions;

pub use envelope::{Document, Envelope};

/// The agents' door (`proto/agent.proto`).
#[cfg(feature = "wire")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod agent_v1 {
    tonic::include_proto!("patchwarden.agent.v1");
}

/// The install Jobs' door (`proto/runner.proto`).
#[cfg(feature = "wire")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod runner_v1 {
    tonic::include_proto!("patchwarden.runner.v1");
}

/// The record of a client's history (`proto/record.proto`).
#[cfg(feature = "wire")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod record_v1 {
    tonic::include_proto!("patchwarden.record.v1");
}

/// Audience of the service-account tokens that install Jobs' pods and the controller show to the gateway.
pub const GATEWAY_AUDIENCE: &str = "patchwarden-gateway";

/// What the reason begins with for which a session is refused while several machines use one device's key.
pub const DUPLICATE_IDENTITY: &str = "DuplicateIdentity";

/// Clocks may differ by this much before a device takes no orders (seconds).
pub const MAX_CLOCK_SKEW_SECONDS: i64 = 120;

/// The most entries of one call that writes to the record.
pub const MAX_RECORD_ENTRIES: usize = 500;

/// The largest message of the record in bytes: 500 entries with every name as long as it can be, each with 16 devices on which
/// the update failed, are about 3.6 MiB.
pub const MAX_RECORD_BYTES: usize = 4 * 1024 * 1024;

/// The largest message on the agents' door in bytes: a software list of 10,000 packages is about 1 MiB.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
