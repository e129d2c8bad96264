//! The limits of a catalogue. What is read by devices has passed all of them.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use regex_lite::{Regex, RegexBuilder};

use super::{
    Artifact, Catalogue, Content, Detect, Install, MAX_RECIPES, MAX_SCRIPTS, MAX_SIZE, MAX_UNPACKED, Recipe, Release,
    Version, script,
};
use crate::applications::Ensure;
use crate::report::{MAX_CVE, MAX_CVES};

/// A catalogue that nobody renews is stale: what it lacks would count as up to date.
const MAX_LIFE: SignedDuration = SignedDuration::from_hours(400 * 24);

/// The largest integer that canonical JSON keeps (RFC 8785, 3.2.2.3: numbers are IEEE 754 doubles).
const MAX_INTEGER: u64 = 1 << 53;

/// Longest name of an application: with `pkg:generic/` and a version it is the id of an update.
const MAX_NAME: usize = 63;

/// Longest text for people.
const MAX_TITLE: usize = 100;

/// Longest path.
const MAX_PATH: usize = 200;

/// Longest pattern, and the most bytes that it may take when it is compiled.
const MAX_PATTERN: (usize, usize) = (200, 64 << 10);

/// The most arguments of a program, and the longest.
const MAX_ARGUMENTS: (usize, usize) = (8, 100);

/// Longest address.
const MAX_URL: usize = 500;

/// More architectures nobody has.
const MAX_ARTIFACTS: usize = 8;

/// Leading directories of an archive.
const MAX_STRIP: u8 = 8;

/// Where recipes may put things.
const PLACES: [&str; 2] = ["/usr/local/", "/opt/"];

/// Directories of `/usr/local` that several applications share (Filesystem Hierarchy Standard 3.0, 4.9.2): none is one
/// application's to replace.
const SHARED: [&str; 11] =
    ["bin", "etc", "games", "include", "lib", "lib32", "lib64", "libexec", "man", "sbin", "share"];

/// A field that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Wrong {
    /// Path of the field.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

pub(super) type Checked = Result<(), Wrong>;

fn wrong(field: &str, problem: impl Into<String>) -> Wrong {
    Wrong { field: field.to_owned(), problem: problem.into() }
}

pub(super) fn require(holds: bool, field: &str, problem: impl Into<String>) -> Checked {
    if holds { Ok(()) } else { Err(wrong(field, problem)) }
}

/// The field of a recipe becomes one of the catalogue.
fn within(outer: &str, checked: Checked) -> Checked {
    checked.map_err(|Wrong { field, problem }| Wrong { field: format!("{outer}.{field}"), problem })
}

pub(super) fn catalogue(catalogue: &Catalogue) -> Checked {
    let Catalogue { publisher, serial, made, expires, recipes, scripts } = catalogue;
    let is_name = |c: char| c.is_ascii_alphanumeric() || " ._-".contains(c);
    require(
        (1..=MAX_NAME).contains(&publisher.len()) && publisher.chars().all(is_name) && publisher.trim() == publisher,
        "publisher",
        "must be 1 to 63 letters, digits, spaces and any of `._-`",
    )?;
    require((1..=MAX_INTEGER).contains(serial), "serial", "must be from 1 to 2^53")?;
    require(expires > made, "expires", "must be after `made`")?;
    require(expires.duration_since(*made) <= MAX_LIFE, "expires", "must be at most 400 days after `made`")?;
    require(recipes.len() <= MAX_RECIPES, "recipes", format!("must be at most {MAX_RECIPES}"))?;
    let mut names = BTreeSet::new();
    let mut paths: Vec<&str> = Vec::new();
    for one in recipes {
        let field = format!("recipes.{}", one.name.chars().take(MAX_NAME).collect::<String>());
        within(&field, recipe(one))?;
        require(names.insert(one.name.as_str()), &field, "there is another recipe of this name")?;
        let path = one.install.path.as_str();
        let holds = |outer: &str, inner: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if let Some(other) = paths.iter().find(|other| holds(other, path) || holds(path, other)) {
            return Err(wrong(&format!("{field}.install.path"), format!("another recipe has {other}")));
        }
        paths.push(path);
    }
    require(scripts.len() <= MAX_SCRIPTS, "scripts", format!("must be at most {MAX_SCRIPTS}"))?;
    let mut names = BTreeSet::new();
    for one in scripts {
        let field = format!("scripts.{}", one.name.chars().take(MAX_NAME).collect::<String>());
        within(&field, script::check(one))?;
        require(names.insert(one.name.as_str()), &field, "there is another script of this name")?;
    }
    Ok(())
}

/// Whether this can be the name of an application: 1 to 63 lower-case letters, digits and any of `-_.`, a letter or digit first.
pub fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(is_part)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

pub(super) fn recipe(recipe: &Recipe) -> Checked {
    let Recipe { name, title, install, detect, release, stateful: _ } = recipe;
    require(
        is_name(name),
        "name",
        "must be 1 to 63 lower-case letters, digits and any of `-_.`, and begin with a letter or digit",
    )?;
    require(
        (1..=MAX_TITLE).contains(&title.chars().count()) && !title.chars().any(char::is_control),
        "title",
        "must be 1 to 100 printable characters",
    )?;
    within("install", installed(install))?;
    within("detect", detected(detect, &install.content))?;
    within("release", released(release, &install.content))
}

