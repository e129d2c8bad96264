//! Values that `values.schema.json` refuses, and what it says of each.

use serde_json::Value;

use super::{CHART, helm};

/// A value, where the message says that it is, and what it says of it.
const REFUSED: &[(&str, &str, &str)] = &[
    ("gateway.replicas=2", "/gateway/replicas", "maximum: got 2, want 1"),
    ("gateway.replicas=-1", "/gateway/replicas", "minimum: got -1, want 0"),
    ("gateway.replicas=many", "/gateway/replicas", "got string, want integer"),
    ("gateway.database.type=mysql", "/gateway/database/type", "value must be one of 'sqlite', 'postgresql'"),
    ("gateway.database.type=postgresql", "/gateway/database/postgresql/secret", "minLength: got 0, want 1"),
    (
        "gateway.database.url=postgres://user:password@host/db",
        "/gateway/database",
        "additional properties 'url' not allowed",
    ),
    ("gateway.database.postgresql.secret=Not A Name", "/gateway/database/postgresql/secret", "does not match pattern"),
    ("gateway.database.postgresql.urlKey=", "/gateway/database/postgresql/urlKey", "minLength: got 0, want 1"),
    (
        "gateway.persistence.accessMode=ReadWriteMany",
        "/gateway/persistence/accessMode",
        "value must be one of 'ReadWriteOncePod', 'ReadWriteOnce'",
    ),
    ("gateway.persistence.size=8 GB", "/gateway/persistence/size", "'8 GB' does not match pattern"),
    (
        "gateway.serverNames={https://patch.example.com}",
        "/gateway/serverNames/0",
        "'https://patch.example.com' does not match pattern",
    ),
    (
        "gateway.serverNames={patch.example.com:8443}",
        "/gateway/serverNames/0",
        "'patch.example.com:8443' does not match pattern",
    ),
    ("gateway.aggregation.enabled=maybe", "/gateway/aggregation/enabled", "got string, want boolean"),
    ("gateway.aggregation.port=1", "/gateway/aggregation", "additional properties 'port' not allowed"),
    ("gateway.scanInterval=often", "/gateway/scanInterval", "'often' does not match pattern"),
    ("gateway.scanInterval=30s", "/gateway/scanInterval", "'30s' does not match pattern"),
    ("gateway.scanInterval=169h", "/gateway/scanInterval", "'169h' does not match pattern"),
    ("gateway.scanInterval=4", "/gateway/scanInterval", "got number, want string"),
    ("gateway.keepAuditDays=7", "/gateway/keepAuditDays", "minimum: got 7, want 30"),
    ("gateway.keepGoneDays=89", "/gateway/keepGoneDays", "minimum: got 89, want 90"),
    (
        "gateway.agents.type=Ingress",
        "/gateway/agents/type",
        "value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'",
    ),
    ("gateway.agents.port=70000", "/gateway/agents/port", "maximum: got 70,000, want 65,535"),
    ("gateway.agents.nodePort=30443", "/gateway/agents/nodePort", "value must be 0"),
    (
        "gateway.agents.loadBalancerSourceRanges={192.0.2.0/24}",
        "/gateway/agents/loadBalancerSourceRanges",
        "maxItems: got 1, want 0",
    ),
    ("controller.replicas=11", "/controller/replicas", "maximum: got 11, want 10"),
    ("controller.image=two words", "/controller/image", "'two words' does not match pattern"),
    ("controller.resources.request.cpu=1", "/controller/resources", "additional properties 'request' not allowed"),
    ("controller.leaderElection=false", "/controller", "additional properties 'leaderElection' not allowed"),
    ("image.pullPolicy=Sometimes", "/image/pullPolicy", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("image.registry=https://registry.example.com", "/image/registry", "does not match pattern"),
    ("image.tag=a b", "/image/tag", "'a b' does not match pattern"),
    ("crds.keep=perhaps", "/crds/keep", "got string, want boolean"),
    ("priorityClass.value=2000000000", "/priorityClass/value", "maximum: got 2×10⁰⁹, want 1×10⁰⁹"),
    ("serviceMonitor.interval=30", "/serviceMonitor/interval", "got number, want string"),
    ("dashboards.enabled=on", "/dashboards/enabled", "got string, want boolean"),
    ("dashboards.namespace=Grafana", "/dashboards/namespace", "'Grafana' does not match pattern"),
    ("logs.format=xml", "/logs/format", "value must be one of 'text', 'json'"),
    (
        "telemetry.traces.endpoint=collector:4317",
        "/telemetry/traces/endpoint",
        "'collector:4317' does not match pattern",
    ),
    ("telemetry.traces.percent=200", "/telemetry/traces/percent", "maximum: got 200, want 100"),
    ("networkpolicy.enabled=false", "", "additional properties 'networkpolicy' not allowed"),
];

#[test]
fn values_that_make_no_sense_are_refused_and_named() {
    for (value, place, what) in REFUSED {
        let output = helm(&["template", "patchwarden", CHART], &[value]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{value} is accepted");
        let line = said.lines().find(|line| line.contains(&format!("at '{place}': ")) && line.contains(what));
        assert!(line.is_some(), "{value} is refused without \"{place}: {what}\":\n{said}");
    }
}

#[test]
fn several_gateways_are_accepted_with_postgresql_alone() {
    let values = ["gateway.database.type=postgresql", "gateway.database.postgresql.secret=db", "gateway.replicas=5"];
    let output = helm(&["template", "patchwarden", CHART], &values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_schema_knows_no_value_that_the_chart_has_not() {
    let read = |file: &str| std::fs::read_to_string(format!("{CHART}/{file}")).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    compare("", &schema, &values);
}

fn compare(path: &str, schema: &Value, values: &Value) {
    for (name, of_it) in schema["properties"].as_object().into_iter().flatten() {
        // Helm's own, and Kubernetes': what a container claims of devices.
        if ["global", "claims"].contains(&name.as_str()) {
            continue;
        }
        let value = values.get(name).unwrap_or_else(|| panic!("{path}/{name} is in the schema and not in values.yaml"));
        compare(&format!("{path}/{name}"), of_it, value);
    }
}
