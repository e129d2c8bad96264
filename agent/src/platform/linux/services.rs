//! Services that still run what was replaced or removed under them.
//!
//! A file that is unlinked while a process maps it stays until the process ends; proc_pid_maps(5) says `(deleted)` behind its name. An
//! update of a library replaces its file, so whoever runs the old one is found so, whichever package manager it was. Only what is
//! mapped to be executed counts: data (locales, caches, fonts) is replaced all the time, and nobody restarts a service for that.
//!
//! Which service a process is of its control group says: systemd names the group after the unit, below slices. What is in no
//! service of the system (sessions, the users' own services below `user@`, scopes) is left out, and so is a process with another root: it
//! is a container's, whose files are its own. A service with a mount name space of its own (`PrivateTmp=`) has the machine's root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::{ask, service_active};
use crate::platform::{BringUp, Outdated};

/// Where packages put what is executed.
const PLACES: [&str; 8] = ["/usr/", "/lib/", "/lib32/", "/lib64/", "/libx32/", "/bin/", "/sbin/", "/opt/"];

/// Processes that are looked at: more than a machine has that still works.
const MAX_PROCESSES: usize = 32_768;

/// Bytes of one process' mappings: some 30,000 of them.
const MAX_MAPS: u64 = 4 << 20;

/// Bytes of all: the kernel takes about a second to write them.
const MAX_ALL: u64 = 64 << 20;

/// Services that are not restarted, by how their units' names begin, and what would become of whoever needs them. They are those that
/// needrestart leaves alone unless it is told otherwise (`override_rc` of its needrestart.conf), others of the same kinds, and systemd's own.
const LEFT: [(&[&str], &str); 7] = [
    (&["dbus"], "every program on the bus would lose it"),
    (&["systemd-", "emergency.", "rescue.", "initrd-"], "it is systemd's own"),
    (
        &[
            "autovt@",
            "console-getty.",
            "container-getty@",
            "display-manager.",
            "elogind",
            "gdm",
            "getty@",
            "greetd",
            "kdm",
            "lightdm",
            "lxdm",
            "nodm",
            "sddm",
            "serial-getty@",
            "slim",
            "user@",
            "wdm",
            "xdm",
        ],
        "logins would end",
    ),
    (
        &[
            "ModemManager",
            "NetworkManager",
            "bird",
            "bluetooth",
            "connman",
            "freeswan",
            "frr",
            "ifup@",
            "ipsec",
            "iwd",
            "libreswan",
            "network-manager.",
            "network.",
            "networking.",
            "openswan",
            "openvpn",
            "quagga",
            "strongswan",
            "tinc",
            "wpa_supplicant",
        ],
        "connections would break",
    ),
    (
        &["containerd", "docker", "libvirt", "lxc", "virtlockd", "virtlogd", "virtqemud", "xendomains"],
        "containers and virtual machines could end",
    ),
    (&["usbguard."], "devices could be cut off"),
    (
        &["fwupd", "mythtv-backend", "packagekit", "rc-local.", "unattended-upgrades.", "zfs-fuse"],
        "what it is doing would break",
    ),
];

/// What systemd is asked of a unit before it is restarted.
const PROPERTIES: &str =
    "--property=Type,ActiveState,RefuseManualStart,RefuseManualStop,StandardInput,Transient,TriggeredBy";

/// Longest name of a unit (systemd.unit(5)).
const MAX_NAME: usize = 255;

