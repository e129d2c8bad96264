//! What a decision makes of a group: pure.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::approval_group::{DecisionAction, Level, Members, Parent, Scope, UpdateDecision};
use crate::api::{ApprovalGroup, ApprovalGroupSpec};
use crate::cli::live::{Live, Place};
use crate::plan;

/// Field manager of what this plugin applies.
pub(super) const MANAGER: &str = "kubectl-patchwarden";

/// What a client-side apply keeps of its file.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What kubectl and GitOps keep in annotations and labels for themselves.
const BOOKKEEPING: &[&str] = &[
    LAST_APPLIED,
    "argocd.argoproj.io/tracking-id",
    "kustomize.toolkit.fluxcd.io/name",
    "kustomize.toolkit.fluxcd.io/namespace",
    "helm.toolkit.fluxcd.io/name",
    "helm.toolkit.fluxcd.io/namespace",
];

/// The group that is to decide, as it is.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// It.
    pub group: ApprovalGroup,
    /// Whether it does not exist yet.
    pub is_new: bool,
}

impl Draft {
    /// A group by its name.
    pub(super) fn of_group(live: &Live, place: &Place, name: &str) -> anyhow::Result<Self> {
        let Some(group) = live.groups.get(name) else {
            bail!("ApprovalGroup {}/{name} does not exist", place.namespace)
        };
        Ok(Self { group: group.clone(), is_new: false })
    }

    /// The group of this device alone: one that there is, or a new one beneath the device's effective group, which it beats.
    pub(super) fn of_device(live: &Live, place: &Place, device: &str, now: Timestamp) -> anyhow::Result<Self> {
        let namespace = &place.namespace;
        let planned = plan::plan(&live.snapshot(place, now), now);
        let Some(planned) = planned.devices.into_iter().find(|planned| *planned.name == *device) else {
            bail!("DeviceInventory {namespace}/{device} does not exist")
        };
        let effective = planned.group.as_deref();
        let above = effective.and_then(|name| live.groups.get(name));
        if let Some(own) = above.filter(|group| is_of(group, device)) {
            return Ok(Self { group: own.clone(), is_new: false });
        }
        let name = format!("device-{device}");
        if let Some(other) = live.groups.get(&name) {
            ensure!(
                is_of(other, device),
                "{}: spec.members is not device {device} alone: decide with --group {name}, or rename it",
                named(other)
            );
            bail!(
                "{} is not the device's effective group, {} is: decide with --group",
                named(other),
                effective.unwrap_or("none")
            )
        }
        // A group that names the device beats all that select it; of those that name it at the same level the higher priority.
        let is_beaten_by_level =
            above.is_none_or(|group| group.spec.level != Level::Device || !names(group).iter().any(|it| it == device));
        let priority = if is_beaten_by_level { 0 } else { above.map_or(0, |group| group.spec.priority + 1) };
        ensure!(priority <= 1000, "ApprovalGroup {namespace}/{}: spec.priority is the highest that there is", {
            effective.unwrap_or_default()
        });
        let spec = ApprovalGroupSpec {
            parent: effective.map(|name| Parent { name: name.to_owned(), scope: Scope::Client }),
            level: Level::Device,
            members: Some(Members { selector: None, names: vec![device.to_owned()], rule: None }),
            priority,
            decisions: vec![],
            rules: vec![],
            default: None,
            min_artifact_age: None,
        };
        let mut group = ApprovalGroup::new(&name, spec);
        group.metadata.namespace = Some(namespace.clone());
        Ok(Self { group, is_new: true })
    }

    /// With the decisions, which come first and take the place of others on the same updates.
    pub(super) fn changed(&self, decisions: &[UpdateDecision]) -> ApprovalGroup {
        let mut group = self.group.clone();
        group.spec.decisions.retain(|old| !decisions.iter().any(|new| takes_the_place_of(new, old)));
        group.spec.decisions.splice(0..0, decisions.iter().cloned());
        group
    }

    /// What this plugin applies: what it has applied before, and the decisions. What others own is not touched; and if the group has
    /// changed since it was read nothing is, since what somebody else has decided by this plugin meanwhile would be taken away.
    pub(super) fn applied(&self, decisions: &[UpdateDecision]) -> anyhow::Result<Value> {
        let owned = if self.is_new { Owned { decisions: vec![], is_whole: true } } else { Owned::of(&self.group) };
        let mine = self.group.spec.decisions.iter().filter(|decision| {
            owned.decisions.contains(&(decision.update.clone(), action(decision.action)))
                && !decisions.iter().any(|new| takes_the_place_of(new, decision))
        });
        let all: Vec<&UpdateDecision> = decisions.iter().chain(mine).collect();
        let mut spec = if owned.is_whole { serde_json::to_value(&self.group.spec)? } else { json!({}) };
        spec["decisions"] = serde_json::to_value(all)?;
        let mut metadata = json!({ "name": self.group.name_any(), "namespace": self.group.namespace() });
        if let Some(version) = self.group.resource_version().filter(|_| !self.is_new) {
            metadata["resourceVersion"] = version.into();
        }
        Ok(json!({
            "apiVersion": "patchwarden.io/v1alpha1",
            "kind": "ApprovalGroup",
            "metadata": metadata,
            "spec": spec,
        }))
    }

