//! The script, and how it is started.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use patchwarden_protocol::result::ResultReason;
use serde::Serialize;

use crate::provider::{CommandLine, Failure, words};

/// What asks and does everything.
const SCRIPT: &str = include_str!("windows-update.ps1");

/// A variable has room for 32,767 characters ("Environment Variables").
const MAX_QUESTION: usize = 30_000;

/// An identity in a question takes no more characters.
const IDENTITY: usize = 80;

/// Where Windows is.
pub(super) fn directory() -> PathBuf {
    env::var_os("SystemRoot").unwrap_or_else(|| OsString::from(r"C:\Windows")).into()
}

/// Windows PowerShell, which is part of Windows.
pub(crate) fn powershell() -> PathBuf {
    directory().join("System32").join("WindowsPowerShell").join("v1.0").join("powershell.exe")
}

/// A question to the script.
#[derive(Debug, Serialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub(super) enum Question<'a> {
    /// What is installed and offered; `online` asks the server first.
    Inventory { online: bool },
    /// What is known of these UpdateIDs.
    State { ids: Vec<&'a str> },
    /// Fetch these.
    Download { updates: Vec<Identity<'a>> },
    /// Install these, and fetch first what is not there.
    Install { updates: Vec<Identity<'a>> },
}

/// One update in one revision.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Identity<'a> {
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
}

/// Whether so many fit into a question.
pub(super) fn check_length(identities: usize) -> Result<(), Failure> {
    let most = MAX_QUESTION / IDENTITY;
    if identities <= most {
        return Ok(());
    }
    let message = format!("{identities} identities are ordered at once, and Windows is asked for {most} at most");
    Err(Failure::new(ResultReason::PackageManagerFailed, message))
}

/// The command that puts the question. The question is data, in a variable; the script is always the same.
pub(super) fn line(question: &Question<'_>) -> CommandLine {
    let mut line = CommandLine { words: vec![powershell().into()], environment: Vec::new() };
    line.words.extend(words(["-NoProfile", "-NonInteractive", "-EncodedCommand"]));
    line.words.push(encoded(SCRIPT).into());
    // A question consists of text and numbers: there is always JSON of it.
    let question = serde_json::to_string(question).unwrap_or_default();
    line.environment.push(("PATCHWARDEN_QUESTION", question.into()));
    line
}

/// UTF-16 in base64, as `-EncodedCommand` takes it (about_PowerShell_exe); without comments and indentation: a command line has room
/// for 32,767 characters (`CreateProcessW`).
fn encoded(script: &str) -> String {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let short = lines.fold(String::new(), |mut short, line| {
        // Writing into a String cannot fail.
        let _ = writeln!(short, "{line}");
        short
    });
    let bytes: Vec<u8> = short.encode_utf16().flat_map(u16::to_le_bytes).collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::order::PackageChange;

    use super::*;

    #[test]
    fn the_script_fits_a_command_line_and_is_whole() {
        let line = line(&Question::Inventory { online: true });
        let encoded = line.words.last().unwrap().to_str().unwrap();
        let length: usize = line.words.iter().map(|word| word.len() + 3).sum();
        assert!(length < 30_000, "{length}");
        let bytes = STANDARD.decode(encoded).unwrap();
        let units: Vec<u16> = bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let text = String::from_utf16(&units).unwrap();
        assert!(text.starts_with("$ErrorActionPreference = 'Stop'\n") && text.ends_with("exit 1\n}\n"), "{text}");
        // What is left out line by line must not be inside of a text of several lines.
        assert!(!SCRIPT.contains("@'") && !SCRIPT.contains("@\""));
    }

    #[test]
    fn a_question_is_data_in_a_variable() {
        let updates = vec![Identity { id: "a'; calc", revision: "200" }];
        let line = line(&Question::Install { updates });
        let expected = r#"{"ask":"install","updates":[{"id":"a'; calc","revision":"200"}]}"#;
        assert_eq!(line.environment, [("PATCHWARDEN_QUESTION", expected.into())]);
        let plain = self::line(&Question::State { ids: vec![] });
        assert_eq!(plain.words, line.words, "the words are the same for every question");
        assert_eq!(plain.environment[0].1, r#"{"ask":"state","ids":[]}"#);
    }

    #[test]
    fn no_more_is_asked_than_fits() {
        let package = PackageChange {
            name: "7a2b8c1d-0000-4000-8000-000000000001".into(),
            arch: "amd64".into(),
            installed: "0".into(),
            candidate: u32::MAX.to_string(),
        };
        let most = vec![package; MAX_QUESTION / IDENTITY];
        assert_eq!(check_length(most.len()), Ok(()));
        let question = Question::Install { updates: super::super::updates::identities(&most) };
        assert!(line(&question).environment[0].1.len() < 32_767);
        assert!(check_length(most.len() + 1).unwrap_err().message.contains("376 identities"));
    }
}
