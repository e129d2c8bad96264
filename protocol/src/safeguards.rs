//! What surrounds an order's actions: hooks and checks.
//!
//! Hooks and commands name scripts that lie on the device, or that a publisher whom the device names has signed
//! ([`crate::recipes::Script`]); nothing of a script is in an order. The other probes reach the device itself and nothing beyond it.

use serde::{Deserialize, Serialize};

/// Hooks before the actions, and as many after them.
pub const MAX_HOOKS: usize = 4;

/// Checks.
pub const MAX_CHECKS: usize = 8;

/// Seconds that one hook may take.
pub const MAX_HOOK_SECONDS: u32 = 3600;

/// Seconds that one try of a check may take.
pub const MAX_CHECK_SECONDS: u32 = 300;

/// Seconds within which a check must succeed after the actions.
pub const MAX_SETTLE_SECONDS: u32 = 3600;

/// Patterns of packages that are never brought back.
pub const MAX_EXCLUDED: usize = 32;

/// A way back begins so long after a check has failed, at the latest (seconds): another program may use the package manager.
pub const ROLLBACK_BEGINS_SECONDS: u32 = 20 * 60;

/// Everything that surrounds the actions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Safeguards {
    /// Run before the actions, in this order.
    pub before: Vec<Hook>,
    /// Run after them, in this order.
    pub after: Vec<Hook>,
    /// What must be true of the device before the actions, and after them.
    pub checks: Vec<Check>,
    /// Whether the device is brought back to what it had before where a check fails after the actions, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
}

/// The way back, for an update with which a check fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollback {
    /// Names of packages with `*` and `?`: an update that brings one of them is never taken back by itself.
    pub exclude_packages: Vec<String>,
}

/// A script on the device, `/etc/patchwarden/hooks.d/NAME`, or a publisher's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// Its file name.
    pub name: String,
    /// Seconds after which it is killed, with everything that it has started.
    pub timeout_seconds: u32,
    /// What follows when it fails.
    pub on_failure: OnFailure,
}

/// What follows a hook that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OnFailure {
    /// Before the actions: they are not carried out. After them: neither later hooks nor restarts follow. The order has
    /// failed.
    Abort,
    /// It is told, and goes on.
    Continue,
}

/// What must be true of a device that is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Check {
    /// Name.
    pub name: String,
    /// What is looked at.
    pub probe: Probe,
    /// Seconds after which one try has failed.
    pub timeout_seconds: u32,
    /// After the actions it is tried until it succeeds, for so many seconds; before them once.
    pub settle_seconds: u32,
}

/// What a check looks at, on the device itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Probe {
    /// A unit of systemd is active.
    ServiceActive {
        /// Its name.
        unit: String,
    },
    /// A TCP port of the loopback address takes a connection.
    Tcp {
        /// The port.
        port: u16,
    },
    /// A GET over HTTP of the loopback address is answered with this status.
    Http {
        /// The port.
        port: u16,
        /// Path and query.
        path: String,
        /// The status.
        status: u16,
    },
    /// A file exists.
    FileExists {
        /// Its absolute path.
        path: String,
    },
    /// A script on the device, of the same place as hooks, ends with code 0.
    Command {
        /// Its file name.
        name: String,
    },
}

impl Safeguards {
    /// What makes no sense, by field.
    pub fn validate(&self) -> Result<(), String> {
        let Self { before, after, checks, rollback } = self;
        for (field, hooks) in [("hooks.before", before), ("hooks.after", after)] {
            at_most(field, hooks.len(), MAX_HOOKS)?;
            for (index, hook) in hooks.iter().enumerate() {
                let field = format!("{field}[{index}]");
                script_name(&format!("{field}.name"), &hook.name)?;
                seconds(&format!("{field}.timeoutSeconds"), hook.timeout_seconds, 1, MAX_HOOK_SECONDS)?;
            }
            unique(field, hooks.iter().map(|hook| &hook.name))?;
        }
        at_most("checks", checks.len(), MAX_CHECKS)?;
        for (index, check) in checks.iter().enumerate() {
            check.validate(&format!("checks[{index}]"))?;
        }
        unique("checks", checks.iter().map(|check| &check.name))?;
        let Some(Rollback { exclude_packages }) = rollback else { return Ok(()) };
        if checks.is_empty() {
            return Err("rollback: there is no check that could fail: give checks".to_owned());
        }
        at_most("rollback.excludePackages", exclude_packages.len(), MAX_EXCLUDED)?;
        for (index, pattern) in exclude_packages.iter().enumerate() {
            if pattern.is_empty() || pattern.len() > 128 || !pattern.chars().all(|c| c.is_ascii_graphic()) {
                let field = format!("rollback.excludePackages[{index}]");
                return Err(format!("{field}: must be the name of a package, with * and ?, of 1 to 128 characters"));
            }
        }
        Ok(())
    }

