//! What is answered, on both databases.

use axum::body::Body;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, WARNING};
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;
use crate::gateway::aggregation::kinds::KINDS;
use crate::gateway::api::page::Page;
use crate::gateway::api::tests::{Api, report};
use crate::gateway::testing;
use crate::store::testing::{Temporary, on_both};

on_both!(
    every_list_is_complete_page_by_page,
    an_operator_sees_their_client_and_no_other,
    a_table_has_the_columns_of_its_kind,
    what_is_not_understood_is_refused_and_never_ignored,
    an_object_is_found_by_its_name,
    devices_of_which_nothing_can_be_said_are_named,
);

const ROOT: &str = "/apis/store.patchwarden.io/v1alpha1";
const TABLE: &str =
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

struct Store {
    api: Api,
    router: Router,
    shown: Shown,
}

impl Store {
    async fn on(db: &Temporary) -> Self {
        let api = Api::on(db).await;
        let proxy = FrontProxy::new();
        let door = Arc::new(api::Door::new(api.world.shared.clone(), "unused".to_owned()));
        let anchors = watch::channel(Some(proxy.anchors())).1;
        let router = router(&Arc::new(Layer { door, anchors }));
        let shown = Shown(Arc::new(vec![proxy.client("front-proxy-client").certificate]));
        Self { api, router, shown }
    }

    async fn send(&self, method: &str, user: &str, accept: &str, path: &str) -> (http::response::Parts, Value) {
        let request = http::Request::builder().method(method).uri(path).header(ACCEPT, accept);
        let request = request.header("X-Remote-User", user).extension(self.shown.clone());
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
        (parts, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, user: &str, path: &str) -> (StatusCode, Value) {
        let (parts, body) = self.send("GET", user, "application/json", path).await;
        (parts.status, body)
    }

    async fn see(&self, path: &str) -> Value {
        let (status, body) = self.get("admin", path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// It is a Status of this code and reason; its message.
    async fn refused(&self, path: &str, code: u16, reason: &str) -> String {
        let (parts, body) = self.send("GET", "admin", "application/json", path).await;
        assert_eq!(parts.status.as_u16(), code, "{path}: {body}");
        assert_eq!(parts.headers[CONTENT_TYPE], "application/json", "{path}");
        let told = (&body["kind"], &body["apiVersion"], &body["status"], &body["reason"], &body["code"]);
        assert_eq!(told, (&json!("Status"), &json!("v1"), &json!("Failure"), &json!(reason), &json!(code)), "{path}");
        body["message"].as_str().unwrap().to_owned()
    }

    /// All pages of a list, as (device, name of the package).
    async fn all(&self, path: &str, limit: usize, field: &str) -> Vec<(String, String)> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let page = self.see(&format!("{path}{join}limit={limit}{next}")).await;
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit, "{page}");
            let text = |item: &Value, field: &str| item["status"][field].as_str().unwrap().to_owned();
            all.extend(items.iter().map(|item| (text(item, "device"), text(item, field))));
            match page["metadata"]["continue"].as_str() {
                Some(token) => next = format!("&continue={token}"),
                None => return all,
            }
            assert!(all.len() < 10_000, "it does not end");
        }
    }
}

async fn devices(store: &Store, names: &[&str], packages: usize) -> Vec<String> {
    let packages: Vec<String> = (0..packages).map(|n| format!("p{n:02}")).collect();
    for name in names {
        let updates = (0..5).rev().map(|n| testing::update(&format!("DSA-{n}"))).collect();
        let packages: Vec<(&str, &str, &str)> = packages.iter().map(|it| (it.as_str(), "1", "source")).collect();
        store.api.report(&report("acme", name, "debian", updates), &packages).await;
    }
    packages
}

