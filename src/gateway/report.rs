//! Whether a report or a result is believed. Pure: bytes and what is known in, the verified document or a reason out.

use patchwarden_protocol::changes::{Changes, NUMBER_REUSED};
use patchwarden_protocol::details::Details;
use patchwarden_protocol::envelope::{Envelope, Refused as Unverified, Signature};
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::report::{COUNTER_BACKWARDS, COUNTER_REUSED, DeviceRef, Report, Software};
use patchwarden_protocol::result::InstallResult;
use patchwarden_protocol::{Document, canonical};

use super::limits::{self, Limits, OverLimit};
use crate::store::StoredReport;

/// Why something that a device sent is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an envelope.
    #[error("the envelope cannot be read: {0}")]
    Unreadable(String),
    /// Not signed by this device's key, or not the document that was promised.
    #[error(transparent)]
    Unverified(#[from] Unverified),
    /// Signed, and about another device.
    #[error("it names the device {found}, and this session is {expected}'s")]
    OtherDevice {
        /// The session's.
        expected: DeviceRef,
        /// The document's.
        found: DeviceRef,
    },
    /// The signed bytes are not the canonical form of the document, so that its signature could not be checked later.
    #[error("its fields are not exactly the ones that this gateway knows: gateway and agent are of different versions")]
    OtherForm,
    /// Older than what is kept.
    #[error("its counter {found} is below the last accepted one, {kept}: a copy or an old backup of this machine?")]
    CounterBackwards {
        /// The report's.
        found: u64,
        /// The store's.
        kept: u64,
    },
    /// The same place in the device's life as another one.
    #[error("its counter {0} was used for another report: a copy or an old backup of this machine?")]
    CounterReused(u64),
    /// More than the resource's schema allows.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// The software list is another one than the report says.
    #[error("software: its digest is {found}, and the report says {expected}")]
    SoftwareMismatch {
        /// The report's.
        expected: String,
        /// The list's.
        found: String,
    },
    /// Changes that are not what the protocol allows.
    #[error("changes: {0}")]
    BadChanges(String),
    /// Details that are not what the protocol allows.
    #[error("details: {0}")]
    BadDetails(String),
    /// Another change was recorded under the same number.
    #[error("number {0} of this log was used for another change: a copy or an old backup of this machine?")]
    NumberReused(u64),
    /// Another result was recorded for the same order.
    #[error("another result was recorded for the order {0}")]
    ResultConflict(String),
}

impl Refusal {
    /// Whether the device has been set back to an earlier state of itself.
    pub fn is_set_back(&self) -> bool {
        matches!(self, Self::CounterBackwards { .. } | Self::CounterReused(_))
    }

    /// The reason code on the wire and in the audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "Unreadable",
            Self::Unverified(_) => "BadSignature",
            Self::OtherDevice { .. } => "OtherDevice",
            Self::OtherForm => "OtherForm",
            Self::CounterBackwards { .. } => COUNTER_BACKWARDS,
            Self::CounterReused(_) => COUNTER_REUSED,
            Self::SoftwareMismatch { .. } => "SoftwareMismatch",
            Self::OverLimit(_) | Self::BadChanges(_) | Self::BadDetails(_) => "OverLimit",
            Self::NumberReused(_) => NUMBER_REUSED,
            Self::ResultConflict(_) => "ResultConflict",
        }
    }
}

/// A believed report.
#[derive(Debug)]
pub struct BelievedReport {
    /// What it says.
    pub report: Report,
    /// The form in which it is kept.
    pub stored: StoredReport,
    /// The software list, if it came along.
    pub software: Option<Software>,
}

/// What a session remembers of the last report that was believed: the report itself is in the store, and is several times as large as
/// everything else that a session needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Digest of its payload.
    pub digest: String,
    /// Its counter.
    pub counter: u64,
    /// Digest of the software list that it speaks of.
    pub software_digest: String,
    /// The device's word for it.
    pub signature: Signature,
}

impl Kept {
    /// Of a report that was believed.
    pub fn of(report: &Report, stored: &StoredReport) -> Result<Self, Refusal> {
        let [signature] = stored.envelope.signatures.as_slice() else { return Err(Refusal::OtherForm) };
        Ok(Self {
            digest: stored.digest.clone(),
            counter: stored.counter,
            software_digest: report.software_digest.clone(),
            signature: signature.clone(),
        })
    }
}

