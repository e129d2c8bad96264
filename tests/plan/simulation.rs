//! Runs a scenario: plans, claims, asks for grants, installs, and writes down what changes and when.
//!
//! The shell around the planner is played as simply as it can be: a claim is there at once, the device asks for its
//! grant (at once, or after `asksAfter`), and its result comes after `takes`. A claim that no result ends is let go when
//! its time is over.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{Catalogue, Cause, Claim, Durations, Measured, Name, Snapshot, UpdateId, UpdateProgress};
use patchwarden_plan::outcome::{
    DecidedBy, DevicePlan, Due, Failed, FailedExpression, Forecast, GroupPlan, Install, Others, Overlap, PolicyPlan,
    Unprovable, UpdatePlan, WindowPlan,
};
use patchwarden_plan::window::Span;
use patchwarden_plan::{Plan, may_act, plan};
use patchwarden_protocol::order::{RESTART, RestartWhen, Sequence, Verb};
use serde_json::{Value, json};

use crate::fleet::in_no_catalogue;
use crate::scenario::{DeviceSpec, Event, Past, Scenario, World};

/// More steps than any scenario should need: it is going round in circles.
const TOO_MANY_STEPS: usize = 2_000;

/// The trace of a scenario.
pub fn run(scenario: Scenario) -> String {
    let Scenario {
        about,
        start,
        end,
        measured,
        remembers,
        windows,
        groups,
        policies,
        devices,
        vulnerabilities,
        events,
    } = scenario;
    let or_empty = |part: Value| if part.is_null() { json!({}) } else { part };
    let world = json!({
        "windows": or_empty(windows),
        "groups": or_empty(groups),
        "policies": or_empty(policies),
        "devices": or_empty(devices),
        "vulnerabilities": vulnerabilities,
    });
    let mut simulation = Simulation {
        world,
        measured,
        remembers,
        past: Past::default(),
        sequences: BTreeMap::new(),
        running: BTreeMap::new(),
        told: BTreeMap::new(),
        trace: format!("# {about}\n"),
    };
    let mut now = start;
    for _ in 0..TOO_MANY_STEPS {
        let next_look = simulation.step(now, &events);
        let next_event = events.iter().map(|event| event.at).filter(|at| *at > now).min();
        let next = simulation.alarms().filter(|at| *at > now).chain(next_look).chain(next_event).min();
        match next.filter(|next| *next <= end) {
            Some(next) => now = next,
            None => return simulation.trace,
        }
    }
    panic!("still not at its end after {TOO_MANY_STEPS} steps:\n{}", simulation.trace);
}

struct Simulation {
    /// As in the scenario, less what was installed.
    world: Value,
    /// Whether it is measured how long installs take.
    measured: bool,
    /// Of how many updates a device tells that it has them by orders.
    remembers: usize,
    past: Past,
    sequences: BTreeMap<String, u32>,
    running: BTreeMap<String, Running>,
    /// The last line about each thing.
    told: BTreeMap<String, String>,
    trace: String,
}

/// What a device does with its claim.
struct Running {
    asks: Timestamp,
    ends: Option<Timestamp>,
}

impl Simulation {
    /// Everything that happens at `now`; when to look again.
    fn step(&mut self, now: Timestamp, events: &[Event]) -> Option<Timestamp> {
        let mut lines = Vec::new();
        for event in events.iter().filter(|event| event.at == now) {
            lines.push(format!("! {}", event.note));
            self.change(&event.change, now);
        }
        self.end_installs(now, &mut lines);
        loop {
            self.ask_for_grants(now, &mut lines);
            let snapshot = self.world().snapshot(&self.past, now);
            let answer = plan(&snapshot, now);
            // Written down before anything follows from it.
            self.past.policies = answer.policies.iter().map(|it| (it.name.clone(), it.progress.clone())).collect();
            let installs: Vec<(String, Install)> = answer
                .devices
                .iter()
                .filter_map(|device| Some((device.name.as_ref().to_owned(), device.install.clone()?)))
                .collect();
            if installs.is_empty() {
                self.remember(&snapshot, &answer);
                self.tell(&answer, &snapshot.updates, &mut lines);
                self.write(now, &lines);
                return answer.next_look;
            }
            for (device, install) in installs {
                self.claim(&device, &install, now, &mut lines);
            }
        }
    }

