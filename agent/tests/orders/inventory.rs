//! What of the inventory is sent when, and what it costs.

use patchwarden_protocol::details::Hardware;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::Tristate;

use crate::world::World;

// covers CL-1, EM-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_changed_package_does_not_send_the_whole_list_again() {
    let world = World::new().await;
    let (mut running, before) = world.run().await;
    world.gateway.until("list", |gateway| gateway.software().is_some().then_some(())).await;
    world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    let after = world.report_after(1).await;
    assert_ne!(after.software_digest, before.software_digest);
    // What was sent of the two lists: all of the first, and what differs of the second.
    let sent = world.gateway.software_bytes();
    let (whole, delta) = (sent[0].0, sent.iter().map(|(_, delta)| *delta).max().unwrap());
    assert_eq!(sent.iter().filter(|(whole, _)| *whole > 0).count(), 1, "{sent:?}");
    assert!(delta > 0 && delta * 10 < whole, "{sent:?}");
    let list = world.gateway.software().unwrap();
    let version = list.packages.iter().find(|package| package.name == "pw-a").map(|package| package.version.as_str());
    assert_eq!(version, Some("2.0"));
    // A machine that has not changed, and owes no result, sends neither.
    world.until_cleaned_up("1-1").await;
    let (messages, scans) = (world.gateway.arrivals().len(), world.scans());
    running.kill();
    running = world.device.start();
    world.gateway.until("scan", |_| (world.scans() > scans).then_some(())).await;
    assert_eq!(world.gateway.arrivals().len(), messages);
    // Two changes while nobody could be told: the whole list is what is known to be right.
    world.gateway.set_down(true);
    for package in ["pw-b", "pw-slow"] {
        let scans = world.scans();
        running.kill();
        world.device.let_go();
        world.device.chroot(&format!("apt-get -qq install -y {package} >/dev/null 2>&1"));
        running = world.device.start();
        world.gateway.until("scan", |_| (world.scans() > scans).then_some(())).await;
    }
    world.gateway.set_down(false);
    let updates = after.counts.updates;
    let latest = world.gateway.report(|report| report.counts.updates == updates - 2).await;
    world.gateway.until("list", |gateway| (gateway.software_digest() == latest.software_digest).then_some(())).await;
    drop(running);
}

// covers EM-1, EM-15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_machine_is_made_of_is_sent_when_it_changes() {
    let world = World::new().await;
    world.device.chroot(
        "mkdir -p /sys/class/dmi/id /sys/block/vda/device /sys/class/net/eth0/device; cd /sys
         echo ACME >class/dmi/id/sys_vendor; echo X1 >class/dmi/id/product_name; echo S123 >class/dmi/id/product_serial
         echo 1.0 >class/dmi/id/bios_version; echo 2048 >block/vda/size; echo 1 >class/net/eth0/carrier
         echo 00:11:22:33:44:55 >class/net/eth0/address",
    );
    let (mut running, _) = world.run().await;
    let details = world.gateway.until("details", |gateway| gateway.details().first().cloned()).await;
    let Hardware { vendor, product, serial, firmware, processors, memory_bytes, disks, interfaces, .. } =
        details.hardware;
    assert_eq!((vendor.as_str(), product.as_str(), serial.as_str()), ("ACME", "X1", "S123"));
    assert_eq!((firmware.version.as_str(), disks[0].name.as_str(), disks[0].bytes), ("1.0", "vda", 1_048_576));
    assert_eq!((interfaces[0].mac.as_str(), interfaces[0].link), ("00:11:22:33:44:55", Tristate::Yes));
    let threads = std::fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor\t:").count();
    assert_eq!(processors as usize, threads);
    assert!(memory_bytes > 1 << 28, "{memory_bytes}");
    // The same machine says nothing, in this session and in the next.
    let scans = world.scans();
    world.rescan(&mut running, |_| true).await;
    world.gateway.until("scan", |_| (world.scans() > scans).then_some(())).await;
    assert_eq!(world.gateway.details().len(), 1);
    // New firmware; and nothing that tells of people any more.
    let settings = world.device.read("etc/patchwarden/agent.toml");
    world.device.write("etc/patchwarden/agent.toml", &format!("omit_personal_data = true\n{settings}"));
    world.device.write("sys/class/dmi/id/bios_version", "1.1\n");
    world.rescan(&mut running, |_| true).await;
    let changed = world.gateway.until("details", |gateway| gateway.details().get(1).cloned()).await;
    assert_eq!(changed.hardware.firmware.version, "1.1");
    assert_eq!((changed.hardware.serial.as_str(), changed.hardware.interfaces[0].mac.as_str()), ("", ""));
    assert!(changed.since > details.since);
}
