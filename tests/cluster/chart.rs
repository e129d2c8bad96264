//! The Helm chart, in a cluster of its own (`hack/chart cluster`): what it and `config/base` apply to a whole cluster has the same names.

use std::collections::BTreeSet;
use std::process::{Child, Command};

use patchwarden::api::DeviceInventory;
use patchwarden_protocol::result::Outcome;
use patchwarden_protocol::surroundings::{UpdaterChoice, UpdaterState};
use serde_json::Value;

use crate::Test;
use crate::alertmanager::Alertmanager;
use crate::left::{
    Everything, before_it_is_removed, no_drift, of_a_client, remove_everything, with_kinds, without_kinds,
};
use crate::metrics::{GATEWAY_DOWN, Prometheus};
use crate::replicas::postgres::Postgres;
use crate::updater;
use crate::world::{Device, MAY_GO, PATIENCE, POLICY, Tenant, World, eventually, succeeded};

pub const TESTS: &[Test] = &[(
    "a_release_of_the_chart_patches_a_machine_and_loses_nothing_by_an_upgrade_or_by_its_removal",
    a_release_patches_a_machine,
)];

const SYSTEM: &str = "patchwarden-system";
const AGENTS_NODE_PORT: u16 = 30443;
const DATABASE_PORT: u16 = 5432;

// covers MW-9, EM-13, CL-2
fn a_release_patches_a_machine(world: &World) {
    for program in ["controller", "gateway", "runner"] {
        let programs = std::env::var("PATCHWARDEN_PROGRAMS").expect("checked at the start");
        let image = format!("localhost/patchwarden-{program}:{}", env!("CARGO_PKG_VERSION"));
        world.cluster("load-image", &[&image, &format!("{programs}/patchwarden-{program}")]);
    }
    let gateway = world.variable("NODE_ADDRESS");
    volume(world);
    let before = Everything::of(world);
    world.kubectl(&["create", "namespace", SYSTEM]);
    // What does not meet this standard gets no pod there.
    world.kubectl(&["label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted"]);
    install(&gateway);
    let tested = helm(&["test", "patchwarden", "--logs"]);
    assert!(tested.contains("ok      the four kinds") && tested.matches("\nok      http").count() == 2, "{tested}");
    doctor_names_what_is_missing(world);
    no_drift(world, &helm(&["get", "manifest", "patchwarden"]));

    let slow = format!("slow=1.1,postinst-waits={MAY_GO}");
    let repository = world.repository(
        "chart",
        &["slow=1.0", &slow, "later=1.0", "later=1.1", "last=1.0", "last=1.1", "never=1.0", "never=1.1"],
    );
    let device = world.device("chart-1", &repository, &[]);
    device.install(&["slow=1.0", "later=1.0", "last=1.0", "never=1.0"]);
    let tenant = world.tenant();
    tenant.install_everything();
    approve(&tenant, "slow");
    join(world, &tenant, &device, &gateway);
    eventually("the package manager is configuring slow", || {
        device.run(&["cat", "/var/log/dpkg.log"]).contains(" configure slow:all 1.1").then_some(())
    })
    .unwrap();

    let former = pods(world);
    helm(&[
        "upgrade",
        "patchwarden",
        "charts/patchwarden",
        "--reuse-values",
        "--wait",
        "--timeout=5m",
        "--set=controller.podAnnotations.new=yes,gateway.podAnnotations.new=yes",
    ]);
    let after = pods(world);
    assert!(
        former.iter().all(|pod| !after.contains(pod)),
        "controller and gateway are other pods: {former:?} {after:?}"
    );
    device.let_go();
    ended_well(&tenant, 1);
    assert_eq!((device.version("slow"), device.upgrades("slow")), ("1.1".to_owned(), 1));
    assert_eq!(tenant.jobs().len(), 1);
    world.kubectl(&["wait", "-n", &tenant.name, "--for=condition=Complete", "--timeout=600s", "job/chart-1-0-1"]);

    helm(&["uninstall", "patchwarden", "--wait", "--timeout=5m"]);
    before.and_no_more_than(world, &with_kinds(&tenant.name, "chart-1-0-1"));
    assert!(tenant.device("chart-1").spec.accepted_key.is_some());

    install(&gateway);
    let prometheus = Prometheus::start(world, &service_monitors());
    prometheus.scrapes(2, 1);
    approve(&tenant, "later");
    ended_well(&tenant, 2);
    assert_eq!(device.version("later"), "1.1", "what was kept is enough to go on");

    let postgres = Postgres::start();
    let _relay = several_gateways(world, &postgres, &gateway);
    approve(&tenant, "last");
    ended_well(&tenant, 3);
    assert_eq!(device.version("last"), "1.1", "gateways with PostgreSQL go on where the one with SQLite stopped");
    let told =
        postgres.rows("SELECT count(*) FROM install WHERE device = 'chart-1' AND number = 3 AND result IS NOT NULL");
    assert_eq!(told, ["1"], "its result is in their database");

    prometheus.scrapes(2, 2);
    prometheus.has_what_is_documented();
    prometheus.answers_dashboards_and_alerts();
    somebody_is_told_that_no_gateway_is_there(world, &prometheus);
    drop(prometheus);

    nothing_is_left(world, &before, &tenant, &device);
    the_programs_of_config_run(world, &before, &tenant);
}

