//! `agent.toml`: written by `join`, read by everything else.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::settings::OsUpdater;
use serde::{Deserialize, Serialize};

use crate::provider::Previews;
use crate::{files, platform};

/// The longest pause between attempts to connect is a minute.
const CHECK_IN_SECONDS: u32 = 600;

/// A start alone takes some seconds.
const CHECK_IN_RANGE: RangeInclusive<u32> = 10..=86_400;

/// The longest install that is usual.
const LOCK_WAIT_SECONDS: u32 = 900;

const LOCK_WAIT_RANGE: RangeInclusive<u32> = 1..=86_400;

/// 10,000 agents are 33 a second then.
const REFRESH_SPREAD_SECONDS: u32 = 300;

const REFRESH_SPREAD_RANGE: RangeInclusive<u32> = 0..=86_400;

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{0}: this machine has not joined yet: run `patchwarden-agent join`")]
    Missing(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// `host:port` of the gateway.
    pub(crate) gateway: String,
    /// The name that the gateway's certificate must have.
    pub(crate) server_name: String,
    /// What files downloaded ahead may take, in MB of a million bytes. Without it the free space is the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) downloads_max_mb: Option<u32>,
    /// Program and arguments that restart this machine, where it is not `systemctl reboot` or `shutdown -r now`: for a
    /// machine that is restarted from outside, or by a cluster manager that has to know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restart_command: Option<Vec<String>>,
    /// How long the agent's own next version has to get a session, in seconds, before the earlier one comes back; 600 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) check_in_seconds: Option<u32>,
    /// How long an order waits for another program to be done with the package manager, in seconds; 900 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lock_wait_seconds: Option<u32>,
    /// The repositories are first asked at a random moment within so many seconds of the agent's start; 300 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_spread_seconds: Option<u32>,
    /// Manages the packages of zypper, which is a preview: without it a machine with zypper is not supported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) preview_zypper: bool,
    /// Nothing that tells of people leaves the machine: neither users nor command lines of changes, neither its serial number nor its network addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) omit_personal_data: bool,
    /// Manages the updates of macOS, which is a preview: without it a Mac is not supported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) preview_macos: bool,
    /// What becomes of the operating system's own updater while this machine is managed, whatever its policy says; without it
    /// the policy decides, and where that says nothing either it is left to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) os_updater: Option<OsUpdater>,
    /// Public keys (base64) of those whose recipes for third-party applications this machine believes. Without one it takes none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) recipe_publishers: Vec<PublicKey>,
    /// Those among them whose scripts hooks and checks may run, too. A recipe is confined; a script does what root can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) script_publishers: Vec<PublicKey>,
    /// The DeviceInventory of this machine.
    #[serde(with = "Device")]
    pub(crate) device: DeviceRef,
}

/// [`DeviceRef`], but strict about its fields.
#[derive(Serialize, Deserialize)]
#[serde(remote = "DeviceRef", deny_unknown_fields)]
struct Device {
    namespace: String,
    name: String,
}

impl Config {
    /// Of a machine on which nothing else was set.
    pub(crate) fn new(gateway: String, server_name: String, device: DeviceRef) -> Self {
        Self {
            gateway,
            server_name,
            downloads_max_mb: None,
            restart_command: None,
            check_in_seconds: None,
            lock_wait_seconds: None,
            refresh_spread_seconds: None,
            preview_zypper: false,
            omit_personal_data: false,
            preview_macos: false,
            os_updater: None,
            recipe_publishers: Vec::new(),
            script_publishers: Vec::new(),
            device,
        }
    }

