//! The runners' door: which pod calls, which order its Job carries, and what it hears of it.
//!
//! A pod proves itself by its service account's token (bound to the pod), the pod by its owner reference to be of the
//! Job, and the Job carries the order. The order's own signature is checked here too, so that whoever may create Jobs
//! cannot make devices answer to nonsense; the device checks it again and has the last word.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use patchwarden_protocol::GATEWAY_AUDIENCE;
use patchwarden_protocol::envelope::Refused;
use patchwarden_protocol::order::{Order, SignedOrder};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::runner_v1::{Finished, Progress, RunEvent, run_event};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::orders::{Event, Line, Run, deadline};
use super::{Shared, replicas};
use crate::api::ANNOTATION_ORDER;
use crate::shell;
use crate::store::{Notice, StoreError};
use crate::telemetry::trace_id;

/// Extra fields of a bound service-account token (KEP-2799).
const EXTRA_POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const EXTRA_POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a caller of the runners' door is not served.
#[derive(Debug, thiserror::Error)]
pub enum NotServed {
    /// No or a wrong token.
    #[error("{0}")]
    Unauthenticated(String),
    /// Not the pod of a Job with an order that counts.
    #[error("{0}")]
    Denied(String),
    /// The API server cannot be asked now.
    #[error("the Kubernetes API: {0}")]
    Api(#[from] kube::Error),
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no root key yet.
    #[error("the controller has not published its root key yet")]
    NoTrust,
    /// Too many at once.
    #[error("too many tokens are shown at the moment: ask again")]
    Busy,
}

impl NotServed {
    /// As the caller is told.
    pub fn status(&self) -> Status {
        match self {
            Self::Unauthenticated(_) => Status::unauthenticated(self.to_string()),
            Self::Denied(_) => Status::permission_denied(self.to_string()),
            Self::Api(_) => Status::unavailable("the Kubernetes API cannot be asked at the moment"),
            Self::Store(_) => Status::unavailable("the gateway's database fails"),
            Self::NoTrust | Self::Busy => Status::unavailable(self.to_string()),
        }
    }
}

/// A pod, as its token shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    namespace: String,
    pod: String,
    uid: String,
}

/// What a served pod is told.
pub enum Attached {
    /// The device has answered already: JSON of its `InstallResult`.
    Finished(Vec<u8>),
    /// The order is under way.
    Running(Arc<Run>),
}

/// The bearer token of a call.
pub fn bearer(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(|token| token.trim().to_owned())
}

/// Finds out who calls and what for, and hands the order on.
pub async fn attach(shared: &Shared, token: Option<String>, job: &str) -> Result<Attached, Status> {
    let mut who = "unknown".to_owned();
    let attached = try_attach(shared, token, job, &mut who).await;
    let count = |result| shared.metrics.runs.with_label_values(&[result]).inc();
    match attached {
        Ok(attached) => {
            count(match attached {
                Attached::Finished(_) => "finished",
                Attached::Running(_) => "attached",
            });
            Ok(attached)
        }
        Err(error) => {
            let job = super::clean(job, 253);
            let reason = match error {
                NotServed::Unauthenticated(_) => Some("Unauthenticated"),
                NotServed::Denied(_) => Some("PermissionDenied"),
                NotServed::Api(_) | NotServed::Store(_) | NotServed::NoTrust | NotServed::Busy => None,
            };
            tracing::warn!(%who, %job, %error, "install Job is not served");
            count(if reason.is_some() { "refused" } else { "failed" });
            if let Some(reason) = reason {
                shared.audit_refusal(&who, "Run", &job, reason, &error.to_string()).await;
            }
            Err(error.status())
        }
    }
}

