//! What docs/gitops.md and packaging/argocd say to Argo CD and Flux, without a cluster. That it is true of live objects is looked at in
//! `tests/cluster/gitops.rs`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{AGGREGATION, CHART, EVERYTHING, POSTGRESQL, environment, helm, objects, rendered, schemas};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(file: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{file}")).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The kinds that there are.
fn kinds() -> BTreeSet<String> {
    let files = std::fs::read_dir(format!("{ROOT}/crds")).unwrap();
    let read = |file: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(file.unwrap().path()).unwrap();
    // Beside them lies what Kustomize makes one of.
    files.filter_map(|file| Some(objects(&read(file))[0].pointer("/spec/names/kind")?.as_str()?.to_owned())).collect()
}

/// The YAML of the guide.
fn guide() -> Vec<String> {
    let text = read("docs/gitops.md");
    let blocks = text.split("```yaml\n").skip(1);
    blocks.map(|rest| rest.split_once("```").expect("a block ends").0.to_owned()).collect()
}

// covers BY-1
#[test]
fn every_kind_has_a_health_check_for_argo_cd_that_passes_its_tests_and_is_set() {
    let checks = "packaging/argocd/resource_customizations";
    let mut health = Command::new(format!("{ROOT}/hack/health"));
    let output = health.current_dir(ROOT).args(["test", checks]).output().expect("hack/health");
    let said = [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{said}");
    let kustomized = Command::new(environment("PATCHWARDEN_KUBECTL"))
        .args(["kustomize", &format!("{ROOT}/packaging/argocd")])
        .output()
        .expect("kubectl");
    assert!(kustomized.status.success(), "{}", String::from_utf8_lossy(&kustomized.stderr));
    let set = &objects(&String::from_utf8(kustomized.stdout).unwrap())[0];
    assert_eq!((&set["metadata"]["name"], &set["metadata"]["namespace"]), (&"argocd-cm".into(), &"argocd".into()));
    let set = set["data"].as_object().unwrap();
    assert_eq!(set.len(), kinds().len());
    let first = read(&format!("{checks}/patchwarden.io/PatchPolicy/health.lua"));
    for kind in kinds() {
        assert!(said.contains(&format!("/{kind}/health.lua: ")), "{kind} is not tested: {said}");
        let key = format!("resource.customizations.health.patchwarden.io_{kind}");
        assert_eq!(set.get(&key).and_then(Value::as_str), Some(&*first), "conditions mean the same of every kind");
    }
}

#[test]
fn the_guides_yaml_is_of_the_schemas_and_its_expressions_are_of_every_kind() {
    let schemas = schemas::Schemas::write();
    let blocks = guide();
    assert!(blocks.len() >= 8, "{}", blocks.len());
    for block in &blocks {
        // Whose kind has its types alone, and no schema that could be had: see below.
        let (releases, others): (Vec<_>, Vec<_>) = objects(block).into_iter().partition(is_release);
        let block = if releases.is_empty() { block.clone() } else { json_lines(&others) };
        schemas.check(&block).unwrap_or_else(|why| panic!("{why}\n{block}"));
    }
    let all: Vec<Value> = blocks.iter().flat_map(|block| objects(block)).collect();
    let mut kustomizations = all.iter().filter(|object| object["kind"] == "Kustomization");
    let checks = kustomizations.find_map(|object| object.pointer("/spec/healthCheckExprs")).expect("healthCheckExprs");
    let named = checks.as_array().unwrap().iter().map(|check| check["kind"].as_str().unwrap().to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), kinds());
    // What refers to another object of the guide refers to one that is there.
    let is_there = |kind: &str, name: &Value| {
        all.iter().any(|object| object["kind"] == kind && object["metadata"]["name"] == *name)
    };
    for object in &all {
        let spec = &object["spec"];
        let named = |kind: &str, value: &Value| {
            let is_named = value.as_array().is_none_or(|all| all.iter().all(|one| is_there(kind, one)));
            assert!(is_named, "{kind} {value} of {}", object["metadata"]["name"]);
        };
        named("MaintenanceWindow", &spec["windows"]);
        if let Some(parent) = spec.pointer("/parent/name") {
            assert!(is_there("ApprovalGroup", parent), "{parent}");
        }
        for other in spec["dependsOn"].as_array().into_iter().flatten() {
            assert!(is_there("Kustomization", &other["name"]), "{other} of {}", object["metadata"]["name"]);
        }
        for source in ["/sourceRef/name", "/chart/spec/sourceRef/name"].iter().filter_map(|path| spec.pointer(path)) {
            // That of the fleet, and that of Patchwarden.
            assert!(is_there("GitRepository", source), "{source} of {}", object["metadata"]["name"]);
        }
    }
    // That it finds what is wrong.
    let wrong = blocks.iter().find(|block| block.contains("dependsOn")).unwrap().replace("dependsOn", "dependOn");
    let found = schemas.check(&wrong).expect_err("there is no dependOn");
    assert!(found.contains("dependOn"), "{found}");
}

