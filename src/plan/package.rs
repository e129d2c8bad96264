//! Packages and versions as update ids tell them.

use std::cmp::Ordering;

use patchwarden_protocol::versions::{deb, rpm};

use super::model::{Catalogue, Invalid, Name};

/// A package in a version: what a package URL such as `pkg:deb/debian/openssl@3.0.17-1~deb12u3` or
/// `pkg:rpm/rocky/openssl-libs@3.0.7-27.el9?epoch=1` names (<https://github.com/package-url/purl-spec>).
#[derive(Clone, Debug)]
pub struct PackageVersion {
    /// All before the `@`: `pkg:deb/debian/openssl`.
    package: Name,
    /// As its package manager writes it, which takes it for a version.
    version: Box<str>,
    order: Order,
}

/// By whose order versions are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// dpkg's: deb-version(7).
    Deb,
    /// rpm's: rpm-version(7).
    Rpm,
}

impl Order {
    /// Of the versions of what has this id. Advisories have none, and neither have applications and what Apple offers: how their
    /// versions are written is each vendor's own matter.
    fn of(id: &str) -> Option<Self> {
        if id.starts_with("pkg:deb/") { Some(Self::Deb) } else { id.starts_with(RPM).then_some(Self::Rpm) }
    }

    fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Self::Deb => deb::compare(a, b),
            Self::Rpm => rpm::compare(a, b),
        }
    }

    fn is_valid(self, version: &str) -> bool {
        match self {
            Self::Deb => deb::is_valid(version),
            Self::Rpm => rpm::is_valid(version),
        }
    }
}

/// Of Debian's `1.0` is `1.0-0`, and both are `0:1.0`.
impl PartialEq for PackageVersion {
    fn eq(&self, other: &Self) -> bool {
        self.package == other.package && self.order.compare(&self.version, &other.version).is_eq()
    }
}

impl Eq for PackageVersion {}

/// All of an update's id but its version: the same for every version of a package, and the whole id of an advisory.
pub fn package_of(id: &str) -> &str {
    split(id).map_or(id, |(package, _)| package)
}

/// Ids of a package, with their numbers.
pub(super) fn of_package<'c>(catalogue: &'c Catalogue, package: &'c str) -> impl Iterator<Item = (&'c Name, usize)> {
    catalogue.ids_from(package).filter(move |(id, _)| package_of(id) == package)
}

/// The version in an update's id, as its package manager writes it; none for an advisory.
pub fn version_of(id: &str) -> Option<String> {
    let (_, version) = split(without_epoch(id))?;
    let version = percent_encoding::percent_decode_str(version).decode_utf8().ok()?;
    Some(epoch_of(id).map_or_else(|| version.to_string(), |epoch| format!("{epoch}:{version}")))
}

/// The oldest of these versions of what has this id, by its package manager's order; none where there is no order.
pub fn oldest<'v>(id: &str, versions: impl Iterator<Item = &'v str>) -> Option<&'v str> {
    let order = Order::of(id)?;
    versions.min_by(|a, b| order.compare(a, b))
}

/// Whether it stands for several ids: it has a `*`, or a `?` that is not the one before the epoch of an rpm package.
pub fn is_pattern(id: &str) -> bool {
    without_epoch(id).contains(['*', '?'])
}

/// The source package of Debian's, or of one of its kind, in an update's id, decoded.
pub fn deb_source_of(id: &str) -> Option<String> {
    let (_, source) = package_of(id).strip_prefix("pkg:deb/")?.split_once('/')?;
    Some(percent_encoding::percent_decode_str(source).decode_utf8().ok()?.into_owned())
}

impl PackageVersion {
    /// Of an update's id.
    pub fn parse(id: &str) -> Result<Self, Invalid> {
        let unknown = || {
            Invalid(format!(
                "`{id}` is no Debian or rpm package in one version (pkg:deb/...@VERSION, pkg:rpm/...@VERSION-RELEASE, with ?epoch= where there is one): later cannot be told"
            ))
        };
        let order = Order::of(id).ok_or_else(unknown)?;
        let version = version_of(id).filter(|version| order.is_valid(version)).ok_or_else(unknown)?;
        Ok(Self { package: package_of(id).into(), version: version.into(), order })
    }

    /// The package.
    pub(super) fn package(&self) -> &Name {
        &self.package
    }

    /// Those of `known` that a device with `installed`, as the package manager writes it, lacks. What cannot be read does
    /// not count as lacking anything.
    pub(super) fn lacked_by<'k, T>(known: &'k [(Self, T)], installed: &'k str) -> impl Iterator<Item = &'k T> {
        // All are of one package.
        let is_readable = known.first().is_some_and(|(it, _)| it.order.is_valid(installed));
        let lacked =
            known.iter().filter(move |(it, _)| is_readable && it.order.compare(installed, &it.version).is_lt());
        lacked.map(|(_, value)| value)
    }

    /// Whether `id` is of the same package in this version or a later one.
    pub fn is_reached_by(&self, id: &str) -> bool {
        package_of(id) == &*self.package
            && Self::parse(id).is_ok_and(|other| self.order.compare(&other.version, &self.version) != Ordering::Less)
    }
}

