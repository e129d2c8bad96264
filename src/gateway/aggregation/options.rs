//! What may be asked of a list: the parameters of Kubernetes' lists, as far as they mean something here.
//!
//! What is not understood is refused: a selector that is not applied shows too much.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use serde::Deserialize;

use super::records::Place;
use crate::gateway::api::page::Cursor;
use crate::gateway::api::problem::Problem;
use crate::gateway::identity::is_label;

/// The parameters as they are sent. Those that change nothing here are taken: how long a client waits, how its JSON is to look.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Query {
    limit: Option<usize>,
    #[serde(rename = "continue")]
    token: Option<String>,
    field_selector: Option<String>,
    label_selector: Option<String>,
    watch: Option<String>,
    allow_watch_bookmarks: Option<String>,
    send_initial_events: Option<String>,
    resource_version: Option<String>,
    resource_version_match: Option<String>,
    include_object: Option<Include>,
    #[serde(rename = "timeoutSeconds")]
    _timeout_seconds: Option<String>,
    #[serde(rename = "timeout")]
    _timeout: Option<String>,
    #[serde(rename = "pretty")]
    _pretty: Option<String>,
}

/// What of its object a row of a table has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

/// By a field selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Of this device.
    pub device: Option<String>,
    /// Of this name.
    pub name: Option<String>,
    /// Of this namespace.
    pub namespace: Option<String>,
}

/// What is asked for, understood.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Objects at most; none where all are wanted.
    pub limit: Option<usize>,
    /// Where the page begins.
    pub place: Option<Place>,
    /// Which.
    pub selected: Selected,
    /// How rows are to look.
    pub include: Include,
}

impl Query {
    /// For one object: nothing but how it is to look.
    pub fn of_one(self) -> Result<Include, Problem> {
        let options = self.understood()?;
        let is_list = options.limit.is_some() || options.place.is_some() || options.selected != Selected::default();
        if is_list {
            return Err(Problem::bad("query", "limit, continue and selectors are for lists"));
        }
        Ok(options.include)
    }

    /// For a list.
    pub fn understood(self) -> Result<ListOptions, Problem> {
        let is_set = |flag: &Option<String>| flag.as_deref().is_some_and(|it| !matches!(it, "" | "0" | "false"));
        if is_set(&self.watch) || is_set(&self.allow_watch_bookmarks) || is_set(&self.send_initial_events) {
            return Err(Problem::not_watched());
        }
        if self.label_selector.is_some_and(|it| !it.is_empty()) {
            return Err(Problem::bad(
                "labelSelector",
                "these objects have no labels; use fieldSelector, such as status.device=NAME",
            ));
        }
        let no_version = "there are no versions of the store: leave it out";
        if self.resource_version.is_some_and(|it| !matches!(it.as_str(), "" | "0")) {
            return Err(Problem::bad("resourceVersion", no_version));
        }
        if self.resource_version_match.is_some_and(|it| !matches!(it.as_str(), "" | "NotOlderThan")) {
            return Err(Problem::bad("resourceVersionMatch", no_version));
        }
        let token = self.token.filter(|token| !token.is_empty()).map(Cursor::<Place>::from);
        let place = Cursor::read(token.as_ref());
        let place = place
            .map_err(|_| Problem::bad("continue", "must be metadata.continue of the page before, of the same list"))?;
        Ok(ListOptions {
            limit: self.limit.filter(|limit| *limit > 0),
            place,
            selected: Selected::of(&self.field_selector.unwrap_or_default())?,
            include: self.include_object.unwrap_or_default(),
        })
    }
}

impl Selected {
    /// Reads `status.device=web,metadata.namespace==acme`.
    fn of(selector: &str) -> Result<Self, Problem> {
        let mut selected = Self::default();
        for term in selector.split(',').filter(|term| !term.is_empty()) {
            let no = || {
                Problem::bad("fieldSelector", "knows status.device=, metadata.name= and metadata.namespace=, each once")
            };
            let (field, value) = term.split_once('=').ok_or_else(no)?;
            let value = value.strip_prefix('=').unwrap_or(value);
            let place = match field {
                "status.device" if is_label(value) => &mut selected.device,
                "metadata.namespace" if is_label(value) => &mut selected.namespace,
                "metadata.name" if !value.is_empty() => &mut selected.name,
                _ => return Err(no()),
            };
            if place.replace(value.to_owned()).is_some() {
                return Err(no());
            }
        }
        Ok(selected)
    }
}

/// How an answer is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Objects.
    Objects,
    /// A table of `meta.k8s.io/v1`.
    Table,
    /// For discovery: all groups in one answer, of `apidiscovery.k8s.io/v2`.
    Discovery,
}

impl Form {
    /// The first that the caller takes and that is among these.
    pub fn accepted(headers: &HeaderMap, known: &[Self]) -> Result<Self, Problem> {
        let mut ranges = Vec::new();
        for value in headers.get_all(ACCEPT) {
            ranges.extend(value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|it| !it.is_empty()));
        }
        if ranges.is_empty() {
            ranges.push("*/*");
        }
        let found = ranges.into_iter().filter_map(Self::of).find(|form| known.contains(form));
        found.ok_or_else(|| {
            Problem::not_acceptable("Accept: answers are application/json, of lists also as Table of meta.k8s.io/v1")
        })
    }

    fn of(range: &str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "application/*" | "*/*")) {
            return None;
        }
        let (mut kind, mut group, mut version) = (None, None, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name {
                "as" => kind = Some(value),
                "g" => group = Some(value),
                "v" => version = Some(value),
                // How much it is wanted, and in which character set, which is UTF-8.
                _ => {}
            }
        }
        match (kind, group, version) {
            (None, _, _) => Some(Self::Objects),
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => Some(Self::Table),
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => Some(Self::Discovery),
            _ => None,
        }
    }
}
