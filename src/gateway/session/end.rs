//! Why sessions end.

use patchwarden_protocol::DUPLICATE_IDENTITY;
use tonic::{Code, Status};

use crate::store::StoreError;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The device hung up or the network did.
    #[error("disconnected")]
    Disconnected,
    /// The device is not believed any more.
    #[error("{0}")]
    Revoked(String),
    /// Several machines use the key.
    #[error("{DUPLICATE_IDENTITY}: {0}")]
    Duplicate(String),
    /// The same key has opened another session.
    #[error("another session of this device has begun: is it a copy of this machine?")]
    Replaced,
    /// The device does not speak the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The device takes nothing.
    #[error("the device took no message for 20 s")]
    Stalled,
    /// The other gateways do not know of it.
    #[error("this gateway was cut off from the others")]
    Forgotten,
    /// The gateway ends.
    #[error("this gateway is shutting down")]
    Shutdown,
    /// The database fails: nothing can be accepted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl End {
    /// Of a stream that is broken: by the network, or by what the device has sent.
    pub(super) fn of(status: &Status) -> Self {
        match status.code() {
            Code::OutOfRange => Self::Protocol("a message is larger than 4 MiB"),
            Code::Internal | Code::InvalidArgument => Self::Protocol("a message cannot be read"),
            _ => Self::Disconnected,
        }
    }

    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Disconnected => "Disconnected",
            Self::Revoked(_) => "Revoked",
            Self::Duplicate(_) => DUPLICATE_IDENTITY,
            Self::Replaced => "Replaced",
            Self::Forgotten => "Forgotten",
            Self::Protocol(_) => "Protocol",
            Self::Stalled => "Stalled",
            Self::Shutdown => "Shutdown",
            Self::Store(_) => "Store",
        }
    }

    pub(super) fn status(&self) -> Status {
        match self {
            Self::Disconnected | Self::Stalled => Status::cancelled(self.to_string()),
            Self::Revoked(_) => Status::permission_denied(self.to_string()),
            Self::Duplicate(_) => Status::failed_precondition(self.to_string()),
            Self::Replaced => Status::aborted(self.to_string()),
            Self::Protocol(_) => Status::invalid_argument(self.to_string()),
            Self::Forgotten | Self::Shutdown => Status::unavailable(self.to_string()),
            // Its details are for the log only.
            Self::Store(_) => Status::unavailable("the gateway's database fails"),
        }
    }
}