    /// When something happens of which the planner need not know.
    fn alarms(&self) -> impl Iterator<Item = Timestamp> {
        let asked = self.running.values().map(|running| running.ends.unwrap_or(running.asks));
        let released = self.past.devices.values().filter_map(|history| history.current.as_ref().map(Claim::expires));
        asked.chain(released)
    }

    fn world(&self) -> World {
        serde_json::from_value(self.world.clone()).expect("the scenario is well-formed")
    }

    /// What the status of each device would keep.
    fn remember(&mut self, snapshot: &Snapshot, answer: &Plan) {
        self.past.groups = answer.groups.iter().map(|group| (group.name.clone(), group.seen.to_vec())).collect();
        for (device, planned) in snapshot.devices.iter().zip(&answer.devices) {
            let history = self.past.devices.entry(device.name.to_string()).or_default();
            history.last_group.clone_from(&planned.group);
            history.last_possible.clone_from(&planned.possible_groups);
            history.last_policy.clone_from(&planned.policy);
            history.moved.clone_from(&planned.moved);
            history.eligible = planned.eligible;
            let offers = device.report.as_ref().map(|report| report.offers.as_slice()).unwrap_or_default();
            if device.report.is_ok() {
                let installed = device.report.iter().flat_map(|report| &report.removable);
                let told = offers.iter().map(|offer| &offer.update).chain(installed);
                let told: Vec<&Name> =
                    told.filter_map(|update| snapshot.updates.get(*update)).map(|update| &update.id).collect();
                let restart = device.report.iter().any(|report| report.restart.is_some());
                let checked: Vec<UpdateId> =
                    planned.updates.iter().filter(|it| it.is_checked()).map(|it| it.update).collect();
                history.failures.retain(|it| {
                    told.contains(&&it.update)
                        || (restart && *it.update == *RESTART)
                        || match it.cause {
                            Cause::RolledBack => true,
                            Cause::Check(_) => checked
                                .iter()
                                .any(|update| snapshot.updates.get(*update).is_some_and(|known| known.id == it.update)),
                            Cause::Update | Cause::Other | Cause::Passing => false,
                        }
                });
            }
            history.sightings = offers
                .iter()
                .filter_map(|offer| {
                    let id = snapshot.updates.get(offer.update)?.id.clone();
                    Some((id, offer.first_seen, offer.missing_since))
                })
                .collect();
        }
    }

    fn change(&mut self, change: &Value, now: Timestamp) {
        let online = |world: World| -> BTreeMap<String, bool> {
            world.devices.into_iter().map(|(name, device)| (name, device.online)).collect()
        };
        let before = online(self.world());
        merge(&mut self.world, change);
        for (name, online) in online(self.world()) {
            if before.get(&name) != Some(&online) {
                self.past.devices.entry(name).or_default().online_since = Some(now);
            }
        }
    }

