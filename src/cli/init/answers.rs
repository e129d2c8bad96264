//! What is asked, what may be answered, and what is recommended, with the reason.

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;

use crate::gateway::identity::is_label;

/// What was given by flags.
#[derive(Clone, Debug, Default, Args)]
pub struct Given {
    /// The client: a namespace of its own, with its devices, policies and rights.
    #[arg(long, value_name = "NAME")]
    pub client: Option<String>,
    /// The time zone of the windows (IANA, such as Europe/Berlin), or `Device` for each device's own.
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
    /// What the client has.
    #[arg(long, value_enum)]
    pub machines: Option<Machines>,
    /// What is approved without a person.
    #[arg(long, value_enum)]
    pub approve: Option<Approve>,
    /// When servers are patched.
    #[arg(long, value_enum)]
    pub server_window: Option<ServerWindow>,
    /// When workstations are patched.
    #[arg(long, value_enum)]
    pub workstation_window: Option<WorkstationWindow>,
    /// Whether some devices get updates days before all others (`--pilot=false`: none).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub pilot: Option<bool>,
    /// Whether devices are restarted.
    #[arg(long, value_enum)]
    pub restart: Option<Restart>,
    /// Whether anything is installed from the first day on.
    #[arg(long, value_enum)]
    pub start: Option<Start>,
}

/// All of it, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    pub client: String,
    pub time_zone: String,
    pub machines: Machines,
    pub approve: Approve,
    pub server_window: ServerWindow,
    pub workstation_window: WorkstationWindow,
    pub pilot: bool,
    pub restart: Restart,
    pub start: Start,
}

/// An answer that is chosen from a few: the first is recommended.
pub(super) trait Choice: ValueEnum + Copy + PartialEq {
    /// What is asked.
    const QUESTION: &'static str;
    /// Why what is recommended is.
    const REASON: &'static str;
    /// In words.
    fn words(self) -> &'static str;

    /// The first.
    fn recommended() -> Self {
        Self::value_variants()[0]
    }
}

/// What the client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machines {
    /// Servers and workstations.
    Both,
    /// Servers alone.
    Servers,
    /// Workstations alone.
    Workstations,
}

/// What is approved without a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Approve {
    /// Security updates; on workstations the others a week later.
    Security,
    /// Security updates, and the others two weeks later.
    Everything,
    /// Nothing: a person approves each.
    ByHand,
}

/// When servers are patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServerWindow {
    /// Four days after Patch Tuesday, Saturday at 22:00.
    PatchTuesday,
    /// On Sundays at 02:00.
    Weekly,
    /// Every night at 02:00.
    Nightly,
}

/// When workstations are patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WorkstationWindow {
    /// From Monday to Friday at noon, when they are on.
    Noon,
    /// Every night at 22:00.
    Nightly,
    /// Four days after Patch Tuesday, Saturday at 22:00.
    PatchTuesday,
}

/// Whether devices are restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    /// Where an update needs it, in the window, after a warning.
    IfRequired,
    /// Never: a person restarts them.
    Never,
}

/// Whether anything is installed from the first day on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Start {
    /// No: compliance is reported, and one line is changed later.
    Audit,
    /// Yes.
    Install,
}

impl Choice for Machines {
    const QUESTION: &'static str = "Which machines does the client have?";
    const REASON: &'static str = "Servers and workstations differ in when they may be changed, so each kind has a group, a window and a policy of its own.";

    fn words(self) -> &'static str {
        match self {
            Self::Both => "servers and workstations",
            Self::Servers => "servers alone",
            Self::Workstations => "workstations alone",
        }
    }
}

impl Choice for Approve {
    const QUESTION: &'static str = "What is approved without a person?";
    const REASON: &'static str = "Known holes are attacked within days: security updates should wait for nobody. Everything else gains little from haste.";

    fn words(self) -> &'static str {
        match self {
            Self::Security => "security updates; on workstations the others a week later",
            Self::Everything => "security updates, and the others two weeks later",
            Self::ByHand => "nothing: a person approves each update",
        }
    }
}

impl Choice for ServerWindow {
    const QUESTION: &'static str = "When are servers patched?";
    const REASON: &'static str = "Four days after Patch Tuesday other people's trouble with an update is known, and a Saturday night disturbs few.";

