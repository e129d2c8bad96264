use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::rights::{COMMANDS, Right, of_command};
use super::{Finding, Level, Scope, clock, definitions, installation, roles, text};
use crate::api::crd;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_clock_differs_only_as_far_as_the_answer_proves() {
    let date = at("2026-11-29T12:00:00Z");
    let skew = |before, after| clock::skew(at(before), at(after), date).as_secs();
    assert_eq!(skew("2026-11-29T12:00:00Z", "2026-11-29T12:00:00.5Z"), 0);
    assert_eq!(skew("2026-11-29T11:59:00Z", "2026-11-29T12:00:30Z"), 0, "the answer took 90 s: nothing is proved");
    assert_eq!(skew("2026-11-29T12:00:11Z", "2026-11-29T12:00:12Z"), 10);
    assert_eq!(skew("2026-11-29T11:57:00Z", "2026-11-29T11:57:01Z"), -179);
    let level = |seconds| clock::judged(SignedDuration::from_secs(seconds)).level;
    assert_eq!([0, 5, 6, -6, 121, -121].map(level), {
        use Level::{Error, Ok, Warning};
        [Ok, Ok, Warning, Warning, Error, Error]
    });
    assert!(clock::judged(SignedDuration::from_secs(-179)).what.contains("179 s behind"));
}

