//! What a device has sent.

use std::time::Duration;

use patchwarden_protocol::agent_v1::{self as wire, from_agent::Message as Inbound, to_agent::Message as Outbound};
use patchwarden_protocol::canonical;
use patchwarden_protocol::delta::SoftwareDelta;
use patchwarden_protocol::grant::Purpose;
use patchwarden_protocol::report::{Report, Software};
use tokio::time::Instant;

use super::end::End;
use super::{Session, report};
use crate::api::device_inventory::GrantRequest;
use crate::gateway::asking::Asking;
use crate::gateway::identity::Identity;
use crate::gateway::orders::Line;
use crate::gateway::pending::HOLD;
use crate::gateway::report::{BelievedReport, IncomingReport, Kept, Refusal};
use crate::gateway::turns::Turn;
use crate::gateway::{clean, limits, replicas, tail, traces};
use crate::shell;
use crate::store::{ChangesRecording, Recording};
use crate::telemetry::trace_id;

/// Kept of what a package manager printed: its tail says why it failed.
const MAX_OUTPUT: usize = 64 * 1024;

/// The maximum of `grantRequest.orderDigest` and `.nonce` in the resource's schema.
const MAX_DIGEST: usize = 71;
const MAX_NONCE: usize = 64;

impl Session {
    /// Receives what is to be kept, in its turn.
    pub(super) async fn keep(&mut self, message: Inbound, turn: Turn) -> Result<(), End> {
        self.turn = Some(turn);
        let received = match self.prove().await {
            Ok(()) => self.receive(message).await,
            Err(end) => Err(end),
        };
        self.turn = None;
        received
    }

    pub(super) async fn receive(&mut self, message: Inbound) -> Result<(), End> {
        match message {
            Inbound::Hello(_) => Err(End::Protocol("a second Hello")),
            Inbound::Report(report) => self.report(&report).await,
            Inbound::Progress(progress) => self.progress(&progress).await,
            Inbound::GrantRequest(request) => self.grant_request(request).await,
            Inbound::Result(result) => self.result(result).await,
            Inbound::Changes(changes) => self.changes(&changes.envelope).await,
            Inbound::Details(details) => self.details(&details.envelope).await,
        }
    }

