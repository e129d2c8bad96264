//! Grafana's dashboards, as the chart ships them. That Prometheus answers them is seen by `hack/chart cluster`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{CHART, identity, objects, promtool, rendered};

/// People have links to these.
const UIDS: [&str; 4] = ["patchwarden-controller", "patchwarden-exposure", "patchwarden-fleet", "patchwarden-rollout"];

fn read(file: &str) -> String {
    std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn dashboards() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(format!("{CHART}/files/dashboards")).unwrap();
    let named = |file: std::fs::DirEntry| {
        let name = file.file_name().into_string().unwrap();
        (name, serde_json::from_str(&std::fs::read_to_string(file.path()).unwrap()).unwrap())
    };
    files.map(|file| named(file.unwrap())).collect()
}

#[test]
fn each_dashboard_is_a_config_map_that_the_sidecar_finds() {
    let maps = |values: &[&str]| -> Vec<Value> {
        let all = objects(&rendered("patchwarden-system", values));
        let is_dashboard = |object: &Value| identity(object).1.starts_with("patchwarden-dashboard-");
        all.into_iter().filter(is_dashboard).collect()
    };
    assert!(maps(&[]).is_empty());
    let found = maps(&["dashboards.enabled=true", "dashboards.namespace=monitoring"]);
    let mut shipped = BTreeMap::new();
    for map in &found {
        assert_eq!((&map["kind"], &map["metadata"]["namespace"]), (&"ConfigMap".into(), &"monitoring".into()));
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
        for (file, text) in map["data"].as_object().unwrap() {
            let name = file.strip_prefix("patchwarden-").unwrap();
            shipped.insert(name.to_owned(), serde_json::from_str(text.as_str().unwrap()).unwrap());
        }
    }
    assert_eq!(shipped, dashboards());
    let elsewhere = maps(&["dashboards.enabled=true", "dashboards.labels.grafana_dashboard=yes"]);
    assert_eq!(elsewhere[0]["metadata"]["namespace"], "patchwarden-system");
    assert_eq!(elsewhere[0]["metadata"]["labels"]["grafana_dashboard"], "yes");
}

// covers MW-9
#[test]
fn dashboards_keep_their_uids_and_show_metrics_that_there_are() {
    let (metrics, install) = (read("docs/metrics.md"), read("docs/install.md"));
    let all = dashboards();
    let uids: Vec<_> = all.values().map(|dashboard| dashboard["uid"].as_str().unwrap()).collect();
    assert_eq!(uids, UIDS);
    let mut shown = BTreeSet::new();
    for (file, dashboard) in &all {
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let variables: BTreeSet<_> = variables.iter().map(|it| it["name"].as_str().unwrap()).collect();
        let panels = dashboard["panels"].as_array().unwrap();
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{file}: ids are told twice");
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let at = format!("{file}, {}", panel["title"]);
            let link = panel["links"][0]["url"].as_str().unwrap();
            let anchor = link.split_once('#').map(|(_, anchor)| anchor);
            let explains = |title: &str| Some(title.to_lowercase().as_str()) == anchor;
            let is_explained = install.lines().filter_map(|line| line.strip_prefix("### ")).any(explains);
            assert!(is_explained || link.ends_with("/docs/metrics.md"), "{at}: {link}");
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap();
                let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let named: Vec<_> = words.filter(|word| word.starts_with("patchwarden_")).collect();
                assert!(!named.is_empty(), "{at}: {expression}");
                for metric in named {
                    let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|end| metric.strip_suffix(end));
                    let metric = of_histogram.unwrap_or(metric);
                    assert!(metrics.contains(&format!("| `{metric}` |")), "{at}: {metric} is not in docs/metrics.md");
                    shown.insert(metric.to_owned());
                }
                let used = expression.split('$').skip(1).map(|rest| rest.split('"').next().unwrap());
                for variable in used.filter(|variable| !variable.starts_with("__rate_interval")) {
                    assert!(variables.contains(variable), "{at}: ${variable} is no variable of {variables:?}");
                }
            }
        }
    }
    let documented = metrics.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).count();
    assert!(
        shown.len() * 4 > documented * 3,
        "{} of {documented} metrics are on no dashboard",
        documented - shown.len()
    );
}

/// Of three clusters one goes away after an hour, and in another one the controller loses its store and its vulnerability data grow old.
#[test]
fn with_all_clusters_chosen_a_number_that_is_red_or_green_is_that_of_the_worst() {
    // A sample a minute. Prometheus knows nothing any more of what it does not reach.
    let series = [
        (r#"patchwarden_leader{cluster="well",pod="a"}"#, "1x180"),
        (r#"patchwarden_leader{cluster="well",pod="b"}"#, "0x180"),
        (r#"patchwarden_leader{cluster="gone",pod="a"}"#, "1x60"),
        (r#"patchwarden_leader{cluster="ill",pod="a"}"#, "1x180"),
        (r#"patchwarden_last_pass_timestamp_seconds{cluster="well",pod="a"}"#, "0+60x180"),
        (r#"patchwarden_last_pass_timestamp_seconds{cluster="gone",pod="a"}"#, "0+60x60"),
        (r#"patchwarden_gateway_sessions{cluster="well",pod="c"}"#, "7x180"),
        (r#"patchwarden_gateway_sessions{cluster="well",pod="d"}"#, "8x180"),
        (r#"patchwarden_gateway_sessions{cluster="gone",pod="c"}"#, "5x60"),
        (r#"patchwarden_record_reachable{cluster="well",pod="a"}"#, "1x180"),
        (r#"patchwarden_record_reachable{cluster="gone",pod="a"}"#, "1x60"),
        (r#"patchwarden_record_reachable{cluster="ill",pod="a"}"#, "1x60 0x119"),
        (r#"patchwarden_vulnerabilities_read_timestamp_seconds{cluster="well",pod="a"}"#, "0+60x180"),
        (r#"patchwarden_vulnerabilities_read_timestamp_seconds{cluster="well",pod="b"}"#, "0x180"),
        (r#"patchwarden_vulnerabilities_read_timestamp_seconds{cluster="ill",pod="a"}"#, "0+60x60 3600x119"),
    ];
    let panels = [
        ("controller.json", "Leaders", 1.0, 0.0),
        ("controller.json", "Since the last pass", 0.0, 7_200.0),
        ("controller.json", "Gateways", 1.0, 0.0),
        ("controller.json", "Record reachable", 1.0, 0.0),
        ("exposure.json", "Age of vulnerability data", 0.0, 7_200.0),
        ("fleet.json", "Clusters without a leader", 0.0, 1.0),
    ];
    let all = dashboards();
    let asked = panels.iter().flat_map(|(file, title, well, later)| {
        let panel = all[*file]["panels"].as_array().unwrap().iter().find(|panel| panel["title"] == *title);
        let expression =
            panel.unwrap_or_else(|| panic!("{file} has no {title}"))["targets"][0]["expr"].as_str().unwrap();
        // What Grafana makes of `All`.
        let expression = expression.replace("$cluster", ".*").replace("$namespace", ".*");
        [("59m", well), ("180m", later)].map(|(time, value)| {
            json!({"expr": expression, "eval_time": time, "exp_samples": [{"labels": "{}", "value": value}]})
        })
    });
    let series: Vec<Value> =
        series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
    let test = json!({"interval": "1m", "input_series": series, "promql_expr_test": asked.collect::<Vec<_>>()});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({"evaluation_interval": "1m", "tests": [test]}).to_string()).unwrap();
    promtool(&["test", "rules", file.path().to_str().unwrap()]);
}