    fn end_installs(&mut self, now: Timestamp, lines: &mut Vec<String>) {
        let specs = self.world().devices;
        for (name, history) in &mut self.past.devices {
            let Some(claim) = history.current.clone() else { continue };
            let ended = self.running.get(name).and_then(|running| running.ends).is_some_and(|ends| ends <= now);
            if !ended && now < claim.expires() {
                continue;
            }
            history.current = None;
            self.running.remove(name);
            if !ended {
                lines.push(format!("{name}: {} let go, nothing was heard of it", claim.sequence));
                let is_server = specs.get(name).is_some_and(DeviceSpec::is_server);
                let cause = if is_server { Cause::Update } else { Cause::Other };
                for id in claim.updates.iter().filter(|_| claim.granted && claim.verb != Verb::Download) {
                    history.fail(id, cause, now);
                }
                continue;
            }
            let cause = match specs.get(name) {
                Some(spec) if spec.cannot_try => Cause::Passing,
                Some(spec) if spec.fails_otherwise => Cause::Other,
                Some(spec) if spec.rolls_back => Cause::RolledBack,
                Some(spec) if spec.check_fails => in_no_catalogue(),
                _ => Cause::Update,
            };
            let fails = specs.get(name).map(|spec| spec.fails.clone()).unwrap_or_default();
            let (failed, installed): (Vec<_>, Vec<_>) =
                claim.updates.into_iter().partition(|id| fails.iter().any(|fails| **fails == **id));
            if claim.verb == Verb::Install {
                history.installed.retain(|id| !installed.contains(id));
                history.installed.splice(0..0, installed.iter().cloned());
                history.installed.truncate(self.remembers);
            }
            let spec = specs.get(name);
            let mut removable = spec.map(|spec| spec.removable.clone()).unwrap_or_default();
            if let (Some(spec), true) = (spec, self.measured && failed.is_empty() && claim.verb == Verb::Install) {
                let seconds = u32::try_from(spec.takes().as_secs()).expect("not that long");
                let kinds = spec.kinds(&installed);
                history.measured.insert(0, Measured { updates: installed.clone(), kinds, seconds, at: now });
                history.measured.truncate(3);
            }
            for id in &installed {
                history.failures.retain(|failure| failure.update != *id);
                let update = match claim.verb {
                    Verb::Restart => {
                        merge(&mut self.world, &json!({"devices": {name: {"restart": "No"}}}));
                        continue;
                    }
                    Verb::Install => Value::Null,
                    Verb::Download => json!({"downloaded": true}),
                    Verb::Uninstall => json!({}),
                };
                merge(&mut self.world, &json!({"devices": {name: {"updates": {(&**id): update}}}}));
                removable.retain(|other| **other != **id);
                if claim.verb == Verb::Install && spec.is_some_and(|spec| spec.takes_back) {
                    removable.push(id.to_string());
                }
            }
            merge(&mut self.world, &json!({"devices": {name: {"removable": removable}}}));
            for id in &failed {
                history.fail(id, cause, now);
                if matches!(cause, Cause::Check(_)) {
                    merge(&mut self.world, &json!({"devices": {name: {"updates": {(&**id): null}}}}));
                }
            }
            if failed.is_empty() && claim.verb == Verb::Install {
                history.failures.retain(|failure| !matches!(failure.cause, Cause::Check(_)));
            }
            let done = match claim.verb {
                Verb::Install => "installed",
                Verb::Download => "downloaded",
                Verb::Uninstall => "took back",
                Verb::Restart => "did",
            };
            lines.push(format!("{name}: {} ends: {done} {installed:?}, failed {failed:?}", claim.sequence));
        }
    }

    fn ask_for_grants(&mut self, now: Timestamp, lines: &mut Vec<String>) {
        let world = self.world();
        let asking = |running: &Running| running.ends.is_none() && running.asks <= now;
        let asking: Vec<String> =
            self.running.iter().filter(|(_, running)| asking(running)).map(|(name, _)| name.clone()).collect();
        for name in asking {
            let answer = may_act(&world.snapshot(&self.past, now), &name, now);
            let history = self.past.devices.entry(name.clone()).or_default();
            let Some(claim) = history.current.as_mut() else { continue };
            let sequence = claim.sequence;
            match answer {
                Ok(()) => {
                    claim.granted = true;
                    let ends = world.devices.get(&name).and_then(|spec| ends(spec, now));
                    // One that never says how it ended asks no more.
                    self.running.remove(&name);
                    if let Some(ends) = ends {
                        self.running.insert(name.clone(), Running { asks: now, ends: Some(ends) });
                    }
                    lines.push(format!("{name}: {sequence} granted"));
                }
                Err(blocked) => {
                    history.current = None;
                    self.running.remove(&name);
                    lines.push(format!("{name}: {sequence} refused: {}: {blocked}", blocked.code()));
                }
            }
        }
    }

