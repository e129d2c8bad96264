//! Whatever comes from outside, as a function of any bytes, for the fuzz targets in `agent/fuzz`. None may panic, take long,
//! or take for good what is not.
//!
//! The tests run each over the files of its corpus, among which is what once made it fail.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a target fails")]

use std::path::Path;

use jiff::Timestamp;
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::envelope::{Document, Envelope};
use patchwarden_protocol::grant::Grant;
use patchwarden_protocol::key::{PrivateKey, PublicKey};
use patchwarden_protocol::order::Order;
use patchwarden_protocol::recipes::{Catalogue, Recipe, Script, Version};
use patchwarden_protocol::report::{DeviceRef, Report};
use patchwarden_protocol::result::InstallResult;
use patchwarden_protocol::settings::{Settings, SignedSettings};

use crate::limits::Limits;
use crate::order::Facts;
use crate::provider::fuzzing as provider;
use crate::{boot, config, identity, journal, limits, order, platform};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `agent/fuzz/fuzz_targets` and of its corpus.
pub const TARGETS: [(&str, Target); 19] = [
    ("apt_simulation", apt_simulation),
    ("apt_lists", apt_lists),
    ("apt_messages", apt_messages),
    ("rpm_lists", rpm_lists),
    ("zypper_answers", zypper_answers),
    ("windows_answers", windows_answers),
    ("macos_answers", macos_answers),
    ("repository_indexes", repository_indexes),
    ("package_histories", package_histories),
    ("versions", versions),
    ("package_content", package_content),
    ("system", system),
    ("config", config_file),
    ("journal", journal_file),
    ("order", order_of_anybody),
    ("documents", documents),
    ("recipes", recipes),
    ("archive", archive),
    ("boot_loader", boot_loader),
];

/// What programs print is read as text, with a sign for each byte that is none.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What apt says that it would do.
pub fn apt_simulation(bytes: &[u8]) {
    provider::apt::simulation(&text(bytes));
}

/// What apt and dpkg list.
pub fn apt_lists(bytes: &[u8]) {
    provider::apt::lists(&text(bytes));
}

/// What apt complains of.
pub fn apt_messages(bytes: &[u8]) {
    provider::apt::messages(&text(bytes));
}

/// What zypper says.
pub fn zypper_answers(bytes: &[u8]) {
    provider::zypper::answers(&text(bytes));
}

/// What Windows answers.
pub fn windows_answers(bytes: &[u8]) {
    provider::windows_answers(&text(bytes));
}

/// What macOS answers: a list, and what is installed after a zero byte.
pub fn macos_answers(bytes: &[u8]) {
    provider::macos_answers(&text(bytes));
}

/// What a repository says of its packages.
pub fn repository_indexes(bytes: &[u8]) {
    provider::zypper::indexes(bytes);
}

/// The histories of apt, dpkg and libzypp.
pub fn package_histories(bytes: &[u8]) {
    let text = text(bytes);
    provider::apt::histories(&text);
    provider::zypper::histories(&text);
}

/// What rpm lists.
pub fn rpm_lists(bytes: &[u8]) {
    provider::rpm::lists(&text(bytes));
}

/// Two versions, a line each, as dpkg, rpm and kernels order them.
pub fn versions(bytes: &[u8]) {
    let text = text(bytes);
    let (a, b) = text.split_once('\n').unwrap_or((&text, ""));
    provider::apt::versions(a, b);
    provider::rpm::versions(a, b);
}

/// Files and scripts of a package.
pub fn package_content(bytes: &[u8]) {
    provider::package_content(&text(bytes));
}

/// os-release(5) and `proc_pid_stat(5)`, what macOS says of itself, and where repositories are.
pub fn system(bytes: &[u8]) {
    let text = text(bytes);
    platform::fuzz(&text);
    platform::fuzz_macos(&text);
    provider::upstream(&text);
}

/// `agent.toml`, `limits.toml`, and certificates.
pub fn config_file(bytes: &[u8]) {
    let text = text(bytes);
    let _ = config::Config::parse(&text);
    let _ = config::check_gateway(&text);
    limits::fuzz(&text);
    identity::fuzz(&text);
}

