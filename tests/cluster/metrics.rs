//! Debian's Prometheus, configured as its operator does it from the chart's ServiceMonitors: what it scrapes, and what dashboards and
//! alerts ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;

use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::alertmanager;
use crate::world::{World, eventually, succeeded};

const PORT: u16 = 9090;

/// Labels of the target, which `docs/metrics.md` does not tell of; `namespace` may be that of the pod.
const OF_THE_TARGET: [&str; 8] = ["__name__", "namespace", "pod", "service", "endpoint", "job", "instance", "le"];

/// The alert that is told at once.
pub const GATEWAY_DOWN: &str = "PatchwardenGatewayDown";

/// A server that scrapes the release. It ends, and its files with it, when this is dropped.
pub struct Prometheus<'w> {
    world: &'w World,
    server: Child,
    began: Timestamp,
    /// Each with the file of its targets.
    monitors: Vec<(Value, PathBuf)>,
    _files: TempDir,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        self.server.kill().expect("Prometheus is ours");
        self.server.wait().expect("Prometheus is ours");
    }
}

impl<'w> Prometheus<'w> {
    /// Scrapes what these ServiceMonitors select.
    pub fn start(world: &'w World, monitors: &[Value]) -> Self {
        let files = tempfile::Builder::new().prefix("patchwarden-prometheus-").tempdir().unwrap();
        let configuration = files.path().join("prometheus.yaml");
        let with_file = |monitor: &Value| {
            let name = monitor["metadata"]["name"].as_str().unwrap();
            (monitor.clone(), files.path().join(format!("{name}.json")))
        };
        let monitors: Vec<_> = monitors.iter().map(with_file).collect();
        let jobs: Vec<_> = monitors.iter().map(|(monitor, targets)| job(monitor, targets)).collect();
        let alerts = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/patchwarden/files/alerts.yaml");
        let at_once = files.path().join("at-once.yaml");
        std::fs::write(&at_once, told_at_once(alerts).to_string()).unwrap();
        let text = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [alerts, at_once], "scrape_configs": jobs,
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager::ADDRESS]}]}]},
        });
        std::fs::write(&configuration, text.to_string()).unwrap();
        let program = std::env::var("PATCHWARDEN_PROMETHEUS").expect("set by hack/chart");
        let mut server = world
            .inside(&program)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", files.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .arg("--log.level=warn")
            .spawn()
            .expect("prometheus");
        eventually("Prometheus listens", || {
            assert!(server.try_wait().unwrap().is_none(), "Prometheus has ended: what it said is above");
            ask(world, "status/buildinfo", &[]).ok()
        })
        .unwrap();
        Self { world, server, began: Timestamp::now(), monitors, _files: files }
    }

    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        ask(self.world, path, parameters)
    }

    /// Waits until so many targets are there, and all of them are scraped.
    pub fn scrapes(&self, controllers: usize, gateways: usize) {
        let mut last = String::new();
        let scraped = eventually("all targets are scraped", || {
            for (monitor, file) in &self.monitors {
                // At once: it may be read at any moment.
                let new = file.with_extension("new");
                std::fs::write(&new, targets(self.world, monitor).to_string()).unwrap();
                std::fs::rename(&new, file).unwrap();
            }
            let found = self.ask("targets", &[("state", "active")]);
            last = format!("{found:?}");
            let targets = found.ok()?["activeTargets"].as_array()?.clone();
            let of = |job: &str| targets.iter().filter(|target| target["labels"]["job"] == job).count();
            let all_are_up = targets.iter().all(|target| target["health"] == "up");
            let counts = (of("patchwarden-controller"), of("patchwarden-gateway"));
            (all_are_up && counts == (controllers, gateways)).then_some(())
        });
        scraped.unwrap_or_else(|why| panic!("{why}: {last}"));
    }

    /// Whether a query, of the present or since the start, has a value that is a number; an error is one of the query.
    fn has_data(&self, expression: &str, is_now: bool) -> Result<bool, String> {
        let now = self.ask("query", &[("query", "time()")])?["result"][1].as_str().unwrap().to_owned();
        let answer = if is_now {
            self.ask("query", &[("query", expression), ("time", &now)])?
        } else {
            let start = self.began.as_second().to_string();
            self.ask("query_range", &[("query", expression), ("start", &start), ("end", &now), ("step", "1s")])?
        };
        let is_number = |sample: &Value| sample[1].as_str().is_some_and(|value| value != "NaN");
        let has_number = |series: &Value| {
            is_number(&series["value"]) || series["values"].as_array().into_iter().flatten().any(is_number)
        };
        Ok(answer["result"].as_array().unwrap().iter().any(has_number))
    }

    /// What is scraped is what `docs/metrics.md` tells of, but for what is there only sometimes.
    pub fn has_what_is_documented(&self) {
        let documented = documented();
        let metadata = self.ask("metadata", &[]).unwrap();
        let ours = metadata.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("patchwarden_"));
        let scraped: BTreeMap<&str, &str> =
            ours.map(|(name, of_it)| (name.as_str(), of_it[0]["type"].as_str().unwrap())).collect();
        for (name, kind) in &scraped {
            let known = documented.get(*name).unwrap_or_else(|| panic!("{name} is scraped and not in docs/metrics.md"));
            assert_eq!(known.kind, *kind, "{name}");
        }
        let series = self.ask("series", &[("match[]", r#"{__name__=~"patchwarden_.*"}"#)]).unwrap();
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for one in series.as_array().unwrap() {
            let name = one["__name__"].as_str().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let name = if documented.contains_key(name) { name } else { of_histogram.unwrap_or(name) };
            let its = one.as_object().unwrap().keys().filter(|label| !OF_THE_TARGET.contains(&label.as_str()));
            labels.entry(name.to_owned()).or_default().extend(its.cloned());
        }
        assert!(labels.keys().all(|name| documented.contains_key(name)), "{:?}", labels.keys());
        for (name, Documented { there, labels: wanted, .. }) in &documented {
            let is_sometimes = there.starts_with("while ");
            let Some(found) = labels.get(name) else {
                assert!(is_sometimes, "{name} is not there, which docs/metrics.md says is {there}");
                continue;
            };
            assert_eq!(found, wanted, "{name}");
        }
        println!("{} metrics in {} series", labels.len(), series.as_array().unwrap().len());
    }

    /// Each query of each dashboard that is in the cluster returns data, and each alert is one that Prometheus evaluates.
    pub fn answers_dashboards_and_alerts(&self) {
        let maps = ["get", "configmaps", "-A", "-l", "grafana_dashboard=1", "-o", "json"];
        let maps: Value = serde_json::from_str(&self.world.kubectl(&maps)).unwrap();
        let maps = maps["items"].as_array().unwrap();
        assert_eq!(maps.len(), 4, "{maps:?}");
        let mut empty = Vec::new();
        let mut asked = 0;
        for text in maps.iter().flat_map(|map| map["data"].as_object().unwrap().values()) {
            let dashboard: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
            for panel in dashboard["panels"].as_array().unwrap() {
                for target in panel["targets"].as_array().into_iter().flatten() {
                    let expression = chosen(target["expr"].as_str().unwrap());
                    let has_data = self.has_data(&expression, target["instant"] == true);
                    let at = format!("{}, {}: {expression}", dashboard["title"], panel["title"]);
                    if !has_data.unwrap_or_else(|why| panic!("{at}: {why}")) {
                        empty.push(at);
                    }
                    asked += 1;
                }
            }
        }
        assert!(empty.is_empty(), "no data: {empty:#?}");
        let rules = self.ask("rules", &[("type", "alert")]).unwrap();
        let mut groups = rules["groups"].as_array().unwrap().iter();
        let rules = groups.find(|group| group["name"] == "patchwarden").unwrap()["rules"].as_array().unwrap();
        assert!(!rules.is_empty());
        for rule in rules {
            assert_eq!((&rule["health"], &rule["lastError"]), (&"ok".into(), &Value::Null), "{rule}");
            self.has_data(rule["query"].as_str().unwrap(), true).unwrap_or_else(|why| panic!("{rule}: {why}"));
            assert_ne!(rule["state"], "firing", "nothing is wrong here: {rule}");
        }
        println!("{asked} queries of dashboards have data, {} alerts are evaluated", rules.len());
    }
}

/// One of the alerts, without the minutes for which it has to be so.
fn told_at_once(alerts: &str) -> Value {
    let alerts: Value = serde_saphyr::from_str(&std::fs::read_to_string(alerts).unwrap()).unwrap();
    let mut rules = alerts["groups"][0]["rules"].as_array().unwrap().iter();
    let mut rule = rules.find(|rule| rule["alert"] == GATEWAY_DOWN).expect("an alert of this name").clone();
    rule["for"] = "1s".into();
    json!({"groups": [{"name": "at-once", "rules": [rule]}]})
}

/// An answer of its API.
fn ask(world: &World, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
    let parameters: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let path = format!("/api/v1/{path}?{}", parameters.join("&"));
    let script = "exec 3<>\"/dev/tcp/127.0.0.1/$0\" && printf 'GET %s HTTP/1.0\\r\\n\\r\\n' \"$1\" >&3 && cat <&3";
    let port = PORT.to_string();
    let arguments = ["-c", script, &port, &path];
    let output = world.inside("bash").args(arguments).output().expect("bash");
    if !output.status.success() {
        return Err("it does not listen".to_owned());
    }
    let answer = succeeded("bash", &arguments, &output);
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let mut body: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
    if body["status"] == "success" { Ok(body["data"].take()) } else { Err(body["error"].to_string()) }
}

/// A query as Grafana sends it when nothing is chosen.
fn chosen(expression: &str) -> String {
    let chosen = expression.replace("$__rate_interval", "30s");
    let chosen = ["$cluster", "$namespace", "$policy"].iter().fold(chosen, |text, name| text.replace(name, ".*"));
    assert!(!chosen.contains('$'), "{chosen}");
    chosen
}

struct Documented {
    kind: String,
    labels: BTreeSet<String>,
    there: String,
}

/// By name.
fn documented() -> BTreeMap<String, Documented> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        let labels = cells[3].split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty() && label != "namespace").collect();
        let of_it = Documented { kind: cells[2].clone(), labels, there: cells[4].clone() };
        (cells[1].trim_matches('`').to_owned(), of_it)
    };
    rows.map(row).collect()
}

