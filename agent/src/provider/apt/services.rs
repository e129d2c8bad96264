//! What an installed package consists of, as dpkg has it: whether an update of it interrupts a service, and when it came.
//!
//! dpkg lists the files of an installed package in `/var/lib/dpkg/info/PACKAGE.list` (`PACKAGE:ARCH.list` where several
//! architectures of it may be installed), beside its maintainer scripts (dpkg(1), deb-preinst(5)). Where that list cannot
//! be read the answer is `Unknown`.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use patchwarden_protocol::report::Tristate;

use crate::files;
use crate::provider::services::{of_files, restarts_a_service, worst};

const INFO: &str = "/var/lib/dpkg/info";

/// All four run when a package is upgraded.
const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];

/// Whether an update of these packages, by name and architecture, interrupts a service.
pub(super) fn interrupted_by<'a>(packages: impl Iterator<Item = (&'a str, &'a str)>) -> Tristate {
    worst(packages.map(|(name, arch)| of_package(Path::new(INFO), name, arch)))
}

/// When dpkg has written the list of the package's files: it was unpacked then.
pub(super) fn unpacked_at(name: &str, arch: &str) -> Option<Timestamp> {
    let info = Path::new(INFO);
    let list = info.join(format!("{}.list", stem_of(info, name, arch)?));
    Timestamp::try_from(fs::metadata(list).ok()?.modified().ok()?).ok()
}

/// What the names of the package's files begin with.
fn stem_of(info: &Path, name: &str, arch: &str) -> Option<String> {
    let stems = [name.to_owned(), format!("{name}:{arch}")];
    stems.into_iter().find(|stem| info.join(format!("{stem}.list")).exists())
}

fn of_package(info: &Path, name: &str, arch: &str) -> Tristate {
    let Some(stem) = stem_of(info, name, arch) else { return Tristate::Unknown };
    let Ok(list) = fs::read(info.join(format!("{stem}.list"))) else { return Tristate::Unknown };
    let of_scripts = SCRIPTS.iter().map(|script| match files::read_if_exists(&info.join(format!("{stem}.{script}"))) {
        Ok(None) => Tristate::No,
        Ok(Some(text)) if !restarts_a_service(&String::from_utf8_lossy(&text)) => Tristate::No,
        Ok(Some(_)) | Err(_) => Tristate::Unknown,
    });
    worst(std::iter::once(of_files(&String::from_utf8_lossy(&list))).chain(of_scripts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_unknown_and_the_worst_package_counts() {
        use Tristate::{No, Unknown, Yes};
        let info = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(info.path().join(name), text).unwrap();
        let of = |name| of_package(info.path(), name, "amd64");
        assert_eq!(of("plain"), Unknown);
        write("plain.list", "/usr/share/plain\n");
        assert_eq!(of("plain"), No);
        write("plain.postinst", "#!/bin/sh\nldconfig\n");
        assert_eq!(of("plain"), No);
        write("plain.prerm", "#!/bin/sh\ninvoke-rc.d other restart\n");
        assert_eq!(of("plain"), Unknown);
        write("same:amd64.list", "/etc/init.d/same\n");
        assert_eq!(of("same"), Yes);
        assert_eq!(of_package(info.path(), "same", "i386"), Unknown);
        assert_eq!(worst([No, Unknown, No].into_iter()), Unknown);
        assert_eq!(worst([Unknown, Yes, No].into_iter()), Yes);
    }
}
