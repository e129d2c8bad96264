//! Whether applications may come to this machine that were not there, and go from it.

use serde::Deserialize;

use crate::provider::recipes::application_of;

/// Which applications may be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) enum Removals {
    /// None, also not one that was installed a moment ago, and with which a check has failed.
    Never,
    /// Those that keep no data of their own, as their recipes say.
    #[default]
    Stateless,
    /// All.
    All,
}

/// What the owner says of applications that policies want, or do not want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Applications {
    first_installs: bool,
    removals: Removals,
}

/// Who believes a publisher takes what he offers.
impl Default for Applications {
    fn default() -> Self {
        Self { first_installs: true, removals: Removals::default() }
    }
}

impl Applications {
    pub(super) fn of(first_installs: Option<bool>, removals: Option<Removals>) -> Self {
        let default = Self::default();
        Self {
            first_installs: first_installs.unwrap_or(default.first_installs),
            removals: removals.unwrap_or(default.removals),
        }
    }

    /// Why a package may not go from one version to another, where no version is an empty one. Only applications are asked about:
    /// new packages that an update needs are `dependencies` of the policy.
    pub(super) fn refuses(
        self,
        package: &str,
        installed: &str,
        candidate: &str,
        is_stateful: impl Fn(&str) -> bool,
    ) -> Option<String> {
        application_of(package)?;
        match (installed, candidate) {
            ("", _) if !self.first_installs => {
                Some(format!("first_installs: {package} is not installed, and nothing new is to be"))
            }
            (_, "") => match self.removals {
                Removals::Never => Some(format!("removals: {package} is not to be removed")),
                Removals::Stateless if is_stateful(package) => Some(format!(
                    "removals: {package} keeps data of its own, as its recipe says: \"All\" would allow it"
                )),
                Removals::Stateless | Removals::All => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_installs_and_removals_are_the_owners_to_allow() {
        use Removals::{All, Never, Stateless};
        let may = |first, removals, installed: &str, candidate: &str, stateful: bool| {
            Applications::of(first, removals).refuses("recipe:x", installed, candidate, |_| stateful).is_none()
        };
        assert!(may(None, None, "", "1", false) && may(None, None, "1", "", false) && may(None, None, "", "1", true));
        assert!(!may(None, None, "1", "", true), "by default nothing goes that keeps data");
        assert!(!may(Some(false), None, "", "1", false) && may(Some(false), None, "1", "2", false));
        for (removals, stateless, stateful) in [(Never, false, false), (Stateless, true, false), (All, true, true)] {
            assert_eq!(may(None, Some(removals), "1", "", false), stateless, "{removals:?}");
            assert_eq!(may(None, Some(removals), "1", "", true), stateful, "{removals:?}");
            assert!(may(None, Some(removals), "1", "2", true), "an update is none");
        }
        let none = Applications::of(Some(false), Some(Never));
        assert_eq!(none.refuses("libx", "", "1", |_| true), None, "a package that an update needs");
    }
}
