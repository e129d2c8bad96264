//! JSON schemas for kubeconform, made from what Kubernetes, the Prometheus operator, Argo CD and Flux publish of their kinds: strict, since Kubernetes
//! itself drops a misspelt field without a word.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{environment, objects};

/// A directory of them.
pub struct Schemas(TempDir);

impl Schemas {
    /// Writes those of all kinds.
    pub fn write() -> Self {
        let schemas = Self(TempDir::new().unwrap());
        let source = environment("PATCHWARDEN_KUBERNETES_SOURCE");
        let text = fs::read_to_string(format!("{source}/api/openapi-spec/swagger.json")).expect("Kubernetes' OpenAPI");
        schemas.of_kubernetes(serde_json::from_str(&text).expect("JSON"));
        let source = environment("PATCHWARDEN_PROMETHEUS_OPERATOR_SOURCE");
        for kind in ["servicemonitors", "prometheusrules"] {
            let file = format!("{source}/example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml");
            schemas.of_definition(&objects(&fs::read_to_string(file).expect("a CRD"))[0]);
        }
        // What docs/gitops.md tells of Argo CD and Flux; and our own.
        let (argo, kustomize) =
            (environment("PATCHWARDEN_ARGOCD_SOURCE"), environment("PATCHWARDEN_FLUX_KUSTOMIZE_SOURCE"));
        let source = environment("PATCHWARDEN_FLUX_SOURCE_SOURCE");
        let own = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/crds")).expect("crds");
        let own = own.map(|file| file.unwrap().path().to_str().expect("UTF-8").to_owned());
        let files = [
            format!("{argo}/manifests/crds/application-crd.yaml"),
            format!("{kustomize}/config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml"),
            format!("{source}/config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml"),
        ];
        for file in own.chain(files) {
            let definition = &objects(&fs::read_to_string(file).expect("YAML"))[0];
            // Beside them lies what Kustomize makes one of.
            if definition["kind"] == "CustomResourceDefinition" {
                schemas.of_definition(definition);
            }
        }
        schemas
    }

    /// What kubeconform has against objects.
    pub fn check(&self, yaml: &str) -> Result<(), String> {
        let location = format!(
            "{}/{{{{.Group}}}}_{{{{.ResourceAPIVersion}}}}_{{{{.ResourceKind}}}}.json",
            self.0.path().display()
        );
        let mut child = Command::new(environment("PATCHWARDEN_KUBECONFORM"))
            .args(["-strict", "-summary", "-schema-location", &location, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubeconform");
        child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let count = objects(yaml).len();
        let counts = format!("Summary: {count} resource{} found", if count == 1 { "" } else { "s" });
        if output.status.success() && said.contains(&counts) && said.contains("Skipped: 0") {
            Ok(())
        } else {
            Err(said)
        }
    }

    fn of_kubernetes(&self, mut openapi: Value) {
        make_strict(&mut openapi["definitions"]);
        let definitions = openapi["definitions"].as_object().expect("definitions");
        for (name, definition) in definitions {
            let Some(kinds) = definition["x-kubernetes-group-version-kind"].as_array() else { continue };
            let mut needed = BTreeSet::from([name.clone()]);
            reach(definition, definitions, &mut needed);
            let needed: serde_json::Map<_, _> =
                needed.into_iter().map(|name| (name.clone(), definitions[&name].clone())).collect();
            for kind in kinds {
                let schema = json!({"$ref": format!("#/definitions/{name}"), "definitions": needed});
                self.keep(
                    [&kind["group"], &kind["version"], &kind["kind"]].map(|word| word.as_str().expect("a word")),
                    &schema,
                );
            }
        }
    }

    fn of_definition(&self, definition: &Value) {
        let spec = &definition["spec"];
        for version in spec["versions"].as_array().expect("versions") {
            let mut schema = version["schema"]["openAPIV3Schema"].clone();
            // The API server has them of every kind, whether a definition names them or not.
            for (field, type_) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
                if schema["properties"][field].is_null() {
                    schema["properties"][field] = json!({"type": type_});
                }
            }
            make_strict(&mut schema);
            let names = [&spec["group"], &version["name"], &spec["names"]["kind"]];
            self.keep(names.map(|word| word.as_str().expect("a word")), &schema);
        }
    }

    fn keep(&self, [group, version, kind]: [&str; 3], schema: &Value) {
        // kubeconform takes the version for the group of the core.
        let group = if group.is_empty() { version } else { group };
        let file = self.0.path().join(format!("{group}_{version}_{}.json", kind.to_lowercase()));
        fs::write(file, schema.to_string()).unwrap();
    }
}

/// All definitions that a schema refers to.
fn reach(schema: &Value, definitions: &serde_json::Map<String, Value>, reached: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                let name = name.trim_start_matches("#/definitions/").to_owned();
                if reached.insert(name.clone()) {
                    reach(&definitions[&name], definitions, reached);
                }
            }
            fields.values().for_each(|value| reach(value, definitions, reached));
        }
        Value::Array(values) => values.iter().for_each(|value| reach(value, definitions, reached)),
        _ => {}
    }
}

/// Refuses fields that are not named, and says in JSON Schema's words what OpenAPI's formats mean.
fn make_strict(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let is_open = fields.contains_key("additionalProperties")
                || fields.contains_key("x-kubernetes-preserve-unknown-fields");
            if fields.get("properties").is_some_and(Value::is_object) && fields.contains_key("type") && !is_open {
                fields.insert("additionalProperties".into(), false.into());
            }
            if fields.get("format").is_some_and(|format| format == "int-or-string") {
                fields.insert("type".into(), json!(["string", "integer"]));
            }
            fields.values_mut().for_each(make_strict);
        }
        Value::Array(values) => values.iter_mut().for_each(make_strict),
        _ => {}
    }
}