    /// Reads and checks the file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io { path: path.to_owned(), source };
        let bytes = files::read_if_exists(path).map_err(io)?.ok_or_else(|| ConfigError::Missing(path.to_owned()))?;
        let invalid = |message| ConfigError::Invalid { path: path.to_owned(), message };
        let text = String::from_utf8(bytes).map_err(|_| invalid("is not UTF-8".to_owned()))?;
        Self::parse(&text).map_err(invalid)
    }

    /// Reads and checks what the file says.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // toml's messages name the line and the field.
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Writes the file.
    pub(crate) fn save(&self, path: &Path) -> Result<(), ConfigError> {
        let invalid = |message| ConfigError::Invalid { path: path.to_owned(), message };
        self.check().map_err(invalid)?;
        let body = toml::to_string(self).map_err(|error| invalid(error.to_string()))?;
        let text = format!("# Written by `patchwarden-agent join`.\n{body}");
        let io = |source| ConfigError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(io)?;
        }
        files::write_atomic(path, text.as_bytes(), 0o644).map_err(io)
    }

    /// The previews that this machine uses.
    pub(crate) fn previews(&self) -> Previews {
        Previews { zypper: self.preview_zypper, macos: self.preview_macos }
    }

    /// [`Self::downloads_max_mb`] in bytes.
    pub(crate) fn downloads_max(&self) -> Option<u64> {
        self.downloads_max_mb.map(|megabytes| u64::from(megabytes) * 1_000_000)
    }

    /// How long the agent's own next version has to get a session.
    pub(crate) fn check_in_seconds(&self) -> u32 {
        self.check_in_seconds.unwrap_or(CHECK_IN_SECONDS)
    }

    /// How long an order waits for another program to be done with the package manager.
    pub(crate) fn lock_wait_seconds(&self) -> u32 {
        self.lock_wait_seconds.unwrap_or(LOCK_WAIT_SECONDS)
    }

    /// Within how many seconds of the agent's start the repositories are first asked.
    pub(crate) fn refresh_spread_seconds(&self) -> u32 {
        self.refresh_spread_seconds.unwrap_or(REFRESH_SPREAD_SECONDS)
    }

    fn check(&self) -> Result<(), String> {
        let Self {
            gateway,
            server_name,
            downloads_max_mb: _,
            restart_command,
            check_in_seconds,
            lock_wait_seconds,
            refresh_spread_seconds,
            preview_zypper: _,
            omit_personal_data: _,
            preview_macos: _,
            os_updater,
            recipe_publishers,
            script_publishers,
            device,
        } = self;
        let DeviceRef { namespace, name } = device;
        check_gateway(gateway).map_err(|error| format!("gateway: {error}"))?;
        for (field, value) in [("server_name", server_name), ("device.namespace", namespace), ("device.name", name)] {
            if value.is_empty() {
                return Err(format!("{field}: must not be empty"));
            }
        }
        if *os_updater == Some(OsUpdater::Disable)
            && let Some(why) = platform::WHY_UPDATER_STAYS
        {
            return Err(format!("os_updater: {why}"));
        }
        if !recipe_publishers.is_empty()
            && let Some(why) = platform::recipes::WHY_NONE
        {
            return Err(format!("recipe_publishers: {why}"));
        }
        if let Some(key) = script_publishers.iter().find(|key| !recipe_publishers.contains(key)) {
            let key = String::from(*key);
            return Err(format!(
                "script_publishers: {key} must be in recipe_publishers, too: both come in one catalogue"
            ));
        }
        for (field, value, range) in [
            ("check_in_seconds", check_in_seconds, CHECK_IN_RANGE),
            ("lock_wait_seconds", lock_wait_seconds, LOCK_WAIT_RANGE),
            ("refresh_spread_seconds", refresh_spread_seconds, REFRESH_SPREAD_RANGE),
        ] {
            if value.is_some_and(|seconds| !range.contains(&seconds)) {
                return Err(format!("{field}: must be from {} to {}", range.start(), range.end()));
            }
        }
        if let Some(words) = restart_command
            && words.first().is_none_or(String::is_empty)
        {
            return Err("restart_command: must begin with a program".to_owned());
        }
        Ok(())
    }
}

