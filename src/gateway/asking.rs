//! When a device is asked for all of its software.
//!
//! A list of packages is the largest thing that a device sends. When all devices of a fleet are new to the database, few are asked at a time, and
//! the others when it is their turn: else the gateway would hold the lists of all of them while it keeps one after the other.

use std::time::Duration;

use tokio::time::Instant;

use super::turns::{Place, Turn, Turns};

/// A device that has not sent its software after so long lets others be asked; it may still send it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far it is.
#[derive(Default)]
pub enum Asking {
    /// There is nothing to ask for.
    #[default]
    No,
    /// Others are asked before.
    Waiting(Place),
    /// It was asked.
    Asked {
        /// To keep the answer in.
        turn: Turn,
        /// When others are asked without it.
        until: Instant,
    },
}

impl Asking {
    /// Takes a turn if there is one now; else the last place of the queue, and says so.
    pub fn begin(turns: &Turns) -> Self {
        match turns.now() {
            Some(turn) => Self::asked(turn),
            None => Self::Waiting(turns.next()),
        }
    }

    /// By this turn.
    pub fn asked(turn: Turn) -> Self {
        Self::Asked { turn, until: Instant::now() + PATIENCE }
    }

    /// It has answered: the turn to keep that in, unless it was not asked, or took too long.
    pub fn answered(&mut self) -> Option<Turn> {
        match std::mem::take(self) {
            Self::Asked { turn, .. } => Some(turn),
            other => {
                *self = other;
                None
            }
        }
    }

    /// The turn, once it has come; nothing when an answer has taken too long. The place in the queue stays when this is given up.
    pub async fn step(&mut self) -> Option<Turn> {
        match self {
            Self::No => std::future::pending().await,
            Self::Waiting(turn) => turn.await,
            Self::Asked { until, .. } => {
                tokio::time::sleep_until(*until).await;
                None
            }
        }
    }
}
