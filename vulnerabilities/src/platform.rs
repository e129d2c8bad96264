//! Releases of distributions, as devices, OSV and CPEs name them. What can only be guessed is none of them.
//!
//! - Debian: the whole number; point releases are the same. Ubuntu: `22.04`. Ubuntu Pro is left out: whether a device has a
//!   subscription is not known.
//! - Red Hat Enterprise Linux, Rocky Linux, AlmaLinux: the major version, whose main stream has the packages of the newest minor
//!   release. Streams of extended support (EUS, AUS, E4S, TUS) are left out: whether a device has one is not known.
//! - SUSE Linux Enterprise Server, with its modules, by service pack (`15.5`), openSUSE Leap, and Tumbleweed without a release. LTSS and
//!   ESPOS are left out like the streams above, and products for one purpose (`for SAP Applications`, Micro) because a device
//!   does not tell them apart from the server.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::statement::{Names, Order};

/// A release of a distribution: `ID` of its os-release(5), and the release where there is one: `debian:12`, `sles:15.5`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Platform(String);

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Platform {
    /// As it is kept and shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of a device, by `ID` and `VERSION_ID` of its os-release(5), or a point release. Nothing for what is none of ours.
    pub fn of_device(id: &str, version: &str) -> Option<Self> {
        match id {
            "debian" | "rhel" | "rocky" | "almalinux" => Self::major(id, version),
            "ubuntu" | "opensuse-leap" => Self::minor(id, version),
            // The desktop has the server's packages and modules.
            "sles" | "sled" => Self::minor("sles", version).or_else(|| Self::service_pack(version, None)),
            "opensuse-tumbleweed" => Some(Self(id.to_owned())),
            _ => None,
        }
    }

    /// Of an ecosystem of OSV's, with its release (<https://ossf.github.io/osv-schema/#defined-ecosystems>).
    pub fn of_ecosystem(ecosystem: &str) -> Option<Self> {
        let (name, release) = ecosystem.split_once(':')?;
        match name {
            "Debian" => is_number(release).then(|| Self(format!("debian:{release}"))),
            "Ubuntu" => Self::minor("ubuntu", release.strip_suffix(":LTS").unwrap_or(release)),
            "Red Hat" => Self::of_red_hat(release),
            "Rocky Linux" => Self::major("rocky", release),
            "AlmaLinux" => Self::major("almalinux", release),
            "SUSE" => Self::of_suse(release),
            "openSUSE" if release == "Tumbleweed" => Some(Self("opensuse-tumbleweed".to_owned())),
            "openSUSE" => Self::minor("opensuse-leap", release.strip_prefix("Leap ")?),
            _ => None,
        }
    }

    /// Of a CPE 2.2 URI (`cpe:/o:redhat:enterprise_linux:9::baseos`) of a product of Red Hat's or SUSE's.
    pub fn of_cpe(cpe: &str) -> Option<Self> {
        let rest = cpe.strip_prefix("cpe:/o:").or_else(|| cpe.strip_prefix("cpe:/a:"))?;
        if let Some(product) = rest.strip_prefix("redhat:") {
            return Self::of_red_hat(product);
        }
        let parts: Vec<&str> = rest.split(':').collect();
        match *parts.as_slice() {
            ["suse", "sles" | "sled", version] => Self::service_pack(version, None),
            ["suse", "sles" | "sled", version, pack] => Self::service_pack(version, Some(pack.strip_prefix("sp")?)),
            ["suse", module, version, pack] if module.starts_with("sle-module-") && !is_extra(module) => {
                Self::service_pack(version, Some(pack.strip_prefix("sp")?))
            }
            ["opensuse", "leap", version] => Self::minor("opensuse-leap", version),
            ["opensuse", "tumbleweed"] => Some(Self("opensuse-tumbleweed".to_owned())),
            _ => None,
        }
    }

    /// `enterprise_linux:9::appstream`, of the release 10 on also `enterprise_linux:10.1`.
    fn of_red_hat(product: &str) -> Option<Self> {
        let version = product.strip_prefix("enterprise_linux:")?;
        Self::major("rhel", version.split_once("::").map_or(version, |(version, _)| version))
    }

    /// `Linux Enterprise Server 15 SP5`, `Linux Enterprise Module for Basesystem 15 SP5`.
    fn of_suse(release: &str) -> Option<Self> {
        let product = release.strip_prefix("Linux Enterprise ")?;
        let server = product.strip_prefix("Server ").or_else(|| product.strip_prefix("Desktop "));
        let version = server.or_else(|| {
            let module = product.strip_prefix("Module for ")?;
            let (name, version) = module.split_at(module.find(|c: char| c.is_ascii_digit())?);
            (!is_extra(&name.to_lowercase().replace(' ', "-"))).then_some(version)
        })?;
        match version.split_once(" SP") {
            Some((version, pack)) => Self::service_pack(version, Some(pack)),
            None => Self::service_pack(version, None),
        }
    }

    fn service_pack(version: &str, pack: Option<&str>) -> Option<Self> {
        let pack = pack.unwrap_or("0");
        (is_number(version) && is_number(pack)).then(|| Self(format!("sles:{version}.{pack}")))
    }

    fn major(id: &str, version: &str) -> Option<Self> {
        let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
        (is_number(major) && is_number(minor)).then(|| Self(format!("{id}:{major}")))
    }

    fn minor(id: &str, version: &str) -> Option<Self> {
        let (major, minor) = version.split_once('.')?;
        (is_number(major) && is_number(minor)).then(|| Self(format!("{id}:{version}")))
    }

    /// Whose order its versions have.
    pub fn order(&self) -> Order {
        if self.is_deb() { Order::Deb } else { Order::Rpm }
    }

    /// What OSV's records name. Debian's and Ubuntu's name source packages; of the others some do and some do not, whatever
    /// the schema says.
    pub(crate) fn names(&self) -> Names {
        if self.is_deb() { Names::Source } else { Names::Either }
    }

    fn is_deb(&self) -> bool {
        self.0.starts_with("debian:") || self.0.starts_with("ubuntu:")
    }

    /// The source package by which advisories know a device's. Signed kernels are built from a package of their own, with the
    /// binaries' versions those of the kernel that they were signed of (Debian's `linux-signed-amd64`, Ubuntu's
    /// `linux-signed-hwe-6.5`): then the binary's version is the source's.
    pub fn signed_kernel(&self, source: &str) -> Option<String> {
        let rest = source.strip_prefix("linux-signed").filter(|_| self.is_deb())?;
        match rest {
            "" | "-amd64" | "-arm64" | "-i386" => Some("linux".to_owned()),
            _ if self.0.starts_with("ubuntu:") => Some(format!("linux{rest}")),
            _ => None,
        }
    }
}

