//! How policies roll out.

use super::{NEVER, RATHER_NOT, panel};
use crate::dashboards::{Dashboard, Unit, View};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "rollout",
        title: "Policy rollout",
        about: "What each policy does, whether it keeps its deadlines, and how long installs take.",
        by_namespace: true,
        by_policy: true,
        rows: vec![
            (
                "Now",
                vec![
                    panel(View::Stat, Unit::Number, "Policies", "Policies that are not suspended.", &[(
                        r#"count(max by (cluster, namespace, policy) (patchwarden_policy_info{suspended="false", cluster=~"$cluster", namespace=~"$namespace", policy=~"$policy"}))"#,
                        "policies",
                    )]),
                    panel(View::Stat, Unit::Number, "Waiting for a person", "Policies, groups and windows that are stalled.", &[(
                        r#"sum(max by (cluster, namespace, kind, name) (patchwarden_condition{type="Stalled", status="True", cluster=~"$cluster", namespace=~"$namespace"})) or vector(0)"#,
                        "stalled",
                    )])
                    .steps(NEVER)
                    .alert("PatchwardenStalled"),
                    panel(View::Stat, Unit::Number, "Overdue", "Devices with a deadline that is over.", &[(
                        r#"sum(max by (cluster, namespace, policy) (patchwarden_devices_overdue{cluster=~"$cluster", namespace=~"$namespace", policy=~"$policy"}))"#,
                        "overdue",
                    )])
                    .steps(NEVER)
                    .alert("PatchwardenDevicesOverdue"),
                    panel(View::Stat, Unit::Number, "Will be overdue", "Devices that will miss a deadline, by the forecast, or have.", &[(
                        r#"sum(max by (cluster, namespace, policy) (patchwarden_devices_forecast_missing{cluster=~"$cluster", namespace=~"$namespace", policy=~"$policy"}))"#,
                        "forecast",
                    )])
                    .steps(RATHER_NOT)
                    .alert("PatchwardenDevicesOverdue"),
                ],
            ),
            (
                "Policies",
                vec![
                    panel(View::Table, Unit::Number, "Policies", "Their mode, and whether they are suspended.", &[(
                        r#"max by (cluster, namespace, policy, mode, suspended) (patchwarden_policy_info{cluster=~"$cluster", namespace=~"$namespace", policy=~"$policy"})"#,
                        "",
                    )]),
                    panel(View::Table, Unit::Number, "Conditions", "The conditions that hold.", &[(
                        r#"max by (cluster, namespace, kind, name, type) (patchwarden_condition{status="True", cluster=~"$cluster", namespace=~"$namespace"}) == 1"#,
                        "",
                    )])
                    .alert("PatchwardenStalled"),
                ],
            ),
            (
                "Deadlines",
                vec![
                    panel(View::Lines, Unit::Number, "Overdue devices by policy", "Devices with a deadline that is over.", &[(
                        r#"max by (namespace, policy) (patchwarden_devices_overdue{cluster=~"$cluster", namespace=~"$namespace", policy=~"$policy"})"#,
                        "{{namespace}}/{{policy}}",
                    )])
                    .alert("PatchwardenDevicesOverdue"),
                    panel(View::Lines, Unit::Number, "Forecast by policy", "Devices that will miss a deadline, or have.", &[(
                        r#"max by (namespace, policy) (patchwarden_devices_forecast_missing{cluster=~"$cluster", namespace=~"$namespace", policy=~"$policy"})"#,
                        "{{namespace}}/{{policy}}",
                    )])
                    .alert("PatchwardenDevicesOverdue"),
                ],
            ),
            (
                "Installs",
                vec![
                    panel(View::Lines, Unit::Number, "Installs running", "Installs that are claimed or running.", &[(
                        r#"max by (namespace) (patchwarden_installs_running{cluster=~"$cluster", namespace=~"$namespace"})"#,
                        "{{namespace}}",
                    )]),
                    panel(View::Lines, Unit::Seconds, "Time of an install", "From the acceptance of the order, by the device's clock, over six hours.", &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (increase(patchwarden_install_duration_seconds_bucket{cluster=~"$cluster", namespace=~"$namespace"}[6h])))"#,
                            "half of them",
                        ),
                        (
                            r#"histogram_quantile(0.95, sum by (le) (increase(patchwarden_install_duration_seconds_bucket{cluster=~"$cluster", namespace=~"$namespace"}[6h])))"#,
                            "95 %",
                        ),
                    ]),
                    panel(View::Lines, Unit::Number, "Answers to devices in an hour", "Whether devices that asked were allowed to begin.", &[(
                        r#"sum by (verdict) (increase(patchwarden_grants_total{cluster=~"$cluster"}[1h]))"#,
                        "{{verdict}}",
                    )]),
                ],
            ),
        ],
    }
}
