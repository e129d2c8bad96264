//! The way to the gateway, and whether both clocks agree.

use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::MAX_CLOCK_SKEW_SECONDS;
use tonic::body::Body;
use tower::ServiceExt as _;

use super::Finding;
use crate::config::Config;
use crate::identity::Identity;
use crate::{platform, tls};

/// The clock is off by so much before it is too much.
const WORTH_A_WARNING: SignedDuration = SignedDuration::from_secs(30);

const FIREWALL: &str =
    "check name, port, firewall and the clock; a certificate that is not believed needs `patchwarden-agent join` again";

const NTP: &str = "let the system keep its time (NTP): beyond 120 s no order is carried out";

pub(super) async fn check(config: &Config, identity: &Identity) -> Vec<Finding> {
    let asked = platform::now();
    match ask(config, identity).await {
        Ok(date) => {
            let reached =
                Finding::ok("gateway", format!("{} answers over TLS as {}", config.gateway, config.server_name));
            // The answer was made some time between both.
            let now = asked.saturating_add(platform::now().duration_since(asked) / 2).unwrap_or(asked);
            vec![reached, clock(date, now)]
        }
        Err(why) => vec![
            Finding::problem("gateway", why, FIREWALL),
            Finding::warning("clock", "was not compared with the gateway's", ""),
        ],
    }
}

/// The date of an answer, whatever it is: of a call that there is not, which changes nothing (RFC 9110, 6.6.1).
async fn ask(config: &Config, identity: &Identity) -> Result<Option<Timestamp>, String> {
    let tls = tls::mutual(identity).map_err(|error| error.to_string())?;
    let channel = tls::connect(&config.gateway, &config.server_name, tls).await.map_err(|error| with_causes(&error))?;
    let request = http::Request::post(format!("http://{}/patchwarden.Doctor/Look", config.gateway))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::empty())
        .map_err(|error| format!("{}: {error}", config.gateway))?;
    let answer = channel.oneshot(request).await.map_err(|error| with_causes(&error))?;
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    Ok(date.and_then(|date| rfc2822::parse(date).ok()).map(|date| date.timestamp()))
}

fn clock(date: Option<Timestamp>, now: Timestamp) -> Finding {
    let Some(date) = date else {
        return Finding::warning("clock", "the gateway does not tell its time", "");
    };
    // The gateway tells whole seconds, cut off.
    let ahead = now.duration_since(date);
    let off = if ahead.is_negative() { ahead.abs() } else { ahead.saturating_sub(SignedDuration::from_secs(1)) };
    let seconds = off.as_secs();
    let says = format!("is {seconds} s {} the gateway's", if ahead.is_negative() { "behind" } else { "ahead of" });
    if off > SignedDuration::from_secs(MAX_CLOCK_SKEW_SECONDS) {
        Finding::problem("clock", says, NTP)
    } else if off > WORTH_A_WARNING {
        Finding::warning("clock", says, NTP)
    } else {
        Finding::ok("clock", "agrees with the gateway's")
    }
}

/// The error, and what it came from: which alone says what is wrong.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_before_orders_are_refused() {
        let now: Timestamp = "2026-11-27T12:00:00.9Z".parse().unwrap();
        let of = |seconds| {
            let date = Timestamp::from_second(now.as_second() + seconds).unwrap();
            clock(Some(date), now).health
        };
        assert_eq!(
            [0, 30, -30, 119, -119].map(of),
            [Health::Ok, Health::Ok, Health::Ok, Health::Warning, Health::Warning]
        );
        assert_eq!([122, -122].map(of), [Health::Problem; 2]);
        assert_eq!(clock(None, now).health, Health::Warning, "unknown is not well");
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        let date = rfc2822::parse("Fri, 27 Nov 2026 12:00:00 GMT").unwrap();
        assert_eq!(date.timestamp().to_string(), "2026-11-27T12:00:00Z");
    }
}
