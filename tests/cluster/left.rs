//! All that is in the cluster, of every kind that its API server lists: what an installation has left is what is more than before.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::world::{World, eventually, succeeded, with_input};

const SYSTEM: &str = "patchwarden-system";
const INSTALL: &str = include_str!("../../docs/install.md");

/// What stays of the chart with `crds.keep` in any case, and by which words docs/install.md tells of it.
const CLUSTER_WIDE: [(&str, &str); 15] = [
    // Kubernetes makes it of them.
    ("APIService v1alpha1.patchwarden.io", "the four kinds"),
    ("CustomResourceDefinition approvalgroups.patchwarden.io", "the four kinds"),
    ("CustomResourceDefinition deviceinventories.patchwarden.io", "the four kinds"),
    ("CustomResourceDefinition maintenancewindows.patchwarden.io", "the four kinds"),
    ("CustomResourceDefinition patchpolicies.patchwarden.io", "the four kinds"),
    ("ValidatingAdmissionPolicy patchwarden-claims", "the admission policies"),
    ("ValidatingAdmissionPolicy patchwarden-device-status", "the admission policies"),
    ("ValidatingAdmissionPolicy patchwarden-install-jobs", "the admission policies"),
    ("ValidatingAdmissionPolicy patchwarden-new-devices", "the admission policies"),
    ("ValidatingAdmissionPolicy patchwarden-status", "the admission policies"),
    ("ValidatingAdmissionPolicyBinding patchwarden-claims", "the admission policies"),
    ("ValidatingAdmissionPolicyBinding patchwarden-device-status", "the admission policies"),
    ("ValidatingAdmissionPolicyBinding patchwarden-install-jobs", "the admission policies"),
    ("ValidatingAdmissionPolicyBinding patchwarden-new-devices", "the admission policies"),
    ("ValidatingAdmissionPolicyBinding patchwarden-status", "the admission policies"),
];

/// What Helm has not made.
const OF_THE_PROGRAMS: [(&str, &str); 5] = [
    ("Secret patchwarden-system/patchwarden-keys", "the Secret `patchwarden-keys`"),
    ("ConfigMap patchwarden-system/patchwarden-trust", "the ConfigMap `patchwarden-trust`"),
    ("ConfigMap patchwarden-system/join-token-*", "join tokens"),
    ("Lease patchwarden-system/patchwarden-controller", "the Lease"),
    ("PersistentVolumeClaim patchwarden-system/data-patchwarden-gateway-0", "the claim `data-patchwarden-gateway-0`"),
];

/// What Kubernetes makes of a namespace.
const OF_A_NAMESPACE: [&str; 3] = ["Namespace {}", "ServiceAccount {}/default", "ConfigMap {}/kube-root-ca.crt"];

/// What a client has of our kinds in the test of the chart, and of the only install before the first removal.
const OF_THE_CLIENT: [&str; 4] = [
    "ApprovalGroup {}/everybody",
    "DeviceInventory {}/chart-1",
    "MaintenanceWindow {}/anytime",
    "PatchPolicy {}/everything",
];

/// All objects, but for events.
#[derive(Debug)]
pub struct Everything(BTreeSet<String>);

impl Everything {
    /// What is there now.
    pub fn of(world: &World) -> Self {
        let kinds = world.kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
        let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
        assert!(kinds.len() > 40 && kinds.contains(&"secrets"), "{kinds:?}");
        let columns = "custom-columns=:.kind,:.metadata.namespace,:.metadata.name";
        let table = world.kubectl(&["get", &kinds.join(","), "-A", "--no-headers", "-o", columns]);
        Self(table.lines().filter_map(named).collect())
    }

    /// Waits until what has come since is this and nothing else; a name may end with `*`.
    pub fn and_no_more_than(&self, world: &World, wanted: &[String]) {
        let mut last = (vec![], vec![]);
        let is = |name: &String, wanted: &String| match wanted.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == wanted,
        };
        eventually("what is left is what should be", || {
            let now = Self::of(world).0;
            let come: Vec<_> = now.difference(&self.0).cloned().collect();
            let more = come.iter().filter(|name| !wanted.iter().any(|wanted| is(name, wanted))).cloned().collect();
            let missing = wanted.iter().filter(|wanted| !come.iter().any(|name| is(name, wanted))).cloned().collect();
            last = (more, missing);
            (last.0.is_empty() && last.1.is_empty()).then_some(())
        })
        .unwrap_or_else(|why| panic!("{why}: too much: {:#?}, missing: {:#?}", last.0, last.1));
    }
}

