//! Decisions to orders and Jobs. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, PodSecurityContext, PodSpec, PodTemplateSpec, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};
use patchwarden_protocol::canonical::{self, NotCanonical};
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::order::{
    Action, Order, PackageChange, RESTART, RestartRule, RestartWhen, SERVICES_SECONDS, Sequence, SignedOrder, Verb,
};
use patchwarden_protocol::report::{DeviceRef, Report};
use patchwarden_protocol::safeguards::{ROLLBACK_BEGINS_SECONDS, Safeguards};
use patchwarden_protocol::site_cache::SiteCache;
use patchwarden_protocol::{GATEWAY_AUDIENCE, MAX_CLOCK_SKEW_SECONDS};

use crate::api::{self, DeviceInventory, device_inventory::UpdateCompliance};
use crate::convert::is_offered;
use crate::plan::outcome::Install;
use crate::runner::{self, exit};
use crate::telemetry::ids::{Context, SpanId, TraceId};
use crate::telemetry::settings::Sampler;

/// How long a finished Job stays for `kubectl logs` (seconds). What it did is in status and store for good.
const JOB_TTL_SECONDS: i32 = 24 * 3600;

/// What a Job needs to know of this installation.
#[derive(Clone, Debug)]
pub struct RunnerSettings {
    /// Image of the runner.
    pub image: String,
    /// `imagePullPolicy`.
    pub image_pull_policy: String,
    /// URL of the gateways' runners' door.
    pub gateway: String,
    /// The CA that signed the gateways' certificates, PEM.
    pub ca: String,
    /// What else the pod's environment says: of traces and logs.
    pub environment: Vec<(String, String)>,
    /// Which installs have a trace that is told; nothing where none is.
    pub sampler: Option<Sampler>,
}

impl RunnerSettings {
    /// What the runner tells is part of: it knows no order.
    fn trace_of(&self, order_digest: &str) -> Option<Context> {
        let trace = TraceId::of_order(order_digest)?;
        let is_sampled = self.sampler.is_some_and(|sampler| sampler.samples(trace));
        Some(Context { trace, span: SpanId::root(order_digest), is_sampled })
    }
}

/// The order for `install`.
///
/// `decided` is the device's compliance list: the decisions that led here, digested into the order for the audit.
/// `safeguards` and `site_cache` are those of the policy.
#[allow(clippy::too_many_arguments, reason = "each is a part of the order")]
pub fn order(
    device: &DeviceRef,
    device_key: Fingerprint,
    report: &Report,
    install: &Install,
    safeguards: &Safeguards,
    site_cache: Option<SiteCache>,
    decided: &[UpdateCompliance],
    sequence: Sequence,
    now: Timestamp,
) -> Result<Order, NotCanonical> {
    let ordered = |id: &str| install.updates.iter().any(|ordered| **ordered == *id);
    let action = |id: &str, packages: &[PackageChange], artifacts_digest: &str| Action {
        verb: install.verb,
        update: id.to_owned(),
        packages: packages.to_vec(),
        artifacts_digest: artifacts_digest.to_owned(),
    };
    let actions = match install.verb {
        Verb::Install | Verb::Download => report
            .updates
            .iter()
            // Beside it the same update may be told of packages that are no offer.
            .filter(|update| ordered(&update.id) && is_offered(update))
            .map(|update| action(&update.id, &update.packages, &update.artifacts_digest))
            .collect(),
        Verb::Uninstall => report
            .removable
            .iter()
            .filter(|installed| ordered(&installed.id))
            .map(|installed| action(&installed.id, &installed.packages, &installed.artifacts_digest))
            .collect(),
        Verb::Restart => vec![action(RESTART, &[], "")],
    };
    let decisions: Vec<_> = decided
        .iter()
        .filter(|update| ordered(&update.id))
        .map(|update| (&update.id, update.decision, &update.rule))
        .collect();
    let safeguards = safeguards_of(install.verb, safeguards);
    let guarded = SignedDuration::from_secs(safeguards.seconds_before().into());
    let limit = u32::try_from(install.limit.as_secs()).unwrap_or(u32::MAX);
    Ok(Order {
        device: device.clone(),
        device_key,
        sequence,
        actions,
        dependencies: install.dependencies,
        report_digest: canonical::digest_of(report)?,
        decisions_digest: canonical::digest_of(&decisions)?,
        policy: install.policy.as_ref().to_owned(),
        // A device whose clock is behind by as much as is tolerated must not find its order too early.
        not_before: now.saturating_sub(SignedDuration::from_secs(MAX_CLOCK_SKEW_SECONDS)).unwrap_or(now),
        not_after: install.start_by(guarded, now),
        // What is left for the package manager: the whole of it must fit.
        limit_seconds: limit.saturating_sub(safeguards.seconds()),
        restart: rule_for(report, &install.restart),
        safeguards,
        site_cache: site_cache.filter(|_| install.verb != Verb::Restart),
    })
}

