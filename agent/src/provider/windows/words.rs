//! What Windows' error codes mean. Pure.
//!
//! "Windows Update error codes by component" (https://learn.microsoft.com/windows/deployment/update/windows-update-error-reference), "System Error
//! Codes" and "WinHTTP error messages".

use patchwarden_protocol::result::ResultReason;

use super::answer::Done;
use crate::provider::support::MAX_MESSAGE;
use crate::provider::{Failure, bounded};

/// Codes with what they mean for the order, and for people.
const KNOWN: [(u32, ResultReason, &str); 16] = [
    (0x8007_0070, ResultReason::DiskFull, "the disk is full"),
    (0x8007_0005, ResultReason::PackageManagerFailed, "access is denied: the agent must run as the system"),
    (0x8007_0643, ResultReason::PackageManagerFailed, "its installer failed"),
    (
        0x8007_3712,
        ResultReason::PackageManagerFailed,
        "the component store is damaged: `DISM /Online /Cleanup-Image /RestoreHealth`",
    ),
    (0x800f_0922, ResultReason::PackageManagerFailed, "its installation could not be completed, and was undone"),
    (0x8024_0016, ResultReason::Locked, "another installation is at work, or a restart is due before this one"),
    (0x8024_0017, ResultReason::Superseded, "it does not apply to this machine any more"),
    (0x8024_001e, ResultReason::PackageManagerFailed, "the service of Windows Update was stopped"),
    (0x8024_0022, ResultReason::PackageManagerFailed, "it failed for all updates"),
    (0x8024_0023, ResultReason::PackageManagerFailed, "its terms were not accepted"),
    (0x8024_0024, ResultReason::Superseded, "it is not offered any more"),
    (0x8024_002e, ResultReason::DownloadFailed, "a policy forbids to ask another server than the machine's own"),
    (0x8024_2015, ResultReason::PackageManagerFailed, "its installer is already at work"),
    (0x8024_402c, ResultReason::DownloadFailed, "the name of the server cannot be resolved"),
    (0x8007_2ee2, ResultReason::DownloadFailed, "the server does not answer in time"),
    (0x8007_2efd, ResultReason::DownloadFailed, "the server cannot be reached"),
];

/// First and last code, and what all between them have in common: WinHTTP, the protocol and the download manager.
const RANGES: [(u32, u32, ResultReason); 3] = [
    (0x8007_2ee0, 0x8007_2fff, ResultReason::DownloadFailed),
    (0x8024_4000, 0x8024_4fff, ResultReason::DownloadFailed),
    (0x8024_6000, 0x8024_6fff, ResultReason::DownloadFailed),
];

/// The 32 bits of an HRESULT, which .NET has as a negative number.
fn bits(hresult: i64) -> u32 {
    u32::try_from(hresult & i64::from(u32::MAX)).unwrap_or_default()
}

fn reason_of(code: u32) -> ResultReason {
    let known = KNOWN.iter().find(|(known, ..)| *known == code).map(|(_, reason, _)| *reason);
    let range = || RANGES.iter().find(|(first, last, _)| (*first..=*last).contains(&code)).map(|(.., reason)| *reason);
    known.or_else(range).unwrap_or(ResultReason::PackageManagerFailed)
}

/// `0x80240024: it is not offered any more`; Windows' own words where the code is not known.
pub(super) fn of(hresult: i64, message: &str) -> String {
    let code = bits(hresult);
    let own = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match KNOWN.iter().find(|(known, ..)| *known == code) {
        Some((_, _, words)) => format!("{code:#010x}: {words}"),
        None if own.is_empty() => format!("{code:#010x}"),
        None => format!("{code:#010x}: {own}"),
    }
}

/// A failure that Windows tells.
pub(super) fn failure_of(hresult: i64, message: &str) -> Failure {
    Failure::new(reason_of(bits(hresult)), bounded(&of(hresult, message), MAX_MESSAGE))
}

/// Why an update is not downloaded, if it is not.
pub(super) fn download_failure(done: Option<&Done>) -> Option<Failure> {
    match done {
        None => Some(Failure::new(ResultReason::DownloadFailed, "Windows Update says nothing of it")),
        Some(Done { result_code: 2 | 3, .. }) => None,
        Some(done) => Some(failure(done)),
    }
}

/// Why an update is not installed, by what came of it.
pub(super) fn install_failure(done: Option<&Done>) -> Option<Failure> {
    let done = done?;
    let has_succeeded = matches!(done.result_code, 2 | 3) && done.step == "install";
    (!has_succeeded).then(|| failure(done))
}

fn failure(done: &Done) -> Failure {
    let Done { id: _, revision: _, step, result_code, hresult, message, reboot_required: _ } = done;
    if *hresult == 0 {
        let how = if *result_code == 5 { "was aborted" } else { "failed" };
        return Failure::new(ResultReason::PackageManagerFailed, format!("{step} {how} (code {result_code})"));
    }
    let failure = failure_of(*hresult, message);
    Failure { message: format!("{step}: {}", failure.message), ..failure }
}
