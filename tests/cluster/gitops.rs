//! Objects that come from Git: what Flux and Argo CD make of them, asked of the libraries that they decide with (`hack/health`), and
//! that what Git says stays as it is.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Test;
use crate::world::{Tenant, World, eventually, succeeded, with_input};

pub const TESTS: &[Test] = &[
    (
        "what_comes_from_git_is_in_progress_then_current_or_failed_at_once_with_the_reason",
        what_comes_from_git_is_in_progress_then_current_or_failed_at_once_with_the_reason,
    ),
    (
        "who_watches_what_comes_from_git_sees_it_become_current_or_fail_and_nothing_else",
        who_watches_what_comes_from_git_sees_it_become_current_or_fail_and_nothing_else,
    ),
    (
        "two_who_apply_from_git_see_no_drift_while_machines_are_patched",
        two_who_apply_from_git_see_no_drift_while_machines_are_patched,
    ),
    (
        "what_the_guide_to_gitops_shows_is_accepted_from_git_and_enforced",
        what_the_guide_to_gitops_shows_is_accepted_from_git_and_enforced,
    ),
];

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const KINDS: &str = "patchpolicies,approvalgroups,maintenancewindows,deviceinventories";

/// As Flux applies, and Argo CD where it is told to.
const GIT: &[&str] = &["--server-side", "--field-manager=git"];

/// How many passes the controller makes between the first look and the last.
const PASSES: f64 = 10.0;

/// A machine that nobody has joined yet, a window that is closed, and a policy that is suspended.
const BESIDE_THE_SAMPLES: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: DeviceInventory
metadata: {name: db-1}
spec: {type: Server}
---
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: suspended}
spec: {mode: Install, windows: [after-patch-tuesday], types: [Workstation], suspend: true}
";

/// What the API server accepts and nobody can act on: the object, and a part of the reason.
const BAD: &[(&str, &str)] = &[
    (
        "kind: PatchPolicy\nmetadata: {name: bad-window}\nspec: {mode: Install, windows: [nights]}",
        "spec.windows: MaintenanceWindow/nights does not exist",
    ),
    (
        "kind: ApprovalGroup\nmetadata: {name: bad-parent}\nspec: {parent: {name: nobody}, members: {names: [none]}}",
        "spec.parent: ApprovalGroup/bad-parent has the parent nobody, which does not exist",
    ),
    (
        "kind: ApprovalGroup\nmetadata: {name: bad-expression}\nspec: {members: {rule: 'device.tipe == \"Server\"'}}",
        "spec.members.rule",
    ),
    (
        "kind: ApprovalGroup\nmetadata: {name: bad-rule}\nspec: {members: {names: [none]}, rules: [{name: all, action: Approve, window: nights}]}",
        "MaintenanceWindow/nights does not exist",
    ),
    (
        "kind: MaintenanceWindow\nmetadata: {name: bad-cron}\nspec: {timeZone: UTC, schedules: [{cron: {expression: '99 3 * * *'}}], duration: 1h}",
        "spec.schedules[0].cron.expression",
    ),
];

/// The samples, in another namespace.
fn samples(tenant: &Tenant<'_>) -> String {
    let files = ["10-approval-groups", "20-maintenance-windows", "30-patch-policies"];
    let read = |file| std::fs::read_to_string(format!("{ROOT}/config/samples/{file}.yaml")).unwrap();
    let all = files.map(read).join("---\n") + "---" + BESIDE_THE_SAMPLES;
    all.replace("namespace: acme", &format!("namespace: {}", tenant.name))
}

/// What of our kinds is in a namespace.
fn all(tenant: &Tenant<'_>) -> Value {
    tenant.get(&[KINDS, "--show-managed-fields"])
}

/// What each of the three says of each object, and the messages of the two that have one.
fn asked(tenant: &Tenant<'_>, flux: &Path) -> BTreeMap<String, (String, String)> {
    let argo = format!("{ROOT}/packaging/argocd/resource_customizations");
    let program = format!("{ROOT}/hack/health");
    let arguments = ["ask", &argo, flux.to_str().unwrap()];
    let output = with_input(Command::new(&program).args(arguments), &all(tenant).to_string());
    let answers: Value = serde_json::from_str(&succeeded(&program, &arguments, &output)).expect("JSON");
    let answers = answers.as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let read = |it: &Value| {
        let said = ["kstatus", "flux", "argo"].map(|who| text(&it[who]["status"])).join(" ");
        let why = ["kstatus", "argo"].map(|who| text(&it[who]["message"])).join("\n");
        (format!("{}/{}", text(&it["kind"]), text(&it["name"])), (said, why))
    };
    answers.map(read).collect()
}

