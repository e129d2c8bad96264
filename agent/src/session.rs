//! The one connection to the gateway: opened by the agent, kept open, opened again.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::MAX_MESSAGE_BYTES;
use patchwarden_protocol::agent_v1::agents_client::AgentsClient;
use patchwarden_protocol::agent_v1::{FromAgent, Hello, RenewRequest, ToAgent, Welcome, from_agent, to_agent};
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::agent::Agent;
use crate::link;
use crate::provider::Provider;
use crate::tls::TlsError;
use crate::{identity, platform, tls};

/// First pause after a session that worked.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A session that lasted so long worked: the next failure begins with the first pause again.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// The gateway must welcome within this.
const WELCOME_LIMIT: Duration = Duration::from_secs(30);

/// Between looks at the certificate's age, and after a renewal that failed.
const RENEWAL_CHECK: Duration = Duration::from_hours(1);

/// Between looks at this machine's clock.
const CLOCK_CHECK: Duration = Duration::from_mins(1);

/// How long a session lasts while the clocks are apart: one that is slewed, by NTP here or there, is never set.
const DOUBTFUL_SESSION: Duration = Duration::from_mins(15);

/// How far apart clocks are that are: what the gateway tells of one.
const APART: SignedDuration = SignedDuration::from_secs(30);

/// By so much the clock may move against the time that passes before the gateway is told.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(10);

/// Keeps a session for as long as the agent runs.
pub(crate) async fn keep<P: Provider>(agent: Rc<Agent<P>>) {
    let mut failures = 0;
    loop {
        let began = Instant::now();
        let ended = session(&agent).await;
        agent.link.close();
        if began.elapsed() >= GOOD_SESSION {
            failures = 0;
        }
        let pause = next_pause(failures);
        failures = failures.saturating_add(1);
        match ended {
            Ok(why) => tracing::info!("{why}; connecting again in {:.1} s", pause.as_secs_f64()),
            Err(error) => tracing::warn!("{error:#}; connecting again in {:.1} s", pause.as_secs_f64()),
        }
        tokio::time::sleep(pause).await;
    }
}

/// How long to wait after so many failures in a row. No two agents of a fleet that was cut off wait equally long.
pub(crate) fn next_pause(failures: u32) -> Duration {
    pause(failures, rand::random_range(0.5..1.0))
}

/// Twice as long after each failure, times `jitter`.
fn pause(failures: u32, jitter: f64) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_PAUSE).mul_f64(jitter)
}

