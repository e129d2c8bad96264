//! `MaintenanceWindow`: when something may be done.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Recurring times in which devices may be changed.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "patchwarden.io",
    version = "v1alpha1",
    kind = "MaintenanceWindow",
    plural = "maintenancewindows",
    shortname = "mw",
    category = "patching",
    namespaced,
    status = "MaintenanceWindowStatus",
    derive = "PartialEq",
    doc = "Recurring times in which devices may be changed. Local times that do not exist or exist twice are read as RFC 5545 section 3.3.5 reads them; durations are elapsed time.",
    printcolumn(name = "Time zone", type_ = "string", json_path = ".spec.timeZone"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".spec.duration"),
    printcolumn(name = "Active", type_ = "boolean", json_path = ".status.active"),
    printcolumn(name = "Until", type_ = "string", json_path = ".status.currentEnd"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextStart"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.cutoff) || duration(self.cutoff) < duration(self.duration)")
    .message("cutoff must be shorter than duration: otherwise nothing could ever start").field_path(".cutoff"))]
pub struct MaintenanceWindowSpec {
    /// IANA time zone such as `Europe/Berlin`, or `Device` for each device's own (`spec.timeZone` of the device; a
    /// device without one is blocked).
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self == 'Device' || (self != 'Local' && !self.matches('^[+-]') && timestamp('2026-01-01T00:00:00Z').getHours(self) >= 0)")
        .message("must be an IANA time zone such as Europe/Berlin, or Device"))]
    pub time_zone: String,
    /// When it opens: any of these.
    #[schemars(length(min = 1, max = 16))]
    pub schedules: Vec<Schedule>,
    /// How long it stays open, in hours and minutes: `4h`, `1h30m`. At most 168 h.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')")
        .message("must be from 1m to 168h"))]
    pub duration: String,
    /// Nothing new starts in the last part of the window, this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s')").message("must be a duration such as 30m"))]
    pub cutoff: Option<String>,
    /// Freezes: the window is closed from `from` to `to`, whatever the schedules say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub exclusions: Vec<Exclusion>,
}

/// When a window opens: exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("[has(self.monthly), has(self.weekly), has(self.daily), has(self.once), has(self.cron)].filter(x, x).size() == 1")
    .message("give exactly one of monthly, weekly, daily, once and cron"))]
pub struct Schedule {
    /// On a weekday of the month, or some days before or after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly: Option<Monthly>,
    /// On days of the week.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<Weekly>,
    /// Every day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<Daily>,
    /// Once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<Once>,
    /// By a cron expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
}

/// "Four days after the second Tuesday": `{week: Second, weekday: Tuesday, offsetDays: 4, at: "22:00"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Monthly {
    /// Which one of the month.
    pub week: Week,
    /// The weekday.
    pub weekday: Weekday,
    /// Days after it; negative for before, none where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -27, max = 27))]
    pub offset_days: Option<i32>,
    /// Local time, `HH:MM`.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub at: String,
}

/// Which weekday of a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Week {
    /// The first.
    First,
    /// The second.
    Second,
    /// The third.
    Third,
    /// The fourth.
    Fourth,
    /// The last.
    Last,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

/// On days of the week.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Weekly {
    /// The days.
    #[schemars(length(min = 1, max = 7))]
    pub weekdays: Vec<Weekday>,
    /// Local time, `HH:MM`.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub at: String,
}

/// Every day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Daily {
    /// Local time, `HH:MM`.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub at: String,
}

/// Once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Once {
    /// Local date and time, `2026-12-24T22:00`.
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    #[x_kube(validation = Rule::new("timestamp(self + ':00Z').getFullYear() >= 1970").message("must be an existing date and time such as 2026-12-24T22:00"))]
    pub at: String,
}

/// By a cron expression. It names local times: of a time that exists twice only the first counts, also where it fires
/// every hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cron {
    /// The five fields of crontab(5): minute, hour, day of the month, month, day of the week. `30 2 * * 1-5` is half
    /// past two from Monday to Friday. Numbers, names (`MON`, `JAN`), `*`, ranges, lists and steps (`*/n`, `a-b/n`).
    /// Where the day of the month and that of the week are both restricted, either suffices; `*/n` for one of them
    /// beside a restriction of the other is refused, since crons differ there, and so is a day that never comes.
    #[schemars(length(min = 9, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z*,/-]+( +[0-9A-Za-z*,/-]+){4}$')")
        .message("must be five fields of digits, names, and * , - /: minute, hour, day of the month, month, day of the week, such as 30 2 * * 1-5"))]
    pub expression: String,
}

/// A freeze.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("timestamp(self.from) < timestamp(self.to)").message("from must be before to"))]
pub struct Exclusion {
    /// Name, shown while it keeps the window closed.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Start.
    #[x_kube(validation = Rule::new("timestamp(self) < timestamp('9999-01-01T00:00:00Z')").message("must be before the year 9999"))]
    pub from: Timestamp,
    /// End.
    #[x_kube(validation = Rule::new("timestamp(self) < timestamp('9999-01-01T00:00:00Z')").message("must be before the year 9999"))]
    pub to: Timestamp,
}

/// What is true of the window. For `timeZone: Device` the times are those of UTC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceWindowStatus {
    /// Whether it is open.
    #[serde(default)]
    pub active: bool,
    /// When it closes, if it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_end: Option<Timestamp>,
    /// When it opens next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start: Option<Timestamp>,
    /// When it closes then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_end: Option<Timestamp>,
    /// When it opens next, and after that: at most five.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub upcoming: Vec<Occurrence>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// From when until when it is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Occurrence {
    /// Start.
    pub start: Timestamp,
    /// End.
    pub end: Timestamp,
}