/// The bad objects, as YAML.
fn bad() -> String {
    let bad = BAD.iter().map(|(yaml, _)| format!("apiVersion: patchwarden.io/v1alpha1\n{yaml}\n"));
    bad.collect::<Vec<_>>().join("---\n")
}

/// A window that opens at some time.
const CLOSED: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: MaintenanceWindow
metadata: {name: closed}
spec: {timeZone: UTC, schedules: [{once: {at: '2099-01-01T00:00'}}], duration: 4h}
";

/// The `healthCheckExprs` of the guide.
fn flux_expressions() -> tempfile::NamedTempFile {
    let all = guide();
    let mut kustomizations = all.iter().filter(|it| it["kind"] == "Kustomization");
    let checks = kustomizations.find_map(|it| it.pointer("/spec/healthCheckExprs")).expect("healthCheckExprs");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(serde_json::to_string(checks).unwrap().as_bytes()).unwrap();
    file
}

/// The objects in docs/gitops.md.
fn guide() -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{ROOT}/docs/gitops.md")).expect("docs/gitops.md");
    let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").expect("a block ends").0);
    let objects = blocks.flat_map(|yaml| serde_saphyr::from_multiple::<Value>(yaml).expect("YAML"));
    objects.filter(|object| object["apiVersion"].is_string()).collect()
}

// covers BY-1
fn what_comes_from_git_is_in_progress_then_current_or_failed_at_once_with_the_reason(world: &World) {
    let tenant = world.tenant();
    let flux = flux_expressions();
    let apply = |yaml: &str| {
        world.kubectl_with(&[&["apply", "-n", &tenant.name, "-f", "-"], GIT].concat(), yaml);
    };
    // One that is in force, and closed. Whoever is asked is built by now.
    let earlier = world.tenant();
    earlier.apply(CLOSED);
    eventually("the window is current", || {
        let said = asked(&earlier, flux.path());
        (said["MaintenanceWindow/closed"].0 == "Current Current Healthy").then_some(())
    })
    .unwrap();
    assert_eq!(earlier.get(&["mw", "closed"])["status"]["active"], false);

    // Nobody looks at them yet: that is not to be taken for all being well.
    world.program("stop", "controller");
    apply(&samples(&tenant));
    for (object, (said, _)) in asked(&tenant, flux.path()) {
        assert_eq!(said, "InProgress InProgress Progressing", "{object}");
    }
    world.program("start", "controller");

    let expected = |object: &str| match object {
        "DeviceInventory/db-1" => "InProgress InProgress Progressing",
        "PatchPolicy/suspended" => "Current Current Suspended",
        _ => "Current Current Healthy",
    };
    let waits = "InProgress InProgress Progressing";
    let said = eventually("the controller has looked at all of it", || {
        let said = asked(&tenant, flux.path());
        // Nothing fails on the way, and nothing is current before it is.
        for (object, (now, why)) in &said {
            assert!(now == waits || now == expected(object), "{object}: {now}: {why}");
        }
        said.iter()
            .all(|(object, (now, why))| now == expected(object) && !why.contains("latest observed generation is -1"))
            .then_some(said)
    })
    .unwrap();
    assert_eq!(said.len(), 11, "{said:?}");
    assert!(said["DeviceInventory/db-1"].1.contains("no key is accepted yet"), "{said:?}");

    // Bad specs: in no answer is one of them current, and none waits for a timeout.
    apply(&bad());
    let name = |yaml: &str| yaml.split_once("{name: ").unwrap().1.split_once('}').unwrap().0.to_owned();
    let failed = eventually("all of them have failed", || {
        let said = asked(&tenant, flux.path());
        let bad: BTreeMap<_, _> = said.into_iter().filter(|(object, _)| object.contains("/bad-")).collect();
        assert_eq!(bad.len(), BAD.len());
        assert!(bad.values().all(|(said, _)| !said.contains("Current") && !said.contains("Healthy")), "{bad:?}");
        bad.values().all(|(said, _)| said == "Failed Failed Degraded").then_some(bad)
    })
    .unwrap();
    for (yaml, reason) in BAD {
        let (object, (_, why)) =
            failed.iter().find(|(object, _)| object.ends_with(&format!("/{}", name(yaml)))).unwrap();
        assert_eq!(why.matches(reason).count(), 2, "{object}: {why}");
    }
    // Its reason gone, it is well by itself.
    apply(&samples(&tenant).replace("name: anytime", "name: nights"));
    eventually("what lacked a window is in force", || {
        (asked(&tenant, flux.path())["PatchPolicy/bad-window"].0 == "Current Current Healthy").then_some(())
    })
    .unwrap();
}

