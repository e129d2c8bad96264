//! What `helm test` asks from inside of the cluster: whether the API server serves the kinds, and the programs say that they are ready.

use std::time::{Duration, Instant};

use kube::{Client, Resource as _};
use url::Url;

use crate::api::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy};

/// How long one question may take: longer than the gateway waits for its database.
const ANSWER_TIME: Duration = Duration::from_secs(8);

/// The pause before what was not so is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// How much of an answer is shown.
const MAX_ANSWER: u64 = 4096;

/// Whether something is as it should be.
#[derive(Debug)]
pub struct Checked {
    /// What was asked.
    pub what: String,
    /// What is wrong with it.
    pub outcome: Result<(), String>,
}

/// Checks the kinds and that each of `ready` answers 200; asks again what is not so until `patience` is over.
pub async fn check(client: &Client, ready: &[Url], patience: Duration) -> Vec<Checked> {
    let deadline = Instant::now() + patience;
    let mut all = vec![until(deadline, "the four kinds".to_owned(), || kinds(client)).await];
    for url in ready {
        all.push(until(deadline, url.to_string(), || is_ready(url)).await);
    }
    all
}

async fn until<F: Future<Output = Result<(), String>>>(
    deadline: Instant,
    what: String,
    ask: impl Fn() -> F,
) -> Checked {
    loop {
        let outcome = ask().await;
        if outcome.is_ok() || Instant::now() >= deadline {
            return Checked { what, outcome };
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn kinds(client: &Client) -> Result<(), String> {
    let group = DeviceInventory::api_version(&()).into_owned();
    let served = client.list_api_group_resources(&group).await.map_err(|error| format!("{group}: {error}"))?;
    let wanted = [
        DeviceInventory::plural(&()),
        ApprovalGroup::plural(&()),
        MaintenanceWindow::plural(&()),
        PatchPolicy::plural(&()),
    ];
    let missing: Vec<_> =
        wanted.iter().filter(|name| served.resources.iter().all(|found| found.name != **name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{group} is served without {missing:?}")) }
}

async fn is_ready(url: &Url) -> Result<(), String> {
    let url = url.to_string();
    let asked = tokio::task::spawn_blocking(move || {
        let config = ureq::Agent::config_builder()
            // Within the cluster, whatever the pod's environment says; and what is not ready says why.
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER_TIME))
            .build();
        let mut response = ureq::Agent::new_with_config(config).get(&url).call()?;
        Ok::<_, ureq::Error>((response.status(), response.body_mut().with_config().limit(MAX_ANSWER).read_to_string()?))
    });
    match asked.await {
        Ok(Ok((status, _))) if status == http::StatusCode::OK => Ok(()),
        Ok(Ok((status, text))) => Err(format!("{status}: {}", text.trim())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// An API server that serves these kinds of ours.
    fn api_server(kinds: &'static [&'static str]) -> Client {
        let answer = move |request: Request<Body>| async move {
            assert_eq!(request.uri().path(), "/apis/patchwarden.io/v1alpha1");
            let kind = |name| json!({"name": name, "singularName": "", "namespaced": true, "kind": "K", "verbs": []});
            let resources: Vec<_> = kinds.iter().map(kind).collect();
            let list = json!({"groupVersion": "patchwarden.io/v1alpha1", "resources": resources});
            Ok::<_, std::convert::Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
        };
        Client::new(tower::service_fn(answer), "default")
    }

    const ALL: &[&str] = &["approvalgroups", "deviceinventories", "maintenancewindows", "patchpolicies"];

    /// A server that gives these answers, one a connection.
    fn answers(all: &'static [&'static str]) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (connection, answer) in listener.incoming().zip(all) {
                let mut connection = connection.unwrap();
                assert!(connection.read(&mut [0; 1024]).unwrap() > 0);
                connection.write_all(answer.as_bytes()).unwrap();
            }
        });
        Url::parse(&url).unwrap()
    }

    const READY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    const NOT_READY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\nConnection: close\r\n\r\nno CA";

    #[tokio::test]
    async fn what_is_not_ready_yet_is_asked_again_and_what_never_is_says_why() {
        let urls = [answers(&[NOT_READY, READY]), answers(&[NOT_READY; 100])];
        let checked = check(&api_server(ALL), &urls, Duration::from_secs(2)).await;
        let outcomes: Vec<_> = checked.into_iter().map(|checked| checked.outcome).collect();
        assert_eq!(outcomes, [Ok(()), Ok(()), Err("503 Service Unavailable: no CA".to_owned())]);
    }

    #[tokio::test]
    async fn a_kind_that_is_not_served_is_named() {
        let checked = check(&api_server(&ALL[1..]), &[], Duration::ZERO).await;
        let why = "patchwarden.io/v1alpha1 is served without [\"approvalgroups\"]";
        assert_eq!(checked[0].outcome, Err(why.to_owned()));
    }
}
