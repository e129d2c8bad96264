//! A device of rpm packages: an overlay over a root with Debian's dnf 4 (`PATCHWARDEN_DNF_ROOT`) or dnf 5
//! (`PATCHWARDEN_DNF5_ROOT`), which calls itself Rocky Linux and has an rpm database and a repository of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::Dnf;
use crate::device::Device;
pub(super) use crate::device::SLOW;
use crate::rpm;
pub(super) use crate::rpm::{Rpm, build, start, versions};

const OS_RELEASE: &str = "NAME=\"Rocky Linux\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\nPLATFORM_ID=\"platform:el9\"\n";

const CONFIGURATION: &str = "[main]\ngpgcheck=1\ninstallonly_limit=3\nclean_requirements_on_remove=True\nbest=True\nskip_if_unavailable=False\n";

/// What every system has: a shell for scripts, and which release it is.
const RELEASE: Rpm = Rpm {
    tags: "Provides: /bin/sh\nProvides: system-release = 9.4-1\nProvides: system-release(releasever) = 9\n",
    ..Rpm::new("rocky-release", "9.4-1")
};

pub(super) fn installed() -> Vec<Rpm> {
    let mut packages: Vec<Rpm> =
        ["pw-a", "pw-b", "pw-slow", "pw-bad", "pw-sad", "pw-needs", "pw-greedy", "pw-victim", "pw-clash"]
            .map(|name| Rpm::new(name, "1.0-1"))
            .into();
    packages.push(RELEASE);
    packages.push(Rpm::new("pw-epoch", "1:1.0-1"));
    packages.push(Rpm { tags: KERNEL, ..Rpm::new("kernel-core", "5.14.0-1") });
    packages
}

/// Several versions of such a package are kept.
pub(super) const KERNEL: &str = "Provides: installonlypkg(kernel)";

pub(super) fn offered() -> Vec<Rpm> {
    vec![
        Rpm::new("pw-a", "2.0-1"),
        Rpm::new("pw-a", "3.0-1"),
        Rpm::new("pw-b", "2.0-1"),
        Rpm { post: SLOW, ..Rpm::new("pw-slow", "2.0-1") },
        Rpm { pre: "echo sad >&2; exit 3", ..Rpm::new("pw-bad", "2.0-1") },
        Rpm { post: "echo sad >&2; exit 3", ..Rpm::new("pw-sad", "2.0-1") },
        Rpm { tags: "Requires: pw-new\nRecommends: pw-suggested\n", ..Rpm::new("pw-needs", "2.0-1") },
        Rpm::new("pw-new", "1.0-1"),
        Rpm::new("pw-suggested", "1.0-1"),
        Rpm { tags: "Obsoletes: pw-victim\n", ..Rpm::new("pw-greedy", "2.0-1") },
        Rpm { file: "/usr/share/pw-b-1/1.0", ..Rpm::new("pw-clash", "2.0-1") },
        Rpm::new("pw-epoch", "1:2.0~rc1-1"),
        Rpm { tags: KERNEL, ..Rpm::new("kernel-core", "5.14.0-2") },
    ]
}

/// Advisories of `pw-a` 2.0, passed over on the way to 3.0, of 3.0, and of `pw-b`.
const UPDATE_INFO: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<updates>
<update from="x" status="final" type="security" version="1"><id>RHSA-2026:1234</id><title>Important: pw-a security update</title>
<issued date="2026-11-02 09:00:00"/><updated date="2026-11-03 09:00:00"/><severity>Important</severity><description>d</description>
<references><reference href="x" id="CVE-2026-0001" type="cve"/><reference href="y" id="777" type="bugzilla"/></references>
<pkglist><collection><name>c</name><package name="pw-a" version="2.0" release="1" epoch="0" arch="noarch"><filename>f</filename></package></collection></pkglist></update>
<update from="x" status="final" type="enhancement" version="1"><id>RHEA-2026:9</id><title>pw-a enhancement</title>
<updated date="2026-11-20 10:00:00"/><severity>None</severity><description>d</description><references/>
<pkglist><collection><name>c</name><package name="pw-a" version="3.0" release="1" epoch="0" arch="noarch"><filename>f</filename></package></collection></pkglist></update>
<update from="x" status="final" type="bugfix" version="1"><id>RHBA-2026:5</id><title>pw-b bug fix</title>
<updated date="2026-11-01 10:00:00"/><severity>None</severity><description>d</description><references/>
<pkglist><collection><name>c</name><package name="pw-b" version="2.0" release="1" epoch="0" arch="noarch"><filename>f</filename><reboot_suggested>True</reboot_suggested></package></collection></pkglist></update>
</updates>
"#;

fn base_root(dnf: Dnf) -> PathBuf {
    let variable = dnf.either("PATCHWARDEN_DNF_ROOT", "PATCHWARDEN_DNF5_ROOT");
    let root = std::env::var_os(variable);
    root.unwrap_or_else(|| panic!("{variable} names a root file system: these tests are run by \"make agent-tests\""))
        .into()
}

/// A device whose system is of rpm packages.
fn bare(dnf: Dnf) -> Device {
    let device = Device::bare(&base_root(dnf));
    device.started_long_ago();
    // The root is Debian's: its own release file is a link to what dpkg manages.
    fs::remove_file(device.root.join("etc/os-release")).unwrap();
    device.write("etc/os-release", OS_RELEASE);
    device.write("etc/dnf/dnf.conf", CONFIGURATION);
    // Debian puts plugins into one package that are not there elsewhere unless they are wanted, and does not call dnf 5 dnf.
    device.chroot(dnf.either(
        "rm -f /etc/dnf/plugins/local.conf; rm /usr/lib/python3/dist-packages/dnf-plugins/show_leaves.py",
        "rm /etc/dnf/libdnf5-plugins/local.conf; ln -s dnf5 /usr/bin/dnf",
    ));
    device.chroot("mkdir -p /etc/yum.repos.d /srv/repo /var/lib/rpm");
    device
}

/// Every package of [`installed`] and [`offered`], built once for all tests.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| rpm::built("rpms", &bare(Dnf::Four), &[installed(), offered()].concat()))
}

/// A second repository of the device, with these packages.
pub(super) fn offer(device: &Device, id: &str, packages: &[Rpm]) {
    let place = format!("/srv/{id}");
    device.chroot(&format!("mkdir -p {place}"));
    rpm::build_into(device, &place, packages);
    device.chroot(&format!("createrepo_c -q --no-database {place}"));
    add_repository(device, id, &format!("file://{place}"));
}

pub(super) fn add_repository(device: &Device, id: &str, uri: &str) {
    let text = format!("[{id}]\nname={id}\nbaseurl={uri}\ngpgcheck=0\n");
    // dnf reads it after the first one: of two builds of a version it takes the one that it has read first.
    device.write(&format!("etc/yum.repos.d/z-{id}.repo"), &text);
}

/// The device, with its packages installed and its repository offered as `file:`.
pub(super) fn make(dnf: Dnf) -> Device {
    let device = bare(dnf);
    rpm::fill(&device, built(), &installed(), &offered());
    index(&device);
    use_repository(&device, "file:///srv/repo", "gpgcheck=0");
    device
}

/// Makes the repository's index anew.
pub(crate) fn index(device: &Device) {
    rpm::index(device, UPDATE_INFO);
}

pub(crate) fn use_repository(device: &Device, uri: &str, more: &str) {
    device.write("etc/yum.repos.d/test.repo", &format!("[test]\nname=Test\nbaseurl={uri}\n{more}\n"));
}
