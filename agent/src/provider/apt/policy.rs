//! What `apt-cache policy` says of packages. Pure.
//!
//! ```text
//! bash:
//!   Installed: 5.2.15-2+b7
//!   Candidate: 5.2.15-2+b7
//!   Version table:
//!      5.2.15-2+b8 -1
//!         500 http://deb.debian.org/debian bookworm/main amd64 Packages
//!  *** 5.2.15-2+b7 100
//!         100 /var/lib/dpkg/status
//! ```
//!
//! Beside a version stands its own priority, with `(phased 10%)` if not all machines are to have it yet, and below it that of each file that has it. Without a pin of the package's own the
//! first is the highest of the others (apt_preferences(5)).

use std::collections::BTreeMap;

use patchwarden_protocol::report::HeldReason;
use patchwarden_protocol::versions::deb;

use super::index;
use crate::provider::bounded;

/// What apt gives to a version whose turn it is not yet, if `APT::Get::Phase-Policy` says that it goes by priorities.
const PHASED: i32 = 1;

/// From this priority on apt takes a version also if it is earlier than the one that is installed (apt_preferences(5)).
const DOWNGRADES: i32 = 1000;

/// What apt makes of one package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) name: String,
    /// Its architecture, if that is not the machine's own.
    pub(super) foreign: Option<String>,
    pub(super) installed: Option<String>,
    /// The version that apt takes.
    pub(super) candidate: Option<String>,
    versions: Vec<Known>,
}

/// A version that apt knows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    version: String,
    /// Its own.
    priority: i32,
    /// Whether not all machines are to have it yet.
    is_phased: bool,
    /// The highest priority of the files that have it.
    files: i32,
    /// What apt calls these.
    names: Vec<String>,
}

impl Policy {
    /// The later version that is kept back although it is the one that apt would take if the package had no pin of its own, and by what.
    /// `offered` is the one that it brings.
    pub(super) fn kept(&self, offered: Option<&str>) -> Option<(&str, HeldReason)> {
        if let Some(best) = self.unpinned() {
            let is_phased = best.is_phased && best.priority == PHASED;
            let reason = if is_phased { HeldReason::Phased } else { HeldReason::Pinned };
            return Some((&best.version, reason));
        }
        let candidate = self.candidate.as_deref().filter(|candidate| offered != Some(candidate))?;
        let is_later = is_later(candidate, self.installed.as_deref()?);
        (is_later && self.is_phased(candidate)).then_some((candidate, HeldReason::Phased))
    }

    /// Whether not all machines are to have this version yet.
    pub(super) fn is_phased(&self, version: &str) -> bool {
        self.versions.iter().any(|it| it.version == version && it.is_phased)
    }

    /// The version that apt would take if the package had no pin of its own, if that is a later one than it takes and than is
    /// installed.
    fn unpinned(&self) -> Option<&Known> {
        let installed = self.installed.as_deref()?;
        let is_eligible = |it: &&Known| it.files > 0 && (it.files >= DOWNGRADES || !is_later(installed, &it.version));
        let order = |a: &&Known, b: &&Known| a.files.cmp(&b.files).then_with(|| deb::compare(&a.version, &b.version));
        let best = self.versions.iter().filter(is_eligible).max_by(order)?;
        let is_more = |than: &str| is_later(&best.version, than);
        (is_more(installed) && self.candidate.as_deref().is_none_or(is_more)).then_some(best)
    }

    /// What apt calls the files that have a version.
    pub(super) fn files(&self, version: &str) -> impl Iterator<Item = &str> {
        self.versions.iter().filter(move |it| it.version == version).flat_map(|it| it.names.iter().map(String::as_str))
    }

    /// Whether apt knows this version and would not take it by itself, because it prefers an earlier one.
    pub(super) fn is_against(&self, version: &str) -> bool {
        self.versions.iter().any(|it| it.version == version)
            && self.installed.as_deref() != Some(version)
            && self.candidate.as_ref().is_none_or(|candidate| is_later(version, candidate))
    }
}

fn is_later(a: &str, b: &str) -> bool {
    deb::compare(a, b).is_gt()
}