    /// For so many seconds, at most, hooks and checks keep an install from being over, restarts aside.
    pub fn seconds(&self) -> u32 {
        let after = sum(self.after.iter().map(|hook| hook.timeout_seconds));
        self.seconds_before().saturating_add(after).saturating_add(self.settling_seconds())
    }

    /// So long, at most, checks and hooks take before the actions.
    pub fn seconds_before(&self) -> u32 {
        let checks = self.checks.iter().map(|check| check.timeout_seconds);
        sum(checks.chain(self.before.iter().map(|hook| hook.timeout_seconds)))
    }

    /// So long, at most, the checks take once after the actions.
    pub fn settling_seconds(&self) -> u32 {
        sum(self.checks.iter().map(|check| check.settle_seconds.saturating_add(check.timeout_seconds)))
    }
}

impl Check {
    fn validate(&self, field: &str) -> Result<(), String> {
        let Self { name, probe, timeout_seconds, settle_seconds } = self;
        if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
            return Err(format!("{field}.name: must be 1 to 63 characters, none of them a control character"));
        }
        seconds(&format!("{field}.timeoutSeconds"), *timeout_seconds, 1, MAX_CHECK_SECONDS)?;
        seconds(&format!("{field}.settleSeconds"), *settle_seconds, 0, MAX_SETTLE_SECONDS)?;
        match probe {
            Probe::ServiceActive { unit } => {
                // systemd.unit(5): ASCII letters, digits, and these.
                let is_of_unit = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
                if unit.is_empty() || unit.len() > 255 || unit.starts_with('-') || !unit.chars().all(is_of_unit) {
                    return Err(format!("{field}.serviceActive.unit: not the name of a unit"));
                }
            }
            Probe::Tcp { port: 0 } | Probe::Http { port: 0, .. } => return Err(format!("{field}: 0 is no port")),
            Probe::Tcp { port: _ } => {}
            Probe::Http { port: _, path, status } => {
                // RFC 9112 (3.2.1): what is not a visible ASCII character would end the request line.
                if !path.starts_with('/') || path.len() > 512 || !path.chars().all(|c| c.is_ascii_graphic()) {
                    return Err(format!("{field}.http.path: must begin with / and have visible ASCII characters only"));
                }
                if !(100..600).contains(status) {
                    return Err(format!("{field}.http.status: must be from 100 to 599"));
                }
            }
            Probe::FileExists { path } => {
                if !path.starts_with('/') || path.len() > 512 || path.chars().any(char::is_control) {
                    return Err(format!("{field}.fileExists.path: must be an absolute path"));
                }
            }
            Probe::Command { name } => script_name(&format!("{field}.command.name"), name)?,
        }
        Ok(())
    }
}

/// Whether it is a file name that begins with a letter or digit: no path, no hidden file, no option.
pub fn is_script_name(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let begins = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    begins && name.len() <= 63 && name.chars().all(is_good)
}

fn script_name(field: &str, name: &str) -> Result<(), String> {
    if is_script_name(name) {
        return Ok(());
    }
    Err(format!("{field}: must be the name of a file, of 1 to 63 letters, digits, `-`, `_` and `.`"))
}

fn seconds(field: &str, found: u32, least: u32, most: u32) -> Result<(), String> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(format!("{field}: must be from {least} to {most}"))
}

fn at_most(field: &str, found: usize, most: usize) -> Result<(), String> {
    if found > most { Err(format!("{field}: at most {most}, and {found} are given")) } else { Ok(()) }
}

fn unique<'a>(field: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{field}: {name} is there twice"));
        }
    }
    Ok(())
}