/// A device that does not tell which services still run what was replaced restarts none, and may not know that it could be asked to.
fn rule_for(report: &Report, rule: &RestartRule) -> RestartRule {
    let rule = RestartRule { services: rule.services && report.outdated_services.is_some(), ..rule.clone() };
    if rule.when == RestartWhen::Never && !rule.services { RestartRule::never() } else { rule }
}

/// What surrounds an order of this verb. What takes an update back may be what heals a device, so that no check stands before
/// it; and neither a download nor a restart changes a package.
fn safeguards_of(verb: Verb, policy: &Safeguards) -> Safeguards {
    match verb {
        Verb::Install => policy.clone(),
        Verb::Uninstall => Safeguards { checks: vec![], rollback: None, ..policy.clone() },
        Verb::Download | Verb::Restart => Safeguards::default(),
    }
}

/// A restart takes so long at most (seconds), beginning with the warning's end: then the device is as if it had not
/// answered.
const RESTART_TAKES_SECONDS: u32 = 20 * 60;

/// For how many seconds, beyond its limit, an install by `order` may hold its device: until the last restart that it may
/// begin is over, of itself or of a service, and the checks after it; and then the way back, which may take as long as the way forth, and the checks
/// after that. Better out of its window than broken.
pub fn seconds_beyond_limit(order: &Order) -> u32 {
    let RestartRule { when, not_after: _, within_seconds, warning_seconds: _, message: _, limit: _, services } =
        &order.restart;
    let settling = order.safeguards.settling_seconds();
    let of_services = if *services { SERVICES_SECONDS } else { 0 };
    let of_device = match when {
        RestartWhen::Never => 0,
        RestartWhen::IfRequired | RestartWhen::Always => RESTART_TAKES_SECONDS,
    };
    let restarts = match of_device.saturating_add(of_services) {
        0 => 0,
        take => within_seconds.saturating_sub(order.limit_seconds).saturating_add(take).saturating_add(settling),
    };
    let back = order.safeguards.rollback.as_ref().map_or(0, |_| {
        let back = ROLLBACK_BEGINS_SECONDS.saturating_add(order.limit_seconds).saturating_add(settling);
        back.saturating_add(of_services)
    });
    restarts.saturating_add(back)
}

/// Name of the Job: the device's and the sequence, within the 63 characters of a label's value.
pub fn job_name(device: &str, sequence: Sequence) -> String {
    /// `-`, an epoch and a number of up to 10 digits each, `-`; and 9 for the digest.
    const LONGEST_DEVICE: usize = 63 - 22 - 9;
    if device.len() <= LONGEST_DEVICE + 9 {
        return format!("{device}-{sequence}");
    }
    let digest = canonical::digest(device.as_bytes());
    let short: String = device.chars().take(LONGEST_DEVICE).collect();
    let tail: String = digest.chars().skip("sha256:".len()).take(8).collect();
    format!("{}-{tail}-{sequence}", short.trim_end_matches('-'))
}

