//! Labels of a device, in little memory.

use std::collections::BTreeMap;

use super::model::{Name, Requirement, Selector};

/// Labels by their keys. Names that many devices have in common are held once, if whoever makes them takes them from the
/// [`Catalogue`](super::model::Catalogue).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Name, Name)]>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Name> {
        // There are few, and of most the length already differs.
        self.0.iter().find(|(other, _)| **other == *key).map(|(_, value)| value)
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Name)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl FromIterator<(Name, Name)> for Labels {
    fn from_iter<I: IntoIterator<Item = (Name, Name)>>(labels: I) -> Self {
        let by_key: BTreeMap<Name, Name> = labels.into_iter().collect();
        Self(by_key.into_iter().collect())
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
    }
}

impl Selector {
    /// Whether all requirements hold. None at all selects everything.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let has = |key: &str, values: &[String]| {
                labels.get(key).is_some_and(|label| values.iter().any(|value| **value == **label))
            };
            match requirement {
                Requirement::In(key, values) => has(key, values),
                Requirement::NotIn(key, values) => !has(key, values),
                Requirement::Exists(key) => labels.get(key).is_some(),
                Requirement::DoesNotExist(key) => labels.get(key).is_none(),
            }
        })
    }
}