/// The services; nothing where systemd does not run. What cannot be read is told as that, and is no error.
pub(super) fn outdated(root: &Path) -> Option<Outdated> {
    if !root.join("run/systemd/system").exists() {
        return None;
    }
    let proc = root.join("proc");
    let mut found = Outdated { units: BTreeSet::new(), left: BTreeMap::new(), partial: false };
    let (Ok(own_root), Ok(processes)) = (fs::metadata(root), fs::read_dir(&proc)) else {
        return Some(Outdated { partial: true, ..found });
    };
    let own_root = (own_root.dev(), own_root.ino());
    let group_of = |process: &str| fs::read_to_string(proc.join(process).join("cgroup"));
    let first = group_of("1").unwrap_or_default();
    let above = above(&first);
    let own_group = group_of("self").unwrap_or_default();
    let own = unit_of(&own_group, above);
    let space_of = |process: &str| fs::read_link(proc.join(process).join("ns/pid"));
    let own_space = space_of("1").ok();
    let mut with_containers = BTreeSet::new();
    let mut left = MAX_ALL;
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let names = processes.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for (number, process) in names.filter(|name| is_process(name)).enumerate() {
        if number == MAX_PROCESSES || left == 0 {
            found.partial = true;
            break;
        }
        let looked = group_of(&process).and_then(|group| {
            let Some(unit) = unit_of(&group, above).filter(|unit| own != Some(*unit)) else { return Ok(None) };
            // Also where the process itself is not one of the machine's.
            if !with_containers.contains(unit) && own_space != Some(space_of(&process)?) {
                with_containers.insert(unit.to_owned());
            }
            if found.units.contains(unit) {
                return Ok(None);
            }
            let place = proc.join(&process);
            let its_root = fs::metadata(place.join("root"))?;
            if (its_root.dev(), its_root.ino()) != own_root {
                return Ok(None);
            }
            let limit = MAX_MAPS.min(left);
            let mut maps = Vec::new();
            let length = File::open(place.join("maps"))?.take(limit).read_to_end(&mut maps)? as u64;
            left -= length;
            found.partial |= length == limit;
            Ok(runs_what_is_gone(&maps).then(|| unit.to_owned()))
        });
        match looked {
            Ok(unit) => found.units.extend(unit),
            // It has ended meanwhile: ESRCH between opening and reading.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => {}
            Err(error) => {
                tracing::debug!("{}: {error}", proc.join(&process).display());
                found.partial = true;
            }
        }
    }
    for unit in &found.units {
        let why = match why_never(unit) {
            Some(why) => format!("it is never restarted by itself: {why}"),
            None if with_containers.contains(unit) => "it has a container, which would end".to_owned(),
            None => continue,
        };
        found.left.insert(unit.clone(), why);
    }
    Some(found)
}

/// What would become of whoever needs a service, where it is one that is left alone: see [`LEFT`].
fn why_never(unit: &str) -> Option<&'static str> {
    LEFT.iter().find(|(names, _)| names.iter().any(|name| unit.starts_with(name))).map(|(_, why)| *why)
}

/// Whether a service may be restarted by itself, by what systemd says of it.
pub(super) async fn may_restart(unit: &str) -> Result<(), String> {
    let output = ask(["systemctl", "show", PROPERTIES, "--", unit]).await?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    why_left(&String::from_utf8_lossy(&output.stdout)).map_or(Ok(()), Err)
}

/// Has systemd restart a service that runs, or start one that is down, and waits for it.
pub(super) async fn bring_up(unit: &str, how: BringUp, limit: Duration) -> Result<(), String> {
    let brought = async {
        let verb = match how {
            BringUp::Restart => "try-restart",
            BringUp::Start => {
                // One that has failed too often would not be started (StartLimitBurst=). Fails where systemd does not know of it, which
                // it comes to do when it is started.
                let reset = ask(["systemctl", "reset-failed", "--", unit]).await?;
                tracing::debug!("reset-failed of {unit}: {}", reset.status);
                "start"
            }
        };
        let output = ask(["systemctl", "--no-ask-password", verb, "--", unit]).await?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        service_active(unit).await
    };
    let late = |_| Err(format!("it was not up within {} s", limit.as_secs()));
    tokio::time::timeout(limit, brought).await.unwrap_or_else(late)
}

