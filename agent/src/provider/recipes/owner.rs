//! What the package manager has put where a recipe's application would lie.

use std::collections::BTreeSet;

use crate::provider::run::run;
use crate::provider::support::{LOCAL_LIMIT, PATH, broken};
use crate::provider::{CommandLine, Failure, Native, words};

/// Those of `paths` that belong to a package.
pub(super) async fn owned(native: &Native, paths: &[&str]) -> Result<BTreeSet<String>, Failure> {
    let mut owned = BTreeSet::new();
    if paths.is_empty() {
        return Ok(owned);
    }
    match native {
        Native::Apt(_) => {
            let mut line = command(words(["dpkg-query", "--search", "--"]));
            line.words.extend(paths.iter().map(Into::into));
            let output = run(&line, LOCAL_LIMIT).await?;
            // dpkg-query(1): 1 where one of them belongs to no package.
            if !matches!(output.code, Some(0 | 1)) {
                return Err(broken(format!("dpkg-query --search: {}", output.stderr.trim())));
            }
            owned.extend(paths.iter().filter(|path| lists(&output.stdout, path)).map(|path| (*path).to_owned()));
        }
        Native::Dnf(_) | Native::Zypper(_) => {
            for path in paths {
                let line = command(words(["rpm", "--query", "--file", "--", path]));
                if run(&line, LOCAL_LIMIT).await?.succeeded() {
                    owned.insert((*path).to_owned());
                }
            }
        }
        Native::Windows(_) | Native::Macos(_) => {}
    }
    Ok(owned)
}

fn command(words: Vec<std::ffi::OsString>) -> CommandLine {
    CommandLine { words, environment: vec![("PATH", PATH.into()), ("LC_ALL", "C".into())] }
}

/// `pkg-a, pkg-b: /opt/x`.
fn lists(output: &str, path: &str) -> bool {
    output.lines().any(|line| line.strip_suffix(path).is_some_and(|before| before.ends_with(": ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_lists_is_a_packages() {
        let output = "a, b:amd64: /opt/x\nc: /opt/y/z\n";
        assert!(lists(output, "/opt/x") && lists(output, "/opt/y/z"));
        assert!(!lists(output, "/opt/y") && !lists(output, "/x") && !lists("", "/opt/x"));
    }
}
