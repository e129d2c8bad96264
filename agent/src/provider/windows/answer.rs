//! What the script answers. Pure.
//!
//! Fields that are not known are passed over, and those that are not there are empty: what a Windows of another age does not say
//! must not hide the rest. PowerShell 5.1 makes `null` of what is empty, and a single thing of a list with one. What is no identity
//! is left out.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

/// Longest text that is taken over, in characters: nothing that is shown is longer.
const MAX_TEXT: usize = 256;

/// Most of one list.
const MAX_ENTRIES: usize = 5_000;

/// Bytes that may be before an answer: a byte order mark.
const MARK: char = '\u{feff}';

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Inventory {
    #[serde(deserialize_with = "entries")]
    pub(super) updates: Vec<Found>,
    /// There were more than the script lists.
    pub(super) cut: bool,
    /// `OperationResultCode` of the search: 2 is success, 3 success with errors.
    pub(super) result_code: i64,
    #[serde(deserialize_with = "entries")]
    pub(super) warnings: Vec<Said>,
    /// Why the server could not be asked. What is listed is what was known.
    pub(super) error: Option<Said>,
    #[serde(deserialize_with = "entries")]
    pub(super) installed: Vec<Found>,
    pub(super) source: Option<Source>,
    pub(super) reboot: Option<Reboot>,
    #[serde(deserialize_with = "entries")]
    pub(super) programs: Vec<Program>,
    #[serde(deserialize_with = "entries")]
    pub(super) drivers: Vec<Driver>,
    #[serde(deserialize_with = "entries")]
    pub(super) hotfixes: Vec<String>,
    pub(super) bios: Option<Bios>,
    pub(super) computer: Option<Computer>,
}

/// What is known of some updates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct State {
    #[serde(deserialize_with = "entries")]
    pub(super) updates: Vec<Found>,
    pub(super) source: Option<Source>,
}

/// Where Windows searches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Source {
    /// Name of the service.
    #[serde(deserialize_with = "text")]
    pub(super) service: String,
    /// Address of the approval server, where a policy names one.
    #[serde(deserialize_with = "text")]
    pub(super) wsus: String,
}

/// One update (`IUpdate5`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "as Windows says it")]
pub(super) struct Found {
    /// UpdateID.
    #[serde(deserialize_with = "text")]
    pub(super) id: String,
    pub(super) revision: u32,
    #[serde(deserialize_with = "text")]
    pub(super) title: String,
    /// Without `KB`.
    #[serde(deserialize_with = "entries")]
    pub(super) kbs: Vec<String>,
    #[serde(deserialize_with = "entries")]
    pub(super) cves: Vec<String>,
    /// `Critical`, `Important`, `Moderate`, `Low`, or nothing.
    #[serde(deserialize_with = "text")]
    pub(super) severity: String,
    /// CategoryIDs.
    #[serde(deserialize_with = "entries")]
    pub(super) categories: Vec<String>,
    /// When this revision was published.
    #[serde(deserialize_with = "time")]
    pub(super) released: Option<Timestamp>,
    /// The most that may be fetched.
    pub(super) max_bytes: u64,
    /// What is recommended to be free, in MB.
    pub(super) disk_megabytes: u64,
    /// `InstallationRebootBehavior`: 0 never, 1 always, 2 perhaps.
    pub(super) reboot_behavior: i64,
    /// `InstallationImpact`: 0 normal, 1 minor ("can be installed without an interruption"), 2 exclusive.
    pub(super) impact: i64,
    /// It may ask a person something.
    pub(super) asks_user: bool,
    pub(super) is_installed: bool,
    pub(super) is_hidden: bool,
    pub(super) is_downloaded: bool,
    /// Only for who looks for it (`BrowseOnly`).
    pub(super) is_optional: bool,
    /// It was installed, and a restart completes that.
    pub(super) reboot_required: bool,
}

/// Marks of a restart that is due.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "as Windows says it")]
pub(super) struct Reboot {
    /// `ISystemInformation.RebootRequired`.
    pub(super) system: bool,
    /// `WindowsUpdate\Auto Update\RebootRequired`.
    pub(super) update_key: bool,
    /// `Component Based Servicing\RebootPending`.
    pub(super) servicing: bool,
    /// `PendingFileRenameOperations`.
    pub(super) file_renames: bool,
}

/// An entry below an `Uninstall` key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Program {
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) version: String,
    #[serde(deserialize_with = "text")]
    pub(super) publisher: String,
    /// `x86` of a program of 32 bits.
    #[serde(deserialize_with = "text")]
    pub(super) arch: String,
}

