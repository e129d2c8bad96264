//! What the gateway, the agent and the controller refuse, on real machines.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use patchwarden_protocol::report::ProblemCode;
use patchwarden_protocol::result::ResultReason;
use serde_json::{Value, json};

use crate::Test;
use crate::api::audited;
use crate::crash::compliance;
use crate::world::{APPROVE_SECURITY, Device, OPEN_WINDOW, POLICY, World, eventually};

pub const TESTS: &[Test] = &[
    ("a_wrong_spent_or_expired_join_token_is_refused", a_wrong_spent_or_expired_join_token_is_refused),
    (
        "a_device_with_a_corrupt_journal_gets_no_orders_and_says_why",
        a_device_with_a_corrupt_journal_gets_no_orders_and_says_why,
    ),
    ("a_full_disk_fails_its_update_and_no_other", a_full_disk_fails_its_update_and_no_other),
    ("only_the_leading_controller_creates_install_jobs", only_the_leading_controller_creates_install_jobs),
    (
        "gateways_and_runners_may_neither_create_jobs_nor_read_secrets",
        gateways_and_runners_may_neither_create_jobs_nor_read_secrets,
    ),
    ("each_part_of_a_devices_status_has_one_writer", each_part_of_a_devices_status_has_one_writer),
    (
        "nobody_but_the_controller_writes_that_a_ring_has_proved_an_update",
        nobody_but_the_controller_writes_that_a_ring_has_proved_an_update,
    ),
];

fn a_wrong_spent_or_expired_join_token_is_refused(world: &World) {
    let repository = world.repository("tokens", &["alpha=1.0"]);
    let device = world.device("tokens-1", &repository, &[]);
    let tenant = world.tenant();
    let join = |command: &str| {
        let words: Vec<&str> = command.split_whitespace().chain(["--name", "tokens-1"]).collect();
        device.run_fails(&words)
    };
    let good = world.enroll(&tenant.name, &[]);
    let token = good.split_whitespace().skip_while(|word| *word != "--token").nth(1).unwrap();
    let (id, _) = token.split_once('.').unwrap();
    let wrong = join(&good.replace(token, &format!("{id}.{}", "0".repeat(40))));
    assert!(wrong.contains("join token: unknown or wrong"), "{wrong}");

    let short = world.enroll(&tenant.name, &["--expires", "1s"]);
    let expires = world.token_expires(&short);
    eventually("the token's time is over", || (jiff::Timestamp::now() > expires).then_some(())).unwrap();
    let refusal = join(&short);
    assert!(refusal.contains("join token: expired at"), "{refusal}");

    let list = tenant.get(&["devinv"]);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(0), "nothing was enrolled: {list}");

    // It is for one key.
    let words: Vec<&str> = good.split_whitespace().chain(["--name", "tokens-1"]).collect();
    device.run(&words);
    let elsewhere = "patchwarden-agent --config /root/other.toml --state-dir /root/other join";
    let spent = join(&good.replacen("patchwarden-agent join", elsewhere, 1));
    assert!(spent.contains("join token: all its uses are spent"), "{spent}");

    let (auditors, lines) = audited(world, &tenant);
    for outcome in ["TokenWrong", "TokenExpired", "TokenSpent"] {
        let is_it = |line: &&Value| (&line["object"], &line["outcome"]) == (&json!("tokens-1"), &json!(outcome));
        let line = lines.iter().find(is_it).unwrap_or_else(|| panic!("{outcome} is not in the audit: {lines:#?}"));
        assert!(line["who"].as_str().is_some_and(|who| who.starts_with("peer 198.19.")), "{line}");
    }
    let told = [world.program("log", "gateway"), world.program("log", "controller"), format!("{lines:?}")];
    let agents = device.run(&["cat", "/var/log/patchwarden-agent.log"]);
    assert!(told[0].contains(id), "a token's name is no secret, and the gateway's log tells of its use");
    let bearers = [&auditors, &short, &good].map(|text| secret_of(text));
    for secret in secrets(world, &device).iter().chain(&bearers) {
        assert!(secret.len() >= 40, "{secret:?} would be found anywhere");
        let lines = || told.iter().chain([&agents]).flat_map(|text| text.lines());
        assert_eq!(lines().find(|line| line.contains(secret.as_str())), None, "a secret is told");
    }
}

