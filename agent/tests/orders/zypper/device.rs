//! A device of rpm packages: an overlay over a root with Debian's zypper (`PATCHWARDEN_ZYPPER_ROOT`), which calls itself openSUSE
//! Leap and has an rpm database and a repository of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::device::{Device, SLOW};
use crate::rpm::{self, Rpm};

const OS_RELEASE: &str =
    "NAME=\"openSUSE Leap\"\nID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\nVERSION_ID=\"15.6\"\n";

/// The line of SUSE's own file that matters here.
const CONFIGURATION: &str = "[main]\nmultiversion = provides:multiversion(kernel)\n";

/// What every system has: a shell for scripts.
const RELEASE: Rpm = Rpm { tags: "Provides: /bin/sh\n", ..Rpm::new("openSUSE-release", "15.6-1") };

const KERNEL: &str = "Provides: multiversion(kernel)\n";

pub(super) fn installed() -> Vec<Rpm> {
    let names =
        ["pw-a", "pw-b", "pw-slow", "pw-bad", "pw-sad", "pw-needs", "pw-greedy", "pw-victim", "pw-clash", "pw-z"];
    let mut packages: Vec<Rpm> = names.map(|name| Rpm::new(name, "1.0-1")).into();
    packages.push(RELEASE);
    packages.push(Rpm::new("pw-epoch", "1:1.0-1"));
    packages.push(Rpm { file: "/etc/pw-conf.conf", ..Rpm::new("pw-conf", "1.0-1") });
    packages.push(Rpm { tags: KERNEL, ..Rpm::new("kernel-default", "5.14.0-1") });
    packages
}

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
        Rpm { file: "/etc/pw-conf.conf", ..Rpm::new("pw-conf", "2.0-1") },
        Rpm { tags: KERNEL, ..Rpm::new("kernel-default", "5.14.1-1") },
        Rpm::new("pw-z", "2.0-1"),
    ]
}

/// Advisories of `pw-a` 2.0, passed over on the way to 3.0, of 3.0, and of `pw-b`, as SUSE writes them.
const UPDATE_INFO: &str = include_str!("../../data/zypper/updateinfo.xml");

fn base_root() -> PathBuf {
    std::env::var_os("PATCHWARDEN_ZYPPER_ROOT")
        .expect(
            "PATCHWARDEN_ZYPPER_ROOT names a root file system with zypper: these tests are run by \"make agent-tests\"",
        )
        .into()
}

/// A device whose system is of rpm packages.
fn bare() -> Device {
    let device = Device::bare(&base_root());
    device.started_long_ago();
    // The root is Debian's: its own release file is a link to what dpkg manages.
    fs::remove_file(device.root.join("etc/os-release")).unwrap();
    device.write("etc/os-release", OS_RELEASE);
    device.chroot("mkdir -p /etc/zypp/repos.d /srv/repo /var/lib/rpm");
    device.write("etc/zypp/zypp.conf", CONFIGURATION);
    device
}

/// Every package of [`installed`] and [`offered`], built once for all tests.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| rpm::built("zypper-rpms", &bare(), &[installed(), offered()].concat()))
}

/// The device, with its packages installed and its repository offered as `file:`.
pub(super) fn make() -> Device {
    let device = bare();
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
    let text = format!("[test]\nname=Test\nenabled=1\nautorefresh=1\nbaseurl={uri}\ntype=rpm-md\n{more}\n");
    device.write("etc/zypp/repos.d/test.repo", &text);
}