    fn claim(&mut self, device: &str, install: &Install, now: Timestamp, lines: &mut Vec<String>) {
        let Install { verb, updates, policy, dependencies, not_after: _, limit, expected, restart, since: _ } = install;
        // No scenario has checks or hooks.
        let not_after = install.start_by(SignedDuration::ZERO, now);
        let number = self.sequences.entry(device.to_owned()).or_default();
        *number += 1;
        let sequence = Sequence { epoch: 1, number: *number };
        let after = match restart.when {
            RestartWhen::Never => String::new(),
            when => format!(", restart {when:?} by {} and within {} s", restart.not_after, restart.within_seconds),
        };
        let takes = if expected == limit { String::new() } else { format!(", expected to take {expected:#}") };
        let does = match verb {
            Verb::Install => "",
            Verb::Download => "download of ",
            Verb::Uninstall => "taking back of ",
            Verb::Restart => "a ",
        };
        lines.push(format!(
            "{device}: {sequence} claimed for {policy}: {does}{updates:?}, {dependencies:?}, by {not_after}, within {limit:#}{takes}{after}"
        ));
        let claim = Claim {
            sequence,
            policy: policy.clone(),
            verb: *verb,
            updates: updates.clone(),
            granted: false,
            not_after,
            limit: *limit,
            expected: *expected,
            restart: SignedDuration::ZERO,
        };
        self.past.devices.entry(device.to_owned()).or_default().current = Some(claim);
        let asks = now + self.world().devices.get(device).map(DeviceSpec::asks_after).unwrap_or_default();
        self.running.insert(device.to_owned(), Running { asks, ends: None });
    }

    /// Adds a line for everything of which something else is true than was last told.
    fn tell(&mut self, answer: &Plan, catalogue: &Catalogue, lines: &mut Vec<String>) {
        let Plan { devices, policies, groups, windows, next_look: _ } = answer;
        let mut facts: Vec<(String, String)> = Vec::new();
        facts.extend(windows.iter().map(|window| (format!("window {}", window.name), window_line(window))));
        facts.extend(groups.iter().map(|group| (format!("group {}", group.name), group_line(group))));
        for policy in policies {
            facts.push((format!("policy {}", policy.name), policy_line(policy)));
            let updates = policy.progress.updates.iter();
            facts.extend(updates.map(|(id, progress)| (format!("  {} {id}", policy.name), progress_line(progress))));
            let Durations { updates, kinds } = &policy.progress.durations;
            let took = |what: String, seconds: u32| (format!("  {} {what} takes", policy.name), format!("{seconds} s"));
            facts.extend(updates.iter().map(|(id, seconds)| took(id.to_string(), *seconds)));
            facts.extend(kinds.iter().map(|(kind, seconds)| took(format!("{kind:?}"), *seconds)));
        }
        for device in devices {
            facts.push((format!("device {}", device.name), device_line(device)));
            facts.extend(device.updates.iter().map(|update| {
                let id = catalogue.get(update.update).map_or("?", |update| &update.id);
                (format!("  {} {id}", device.name), update_line(update))
            }));
        }
        for (what, fact) in &facts {
            if self.told.get(what) != Some(fact) {
                lines.push(format!("{what}: {fact}"));
            }
        }
        for what in self.told.keys().filter(|what| facts.iter().all(|(other, _)| other != *what)) {
            lines.push(format!("{what}: gone"));
        }
        self.told = facts.into_iter().collect();
    }

    fn write(&mut self, now: Timestamp, lines: &[String]) {
        if !lines.is_empty() {
            let _ = write!(self.trace, "\n{now}\n");
            for line in lines {
                let _ = writeln!(self.trace, "  {line}");
            }
        }
    }
}

