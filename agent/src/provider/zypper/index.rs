//! What a repository's own index says of packages and advisories: the `primary` and `updateinfo` files that its `repomd.xml`
//! names, as libzypp has fetched and checked them. zypper tells neither checksums nor which packages an advisory is about.
//!
//! They are read as a stream: those of a distribution are hundreds of megabytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Component, Path, PathBuf};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::answer::{Repository, Version};
use super::xml::{Node, Tag, walk};
use crate::provider::rpm::{Advisory, File};

/// In the directory of a repository: names the other files.
const REPOMD: &str = "repodata/repomd.xml";

/// Of each package and advisory at most so many bytes are of interest.
const MAX_TEXT: usize = 4096;

/// An advisory of more packages or CVEs than any has.
const MAX_PARTS: usize = 100_000;

/// What a package provides that needs a restart (libzypp's needreboot.d).
const REBOOT_HINT: &str = "installhint(reboot-needed)";

/// A package in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) file: File,
    /// Its place in the repository.
    pub(super) place: PathBuf,
    /// Of the repository.
    pub(super) priority: u32,
}

/// An advisory, with what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) advisory: Advisory,
    pub(super) packages: Vec<Version>,
    /// Whether a restart is suggested.
    pub(super) reboots: bool,
}

/// What was found in the indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) entries: Vec<Entry>,
    pub(super) notices: Vec<Notice>,
}

/// Where libzypp keeps the index of a repository.
pub(super) fn directory(cache: &Path, alias: &str) -> PathBuf {
    // RepoInfo::escaped_alias.
    cache.join(alias.replace('/', "_"))
}

/// What says which index of each repository is in the cache.
pub(super) fn all(cache: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    entries.map(|entry| entry.map(|entry| entry.path().join(REPOMD))).collect()
}

