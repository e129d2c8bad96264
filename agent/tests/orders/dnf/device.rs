//! A device of rpm packages: an overlay over a root with Debian's dnf (`PATCHWARDEN_DNF_ROOT`), which calls itself Rocky Linux
//! and has an rpm database and a repository of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::device::Device;

const OS_RELEASE: &str = "NAME=\"Rocky Linux\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\nPLATFORM_ID=\"platform:el9\"\n";

const CONFIGURATION: &str = "[main]\ngpgcheck=1\ninstallonly_limit=3\nclean_requirements_on_remove=True\nbest=True\nskip_if_unavailable=False\n";

pub(super) const SLOW: &str = "touch /var/log/slow.begun; sleep 4; touch /var/log/slow.done";

/// One package of a repository.
#[derive(Clone, Copy)]
pub(super) struct Rpm {
    pub(super) name: &'static str,
    /// `[EPOCH:]VERSION-RELEASE`.
    pub(super) version: &'static str,
    /// Lines of its preamble.
    pub(super) tags: &'static str,
    pub(super) pre: &'static str,
    pub(super) post: &'static str,
    /// A file more.
    pub(super) file: &'static str,
}

impl Rpm {
    pub(super) const fn new(name: &'static str, version: &'static str) -> Self {
        Self { name, version, tags: "", pre: "", post: "", file: "" }
    }

    fn file_name(&self) -> String {
        format!("{}-{}.noarch.rpm", self.name, self.version.split_once(':').map_or(self.version, |(_, bare)| bare))
    }

    fn spec(&self) -> String {
        let Self { name, version, tags, pre, post, file } = self;
        let (epoch, bare) = version.split_once(':').unwrap_or(("0", version));
        let (version, release) = bare.split_once('-').unwrap();
        let epoch = if epoch == "0" { String::new() } else { format!("Epoch: {epoch}\n") };
        let mut text = format!(
            "%global __os_install_post %{{nil}}\nName: {name}\n{epoch}Version: {version}\nRelease: {release}\n\
             Summary: test\nLicense: MIT\nBuildArch: noarch\n{tags}\n%description\ntest\n%install\n\
             mkdir -p %{{buildroot}}/usr/share/{name}-{release} %{{buildroot}}/usr/share/{name}\n\
             echo {version} >%{{buildroot}}/usr/share/{name}-{release}/{version}\n"
        );
        if !file.is_empty() {
            writeln!(text, "mkdir -p %{{buildroot}}$(dirname {file}); echo {version} >%{{buildroot}}{file}").unwrap();
        }
        if !pre.is_empty() {
            writeln!(text, "%pre\n{pre}").unwrap();
        }
        writeln!(text, "%post\necho {bare} >>/var/log/{name}.configured\n{post}").unwrap();
        writeln!(text, "%files\n/usr/share/{name}-{release}\n{file}").unwrap();
        text
    }
}

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

fn base_root() -> PathBuf {
    std::env::var_os("PATCHWARDEN_DNF_ROOT")
        .expect("PATCHWARDEN_DNF_ROOT names a root file system with dnf: these tests are run by \"make agent-tests\"")
        .into()
}

/// A device whose system is of rpm packages.
fn bare() -> Device {
    let device = Device::bare(&base_root());
    // The root is Debian's: its own release file is a link to what dpkg manages.
    fs::remove_file(device.root.join("etc/os-release")).unwrap();
    device.write("etc/os-release", OS_RELEASE);
    device.write("etc/dnf/dnf.conf", CONFIGURATION);
    // Debian puts plugins into one package that are not there elsewhere unless they are wanted.
    device.chroot("rm -f /etc/dnf/plugins/local.conf; rm /usr/lib/python3/dist-packages/dnf-plugins/show_leaves.py");
    device.chroot("mkdir -p /etc/yum.repos.d /srv/repo /var/lib/rpm");
    device
}

/// Every package of [`installed`] and [`offered`], built once for all tests.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rpms");
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place).unwrap();
        let device = bare();
        build(&device, &[installed(), offered()].concat());
        for entry in fs::read_dir(device.root.join("srv/repo")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
        }
        place
    })
}

/// Builds packages on the device, into its repository.
pub(super) fn build(device: &Device, packages: &[Rpm]) {
    device.chroot("rm -rf /srv/specs; mkdir -p /srv/specs");
    for (number, package) in packages.iter().enumerate() {
        device.write(&format!("srv/specs/{number}.spec"), &package.spec());
    }
    device.chroot("rpmbuild -bb --quiet --define '_rpmdir /srv/repo' --define '_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' /srv/specs/*.spec 2>&1");
}

/// The device, with its packages installed and its repository offered as `file:`.
pub(super) fn make() -> Device {
    let place = built();
    let device = bare();
    for package in [installed(), offered()].concat() {
        let name = package.file_name();
        fs::copy(place.join(&name), device.root.join("srv/repo").join(&name)).unwrap();
    }
    let names: Vec<String> = installed().iter().map(|package| format!("/srv/repo/{}", package.file_name())).collect();
    device.chroot(&format!("rpm -i --nodeps {} 2>&1", names.join(" ")));
    index(&device);
    use_repository(&device, "file:///srv/repo", "gpgcheck=0");
    device
}

/// Makes the repository's index anew.
pub(super) fn index(device: &Device) {
    device.write("srv/updateinfo.xml", UPDATE_INFO);
    device.chroot("rm -rf /srv/repo/repodata; createrepo_c -q --no-database /srv/repo; modifyrepo_c --mdtype=updateinfo /srv/updateinfo.xml /srv/repo/repodata");
}

pub(super) fn use_repository(device: &Device, uri: &str, more: &str) {
    device.write("etc/yum.repos.d/test.repo", &format!("[test]\nname=Test\nbaseurl={uri}\n{more}\n"));
}

/// Every version of each package, by rpm's own database.
pub(super) fn versions(device: &Device) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in device.chroot("rpm -qa --qf '%{NAME} %{EPOCHNUM}:%{VERSION}-%{RELEASE}\\n' | sort").lines() {
        let (name, version) = line.split_once(' ').unwrap();
        found.entry(name.to_owned()).or_default().push(version.trim_start_matches("0:").to_owned());
    }
    found
}

/// Starts a command on the device.
pub(super) fn start(device: &Device, script: &str) -> std::process::Child {
    let mut command = Command::new("chroot");
    command.arg(&device.root).args(["/bin/sh", "-c", script]).env("LC_ALL", "C").env("HOME", "/root");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdout(std::process::Stdio::null());
    command.spawn().unwrap()
}
