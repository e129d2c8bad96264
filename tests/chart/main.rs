//! Tests of the Helm chart by Helm and kubeconform, without a cluster: `hack/chart check` builds these and says where they are.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod dashboards;
mod gitops;
mod notes;
mod schemas;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use serde_json::Value;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/patchwarden");

/// Values with which everything that is optional is on, for SQLite.
const EVERYTHING: &[&str] = &[
    "image.pullSecrets={registry}",
    "rbac.aggregateToEdit=true",
    "rbac.aggregateToAdmin=true",
    "controller.image=registry.example.com:5000/controller@sha256:0123456789012345678901234567890123456789012345678901234567890123",
    "controller.replicas=3",
    "controller.podAnnotations.a=b",
    "controller.podLabels.c=d",
    "controller.nodeSelector.e=f",
    "controller.tolerations[0].key=g",
    "controller.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=h",
    "controller.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
    "controller.topologySpreadConstraints[0].maxSkew=1",
    "controller.topologySpreadConstraints[0].topologyKey=zone",
    "controller.topologySpreadConstraints[0].whenUnsatisfiable=DoNotSchedule",
    "gateway.serverNames={patch.example.com,192.0.2.1,2001:db8::1}",
    "gateway.persistence.storageClass=fast",
    "gateway.agents.type=LoadBalancer",
    "gateway.agents.nodePort=30443",
    "gateway.agents.loadBalancerSourceRanges={192.0.2.0/24}",
    "gateway.agents.annotations.i=j",
    "gateway.recipesConfigMap=recipes",
    "vulnerabilities.existingClaim=vulnerabilities",
    "logs.format=json",
    "telemetry.traces.endpoint=http://collector:4318",
    "telemetry.traces.percent=5",
    "telemetry.traces.resourceAttributes.team=patching",
    "telemetry.traces.headersSecret=collector",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
    "serviceMonitor.enabled=true",
    "serviceMonitor.additionalLabels.release=prometheus",
    "prometheusRule.enabled=true",
    "prometheusRule.additionalLabels.release=prometheus",
    "dashboards.enabled=true",
    "dashboards.labels.team=patching",
    "dashboards.annotations.grafana_folder=Patching",
    "dashboards.namespace=monitoring",
];

/// Values with which nothing is there that can be left out.
const NOTHING: &[&str] = &[
    "crds.enabled=false",
    "crds.keep=false",
    "rbac.aggregateToView=false",
    "priorityClass.create=false",
    "podDisruptionBudget.enabled=false",
    "networkPolicy.enabled=false",
];

const POSTGRESQL: &[&str] =
    &["gateway.database.type=postgresql", "gateway.database.postgresql.secret=database", "gateway.replicas=3"];

const AGGREGATION: &[&str] = &["gateway.aggregation.enabled=true"];

const POSTGRESQL_VERIFIED: &[&str] =
    &["gateway.database.postgresql.passwordKey=password", "gateway.database.postgresql.caKey=ca.crt"];

fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: these tests are run by \"make chart\""))
}

/// Helm with these arguments and values.
fn helm(arguments: &[&str], values: &[&str]) -> Output {
    let mut command = Command::new(environment("PATCHWARDEN_HELM"));
    command.args(arguments).args(values.iter().flat_map(|value| ["--set", value]));
    // Whoever runs this has a cluster and repositories of their own.
    command.env_remove("KUBECONFIG").output().expect("helm")
}

/// What the chart is with these values, in a namespace.
fn rendered(namespace: &str, values: &[&str]) -> String {
    let version = environment("PATCHWARDEN_KUBERNETES_VERSION");
    let arguments = ["template", "patchwarden", CHART, "--namespace", namespace, "--kube-version", &version];
    let output = helm(&arguments, values);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn objects(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).expect("YAML of Kubernetes objects")
}

