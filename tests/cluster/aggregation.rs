//! The aggregation layer: kubectl reads the store through a real API server, whose own proxy is the only one that the gateway believes.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::Test;
use crate::rights::{Right, granted, unused};
use crate::world::{Tenant, World, eventually, with_input};

pub const TESTS: &[Test] = &[(
    "kubectl_reads_the_store_and_nobody_but_the_api_server_says_who_asks",
    kubectl_reads_the_store_and_nobody_but_the_api_server_says_who_asks,
)];

const API_SERVICE: &str = "v1alpha1.store.patchwarden.io";
const GROUP: &str = "/apis/store.patchwarden.io/v1alpha1";
const KUSTOMIZATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/aggregation");

/// Starts both programs anew, with the aggregation layer or without.
fn restart(world: &World, with: bool, between: impl FnOnce()) {
    for program in ["controller", "gateway"] {
        world.program("stop", program);
    }
    let file = world.state().join("aggregation");
    if with {
        std::fs::write(file, "").unwrap();
    } else {
        std::fs::remove_file(file).unwrap();
    }
    between();
    for program in ["controller", "gateway"] {
        world.program("start", program);
    }
}

impl Tenant<'_> {
    /// What kubectl prints of this client's objects.
    fn printed(&self, world: &World, arguments: &[&str]) -> String {
        world.kubectl(&[&["get", "-n", &self.name], arguments].concat())
    }
}

/// The rows of a table, without its head.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
}

fn kubectl_reads_the_store_and_nobody_but_the_api_server_says_who_asks(world: &World) {
    let repository = world.repository("aggregation", &["seldom=1.0", "seldom=1.1"]);
    let device = world.device("store-1", &repository, &[]);
    device.install(&["seldom=1.0"]);
    let (own, other) = (world.tenant(), world.tenant());
    restart(world, true, || drop(world.kubectl(&["apply", "-k", KUSTOMIZATION])));
    own.join(&device);

    // The controller tells the API server the CA, and the API server takes the gateway for a part of itself.
    world.kubectl(&["wait", "--for=condition=Available", "--timeout=120s", &format!("apiservice/{API_SERVICE}")]);
    let service: Value =
        serde_json::from_str(&world.kubectl(&["get", "apiservice", API_SERVICE, "-o", "json"])).unwrap();
    let trust = ["get", "configmap", "-n", "patchwarden-system", "patchwarden-trust", "-o", "json"];
    let trust: Value = serde_json::from_str(&world.kubectl(&trust)).unwrap();
    let bundle = STANDARD.decode(service["spec"]["caBundle"].as_str().expect("a bundle")).unwrap();
    assert_eq!(String::from_utf8(bundle).unwrap(), trust["data"]["ca.pem"].as_str().unwrap());
    assert_eq!(service["spec"].get("insecureSkipTLSVerify"), None, "{service}");

    // All forms in which people read; all pages are one list.
    own.wait_for("store-1", "it offers its update", |device| {
        let report = device.status.as_ref().and_then(|s| s.inventory.as_ref()).and_then(|i| i.report.as_ref());
        report.is_some_and(|report| report.updates.iter().any(|update| update.id.contains("/seldom@1.1")))
    });
    let installed = device.packages().lines().filter(|line| line.ends_with("install ok installed")).count();
    let table = eventually("the store has the device's packages", || {
        let table = own.printed(world, &["softwarepackages", "--chunk-size=20"]);
        (rows(&table).len() == installed).then_some(table)
    })
    .unwrap_or_else(|why| panic!("{why}: {installed} are installed"));
    assert!(installed > 60, "several pages: {installed}");
    assert_eq!(
        table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["NAME", "DEVICE", "PACKAGE", "VERSION"]
    );
    let rows = rows(&table);
    let seldom = rows.iter().find(|row| row[2] == "seldom").expect("a row of the package");
    assert_eq!(seldom[1..], ["store-1", "seldom", "1.0"]);
    let wide = own.printed(world, &["swpkg", seldom[0], "-o", "wide"]);
    assert!(wide.lines().next().unwrap().contains("ARCH") && wide.contains("seldom"), "{wide}");
    let yaml = own.printed(world, &["softwarepackage", seldom[0], "-o", "yaml"]);
    assert!(yaml.contains("kind: SoftwarePackage") && yaml.contains("version: \"1.0\""), "{yaml}");
    let updates = own.printed(world, &["missingupdates", "--field-selector", "status.device=store-1"]);
    assert!(updates.lines().any(|line| line.contains("/seldom@1.1")), "{updates}");
    let refused = world.kubectl_fails(&["get", "swpkg", "-n", &own.name, "-l", "a=b"], "");
    assert!(refused.contains("BadRequest") && refused.contains("labelSelector"), "{refused}");
    let watched = world.kubectl_fails(&["get", "swpkg", "-n", &own.name, "--watch-only"], "");
    assert!(watched.contains("MethodNotAllowed") && watched.contains("cannot be watched"), "{watched}");
    let resources = world.kubectl(&["api-resources", "--api-group=store.patchwarden.io"]);
    assert_eq!(resources.lines().count(), 7, "{resources}");
    let explained = eventually("the API server has the description", || {
        let text = world.kubectl_fails_quietly(&["explain", "missingupdates.status"]);
        text.contains("classification").then_some(text)
    })
    .unwrap();
    assert!(explained.contains("firstSeen") && explained.contains("FIELDS"), "{explained}");

    // `view` of one client is of that client alone. Not with its default account, which is that of install Jobs (see `rights`).
    world.kubectl(&["create", "serviceaccount", "-n", &own.name, "operator"]);
    let binding = ["create", "rolebinding", "-n", &own.name, "operator", "--clusterrole=view"];
    world.kubectl(&[&binding[..], &["--serviceaccount", &format!("{}:operator", own.name)]].concat());
    let operator = format!("--as=system:serviceaccount:{}:operator", own.name);
    eventually("the role view has the store's kinds", || {
        let shown = world.kubectl_fails_quietly(&["get", "swpkg", "-n", &own.name, &operator]);
        shown.contains("seldom").then_some(())
    })
    .unwrap();
    for arguments in [["-n", other.name.as_str()], ["-A", "--chunk-size=5"]] {
        let refused = world.kubectl_fails(&[&["get", "swpkg", &operator], &arguments[..]].concat(), "");
        assert!(refused.contains("Forbidden"), "{refused}");
    }

    nobody_else_is_believed(world, &own, &other);
    let rights = what_it_may(world);

    // What the docs say: first the APIService, then the gateway; and namespaces go.
    let namespace = "goes-without-the-store";
    world.kubectl(&["create", "namespace", namespace]);
    restart(world, false, || {
        world.kubectl(&["delete", "-k", KUSTOMIZATION]);
        world.kubectl(&["delete", "namespace", namespace, "--timeout=60s"]);
    });
    let gone = world.kubectl_fails(&["get", "--raw", GROUP], "");
    assert!(gone.contains("NotFound"), "{gone}");

    // The programs have ended, and with them what they watched: it is in the log.
    let idle = unused(world, "patchwarden-controller", &rights.controller);
    assert!(idle.is_empty(), "granted by config/aggregation, and never used: {idle:#?}");
    let idle = unused(world, "patchwarden-gateway", &rights.gateway);
    assert!(idle.len() < rights.gateway.len(), "granted by config/aggregation, and never used: {idle:#?}");
}

