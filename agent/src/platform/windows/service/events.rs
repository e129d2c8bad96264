//! The event log: warnings and errors go to `Application` too, where monitoring looks for them.
//!
//! Windows keeps that log below a size of its own, 20 MiB by default, and overwrites what is oldest. The text of an event is made
//! from a message file of its source: `EventCreate.exe`, which is part of Windows, has one for each of the numbers from 1 to 1000
//! that is the text itself
//! (<https://learn.microsoft.com/windows/win32/eventlog/event-sources>,
//! <https://learn.microsoft.com/windows-server/administration/windows-commands/eventcreate>).

use anyhow::Context as _;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_layer_win_eventlog::EventLogLayer;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;
use windows_registry::LOCAL_MACHINE;

use super::NAME;

/// The sources of the log `Application`.
const SOURCES: &str = r"SYSTEM\CurrentControlSet\Services\EventLog\Application";

/// Relative to this system's directory, wherever it lies.
const MESSAGES: &str = r"%SystemRoot%\System32\EventCreate.exe";

/// `EVENTLOG_ERROR_TYPE`, `EVENTLOG_WARNING_TYPE`, `EVENTLOG_INFORMATION_TYPE`.
const TYPES: u32 = 7;

/// The number of all events: what they are about is in their text, how bad it is in their type.
const EVENT: u32 = 1;

/// Lets the event log know where the texts of this source are.
pub(super) fn register() -> anyhow::Result<()> {
    let set = || {
        let source = LOCAL_MACHINE.create(format!(r"{SOURCES}\{NAME}"))?;
        source.set_expand_string("EventMessageFile", MESSAGES)?;
        source.set_u32("TypesSupported", TYPES)?;
        source.set_u32("CustomSource", 1)
    };
    set().with_context(|| format!("the event source {NAME}"))
}

/// Takes that back, if it is there. What was logged stays, without its texts' frame.
pub(super) fn remove() -> anyhow::Result<()> {
    let is_there = LOCAL_MACHINE.open(format!(r"{SOURCES}\{NAME}")).is_ok();
    if is_there {
        let sources = LOCAL_MACHINE.options().read().write().open(SOURCES);
        sources.and_then(|sources| sources.remove_tree(NAME)).with_context(|| format!("the event source {NAME}"))?;
    }
    Ok(())
}

/// Reports warnings and errors; nothing where the event log cannot be had.
pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> Option<impl Layer<S>> {
    let layer = EventLogLayer::new_with_default_id(NAME, Some(EVENT)).ok()?;
    Some(layer.with_filter(LevelFilter::WARN))
}
