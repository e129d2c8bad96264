//! The package manager that this machine uses.
//!
//! What the system calls itself (`ID` and `ID_LIKE` of os-release(5)) decides; where that says nothing, what is there.
//! A system whose files are replaced as a whole, by an image, is left alone. Windows is asked by Windows Update, macOS by Software Update.

use std::path::Path;

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::result::ResultReason;

use super::apt::Apt;
use super::dnf::Dnf;
use super::macos::Macos;
use super::windows::Windows;
use super::zypper::Zypper;
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, PastRun, Provider, Simulation,
    Space, Stamp,
};
use crate::platform::{self, OsRelease, Outdated};
use crate::provider::Unconfigured;

/// One of them.
#[derive(Clone, Debug)]
pub(crate) enum Native {
    Apt(Apt),
    Dnf(Dnf),
    Zypper(Zypper),
    Windows(Windows),
    Macos(Macos),
}

/// A kind of system, by the package manager that its packages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Apt,
    Dnf,
    Zypper,
    Windows,
    Macos,
}

/// Package managers that are used only where the machine's administrator says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Previews {
    pub(crate) zypper: bool,
    pub(crate) macos: bool,
}

impl Native {
    /// Finds it, or says why there is none.
    pub(crate) fn detect(previews: Previews) -> Result<Self, Failure> {
        let failed = |message: String| Failure::new(ResultReason::PackageManagerFailed, message);
        let os = platform::os_release().map_err(|error| failed(error.to_string()))?;
        let root = platform::root();
        if let Some(why) = is_image(&root) {
            return Err(failed(why));
        }
        match family(&os, &root) {
            Some(Family::Apt) => Ok(Self::Apt(Apt::new(os.id))),
            Some(Family::Dnf) => Dnf::detect(&root, os.id).map(Self::Dnf).map_err(failed),
            Some(Family::Zypper) if !previews.zypper => Err(failed(preview(&os.id, "zypper"))),
            Some(Family::Zypper) => Ok(Self::Zypper(Zypper::new(os.id))),
            Some(Family::Windows) => Windows::detect().map(Self::Windows).map_err(failed),
            Some(Family::Macos) if !previews.macos => Err(failed(preview(&os.id, "macos"))),
            Some(Family::Macos) => Macos::detect(&root).map(Self::Macos).map_err(failed),
            None => Err(failed(format!("{}: none of apt, dnf and zypper is there: this agent knows no other", os.id))),
        }
    }

    /// For people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Apt(_) => "apt",
            Self::Dnf(_) => "dnf",
            Self::Zypper(_) => "zypper",
            Self::Windows(_) => "Windows Update",
            Self::Macos(_) => "Software Update",
        }
    }
}

fn preview(id: &str, name: &str) -> String {
    format!(
        "{id}: {name} is a preview: docs/agent.md says what is not right yet, `preview_{name} = true` in agent.toml uses it"
    )
}

fn family(os: &OsRelease, root: &Path) -> Option<Family> {
    let there = |family: &Family| {
        let programs: &[&str] = match family {
            Family::Apt => &["usr/bin/apt-get", "usr/bin/dpkg"],
            Family::Zypper => &["usr/bin/zypper", "usr/bin/rpm"],
            // What names itself so is it; `detect` of each says what is missing.
            Family::Windows | Family::Macos => return true,
            // `Dnf::detect` says what is wrong with what it finds.
            Family::Dnf => {
                return ["dnf", "dnf5", "yum", "microdnf"].iter().any(|name| root.join("usr/bin").join(name).exists());
            }
        };
        programs.iter().all(|program| root.join(program).exists())
    };
    let named = std::iter::once(os.id.as_str()).chain(os.like.split_ascii_whitespace()).find_map(|id| match id {
        "debian" | "ubuntu" => Some(Family::Apt),
        "rhel" | "fedora" | "centos" | "amzn" => Some(Family::Dnf),
        "suse" | "sles" | "opensuse" => Some(Family::Zypper),
        "windows" | "windows-server" => Some(Family::Windows),
        "macos" => Some(Family::Macos),
        _ => None,
    });
    named.filter(there).or_else(|| [Family::Apt, Family::Dnf, Family::Zypper].into_iter().find(there))
}

/// Why packages are not to be changed one by one here.
fn is_image(root: &Path) -> Option<String> {
    let is_there = |path: &str| root.join(path).exists();
    if is_there("run/ostree-booted") {
        return Some(
            "this system is an image (ostree, bootc), which is updated as a whole: its packages are left alone"
                .to_owned(),
        );
    }
    let read_only = || platform::is_read_only(&root.join("usr")).unwrap_or_default();
    (is_there("usr/sbin/transactional-update") && read_only()).then(|| {
        "this system is read-only and updated in transactions (transactional-update): its packages are left alone"
            .to_owned()
    })
}

/// Calls the same function of whichever it is.
macro_rules! whichever {
    ($self:ident, $provider:ident => $call:expr) => {
        match $self {
            Self::Apt($provider) => $call,
            Self::Dnf($provider) => $call,
            Self::Zypper($provider) => $call,
            Self::Windows($provider) => $call,
            Self::Macos($provider) => $call,
        }
    };
}

