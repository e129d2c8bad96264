//! What a boot loader can start: entries, and which of them it starts by itself. Pure.

/// One kernel that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As `saved_entry` and `next_entry` name it: the ids of its submenus and its own, with `>` between them.
    pub(super) path: String,
    /// What `uname -r` will say, by the name of its image.
    pub(super) release: String,
    /// The image, as the boot loader names it.
    pub(super) image: String,
    /// File names of its initial ramdisks.
    pub(super) ramdisks: Vec<String>,
}

/// Release of the kernel in an image of this path, by its name: `/boot/vmlinuz-6.1.0-38-amd64`.
pub(super) fn release_of(image: &str) -> Option<&str> {
    let release = file_name(image).strip_prefix("vmlinuz-")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~');
    (release.starts_with(|c: char| c.is_ascii_digit()) && release.chars().all(is_plain)).then_some(release)
}

pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether an id can be written into GRUB's environment and means exactly that entry.
pub(super) fn is_plain_id(id: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~' | ':');
    !id.is_empty() && id.len() <= 200 && id.chars().all(is_plain)
}

/// Exactly one, or why not.
pub(super) fn only<T>(what: &str, mut found: impl Iterator<Item = T>) -> Result<T, String> {
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(format!("the boot loader has no entry for {what}")),
        (Some(_), Some(_)) => Err(format!("the boot loader has several entries for {what}")),
    }
}