    /// Who keeps the object as it is somewhere else.
    pub(super) fn keeper(&self) -> Option<String> {
        let (labels, annotations) = (self.group.labels(), self.group.annotations());
        let named = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned();
        let by_mark = named(annotations, "argocd.argoproj.io/tracking-id")
            .or_else(|| named(labels, "argocd.argoproj.io/instance"))
            .map(|of| format!("Argo CD ({of})"))
            .or_else(|| {
                named(labels, "kustomize.toolkit.fluxcd.io/name").map(|of| format!("Flux (Kustomization {of})"))
            })
            .or_else(|| named(labels, "helm.toolkit.fluxcd.io/name").map(|of| format!("Flux (HelmRelease {of})")))
            .or_else(|| named(annotations, "meta.helm.sh/release-name").map(|of| format!("Helm (release {of})")));
        by_mark.or_else(|| {
            let managers = self.group.managed_fields().iter().filter_map(|entry| entry.manager.as_deref());
            managers.into_iter().find_map(|manager| match manager {
                "argocd-controller" | "argocd-application-controller" => Some("Argo CD".to_owned()),
                "kustomize-controller" | "helm-controller" => Some(format!("Flux ({manager})")),
                _ => None,
            })
        })
    }
}

/// What this plugin has applied of an object.
struct Owned {
    /// Decisions, by their update and action.
    decisions: Vec<(String, String)>,
    /// The members as well: it has made the group.
    is_whole: bool,
}

impl Owned {
    fn of(group: &ApprovalGroup) -> Self {
        let mut owned = Self { decisions: vec![], is_whole: false };
        let mine =
            |manager: Option<&str>, operation: Option<&str>| manager == Some(MANAGER) && operation == Some("Apply");
        for entry in group.managed_fields() {
            if !mine(entry.manager.as_deref(), entry.operation.as_deref()) {
                continue;
            }
            let Some(spec) = entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:spec")) else { continue };
            owned.is_whole |= spec.get("f:members").is_some();
            let keys = spec.get("f:decisions").and_then(Value::as_object).into_iter().flatten();
            owned.decisions.extend(keys.filter_map(|(key, _)| {
                let key: Value = serde_json::from_str(key.strip_prefix("k:")?).ok()?;
                Some((key["update"].as_str()?.to_owned(), key["action"].as_str()?.to_owned()))
            }));
        }
        owned
    }
}

/// `Reprocess` stands beside what is decided; of all others one counts for what they name.
fn takes_the_place_of(new: &UpdateDecision, old: &UpdateDecision) -> bool {
    let tries_again = |decision: &UpdateDecision| decision.action == DecisionAction::Reprocess;
    new.update == old.update && tries_again(new) == tries_again(old)
}

fn action(action: DecisionAction) -> String {
    format!("{action:?}")
}

fn names(group: &ApprovalGroup) -> &[String] {
    group.spec.members.as_ref().map_or(&[], |members| members.names.as_slice())
}

/// Whether a group is of one device and can have no other.
fn is_of(group: &ApprovalGroup, device: &str) -> bool {
    let members = group.spec.members.as_ref();
    names(group) == [device] && members.is_some_and(|members| members.selector.is_none() && members.rule.is_none())
}

/// `ApprovalGroup NAMESPACE/NAME`.
pub(super) fn named(group: &ApprovalGroup) -> String {
    format!("ApprovalGroup {}/{}", group.namespace().unwrap_or_default(), group.name_any())
}

/// Its YAML, without what is the cluster's.
pub(super) fn manifest(group: &ApprovalGroup) -> anyhow::Result<String> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest<'a> {
        api_version: &'a str,
        kind: &'a str,
        metadata: Metadata,
        spec: &'a ApprovalGroupSpec,
    }
    #[derive(Serialize)]
    struct Metadata {
        name: String,
        namespace: Option<String>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
    }
    let without = |map: &BTreeMap<String, String>| {
        let own = map.iter().filter(|(key, _)| !BOOKKEEPING.contains(&key.as_str()));
        own.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let metadata = Metadata {
        name: group.name_any(),
        namespace: group.namespace(),
        labels: without(group.labels()),
        annotations: without(group.annotations()),
    };
    let manifest =
        Manifest { api_version: "patchwarden.io/v1alpha1", kind: "ApprovalGroup", metadata, spec: &group.spec };
    serde_saphyr::to_string(&manifest).context("YAML")
}