async fn try_attach(
    shared: &Shared,
    token: Option<String>,
    job: &str,
    who: &mut String,
) -> Result<Attached, NotServed> {
    let user = user_of(shared, token).await?;
    let caller = caller(&user).map_err(NotServed::Unauthenticated)?;
    *who = format!("pod {}/{}", caller.namespace, caller.pod);
    let job = job_of(shared, &caller, job).await?;
    let (order, signed) = order_of(&job, &caller.namespace).map_err(NotServed::Denied)?;
    let digest = signed.order.digest();

    if let Some(recorded) = shared.store.result(&order.device, &digest).await? {
        // It was verified with the device's key before it was recorded.
        let result = recorded
            .envelope
            .peek()
            .ok_or_else(|| NotServed::Denied(format!("the recorded result of order {digest} cannot be read")))?;
        return Ok(Attached::Finished(to_json(&result)?));
    }
    let now = shell::now();
    let run = if let Some(run) = shared.orders.find(&order.device, &digest) {
        run
    } else {
        let root = shared.trust.borrow().as_ref().map(|trust| trust.root).ok_or(NotServed::NoTrust)?;
        signed.open(&root, now).map_err(|refused: Refused| {
            NotServed::Denied(format!("annotation {ANNOTATION_ORDER} of Job {}: {refused}", job.name_any()))
        })?;
        shared.store.record_order(&order.device, &digest, order.sequence, &signed, deadline(&order), now).await?;
        let run = shared.orders.begin(&order, &digest, to_json(&signed)?, now);
        // The result may have come since, when nobody here was to be told.
        replicas::finish(shared, &run).await?;
        run
    };
    tracing::info!(device = %order.device, job = %job.name_any(), pod = %caller.pod, order = %digest, trace_id = trace_id(&digest), "Job attached");
    if now < run.deadline && !run.is_finished() && !shared.sessions.deliver(&order.device, &run.order) {
        if shared.store.is_shared() {
            // Its session may be at another gateway, or be opened there at this moment.
            shared.store.tell(&Notice::Order { device: order.device.clone(), digest }).await?;
        }
        if !shared.sessions.is_open(&order.device) {
            let phase = Phase::WaitingForDevice.as_str().to_owned();
            let text = "the device has no session; it gets the order as soon as it connects".to_owned();
            run.progress(Line { time: now, phase, text });
        }
    }
    Ok(Attached::Running(run))
}

/// Tells a served pod everything until the end of its order. The install goes on without listeners.
pub async fn follow(shared: Arc<Shared>, attached: Attached, sender: mpsc::Sender<Result<RunEvent, Status>>) {
    let run = match attached {
        Attached::Finished(result) => {
            // The pod may be gone; it asks again.
            let _ = sender.send(Ok(finished(result))).await;
            return;
        }
        Attached::Running(run) => run,
    };
    let (so_far, mut events) = run.attach();
    for event in so_far {
        if !tell(&sender, event).await {
            return;
        }
    }
    let stopping = shared.stopping();
    tokio::pin!(stopping);
    let remaining = run.deadline.duration_since(shell::now()).unsigned_abs();
    let remaining = if shell::now() < run.deadline { remaining } else { std::time::Duration::ZERO };
    let over = tokio::time::sleep(remaining);
    tokio::pin!(over);
    let last = loop {
        tokio::select! {
            // A result that is there counts, whatever the clock says.
            biased;
            event = events.recv() => match event {
                Ok(event) => if !tell(&sender, event).await { return },
                Err(RecvError::Lagged(lines)) => {
                    let text = format!("({lines} lines left out)");
                    let line = Line { time: shell::now(), phase: Phase::Installing.as_str().to_owned(), text };
                    if !tell(&sender, Event::Line(line)).await {
                        return;
                    }
                }
                Err(RecvError::Closed) => return,
            },
            () = sender.closed() => return,
            () = &mut stopping => break Status::unavailable("this gateway is shutting down"),
            () = &mut over => break Status::deadline_exceeded(format!(
                "no result of order {} until {}: its time is over", run.digest, run.deadline
            )),
        }
    };
    // The pod may be gone.
    let _ = sender.send(Err(last)).await;
}

/// Sends one event. False: that was the last one.
async fn tell(sender: &mpsc::Sender<Result<RunEvent, Status>>, event: Event) -> bool {
    match event {
        Event::Line(Line { time, phase, text }) => {
            let progress = Progress { time: super::pending::to_seconds(time).to_string(), phase, text };
            let event = RunEvent { event: Some(run_event::Event::Progress(progress)) };
            sender.send(Ok(event)).await.is_ok()
        }
        Event::Finished(result) => {
            // The pod may be gone; it asks again.
            let _ = sender.send(Ok(finished(result.to_vec()))).await;
            false
        }
    }
}

