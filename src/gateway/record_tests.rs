//! The record over real TLS: who may call, what is taken, and what comes back.

use std::convert::Infallible;

use http::{Request as HttpRequest, Response as HttpResponse};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus, UserInfo};
use kube::client::Body;
use patchwarden_protocol::record_v1::record_client::RecordClient;
use patchwarden_protocol::record_v1::{
    Entries, FailedOn, Failures, Pause, Progress, ReadRequest, ReadResponse, Sighting, WriteRequest, WriteResponse,
};
use patchwarden_protocol::{GATEWAY_AUDIENCE, MAX_RECORD_ENTRIES};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::door_tests::{CONTROLLER, World};
use super::*;

/// An API server that knows whose a token is: the user's name is the token.
fn token_reviewer() -> Client {
    let answer = |request: HttpRequest<Body>| async move {
        let body = request.into_body().collect_bytes().await.unwrap();
        let mut review: TokenReview = serde_json::from_slice(&body).unwrap();
        let user = review.spec.token.clone();
        review.status = Some(TokenReviewStatus {
            authenticated: Some(user != "expired"),
            audiences: Some(vec![if user == "for-another" { "https://kubernetes" } else { GATEWAY_AUDIENCE }.into()]),
            user: Some(UserInfo { username: Some(user), ..UserInfo::default() }),
            error: None,
        });
        Ok::<_, Infallible>(HttpResponse::new(Body::from(serde_json::to_vec(&review).unwrap())))
    };
    Client::new(tower::service_fn(answer), "default")
}

/// The runners' door of a gateway.
pub(crate) struct Door {
    world: World,
    /// Its URL.
    pub(crate) url: String,
    client: RecordClient<Channel>,
    _tls: watch::Sender<Option<Arc<ServerConfig>>>,
}

impl Door {
    pub(crate) async fn open() -> Self {
        let world = World::with(token_reviewer()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving_with = watch::Sender::new(Some(world.ca.serving(&["localhost"]).runners().unwrap()));
        let (shared, config) = (world.shared.clone(), serving_with.subscribe());
        let limits = tls::Limits::of_tokens();
        tokio::spawn(
            async move { open_door("runners'", runners_router(&shared), listener, config, limits, &shared).await },
        );
        let ca = Certificate::from_pem(world.ca.trust(&world.root).ca_pem);
        let url = format!("https://localhost:{port}");
        let endpoint = Endpoint::from_shared(url.clone()).unwrap();
        let endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(ca)).unwrap();
        Self { world, url, client: RecordClient::new(endpoint.connect_lazy()), _tls: serving_with }
    }

    /// Its CA's certificates in PEM.
    pub(crate) fn ca(&self) -> String {
        self.world.ca.trust(&self.world.root).ca_pem
    }

    /// Its store.
    pub(crate) fn store(&self) -> &Store {
        &self.world.database.store
    }

    /// Writes into its store what this program never does.
    pub(crate) async fn corrupt(&self, statement: &'static str) {
        self.world.database.execute(statement).await;
    }

    async fn write(&self, token: &str, namespace: &str, entries: Entries) -> Result<WriteResponse, Status> {
        let message = WriteRequest { namespace: namespace.into(), entries: Some(entries) };
        self.client.clone().write(authorized(message, token)).await.map(tonic::Response::into_inner)
    }

    async fn read(&self, token: &str, namespace: &str) -> Result<Vec<ReadResponse>, Status> {
        let message = ReadRequest { namespace: namespace.into() };
        let mut stream = self.client.clone().read(authorized(message, token)).await?.into_inner();
        let mut pages = Vec::new();
        while let Some(page) = stream.message().await? {
            pages.push(page);
        }
        Ok(pages)
    }
}

fn authorized<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

fn sighting(update: &str) -> Sighting {
    Sighting { update: update.into(), first: 10, by: "web-1".into(), signature: "c2ln".into(), ..Sighting::default() }
}

fn sightings(count: usize) -> Entries {
    Entries { sightings: (0..count).map(|number| sighting(&format!("u{number:04}"))).collect(), ..Entries::default() }
}

