//! `kubectl patchwarden preview`: what objects that are not applied yet would change, for each device and update;
//! computed by the planner itself on what the API server has at this moment. Nothing is written.

mod settings;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use jiff::Timestamp;
use kube::api::PostParams;
use kube::core::{DynamicObject, NamespaceResourceScope};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Format;
use super::explain::{UpdateExplanation, of_update};
use super::live::{Live, Place, Where};
use super::screen;
use super::stalled::{self, Stalled};
use super::unseen;
use crate::api::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy};
use crate::plan::outcome::Foresight;
use crate::plan::{self, Snapshot};
use crate::{convert, shell};

/// Exit code: something would change, as of diff(1).
const CHANGES: u8 = 1;

/// Flags of `preview`. Exits with 0 if nothing would change, with 1 if something would, and with 2 on an error.
#[derive(Debug, Args)]
pub struct Arguments {
    /// YAML of ApprovalGroups, MaintenanceWindows, PatchPolicies and DeviceInventories; `-` for standard input.
    #[arg(short, long, required = true)]
    filename: Vec<PathBuf>,
    #[command(flatten)]
    place: Where,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What would change.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Changes {
    updates: Vec<Change>,
    devices: Vec<standing::Device>,
    policies: Vec<standing::Policy>,
    objects: Vec<settings::Object>,
    rings: Vec<settings::Rings>,
    stalled: Vec<Stalled>,
}

/// What would change for an update on a device.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    device: String,
    before: Option<UpdateExplanation>,
    after: Option<UpdateExplanation>,
}

/// Previews.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { filename, place, output } = arguments;
    let place = place.resolve(client);
    let now = convert::whole_seconds(shell::now());
    let live = Live::load(client, &place).await?;
    let mut then = live.clone();
    for path in &filename {
        for object in read(path)? {
            put(client, &place, object, &mut then).await?;
        }
    }
    let (before, after) = (live.snapshot(&place, now), then.snapshot(&place, now));
    let (ahead_before, ahead) = (plan::foresee(&before, None, now), plan::foresee(&after, None, now));
    let changes = changes((&live, &before, &ahead_before), (&then, &after, &ahead), now)?;
    match output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&changes)?),
        Format::Text => {
            let unseen = unseen::of_all(&after, &ahead.plan, &place);
            let unseen = unseen.map_or_else(String::new, |hint| format!("\n{hint}\n"));
            screen::print(&format!("{}{unseen}", text(&changes, now)))?;
        }
    }
    Ok(if changes == Changes::default() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
}

/// The objects, what the planner sees of them, and what it makes of that.
type Side<'s> = (&'s Live, &'s Snapshot, &'s Foresight);

fn changes(before: Side<'_>, after: Side<'_>, now: Timestamp) -> serde_json::Result<Changes> {
    let ((live, before, ahead_before), (then, after, ahead)) = (before, after);
    let (plan_before, plan_after) = (&ahead_before.plan, &ahead.plan);
    Ok(Changes {
        updates: updates((live, before, ahead_before), (then, after, ahead), now),
        devices: standing::devices(plan_before, plan_after),
        policies: standing::policies(live, (then, plan_after))?,
        objects: settings::objects(live, (then, plan_after))?,
        rings: settings::rings((before, plan_before), (after, plan_after)),
        stalled: stalled::newly((live, plan_before), (then, plan_after), now),
    })
}

fn read(path: &std::path::Path) -> anyhow::Result<Vec<DynamicObject>> {
    let shown = path.display();
    let text = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("standard input")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("{shown}"))?
    };
    let documents: Vec<Option<DynamicObject>> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("{shown} is no YAML of Kubernetes objects"))?;
    Ok(documents.into_iter().flatten().collect())
}

