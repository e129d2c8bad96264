//! Two controllers: another leads when the leader dies, stops or is paused, and no device gets two orders.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use patchwarden_agent::simulation::{AFTER, BEFORE};
use patchwarden_protocol::result::Outcome;
use serde_json::{Value, json};

use crate::Test;
use crate::crash::compliance;
use crate::simulated::{Simulated, devices, has_ended, until};
use crate::world::{APPROVE_SECURITY, OPEN_WINDOW, POLICY, Tenant, World, eventually, signal};

pub const TESTS: &[Test] = &[
    (
        "the_other_controller_leads_when_the_leader_dies_or_stops",
        the_other_controller_leads_when_the_leader_dies_or_stops,
    ),
    (
        "a_leader_that_is_paused_past_its_lease_does_nothing_more",
        a_leader_that_is_paused_past_its_lease_does_nothing_more,
    ),
    (
        "only_the_leading_controller_claims_devices_and_answers_them",
        only_the_leading_controller_claims_devices_and_answers_them,
    ),
];

/// From a leader's end until another has the lease, at most; it acts some 3 s later, on a machine that has the time.
const HAND_OVER: Duration = Duration::from_secs(16);

/// Until it acts. By the API server's own log, which knows the moment.
const ACTS: Duration = Duration::from_secs(20);

/// The same where the leader has given its lease back.
const HAND_OVER_AT_ONCE: Duration = Duration::from_secs(5);

fn the_other_controller_leads_when_the_leader_dies_or_stops(world: &World) {
    let tenant = world.tenant();
    let agents = fleet(world, &tenant, 3);
    eventually("it leads", || leads(world, "controller").then_some(())).unwrap();
    world.program("start", "controller-2");

    world.program("kill", "controller");
    let died = Timestamp::now();
    tenant.apply(APPROVE_SECURITY);
    until(&tenant, 1, "has an order", |device| compliance(device).current.is_some() || has_ended(device));
    let led = led_after(world, died);
    let acted = acted_after(world, &tenant, died, led);
    println!("after its death another led in {:.1} s and acted in {:.1} s", led.as_secs_f64(), acted.as_secs_f64());
    assert!(led < HAND_OVER && acted < ACTS, "{led:?}, {acted:?}");
    each_has_installed_once(&tenant, &agents);

    world.program("start", "controller");
    assert!(!leads(world, "controller"), "it waits for the lease");
    world.program("stop", "controller-2");
    let stopped = Timestamp::now();
    eventually("the other leads", || leads(world, "controller").then_some(())).unwrap();
    let led = led_after(world, stopped);
    println!("{:.1} s after it stopped another led", led.as_secs_f64());
    assert!(led < HAND_OVER_AT_ONCE, "{led:?}");
}

