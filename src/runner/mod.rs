//! The program in the pod of an install Job: asks the gateway to run the Job's order and prints what it hears, so that
//! `kubectl logs` tells the story. It decides nothing, and the install goes on without it.

mod output;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::result::{InstallResult, Outcome};
use patchwarden_protocol::runner_v1::run_event::Event;
use patchwarden_protocol::runner_v1::runner_client::RunnerClient;
use patchwarden_protocol::runner_v1::{RunEvent, RunRequest};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use self::output::Output;
use crate::gateway_client::{NoToken, authorized, channel};
use crate::shell::{self, LogFormat};
use crate::telemetry::ids::{Context, SpanId, TRACEPARENT};
use crate::telemetry::{Kind, Service, Span, Traces, words};

/// What the Job tells its pod.
pub mod env {
    /// `https://host:port` of the gateway's runners' door.
    pub const GATEWAY: &str = "PATCHWARDEN_GATEWAY";
    /// The CA's certificates in PEM.
    pub const CA: &str = "PATCHWARDEN_CA";
    /// Name of the Job.
    pub const JOB: &str = "PATCHWARDEN_JOB";
    /// File of the pod's projected service-account token.
    pub const TOKEN_FILE: &str = "PATCHWARDEN_TOKEN_FILE";
    /// The install's trace, as OpenTelemetry has contexts in the environment.
    pub const TRACEPARENT: &str = "TRACEPARENT";
}

/// What the pod's exit code says to the Job's pod failure policy.
pub mod exit {
    /// The order succeeded.
    pub const SUCCEEDED: u8 = 0;
    /// The order is over and did not succeed (Failed, Refused, Withdrawn, Expired, or its time passed without a
    /// result): final, the controller decides what follows.
    pub const NOT_SUCCEEDED: u8 = 10;
    /// The gateway refused this pod: another try would be refused too.
    pub const REFUSED: u8 = 11;
    /// The gateway could not be reached (EX_TEMPFAIL of sysexits.h), or the pod was told to stop: try again.
    pub const TRY_AGAIN: u8 = 75;
}

/// The gateway may restart or move to another node meanwhile: after this long without it, another pod may do better.
const PATIENCE: Duration = Duration::from_mins(2);

/// The first pause after a failed call, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// What the pod is told by its Job.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:port` of the gateway's runners' door.
    pub gateway: String,
    /// The CA's certificates in PEM.
    pub ca: String,
    /// Name of the Job.
    pub job: String,
    /// File of the projected service-account token; read anew for each call, since it is replaced as it ages.
    pub token_file: PathBuf,
    /// How lines are written.
    pub format: LogFormat,
    /// The install's trace, whose root is the parent of this pod's span.
    pub trace: Option<Context>,
    /// This pod's span.
    pub span: SpanId,
}