/// Reads `apt-cache policy PACKAGE...`, which leaves out what apt does not know.
pub(super) fn policies(output: &str) -> Result<Vec<Policy>, String> {
    let mut policies: Vec<Policy> = Vec::new();
    for line in output.lines().filter(|line| !line.is_empty()) {
        let unreadable = || format!("apt-cache printed a line of an unknown form: {}", bounded(line, 200));
        if !line.starts_with(' ') {
            let mut words = line.strip_suffix(':').ok_or_else(unreadable)?.split(':').map(str::to_owned);
            let name = words.next().unwrap_or_default();
            policies.push(Policy { name, foreign: words.next(), ..Policy::default() });
            continue;
        }
        let policy = policies.last_mut().ok_or_else(unreadable)?;
        let known = |value: &str| (value != "(none)").then(|| value.to_owned());
        if let Some(rest) = line.strip_prefix("       ") {
            let (priority, name) = file(rest).ok_or_else(unreadable)?;
            let version = policy.versions.last_mut().ok_or_else(unreadable)?;
            version.files = version.files.max(priority);
            version.names.push(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("     ").or_else(|| line.strip_prefix(" *** ")) {
            let (version, rest) =
                rest.split_once(' ').filter(|(version, _)| !version.is_empty()).ok_or_else(unreadable)?;
            let (priority, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            policy.versions.push(Known {
                version: version.to_owned(),
                priority: priority.parse().map_err(|_| unreadable())?,
                is_phased: rest.starts_with("(phased "),
                files: i32::MIN,
                names: Vec::new(),
            });
        } else if let Some(version) = line.strip_prefix("  Installed: ") {
            policy.installed = known(version);
        } else if let Some(version) = line.strip_prefix("  Candidate: ") {
            policy.candidate = known(version);
        }
    }
    Ok(policies)
}

/// `PRIORITY NAME` of a file.
fn file(line: &str) -> Option<(i32, &str)> {
    let (priority, name) = line.trim_start().split_once(' ')?;
    Some((priority.parse().ok()?, name))
}

/// Reads `apt-cache policy`: what the repository of each file calls itself, as `apt-get -s` writes it.
pub(super) fn origins(output: &str) -> BTreeMap<String, String> {
    let mut origins = BTreeMap::new();
    let mut name = "";
    for line in output.lines() {
        if let Some(release) = line.trim_start().strip_prefix("release ") {
            let field = |key: &str| release.split(',').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
            origins.insert(name.to_owned(), index::origin(field("l"), field("v"), field("a")));
        } else if let Some((_, of)) = file(line) {
            name = of;
        }
    }
    origins
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By apt 2.6.1, with each of these pinned in its own way.
    const POLICY: &str = include_str!("../../../tests/data/apt/policy.txt");

    /// The same of versions that are being phased: 0% of pw-b and pw-c, 100% of pw-d, 50% of pw-e.
    const PHASED: &str = include_str!("../../../tests/data/apt/phased.txt");

    /// With `APT::Get::Phase-Policy`, of a machine that is among the half that has pw-e.
    const BY_PRIORITY: &str = include_str!("../../../tests/data/apt/phased-policy.txt");

    #[test]
    fn a_version_is_pinned_that_apt_would_take_without_the_packages_own_pins() {
        let policies = policies(POLICY).unwrap();
        let found: Vec<_> =
            policies.iter().map(|it| (it.name.as_str(), it.candidate.as_deref(), it.kept(None))).collect();
        let expected = [
            // The installed version at a high priority, a later one of a source at a low one.
            ("pw-a", Some("1.0"), Some(("2.0", HeldReason::Pinned))),
            // The latest is never to be installed, the one before it is offered.
            ("pw-b", Some("1.5"), Some(("2.0", HeldReason::Pinned))),
            // The latest is wanted by a pin.
            ("pw-c", Some("2.0"), None),
            // All versions alike.
            ("pw-d", Some("2.0"), None),
            ("pw-e", Some("1.0"), Some(("2.0", HeldReason::Pinned))),
            ("pw-f", None, Some(("2.0", HeldReason::Pinned))),
            // The latest is in a source at a low priority.
            ("pw-g", Some("2.0"), None),
        ];
        assert_eq!(found, expected);
        assert!(policies.iter().all(|it| it.installed.as_deref() == Some("1.0") && it.foreign.is_none()));
    }

    #[test]
    fn a_version_is_phased_that_apt_does_not_bring_to_this_machine_yet() {
        let kept = |text: &str, offered: Option<&str>| -> Vec<(String, Option<String>, bool)> {
            let policies = policies(text).unwrap();
            let kept = |it: &Policy| {
                let (version, reason) = it.kept(offered).unzip();
                assert!(reason.is_none_or(|reason| reason == HeldReason::Phased), "{it:?}");
                (it.name.clone(), version.map(str::to_owned), it.is_phased("2.0"))
            };
            policies.iter().map(kept).collect()
        };
        let of =
            |name: &str, version: Option<&str>, is_phased| (name.to_owned(), version.map(str::to_owned), is_phased);
        let later = Some("2.0");
        let unknown =
            [of("pw-b", later, true), of("pw-c", later, true), of("pw-d", None, false), of("pw-e", later, true)];
        assert_eq!(kept(PHASED, None), unknown, "apt says by what it brings whose turn it is");
        assert!(
            kept(PHASED, later).iter().all(|(_, version, _)| version.is_none()),
            "what is brought is not kept back"
        );
        let told = [of("pw-b", later, true), of("pw-c", later, true), of("pw-d", None, false), of("pw-e", None, true)];
        assert_eq!(kept(BY_PRIORITY, later), told);
    }

    #[test]
    fn what_a_pin_is_against_is_told_of_each_version() {
        let policies = policies(POLICY).unwrap();
        let is_against = |name: &str| {
            let policy = policies.iter().find(|policy| policy.name == name).unwrap();
            ["1.0", "1.5", "2.0", "3.0"].map(|version| policy.is_against(version))
        };
        assert_eq!(is_against("pw-a"), [false, true, true, true]);
        assert_eq!(is_against("pw-b"), [false, false, true, false], "what is not there is no matter of pins");
        assert_eq!(is_against("pw-c"), [false; 4]);
        assert_eq!(is_against("pw-f"), [false, false, true, false]);
        assert_eq!(is_against("pw-g"), [false, false, false, true], "a source at a low priority, too");
    }

    #[test]
    fn a_package_may_be_of_another_architecture_or_not_there() {
        let text = "libc6:i386:\n  Installed: 2.36-9\n  Candidate: 2.36-10\n  Version table:\n     2.36-10 500\n        500 http://x\n \
                    *** 2.36-9 -1000\n       -1000 http://x\n        100 /var/lib/dpkg/status\nx:\n  Installed: (none)\n  Candidate: 1\n  \
                    Version table:\n     1 500\n        500 http://x\n";
        let found = policies(text).unwrap();
        assert_eq!((found[0].name.as_str(), found[0].foreign.as_deref()), ("libc6", Some("i386")));
        assert_eq!((found[1].installed.as_deref(), found[0].kept(None), found[1].kept(None)), (None, None, None));
        assert!(!found[0].is_against("2.36-10"));
    }

    #[test]
    fn a_file_is_of_the_repository_that_calls_itself_so() {
        let text = "Package files:\n 100 /var/lib/dpkg/status\n     release a=now\n  10 file:/srv/other unstable/main amd64 Packages\n     \
                    release v=1,o=Other,a=unstable,n=sid,l=Other label,c=main,b=amd64\n     origin deb.example\nPinned packages:\n     \
                    x -> 1 with priority 3\n";
        let found = origins(text);
        assert_eq!(found.get("file:/srv/other unstable/main amd64 Packages").unwrap(), "Other label:1/unstable");
        assert_eq!(found.len(), 2);
        let policies = policies(POLICY).unwrap();
        let files: Vec<&str> = policies[0].files("3.0").collect();
        assert_eq!(files, ["file:/srv/other stable-updates/main amd64 Packages"]);
    }

    #[test]
    fn what_is_of_no_known_form_is_refused() {
        for text in ["  Installed: 1\n", "x\n", "x:\n     \n", "x:\n        500 y\n", "x:\n     1 500\n        y 500\n"]
        {
            assert!(policies(text).is_err(), "{text}");
        }
        assert_eq!(policies("").unwrap(), []);
    }
}
