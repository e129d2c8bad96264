//! What a publisher of recipes does, on a machine of his own: writes rules, pins them to a version, signs all of them.
//!
//! ```text
//!   kubectl.toml       the rule, written by a person: where it lies, how its version is found out, where it is downloaded
//!   kubectl.pin.toml   written by `pin`: the version, and what was downloaded, by its hash
//!   scripts/drain      a script for hooks and checks, for devices that want this publisher's
//!   recipes.json       written by `sign`: all that is pinned, and every script, for the gateway
//! ```

mod scripts;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::recipes::{
    Artifact, Catalogue, Detect, Install, MAX_BYTES, MAX_SIZE, MAX_UNPACKED, Recipe, Release, Script,
};
use patchwarden_protocol::report::{Classification, Severity};
use serde::Deserialize;

use crate::files;
use crate::provider::recipes::{Size, fetch, unpack};

/// A rule is a file of this kind.
const RULE: &str = ".toml";

/// What pins it, beside it.
const PIN: &str = ".pin.toml";

/// The largest file that a person writes.
const MAX_RULE: u64 = 64 << 10;

/// One download.
const DOWNLOAD_LIMIT: Duration = Duration::from_hours(1);

/// What a publisher may do.
#[derive(Debug, Subcommand)]
pub(crate) enum Publish {
    /// Makes a publisher's key, and prints its public half, which devices name in `recipe_publishers`.
    Key {
        /// Where the private key is written; keep it away from the cluster.
        file: PathBuf,
    },
    /// Checks the rules of a directory, what pins them, and its scripts.
    Check {
        /// With `NAME.toml`, `NAME.pin.toml` and `scripts/NAME`.
        directory: PathBuf,
    },
    /// Downloads a version of an application, and writes down what it is. Compare the hashes that it prints with the vendor's.
    Pin(Pin),
    /// Signs every rule of a directory that is pinned, and every script.
    Sign(Sign),
}

/// Arguments of `pin`.
#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// The rule.
    rule: PathBuf,
    /// The version, as the vendor's addresses have it in the place of `{version}`.
    version: String,
    /// The day on which the vendor published it.
    #[arg(long, value_name = "YYYY-MM-DD")]
    published: Date,
    /// Low, Medium, High or Critical, as the vendor says.
    #[arg(long, value_parser = severity, default_value = "Unknown")]
    severity: Severity,
    /// What it fixes; with one it is a security update.
    #[arg(long = "cve", value_name = "CVE")]
    cves: Vec<String>,
}

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// With `NAME.toml`, `NAME.pin.toml` and `scripts/NAME`.
    directory: PathBuf,
    /// The private key.
    #[arg(long)]
    key: PathBuf,
    /// What the publisher is called: the updates' origin is `recipes:` and this.
    #[arg(long)]
    publisher: String,
    /// Days until devices do not use it any more.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=400))]
    days: u16,
    /// The signed catalogue.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// A rule as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    name: String,
    title: String,
    install: Install,
    detect: Detect,
    source: Source,
    #[serde(default)]
    stateful: bool,
}

/// Where it is downloaded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// With `{version}` and `{arch}`.
    url: String,
    /// What the vendor calls an architecture, by what it is called here.
    arch: BTreeMap<String, String>,
}

/// A rule, and what pins it.
#[derive(Debug)]
struct Found {
    rule: Rule,
    pin: Option<Release>,
}

fn severity(text: &str) -> Result<Severity, String> {
    serde_json::from_value(text.into()).map_err(|_| "must be Unknown, Low, Medium, High or Critical".to_owned())
}

/// Does it.
pub(crate) fn run(command: Publish, now: Timestamp) -> anyhow::Result<()> {
    match command {
        Publish::Key { file } => make_key(&file),
        Publish::Check { directory } => {
            for Found { rule, pin } in read_all(&directory)? {
                let pinned = pin.map_or_else(|| "not pinned".to_owned(), |pin| pin.version);
                println!("{:<24} {pinned}", rule.name);
            }
            list(&scripts::read_all(&directory)?);
            Ok(())
        }
        Publish::Pin(arguments) => pin(arguments),
        Publish::Sign(arguments) => sign(&arguments, now),
    }
}

