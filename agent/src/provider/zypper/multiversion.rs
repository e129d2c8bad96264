//! Which packages are kept in several versions: `multiversion` of zypp.conf, and files in a directory of their own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::files;
use crate::provider::Failure;
use crate::provider::rpm;
use crate::provider::support::broken;

/// A line of each file in it is a package, too.
pub(super) const DIRECTORY: &str = "/etc/zypp/multiversion.d";

/// The first is the machine's, the other the vendor's.
const CONFIGURATIONS: [&str; 2] = ["/etc/zypp/zypp.conf", "/usr/etc/zypp/zypp.conf"];

/// What SUSE's kernels and their modules provide for no other reason.
const KERNELS: &str = "multiversion(kernel)";

/// Names of the installed packages that are.
pub(super) async fn names() -> Result<BTreeSet<String>, Failure> {
    let (mut names, capabilities) = split(&texts().map_err(|error| broken(format!("multiversion: {error}")))?);
    names.extend(rpm::providing(&capabilities).await?);
    Ok(names)
}

/// The words that name them.
fn texts() -> io::Result<Vec<String>> {
    let mut words = Vec::new();
    for path in CONFIGURATIONS {
        let text = files::read_if_exists(Path::new(path))?.unwrap_or_default();
        words.extend(configured(&String::from_utf8_lossy(&text)));
    }
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(words),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let text = files::read_if_exists(&entry?.path())?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        words.extend(text.lines().map(str::trim).filter(|line| !line.starts_with('#')).map(str::to_owned));
    }
    Ok(words)
}

/// `multiversion = provides:multiversion(kernel), other`.
fn configured(text: &str) -> Vec<String> {
    let value = |line: &str| -> Option<String> {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "multiversion").then(|| value.to_owned())
    };
    let values: Vec<String> = text.lines().filter_map(value).collect();
    let words = values.iter().flat_map(|value| value.split([',', ' ', '\t']));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Names, and capabilities.
fn split(words: &[String]) -> (BTreeSet<String>, Vec<String>) {
    let mut names = BTreeSet::new();
    let mut capabilities = vec![KERNELS.to_owned()];
    for word in words {
        match word.strip_prefix("provides:") {
            Some(capability) => capabilities.push(capability.to_owned()),
            None => {
                names.insert(word.clone());
            }
        }
    }
    (names, capabilities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_capabilities_are_read_from_zypp_conf() {
        let text = "[main]\n# multiversion = no\nmultiversion = provides:multiversion(kernel),one  two\n\
            multiversion.kernels = latest,running\n";
        let (names, capabilities) = split(&configured(text));
        assert_eq!(names, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
        assert_eq!(capabilities, [KERNELS, KERNELS]);
        assert!(configured("").is_empty());
    }
}