/// What `config/aggregation` grants beside `config/base`.
struct Rights {
    controller: BTreeSet<Right>,
    /// By Kubernetes' own role, which every extension of its API has.
    gateway: BTreeSet<Right>,
}

fn what_it_may(world: &World) -> Rights {
    let by = |account: &str, binding: &str| -> BTreeSet<Right> {
        granted(world, account).into_iter().filter(|right| right.binding == binding).collect()
    };
    let words = |rights: &BTreeSet<Right>| rights.iter().map(Right::words).collect::<Vec<_>>();
    let controller = by("patchwarden-controller", "ClusterRoleBinding patchwarden-controller-aggregation");
    let of_it =
        ["list", "patch", "watch"].map(|verb| format!("{verb} apiservices.apiregistration.k8s.io {API_SERVICE}"));
    assert_eq!(words(&controller), of_it);
    let gateway = by("patchwarden-gateway", "RoleBinding patchwarden-gateway/kube-system");
    let of_it = ["get", "list", "watch"].map(|verb| format!("{verb} configmaps. extension-apiserver-authentication"));
    assert_eq!(words(&gateway), of_it);

    // Another object of these kinds is none of their business, nor this one of the gateway's.
    for (account, verb, object, namespace) in [
        ("controller", "patch", "apiservices/v1.apps", "default"),
        ("controller", "delete", &*format!("apiservices/{API_SERVICE}"), "default"),
        ("gateway", "patch", &*format!("apiservices/{API_SERVICE}"), "default"),
        ("gateway", "get", "configmaps/coredns", "kube-system"),
        ("gateway", "patch", "configmaps/extension-apiserver-authentication", "kube-system"),
    ] {
        let who = format!("--as=system:serviceaccount:patchwarden-system:patchwarden-{account}");
        let answer = world.kubectl_fails_quietly(&["auth", "can-i", verb, object, "-n", namespace, &who]);
        assert_eq!(answer.trim(), "no", "{account} may {verb} {object}");
    }
    // That it is asked of whom it should be.
    let who = "--as=system:serviceaccount:patchwarden-system:patchwarden-controller";
    let own = ["auth", "can-i", "patch", &format!("apiservices/{API_SERVICE}"), who];
    assert_eq!(world.kubectl(&own).trim(), "yes");

    // People may read what is served, all of it, and there is nothing else to be done with it.
    let served: Value = serde_json::from_str(&world.kubectl(&["get", "--raw", GROUP])).unwrap();
    let served = served["resources"].as_array().unwrap().iter();
    let served: BTreeSet<_> = served.map(|it| (it["name"].to_string(), verbs(&it["verbs"]))).collect();
    let role: Value =
        serde_json::from_str(&world.kubectl(&["get", "clusterrole", "patchwarden-store-view", "-o", "json"])).unwrap();
    let rules = role["rules"].as_array().unwrap().iter();
    let read = rules.flat_map(|rule| {
        assert_eq!(rule["apiGroups"], serde_json::json!(["store.patchwarden.io"]), "{rule}");
        let verbs = verbs(&rule["verbs"]);
        rule["resources"].as_array().unwrap().iter().map(move |name| (name.to_string(), verbs.clone()))
    });
    assert_eq!(read.collect::<BTreeSet<_>>(), served);
    Rights { controller, gateway }
}

