//! Each program may do exactly what it does: its roles, and what the API server has written down of it in all tests before this one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::Test;
use crate::world::World;

/// It is meaningful only after all others.
pub const LAST: Test =
    ("each_program_has_the_rights_that_it_uses_and_no_others", each_program_has_the_rights_that_it_uses_and_no_others);

const SYSTEM: &str = "patchwarden-system";

/// A right as a role words it, of one resource and one verb.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The binding that gives it: `ClusterRoleBinding NAME` or `RoleBinding NAME/NAMESPACE`.
    pub binding: String,
    group: String,
    /// `resource` or `resource/subresource`.
    resource: String,
    verb: String,
    /// The only object, if there is one.
    name: Option<String>,
}

fn each_program_has_the_rights_that_it_uses_and_no_others(world: &World) {
    let audit = world.audit();
    let mut unused: BTreeMap<&str, Vec<Right>> = BTreeMap::new();
    for account in ["patchwarden-controller", "patchwarden-gateway"] {
        let granted = granted(world, account);
        assert!(granted.len() > 10, "{account}: {granted:#?}");
        let used = used(&audit, account);
        println!("{account}: {} rights, used in {} ways", granted.len(), used.len());
        for right in &granted {
            let ways = used.iter().filter(|it| gives(right, it)).count();
            let name = right.name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
            println!("  {} {}{name}, by {}: used in {ways} ways", right.verb, right.resource, right.binding);
        }
        unused.insert(account, granted.into_iter().filter(|right| !used.iter().any(|it| gives(right, it))).collect());
    }
    assert!(unused.values().all(Vec::is_empty), "granted, and never used: {unused:#?}");

    // Install Jobs run as their namespace's default account, which has a token for the gateway alone.
    let by_runners = audit.iter().find(|event| {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let is_person = event["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kubectl"));
        user.starts_with("system:serviceaccount:client-") && user.ends_with(":default") && !is_person
    });
    assert_eq!(by_runners, None, "a runner has asked the API server");
    let refused: Vec<_> = audit
        .iter()
        .filter(|event| is_ours(event) && event["annotations"]["authorization.k8s.io/decision"] == "forbid")
        .map(|event| format!("{} {}", event["verb"], event["requestURI"]))
        .collect();
    assert!(refused.is_empty(), "a program has asked for what it may not do: {refused:#?}");
}

impl Right {
    /// The verb, the resource, and the object if it is of one only.
    pub fn words(&self) -> String {
        let name = self.name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
        format!("{} {}.{}{name}", self.verb, self.resource, self.group)
    }
}

/// Of these rights of an account those that it has not used.
pub fn unused(world: &World, account: &str, granted: &BTreeSet<Right>) -> Vec<Right> {
    let used = used(&world.audit(), account);
    granted.iter().filter(|right| !used.iter().any(|it| gives(right, it))).cloned().collect()
}

/// The rights of an account, by the roles that are bound to it.
pub fn granted(world: &World, account: &str) -> BTreeSet<Right> {
    let read = |arguments: &[&str]| -> Value { serde_json::from_str(&world.kubectl(arguments)).unwrap() };
    let bindings = read(&["get", "clusterrolebindings,rolebindings", "-A", "-o", "json"]);
    let mut rights = BTreeSet::new();
    for binding in bindings["items"].as_array().unwrap() {
        let is_ours = |subject: &Value| subject["name"] == account && subject["namespace"] == SYSTEM;
        if !binding["subjects"].as_array().is_some_and(|subjects| subjects.iter().any(is_ours)) {
            continue;
        }
        let (kind, name) = (binding["kind"].as_str().unwrap(), binding["metadata"]["name"].as_str().unwrap());
        let role = (binding["roleRef"]["kind"].as_str().unwrap(), binding["roleRef"]["name"].as_str().unwrap());
        let mut arguments = vec!["get", role.0, role.1, "-o", "json"];
        let namespace = binding["metadata"]["namespace"].as_str();
        arguments.extend(namespace.iter().flat_map(|namespace| ["-n", *namespace]));
        for rule in read(&arguments)["rules"].as_array().unwrap() {
            let words = |field: &str| texts(&rule[field]);
            let names = words("resourceNames").into_iter().map(Some).collect::<Vec<_>>();
            let names = if names.is_empty() { vec![None] } else { names };
            for (group, resource, verb) in words("apiGroups").into_iter().flat_map(|group| {
                let verbs = words("verbs");
                let each = move |resource: String| {
                    let group = group.clone();
                    verbs.clone().into_iter().map(move |verb| (group.clone(), resource.clone(), verb))
                };
                words("resources").into_iter().flat_map(each).collect::<Vec<_>>()
            }) {
                // No request is for a signer: it is asked for where a certificate is approved or signed.
                if resource == "signers" {
                    continue;
                }
                let place = namespace.map(|namespace| format!("/{namespace}")).unwrap_or_default();
                let binding = format!("{kind} {name}{place}");
                rights.extend(names.iter().map(|name| Right {
                    binding: binding.clone(),
                    group: group.clone(),
                    resource: resource.clone(),
                    verb: verb.clone(),
                    name: name.clone(),
                }));
            }
        }
    }
    rights
}

/// What the program itself has done by its bindings. An apply that makes an object is a `patch` in the log; it takes the right to
/// `create` as well.
fn used(audit: &[Value], account: &str) -> BTreeSet<Right> {
    let user = format!("system:serviceaccount:{SYSTEM}:{account}");
    let allowed = audit.iter().filter(|event| is_ours(event) && event["user"]["username"] == user.as_str());
    allowed
        .flat_map(|event| {
            let makes = event["verb"] == "patch" && event["responseStatus"]["code"] == 201;
            [Some("create").filter(|_| makes), event["verb"].as_str()]
                .into_iter()
                .flatten()
                .map(move |verb| (event, verb))
        })
        .filter_map(|(event, verb)| {
            // RBAC: allowed by ClusterRoleBinding "NAME" of ClusterRole ...; of a binding in a namespace: RoleBinding "NAME/NAMESPACE".
            let reason = event["annotations"]["authorization.k8s.io/reason"].as_str()?;
            let (kind, rest) = reason.strip_prefix("RBAC: allowed by ")?.split_once(" \"")?;
            let name = rest.split('"').next()?;
            let text = |field: &str| event["objectRef"][field].as_str().unwrap_or_default().to_owned();
            let (resource, subresource) = (text("resource"), text("subresource"));
            Some(Right {
                binding: format!("{kind} {name}"),
                group: text("apiGroup"),
                resource: if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") },
                verb: verb.to_owned(),
                name: Some(text("name")),
            })
        })
        .collect()
}

/// Whether a request needs the right.
fn gives(right: &Right, used: &Right) -> bool {
    let same = |right: &Right| (right.binding.clone(), right.group.clone(), right.resource.clone(), right.verb.clone());
    same(right) == same(used) && (right.name.is_none() || right.name == used.name)
}

/// A request of one of the programs, and not one by kubectl with its account.
fn is_ours(event: &Value) -> bool {
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    event["stage"] == "ResponseComplete"
        && text(&event["user"]["username"]).starts_with(&format!("system:serviceaccount:{SYSTEM}:patchwarden-"))
        && !text(&event["userAgent"]).starts_with("kubectl")
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
}