/// What a join command or a bearer token is worth nothing without: the secret of the join token, the signature.
fn secret_of(text: &str) -> String {
    let token = text.split_whitespace().skip_while(|word| *word != "--token").nth(1).unwrap_or(text);
    token.rsplit('.').next().expect("a token").trim().to_owned()
}

/// Tokens of the programs' own accounts, and a line of each private key: the controller's and the machine's.
fn secrets(world: &World, device: &Device<'_>) -> Vec<String> {
    let programs = world.state().join("programs");
    let read = |name: &str| std::fs::read_to_string(programs.join(name)).unwrap();
    let tokens = ["controller.kubeconfig", "gateway.kubeconfig", "controller.token"].map(|name| {
        let text = read(name);
        let token = text.split_once("token: ").map_or(text.as_str(), |(_, token)| token);
        secret_of(token.split_whitespace().next().expect("a token").trim_matches('"'))
    });
    let keys = ["get", "secret", "-n", "patchwarden-system", "patchwarden-keys", "-o", "json"];
    let keys: Value = serde_json::from_str(&world.kubectl(&keys)).unwrap();
    let entries = keys["data"].as_object().expect("entries").values().map(|entry| {
        let bytes = STANDARD.decode(entry.as_str().expect("base64")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let of_the_machine = device.run(&["cat", "/var/lib/patchwarden/key.pem"]);
    let pem: Vec<String> = entries.chain([of_the_machine]).collect();
    let private = pem.iter().flat_map(|text| text.split("-----BEGIN ").filter(|block| block.contains("PRIVATE KEY")));
    let lines: Vec<String> = private.map(|block| block.lines().nth(1).expect("a line of base64").to_owned()).collect();
    // The root's, the order key's, the CA's, and the machine's.
    assert!(lines.len() >= 4, "{} private keys", lines.len());
    lines.into_iter().chain(tokens).collect()
}

fn a_device_with_a_corrupt_journal_gets_no_orders_and_says_why(world: &World) {
    let repository = world.repository("journal", &["alpha=1.0", "alpha=1.1", "alpha=1.2"]);
    let device = world.device("journal-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.join(&device);
    tenant.wait_for("journal-1", "its first install", |device| compliance(device).last.len() == 1);
    assert_eq!(device.version("alpha"), "1.2");
    // A flipped bit in the middle, as a bad disk makes it; and something to do.
    device.run(&["sed", "-i", "1s/[0-9a-f]/z/", "/var/lib/patchwarden/journal"]);
    device.run(&["apt-get", "-qq", "-y", "--allow-downgrades", "install", "alpha=1.1"]);
    device.kill_agent();
    let record = tenant.wait_for("journal-1", "it reports its journal", |device| {
        let report = device.status.as_ref().and_then(|s| s.inventory.as_ref()).and_then(|i| i.report.as_ref());
        report.is_some_and(|report| report.problems.iter().any(|problem| problem.code == ProblemCode::JournalCorrupt))
    });
    let report = record.status.unwrap().inventory.unwrap().report.unwrap();
    assert!(report.problems[0].message.contains("/var/lib/patchwarden/journal"), "{:?}", report.problems);
    let blocked = tenant.wait_for("journal-1", "its update is blocked", |device| {
        compliance(device)
            .updates
            .iter()
            .any(|u| u.blocked_by.as_deref().is_some_and(|why| why.starts_with("DeviceProblem")))
    });
    assert_eq!(compliance(&blocked).sequence.number, 1, "no further order was made");
    assert_eq!(device.version("alpha"), "1.1");
}

fn a_full_disk_fails_its_update_and_no_other(world: &World) {
    let repository = world.repository("disk", &["big=1.0", "big=1.1,size=60000", "small=1.0", "small=1.1"]);
    let device = world.device("disk-1", &repository, &["--state-tmpfs", "64m"]);
    device.install(&["big=1.0", "small=1.0"]);
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.join(&device);
    let record = tenant.wait_for("disk-1", "its install has ended", |device| !compliance(device).last.is_empty());
    let compliance = compliance(&record);
    let big = compliance.failures.iter().find(|failure| failure.update.contains("/big@")).expect("big failed");
    assert_eq!(big.reason, Some(ResultReason::DiskFull), "{big:?}");
    assert_eq!(compliance.failures.len(), 1, "{:?}", compliance.failures);
    assert_eq!((device.version("big"), device.version("small")), ("1.0".into(), "1.1".into()));
}

fn only_the_leading_controller_creates_install_jobs(world: &World) {
    let tenant = world.tenant();
    let pod = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532},
        "containers": [{"name": "c", "image": "i", "securityContext": {"allowPrivilegeEscalation": false}}],
        "volumes": [{"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"audience": "patchwarden-gateway", "path": "token"}},
        ]}}],
    });
    let job_of = |leader: &str, labels: &Value, pod: &Value| {
        let metadata = json!({"name": "x", "labels": labels, "annotations": {"patchwarden.io/leader": leader}});
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}})
            .to_string()
    };
    let install = json!({"patchwarden.io/install": "true"});
    let job = |leader: &str| job_of(leader, &install, &pod);
    let create = ["create", "-n", &tenant.name, "--dry-run=server", "-f", "-"];
    let by_an_administrator = world.kubectl_fails(&create, &job("nobody/0"));
    assert!(
        by_an_administrator.contains("only Patchwarden's controller creates install Jobs"),
        "{by_an_administrator}"
    );

    let controller = "--as=system:serviceaccount:patchwarden-system:patchwarden-controller";
    let as_controller = [&create[..], &[controller]].concat();
    let stale = world.kubectl_fails(&as_controller, &job("an-earlier-leader/1"));
    assert!(stale.contains("the controller that sent this Job leads no more"), "{stale}");

    let lease: Value = serde_json::from_str(&world.kubectl(&[
        "get",
        "lease",
        "-n",
        "patchwarden-system",
        "patchwarden-controller",
        "-o",
        "json",
    ]))
    .unwrap();
    let current =
        format!("{}/{}", lease["spec"]["holderIdentity"].as_str().unwrap(), lease["spec"]["leaseTransitions"]);
    world.kubectl_with(&as_controller, &job(&current));

    // Whoever holds the controller gets no other pods by it.
    let no_install = job_of(&current, &json!({}), &pod);
    let others = [
        ("serviceAccountName", json!("admin")),
        ("automountServiceAccountToken", json!(true)),
        ("hostPID", json!(true)),
        ("hostNetwork", json!(true)),
        ("securityContext", json!({"runAsUser": 0})),
        ("initContainers", json!([{"name": "d", "image": "i"}])),
        ("containers", json!([{"name": "c", "image": "i", "securityContext": {"privileged": true}}])),
        (
            "containers",
            json!([{"name": "c", "image": "i", "securityContext": {"allowPrivilegeEscalation": false, "runAsUser": 0}}]),
        ),
        ("volumes", json!([{"name": "v", "hostPath": {"path": "/"}}])),
        ("volumes", json!([{"name": "v", "secret": {"secretName": "s"}}])),
        ("volumes", json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}])),
    ];
    let other_pods = others.map(|(field, value)| {
        let mut pod = pod.clone();
        pod[field] = value;
        job_of(&current, &install, &pod)
    });
    for other in std::iter::once(no_install).chain(other_pods) {
        let refused = world.kubectl_fails(&as_controller, &other);
        assert!(refused.contains("Patchwarden's controller creates install Jobs alone"), "{other}: {refused}");
    }
}

