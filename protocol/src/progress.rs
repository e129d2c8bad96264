//! The phases that people see while an order runs.

use serde::{Deserialize, Serialize};

/// Where an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The device has no session; the gateway waits for it.
    WaitingForDevice,
    /// The device has the order.
    Delivered,
    /// Signature, device, time, sequence and report match.
    Verified,
    /// The simulation did no more than the order allows.
    Simulated,
    /// The controller said "now".
    Granted,
    /// A hook runs, or a check.
    Guarding,
    /// Packages are downloaded and verified.
    Downloaded,
    /// The package manager is at work.
    Installing,
    /// The package manager ended; its database is read.
    Checking,
    /// The machine is about to be restarted, or was.
    Restarting,
    /// The result is signed.
    Done,
}

impl Phase {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WaitingForDevice => "WaitingForDevice",
            Self::Delivered => "Delivered",
            Self::Verified => "Verified",
            Self::Simulated => "Simulated",
            Self::Granted => "Granted",
            Self::Guarding => "Guarding",
            Self::Downloaded => "Downloaded",
            Self::Installing => "Installing",
            Self::Checking => "Checking",
            Self::Restarting => "Restarting",
            Self::Done => "Done",
        }
    }
}