fn a_leader_that_is_paused_past_its_lease_does_nothing_more(world: &World) {
    let tenant = world.tenant();
    let agents = fleet(world, &tenant, 20);
    world.program("start", "controller-2");
    eventually("one of them leads", || leads(world, "controller").then_some(())).unwrap();

    // In the middle of what it does for twenty devices: the first claim is seen, and it is stopped in its tracks.
    let pid = world.pid("controller");
    let mut watch = Command::new("kubectl")
        .args([
            "get",
            "devinv",
            "-n",
            &tenant.name,
            "--watch",
            "--request-timeout=60s",
            "-o",
            "jsonpath={.status.compliance.current.job}{\"\\n\"}",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    tenant.apply(APPROVE_SECURITY);
    let claim = lines.find(|line| !line.as_ref().unwrap().is_empty());
    signal("-STOP", &pid);
    let paused = Timestamp::now();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(claim.is_some(), "a claim");
    let claimed = devices(&tenant).iter().filter(|device| compliance(device).current.is_some()).count();
    let jobs = tenant.jobs().len();

    eventually("another leads", || leads(world, "controller-2").then_some(())).unwrap();
    until(&tenant, agents.names.len(), "has an order or has ended", |device| {
        compliance(device).current.is_some() || has_ended(device)
    });
    let led = led_after(world, paused);
    let acted = acted_after(world, &tenant, paused, led);
    println!(
        "paused with {claimed} of 20 claimed and {jobs} Jobs; another led in {:.1} s and acted in {:.1} s",
        led.as_secs_f64(),
        acted.as_secs_f64()
    );
    assert!(led < HAND_OVER && acted < ACTS, "{led:?}, {acted:?}");

    let before = world.audit().len();
    signal("-CONT", &pid);
    eventually("the one that was paused has ended", || (!is_alive(&pid)).then_some(())).unwrap();
    each_has_installed_once(&tenant, &agents);
    let log = world.program("log", "controller");
    assert!(log.contains("lost the lease"), "{log}");
    // Its own token tells its requests from the other's.
    let credential = format!("JTI={}", token_id(world, "controller"));
    let of_it = |event: &Value| {
        event["user"]["extra"]["authentication.kubernetes.io/credential-id"] == json!([credential])
            && event["stage"] == "ResponseComplete"
    };
    let all = world.audit();
    assert!(all.iter().any(of_it), "the audit log names {credential}");
    let writes: Vec<_> = all[before..]
        .iter()
        .filter(|event| of_it(event) && !["get", "list", "watch"].contains(&event["verb"].as_str().unwrap_or_default()))
        .collect();
    let mut told = String::new();
    for event in &writes {
        writeln!(told, "{} {} {}", event["verb"], event["requestURI"], event["responseStatus"]["code"]).unwrap();
    }
    println!("what it still tried to write: {} requests\n{told}", writes.len());
    assert!(writes.iter().all(|event| event["responseStatus"]["code"].as_i64() >= Some(400)), "{told}");

    world.program("start", "controller");
    world.program("stop", "controller-2");
    eventually("the first leads again", || leads(world, "controller").then_some(())).unwrap();
}

fn only_the_leading_controller_claims_devices_and_answers_them(world: &World) {
    let tenant = world.tenant();
    let lease = || {
        let lease = ["get", "lease", "-n", "patchwarden-system", "patchwarden-controller", "-o", "json"];
        let lease: Value = serde_json::from_str(&world.kubectl(&lease)).unwrap();
        format!("{}/{}", lease["spec"]["holderIdentity"].as_str().unwrap(), lease["spec"]["leaseTransitions"])
    };
    eventually("one leads", || leads(world, "controller").then_some(())).unwrap();
    // It would end a claim that it did not make. The lease stays its own.
    world.program("kill", "controller");
    tenant.apply(
        "
apiVersion: patchwarden.io/v1alpha1
kind: DeviceInventory
metadata: {name: claimed-1}
spec: {type: Server}
",
    );
    let claim = |number: u64, leader: &str, nonce: Option<&str>| {
        let mut current = json!({
            "sequence": {"epoch": 0, "number": number}, "job": "claimed-1-0-1", "orderDigest": "sha256:0", "leader": leader, "policy": "p",
            "phase": "Claimed", "since": "2026-01-01T00:00:00Z", "notAfter": "2026-01-01T00:15:00Z", "limitSeconds": 60, "updates": [],
        });
        if let Some(nonce) = nonce {
            let envelope = json!({"payloadType": "t", "payload": "", "signatures": []});
            current["grant"] = json!({"nonce": nonce, "signed": {"grant": envelope, "delegation": envelope}});
        }
        json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory", "metadata": {"name": "claimed-1"},
            "status": {"compliance": {"current": current}},
        })
        .to_string()
    };
    let write = [
        "apply",
        "-n",
        &tenant.name,
        "--server-side",
        "--force-conflicts",
        "--subresource=status",
        "--dry-run=server",
        "--field-manager=patchwarden-controller",
        "--as=system:serviceaccount:patchwarden-system:patchwarden-controller",
        "-f",
        "-",
    ];
    let for_good: Vec<_> = write.into_iter().filter(|argument| *argument != "--dry-run=server").collect();
    let refused = |object: &str| {
        let why = world.kubectl_fails(&write, object);
        assert!(why.contains("leads no more") || why.contains("patchwarden-claims"), "{object}: {why}");
    };
    let (now, earlier) = (lease(), "controller-0/1");
    refused(&claim(1, earlier, None));
    refused(&claim(1, "", None));
    world.kubectl_with(&for_good, &claim(1, &now, None));
    // What is written down of a claim changes, also by a leader after the one that made it.
    world.kubectl_with(&write, &claim(1, earlier, None));
    refused(&claim(1, earlier, Some("a")));
    world.kubectl_with(&for_good, &claim(1, &now, Some("a")));
    world.kubectl_with(&write, &claim(1, earlier, Some("a")));
    refused(&claim(1, earlier, Some("b")));
    refused(&claim(2, earlier, None));
    world.kubectl_with(&write, &claim(2, &now, None));
    world.program("start", "controller");
}

