//! Grafana dashboards from a short description of each (`content`), so that they are alike.

mod content;

use std::path::Path;

use serde_json::{Value, json};

/// A dashboard. Its `uid` is in people's links: it stays.
struct Dashboard {
    /// Its file, and the end of its uid.
    name: &'static str,
    title: &'static str,
    about: &'static str,
    /// Whether its panels are of namespaces that one can choose.
    by_namespace: bool,
    /// Whether its panels are of policies that one can choose.
    by_policy: bool,
    rows: Vec<(&'static str, Vec<Panel>)>,
}

/// A panel.
struct Panel {
    title: &'static str,
    about: &'static str,
    view: View,
    unit: Unit,
    queries: Vec<Query>,
    /// From which value on it is green, yellow or red, the first from the beginning.
    steps: &'static [(&'static str, Option<f64>)],
    /// The alert whose runbook says what to do.
    alert: Option<&'static str>,
}

/// How a panel shows its values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    /// A number.
    Stat,
    /// Lines over time.
    Lines,
    /// Areas over time, one on the other.
    Stacked,
    /// A row for each series, of the present.
    Table,
}

/// Units, as Grafana calls them.
#[derive(Clone, Copy)]
enum Unit {
    Number,
    PerSecond,
    Seconds,
    Share,
    /// Milliseconds since 1970.
    Date,
}

/// A query and how its series are called.
struct Query {
    expression: &'static str,
    legend: &'static str,
}

const DOCS: &str = "https://github.com/patchwarden/patchwarden/blob/main/docs";

/// Grafana's grid is so wide.
const COLUMNS: usize = 24;

/// Writes all of them.
pub fn write(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(directory)?;
    for dashboard in content::all() {
        let text = serde_json::to_string_pretty(&dashboard.json())?;
        std::fs::write(directory.join(format!("{}.json", dashboard.name)), format!("{text}\n"))?;
    }
    Ok(())
}

impl Dashboard {
    fn json(&self) -> Value {
        let (mut panels, mut y) = (Vec::new(), 0);
        for (title, row) in &self.rows {
            panels.push(json!({
                "id": panels.len() + 1, "type": "row", "title": title, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }));
            y += 1;
            let width = COLUMNS / row.len();
            let height = row.iter().map(Panel::height).max().unwrap_or_default();
            for (place, panel) in row.iter().enumerate() {
                let grid = json!({"x": place * width, "y": y, "w": width, "h": height});
                panels.push(panel.json(panels.len() + 1, &grid));
            }
            y += height;
        }
        json!({
            "uid": format!("patchwarden-{}", self.name),
            "title": format!("Patchwarden / {}", self.title),
            "description": self.about,
            "tags": ["patchwarden"],
            "schemaVersion": 39,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "1m",
            "time": {"from": "now-24h", "to": "now"},
            "timezone": "browser",
            "links": [{
                "type": "dashboards", "title": "Patchwarden", "tags": ["patchwarden"], "asDropdown": true, "keepTime": true,
                "includeVars": true, "targetBlank": false,
            }],
            "templating": {"list": self.variables()},
            "annotations": {"list": []},
            "panels": panels,
        })
    }

    fn variables(&self) -> Vec<Value> {
        let of_label = |name: &str, label: &str, query: &str| {
            json!({
                "name": name, "label": label, "type": "query", "datasource": data_source(),
                "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 1,
                "includeAll": true, "multi": true, "allValue": ".*",
                "current": {"text": ["All"], "value": ["$__all"]},
            })
        };
        let mut variables = vec![
            json!({"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}),
            of_label("cluster", "Cluster", "label_values(patchwarden_leader, cluster)"),
        ];
        if self.by_namespace {
            let query = r#"label_values(patchwarden_devices{cluster=~"$cluster"}, namespace)"#;
            variables.push(of_label("namespace", "Namespace", query));
        }
        if self.by_policy {
            let query =
                r#"label_values(patchwarden_policy_info{cluster=~"$cluster", namespace=~"$namespace"}, policy)"#;
            variables.push(of_label("policy", "Policy", query));
        }
        variables
    }
}

impl Panel {
    fn height(&self) -> usize {
        if self.view == View::Stat { 4 } else { 8 }
    }

    fn json(&self, id: usize, grid: &Value) -> Value {
        let kind = match self.view {
            View::Stat => "stat",
            View::Lines | View::Stacked => "timeseries",
            View::Table => "table",
        };
        let is_now = matches!(self.view, View::Stat | View::Table);
        let targets = self.queries.iter().zip('A'..).map(|(query, letter)| {
            json!({
                "refId": letter.to_string(), "datasource": data_source(), "expr": query.expression,
                "legendFormat": query.legend, "instant": is_now, "range": !is_now,
                "format": if self.view == View::Table { "table" } else { "time_series" },
            })
        });
        let steps: Vec<_> = if self.steps.is_empty() {
            vec![json!({"color": "green", "value": null})]
        } else {
            self.steps.iter().map(|(color, from)| json!({"color": color, "value": from})).collect()
        };
        let link = match self.alert {
            Some(alert) => json!({
                "title": format!("Runbook: {alert}"), "url": format!("{DOCS}/install.md#{}", alert.to_lowercase()), "targetBlank": true,
            }),
            None => json!({"title": "Metrics", "url": format!("{DOCS}/metrics.md"), "targetBlank": true}),
        };
        let mut defaults = json!({
            "unit": self.unit.name(),
            "thresholds": {"mode": "absolute", "steps": steps},
            "color": {"mode": if self.view == View::Stat { "thresholds" } else { "palette-classic" }},
        });
        let is_timestamp = matches!(self.unit, Unit::Date);
        if !is_timestamp && !matches!(self.unit, Unit::Seconds) {
            defaults["min"] = json!(0);
        }
        if self.view == View::Stacked {
            defaults["custom"] = json!({"fillOpacity": 60, "stacking": {"mode": "normal", "group": "A"}});
        }
        json!({
            "id": id, "type": kind, "title": self.title, "description": self.about, "gridPos": grid,
            "datasource": data_source(), "targets": targets.collect::<Vec<_>>(), "links": [link],
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": self.options(),
            "transformations": self.transformations(),
        })
    }

    fn options(&self) -> Value {
        match self.view {
            View::Stat => json!({
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                "colorMode": "value", "graphMode": "none", "textMode": "auto",
            }),
            View::Lines | View::Stacked => json!({
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            View::Table => json!({"showHeader": true, "cellHeight": "sm"}),
        }
    }

    /// Of a table: the columns are labels and the value, without the time, which is the same in all rows.
    fn transformations(&self) -> Value {
        if self.view == View::Table {
            json!([{"id": "organize", "options": {"excludeByName": {"Time": true}, "renameByName": {"Value": self.title}}}])
        } else {
            json!([])
        }
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Number => "short",
            Self::PerSecond => "cps",
            Self::Seconds => "s",
            Self::Share => "percentunit",
            Self::Date => "dateTimeAsIso",
        }
    }
}

fn data_source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}
