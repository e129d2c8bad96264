//! New kernels that are tried once, on a device with the programs of GRUB 2.06 and packages in the form of Debian's kernels.
//!
//! Real are apt, `grub-mkconfig` with its templates, `grub-editenv` and what they write. Stand-ins are `grub-probe`, since the device has
//! no disk, and the machine's start: a script that reads and clears GRUB's environment by `grub-editenv`, as `grub.cfg` tells GRUB to.
//! That GRUB itself does so is shown by `hack/boot-grub`.

use patchwarden_protocol::grant::Purpose;
use patchwarden_protocol::order::{Order, RestartRule, RestartWhen};
use patchwarden_protocol::report::{Report, Tristate};
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason, Step};
use patchwarden_protocol::safeguards::Safeguards;

use crate::device::{Device, Package, Running};
use crate::gateway::Gateway;
use crate::guards::rollback::rolling_back;
use crate::guards::steps;
use crate::restarts::rule;
use crate::world::{World, summary, update};

const OLD: &str = "6.1.0-37-amd64";
const NEW: &str = "6.1.0-38-amd64";
const ROLLED_BACK: Option<ResultReason> = Some(ResultReason::RolledBack);
const CHECK_FAILED: Option<ResultReason> = Some(ResultReason::CheckFailed);
const UUID: &str = "0f5b1a0e-6f7c-4f3a-9b0e-3f2c58f7a111";

/// What update-initramfs and depmod do, and the hook of GRUB's package.
const INSTALL_NEW: &str = "mkdir -p /lib/modules/6.1.0-38-amd64; echo >/boot/initrd.img-6.1.0-38-amd64; update-grub";
const INSTALL_NEWER: &str = "mkdir -p /lib/modules/6.1.0-39-amd64; echo >/boot/initrd.img-6.1.0-39-amd64; update-grub";

/// The machine starts: what GRUB does by `grub.cfg`. A kernel that panics does it again (`panic=`). The id in an entry names its kernel;
/// without a saved entry it is the first one's.
const START: &str = r#"
start() {
  next=$(grub-editenv - list | sed -n 's/^next_entry=//p') entry=$(grub-editenv - list | sed -n 's/^saved_entry=//p')
  if [ -n "$next" ]; then
    entry=$next
    grub-editenv - set next_entry=
  fi
  kernel=$(sed -n 's,^\tlinux\t/boot/vmlinuz-\([^ ]*\) .*,\1,p' /boot/grub/grub.cfg | head -n 1)
  case $entry in
    '' | 0) ;;
    gnulinux-advanced-*'>'gnulinux-*-advanced-*) kernel=${entry##*>gnulinux-} kernel=${kernel%-advanced-*} ;;
    *) kernel=unknown ;;
  esac
  echo "$kernel" >>/var/log/starts
}
start
while [ -e "/srv/panics-$kernel" ] && [ $(wc -l </var/log/starts) -lt 9 ]; do start; done
echo "$kernel" >/var/lib/osrelease
echo "BOOT_IMAGE=/boot/vmlinuz-$kernel root=/dev/vda1 ro quiet" >/var/lib/cmdline
restart
"#;

/// A joined device with the old kernel, which is offered the new one.
async fn world() -> World {
    let base = std::env::var_os("PATCHWARDEN_GRUB_ROOT").expect(
        "PATCHWARDEN_GRUB_ROOT names a Debian root with GRUB's programs: these tests are run by \"make agent-tests\"",
    );
    let installed = [
        Package { file: "boot/vmlinuz-6.1.0-37-amd64", ..Package::new("linux-image-6.1.0-37-amd64", "6.1.140-1") },
        Package { control: "Depends: linux-image-6.1.0-37-amd64\n", ..Package::new("linux-image-amd64", "6.1.140-1") },
        Package::new("pw-a", "1.0"),
    ];
    let offered = [
        Package {
            file: "boot/vmlinuz-6.1.0-38-amd64",
            postinst: INSTALL_NEW,
            ..Package::new("linux-image-6.1.0-38-amd64", "6.1.147-1")
        },
        Package { control: "Depends: linux-image-6.1.0-38-amd64\n", ..Package::new("linux-image-amd64", "6.1.147-1") },
        Package::new("pw-a", "2.0"),
    ];
    let device = Device::new(base.as_ref(), &installed, &offered);
    let probe = format!(
        "#!/bin/sh\ncase $* in\n*=device*) echo /dev/vda1 ;;\n*=fs_uuid*) echo {UUID} ;;\n*=fs*) echo ext2 ;;\n\
         *=partmap*) echo msdos ;;\n*=abstraction*) ;;\n*) exit 1 ;;\nesac\n"
    );
    device.write("usr/sbin/grub-probe", &probe);
    device.write("etc/default/grub", "GRUB_DEFAULT=saved\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n");
    device.chroot(&format!(
        "mkdir -p /boot/grub /lib/modules/{OLD}; echo >/boot/initrd.img-{OLD}; update-grub; grub-editenv - create"
    ));
    device.own_boot();
    for (place, file, content) in [
        ("sys/kernel/osrelease", "var/lib/osrelease", format!("{OLD}\n")),
        ("cmdline", "var/lib/cmdline", format!("BOOT_IMAGE=/boot/vmlinuz-{OLD} root=/dev/vda1 ro quiet\n")),
    ] {
        device.write(file, &content);
        device.own_proc(place, file);
    }
    let world = World { device, gateway: Gateway::start().await };
    let joined = world.join().await;
    assert!(joined.starts_with("Joined as acme/device-1"), "{joined}");
    world.device.restart_by(START);
    world
}