/// What cannot be asked for at all.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The gateway's address or the CA.
    #[error("PATCHWARDEN_GATEWAY or PATCHWARDEN_CA: {0}")]
    Gateway(#[from] tonic::transport::Error),
    /// The token.
    #[error(transparent)]
    Token(#[from] NoToken),
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

/// How one call ended.
enum Called {
    /// With the device's result.
    Finished(Box<InstallResult>),
    /// The gateway said something that is final.
    Over(Status),
    /// Somewhere on the way; whether anything was heard before that.
    Broken { status: Status, heard: bool },
}

/// Runs the Job's order; answers the exit code.
pub async fn run(config: &Config) -> Result<u8, RunnerError> {
    let channel = channel(&config.gateway, &config.ca)?;
    let mut output = Output::new(config);
    let (first, longest) = BACKOFF;
    let (mut pause, mut reached) = (first, Instant::now());
    loop {
        match call(&channel, config, &mut output).await? {
            Called::Finished(result) => {
                output.summary(&result)?;
                return Ok(exit_code(result.outcome));
            }
            Called::Over(status) => {
                let (word, code) = match status.code() {
                    Code::DeadlineExceeded => ("over", exit::NOT_SUCCEEDED),
                    _ => ("the gateway refuses this pod", exit::REFUSED),
                };
                output.note(&format!("{word}: {}", status.message()))?;
                return Ok(code);
            }
            Called::Broken { status, heard } => {
                if heard {
                    (pause, reached) = (first, Instant::now());
                }
                if reached.elapsed() >= PATIENCE {
                    output.note(&format!("no answer from {} for 2 minutes: giving up", config.gateway))?;
                    return Ok(exit::TRY_AGAIN);
                }
                let seconds = pause.as_secs();
                output.note(&format!("{}; asking {} again in {seconds} s", status.message(), config.gateway))?;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}

/// Says goodbye when the pod is told to stop.
pub fn told_to_stop(config: &Config) -> Result<u8, RunnerError> {
    Output::new(config).note("told to stop; the device goes on by itself, and its result will be recorded")?;
    Ok(exit::TRY_AGAIN)
}

async fn call(channel: &Channel, config: &Config, output: &mut Output) -> Result<Called, RunnerError> {
    let mut request = authorized(RunRequest { job: config.job.clone() }, &config.token_file).await?;
    let context = config.trace.map(|trace| Context { span: config.span, ..trace }.to_string());
    // Hexadecimal digits and dashes are always a value.
    if let Some(context) = context.and_then(|context| context.parse().ok()) {
        request.metadata_mut().insert(TRACEPARENT, context);
    }
    let mut stream = match RunnerClient::new(channel.clone()).run(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(judge(status, false)),
    };
    loop {
        match stream.message().await {
            Ok(Some(RunEvent { event: Some(Event::Progress(progress)) })) => output.progress(&progress)?,
            Ok(Some(RunEvent { event: Some(Event::Finished(finished)) })) => {
                return Ok(match serde_json::from_slice(&finished.result) {
                    Ok(result) => Called::Finished(Box::new(result)),
                    Err(error) => {
                        let message =
                            format!("the result cannot be read, runner and gateway differ in version: {error}");
                        Called::Over(Status::failed_precondition(message))
                    }
                });
            }
            Ok(Some(RunEvent { event: None })) => {}
            Ok(None) => {
                let status = Status::unavailable("the gateway ended the call");
                return Ok(Called::Broken { status, heard: true });
            }
            Err(status) => return Ok(judge(status, true)),
        }
    }
}

/// Tells what this pod has done.
pub fn tell(traces: &Traces, config: &Config, since: Timestamp, code: u8) {
    let Some(trace) = config.trace.and_then(|context| traces.follow(&context)) else { return };
    let span = Span::below(trace.root(), &words::RUN, since, shell::now());
    let attributes = vec![words::JOB.is(config.job.as_str()), words::EXIT_CODE.is(u32::from(code))];
    let failed = (code != exit::SUCCEEDED).then(|| format!("exit code {code}"));
    trace.tell(Service::Own, Span { id: config.span, kind: Kind::Client, attributes, failed, ..span });
}

/// Whether another call makes sense.
fn judge(status: Status, heard: bool) -> Called {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::DeadlineExceeded
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unimplemented => Called::Over(status),
        _ => Called::Broken { status, heard },
    }
}

fn exit_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Succeeded => exit::SUCCEEDED,
        Outcome::Failed | Outcome::Refused | Outcome::Withdrawn | Outcome::Expired => exit::NOT_SUCCEEDED,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use patchwarden_protocol::key::{Fingerprint, PrivateKey};
    use patchwarden_protocol::order::Sequence;
    use patchwarden_protocol::report::{DeviceRef, Tristate};
    use patchwarden_protocol::runner_v1::runner_server::{Runner, RunnerServer};
    use patchwarden_protocol::runner_v1::{Finished, Progress};
    use tonic::{Request, Response};

    use super::*;
    use crate::gateway::tls;
    use crate::gateway::tls::tests::Ca;

    #[test]
    fn only_success_is_zero() {
        assert_eq!(exit_code(Outcome::Succeeded), 0);
        for outcome in [Outcome::Failed, Outcome::Refused, Outcome::Withdrawn, Outcome::Expired] {
            assert_eq!(exit_code(outcome), 10);
        }
    }

    #[test]
    fn refusals_are_final_and_transport_errors_are_not() {
        assert!(matches!(judge(Status::permission_denied(""), false), Called::Over(_)));
        assert!(matches!(judge(Status::deadline_exceeded(""), true), Called::Over(_)));
        assert!(matches!(judge(Status::unavailable(""), true), Called::Broken { heard: true, .. }));
        assert!(matches!(judge(Status::unknown("h2"), false), Called::Broken { heard: false, .. }));
    }

    /// A gateway that breaks off its first call and answers the second.
    #[derive(Default)]
    struct Gateway {
        calls: AtomicU32,
    }

    #[tonic::async_trait]
    impl Runner for Gateway {
        type RunStream = tokio_stream::Iter<std::vec::IntoIter<Result<RunEvent, Status>>>;

        async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
            if request.metadata().get("authorization").is_none_or(|value| value != "Bearer t.o.k") {
                return Err(Status::unauthenticated("no"));
            }
            let line = Progress { time: "2026-01-01T00:00:00Z".into(), phase: "Installing".into(), text: "x".into() };
            let progress = Ok(RunEvent { event: Some(Event::Progress(line)) });
            let result = InstallResult {
                device: DeviceRef { namespace: "acme".into(), name: "web".into() },
                device_key: Fingerprint::of(b"k"),
                sequence: Sequence { epoch: 1, number: 1 },
                order_digest: "sha256:1".into(),
                outcome: if request.get_ref().job == "good" { Outcome::Succeeded } else { Outcome::Failed },
                reason: None,
                message: String::new(),
                actions: Vec::new(),
                started_at: jiff::Timestamp::UNIX_EPOCH,
                finished_at: jiff::Timestamp::UNIX_EPOCH,
                restart_required: Tristate::No,
                restarts: 0,
                restart_postponed: String::new(),
                steps: vec![],
                phases: vec![],
            };
            let finished = Finished { result: serde_json::to_vec(&result).unwrap() };
            let last = match self.calls.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Status::unavailable("shutting down")),
                _ => Ok(RunEvent { event: Some(Event::Finished(finished)) }),
            };
            Ok(Response::new(tokio_stream::iter(vec![progress, last])))
        }
    }

    async fn exit_of(job: &str, token: &str) -> u8 {
        let ca = Ca::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = tokio::sync::watch::Sender::new(Some(ca.serving(&["localhost"]).runners().unwrap()));
        let (incoming, _) = tls::incoming(listener, config.subscribe(), tls::Limits::of_tokens());
        let server = tonic::transport::Server::builder().add_service(RunnerServer::new(Gateway::default()));
        tokio::spawn(server.serve_with_incoming(incoming));
        let token_file = std::env::temp_dir().join(format!("patchwarden-token-{:032x}", rand::random::<u128>()));
        std::fs::write(&token_file, token).unwrap();
        let config = Config {
            gateway: format!("https://localhost:{port}"),
            ca: ca.trust(&PrivateKey::generate()).ca_pem,
            job: job.into(),
            token_file: token_file.clone(),
            format: LogFormat::Text,
            trace: None,
            span: SpanId::random(),
        };
        let code = run(&config).await.unwrap();
        std::fs::remove_file(token_file).unwrap();
        code
    }

    #[tokio::test]
    async fn a_broken_call_is_asked_again_and_the_result_decides() {
        assert_eq!(exit_of("good", "t.o.k\n").await, exit::SUCCEEDED);
        assert_eq!(exit_of("bad", "t.o.k").await, exit::NOT_SUCCEEDED);
        assert_eq!(exit_of("good", "other").await, exit::REFUSED);
    }
}
