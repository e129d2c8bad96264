//! Vulnerabilities and exposure.

use super::{DAYS, NEVER, RATHER_NOT, WEEKS, panel};
use crate::dashboards::{Dashboard, Unit, View};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "exposure",
        title: "Vulnerabilities and exposure",
        about: "What is missing, for how long, and how fast it is deployed.",
        by_namespace: true,
        by_policy: false,
        rows: vec![
            (
                "Now",
                vec![
                    panel(View::Stat, Unit::Number, "Critical missing", "Updates of critical severity that devices lack, once for each device.", &[(
                        r#"sum(max by (cluster, namespace) (patchwarden_updates_missing{severity="Critical", cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "critical",
                    )])
                    .steps(NEVER)
                    .alert("PatchwardenCriticalMissing"),
                    panel(View::Stat, Unit::Number, "High missing", "Updates of high severity that devices lack, once for each device.", &[(
                        r#"sum(max by (cluster, namespace) (patchwarden_updates_missing{severity="High", cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "high",
                    )])
                    .steps(RATHER_NOT),
                    panel(View::Stat, Unit::Seconds, "Oldest missing", "For how long the oldest update that a device lacks has been known; 0 where none is missing.", &[(
                        r#"(time() - min(patchwarden_updates_oldest_missing_timestamp_seconds{cluster=~"$cluster", namespace=~"$namespace"})) or vector(0)"#,
                        "known for",
                    )])
                    .steps(WEEKS)
                    .alert("PatchwardenCriticalMissing"),
                    panel(View::Stat, Unit::Seconds, "Age of vulnerability data", "Since they were read last, in the cluster where that is longest ago; 0 where there are none.", &[(
                        r#"(time() - min(max by (cluster) (patchwarden_vulnerabilities_read_timestamp_seconds{cluster=~"$cluster"} > 0))) or vector(0)"#,
                        "read",
                    )])
                    .steps(DAYS)
                    .alert("PatchwardenVulnerabilitiesRefused"),
                    panel(View::Stat, Unit::Number, "Data refused", "1 while vulnerability data cannot be read and earlier ones count.", &[(
                        r#"max({__name__=~"patchwarden_vulnerabilities_refused|patchwarden_gateway_vulnerability_files_refused", cluster=~"$cluster"})"#,
                        "refused",
                    )])
                    .steps(NEVER)
                    .alert("PatchwardenVulnerabilitiesRefused"),
                ],
            ),
            (
                "Exposure",
                vec![
                    panel(View::Stacked, Unit::Number, "Missing by severity", "Updates that devices lack and that are not decided against, once for each device.", &[(
                        r#"sum by (severity) (max by (cluster, namespace, severity) (patchwarden_updates_missing{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "{{severity}}",
                    )])
                    .alert("PatchwardenCriticalMissing"),
                    panel(View::Lines, Unit::Seconds, "Oldest missing by severity", "For how long the oldest update that a device lacks has been known.", &[(
                        r#"time() - min by (severity) (patchwarden_updates_oldest_missing_timestamp_seconds{cluster=~"$cluster", namespace=~"$namespace"})"#,
                        "{{severity}}",
                    )])
                    .alert("PatchwardenCriticalMissing"),
                ],
            ),
            (
                "Time to deploy",
                vec![
                    panel(View::Lines, Unit::Seconds, "Time to deploy", "From an update's first sighting to its installation on a device, over a week.", &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (increase(patchwarden_time_to_deploy_seconds_bucket{from="FirstSeen", cluster=~"$cluster", namespace=~"$namespace"}[7d])))"#,
                            "half of them",
                        ),
                        (
                            r#"histogram_quantile(0.9, sum by (le) (increase(patchwarden_time_to_deploy_seconds_bucket{from="FirstSeen", cluster=~"$cluster", namespace=~"$namespace"}[7d])))"#,
                            "90 %",
                        ),
                    ]),
                    panel(View::Lines, Unit::Number, "Deployed in a day", "Updates that came onto devices.", &[(
                        r#"sum by (namespace) (increase(patchwarden_time_to_deploy_seconds_count{from="FirstSeen", cluster=~"$cluster", namespace=~"$namespace"}[1d]))"#,
                        "{{namespace}}",
                    )]),
                ],
            ),
            (
                "Clients",
                vec![
                    panel(View::Table, Unit::Number, "Missing", "By namespace and severity.", &[(
                        r#"max by (cluster, namespace, severity) (patchwarden_updates_missing{cluster=~"$cluster", namespace=~"$namespace"}) > 0"#,
                        "",
                    )])
                    .alert("PatchwardenCriticalMissing"),
                    panel(View::Lines, Unit::Number, "Imports of vulnerability data in a day", "By gateways, by result.", &[(
                        r#"sum by (result) (increase(patchwarden_gateway_vulnerability_imports_total{cluster=~"$cluster"}[1d]))"#,
                        "{{result}}",
                    )])
                    .alert("PatchwardenVulnerabilitiesRefused"),
                ],
            ),
        ],
    }
}