fn order(world: &World, number: u32, report: &Report, names: &[&str], safeguards: Safeguards) -> Order {
    let updates: Vec<_> = names.iter().map(|name| update(report, name)).collect();
    let restart = rule(RestartWhen::IfRequired);
    Order { restart, safeguards, ..world.gateway.order(number, report, &updates) }
}

impl World {
    /// Orders the new kernel, and whatever else.
    async fn try_kernel(&self, running: &mut Running, number: u32, names: &[&str]) -> InstallResult {
        let report = self.report_after(number - 1).await;
        let order = order(self, number, &report, names, rolling_back(&[]));
        self.restart_for(running, &order).await
    }

    /// Kernels that the machine has started, in their order.
    fn starts(&self) -> Vec<String> {
        self.device.read("var/log/starts").lines().map(str::to_owned).collect()
    }

    /// What GRUB is told, but for the line of a start that is over.
    fn told_to_grub(&self) -> String {
        self.device.chroot("grub-editenv - list | grep -v '^next_entry=$' || true")
    }

    fn runs(&self) -> String {
        self.device.read("var/lib/osrelease").trim().to_owned()
    }
}

fn saved(kernel: &str) -> String {
    format!("saved_entry=gnulinux-advanced-{UUID}>gnulinux-{kernel}-advanced-{UUID}\n")
}

/// Healthy with any kernel but this one.
fn sick_with(kernel: &str, then: &str) -> String {
    format!("[ $(cat /proc/sys/kernel/osrelease) != {kernel} ] && exit 0\n{then}\necho sick with {kernel}; exit 1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_is_healthy_starts_from_then_on_and_nothing_is_left_in_the_boot_loader() {
    let world = world().await;
    // While it is looked at, the earlier one is next.
    world.script("healthy", "[ ! -e /var/log/starts ] || grub-editenv - list >/var/log/meanwhile");
    let before = world.device.read("boot/grub/grubenv");
    let (mut running, _) = world.run().await;
    let result = world.try_kernel(&mut running, 1, &["linux-image-amd64", "pw-a"]).await;
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None); 2]),
        "{result:#?}\n{}",
        world.device.log()
    );
    assert_eq!((world.starts(), world.runs(), result.restarts), (vec![NEW.to_owned()], NEW.to_owned(), 1));
    assert_eq!(result.message, "");
    assert_eq!(world.device.read("var/log/meanwhile"), format!("{}next_entry=\n", saved(OLD)));
    assert_eq!(world.device.read("boot/grub/grubenv"), before, "as it was, to the byte");
    assert!(
        world.said(&format!("starts the kernel {NEW} once; whatever becomes of it, {OLD} is next")) || {
            world.device.log().contains(&format!("starts the kernel {NEW} once"))
        }
    );
    assert_eq!(result.restart_required, Tristate::Unknown, "the kernel does not tell its package's version");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_does_not_come_up_is_taken_back_by_the_boot_loader_itself_and_the_next_one_is_tried() {
    let world = world().await;
    world.script("healthy", "");
    world.device.write(&format!("srv/panics-{NEW}"), "");
    let (mut running, _) = world.run().await;
    let result = world.try_kernel(&mut running, 1, &["linux-image-amd64", "pw-a"]).await;
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK), (true, None)]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    let words = format!(
        "the kernel {NEW} was started once, and the machine has come up with {OLD}; taken back to the kernel {OLD}"
    );
    assert_eq!(result.message, words);
    assert_eq!((world.starts(), world.runs(), result.restarts), (vec![NEW.into(), OLD.into()], OLD.into(), 1));
    let told =
        [(Step::CheckBefore, "healthy", true), (Step::CheckAfter, "healthy", true), (Step::Rollback, "kernel", true)];
    assert_eq!(steps(&result)[..3], told);
    assert_eq!(steps(&result)[3..], [(Step::CheckRolledBack, "healthy", true)]);
    assert_eq!(world.told_to_grub(), saved(OLD), "the new one is held");
    let report = world.report_after(1).await;
    assert_eq!(report.restart.required, Tristate::Unknown, "{:?}", report.restart);
    assert_eq!(world.at("linux-image-6.1.0-38-amd64"), "6.1.147-1", "its package stays");

    // One more kernel is no longer held, and what was set before both comes back.
    let newer = Package {
        file: "boot/vmlinuz-6.1.0-39-amd64",
        postinst: INSTALL_NEWER,
        ..Package::new("linux-image-6.1.0-39-amd64", "6.1.150-1")
    };
    let meta =
        Package { control: "Depends: linux-image-6.1.0-39-amd64\n", ..Package::new("linux-image-amd64", "6.1.150-1") };
    world.device.offer(&[newer, meta]);
    world.rescan(&mut running, |report| report.counts.updates > 0).await;
    let result = world.try_kernel(&mut running, 2, &["linux-image-amd64"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}\n{}", world.device.log());
    assert_eq!(
        (world.starts()[2..].to_vec(), world.told_to_grub()),
        (vec!["6.1.0-39-amd64".to_owned()], String::new())
    );
    assert!(!world.device.has("var/lib/patchwarden/kernel-held.json"));
}