/// As the API server would have it: checked and with its defaults, and nothing stored.
async fn put(client: &Client, place: &Place, object: DynamicObject, then: &mut Live) -> anyhow::Result<()> {
    let kind = object.types.as_ref().map(|types| types.kind.clone()).unwrap_or_default();
    let namespace = object.namespace().unwrap_or_else(|| place.namespace.clone());
    let is_own = namespace == place.patchwarden_namespace && namespace != place.namespace;
    if !is_own && namespace != place.namespace {
        bail!("{kind}/{} is in namespace {namespace}, not in {}", object.name_any(), place.namespace);
    }
    match (kind.as_str(), is_own) {
        ("PatchPolicy", false) => {
            insert(&mut then.policies, dry_run::<PatchPolicy>(client, &namespace, &object).await?);
        }
        ("MaintenanceWindow", false) => {
            insert(&mut then.windows, dry_run::<MaintenanceWindow>(client, &namespace, &object).await?);
        }
        ("DeviceInventory", false) => {
            insert(&mut then.devices, dry_run::<DeviceInventory>(client, &namespace, &object).await?);
        }
        ("ApprovalGroup", false) => {
            insert(&mut then.groups, dry_run::<ApprovalGroup>(client, &namespace, &object).await?);
        }
        ("ApprovalGroup", true) => {
            insert(&mut then.organisation, dry_run::<ApprovalGroup>(client, &namespace, &object).await?);
        }
        // What comes with them in one file.
        ("Namespace", _) => {}
        (_, _) => bail!(
            "{kind}/{}: a preview is of ApprovalGroups, MaintenanceWindows, PatchPolicies and DeviceInventories",
            object.name_any()
        ),
    }
    Ok(())
}

fn insert<K: Resource>(objects: &mut BTreeMap<String, K>, object: K) {
    objects.insert(object.meta().name.clone().unwrap_or_default(), object);
}

/// What the API server would make of an object that is created or replaced.
pub(super) async fn dry_run<K>(client: &Client, namespace: &str, object: &DynamicObject) -> anyhow::Result<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let name = object.name_any();
    let refused = || format!("the API server refuses {}/{name}", K::kind(&()));
    let mut object: K = object.clone().try_parse().with_context(refused)?;
    let params = PostParams { dry_run: true, field_manager: None };
    let live = api.get_opt(&name).await.with_context(refused)?;
    object.meta_mut().namespace = Some(namespace.to_owned());
    match live {
        Some(live) => {
            object.meta_mut().resource_version.clone_from(&live.meta().resource_version);
            api.replace(&name, &params, &object).await
        }
        None => api.create(&params, &object).await,
    }
    .with_context(refused)
}

fn updates(before: Side<'_>, after: Side<'_>, now: Timestamp) -> Vec<Change> {
    let told = |(live, snapshot, ahead): Side<'_>| -> BTreeMap<(String, String), UpdateExplanation> {
        let of_device = |device: &plan::outcome::DevicePlan| {
            let name = device.name.to_string();
            let eligible = ahead.eligible.get(&device.name).map(Vec::as_slice).unwrap_or_default();
            let updates = device.updates.iter().enumerate();
            let updates =
                updates.map(|(place, update)| of_update(update, (live, &snapshot.updates), eligible.get(place), now));
            updates.map(|update| ((name.clone(), update.update.clone()), update)).collect::<Vec<_>>()
        };
        ahead.plan.devices.iter().flat_map(of_device).collect()
    };
    let (mut before, mut after) = (told(before), told(after));
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).cloned().collect();
    keys.into_iter()
        .filter_map(|key| {
            let (before, after) = (before.remove(&key), after.remove(&key));
            (before != after).then_some(Change { device: key.0, before, after })
        })
        .collect()
}

fn text(changes: &Changes, now: Timestamp) -> String {
    if *changes == Changes::default() {
        return "Nothing would change.\n".to_owned();
    }
    let Changes { updates, devices, policies, objects, rings, stalled } = changes;
    let mut text = match updates.as_slice() {
        [] => "No update would change on any device.\n".to_owned(),
        updates => changed(updates, now),
    };
    text += &standing::text(devices, policies);
    text += &settings::text(objects, rings);
    for stalled in stalled {
        let _ = writeln!(text, "\n{stalled}");
    }
    text
}

