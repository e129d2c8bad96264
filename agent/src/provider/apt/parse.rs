//! Reading what apt and dpkg print under `LC_ALL=C`. Pure.

use std::collections::BTreeSet;
use std::path::PathBuf;

use patchwarden_protocol::report::{Classification, Package};

use crate::provider::support::counted;
use crate::provider::{Artifact, Change, Installed, Simulation, Unconfigured, bounded};

const VERBS: [&str; 4] = ["Inst ", "Conf ", "Remv ", "Purg "];

/// Reads `apt-get -s`: `Inst`, `Conf`, `Remv` and `Purg` lines.
pub(super) fn simulation(output: &str) -> Result<Simulation, String> {
    let mut simulation = Simulation::default();
    let mut configured = Vec::new();
    let told = output.lines().filter(|line| VERBS.iter().any(|verb| line.starts_with(verb)));
    for line in counted(told) {
        let line = line?;
        let Some((verb, rest)) = line.split_once(' ') else { continue };
        let unreadable = || format!("apt-get printed a line of an unknown form: {}", bounded(line, 200));
        match verb {
            "Inst" => simulation.changes.push(inst(rest).ok_or_else(unreadable)?),
            "Conf" => configured.push(bare_name(rest.split(' ').next().ok_or_else(unreadable)?)),
            "Remv" | "Purg" => simulation.removals.push(bare_name(rest.split(' ').next().ok_or_else(unreadable)?)),
            _ => {}
        }
    }
    let changed: BTreeSet<&str> = simulation.changes.iter().map(|change| change.name.as_str()).collect();
    configured.retain(|name| !changed.contains(name.as_str()));
    simulation.configures = configured;
    Ok(simulation)
}

/// `NAME [OLD] (NEW ORIGIN:VERSION/SUITE, ... [ARCH]) [...]`.
fn inst(rest: &str) -> Option<Change> {
    let (name, rest) = rest.split_once(' ')?;
    let (old, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (old, rest) = rest.split_once("] ")?;
            (Some(old.to_owned()), rest)
        }
        None => (None, rest),
    };
    let (inside, _) = rest.strip_prefix('(')?.split_once("])")?;
    let (before, arch) = inside.rsplit_once('[')?;
    let (new, origin) = before.trim_end().split_once(' ').unwrap_or((before.trim_end(), ""));
    Some(Change { name: bare_name(name), arch: arch.to_owned(), old, new: new.to_owned(), origin: origin.to_owned() })
}

/// Without the `:arch` that apt adds for foreign architectures.
fn bare_name(name: &str) -> String {
    name.split(':').next().unwrap_or(name).to_owned()
}

/// Name, architecture and version.
pub(super) type PackageKey = (String, String, String);

/// One paragraph of `apt-cache show`, or of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) name: String,
    pub(super) arch: String,
    pub(super) version: String,
    pub(super) source: String,
    pub(super) source_version: String,
    pub(super) sha256: String,
    pub(super) size: u64,
    /// Bytes.
    pub(super) installed_size: u64,
}

impl Description {
    /// What apt calls its file in an archives directory: colons of the version would be those of a path elsewhere.
    pub(super) fn archive_name(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.arch)
    }

    /// About as many as it takes, beside its key.
    pub(super) fn bytes(&self) -> usize {
        let Self { name, arch, version, source, source_version, sha256, size: _, installed_size: _ } = self;
        let text: usize = [name, arch, version, source, source_version, sha256].map(String::len).iter().sum();
        2 * (text + size_of::<Self>())
    }

    /// What names it among all.
    pub(super) fn key(&self) -> PackageKey {
        (self.name.clone(), self.arch.clone(), self.version.clone())
    }
}

/// Reads `apt-cache show`.
pub(super) fn descriptions(output: &str) -> Vec<Description> {
    output.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()).map(description).collect()
}

/// Reads one paragraph.
pub(super) fn description(paragraph: &str) -> Description {
    let mut found = Description::default();
    let mut source = None;
    for line in paragraph.lines() {
        let Some((field, value)) = line.split_once(": ") else { continue };
        match field {
            "Package" => value.clone_into(&mut found.name),
            "Architecture" => value.clone_into(&mut found.arch),
            "Version" => value.clone_into(&mut found.version),
            "Source" => source = Some(value),
            "SHA256" => value.clone_into(&mut found.sha256),
            "Size" => found.size = value.parse().unwrap_or_default(),
            "Installed-Size" => found.installed_size = value.parse::<u64>().unwrap_or_default().saturating_mul(1024),
            _ => {}
        }
    }
    let (source, version) = match source.map(|source| source.split_once(" (")) {
        Some(Some((source, version))) => (source.to_owned(), version.trim_end_matches(')').to_owned()),
        Some(None) => (source.unwrap_or_default().to_owned(), found.version.clone()),
        None => (found.name.clone(), found.version.clone()),
    };
    found.source = source;
    found.source_version = version;
    found
}