// covers EM-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_with_which_a_check_fails_is_taken_back_by_one_more_restart_beside_the_packages() {
    let world = world().await;
    world.script("healthy", &sick_with(NEW, ""));
    let (mut running, _) = world.run().await;
    let result = world.try_kernel(&mut running, 1, &["linux-image-amd64", "pw-a"]).await;
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK); 2]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    let sick = format!("check healthy failed: ended with code 1: sick with {NEW}; taken back to");
    assert_eq!(result.actions[0].message, format!("{sick} the kernel {OLD}"));
    assert_eq!(result.actions[1].message, format!("{sick} pw-a 1.0"));
    assert_eq!((world.starts(), world.runs(), result.restarts), (vec![NEW.into(), OLD.into()], OLD.into(), 2));
    let told = [
        (Step::CheckBefore, "healthy", true),
        (Step::CheckAfter, "healthy", false),
        (Step::Rollback, "packages", true),
        (Step::Rollback, "kernel", true),
        (Step::CheckRolledBack, "healthy", true),
    ];
    assert_eq!(steps(&result), told);
    assert_eq!((world.told_to_grub(), world.at("pw-a")), (saved(OLD), "1.0".to_owned()));
    assert_eq!(world.gateway.purposes(), [Purpose::Act, Purpose::Restart], "the order has allowed the way back");
    assert_ne!(world.report_after(1).await.restart.required, Tristate::Yes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_for_which_no_restart_is_left_waits_for_the_next_one() {
    let world = world().await;
    world.script("healthy", &sick_with(NEW, ""));
    let (mut running, report) = world.run().await;
    let order = order(&world, 1, &report, &["linux-image-amd64"], rolling_back(&[]));
    let order = Order { restart: RestartRule { limit: 1, ..rule(RestartWhen::IfRequired) }, ..order };
    let result = world.restart_for(&mut running, &order).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![(false, CHECK_FAILED)]), "{result:#?}");
    let why = "no more than 1 in a row are allowed";
    assert!(result.message.contains(&format!("{OLD} is what starts next, and there was no restart")), "{result:#?}");
    assert!(result.restart_postponed.contains(why), "{result:#?}");
    assert_eq!((world.starts(), world.told_to_grub()), (vec![NEW.to_owned()], saved(OLD)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_boot_loader_cannot_go_back_the_kernel_stays_as_ever_and_the_reason_is_told() {
    let world = world().await;
    world.script("healthy", &sick_with(NEW, ""));
    world.device.write("etc/default/grub", "GRUB_DEFAULT=0\nGRUB_DISTRIBUTOR=Debian\n");
    world.device.chroot("update-grub");
    let (mut running, _) = world.run().await;
    let result = world.try_kernel(&mut running, 1, &["linux-image-amd64"]).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![(false, CHECK_FAILED)]), "{result:#?}");
    let why = "linux-image-amd64 is never brought to an earlier version, and not by its boot entry either: ";
    let how = "set GRUB_DEFAULT=saved in /etc/default/grub and make grub.cfg anew";
    let told = &result.actions[0].message;
    assert!(told.contains(why) && told.ends_with(how), "{told}");
    assert_eq!((world.starts(), world.told_to_grub()), (vec![NEW.to_owned()], String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owners_limits_and_the_policys_exceptions_leave_a_kernel_where_it_is() {
    let world = world().await;
    // The owner forbids it while the new one runs.
    let forbid = "echo \"verbs = ['Install', 'Restart']\" >/etc/patchwarden/limits.toml";
    world.script("healthy", &sick_with(NEW, forbid));
    let (mut running, _) = world.run().await;
    let result = world.try_kernel(&mut running, 1, &["linux-image-amd64"]).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![(false, CHECK_FAILED)]), "{result:#?}");
    assert!(result.message.contains("; it could not be taken back: "), "{}", result.message);
    assert!(result.message.contains("limits.toml does not allow"), "{}", result.message);
    assert_eq!((world.starts(), world.told_to_grub()), (vec![NEW.to_owned()], String::new()));

    let excluded = crate::kernels::world().await;
    excluded.script("healthy", &sick_with(NEW, ""));
    let (mut running, report) = excluded.run().await;
    let order = order(&excluded, 1, &report, &["linux-image-amd64"], rolling_back(&["linux-image-*"]));
    let result = excluded.restart_for(&mut running, &order).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![(false, CHECK_FAILED)]), "{result:#?}");
    let told = &result.actions[0].message;
    assert!(told.ends_with("rollback.excludePackages of the policy has linux-image-amd64"), "{told}");
    assert_eq!((excluded.starts(), excluded.told_to_grub()), (vec![NEW.to_owned()], String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_does_not_take_place_leaves_the_boot_loader_as_it_was() {
    let world = world().await;
    world.script("healthy", "");
    let before = world.device.read("boot/grub/grubenv");
    world.device.restart_by("grub-editenv - list >/var/log/armed; echo not today >&2; exit 3");
    let (mut running, _) = world.run().await;
    let result = world.try_kernel(&mut running, 1, &["linux-image-amd64"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert!(result.restart_postponed.contains("not today"), "{result:#?}");
    let next = saved(NEW).replace("saved", "next");
    assert_eq!(world.device.read("var/log/armed"), format!("{}{next}", saved(OLD)));
    assert_eq!(world.device.read("boot/grub/grubenv"), before, "to the byte");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_the_restart_back_runs_its_command_once_more_and_not_twice() {
    let world = world().await;
    world.script("healthy", &sick_with(NEW, ""));
    // As if the agent were killed between the journal and the command.
    world.device.restart_by(&format!("[ ! -e /var/log/starts ] || {{ die; exit; }}\n{START}"));
    let (mut running, report) = world.run().await;
    world.give(&order(&world, 1, &report, &["linux-image-amd64"], rolling_back(&[]))).await;
    let waits = || world.said("has not restarted yet").then_some(());
    world.until_restarting(&mut running, "waiting", waits).await;
    assert_eq!((world.calls(), world.gateway.results().len()), (3, 0), "{}", world.device.log());
    // The machine loses its power after that.
    running.kill();
    assert_eq!(world.told_to_grub(), saved(OLD));
    world.device.restart_by(START);
    world.device.chroot("/usr/local/sbin/pw-restart || true");
    running = world.device.start();
    let result = world.restarted_result(&mut running, 1).await;
    assert_eq!(summary(&result), (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK)]), "{result:#?}");
    assert_eq!((world.starts(), result.restarts), (vec![NEW.into(), OLD.into()], 2));
    assert_eq!(world.gateway.purposes(), [Purpose::Act, Purpose::Restart]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_again_and_again_tries_a_sick_kernel_once_and_ends_on_the_earlier_one() {
    let world = world().await;
    world.script("healthy", &sick_with(NEW, ""));
    let (mut running, report) = world.run().await;
    world.give(&order(&world, 1, &report, &["linux-image-amd64"], rolling_back(&[]))).await;
    world.gateway.phase("Verified").await;
    let kills = world.kill_again_and_again(&mut running, 1500).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK)]), "{kills}: {result:#?}");
    let starts = world.starts();
    assert_eq!(starts.iter().filter(|kernel| *kernel == NEW).count(), 1, "{kills} kills: {starts:?}");
    assert_eq!((world.runs(), world.told_to_grub()), (OLD.to_owned(), saved(OLD)), "{kills} kills: {starts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_again_and_again_leaves_a_healthy_kernel_as_what_starts() {
    let world = world().await;
    world.script("healthy", "");
    let before = world.device.read("boot/grub/grubenv");
    // A second call while it goes down already is none.
    world.device.restart_by(&format!("[ ! -e /var/log/starts ] || exit 0\n{START}"));
    let (mut running, report) = world.run().await;
    world.give(&order(&world, 1, &report, &["linux-image-amd64"], rolling_back(&[]))).await;
    world.gateway.phase("Verified").await;
    let kills = world.kill_again_and_again(&mut running, 1500).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{kills}: {result:#?}");
    assert_eq!((world.starts(), world.runs()), (vec![NEW.to_owned()], NEW.to_owned()), "{kills} kills");
    assert_eq!(world.device.read("boot/grub/grubenv"), before, "{kills} kills");
}