fn gateways_and_runners_may_neither_create_jobs_nor_read_secrets(world: &World) {
    // Pods of install Jobs have no token of their account; this is what they could do by it.
    let (gateway, runner) = ("patchwarden-system:patchwarden-gateway", "acme:default");
    for (account, what) in [
        (gateway, ["create", "jobs.batch", "-n", "acme"]),
        (gateway, ["get", "secrets", "-n", "patchwarden-system"]),
        (gateway, ["patch", "deviceinventories.patchwarden.io", "-n", "acme"]),
        (gateway, ["create", "patchpolicies.patchwarden.io", "-n", "acme"]),
        (runner, ["get", "secrets", "-n", "acme"]),
        (runner, ["get", "secrets", "-n", "patchwarden-system"]),
        (runner, ["get", "deviceinventories.patchwarden.io", "-n", "acme"]),
        (runner, ["create", "jobs.batch", "-n", "acme"]),
    ] {
        let account = format!("--as=system:serviceaccount:{account}");
        let answer = world.kubectl_fails_quietly(&[&["auth", "can-i", &account], &what[..]].concat());
        assert_eq!(answer.trim(), "no", "{account} {what:?}");
    }
    let as_runner = format!("--as=system:serviceaccount:{runner}");
    let refused =
        world.kubectl_fails(&["get", "secret", "-n", "patchwarden-system", "patchwarden-keys", &as_runner], "");
    assert!(refused.contains("forbidden") && refused.contains("cannot get resource \"secrets\""), "{refused}");
}