/// By the watcher that Flux, too, waits with: it tells each change of each object, so that nothing is missed in between.
// covers BY-1
fn who_watches_what_comes_from_git_sees_it_become_current_or_fail_and_nothing_else(world: &World) {
    let tenant = world.tenant();
    let yaml = format!("{}---\n{}", samples(&tenant), bad());
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&yaml).expect("YAML");
    // Nobody has joined that machine, so that it stays in progress.
    objects.retain(|object| object["kind"] != "DeviceInventory");
    for object in &mut objects {
        object["metadata"]["namespace"] = tenant.name.clone().into();
    }
    let wanted = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();

    let mut watch = Command::new(format!("{ROOT}/hack/health"))
        .args(["watch", "2m"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hack/health starts");
    watch.stdin.take().expect("piped").write_all(wanted.as_bytes()).expect("it reads the list");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
    // From then on nothing is missed.
    let mut told: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    world.kubectl_with(&[&["apply", "-f", "-"], GIT].concat(), &wanted);
    told.extend(lines);
    assert!(watch.wait().expect("it ends").success(), "{told:#?}");

    let mut seen: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for line in &told {
        let one: Value = serde_json::from_str(line).expect("JSON");
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let object = format!("{}/{}", text("kind"), text("name"));
        seen.entry(object).or_default().push((text("status"), text("message")));
    }
    assert_eq!(seen.len(), objects.len(), "{seen:#?}");
    for (object, course) in seen {
        let reason =
            BAD.iter().find(|(yaml, _)| yaml.contains(&format!("{{name: {}}}", object.split('/').nth(1).unwrap())));
        let end = if reason.is_some() { "Failed" } else { "Current" };
        let (end_of_it, before) = course.split_last().expect("something is told of it");
        assert!(
            before.iter().all(|(status, _)| ["NotFound", "InProgress"].contains(&&**status)),
            "{object}: {course:?}"
        );
        assert!(before.iter().any(|(status, _)| status == "InProgress"), "{object}: {course:?}");
        assert_eq!(end_of_it.0, end, "{object}: {course:?}");
        assert!(reason.is_none_or(|(_, why)| end_of_it.1.contains(why)), "{object}: {course:?}");
    }
}

// covers BY-1
fn two_who_apply_from_git_see_no_drift_while_machines_are_patched(world: &World) {
    let repository = world.repository("drift", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("drift-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    let from_git = samples(&tenant);
    // Another team's part of the same objects.
    let from_security = format!(
        "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {{name: everyone, namespace: {0}, labels: {{team: security}}}}
spec: {{decisions: [{{update: KB-1, action: Ignore, reason: breaks the printer}}]}}
---
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {{name: servers, namespace: {0}}}
spec: {{deadlines: [{{severity: Critical, within: 48h}}]}}
",
        tenant.name
    );
    let both = [("git", &from_git), ("security", &from_security)];
    let kubectl = |verb: &str, manager: &str, yaml: &str| {
        let mut command = Command::new("kubectl");
        command
            .args([verb, "-n", &tenant.name, "-f", "-"])
            .args(["--server-side", &format!("--field-manager={manager}")]);
        with_input(&mut command, yaml)
    };
    for (manager, yaml) in both {
        succeeded("kubectl apply", &[manager], &kubectl("apply", manager, yaml));
    }
    tenant.join(&device);
    let generations = |wanted: &Value| -> BTreeMap<String, (Value, Value)> {
        let of = |it: &Value| {
            (
                format!("{}/{}", it["kind"], it["metadata"]["name"]),
                (it["metadata"]["generation"].clone(), it["spec"].clone()),
            )
        };
        wanted["items"].as_array().unwrap().iter().map(of).collect()
    };
    let before = generations(&all(&tenant));
    assert!(before.len() >= 12, "{before:?}");

    let least = Duration::from_mins(std::env::var("PATCHWARDEN_DRIFT_MINUTES").map_or(0, |it| it.parse().unwrap()));
    let (start, first) = (Instant::now(), world.metric("controller", "patchwarden_passes_total"));
    let (mut looks, mut passes) = (0, 0.0);
    while passes < PASSES || start.elapsed() < least {
        for (manager, yaml) in both {
            // It reads an object and tries its apply without holding it: what is written in between looks like a difference.
            let mut differs = kubectl("diff", manager, yaml);
            for _ in 0..2 {
                if differs.status.code() == Some(1) {
                    differs = kubectl("diff", manager, yaml);
                }
            }
            // 0: nothing differs; 1: something does; more: it could not be said.
            assert_eq!(differs.status.code(), Some(0), "{manager}: {}", String::from_utf8_lossy(&differs.stdout));
            let again = succeeded("kubectl apply", &[manager], &kubectl("apply", manager, yaml));
            assert!(again.lines().count() >= 2, "{again}");
        }
        looks += 1;
        // Something of a machine changes, so that it is planned for anew.
        tenant.label("db-1", &format!("looked-at=at-{looks} --overwrite"));
        let before = first + passes;
        passes = eventually("the controller has planned anew", || {
            let now = world.metric("controller", "patchwarden_passes_total");
            (now > before).then_some(now - first)
        })
        .unwrap();
    }
    tenant.wait_for("drift-1", "it was patched meanwhile", |device| !crate::crash::compliance(device).last.is_empty());
    println!("no drift in {looks} looks of each, over {passes} passes and {} s", start.elapsed().as_secs());

    let after = all(&tenant);
    assert_eq!(generations(&after), before, "a spec was rewritten");
    for object in after["items"].as_array().unwrap() {
        assert_only_status_is_ours(object);
    }
}

/// By managedFields: our programs own status, and nothing of an object that somebody else has made.
fn assert_only_status_is_ours(object: &Value) {
    let shown = format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
    let managed = object["metadata"]["managedFields"].as_array().expect("asked for with --show-managed-fields");
    let ours: Vec<_> =
        managed.iter().filter(|it| it["manager"].as_str().unwrap().starts_with("patchwarden-")).collect();
    assert!(!ours.is_empty(), "nobody has written the status of {shown}");
    for entry in ours {
        let fields: Vec<_> = entry["fieldsV1"].as_object().unwrap().keys().collect();
        // The gateway makes the record of a machine that joins by a token.
        let joined = object["metadata"]["name"] == "drift-1" && entry["manager"] == "patchwarden-gateway";
        if !joined {
            assert_eq!(
                (&entry["subresource"], &fields[..]),
                (&"status".into(), &[&"f:status".to_owned()][..]),
                "{shown}: {entry:#}"
            );
        }
    }
}

fn what_the_guide_to_gitops_shows_is_accepted_from_git_and_enforced(world: &World) {
    let tenant = world.tenant();
    let (ours, others): (Vec<_>, Vec<_>) =
        guide().into_iter().partition(|object| object["apiVersion"].as_str().unwrap().starts_with("patchwarden.io/"));
    assert!(ours.len() >= 6 && others.len() >= 4, "{} and {} objects", ours.len(), others.len());
    let mut wanted = 0;
    for mut object in ours {
        // What is the organisation's stays where it is.
        if object["metadata"]["namespace"] == "acme" {
            object["metadata"]["namespace"] = tenant.name.clone().into();
            wanted += 1;
        }
        let apply = [&["apply", "--validate=strict", "-f", "-"], GIT].concat();
        let dry_run = world.kubectl_with(&[&apply[..], &["--dry-run=server"]].concat(), &object.to_string());
        assert!(dry_run.contains("(server dry run)"), "{dry_run}");
        world.kubectl_with(&apply, &object.to_string());
    }
    let flux = flux_expressions();
    let mut last = BTreeMap::new();
    eventually("all of it is in force", || {
        last = asked(&tenant, flux.path());
        assert_eq!(last.len(), wanted);
        last.values().all(|(said, _)| said == "Current Current Healthy").then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}: {last:?}"));
    world.kubectl(&["delete", "-n", "patchwarden-system", "approvalgroup", "organisation"]);
}