/// A report on the way in.
#[derive(Debug)]
pub enum IncomingReport {
    /// Byte for byte the one that is kept; nothing needs to be verified again.
    Unchanged {
        /// The software list, if it came along.
        software: Option<Software>,
    },
    /// Another one, believed.
    Changed(Box<BelievedReport>),
}

/// Reads and judges a report of `device`, of which `kept` is the last one from the same key.
pub fn read_report(
    envelope: &[u8],
    software: &[u8],
    key: &PublicKey,
    device: &DeviceRef,
    kept: Option<&Kept>,
    limits: &Limits,
) -> Result<IncomingReport, Refusal> {
    let envelope: Envelope<Report> = parse(envelope)?;
    let digest = envelope.digest();
    if let Some(kept) = kept.filter(|kept| kept.digest == digest) {
        let software = match software {
            [] => None,
            bytes => Some(read_software(bytes, &kept.software_digest)?),
        };
        return Ok(IncomingReport::Unchanged { software });
    }
    let report = open(&envelope, key)?;
    this_device(device, &report.device)?;
    if let Some(kept) = kept {
        if report.counter < kept.counter {
            return Err(Refusal::CounterBackwards { found: report.counter, kept: kept.counter });
        }
        if report.counter == kept.counter {
            return Err(Refusal::CounterReused(report.counter));
        }
    }
    limits.check_report(&report)?;
    let software = if software.is_empty() { None } else { Some(read_software(software, &report.software_digest)?) };
    let stored = StoredReport { counter: report.counter, digest, envelope };
    Ok(IncomingReport::Changed(Box::new(BelievedReport { report, stored, software })))
}

/// Reads and judges a result of `device`.
pub fn read_result(
    envelope: &[u8],
    key: &PublicKey,
    device: &DeviceRef,
    limits: &Limits,
) -> Result<(InstallResult, Envelope<InstallResult>), Refusal> {
    let envelope: Envelope<InstallResult> = parse(envelope)?;
    let result = open(&envelope, key)?;
    this_device(device, &result.device)?;
    limits.check_result(&result, &envelope)?;
    Ok((result, envelope))
}

/// Reads and judges changes of `device`.
pub fn read_changes(
    envelope: &[u8],
    key: &PublicKey,
    device: &DeviceRef,
) -> Result<(Changes, Envelope<Changes>), Refusal> {
    let envelope: Envelope<Changes> = parse(envelope)?;
    let changes = open(&envelope, key)?;
    this_device(device, &changes.device)?;
    changes.check().map_err(Refusal::BadChanges)?;
    Ok((changes, envelope))
}

/// Reads and judges what `device` is made of.
pub fn read_details(envelope: &[u8], key: &PublicKey, device: &DeviceRef) -> Result<Envelope<Details>, Refusal> {
    let envelope: Envelope<Details> = parse(envelope)?;
    let details = open(&envelope, key)?;
    this_device(device, &details.device)?;
    details.check().map_err(Refusal::BadDetails)?;
    Ok(envelope)
}

fn parse<T: Document>(bytes: &[u8]) -> Result<Envelope<T>, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::Unreadable(error.to_string()))
}

/// Opens an envelope whose payload must be the canonical form of the document: the resource keeps the document and the
/// signature, and whoever reads it puts the two together again.
fn open<T: Document>(envelope: &Envelope<T>, key: &PublicKey) -> Result<T, Refusal> {
    let document = envelope.open(key)?;
    let [signature] = envelope.signatures.as_slice() else { return Err(Refusal::OtherForm) };
    let again = Envelope::reassemble(&document, signature.clone()).map_err(|_| Refusal::OtherForm)?;
    if again.payload == envelope.payload { Ok(document) } else { Err(Refusal::OtherForm) }
}

fn this_device(expected: &DeviceRef, found: &DeviceRef) -> Result<(), Refusal> {
    if expected == found {
        Ok(())
    } else {
        Err(Refusal::OtherDevice { expected: expected.clone(), found: found.clone() })
    }
}

