//! The gateway's HTTP API with tokens and rights of a real API server, and the commands of the plugin over it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Test;
use crate::crash::compliance;
use crate::world::{Tenant, World, eventually, succeeded, with_input};

pub const TESTS: &[Test] = &[
    ("a_clients_operator_sees_that_client_alone", a_clients_operator_sees_that_client_alone),
    ("the_plugin_shows_what_a_real_device_has", the_plugin_shows_what_a_real_device_has),
];

const AUDIENCE: &str = "patchwarden-api";

/// A pod in the node's network, where the gateway listens: it stands for a gateway's pod, whose port is forwarded.
const STANDS_FOR_THE_GATEWAY: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: stands-for-the-gateway
  namespace: patchwarden-system
  labels: {app.kubernetes.io/name: patchwarden-gateway}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{name: pause, image: 'localhost/pause:1', imagePullPolicy: Never}]
";

/// What the API answers.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// Asks the API as any program would: over TLS with the CA of `patchwarden-trust`.
fn ask(world: &World, token: Option<&str>, path: &str) -> Answer {
    let ca = tempfile::NamedTempFile::new().unwrap();
    let trust = ["get", "configmap", "-n", "patchwarden-system", "patchwarden-trust", "-o", "json"];
    let trust: Value = serde_json::from_str(&world.kubectl(&trust)).unwrap();
    std::fs::write(ca.path(), trust["data"]["ca.pem"].as_str().expect("the CA")).unwrap();
    let (address, ca) = (world.gateway_address(), ca.path().to_str().unwrap().to_owned());
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET /api/v1{path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Connection: close\r\n\r\n");
    let connect = format!("{address}:8445");
    let arguments = ["s_client", "-quiet", "-connect", &connect, "-CAfile", &ca, "-verify_return_error"];
    let mut command = world.inside("openssl");
    let output = with_input(command.args(arguments).args(["-verify_ip", &address, "-alpn", "http/1.1"]), &request);
    let text = succeeded("openssl", &arguments, &output);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer of HTTP: {text}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|it| it.parse().ok()).expect("a status");
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Answer { status, headers, body: serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {text}")) }
}

/// It is a problem (RFC 9457) with this status; its detail.
fn refused(answer: &Answer, status: u16) -> &str {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!((&answer.body["type"], &answer.body["status"]), (&json!("about:blank"), &json!(status)));
    answer.body["detail"].as_str().expect("a detail")
}

impl Tenant<'_> {
    /// A ServiceAccount with the rights of one who operates this client, as in docs/api.md.
    pub fn reader(&self, world: &World) {
        world.kubectl(&["create", "serviceaccount", "-n", &self.name, "patchwarden-reader"]);
        let account = format!("--serviceaccount={}:patchwarden-reader", self.name);
        let binding = ["create", "rolebinding", "-n", &self.name, "patchwarden-reader"];
        world.kubectl(&[&binding[..], &["--clusterrole=patchwarden-reader", &account]].concat());
    }

    /// A token of a ServiceAccount of this client.
    fn token(&self, world: &World, account: &str, options: &[&str]) -> String {
        let arguments = ["create", "token", "-n", &self.name, account];
        world.kubectl(&[&arguments, options].concat()).trim().to_owned()
    }
}

/// The token with its times moved, signed anew with the cluster's own key (ES256, RFC 7518 section 3.4).
fn moved(world: &World, token: &str, seconds: i64) -> String {
    let mut parts = token.split('.');
    let (header, claims) = (parts.next().unwrap(), parts.next().unwrap());
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    for claim in ["exp", "iat", "nbf"] {
        claims[claim] = json!(claims[claim].as_i64().expect("a time") + seconds);
    }
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let script = "set -euo pipefail; openssl dgst -sha256 -sign \"$1\" | openssl asn1parse -inform DER";
    let mut command = std::process::Command::new("bash");
    let key = world.service_account_key();
    let output = with_input(command.args(["-c", script, "-"]).arg(key), &signed);
    let text = succeeded("openssl", &["dgst"], &output);
    let numbers = text.lines().filter_map(|line| line.split_once("INTEGER")?.1.split_once(':'));
    let numbers: Vec<_> = numbers.map(|(_, number)| format!("{number:0>64}")).collect();
    let hex = numbers.concat();
    assert_eq!(hex.len(), 128, "{text}");
    let bytes = (0..64).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes.collect::<Vec<u8>>()))
}

