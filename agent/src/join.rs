//! `join`: from a command that an administrator pasted to a device with a certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::SignedDuration;
use patchwarden_protocol::MAX_MESSAGE_BYTES;
use patchwarden_protocol::agent_v1::agents_client::AgentsClient;
use patchwarden_protocol::agent_v1::{EnrollRequest, EnrollResponse};
use patchwarden_protocol::join::JoinToken;
use patchwarden_protocol::key::{Fingerprint, PrivateKey, PublicKey};
use patchwarden_protocol::report::DeviceRef;

use crate::config::{self, Config};
use crate::identity::{self, Identity};
use crate::{agent, files, platform, tls};

/// First pause while the key is pending.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Kind of a device.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum DeviceType {
    /// A machine that serves.
    #[value(name = "Server")]
    Server,
    /// A person's machine.
    #[value(name = "Workstation")]
    Workstation,
}

/// What the command says.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The gateway.
    #[arg(long, value_name = "HOST:PORT")]
    gateway: String,
    /// Name that the gateway's certificate must have, if it is not the host.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Join token.
    #[arg(long, env = "PATCHWARDEN_JOIN_TOKEN", hide_env_values = true, required_unless_present = "token_file")]
    token: Option<JoinToken>,
    /// File with the join token, so that it shows in no process list.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Fingerprint of the root key that orders must lead back to.
    #[arg(long, value_name = "SHA256:...")]
    root: Fingerprint,
    /// Fingerprint of the gateways' CA certificate.
    #[arg(long, value_name = "SHA256:...")]
    ca: Fingerprint,
    /// Name of the DeviceInventory [default: the hostname's first label].
    #[arg(long)]
    name: Option<String>,
    /// Kind of the device, used only when the DeviceInventory does not exist yet.
    #[arg(long = "type", value_name = "TYPE", default_value = "Server", ignore_case = true)]
    device_type: DeviceType,
    /// How long to wait until an administrator accepts the key.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    wait: SignedDuration,
    /// The repositories are first asked at a random moment within so many seconds of each start of the agent (`refresh_spread_seconds`
    /// of agent.toml); 0 for at once.
    #[arg(long, value_name = "SECONDS")]
    refresh_spread: Option<u32>,
    /// Makes a new key although this machine has joined already. It takes the place of the old one once it has a certificate.
    #[arg(long)]
    force: bool,
}

impl Arguments {
    fn token(&self) -> anyhow::Result<JoinToken> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))?;
                text.parse().with_context(|| format!("--token-file {}", path.display()))
            }
            (None, None) => bail!("--token or --token-file is needed"),
        }
    }
}

/// Joins.
pub(crate) async fn join(arguments: Arguments, config_path: &Path, state: &Path) -> anyhow::Result<()> {
    let token = arguments.token()?;
    let host = config::check_gateway(&arguments.gateway).map_err(|error| anyhow::anyhow!("--gateway: {error}"))?;
    let server_name = arguments.server_name.clone().unwrap_or_else(|| host.to_owned());
    let name = arguments.name.clone().unwrap_or_else(platform::short_hostname);
    let wait = Duration::try_from(arguments.wait).context("--wait")?;
    // A running agent holds the lock: its identity must not change under it.
    let _lock = agent::lock(state)?;
    let key = device_key(state, arguments.force)?;
    let request = EnrollRequest {
        token: token.to_string(),
        name,
        certificate_request: identity::certificate_request(&key)?,
        device_type: format!("{:?}", arguments.device_type),
    };
    let answer = enroll(&arguments, &server_name, &request, wait).await?;
    let identity = identity_of(answer.clone(), key, &arguments)?;
    let device = DeviceRef { namespace: answer.namespace, name: answer.name };
    // What an administrator has set stays; a file that cannot be read is replaced, as a machine that joins anew wants it.
    let before = Config::load(config_path).ok();
    let gateway = arguments.gateway;
    let mut config = match before {
        Some(before) => Config { gateway, server_name, device, ..before },
        None => Config::new(gateway, server_name, device),
    };
    config.refresh_spread_seconds = arguments.refresh_spread.or(config.refresh_spread_seconds);
    // The certificate comes last but one: without it the machine has not joined.
    identity.save(state)?;
    config.save(config_path)?;
    println!("Joined as {}, key {}.", config.device, identity.key.public().fingerprint());
    println!("It does not start by itself: {}", platform::START_ADVICE);
    Ok(())
}

