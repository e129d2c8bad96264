//! What `softwareupdate` complains of. Pure.
//!
//! It is text for people, and not described anywhere: these words are those that users have published. Whether something was
//! installed is never told by them, nor by the exit code, which is 0 also where nothing was installed.

use patchwarden_protocol::result::ResultReason;

use crate::provider::support::MAX_MESSAGE;
use crate::provider::{Failure, bounded};

/// Words, in small letters, with what they mean for the order.
const KNOWN: [(&str, ResultReason); 9] = [
    ("not enough free disk space", ResultReason::DiskFull),
    ("not enough disk space", ResultReason::DiskFull),
    ("no such update", ResultReason::Superseded),
    ("no updates are available", ResultReason::Superseded),
    ("internet connection appears to be offline", ResultReason::DownloadFailed),
    ("can't connect to the apple software update server", ResultReason::DownloadFailed),
    ("could not connect to the server", ResultReason::DownloadFailed),
    ("the request timed out", ResultReason::DownloadFailed),
    ("failed to download", ResultReason::DownloadFailed),
];

/// Lines that say what is being done.
const PROGRESS: [&str; 9] = [
    "Software Update Tool",
    "Finding available software",
    "Downloading",
    "Downloaded",
    "Installing",
    "Installed",
    "Done",
    "Waiting for user",
    "Progress:",
];

/// Lines that are repeated.
const MAX_LINES: usize = 5;

/// The last lines that are no progress, in one.
pub(super) fn complaint(output: &str) -> String {
    let lines = output.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut last: Vec<&str> = lines
        .filter(|line| !PROGRESS.iter().any(|progress| line.starts_with(progress)))
        .rev()
        .take(MAX_LINES)
        .collect();
    last.reverse();
    let text: String = last.join("; ").chars().filter(|c| !c.is_control()).collect();
    bounded(&text, MAX_MESSAGE)
}

/// What is wrong, if the words are known.
pub(super) fn known(complaint: &str) -> Option<Failure> {
    let small = complaint.to_lowercase();
    let (_, reason) = KNOWN.iter().find(|(words, _)| small.contains(words))?;
    let failure = Failure::new(*reason, complaint);
    Some(if *reason == ResultReason::DownloadFailed { failure.general() } else { failure })
}

/// Why it did not do what it was asked.
pub(super) fn failure(output: &str, code: Option<i32>) -> Failure {
    let complaint = complaint(output);
    if let Some(failure) = known(&complaint) {
        return failure;
    }
    let how = match code {
        Some(0) => "softwareupdate tells no failure, and the history of installs does not have it".to_owned(),
        Some(code) => format!("softwareupdate ended with code {code}"),
        None => "softwareupdate was ended before it was done".to_owned(),
    };
    let reason = if code == Some(0) { ResultReason::NotInstalled } else { ResultReason::PackageManagerFailed };
    let message = if complaint.is_empty() { how } else { format!("{how}: {complaint}") };
    Failure::new(reason, bounded(&message, MAX_MESSAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTALLED: &str = include_str!("../../../tests/data/macos/install.txt");

    #[test]
    fn known_words_have_their_reason_and_others_are_repeated() {
        use ResultReason::{DiskFull, DownloadFailed, NotInstalled, PackageManagerFailed, Superseded};
        for (output, code, reason, message) in [
            ("Not enough free disk space: a total of 17.13 GB is required.", 0, DiskFull, "17.13 GB"),
            ("Safari-1: No such update\nNo updates are available.", 0, Superseded, "No such update; No updates"),
            ("The Internet connection appears to be offline.", 1, DownloadFailed, "offline"),
            ("Installing Safari\nError installing updates.", 2, PackageManagerFailed, "code 2: Error installing"),
            (INSTALLED, 0, NotInstalled, "does not have it"),
            ("\u{1b}[2Jbad\u{7}", 3, PackageManagerFailed, "code 3: [2Jbad"),
            ("", 4, PackageManagerFailed, "ended with code 4"),
        ] {
            let failure = failure(output, Some(code));
            assert_eq!(failure.reason, reason, "{output}");
            assert!(failure.message.contains(message), "{output}: {failure}");
            assert!(failure.message.len() <= MAX_MESSAGE && !failure.message.contains(char::is_control));
            assert_eq!(failure.is_general, reason == DownloadFailed, "{output}");
        }
        assert!(failure("", None).message.contains("before it was done"));
        assert!(failure(&"long words\n".repeat(1000), Some(1)).message.len() <= MAX_MESSAGE);
    }

    #[test]
    fn progress_is_no_complaint() {
        assert_eq!(complaint(INSTALLED), "");
    }
}