    async fn report(&mut self, message: &wire::Report) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        let limits = &self.shared.limits;
        let read = report::read_report(&message.envelope, &message.software, key, device, self.kept.as_ref(), limits);
        let outcome = self.shared.metrics.reports.clone();
        let count = |result| outcome.with_label_values(&[result]).inc();
        match read {
            Ok(IncomingReport::Unchanged { software }) => {
                count("unchanged");
                if let Some(software) = software
                    && !self.software_is_known()
                    && let Some(digest) = self.expected_software().cloned()
                {
                    self.shared.store.record_software(device, &software, &digest, shell::now()).await?;
                    self.software_digest = Some(digest);
                }
                Ok(())
            }
            Ok(IncomingReport::Changed(believed)) => {
                count("changed");
                self.believe(*believed, &message.software_delta).await
            }
            Err(refusal) => {
                count("refused");
                // What it knows of itself is older than what it is known by: no orders until it has told anew.
                self.is_set_back |= refusal.is_set_back();
                self.refuse("Report", &refusal).await
            }
        }
    }

    async fn believe(&mut self, believed: BelievedReport, delta: &[u8]) -> Result<(), End> {
        let BelievedReport { report, stored, mut software } = believed;
        if software.is_none() && !delta.is_empty() {
            software = self.changed_software(delta, &report).await?;
        }
        let now = shell::now();
        self.shared.store.record_report(&self.fingerprint, &report, &stored, software.as_ref(), now).await?;
        if software.is_some() {
            self.software_digest = Some(report.software_digest.clone());
        }
        let kept = match Kept::of(&report, &stored) {
            Ok(kept) => kept,
            Err(refusal) => return self.refuse("Report", &refusal).await,
        };
        self.pending.report = Some(Box::new((report, kept.signature.clone())));
        self.kept = Some(kept);
        if std::mem::take(&mut self.is_set_back) {
            self.release().await?;
        }
        let hold = if self.is_busy() { HOLD } else { Duration::ZERO };
        self.pending.schedule(Instant::now() + hold);
        if !self.software_is_known() {
            self.ask_for_software().await?;
        }
        Ok(())
    }

    /// Asks for the report with all software, unless others are asked before: whether the report will come with this now. What it was asked for
    /// before may have been overtaken.
    pub(super) async fn ask_for_software(&mut self) -> Result<bool, End> {
        if matches!(self.asking, Asking::No) {
            self.asking = Asking::begin(&self.shared.asks);
        }
        let is_asked = matches!(self.asking, Asking::Asked { .. });
        if is_asked {
            self.ask_for_report(true).await?;
        }
        Ok(is_asked)
    }

    /// It is this device's turn to be asked for its software, or it has not sent it for too long.
    pub(super) async fn asked_in_turn(&mut self, turn: Option<Turn>) -> Result<(), End> {
        self.asking = Asking::No;
        let Some(turn) = turn.filter(|_| !self.software_is_known()) else { return Ok(()) };
        self.asking = Asking::asked(turn);
        self.ask_for_report(true).await
    }

    pub(super) async fn ask_for_report(&mut self, software: bool) -> Result<(), End> {
        self.send(Outbound::SendReport(wire::SendReport { scan: false, software })).await
    }

    async fn progress(&mut self, message: &wire::Progress) -> Result<(), End> {
        let device = &self.identity.device;
        let Some(run) = self.shared.orders.find(device, &message.order_digest) else { return Ok(()) };
        let line = Line { time: shell::now(), phase: clean(&message.phase, 32), text: clean(&message.text, 1000) };
        let kept = format!("{} {} {}", line.time, line.phase, line.text);
        if self.may_spend(|spending| &mut spending.lines) {
            replicas::show(&self.shared, device, &run, &line).await?;
        }
        if run.progress(line) && self.may_spend(|spending| &mut spending.phases) {
            self.shared.store.record_progress(device, &message.order_digest, &kept).await?;
        }
        Ok(())
    }

    async fn grant_request(&mut self, message: wire::GrantRequest) -> Result<(), End> {
        let purpose = match message.purpose() {
            wire::GrantPurpose::Act => Purpose::Act,
            wire::GrantPurpose::Restart => Purpose::Restart,
        };
        let wire::GrantRequest { order_digest, nonce, purpose: _ } = message;
        let printable =
            |text: &str, max| !text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_graphic());
        if !printable(&order_digest, MAX_DIGEST) || !printable(&nonce, MAX_NONCE) {
            return self.tell("GrantRequest", "OverLimit", "order_digest or nonce is empty or too long").await;
        }
        let request = GrantRequest { order_digest, nonce, purpose };
        self.asked = Some(request.clone());
        self.pending.grant = Some(request);
        self.pending.schedule(Instant::now());
        Ok(())
    }

    async fn result(&mut self, message: wire::Result) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        let received = shell::now();
        let counter = self.shared.metrics.results.clone();
        let count = |result| counter.with_label_values(&[result]).inc();
        let (result, envelope) = match report::read_result(&message.envelope, key, device, &self.shared.limits) {
            Ok(read) => read,
            Err(refusal) => {
                count("refused");
                return self.refuse("Result", &refusal).await;
            }
        };
        let output = tail(&message.output, MAX_OUTPUT);
        let recording = self.shared.store.record_result(device, &result, &envelope, output, shell::now()).await?;
        match recording {
            recording @ (Recording::New | Recording::Unordered) => {
                count("new");
                tracing::info!(%device, order = %result.order_digest, sequence = %result.sequence,
                    outcome = ?result.outcome, trace_id = trace_id(&result.order_digest), "result recorded");
                // A device has no say in the traces of other orders than its own.
                if recording == Recording::New {
                    traces::recorded(&self.shared.traces, &result, self.skew, received);
                }
            }
            Recording::Same => count("repeated"),
            Recording::Conflict => {
                count("refused");
                return self.refuse("Result", &Refusal::ResultConflict(result.order_digest)).await;
            }
        }
        if let Some(run) = self.shared.orders.find(device, &result.order_digest) {
            match serde_json::to_vec(&result) {
                Ok(json) => run.finish(json),
                // The runner finds it in the store when it asks again.
                Err(error) => tracing::error!(%device, %error, "a result cannot be handed to its runner"),
            }
        }
        if self.asked.as_ref().is_some_and(|asked| asked.order_digest == result.order_digest) {
            self.asked = None;
        }
        if self.pending.grant.as_ref().is_some_and(|asked| asked.order_digest == result.order_digest) {
            self.pending.grant = None;
        }
        self.pending.result = Some(Box::new((result, envelope)));
        self.pending.schedule(Instant::now());
        Ok(())
    }

    /// Keeps what has changed among the device's packages. It goes to the store alone.
    async fn changes(&mut self, envelope: &[u8]) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        let (changes, envelope) = match report::read_changes(envelope, key, device) {
            Ok(read) => read,
            Err(refusal) => return self.refuse("Changes", &refusal).await,
        };
        match self.shared.store.record_changes(&changes, &envelope, shell::now()).await? {
            ChangesRecording::Kept(new) => {
                tracing::debug!(%device, new, "changes recorded");
                let Some(last) = changes.changed.last() else { return Ok(()) };
                let recorded = wire::ChangesRecorded { log: last.log.clone(), number: last.last() };
                self.send(Outbound::ChangesRecorded(recorded)).await
            }
            ChangesRecording::Reused(number) => self.refuse("Changes", &Refusal::NumberReused(number)).await,
        }
    }

    /// Keeps what the device is made of. It goes to the store alone.
    async fn details(&mut self, envelope: &[u8]) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        match report::read_details(envelope, key, device) {
            Ok(details) => {
                Ok(self.shared.store.record_details(device, &self.fingerprint, &details, shell::now()).await?)
            }
            Err(refusal) => self.refuse("Details", &refusal).await,
        }
    }

    /// The software list that a change of the known one leads to, if it is the one that the report speaks of.
    async fn changed_software(&self, delta: &[u8], report: &Report) -> Result<Option<Software>, End> {
        let delta = match serde_json::from_slice::<SoftwareDelta>(delta) {
            Ok(delta) if self.software_digest.as_ref() == Some(&delta.from) => delta,
            // Of another list, or not to be read: the whole list is asked for.
            _ => return Ok(None),
        };
        let software = delta.applied(self.shared.store.software(&self.identity.device).await?);
        let digest = canonical::digest_of(&software).unwrap_or_default();
        Ok(Some(software)
            .filter(|software| digest == report.software_digest && limits::check_software(software).is_ok()))
    }
}