/// The journal.
pub fn journal_file(bytes: &[u8]) {
    journal::fuzz(bytes);
}

/// An order that nobody signed, and the content of one that was: nothing in it may pass for an option of a package manager.
pub fn order_of_anybody(bytes: &[u8]) {
    let root = root();
    let fingerprint = root.fingerprint();
    let device = DeviceRef { namespace: "acme".into(), name: "web-1".into() };
    let now = Timestamp::UNIX_EPOCH;
    let limits = Ok(Limits::none(Path::new("limits.toml")));
    let facts = Facts {
        root: &root,
        device: &device,
        device_key: &fingerprint,
        highest: None,
        report_digest: "",
        now,
        skew: None,
        limits: &limits,
    };
    if let Ok(signed) = order::parse(bytes) {
        assert!(order::verify(&signed, &facts).is_err(), "an order of nobody's is carried out");
    }
    let Ok(order) = serde_json::from_slice::<Order>(bytes) else { return };
    if order::content(&order, &facts).is_ok() {
        for change in order.actions.iter().flat_map(|action| &action.packages) {
            for word in [&change.name, &change.arch, &change.installed, &change.candidate] {
                assert!(!word.starts_with('-') && !word.contains([' ', '/', '=', '*']), "{word}");
            }
        }
    }
}

/// What the gateway relays: each is opened with the root's key, which signed none of them.
pub fn documents(bytes: &[u8]) {
    open::<Grant>(bytes);
    open::<Delegation>(bytes);
    open::<Report>(bytes);
    open::<InstallResult>(bytes);
    open::<Settings>(bytes);
    let device = DeviceRef { namespace: "acme".into(), name: "web-1".into() };
    let root = root();
    if let Ok(signed) = SignedSettings::parse(bytes) {
        let opened = signed.open(&root, &device, &root.fingerprint(), Timestamp::UNIX_EPOCH);
        assert!(opened.is_err(), "settings of nobody's are believed");
    }
}

/// A catalogue of recipes that nobody signed, the content of one that was, and what is looked for by it.
pub fn recipes(bytes: &[u8]) {
    assert!(Catalogue::open(bytes, &[root()]).is_err(), "a catalogue of nobody's is believed");
    let Ok(catalogue) = serde_json::from_slice::<Catalogue>(bytes) else { return };
    if catalogue.check().is_err() {
        return;
    }
    let text = text(bytes);
    for recipe in &catalogue.recipes {
        let Recipe { name, install, detect, release, .. } = recipe;
        for path in [&install.path, detect.path()] {
            assert!(!path.split('/').any(|part| part == ".." || part == "."), "{path}");
        }
        let is_below = install.path.starts_with("/opt/") || install.path.starts_with("/usr/local/");
        assert!(is_below && !name.starts_with('-') && !name.contains(['/', '=', ' ']), "{name}: {}", install.path);
        assert!(Version::parse(&release.version).is_some_and(|version| !version.is_later_than(&version)));
        let _ = detect.version_in(&text);
    }
    for Script { name, text } in &catalogue.scripts {
        assert!(!name.starts_with(['.', '-']) && !name.contains(['/', '\0', '\n']), "{name:?}");
        assert!(text.starts_with("#!") && !text.contains(['\0', '\r']), "{name}");
    }
}

/// A file that a recipe downloads: only looked at.
pub fn archive(bytes: &[u8]) {
    provider::archive(bytes);
}

/// What a boot loader reads: its menu, an entry, its environment.
pub fn boot_loader(bytes: &[u8]) {
    boot::fuzz(bytes);
}

fn open<T: Document>(bytes: &[u8]) {
    let Ok(envelope) = serde_json::from_slice::<Envelope<T>>(bytes) else { return };
    let _ = (envelope.peek(), envelope.digest());
    assert!(envelope.open(&root()).is_err(), "a document of nobody's is believed");
}

fn root() -> PublicKey {
    PrivateKey::from_pem(KEY).expect("a key").public()
}

/// A key that nobody has: of 32 zeros.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n-----END PRIVATE KEY-----\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_by_fuzzing_is_read_without_harm() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let corpus = corpora.join(name);
            let files = std::fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
            let mut count = 0;
            for file in files {
                target(&std::fs::read(file.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }
}