/// All that `kubectl patchwarden doctor` finds that is not well; its exit code says the same.
fn amiss(world: &World) -> Vec<String> {
    let output = world.run_plugin(&["doctor", "-A", "-o", "json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    let checks: BTreeSet<_> = findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    let wanted = [
        "API server",
        "CRDs",
        "admission",
        "certificates",
        "clock",
        "controller",
        "gateway",
        "permissions",
        "roles",
        "stalled",
    ];
    assert_eq!(checks, wanted.into());
    let amiss = findings.iter().filter(|finding| finding["level"] != "Ok");
    let amiss: Vec<_> = amiss.map(|finding| format!("{}: {}", finding["level"], finding["what"])).collect();
    assert_eq!(amiss.is_empty(), output.status.success(), "{amiss:?}: {:?}", output.status);
    amiss
}

fn doctor_names_what_is_missing(world: &World) {
    let is_well = |when: &str| {
        let mut last = vec![];
        let well = eventually(when, || {
            last = amiss(world);
            last.is_empty().then_some(())
        });
        well.unwrap_or_else(|why| panic!("{why}: {last:?}"));
    };
    is_well("all is well after the install");
    // What each was before is in the release: an upgrade makes it again.
    let objects = [
        ("clusterrolebinding", "ClusterRoleBinding", "patchwarden-controller"),
        ("validatingadmissionpolicy", "ValidatingAdmissionPolicy", "patchwarden-new-devices"),
    ];
    for (resource, kind, name) in objects {
        world.kubectl(&["delete", resource, name]);
        assert_eq!(amiss(world), [format!("\"Error\": \"{kind} {name} does not exist\"")]);
        helm(&["upgrade", "patchwarden", "charts/patchwarden", "--reuse-values", "--wait", "--timeout=5m"]);
        is_well("all is well after an upgrade");
    }
}

/// Without `crds.keep`, and after what docs/install.md says of the rest.
fn nothing_is_left(world: &World, before: &Everything, tenant: &Tenant<'_>, device: &Device<'_>) {
    helm(&[
        "upgrade",
        "patchwarden",
        "charts/patchwarden",
        "--reuse-values",
        "--wait",
        "--timeout=5m",
        "--set=crds.keep=false,gateway.aggregation.enabled=true",
    ]);
    let service = ["apiservice", "v1alpha1.store.patchwarden.io"];
    world.kubectl(&["wait", "--for=condition=Available", "--timeout=120s", service[0], service[1]]);
    let bundle = world.kubectl(&["get", service[0], service[1], "-o", "jsonpath={.spec.caBundle}"]);
    assert!(!bundle.is_empty(), "the controller has not told whom the API server believes");
    no_drift(world, &helm(&["get", "manifest", "patchwarden"]));

    the_systems_own_updater_is_given_back(tenant, device);
    assert_eq!(tenant.jobs().len(), 3);
    helm(&["uninstall", "patchwarden", "--wait", "--timeout=5m"]);
    world.kubectl(&["delete", "secret", "-n", SYSTEM, "database"]);
    before.and_no_more_than(world, &without_kinds(&tenant.name));
    remove_everything();
    before.and_no_more_than(world, &of_a_client(&tenant.name));
}

/// By what docs/install.md says is to be done first.
fn the_systems_own_updater_is_given_back(tenant: &Tenant<'_>, device: &Device<'_>) {
    tenant.apply(&POLICY.replace("mode: Install", "osUpdater: Disable, mode: Install"));
    let is = |object: &DeviceInventory, state: UpdaterState| {
        let as_policy_says = ("True".to_owned(), "AsPolicySays".to_owned());
        updater::condition(object) == Some(as_policy_says)
            && updater::updater(object).is_some_and(|told| (told.state, told.by) == (state, UpdaterChoice::Policy))
    };
    tenant.wait_for("chart-1", "its updater is off", |object| is(object, UpdaterState::Off));
    assert!(updater::is_switched_off(device));
    before_it_is_removed();
    tenant.wait_for("chart-1", "it is given back", |object| is(object, UpdaterState::Left));
    assert!(!updater::is_switched_off(device));
}

/// `config/programs`, with what is of this cluster in an overlay, as its head says.
fn the_programs_of_config_run(world: &World, before: &Everything, tenant: &Tenant<'_>) {
    // The volume is as new.
    world.kubectl(&["patch", "pv", "gateway", "--type=json", "-p", r#"[{"op": "remove", "path": "/spec/claimRef"}]"#]);
    let data = world.state().join("gateway-data");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();

    let overlay = world.state().join("programs-overlay");
    std::fs::create_dir(&overlay).unwrap();
    let up = "../".repeat(overlay.components().count() - 1);
    let programs = concat!(env!("CARGO_MANIFEST_DIR"), "/config/programs").trim_start_matches('/');
    let kustomization = format!(
        "
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [{up}{programs}]
images:
  - {{name: registry.example.com/patchwarden/patchwarden-controller, newName: localhost/patchwarden-controller}}
  - {{name: registry.example.com/patchwarden/patchwarden-gateway, newName: localhost/patchwarden-gateway}}
patches:
  - target: {{kind: StatefulSet, name: patchwarden-gateway}}
    patch: '[{{\"op\": \"add\", \"path\": \"/spec/volumeClaimTemplates/0/spec/storageClassName\", \"value\": \"by-hand\"}}]'
"
    );
    std::fs::write(overlay.join("kustomization.yaml"), kustomization).unwrap();
    let overlay = overlay.to_str().unwrap();
    world.kubectl(&["apply", "-k", overlay]);
    for program in ["deployment/patchwarden-controller", "statefulset/patchwarden-gateway"] {
        world.kubectl(&["rollout", "status", "-n", SYSTEM, program, "--timeout=300s"]);
    }
    let mut last = vec![];
    let well = eventually("doctor finds nothing amiss", || {
        last = amiss(world);
        last.is_empty().then_some(())
    });
    well.unwrap_or_else(|why| panic!("{why}: {last:?}"));
    world.kubectl(&["delete", "-k", overlay, "--timeout=300s"]);
    before.and_no_more_than(world, &of_a_client(&tenant.name));
}

/// By Alertmanager, with what to do, and that it is over.
fn somebody_is_told_that_no_gateway_is_there(world: &World, prometheus: &Prometheus<'_>) {
    let alertmanager = Alertmanager::start(world);
    let scale = |replicas: usize| {
        world.kubectl(&["scale", "-n", SYSTEM, "deployment/patchwarden-gateway", &format!("--replicas={replicas}")]);
    };
    scale(0);
    let told = alertmanager.has_told(GATEWAY_DOWN, "firing");
    assert_eq!(told["labels"]["severity"], "critical", "{told}");
    assert!(told["annotations"]["runbook_url"].as_str().unwrap().ends_with("docs/install.md#patchwardengatewaydown"));
    scale(2);
    world.kubectl(&["rollout", "status", "-n", SYSTEM, "deployment/patchwarden-gateway", "--timeout=300s"]);
    prometheus.scrapes(2, 2);
    alertmanager.has_told(GATEWAY_DOWN, "resolved");
}

/// What Prometheus' operator, which is not here, would be told.
fn service_monitors() -> Vec<Value> {
    let rendered = helm(&[
        "template",
        "patchwarden",
        "charts/patchwarden",
        "--set=serviceMonitor.enabled=true,crds.enabled=false",
    ]);
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).expect("YAML");
    objects.into_iter().filter(|object| object["kind"] == "ServiceMonitor").collect()
}

/// Upgrades the release to two gateways with PostgreSQL.
fn several_gateways(world: &World, postgres: &Postgres, address: &str) -> Relay {
    let socket = format!("UNIX-CONNECT:{}", postgres.socket().display());
    let listen = format!("TCP-LISTEN:{DATABASE_PORT},bind={address},fork,reuseaddr");
    let relay = Relay(world.inside("socat").args([&listen, &socket]).spawn().expect("socat"));
    // The server believes its socket; that there is a password shows that the gateway can read it.
    let url = format!("--from-literal=url=postgres://patchwarden@{address}:{DATABASE_PORT}/postgres?sslmode=disable");
    world.kubectl(&["create", "secret", "generic", "database", "-n", SYSTEM, &url, "--from-literal=password=any"]);
    helm(&[
        "upgrade",
        "patchwarden",
        "charts/patchwarden",
        "--reuse-values",
        "--wait",
        "--timeout=5m",
        "--set=gateway.replicas=2,gateway.database.type=postgresql,gateway.database.postgresql.secret=database",
        "--set=gateway.database.postgresql.passwordKey=password",
    ]);
    helm(&["test", "patchwarden"]);
    relay
}

/// What carries the database's socket into the cluster's network. It ends when this is dropped.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.kill().expect("socat is ours");
        self.0.wait().expect("socat is ours");
    }
}

