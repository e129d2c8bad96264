//! `kubectl patchwarden enroll`: a join token and the command that uses it.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::PostParams;
use kube::{Api, Client};
use patchwarden_protocol::join::JoinToken;
use patchwarden_protocol::key::Fingerprint;
use serde::Serialize;

use super::{Format, screen};
use crate::api::{LABEL_JOIN_TOKEN, TRUST_CONFIG_MAP};
use crate::gateway::identity::is_label;
use crate::gateway::join::{KEY_ACCEPT, KEY_EXPIRES, KEY_HASH, KEY_NAMESPACE, KEY_USES};
use crate::gateway::trust::Trust;
use crate::shell;

/// A forgotten token must not stay good for ever.
const MAX_EXPIRES: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Flags of `enroll`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Namespace of the client that the machines belong to.
    #[arg(short, long)]
    namespace: String,
    /// Where machines reach the gateway: HOST:PORT.
    #[arg(long)]
    gateway: String,
    /// Name in the gateway's certificate, where it is not HOST.
    #[arg(long)]
    server_name: Option<String>,
    /// How many machines may use the token.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    uses: u32,
    /// How long the token is good for, such as 24h (90 days at most).
    #[arg(long, default_value = "24h")]
    expires: SignedDuration,
    /// Accept the keys of these machines without a person looking at them.
    #[arg(long)]
    accept: bool,
    /// Patchwarden's own namespace.
    #[arg(long, default_value = "patchwarden-system")]
    patchwarden_namespace: String,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What `-o json` prints.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Joining {
    command: String,
    token: String,
    gateway: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    /// Fingerprint of the root's public key.
    root: String,
    /// Fingerprint of the CA's certificate.
    ca: String,
    namespace: String,
    uses: u32,
    accept: bool,
    expires: Timestamp,
}

/// Makes the token.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<()> {
    check(&arguments)?;
    let own = &arguments.patchwarden_namespace;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), own);
    let map = maps.get_opt(TRUST_CONFIG_MAP).await.with_context(|| format!("ConfigMap {own}/{TRUST_CONFIG_MAP}"))?;
    let Some(map) = map else {
        bail!("ConfigMap {own}/{TRUST_CONFIG_MAP} does not exist: is the controller running there?")
    };
    let trust = Trust::of(&map)?;
    let token = JoinToken::generate();
    let now = shell::now();
    let expires = now.checked_add(arguments.expires).context("--expires")?;
    let expires = Timestamp::from_second(expires.as_second()).context("--expires")?;

    warn_where_nobody_could_join(client, &arguments).await;
    let map = describe(&token, &arguments, expires);
    maps.create(&PostParams::default(), &map).await.with_context(|| format!("a ConfigMap in namespace {own}"))?;

    let joining = joining(&token, &trust, arguments, expires)?;
    match joining.1 {
        Format::Json => println!("{}", serde_json::to_string_pretty(&joining.0)?),
        Format::Text => println!("{}", joining.0.command),
    }
    Ok(())
}

/// What would else be told on the machine, or be waited for. Whoever may not look at namespaces is told nothing of theirs.
async fn warn_where_nobody_could_join(client: &Client, arguments: &Arguments) {
    let namespace = &arguments.namespace;
    if let Ok(None) = Api::<Namespace>::all(client.clone()).get_opt(namespace).await {
        screen::warn(&format!(
            "namespace {namespace} does not exist, and nobody can join it before it does: kubectl create namespace {namespace}"
        ));
    }
    if !arguments.accept {
        screen::warn(&format!(
            "the key of each machine that joins waits to be accepted: kubectl patchwarden status -n {namespace} says how (--accept does it for you)"
        ));
    }
}