#[test]
fn a_definition_that_is_older_or_newer_or_not_served_is_told() {
    let (_, own) = crd::all().unwrap().remove(0);
    let mut live = serde_json::to_value(&own).unwrap();
    let judged = |live: &serde_json::Value| definitions::differs(&own, &serde_json::from_value(live.clone()).unwrap());
    assert!(judged(&live).unwrap().what.contains("not established"));
    live["status"] = json!({"acceptedNames": {"kind": "x", "plural": "x"}, "conditions": [
        {"type": "Established", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]});
    assert_eq!(judged(&live), None);

    let schema = |live: &mut serde_json::Value| {
        live["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].take()
    };
    let mut fields = schema(&mut live);
    let place = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    fields["brandNew"] = json!({"type": "string"});
    *live.pointer_mut(place).unwrap() = fields.clone();
    let newer = judged(&live).unwrap();
    assert_eq!(newer.level, Level::Warning);
    assert!(newer.what.contains("newer than this plugin: it has spec.brandNew"), "{newer:?}");
    fields.as_object_mut().unwrap().remove("acceptedKey");
    *live.pointer_mut(place).unwrap() = fields;
    let older = judged(&live).unwrap();
    assert_eq!(older.level, Level::Error);
    assert!(older.what.contains("it lacks spec.acceptedKey"), "{older:?}");
    live["spec"]["versions"][0]["served"] = json!(false);
    assert!(judged(&live).unwrap().what.contains("does not serve v1alpha1"));
}

#[test]
fn a_controller_that_does_not_renew_its_lease_does_not_lead() {
    let judged = |lease: Option<serde_json::Value>| {
        let lease: Option<Lease> = lease.map(|lease| serde_json::from_value(lease).unwrap());
        installation::leader(lease.as_ref(), "Lease x", at("2026-11-29T12:01:00Z"))
    };
    let held = |renewed: &str| json!({"metadata": {}, "spec": {"holderIdentity": "a", "renewTime": renewed}});
    assert_eq!(judged(Some(held("2026-11-29T12:00:50.000000Z"))).level, Level::Ok);
    let stale = judged(Some(held("2026-11-29T11:59:00.000000Z")));
    assert!(stale.level == Level::Error && stale.what.contains("120 s ago"), "{stale:?}");
    assert_eq!(judged(None).level, Level::Error);
}

#[test]
fn pods_tell_their_version_by_label_or_image() {
    let judged = |pods: &[(&str, serde_json::Value, &str)]| {
        let pods: Vec<Pod> = pods
            .iter()
            .map(|(ready, labels, image)| {
                serde_json::from_value(json!({
                    "metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]},
                    "status": {"conditions": [{"type": "Ready", "status": ready}]},
                }))
                .unwrap()
            })
            .collect();
        installation::running("gateway", "own", &pods)
    };
    let own = env!("CARGO_PKG_VERSION");
    let labelled = json!({"app.kubernetes.io/version": own});
    assert_eq!(
        judged(&[("True", labelled.clone(), "x")]),
        Finding::ok("gateway", format!("1 of 1 pods ready, version {own}"))
    );
    let prefixed = json!({"app.kubernetes.io/version": format!("v{own}")});
    assert_eq!(judged(&[("True", prefixed, "x")]).level, Level::Ok);
    let other = judged(&[("True", json!({}), "registry:5000/gateway:v9.0.0@sha256:0")]);
    assert!(other.level == Level::Warning && other.what.contains("version 9.0.0; this plugin is"), "{other:?}");
    assert!(judged(&[("True", json!({}), "registry:5000/gateway")]).what.contains("version unknown"));
    assert_eq!(judged(&[("False", labelled.clone(), "x")]).level, Level::Error);
    assert_eq!(judged(&[("True", labelled.clone(), "x"), ("False", labelled, "x")]).level, Level::Warning);
    assert_eq!(judged(&[]).level, Level::Warning);
}

#[test]
fn an_authority_is_told_of_before_it_ends() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(2027, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let level = |now| installation::authority(certificate.der(), at(now)).level;
    assert_eq!(level("2026-01-01T00:00:00Z"), Level::Ok);
    assert_eq!(level("2026-11-29T00:00:00Z"), Level::Warning);
    assert_eq!(level("2027-01-02T00:00:00Z"), Level::Error);
    assert_eq!(installation::authority(b"x", at("2026-01-01T00:00:00Z")).level, Level::Error);
}

#[test]
fn what_is_not_allowed_is_named_with_its_place() {
    let scope = Scope { namespace: Some("acme".into()), own: "pw".into() };
    let all: Vec<&Right> = COMMANDS.iter().flat_map(|(_, rights)| rights.iter()).collect();
    assert!(all.iter().all(|right| !right.verb.contains(' ') && !right.resource.is_empty()));
    let (commands, rights) = COMMANDS.iter().find(|(commands, _)| *commands == "enroll").unwrap();
    let finding = of_command(commands, &rights.iter().collect::<Vec<_>>(), &scope);
    assert_eq!(finding.what, "enroll: you may not get configmaps patchwarden-trust in pw, nor create configmaps in pw");
    assert_eq!(of_command(commands, &[], &scope).level, Level::Ok);
}

#[test]
fn the_names_of_the_admission_policies_are_those_that_are_installed() {
    let names = installation::admission_names().unwrap();
    assert!(names.contains(&"patchwarden-install-jobs".to_owned()) && names.len() >= 3, "{names:?}");
}

#[test]
fn each_finding_says_what_to_do() {
    let findings = [Finding::ok("clock", "agrees"), Finding::error("CRDs", "gone", "install them")];
    let shown = anstream::adapter::strip_str(&text(&findings)).to_string();
    let expected = "ok      clock        agrees\nerror   CRDs         gone\n                     -> install them\n\n1 errors, 0 warnings\n";
    assert_eq!(shown, expected);
}

#[test]
fn what_controller_and_gateway_may_not_do_any_more_is_named() {
    let all = roles::wanted("own").unwrap();
    let named = |kind: &str, name: &str| {
        let is = |object: &serde_json::Value| object["kind"] == kind && object["metadata"]["name"] == name;
        all.iter().find(|(_, object)| is(object)).expect("it is installed").1.clone()
    };
    for (_, object) in &all {
        assert_eq!(roles::differs(object, Some(object)), None, "{object}");
        assert!(object["metadata"]["namespace"].as_str().is_none_or(|namespace| namespace == "own"), "{object}");
    }
    let differs = |wanted: &serde_json::Value, live: &serde_json::Value| roles::differs(wanted, Some(live)).unwrap();

    let binding = named("ClusterRoleBinding", "patchwarden-controller");
    assert_eq!(roles::differs(&binding, None).unwrap(), "ClusterRoleBinding patchwarden-controller does not exist");
    let mut other = binding.clone();
    other["subjects"][0]["namespace"] = "elsewhere".into();
    assert!(differs(&binding, &other).contains("gives nothing to ServiceAccount own/patchwarden-controller"));
    let mut other = binding.clone();
    other["roleRef"]["name"] = "view".into();
    assert!(differs(&binding, &other).ends_with("gives another role: view"));

    let role = named("Role", "patchwarden-controller");
    let mut less = role.clone();
    let rules = less["rules"].as_array_mut().unwrap();
    let secrets = rules.iter_mut().find(|rule| rule["resourceNames"] == json!(["patchwarden-keys"])).unwrap();
    secrets["resourceNames"] = json!(["another"]);
    assert_eq!(
        differs(&role, &less),
        "Role own/patchwarden-controller does not allow: get secrets patchwarden-keys, patch secrets patchwarden-keys"
    );
    less["rules"] = json!([]);
    assert!(differs(&role, &less).contains(", and 6 more"), "{}", differs(&role, &less));
    let mut more = role.clone();
    more["rules"] = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    assert_eq!(roles::differs(&role, Some(&more)), None, "what is more is somebody's own affair");
}
