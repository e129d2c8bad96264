//! Packages and versions as update ids tell them.

use std::cmp::Ordering;

use patchwarden_protocol::versions::deb;

use super::model::{Catalogue, Invalid, Name};

/// A package in a version: what a package URL such as `pkg:deb/debian/openssl@3.0.17-1~deb12u3` names
/// (<https://github.com/package-url/purl-spec>).
#[derive(Clone, Debug)]
pub struct PackageVersion {
    /// All before the `@`: `pkg:deb/debian/openssl`.
    package: Name,
    /// All after it, decoded; dpkg takes it for a version.
    version: Box<str>,
}

/// `1.0` is `1.0-0`, and both are `0:1.0`.
impl PartialEq for PackageVersion {
    fn eq(&self, other: &Self) -> bool {
        self.package == other.package && deb::compare(&self.version, &other.version).is_eq()
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

/// The version in an update's id, decoded; none for an advisory.
pub fn version_of(id: &str) -> Option<String> {
    let (_, version) = split(id)?;
    Some(percent_encoding::percent_decode_str(version).decode_utf8().ok()?.into_owned())
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
                "`{id}` is not a Debian package in one version (pkg:deb/...@VERSION): later cannot be told"
            ))
        };
        let package = package_of(id);
        let version = version_of(id).filter(|_| package.starts_with("pkg:deb/")).ok_or_else(unknown)?;
        if deb::is_valid(&version) {
            Ok(Self { package: package.into(), version: version.into() })
        } else {
            Err(unknown())
        }
    }

    /// The package.
    pub(super) fn package(&self) -> &Name {
        &self.package
    }

    /// Those of `known` that a device with `installed`, as the package manager writes it, lacks. What cannot be read does
    /// not count as lacking anything.
    pub(super) fn lacked_by<'k, T>(known: &'k [(Self, T)], installed: &'k str) -> impl Iterator<Item = &'k T> {
        let is_readable = deb::is_valid(installed);
        let lacked = known.iter().filter(move |(it, _)| is_readable && deb::compare(installed, &it.version).is_lt());
        lacked.map(|(_, value)| value)
    }

    /// Whether `id` is of the same package in this version or a later one, by Debian's order of versions (deb-version(7)).
    pub fn is_reached_by(&self, id: &str) -> bool {
        package_of(id) == &*self.package
            && Self::parse(id).is_ok_and(|other| deb::compare(&other.version, &self.version) != Ordering::Less)
    }
}

/// An `@` in a package URL's name is encoded; qualifiers and subpaths are not part of our ids.
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
    fn the_source_is_told_of_debian_packages_only() {
        assert_eq!(deb_source_of("pkg:deb/debian/g%2B%2B@1.0").as_deref(), Some("g++"));
        assert_eq!(deb_source_of("pkg:rpm/redhat/openssl@1.0"), None);
        assert_eq!(deb_source_of("RHSA-2026:1"), None);
    }
}