/// The volume for SQLite: the cluster makes none by itself.
fn volume(world: &World) {
    let path = world.state().join("gateway-data");
    std::fs::create_dir_all(&path).unwrap();
    let (path, node) = (path.display(), world.name());
    world.kubectl_with(
        &["create", "-f", "-"],
        &format!(
            "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: gateway}}
spec:
  capacity: {{storage: 8Gi}}
  accessModes: [ReadWriteOncePod]
  storageClassName: by-hand
  local: {{path: {path}}}
  nodeAffinity:
    required:
      nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]
"
        ),
    );
}

fn install(gateway: &str) {
    let values = format!(
        "--set=image.registry=localhost,image.pullPolicy=Never,gateway.persistence.storageClass=by-hand,\
         gateway.agents.type=NodePort,gateway.agents.nodePort={AGENTS_NODE_PORT},gateway.serverNames={{{gateway}}},\
         dashboards.enabled=true"
    );
    helm(&["install", "patchwarden", "charts/patchwarden", "--wait", "--timeout=5m", &values]);
}

fn helm(arguments: &[&str]) -> String {
    let program = std::env::var("PATCHWARDEN_HELM").expect("set by hack/chart");
    let arguments = [arguments, &["--namespace", SYSTEM]].concat();
    let output =
        Command::new(&program).args(&arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("helm");
    succeeded("helm", &arguments, &output)
}

fn approve(tenant: &Tenant<'_>, package: &str) {
    tenant.apply(&format!(
        "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {{name: everybody}}
spec:
  members: {{selector: {{}}}}
  decisions: [{{update: 'pkg:deb/debian/{package}@1.1', action: Approve}}]
  minArtifactAge: 0m
"
    ));
}

fn join(world: &World, tenant: &Tenant<'_>, device: &Device<'_>, gateway: &str) {
    let command = world.enroll_at(&format!("{gateway}:{AGENTS_NODE_PORT}"), &tenant.name, &["-o", "json"]);
    let command: Value = serde_json::from_str(&command).expect("JSON");
    let words: Vec<_> = command["command"].as_str().expect("a command").split_whitespace().collect();
    device.run(&[&words[..], &["--name", &device.name, "--refresh-spread", "0"]].concat());
}

/// UIDs of the pods of controller and gateway, but for those that are ending.
fn pods(world: &World) -> Vec<String> {
    let list: Value = serde_json::from_str(&world.kubectl(&["get", "pods", "-n", SYSTEM, "-o", "json"])).expect("JSON");
    let pods = list["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]);
    let stay = pods.filter(|metadata| metadata["deletionTimestamp"].is_null());
    let found: Vec<_> = stay.map(|metadata| metadata["uid"].as_str().unwrap().to_owned()).collect();
    assert_eq!(found.len(), 3, "two controllers and a gateway: {list}");
    found
}

/// Waits until so many installs have ended, all of them well.
fn ended_well(tenant: &Tenant<'_>, installs: usize) {
    let done = tenant.wait_for("chart-1", "the install has ended", |device| {
        let compliance = device.status.as_ref().and_then(|status| status.compliance.as_ref());
        compliance.is_some_and(|compliance| compliance.current.is_none() && compliance.last.len() == installs)
    });
    let last = done.status.unwrap().compliance.unwrap().last;
    assert!(last.iter().all(|past| past.outcome == Some(Outcome::Succeeded)), "within {PATIENCE:?}: {last:?}");
}
