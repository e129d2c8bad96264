//! NOTES.txt, which Helm shows after an install: every command in it can be run, and every name is that of something that is there.

use std::collections::BTreeSet;

use clap::Parser as _;
use patchwarden::api::TRUST_CONFIG_MAP;
use patchwarden::cli::Cli;
use patchwarden::controller::SECRET;
use serde_json::Value;

use super::{AGGREGATION, CHART, NOTHING, POSTGRESQL, helm, identity, objects, rendered};

const NAMED: &str = "gateway.serverNames={patch.example.com}";

/// Values that make other notes.
const ALL: &[&[&str]] = &[
    &[],
    NOTHING,
    &["crds.keep=false"],
    &[NAMED],
    &[NAMED, "gateway.agents.port=9443"],
    &[NAMED, "gateway.agents.type=LoadBalancer"],
    &[NAMED, "gateway.agents.type=NodePort"],
    &[NAMED, "gateway.agents.type=NodePort", "gateway.agents.nodePort=30443"],
    &["gateway.serverNames={2001:db8::1}"],
];

/// What is told after an install.
fn notes(namespace: &str, values: &[&str]) -> String {
    let arguments = ["install", "patchwarden", CHART, "--namespace", namespace, "--dry-run=client"];
    let output = helm(&arguments, values);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_once("\nNOTES:\n").unwrap_or_else(|| panic!("{values:?}: no notes")).1.to_owned()
}

/// Lines that are indented, and what is in backticks.
fn commands(notes: &str) -> Vec<&str> {
    let lines = notes.lines().filter_map(|line| line.strip_prefix("  "));
    lines.chain(notes.split('`').skip(1).step_by(2)).collect()
}

/// Words as names are made of, without what ends a sentence.
fn words(notes: &str) -> impl Iterator<Item = &str> {
    let words = notes.split(|c: char| !c.is_ascii_alphanumeric() && !"-._/".contains(c));
    words.map(|word| word.trim_end_matches('.'))
}

#[test]
fn the_notes_name_commands_objects_values_and_files_that_there_are() {
    let several = [POSTGRESQL, AGGREGATION, &[NAMED]].concat();
    for values in ALL.iter().copied().chain([POSTGRESQL, &several]) {
        for namespace in ["patchwarden-system", "elsewhere"] {
            check(namespace, values).unwrap_or_else(|why| panic!("{namespace}, {values:?}: {why}"));
        }
    }
}

fn check(namespace: &str, values: &[&str]) -> Result<(), String> {
    let notes = notes(namespace, values);
    let all = objects(&rendered(namespace, values));
    let is_there = |kind: &str, name: &str| all.iter().any(|it| identity(it) == (kind.to_owned(), name.to_owned()));
    let agents = all.iter().find(|it| identity(it) == ("Service".into(), "patchwarden-agents".into())).unwrap();
    let port = &agents["spec"]["ports"][0];
    let has_names = values.iter().any(|value| value.starts_with("gateway.serverNames"));

    let mut enrols = false;
    for command in commands(&notes) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let known = match words[..] {
            ["helm", "uninstall"] => true,
            ["helm", "test", "patchwarden", "-n", place] => {
                let tests = |it: &Value| it["metadata"]["annotations"]["helm.sh/hook"] == "test";
                place == namespace && all.iter().any(tests)
            }
            ["kubectl", "get", "service", name, "-n", place] => place == namespace && is_there("Service", name),
            ["kubectl", "delete", "apiservice", name] => is_there("APIService", name),
            ["kubectl", "patchwarden", ..] => {
                let arguments = std::iter::once("kubectl-patchwarden").chain(words[2..].iter().copied());
                Cli::try_parse_from(arguments).map_err(|why| format!("{command}: {why}"))?;
                if let Some(at) = words.iter().position(|word| *word == "--gateway") {
                    enrols = true;
                    reached(words[at + 1], port, &all)?;
                    let own = words.iter().skip_while(|word| **word != "--patchwarden-namespace").nth(1);
                    if own.copied().unwrap_or("patchwarden-system") != namespace {
                        return Err(format!("{command}: the plugin would look into {own:?}"));
                    }
                }
                true
            }
            _ => false,
        };
        if !known {
            return Err(format!("{command:?} is no command, or of something that is not there"));
        }
    }
    if enrols != has_names {
        return Err(format!("how a machine joins is told: {enrols}; the gateway has names: {has_names}"));
    }

    let mut known: BTreeSet<String> = all.iter().map(|it| identity(it).1).collect();
    known.extend([SECRET, TRUST_CONFIG_MAP, "patchwarden-system"].map(str::to_owned));
    let claims = all.iter().filter(|it| it["kind"] == "StatefulSet").flat_map(|it| {
        let claims = it["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
        claims.map(|claim| format!("{}-{}-0", claim["metadata"]["name"].as_str().unwrap(), identity(it).1))
    });
    let claims: Vec<String> = claims.collect();
    known.extend(claims.iter().cloned());
    let defaults: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(format!("{CHART}/values.yaml")).unwrap()).unwrap();
    for word in words(&notes) {
        let is_name = ["patchwarden-", "data-"].iter().any(|start| word.starts_with(start));
        if is_name && !known.contains(word) {
            return Err(format!("{word} is the name of nothing"));
        }
        let is_value = word.split_once('.').is_some_and(|(first, _)| defaults.get(first).is_some());
        if is_value && defaults.pointer(&format!("/{}", word.replace('.', "/"))).is_none() {
            return Err(format!("{word} is no value"));
        }
        if word.starts_with("docs/") && !std::path::Path::new(&format!("{CHART}/../../{word}")).is_file() {
            return Err(format!("{word} is no file"));
        }
    }

    let is_kept = |it: &Value| it["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
    let tells = |what: &str| notes.split_once("`helm uninstall` leaves").unwrap().1.contains(what);
    if tells("the four kinds") != all.iter().any(is_kept) {
        return Err("what Helm keeps is not what is told".into());
    }
    match (tells("the claim "), &claims[..]) {
        (true, [claim]) if tells(claim) => Ok(()),
        (false, []) => Ok(()),
        (told, claims) => Err(format!("a claim is told: {told}; there are {claims:?}")),
    }
}

/// HOST:PORT is one at which the gateway has a certificate and its Service a port.
fn reached(address: &str, port: &Value, all: &[Value]) -> Result<(), String> {
    let (host, number) = address.rsplit_once(':').ok_or_else(|| format!("--gateway {address} has no port"))?;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let argument = format!("--server-name={name}");
    let is_split = !host.contains(':') || name != host;
    if !is_split || !all.iter().any(|it| it.to_string().contains(&format!("\"{argument}\""))) {
        return Err(format!("--gateway {address}: the gateway has no {argument}"));
    }
    let service = all.iter().find(|it| identity(it).1 == "patchwarden-agents").unwrap();
    let expected = match (service["spec"]["type"].as_str(), port["nodePort"].as_u64()) {
        (Some("NodePort"), Some(chosen)) => chosen.to_string(),
        (Some("NodePort"), None) => "PORT".to_owned(),
        _ => port["port"].to_string(),
    };
    if number == expected { Ok(()) } else { Err(format!("--gateway {address}: the port is {expected}")) }
}
