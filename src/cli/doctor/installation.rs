//! What runs, what it is trusted by, what guards it, and what is stuck.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::Value;
use x509_parser::parse_x509_certificate;

use super::{Finding, Scope};
use crate::api::conditions::STALLED;
use crate::api::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy, TRUST_CONFIG_MAP};
use crate::cli::live;
use crate::cli::status::stalled_action;
use crate::gateway::trust::Trust;
use crate::shell;

/// The admission policies as they are installed: their names are taken from here.
const ADMISSION: &str = include_str!("../../../config/base/admission.yaml");

/// A leader renews its lease every 2 s, and gives up after 8.
const LEASE_IS_OLD: SignedDuration = SignedDuration::from_mins(1);

/// Long enough to rotate, and for devices that are off to follow.
const CA_ENDS_SOON: SignedDuration = SignedDuration::from_hours(180 * 24);

/// So many stalled objects are named.
const SHOWN: usize = 10;

/// Controller and gateway: by their pods, and by the lease of the one that leads, at the API server's time.
pub(super) async fn programs(client: &Client, scope: &Scope, time: Timestamp) -> Vec<Finding> {
    let mut findings = vec![];
    let leases: Api<Lease> = Api::namespaced(client.clone(), &scope.own);
    let named = format!("Lease {}/patchwarden-controller", scope.own);
    findings.push(match leases.get_opt("patchwarden-controller").await {
        Ok(lease) => leader(lease.as_ref(), &named, time),
        Err(error) => Finding::unseen("controller", &named, &error),
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &scope.own);
    for program in ["controller", "gateway"] {
        let selector = format!("app.kubernetes.io/name=patchwarden-{program}");
        findings.push(match pods.list(&ListParams::default().labels(&selector)).await {
            Ok(found) => running(program, &scope.own, &found.items),
            Err(error) => Finding::unseen(program, &format!("pods in {}", scope.own), &error),
        });
    }
    findings
}

pub(super) fn leader(lease: Option<&Lease>, named: &str, now: Timestamp) -> Finding {
    let check = "controller";
    let action = "kubectl logs of its pods says why; without it nothing is decided and nobody gets orders";
    let spec = lease.and_then(|lease| lease.spec.as_ref());
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    let Some((holder, renewed)) = holder.zip(spec.and_then(|spec| spec.renew_time.as_ref())) else {
        return Finding::error(check, format!("{named} is held by nobody: no controller runs"), action);
    };
    let age = now.duration_since(renewed.0);
    if age > LEASE_IS_OLD {
        let what = format!("{named} was last renewed by {holder} {} s ago: no controller leads", age.as_secs());
        return Finding::error(check, what, action);
    }
    Finding::ok(check, format!("{holder} leads"))
}

pub(super) fn running(program: &'static str, own: &str, pods: &[Pod]) -> Finding {
    let plugin = env!("CARGO_PKG_VERSION");
    if pods.is_empty() {
        let what = format!("no pod of it is in {own}: its version is not known");
        return Finding::warning(
            program,
            what,
            "if it runs elsewhere, give its API's --api-url to commands that need it; else install it",
        );
    }
    let is_ready = |pod: &&Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let ready = pods.iter().filter(is_ready).count();
    let mut versions: Vec<String> = pods.iter().map(version).collect();
    versions.sort();
    versions.dedup();
    let what = format!("{ready} of {} pods ready, version {}", pods.len(), versions.join(" and "));
    if ready == 0 {
        return Finding::error(
            program,
            what,
            format!("kubectl describe pods -n {own} -l app.kubernetes.io/name=patchwarden-{program}"),
        );
    }
    if versions != [plugin] {
        return Finding::warning(
            program,
            format!("{what}; this plugin is {plugin}"),
            "use a plugin of the cluster's version",
        );
    }
    if ready < pods.len() {
        return Finding::warning(program, what, format!("kubectl get pods -n {own}"));
    }
    Finding::ok(program, what)
}

/// By its label, or the tag of its image.
fn version(pod: &Pod) -> String {
    let by_label = pod.labels().get("app.kubernetes.io/version").map(|label| label.trim_start_matches('v').to_owned());
    let image =
        pod.spec.as_ref().and_then(|spec| spec.containers.first()).and_then(|container| container.image.clone());
    let by_tag = image.and_then(|image| {
        let name = image.split('@').next().unwrap_or_default().to_owned();
        name.rsplit_once(':')
            .filter(|(_, tag)| !tag.contains('/'))
            .map(|(_, tag)| tag.trim_start_matches('v').to_owned())
    });
    by_label.or(by_tag).unwrap_or_else(|| "unknown".to_owned())
}

/// What agents pin, and until when that is good.
pub(super) async fn trust(client: &Client, scope: &Scope) -> Vec<Finding> {
    let check = "certificates";
    let named = format!("ConfigMap {}/{TRUST_CONFIG_MAP}", scope.own);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &scope.own);
    let map = match maps.get_opt(TRUST_CONFIG_MAP).await {
        Ok(Some(map)) => map,
        Ok(None) => {
            return vec![Finding::error(
                check,
                format!("{named} does not exist"),
                "start the controller: it makes its keys and publishes them",
            )];
        }
        Err(error) => return vec![Finding::unseen(check, &named, &error)],
    };
    let trust = match Trust::of(&map) {
        Ok(trust) => trust,
        Err(error) => {
            return vec![Finding::error(
                check,
                format!("{named}: {error}"),
                "delete it: the controller publishes it anew from its Secret",
            )];
        }
    };
    let now = shell::now();
    // Of several the best counts: the others are on their way out.
    let mut findings: Vec<Finding> =
        trust.ca.iter().map(|ca| authority(ca, now)).min_by_key(|finding| finding.level).into_iter().collect();
    let devices: Api<DeviceInventory> = match &scope.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    // Its delegation is with the settings of every device that has any.
    match devices.list(&ListParams::default().limit(50)).await {
        Ok(some) => {
            let settings =
                some.items.iter().filter_map(|device| device.status.as_ref()?.compliance.as_ref()?.settings.as_ref());
            let ends =
                settings.filter_map(|settings| settings.delegation.open(&trust.root).ok()).map(|it| it.not_after).max();
            findings.extend(ends.map(|ends| order_key(ends, now)));
        }
        Err(error) => findings.push(Finding::unseen("certificates", "devices, for the order key's end", &error)),
    }
    findings
}

