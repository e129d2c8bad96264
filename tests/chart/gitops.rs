//! What docs/gitops.md and packaging/argocd say to Argo CD and Flux, without a cluster. That it is true of live objects is looked at in
//! `tests/cluster/gitops.rs`.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::{environment, objects, schemas};

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
        schemas.check(block).unwrap_or_else(|why| panic!("{why}\n{block}"));
    }
    let all: Vec<Value> = blocks.iter().flat_map(|block| objects(block)).collect();
    let checks = all.iter().find_map(|object| object.pointer("/spec/healthCheckExprs")).expect("healthCheckExprs");
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
    }
    // That it finds what is wrong.
    let wrong = blocks.iter().find(|block| block.contains("dependsOn")).unwrap().replace("dependsOn", "dependOn");
    let found = schemas.check(&wrong).expect_err("there is no dependOn");
    assert!(found.contains("dependOn"), "{found}");
}
