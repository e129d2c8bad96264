//! New keys in the place of old ones, while a machine is off.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use patchwarden::api::DeviceInventory;
use patchwarden_protocol::result::Outcome;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};
use serde_json::Value;

use crate::Test;
use crate::copies::condition;
use crate::crash::compliance;
use crate::world::{Device, World, eventually};

pub const TESTS: &[Test] = &[
    (
        "a_machine_that_is_off_while_all_keys_are_replaced_follows_and_takes_orders",
        a_machine_that_is_off_while_all_keys_are_replaced_follows_and_takes_orders,
    ),
    (
        "a_machine_whose_certificate_has_ended_renews_it_and_takes_orders",
        a_machine_whose_certificate_has_ended_renews_it_and_takes_orders,
    ),
    (
        "a_machine_that_joined_is_pending_until_its_key_is_accepted_with_kubectl",
        a_machine_that_joined_is_pending_until_its_key_is_accepted_with_kubectl,
    ),
];

const STATE: &str = "/var/lib/patchwarden";

fn a_machine_that_is_off_while_all_keys_are_replaced_follows_and_takes_orders(world: &World) {
    let repository = world.repository("keys", &["alpha=1.0", "alpha=1.1"]);
    let [off, on] = ["keys-off", "keys-on"].map(|name| {
        let device = world.device(name, &repository, &[]);
        device.install(&["alpha=1.0"]);
        device
    });
    let tenant = world.tenant();
    for device in [&off, &on] {
        tenant.join(device);
        tenant.wait_for(&device.name, "it has reported", has_reported);
    }
    let pinned =
        |device: &Device<'_>| ["root.pub", "ca.pem"].map(|name| device.run(&["cat", &format!("{STATE}/{name}")]));
    let before = pinned(&off);
    off.pause_agent();

    let said = rotate(world, &["order", "root", "ca"]);
    assert!(said.0 && said.1.contains("root SHA256:") && said.1.matches("ca   SHA256:").count() == 2, "{said:?}");
    let refused = rotate(world, &["ca"]);
    assert!(!refused.0 && refused.1.contains("a CA is being replaced until"), "{refused:?}");
    // Twice: whoever is off has more than one link to follow.
    assert!(rotate(world, &["root"]).0);
    eventually("the machine that is on has followed", || (pinned(&on)[0] != before[0]).then_some(())).unwrap();
    let now = pinned(&on);
    assert!(now[0] != before[0] && now[1].starts_with(&before[1]) && now[1].len() > before[1].len());
    // Whoever joins now pins the same.
    let new = world.device("keys-new", &repository, &[]);
    tenant.join(&new);
    assert_eq!(pinned(&new), now);
    assert_eq!(pinned(&off), before, "it is off");

    // Its session is gone: it has to connect again, by what it pins.
    world.program("kill", "gateway");
    world.program("start", "gateway");
    off.resume_agent();
    tenant.install_everything();
    for device in [&off, &on] {
        let done = tenant.wait_for(&device.name, "what is approved was installed", |device| {
            compliance(device).last.iter().any(|past| past.outcome == Some(Outcome::Succeeded))
        });
        assert_eq!(compliance(&done).last.len(), 1, "by the first order: {:?}", compliance(&done).last);
        assert_eq!((device.version("alpha"), device.upgrades("alpha")), ("1.1".to_owned(), 1));
        eventually("it pins what counts", || (pinned(device) == now).then_some(())).unwrap();
    }
    // What is pinned is enough for a machine that starts anew.
    off.kill_agent();
    eventually("it is back", || off.log_since_kill()?.contains("connected to").then_some(())).unwrap();
}