fn verbs(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(Value::to_string).collect()
}

/// What is answered to a request that says in headers who asks, with these options of `openssl s_client`.
fn spoofed(world: &World, connect: &str, options: &[&str], path: &str, more: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {connect}\r\nX-Remote-User: kubernetes-admin\r\nX-Remote-Group: system:masters\r\n{more}\
         Connection: close\r\n\r\n"
    );
    let mut command = world.inside("openssl");
    let output = with_input(command.args(["s_client", "-quiet", "-connect", connect]).args(options), &request);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn nobody_else_is_believed(world: &World, own: &Tenant<'_>, other: &Tenant<'_>) {
    let pki = world.state().join("pki");
    let file = |name: &str| pki.join(name).to_string_lossy().into_owned();
    let (gateway, path) = (format!("{}:8446", world.gateway_address()), format!("{GROUP}/softwarepackages"));

    // That it is the certificate that is looked at: with the proxy's own this very request is answered.
    let (certificate, key) = (file("front-proxy-client.crt"), file("front-proxy-client.key"));
    let proxy = ["-cert", &certificate, "-key", &key];
    let answered = spoofed(world, &gateway, &proxy, &path, "");
    assert!(answered.contains("HTTP/1.1 200") && answered.contains("SoftwarePackageList"), "{answered}");
    // An administrator's certificate is one of another CA, and names of other clients of the right one are not allowed.
    for (name, options) in [("none", None), ("admin", Some("admin")), ("kubelet", Some("apiserver-kubelet-client"))] {
        let pair = options.map(|it| (file(&format!("{it}.crt")), file(&format!("{it}.key"))));
        let options: Vec<&str> = pair.iter().flat_map(|(crt, key)| ["-cert", crt, "-key", key]).collect();
        let answered = spoofed(world, &gateway, &options, &path, "");
        assert!(!answered.contains("HTTP/1.1") && answered.contains("alert"), "{name}: {answered}");
    }

    // Through the API server such headers are nobody's: it writes its own.
    let token = world.kubectl(&["create", "token", "-n", &own.name, "operator"]);
    let authorization = format!("Authorization: Bearer {}\r\n", token.trim());
    let server = world.variable("APISERVER");
    let server = server.strip_prefix("https://").expect("a URL");
    let of = |tenant: &Tenant<'_>| format!("{GROUP}/namespaces/{}/softwarepackages?limit=1", tenant.name);
    let allowed = spoofed(world, server, &["-alpn", "http/1.1"], &of(own), &authorization);
    assert!(allowed.contains("HTTP/1.1 200"), "{allowed}");
    let refused = spoofed(world, server, &["-alpn", "http/1.1"], &of(other), &authorization);
    let account = format!("system:serviceaccount:{}:operator", own.name);
    assert!(refused.contains("HTTP/1.1 403") && refused.contains(&account), "{refused}");
}