fn check(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { namespace, gateway, server_name, uses: _, expires, accept: _, patchwarden_namespace, output: _ } =
        arguments;
    ensure!(is_label(namespace), "--namespace {namespace:?} is no name of a namespace");
    ensure!(
        is_label(patchwarden_namespace),
        "--patchwarden-namespace {patchwarden_namespace:?} is no name of a namespace"
    );
    // They become words of a shell command.
    let is_word =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    let port =
        gateway.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    ensure!(is_word(gateway) && port.is_some(), "--gateway {gateway:?} is not HOST:PORT");
    if let Some(name) = server_name {
        ensure!(is_word(name), "--server-name {name:?} is no name");
    }
    ensure!(*expires > SignedDuration::ZERO && *expires <= MAX_EXPIRES, "--expires is not between 0 and 90 days");
    Ok(())
}

/// The hash only: nobody who reads the ConfigMap can join with it.
fn describe(token: &JoinToken, arguments: &Arguments, expires: Timestamp) -> ConfigMap {
    let mut map = ConfigMap {
        data: Some(BTreeMap::from([
            (KEY_HASH.to_owned(), token.hash()),
            (KEY_EXPIRES.to_owned(), expires.to_string()),
            (KEY_USES.to_owned(), arguments.uses.to_string()),
            (KEY_NAMESPACE.to_owned(), arguments.namespace.clone()),
            (KEY_ACCEPT.to_owned(), arguments.accept.to_string()),
        ])),
        // What was decided when it was made cannot be widened later.
        immutable: Some(true),
        ..ConfigMap::default()
    };
    map.metadata.name = Some(token.config_map());
    map.metadata.labels = Some([(LABEL_JOIN_TOKEN.to_owned(), "true".to_owned())].into());
    map
}

fn joining(
    token: &JoinToken,
    trust: &Trust,
    arguments: Arguments,
    expires: Timestamp,
) -> anyhow::Result<(Joining, Format)> {
    let Arguments { namespace, gateway, server_name, uses, expires: _, accept, patchwarden_namespace: _, output } =
        arguments;
    // That of the gateways' certificates.
    let ca = trust.ca.first().context("the ConfigMap holds no CA")?;
    let (root, ca) = (trust.root.fingerprint().to_string(), Fingerprint::of(ca).to_string());
    let name = server_name.as_ref().map(|name| format!(" --server-name {name}")).unwrap_or_default();
    let command = format!("patchwarden-agent join --gateway {gateway} --token {token} --root {root} --ca {ca}{name}");
    let joining =
        Joining { command, token: token.to_string(), gateway, server_name, root, ca, namespace, uses, accept, expires };
    Ok((joining, output))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::gateway::join::{Admission, admit};

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(more: &[&str]) -> Arguments {
        let all = ["enroll", "--namespace", "acme", "--gateway", "gateway.example:8443"].iter().chain(more);
        Only::parse_from(all).arguments
    }

    #[test]
    fn the_gateway_admits_what_this_made() {
        let token = JoinToken::generate();
        let expires = Timestamp::from_second(1_800_000_000).unwrap();
        let map = describe(&token, &arguments(&["--uses", "5", "--accept"]), expires);
        let admission = admit(&token, Some(&map), Timestamp::from_second(1_700_000_000).unwrap()).unwrap();
        assert_eq!(admission, Admission { namespace: "acme".into(), uses: 5, accept: true });
        assert!(!format!("{map:?}").contains(token.to_string().split_once('.').unwrap().1));
    }

    #[test]
    fn bad_flags_are_named() {
        assert!(check(&arguments(&[])).is_ok());
        for (flags, named) in [
            (["--namespace", "Acme"], "--namespace"),
            (["--gateway", "host"], "--gateway"),
            (["--gateway", "host:1;reboot"], "--gateway"),
            (["--expires", "0s"], "--expires"),
            (["--expires", "9999h"], "--expires"),
            (["--server-name", "a b"], "--server-name"),
        ] {
            let mut all = arguments(&[]);
            match flags {
                ["--namespace", value] => all.namespace = value.into(),
                ["--gateway", value] => all.gateway = value.into(),
                ["--server-name", value] => all.server_name = Some(value.into()),
                _ => all = arguments(&flags),
            }
            assert!(check(&all).unwrap_err().to_string().contains(named), "{flags:?}");
        }
    }
}
