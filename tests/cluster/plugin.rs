//! The kubectl plugin against a real API server and a real controller. What it asks the gateway is in `api`.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::Test;
use crate::world::{APPROVE_SECURITY, OPEN_WINDOW, POLICY, Tenant, World, eventually, succeeded};

pub const TESTS: &[Test] = &[
    (
        "what_kubectl_patchwarden_init_writes_is_accepted_and_enforced",
        what_kubectl_patchwarden_init_writes_is_accepted_and_enforced,
    ),
    (
        "a_decision_of_kubectl_patchwarden_is_for_git_or_applied_beside_what_others_own",
        a_decision_of_kubectl_patchwarden_is_for_git_or_applied_beside_what_others_own,
    ),
    (
        "kubectl_patchwarden_doctor_and_status_say_what_a_person_must_do",
        kubectl_patchwarden_doctor_and_status_say_what_a_person_must_do,
    ),
    ("kubectl_patchwarden_events_are_sorted_and_followed", kubectl_patchwarden_events_are_sorted_and_followed),
];

/// Answers that differ in everything that makes other files.
const ANSWERS: &[&[&str]] = &[
    &["--time-zone", "Europe/Berlin", "--start", "install"],
    &[
        "--time-zone",
        "Device",
        "--machines",
        "servers",
        "--approve",
        "everything",
        "--server-window",
        "nightly",
        "--restart",
        "never",
    ],
    &[
        "--time-zone",
        "UTC",
        "--machines",
        "workstations",
        "--approve",
        "by-hand",
        "--workstation-window",
        "patch-tuesday",
        "--pilot",
    ],
];

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

// covers MW-1
fn what_kubectl_patchwarden_init_writes_is_accepted_and_enforced(world: &World) {
    let tenant = world.tenant();
    let directory = tempfile::tempdir().expect("a directory");
    for (index, answers) in ANSWERS.iter().enumerate().rev() {
        let place = directory.path().join(index.to_string());
        let place = place.to_str().expect("UTF-8");
        let arguments = [&["init", place, "--client", &tenant.name], *answers].concat();
        succeeded("kubectl-patchwarden", &arguments, &world.run_plugin(&arguments));
        let checked = world.kubectl(&["apply", "--dry-run=server", "-k", place]);
        assert!(checked.lines().count() >= 7 && !checked.contains("Warning"), "{checked}");
        let again = world.run_plugin(&arguments);
        assert!(!again.status.success() && said(&again).contains("--force"), "{}", said(&again));
        if index == 0 {
            world.kubectl(&["apply", "-k", place]);
        }
    }
    let status = eventually("the controller has accepted all of it", || {
        let output = tenant.plugin(&["status", "-o", "json"], "");
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let client = &status["clients"][0];
        let all =
            ["policies", "groups", "windows"].map(|kind| client[kind].as_array().expect("a list").clone()).concat();
        (all.len() == 10 && all.iter().all(|object| object["ready"]["status"] == true)).then(|| client.clone())
    })
    .unwrap();
    assert_eq!(status["todo"], serde_json::json!([]), "{status:#}");
}

fn decisions(tenant: &Tenant<'_>, group: &str) -> Vec<String> {
    let group = tenant.get(&["agrp", group]);
    let decisions = group["spec"]["decisions"].as_array().cloned().unwrap_or_default();
    let one =
        |decision: &Value| format!("{} {}", decision["action"].as_str().unwrap(), decision["update"].as_str().unwrap());
    decisions.iter().map(one).collect()
}