// covers EM-12
fn a_clients_operator_sees_that_client_alone(world: &World) {
    let (own, other) = (world.tenant(), world.tenant());
    own.reader(world);
    let audience = format!("--audience={AUDIENCE}");
    let good = own.token(world, "patchwarden-reader", &[&audience]);

    // What RBAC was told just now may take a moment, and the answer before it counts for some seconds.
    let devices = format!("/devices?namespace={}", own.name);
    let answer = eventually("the operator sees their client", || {
        let answer = ask(world, Some(&good), &devices);
        (answer.status == 200).then_some(answer)
    })
    .unwrap();
    assert_eq!(answer.body["items"], json!([]));

    let user = format!("system:serviceaccount:{}:patchwarden-reader", own.name);
    let lists = format!("user {user} may not list deviceinventories.patchwarden.io in");
    let another = ask(world, Some(&good), &format!("/devices?namespace={}", other.name));
    assert_eq!(refused(&another, 403), format!("{lists} namespace {}", other.name));
    let all = ask(world, Some(&good), "/devices");
    assert_eq!(refused(&all, 403), format!("{lists} all namespaces; give `namespace` for one"));
    let one = ask(world, Some(&good), &format!("/namespaces/{}/devices/web", other.name));
    let gets = format!("user {user} may not get deviceinventories.patchwarden.io web in namespace {}", other.name);
    assert_eq!(refused(&one, 403), gets);
    let audit = ask(world, Some(&good), "/audit");
    let audits = format!("user {user} may not list auditrecords.patchwarden.io in all namespaces");
    assert_eq!(refused(&audit, 403), audits);

    // Each at a path of its own: what only repeats itself is audited once an hour.
    let of_the_api_server = own.token(world, "patchwarden-reader", &[]);
    let expired = moved(world, &good, -7_200);
    let again = moved(world, &good, -1);
    let control = ask(world, Some(&again), &devices);
    assert_eq!(control.status, 200, "what is signed here counts while its time lasts: {control:?}");
    let refusals = [
        ("/updates", Some(of_the_api_server.as_str())),
        ("/updates/missing", Some(expired.as_str())),
        ("/statistics", None),
    ];
    for (path, token) in refusals {
        let answer = ask(world, token, &format!("{path}?namespace={}", own.name));
        refused(&answer, 401);
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"), "{answer:?}");
    }

    let (auditors, lines) = audited(world, &own);
    let has = |who: &str, object: &str, outcome: &str| {
        let found = lines.iter().any(|line| {
            line["who"].as_str().is_some_and(|it| it.starts_with(who))
                && (&line["what"], &line["object"], &line["outcome"])
                    == (&json!("Read"), &json!(object), &json!(outcome))
        });
        assert!(found, "{who} {object} {outcome} is not in the audit: {lines:#?}");
    };
    let who = format!("user {user}");
    has(&who, &format!("{}: /api/v1/devices", other.name), "Forbidden");
    has(&who, "*: /api/v1/devices", "Forbidden");
    has(&who, &format!("{0}: /api/v1/namespaces/{0}/devices/web", other.name), "Forbidden");
    has(&who, "*: /api/v1/audit", "Forbidden");
    for (path, _) in refusals {
        has("address ", &format!("/api/v1{path}"), "Unauthenticated");
    }

    let log = world.program("log", "gateway");
    assert!(log.contains(&audits), "the log tells of refusals");
    for token in [&good, &of_the_api_server, &expired, &again, &auditors] {
        let secret = token.rsplit('.').next().unwrap();
        assert!(!log.contains(secret) && !format!("{lines:?}").contains(secret), "a token is told");
    }
}

/// The latest lines of the audit, and the token of the auditor who has asked for them.
pub fn audited(world: &World, tenant: &Tenant<'_>) -> (String, Vec<Value>) {
    let auditor = format!("auditor-of-{}", tenant.name);
    world.kubectl(&["create", "serviceaccount", "-n", &tenant.name, "auditor"]);
    let account = format!("--serviceaccount={}:auditor", tenant.name);
    world.kubectl(&["create", "clusterrolebinding", &auditor, "--clusterrole=patchwarden-auditor", &account]);
    let token = tenant.token(world, "auditor", &[&format!("--audience={AUDIENCE}")]);
    // What RBAC was told just now may take a moment, and the answer before it counts for some seconds.
    let lines = eventually("the auditor sees the audit", || {
        let answer = ask(world, Some(&token), "/audit?limit=500");
        (answer.status == 200).then(|| answer.body["items"].as_array().expect("a list").clone())
    })
    .unwrap();
    world.kubectl(&["delete", "clusterrolebinding", &auditor]);
    (token, lines)
}

