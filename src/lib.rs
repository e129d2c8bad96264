//! Patchwarden: patch management for fleets of machines, run the way Kubernetes runs pods.
//!
//! Data flows one way:
//!
//! ```text
//! report -> gateway -> store + DeviceInventory.status -> convert -> plan -> build -> Job -> gateway -> agent -> report
//! ```

pub mod api;
pub mod build;
pub mod cli;
pub mod controller;
pub mod convert;
pub mod gateway;
pub mod install;
pub mod plan;
pub mod runner;
pub mod shell;
pub mod status;
pub mod store;
