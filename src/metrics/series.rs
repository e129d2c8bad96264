//! Gauges of what is there: of what is gone no series is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntGaugeVec;

/// A gauge whose first label is the namespace.
#[derive(Clone, Debug)]
pub struct Series {
    gauge: IntGaugeVec,
    /// By namespace: the other labels of the series that are there.
    shown: Arc<Mutex<BTreeMap<String, BTreeSet<Vec<String>>>>>,
}

impl Series {
    /// Of a gauge that has no series yet.
    pub fn new(gauge: IntGaugeVec) -> Self {
        Self { gauge, shown: Arc::default() }
    }

    /// All that there is of a namespace: the labels after it, in their order, and the value.
    pub fn show<'l, const N: usize>(&self, namespace: &str, all: impl IntoIterator<Item = ([&'l str; N], i64)>) {
        let mut now = BTreeSet::new();
        for (labels, value) in all {
            let of_namespace: Vec<&str> = std::iter::once(namespace).chain(labels).collect();
            self.gauge.with_label_values(&of_namespace).set(value);
            now.insert(labels.map(str::to_owned).to_vec());
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let before = shown.remove(namespace).unwrap_or_default();
        for labels in before.difference(&now) {
            let of_namespace: Vec<&str> = std::iter::once(namespace).chain(labels.iter().map(String::as_str)).collect();
            // An error says that there was none.
            let _ = self.gauge.remove_label_values(&of_namespace);
        }
        if !now.is_empty() {
            shown.insert(namespace.to_owned(), now);
        }
    }

    /// Namespaces in which there is any.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder as _, TextEncoder};

    use crate::metrics::{Definitions, There};

    #[test]
    fn of_what_is_gone_no_series_is_left() {
        let mut metrics = Definitions::new("patchwarden_");
        let there = There::Once("there is a window");
        let series = metrics.series("windows", "Windows", &["window", "zone"], there).unwrap();
        let text = || {
            let mut text = Vec::new();
            TextEncoder::new().encode(&metrics.registry.gather(), &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        series.show("acme", [(["nights", "UTC"], 1), (["days", "UTC"], 0)]);
        series.show("globex", [(["nights", "UTC"], 2)]);
        series.show("acme", [(["nights", "UTC"], 3)]);
        let acme = r#"patchwarden_windows{namespace="acme",window="nights",zone="UTC"} 3"#;
        let globex = r#"patchwarden_windows{namespace="globex",window="nights",zone="UTC"} 2"#;
        assert_eq!(text(), [acme, globex]);
        assert_eq!(series.namespaces().into_iter().collect::<Vec<_>>(), ["acme", "globex"]);
        series.show::<2>("acme", []);
        assert_eq!(text(), [globex]);
        assert_eq!(series.namespaces().into_iter().collect::<Vec<_>>(), ["globex"]);
    }
}
