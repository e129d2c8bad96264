//! Somebody holds the gateway: its rights in the cluster, its database, its door. They can delay, and neither install anything,
//! nor make the controller approve something, nor forge what a device says.
//!
//! Their gateway is the real one, which delivers what lies in its database as it is, with rows of theirs in it; and kubectl with
//! the gateway's own account.

use std::path::PathBuf;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use patchwarden::api::device_inventory::InstallPhase;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::canonical;
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::{Order, Sequence, SignedOrder};
use patchwarden_protocol::result::{InstallResult, Outcome};
use serde_json::{Value, json};

use crate::Test;
use crate::crash::compliance;
use crate::quiet::condition;
use crate::restore::installs;
use crate::world::{Device, Tenant, World, eventually, succeeded, with_input};

pub const TESTS: &[Test] = &[
    (
        "whoever_holds_the_gateway_changes_nothing_that_is_decided",
        whoever_holds_the_gateway_changes_nothing_that_is_decided,
    ),
    ("whoever_holds_the_gateway_gives_no_orders", whoever_holds_the_gateway_gives_no_orders),
    ("whoever_holds_the_gateway_forges_no_success", whoever_holds_the_gateway_forges_no_success),
];

// covers BY-2
fn whoever_holds_the_gateway_changes_nothing_that_is_decided(world: &World) {
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.apply(DEVICE);
    tenant.wait_for("x", "the controller has seen it", |device| {
        device.status.as_ref().is_some_and(|status| !status.conditions.is_empty())
    });
    let attacker = Attacker { world, tenant: &tenant };
    let spec = r#"{"spec": {"suspend": false, "acceptedKey": null}, "metadata": {"labels": {"ring": "pilot"}}}"#;
    let patch =
        |what: &[&str], patch: &str| attacker.fails(&[&["patch"], what, &["--type=merge", "-p", patch]].concat(), "");
    let forbidden = |told: String| {
        assert!(
            told.contains("is forbidden: User \"system:serviceaccount:patchwarden-system:patchwarden-gateway\" cannot"),
            "{told}"
        );
    };
    forbidden(patch(&["devinv", "x"], spec));
    for (kind, name) in [("pp", "everything"), ("agrp", "everybody"), ("mw", "anytime")] {
        forbidden(patch(&[kind, name], r#"{"metadata": {"labels": {"ring": "pilot"}}}"#));
        let told = attacker.fails(APPLY_STATUS, &tenant.bare(kind, name, r#""status": {"conditions": []}"#));
        assert!(told.contains("cannot patch resource"), "{told}");
        forbidden(attacker.fails(&["delete", kind, name], ""));
    }
    // By the one thing that it may write it changes nothing else.
    let before = tenant.get(&["devinv", "x"]);
    let everything = r#""spec": {"suspend": false}, "status": {"inventory": {"online": true}}"#;
    let named = r#""metadata": {"labels": {"ring": "pilot"}, "annotations": {"a": "b"}, "#;
    let everything = tenant.bare("devinv", "x", everything).replace(r#""metadata": {"#, named);
    attacker.does(APPLY_STATUS, &everything);
    let after = tenant.get(&["devinv", "x"]);
    assert_eq!(after["status"]["inventory"]["online"], true, "{after}");
    let parts = |object: &Value| {
        [&object["spec"], &object["metadata"]["labels"], &object["metadata"]["annotations"]].map(Clone::clone)
    };
    assert_eq!(parts(&after), parts(&before));
    let refused = |status: &str, words: &str| {
        let told = attacker.fails(APPLY_STATUS, &tenant.bare("devinv", "x", &format!(r#""status": {status}"#)));
        assert!(told.contains(words), "{told}");
    };
    let decided = "only Patchwarden's controller writes status.compliance and status.conditions";
    refused(r#"{"compliance": {"reportCounter": 7}}"#, decided);
    let compliant = json!({"type": "Compliant", "status": "True", "reason": "UpToDate", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    refused(&json!({"conditions": [compliant]}).to_string(), decided);
    refused(r#"{"observedGeneration": 9}"#, decided);

    // What it makes is of no group, policy or ring that goes by labels.
    let labelled =
        attacker.fails(&["create", "-f", "-"], &DEVICE.replace("name: x", "name: new, labels: {ring: pilot}"));
    assert!(labelled.contains("gives a new device no labels"), "{labelled}");
    let retired = attacker.fails(
        &["create", "-f", "-"],
        &DEVICE.replace("name: x", "name: new").replace("suspend: true", "lifecycle: Retired"),
    );
    assert!(retired.contains("sets no more than type and acceptedKey"), "{retired}");

    forbidden(attacker.fails(&["create", "-f", "-"], JOB));
    forbidden(attacker.fails(&["create", "secret", "generic", "s"], ""));
    let system = ["-n", "patchwarden-system"];
    forbidden(attacker.fails(&[&["get", "secret", "patchwarden-keys"], &system[..]].concat(), ""));
    forbidden(attacker.fails(&[&["get", "lease", "patchwarden-controller"], &system[..]].concat(), ""));
    for right in [
        ["patch", "jobs.batch"],
        ["update", "leases.coordination.k8s.io"],
        ["patch", "configmaps"],
        ["approve", "signers.certificates.k8s.io"],
        ["patch", "certificatesigningrequests/approval"],
        ["update", "certificatesigningrequests/status"],
        ["create", "rolebindings.rbac.authorization.k8s.io"],
        ["impersonate", "serviceaccounts"],
        ["create", "serviceaccounts/token"],
        ["create", "pods"],
        ["create", "pods/exec"],
        ["delete", "deviceinventories.patchwarden.io"],
        ["update", "deviceinventories.patchwarden.io/status"],
        ["patch", "validatingadmissionpolicies.admissionregistration.k8s.io"],
    ] {
        let answer = attacker.run(&[&["auth", "can-i"], &right[..], &system[..]].concat(), "");
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "no", "{right:?}");
    }
}

// covers BY-2
fn whoever_holds_the_gateway_gives_no_orders(world: &World) {
    let Two { tenant, victim, neighbour } = &world_of_two(world, "orders");
    let attacker = Attacker { world, tenant };
    let genuine = attacker.order_of(victim);
    let before = (victim.upgrades("alpha"), victim.packages());

    // Each would be carried out but for one thing.
    let order = genuine.order.peek().expect("an order");
    let report = tenant.device(&victim.name).status.and_then(|status| status.inventory?.report).expect("a report");
    let sequence = report.last_sequence.expect("it has had an order");
    let now = Timestamp::now();
    let wanted = |more: u32, not_after: Timestamp| Order {
        sequence: Sequence { number: sequence.number + more, ..sequence },
        report_digest: canonical::digest_of(&report).unwrap(),
        not_before: now - SignedDuration::from_mins(10),
        not_after,
        ..order.clone()
    };
    let soon = now + SignedDuration::from_secs(25);
    let made_up = {
        let (root, key) = (PrivateKey::generate(), PrivateKey::generate());
        let until = now + SignedDuration::from_hours(1);
        let delegation = Delegation { order_key: key.public(), not_before: order.not_before, not_after: until };
        SignedOrder {
            order: Envelope::seal(&wanted(1, soon), &key).unwrap(),
            delegation: Envelope::seal(&delegation, &root).unwrap(),
        }
    };
    let altered = SignedOrder {
        order: Envelope::reassemble(&wanted(2, soon), genuine.order.signatures[0].clone()).unwrap(),
        ..genuine.clone()
    };
    // As if they had kept back what the controller gave once: it has no claim for any of these now.
    let (order_key, delegation) = order_key(world);
    let kept_back = |order: Order| SignedOrder {
        order: Envelope::seal(&order, &order_key).unwrap(),
        delegation: delegation.clone(),
    };
    let late = kept_back(wanted(3, now - SignedDuration::from_secs(1)));
    let neighbours_key = attacker.order_of(neighbour).order.peek().expect("an order").device_key;
    let of_another = kept_back(Order { device_key: neighbours_key, ..wanted(4, soon) });
    let unclaimed = kept_back(wanted(5, soon));
    let attacks = [
        (&made_up, "Refused", "BadSignature"),
        (&altered, "Refused", "BadSignature"),
        (&late, "Refused", "Expired"),
        (&of_another, "Refused", "OtherDevice"),
        (&unclaimed, "Expired", "Expired"),
    ];
    // What the device has carried out already is brought again, too.
    attacker.sql(&format!(
        "UPDATE install SET result = NULL, deadline = {} WHERE device = '{}';",
        (now + SignedDuration::from_hours(1)).as_millisecond(),
        victim.name
    ));
    for (signed, ..) in &attacks {
        attacker.keep(victim, signed);
    }
    world.program("kill", "gateway");
    world.program("start", "gateway");

    let known = || installs(world, tenant, victim);
    for (signed, outcome, reason) in attacks {
        let digest = signed.order.digest();
        eventually(&format!("it is told that an order was {outcome}: {reason}"), || {
            let known = known();
            let of_it = known.iter().find(|it| it["order"] == digest.as_str())?;
            (of_it["outcome"] == outcome && of_it["reason"] == reason).then_some(())
        })
        .unwrap_or_else(|why| panic!("{why}: {:#?}", known()));
    }
    let again = genuine.order.digest();
    eventually("the result of the first order is there again", || {
        known().iter().any(|it| it["order"] == again.as_str() && it["outcome"] == "Succeeded").then_some(())
    })
    .unwrap();
    assert_eq!((victim.upgrades("alpha"), victim.packages()), before, "nothing was done");
    assert_eq!(compliance(&tenant.device(&victim.name)).last.len(), 1, "nothing is recorded of what nobody decided");
}

// covers BY-2
fn whoever_holds_the_gateway_forges_no_success(world: &World) {
    let Two { tenant, victim, neighbour } = &world_of_two(world, "forges");
    let attacker = Attacker { world, tenant };
    let inventory = |device: &Device<'_>| tenant.get(&["devinv", &device.name])["status"]["inventory"].clone();
    let [own, of_neighbour] = [victim, neighbour].map(inventory);
    // The real one would put right what is written in its place.
    world.program("kill", "gateway");
    let says = |reason: &str, words: &str| {
        eventually(&format!("the device's condition says {reason}"), || {
            let ready = condition(&tenant.get(&["devinv", &victim.name]), "Ready");
            let is_it = ready["reason"] == reason && ready["message"].as_str().is_some_and(|why| why.contains(words));
            is_it.then_some(())
        })
        .unwrap_or_else(|why| panic!("{why}: {}", tenant.get(&["devinv", &victim.name])["status"]));
        let compliant = condition(&tenant.get(&["devinv", &victim.name]), "Compliant");
        (compliant["status"].clone(), compliant["reason"].clone())
    };

    // A report in which nothing is missing any more, by nobody, by the attacker, and by another device.
    let mut fixed = own.clone();
    fixed["report"]["updates"] = json!([]);
    attacker.writes(victim, &fixed);
    assert_eq!(says("ReportRefused", "no valid signature").0, "Unknown");
    let key = PrivateKey::generate();
    let forged = serde_json::from_value(fixed["report"].clone()).unwrap();
    let forged: Envelope<patchwarden_protocol::report::Report> = Envelope::seal(&forged, &key).unwrap();
    fixed["signature"] = json!(forged.signatures[0]);
    fixed["publicKey"] = json!(key.public());
    attacker.writes(victim, &fixed);
    assert_eq!(says("KeyPending", "does not hold the accepted key").0, "Unknown");
    attacker.writes(victim, &of_neighbour);
    assert_eq!(says("KeyPending", "does not hold the accepted key").0, "Unknown");

    // With the device's own words it gets an order, which is kept from it: and its success is told.
    attacker.writes(victim, &own);
    tenant.suspend(victim, false);
    let claimed = tenant.wait_for(&victim.name, "its install is claimed", |device| {
        compliance(device).current.is_some_and(|current| current.phase == InstallPhase::Claimed)
    });
    let current = compliance(&claimed).current.expect("a claim");
    let with_result = |result: &Value| {
        let mut inventory = own.clone();
        inventory["result"] = result.clone();
        inventory
    };
    let open = |inventory: &Value| -> InstallResult {
        let result: Envelope<InstallResult> = serde_json::from_value(inventory["result"].clone()).unwrap();
        result.peek().unwrap()
    };
    let success =
        InstallResult { order_digest: current.order_digest.clone(), sequence: current.sequence, ..open(&own) };
    assert_eq!(success.outcome, Outcome::Succeeded);
    let by_attacker = Envelope::seal(&success, &key).unwrap();
    attacker.writes(victim, &with_result(&json!(by_attacker)));
    says("ResultRefused", "no valid signature");
    attacker.writes(victim, &with_result(&of_neighbour["result"]));
    says("ResultRefused", "no valid signature");
    let earlier: Envelope<InstallResult> = serde_json::from_value(own["result"].clone()).unwrap();
    let with_old_signature = Envelope::reassemble(&success, earlier.signatures[0].clone()).unwrap();
    attacker.writes(victim, &with_result(&json!(with_old_signature)));
    says("ResultRefused", "no valid signature");
    // That of the install before, which is the device's own.
    attacker.writes(victim, &own);
    assert_eq!(says("Enforced", "").0, "False");
    let after = compliance(&tenant.device(&victim.name));
    assert_eq!(after.current.map(|current| current.sequence), Some(current.sequence), "the claim holds");
    assert_eq!(after.last.len(), 1, "{:?}", after.last);

    // They could delay it, and no more.
    world.program("start", "gateway");
    let done = tenant.wait_for(&victim.name, "its install has ended", |device| compliance(device).last.len() == 2);
    assert_eq!(compliance(&done).last[0].outcome, Some(Outcome::Succeeded), "{:?}", compliance(&done).last);
    assert_eq!(victim.version("alpha"), "1.1");
}

/// Two devices that have carried out an order each; on the first the update is missing again, and it is suspended.
struct Two<'w> {
    tenant: Tenant<'w>,
    victim: Device<'w>,
    neighbour: Device<'w>,
}

fn world_of_two<'w>(world: &'w World, name: &str) -> Two<'w> {
    let repository = world.repository(&format!("attacker-{name}"), &["alpha=1.0", "alpha=1.1"]);
    let [victim, neighbour] = ["victim", "other"].map(|one| world.device(&format!("{name}-{one}"), &repository, &[]));
    let tenant = world.tenant();
    tenant.reader(world);
    tenant.install_everything();
    for device in [&victim, &neighbour] {
        device.install(&["alpha=1.0"]);
        tenant.join(device);
    }
    for device in [&victim, &neighbour] {
        tenant.wait_for(&device.name, "its install has ended", |device| compliance(device).last.len() == 1);
    }
    tenant.suspend(&victim, true);
    victim.run(&["apt-get", "-qq", "-y", "--allow-downgrades", "install", "alpha=1.0"]);
    victim.kill_agent();
    tenant.wait_for(&victim.name, "the update is missing again", |device| compliance(device).counts.missing == 1);
    Two { tenant, victim, neighbour }
}

/// Whoever holds the gateway.
struct Attacker<'w> {
    world: &'w World,
    tenant: &'w Tenant<'w>,
}

impl Attacker<'_> {
    /// kubectl with the gateway's own rights.
    fn run(&self, arguments: &[&str], input: &str) -> std::process::Output {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.programs().join("gateway.kubeconfig"));
        if !arguments.contains(&"-n") {
            command.args(["-n", &self.tenant.name]);
        }
        with_input(command.args(arguments), input)
    }

    fn does(&self, arguments: &[&str], input: &str) {
        succeeded("kubectl", arguments, &self.run(arguments, input));
    }

    /// What it is told.
    fn fails(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(!output.status.success(), "the gateway may do this: {arguments:?} {input}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Writes the gateway's part of a device's status, as it does.
    fn writes(&self, device: &Device<'_>, inventory: &Value) {
        let status = json!({"inventory": inventory});
        self.does(APPLY_STATUS, &self.tenant.bare("devinv", &device.name, &format!(r#""status": {status}"#)));
    }

    /// The order that the store has of a device.
    fn order_of(&self, device: &Device<'_>) -> SignedOrder {
        let text = self.sql(&format!("SELECT signed_order FROM install WHERE device = '{}';", device.name));
        serde_json::from_str(&text).expect("an order")
    }

    /// Puts an order for a device into the database, as if a Job had brought it.
    fn keep(&self, device: &Device<'_>, signed: &SignedOrder) {
        let order = signed.order.peek().expect("an order");
        let Sequence { epoch, number } = order.sequence;
        let now = Timestamp::now();
        // They are brought in the order of their deadlines.
        let deadline = now + SignedDuration::from_mins(60 + i64::from(number));
        self.sql(&format!(
            "INSERT INTO install (namespace, device, order_digest, epoch, number, signed_order, first_seen, deadline)
             VALUES ('{}', '{}', '{}', {epoch}, {number}, '{}', {}, {});",
            self.tenant.name,
            device.name,
            signed.order.digest(),
            serde_json::to_string(signed).unwrap().replace('\'', "''"),
            now.as_millisecond(),
            deadline.as_millisecond()
        ));
    }

    fn sql(&self, statement: &str) -> String {
        let mut command = Command::new("sqlite3");
        command.args(["-cmd", ".timeout 10000"]).arg(self.world.database());
        succeeded("sqlite3", &[statement], &with_input(&mut command, statement))
    }

    fn programs(&self) -> PathBuf {
        self.world.database().parent().expect("a directory").to_owned()
    }
}

impl Tenant<'_> {
    /// An object of one of our kinds, with no more than this in it.
    fn bare(&self, kind: &str, name: &str, fields: &str) -> String {
        let object = self.get(&[kind, name]);
        let (version, kind) = (&object["apiVersion"], &object["kind"]);
        format!(r#"{{"apiVersion": {version}, "kind": {kind}, "metadata": {{"name": "{name}"}}, {fields}}}"#)
    }

    fn suspend(&self, device: &Device<'_>, suspend: bool) {
        self.apply(&format!(
            "{{apiVersion: patchwarden.io/v1alpha1, kind: DeviceInventory, metadata: {{name: {}}}, spec: {{suspend: {suspend}}}}}",
            device.name
        ));
    }
}

/// The controller's own.
fn order_key(world: &World) -> (PrivateKey, Envelope<Delegation>) {
    use base64::Engine as _;
    let secret = world.kubectl(&["get", "secret", "-n", "patchwarden-system", "patchwarden-keys", "-o", "json"]);
    let secret: Value = serde_json::from_str(&secret).unwrap();
    let entry = |name: &str| {
        let text = secret["data"][name].as_str().unwrap_or_else(|| panic!("no {name}"));
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
    };
    let delegation = serde_json::from_str(&entry("order.delegation")).unwrap();
    (PrivateKey::from_pem(&entry("order.key")).unwrap(), delegation)
}

/// As the gateway writes it.
const APPLY_STATUS: &[&str] = &[
    "apply",
    "--server-side",
    "--force-conflicts",
    "--subresource=status",
    "--field-manager=patchwarden-gateway",
    "-f",
    "-",
];

const DEVICE: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: DeviceInventory
metadata: {name: x}
spec: {suspend: true}
";

const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: x}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}
";
