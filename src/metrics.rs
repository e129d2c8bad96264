//! How the metrics of all programs are defined: each once, with what `docs/metrics.md` says of it.

pub mod series;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use series::Series;

/// What a metric is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its whole name.
    pub name: String,
    /// As Prometheus calls it.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
    /// When it has a sample.
    pub there: There,
}

/// When a metric has a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// From the start.
    Always,
    /// From its first event or object on. In any fleet at work it is there.
    Once(&'static str),
    /// Only while something is so that need not be.
    While(&'static str),
}

impl std::fmt::Display for There {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Once(what) => write!(f, "once {what}"),
            Self::While(what) => write!(f, "while {what}"),
        }
    }
}

/// Metrics of one program while they are defined: what is made here is registered and described.
#[derive(Debug)]
pub struct Definitions {
    prefix: &'static str,
    /// Where they are.
    pub registry: Registry,
    /// What they are.
    pub all: Vec<Definition>,
    /// Those of namespaces.
    pub series: Vec<Series>,
}

impl Definitions {
    /// None yet. Their names begin with `prefix`.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, registry: Registry::new(), all: Vec::new(), series: Vec::new() }
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::with_opts(self.opts(name, help))?;
        self.define("gauge", name, help, &[], There::Always, &gauge)?;
        Ok(gauge)
    }

    /// A gauge with labels.
    pub fn gauges(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
        there: There,
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let gauges = IntGaugeVec::new(self.opts(name, help), labels)?;
        self.define("gauge", name, help, labels, there, &gauges)?;
        Ok(gauges)
    }

    /// A gauge whose first label is the namespace: `labels` are those after it.
    pub fn series(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
        there: There,
    ) -> Result<Series, prometheus::Error> {
        let labels: Vec<&str> = std::iter::once("namespace").chain(labels.iter().copied()).collect();
        let gauges = self.gauges(name, help, &labels, there)?;
        let series = Series::new(gauges);
        self.series.push(series.clone());
        Ok(series)
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let counter = IntCounter::with_opts(self.opts(name, help))?;
        self.define("counter", name, help, &[], There::Always, &counter)?;
        Ok(counter)
    }

    /// A counter with labels, and the values of these that are exported as zeros: a rate over it starts with its first increase.
    pub fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        zeros: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(self.opts(name, help), &labels)?;
        self.define("counter", name, help, &labels, There::Always, &counters)?;
        for zero in zeros {
            // Asking for a counter exports its zero.
            let _ = counters.with_label_values(&zero);
        }
        Ok(counters)
    }

    /// A histogram without labels.
    pub fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        let histogram = Histogram::with_opts(self.histogram_opts(name, help, buckets))?;
        self.define("histogram", name, help, &[], There::Always, &histogram)?;
        Ok(histogram)
    }

    /// A histogram with labels.
    pub fn histograms(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
        there: There,
    ) -> Result<HistogramVec, prometheus::Error> {
        let histograms = HistogramVec::new(self.histogram_opts(name, help, buckets), labels)?;
        self.define("histogram", name, help, labels, there, &histograms)?;
        Ok(histograms)
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}{name}", self.prefix), help)
    }

    fn histogram_opts(&self, name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
        HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec())
    }

    fn define<C: Collector + Clone + 'static>(
        &mut self,
        kind: &'static str,
        name: &str,
        help: &str,
        labels: &[&str],
        there: There,
        collector: &C,
    ) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.all.push(Definition {
            name: format!("{}{name}", self.prefix),
            kind,
            labels,
            help: help.to_owned(),
            there,
        });
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// What is said of a program's metrics is so as long as nothing has happened.
    pub fn are_as_defined(all: &[Definition], registry: &Registry) {
        let found = registry.gather();
        for it in all {
            let Definition { name, kind, there, .. } = it;
            let family = found.iter().find(|family| family.name() == name);
            assert_eq!(family.is_some(), *there == There::Always, "{name}: {there}");
            let is_unit = ["_seconds", "_total", "_info"].iter().any(|unit| name.ends_with(unit));
            assert!(is_unit || *kind == "gauge", "{name} has no unit");
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
            if let Some(family) = family {
                assert_eq!(format!("{:?}", family.get_field_type()).to_lowercase(), *kind, "{name}");
            }
        }
        assert!(found.iter().all(|family| all.iter().any(|it| it.name == family.name())));
    }
}
