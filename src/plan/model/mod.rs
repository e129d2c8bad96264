//! The planner's input: validated, so that nothing in here can be wrong, and nothing is checked twice.
//!
//! An object that passed the schema and cannot be understood all the same (a time zone that this program's database does
//! not know) is not left out: it stays with [`Invalid`] in place of what could not be read, so that it still claims its
//! devices and blocks them, instead of leaving them to the next policy.

mod device;
mod group;
mod policy;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use crate::catalogue::{Catalogue, IdNumber, UpdateId};
pub use crate::cron::Cron;
pub use crate::deadlines::{Deadline, Deadlines};
pub use crate::durations::{Durations, Measured};
pub use crate::expression::Expression;
pub use crate::labels::Labels;
pub use crate::package::PackageVersion;

pub use device::*;
pub use group::*;
pub use policy::*;
pub use window::*;

/// A name that many hold: cloning it copies nothing.
pub type Name = Arc<str>;

/// One client's namespace at one instant. The order of the lists does not matter.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Policies.
    pub policies: Vec<Policy>,
    /// Approval groups: the client's, and those of the organisation, which are parents only and whose names are
    /// `namespace/name`.
    pub groups: Vec<Group>,
    /// Maintenance windows.
    pub windows: Vec<Window>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Every update that any of the devices offers, once.
    pub updates: Catalogue,
    /// What is known of vulnerabilities, by CVE; none where nobody has told: then no rule that asks of it can be answered.
    pub vulnerabilities: Option<Arc<BTreeMap<Name, Vulnerability>>>,
    /// Since when the client's devices know updates, beside what is written down with the groups: the client's whole record.
    pub seen: Vec<Seen>,
}

/// What people and feeds say, whatever the devices tell.
#[derive(Clone, Copy, Debug)]
pub struct Specs<'a> {
    /// Policies.
    pub policies: &'a [Policy],
    /// Approval groups, as in a [`Snapshot`].
    pub groups: &'a [Group],
    /// Maintenance windows.
    pub windows: &'a [Window],
    /// As in a [`Snapshot`].
    pub vulnerabilities: Option<&'a BTreeMap<Name, Vulnerability>>,
    /// As in a [`Snapshot`].
    pub seen: &'a [Seen],
}

impl Snapshot {
    /// All of it but the devices and their updates.
    pub fn specs(&self) -> Specs<'_> {
        let Self { policies, groups, windows, devices: _, updates: _, vulnerabilities, seen } = self;
        Specs { policies, groups, windows, vulnerabilities: vulnerabilities.as_deref(), seen }
    }
}

/// What is known of a vulnerability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vulnerability {
    /// In a catalogue of vulnerabilities that are known to be exploited (KEV).
    pub known_exploited: bool,
    /// Likelihood of exploitation in the next 30 days (EPSS).
    pub epss: Option<Probability>,
}

/// A probability in units of 10^-5, which is what EPSS publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probability(pub u32);

/// What could not be understood: a sentence that names the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub String);

/// A label selector; all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(pub Vec<Requirement>);

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The label has one of the values.
    In(String, Vec<String>),
    /// The label is absent or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
}

/// Server or workstation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceType {
    /// Serves others.
    Server,
    /// Somebody works on it.
    Workstation,
}