fn a_machine_whose_certificate_has_ended_renews_it_and_takes_orders(world: &World) {
    let repository = world.repository("ended", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("ended-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.join(&device);
    let lasts = |device: &DeviceInventory| certificate_until(device).is_some_and(|until| days_from_now(until) > 6.9);
    tenant.wait_for(&device.name, "its certificate counts for a week", |device| has_reported(device) && lasts(device));

    // As if it had been off for longer than 180 days: nothing renews that.
    let ended = certificate(world, &tenant.name, &device, -181);
    device.run(&["sh", "-c", &format!("printf '%s' '{ended}' >{STATE}/certificate.pem")]);
    device.kill_agent();
    eventually("it does not get in", || {
        let log = device.log_since_kill()?;
        assert!(!log.contains("connected to") && !log.contains("is renewed"), "{log}");
        (log.matches("connecting again in").count() > 1).then_some(())
    })
    .unwrap();
    tenant.wait_for(&device.name, "it is offline", |device| {
        device.status.as_ref().and_then(|status| status.inventory.as_ref()).is_some_and(|inventory| !inventory.online)
    });

    // And for a month.
    let ended = certificate(world, &tenant.name, &device, -30);
    device.run(&["sh", "-c", &format!("printf '%s' '{ended}' >{STATE}/certificate.pem")]);
    device.kill_agent();
    eventually("it renews its certificate and is connected", || {
        let log = device.log_since_kill()?;
        let (_, after) = log.split_once("the certificate had expired and is renewed")?;
        after.contains("connected to").then_some(())
    })
    .unwrap();
    assert_ne!(device.run(&["cat", &format!("{STATE}/certificate.pem")]), ended);
    tenant.wait_for(&device.name, "it is online", |device| has_reported(device) && lasts(device));
    tenant.install_everything();
    eventually("it has carried out an order", || (device.version("alpha") == "1.1").then_some(())).unwrap();
}

/// A certificate of the device's key that ends so many days from now, as the controller would have signed it, with what follows it in the file.
fn certificate(world: &World, tenant: &str, device: &Device<'_>, days: i32) -> String {
    let secret = ["get", "secret", "-n", "patchwarden-system", "patchwarden-keys", "-o", "json"];
    let secret: Value = serde_json::from_str(&world.kubectl(&secret)).unwrap();
    let entry = |name: &str| {
        let bytes = STANDARD.decode(secret["data"][name].as_str().unwrap_or_else(|| panic!("{name}"))).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let issuer = Issuer::from_ca_cert_pem(&entry("ca.crt"), KeyPair::from_pem(&entry("ca.key")).unwrap()).unwrap();
    let day = |days: i32| {
        let date = Timestamp::now().to_zoned(TimeZone::UTC).date().checked_add(Span::new().days(days)).unwrap();
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{tenant}/{}", device.name));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (day(days - 7), day(days));
    let key = KeyPair::from_pem(&device.run(&["cat", &format!("{STATE}/key.pem")])).unwrap();
    format!("{}{}", params.signed_by(&key, &issuer).unwrap().pem(), entry("ca.crt"))
}

fn certificate_until(device: &DeviceInventory) -> Option<Timestamp> {
    device.status.as_ref()?.inventory.as_ref()?.certificate_until
}

fn days_from_now(time: Timestamp) -> f64 {
    time.duration_since(Timestamp::now()).as_secs_f64() / 86_400.0
}

fn a_machine_that_joined_is_pending_until_its_key_is_accepted_with_kubectl(world: &World) {
    let repository = world.repository("pending", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("pending-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.install_everything();
    let command = world.enroll_pending(&tenant.name).trim().to_owned();
    let ask = format!("{command} --name pending-1 --refresh-spread 0 --wait 2m >/root/join.log 2>&1 &");
    device.run(&["sh", "-c", &ask]);
    // The gateway writes the key, and the controller what follows from it.
    let waiting = tenant.wait_for("pending-1", "its key waits and a person is told", |device| {
        let is_told = |key| condition(device, "Stalled").is_some_and(|stalled| stalled.2.contains(key));
        let ready = condition(device, "Ready");
        pending_key(device).is_some_and(is_told)
            && ready.is_some_and(|ready| (ready.0, ready.1) == ("False", "KeyPending"))
    });
    let key = pending_key(&waiting).unwrap().to_owned();
    assert_eq!((waiting.spec.accepted_key.as_deref(), certificate_until(&waiting)), (None, None));
    // On the machine and for the person it is the same key, with the command to accept it.
    eventually("the machine says so, too", || device.run(&["cat", "/root/join.log"]).contains(&key).then_some(()))
        .unwrap();
    let status = tenant.plugin(&["status"], "");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let accept = status.lines().find_map(|line| line.split_once("then: kubectl ")).expect(&status).1.to_owned();
    assert!(accept.contains(&key) && accept.contains("acceptedKey"), "{accept}");

    // Another key is none: the machine goes on waiting.
    let other = "SHA256:".to_owned() + &"A".repeat(43);
    let patch = |key: &str| {
        let spec = serde_json::json!({ "spec": { "acceptedKey": key } }).to_string();
        world.kubectl(&["patch", "devinv", "-n", &tenant.name, "pending-1", "--type=merge", "-p", &spec]);
    };
    patch(&other);
    tenant.wait_for("pending-1", "the controller has seen it", |device| {
        let status = device.status.as_ref();
        status.and_then(|status| status.observed_generation) == device.metadata.generation
    });
    std::thread::sleep(std::time::Duration::from_secs(5));
    let refused = tenant.device("pending-1");
    assert_eq!((pending_key(&refused), certificate_until(&refused)), (Some(key.as_str()), None));
    assert!(!device.run(&["cat", "/root/join.log"]).contains("Joined as"));
    assert_eq!((tenant.jobs().len(), device.version("alpha").as_str()), (0, "1.0"));

    // The command that `status` says.
    let words: Vec<String> = accept.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect();
    world.kubectl(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let accepted = tenant.wait_for("pending-1", "it is believed", |device| {
        has_reported(device) && condition(device, "Ready").is_some_and(|ready| ready.0 == "True")
    });
    assert_eq!((accepted.spec.accepted_key.as_deref(), pending_key(&accepted)), (Some(key.as_str()), None));
    assert!(
        device.run(&["cat", "/root/join.log"]).contains(&format!("Joined as {}/pending-1, key {key}.", tenant.name))
    );
    eventually("and it takes orders", || (device.version("alpha") == "1.1").then_some(())).unwrap();
}

fn pending_key(device: &DeviceInventory) -> Option<&str> {
    device.status.as_ref()?.inventory.as_ref()?.pending_key.as_deref()
}

fn has_reported(device: &DeviceInventory) -> bool {
    let inventory = device.status.as_ref().and_then(|status| status.inventory.as_ref());
    inventory.is_some_and(|inventory| inventory.online && inventory.report.is_some())
}

/// `kubectl patchwarden rotate`: whether it has done it, and what it says.
fn rotate(world: &World, what: &[&str]) -> (bool, String) {
    let output = world.run_plugin(&[&["rotate"], what].concat());
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}
