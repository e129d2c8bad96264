//! What is written: YAML that a person reads and changes, so it is text with comments and not made from the types. The tests read it back.

use std::fmt::Write as _;

use anyhow::Context as _;
use jiff::Timestamp;
use jiff::civil::date;
use jiff::tz::TimeZone;

use super::answers::{
    Answers, Approve, Choice, Machines, PILOT_REASON, Restart, ServerWindow, Start, WorkstationWindow,
};

/// The files, by name.
pub(super) fn of(answers: &Answers, now: Timestamp) -> anyhow::Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("README.md", readme(answers)),
        ("kustomization.yaml", kustomization()),
        ("00-namespace.yaml", namespace(answers)),
        ("10-approval-groups.yaml", groups(answers)),
        ("20-maintenance-windows.yaml", windows(answers, now)?),
        ("30-patch-policies.yaml", policies(answers)),
        ("40-access.yaml", access(answers)),
    ])
}

fn has_servers(answers: &Answers) -> bool {
    answers.machines != Machines::Workstations
}

fn has_workstations(answers: &Answers) -> bool {
    answers.machines != Machines::Servers
}

fn head(kind: &str, name: &str, answers: &Answers) -> String {
    format!(
        "apiVersion: patchwarden.io/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: \"{}\"\nspec:\n",
        answers.client
    )
}

fn kustomization() -> String {
    "# For `kubectl apply -k`, and for Argo CD and Flux.\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  \
     - 00-namespace.yaml\n  - 10-approval-groups.yaml\n  - 20-maintenance-windows.yaml\n  - 30-patch-policies.yaml\n  - 40-access.yaml\n"
        .to_owned()
}

fn namespace(answers: &Answers) -> String {
    format!(
        "# A namespace is a client: its devices, policies, groups, windows and install Jobs live in it.\napiVersion: v1\nkind: Namespace\nmetadata:\n  \
         name: \"{}\"\n  labels:\n    # The pods of install Jobs need nothing more.\n    pod-security.kubernetes.io/enforce: restricted\n",
        answers.client
    )
}

fn groups(answers: &Answers) -> String {
    let mut text = String::from(
        "# What is approved, and for whom. A device has exactly one effective group: one that names it beats one that selects it, then the\n\
         # nearest level wins. Where that group says nothing of an update its parents are asked.\n",
    );
    text += &head("ApprovalGroup", "everyone", answers);
    text += "  level: Client              # no members: it is only the parent of the others
  # What is decided here on a single update counts where no group beneath says anything of it; with `locked: true` it counts for all devices:
  # decisions:
  #   - {update: \"pkg:deb/debian/tzdata@*\", action: Ignore, locked: true, reason: why}
  # What no rule is about waits for a person: an update that nobody thought of must not install itself.
  default: AwaitApproval
  # minArtifactAge is 24 h where nothing is said: a build that was published an hour ago may be withdrawn by tonight.
";
    // Pilots have them first; what they show must be known before anybody else gets them.
    let security_after = if answers.pilot { "\n      after: 3d              # pilots have them at once" } else { "" };
    let security = format!(
        "    # Known holes are attacked within days.\n    - name: security\n      match:\n        classifications: [Security]\n      action: Approve{security_after}\n"
    );
    let rest = |days: u32| {
        format!(
            "    # Everything else gains little from haste, and much from others having tried it.\n    - name: everything-else\n      action: Approve\n      after: {days}d\n"
        )
    };
    let kinds =
        [("servers", "Server", has_servers(answers)), ("workstations", "Workstation", has_workstations(answers))];
    for (name, device_type, _) in kinds.into_iter().filter(|(_, _, is_there)| *is_there) {
        let _ = write!(text, "---\n{}", head("ApprovalGroup", name, answers));
        let _ = write!(
            text,
            "  parent:\n    name: everyone\n  level: DeviceType\n  members:\n    rule: device.type == \"{device_type}\"\n"
        );
        let rules = match (answers.approve, name) {
            (Approve::ByHand, _) => String::new(),
            (Approve::Security, "servers") => security.clone(),
            (Approve::Security, _) => format!("{security}{}", rest(7)),
            (Approve::Everything, _) => format!("{security}{}", rest(14)),
        };
        if rules.is_empty() {
            text += "  # A person approves each update: kubectl patchwarden approve --group GROUP UPDATE\n";
        } else {
            let _ = write!(text, "  rules:\n{rules}");
        }
    }
    if answers.pilot {
        let _ = write!(
            text,
            "---\n# {PILOT_REASON}\n# Choose some of every kind: kubectl label devinv -n {} DEVICE patch-ring=pilot\n",
            answers.client
        );
        text += &head("ApprovalGroup", "pilot", answers);
        text += "  parent:\n    name: everyone\n  members:\n    selector:\n      matchLabels:\n        patch-ring: pilot\n  rules:\n";
        text += match answers.approve {
            Approve::Security => {
                "    - name: security\n      match:\n        classifications: [Security]\n      action: Approve\n"
            }
            Approve::Everything => "    - name: everything\n      action: Approve\n",
            Approve::ByHand => "    - name: by-hand\n      action: AwaitApproval\n",
        };
    }
    text
}