fn finished(result: Vec<u8>) -> RunEvent {
    RunEvent { event: Some(run_event::Event::Finished(Finished { result })) }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, NotServed> {
    serde_json::to_vec(value).map_err(|error| NotServed::Denied(format!("cannot be written as JSON: {error}")))
}

/// The user whose token a call of this door shows. A call without one asks nobody, and one with any text asks the API server: so many do at a time.
pub async fn user_of(shared: &Shared, token: Option<String>) -> Result<UserInfo, NotServed> {
    if token.is_some() && !shared.may_review() {
        return Err(NotServed::Busy);
    }
    reviewed_user(shared, token, GATEWAY_AUDIENCE).await
}

/// The user whose token it is, if it is for this audience.
pub async fn reviewed_user(shared: &Shared, token: Option<String>, audience: &str) -> Result<UserInfo, NotServed> {
    let token = token.ok_or_else(|| NotServed::Unauthenticated("no bearer token".into()))?;
    let api: Api<TokenReview> = Api::all(shared.client.clone());
    let spec = TokenReviewSpec { token, audiences: Some(vec![audience.to_owned()]) };
    let review = api.create(&PostParams::default(), &TokenReview { spec, ..TokenReview::default() }).await;
    let count = |result| shared.metrics.token_reviews.with_label_values(&[result]).inc();
    let review = review.inspect_err(|_| count("failed"))?;
    let user = user(review, audience).map_err(NotServed::Unauthenticated);
    count(if user.is_ok() { "authenticated" } else { "refused" });
    user
}

/// The user that a review shows.
fn user(review: TokenReview, audience: &str) -> Result<UserInfo, String> {
    let status = review.status.ok_or("the token review has no answer")?;
    if status.authenticated != Some(true) {
        return Err(format!("the token is not valid: {}", status.error.as_deref().unwrap_or("not authenticated")));
    }
    if !status.audiences.iter().flatten().any(|it| it == audience) {
        return Err(format!("the token is not for the audience {audience}"));
    }
    status.user.ok_or_else(|| "the token names no user".to_owned())
}

/// The pod whose token it is.
fn caller(user: &UserInfo) -> Result<Caller, String> {
    let namespace = user
        .username
        .as_deref()
        .and_then(|name| name.strip_prefix("system:serviceaccount:"))
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, _)| namespace.to_owned())
        .ok_or("the token is not a service account's")?;
    let extra = |key: &str| match user.extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice) {
        Some([value]) => Ok(value.clone()),
        _ => Err(format!("the token is not bound to a pod ({key} is missing)")),
    };
    Ok(Caller { namespace, pod: extra(EXTRA_POD_NAME)?, uid: extra(EXTRA_POD_UID)? })
}

async fn job_of(shared: &Shared, caller: &Caller, name: &str) -> Result<Job, NotServed> {
    let pods: Api<Pod> = Api::namespaced(shared.client.clone(), &caller.namespace);
    let pod = pods.get_opt(&caller.pod).await?;
    let job_uid = owning_job(pod.as_ref(), caller, name).map_err(NotServed::Denied)?;
    let jobs: Api<Job> = Api::namespaced(shared.client.clone(), &caller.namespace);
    let job = jobs.get_opt(name).await?;
    job.filter(|job| job.uid().as_deref() == Some(job_uid.as_str())).ok_or_else(|| {
        NotServed::Denied(format!("Job {}/{name} of this pod does not exist any more", caller.namespace))
    })
}

/// The uid of the Job `name`, if it is what controls the calling pod.
fn owning_job(pod: Option<&Pod>, caller: &Caller, name: &str) -> Result<String, String> {
    let Caller { namespace, pod: pod_name, uid } = caller;
    let pod = pod
        .filter(|pod| pod.uid().as_ref() == Some(uid))
        .ok_or_else(|| format!("pod {namespace}/{pod_name} of the token does not exist any more"))?;
    pod.owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true) && owner.api_version == "batch/v1" && owner.kind == "Job")
        .filter(|owner| owner.name == name)
        .map(|owner| owner.uid.clone())
        .ok_or_else(|| format!("pod {namespace}/{pod_name} is not controlled by Job {name}"))
}