/// Format of [`rows`] for `dpkg-query --show --showformat`.
pub(super) const ROW_FORMAT: &str = "${db:Status-Abbrev}\\t${Package}\\t${Architecture}\\t${Version}\\t${source:Package}\\t${source:Version}\\t${Installed-Size}\\n";

/// One line of `dpkg-query`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Two or three letters: wanted, status, error.
    status: String,
    name: String,
    arch: String,
    version: String,
    source: String,
    source_version: String,
    /// Bytes.
    pub(super) installed_size: u64,
}

impl Row {
    /// `i` as status and no error.
    fn is_complete(&self) -> bool {
        let mut letters = self.status.chars();
        letters.nth(1) == Some('i') && letters.next().is_none_or(|error| error == ' ')
    }

    /// Whether files of it are on the machine (`c` and `n` have none).
    pub(super) fn is_present(&self) -> bool {
        !matches!(self.status.chars().nth(1), None | Some('n' | 'c'))
    }

    pub(super) fn is_image_of_kernel(&self) -> bool {
        self.is_complete() && self.name.starts_with("linux-image-") && !self.name.ends_with("-dbg")
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn arch(&self) -> &str {
        &self.arch
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether the package is to stay at its version: the wanted action `h` of dpkg-query(1).
    pub(super) fn is_held(&self) -> bool {
        self.is_present() && self.status.starts_with('h')
    }

    /// The same with those of which a script has failed: the status `F`.
    pub(super) fn unconfigured(&self) -> Option<Unconfigured> {
        let status = self.status.chars().nth(1);
        let Self { name, arch, version, .. } = self;
        matches!(status, Some('U' | 'F')).then(|| Unconfigured {
            name: name.clone(),
            arch: arch.clone(),
            version: version.clone(),
            has_failed: status == Some('F'),
        })
    }

    /// If its files are there and dpkg has not tried to configure it: the status `U`.
    pub(super) fn unpacked(&self) -> Option<String> {
        (self.status.chars().nth(1) == Some('U')).then(|| qualified(&self.name, &self.arch))
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Whether dpkg died while it unpacked the package, and does nothing with it until it is unpacked once more: the error `R`.
    pub(super) fn must_be_unpacked_again(&self) -> bool {
        self.status.chars().nth(2) == Some('R')
    }

    pub(super) fn into_installed(self) -> Option<Installed> {
        let complete = self.is_complete();
        self.is_present().then_some(Installed {
            name: self.name,
            arch: self.arch,
            version: self.version,
            source: self.source,
            complete,
        })
    }

    pub(super) fn into_package(self) -> Option<Package> {
        self.is_present().then(|| {
            let Self { name, arch, version, source, source_version, .. } = self;
            Package { name, arch, version, source, source_version: Some(source_version) }
        })
    }
}

/// A package as apt and dpkg take it. One for all architectures is one of the machine's own to them.
pub(super) fn qualified(name: &str, arch: &str) -> String {
    if arch == "all" { name.to_owned() } else { format!("{name}:{arch}") }
}

/// Reads `dpkg-query` with [`ROW_FORMAT`].
pub(super) fn rows(output: &str) -> Result<Vec<Row>, String> {
    counted(output.lines())
        .map(|line| {
            let line = line?;
            let mut fields = line.split('\t').map(str::to_owned);
            let mut next = || fields.next();
            match (next(), next(), next(), next(), next(), next(), next()) {
                (
                    Some(status),
                    Some(name),
                    Some(arch),
                    Some(version),
                    Some(source),
                    Some(source_version),
                    Some(size),
                ) => Ok(Row {
                    status,
                    name,
                    arch,
                    version,
                    source,
                    source_version,
                    // A package may state none.
                    installed_size: size.parse::<u64>().unwrap_or_default().saturating_mul(1024),
                }),
                _ => Err(format!("dpkg-query printed a line of an unknown form: {}", bounded(line, 200))),
            }
        })
        .collect()
}

/// Reads `apt-get --print-uris`: `'URI' NAME_VERSION_ARCH.deb SIZE SHA256:HEX`.
pub(super) fn artifacts(output: &str) -> Result<Vec<Artifact>, String> {
    output.lines().filter(|line| line.starts_with('\'')).map(artifact).collect()
}

fn artifact(line: &str) -> Result<Artifact, String> {
    let unreadable = || format!("apt-get printed a file of an unknown form: {}", bounded(line, 300));
    let (uri, rest) = line.strip_prefix('\'').and_then(|line| line.split_once("' ")).ok_or_else(unreadable)?;
    let mut fields = rest.split(' ');
    let (Some(file_name), Some(size)) = (fields.next(), fields.next()) else { return Err(unreadable()) };
    let sha256 = fields.next().and_then(|hash| hash.strip_prefix("SHA256:")).unwrap_or_default().to_owned();
    let mut parts = file_name.strip_suffix(".deb").ok_or_else(unreadable)?.split('_').map(percent_decoded);
    let (Some(Some(name)), Some(Some(version)), Some(Some(arch)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(unreadable());
    };
    if file_name.contains('/') {
        return Err(unreadable());
    }
    let local = match uri.strip_prefix("file:") {
        Some(path) => {
            let path = percent_decoded(path).ok_or_else(unreadable)?;
            Some(PathBuf::from(path.strip_prefix("//").unwrap_or(&path)))
        }
        None => None,
    };
    let size = size.parse().map_err(|_| unreadable())?;
    Ok(Artifact {
        name,
        arch,
        version,
        sha256,
        size,
        file_name: file_name.to_owned(),
        local,
        needed: true,
        rivals: Vec::new(),
    })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let (hex, tail) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether a repository says that it is for security: a suite ending in `-security`, Debian's label, Ubuntu's ESM. apt
/// prints `LABEL:VERSION/SUITE`, each part only if the Release file has it; what stands alone may be either.
pub(super) fn classification(origins: &str) -> Classification {
    let mut known = false;
    for origin in origins.split(", ") {
        let (label, rest) = origin.split_once(':').unwrap_or(("", origin));
        let suite = rest.rsplit_once('/').map_or(rest, |(_, suite)| suite);
        if label == "Debian-Security" || label.starts_with("UbuntuESM") || suite.ends_with("-security") {
            return Classification::Security;
        }
        known |= !label.is_empty() || !suite.is_empty();
    }
    if known { Classification::Updates } else { Classification::Unclassified }
}

/// Lines of `apt-get update` that mean that a repository was not refreshed. Other warnings (an old way to store a key)
/// do not.
pub(super) fn unavailable(output: &str) -> Vec<&str> {
    const SIGNS: [&str; 9] = [
        "Failed to fetch",
        "Some index files failed",
        "GPG error",
        "is not signed",
        "does not have a Release file",
        "no longer has a Release file",
        "is not valid",
        "Could not get lock",
        "could not be found",
    ];
    output
        .lines()
        .filter(|line| {
            line.starts_with("E:") || (line.starts_with("W:") && SIGNS.iter().any(|sign| line.contains(sign)))
        })
        .collect()
}

/// Under which apt lists what it finds no way for; its last line alone says nothing of that.
const UNMET: &str = "The following packages have unmet dependencies:";

/// The packages that dpkg could not process, as `dpkg: error processing package NAME (--configure):` and
/// `dpkg: error processing archive /DIRECTORY/NAME_VERSION_ARCH.deb (--unpack):` name them.
pub(super) fn culprits(output: &str) -> BTreeSet<&str> {
    let what = output.lines().filter_map(|line| line.trim().strip_prefix("dpkg: error processing "));
    what.filter_map(|what| match what.split_once(' ')? {
        ("package", rest) => rest.split([' ', ':']).next(),
        ("archive", rest) => rest.split(" (--").next()?.rsplit('/').next()?.split('_').next(),
        _ => None,
    })
    .collect()
}

/// apt's and dpkg's own lines about errors, at most `limit` bytes; those that name one of `names` come first.
pub(super) fn error_lines(output: &str, names: &[&str], limit: usize) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
    let is_error = |line: &str| line.starts_with("E:") || line.starts_with("dpkg: ") || line.contains(": error");
    let names_one = |line: &str| {
        names.iter().any(|name| {
            line.split(|c: char| c.is_whitespace() || matches!(c, ':' | '\'' | '(' | ')' | ','))
                .any(|word| word == *name)
        })
    };
    let unmet = lines.iter().skip_while(|line| **line != UNMET).skip(1);
    let mut chosen: Vec<&str> = unmet.take_while(|line| line.starts_with(' ')).map(|line| line.trim_start()).collect();
    for wanted in [true, false] {
        for (index, line) in lines.iter().enumerate() {
            if !is_error(line) || names_one(line) != wanted || chosen.contains(line) {
                continue;
            }
            chosen.push(line);
            // dpkg says what was wrong on the next, indented line.
            if let Some(next) = lines.get(index + 1).filter(|next| next.starts_with(' ')) {
                chosen.push(next);
            }
        }
    }
    bounded(&chosen.join("\n"), limit)
}

/// Kernel releases in their natural order: numbers as numbers.
pub(super) fn compare_releases(a: &str, b: &str) -> std::cmp::Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        let mut parts = Vec::new();
        for part in text.split(['.', '-', '+', '~']) {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            parts.push((part[..digits].parse().unwrap_or_default(), part[digits..].to_owned()));
        }
        parts
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests;
