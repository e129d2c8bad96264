//! What orders have left half done, although the package manager tried: a maintainer script has failed.
//!
//! `unfinished.json` in the state directory: packages at the version of an order that has ended. dpkg counts as broken while one
//! of them is there, and nothing may be installed on a device whose package manager is. But the next version of such a package
//! is what heals it, and the scripts of what it has left unpacked beside may be run then, since an order has allowed them. So
//! where nothing else is wrong with dpkg, and each package whose script has failed has a newer version, it counts as whole. What
//! somebody else has left is none of these.

use std::io;
use std::path::{Path, PathBuf};

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::ProblemCode;

use crate::files;
use crate::provider::{Inventory, Unconfigured};

const FILE: &str = "unfinished.json";

/// Of one order hardly any; beyond these a person has to look.
const MEMORY: usize = 256;

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    /// The file in a state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self { path: state.join(FILE) }
    }

    /// What is remembered. A file that cannot be read is as good as none: a person has to look.
    pub(crate) fn read(&self) -> Vec<PackageChange> {
        let read = files::read_if_exists(&self.path).and_then(|bytes| match bytes {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            None => Ok(Vec::new()),
        });
        read.unwrap_or_else(|error| {
            tracing::warn!("{}: {error}: what orders have left half done is not known", self.path.display());
            Vec::new()
        })
    }

    /// Of what an order has tried to bring, `found` tells what is there and not whole.
    pub(crate) fn record(&self, tried: &[PackageChange], found: &[Unconfigured]) -> Result<(), (PathBuf, io::Error)> {
        let before = self.read();
        let mut after: Vec<PackageChange> =
            tried.iter().filter(|package| found.iter().any(|found| is_of(found, package))).cloned().collect();
        after.extend(before.iter().filter(|old| tried.iter().all(|new| !is_same(old, new))).cloned());
        after.truncate(MEMORY);
        self.write(&before, &after).map_err(|error| (self.path.clone(), error))
    }

    /// Forgets what is whole by now, or at another version.
    pub(crate) fn forget(&self, inventory: &Inventory) -> io::Result<()> {
        let is_broken = inventory.problems.iter().any(|problem| problem.code == ProblemCode::PackageManagerBroken);
        if is_broken && inventory.unconfigured.is_empty() {
            // By something else beside.
            return Ok(());
        }
        let before = self.read();
        let mut after = before.clone();
        after.retain(|known| inventory.unconfigured.iter().any(|found| is_of(found, known)));
        self.write(&before, &after)
    }

    /// Takes away the problem that the package manager is broken, where that is so by the orders' own work alone and heals.
    /// What is held must be marked: no order may bring it, so it heals nothing.
    pub(crate) fn excused(&self, mut inventory: Inventory) -> Inventory {
        let Inventory { unconfigured, updates, problems, .. } = &mut inventory;
        if unconfigured.is_empty() {
            return inventory;
        }
        let known = self.read();
        let is_offered = |found: &Unconfigured| {
            let is_it = |package: &PackageChange| package.name == found.name && package.arch == found.arch;
            updates.iter().any(|update| !update.held && update.packages.iter().any(is_it))
        };
        let heals = |found: &Unconfigured| {
            known.iter().any(|known| is_of(found, known)) && (!found.has_failed || is_offered(found))
        };
        if unconfigured.iter().all(heals) {
            problems.retain(|problem| problem.code != ProblemCode::PackageManagerBroken);
        }
        inventory
    }

    fn write(&self, before: &[PackageChange], after: &[PackageChange]) -> io::Result<()> {
        if before == after {
            return Ok(());
        }
        files::write_atomic(&self.path, &serde_json::to_vec(after)?, files::PRIVATE)
    }
}

/// Whether it is this package at its ordered version.
pub(crate) fn is_of(found: &Unconfigured, known: &PackageChange) -> bool {
    let Unconfigured { name, arch, version, has_failed: _ } = found;
    (name, arch, version) == (&known.name, &known.arch, &known.candidate)
}

fn is_same(a: &PackageChange, b: &PackageChange) -> bool {
    (&a.name, &a.arch) == (&b.name, &b.arch)
}