/// The key that is there. That of a device that has joined is replaced by `--force` only, and not before the new one has a certificate: until
/// then the new one is kept beside it.
fn device_key(state: &Path, force: bool) -> anyhow::Result<PrivateKey> {
    let next = identity::next(state);
    let place = if force && identity::has_joined(state) {
        files::ensure_directory(&next, 0o700).with_context(|| next.display().to_string())?;
        &next
    } else {
        state
    };
    if let Some(key) = identity::load_key(place)? {
        return Ok(key);
    }
    let key = PrivateKey::generate();
    identity::save_key(&key, place)?;
    Ok(key)
}

/// Asks until there is a certificate.
async fn enroll(
    arguments: &Arguments,
    server_name: &str,
    request: &EnrollRequest,
    wait: Duration,
) -> anyhow::Result<EnrollResponse> {
    let began = tokio::time::Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        match ask(arguments, server_name, request).await {
            Ok(answer) if !answer.certificate_chain_pem.is_empty() => return Ok(answer),
            Ok(answer) => {
                check_root(&answer, arguments)?;
                if !told {
                    println!("{}", what_to_do(&answer));
                    told = true;
                }
            }
            Err(error) if !is_passing(&error) => return Err(error),
            Err(error) => eprintln!("{error:#}; trying again"),
        }
        if began.elapsed() + pause > wait {
            bail!(
                "the key was not accepted within {} s. Nothing is lost: run the same command again, it uses the same key",
                wait.as_secs()
            );
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn ask(arguments: &Arguments, server_name: &str, request: &EnrollRequest) -> anyhow::Result<EnrollResponse> {
    let channel = tls::connect(&arguments.gateway, server_name, tls::pinned(arguments.ca.clone())?).await?;
    let mut client = AgentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Ok(client.enroll(request.clone()).await?.into_inner())
}

/// Whether trying again may help: the gateway restarts, or it is busy. A wrong token will not become right.
fn is_passing(error: &anyhow::Error) -> bool {
    use tonic::Code::{Aborted, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown};
    error.downcast_ref::<tonic::Status>().is_some_and(|status| {
        matches!(
            status.code(),
            Aborted | Cancelled | DeadlineExceeded | Internal | ResourceExhausted | Unavailable | Unknown
        )
    })
}

fn what_to_do(answer: &EnrollResponse) -> String {
    let EnrollResponse { namespace, name, pending_fingerprint, .. } = answer;
    format!(
        "This device's key waits to be accepted. An administrator has to compare it and then run:\n\n  \
         kubectl -n {namespace} patch deviceinventory {name} --type merge -p \
         '{{\"spec\":{{\"acceptedKey\":\"{pending_fingerprint}\"}}}}'\n\n\
         This command waits for that. Should it be interrupted, run it again: it uses the same key.\n"
    )
}

fn check_root(answer: &EnrollResponse, arguments: &Arguments) -> anyhow::Result<PublicKey> {
    let root = PublicKey::from_bytes(&answer.root_public_key).context("the gateway's root key")?;
    let found = root.fingerprint();
    if found != arguments.root {
        bail!("the gateway has another root key ({found}) than the join command says ({})", arguments.root);
    }
    Ok(root)
}

fn identity_of(answer: EnrollResponse, key: PrivateKey, arguments: &Arguments) -> anyhow::Result<Identity> {
    let root = check_root(&answer, arguments)?;
    let cas = identity::certificates(&answer.ca_pem).map_err(|why| anyhow::anyhow!("the gateway's CA: {why}"))?;
    if !identity::contains_pinned(&cas, &arguments.ca) {
        bail!("the gateway's CA certificates do not contain the pinned one ({})", arguments.ca);
    }
    let EnrollResponse { certificate_chain_pem, ca_pem, .. } = answer;
    Ok(Identity { key, chain_pem: certificate_chain_pem, ca_pem, root, since: None })
}