    fn words(self) -> &'static str {
        match self {
            Self::PatchTuesday => "four days after Patch Tuesday, Saturday from 22:00 to 02:00",
            Self::Weekly => "on Sundays from 02:00 to 06:00",
            Self::Nightly => "every night from 02:00 to 06:00",
        }
    }
}

impl Choice for WorkstationWindow {
    const QUESTION: &'static str = "When are workstations patched?";
    const REASON: &'static str =
        "At night most of them are off. Those that miss their window for a week catch up once they are on mains power.";

    fn words(self) -> &'static str {
        match self {
            Self::Noon => "from Monday to Friday from 12:00 to 14:00",
            Self::Nightly => "every night from 22:00 to 02:00",
            Self::PatchTuesday => "four days after Patch Tuesday, Saturday from 22:00 to 02:00",
        }
    }
}

impl Choice for Restart {
    const QUESTION: &'static str = "May machines be restarted?";
    const REASON: &'static str =
        "A kernel or a library that is updated and still runs in its old version protects nobody.";

    fn words(self) -> &'static str {
        match self {
            Self::IfRequired => "where an update needs it, in the window, after a warning",
            Self::Never => "never: a person restarts them",
        }
    }
}

impl Choice for Start {
    const QUESTION: &'static str = "Is anything installed from the first day on?";
    const REASON: &'static str =
        "In mode Audit you see what would be installed where before anything is. One line per policy turns it on.";

    fn words(self) -> &'static str {
        match self {
            Self::Audit => "no: mode Audit, which reports and changes nothing",
            Self::Install => "yes: mode Install",
        }
    }
}

/// Why some devices come first.
pub(super) const PILOT_REASON: &str =
    "A few machines whose owners know of it show what an update breaks while it can still be declined for all others.";

/// Why a client has a namespace.
pub(super) const CLIENT_REASON: &str =
    "A client is a namespace: nothing in it sees or changes another client's devices.";

/// Why a time zone is named.
pub(super) const TIME_ZONE_REASON: &str = "Windows are local time, so that they stay at night when the clocks change. `Device` takes each device's own spec.timeZone.";

/// A time zone that windows understand, by its name.
pub(super) fn checked_time_zone(text: &str) -> anyhow::Result<()> {
    let is_known = text == "Device" || (text.contains('/') || text == "UTC") && TimeZone::get(text).is_ok();
    ensure!(is_known, "--time-zone {text:?} is no IANA time zone such as Europe/Berlin, not UTC, and not Device");
    Ok(())
}

/// A name that a namespace can have.
pub(super) fn checked_client(text: &str) -> anyhow::Result<()> {
    ensure!(is_label(text), "--client {text:?} is no name of a namespace (lower-case letters, digits and hyphens)");
    ensure!(text != "patchwarden-system", "--client: patchwarden-system is Patchwarden's own namespace");
    Ok(())
}

impl Given {
    /// With what is recommended in the place of what was not given. The client's name is nobody's to guess.
    pub(super) fn recommended(self) -> anyhow::Result<Answers> {
        let Self { client, time_zone, machines, approve, server_window, workstation_window, pilot, restart, start } =
            self;
        let Some(client) = client else { bail!("--client is not given, and nobody can be asked") };
        let approve = approve.unwrap_or_else(Approve::recommended);
        let answers = Answers {
            client,
            time_zone: time_zone.unwrap_or_else(local_time_zone),
            machines: machines.unwrap_or_else(Machines::recommended),
            approve,
            server_window: server_window.unwrap_or_else(ServerWindow::recommended),
            workstation_window: workstation_window.unwrap_or_else(WorkstationWindow::recommended),
            // Where a person approves each update, that person says who comes first.
            pilot: pilot.unwrap_or(approve != Approve::ByHand),
            restart: restart.unwrap_or_else(Restart::recommended),
            start: start.unwrap_or_else(Start::recommended),
        };
        checked_client(&answers.client)?;
        checked_time_zone(&answers.time_zone)?;
        Ok(answers)
    }
}

/// This machine's, if it has one that others know by name.
pub(super) fn local_time_zone() -> String {
    let name = TimeZone::system().iana_name().map(str::to_owned);
    let name = name.filter(|name| name != "Etc/UTC");
    name.filter(|name| checked_time_zone(name).is_ok()).unwrap_or_else(|| "UTC".to_owned())
}
