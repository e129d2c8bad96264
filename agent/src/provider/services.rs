//! Whether installing an update interrupts a service, by the files and the scripts of its installed packages. Pure.
//!
//! - `Yes` if a package ships a systemd service or a script in `/etc/init.d`: what its kind of packages uses to install
//!   services (debhelper, rpm's systemd macros) restarts it;
//! - `Unknown` if a package ships a shared library, which any service may be using; or if one of its scripts mentions a
//!   program that restarts services;
//! - `No` otherwise.
//!
//! What runs now is not looked at, so that the answer changes only when the packages do. A service that only the new
//! version brings is not known before it is unpacked.

use std::path::Path;

use patchwarden_protocol::report::Tristate;

const UNITS: [&str; 2] = ["/lib/systemd/system", "/usr/lib/systemd/system"];

const INIT_SCRIPTS: &str = "/etc/init.d";

/// Directories of shared libraries, anywhere in a path.
const LIBRARIES: [&str; 4] = ["lib", "lib32", "lib64", "libx32"];

/// Programs that restart services.
const RESTARTERS: [&str; 5] = ["invoke-rc.d", "deb-systemd-invoke", "service", "systemctl", "systemd-update-helper"];

/// One `Yes` counts, and else one `Unknown`.
pub(super) fn worst(answers: impl Iterator<Item = Tristate>) -> Tristate {
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

/// By the files, one on each line.
pub(super) fn of_files(list: &str) -> Tristate {
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
pub(super) fn restarts_a_service(script: &str) -> bool {
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
}