// covers MW-10, RM-7, CC-3, CL-10, CL-12, EM-1, EM-12, EM-15
fn the_plugin_shows_what_a_real_device_has(world: &World) {
    let repository = world.repository("api", &["seldom=1.0", "seldom=1.1"]);
    let device = world.device("api-1", &repository, &[]);
    device.install(&["seldom=1.0"]);
    let tenant = world.tenant();
    tenant.reader(world);
    tenant.join(&device);
    let url = format!("https://{}:8445", world.gateway_address());
    let run = |arguments: &[&str]| {
        let output = tenant.plugin_inside(arguments);
        succeeded("kubectl-patchwarden", arguments, &output)
    };
    let shown = |arguments: &[&str]| run(&[arguments, &["--api-url", &url]].concat());
    let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    tenant.wait_for("api-1", "it offers its update", |device| {
        let report = device.status.as_ref().and_then(|s| s.inventory.as_ref()).and_then(|i| i.report.as_ref());
        report.is_some_and(|report| report.updates.iter().any(|update| update.id.contains("/seldom@1.1")))
    });
    eventually("the plugin shows the update", || {
        let output = tenant.plugin_inside(&["updates", "-o", "json", "--api-url", &url]);
        let answer = output.status.success().then(|| parsed(&String::from_utf8_lossy(&output.stdout)))?;
        (answer["items"][0]["devices"] == 1).then_some(())
    })
    .unwrap();

    // What each must tell: the words of a line of its table and of its CSV, and the place and value in its JSON.
    let each: &[(&[&str], &str, &str, Value)] = &[
        (&["devices"], "api-1", "/items/0/name", json!("api-1")),
        (&["device", "api-1"], "seldom@1.1", "/report/updates", json!(1)),
        (&["updates"], "seldom@1.1", "/items/0/devices", json!(1)),
        (&["search", "seldom", "--older-than", "1.1"], "api-1", "/items/0/version", json!("1.0")),
    ];
    let tell = |(command, word, place, value): &(&[&str], &str, &str, Value)| {
        let answer = parsed(&shown(&[command, &["-o", "json"][..]].concat()));
        assert_eq!(answer.pointer(place), Some(value), "{command:?}: {answer:#}");
        let (table, csv) = (shown(command), shown(&[command, &["-o", "csv"][..]].concat()));
        assert!(table.lines().any(|line| line.contains(word)), "{command:?}: {table}");
        assert!(csv.lines().skip(1).any(|line| line.contains(word) && line.contains(',')), "{command:?}: {csv}");
    };
    each.iter().for_each(tell);
    let until = parsed(&shown(&["device", "api-1", "-o", "json"]))["certificateUntil"].take();
    let until: Timestamp = until.as_str().expect("a certificate").parse().unwrap();
    let left = until.duration_since(Timestamp::now()).as_hours();
    assert!((6 * 24..=7 * 24).contains(&left), "{left} hours");
    let device = shown(&["device", "api-1"]);
    assert!(device.lines().any(|line| line == format!("Certificate: until {until}")), "{device}");
    // Of the machine that the device is on. It goes out after the report.
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor\t:").count();
    let made_of = ["device", "api-1", "--hardware"];
    eventually("the hardware is there", || {
        let told = parsed(&shown(&[&made_of[..], &["-o", "json"]].concat()))["told"].take();
        (told["processors"] == processors && told["memoryBytes"].as_u64() > Some(1 << 28)).then_some(())
    })
    .unwrap();
    let (table, csv) = (shown(&made_of), shown(&[&made_of[..], &["-o", "csv"]].concat()));
    assert!(table.lines().any(|line| line == format!("Processors:  {processors}")), "{table}");
    assert!(
        csv.lines().any(|line| line.starts_with("processor,") && line.contains(&format!(",{processors},"))),
        "{csv}"
    );
    assert_eq!(parsed(&shown(&["search", "seldom", "--newer-than", "1.0", "-o", "json"]))["items"], json!([]));

    tenant.install_everything();
    tenant.wait_for("api-1", "its install has ended", |device| compliance(device).last.len() == 1);
    eventually("the change is in the history", || {
        (parsed(&shown(&["history", "api-1", "-o", "json"]))["items"][0]["after"] == "1.1").then_some(())
    })
    .unwrap();
    tell(&(&["history", "api-1"], "seldom", "/items/0/before", json!("1.0")));
    tell(&(&["history", "api-1", "--installs"], "seldom@1.1", "/items/0/outcome", json!("Succeeded")));
    let vulnerabilities = tenant.plugin_inside(&["vulns", "api-1", "-o", "json", "--api-url", &url]);
    assert!(vulnerabilities.status.success(), "{}", String::from_utf8_lossy(&vulnerabilities.stderr));

    // By a port that it forwards itself.
    let none = tenant.plugin_inside(&["devices"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("no pod with the label"), "{none:?}");
    world.kubectl_with(&["apply", "-f", "-"], STANDS_FOR_THE_GATEWAY);
    let pod = ["-n", "patchwarden-system", "pod/stands-for-the-gateway"];
    world.kubectl(&[&["wait", "--for=condition=Ready", "--timeout=120s"], &pod[..]].concat());
    let forwarded = parsed(&run(&["devices", "-o", "json"]));
    assert_eq!(forwarded["items"][0]["name"], "api-1", "{forwarded}");
    world.kubectl(&[&["delete", "--wait=false"], &pod[..]].concat());
}
