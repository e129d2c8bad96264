//! Whether installing an update interrupts a service, by what its installed packages consist of.
//!
//! dpkg lists the files of an installed package in `/var/lib/dpkg/info/PACKAGE.list` (`PACKAGE:ARCH.list` where several
//! architectures of it may be installed), beside its maintainer scripts (dpkg(1), deb-preinst(5)). The answer is
//!
//! - `Yes` if a package ships a systemd service or a script in `/etc/init.d`: debhelper's snippets (dh_installsystemd(1),
//!   dh_installinit(1)) restart it;
//! - `Unknown` if a package ships a shared library, which any service may be using; if one of its scripts mentions a
//!   program that restarts services; or if its list cannot be read;
//! - `No` otherwise.
//!
//! What runs now is not looked at, so that the answer changes only when the packages do. A service that only the new
//! version brings is not known before it is unpacked.

use std::fs;
use std::path::Path;

use patchwarden_protocol::report::Tristate;

use crate::files;

const INFO: &str = "/var/lib/dpkg/info";

const UNITS: [&str; 2] = ["/lib/systemd/system", "/usr/lib/systemd/system"];

const INIT_SCRIPTS: &str = "/etc/init.d";

/// Directories of shared libraries, anywhere in a path.
const LIBRARIES: [&str; 4] = ["lib", "lib32", "lib64", "libx32"];

/// All four run when a package is upgraded.
const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];

/// Programs that restart services.
const RESTARTERS: [&str; 4] = ["invoke-rc.d", "deb-systemd-invoke", "service", "systemctl"];

/// Whether an update of these packages, by name and architecture, interrupts a service.
pub(super) fn interrupted_by<'a>(packages: impl Iterator<Item = (&'a str, &'a str)>) -> Tristate {
    worst(packages.map(|(name, arch)| of_package(Path::new(INFO), name, arch)))
}

fn worst(answers: impl Iterator<Item = Tristate>) -> Tristate {
    let mut worst = Tristate::No;
    for answer in answers {
        match answer {
            Tristate::Yes => return Tristate::Yes,
            Tristate::Unknown => worst = Tristate::Unknown,
            Tristate::No => {}
        }
    }
    worst
}

fn of_package(info: &Path, name: &str, arch: &str) -> Tristate {
    let stems = [name.to_owned(), format!("{name}:{arch}")];
    let Some(stem) = stems.iter().find(|stem| info.join(format!("{stem}.list")).exists()) else {
        return Tristate::Unknown;
    };
    let Ok(list) = fs::read(info.join(format!("{stem}.list"))) else { return Tristate::Unknown };
    let of_scripts = SCRIPTS.iter().map(|script| match files::read_if_exists(&info.join(format!("{stem}.{script}"))) {
        Ok(None) => Tristate::No,
        Ok(Some(text)) if !restarts_a_service(&String::from_utf8_lossy(&text)) => Tristate::No,
        Ok(Some(_)) | Err(_) => Tristate::Unknown,
    });
    worst(std::iter::once(of_files(&String::from_utf8_lossy(&list))).chain(of_scripts))
}

fn of_files(list: &str) -> Tristate {
    worst(list.lines().map(|line| {
        let Some((directory, name)) = line.rsplit_once('/') else { return Tristate::No };
        let is_service = UNITS.contains(&directory) && Path::new(name).extension().is_some_and(|end| end == "service");
        if is_service || (directory == INIT_SCRIPTS && name != "README") {
            return Tristate::Yes;
        }
        let is_shared = Path::new(name).extension().is_some_and(|end| end == "so") || name.contains(".so.");
        if is_shared && directory.split('/').any(|part| LIBRARIES.contains(&part)) {
            return Tristate::Unknown;
        }
        Tristate::No
    }))
}

/// Also in a comment: what a script really runs cannot be told by reading it.
fn restarts_a_service(script: &str) -> bool {
    script
        .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')))
        .any(|word| RESTARTERS.contains(&word.trim_end_matches('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_interrupted_by_its_own_package_and_perhaps_by_a_library() {
        use Tristate::{No, Unknown, Yes};
        for (list, expected) in [
            ("/.\n/usr\n/usr/share/x/version\n", No),
            ("/lib/systemd/system\n/lib/systemd/system/x.service\n", Yes),
            ("/usr/lib/systemd/system/x@.service\n", Yes),
            ("/usr/lib/x/libx.so.1\n/etc/init.d/x\n", Yes),
            ("/etc/init.d\n", No),
            ("/etc/init.d/README\n", No),
            ("/usr/lib/systemd/user/x.service\n", No),
            ("/usr/lib/systemd/system/x.service.d/own.conf\n/usr/lib/systemd/system/x.target\n", No),
            ("/usr/share/doc/x.service\n", No),
            ("/usr/lib/x86_64-linux-gnu/libx.so.1.2\n", Unknown),
            ("/lib64/ld-linux-x86-64.so.2\n", Unknown),
            ("/usr/lib/x/plugins/y.so\n", Unknown),
            ("/usr/share/doc/libx.so.1\n/usr/lib/x/sonic.sour\n", No),
            ("", No),
        ] {
            assert_eq!(of_files(list), expected, "{list}");
        }
    }

    #[test]
    fn a_script_that_mentions_a_restarter_may_restart() {
        for script in [
            "invoke-rc.d x restart",
            "\tdeb-systemd-invoke $_dh_action 'x.service'",
            "if true; then /usr/sbin/service x reload; fi",
            "$(command -v systemctl) try-restart y",
            "# then systemctl.",
        ] {
            assert!(restarts_a_service(script), "{script}");
        }
        for script in ["#!/bin/sh\nset -e\nldconfig", "echo services x.service my-service", ""] {
            assert!(!restarts_a_service(script), "{script}");
        }
    }

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
