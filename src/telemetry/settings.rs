//! What the environment says of traces, by OpenTelemetry's names.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use url::Url;

use super::ids::TraceId;

/// What the pod of an install Job is told as well. Headers are not: they may hold a secret, and the Job can be read by whoever may read
/// Jobs in the client's namespace. Nor is a file of this pod.
pub const FOR_RUNNERS: [&str; 9] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
];

/// For one request, where the environment does not say (OpenTelemetry's default).
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the environment says cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A variable.
    #[error("{name}: {why}")]
    Variable {
        /// Its name. Its value is not told: it may be a secret.
        name: String,
        /// Why.
        why: String,
    },
    /// The thread that sends.
    #[error("traces: {0}")]
    Thread(#[from] std::io::Error),
}

/// Where traces go, and which.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where requests go.
    pub endpoint: Url,
    /// Headers of each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For one request.
    pub timeout: Duration,
    /// Authorities that are believed instead of the public ones, PEM.
    pub certificate: Option<PathBuf>,
    /// Which traces.
    pub sampler: Sampler,
    /// The service's name.
    pub service: Option<String>,
    /// More of the service.
    pub resource: Vec<(String, String)>,
}

impl Settings {
    /// Nothing where no endpoint is named, or where traces are switched off.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TelemetryError> {
        // Empty is as if it were not set.
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let refuse = |name: &str, why: String| TelemetryError::Variable { name: name.to_owned(), why };
        // What is said of traces counts more than what is said of all signals.
        let either = |what: &str| {
            let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
            names.into_iter().find_map(|name| get(&name).map(|value| (name, value)))
        };
        let is_off = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || get("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let Some((name, endpoint)) = either("ENDPOINT").filter(|_| !is_off) else { return Ok(None) };
        let mut url = Url::parse(&endpoint).map_err(|error| refuse(&name, error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse(&name, "not http:// or https://".to_owned()));
        }
        // It is logged, and told to pods whose Jobs can be read by others.
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            let why = "has a user or a query, which may hold a secret: OTEL_EXPORTER_OTLP_HEADERS is for these";
            return Err(refuse(&name, why.to_owned()));
        }
        if name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
            // The one of all signals has no path of its own for traces.
            url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
        }
        if let Some((name, protocol)) = either("PROTOCOL").filter(|(_, protocol)| protocol != "http/protobuf") {
            return Err(refuse(&name, format!("{protocol:?} is not known here: http/protobuf is (port 4318)")));
        }
        let timeout = match either("TIMEOUT") {
            None => TIMEOUT,
            Some((name, text)) => match text.parse() {
                Ok(milliseconds) if milliseconds > 0 => Duration::from_millis(milliseconds),
                _ => return Err(refuse(&name, "no number of milliseconds".to_owned())),
            },
        };
        let headers = match either("HEADERS") {
            None => Vec::new(),
            Some((name, text)) => {
                let no_header = |index: usize| {
                    refuse(&name, format!("the pair number {} is no header of HTTP, or its value is none", index + 1))
                };
                let pairs = pairs(&text).map_err(|why| refuse(&name, why))?.into_iter().enumerate();
                pairs
                    .map(|(index, (key, value))| match (key.parse(), value.parse::<HeaderValue>()) {
                        (Ok(name), Ok(mut value)) => {
                            value.set_sensitive(true);
                            Ok((name, value))
                        }
                        _ => Err(no_header(index)),
                    })
                    .collect::<Result<_, _>>()?
            }
        };
        let resource = get("OTEL_RESOURCE_ATTRIBUTES").map(|text| pairs(&text)).transpose();
        Ok(Some(Self {
            endpoint: url,
            headers,
            timeout,
            certificate: either("CERTIFICATE").map(|(_, path)| path.into()),
            sampler: Sampler::of(get("OTEL_TRACES_SAMPLER").as_deref(), get("OTEL_TRACES_SAMPLER_ARG").as_deref())
                .map_err(|(name, why)| refuse(name, why))?,
            service: get("OTEL_SERVICE_NAME"),
            resource: resource.map_err(|why| refuse("OTEL_RESOURCE_ATTRIBUTES", why))?.unwrap_or_default(),
        }))
    }
}

/// `key=value` with commas between them; values are percent-encoded, as W3C Baggage has them. What is wrong is not repeated.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).enumerate();
    pairs
        .map(|(index, pair)| {
            let number = index + 1;
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("the pair number {number} has no `=`"))?;
            let value =
                percent_decoded(value.trim()).ok_or_else(|| format!("the value number {number} cannot be read"))?;
            Ok((key.trim().to_owned(), value))
        })
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (code, others) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()?);
        rest = others;
    }
    String::from_utf8(bytes).ok()
}

/// Which traces are told: those whose id is above a threshold (OpenTelemetry's consistent sampling: the last 56 bits of a trace's id are
/// random, as those of a digest are). So all programs agree, whoever is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// From 0, which tells all, to 2^56, which tells none.
    threshold: u64,
}

impl Sampler {
    /// All.
    pub const ALL: Self = Self { threshold: 0 };
    const NONE: Self = Self { threshold: 1 << 56 };

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "from 0 to 2^56"
    )]
    fn ratio(ratio: f64) -> Self {
        let all = Self::NONE.threshold;
        Self { threshold: all - (ratio * all as f64) as u64 }
    }

    /// By OTEL_TRACES_SAMPLER and its argument; the error names the variable.
    fn of(name: Option<&str>, argument: Option<&str>) -> Result<Self, (&'static str, String)> {
        match name {
            None | Some("always_on" | "parentbased_always_on") => Ok(Self::ALL),
            Some("always_off" | "parentbased_always_off") => Ok(Self::NONE),
            Some("traceidratio" | "parentbased_traceidratio") => {
                let ratio = argument.unwrap_or("1").parse().ok();
                let ratio = ratio.filter(|ratio| (0.0..=1.0).contains(ratio));
                ratio.map(Self::ratio).ok_or(("OTEL_TRACES_SAMPLER_ARG", "no number from 0 to 1".to_owned()))
            }
            Some(other) => Err(("OTEL_TRACES_SAMPLER", format!("{other:?} is not known here"))),
        }
    }

    /// Whether this trace is told.
    pub fn samples(self, trace: TraceId) -> bool {
        let random = trace.bytes()[9..].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        random >= self.threshold
    }
}
