//! One trace for one install, over controller, runner, gateway and agent, as a collector gets it; and logs as JSON that name it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use patchwarden_protocol::result::Outcome;
use prost::Message as _;

use crate::Test;
use crate::world::{World, eventually};

pub const TESTS: &[Test] = &[("an_install_is_one_trace_of_all_programs", an_install_is_one_trace_of_all_programs)];

/// With this variable the tests' program is a collector, for the cluster's network: it keeps each request as a file of the directory
/// that is its value.
pub const COLLECT: &str = "PATCHWARDEN_TEST_COLLECTOR";

/// That of OTLP over HTTP.
const PORT: u16 = 4318;

/// Takes what comes until it is killed.
pub fn collect(directory: &Path) -> ExitCode {
    let directory = directory.to_owned();
    let number = Arc::new(AtomicU32::new(0));
    let take = move |body: Bytes| {
        let name = format!("{:06}", number.fetch_add(1, Ordering::Relaxed));
        // Renamed when it is whole: somebody reads the directory meanwhile.
        std::fs::write(directory.join(format!(".{name}")), &body).unwrap();
        std::fs::rename(directory.join(format!(".{name}")), directory.join(name)).unwrap();
        async {}
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", PORT)).await.unwrap();
        axum::serve(listener, Router::new().route("/v1/traces", post(take))).await.unwrap();
    });
    ExitCode::SUCCESS
}

/// A collector in the cluster's network, and programs that tell it. At its end they tell nobody, as before.
struct Collector<'w> {
    world: &'w World,
    process: Child,
    directory: PathBuf,
}

impl<'w> Collector<'w> {
    fn start(world: &'w World) -> Self {
        let directory = world.state().join("traces");
        std::fs::create_dir_all(&directory).unwrap();
        let this = std::env::current_exe().unwrap();
        let process = world.inside(this.to_str().unwrap()).env(COLLECT, &directory).spawn().unwrap();
        let collector = Self { world, process, directory };
        let endpoint = format!("http://{}:{PORT}", world.variable("NODE_ADDRESS"));
        collector.restart(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("PATCHWARDEN_LOG_FORMAT", "json".to_owned())]);
        collector
    }

    fn restart(&self, environment: &[(&str, String)]) {
        for program in ["gateway", "controller"] {
            self.world.restart_with(program, environment);
        }
    }

    /// All spans so far, each with its service.
    fn spans(&self) -> Vec<(String, Span)> {
        let files = std::fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap());
        let whole = files.filter(|file| !file.file_name().to_string_lossy().starts_with('.'));
        let requests =
            whole.map(|file| ExportTraceServiceRequest::decode(std::fs::read(file.path()).unwrap().as_slice()));
        let resources = requests.flat_map(|request| request.unwrap().resource_spans);
        let spans = resources.flat_map(|resource| {
            let attributes = resource.resource.unwrap().attributes;
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name").unwrap();
            let Some(Value::StringValue(service)) = name.value.unwrap().value else { panic!("no text") };
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |span| (service.clone(), span)).collect::<Vec<_>>()
        });
        spans.collect()
    }
}

impl Drop for Collector<'_> {
    fn drop(&mut self) {
        self.restart(&[]);
        self.process.kill().expect("it is a child");
        self.process.wait().expect("it is a child");
    }
}

