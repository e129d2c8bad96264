//! Patchwarden: patch management for fleets of machines, run the way Kubernetes runs pods.
//!
//! Data flows one way:
//!
//! ```text
//! report -> gateway -> store + DeviceInventory.status -> convert -> plan -> build -> Job -> gateway -> agent -> report
//! ```

#[allow(clippy::duplicated_attributes, reason = "the keys of kube's printcolumn repeat")]
pub mod api;
pub mod build;
#[allow(clippy::disallowed_methods, reason = "part of the shell: it has a clock")]
pub mod check;
#[allow(clippy::disallowed_methods, reason = "part of the shell: it has a clock")]
pub mod cli;
pub mod controller;
pub mod convert;
#[cfg(test)]
mod features_tests;
#[allow(clippy::disallowed_methods, reason = "part of the shell: it has a clock")]
pub mod gateway;
mod gateway_client;
pub mod install;
pub mod metrics;
pub mod record;
#[allow(clippy::disallowed_methods, reason = "part of the shell: it has a clock")]
pub mod runner;
pub mod settings;
pub mod shell;
pub mod status;
pub mod store;
#[allow(clippy::disallowed_methods, reason = "part of the shell: it has a clock")]
pub mod telemetry;
pub mod vulnerabilities;

pub use patchwarden_plan as plan;