fn window_line(window: &WindowPlan) -> String {
    let WindowPlan { name: _, open_until, upcoming, never_opens: _, invalid } = window;
    let state = match (open_until, invalid) {
        (_, Some(invalid)) => return format!("invalid: {invalid}"),
        (Some(until), None) => format!("open until {until}"),
        (None, None) => "closed".to_owned(),
    };
    match upcoming.first() {
        Some(Span { start, end }) => format!("{state}, then {start} to {end}"),
        None => format!("{state}, and never opens again"),
    }
}

fn group_line(group: &GroupPlan) -> String {
    let GroupPlan { name: _, devices, states: _, seen: _, invalid, stalled, failed, unknown_devices } = group;
    let mut line = format!("{devices} devices");
    if let Some(invalid) = invalid {
        let _ = write!(line, ", invalid: {invalid}");
    }
    if let Some(stalled) = stalled {
        let _ = write!(line, ", Stalled: {}: {stalled}", stalled.code());
    }
    if let Some(Failed { expression, error, example, more }) = failed {
        let whose = match expression {
            FailedExpression::Members => "the rule of its members".to_owned(),
            FailedExpression::Rule { group, rule } => format!("rule {rule} of {group}"),
        };
        let _ = write!(line, ", {whose} fails for {example} and {more} more: {error}");
    }
    if let Some(unknown) = unknown(unknown_devices) {
        let _ = write!(line, ", has {unknown}");
    }
    line
}

fn names(others: &Others) -> String {
    format!("{} and {} more", others.first.join(", "), others.more)
}

fn unknown(devices: &Others) -> Option<String> {
    (!devices.first.is_empty()).then(|| format!("devices that are not there: {}", names(devices)))
}

fn policy_line(policy: &PolicyPlan) -> String {
    let PolicyPlan {
        name: _,
        devices,
        compliant,
        states: _,
        overdue,
        forecast,
        installing,
        failed,
        open,
        next_window,
        stalled,
        never_opens,
        unprovable,
        too_short,
        missing_groups,
        missing_excluded_groups,
        unknown_devices,
        unlabelled,
        overlap,
        rings,
        progress,
    } = policy;
    let window = match (stalled, open, next_window) {
        (Some(stalled), _, _) => format!("Stalled: {}: {stalled}", stalled.code()),
        (None, true, _) => "open".to_owned(),
        (None, false, Some(next)) => format!("opens {next}"),
        (None, false, None) if *never_opens => "never opens: Stalled".to_owned(),
        (None, false, None) => "never opens".to_owned(),
    };
    let overlap = overlap.as_ref().map_or(String::new(), |overlap| match overlap {
        Overlap::SamePriority { won, lost, others } => {
            format!("; has {won} and not {lost} by its name alone, beside {}", names(others))
        }
        Overlap::HigherPriority { lost, others } => format!("; loses {lost} to {}", names(others)),
    });
    let unprovable =
        unprovable.as_ref().map_or(String::new(), |Unprovable { place, ring, devices, unknown, needs, waiting }| {
            format!(
                "; ring {place}, {ring}, has {devices}, {unknown} of them unknown, of the {needs} devices that it needs, and {waiting} wait for it"
            )
        });
    let too_short =
        too_short.as_ref().map_or(String::new(), |window| format!("; {window} is too short for its installs"));
    let missing = |names: &[Name], what: &str| match names {
        [] => String::new(),
        names => format!("; {what} groups that are not there: {}", names.join(", ")),
    };
    let missing = missing(missing_groups, "names") + &missing(missing_excluded_groups, "leaves out the devices of");
    let unknown = unknown(unknown_devices).map_or(String::new(), |unknown| format!("; leaves out {unknown}"));
    let unlabelled = if *unlabelled { "; none of its servers has the label of a service" } else { "" };
    let rings: Vec<String> = rings
        .iter()
        .map(|ring| format!("{} {}/{}", ring.name.as_deref().unwrap_or("rest"), ring.compliant, ring.devices))
        .collect();
    let rings = if rings.is_empty() { String::new() } else { format!("; {}", rings.join(", ")) };
    let paused = progress.paused.map(|since| format!("; paused since {since}")).unwrap_or_default();
    let pending = progress.blast.pending.as_ref();
    let pending =
        pending.map(|it| format!("; {} waits for a person: {} devices", it.specs, it.devices)).unwrap_or_default();
    let overdue = if *overdue == 0 { String::new() } else { format!("; {overdue} overdue") };
    let forecast = forecast.as_ref().map_or(String::new(), |Forecast { missing, of, done }| {
        let done = done.map_or_else(|| "nobody can be done".to_owned(), |done| format!("the last is done by {done}"));
        format!("; forecast: {missing} of {of} miss their deadline, {done}")
    });
    let devices = format!("{compliant}/{devices} compliant, {installing} installing, {failed} failed");
    format!(
        "{devices}, {window}{rings}{paused}{pending}{overdue}{forecast}{unprovable}{too_short}{missing}{unknown}{unlabelled}{overlap}"
    )
}

