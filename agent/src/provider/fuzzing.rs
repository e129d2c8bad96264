//! Any bytes in the place of what package managers print, and of what packages consist of.

pub(crate) use super::apt::fuzzing as apt;
pub(crate) use super::macos::fuzz as macos_answers;
pub(crate) use super::recipes::fuzz_archive as archive;
pub(crate) use super::rpm::fuzzing as rpm;
pub(crate) use super::upstream::fuzz as upstream;
pub(crate) use super::windows::fuzz as windows_answers;
pub(crate) use super::zypper::fuzzing as zypper;

/// A list of files, or a script.
pub(crate) fn package_content(text: &str) {
    let _ = (super::services::of_files(text), super::services::restarts_a_service(text));
}