fn an_install_is_one_trace_of_all_programs(world: &World) {
    let repository = world.repository("traces", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("traces-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let collector = Collector::start(world);
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.join(&device);
    let claimed = tenant.wait_for("traces-1", "an order is claimed", |device| {
        device.status.as_ref().and_then(|status| status.compliance.as_ref()?.current.as_ref()).is_some()
    });
    let digest = claimed.status.unwrap().compliance.unwrap().current.unwrap().order_digest;
    tenant.wait_for("traces-1", "alpha is installed", |device| {
        let compliance = device.status.as_ref().and_then(|status| status.compliance.as_ref());
        compliance.is_some_and(|c| c.last.first().is_some_and(|past| past.outcome == Some(Outcome::Succeeded)))
    });
    let expected = BTreeSet::from([
        ("patchwarden-controller", "install"),
        ("patchwarden-controller", "claim"),
        ("patchwarden-controller", "create Job"),
        ("patchwarden-controller", "record"),
        ("patchwarden-runner", "run order"),
        ("patchwarden-gateway", "receive order"),
        ("patchwarden-gateway", "deliver order"),
        ("patchwarden-gateway", "record result"),
        ("patchwarden-agent", "order"),
        ("patchwarden-agent", "simulate"),
        ("patchwarden-agent", "download"),
        ("patchwarden-agent", "await grant"),
        ("patchwarden-agent", "install packages"),
        ("patchwarden-agent", "check packages"),
    ]);
    let spans = eventually("the collector has all spans", || {
        let spans = collector.spans();
        let names: BTreeSet<_> = spans.iter().map(|(service, span)| (service.as_str(), span.name.as_str())).collect();
        expected.is_subset(&names).then_some(spans)
    });
    let spans = spans.unwrap_or_else(|why| panic!("{why}; it has {:?}", names(&collector.spans())));
    let trace = digest.strip_prefix("sha256:").unwrap()[..32].to_owned();
    let id = u128::from_str_radix(&trace, 16).unwrap().to_be_bytes();
    for (service, span) in &spans {
        assert_eq!(span.trace_id, id, "{service}: {} is of another trace than {trace}", span.name);
    }
    one_root_holds_all(&spans);
    times_are_in_order(&spans);
    logs_name_it(world, &tenant.name, &trace);
}

fn names(spans: &[(String, Span)]) -> Vec<String> {
    spans.iter().map(|(service, span)| format!("{service}: {}", span.name)).collect()
}

/// Each span's parent was told, up to the one that has none; and the whole lies in that one.
fn one_root_holds_all(spans: &[(String, Span)]) {
    let by_id: BTreeMap<_, _> = spans.iter().map(|(_, span)| (span.span_id.clone(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "every span has an id of its own: {:?}", names(spans));
    let roots: Vec<_> = spans.iter().filter(|(_, span)| span.parent_span_id.is_empty()).collect();
    assert_eq!(names(&roots.iter().copied().cloned().collect::<Vec<_>>()), ["patchwarden-controller: install"]);
    let parent_of = |name: &str| {
        let (_, span) = spans.iter().find(|(_, span)| span.name == name).unwrap();
        by_id.get(&span.parent_span_id).unwrap_or_else(|| panic!("the parent of {name:?} was told")).name.clone()
    };
    assert_eq!(parent_of("receive order"), "run order");
    for phase in ["simulate", "download", "await grant", "install packages", "check packages"] {
        assert_eq!(parent_of(phase), "order");
    }
    for below in ["claim", "create Job", "record", "run order", "deliver order", "record result", "order"] {
        assert_eq!(parent_of(below), "install");
    }
    let (_, root) = roots[0];
    for (service, span) in spans {
        let is_within = root.start_time_unix_nano <= span.start_time_unix_nano
            && span.start_time_unix_nano <= span.end_time_unix_nano
            // The pod sees its result before the controller has recorded it, and ends when it likes.
            && (span.end_time_unix_nano <= root.end_time_unix_nano || service == "patchwarden-runner");
        assert!(is_within, "{service}: {span:?} is not within {root:?}");
    }
}

fn times_are_in_order(spans: &[(String, Span)]) {
    let order = [
        "claim",
        "create Job",
        "run order",
        "receive order",
        "deliver order",
        "order",
        "download",
        "await grant",
        "install packages",
        "check packages",
        "record result",
        "record",
    ];
    let starts = order.map(|name| spans.iter().find(|(_, span)| span.name == name).unwrap().1.start_time_unix_nano);
    assert!(starts.is_sorted(), "{:?}", order.iter().zip(starts).collect::<Vec<_>>());
}

/// Lines of all programs about the install have its trace; all lines are JSON since the programs were told so.
fn logs_name_it(world: &World, tenant: &str, trace: &str) {
    let pod = world.kubectl(&["logs", "-n", tenant, "job/traces-1-0-1"]);
    let logs = [world.program("log", "controller"), world.program("log", "gateway"), pod];
    for (text, message) in logs.iter().zip(["created an install Job", "result recorded", "Succeeded"]) {
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let is_it = |line: &serde_json::Value| {
            line["trace_id"] == trace && line["message"].as_str().is_some_and(|words| words.starts_with(message))
        };
        let found = lines.into_iter().find(is_it).unwrap_or_else(|| panic!("no line {message:?} of {trace}:\n{text}"));
        assert!(found["timestamp"].is_string() && found["level"] == "INFO", "{found}");
    }
}
