//! Ids of traces and spans, and how a context is written (W3C Trace Context).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// What an order's digest begins with.
const DIGEST: &str = "sha256:";

/// Of a trace: never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The trace of an order: the first half of its digest. An order names its device, epoch and number, so that no two have the same.
    pub fn of_order(digest: &str) -> Option<Self> {
        let hex = digest.strip_prefix(DIGEST).filter(|hex| hex.len() == 64 && hex.is_ascii())?;
        hex[..32].parse().ok()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for TraceId {
    type Err = NoContext;

    fn from_str(text: &str) -> Result<Self, NoContext> {
        hex(text).map(Self).ok_or(NoContext)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// Of a span: never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl SpanId {
    /// The root of an order's trace.
    pub fn root(digest: &str) -> Self {
        Self::derived(digest, "install")
    }

    /// That of something which there is once in an order's trace: who tells it twice tells the same span.
    pub fn derived(digest: &str, what: &str) -> Self {
        let hash = Sha256::new().chain_update(digest).chain_update("/").chain_update(what).finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Self(id).or_valid()
    }

    /// Another one each time.
    pub fn random() -> Self {
        Self(rand::random()).or_valid()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// Zeros are no id.
    fn or_valid(self) -> Self {
        if self.0 == [0; 8] { Self([1; 8]) } else { self }
    }
}

impl FromStr for SpanId {
    type Err = NoContext;

    fn from_str(text: &str) -> Result<Self, NoContext> {
        hex(text).map(Self).ok_or(NoContext)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// Name of a context in the metadata of a call.
pub const TRACEPARENT: &str = "traceparent";

/// What a caller says of the trace that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub span: SpanId,
    /// Whether the trace is told.
    pub is_sampled: bool,
}

impl fmt::Display for Context {
    /// As `traceparent` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, is_sampled } = self;
        write!(f, "00-{trace}-{span}-{:02x}", u8::from(*is_sampled))
    }
}

/// A text that is no context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no context of a trace as W3C Trace Context has it")]
pub struct NoContext;

impl FromStr for Context {
    type Err = NoContext;

    fn from_str(text: &str) -> Result<Self, NoContext> {
        let mut parts = text.split('-');
        let (Some(version), Some(trace), Some(span), Some(flags)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoContext);
        };
        // Later versions may have more parts, and none is called ff.
        let [version] = hex_or_zero::<1>(version).filter(|version| *version != [0xff]).ok_or(NoContext)?;
        if version == 0 && parts.next().is_some() {
            return Err(NoContext);
        }
        let [flags] = hex_or_zero::<1>(flags).ok_or(NoContext)?;
        Ok(Self { trace: trace.parse()?, span: span.parse()?, is_sampled: flags & 1 == 1 })
    }
}

/// Lower case, of exactly that length, and not all zeros.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex_or_zero(text).filter(|bytes| *bytes != [0; N])
}

fn hex_or_zero<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
