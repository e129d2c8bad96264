//! Ids, what the environment says, and collectors that work, are slow, or are not there.

use prometheus::{IntCounterVec, Opts};
use tokio::time::Instant;

use super::ids::Context;
use super::testing::{Collector, Received};
use super::*;

const DIGEST: &str = "sha256:4bf92f3577b34da6a3ce929d0e0e47364bf92f3577b34da6a3ce929d0e0e4736";

fn settings(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
    let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Settings::of(get).map_err(|error| error.to_string())
}

fn counter() -> IntCounterVec {
    IntCounterVec::new(Opts::new("spans", "spans"), &["result"]).unwrap()
}

fn traces(endpoint: &str, more: &[(&str, &str)], counter: &IntCounterVec) -> Traces {
    let variables: Vec<_> =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)].into_iter().chain(more.iter().copied()).collect();
    Traces::to(settings(&variables).unwrap().unwrap(), "program", "pod-1", Some(counter.clone())).unwrap()
}

fn tell(traces: &Traces) {
    let trace = traces.install(DIGEST).unwrap();
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    let span = Span::below(trace.root(), &words::CLAIM, at, at + Duration::from_millis(5));
    trace.tell(Service::Own, Span { attributes: vec![words::JOB.is("web-1-0-7")], ..span });
}

async fn end(traces: &Traces, time: Duration) -> bool {
    let traces = traces.clone();
    tokio::task::spawn_blocking(move || traces.end(time)).await.unwrap()
}

async fn received(collector: &Collector, number: usize) -> Vec<Received> {
    let began = Instant::now();
    loop {
        let received = collector.received();
        if received.len() >= number {
            return received;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{} of {number} spans", received.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn whoever_knows_an_order_knows_its_trace() {
    let trace = TraceId::of_order(DIGEST).unwrap();
    assert_eq!(trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(SpanId::root(DIGEST), SpanId::root(DIGEST));
    let other = DIGEST.replace("sha256:4", "sha256:5");
    assert_ne!(TraceId::of_order(&other).unwrap(), trace);
    assert_ne!(SpanId::root(&other), SpanId::root(DIGEST));
    assert_ne!(SpanId::derived(DIGEST, "order"), SpanId::root(DIGEST));
    let zeros = format!("sha256:{}", "0".repeat(64));
    for bad in ["", "sha256:4bf9", DIGEST.trim_start_matches("sha256:"), &DIGEST.to_uppercase(), &zeros] {
        assert_eq!(TraceId::of_order(bad), None, "{bad}");
    }
}

#[test]
fn a_context_is_written_and_read_as_w3c_has_it() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let context: Context = text.parse().unwrap();
    assert!(context.is_sampled);
    assert_eq!(context.to_string(), text);
    assert!(!text.replace("-01", "-02").parse::<Context>().unwrap().is_sampled);
    let later = format!("{text}-more").replacen("00", "01", 1);
    assert_eq!(later.parse::<Context>().map(|context| context.trace), Ok(context.trace));
    for bad in [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e47é6-00f067aa0ba902b7-01",
    ] {
        assert!(bad.parse::<Context>().is_err(), "{bad}");
    }
}

#[test]
fn nothing_runs_without_an_endpoint_and_what_cannot_be_done_is_said() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/base/");
    let of = |more: &[(&str, &str)]| settings(&[&[endpoint], more].concat());
    assert!(settings(&[]).unwrap().is_none());
    assert!(settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).unwrap().is_none());
    assert!(of(&[("OTEL_SDK_DISABLED", "true")]).unwrap().is_none());
    assert!(of(&[("OTEL_TRACES_EXPORTER", "none")]).unwrap().is_none());
    assert_eq!(of(&[]).unwrap().unwrap().endpoint.as_str(), "http://collector:4318/base/v1/traces");
    let own = of(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces/x")]).unwrap().unwrap();
    assert_eq!(own.endpoint.as_str(), "https://traces/x");
    let full = of(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret, x-tenant=a"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,k8s.cluster.name=a%2Cb"),
    ]);
    let full = full.unwrap().unwrap();
    assert_eq!(full.headers[0].1, "Bearer s3cret");
    assert_eq!(full.timeout, Duration::from_millis(1500));
    assert_eq!(full.resource[1], ("k8s.cluster.name".to_owned(), "a,b".to_owned()));
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=s3cret"),
        // The name was forgotten: what looks like one is the secret.
        ("OTEL_EXPORTER_OTLP_HEADERS", "Bearer s3cret=="),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:s3cret@collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/?key=s3cret"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%zz"),
    ] {
        let error = settings(&[(name, value), endpoint]).unwrap_err();
        assert!(error.contains(name) && !error.contains("s3cret"), "{error}");
    }
    let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
    assert!(of(&ratio).unwrap_err().contains("OTEL_TRACES_SAMPLER_ARG"));
}