// covers MW-4, MW-5, RM-2, EM-10
fn a_decision_of_kubectl_patchwarden_is_for_git_or_applied_beside_what_others_own(world: &World) {
    let tenant = world.tenant();
    // As Flux does, and Argo CD where it is told to.
    let from_git = |yaml: &str| {
        let arguments = ["apply", "--server-side", "--field-manager=git", "-n", &tenant.name, "-f", "-"];
        world.kubectl_with(&arguments, yaml)
    };
    from_git(APPROVE_SECURITY);
    let group = ["--group", "everybody"];
    let run = |arguments: &[&str]| tenant.plugin(&[arguments, &group[..]].concat(), "");

    // For Git: it is printed, accepted as it is, and nothing was written.
    let printed = run(&["waive", "KB-1", "--until", "30d", "--reason", "breaks the printer"]);
    let yaml = succeeded("kubectl-patchwarden", &["waive"], &printed);
    assert!(decisions(&tenant, "everybody").is_empty());
    from_git(&yaml);
    assert_eq!(decisions(&tenant, "everybody"), ["Ignore KB-1"]);

    // Applied: what was applied before stays, and what others own is theirs.
    for update in ["KB-2", "KB-3"] {
        let applied = run(&["approve", update, "--apply"]);
        assert!(applied.status.success(), "{}", said(&applied));
    }
    let mut all = decisions(&tenant, "everybody");
    all.sort();
    assert_eq!(all, ["Approve KB-2", "Approve KB-3", "Ignore KB-1"]);
    // Several people at once: what they are told is what has come of it.
    let updates = ["KB-10", "KB-11", "KB-12", "KB-13"];
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let run = &run;
        let started = updates.map(|update| scope.spawn(move || run(&["approve", update, "--apply"])));
        started.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let told = updates.iter().zip(&outputs).filter(|(_, output)| output.status.success());
    let expected: Vec<_> = told.map(|(update, _)| format!("Approve {update}")).collect();
    let is_one = |decision: &String| updates.iter().any(|update| decision.ends_with(update));
    let all: Vec<_> = decisions(&tenant, "everybody").into_iter().filter(is_one).collect();
    assert!(!expected.is_empty() && expected.iter().all(|decision| all.contains(decision)), "{expected:?}: {all:?}");
    assert_eq!(all.len(), expected.len(), "{all:?}");
    for output in outputs.iter().filter(|output| !output.status.success()) {
        assert!(said(output).contains("was changed by somebody else just now"), "{}", said(output));
    }
    let known = decisions(&tenant, "everybody").len();
    // Also for a device that has no group of its own yet.
    tenant.apply("apiVersion: patchwarden.io/v1alpha1\nkind: DeviceInventory\nmetadata: {name: lone-1}\nspec: {}");
    let at_once: Vec<_> = std::thread::scope(|scope| {
        let run = |update| tenant.plugin(&["approve", "lone-1", update, "--apply", "--force"], "");
        let started = ["KB-20", "KB-21"].map(|update| scope.spawn(move || run(update)));
        started.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let told = at_once.iter().filter(|output| output.status.success()).count();
    let outputs: Vec<_> = at_once.iter().map(said).collect();
    assert_eq!((told > 0, decisions(&tenant, "device-lone-1").len()), (true, told), "{outputs:?}");
    // Git's own apply takes none of them away.
    from_git(&yaml);
    assert_eq!(decisions(&tenant, "everybody").len(), known);

    // The API server's words name the field.
    let refused = run(&["decline", "KB-4", "--or-later"]);
    assert!(!refused.status.success(), "{}", said(&refused));
    assert!(said(&refused).contains("spec.decisions[0]") && said(&refused).contains("orLater"), "{}", said(&refused));
    let missing = tenant.plugin(&["approve", "--group", "nobody", "KB-1"], "");
    assert!(
        said(&missing).contains(&format!("ApprovalGroup {}/nobody does not exist", tenant.name)),
        "{}",
        said(&missing)
    );

    // What Git keeps is Git's.
    let mark = "argocd.argoproj.io/tracking-id=fleet:patchwarden.io/ApprovalGroup:acme/everybody";
    world.kubectl(&["annotate", "-n", &tenant.name, "agrp", "everybody", mark]);
    let kept = run(&["approve", "KB-5", "--apply"]);
    assert!(!kept.status.success() && said(&kept).contains("kept by Argo CD (fleet:"), "{}", said(&kept));
    assert_eq!(decisions(&tenant, "everybody").len(), known);
    let forced = run(&["approve", "KB-5", "--apply", "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    assert_eq!(decisions(&tenant, "everybody").len(), known + 1);
}

// covers MW-9, CL-13
fn kubectl_patchwarden_doctor_and_status_say_what_a_person_must_do(world: &World) {
    let tenant = world.tenant();
    tenant.apply(POLICY);
    let findings = |output: &Output| -> Vec<Value> { serde_json::from_slice(&output.stdout).expect("JSON") };
    let amiss = |output: &Output| -> Vec<String> {
        let all = findings(output).into_iter().filter(|finding| finding["level"] != "Ok");
        let what = all.map(|finding| finding["what"].as_str().unwrap().to_owned());
        // These tests run controller and gateway in no pods, which is worth a warning.
        what.filter(|what| !what.starts_with("no pod of it is in")).collect()
    };
    let stalled = format!("PatchPolicy {}/everything: ReferenceNotFound", tenant.name);
    let output = eventually("doctor sees that the policy is stalled", || {
        let output = tenant.plugin(&["doctor", "-o", "json"], "");
        amiss(&output).iter().any(|what| what.contains(&stalled)).then_some(output)
    })
    .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(amiss(&output).len(), 1, "{:#?}", amiss(&output));
    let status = said(&tenant.plugin(&["status"], ""));
    assert!(
        status.contains("To do\n- PatchPolicy/everything: ReferenceNotFound") && !status.contains('\u{1b}'),
        "{status}"
    );
    tenant.apply(OPEN_WINDOW);
    eventually("status says that nothing waits", || {
        said(&tenant.plugin(&["status"], "")).contains("Nothing waits for a person.").then_some(())
    })
    .unwrap();

    // Without its bindings nothing is guarded.
    let binding = ["validatingadmissionpolicybinding", "patchwarden-new-devices"];
    let kept = world.kubectl(&[&["get", "-o", "yaml"], &binding[..]].concat());
    world.kubectl(&[&["delete"], &binding[..]].concat());
    let unguarded = tenant.plugin(&["doctor", "-o", "json"], "");
    world.kubectl_with(
        &["create", "-f", "-"],
        &kept.replace("  resourceVersion:", "  # resourceVersion:").replace("  uid:", "  # uid:"),
    );
    assert_eq!(unguarded.status.code(), Some(2), "{}", said(&unguarded));
    assert!(
        amiss(&unguarded).iter().any(|what| what.contains("patchwarden-new-devices denies nothing")),
        "{}",
        said(&unguarded)
    );

    // Whoever may do nothing is told what they may not.
    let kubeconfig = tempfile::NamedTempFile::new().expect("a file");
    let path = kubeconfig.path().to_str().expect("UTF-8");
    world.cluster("token", &[&tenant.name, "default", path]);
    let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
    let mut command = Command::new(format!("{programs}/kubectl-patchwarden"));
    let output = command.args(["doctor", "-n", &tenant.name]).env("KUBECONFIG", path).output().expect("the plugin");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let place = format!("status: you may not list deviceinventories.patchwarden.io in {}", tenant.name);
    assert!(said(&output).contains(&place) && said(&output).contains("-> ask for a role"), "{}", said(&output));
}

fn event(tenant: &Tenant<'_>, name: &str, kind: &str, time: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Event\nmetadata: {{name: {name}}}\ntype: {kind}\nreason: Tested\nmessage: {name}\nlastTimestamp: \"{time}\"\n\
         involvedObject: {{apiVersion: patchwarden.io/v1alpha1, kind: DeviceInventory, name: web-1, namespace: {}}}\n",
        tenant.name
    )
}

// covers EM-8
fn kubectl_patchwarden_events_are_sorted_and_followed(world: &World) {
    let tenant = world.tenant();
    tenant.apply(&event(&tenant, "later", "Warning", "2026-01-02T00:00:00Z"));
    tenant.apply(&event(&tenant, "earlier", "Normal", "2026-01-01T00:00:00Z"));
    let of_a_pod = event(&tenant, "other", "Normal", "2026-01-01T00:00:00Z");
    tenant.apply(&of_a_pod.replace("patchwarden.io/v1alpha1, kind: DeviceInventory", "v1, kind: Pod"));
    let messages = |arguments: &[&str]| -> Vec<String> {
        let output = tenant.plugin(&[&["events", "-o", "json"], arguments].concat(), "");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let items = answer["items"].as_array().expect("a list");
        items.iter().map(|item| item["message"].as_str().expect("a message").to_owned()).collect()
    };
    assert_eq!(messages(&[]), ["earlier", "later"]);
    assert_eq!(messages(&["web-1", "--warnings"]), ["later"]);
    assert!(messages(&["web-2"]).is_empty());

    let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
    let mut following = Command::new(format!("{programs}/kubectl-patchwarden"))
        .args(["events", "--watch", "-n", &tenant.name])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the plugin");
    let mut lines = BufReader::new(following.stdout.take().expect("piped")).lines().map(|line| line.expect("UTF-8"));
    let first: Vec<String> = lines.by_ref().take(2).collect();
    tenant.apply(&event(&tenant, "new", "Normal", "2026-01-03T00:00:00Z"));
    let next = lines.next().expect("a line");
    following.kill().expect("it runs");
    following.wait().expect("it ends");
    assert!(first[0].ends_with("earlier") && first[1].ends_with("later"), "{first:?}");
    assert_eq!(next, "2026-01-03T00:00:00Z  Tested  DeviceInventory/web-1  new");
}
