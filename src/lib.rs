//! Patchwarden: patch management for fleets of machines, run the way Kubernetes runs pods.
//!
//! Data flows one way:
//!
//! ```text
//! report -> gateway -> store + DeviceInventory.status -> convert -> plan -> build -> Job -> gateway -> agent -> report
//! ```

pub mod api;
pub mod cli;
pub mod gateway;
pub mod runner;
pub mod store;