fn nobody_but_the_controller_writes_that_a_ring_has_proved_an_update(world: &World) {
    let tenant = world.tenant();
    tenant.apply(OPEN_WINDOW);
    tenant.apply(POLICY);
    tenant.apply(APPROVE_SECURITY);
    let apply = |account: &str, kind: &str, name: &str| {
        let object = format!(
            "apiVersion: patchwarden.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nstatus: {{observedGeneration: 9}}\n"
        );
        let words = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "--dry-run=server"];
        let words = words.map(str::to_owned).into_iter().chain([format!("--namespace={}", tenant.name)]);
        let words = words
            .chain(["--field-manager=test".to_owned()])
            .chain((!account.is_empty()).then(|| format!("--as={account}")));
        (words.chain(["-f".to_owned(), "-".to_owned()]).collect::<Vec<_>>(), object)
    };
    let controller = "system:serviceaccount:patchwarden-system:patchwarden-controller";
    for (kind, name) in
        [("PatchPolicy", "everything"), ("ApprovalGroup", "everybody"), ("MaintenanceWindow", "anytime")]
    {
        let (words, object) = apply("", kind, name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let refused = world.kubectl_fails(&words, &object);
        let expected = "only Patchwarden's controller writes the status of policies, groups and windows";
        assert!(refused.contains(expected), "an administrator, {kind}: {refused}");
        let (words, object) = apply(controller, kind, name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.kubectl_with(&words, &object);
    }
}

fn each_part_of_a_devices_status_has_one_writer(world: &World) {
    let tenant = world.tenant();
    tenant.apply(r#"{"apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory", "metadata": {"name": "x"}, "spec": {}}"#);
    tenant.wait_for("x", "the controller has seen it", |device| {
        device.status.as_ref().is_some_and(|status| !status.conditions.is_empty())
    });
    let apply = |writer: &str| {
        let account = format!("--as=system:serviceaccount:patchwarden-system:patchwarden-{writer}");
        let apply =
            ["apply", "--server-side", "--force-conflicts", "--subresource=status", "--dry-run=server", "-f", "-"];
        apply
            .map(str::to_owned)
            .into_iter()
            .chain([account, format!("--namespace={}", tenant.name)])
            .collect::<Vec<_>>()
    };
    let object = |status: &str| {
        format!(
            r#"{{"apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory", "metadata": {{"name": "x"}}, "status": {status}}}"#
        )
    };
    let refused = |writer: &str, status: &str| {
        let arguments = apply(writer);
        world.kubectl_fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &object(status))
    };
    let (inventory, compliance) = (r#"{"inventory": {"online": true}}"#, r#"{"compliance": {"reportCounter": 7}}"#);
    let by_gateway = refused("gateway", compliance);
    assert!(by_gateway.contains("only Patchwarden's controller writes status.compliance"), "{by_gateway}");
    let by_controller = refused("controller", inventory);
    assert!(by_controller.contains("only Patchwarden's gateway writes status.inventory"), "{by_controller}");
    for (writer, own) in [("gateway", inventory), ("controller", compliance)] {
        let arguments = apply(writer);
        world.kubectl_with(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &object(own));
    }
}