fn windows(answers: &Answers, now: Timestamp) -> anyhow::Result<String> {
    let freeze = freeze(now)?;
    let monthly = "    - monthly:               # Patch Tuesday is the second of the month\n        week: Second\n        weekday: Tuesday\n        offsetDays: 4\n        at: \"22:00\"\n";
    let daily = |at: &str| format!("    - daily:\n        at: \"{at}\"\n");
    let weekly = |days: &str, at: &str| format!("    - weekly:\n        weekdays: [{days}]\n        at: \"{at}\"\n");
    let mut all = vec![];
    let one = |name: &str, why: &str, schedule: &str, duration: &str| {
        format!(
            "# {why}\n{}  timeZone: {}\n  schedules:\n{schedule}  duration: {duration}\n  cutoff: 30m                # nothing new starts at the end\n  exclusions:                # a freeze: add next year's in time\n{freeze}",
            head("MaintenanceWindow", name, answers),
            answers.time_zone,
        )
    };
    if has_servers(answers) {
        let schedule = match answers.server_window {
            ServerWindow::PatchTuesday => monthly.to_owned(),
            ServerWindow::Weekly => weekly("Sunday", "02:00"),
            ServerWindow::Nightly => daily("02:00"),
        };
        all.push(one("servers", &reason(answers.server_window), &schedule, "4h"));
    }
    if has_workstations(answers) {
        let (schedule, duration) = match answers.workstation_window {
            WorkstationWindow::Noon => (weekly("Monday, Tuesday, Wednesday, Thursday, Friday", "12:00"), "2h"),
            WorkstationWindow::Nightly => (daily("22:00"), "4h"),
            WorkstationWindow::PatchTuesday => (monthly.to_owned(), "4h"),
        };
        all.push(one("workstations", &reason(answers.workstation_window), &schedule, duration));
    }
    if answers.pilot {
        all.push(one("pilot", "Pilots come first, so their window is open every night.", &daily("01:00"), "4h"));
    }
    Ok(all.join("---\n"))
}

/// What is recommended has a reason; everything else was chosen.
fn reason<C: Choice>(choice: C) -> String {
    if choice == C::recommended() { C::REASON.to_owned() } else { format!("As chosen: {}.", choice.words()) }
}

/// The turn of the year that is on or comes next.
fn freeze(now: Timestamp) -> anyhow::Result<String> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let year = if today < date(today.year(), 1, 4) { today.year() - 1 } else { today.year() };
    let next = year.checked_add(1).context("the year")?;
    Ok(format!(
        "    - name: turn-of-the-year-{year}\n      from: \"{year}-12-18T00:00:00Z\"\n      to: \"{next}-01-04T00:00:00Z\"\n"
    ))
}

fn policies(answers: &Answers) -> String {
    let mode = match answers.start {
        Start::Audit => {
            "  # Nothing is installed yet: look at `kubectl patchwarden status` and `explain`, then write Install.\n  mode: Audit\n"
        }
        Start::Install => "  mode: Install\n",
    };
    let updater = match answers.start {
        Start::Audit => "  # With mode Install: osUpdater: Disable, so that nothing is installed beside this policy.\n",
        Start::Install => {
            "  # Nothing is installed beside this policy; what was switched off is given back when it no longer governs a device.\n  osUpdater: Disable\n"
        }
    };
    let restart = match answers.restart {
        Restart::IfRequired => {
            "  # What is updated and still runs in its old version protects nobody.\n  restart:\n    when: IfRequired\n    within: 2h               # of the start of the install; later it is left to the next window\n    warning: 10m\n"
        }
        Restart::Never => "  # Nobody restarts them: devices that need it are not compliant until a person does.\n",
    };
    let mut all = vec![];
    if has_servers(answers) {
        let within = match answers.server_window {
            ServerWindow::PatchTuesday => "45d",
            ServerWindow::Weekly => "21d",
            ServerWindow::Nightly => "14d",
        };
        all.push(format!(
            "{}  types: [Server]\n{mode}  windows: [servers]\n  rollout:\n    maxConcurrent: 10%\n    failureBudget: 3         # more devices than that have failed: everything waits for a person\n  \
             # Of one service one server at a time, whatever policy it has. Label them: kubectl label devinv DEVICE service=NAME\n  \
             disruption:\n    groupBy: service\n    maxUnavailable: 1\n  installLimit: 1h\n{restart}{updater}  # Later than that a missing update makes a device incompliant.\n  \
             deadlines:\n    - {{severity: Any, within: {within}}}\n",
            head("PatchPolicy", "servers", answers)
        ));
    }
    if has_workstations(answers) {
        let (within, catch_up) = match answers.workstation_window {
            WorkstationWindow::PatchTuesday => ("45d", "21d"),
            WorkstationWindow::Noon | WorkstationWindow::Nightly => ("21d", "7d"),
        };
        all.push(format!(
            "{}  types: [Workstation]\n{mode}  windows: [workstations]\n  # Those that were off in every window for so long catch up once they are on, on mains power.\n  catchUp:\n    after: {catch_up}\n  \
             rollout:\n    maxConcurrent: 20%\n    failureBudget: 5\n  installLimit: 1h\n{restart}{updater}  deadlines:\n    - {{severity: Any, within: {within}}}\n",
            head("PatchPolicy", "workstations", answers)
        ));
    }
    if answers.pilot {
        all.push(format!(
            "# An update that fails on three devices is stopped in the whole client by itself: pilots find it first.\n{}  selector:\n    matchLabels:\n      patch-ring: pilot\n  \
             priority: 10               # before the policy of their type\n{mode}  windows: [pilot]\n  rollout:\n    maxConcurrent: 50%\n  installLimit: 1h\n{restart}{updater}",
            head("PatchPolicy", "pilot", answers)
        ));
    }
    format!(
        "# When and how many at a time approved updates are installed. `kubectl explain patchpolicy.spec` documents each field.\n{}",
        all.join("---\n")
    )
}