/// A kind and a name.
fn identity(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{object} has no kind or name")).to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

#[test]
fn the_chart_has_no_fault_that_helm_finds() {
    for values in [&[], EVERYTHING, NOTHING, POSTGRESQL, &[POSTGRESQL, AGGREGATION].concat()] {
        let output = helm(&["lint", "--strict", CHART], values);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn every_rendering_is_of_the_schemas_of_kubernetes() {
    let schemas = schemas::Schemas::write();
    let all = [
        vec![],
        EVERYTHING.to_vec(),
        NOTHING.to_vec(),
        POSTGRESQL.to_vec(),
        [POSTGRESQL, POSTGRESQL_VERIFIED, &EVERYTHING[1..14]].concat(),
        [POSTGRESQL, AGGREGATION].concat(),
        [POSTGRESQL, NOTHING].concat(),
    ];
    for values in &all {
        schemas.check(&rendered("patchwarden-system", values)).unwrap_or_else(|why| panic!("{values:?}: {why}"));
    }
    // That it finds what is wrong.
    let wrong = rendered("patchwarden-system", &[]).replace("serviceAccountName:", "serviceAccountNames:");
    let found = schemas.check(&wrong).expect_err("there is no serviceAccountNames");
    assert!(found.contains("patchwarden-controller") && found.contains("serviceAccountNames"), "{found}");
}

/// What Kustomize makes of a directory of `config/`.
fn kustomized(directory: &str) -> String {
    let directory = format!("{}/config/{directory}", env!("CARGO_MANIFEST_DIR"));
    let output =
        Command::new(environment("PATCHWARDEN_KUBECTL")).args(["kustomize", &directory]).output().expect("kubectl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rights_admission_and_kinds_are_those_of_config_base() {
    let base = kustomized("base");
    for namespace in ["patchwarden-system", "elsewhere"] {
        let wanted = objects(&base.replace("patchwarden-system", namespace));
        let wanted: BTreeMap<_, _> = wanted.iter().map(|object| (identity(object), object)).collect();
        let found = objects(&rendered(namespace, &["crds.keep=false"]));
        let mut found: BTreeMap<_, _> = found.into_iter().map(|object| (identity(&object), object)).collect();
        for (identity, wanted) in &wanted {
            if identity.0 == "Namespace" {
                continue;
            }
            let found = found.remove(identity).unwrap_or_else(|| panic!("{identity:?} is not in the chart"));
            assert_eq!(without_helms_labels(found), **wanted, "{identity:?}");
        }
        // Nothing else grants or refuses anything.
        let kinds = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy"];
        let others: Vec<_> = found.keys().filter(|(kind, _)| kinds.contains(&kind.as_str())).collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

#[test]
fn the_aggregation_layer_is_what_config_aggregation_says_and_nothing_of_it_is_there_without() {
    let off = objects(&rendered("elsewhere", POSTGRESQL));
    let on = objects(&rendered("elsewhere", &[POSTGRESQL, AGGREGATION].concat()));
    let all: BTreeMap<_, _> = off.into_iter().map(|object| (identity(&object), object)).collect();
    let wanted = objects(&kustomized("aggregation").replace("patchwarden-system", "elsewhere"));
    assert!(wanted.iter().any(|object| object["kind"] == "APIService"));
    let mut added = 0;
    let mut changed = BTreeSet::new();
    for object in on {
        let is = |other: &&Value| {
            identity(other) == identity(&object) && other["metadata"]["namespace"] == object["metadata"]["namespace"]
        };
        if let Some(wanted) = wanted.iter().find(is) {
            added += 1;
            assert_eq!(without_helms_labels(object.clone()), *wanted);
        } else if all.get(&identity(&object)) != Some(&object) {
            let differences: Vec<_> =
                ["aggregation", "8446"].iter().filter(|it| object.to_string().contains(**it)).collect();
            assert!(!differences.is_empty(), "{:?} has changed for another reason", identity(&object));
            changed.insert(identity(&object).0);
        }
    }
    assert_eq!(added, wanted.len());
    assert_eq!(changed, ["Deployment", "NetworkPolicy", "Service"].map(str::to_owned).into());

    // By which CA gateways are known is the controller's to say; that they are known is never left out.
    let service = wanted.iter().find(|object| object["kind"] == "APIService").unwrap();
    assert!(service["spec"].get("caBundle").is_none() && service["spec"].get("insecureSkipTLSVerify").is_none());
    let view = rendered("elsewhere", &[POSTGRESQL, AGGREGATION, &["rbac.aggregateToView=false"]].concat());
    let view = objects(&view).into_iter().find(|object| identity(object).1 == "patchwarden-store-view").unwrap();
    assert!(view["metadata"]["labels"].get("rbac.authorization.k8s.io/aggregate-to-view").is_none(), "{view}");
}

#[test]
fn the_aggregation_layer_is_refused_for_a_single_gateway() {
    let one = [&POSTGRESQL[..2], &["gateway.replicas=1"]].concat();
    for values in [AGGREGATION.to_vec(), [&one, AGGREGATION].concat()] {
        let output = helm(&["template", "patchwarden", CHART], &values);
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted = "gateway.aggregation.enabled needs gateway.replicas of 2 or more, which need gateway.database.type=postgresql, and there is 1";
        assert!(!output.status.success() && said.contains(wanted), "{values:?}: {said}");
    }
}

fn without_helms_labels(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    let labels = metadata["labels"].as_object_mut().unwrap();
    labels.retain(|name, _| !name.starts_with("app.kubernetes.io/") && name != "helm.sh/chart");
    if labels.is_empty() {
        metadata.remove("labels");
    }
    object
}

/// `UPDATE_GOLDEN=1 make chart` writes the file.
#[test]
fn the_programs_of_config_are_the_charts() {
    let base: BTreeSet<_> = objects(&kustomized("base")).iter().map(identity).collect();
    let mut wanted =
        String::from("# Generated from charts/patchwarden by `UPDATE_GOLDEN=1 make chart`. Do not edit.\n");
    for mut object in objects(&rendered("patchwarden-system", &[])) {
        let is_hook = object["metadata"]["annotations"]["helm.sh/hook"].is_string();
        if is_hook || base.contains(&identity(&object)) {
            continue;
        }
        for place in ["/metadata/labels", "/spec/template/metadata/labels"] {
            if let Some(labels) = object.pointer_mut(place).and_then(Value::as_object_mut) {
                labels.retain(|name, _| name != "helm.sh/chart" && name != "app.kubernetes.io/managed-by");
            }
        }
        wanted.push_str("---\n");
        wanted.push_str(&serde_saphyr::to_string(&object).unwrap());
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/programs/programs.yaml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(file, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(file).unwrap_or_default();
    assert!(found == wanted, "{file} is not what the chart renders: UPDATE_GOLDEN=1 make chart");
    schemas::Schemas::write().check(&kustomized("programs")).unwrap();
}

#[test]
fn a_database_of_one_gateway_is_a_volume_and_one_of_several_a_secret() {
    let gateway = |values: &[&str]| {
        let all = objects(&rendered("patchwarden-system", values));
        let is_gateway = |object: &&Value| {
            matches!(object["kind"].as_str(), Some("StatefulSet" | "Deployment"))
                && object["metadata"]["name"] == "patchwarden-gateway"
        };
        all.iter().find(is_gateway).expect("a gateway").clone()
    };
    let sqlite = gateway(&[]);
    assert_eq!((&sqlite["kind"], &sqlite["spec"]["replicas"]), (&"StatefulSet".into(), &1.into()));
    assert_eq!(
        sqlite["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"],
        serde_json::json!(["ReadWriteOncePod"])
    );
    let postgresql = gateway(POSTGRESQL);
    assert_eq!((&postgresql["kind"], &postgresql["spec"]["replicas"]), (&"Deployment".into(), &3.into()));
    let environment = &postgresql["spec"]["template"]["spec"]["containers"][0]["env"][0];
    let secret = serde_json::json!({"secretKeyRef": {"name": "database", "key": "url"}});
    assert_eq!((&environment["name"], &environment["valueFrom"]), (&"PATCHWARDEN_DATABASE".into(), &secret));
    assert!(!postgresql.to_string().contains("persistentVolumeClaim"), "{postgresql}");
}

#[test]
fn what_is_kept_is_kinds_and_their_admission_policies() {
    let kept = |values: &[&str]| -> BTreeSet<String> {
        let all = objects(&rendered("patchwarden-system", values));
        let is_kept = |object: &&Value| object["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
        all.iter().filter(is_kept).map(|object| identity(object).0).collect()
    };
    let kinds = ["CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    assert_eq!(kept(&[]), kinds.map(str::to_owned).into());
    assert_eq!(kept(&["crds.keep=false"]), BTreeSet::new());
}

#[test]
fn alerts_are_of_metrics_that_there_are_and_each_is_explained() {
    let read = |file: &str| std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (metrics, install) = (read("docs/metrics.md"), read("docs/install.md"));
    let alerts: Value = serde_saphyr::from_str(&read("charts/patchwarden/files/alerts.yaml")).unwrap();
    let alerts = alerts["groups"][0]["rules"].as_array().unwrap();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let (name, expression) = (alert["alert"].as_str().unwrap(), alert["expr"].as_str().unwrap());
        let named = named(expression);
        assert!(!named.is_empty(), "{name}: {expression}");
        for metric in named {
            assert!(metrics.contains(&format!("| `{metric}` |")), "{name}: {metric} is not in docs/metrics.md");
        }
        assert!(install.contains(&format!("\n### {name}\n")), "docs/install.md does not explain {name}");
        let link = alert["annotations"]["runbook_url"].as_str().unwrap();
        assert!(link.ends_with(&format!("/docs/install.md#{}", name.to_lowercase())), "{name}: {link}");
    }
}

/// The metrics of an expression.
fn named(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("patchwarden_")).collect()
}

fn promtool(arguments: &[&str]) {
    let mut command = Command::new(environment("PATCHWARDEN_PROMTOOL"));
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
    let said = [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

/// By Debian's promtool, in `alerts.yaml`: what it does not check is that no alert is forgotten there.
// covers CL-1, EM-13
#[test]
fn each_alert_comes_and_goes() {
    promtool(&["check", "rules", "charts/patchwarden/files/alerts.yaml"]);
    promtool(&["test", "rules", "tests/chart/alerts.yaml"]);
    let read = |file: &str| -> Value {
        let text = std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    };
    let (alerts, tests) = (read("charts/patchwarden/files/alerts.yaml"), read("tests/chart/alerts.yaml"));
    let minutes = |time: &Value| -> u32 {
        let time = time.as_str().unwrap();
        let (number, unit) = time.split_at(time.len() - 1);
        number.parse::<u32>().unwrap() * if unit == "h" { 60 } else { 1 }
    };
    for alert in alerts["groups"][0]["rules"].as_array().unwrap() {
        let test = tests["tests"].as_array().unwrap().iter().find(|test| test["name"] == alert["alert"]);
        let test = test.unwrap_or_else(|| panic!("{} has no test", alert["alert"]));
        let mut told: Vec<(u32, bool)> = Vec::new();
        for case in test["alert_rule_test"].as_array().unwrap() {
            assert_eq!(case["alertname"], alert["alert"]);
            told.push((minutes(&case["eval_time"]), !case["exp_alerts"].as_array().unwrap().is_empty()));
        }
        told.sort_unstable();
        let story: Vec<bool> = told.iter().map(|(_, fires)| *fires).collect();
        let (first, last) = (story.first(), story.last());
        assert!(first == Some(&false) && story.contains(&true) && last == Some(&false), "{test}");
        // Of what is true of one metric or of another, each alone makes it fire.
        let sides = alert["expr"].as_str().unwrap().split(" or ").map(named).collect::<BTreeSet<_>>().len();
        let fires = story.chunk_by(|a, b| a == b).filter(|part| part[0]).count();
        assert!(fires >= sides, "{}: {sides} metrics, and it fires {fires} times: {test}", alert["alert"]);
    }
}

#[test]
fn the_chart_is_of_the_version_of_the_programs() {
    let chart: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(format!("{CHART}/Chart.yaml")).unwrap()).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let declared: Value =
        serde_saphyr::from_str(chart["annotations"]["artifacthub.io/crds"].as_str().unwrap()).unwrap();
    let declared: BTreeSet<_> =
        declared.as_array().unwrap().iter().map(|kind| kind["name"].clone().to_string()).collect();
    let rendered = objects(&rendered("patchwarden-system", &[]));
    let kinds = rendered.iter().filter(|object| object["kind"] == "CustomResourceDefinition");
    assert_eq!(declared, kinds.map(|kind| kind["metadata"]["name"].to_string()).collect());
}