/// The Job that carries `signed` to its device.
pub fn job(
    device: &DeviceInventory,
    order: &Order,
    signed: &SignedOrder,
    settings: &RunnerSettings,
    leader: &str,
) -> Result<Job, serde_json::Error> {
    let name = job_name(&order.device.name, order.sequence);
    let labels = BTreeMap::from([
        (api::LABEL_INSTALL.to_owned(), "true".to_owned()),
        (api::LABEL_DEVICE.to_owned(), order.device.name.clone()),
        ("app.kubernetes.io/managed-by".to_owned(), "patchwarden".to_owned()),
    ]);
    let annotations = BTreeMap::from([
        (api::ANNOTATION_ORDER.to_owned(), serde_json::to_string(signed)?),
        (api::ANNOTATION_LEADER.to_owned(), leader.to_owned()),
        (api::ANNOTATION_POLICY.to_owned(), order.policy.clone()),
    ]);
    let start_by = order.not_after.duration_since(order.not_before).as_secs();
    let runs = [order.limit_seconds, order.safeguards.seconds(), seconds_beyond_limit(order)].map(i64::from);
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(order.device.namespace.clone()),
            labels: Some(labels.clone()),
            annotations: Some(annotations),
            finalizers: Some(vec![api::FINALIZER_RESULT.to_owned()]),
            owner_references: device.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(6),
            active_deadline_seconds: Some(start_by + runs.iter().sum::<i64>() + MAX_CLOCK_SKEW_SECONDS),
            ttl_seconds_after_finished: Some(JOB_TTL_SECONDS),
            pod_failure_policy: Some(give_up_on_final_exit_codes()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(&name, &signed.order.digest(), settings)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    })
}

/// The order's envelope from a Job of ours.
pub fn order_of(job: &Job) -> Option<SignedOrder> {
    serde_json::from_str(job.annotations().get(api::ANNOTATION_ORDER)?).ok()
}

/// The runner's exit codes that no retry can change end the Job at once (KEP-3329).
fn give_up_on_final_exit_codes() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![PodFailurePolicyRule {
            action: "FailJob".to_owned(),
            on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                container_name: None,
                operator: "In".to_owned(),
                values: vec![i32::from(exit::NOT_SUCCEEDED), i32::from(exit::REFUSED)],
            }),
            on_pod_conditions: None,
        }],
    }
}