fn access(answers: &Answers) -> String {
    let client = &answers.client;
    format!(
        "# By this account `kubectl patchwarden devices`, `search` and the like ask the gateway (docs/api.md). Who may create tokens of it may read.\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: patchwarden-reader\n  namespace: \"{client}\"\nautomountServiceAccountToken: false\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata:\n  name: patchwarden-reader\n  namespace: \"{client}\"\n\
         roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: ClusterRole\n  name: patchwarden-reader\nsubjects:\n  - kind: ServiceAccount\n    name: patchwarden-reader\n    namespace: \"{client}\"\n"
    )
}

fn readme(answers: &Answers) -> String {
    let Answers { client, time_zone, machines, approve, server_window, workstation_window, pilot, restart, start } =
        answers;
    let mut rows: Vec<(&str, String, &str)> = vec![
        ("machines", machines.words().into(), Machines::REASON),
        ("approved without a person", approve.words().into(), Approve::REASON),
    ];
    if has_servers(answers) {
        rows.push(("servers are patched", format!("{} ({time_zone})", server_window.words()), ServerWindow::REASON));
    }
    if has_workstations(answers) {
        rows.push((
            "workstations are patched",
            format!("{} ({time_zone})", workstation_window.words()),
            WorkstationWindow::REASON,
        ));
    }
    rows.push((
        "pilots",
        if *pilot { "devices with the label patch-ring=pilot, every night".into() } else { "none".into() },
        PILOT_REASON,
    ));
    rows.push(("restarts", restart.words().into(), Restart::REASON));
    rows.push(("installs from the first day on", start.words().into(), Start::REASON));
    let mut text = format!(
        "# Patching of {client}\n\nWritten by `kubectl patchwarden init`. From here on it is yours: change it, and commit it.\n\n"
    );
    text.push_str("| what | decided | why one would |\n|---|---|---|\n");
    for (what, decided, why) in rows {
        let _ = writeln!(text, "| {what} | {decided} | {why} |");
    }
    let group = if has_servers(answers) { "servers" } else { "workstations" };
    let _ = write!(
        text,
        "
## First steps

```sh
kubectl apply -f 00-namespace.yaml            # a dry run of the rest needs it
kubectl apply --dry-run=server -k .           # what the API server says of it
kubectl apply -k .                            # or commit it, and let Argo CD or Flux do that
kubectl patchwarden enroll -n {client} --gateway HOST:8443   # the command that a machine joins with
kubectl patchwarden status -n {client}           # how it stands, and what a person must do
kubectl patchwarden explain -n {client} DEVICE   # for each update what decided, and what it waits for
```

## Later

- What a change would do, before it is committed: `kubectl patchwarden preview -n {client} -f 30-patch-policies.yaml`
- A decision on one update, as YAML for Git: `kubectl patchwarden approve -n {client} --group {group} UPDATE` (also `decline`, `waive`)
- A machine's type is `spec.type` of its DeviceInventory; `patchwarden-agent join --type Workstation` sets it.
- `kubectl patchwarden doctor -n {client}` says what is missing or wrong.
"
    );
    if *start == Start::Audit {
        text.push_str(
            "- To begin to install: `mode: Install` in `30-patch-policies.yaml`, and `osUpdater: Disable` beside it.\n",
        );
    }
    text
}