/// Why a service is not to be restarted, by what `systemctl show` prints of it.
fn why_left(told: &str) -> Option<String> {
    let is = |what: &str| told.lines().any(|line| line == what);
    if !is("ActiveState=active") {
        return Some("it is not active".to_owned());
    }
    // It would do its work once more.
    if is("Type=oneshot") {
        return Some("it is no service that goes on (Type=oneshot)".to_owned());
    }
    if is("Transient=yes") {
        return Some("it is a command that somebody runs (Transient=yes)".to_owned());
    }
    let triggers = told.lines().find_map(|line| line.strip_prefix("TriggeredBy=")).unwrap_or_default();
    if triggers.split_whitespace().any(|unit| unit.rsplit_once('.').is_some_and(|(_, kind)| kind == "timer")) {
        return Some("it is the job of a timer".to_owned());
    }
    // Of a socket with Accept=yes: one for each connection.
    if is("StandardInput=socket") {
        return Some("it serves one connection, which would end".to_owned());
    }
    (is("RefuseManualStart=yes") || is("RefuseManualStop=yes"))
        .then(|| "its unit refuses it (RefuseManualStop)".to_owned())
}

/// Whether any file is mapped to be executed that is not there any more, of those that packages bring.
fn runs_what_is_gone(maps: &[u8]) -> bool {
    maps.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b" (deleted)")).any(|line| {
        let line = String::from_utf8_lossy(line);
        // Address, permissions, offset, device, inode; spaces; the path, in which there may be some.
        let mut fields = line.splitn(6, ' ');
        let is_executed = fields.nth(1).is_some_and(|permissions| permissions.contains('x'));
        let path = fields.nth(3).unwrap_or_default().trim_start();
        is_executed && PLACES.iter().any(|place| path.starts_with(place))
    })
}

/// The group of a process in the hierarchy that systemd keeps, by cgroups(7): its own of version 1, or the one of version 2.
fn group(text: &str) -> Option<&str> {
    let of = |hierarchy: &str| text.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(hierarchy));
    of("name=systemd:").or_else(|| of(":"))
}

/// What is above the groups of the system's units, by that of its first process, which is in `init.scope`: nothing but in a container
/// that sees the groups of its host.
fn above(first: &str) -> &str {
    group(first).and_then(|path| path.strip_suffix("/init.scope")).unwrap_or_default()
}

/// The service that a process is of, if it is of one: what comes first in its path after slices.
fn unit_of<'a>(text: &'a str, above: &str) -> Option<&'a str> {
    let path = group(text)?.strip_prefix(above)?.strip_prefix('/')?;
    let unit = path.split('/').find(|name| !is_of_kind(name, "slice"))?;
    // A name that the kernel uses itself is behind an underscore.
    let unit = unit.strip_prefix('_').unwrap_or(unit);
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let is_name = unit.len() <= MAX_NAME && !unit.starts_with('-') && unit.chars().all(is_of_name);
    (is_name && is_of_kind(unit, "service") && !unit.starts_with("user@")).then_some(unit)
}

fn is_of_kind(unit: &str, kind: &str) -> bool {
    Path::new(unit).extension().is_some_and(|end| end == kind)
}