/// Adds what a repository says of the packages with these names.
pub(super) fn read(
    cache: &Path,
    repository: &Repository,
    wanted: &BTreeSet<&str>,
    index: &mut Index,
) -> Result<(), String> {
    let place = directory(cache, &repository.alias);
    let parts = parts(&place)?;
    let primary = parts.primary.ok_or("its repomd.xml names no list of packages")?;
    walk_file(&place, &primary, |input| packages(input, repository, wanted, &mut index.entries))?;
    match parts.updateinfo {
        Some(updateinfo) => walk_file(&place, &updateinfo, |input| notices(input, wanted, &mut index.notices)),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Parts {
    primary: Option<PathBuf>,
    updateinfo: Option<PathBuf>,
}

/// The files that `repomd.xml` names.
fn parts(place: &Path) -> Result<Parts, String> {
    let path = place.join(REPOMD);
    let file = fs::File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut parts = Parts::default();
    let mut kind = String::new();
    walk(BufReader::new(file), |node| {
        if let Node::Open(tag) = node {
            match tag.name() {
                "data" => kind = tag.attribute("type")?,
                "location" => match kind.as_str() {
                    "primary" => parts.primary = Some(place_of(&tag)?),
                    "updateinfo" => parts.updateinfo = Some(place_of(&tag)?),
                    _ => {}
                },
                _ => {}
            }
        }
        Ok(())
    })
    .map_err(|why| format!("{}: {why}", path.display()))?;
    Ok(parts)
}

/// A path below the repository.
fn place_of(tag: &Tag<'_>) -> Result<PathBuf, String> {
    let path: PathBuf = tag.attribute("href")?.into();
    // Some repositories write "./".
    let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
    if path.as_os_str().is_empty() || !is_below {
        return Err(format!("{:?} is no place in a repository", path.display().to_string()));
    }
    Ok(path)
}

/// Unpacks what it is packed with, by its first bytes.
fn walk_file(
    place: &Path,
    name: &Path,
    read: impl FnOnce(&mut dyn BufRead) -> Result<(), String>,
) -> Result<(), String> {
    let path = place.join(name);
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let file = fs::File::open(&path).map_err(|error| failed(&error))?;
    unpacked(BufReader::new(file), read).map_err(|why| failed(&why))
}

fn unpacked(mut input: impl BufRead, read: impl FnOnce(&mut dyn BufRead) -> Result<(), String>) -> Result<(), String> {
    match input.fill_buf().map_err(|error| error.to_string())? {
        [0x1f, 0x8b, ..] => read(&mut BufReader::new(flate2::bufread::MultiGzDecoder::new(input))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(input).map_err(|error| error.to_string())?;
            read(&mut BufReader::new(decoder))
        }
        [b'<', ..] => read(&mut input),
        _ => Err("is neither plain nor packed with gzip or zstd".to_owned()),
    }
}

fn packages(
    input: &mut dyn BufRead,
    repository: &Repository,
    wanted: &BTreeSet<&str>,
    found: &mut Vec<Entry>,
) -> Result<(), String> {
    let mut entry: Option<Entry> = None;
    let mut is_sha256 = false;
    walk(input, |node| {
        match node {
            Node::Open(tag) if tag.name() == "package" => {
                let nothing = File {
                    name: String::new(),
                    arch: String::new(),
                    version: String::new(),
                    source: String::new(),
                    repository: repository.alias.clone(),
                    sha256: String::new(),
                    size: 0,
                    unpacked: 0,
                    base_name: String::new(),
                    local: None,
                    old: None,
                    restarts: false,
                    rivals: Vec::new(),
                };
                entry = Some(Entry { file: nothing, place: PathBuf::new(), priority: repository.priority });
            }
            Node::Open(tag) => {
                let Some(Entry { file, place, .. }) = &mut entry else { return Ok(()) };
                match tag.name() {
                    "version" => file.version = version(&tag)?,
                    "entry" => file.restarts |= tag.attribute("name")? == REBOOT_HINT,
                    "checksum" => is_sha256 = tag.attribute("type")? == "sha256",
                    "size" => {
                        file.size = bytes(&tag.attribute("package")?)?;
                        file.unpacked = bytes(&tag.attribute("installed")?)?;
                    }
                    "location" => {
                        *place = place_of(&tag)?;
                        let name = place.file_name().map(|name| name.to_string_lossy().into_owned());
                        file.base_name = name.unwrap_or_default();
                    }
                    _ => {}
                }
            }
            Node::Close { name: "package", .. } => {
                if let Some(entry) = entry.take().filter(|entry| wanted.contains(entry.file.name.as_str())) {
                    if entry.file.version.is_empty() || entry.file.arch.is_empty() || entry.file.base_name.is_empty() {
                        return Err(format!("package {} has no version, architecture or place", entry.file.name));
                    }
                    found.push(entry);
                }
            }
            Node::Close { name, text } => {
                let Some(Entry { file, .. }) = &mut entry else { return Ok(()) };
                match name {
                    // Not the names within: those are of other things, and have no text.
                    "name" => file.name = short(text)?,
                    "arch" => file.arch = short(text)?,
                    "sourcerpm" => file.source = short(text)?,
                    "checksum" if is_sha256 && is_sha256_text(text) => file.sha256 = text.to_ascii_lowercase(),
                    _ => {}
                }
            }
        }
        Ok(())
    })
}

fn notices(input: &mut dyn BufRead, wanted: &BTreeSet<&str>, found: &mut Vec<Notice>) -> Result<(), String> {
    let mut notice: Option<Notice> = None;
    walk(input, |node| {
        match node {
            Node::Open(tag) if tag.name() == "update" => {
                let kind = short(&tag.attribute("type")?)?;
                let advisory = Advisory {
                    id: String::new(),
                    kind: if kind.is_empty() { "unknown".to_owned() } else { kind },
                    severity: String::new(),
                    title: String::new(),
                    updated: 0,
                    cves: Vec::new(),
                };
                notice = Some(Notice { advisory, packages: Vec::new(), reboots: false });
            }
            Node::Open(tag) => {
                let Some(Notice { advisory, packages, .. }) = &mut notice else { return Ok(()) };
                match tag.name() {
                    "issued" if advisory.updated == 0 => advisory.updated = seconds(&tag.attribute("date")?),
                    "updated" => match seconds(&tag.attribute("date")?) {
                        0 => {}
                        date => advisory.updated = date,
                    },
                    "reference" if tag.attribute("type")? == "cve" && advisory.cves.len() < MAX_PARTS => {
                        advisory.cves.push(short(&tag.attribute("id")?)?);
                    }
                    "package" => {
                        let package = Version {
                            name: tag.attribute("name")?,
                            arch: tag.attribute("arch")?,
                            version: version(&tag)?,
                        };
                        if wanted.contains(package.name.as_str()) && packages.len() < MAX_PARTS {
                            packages.push(package);
                        }
                    }
                    _ => {}
                }
            }
            Node::Close { name: "update", .. } => {
                found.extend(notice.take().filter(|notice| !notice.packages.is_empty()));
            }
            Node::Close { name, text } => {
                let Some(Notice { advisory, reboots, .. }) = &mut notice else { return Ok(()) };
                match name {
                    "id" => advisory.id = short(text)?,
                    // A collection has a name and a module of its own, a reference a title in an attribute.
                    "title" => advisory.title = text.chars().take(MAX_TEXT / 4).collect(),
                    "severity" => advisory.severity = short(text)?,
                    "reboot_suggested" => *reboots |= !matches!(text, "0" | "false" | "False"),
                    _ => {}
                }
            }
        }
        Ok(())
    })
}

/// `[EPOCH:]VERSION-RELEASE`, by the attributes of a package's version in either file.
fn version(tag: &Tag<'_>) -> Result<String, String> {
    let first = |long: &str, short: &str| -> Result<String, String> {
        let found = tag.attribute(short)?;
        if found.is_empty() { tag.attribute(long) } else { Ok(found) }
    };
    let (version, release) = (first("version", "ver")?, first("release", "rel")?);
    let epoch = tag.attribute("epoch")?;
    let epoch = if epoch.is_empty() || epoch == "0" { String::new() } else { format!("{epoch}:") };
    short(&format!("{epoch}{version}-{release}"))
}

fn short(text: &str) -> Result<String, String> {
    if text.len() > MAX_TEXT { Err(format!("a text of {} bytes", text.len())) } else { Ok(text.to_owned()) }
}

fn bytes(text: &str) -> Result<u64, String> {
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| format!("size {text:?} is not a number")) }
}

