//! What the package manager has put where a recipe's application would lie.

use std::collections::BTreeSet;

use patchwarden_protocol::recipes::{Content, Recipe};

use crate::provider::run::run;
use crate::provider::support::{LOCAL_LIMIT, PATH, broken};
use crate::provider::{CommandLine, Failure, Native, words};

/// The paths of those of `recipes` where a package has put something: at the path, or below it.
pub(super) async fn owned(native: &Native, recipes: &[&Recipe]) -> Result<BTreeSet<String>, Failure> {
    let mut owned = BTreeSet::new();
    if recipes.is_empty() {
        return Ok(owned);
    }
    let is_tree = |recipe: &&&Recipe| matches!(recipe.install.content, Content::Tree { .. });
    let paths: Vec<&str> = recipes.iter().map(|recipe| recipe.install.path.as_str()).collect();
    let trees: Vec<&str> = recipes.iter().filter(is_tree).map(|recipe| recipe.install.path.as_str()).collect();
    match native {
        Native::Apt(_) => {
            let mut line = command(words(["dpkg-query", "--search", "--"]));
            line.words.extend(paths.iter().map(Into::into));
            // dpkg-query(1): a pattern's `*` matches slashes as well. A recipe's path has no sign of a pattern.
            line.words.extend(trees.iter().map(|path| format!("{path}/*").into()));
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
                    owned.insert(path.to_owned());
                }
            }
            if trees.is_empty() {
                return Ok(owned);
            }
            // Every directory in which a package has a file, with a slash at its end.
            let line = command(words(["rpm", "--query", "--all", "--queryformat", "[%{DIRNAMES}\\n]"]));
            let output = run(&line, LOCAL_LIMIT).await?;
            if !output.succeeded() {
                return Err(broken(format!("rpm --query --all: {}", output.stderr.trim())));
            }
            let has_files = |path: &&&str| output.stdout.lines().any(|line| is_below(line, path));
            owned.extend(trees.iter().filter(has_files).map(|path| (*path).to_owned()));
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
    let mut listed = output.lines().filter_map(|line| line.split_once(": "));
    listed.any(|(_, listed)| listed == path || is_below(listed, path))
}

fn is_below(listed: &str, path: &str) -> bool {
    listed.strip_prefix(path).is_some_and(|below| below.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_lists_is_a_packages() {
        let output = "a, b:amd64: /opt/x\nc: /opt/y/z\n";
        assert!(lists(output, "/opt/x") && lists(output, "/opt/y/z"));
        assert!(lists(output, "/opt/y") && !lists(output, "/opt/y/z/a"));
        assert!(!lists(output, "/op") && !lists(output, "/x") && !lists("", "/opt/x"));
    }
}
