//! The accounts of controller and gateway and what they may do, against what this plugin was built with.

use anyhow::Context as _;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;

use super::{Finding, Scope};

const CHECK: &str = "roles";

/// As they are installed, the chart's as well.
const FILES: [(&str, &str); 2] = [
    ("config/base/controller.yaml", include_str!("../../../config/base/controller.yaml")),
    ("config/base/gateway.yaml", include_str!("../../../config/base/gateway.yaml")),
];

/// The namespace that is written there.
const NAMESPACE: &str = "patchwarden-system";

/// So many rights are named.
const SHOWN: usize = 3;

/// One finding where all is there, else one for each object that is amiss, and one where some may not be looked at.
pub(super) async fn check(client: &Client, scope: &Scope) -> anyhow::Result<Vec<Finding>> {
    let (mut findings, mut forbidden) = (vec![], None);
    for (file, wanted) in wanted(&scope.own)? {
        match live(client, &wanted).await? {
            Ok(live) => findings.extend(differs(&wanted, live.as_ref()).map(|what| {
                let action = format!(
                    "upgrade or apply it again (the chart, or {file}), since without it nothing or too little is done; or use a plugin of the \
                     cluster's version"
                );
                Finding::error(CHECK, what, action)
            })),
            Err(error) if matches!(&error, kube::Error::Api(status) if status.code == 403) => {
                forbidden.get_or_insert(error);
            }
            Err(error) => findings.push(Finding::unseen(CHECK, &named(&wanted), &error)),
        }
    }
    if let Some(error) = forbidden {
        findings.push(Finding::unseen(CHECK, "all that controller and gateway may do", &error));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "controller and gateway may do what they need"));
    }
    Ok(findings)
}

/// All that should be there, and the file that has it.
pub(super) fn wanted(own: &str) -> anyhow::Result<Vec<(&'static str, Value)>> {
    let mut all = vec![];
    for (file, text) in FILES {
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text.replace(NAMESPACE, own)).context(file)?;
        all.extend(objects.into_iter().map(|object| (file, object)));
    }
    Ok(all)
}

async fn live(client: &Client, wanted: &Value) -> anyhow::Result<Result<Option<Value>, kube::Error>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&wanted["apiVersion"]), text(&wanted["kind"]));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let (namespace, name) = (text(&wanted["metadata"]["namespace"]), text(&wanted["metadata"]["name"]));
    let api: Api<DynamicObject> = if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &namespace, &resource)
    };
    match api.get_opt(&name).await {
        Ok(found) => Ok(Ok(found.map(serde_json::to_value).transpose()?)),
        Err(error) => Ok(Err(error)),
    }
}

fn named(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace =
        object["metadata"]["namespace"].as_str().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{} {namespace}{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// What is amiss with one of them. What it has beside that is somebody's own affair.
pub(super) fn differs(wanted: &Value, live: Option<&Value>) -> Option<String> {
    let named = named(wanted);
    let Some(live) = live else { return Some(format!("{named} does not exist")) };
    let lacking: Vec<String> = rights(wanted).iter().filter(|right| !is_granted(live, right)).map(words).collect();
    if !lacking.is_empty() {
        let more = lacking.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let shown = lacking.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        return Some(format!("{named} does not allow: {shown}{more}"));
    }
    let role = |object: &Value| ["kind", "name"].map(|field| object["roleRef"][field].clone());
    if role(wanted) != role(live) {
        let other = live["roleRef"]["name"].as_str().unwrap_or_default();
        return Some(format!("{named} gives another role: {other}"));
    }
    let account = |subject: &Value| {
        let [kind, namespace, name] =
            ["kind", "namespace", "name"].map(|field| subject[field].as_str().unwrap_or_default());
        format!("{kind} {namespace}/{name}")
    };
    let bound: Vec<_> = live["subjects"].as_array().into_iter().flatten().map(account).collect();
    let mut subjects = wanted["subjects"].as_array().into_iter().flatten().map(account);
    let lacking = subjects.find(|subject| !bound.contains(subject))?;
    Some(format!("{named} gives nothing to {lacking}"))
}

/// A group, a resource, an object's name where it is of one only, a verb.
type Right = (String, String, Option<String>, String);

fn rights(role: &Value) -> Vec<Right> {
    let mut all = vec![];
    for rule in role["rules"].as_array().into_iter().flatten() {
        let names = texts(&rule["resourceNames"]).into_iter().map(Some).collect::<Vec<_>>();
        let names = if names.is_empty() { vec![None] } else { names };
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for name in &names {
                    let verbs = texts(&rule["verbs"]).into_iter();
                    all.extend(verbs.map(|verb| (group.clone(), resource.clone(), name.clone(), verb)));
                }
            }
        }
    }
    all
}

fn is_granted(live: &Value, (group, resource, name, verb): &Right) -> bool {
    live["rules"].as_array().into_iter().flatten().any(|rule| {
        let has = |field: &str, word: &String| {
            let words = texts(&rule[field]);
            words.contains(word) || words.iter().any(|word| word == "*")
        };
        let names = texts(&rule["resourceNames"]);
        let of_it = names.is_empty() || name.as_ref().is_some_and(|name| names.contains(name));
        has("apiGroups", group) && has("resources", resource) && has("verbs", verb) && of_it
    })
}

fn words((group, resource, name, verb): &Right) -> String {
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    format!("{verb} {resource}{group}{name}")
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
}