fn is_release(object: &Value) -> bool {
    object["kind"] == "HelmRelease"
}

/// Objects as YAML, of which JSON is a part.
fn json_lines(objects: &[Value]) -> String {
    objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

/// What Flux's own types and expressions make of a HelmRelease, and that of objects.
fn released(release: &Value, objects: &Value) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(release.to_string().as_bytes()).unwrap();
    let mut health = Command::new(format!("{ROOT}/hack/health"));
    let health = health.args(["release", file.path().to_str().unwrap()]);
    let mut child =
        health.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hack/health");
    // Where it refuses the release it does not read them.
    let _ = child.stdin.take().unwrap().write_all(objects.to_string().as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn the_guide_installs_the_chart_of_this_version_by_argo_cd_and_by_flux() {
    let all: Vec<Value> = guide().iter().flat_map(|block| objects(block)).collect();
    let named = |kind: &str| {
        let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == "patchwarden";
        all.iter().find(is).unwrap_or_else(|| panic!("no {kind} patchwarden in docs/gitops.md"))
    };
    let (application, release, git) = (named("Application"), named("HelmRelease"), named("GitRepository"));
    let source = &application["spec"]["source"];
    for (what, path) in [("Application", &source["path"]), ("HelmRelease", &release["spec"]["chart"]["spec"]["chart"])]
    {
        assert_eq!(format!("{ROOT}/{}", path.as_str().unwrap()), CHART, "{what}");
    }
    let version = concat!("v", env!("CARGO_PKG_VERSION"));
    assert_eq!((&source["targetRevision"], &git["spec"]["ref"]["tag"]), (&version.into(), &version.into()));
    let called = [&application["metadata"]["name"], &source["helm"]["releaseName"], &release["spec"]["releaseName"]];
    assert_eq!(called, ["patchwarden"; 3]);
    let place = named("Kustomization")["spec"]["path"].as_str().unwrap().trim_start_matches("./");
    assert!(read("docs/gitops.md").contains(&format!("`{place}/`")), "{place} is where the release lies");

    // The values are the chart's, and both install the same.
    let (argo, flux) = (&source["helm"]["valuesObject"], &release["spec"]["values"]);
    assert_eq!(argo, flux);
    let with = |values: &Value| {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        file.write_all(values.to_string().as_bytes()).unwrap();
        helm(&["template", "patchwarden", CHART, "--values", file.path().to_str().unwrap()], &[])
    };
    let output = with(argo);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wrong = with(&json!({"gateway": {"serverName": "patch.example.com"}}));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("serverName"), "{wrong:?}");
}

#[test]
fn fluxs_release_is_of_its_types_and_waits_for_the_aggregation_layer() {
    let all: Vec<Value> = guide().iter().flat_map(|block| objects(block)).collect();
    let release = all.iter().find(|object| is_release(object)).expect("a HelmRelease");
    let service = |conditions: Value| {
        json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1alpha1.store.patchwarden.io", "generation": 1},
            "spec": {},
            "status": {"conditions": conditions},
        })
    };
    let mut new = service(json!([]));
    new["status"] = json!({});
    let is = |status: &str| service(json!([{"type": "Available", "status": status}]));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [new, is("False"), is("True")]});
    let output = released(release, &list);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let said: Vec<_> = said
        .as_array()
        .unwrap()
        .iter()
        .map(|it| [&it["kstatus"], &it["flux"]].map(|who| who["status"].as_str().unwrap()))
        .collect();
    assert_eq!(said, [["Current", "InProgress"], ["Current", "InProgress"], ["Current", "Current"]]);

    // That it finds what is wrong.
    let mut wrong = release.clone();
    wrong["spec"]["drift"] = wrong["spec"].as_object_mut().unwrap().remove("driftDetection").unwrap();
    let output = released(&wrong, &list);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("unknown field \"drift\""), "{said}");
    let mut wrong = release.clone();
    wrong["spec"]["healthCheckExprs"][0]["current"] = "status.conditions.exists(c, c.type == 'Available'".into();
    let output = released(&wrong, &list);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("spec.healthCheckExprs: APIService"), "{said}");
}

/// What Argo CD renders is another each time where a chart makes up passwords, and what asks the cluster is another there.
#[test]
fn a_rendering_is_the_same_each_time_and_holds_no_secret() {
    for values in [vec![], EVERYTHING.to_vec(), [POSTGRESQL, AGGREGATION].concat()] {
        let first = rendered("patchwarden-system", &values);
        assert_eq!(first, rendered("patchwarden-system", &values), "{values:?}");
        assert!(objects(&first).iter().all(|object| object["kind"] != "Secret"), "{values:?}");
    }
}