fn named(line: &str) -> Option<String> {
    let [kind, namespace, name] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line:?}") };
    // It is about all of the cluster.
    let place = if namespace == "<none>" { String::new() } else { format!("{namespace}/") };
    (kind != "Event").then(|| format!("{kind} {place}{name}"))
}

fn in_namespace(what: &[&str], namespace: &str) -> Vec<String> {
    what.iter().map(|what| what.replace("{}", namespace)).collect()
}

/// After `helm uninstall` with `crds.keep` and one install.
pub fn with_kinds(client: &str, job: &str) -> Vec<String> {
    let told = CLUSTER_WIDE.iter().map(|(name, words)| told(name, words)).collect();
    let job = vec![self::told(&format!("Job {client}/{job}"), "install Jobs"), format!("Pod {client}/{job}-*")];
    [told, job, in_namespace(&OF_THE_CLIENT, client), without_kinds(client)].concat()
}

/// The same without it: install Jobs go with their devices' objects.
pub fn without_kinds(client: &str) -> Vec<String> {
    let own = OF_THE_PROGRAMS.iter().map(|(name, words)| told(name, words)).collect();
    [own, in_namespace(&OF_A_NAMESPACE, SYSTEM), of_a_client(client)].concat()
}

/// A client's namespace, with nothing of Patchwarden in it.
pub fn of_a_client(client: &str) -> Vec<String> {
    in_namespace(&OF_A_NAMESPACE, client)
}

fn told(name: &str, words: &str) -> String {
    let removal = INSTALL.split_once("\n## Remove\n").expect("a section").1;
    let table = removal.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| "));
    assert!(table.into_iter().any(|row| row.contains(words)), "docs/install.md does not say that {words} stay: {name}");
    name.to_owned()
}

/// Does what docs/install.md says removes all of it.
pub fn remove_everything() {
    do_as_documented(documented("kubectl delete namespace patchwarden-system"));
}

/// Does what docs/install.md says is to be done before the release is removed.
pub fn before_it_is_removed() {
    let block = documented("helm uninstall patchwarden");
    do_as_documented(block.split_once("helm uninstall").expect("asked for").0);
}

/// The block of docs/install.md that has these words.
fn documented(words: &str) -> &'static str {
    let blocks = INSTALL.split("```sh\n").skip(1).map(|rest| rest.split_once("```").expect("a block ends").0);
    let mut blocks = blocks.filter(|block| block.contains(words));
    let block = blocks.next().expect("a block with these words");
    assert!(blocks.next().is_none(), "two blocks have {words}");
    block
}

fn do_as_documented(block: &str) {
    let output = with_input(std::process::Command::new("sh").args(["-ec", block]), "");
    succeeded("sh", &[block], &output);
}

/// What Argo CD's server-side diff and Flux's detection of drift ask: whether the release is what was applied.
pub fn no_drift(world: &World, manifest: &str) {
    let arguments = ["diff", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", "-"];
    let diff = |yaml: &str| with_input(std::process::Command::new("kubectl").args(arguments), yaml);
    let mut differs = diff(manifest);
    // It reads an object and tries its apply without holding it: what is written in between looks like a difference.
    for _ in 0..2 {
        if differs.status.code() == Some(1) {
            differs = diff(manifest);
        }
    }
    // 0: nothing differs; 1: something does; more: it could not be said.
    let said = |output: &std::process::Output| [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
    assert_eq!(differs.status.code(), Some(0), "{}", said(&differs));
    // That it looks.
    let changed = manifest.replacen("replicas: 2", "replicas: 3", 1);
    let differs = diff(&changed);
    assert!(differs.status.code() == Some(1) && said(&differs).contains("+  replicas: 3"), "{}", said(&differs));
    let all: Vec<Value> = serde_saphyr::from_multiple(manifest).expect("YAML");
    println!("no drift of {} objects in cluster {}", all.len(), world.name());
}