/// Simulated devices of a client that have reported their update, which nobody has approved yet.
fn fleet<'w>(world: &'w World, tenant: &Tenant<'w>, number: usize) -> Simulated {
    let agents = Simulated::start(world, tenant, number);
    tenant.apply(OPEN_WINDOW);
    tenant.apply(&POLICY.replace("mode: Install", "blastLimit: 100%, mode: Install"));
    until(tenant, number, "awaits approval", |device| compliance(device).updates.len() == 1);
    agents
}

fn each_has_installed_once(tenant: &Tenant<'_>, agents: &Simulated) {
    until(tenant, agents.names.len(), "has no order any more", has_ended);
    for device in devices(tenant) {
        let outcomes: Vec<_> = compliance(&device).last.iter().map(|past| past.outcome).collect();
        assert_eq!(outcomes, [Some(Outcome::Succeeded)], "{:?}", device.metadata.name);
    }
    for name in &agents.names {
        assert_eq!(agents.log(name), format!("upgrade {BEFORE} {AFTER}\n"), "{name} has installed once");
    }
    assert_eq!(tenant.jobs().len(), agents.names.len(), "one Job for each");
}

/// How long after this instant the leader of now got its lease.
fn led_after(world: &World, since: Timestamp) -> Duration {
    let acquired =
        ["get", "lease", "-n", "patchwarden-system", "patchwarden-controller", "-o", "jsonpath={.spec.acquireTime}"];
    let acquired: Timestamp = world.kubectl(&acquired).parse().expect("RFC 3339");
    Duration::try_from(acquired.duration_since(since)).expect("it is another leader")
}

/// How long after this instant the leader of now, which has had the lease for so long after it, first wrote of a device of this client.
fn acted_after(world: &World, tenant: &Tenant<'_>, since: Timestamp, led: Duration) -> Duration {
    let by = "system:serviceaccount:patchwarden-system:patchwarden-controller";
    let times = world.audit().into_iter().filter(|event| {
        event["user"]["username"] == by
            && event["objectRef"]["namespace"] == tenant.name.as_str()
            && (&event["objectRef"]["resource"], &event["verb"]) == (&json!("deviceinventories"), &json!("patch"))
            && event["responseStatus"]["code"] == 200
    });
    let times = times.map(|event| -> Timestamp {
        event["requestReceivedTimestamp"].as_str().and_then(|time| time.parse().ok()).expect("RFC 3339")
    });
    let first = times.filter(|time| *time >= since + led).min().expect("it has acted");
    Duration::try_from(first.duration_since(since)).expect("it is later")
}

fn leads(world: &World, program: &str) -> bool {
    world.metric(program, "patchwarden_leader") > 0.0
}

fn is_alive(pid: &str) -> bool {
    // One that has ended and waits to be reaped has no command line any more.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
}

/// The id of the token by which a program speaks to the API server.
fn token_id(world: &World, program: &str) -> String {
    let text = std::fs::read_to_string(world.state().join(format!("programs/{program}.kubeconfig"))).unwrap();
    let token = text.split_once("token: ").expect("a token").1.split_whitespace().next().unwrap();
    let claims = token.trim_matches('"').split('.').nth(1).expect("a JSON Web Token");
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    claims["jti"].as_str().expect("an id").to_owned()
}