fn list(scripts: &[Script]) {
    for Script { name, text } in scripts {
        println!("{:<24} SHA-256 {}", format!("scripts/{name}"), files::sha256(text.as_bytes()));
    }
}

fn make_key(file: &Path) -> anyhow::Result<()> {
    use std::io::Write as _;
    let name = || file.display().to_string();
    let key = PrivateKey::generate();
    let mut created = files::options(files::PRIVATE).write(true).create_new(true).open(file).with_context(name)?;
    created.write_all(key.to_pem()?.as_bytes()).and_then(|()| created.sync_all()).with_context(name)?;
    println!("{}", String::from(key.public()));
    Ok(())
}

fn pin(arguments: Pin) -> anyhow::Result<()> {
    let Pin { rule: file, version, published, severity, cves } = arguments;
    let rule = read_rule(&file)?;
    let published = published.to_zoned(TimeZone::UTC)?.timestamp();
    let classification = if cves.is_empty() { Classification::Updates } else { Classification::Security };
    let mut release = Release { version, published, classification, severity, cves, artifacts: rule.artifacts("0") };
    let artifacts = rule.artifacts(&release.version);
    // What is wrong with the rule is told before anything is downloaded.
    release.artifacts.clone_from(&artifacts);
    rule.recipe(release.clone()).check().with_context(|| file.display().to_string())?;
    let place = std::env::temp_dir().join(format!("patchwarden-pin-{:016x}", rand::random::<u64>()));
    files::ensure_directory(&place, files::SECLUDED).with_context(|| place.display().to_string())?;
    let looked =
        artifacts.into_iter().map(|artifact| look_at(&rule, artifact, &place)).collect::<anyhow::Result<Vec<_>>>();
    files::remove_tree(&place).with_context(|| place.display().to_string())?;
    release.artifacts = looked?;
    rule.recipe(release.clone()).check().with_context(|| file.display().to_string())?;
    let to = pin_of(&file)?;
    let text = format!("# Written by `patchwarden-agent recipes pin`.\n{}", toml::to_string(&release)?);
    files::write_atomic(&to, text.as_bytes(), 0o644).with_context(|| to.display().to_string())?;
    println!("{}", to.display());
    Ok(())
}

/// Downloads it, and finds out what it is.
fn look_at(rule: &Rule, artifact: Artifact, place: &Path) -> anyhow::Result<Artifact> {
    let file = place.join(&artifact.arch);
    println!("{}", artifact.url);
    fetch(&artifact.url, Size::AtMost(MAX_SIZE), &file, DOWNLOAD_LIMIT)?;
    let size = fs::metadata(&file)?.len();
    let sha256 = files::sha256_of(&file)?;
    let unpacked = unpack(&file, &rule.install.content, MAX_UNPACKED, None);
    let unpacked = unpacked.with_context(|| artifact.url.clone())?;
    println!("  SHA-256 {sha256}, {size} bytes, {unpacked} unpacked");
    Ok(Artifact { sha256, size, unpacked, ..artifact })
}

fn sign(arguments: &Sign, now: Timestamp) -> anyhow::Result<()> {
    let Sign { directory, key: key_file, publisher, days, out } = arguments;
    let name = || key_file.display().to_string();
    let key = PrivateKey::from_pem(&fs::read_to_string(key_file).with_context(name)?).with_context(name)?;
    let made = Timestamp::from_second(now.as_second())?;
    let mut recipes = Vec::new();
    for Found { rule, pin } in read_all(directory)? {
        match pin {
            Some(pin) => {
                println!("{:<24} {}", rule.name, pin.version);
                recipes.push(rule.recipe(pin));
            }
            None => println!("{:<24} not pinned: left out", rule.name),
        }
    }
    let scripts = scripts::read_all(directory)?;
    list(&scripts);
    if recipes.is_empty() && scripts.is_empty() {
        bail!("{}: no rule is pinned: run `patchwarden-agent recipes pin`; nor are there scripts", directory.display());
    }
    let catalogue = Catalogue {
        publisher: publisher.clone(),
        // Whoever signs again signs later.
        serial: u64::try_from(made.as_second())?,
        made,
        expires: made + SignedDuration::from_hours(24 * i64::from(*days)),
        recipes,
        scripts,
    };
    catalogue.check().with_context(|| directory.display().to_string())?;
    let envelope = Envelope::seal(&catalogue, &key)?;
    let bytes = serde_json::to_vec(&envelope)?;
    if bytes.len() > MAX_BYTES {
        bail!("{}: signed it has {} bytes, at most {MAX_BYTES} are allowed", directory.display(), bytes.len());
    }
    files::write_atomic(out, &bytes, 0o644).with_context(|| out.display().to_string())?;
    println!("{}: serial {}, until {}, {}", out.display(), catalogue.serial, catalogue.expires, envelope.digest());
    println!("signed by {}", String::from(key.public()));
    Ok(())
}

