//! Packages and repositories of rpm, made on a device with rpmbuild and createrepo_c, and rpm's own database, which is the judge.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device::Device;

/// One package of a repository.
#[derive(Clone, Copy)]
pub(crate) struct Rpm {
    pub(crate) name: &'static str,
    /// `[EPOCH:]VERSION-RELEASE`.
    pub(crate) version: &'static str,
    /// Lines of its preamble.
    pub(crate) tags: &'static str,
    pub(crate) pre: &'static str,
    pub(crate) post: &'static str,
    /// A file more; one in /etc is a configuration file.
    pub(crate) file: &'static str,
    /// Of that file; without it it holds the version.
    pub(crate) kilobytes: usize,
}

impl Rpm {
    pub(crate) const fn new(name: &'static str, version: &'static str) -> Self {
        Self { name, version, tags: "", pre: "", post: "", file: "", kilobytes: 0 }
    }

    fn file_name(&self) -> String {
        format!("{}-{}.noarch.rpm", self.name, self.version.split_once(':').map_or(self.version, |(_, bare)| bare))
    }

    fn spec(&self) -> String {
        let Self { name, version, tags, pre, post, file, kilobytes } = self;
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
            let content = match kilobytes {
                0 => format!("echo {version}"),
                _ => format!("head -c {kilobytes}K /dev/urandom"),
            };
            writeln!(text, "mkdir -p %{{buildroot}}$(dirname {file}); {content} >%{{buildroot}}{file}").unwrap();
        }
        if !pre.is_empty() {
            writeln!(text, "%pre\n{pre}").unwrap();
        }
        writeln!(text, "%post\necho {bare} >>/var/log/{name}.configured\n{post}").unwrap();
        let mark = if file.starts_with("/etc/") { "%config(noreplace) " } else { "" };
        writeln!(text, "%files\n/usr/share/{name}-{release}\n{mark}{file}").unwrap();
        text
    }
}

/// Every package, built once for all tests, by this device.
pub(crate) fn built(name: &str, device: &Device, packages: &[Rpm]) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).unwrap();
    build(device, packages);
    for entry in fs::read_dir(device.root.join("srv/repo")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
    }
    place
}

/// Puts all of them into the device's repository, and installs some.
pub(crate) fn fill(device: &Device, built: &Path, installed: &[Rpm], offered: &[Rpm]) {
    for package in [installed, offered].concat() {
        let name = package.file_name();
        fs::copy(built.join(&name), device.root.join("srv/repo").join(&name)).unwrap();
    }
    let names: Vec<String> = installed.iter().map(|package| format!("/srv/repo/{}", package.file_name())).collect();
    device.chroot(&format!("rpm -i --nodeps {} 2>&1", names.join(" ")));
}

/// Makes the repository's index anew.
pub(crate) fn index(device: &Device, update_info: &str) {
    device.write("srv/updateinfo.xml", update_info);
    device.chroot("rm -rf /srv/repo/repodata; createrepo_c -q --no-database /srv/repo; modifyrepo_c --mdtype=updateinfo /srv/updateinfo.xml /srv/repo/repodata");
}

/// Makes a key for each of `vendor` and `other`; `vendor`'s is /srv/key.asc.
pub(crate) fn make_keys(device: &Device) {
    let key = "%no-protection\nKey-Type: RSA\nKey-Length: 2048\nName-Real: NAME\nName-Email: NAME@example.invalid\nExpire-Date: 0\n";
    for name in ["vendor", "other"] {
        device.write(&format!("srv/{name}"), &key.replace("NAME", name));
        device.chroot(&format!("HOME=/root gpg --batch --quiet --gen-key /srv/{name} 2>&1"));
    }
    // What holds the keys would stay, and be taken for what an agent has started.
    device.chroot(
        "HOME=/root; export HOME; gpg --armor --export vendor@example.invalid >/srv/key.asc; gpgconf --kill all",
    );
}

/// Makes the keys and signs packages.
pub(crate) fn sign(device: &Device, packages: &[(&str, &str)]) {
    make_keys(device);
    for (name, package) in packages {
        let define = format!("--define '__gpg /usr/bin/gpg' --define '_gpg_name {name}@example.invalid'");
        device.chroot(&format!("HOME=/root rpmsign {define} --addsign /srv/repo/{package}*.rpm 2>&1"));
    }
}

/// What is wrong with the signature of a repository's index (`repomd.xml`), or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    None,
    Other,
    /// Something was added to the index after it had been signed.
    Spoiled,
    Good,
}

/// Signs the repository's index by one of the keys that [`make_keys`] makes, whose public part lies beside it as SUSE's do.
pub(crate) fn sign_index(device: &Device, signature: Signature) {
    let name = match signature {
        Signature::None => return,
        Signature::Other => "other",
        Signature::Spoiled | Signature::Good => "vendor",
    };
    device.chroot(&format!(
        "cd /srv/repo/repodata; export HOME=/root; gpg --batch --armor --detach-sign -u {name}@example.invalid repomd.xml 2>&1; \
         gpg --armor --export {name}@example.invalid >repomd.xml.key; gpgconf --kill all"
    ));
    if signature == Signature::Spoiled {
        device.chroot("echo '<!-- -->' >>/srv/repo/repodata/repomd.xml");
    }
}

/// Builds packages on the device, into its repository.
pub(crate) fn build(device: &Device, packages: &[Rpm]) {
    build_into(device, "/srv/repo", packages);
}

/// The same into another directory.
pub(crate) fn build_into(device: &Device, place: &str, packages: &[Rpm]) {
    device.chroot("rm -rf /srv/specs; mkdir -p /srv/specs");
    for (number, package) in packages.iter().enumerate() {
        device.write(&format!("srv/specs/{number}.spec"), &package.spec());
    }
    let name = "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm";
    device.chroot(&format!(
        "rpmbuild -bb --quiet --define '_rpmdir {place}' --define '_rpmfilename {name}' /srv/specs/*.spec 2>&1"
    ));
}

/// Every version of each package, by rpm's own database.
pub(crate) fn versions(device: &Device) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in device.chroot("rpm -qa --qf '%{NAME} %{EPOCHNUM}:%{VERSION}-%{RELEASE}\\n' | sort").lines() {
        let (name, version) = line.split_once(' ').unwrap();
        found.entry(name.to_owned()).or_default().push(version.trim_start_matches("0:").to_owned());
    }
    found
}

/// Starts a command on the device.
pub(crate) fn start(device: &Device, script: &str) -> std::process::Child {
    let mut command = Command::new("chroot");
    command.arg(&device.root).args(["/bin/sh", "-c", script]).env("LC_ALL", "C").env("HOME", "/root");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdout(std::process::Stdio::null());
    command.spawn().unwrap()
}