pub(super) fn authority(certificate: &[u8], now: Timestamp) -> Finding {
    let check = "certificates";
    let Ok((_, parsed)) = parse_x509_certificate(certificate) else {
        return Finding::error(check, "the CA's certificate cannot be read", "kubectl patchwarden rotate ca");
    };
    let Ok(ends) = Timestamp::from_second(parsed.validity().not_after.timestamp()) else {
        return Finding::error(
            check,
            "the CA's certificate has no end that can be read",
            "kubectl patchwarden rotate ca",
        );
    };
    let left = ends.duration_since(now);
    let action = "kubectl patchwarden rotate ca: devices follow while the old one still counts (docs/keys.md)";
    if left <= SignedDuration::ZERO {
        Finding::error(check, format!("the CA's certificate has ended on {ends}: no device can connect"), action)
    } else if left < CA_ENDS_SOON {
        Finding::warning(check, format!("the CA's certificate ends on {ends}"), action)
    } else {
        Finding::ok(check, format!("the CA's certificate is good until {ends}"))
    }
}

fn order_key(ends: Timestamp, now: Timestamp) -> Finding {
    let what = format!("the order key may sign until {ends}");
    if ends <= now {
        return Finding::error("certificates", what, "see why the controller does not renew it: its logs");
    }
    Finding::ok("certificates", what)
}

/// The names of the kinds of objects in `config/base/admission.yaml`.
pub(super) fn admission_names() -> anyhow::Result<Vec<String>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(ADMISSION).context("config/base/admission.yaml")?;
    let policies = documents.iter().filter(|document| document["kind"] == "ValidatingAdmissionPolicy");
    policies.map(|policy| Ok(String::deserialize(&policy["metadata"]["name"])?)).collect()
}

/// What guards the objects against everybody else.
pub(super) async fn admission(client: &Client) -> anyhow::Result<Vec<Finding>> {
    let check = "admission";
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let bound = bindings.list(&ListParams::default()).await;
    let mut findings = vec![];
    for name in admission_names()? {
        let named = format!("ValidatingAdmissionPolicy {name}");
        let install = "install it (config/base/admission.yaml, or the chart): without it others may write what only Patchwarden may";
        let there = policies.get_opt(&name).await;
        let (policy, bound) = match (&there, &bound) {
            (Ok(policy), Ok(bound)) => (policy, bound),
            (Err(error), _) | (_, Err(error)) => {
                findings.push(Finding::unseen(check, &named, error));
                continue;
            }
        };
        let denies = |binding: &ValidatingAdmissionPolicyBinding| {
            binding.spec.policy_name == name && binding.spec.validation_actions.iter().any(|action| action == "Deny")
        };
        if policy.is_none() {
            findings.push(Finding::error(check, format!("{named} does not exist"), install));
        } else if !bound.iter().any(denies) {
            let what = format!("{named} denies nothing: no binding of it has Deny");
            findings.push(Finding::error(check, what, install));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check, "all admission policies are there and deny"));
    }
    Ok(findings)
}

/// What a person must correct.
pub(super) async fn stalled(client: &Client, scope: &Scope) -> Vec<Finding> {
    let namespace = scope.namespace.as_deref();
    let mut findings = vec![];
    of_kind::<PatchPolicy>(client, namespace, &mut findings, |it| it.status.as_ref().map(|status| &status.conditions))
        .await;
    of_kind::<ApprovalGroup>(client, namespace, &mut findings, |it| {
        it.status.as_ref().map(|status| &status.conditions)
    })
    .await;
    of_kind::<MaintenanceWindow>(client, namespace, &mut findings, |it| {
        it.status.as_ref().map(|status| &status.conditions)
    })
    .await;
    of_kind::<DeviceInventory>(client, namespace, &mut findings, |it| {
        it.status.as_ref().map(|status| &status.conditions)
    })
    .await;
    let more = findings.len().saturating_sub(SHOWN);
    findings.truncate(SHOWN);
    if more > 0 {
        findings.push(Finding::warning("stalled", format!("and {more} more"), "kubectl patchwarden status shows all"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("stalled", "no object is"));
    }
    findings
}

async fn of_kind<K>(
    client: &Client,
    namespace: Option<&str>,
    findings: &mut Vec<Finding>,
    conditions: impl Fn(&K) -> Option<&Vec<Condition>>,
) where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let all = match live::all::<K>(client, namespace).await {
        Ok(all) => all,
        Err(error) => {
            let what = format!("{error:#}");
            return findings.push(Finding::warning(
                "stalled",
                what,
                "ask for the right to list them, or install the CRDs",
            ));
        }
    };
    for object in all {
        let condition = conditions(&object).into_iter().flatten().find(|it| it.type_ == STALLED && it.status == "True");
        if let Some(condition) = condition {
            let named = format!("{} {}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any());
            findings.push(Finding::warning(
                "stalled",
                format!("{named}: {}: {}", condition.reason, condition.message),
                stalled_action(&condition.reason),
            ));
        }
    }
}
