//! The API server, and this machine's clock against its.

use anyhow::Context as _;
use http::Request;
use http::header::DATE;
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::Body;

use super::Finding;
use crate::shell;

const CHECK: &str = "clock";

/// Agents take no orders when their clock differs by more than 2 minutes; so much of it is lost here already.
const NOTEWORTHY: SignedDuration = SignedDuration::from_secs(5);
const TOO_MUCH: SignedDuration = SignedDuration::from_mins(2);

/// Its version, and the clocks; and what time it is for the API server.
pub(super) async fn check(client: &Client) -> anyhow::Result<(Vec<Finding>, Timestamp)> {
    let request = Request::get("/version").body(Body::empty())?;
    let before = shell::now();
    let response = client.send(request).await.context("the API server does not answer")?;
    let after = shell::now();
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
    let clock = match date {
        Some(date) => judged(skew(before, after, date)),
        None => Finding::warning(CHECK, "the API server tells no time", "compare the clocks by hand"),
    };
    let version = client.apiserver_version().await.context("the version of the API server")?;
    Ok((vec![Finding::ok("API server", version.git_version), clock], date.unwrap_or(after)))
}

/// How far this clock is ahead for certain: the header has whole seconds, and the answer took its time.
pub(super) fn skew(before: Timestamp, after: Timestamp, date: Timestamp) -> SignedDuration {
    let end_of_second = date + SignedDuration::from_secs(1);
    if before > end_of_second {
        before.duration_since(end_of_second)
    } else if after < date {
        after.duration_since(date)
    } else {
        SignedDuration::ZERO
    }
}

pub(super) fn judged(skew: SignedDuration) -> Finding {
    let seconds = skew.as_secs().abs();
    let direction = if skew.is_negative() { "behind" } else { "ahead of" };
    let what = format!("this machine is {seconds} s {direction} the API server");
    let action =
        "let both follow a time server (chrony, systemd-timesyncd): times that the plugin writes count from this clock";
    if skew.abs() > TOO_MUCH {
        Finding::error(CHECK, what, action)
    } else if skew.abs() > NOTEWORTHY {
        Finding::warning(CHECK, what, action)
    } else {
        Finding::ok(CHECK, "this machine and the API server agree")
    }
}