#[test]
fn a_ratio_of_traces_is_told_and_every_program_tells_the_same() {
    let sampler = |name: &str, ratio: &str| {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        settings(&[endpoint, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", ratio)])
            .unwrap()
            .unwrap()
            .sampler
    };
    let told = |sampler: Sampler| {
        let ids = (0..2000).map(|_| format!("{:032x}", rand::random::<u128>()).parse().unwrap());
        ids.filter(|id| sampler.samples(*id)).count()
    };
    assert_eq!(told(sampler("always_on", "0")), 2000);
    assert_eq!(told(sampler("always_off", "1")), 0);
    assert_eq!(told(sampler("traceidratio", "1")), 2000);
    assert_eq!(told(sampler("parentbased_traceidratio", "0")), 0);
    let quarter = told(sampler("traceidratio", "0.25"));
    assert!((380..=620).contains(&quarter), "{quarter} of 2000");
    // As OpenTelemetry's consistent sampling has it: the last 56 bits, from the threshold on.
    let half = sampler("traceidratio", "0.5");
    let id = |tail: &str| format!("ffffffffffffffffff{tail}").parse().unwrap();
    assert!(half.samples(id("80000000000000")) && !half.samples(id("7fffffffffffff")));
}

#[tokio::test]
async fn what_is_told_arrives_with_its_service_and_the_headers() {
    let (collector, counter) = (Collector::start("127.0.0.1:0").await, counter());
    let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a")];
    let traces = traces(&format!("http://127.0.0.1:{}", collector.port), &headers, &counter);
    tell(&traces);
    let trace = traces.install(DIGEST).unwrap();
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    trace.tell(Service::Agent, Span::below(trace.root(), &words::ORDER, at, at));
    assert!(end(&traces, Duration::from_secs(10)).await);
    let spans = collector.received();
    let of = |service: &str| spans.iter().find(|told| told.service == service).unwrap();
    let claim = of("program");
    assert_eq!(claim.span.name, "claim");
    assert_eq!(claim.span.trace_id, TraceId::of_order(DIGEST).unwrap().bytes());
    assert_eq!(claim.span.parent_span_id, SpanId::root(DIGEST).bytes());
    assert_eq!(claim.span.end_time_unix_nano - claim.span.start_time_unix_nano, 5_000_000);
    assert_eq!(claim.attribute("k8s.job.name").as_deref(), Some("web-1-0-7"));
    assert_eq!(of("patchwarden-agent").span.name, "order");
    assert_eq!(collector.headers().get("x-tenant").unwrap(), "a");
    assert_eq!(counter.with_label_values(&["exported"]).get(), 2);
    // Nothing is taken any more, and that is counted.
    tell(&traces);
    assert_eq!(counter.with_label_values(&["dropped"]).get(), 1);
}

#[tokio::test]
async fn a_slow_collector_holds_nobody_up_and_what_does_not_fit_is_dropped() {
    let (collector, counter) = (Collector::start("127.0.0.1:0").await, counter());
    collector.answer.send_replace(None);
    let traces = traces(&format!("http://127.0.0.1:{}", collector.port), &[], &counter);
    let began = Instant::now();
    for _ in 0..3 * export::QUEUE {
        tell(&traces);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "telling took {:?}", began.elapsed());
    let dropped = counter.with_label_values(&["dropped"]).get();
    // One batch may be under way.
    assert!((export::QUEUE as u64 + 1000..=2 * export::QUEUE as u64).contains(&dropped), "{dropped} dropped");
    let began = Instant::now();
    assert!(!end(&traces, Duration::from_millis(300)).await, "it has not taken them");
    assert!(began.elapsed() < Duration::from_secs(2), "the end took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_the_spans_and_one_that_refuses_them_is_not_asked_again() {
    let (collector, counter) = (Collector::start("127.0.0.1:0").await, counter());
    collector.answer.send_replace(Some(503));
    let traces = traces(&format!("http://127.0.0.1:{}", collector.port), &[], &counter);
    tell(&traces);
    while collector.headers().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    collector.answer.send_replace(Some(200));
    assert_eq!(received(&collector, 1).await.len(), 1);
    collector.answer.send_replace(Some(400));
    tell(&traces);
    let began = Instant::now();
    assert!(!end(&traces, Duration::from_secs(10)).await, "it has refused them");
    assert!(began.elapsed() < Duration::from_secs(3), "no second try, the end took {:?}", began.elapsed());
    assert_eq!(counter.with_label_values(&["dropped"]).get(), 1);
}

#[tokio::test]
async fn a_collector_that_is_not_there_delays_the_end_by_no_retries() {
    let counter = counter();
    // Nothing listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let traces = traces(&format!("http://127.0.0.1:{port}"), &[], &counter);
    tell(&traces);
    let began = Instant::now();
    assert!(!end(&traces, FLUSH_TIME).await);
    assert!(began.elapsed() < FLUSH_TIME, "the end took {:?}", began.elapsed());
    assert_eq!(counter.with_label_values(&["dropped"]).get(), 1);
}

#[test]
fn a_runner_follows_what_its_job_says_and_not_the_sampler() {
    let counter = counter();
    let off = [("OTEL_TRACES_SAMPLER", "always_off")];
    let traces = traces("http://127.0.0.1:1", &off, &counter);
    assert!(traces.install(DIGEST).is_none());
    let context =
        |is_sampled| Context { trace: TraceId::of_order(DIGEST).unwrap(), span: SpanId::root(DIGEST), is_sampled };
    assert!(traces.follow(&context(true)).is_some());
    assert!(traces.follow(&context(false)).is_none());
    assert!(Traces::default().follow(&context(true)).is_none());
}