/// The host of `HOST:PORT`.
pub(crate) fn check_gateway(gateway: &str) -> Result<&str, String> {
    let wrong = || format!("{gateway:?} is not of the form HOST:PORT");
    let (host, port) = gateway.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.is_empty() || (bare.contains(':') && bare.len() == host.len()) { Err(wrong()) } else { Ok(bare) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| error.to_string())
    }

    const GOOD: &str =
        "gateway = 'gw.example:8443'\nserver_name = 'gw.example'\n[device]\nnamespace = 'acme'\nname = 'web-1'\n";

    #[test]
    fn what_was_saved_is_read_again() {
        let config =
            load(&format!("downloads_max_mb = 5\nrestart_command = ['/sbin/x', '-r']\npreview_zypper = true\npreview_macos = true\nomit_personal_data = true\nos_updater = 'Disable'\n{GOOD}"))
                .unwrap();
        assert_eq!((config.os_updater, load(GOOD).unwrap().os_updater), (Some(OsUpdater::Disable), None));
        assert_eq!(
            (config.previews(), load(GOOD).unwrap().previews()),
            (Previews { zypper: true, macos: true }, Previews::default())
        );
        assert!(config.omit_personal_data && !load(GOOD).unwrap().omit_personal_data);
        assert_eq!(config.restart_command, Some(vec!["/sbin/x".to_owned(), "-r".to_owned()]));
        assert_eq!((config.downloads_max(), load(GOOD).unwrap().downloads_max()), (Some(5_000_000), None));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/agent.toml");
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        for (text, words) in [
            (format!("{GOOD}os = 'x'\n"), "os"),
            (format!("proxy = 'x'\n{GOOD}"), "proxy"),
            (format!("downloads_max_mb = -1\n{GOOD}"), "downloads_max_mb"),
            (format!("os_updater = 'Off'\n{GOOD}"), "os_updater"),
            (format!("check_in_seconds = 9\n{GOOD}"), "check_in_seconds: must be from 10 to 86400"),
            (format!("lock_wait_seconds = 0\n{GOOD}"), "lock_wait_seconds: must be from 1 to 86400"),
            (format!("refresh_spread_seconds = 86401\n{GOOD}"), "refresh_spread_seconds: must be from 0 to 86400"),
            (format!("restart_command = []\n{GOOD}"), "restart_command: must begin with a program"),
            (format!("restart_command = ['']\n{GOOD}"), "restart_command: must begin with a program"),
            (format!("restart_command = 'reboot'\n{GOOD}"), "restart_command"),
            (GOOD.replace(":8443", ""), "gateway: "),
            (GOOD.replace("'acme'", "''"), "device.namespace: must not be empty"),
            (GOOD.replace("server_name = 'gw.example'\n", ""), "server_name"),
        ] {
            let error = load(&text).unwrap_err();
            assert!(error.contains("agent.toml") && error.contains(words), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn scripts_are_believed_of_those_alone_whose_recipes_are_and_who_are_named_once_more() {
        let [key, other] = [(); 2].map(|()| String::from(patchwarden_protocol::key::PrivateKey::generate().public()));
        let publishers = format!("recipe_publishers = ['{key}']\n");
        assert_eq!(load(&format!("{publishers}{GOOD}")).unwrap().script_publishers, []);
        let both = load(&format!("{publishers}script_publishers = ['{key}']\n{GOOD}")).unwrap();
        assert_eq!(both.script_publishers, both.recipe_publishers);
        for publishers in [&publishers, ""] {
            let error = load(&format!("{publishers}script_publishers = ['{other}']\n{GOOD}")).unwrap_err();
            assert!(error.contains(&format!("script_publishers: {other} must be in recipe_publishers")), "{error}");
        }
    }

    #[test]
    fn a_missing_file_says_to_join() {
        let error = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err().to_string();
        assert!(error.contains("patchwarden-agent join"), "{error}");
    }

    #[test]
    fn the_gateway_is_a_host_and_a_port() {
        assert_eq!(check_gateway("gw:1"), Ok("gw"));
        assert_eq!(check_gateway("[::1]:8443"), Ok("::1"));
        for bad in ["gw", "gw:", ":1", "gw:99999", "::1", "::1:8443"] {
            assert!(check_gateway(bad).is_err(), "{bad}");
        }
    }
}
