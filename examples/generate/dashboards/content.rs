//! What is on each dashboard.
//!
//! Gauges of namespaces come from the leading controller alone, but for the minute in which another one takes over: `max` over
//! replicas counts nothing twice. Counters begin anew with each replica: they are summed.
//!
//! Whether Patchwarden itself is well is told of the worst of several clusters. One that is gone has no series any more: that it had some
//! in the last day stands for it.

#![allow(clippy::too_many_lines, reason = "a dashboard is a list of its panels")]

mod controller;
mod exposure;
mod fleet;
mod rollout;

use super::{Dashboard, Panel, Query, Unit, View};

type Steps = &'static [(&'static str, Option<f64>)];

const NONE: Steps = &[];
const NEVER: Steps = &[("green", None), ("red", Some(1.0))];
const RATHER_NOT: Steps = &[("green", None), ("yellow", Some(1.0))];
const ONE: Steps = &[("red", None), ("green", Some(1.0))];
const MOST: Steps = &[("red", None), ("yellow", Some(0.8)), ("green", Some(0.95))];
const FEW: Steps = &[("green", None), ("yellow", Some(0.05)), ("red", Some(0.1))];
/// Seconds: of a pass.
const SOON: Steps = &[("green", None), ("yellow", Some(300.0)), ("red", Some(600.0))];
/// Seconds: a week, two weeks.
const WEEKS: Steps = &[("green", None), ("yellow", Some(604_800.0)), ("red", Some(1_209_600.0))];
/// Seconds: two days, a week.
const DAYS: Steps = &[("green", None), ("yellow", Some(172_800.0)), ("red", Some(604_800.0))];

pub(super) fn all() -> [Dashboard; 4] {
    [fleet::dashboard(), rollout::dashboard(), exposure::dashboard(), controller::dashboard()]
}

fn panel(
    view: View,
    unit: Unit,
    title: &'static str,
    about: &'static str,
    queries: &[(&'static str, &'static str)],
) -> Panel {
    let queries = queries.iter().map(|(expression, legend)| Query { expression, legend }).collect();
    Panel { title, about, view, unit, queries, steps: NONE, alert: None }
}

impl Panel {
    fn steps(self, steps: Steps) -> Self {
        Self { steps, ..self }
    }

    fn alert(self, alert: &'static str) -> Self {
        Self { alert: Some(alert), ..self }
    }
}