/// Any text in the place of what the kernel says of a process.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = (runs_what_is_gone(text.as_bytes()), unit_of(text, above(text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: &str =
        "7f0000000000-7f0000001000 r-xp 00001000 fe:01 1234                       /usr/lib/libx.so.1 (deleted)\n";

    #[test]
    fn what_is_executed_and_gone_counts_where_packages_put_it() {
        assert!(runs_what_is_gone(format!("7f-8f r--p 0 fe:01 7 /usr/lib/a.so\n{LIBRARY}").as_bytes()));
        for (line, expected) in [
            ("7f-8f r-xp 00000000 00:1b 7    /usr/sbin/my daemon (deleted)", true),
            ("7f-8f r-xp 00000000 00:1b 7    /lib64/ld.so (deleted)", true),
            ("7f-8f r-xp 00000000 00:1b 7    /opt/x/x (deleted)", true),
            ("7f-8f r-xp 00000000 00:1b 7    /usr/lib/libx.so.1", false),
            ("7f-8f rw-p 00000000 00:1b 7    /usr/lib/libx.so.1 (deleted)", false),
            ("7f-8f r--p 00000000 00:1b 7    /usr/lib/locale/locale-archive (deleted)", false),
            ("7f-8f rwxp 00000000 00:01 7    /memfd:jit (deleted)", false),
            ("7f-8f rwxs 00000000 00:01 7    /SYSV00000000 (deleted)", false),
            ("7f-8f r-xp 00000000 00:1b 7    /dev/shm/x (deleted)", false),
            ("7f-8f r-xp 00000000 00:1b 7    /tmp/usr/lib/x (deleted)", false),
            ("7f-8f r-xp 00000000 00:1b 7    /home/u/usr/x (deleted)", false),
            (" (deleted)", false),
            ("", false),
        ] {
            assert_eq!(runs_what_is_gone(line.as_bytes()), expected, "{line}");
        }
        assert!(runs_what_is_gone(b"7f-8f r-xp 0 00:1b 7 /usr/lib/\xff.so (deleted)"));
    }

    #[test]
    fn a_process_is_of_the_service_that_its_group_is_named_after() {
        for (text, above, expected) in [
            ("0::/system.slice/nginx.service\n", "", Some("nginx.service")),
            ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "", Some("getty@tty1.service")),
            ("5:cpu:/x.service\n1:name=systemd:/system.slice/a.service/sub\n0::/\n", "", Some("a.service")),
            ("12:pids:/system.slice/x.service\n0::/system.slice/y.service\n", "", Some("y.service")),
            ("0::/pod/1/system.slice/a.service\n", "/pod/1", Some("a.service")),
            ("0::/pod/2/system.slice/a.service\n", "/pod/1", None),
            ("0::/system.slice/_cgroup.service\n", "", Some("cgroup.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n", "", None),
            ("0::/user.slice/user-1000.slice/session-1.scope\n", "", None),
            ("0::/machine.slice/machine-x.scope/payload/system.slice/a.service\n", "", None),
            ("0::/system.slice/docker-0123.scope\n", "", None),
            ("0::/docker/0123/system.slice/a.service\n", "", None),
            ("0::/system.slice/a b.service\n", "", None),
            ("0::/init.scope\n", "", None),
            ("0::/\n", "", None),
            ("", "", None),
        ] {
            assert_eq!(unit_of(text, above), expected, "{text}");
        }
        assert_eq!(above("0::/init.scope\n"), "");
        assert_eq!(above("1:name=systemd:/pod/1/init.scope\n0::/else\n"), "/pod/1");
    }

    #[test]
    fn a_service_is_left_alone_where_a_restart_of_it_would_do_more() {
        let told = |kind: &str, state: &str, refuses: &str| {
            why_left(&format!("Type={kind}\nActiveState={state}\nRefuseManualStart=no\nRefuseManualStop={refuses}\n"))
        };
        assert_eq!(told("notify", "active", "no"), None);
        assert!(told("simple", "failed", "no").unwrap().contains("not active"));
        assert!(told("oneshot", "active", "no").unwrap().contains("oneshot"));
        assert!(told("simple", "active", "yes").unwrap().contains("RefuseManualStop"));
        let well = "Type=simple\nActiveState=active\nStandardInput=null\nTransient=no\nTriggeredBy=pw.socket pw.path\n";
        assert_eq!(why_left(well), None);
        for (from, to) in [
            ("Transient=no", "Transient=yes"),
            ("pw.path", "backup.timer"),
            ("StandardInput=null", "StandardInput=socket"),
        ] {
            assert!(why_left(&well.replace(from, to)).is_some(), "{to}");
        }
        assert!(why_left("").is_some(), "what is not known is not restarted");
    }

    #[test]
    fn what_others_need_is_never_restarted() {
        for unit in [
            "dbus.service",
            "dbus-broker.service",
            "systemd-logind.service",
            "systemd-journald.service",
            "getty@tty1.service",
            "user@1000.service",
            "gdm3.service",
            "NetworkManager.service",
            "ifup@ens18.service",
            "ipsec.service",
            "usbguard.service",
            "docker.service",
            "rc-local.service",
            "packagekit.service",
            "packagekit-offline-update.service",
            "fwupd.service",
        ] {
            assert!(why_never(unit).is_some(), "{unit}");
        }
        assert_eq!(why_never("nginx.service"), None);
    }

    /// A root with these processes, each with its unit and what it maps; number 1 is systemd.
    fn root(processes: &[(u32, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        for (number, group, maps) in [(1, "/init.scope", LIBRARY)].iter().chain(processes) {
            let place = root.path().join("proc").join(number.to_string());
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("cgroup"), format!("0::{group}\n")).unwrap();
            fs::write(place.join("maps"), maps).unwrap();
            std::os::unix::fs::symlink(root.path(), place.join("root")).unwrap();
            fs::create_dir(place.join("ns")).unwrap();
            std::os::unix::fs::symlink("pid:[1]", place.join("ns/pid")).unwrap();
        }
        root
    }

    fn look(root: &Path) -> (Vec<String>, bool) {
        let Outdated { units, left: _, partial } = outdated(root).unwrap();
        (units.into_iter().collect(), partial)
    }

    /// conmon of a container is in the group of its service, with the machine's root; what it has started is in another name space.
    #[test]
    fn a_service_that_has_a_container_is_told_and_left_alone() {
        let machine = root(&[
            (7, "/system.slice/db.service", LIBRARY),
            (8, "/system.slice/db.service/libpod-payload-1", ""),
            (9, "/system.slice/web.service", LIBRARY),
            (10, "/system.slice/dbus.service", LIBRARY),
        ]);
        let space = machine.path().join("proc/8/ns/pid");
        fs::remove_file(&space).unwrap();
        std::os::unix::fs::symlink("pid:[2]", space).unwrap();
        let found = outdated(machine.path()).unwrap();
        assert_eq!(found.units.len(), 3, "{found:?}");
        let left: Vec<_> = found.left.iter().map(|(unit, why)| (unit.as_str(), why.as_str())).collect();
        let never = "it is never restarted by itself: every program on the bus would lose it";
        assert_eq!(left, [("db.service", "it has a container, which would end"), ("dbus.service", never)]);
    }

    #[test]
    fn services_with_such_a_process_are_found_and_no_containers() {
        let processes: Vec<_> = [
            (7, "/system.slice/a.service", ""),
            (8, "/system.slice/a.service", LIBRARY),
            (9, "/system.slice/b.service", ""),
            (10, "/system.slice/c.service", LIBRARY),
            (11, "/system.slice/agent.service", LIBRARY),
            (12, "/system.slice/gone.service", LIBRARY),
        ]
        .into();
        let machine = root(&processes);
        let proc = machine.path().join("proc");
        // Another root, and the agent's own.
        fs::remove_file(proc.join("10/root")).unwrap();
        std::os::unix::fs::symlink("/", proc.join("10/root")).unwrap();
        std::os::unix::fs::symlink("11", proc.join("self")).unwrap();
        // It ends while it is looked at.
        fs::remove_file(proc.join("12/maps")).unwrap();
        assert_eq!(look(machine.path()), (vec!["a.service".to_owned()], false));
        // Something that cannot be read is no reason not to tell the rest.
        fs::remove_file(proc.join("9/maps")).unwrap();
        fs::create_dir(proc.join("9/maps")).unwrap();
        assert_eq!(look(machine.path()), (vec!["a.service".to_owned()], true));
        fs::remove_dir(machine.path().join("run/systemd/system")).unwrap();
        assert_eq!(outdated(machine.path()), None, "there is no systemd");
    }

    #[test]
    fn no_more_is_read_than_is_allowed() {
        let large = "x".repeat(usize::try_from(MAX_MAPS).unwrap()) + "\n" + LIBRARY;
        let small = root(&[(7, "/system.slice/a.service", &large), (8, "/system.slice/b.service", LIBRARY)]);
        assert_eq!(look(small.path()), (vec!["b.service".to_owned()], true));
        let group = |number: u32| format!("/system.slice/s{number}.service");
        let many: Vec<_> = (2..20).map(|number| (number, group(number))).collect();
        let many: Vec<_> = many.iter().map(|(number, group)| (*number, group.as_str(), large.as_str())).collect();
        assert_eq!(look(root(&many).path()), (vec![], true));
    }
}