impl Provider for Native {
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        whichever!(self, provider => provider.scan(refresh).await)
    }

    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        whichever!(self, provider => provider.simulate(direction, packages).await)
    }

    async fn artifacts(&self, direction: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        whichever!(self, provider => provider.artifacts(direction, packages).await)
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        whichever!(self, provider => provider.offered(packages).await)
    }

    async fn space(&self, changes: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure> {
        whichever!(self, provider => provider.space(changes, artifacts).await)
    }

    fn takes_proxy(&self) -> bool {
        whichever!(self, provider => provider.takes_proxy())
    }

    async fn download(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        missing: &[Artifact],
        archives: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure> {
        whichever!(self, provider => provider.download(direction, packages, missing, archives, line).await)
    }

    async fn save(&self, files: &[Artifact], archives: &Path, line: Line<'_>) -> Result<(), Failure> {
        whichever!(self, provider => provider.save(files, archives, line).await)
    }

    async fn rehearse(&self, direction: Direction, packages: &[PackageChange], archives: &Path) -> Result<(), Failure> {
        whichever!(self, provider => provider.rehearse(direction, packages, archives).await)
    }

    fn install_command(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        artifacts: &[Artifact],
        archives: &Path,
    ) -> CommandLine {
        whichever!(self, provider => provider.install_command(direction, packages, artifacts, archives))
    }

    async fn repair_commands(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        removals: &[PackageChange],
        archives: &Path,
    ) -> Result<Vec<CommandLine>, Failure> {
        whichever!(self, provider => provider.repair_commands(direction, packages, removals, archives).await)
    }

    async fn completing_commands(&self) -> Result<Vec<CommandLine>, Failure> {
        whichever!(self, provider => provider.completing_commands().await)
    }

    async fn unconfigured(&self) -> Result<Vec<Unconfigured>, Failure> {
        whichever!(self, provider => provider.unconfigured().await)
    }

    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure> {
        whichever!(self, provider => provider.installed(packages).await)
    }

    async fn past_runs(&self, since: Timestamp) -> Vec<PastRun> {
        whichever!(self, provider => provider.past_runs(since).await)
    }

    async fn outdated_services(&self) -> Option<Outdated> {
        platform::outdated_services().await
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        whichever!(self, provider => provider.is_busy())
    }

    fn holder(&self) -> Option<String> {
        whichever!(self, provider => provider.holder())
    }

    fn is_later(&self, a: &str, b: &str) -> bool {
        whichever!(self, provider => provider.is_later(a, b))
    }

    fn goes_back(&self, name: &str, source: &str) -> bool {
        whichever!(self, provider => provider.goes_back(name, source))
    }

    fn is_kernel(&self, name: &str) -> bool {
        whichever!(self, provider => provider.is_kernel(name))
    }

    fn is_image(&self, name: &str) -> bool {
        whichever!(self, provider => provider.is_image(name))
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        whichever!(self, provider => provider.stamp())
    }

    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
        whichever!(self, provider => provider.explain(output, code, packages))
    }

    fn remarks(&self, output: &str, packages: &[PackageChange]) -> String {
        whichever!(self, provider => provider.remarks(output, packages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn the_system_says_what_it_uses_and_else_what_is_there_counts() {
        use Family::{Apt, Dnf, Macos, Windows, Zypper};
        let all = ["usr/bin/apt-get", "usr/bin/dpkg", "usr/bin/dnf", "usr/bin/zypper", "usr/bin/rpm"];
        for (id, like, files, expected) in [
            ("debian", "", &all[..], Some(Apt)),
            ("linuxmint", "ubuntu debian", &all[..], Some(Apt)),
            ("rocky", "rhel centos fedora", &all[..], Some(Dnf)),
            ("fedora", "", &all[..], Some(Dnf)),
            ("amzn", "fedora", &all[..], Some(Dnf)),
            ("opensuse-leap", "suse opensuse", &all[..], Some(Zypper)),
            ("sles", "suse", &all[..], Some(Zypper)),
            ("windows-server", "", &[][..], Some(Windows)),
            ("macos", "", &[][..], Some(Macos)),
            ("own", "", &all[..2], Some(Apt)),
            ("own", "", &all[2..3], Some(Dnf)),
            ("own", "", &all[3..], Some(Zypper)),
            ("own", "", &["usr/bin/yum"][..], Some(Dnf)),
            ("fedora", "", &["usr/bin/dnf5"][..], Some(Dnf)),
            // It calls itself a child of one, and has the tools of another.
            ("own", "debian", &all[2..3], Some(Dnf)),
            ("alpine", "", &["sbin/apk"][..], None),
            ("own", "", &all[..1], None),
        ] {
            let os = OsRelease { id: id.into(), like: like.into(), version: String::new() };
            assert_eq!(family(&os, root(files).path()), expected, "{id} {files:?}");
        }
    }

    #[test]
    fn an_image_is_left_alone() {
        let says = |files: &[&str]| is_image(root(files).path()).unwrap_or_default();
        assert!(says(&["run/ostree-booted", "usr/bin/dnf"]).contains("updated as a whole"));
        assert_eq!(says(&["usr/bin/dnf"]), "");
        // The program alone says nothing: it can be installed anywhere.
        assert_eq!(says(&["usr/sbin/transactional-update"]), "");
    }
}