fn installed(install: &Install) -> Checked {
    let Install { path, content } = install;
    let below = PLACES.iter().find_map(|place| path.strip_prefix(place));
    let below = below.ok_or_else(|| wrong("path", "must be below /usr/local or /opt"))?;
    relative("path", below)?;
    require(path.len() <= MAX_PATH, "path", format!("must have at most {MAX_PATH} characters"))?;
    let is_shared = SHARED.contains(&below) && path.starts_with("/usr/local/");
    require(!is_shared, "path", format!("{path} is shared by several applications, and none's to replace"))?;
    let strip_is_small =
        |strip: u8| require(strip <= MAX_STRIP, "content.strip", format!("must be at most {MAX_STRIP}"));
    match content {
        Content::File => Ok(()),
        Content::Member { strip, path } => strip_is_small(*strip).and_then(|()| relative("content.path", path)),
        Content::Tree { strip } => strip_is_small(*strip),
    }
}

/// Only plain names with slashes between them: neither empty nor `.` nor `..`.
fn relative(field: &str, path: &str) -> Checked {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+@".contains(&byte);
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(is_plain);
    require(
        path.len() <= MAX_PATH && path.split('/').all(is_name),
        field,
        "must be names of letters, digits and any of `-_.+@`, with slashes between them, none of them `.` or `..`",
    )
}

fn detected(detect: &Detect, content: &Content) -> Checked {
    let (form, path, expression) = match detect {
        Detect::File { path, pattern } => ("file", path, pattern),
        Detect::Program { path, arguments, pattern } => {
            let (number, length) = MAX_ARGUMENTS;
            let is_plain =
                |text: &String| text.len() <= length && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
            require(
                arguments.len() <= number && arguments.iter().all(is_plain),
                "program.arguments",
                format!("must be at most {number}, each of at most {length} printable ASCII characters"),
            )?;
            ("program", path, pattern)
        }
    };
    let is_tree = matches!(content, Content::Tree { .. });
    let field = format!("{form}.path");
    match (is_tree, path.is_empty()) {
        (true, true) => return Err(wrong(&field, "must name a file of the tree")),
        (true, false) => relative(&field, path)?,
        (false, true) => {}
        (false, false) => return Err(wrong(&field, "must not be set: the application is a single file")),
    }
    pattern(expression).map(|_| ()).map_err(|problem| wrong(&format!("{form}.pattern"), problem))
}

/// A pattern with a group for the version. It takes time in proportion to pattern times text, whatever they are.
pub(super) fn pattern(pattern: &str) -> Result<Regex, String> {
    let (length, compiled) = MAX_PATTERN;
    if pattern.len() > length {
        return Err(format!("must have at most {length} characters"));
    }
    let pattern = RegexBuilder::new(pattern).size_limit(compiled).build().map_err(|error| error.to_string())?;
    if pattern.captures_len() < 2 {
        return Err("must have a group for the version, such as `v([0-9.]+)`".to_owned());
    }
    Ok(pattern)
}

fn released(release: &Release, content: &Content) -> Checked {
    let Release { version, published, classification, severity: _, cves, artifacts } = release;
    require(
        Version::parse(version).is_some(),
        "version",
        "must be numbers with dots between them, such as 1.31.0, and perhaps `+` and a build",
    )?;
    require(*published > Timestamp::UNIX_EPOCH, "published", "must be after 1970")?;
    // What would pass for an update that only a policy asks for.
    require(
        Ensure::of(*classification).is_none(),
        "classification",
        "must be Security, Updates or Unclassified: the others are for what policies ask of applications",
    )?;
    require(
        cves.len() <= MAX_CVES && cves.iter().all(|cve| is_cve(cve)),
        "cves",
        format!("must be at most {MAX_CVES} such as CVE-2026-12345"),
    )?;
    require((1..=MAX_ARTIFACTS).contains(&artifacts.len()), "artifacts", format!("must be 1 to {MAX_ARTIFACTS}"))?;
    let mut archs = BTreeSet::new();
    for one in artifacts {
        let field = format!("artifacts.{}", one.arch.chars().take(20).collect::<String>());
        within(&field, artifact(one, content))?;
        require(archs.insert(one.arch.as_str()), &field, "there is another one of this architecture")?;
    }
    Ok(())
}

fn is_cve(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_number = |text: &str, least: usize| text.len() >= least && text.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= MAX_CVE
        && matches!(parts[..], ["CVE", year, number] if year.len() == 4 && is_number(year, 4) && is_number(number, 4))
}

fn artifact(artifact: &Artifact, content: &Content) -> Checked {
    let Artifact { arch, url, sha256, size, unpacked } = artifact;
    let is_arch = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    require((1..=20).contains(&arch.len()) && arch.bytes().all(is_arch), "arch", "must be such as x86_64 or aarch64")?;
    let host = url.strip_prefix("https://").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    require(
        host.is_some_and(|host| !host.is_empty() && !host.contains('@'))
            && url.len() <= MAX_URL
            && url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)),
        "url",
        "must be an address that begins with https://, without a user name, of at most 500 characters",
    )?;
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    require(sha256.len() == 64 && sha256.bytes().all(is_hex), "sha256", "must be 64 lower-case hexadecimal digits")?;
    require((1..=MAX_SIZE).contains(size), "size", format!("must be from 1 to {MAX_SIZE} bytes"))?;
    require((1..=MAX_UNPACKED).contains(unpacked), "unpacked", format!("must be from 1 to {MAX_UNPACKED} bytes"))?;
    let is_itself = matches!(content, Content::File);
    require(!is_itself || unpacked == size, "unpacked", "must be `size`: the file is not packed")
}
