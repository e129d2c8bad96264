//! Which versions no signature vouches for.
//!
//! apt verifies the signature of a repository's Release file when it reads its indexes, and keeps it beside them. What comes from a
//! repository without one it installs only where its owner says `[trusted=yes]` (sources.list(5)) for that repository: the agent never
//! lets apt take anything else (`APT::Get::AllowUnauthenticated=false`). Nothing is asked where every index has its signature and no
//! source speaks of trust.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::commands::{Indexes, LISTS, checked, line, policies};
use super::index;
use super::parse::{PackageKey, qualified};
use super::updates::key;
use crate::provider::run::run;
use crate::provider::support::{LOCAL_LIMIT, broken};
use crate::provider::{Change, Failure, bounded, upstream};

/// The fields of a [`Source`], as indextargets of apt-get(8) names them.
const TARGET: &str = "$(TRUSTED)\t$(FILENAME)\t$(DESCRIPTION)";

/// How a version is not vouched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The machine's owner takes it without a signature.
    Unsigned,
    /// apt does not install it.
    Refused,
}

/// An index of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    is_trusted: bool,
    is_signed: bool,
}

/// Those of the new versions that no signature vouches for. `arch` is the machine's own; where the indexes do not tell who has a version,
/// apt is asked.
pub(super) async fn doubts(
    changes: Vec<&Change>,
    indexes: Option<&Indexes>,
    arch: &str,
) -> Result<BTreeMap<PackageKey, Doubt>, Failure> {
    if changes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let files = listed()?;
    // Where apt keeps them elsewhere, signatures are not seen, and nothing is said of them.
    if !files.iter().any(|name| index::is_index(name)) {
        return Ok(BTreeMap::new());
    }
    let is_signed = |name: &str| index::is_signed(name, &files);
    let is_doubted = || files.iter().any(|name| index::is_index(name) && !is_signed(name));
    if !is_doubted() && !upstream::apt_says("trusted") {
        return Ok(BTreeMap::new());
    }
    let targets = line("/usr/bin/apt-get", ["indextargets", "--format", TARGET, "Created-By: Packages"]);
    let is_missing = |change: &&&Change| indexes.is_none_or(|indexes| indexes.files(&key(change)).next().is_none());
    let missing = changes.iter().filter(is_missing).map(|change| qualified(&change.name, &change.arch));
    let (targets, policies) = tokio::join!(run(&targets, LOCAL_LIMIT), policies(missing));
    let (sources, policies) = (sources(&checked(targets?)?, is_signed).map_err(broken)?, policies?);
    let mut doubts = BTreeMap::new();
    for change in changes {
        let key = key(change);
        let foreign = (change.arch != "all" && change.arch != arch).then_some(change.arch.as_str());
        let policy = policies.iter().find(|it| it.name == change.name && it.foreign.as_deref() == foreign);
        let by_apt = policy.into_iter().flat_map(|policy| policy.files(&change.new));
        let names = indexes.into_iter().flat_map(|indexes| indexes.files(&key)).chain(by_apt);
        let of_it: Vec<Source> = names.filter_map(|name| sources.get(name).copied()).collect();
        // Its index may have been read anew meanwhile. apt itself refuses what it does not trust.
        if of_it.is_empty() {
            tracing::warn!("apt does not say where {} {} comes from", change.name, change.new);
            continue;
        }
        doubts.extend(doubt(&of_it).map(|doubt| (key, doubt)));
    }
    Ok(doubts)
}

/// What is said of a version that is in these indexes. apt takes it from any of them that it trusts, and from no other.
fn doubt(sources: &[Source]) -> Option<Doubt> {
    let mut trusted = sources.iter().filter(|source| source.is_trusted).peekable();
    if trusted.peek().is_none() {
        return Some(Doubt::Refused);
    }
    trusted.any(|source| !source.is_signed).then_some(Doubt::Unsigned)
}

/// Names of the files in apt's directory of lists.
fn listed() -> Result<Vec<String>, Failure> {
    let failed = |error: io::Error| broken(format!("{LISTS}: {error}"));
    let entries = fs::read_dir(LISTS).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Reads `apt-get indextargets` with [`TARGET`]: each index by the name of its file, and by what apt calls it.
fn sources(output: &str, is_signed: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Source>, String> {
    let source = |line: &str| {
        let mut fields = line.split('\t');
        let (Some(trusted), Some(path), Some(name), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(format!("apt-get printed an index of an unknown form: {}", bounded(line, 200)));
        };
        let file = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = Source { is_trusted: trusted == "yes", is_signed: is_signed(&file) };
        Ok([(file, source), (name.to_owned(), source)])
    };
    Ok(output.lines().map(source).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_trusted_as_apt_says_and_signed_as_its_files_do() {
        let text = "yes\t/var/lib/apt/lists/a_Packages.lz4\thttp://a x/main amd64 Packages\nno\t/var/lib/apt/lists/b_Packages\tfile:/b ./ Packages\n";
        let found = sources(text, |name| name == "a_Packages.lz4").unwrap();
        let of = |name: &str| found.get(name).map(|it| (it.is_trusted, it.is_signed));
        assert_eq!(["a_Packages.lz4", "b_Packages"].map(of), [Some((true, true)), Some((false, false))]);
        assert_eq!(
            [of("http://a x/main amd64 Packages"), of("file:/b ./ Packages")],
            [Some((true, true)), Some((false, false))]
        );
        assert_eq!(sources("", |_| true).unwrap(), BTreeMap::new());
        for bad in ["yes", "yes\tx", "yes\tx\ty\tz"] {
            assert!(sources(bad, |_| true).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_version_is_as_good_as_the_worst_index_that_apt_would_take_it_from() {
        let source = |is_trusted, is_signed| Source { is_trusted, is_signed };
        let (signed, unsigned, refused) = (source(true, true), source(true, false), source(false, false));
        for (sources, expected) in [
            (vec![signed], None),
            (vec![signed, refused], None),
            (vec![signed, unsigned], Some(Doubt::Unsigned)),
            (vec![refused, unsigned], Some(Doubt::Unsigned)),
            (vec![refused], Some(Doubt::Refused)),
            // `[trusted=no]` for a repository that is signed.
            (vec![source(false, true)], Some(Doubt::Refused)),
        ] {
            assert_eq!(doubt(&sources), expected, "{sources:?}");
        }
    }
}