/// A job as Prometheus' operator makes it of a ServiceMonitor, but for how its targets are found: Debian's Prometheus knows no Kubernetes.
fn job(monitor: &Value, targets: &Path) -> Value {
    json!({
        "job_name": monitor["metadata"]["name"], "honor_labels": monitor["spec"]["endpoints"][0]["honorLabels"],
        "file_sd_configs": [{"files": [targets], "refresh_interval": "1s"}],
    })
}

/// What a ServiceMonitor selects at this moment.
fn targets(world: &World, monitor: &Value) -> Value {
    let namespace = monitor["metadata"]["namespace"].as_str().unwrap();
    let selected = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let selected: Vec<_> = selected.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect();
    // They have the labels of their Service.
    let slices = ["get", "endpointslices", "-n", namespace, "-l", &selected.join(","), "-o", "json"];
    let slices: Value = serde_json::from_str(&world.kubectl(&slices)).unwrap();
    let mut found = Vec::new();
    for slice in slices["items"].as_array().unwrap() {
        let ports = slice["ports"].as_array().into_iter().flatten();
        for port in ports.filter(|port| port["name"] == monitor["spec"]["endpoints"][0]["port"]) {
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let address = endpoint["addresses"][0].as_str().unwrap();
                found.push(json!({"targets": [format!("{address}:{}", port["port"])], "labels": {
                    "namespace": namespace, "pod": endpoint["targetRef"]["name"], "endpoint": port["name"],
                    "service": slice["metadata"]["labels"]["kubernetes.io/service-name"],
                }}));
            }
        }
    }
    Value::Array(found)
}

/// For a query of a URL.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(encode).collect()
}