/// A connection to the gateway.
pub(crate) async fn client(
    gateway: &str,
    server_name: &str,
    config: ClientConfig,
) -> Result<AgentsClient<Channel>, TlsError> {
    let channel = tls::connect(gateway, server_name, config).await?;
    Ok(AgentsClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// One session to its end; says why it ended.
async fn session<P: Provider>(agent: &Rc<Agent<P>>) -> anyhow::Result<&'static str> {
    let config = tls::mutual(&agent.identity.borrow())?;
    let mut client = client(&agent.config.gateway, &agent.config.server_name, config).await?;
    let was_expired = validity(agent)?.until <= platform::now();
    if is_due(agent)? {
        match renew(agent, &mut client).await {
            Ok(()) if was_expired => return Ok("the certificate had expired and is renewed"),
            Ok(()) => {}
            Err(error) if was_expired => return Err(error),
            Err(error) => tracing::warn!("{error:#}; the old certificate is still valid"),
        }
    }
    let (sender, receiver) = mpsc::channel(link::CAPACITY);
    let report_digest = agent.report_digest();
    // What the gateway goes by. Its answer may take a while, in which the clock is set.
    let told = (Instant::now(), platform::now());
    let hello = Hello {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        report_digest: report_digest.clone(),
        device_time: told.1.to_string(),
        recipes_digest: agent.recipes_digest(),
        settings_digest: Some(agent.settings_digest()),
        trust_digest: Some(agent.identity.borrow().trust_digest()),
        instance: Some(agent.instance.hello()),
    };
    sender.try_send(FromAgent { message: Some(from_agent::Message::Hello(hello)) })?;
    let opening = client.session(ReceiverStream::new(receiver));
    let mut inbound = tokio::time::timeout(WELCOME_LIMIT, opening)
        .await
        .context("the gateway does not answer")?
        .map_err(|status| session_refused(agent, &status))?
        .into_inner();
    let first = tokio::time::timeout(WELCOME_LIMIT, inbound.message()).await.context("the gateway does not answer")?;
    match first.map_err(|status| session_refused(agent, &status))? {
        Some(ToAgent { message: Some(to_agent::Message::Welcome(welcome)) }) => {
            open(agent, &welcome, sender, &report_digest)?;
        }
        Some(_) => anyhow::bail!("the gateway's first message is no welcome"),
        None => return Ok("the gateway ended the session"),
    }
    let mut renewal = tokio::time::interval(RENEWAL_CHECK);
    renewal.reset();
    let mut clock = tokio::time::interval(CLOCK_CHECK);
    loop {
        tokio::select! {
            message = inbound.message() => match message.map_err(|status| session_refused(agent, &status))? {
                Some(message) => receive(agent, message),
                None => return Ok("the gateway ended the session"),
            },
            _ = renewal.tick() => if is_due(agent)? {
                // A failure is tried again in an hour and in each new session.
                match renew(agent, &mut client).await {
                    Ok(()) => return Ok("the certificate is renewed"),
                    Err(error) => tracing::warn!("{error:#}"),
                }
            },
            // How far the clocks are apart is measured when a session begins, and orders are refused by it.
            _ = clock.tick() => {
                if stepped(told, (Instant::now(), platform::now())).abs() > CLOCK_STEP {
                    return Ok("this machine's clock was set");
                }
                let apart = agent.link.skew().is_some_and(|skew| skew.abs() > APART);
                if apart && told.0.elapsed() > DOUBTFUL_SESSION {
                    return Ok("the clocks are measured anew");
                }
            },
        }
    }
}

/// By how much the clock on the wall went forward beyond the time that has passed; a machine that was asleep looks as if it was set.
fn stepped((then, wall): (Instant, Timestamp), (now, wall_now): (Instant, Timestamp)) -> SignedDuration {
    let passed = SignedDuration::try_from(now.saturating_duration_since(then)).unwrap_or(SignedDuration::MAX);
    wall_now.duration_since(wall).saturating_sub(passed)
}

/// Why there is no session (any more); `status` tells of it where other machines use the key.
fn session_refused<P: Provider>(agent: &Agent<P>, status: &tonic::Status) -> anyhow::Error {
    if let Err(error) = agent.instance.was_refused(status.message()) {
        tracing::warn!("why the gateway refuses this machine cannot be written down: {error}");
    }
    refused("the session", status)
}

fn refused(what: &str, status: &tonic::Status) -> anyhow::Error {
    // By which the gateway's log is searched.
    let id = status.metadata().get("x-request-id").and_then(|id| id.to_str().ok());
    let request = id.map(|id| format!(" (request {id})")).unwrap_or_default();
    anyhow::anyhow!("{what} ended: {:?}: {}{request}", status.code(), status.message())
}

/// `told`: digest of the report that the gateway was told of.
fn open<P: Provider>(
    agent: &Agent<P>,
    welcome: &Welcome,
    sender: mpsc::Sender<FromAgent>,
    told: &str,
) -> anyhow::Result<()> {
    let Welcome { gateway_time, scan_interval, takes_changes, details_digest, report_version } = welcome;
    let gateway_time: Timestamp =
        gateway_time.parse().with_context(|| format!("the gateway's time {gateway_time:?} cannot be read"))?;
    let skew = gateway_time.duration_since(platform::now());
    tracing::info!("connected to {}; the gateway's clock is {} s ahead", agent.config.gateway, skew.as_secs());
    agent.set_scan_interval(*scan_interval);
    agent.set_report_version(*report_version);
    agent.link.open(sender, skew);
    agent.note_contact();
    agent.begin_session();
    agent.forget_recipes();
    if let Err(error) = agent.successor.check_in() {
        tracing::error!("that this version has a session cannot be written down: {error}");
    }
    agent.send_outstanding(told);
    agent.deliver_changes(*takes_changes);
    agent.deliver_details(details_digest.clone());
    Ok(())
}

fn receive<P: Provider>(agent: &Agent<P>, message: ToAgent) {
    match message.message {
        Some(to_agent::Message::SendReport(asked)) => agent.send_report_asked(asked),
        Some(to_agent::Message::Order(order)) => agent.receive_order(order.signed_order),
        Some(to_agent::Message::Recipes(recipes)) => agent.receive_recipes(&recipes.envelope),
        Some(to_agent::Message::Settings(settings)) => agent.receive_settings(&settings.signed_settings),
        Some(to_agent::Message::Trust(trust)) => agent.receive_trust(&trust.chain),
        Some(to_agent::Message::Grant(grant)) => agent.link.grant(grant.signed_grant),
        Some(to_agent::Message::ResultRecorded(recorded)) => agent.result_recorded(&recorded.order_digest),
        Some(to_agent::Message::ChangesRecorded(recorded)) => agent.changes_recorded(&recorded),
        Some(to_agent::Message::Refused(refused)) => agent.was_refused(&refused),
        Some(to_agent::Message::Welcome(welcome)) => agent.set_scan_interval(welcome.scan_interval),
        None => tracing::warn!("the gateway sent a message that this version does not know"),
    }
}

fn validity<P: Provider>(agent: &Agent<P>) -> anyhow::Result<identity::Validity> {
    agent.identity.borrow().validity().map_err(|why| anyhow::anyhow!("certificate.pem: {why}"))
}

fn is_due<P: Provider>(agent: &Agent<P>) -> anyhow::Result<bool> {
    Ok(validity(agent)?.is_due(platform::now()))
}

async fn renew<P: Provider>(agent: &Agent<P>, client: &mut AgentsClient<Channel>) -> anyhow::Result<()> {
    let certificate_request = identity::certificate_request(&agent.identity.borrow().key)?;
    let answer = client
        .renew(RenewRequest { certificate_request })
        .await
        .map_err(|status| refused("renewing the certificate", &status))?
        .into_inner();
    agent.identity.borrow_mut().renew(answer.certificate_chain_pem, &agent.state)?;
    tracing::info!("the certificate is renewed until {}", validity(agent)?.until);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_told_from_time_that_passes() {
        let (then, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let after = |passed: u64, shown: i64| {
            let now = (then + Duration::from_secs(passed), wall + SignedDuration::from_secs(shown));
            stepped((then, wall), now).as_secs()
        };
        assert_eq!([after(60, 60), after(60, 3_660), after(60, -3_540), after(86_400, 86_400)], [0, 3_600, -3_600, 0]);
    }

    #[test]
    fn pauses_grow_from_half_a_second_to_a_minute() {
        let seconds: Vec<f64> = (0..9).map(|failures| pause(failures, 1.0).as_secs_f64()).collect();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        assert_eq!(pause(u32::MAX, 0.5), Duration::from_secs(30));
    }
}
