//! What dnf, rpm and zypper print is not trusted to be short, whole or text: it is refused with a reason and fills no memory.

use patchwarden_protocol::report::Report;

use crate::device::Running;
use crate::dnf::{self, Dnf};
use crate::world::World;
use crate::zypper;

/// The program is another one where its arguments are like that.
struct Case {
    program: &'static str,
    /// A pattern of sh(1) for all of its arguments, blanks between them.
    asked: &'static str,
    prints: &'static str,
    /// Said in a problem of the report; empty where nothing is said, since the rest of the report is not concerned.
    why: &'static str,
}

/// As dnf's modules are asked: the script itself has the word, too.
const SCAN: &str = "*'scan '[0-9]*";

const LIST: &str = "*list-updates*";

const TOO_LONG: &str = "printed more than 16777216 bytes";

/// Of rpm's database, whatever asks.
const OF_RPM: [Case; 4] = [
    Case { program: "rpm", asked: "-qa*", prints: "yes", why: TOO_LONG },
    Case {
        program: "rpm",
        asked: "-qa*",
        prints: "yes 'a\ta\t0:1-1\ta\t1\t1' | head -n 800000",
        why: "more than 50000 packages are told",
    },
    Case { program: "rpm", asked: "-qa*", prints: "head -c 16000000 /dev/urandom", why: "of an unknown form" },
    // Which updates interrupt a service.
    Case { program: "rpm", asked: "*@package*", prints: "seq -f '@package %.0f' 950000", why: "" },
];

const OF_DNF: [Case; 6] = [
    Case { program: "python3", asked: SCAN, prints: "tr '\\0' '[' </dev/zero", why: TOO_LONG },
    Case {
        program: "python3",
        asked: SCAN,
        prints: "printf '{\"updates\": ['; yes 0, | head -c 16000000",
        why: "more than 600000 values",
    },
    Case {
        program: "python3",
        asked: SCAN,
        prints: "printf '{\"rebooting\": [\"\"'; yes ',\"\"' | head -n 590000; printf ']}'",
        why: "cannot be read: missing field",
    },
    Case {
        program: "python3",
        asked: SCAN,
        prints: "printf '{\"arch\": \"'; tr '\\0' a </dev/zero | head -c 16000000; printf '\"}'",
        why: "cannot be read: missing field",
    },
    Case {
        program: "python3",
        asked: SCAN,
        prints: "printf '{\"arch\": \"\\033[2J\\377\"'",
        why: "cannot be read: control character",
    },
    Case { program: "python3", asked: SCAN, prints: "tr '\\0' '\\377' </dev/zero >&2", why: TOO_LONG },
];

const OF_ZYPPER: [Case; 5] = [
    Case {
        program: "zypper",
        asked: LIST,
        prints: "yes '<update>' | head -n 900000",
        why: "more than 64 elements in each other",
    },
    Case {
        program: "zypper",
        asked: LIST,
        prints: "echo '<s>'; yes '<update kind=\"package\"/>' | head -n 590000; echo '</s>'",
        why: "more than 50000 entries",
    },
    Case { program: "zypper", asked: LIST, prints: "cat /dev/zero", why: TOO_LONG },
    Case {
        program: "zypper",
        asked: LIST,
        prints: "printf '<s>'; tr '\\0' a </dev/zero | head -c 16000000; printf '</s>'",
        why: "larger than it has reason to be",
    },
    Case { program: "zypper", asked: LIST, prints: "printf '<s><update kind=\"\\377'", why: "zypper's answer" },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_dnf_and_rpm() {
    let world = dnf::world(Dnf::Five).await;
    refused(&world, OF_DNF.iter().chain(&OF_RPM)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_zypper() {
    let world = zypper::world().await;
    refused(&world, OF_ZYPPER.iter()).await;
}

async fn refused(world: &World, cases: impl Iterator<Item = &Case>) {
    let (mut running, whole) = world.run().await;
    for Case { program, asked, prints, why } in cases {
        // The program itself: Python finds its modules by the path of what runs it.
        let itself = world.device.chroot(&format!("readlink -f /usr/bin/{program}")).trim().to_owned();
        let aside = if itself.ends_with(program) { format!("/usr/bin/{program}.aside") } else { itself };
        world
            .device
            .chroot(&format!("cp -a /usr/bin/{program} /kept; [ -e {aside} ] || cp /usr/bin/{program} {aside}"));
        world.device.chroot(&format!("rm /usr/bin/{program}"));
        let script = format!("#!/bin/sh\ncase \"$*\" in {asked}) ;; *) exec {aside} \"$@\" ;; esac\n{prints}\n");
        world.device.write(&format!("usr/bin/{program}"), &script);
        world.device.chroot(&format!("chmod 755 /usr/bin/{program}"));
        let known = world.scans();
        let is_told = |report: &Report| {
            why.is_empty() && world.scans() > known
                || report.problems.iter().any(|problem| problem.message.contains(why))
        };
        let report = world.rescan(&mut running, is_told).await;
        if why.is_empty() {
            assert_eq!((report.updates.len(), report.problems.as_slice()), (whole.updates.len(), &[][..]), "{prints}");
        }
        assert_memory(&running, prints);
        world.device.chroot(&format!("mv /kept /usr/bin/{program}"));
        world.rescan(&mut running, |report| report.problems.is_empty()).await;
    }
    running.kill();
}

/// The budget is for what is shipped; a debug build is larger by its code.
fn assert_memory(running: &Running, what: &str) {
    let most = running.most_resident();
    println!("{most} KiB at most: {what}");
    let code = if cfg!(debug_assertions) { 16 * 1024 } else { 0 };
    assert!(most <= 64 * 1024 + code, "{most} KiB: {what}");
}