async fn every_list_is_complete_page_by_page(db: &Temporary) {
    let store = Store::on(db).await;
    let packages = devices(&store, &["c", "a", "b"], 23).await;
    store.api.report(&report("other", "a", "debian", Vec::new()), &[("p00", "1", "source")]).await;
    let of = |devices: &[&str], names: &[String]| -> Vec<(String, String)> {
        devices.iter().flat_map(|device| names.iter().map(|name| ((*device).to_owned(), name.clone()))).collect()
    };
    let ids: Vec<String> = (0..5).map(|n| format!("DSA-{n}")).collect();
    let software = format!("{ROOT}/namespaces/acme/softwarepackages");
    for limit in [1, 2, 7, 23, 46, 500] {
        assert_eq!(store.all(&software, limit, "name").await, of(&["a", "b", "c"], &packages), "{limit}");
        let one = format!("{software}?fieldSelector=status.device%3Db");
        assert_eq!(store.all(&one, limit, "name").await, of(&["b"], &packages), "{limit}");
        let updates = store.all(&format!("{ROOT}/namespaces/acme/missingupdates"), limit, "update").await;
        assert_eq!(updates, of(&["a", "b", "c"], &ids), "{limit}");
        let everywhere = store.all(&format!("{ROOT}/softwarepackages"), limit, "name").await;
        assert_eq!(everywhere.len(), 70, "{limit}");
        assert_eq!(everywhere[69], ("a".to_owned(), "p00".to_owned()), "{limit}");
    }
    // Whoever gives no limit wants all of it.
    let whole = store.see(&software).await;
    assert_eq!(whole["items"].as_array().unwrap().len(), 69);
    assert_eq!((&whole["kind"], &whole["metadata"]), (&json!("SoftwarePackageList"), &json!({})));
    let names: std::collections::BTreeSet<_> =
        whole["items"].as_array().unwrap().iter().map(|it| it["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 69, "each object has a name of its own");

    // A place is no right, and one of another list is none.
    let page = store.see(&format!("{ROOT}/softwarepackages?limit=69")).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let (status, body) = store.get("acme-operator", &format!("{software}?limit=5&continue={token}")).await;
    assert!(status == StatusCode::OK && body["items"] == json!([]), "what comes after acme is not shown: {body}");
    let page = store.see(&format!("{ROOT}/namespaces/other/softwarepackages?limit=1&continue=")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    // Also where it leads to what is there, of another client.
    let inner = Page::<()>::token(&("other", "a", "", "", ""));
    let elsewhere = Page::<()>::token(&("other", "a", inner));
    let message = store.refused(&format!("{software}?continue={elsewhere}"), 400, "BadRequest").await;
    assert!(message.starts_with("continue: "), "{message}");
    for made_up in ["x", "W10", &Page::<()>::token(&("other", "a", "W10"))] {
        let message = store.refused(&format!("{software}?limit=5&continue={made_up}"), 400, "BadRequest").await;
        assert!(message.starts_with("continue: "), "{message}");
    }
}

async fn an_operator_sees_their_client_and_no_other(db: &Temporary) {
    let store = Store::on(db).await;
    devices(&store, &["web"], 1).await;
    for kind in KINDS.iter().filter(|kind| !kind.resource.contains("vulnerabilities")) {
        let (status, body) = store.get("acme-operator", &format!("{ROOT}/namespaces/acme/{}", kind.resource)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let (status, body) = store.get("acme-operator", &format!("{ROOT}/namespaces/other/{}", kind.resource)).await;
        let right =
            format!("user acme-operator may not list {}.store.patchwarden.io in namespace other", kind.resource);
        assert_eq!((status, &body["message"]), (StatusCode::FORBIDDEN, &json!(right)));
        let (status, _) = store.get("acme-operator", &format!("{ROOT}/{}", kind.resource)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        let (status, body) =
            store.get("acme-operator", &format!("{ROOT}/namespaces/other/{}/a.b.c", kind.resource)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "whether it exists is not told: {body}");
    }
    let (status, body) = store.get("", &format!("{ROOT}/softwarepackages")).await;
    assert_eq!((status, &body["reason"]), (StatusCode::UNAUTHORIZED, &json!("Unauthorized")));
}

async fn a_table_has_the_columns_of_its_kind(db: &Temporary) {
    let store = Store::on(db).await;
    devices(&store, &["web"], 1).await;
    let path = format!("{ROOT}/namespaces/acme/softwarepackages");
    let (parts, table) = store.send("GET", "admin", TABLE, &path).await;
    assert_eq!(parts.status, StatusCode::OK, "{table}");
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    let columns = table["columnDefinitions"].as_array().unwrap();
    let of = |priority: i32| -> Vec<&str> {
        let shown = columns.iter().filter(|it| it["priority"] == priority);
        shown.map(|column| column["name"].as_str().unwrap()).collect()
    };
    assert_eq!(of(0), ["Name", "Device", "Package", "Version"]);
    assert_eq!(of(1), ["Arch", "Source", "First Recorded"]);
    let row = &table["rows"][0];
    assert_eq!(row["cells"].as_array().unwrap().len(), columns.len());
    assert_eq!(
        row["cells"].as_array().unwrap()[1..6],
        [json!("web"), json!("p00"), json!("1"), json!("amd64"), json!("source")]
    );
    let metadata = &row["object"];
    assert_eq!(
        (&metadata["kind"], &metadata["metadata"]["namespace"]),
        (&json!("PartialObjectMetadata"), &json!("acme"))
    );
    assert_eq!(metadata["metadata"]["name"], row["cells"][0]);
    let (_, without) = store.send("GET", "admin", TABLE, &format!("{path}?includeObject=None")).await;
    assert_eq!(without["rows"][0].get("object"), None);
    let (_, whole) = store.send("GET", "admin", TABLE, &format!("{path}?includeObject=Object")).await;
    assert_eq!(whole["rows"][0]["object"]["kind"], "SoftwarePackage");
    // Every kind has a cell for each column, also where there is nothing to tell.
    let (_, updates) = store.send("GET", "admin", TABLE, &format!("{ROOT}/missingupdates?limit=1")).await;
    let cells = updates["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), updates["columnDefinitions"].as_array().unwrap().len());
    assert!(updates["metadata"]["continue"].is_string(), "a table has pages, too");
    // The first form that is known is taken, as the caller has ordered them.
    let (_, list) = store.send("GET", "admin", "application/vnd.kubernetes.protobuf, */*;q=0.5", &path).await;
    assert_eq!(list["kind"], "SoftwarePackageList");
    let (parts, body) = store.send("GET", "admin", "application/vnd.kubernetes.protobuf", &path).await;
    assert_eq!((parts.status, &body["reason"]), (StatusCode::NOT_ACCEPTABLE, &json!("NotAcceptable")));
}

async fn what_is_not_understood_is_refused_and_never_ignored(db: &Temporary) {
    let store = Store::on(db).await;
    devices(&store, &["web"], 1).await;
    let path = format!("{ROOT}/namespaces/acme/softwarepackages");
    for (query, what) in [
        ("labelSelector=a%3Db", "labelSelector: "),
        ("fieldSelector=spec.device%3Dweb", "fieldSelector: "),
        ("fieldSelector=status.device!%3Dweb", "fieldSelector: "),
        ("fieldSelector=status.device%3Dweb,status.device%3Ddb", "fieldSelector: "),
        ("resourceVersion=17", "resourceVersion: "),
        ("resourceVersionMatch=Exact", "resourceVersionMatch: "),
        ("limit=-1", "query: "),
        ("filter=x", "query: "),
        ("limit=1&limit=2", "limit: is given twice"),
    ] {
        let message = store.refused(&format!("{path}?{query}"), 400, "BadRequest").await;
        assert!(message.starts_with(what), "{query}: {message}");
    }
    // What changes nothing is taken.
    for query in [
        "labelSelector=",
        "fieldSelector=metadata.namespace%3Dacme",
        "resourceVersion=0",
        "timeoutSeconds=5&pretty=true",
    ] {
        let items = store.see(&format!("{path}?{query}")).await["items"].as_array().unwrap().len();
        assert_eq!(items, 1, "{query}");
    }
    let none = ["status.device%3Ddb", "metadata.namespace%3Dother", "metadata.name%3Dweb.p00.x"];
    let gone = store.refused(&format!("{path}?fieldSelector={}", none[0]), 404, "NotFound").await;
    assert!(gone.contains("acme/db"), "{gone}");
    for selector in &none[1..] {
        assert_eq!(store.see(&format!("{path}?fieldSelector={selector}")).await["items"], json!([]), "{selector}");
    }
    for watched in [format!("{path}?watch=true"), format!("{path}?watch=1"), format!("{ROOT}/watch/softwarepackages")] {
        let message = store.refused(&watched, 405, "MethodNotAllowed").await;
        assert!(message.contains("cannot be watched"), "{message}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let (parts, body) = store.send(method, "admin", "application/json", &path).await;
        assert_eq!(
            (parts.status, &body["reason"]),
            (StatusCode::METHOD_NOT_ALLOWED, &json!("MethodNotAllowed")),
            "{method}"
        );
    }
    store.refused(&format!("{ROOT}/namespaces/acme/nothings"), 404, "NotFound").await;
    store.refused("/api/v1/namespaces/acme/devices", 404, "NotFound").await;
    let message = store.refused(&format!("{ROOT}/devicevulnerabilities"), 404, "NotFound").await;
    assert!(message.contains("no vulnerability data are imported"), "{message}");
}

async fn an_object_is_found_by_its_name(db: &Temporary) {
    let store = Store::on(db).await;
    devices(&store, &["web"], 23).await;
    let list = store.see(&format!("{ROOT}/namespaces/acme/softwarepackages")).await;
    let wanted = &list["items"][20];
    let name = wanted["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web.p20."), "{name}");
    let path = format!("{ROOT}/namespaces/acme/softwarepackages/{name}");
    assert_eq!(store.see(&path).await, *wanted);
    assert_eq!(
        (&wanted["apiVersion"], &wanted["kind"]),
        (&json!("store.patchwarden.io/v1alpha1"), &json!("SoftwarePackage"))
    );
    let (_, table) = store.send("GET", "admin", TABLE, &path).await;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!(name)));
    let by_name =
        store.see(&format!("{ROOT}/namespaces/acme/softwarepackages?fieldSelector=metadata.name%3D{name}")).await;
    assert_eq!(by_name["items"], json!([wanted]));
    for none in ["web.p20.0000000000", "web", "Web.x.y", "db.p20.0000000000"] {
        store.refused(&format!("{ROOT}/namespaces/acme/softwarepackages/{none}"), 404, "NotFound").await;
    }
    store.refused(&format!("{path}?limit=1"), 400, "BadRequest").await;
}

async fn devices_of_which_nothing_can_be_said_are_named(db: &Temporary) {
    let store = Store::on(db).await;
    let now = crate::shell::now();
    let import = store.api.world.shared.store.begin_vulnerabilities("test", now).await.unwrap().unwrap();
    store.api.world.shared.store.finish_vulnerabilities(import, now).await.unwrap();
    store.api.report(&report("acme", "odd", "haiku \"\u{e9}", Vec::new()), &[]).await;
    store.api.report(&report("acme", "web", "debian", Vec::new()), &[("openssl", "1", "openssl")]).await;
    let path = format!("{ROOT}/namespaces/acme/devicevulnerabilities");
    let (parts, body) = store.send("GET", "admin", TABLE, &path).await;
    assert_eq!((parts.status, &body["rows"]), (StatusCode::OK, &json!([])));
    let warning = parts.headers[WARNING].to_str().unwrap();
    assert!(warning.starts_with("299 - \"nothing is known of vulnerabilities of acme/odd: it runs haiku"), "{warning}");
    assert_eq!(warning.matches('"').count(), 2, "{warning}");
    let message = store.refused(&format!("{path}?fieldSelector=status.device%3Dodd"), 404, "NotFound").await;
    assert!(message.contains("acme/odd"), "{message}");
}

#[tokio::test]
async fn what_there_is_is_told_as_kubectl_and_the_api_server_ask_for_it() {
    let database = Temporary::sqlite().await;
    let store = Store::on(&database).await;
    let version = store.see(ROOT).await;
    assert_eq!(version["groupVersion"], "store.patchwarden.io/v1alpha1");
    let resources = version["resources"].as_array().unwrap();
    assert!(resources.iter().all(|it| it["verbs"] == json!(["get", "list"]) && it["namespaced"] == true), "{version}");
    assert_eq!(store.see("/apis/store.patchwarden.io").await["preferredVersion"]["version"], "v1alpha1");
    assert_eq!(store.see("/apis").await["kind"], "APIGroupList");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (parts, all) = store.send("GET", "admin", accept, "/apis").await;
    assert!(parts.headers[CONTENT_TYPE].to_str().unwrap().ends_with("as=APIGroupDiscoveryList"));
    assert_eq!(all["items"][0]["versions"][0]["resources"].as_array().unwrap().len(), resources.len());

    let paths = store.see("/openapi/v3").await;
    let url = paths["paths"]["apis/store.patchwarden.io/v1alpha1"]["serverRelativeURL"].as_str().unwrap();
    let document = store.see(url).await;
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is referred to and not there");
    }
    assert!(!text.contains("\"null\""), "that is of OpenAPI 3.1");
    for kind in &KINDS {
        assert!(schemas.contains_key(&format!("io.patchwarden.store.v1alpha1.{}", kind.schema)), "{}", kind.schema);
        assert!(document["paths"].get(format!("{ROOT}/namespaces/{{namespace}}/{}", kind.resource)).is_some());
        let status = &schemas[&format!("io.patchwarden.store.v1alpha1.objects.{}Status", kind.name)]["properties"];
        for column in kind.columns {
            let field = column.field.split('/').nth(1).unwrap();
            assert!(status.get(field).is_some(), "{} has no {field}, which a column shows", kind.name);
        }
    }
    assert_eq!(store.get("", "/readyz").await.0, StatusCode::OK);
}