/// The order that a Job carries; its device must be of the Job's namespace. Not verified yet.
fn order_of(job: &Job, namespace: &str) -> Result<(Order, SignedOrder), String> {
    let name = job.name_any();
    let at = |problem: String| format!("annotation {ANNOTATION_ORDER} of Job {namespace}/{name} {problem}");
    let text = job.annotations().get(ANNOTATION_ORDER).ok_or_else(|| at("is missing".into()))?;
    let signed: SignedOrder = serde_json::from_str(text).map_err(|error| at(format!("cannot be read: {error}")))?;
    let order = signed.order.peek().ok_or_else(|| at("holds no order".into()))?;
    let DeviceRef { namespace: of_device, .. } = &order.device;
    if of_device == namespace {
        Ok((order, signed))
    } else {
        Err(at(format!("is for a device of namespace {of_device}")))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::TokenReviewStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use patchwarden_protocol::key::PrivateKey;

    use super::*;
    use crate::gateway::testing;

    fn reviewed() -> TokenReview {
        let extra = |value: &str| vec![value.to_owned()];
        TokenReview {
            status: Some(TokenReviewStatus {
                authenticated: Some(true),
                audiences: Some(vec![GATEWAY_AUDIENCE.into()]),
                user: Some(UserInfo {
                    username: Some("system:serviceaccount:acme:patchwarden-runner".into()),
                    extra: Some(
                        [(EXTRA_POD_NAME.into(), extra("web-1-abc")), (EXTRA_POD_UID.into(), extra("u1"))].into(),
                    ),
                    ..UserInfo::default()
                }),
                error: None,
            }),
            ..TokenReview::default()
        }
    }

    fn pod_of(review: TokenReview) -> Result<Caller, String> {
        caller(&user(review, GATEWAY_AUDIENCE)?)
    }

    fn pod(uid: &str, job: &str, controller: bool) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "batch/v1".into(),
            kind: "Job".into(),
            name: job.into(),
            uid: "j1".into(),
            controller: Some(controller),
            block_owner_deletion: None,
        }]);
        pod
    }

    #[test]
    fn a_bound_token_of_the_right_audience_names_its_pod() {
        let expected = Caller { namespace: "acme".into(), pod: "web-1-abc".into(), uid: "u1".into() };
        assert_eq!(pod_of(reviewed()), Ok(expected));
    }

    #[test]
    fn any_other_token_is_refused() {
        let refused = |change: &dyn Fn(&mut TokenReviewStatus)| {
            let mut review = reviewed();
            change(review.status.as_mut().unwrap());
            pod_of(review).unwrap_err()
        };
        assert!(refused(&|s| s.authenticated = Some(false)).contains("not valid"));
        assert!(refused(&|s| s.authenticated = None).contains("not valid"));
        assert!(refused(&|s| s.audiences = None).contains("audience"));
        assert!(refused(&|s| s.audiences = Some(vec!["https://kubernetes".into()])).contains("audience"));
        assert!(refused(&|s| s.user.as_mut().unwrap().extra = None).contains("not bound to a pod"));
        assert!(refused(&|s| s.user.as_mut().unwrap().username = Some("admin".into())).contains("service account"));
        assert!(pod_of(TokenReview::default()).is_err());
    }

    #[test]
    fn a_pod_is_of_the_job_that_controls_it_only() {
        let caller = pod_of(reviewed()).unwrap();
        assert_eq!(owning_job(Some(&pod("u1", "web-1", true)), &caller, "web-1"), Ok("j1".into()));
        assert!(owning_job(Some(&pod("u1", "web-1", true)), &caller, "db-1").is_err());
        assert!(owning_job(Some(&pod("u1", "web-1", false)), &caller, "web-1").is_err());
        assert!(owning_job(Some(&pod("u2", "web-1", true)), &caller, "web-1").is_err());
        assert!(owning_job(None, &caller, "web-1").is_err());
    }

    #[test]
    fn a_job_carries_an_order_for_a_device_of_its_own_namespace() {
        let key = PrivateKey::generate();
        let order = testing::order("acme", "web", &key.public());
        let signed = testing::signed_order(&order, &key);
        let mut job = Job::default();
        assert!(order_of(&job, "acme").unwrap_err().contains("is missing"));
        job.annotations_mut().insert(ANNOTATION_ORDER.into(), "{}".into());
        assert!(order_of(&job, "acme").unwrap_err().contains("cannot be read"));
        job.annotations_mut().insert(ANNOTATION_ORDER.into(), serde_json::to_string(&signed).unwrap());
        assert_eq!(order_of(&job, "acme").unwrap().0, order);
        assert!(order_of(&job, "other").unwrap_err().contains("namespace acme"));
    }

    #[test]
    fn a_bearer_token_is_read_from_its_header() {
        let mut metadata = MetadataMap::new();
        assert_eq!(bearer(&metadata), None);
        metadata.insert("authorization", "Basic x".parse().unwrap());
        assert_eq!(bearer(&metadata), None);
        metadata.insert("authorization", "Bearer t.o.k".parse().unwrap());
        assert_eq!(bearer(&metadata).as_deref(), Some("t.o.k"));
    }
}
