//! What the plugin's commands need to be allowed, asked of the API server for whoever asks.

use anyhow::Context as _;
use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::{Finding, Scope};
use crate::api::{GROUP, TRUST_CONFIG_MAP};
use crate::controller::SECRET;

const CHECK: &str = "permissions";

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the client's namespace.
    Client,
    /// In Patchwarden's own.
    Own,
    /// Of the cluster.
    Cluster,
}

/// A right: the verbs, the resource, and the object, where it is of one only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right {
    pub verb: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub name: &'static str,
    pub place: Place,
}

const fn right(
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    name: &'static str,
    place: Place,
) -> Right {
    Right { verb, group, resource, name, place }
}

const DEVICES: Right = right("list", GROUP, "deviceinventories", "", Place::Client);
const GROUPS: Right = right("list", GROUP, "approvalgroups", "", Place::Client);
const WINDOWS: Right = right("list", GROUP, "maintenancewindows", "", Place::Client);
const POLICIES: Right = right("list", GROUP, "patchpolicies", "", Place::Client);
const ORGANISATION: Right = right("list", GROUP, "approvalgroups", "", Place::Own);
const TRUST: Right = right("get", "", "configmaps", TRUST_CONFIG_MAP, Place::Own);
const KEYS: Right = right("patch", "", "secrets", SECRET, Place::Own);
const LOOK_AT_KEYS: Right = right("get", "", "secrets", SECRET, Place::Own);

/// What each command needs.
pub(super) const COMMANDS: &[(&str, &[Right])] = &[
    ("status", &[DEVICES, GROUPS, WINDOWS, POLICIES]),
    ("explain, preview, approve and the other decisions", &[DEVICES, GROUPS, WINDOWS, POLICIES, ORGANISATION]),
    (
        "approve --apply and the other decisions",
        &[
            right("patch", GROUP, "approvalgroups", "", Place::Client),
            right("create", GROUP, "approvalgroups", "", Place::Client),
        ],
    ),
    ("events", &[right("list", "", "events", "", Place::Client), right("watch", "", "events", "", Place::Client)]),
    (
        "devices, device, updates, search, history, vulns",
        &[
            TRUST,
            right("create", "", "serviceaccounts/token", "patchwarden-reader", Place::Client),
            right("list", "", "pods", "", Place::Own),
            right("create", "", "pods/portforward", "", Place::Own),
        ],
    ),
    ("enroll", &[TRUST, right("create", "", "configmaps", "", Place::Own)]),
    ("rotate, raise-epoch", &[TRUST, LOOK_AT_KEYS, KEYS]),
    (
        "doctor",
        &[
            right("get", "apiextensions.k8s.io", "customresourcedefinitions", "", Place::Cluster),
            right("get", "admissionregistration.k8s.io", "validatingadmissionpolicies", "", Place::Cluster),
            right("get", "rbac.authorization.k8s.io", "clusterroles", "", Place::Cluster),
            right("get", "rbac.authorization.k8s.io", "clusterrolebindings", "", Place::Cluster),
            right("get", "rbac.authorization.k8s.io", "roles", "", Place::Own),
            right("get", "rbac.authorization.k8s.io", "rolebindings", "", Place::Own),
            right("get", "", "serviceaccounts", "", Place::Own),
            right("get", "coordination.k8s.io", "leases", "patchwarden-controller", Place::Own),
        ],
    ),
];

/// One finding for each command.
pub(super) async fn check(client: &Client, scope: &Scope) -> anyhow::Result<Vec<Finding>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut findings = vec![];
    for (commands, rights) in COMMANDS {
        let asked = rights.iter().map(async |right| {
            let review = SelfSubjectAccessReview { spec: asks(right, scope), ..SelfSubjectAccessReview::default() };
            let answer = reviews.create(&PostParams::default(), &review).await;
            let answer = answer.context("the API server does not say what you may do (selfsubjectaccessreviews)")?;
            anyhow::Ok(answer.status.is_some_and(|status| status.allowed))
        });
        let allowed = try_join_all(asked).await?;
        let lacking: Vec<&Right> =
            rights.iter().zip(allowed).filter(|(_, allowed)| !allowed).map(|(right, _)| right).collect();
        findings.push(of_command(commands, &lacking, scope));
    }
    Ok(findings)
}

pub(super) fn of_command(commands: &str, lacking: &[&Right], scope: &Scope) -> Finding {
    if lacking.is_empty() {
        return Finding::ok(CHECK, commands);
    }
    let words: Vec<String> = lacking.iter().map(|right| words(right, scope)).collect();
    let what = format!("{commands}: you may not {}", words.join(", nor "));
    Finding::warning(CHECK, what, "ask for a role with it if you need these commands (docs/plugin.md, Permissions)")
}

fn asks(right: &Right, scope: &Scope) -> SelfSubjectAccessReviewSpec {
    let Right { verb, group, resource, name, place } = right;
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (*resource, None),
    };
    let attributes = ResourceAttributes {
        verb: Some((*verb).to_owned()),
        group: Some((*group).to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        name: (!name.is_empty()).then(|| (*name).to_owned()),
        namespace: match place {
            Place::Client => scope.namespace.clone(),
            Place::Own => Some(scope.own.clone()),
            Place::Cluster => None,
        },
        ..ResourceAttributes::default()
    };
    SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None }
}

fn words(right: &Right, scope: &Scope) -> String {
    let Right { verb, group, resource, name, place } = right;
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    let place = match (place, &scope.namespace) {
        (Place::Own, _) => format!(" in {}", scope.own),
        (Place::Client, Some(namespace)) => format!(" in {namespace}"),
        (Place::Client, None) => " in all namespaces".to_owned(),
        (Place::Cluster, _) => String::new(),
    };
    format!("{verb} {resource}{group}{name}{place}")
}
