//! The fleet.

use super::{FEW, MOST, NEVER, panel};
use crate::dashboards::{Dashboard, Unit, View};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "fleet",
        title: "Fleet overview",
        about: "How many machines there are, how far they are patched, and what is being installed.",
        by_namespace: true,
        by_policy: false,
        rows: vec![
            (
                "Now",
                vec![
                    panel(View::Stat, Unit::Number, "Clusters without a leader", "Clusters of the last day of which nothing is known now: their devices are in no other number here.", &[(
                        r#"count(sum by (cluster) (patchwarden_leader{cluster=~"$cluster"} or 0 * max_over_time(patchwarden_leader{cluster=~"$cluster"}[1d])) == 0) or vector(0)"#,
                        "clusters",
                    )])
                    .steps(NEVER)
                    .alert("PatchwardenNoLeader"),
                    panel(View::Stat, Unit::Number, "Devices", "Devices that are not retired.", &[(
                        r#"sum(max by (cluster, namespace, compliance) (patchwarden_devices{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "devices",
                    )]),
                    panel(View::Stat, Unit::Share, "Up to date", "The share of the devices that lack nothing that is approved.", &[(
                        r#"sum(max by (cluster, namespace) (patchwarden_devices{compliance="UpToDate", cluster=~"$cluster", namespace=~"$namespace"})) / clamp_min(sum(max by (cluster, namespace, compliance) (patchwarden_devices{cluster=~"$cluster", namespace=~"$namespace"})), 1)"#,
                        "up to date",
                    )])
                    .steps(MOST),
                    panel(View::Stat, Unit::Share, "Not heard of", "The share of the devices that were not heard of for three days.", &[(
                        r#"sum(max by (cluster, namespace) (patchwarden_devices_stale{cluster=~"$cluster", namespace=~"$namespace"})) / clamp_min(sum(max by (cluster, namespace, compliance) (patchwarden_devices{cluster=~"$cluster", namespace=~"$namespace"})), 1)"#,
                        "stale",
                    )])
                    .steps(FEW)
                    .alert("PatchwardenDevicesStale"),
                    panel(View::Stat, Unit::Number, "Overdue", "Devices with a deadline that is over, once for each policy.", &[(
                        r#"sum(max by (cluster, namespace, policy) (patchwarden_devices_overdue{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "overdue",
                    )])
                    .steps(NEVER)
                    .alert("PatchwardenDevicesOverdue"),
                    panel(View::Stat, Unit::Number, "Installs running", "Installs that are claimed or running.", &[(
                        r#"sum(max by (cluster, namespace) (patchwarden_installs_running{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "running",
                    )]),
                    panel(View::Stat, Unit::Number, "Windows open", "Maintenance windows that are open.", &[(
                        r#"sum(max by (cluster, namespace, window) (patchwarden_window_open{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "open",
                    )]),
                ],
            ),
            (
                "Over time",
                vec![
                    panel(View::Stacked, Unit::Number, "Devices by compliance", "What devices lack, as status says it.", &[(
                        r#"sum by (compliance) (max by (cluster, namespace, compliance) (patchwarden_devices{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "{{compliance}}",
                    )]),
                    panel(View::Stacked, Unit::Number, "Updates by state", "Updates that status tells of, once for each device.", &[(
                        r#"sum by (state) (max by (cluster, namespace, state) (patchwarden_updates{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "{{state}}",
                    )]),
                ],
            ),
            (
                "Installs of all namespaces",
                vec![
                    panel(View::Stacked, Unit::Number, "Installs in an hour, by outcome", "How installs ended.", &[(
                        r#"sum by (outcome) (increase(patchwarden_installs_total{cluster=~"$cluster"}[1h]))"#,
                        "{{outcome}}",
                    )])
                    .alert("PatchwardenInstallsFail"),
                    panel(View::Lines, Unit::Number, "Orders refused in an hour, by reason", "Orders for which devices did nothing, by their reason.", &[(
                        r#"sum by (reason) (increase(patchwarden_orders_refused_total{cluster=~"$cluster"}[1h]))"#,
                        "{{reason}}",
                    )])
                    .alert("PatchwardenInstallsFail"),
                ],
            ),
            (
                "Clients",
                vec![
                    panel(View::Table, Unit::Number, "Devices", "Devices of each namespace.", &[(
                        r#"sum by (cluster, namespace) (max by (cluster, namespace, compliance) (patchwarden_devices{cluster=~"$cluster", namespace=~"$namespace"}))"#,
                        "",
                    )]),
                    panel(View::Table, Unit::Date, "Next opening", "When each window opens next.", &[(
                        r#"max by (cluster, namespace, window) (patchwarden_window_next_opening_timestamp_seconds{cluster=~"$cluster", namespace=~"$namespace"}) * 1000"#,
                        "",
                    )]),
                ],
            ),
        ],
    }
}