/// A pod that meets the Pod Security Standard `restricted`.
fn pod(job: &str, order_digest: &str, settings: &RunnerSettings) -> PodSpec {
    let variable =
        |name: &str, value: &str| EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() };
    let mut env = vec![
        variable(runner::env::GATEWAY, &settings.gateway),
        variable(runner::env::CA, &settings.ca),
        variable(runner::env::JOB, job),
        variable(runner::env::TOKEN_FILE, "/var/run/patchwarden/token"),
    ];
    let trace = settings.trace_of(order_digest);
    env.extend(trace.map(|trace| variable(runner::env::TRACEPARENT, &trace.to_string())));
    env.extend(settings.environment.iter().map(|(name, value)| variable(name, value)));
    let quantity = |text: &str| Quantity(text.to_owned());
    PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(5),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(65532),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        containers: vec![Container {
            name: "runner".to_owned(),
            image: Some(settings.image.clone()),
            image_pull_policy: Some(settings.image_pull_policy.clone()),
            env: Some(env),
            resources: Some(ResourceRequirements {
                requests: Some(BTreeMap::from([
                    ("cpu".to_owned(), quantity("5m")),
                    ("memory".to_owned(), quantity("8Mi")),
                ])),
                limits: Some(BTreeMap::from([("memory".to_owned(), quantity("64Mi"))])),
                ..ResourceRequirements::default()
            }),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(vec![VolumeMount {
                name: "token".to_owned(),
                mount_path: "/var/run/patchwarden".to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            }]),
            ..Container::default()
        }],
        volumes: Some(vec![Volume {
            name: "token".to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(GATEWAY_AUDIENCE.to_owned()),
                        expiration_seconds: Some(3600),
                        path: "token".to_owned(),
                    }),
                    ..VolumeProjection::default()
                }]),
                default_mode: None,
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::order::Dependencies;
    use patchwarden_protocol::report::{HeldReason, OutdatedServices, Update};
    use patchwarden_protocol::safeguards::{Check, Hook, OnFailure, Probe, Rollback};
    use patchwarden_protocol::site_cache::WhenDown;

    use super::*;
    use crate::gateway::testing;
    use crate::telemetry::settings::FOR_RUNNERS;

    #[test]
    fn a_job_name_fits_a_label_whatever_the_device_is_called() {
        let sequence = Sequence { epoch: u32::MAX, number: u32::MAX };
        for length in 1..=63 {
            let name = job_name(&"d".repeat(length), sequence);
            assert!(name.len() <= 63, "{} characters of device give {}", length, name.len());
        }
        assert_eq!(job_name("web-1", Sequence { epoch: 0, number: 7 }), "web-1-0-7");
        assert_ne!(job_name(&"d".repeat(62), sequence), job_name(&"d".repeat(63), sequence));
    }

    #[test]
    fn a_pod_is_told_of_the_trace_and_gets_no_headers() {
        let order = testing::order("acme", "web-1", &PrivateKey::generate().public());
        let signed = testing::signed_order(&order, &PrivateKey::generate());
        let digest = signed.order.digest();
        let env = |sampler| {
            let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), "http://collector:4318".to_owned());
            let settings = RunnerSettings {
                image: "runner".into(),
                image_pull_policy: "Never".into(),
                gateway: "https://gateway:8444".into(),
                ca: String::new(),
                environment: vec![endpoint],
                sampler,
            };
            let device = DeviceInventory::new("web-1", serde_json::from_str(r#"{"type": "Server"}"#).unwrap());
            let job = job(&device, &order, &signed, &settings, "leader").unwrap();
            let env = job.spec.unwrap().template.spec.unwrap().containers.remove(0).env.unwrap();
            env.into_iter().map(|variable| (variable.name, variable.value.unwrap())).collect::<BTreeMap<_, _>>()
        };
        let told = env(Some(Sampler::ALL));
        let root = SpanId::root(&digest);
        assert_eq!(told["TRACEPARENT"], format!("00-{}-{root}-01", &digest["sha256:".len()..][..32]));
        assert_eq!(told["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://collector:4318");
        // Its lines of JSON name a trace that nobody tells.
        assert_eq!(env(None)["TRACEPARENT"], told["TRACEPARENT"].replace("-01", "-00"));
        assert!(!FOR_RUNNERS.iter().any(|name| name.contains("HEADERS") || name.contains("CERTIFICATE")));
    }

    #[test]
    fn an_order_is_begun_soon_or_once_what_stands_before_its_actions_is_over_and_never_too_late_for_the_window() {
        let now: Timestamp = "2026-01-10T22:00:00Z".parse().unwrap();
        let hook = Hook { name: "drain".into(), timeout_seconds: 600, on_failure: OnFailure::Abort };
        let check =
            Check { name: "web".into(), probe: Probe::Tcp { port: 80 }, timeout_seconds: 10, settle_seconds: 60 };
        let guarded = Safeguards { before: vec![hook.clone()], after: vec![hook], checks: vec![check], rollback: None };
        let made = |safeguards: &Safeguards, verb, window_minutes| {
            let minutes = SignedDuration::from_mins;
            let install = Install {
                verb,
                updates: vec![],
                since: vec![],
                policy: "servers".into(),
                dependencies: Dependencies::Strict,
                not_after: now + minutes(window_minutes),
                limit: minutes(60),
                restart: RestartRule::never(),
                expected: minutes(5),
            };
            let report = testing::report("acme", "web-1");
            let cache = SiteCache { url: "http://cache:3142".into(), when_down: WhenDown::Wait };
            let key = PrivateKey::generate().public().fingerprint();
            let sequence = Sequence { epoch: 1, number: 1 };
            order(&report.device.clone(), key, &report, &install, safeguards, Some(cache), &[], sequence, now).unwrap()
        };
        let begins_within = |safeguards: &Safeguards, verb, window_minutes| {
            let order = made(safeguards, verb, window_minutes);
            (order.not_after.duration_since(now).as_secs(), order.limit_seconds)
        };
        let cached = |verb| made(&Safeguards::default(), verb, 120).site_cache.is_some();
        assert!([Verb::Install, Verb::Download, Verb::Uninstall].into_iter().all(cached) && !cached(Verb::Restart));
        assert_eq!(begins_within(&Safeguards::default(), Verb::Install, 120), (15 * 60, 3600));
        assert_eq!(begins_within(&guarded, Verb::Install, 120), (15 * 60 + 10 + 600, 3600 - 2 * 600 - 10 - 60 - 10));
        assert_eq!(begins_within(&guarded, Verb::Uninstall, 120).0, 15 * 60 + 600, "no checks before it");
        assert_eq!(begins_within(&guarded, Verb::Download, 120), (15 * 60, 3600));
        assert_eq!(begins_within(&guarded, Verb::Install, 20).0, 20 * 60);
        // Of the limit nothing is theirs, so that they come after it.
        let services = RestartRule { within_seconds: 7200, services: true, ..RestartRule::never() };
        let with_services = Order { restart: services.clone(), ..made(&Safeguards::default(), Verb::Install, 120) };
        assert_eq!(seconds_beyond_limit(&with_services), 7200 - 3600 + SERVICES_SECONDS);
        let both = RestartRule { when: RestartWhen::IfRequired, ..services };
        let with_both = Order { restart: both, ..with_services };
        assert_eq!(seconds_beyond_limit(&with_both), 7200 - 3600 + SERVICES_SECONDS + RESTART_TAKES_SECONDS);
        let way_back = Safeguards { rollback: Some(Rollback::default()), ..Safeguards::default() };
        let with_way_back = Order { safeguards: way_back, ..with_both };
        assert_eq!(
            seconds_beyond_limit(&with_way_back),
            7200 - 3600 + SERVICES_SECONDS + RESTART_TAKES_SECONDS + 20 * 60 + 3600 + SERVICES_SECONDS
        );
        // Beyond the limit: as long as it takes to begin, the limit again, and the checks. Only an install has that.
        let rollback = Some(Rollback::default());
        let back = Safeguards { rollback, ..guarded };
        let beyond = |verb| seconds_beyond_limit(&made(&back, verb, 120));
        let limit = begins_within(&back, Verb::Install, 120).1;
        assert_eq!(beyond(Verb::Install), 20 * 60 + limit + 70);
        assert_eq!((beyond(Verb::Uninstall), beyond(Verb::Download)), (0, 0));
    }

    #[test]
    fn an_order_brings_what_is_offered_and_not_what_the_device_leaves_out_of_the_same_update() {
        let id = "pkg:deb/debian/postgresql-15@15.6";
        let left_out = Update {
            held: true,
            held_reason: HeldReason::Pinned,
            artifacts_digest: "left".into(),
            ..testing::update(id)
        };
        let report = Report { updates: vec![left_out, testing::update(id)], ..testing::report("acme", "web-1") };
        let install = Install {
            verb: Verb::Install,
            updates: vec![id.into()],
            since: vec![],
            policy: "servers".into(),
            dependencies: Dependencies::Strict,
            not_after: "2026-01-10T23:00:00Z".parse().unwrap(),
            limit: SignedDuration::from_mins(60),
            restart: RestartRule::never(),
            expected: SignedDuration::from_mins(5),
        };
        let (key, now) = (PrivateKey::generate().public().fingerprint(), "2026-01-10T22:00:00Z".parse().unwrap());
        let (guards, sequence) = (Safeguards::default(), Sequence { epoch: 1, number: 1 });
        let made = order(&report.device.clone(), key, &report, &install, &guards, None, &[], sequence, now).unwrap();
        let ordered: Vec<&str> = made.actions.iter().map(|action| action.artifacts_digest.as_str()).collect();
        assert_eq!(ordered, ["sha256:artifacts"]);
    }

    #[test]
    fn services_are_ordered_to_be_restarted_where_the_device_tells_which_they_are() {
        let mut report = testing::report("acme", "web-1");
        let rule = RestartRule { within_seconds: 7200, services: true, ..RestartRule::never() };
        let both = RestartRule { when: RestartWhen::IfRequired, ..rule.clone() };
        // An older agent would refuse the order for a field that it does not know.
        assert_eq!(rule_for(&report, &rule), RestartRule::never());
        assert_eq!(rule_for(&report, &both), RestartRule { services: false, ..both.clone() });
        let text = serde_json::to_string(&rule_for(&report, &both)).unwrap();
        assert!(!text.contains("services"), "{text}");
        report.outdated_services = Some(OutdatedServices::default());
        assert_eq!((rule_for(&report, &rule), rule_for(&report, &both)), (rule, both));
    }
}