fn is_sha256_text(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Seconds since 1970 (SUSE), or `2026-11-03 09:00:00` in UTC; 0 for what is neither.
fn seconds(text: &str) -> i64 {
    let text = text.trim();
    text.parse()
        .ok()
        .or_else(|| {
            let civil: DateTime = text.parse().ok()?;
            Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
        })
        .unwrap_or_default()
}

/// The entry that zypper takes for this version: of the repository that comes first. Where several that come first have
/// different files under the same version nobody can say which it takes, so it has no checksum, and is not installed.
pub(super) fn chosen(entries: &[Entry], package: &Version) -> Option<Entry> {
    let mut same: Vec<&Entry> = entries.iter().filter(|entry| is_of(entry, package)).collect();
    same.sort_by_key(|entry| (entry.priority, entry.file.repository.as_str()));
    let first = same.first()?;
    let mut chosen = (*first).clone();
    if same.iter().any(|other| other.priority == first.priority && other.file.sha256 != first.file.sha256) {
        chosen.file.sha256 = String::new();
    }
    Some(chosen)
}

/// Whether the entry is of this package in this version.
pub(super) fn is_of(entry: &Entry, package: &Version) -> bool {
    let File { name, arch, version, .. } = &entry.file;
    (name, arch, version) == (&package.name, &package.arch, &package.version)
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let repository = Repository { alias: "x".to_owned(), priority: 99, is_enabled: true };
    let wanted = BTreeSet::from(["pw-a", "pw-b"]);
    let mut index = Index::default();
    let _ = unpacked(bytes, |input| packages(input, &repository, &wanted, &mut index.entries));
    let _ = unpacked(bytes, |input| notices(input, &wanted, &mut index.notices));
    for Entry { file, place, .. } in &index.entries {
        assert!(wanted.contains(file.name.as_str()) && !file.base_name.contains('/') && file.base_name != "..");
        assert!(place.components().all(|part| matches!(part, Component::Normal(_))), "{}", place.display());
        assert!(file.sha256.is_empty() || is_sha256_text(&file.sha256));
    }
    assert!(index.notices.iter().all(|notice| !notice.packages.is_empty()));
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const PRIMARY: &str = include_str!("../../../tests/data/zypper/primary.xml");
    const UPDATEINFO: &str = include_str!("../../../tests/data/zypper/updateinfo.xml");

    fn cache(primary: &[u8], updateinfo: &[u8]) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let place = cache.path().join("a_b/repodata");
        fs::create_dir_all(&place).unwrap();
        let repomd = "<repomd><data type='primary'><location href='repodata/p'/></data><data type='filelists'>\
            <location href='repodata/none'/></data><data type='updateinfo'><location href='./repodata/u'/></data></repomd>";
        fs::write(place.join("repomd.xml"), repomd).unwrap();
        fs::write(place.join("p"), primary).unwrap();
        fs::write(place.join("u"), updateinfo).unwrap();
        cache
    }

    fn found(primary: &[u8], updateinfo: &[u8]) -> Result<Index, String> {
        let cache = cache(primary, updateinfo);
        let repository = Repository { alias: "a/b".into(), priority: 90, is_enabled: true };
        let mut index = Index::default();
        read(cache.path(), &repository, &BTreeSet::from(["pw-a", "pw-b", "pw-epoch"]), &mut index)?;
        Ok(index)
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &str) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn packages_and_advisories_are_read_however_they_are_packed() {
        let index = found(PRIMARY.as_bytes(), UPDATEINFO.as_bytes()).unwrap();
        let versions: Vec<(&str, &str)> =
            index.entries.iter().map(|entry| (entry.file.name.as_str(), entry.file.version.as_str())).collect();
        let expected = [
            ("pw-a", "1.0-1"),
            ("pw-a", "2.0-1"),
            ("pw-a", "3.0-1"),
            ("pw-b", "1.0-1"),
            ("pw-b", "2.0-1"),
            ("pw-epoch", "1:1.0-1"),
            ("pw-epoch", "1:2.0~rc1-1"),
        ];
        assert_eq!(versions, expected);
        let Entry { file, place, priority } = &index.entries[6];
        assert_eq!((file.source.as_str(), file.repository.as_str()), ("pw-epoch-2.0~rc1-1.src.rpm", "a/b"));
        assert_eq!((file.sha256.len(), file.size > 0, file.unpacked, *priority), (64, true, 8, 90));
        assert_eq!(
            (place.to_str().unwrap(), file.base_name.as_str()),
            ("pw-epoch-2.0~rc1-1.noarch.rpm", "pw-epoch-2.0~rc1-1.noarch.rpm")
        );
        let notices: Vec<(&str, &str, i64, bool)> = index
            .notices
            .iter()
            .map(|n| (n.advisory.id.as_str(), n.advisory.severity.as_str(), n.advisory.updated, n.reboots))
            .collect();
        let expected = [
            ("openSUSE-2026-1234", "important", 1_793_610_000, false),
            ("openSUSE-2026-9", "moderate", 1_793_710_000, false),
            ("openSUSE-2026-5", "low", 1_793_710_000, true),
        ];
        assert_eq!(notices, expected);
        assert_eq!(
            (index.notices[0].advisory.kind.as_str(), index.notices[0].advisory.cves.as_slice()),
            ("security", &["CVE-2026-0001".to_owned()][..])
        );
        assert_eq!(found(&gzip(PRIMARY), &zstd(UPDATEINFO)).unwrap(), index);
        assert_eq!(found(&zstd(PRIMARY), &gzip(UPDATEINFO)).unwrap(), index);
    }

    #[test]
    fn a_package_that_hints_at_a_restart_is_known_by_it() {
        let hint = "<rpm:entry name=\"installhint(reboot-needed)\"/><rpm:entry name=\"pw-b\"";
        let index = found(PRIMARY.replace("<rpm:entry name=\"pw-b\"", hint).as_bytes(), b"<updates/>").unwrap();
        let hinted: Vec<&str> =
            index.entries.iter().filter(|e| e.file.restarts).map(|e| e.file.name.as_str()).collect();
        assert_eq!(hinted, ["pw-b", "pw-b"]);
    }

    #[test]
    fn what_cannot_be_read_or_leads_elsewhere_is_refused() {
        let with = |primary: &str| found(primary.as_bytes(), b"<updates/>").unwrap_err();
        assert!(with("\u{fd}7zXZ").contains("neither plain nor packed"));
        let (whole, _) = PRIMARY.split_once("<format>").unwrap();
        assert!(with(whole).contains("ends within"));
        assert!(with(&PRIMARY.replace("href=\"pw-a-3", "href=\"../pw-a-3")).contains("no place in a repository"));
        assert!(with(&PRIMARY.replace("href=\"pw-a-3", "href=\"/pw-a-3")).contains("no place in a repository"));
        let other = found(PRIMARY.replace("\"sha256\"", "\"sha512\"").as_bytes(), b"<updates/>").unwrap();
        assert!(other.entries.iter().all(|entry| entry.file.sha256.is_empty()), "only SHA-256 counts");
        let packed = gzip(PRIMARY);
        assert!(found(&packed[..packed.len() / 2], b"<updates/>").is_err());
    }

    #[test]
    fn the_repository_that_comes_first_is_taken_and_two_files_of_one_version_are_none() {
        let entry = found(PRIMARY.as_bytes(), b"<updates/>").unwrap().entries.remove(0);
        let of = |priority, sha256: &str, alias: &str| {
            let mut other = entry.clone();
            (other.priority, other.file.sha256, other.file.repository) = (priority, sha256.into(), alias.into());
            other
        };
        let version = Version { name: "pw-a".into(), arch: "noarch".into(), version: "1.0-1".into() };
        let taken =
            |entries: &[Entry]| chosen(entries, &version).map(|entry| (entry.file.repository, entry.file.sha256));
        assert_eq!(taken(&[]), None);
        assert_eq!(taken(&[of(99, "1", "a"), of(50, "2", "b")]), Some(("b".into(), "2".into())));
        assert_eq!(taken(&[of(99, "1", "a"), of(99, "1", "b")]), Some(("a".into(), "1".into())));
        assert_eq!(taken(&[of(99, "1", "a"), of(99, "2", "b")]), Some(("a".into(), String::new())));
    }

    #[test]
    fn dates_are_seconds_or_civil() {
        assert_eq!(seconds("1793610000"), 1_793_610_000);
        assert_eq!(seconds("2026-11-02 09:00:00"), 1_793_610_000);
        assert_eq!((seconds("2026-11-02"), seconds("")), (1_793_577_600, 0));
    }
}