/// Modules that only some devices are entitled to, with versions of their own.
fn is_extra(module: &str) -> bool {
    ["live-patching", "ltss", "espos", "sap"].iter().any(|extra| module.contains(extra))
}

/// At most four digits, the first of which is no 0 unless it is the only one or Ubuntu's month (`22.04`).
fn is_number(text: &str) -> bool {
    (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(platform: Option<Platform>) -> Option<String> {
        platform.map(|it| it.to_string())
    }

    #[test]
    fn devices_are_known_by_their_os_release() {
        for (id, version, expected) in [
            ("debian", "12", Some("debian:12")),
            ("debian", "12.11", Some("debian:12")),
            ("debian", "", None),
            ("debian", "trixie/sid", None),
            ("ubuntu", "22.04", Some("ubuntu:22.04")),
            ("ubuntu", "22", None),
            ("rhel", "9.4", Some("rhel:9")),
            ("rocky", "9.3", Some("rocky:9")),
            ("almalinux", "8.10", Some("almalinux:8")),
            ("sles", "15.5", Some("sles:15.5")),
            ("sled", "15.5", Some("sles:15.5")),
            ("sles", "15", Some("sles:15.0")),
            ("opensuse-leap", "15.6", Some("opensuse-leap:15.6")),
            ("opensuse-tumbleweed", "20260101", Some("opensuse-tumbleweed")),
            ("raspbian", "12", None),
            ("centos", "9", None),
            ("windows", "10.0.20348", None),
        ] {
            assert_eq!(text(Platform::of_device(id, version)).as_deref(), expected, "{id} {version}");
        }
    }

    #[test]
    fn ecosystems_are_those_of_osv() {
        for (ecosystem, expected) in [
            ("Debian:12", Some("debian:12")),
            ("Debian", None),
            ("Debian:unstable", None),
            ("Ubuntu:22.04:LTS", Some("ubuntu:22.04")),
            ("Ubuntu:23.10", Some("ubuntu:23.10")),
            ("Ubuntu:Pro:18.04:LTS", None),
            ("Ubuntu:Pro:FIPS:16.04:LTS", None),
            ("Red Hat:enterprise_linux:9::baseos", Some("rhel:9")),
            ("Red Hat:enterprise_linux:10.1", Some("rhel:10")),
            ("Red Hat:rhel_aus:8.4::appstream", None),
            ("Red Hat:rhel_eus:9.2::baseos", None),
            ("Red Hat:openshift:4.14::el9", None),
            ("Rocky Linux:9", Some("rocky:9")),
            ("AlmaLinux:8", Some("almalinux:8")),
            ("SUSE:Linux Enterprise Server 15 SP5", Some("sles:15.5")),
            ("SUSE:Linux Enterprise Module for Basesystem 15 SP5", Some("sles:15.5")),
            ("SUSE:Linux Enterprise Live Patching 15 SP5", None),
            ("SUSE:Linux Enterprise Module for SAP Applications 15 SP5", None),
            ("SUSE:Linux Enterprise Server 15 SP3-LTSS", None),
            ("SUSE:Linux Enterprise Server for SAP Applications 15 SP5", None),
            ("openSUSE:Leap 15.5", Some("opensuse-leap:15.5")),
            ("openSUSE:Tumbleweed", Some("opensuse-tumbleweed")),
            ("crates.io", None),
            ("Alpine:v3.20", None),
        ] {
            assert_eq!(text(Platform::of_ecosystem(ecosystem)).as_deref(), expected, "{ecosystem}");
        }
    }

    #[test]
    fn cpes_are_those_of_the_vendors() {
        for (cpe, expected) in [
            ("cpe:/o:redhat:enterprise_linux:9::baseos", Some("rhel:9")),
            ("cpe:/a:redhat:enterprise_linux:9::appstream", Some("rhel:9")),
            ("cpe:/o:redhat:enterprise_linux:9", Some("rhel:9")),
            ("cpe:/o:redhat:enterprise_linux:10.2", Some("rhel:10")),
            ("cpe:/a:redhat:rhel_eus:9.2::appstream", None),
            ("cpe:/o:suse:sles:15:sp5", Some("sles:15.5")),
            ("cpe:/o:suse:sle-module-basesystem:15:sp5", Some("sles:15.5")),
            ("cpe:/o:suse:sle-module-live-patching:15:sp5", None),
            ("cpe:/o:suse:sles-ltss:15:sp3", None),
            ("cpe:/o:suse:sles_sap:15:sp5", None),
            ("cpe:/o:opensuse:leap:15.5", Some("opensuse-leap:15.5")),
            ("cpe:/o:opensuse:tumbleweed", Some("opensuse-tumbleweed")),
            ("cpe:2.3:o:redhat:enterprise_linux:9:*:*:*:*:*:*:*", None),
        ] {
            assert_eq!(text(Platform::of_cpe(cpe)).as_deref(), expected, "{cpe}");
        }
    }

    #[test]
    fn signed_kernels_are_known_by_the_kernel() {
        let debian = Platform::of_ecosystem("Debian:12").unwrap();
        let ubuntu = Platform::of_ecosystem("Ubuntu:22.04:LTS").unwrap();
        assert_eq!(debian.signed_kernel("linux-signed-amd64").as_deref(), Some("linux"));
        assert_eq!(debian.signed_kernel("linux-signed-hwe"), None);
        assert_eq!(debian.signed_kernel("linux"), None);
        assert_eq!(ubuntu.signed_kernel("linux-signed-hwe-6.5").as_deref(), Some("linux-hwe-6.5"));
        assert_eq!(ubuntu.signed_kernel("linux-signed").as_deref(), Some("linux"));
    }
}