#[tokio::test]
async fn the_record_is_the_controllers_alone() {
    let door = Door::open().await;
    for (token, code, why) in [
        ("", Code::Unauthenticated, "no bearer token"),
        ("expired", Code::Unauthenticated, "the token is not valid"),
        ("for-another", Code::Unauthenticated, "the token is not for the audience patchwarden-gateway"),
        ("system:serviceaccount:acme:patchwarden-controller", Code::PermissionDenied, "'s alone, and the token is"),
        ("system:serviceaccount:patchwarden-system:patchwarden-runner", Code::PermissionDenied, "'s alone"),
    ] {
        let written = door.write(token, "acme", sightings(1)).await.unwrap_err();
        assert_eq!(written.code(), code, "{token}: {written:?}");
        assert!(written.message().contains(why), "{token}: {written:?}");
        assert_eq!(door.read(token, "acme").await.unwrap_err().code(), code, "{token}");
    }
    let told = door.world.database.store.audit_tail(1).await.unwrap();
    assert_eq!((told[0].what.as_str(), told[0].outcome.as_str()), ("ReadRecord", "PermissionDenied"));
    assert!(
        door.read(CONTROLLER, "acme")
            .await
            .unwrap()
            .iter()
            .all(|page| { page.entries.as_ref().is_none_or(|entries| entries.sightings.is_empty()) })
    );
    let metrics = door.world.shared.metrics.render().unwrap();
    assert!(
        metrics.contains("patchwarden_gateway_record_calls_total{call=\"write\",result=\"refused\"} 5"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_flood_of_tokens_does_not_reach_the_api_server() {
    let door = Door::open().await;
    let shared = &door.world.shared;
    *shared.reviews.lock().unwrap() = Budget::new(2, Duration::from_hours(1));
    for _ in 0..5 {
        assert_eq!(
            door.read("", "acme").await.unwrap_err().code(),
            Code::Unauthenticated,
            "who shows none asks nobody"
        );
    }
    for (token, code) in [
        (CONTROLLER, None),
        ("expired", Some(Code::Unauthenticated)),
        ("another", Some(Code::Unavailable)),
        (CONTROLLER, Some(Code::Unavailable)),
    ] {
        assert_eq!(door.read(token, "acme").await.err().map(|status| status.code()), code, "{token}");
    }
    let job = runner::attach(shared, Some("t.o.k".into()), "web-1").await.err().unwrap();
    assert_eq!((job.code(), job.message()), (Code::Unavailable, "too many tokens are shown at the moment: ask again"));
    let metrics = shared.metrics.render().unwrap();
    for (result, count) in [("authenticated", 1), ("refused", 1), ("failed", 0)] {
        let line = format!("patchwarden_gateway_token_reviews_total{{result=\"{result}\"}} {count}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn what_was_written_is_read_back_and_a_namespace_has_its_own() {
    let door = Door::open().await;
    let entries = Entries {
        sightings: vec![sighting("u")],
        progress: vec![Progress {
            policy: "servers".into(),
            update: "u".into(),
            rings: vec!["pilot".into()],
            ring: None,
            opened: 20,
            reached: None,
            undone: None,
            stopped: Some(30),
            installed: 3,
            anywhere: 58,
            failed: Some(Failures {
                as_of: Some(35),
                on: vec![FailedOn { device: "web-1".into(), last: 30, ring: None }],
            }),
            told: 0,
            signature: "c2ln".into(),
        }],
        pauses: vec![Pause { policy: "servers".into(), paused: 40, resumed: None, told: 0, signature: "c2ln".into() }],
    };
    let store = door.write(CONTROLLER, "acme", entries.clone()).await.unwrap().store;
    let before = door.write(CONTROLLER, "other", sightings(1)).await.unwrap().store;
    assert_eq!(store, before, "it is the same store");
    let mut read = Entries::default();
    for page in door.read(CONTROLLER, "acme").await.unwrap() {
        assert_eq!(page.store, store);
        let page = page.entries.unwrap();
        read.sightings.extend(page.sightings);
        read.progress.extend(page.progress);
        read.pauses.extend(page.pauses);
    }
    let told = read.sightings[0].told;
    assert!((shell::now().as_second() - told).abs() < 60, "{told}");
    read.sightings.iter_mut().for_each(|it| it.told = 0);
    read.progress.iter_mut().for_each(|it| it.told = 0);
    read.pauses.iter_mut().for_each(|it| it.told = 0);
    assert_eq!(read, entries);
}

#[tokio::test]
async fn a_request_over_its_limits_is_refused_whole_and_the_field_is_named() {
    let door = Door::open().await;
    let ahead = shell::now().as_second() + 7200;
    let with = |change: &dyn Fn(&mut Sighting)| {
        let mut entries = sightings(2);
        change(&mut entries.sightings[1]);
        entries
    };
    for (namespace, entries, why) in [
        ("Acme", sightings(1), "namespace: must be the name of a namespace"),
        ("acme", sightings(MAX_RECORD_ENTRIES + 1), "entries: 501 of them; one request has at most 500"),
        ("acme", with(&|it| it.by = String::new()), "entries.sightings[1].by: must have from 1 to 253 characters"),
        ("acme", with(&|it| it.first = -5), "entries.sightings[1].first: -5 is no time"),
        ("acme", with(&|it| it.first = ahead), "set the clocks of controller and gateway"),
    ] {
        let refused = door.write(CONTROLLER, namespace, entries).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(why), "{refused:?}");
    }
    assert_eq!(door.read(CONTROLLER, "../x").await.unwrap_err().code(), Code::InvalidArgument);
    // Larger than any request can be: not even read.
    let huge = with(&|it| it.by = "x".repeat(2 * MAX_RECORD_BYTES));
    assert_eq!(door.write(CONTROLLER, "acme", huge).await.unwrap_err().code(), Code::OutOfRange);
    let (kept, _) = door.world.database.store.recall("acme", crate::store::Cursor::Start).await.unwrap();
    assert!(kept.is_empty(), "{kept:?}");
    // The longest names that there can be, as many as there can be: one message.
    let time = shell::now().as_second();
    let failed = |number: usize| FailedOn { device: format!("{number:0>253}"), last: time, ring: Some("r".repeat(63)) };
    let longest = |number: usize| Progress {
        policy: format!("{number:0>253}"),
        update: format!("{number:0>3}{}", "\u{1F600}".repeat(250)),
        rings: vec!["r".repeat(63); 8],
        ring: Some("r".repeat(63)),
        opened: time,
        reached: Some(time),
        undone: Some(time - 1),
        stopped: Some(time),
        installed: u32::MAX,
        anywhere: u32::MAX,
        failed: Some(Failures { as_of: Some(time), on: (0..16).map(failed).collect() }),
        told: 0,
        signature: "s".repeat(88),
    };
    let full = Entries { progress: (0..MAX_RECORD_ENTRIES).map(longest).collect(), ..Entries::default() };
    door.write(CONTROLLER, "acme", full).await.unwrap();
    let read = door.read(CONTROLLER, "acme").await.unwrap();
    let count: usize = read.iter().map(|page| page.entries.as_ref().unwrap().progress.len()).sum();
    assert_eq!(count, MAX_RECORD_ENTRIES);
}