fn progress_line(progress: &UpdateProgress) -> String {
    let UpdateProgress { ring, opened, reached, stopped, installed: _, anywhere: _, failed } = progress;
    let mut line = format!("in ring {} since {opened}", ring.as_deref().unwrap_or("rest"));
    if let Some(reached) = reached {
        let _ = write!(line, ", proved at {reached}");
    }
    if let Some(stopped) = stopped {
        let _ = write!(line, ", STOPPED at {stopped}");
    }
    if !failed.is_empty() {
        let failed: Vec<&str> = failed.iter().map(|it| &*it.device).collect();
        let _ = write!(line, ", failed on {}", failed.join(", "));
    }
    line
}

fn device_line(device: &DevicePlan) -> String {
    let over = |shadowed: &[Name]| {
        if shadowed.is_empty() { String::new() } else { format!(" (over {})", shadowed.join(", ")) }
    };
    let possible =
        |others: &[Name]| if others.is_empty() { String::new() } else { format!(" (perhaps {})", others.join(", ")) };
    let none = || Name::from("none");
    let due = device.due.as_ref().map_or(String::new(), |Due { at, overdue, updates }| {
        let was = if *overdue { "was due" } else { "due" };
        format!(", {} {was} {at}", updates.len())
    });
    format!(
        "{:?}, policy {}{}, group {}{}{due}",
        device.compliance,
        device.policy.clone().unwrap_or_else(none),
        over(&device.shadowed_policies),
        device.group.clone().unwrap_or_else(none),
        possible(&device.possible_groups) + &over(&device.shadowed_groups),
    )
}

fn update_line(update: &UpdatePlan) -> String {
    let UpdatePlan { update: _, verb: _, state, last_known: _, decision, decided_by, blocked, eligible_at } = update;
    let by = match decided_by.as_deref() {
        Some(DecidedBy::Decision { group, update }) => format!(" by {group} decision {update}"),
        Some(DecidedBy::Rule { group, rule }) => format!(" by {group} rule {rule}"),
        Some(DecidedBy::Default { group }) => format!(" by {group} default"),
        Some(DecidedBy::Restart { policy, when }) => format!(" by {policy} restart {when:?}"),
        None => String::new(),
    };
    let mut line = format!("{state:?}, {decision:?}{by}");
    if let Some(blocked) = blocked {
        let kind = if blocked.is_passing() { " (passing)" } else { "" };
        let _ = write!(line, "; {}{kind}: {blocked}", blocked.code());
    }
    if let Some(at) = eligible_at {
        let _ = write!(line, "; eligible {at}");
    }
    line
}

fn ends(spec: &DeviceSpec, now: Timestamp) -> Option<Timestamp> {
    (!spec.silent).then(|| now + spec.takes())
}

/// RFC 7396.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        if !patch.is_null() {
            *target = patch.clone();
        }
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