fn read_software(bytes: &[u8], expected: &str) -> Result<Software, Refusal> {
    let software: Software =
        serde_json::from_slice(bytes).map_err(|error| Refusal::Unreadable(format!("software: {error}")))?;
    let found = canonical::digest_of(&software).map_err(|error| Refusal::Unreadable(format!("software: {error}")))?;
    if found != expected {
        return Err(Refusal::SoftwareMismatch { expected: expected.to_owned(), found });
    }
    limits::check_software(&software)?;
    Ok(software)
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::report::Package;

    use super::*;
    use crate::gateway::testing;

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Wider {
        #[serde(flatten)]
        report: Report,
        new: u8,
    }

    impl Document for Wider {
        const TYPE: &'static str = Report::TYPE;
    }

    fn seal(report: &Report, key: &PrivateKey) -> (Vec<u8>, Kept) {
        let envelope = Envelope::seal(report, key).unwrap();
        let bytes = serde_json::to_vec(&envelope).unwrap();
        let stored = StoredReport { digest: envelope.digest(), counter: report.counter, envelope };
        (bytes, Kept::of(report, &stored).unwrap())
    }

    fn read(bytes: &[u8], software: &[u8], key: &PrivateKey, kept: Option<&Kept>) -> Result<&'static str, Refusal> {
        let device = testing::report("acme", "web").device;
        match read_report(bytes, software, &key.public(), &device, kept, &Limits::new().unwrap())? {
            IncomingReport::Unchanged { .. } => Ok("unchanged"),
            IncomingReport::Changed(_) => Ok("changed"),
        }
    }

    #[test]
    fn the_first_report_is_new_and_its_repetition_is_not() {
        let key = PrivateKey::generate();
        let (bytes, kept) = seal(&testing::report("acme", "web"), &key);
        assert_eq!(read(&bytes, b"", &key, None), Ok("changed"));
        assert_eq!(read(&bytes, b"", &key, Some(&kept)), Ok("unchanged"));
    }

    #[test]
    fn a_report_by_another_key_or_of_another_device_is_refused() {
        let key = PrivateKey::generate();
        let (bytes, _) = seal(&testing::report("acme", "web"), &PrivateKey::generate());
        assert_eq!(read(&bytes, b"", &key, None).unwrap_err().reason(), "BadSignature");
        let (bytes, _) = seal(&testing::report("acme", "db"), &key);
        assert_eq!(read(&bytes, b"", &key, None).unwrap_err().reason(), "OtherDevice");
        let (bytes, _) = seal(&testing::report("other", "web"), &key);
        assert_eq!(read(&bytes, b"", &key, None).unwrap_err().reason(), "OtherDevice");
    }

    #[test]
    fn a_counter_only_goes_up() {
        let key = PrivateKey::generate();
        let mut report = testing::report("acme", "web");
        report.counter = 5;
        let (_, kept) = seal(&report, &key);
        report.boot_id = "another".into();
        let mut attempt = |counter| {
            report.counter = counter;
            read(&seal(&report, &key).0, b"", &key, Some(&kept))
        };
        assert_eq!(attempt(4).unwrap_err().reason(), "CounterBackwards");
        assert_eq!(attempt(5).unwrap_err().reason(), "CounterReused");
        assert_eq!(attempt(6), Ok("changed"));
    }

    #[test]
    fn a_document_with_more_fields_than_known_is_refused() {
        use base64::Engine as _;
        let key = PrivateKey::generate();
        let wider = Wider { report: testing::report("acme", "web"), new: 1 };
        let bytes = serde_json::to_vec(&Envelope::seal(&wider, &key).unwrap()).unwrap();
        assert_eq!(read(&bytes, b"", &key, None), Err(Refusal::OtherForm));
        // A payload in another encoding of the same document likewise.
        let (bytes, _) = seal(&testing::report("acme", "web"), &key);
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let payload = base64::engine::general_purpose::STANDARD.encode(b"{}");
        value["payload"] = payload.into();
        assert!(read(&serde_json::to_vec(&value).unwrap(), b"", &key, None).is_err());
    }

    #[test]
    fn software_must_be_the_one_that_was_signed() {
        let key = PrivateKey::generate();
        let software = Software {
            packages: vec![Package {
                name: "a".into(),
                arch: "all".into(),
                version: "1".into(),
                source: "a".into(),
                source_version: None,
            }],
        };
        let bytes = serde_json::to_vec(&software).unwrap();
        let mut report = testing::report("acme", "web");
        assert_eq!(read(&seal(&report, &key).0, &bytes, &key, None).unwrap_err().reason(), "SoftwareMismatch");
        report.software_digest = canonical::digest_of(&software).unwrap();
        let (envelope, kept) = seal(&report, &key);
        assert_eq!(read(&envelope, &bytes, &key, None), Ok("changed"));
        assert_eq!(read(&envelope, &bytes, &key, Some(&kept)), Ok("unchanged"));
        assert_eq!(read(&envelope, b"{\"packages\":[]}", &key, Some(&kept)).unwrap_err().reason(), "SoftwareMismatch");
    }
}