/// What ids of rpm packages begin with.
const RPM: &str = "pkg:rpm/";

/// What stands before the epoch of an rpm package: a qualifier, as package URLs have it.
const EPOCH: &str = "?epoch=";

/// The epoch in the id of an rpm package.
fn epoch_of(id: &str) -> Option<&str> {
    let (_, epoch) = id.strip_prefix(RPM)?.split_once(EPOCH)?;
    Some(epoch).filter(|epoch| !epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_digit()))
}

fn without_epoch(id: &str) -> &str {
    let epoch = epoch_of(id).map_or(0, |epoch| EPOCH.len() + epoch.len());
    id.get(..id.len() - epoch).unwrap_or(id)
}

/// An `@` in a package URL's name is encoded; subpaths, and qualifiers but the epoch, are not part of our ids.
fn split(id: &str) -> Option<(&str, &str)> {
    if id.starts_with("pkg:") { id.rsplit_once('@') } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_same_however_it_is_written_and_for_its_package_only() {
        let of = |id: &str| PackageVersion::parse(id).expect("a package in a version");
        assert_eq!(of("pkg:deb/debian/openssl@0:1.0-0"), of("pkg:deb/debian/openssl@1.0"));
        assert_ne!(of("pkg:deb/debian/openssl@1.0"), of("pkg:deb/debian/openssl@1.1"));
        assert_ne!(of("pkg:deb/debian/openssl@1.0"), of("pkg:deb/debian/zlib@1.0"));
    }

    #[test]
    fn rpm_versions_are_in_rpms_order_and_the_epoch_is_part_of_them() {
        let of = |version: &str| PackageVersion::parse(&format!("pkg:rpm/rocky/vim@{version}")).expect("a version");
        let rising =
            ["9.0~rc1-1", "9.0-1", "9.0%5E20260101-1", "9.0.1-1", "9.0.1-1.el9_4", "9.0.1-10", "8.0-1?epoch=2"];
        for (place, version) in rising.iter().enumerate() {
            let reached: Vec<&str> = rising
                .into_iter()
                .filter(|other| of(version).is_reached_by(&format!("pkg:rpm/rocky/vim@{other}")))
                .collect();
            assert_eq!(reached, rising[place..], "from {version}");
        }
        assert_eq!(of("1.0-1"), of("1.0-1?epoch=0"));
        assert!(!of("1.0-1").is_reached_by("pkg:rpm/rocky/vim-minimal@2.0-1"));
        assert!(!of("1.0-1").is_reached_by("RHSA-2026:1"));
        assert_eq!(version_of("pkg:rpm/rocky/vim@9.0%5E1-1?epoch=2").as_deref(), Some("2:9.0^1-1"));
        let known = [(of("1.0-1"), "1.0-1"), (of("1.0~rc1-1?epoch=1"), "1:1.0~rc1-1")];
        let lacked = |installed: &str| PackageVersion::lacked_by(&known, installed).copied().collect::<Vec<_>>();
        assert_eq!((lacked("7.0-1"), lacked("1:1.0-1"), lacked("0.9-1").len()), (vec!["1:1.0~rc1-1"], vec![], 2));
        assert_eq!(oldest("pkg:rpm/rocky/vim@1-1", ["1.0-1", "1.0~rc1-1"].into_iter()), Some("1.0~rc1-1"));
        assert_eq!(oldest("pkg:generic/kubectl@1", ["1"].into_iter()), None);
        for bad in [
            "RHSA-2026:1",
            "pkg:generic/kubectl@1.2",
            "pkg:rpm/rocky/vim",
            "pkg:rpm/rocky/vim@1/2",
            "pkg:rpm/rocky/vim@1-1?epoch=x",
        ] {
            let Err(Invalid(why)) = PackageVersion::parse(bad) else { panic!("{bad}") };
            assert!(why.starts_with(&format!("`{bad}` is no Debian or rpm package in one version")), "{why}");
        }
    }

    #[test]
    fn the_epoch_of_an_rpm_package_makes_no_pattern() {
        for id in ["RHSA-2026:1", "pkg:rpm/rocky/vim@9.0-1?epoch=2", "pkg:deb/debian/vim@2%3A9.0-1"] {
            assert!(!is_pattern(id), "{id}");
        }
        for pattern in
            ["pkg:rpm/rocky/vim@*?epoch=2", "pkg:rpm/rocky/vim@9.0-1?epoch=?", "pkg:rpm/rocky/vi?@9-1?epoch=2"]
        {
            assert!(is_pattern(pattern), "{pattern}");
        }
        assert!(is_pattern("pkg:deb/debian/vim@9.0-1?epoch=2") && is_pattern("KB503135?"));
    }

    #[test]
    fn the_source_is_told_of_debian_packages_only() {
        assert_eq!(deb_source_of("pkg:deb/debian/g%2B%2B@1.0").as_deref(), Some("g++"));
        assert_eq!(deb_source_of("pkg:rpm/redhat/openssl@1.0"), None);
        assert_eq!(deb_source_of("RHSA-2026:1"), None);
    }
}
