//! File systems that are too small for what an order brings there: told before anything is done, and only of the updates of which it is
//! true. The file systems are real ones (tmpfs), as are the package managers.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason};

use crate::device::{Device, Package};
use crate::dnf::{self, Dnf};
use crate::rpm;
use crate::world::{Summary, World, summary};
use crate::zypper;

const FULL: Option<ResultReason> = Some(ResultReason::DiskFull);

/// The second of three updates has no room.
fn only_the_second() -> Summary {
    (Outcome::Failed, FULL, vec![(true, None), (false, FULL), (true, None)])
}

/// A file system of its own for /boot, in which a kernel of 5 MB and its initial ramdisk leave 3 MB, with what belongs to no kernel.
pub(crate) fn small_boot(device: &Device, release: &str) {
    device.chroot(&format!(
        "mkdir -p /boot; mount -t tmpfs -o size=8m tmpfs /boot; mkdir /boot/grub; \
         head -c 1000000 /dev/urandom >/boot/vmlinuz-{release}; head -c 4000000 /dev/urandom >/boot/initrd-{release}"
    ));
}

/// What is told of the kernel for which there is no room.
fn assert_says_what_to_do(result: &InstallResult) {
    let message = &result.actions[1].message;
    assert!(message.starts_with("/boot: 5.0 MB are needed, 3."), "{message}");
    assert!(message.contains(" MB are free: make room there"), "{message}");
    assert!(message.ends_with("as the largest there; remove one that is not used)"), "{message}");
}

/// A file system of its own for /usr, as large as what is in it, and two megabytes more.
fn usr_of_its_own(device: &Device) {
    device.chroot(
        "mkdir /srv/usr; mount -t tmpfs -o size=1g tmpfs /srv/usr; cp -a /usr/. /srv/usr; mount --move /srv/usr /usr; \
         mount -o remount,size=$(($(df --output=used -k /usr | tail -n 1) + 2000))k /usr",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_for_which_boot_is_too_small_is_told_before_the_install_and_the_others_go_on() {
    let of = |release: &'static str, file, version| Package { file, ..Package::new(release, version) };
    let installed = [
        of("linux-image-6.1.0-37-amd64", "boot/vmlinuz-6.1.0-37-amd64", "6.1.140-1"),
        Package { control: "Depends: linux-image-6.1.0-37-amd64\n", ..Package::new("linux-image-amd64", "6.1.140-1") },
        Package::new("pw-a", "1.0"),
        Package::new("pw-b", "1.0"),
    ];
    let offered = [
        of("linux-image-6.1.0-38-amd64", "boot/vmlinuz-6.1.0-38-amd64", "6.1.147-1"),
        Package { control: "Depends: linux-image-6.1.0-38-amd64\n", ..Package::new("linux-image-amd64", "6.1.147-1") },
        Package { kilobytes: 300, ..Package::new("pw-a", "2.0") },
        Package::new("pw-b", "2.0"),
    ];
    let world = World::of(&installed, &offered).await;
    small_boot(&world.device, "6.1.0-37-amd64");
    let (_running, _) = world.run().await;
    // The package that is ordered has nothing in /boot: what it needs has.
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "linux-image-amd64", "pw-b"]).await;
    assert_eq!(summary(&result), only_the_second(), "{result:#?}");
    assert_says_what_to_do(&result);
    assert!(!world.device.has("boot/vmlinuz-6.1.0-38-amd64") && world.at("linux-image-amd64") == "6.1.140-1");
    assert_eq!(world.gateway.nonces().len(), 1, "the others were begun once");

    // What is ahead of it, and nothing to unpack yet, is downloaded.
    let result = world.carry_out_all(2, Verb::Download, &["linux-image-amd64"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    world.device.chroot("mount -o remount,size=11m /boot");
    let result = world.carry_out_all(3, Verb::Install, &["linux-image-amd64"]).await;
    world.device.chroot("test -e /boot/vmlinuz-6.1.0-38-amd64; umount /boot");
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_room_on_a_file_system_of_its_own_is_told_before_the_install_and_the_others_go_on() {
    let installed = ["pw-a", "pw-b", "pw-c"].map(|name| Package::new(name, "1.0"));
    let offered = [
        Package::new("pw-a", "2.0"),
        Package { kilobytes: 3000, ..Package::new("pw-b", "2.0") },
        Package::new("pw-c", "2.0"),
    ];
    let world = World::of(&installed, &offered).await;
    usr_of_its_own(&world.device);
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-b", "pw-c"]).await;
    assert_eq!(summary(&result), only_the_second(), "{result:#?}\n{}", world.gateway.output());
    let message = &result.actions[1].message;
    assert!(message.starts_with("/usr: 3.1 MB are needed, ") && message.ends_with(": make room there"), "{message}");
    assert_eq!(world.gateway.nonces().len(), 1, "the others were begun once");
    assert_eq!(["pw-a", "pw-b", "pw-c"].map(|name| world.at(name)), ["2.0", "1.0", "2.0"]);
    assert!(!world.gateway.output().contains("No space left"), "dpkg did not have to find out");

    world.device.chroot("mount -o remount,size=100% /usr");
    let result = world.carry_out_all(2, Verb::Install, &["pw-b"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    world.device.chroot("umount -l /usr");
}

async fn a_small_boot(dnf: Dnf) {
    let world = dnf::world(dnf).await;
    small_boot(&world.device, "5.14.0-1");
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "kernel-core", "pw-b"]).await;
    assert_eq!(summary(&result), only_the_second(), "{result:#?}");
    assert_says_what_to_do(&result);
    assert_eq!(rpm::versions(&world.device)["kernel-core"], ["5.14.0-1"]);
    world.device.chroot("umount /boot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_4_is_not_let_go_with_a_kernel_for_which_boot_is_too_small() {
    a_small_boot(Dnf::Four).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_is_not_let_go_with_a_kernel_for_which_boot_is_too_small() {
    a_small_boot(Dnf::Five).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_is_not_let_go_with_a_kernel_for_which_boot_is_too_small() {
    let world = zypper::world().await;
    small_boot(&world.device, "5.14.0-1");
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "kernel-default", "pw-b"]).await;
    world.device.chroot("umount /boot");
    assert_eq!(summary(&result), only_the_second(), "{result:#?}");
    assert_says_what_to_do(&result);
    assert_eq!(rpm::versions(&world.device)["kernel-default"], ["5.14.0-1"]);
}
