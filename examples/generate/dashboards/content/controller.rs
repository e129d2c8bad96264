//! Patchwarden's own health.

use super::{ONE, RATHER_NOT, SOON, panel};
use crate::dashboards::{Dashboard, Unit, View};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "controller",
        title: "Controller and gateways",
        about: "Whether Patchwarden itself is well: its leader, its passes, its record, its gateways, its certificates.",
        by_namespace: false,
        by_policy: false,
        rows: vec![
            (
                "Now",
                vec![
                    panel(View::Stat, Unit::Number, "Leaders", "One controller of each cluster leads. Of several clusters, the one with the fewest.", &[(
                        r#"min(sum by (cluster) (patchwarden_leader{cluster=~"$cluster"} or 0 * max_over_time(patchwarden_leader{cluster=~"$cluster"}[1d])))"#,
                        "leaders",
                    )])
                    .steps(ONE)
                    .alert("PatchwardenNoLeader"),
                    panel(View::Stat, Unit::Seconds, "Since the last pass", "There is one every five minutes at least. Of several clusters, the one that waits longest.", &[(
                        r#"time() - min(max by (cluster) (max_over_time(patchwarden_last_pass_timestamp_seconds{cluster=~"$cluster"}[1d])))"#,
                        "last pass",
                    )])
                    .steps(SOON)
                    .alert("PatchwardenPassesStand"),
                    panel(View::Stat, Unit::Number, "Gateways", "Gateways that are scraped. Of several clusters, the one with the fewest.", &[(
                        r#"min(count by (cluster) (patchwarden_gateway_sessions{cluster=~"$cluster"}) or 0 * count by (cluster) (max_over_time(patchwarden_gateway_sessions{cluster=~"$cluster"}[1d])))"#,
                        "gateways",
                    )])
                    .steps(ONE)
                    .alert("PatchwardenGatewayDown"),
                    panel(View::Stat, Unit::Number, "Sessions", "Devices that are connected.", &[(
                        r#"sum(patchwarden_gateway_sessions{cluster=~"$cluster"})"#,
                        "sessions",
                    )])
                    .alert("PatchwardenGatewayDown"),
                    panel(View::Stat, Unit::Number, "Record reachable", "1 while the controller reaches the gateway's store; of several clusters, while each does.", &[(
                        r#"min(max by (cluster) (patchwarden_record_reachable{cluster=~"$cluster"} and patchwarden_leader == 1))"#,
                        "reachable",
                    )])
                    .steps(ONE)
                    .alert("PatchwardenRecordUnreachable"),
                    panel(View::Stat, Unit::Number, "Not in the record", "Entries that the store has not yet.", &[(
                        r#"max(patchwarden_record_unsent{cluster=~"$cluster"})"#,
                        "unsent",
                    )])
                    .steps(RATHER_NOT)
                    .alert("PatchwardenRecordUnsent"),
                ],
            ),
            (
                "Passes",
                vec![
                    panel(View::Lines, Unit::Seconds, "Time of passes and plans", "95 % are no longer: a pass is over all namespaces, a plan of one.", &[
                        (
                            r#"histogram_quantile(0.95, sum by (le) (rate(patchwarden_pass_duration_seconds_bucket{cluster=~"$cluster"}[$__rate_interval])))"#,
                            "pass",
                        ),
                        (
                            r#"histogram_quantile(0.95, sum by (le) (rate(patchwarden_plan_duration_seconds_bucket{cluster=~"$cluster"}[$__rate_interval])))"#,
                            "plan",
                        ),
                    ])
                    .alert("PatchwardenPassesStand"),
                    panel(View::Lines, Unit::PerSecond, "Passes", "Passes over all namespaces.", &[(
                        r#"sum(rate(patchwarden_passes_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                        "passes",
                    )])
                    .alert("PatchwardenPassesStand"),
                    panel(View::Lines, Unit::Number, "Waiting", "Changes for the next pass, devices that this one has still to write, and those that get no turn for 30 s.", &[
                        (r#"max(patchwarden_changes_waiting{cluster=~"$cluster"})"#, "changes"),
                        (r#"max(patchwarden_writes_waiting{cluster=~"$cluster"})"#, "devices to write"),
                        (r#"max(patchwarden_devices_on_hold{cluster=~"$cluster"})"#, "devices on hold"),
                    ])
                    .alert("PatchwardenWritesRefused"),
                ],
            ),
            (
                "API server and record",
                vec![
                    panel(View::Lines, Unit::PerSecond, "Writes", "By the controller, and by gateways.", &[
                        (
                            r#"sum by (resource, verb) (rate(patchwarden_api_writes_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "{{verb}} {{resource}}",
                        ),
                        (
                            r#"sum by (resource, verb) (rate(patchwarden_gateway_api_writes_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "gateway: {{verb}} {{resource}}",
                        ),
                    ]),
                    panel(View::Lines, Unit::PerSecond, "Writes refused", "That the API server refused, or did not answer.", &[(
                        r#"sum by (resource) (rate(patchwarden_api_write_errors_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                        "{{resource}}",
                    )])
                    .alert("PatchwardenWritesRefused"),
                    panel(View::Lines, Unit::PerSecond, "Calls to the record", "By the controller, by result.", &[(
                        r#"sum by (call, result) (rate(patchwarden_record_calls_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                        "{{call}}: {{result}}",
                    )])
                    .alert("PatchwardenRecordUnreachable"),
                ],
            ),
            (
                "Gateways",
                vec![
                    panel(View::Lines, Unit::Number, "Sessions", "Devices that are connected, and those of them that wait for the database.", &[
                        (r#"sum(patchwarden_gateway_sessions{cluster=~"$cluster"})"#, "open"),
                        (r#"sum(patchwarden_gateway_waiting_sessions{cluster=~"$cluster"})"#, "waiting"),
                    ])
                    .alert("PatchwardenSessionsWait"),
                    panel(View::Lines, Unit::PerSecond, "What devices send", "Reports and results, and orders that they get.", &[
                        (
                            r#"sum by (result) (rate(patchwarden_gateway_reports_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "report: {{result}}",
                        ),
                        (
                            r#"sum by (result) (rate(patchwarden_gateway_results_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "result: {{result}}",
                        ),
                        (
                            r#"sum(rate(patchwarden_gateway_orders_delivered_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "orders",
                        ),
                    ]),
                    panel(View::Lines, Unit::PerSecond, "Who comes in", "Enrolments, renewals, tokens and requests, by result.", &[
                        (
                            r#"sum by (result) (rate(patchwarden_gateway_enrolments_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "enrol: {{result}}",
                        ),
                        (
                            r#"sum by (result) (rate(patchwarden_gateway_renewals_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "renew: {{result}}",
                        ),
                        (
                            r#"sum by (result) (rate(patchwarden_gateway_token_reviews_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "token: {{result}}",
                        ),
                        (
                            r#"sum by (result) (rate(patchwarden_gateway_api_requests_total{cluster=~"$cluster"}[$__rate_interval]))"#,
                            "API: {{result}}",
                        ),
                    ]),
                ],
            ),
            (
                "Certificates and keys",
                vec![
                    panel(View::Table, Unit::Seconds, "The CA and the order key end in", "Renewed with 45 days left (the order key) or by a person (the CA).", &[(
                        r#"min by (cluster, certificate) (patchwarden_certificate_expiry_timestamp_seconds{cluster=~"$cluster"}) - time()"#,
                        "",
                    )])
                    .alert("PatchwardenOrderKeyExpires"),
                    panel(View::Table, Unit::Seconds, "Gateways' certificates end in", "Renewed with 15 days left.", &[(
                        r#"min by (cluster, pod) (patchwarden_gateway_certificate_expiry_timestamp_seconds{cluster=~"$cluster"}) - time()"#,
                        "",
                    )])
                    .alert("PatchwardenGatewayCertificateExpires"),
                ],
            ),
        ],
    }
}
