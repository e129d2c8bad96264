//! The audit: who was refused, enrolled, revoked.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::auth::Caller;
use super::page::{Cursor, Limit, Page, Params};
use super::problem::{Problem, Refusals};

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<[i64; 1]>>,
}

/// A line of the audit.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// When.
    pub time: Timestamp,
    /// Who: `device acme/web`, `user alice`, `address 192.0.2.1`.
    pub who: String,
    /// What they tried.
    pub what: String,
    /// On what.
    pub object: String,
    /// What came of it: a code.
    pub outcome: String,
    /// For people.
    pub detail: String,
}

/// Lists the audit of all clients, the newest line first. It takes the right to list `auditrecords.patchwarden.io` in all namespaces.
#[utoipa::path(get, path = "/audit", tag = "audit", params(Filter), responses((status = 200, body = Page<Line>), Refusals))]
pub async fn list(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Result<Json<Page<Line>>, Problem> {
    caller.audit(&door).await?;
    let before = Cursor::read(filter.cursor.as_ref())?.map(|[id]| id);
    let limit = filter.limit.get();
    let found = door.ask(move |store| async move { store.audit_before(before, limit + 1).await }).await?;
    let page = Page::of(found, limit, |(id, _)| [*id]);
    Ok(Json(page.map(|(_, record)| Line {
        time: record.time,
        who: record.who,
        what: record.what,
        object: record.object,
        outcome: record.outcome,
        detail: record.detail,
    })))
}