fn changed(changes: &[Change], now: Timestamp) -> String {
    let of = |told: Option<&UpdateExplanation>| {
        told.map_or_else(
            || "not offered".to_owned(),
            |it| {
                let by = it.rule.as_ref().map(|rule| format!(" by {rule}")).unwrap_or_default();
                let because = it.decision_reason.as_ref().map(|reason| format!(" ({})", screen::safe(reason)));
                let by = by + &because.unwrap_or_default();
                let code = it.blocked_by.as_deref().unwrap_or("Next");
                let when = it.when().map(|when| format!("; eligible {when}")).unwrap_or_default();
                format!("{}{by}; {code}: {}{when}", it.decision, it.why)
            },
        )
    };
    let devices: BTreeSet<&str> = changes.iter().map(|change| change.device.as_str()).collect();
    let mut text = format!("{} updates on {} devices would change, as of {now}:\n", changes.len(), devices.len());
    let mut last = None;
    for Change { device, before, after } in changes {
        if last != Some(device) {
            let _ = writeln!(text, "\n{device}");
            last = Some(device);
        }
        let update = before.as_ref().or(after.as_ref()).map(|it| it.update.as_str()).unwrap_or_default();
        let _ = writeln!(text, "  {update}\n    - {}\n    + {}", of(before.as_ref()), of(after.as_ref()));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::testing::{device, group, live, object, place};

    fn stalled(before: &Live, after: &Live) -> Vec<Stalled> {
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let [planned_before, planned] = [before, after].map(|live| plan::plan(&live.snapshot(&place(), now), now));
        stalled::newly((before, &planned_before), (after, &planned), now)
    }

    // covers BY-3
    #[test]
    fn when_it_is_eligible_is_a_change_though_the_reason_is_the_same() {
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let rules = json!([{"name": "day", "action": "Approve", "after": "24h"}]);
        let everyone = json!({"members": {"selector": {}}, "rules": rules, "minArtifactAge": "0s"});
        let client = |weekday: &str| {
            let schedules = json!([{"weekly": {"weekdays": [weekday], "at": "22:00"}}]);
            let window = json!({"spec": {"timeZone": "UTC", "duration": "2h", "schedules": schedules}});
            let policy = json!({"spec": {"mode": "Install", "windows": ["night"]}});
            live(
                vec![group("everyone", &everyone)],
                vec![object("PatchPolicy", "all", policy)],
                vec![object("MaintenanceWindow", "night", window)],
                vec![],
            )
        };
        let machine = device("web-1", &[("KB-1", "High")]);
        let lives = ["Friday", "Saturday"].map(|weekday| {
            let mut live = client(weekday);
            live.devices.insert("web-1".to_owned(), machine.clone());
            live
        });
        let snapshots = lives.each_ref().map(|live| live.snapshot(&place(), now));
        let ahead = snapshots.each_ref().map(|snapshot| plan::foresee(snapshot, None, now));
        let side = |number: usize| (&lives[number], &snapshots[number], &ahead[number]);
        assert_eq!(text(&changes(side(0), side(0), now).unwrap(), now), "Nothing would change.\n");
        let told = text(&changes(side(0), side(1), now).unwrap(), now);
        for words in [
            "approved once it has been known for long enough; eligible 2026-12-04T22:00:00Z at the earliest\n    + ",
            "approved once it has been known for long enough; eligible 2026-12-05T22:00:00Z at the earliest\n",
            "\nMaintenanceWindow/night:\n  spec.schedules: ",
        ] {
            assert!(told.contains(words), "{words:?} is not in:\n{told}");
        }
    }

    #[test]
    fn what_would_be_stalled_is_told_where_nothing_changes_on_a_device_yet() {
        let servers = json!({"parent": {"name": "everyone"}, "members": {"selector": {}}});
        let policy = || object("PatchPolicy", "all", json!({"spec": {"mode": "Install", "windows": ["sundays"]}}));
        let before = live(vec![], vec![policy()], vec![], vec![]);
        let after = live(vec![group("servers", &servers)], vec![policy()], vec![], vec![]);
        let found = stalled(&before, &after);
        let text = |stalled| text(&Changes { stalled, ..Changes::default() }, Timestamp::UNIX_EPOCH);
        let told = text(found);
        assert!(
            told.starts_with(
                "No update would change on any device.\n\nApprovalGroup/servers would be Stalled: spec.parent: "
            ),
            "{told}"
        );
        // That the policy waits for its window is nothing new.
        assert!(!told.contains("PatchPolicy") && stalled(&after, &after).is_empty(), "{told}");
        let policies = stalled(&live(vec![], vec![], vec![], vec![]), &before);
        let told = text(policies);
        assert!(told.contains("PatchPolicy/all would be Stalled: spec.windows: "), "{told}");
    }

    #[test]
    fn a_name_of_what_is_not_there_is_told() {
        let policy = |exclude: &str| object("PatchPolicy", "all", json!({"spec": {"exclude": [exclude]}}));
        let devices = || vec![device("web-1", &[])];
        let before = live(vec![], vec![policy("web-1")], vec![], devices());
        let after = live(vec![], vec![policy("web-l")], vec![], devices());
        let found = stalled(&before, &after);
        let told = text(&Changes { stalled: found, ..Changes::default() }, Timestamp::UNIX_EPOCH);
        assert!(
            told.ends_with(
                "\nPatchPolicy/all would have NamesUnknown: spec.exclude[0]: DeviceInventory/web-l does not exist in this namespace: \
                 no device is left out for it; correct the name, unless such a device is yet to enrol\n"
            ),
            "{told}"
        );
        assert_eq!(stalled(&after, &after), []);
    }

    #[test]
    fn a_window_that_would_not_open_any_more_and_a_rule_that_would_fail_are_told() {
        let sundays = |schedule: Value| {
            let spec = json!({"timeZone": "UTC", "duration": "2h", "schedules": [schedule]});
            object("MaintenanceWindow", "sundays", json!({ "spec": spec }))
        };
        let policy = || object("PatchPolicy", "all", json!({"spec": {"mode": "Install", "windows": ["sundays"]}}));
        let group = |rules: Value| group("servers", &json!({"members": {"selector": {}}, "rules": rules}));
        let devices = || vec![device("web-1", &[("KB-1", "High")])];
        let weekly = sundays(json!({"weekly": {"weekdays": ["Sunday"], "at": "02:00"}}));
        let before = live(vec![group(json!([]))], vec![policy()], vec![weekly], devices());
        assert_eq!(stalled(&live(vec![], vec![], vec![], vec![]), &before), []);
        let once = sundays(json!({"once": {"at": "2026-11-28T02:00"}}));
        let fails = json!([{"name": "r", "action": "Approve", "match": {"expression": "update.packages[1] == 'a'"}}]);
        let after = live(vec![group(fails)], vec![policy()], vec![once], devices());
        let found = stalled(&before, &after);
        let told = text(&Changes { stalled: found, ..Changes::default() }, Timestamp::UNIX_EPOCH);
        for words in [
            "ApprovalGroup/servers would be Stalled: spec.rules[r].match.expression: ",
            "MaintenanceWindow/sundays would be Stalled: spec.schedules: it is not open",
            "PatchPolicy/all would be Stalled: spec.windows: MaintenanceWindow/sundays: none of them is open",
        ] {
            assert!(told.contains(words), "{words:?} is not in:\n{told}");
        }
    }
}
