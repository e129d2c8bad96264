//! The decision core: whether, when and how many.
//!
//! Pure: no kube, no tokio, no clock, no logging, no randomness, no order of a hash. A [`Snapshot`] of one client's
//! namespace and an instant go in, a [`Plan`] comes out, and the same input always gives the same output. [`plan`] is
//! total: it cannot fail, and every refusal is a typed [`Blocked`].
//!
//! ```text
//! Snapshot --+-- select:   which policy and which group a device has
//!            +-- approval: what the group says of each update        (decisions, then rules, then the default)
//!            +-- gates:    what blocks what is approved              (an ordered list; the first refusal wins)
//!            +-- window:   when a window is open, and when it is next
//!            `-- rollout:  whose turn it is                          (concurrency)          --> Plan
//! ```

pub mod approval;
mod gates;
pub mod model;
pub mod outcome;
mod rollout;
mod select;
pub mod window;

pub use model::Snapshot;
pub use outcome::{Blocked, Plan};