/// `Win32_PnPSignedDriver`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Driver {
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) version: String,
    #[serde(deserialize_with = "text")]
    pub(super) provider: String,
}

/// `Win32_BIOS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Bios {
    #[serde(deserialize_with = "text")]
    pub(super) version: String,
    #[serde(deserialize_with = "text")]
    pub(super) manufacturer: String,
}

/// `Win32_ComputerSystem`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Computer {
    #[serde(deserialize_with = "text")]
    pub(super) manufacturer: String,
    #[serde(deserialize_with = "text")]
    pub(super) model: String,
}

/// An error or warning of Windows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Said {
    /// HRESULT, as .NET has it: negative.
    pub(super) hresult: i64,
    #[serde(deserialize_with = "text")]
    pub(super) message: String,
}

/// What came of one update.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Done {
    pub(super) id: String,
    pub(super) revision: u32,
    /// How far it came: `find`, `download`, `install`.
    #[serde(default, deserialize_with = "text")]
    pub(super) step: String,
    /// `OperationResultCode`: 0 not started, 1 in progress, 2 succeeded, 3 with errors, 4 failed, 5 aborted.
    #[serde(default)]
    pub(super) result_code: i64,
    #[serde(default)]
    pub(super) hresult: i64,
    #[serde(default, deserialize_with = "text")]
    pub(super) message: String,
    #[serde(default)]
    pub(super) reboot_required: bool,
}

impl Found {
    /// Whether it is this identity.
    pub(super) fn is(&self, id: &str, revision: &str) -> bool {
        self.id.eq_ignore_ascii_case(id) && self.revision.to_string() == revision
    }

    /// Whether it was installed, as far as it can be without a restart.
    pub(super) fn is_there(&self) -> bool {
        self.is_installed || self.reboot_required
    }

    /// Whether it could be installed.
    pub(super) fn is_offered(&self) -> bool {
        !self.is_there() && !self.is_hidden
    }

    /// Whether the id is a GUID: it stands in for a package's name.
    fn is_named(&self) -> bool {
        let groups: Vec<&str> = self.id.split('-').collect();
        groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
            && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
}

impl Done {
    /// Whether Windows has installed it, and says that something went wrong.
    pub(super) fn is_with_errors(&self) -> bool {
        self.result_code == 3
    }
}

/// An answer in one document: the last line that is one.
pub(super) fn read<T: DeserializeOwned + Checked>(output: &str) -> Result<T, String> {
    let line = documents(output).last().ok_or_else(|| "Windows PowerShell printed no answer".to_owned())?;
    let answer: T = serde_json::from_str(line).map_err(|error| format!("Windows PowerShell's answer: {error}"))?;
    Ok(answer.checked())
}

/// What came of updates, in the order in which it was told. What is no such line is the words of others.
pub(super) fn done(output: &str) -> Vec<Done> {
    documents(output).filter_map(|line| serde_json::from_str(line).ok()).take(MAX_ENTRIES).collect()
}

/// Why the script came to nothing, if it did.
pub(super) fn failure(output: &str) -> Option<Said> {
    #[derive(Deserialize)]
    struct Failed {
        failure: Said,
    }
    let last = documents(output).last()?;
    serde_json::from_str::<Failed>(last).ok().map(|failed| failed.failure)
}

fn documents(output: &str) -> impl Iterator<Item = &str> {
    output.lines().map(|line| line.trim_start_matches(MARK).trim()).filter(|line| line.starts_with('{'))
}

/// Without what cannot be named.
pub(super) trait Checked {
    fn checked(self) -> Self;
}

impl Checked for Inventory {
    fn checked(mut self) -> Self {
        self.updates.retain(Found::is_named);
        self.installed.retain(Found::is_named);
        self
    }
}

impl Checked for State {
    fn checked(mut self) -> Self {
        self.updates.retain(Found::is_named);
        self
    }
}

/// A text, or nothing; cut.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    Ok(text.trim().chars().take(MAX_TEXT).collect())
}

/// A time; one that cannot be read is not known.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(text(deserializer)?.parse().ok())
}

/// A list, a single one, or nothing; cut.
fn entries<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Some<T> {
        All(Vec<T>),
        One(T),
    }
    Ok(match Option::<Some<T>>::deserialize(deserializer)? {
        None => Vec::new(),
        Option::Some(Some::All(mut all)) => {
            all.truncate(MAX_ENTRIES);
            all
        }
        Option::Some(Some::One(one)) => vec![one],
    })
}
