//! The record on the runners' door: the controller's alone, who proves itself by its service account's token.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::MAX_RECORD_ENTRIES;
use patchwarden_protocol::record_v1::{ReadRequest, ReadResponse, WriteRequest, WriteResponse};
use tokio::sync::mpsc;
use tonic::Status;

use super::Shared;
use super::identity::is_label;
use super::runner::{NotServed, user_of};
use crate::record::{self, Entries};
use crate::shell;
use crate::store::{Cursor, StoreError};

/// Clocks may differ; what is later than this in the future was decided by a clock that is wrong, and would count for ever.
const MAX_AHEAD: SignedDuration = SignedDuration::from_hours(1);

/// Reads a client's record for the controller: answers whose record it is, once it is clear that the caller may have it.
pub async fn admit_read(shared: &Shared, token: Option<String>, request: &ReadRequest) -> Result<String, Status> {
    let admitted = admit(shared, token, "ReadRecord", &request.namespace).await;
    let namespace = admitted.and_then(|()| namespace(&request.namespace));
    count(shared, "read", namespace.as_ref().err());
    namespace
}

/// Tells all of a client's record, page by page.
pub async fn read(shared: Arc<Shared>, namespace: String, sender: mpsc::Sender<Result<ReadResponse, Status>>) {
    let mut cursor = Some(Cursor::Start);
    while let Some(from) = cursor {
        let page = async {
            Ok::<_, StoreError>((shared.store.identity().await?, shared.store.recall(&namespace, from).await?))
        };
        let page = match page.await {
            Ok((store, (entries, next))) => {
                cursor = next;
                Ok(ReadResponse { store, entries: Some(record::to_wire(entries)) })
            }
            Err(error) => {
                tracing::error!(namespace, %error, "the record cannot be read");
                cursor = None;
                Err(failure(&error))
            }
        };
        if sender.send(page).await.is_err() {
            return; // The caller is gone, and asks again.
        }
    }
}

/// Adds to a client's record.
pub async fn write(shared: &Shared, token: Option<String>, request: WriteRequest) -> Result<WriteResponse, Status> {
    let written = try_write(shared, token, request).await;
    count(shared, "write", written.as_ref().err());
    written
}

async fn try_write(shared: &Shared, token: Option<String>, request: WriteRequest) -> Result<WriteResponse, Status> {
    admit(shared, token, "WriteRecord", &request.namespace).await?;
    let namespace = namespace(&request.namespace)?;
    let now = shell::now();
    let entries = checked(request.entries.unwrap_or_default(), now)?;
    let answer = WriteResponse { store: shared.store.identity().await.map_err(|error| failure(&error))? };
    if entries.is_empty() {
        return Ok(answer);
    }
    match shared.store.record(&namespace, &entries, now).await {
        Ok(()) => Ok(answer),
        Err(error @ StoreError::RecordMoved { .. }) => Err(Status::aborted(error.to_string())),
        Err(error @ StoreError::RecordFull { .. }) => Err(Status::resource_exhausted(error.to_string())),
        Err(error) => {
            tracing::error!(namespace, %error, "the record cannot be written");
            Err(failure(&error))
        }
    }
}

/// A row that cannot be read is a matter of its client; everything else concerns all of them.
fn failure(error: &StoreError) -> Status {
    match error {
        StoreError::Corrupt { .. } => Status::data_loss(error.to_string()),
        _ => Status::unavailable("the gateway's database fails"),
    }
}

/// Only the controller is served.
async fn admit(shared: &Shared, token: Option<String>, what: &str, object: &str) -> Result<(), Status> {
    let mut who = "unknown".to_owned();
    let Err(error) = identify(shared, token, &mut who).await else { return Ok(()) };
    tracing::warn!(%who, %error, "a call to the record is not served");
    let reason = match error {
        NotServed::Unauthenticated(_) => Some("Unauthenticated"),
        NotServed::Denied(_) => Some("PermissionDenied"),
        NotServed::Api(_) | NotServed::Store(_) | NotServed::NoTrust | NotServed::Busy => None,
    };
    if let Some(reason) = reason {
        shared.audit_refusal(&who, what, &super::clean(object, 63), reason, &error.to_string()).await;
    }
    Err(error.status())
}

async fn identify(shared: &Shared, token: Option<String>, who: &mut String) -> Result<(), NotServed> {
    let user = user_of(shared, token).await?;
    let name = user.username.unwrap_or_default();
    let allowed = name == shared.controller_user;
    let refused = format!("the record is {}'s alone, and the token is {name}'s", shared.controller_user);
    *who = format!("user {name}");
    if allowed { Ok(()) } else { Err(NotServed::Denied(refused)) }
}

fn namespace(name: &str) -> Result<String, Status> {
    let invalid = || Status::invalid_argument("namespace: must be the name of a namespace");
    is_label(name).then(|| name.to_owned()).ok_or_else(invalid)
}

/// The entries of a request within its limits.
fn checked(message: patchwarden_protocol::record_v1::Entries, now: Timestamp) -> Result<Entries, Status> {
    let count = message.sightings.len() + message.progress.len() + message.pauses.len();
    if count > MAX_RECORD_ENTRIES {
        return Err(Status::invalid_argument(format!(
            "entries: {count} of them; one request has at most {MAX_RECORD_ENTRIES}"
        )));
    }
    let entries = record::entries(message).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let latest = now.saturating_add(MAX_AHEAD).unwrap_or(Timestamp::MAX);
    match entries.latest() {
        Some(time) if time > latest => Err(Status::invalid_argument(format!(
            "entries: the time {time} is to come; by the gateway's clock it is {now}: set the clocks of controller and gateway"
        ))),
        _ => Ok(entries),
    }
}

fn count(shared: &Shared, call: &str, error: Option<&Status>) {
    let result = match error.map(Status::code) {
        None => "ok",
        Some(tonic::Code::Unavailable | tonic::Code::DataLoss) => "failed",
        Some(_) => "refused",
    };
    shared.metrics.record_calls.with_label_values(&[call, result]).inc();
}