/// Every rule of a directory, by name, each checked.
fn read_all(directory: &Path) -> anyhow::Result<Vec<Found>> {
    let name = || directory.display().to_string();
    let mut all = Vec::new();
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(name)? {
        paths.push(entry.with_context(name)?.path());
    }
    paths.sort_unstable();
    let is_named =
        |path: &Path, suffix: &str| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(suffix));
    for file in paths.into_iter().filter(|path| is_named(path, RULE) && !is_named(path, PIN)) {
        let rule = read_rule(&file)?;
        let pin_file = pin_of(&file)?;
        let read_pin = || -> anyhow::Result<Release> {
            toml::from_str(&read(&pin_file)?).with_context(|| pin_file.display().to_string())
        };
        let pin = pin_file.exists().then(read_pin).transpose()?;
        if let Some(pin) = &pin {
            rule.recipe(pin.clone()).check().with_context(|| pin_file.display().to_string())?;
        }
        all.push(Found { rule, pin });
    }
    Ok(all)
}

/// A rule, checked with a version that there is not.
fn read_rule(file: &Path) -> anyhow::Result<Rule> {
    let rule: Rule = toml::from_str(&read(file)?).with_context(|| file.display().to_string())?;
    let release = Release {
        version: "0".into(),
        published: Timestamp::MAX,
        classification: Classification::Updates,
        severity: Severity::Unknown,
        cves: Vec::new(),
        artifacts: rule.artifacts("0"),
    };
    let checked = if !rule.source.url.contains("{version}") {
        Err("source.url: must have {version} in it".to_owned())
    } else if file.file_stem().is_none_or(|stem| stem != rule.name.as_str()) {
        Err(format!("name: must be the file's own, without {RULE}"))
    } else {
        rule.recipe(release).check().map_err(|wrong| wrong.to_string())
    };
    match checked {
        Ok(()) => Ok(rule),
        Err(why) => bail!("{}: {why}", file.display()),
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    let name = || file.display().to_string();
    let length = fs::metadata(file).with_context(name)?.len();
    if length > MAX_RULE {
        bail!("{}: has {length} bytes, at most {MAX_RULE} are allowed", file.display());
    }
    fs::read_to_string(file).with_context(name)
}

/// Where the pin of a rule lies.
fn pin_of(rule: &Path) -> anyhow::Result<PathBuf> {
    let name = rule.file_name().and_then(|name| name.to_str()?.strip_suffix(RULE));
    let name = name.with_context(|| format!("{}: a rule is a file NAME{RULE}", rule.display()))?;
    Ok(rule.with_file_name(format!("{name}{PIN}")))
}

impl Rule {
    /// The files of a version, of which nothing is known yet but where they are.
    fn artifacts(&self, version: &str) -> Vec<Artifact> {
        let Source { url, arch } = &self.source;
        let artifact = |(arch, vendors): (&String, &String)| Artifact {
            arch: arch.clone(),
            // A `+` in a path stands for itself, and some servers read it as a space.
            url: url.replace("{version}", &version.replace('+', "%2B")).replace("{arch}", vendors),
            sha256: "0".repeat(64),
            size: 1,
            unpacked: 1,
        };
        arch.iter().map(artifact).collect()
    }

    fn recipe(&self, release: Release) -> Recipe {
        let Self { name, title, install, detect, source: _, stateful } = self.clone();
        Recipe { name, title, install, detect, release, stateful }
    }
}

#[cfg(test)]
mod tests;