fn sum(seconds: impl Iterator<Item = u32>) -> u32 {
    seconds.fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str) -> Hook {
        Hook { name: name.into(), timeout_seconds: 30, on_failure: OnFailure::Abort }
    }

    fn check(probe: Probe) -> Check {
        Check { name: "web".into(), probe, timeout_seconds: 10, settle_seconds: 60 }
    }

    fn all() -> Safeguards {
        Safeguards {
            before: vec![hook("drain"), hook("backup.sh")],
            after: vec![hook("drain")],
            checks: vec![check(Probe::Tcp { port: 80 })],
            rollback: Some(Rollback { exclude_packages: vec!["postgresql-*".into()] }),
        }
    }

    type Spoil = fn(&mut Safeguards);

    #[test]
    fn what_makes_no_sense_is_named_by_its_field() {
        assert_eq!(all().validate(), Ok(()));
        assert_eq!(Safeguards::default().validate(), Ok(()));
        let wrong: [(&str, Spoil); 19] = [
            ("rollback: there is no check", |all| all.checks.clear()),
            ("rollback.excludePackages[1]", |all| {
                all.rollback = Some(Rollback { exclude_packages: vec!["a".into(), "a b".into()] });
            }),
            ("rollback.excludePackages: at most 32", |all| {
                all.rollback = Some(Rollback { exclude_packages: vec!["a".into(); 33] });
            }),
            ("hooks.before[0].name", |all| all.before[0].name = "../x".into()),
            ("hooks.before[0].name", |all| all.before[0].name = ".x".into()),
            ("hooks.before[0].name", |all| all.before[0].name = String::new()),
            ("hooks.after[0].name", |all| all.after[0].name = "-x".into()),
            ("hooks.before[1].timeoutSeconds", |all| all.before[1].timeout_seconds = 0),
            ("hooks.before[1].timeoutSeconds", |all| all.before[1].timeout_seconds = 3601),
            ("hooks.before: drain is there twice", |all| all.before[1].name = "drain".into()),
            ("hooks.before: at most 4", |all| all.before = (0..5).map(|n| hook(&n.to_string())).collect()),
            ("checks: at most 8", |all| all.checks = vec![all.checks[0].clone(); 9]),
            ("checks: web is there twice", |all| all.checks = vec![all.checks[0].clone(); 2]),
            ("checks[0].timeoutSeconds", |all| all.checks[0].timeout_seconds = 301),
            ("checks[0].settleSeconds", |all| all.checks[0].settle_seconds = 3601),
            ("checks[0].serviceActive.unit", |all| {
                all.checks[0].probe = Probe::ServiceActive { unit: "--version".into() };
            }),
            ("checks[0].http.path", |all| {
                all.checks[0].probe = Probe::Http { port: 80, path: "/ HTTP/1.1\r\nx:".into(), status: 200 };
            }),
            ("checks[0].fileExists.path", |all| all.checks[0].probe = Probe::FileExists { path: "x".into() }),
            ("checks[0].command.name", |all| all.checks[0].probe = Probe::Command { name: "a/b".into() }),
        ];
        for (words, spoil) in wrong {
            let mut spoilt = all();
            spoil(&mut spoilt);
            let error = spoilt.validate().unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn it_is_known_how_long_all_of_it_takes_at_most() {
        // Three hooks of 30 s, and a check that may take 10 s before the actions and 70 s after them.
        assert_eq!((all().seconds(), all().settling_seconds()), (170, 70));
        assert_eq!(Safeguards::default().seconds(), 0);
    }

    #[test]
    fn an_order_says_it_all_and_nothing_more_is_understood() {
        let json = serde_json::to_value(all()).unwrap();
        assert_eq!(json["checks"][0]["probe"], serde_json::json!({"tcp": {"port": 80}}));
        assert_eq!(serde_json::from_value::<Safeguards>(json.clone()).unwrap(), all());
        for path in ["/checks/0/probe/tcp", "/before/0", ""] {
            let mut more = json.clone();
            more.pointer_mut(path).unwrap()["more"] = true.into();
            assert!(serde_json::from_value::<Safeguards>(more).is_err(), "{path}");
        }
        let mut less = json;
        less.as_object_mut().unwrap().remove("rollback");
        let without = Safeguards { rollback: None, ..all() };
        assert_eq!(serde_json::from_value::<Safeguards>(less.clone()).unwrap(), without);
        assert_eq!(serde_json::to_value(&without).unwrap(), less, "agents that know of no rollback read it");
        less.as_object_mut().unwrap().remove("after");
        assert!(serde_json::from_value::<Safeguards>(less).is_err());
    }
}
