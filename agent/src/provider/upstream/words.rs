//! What configuration says of upstreams. Pure.
//!
//! | what | where it says so | source |
//! |---|---|---|
//! | a dated archive | a part of the address is `20260101T000000Z` or `20260101` | snapshot.debian.org, snapshot.ubuntu.com |
//! | Satellite, Katello | rhsm.conf names another server than Red Hat's, and repositories of `redhat.repo` come from its `baseurl` | rhsm.conf(5) |
//! | SUSE Manager, Uyuni | repositories are called `susemanager:…` | the channels' state of Uyuni |
//! | RMT | `url` in `/etc/SUSEConnect` is another than SUSE's, and repositories come from there | SUSEConnect(5) |

use std::collections::BTreeSet;

use jiff::civil::Date;
use patchwarden_protocol::surroundings::{MAX_UPSTREAM, Upstream, UpstreamKind};

use crate::glob::Glob;
use crate::provider::bounded;

/// What is asked of each index that apt uses. `SHADOWED` is of apt 2.7 and later: a source in whose place a snapshot is used. Earlier
/// ones leave the words as they are.
pub(super) const TARGET: &str = "$(REPO_URI) $(SHADOWED)";

/// What subscription-manager writes.
const REDHAT_REPO: &str = "redhat.repo";

/// How SUSE Manager's channels are called.
const CHANNEL: &str = "susemanager:";

/// Whether a text speaks of any time, as [`snapshot`] understands it.
pub(super) fn may_be_dated(text: &str) -> bool {
    let is_part = |c: char| !c.is_ascii_alphanumeric();
    let is_remark = |line: &&str| line.trim_start().starts_with('#');
    text.lines().filter(|line| !is_remark(line)).any(|line| line.split(is_part).any(is_time))
}

/// By apt's list of its indexes, a line for each.
pub(super) fn snapshot(targets: &str) -> Option<Upstream> {
    let mut names = BTreeSet::new();
    let mut is_partial = false;
    for line in targets.lines() {
        let mut parts = line.split(' ').filter(|part| !part.is_empty());
        let Some(address) = parts.next() else { continue };
        if parts.next().is_some_and(is_yes) {
            continue;
        }
        match address.split('/').find(|part| is_time(part)) {
            Some(time) => {
                let host = host(address).unwrap_or_default();
                names.insert(if host.is_empty() { time.to_owned() } else { format!("{host} {time}") });
            }
            None => is_partial = true,
        }
    }
    upstream(UpstreamKind::Snapshot, &names.into_iter().collect::<Vec<_>>().join(", "), is_partial)
}

/// `20260101T000000Z`, or `20260101`.
fn is_time(part: &str) -> bool {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (date, time) = match part.len() {
        8 => (part, ""),
        16 if part.is_ascii() && &part[8..9] == "T" && part.ends_with('Z') => (&part[..8], &part[9..15]),
        _ => return false,
    };
    // Nothing was kept before 2005; later numbers are no years of this century.
    is_digits(date)
        && is_digits(time)
        && Date::strptime("%Y%m%d", date).is_ok_and(|date| (2005..2100).contains(&date.year()))
}

/// A repository.
#[derive(Debug)]
struct Repository {
    /// In which file it is.
    file: String,
    id: String,
    is_enabled: bool,
    addresses: Vec<String>,
    /// It has lists of mirrors, which say where it comes from.
    has_mirrors: bool,
}

/// Those of dnf's or zypper's files.
#[derive(Debug, Default)]
pub(super) struct Repositories {
    all: Vec<Repository>,
    /// There are more than these.
    pub(super) is_partial: bool,
}

impl Repositories {
    /// Adds what a file says (dnf.conf(5), zypper(8)).
    pub(super) fn add(&mut self, file: &str, text: &str) {
        let mut continues_addresses = false;
        for (section, key, value) in entries(text) {
            let Some(section) = section else { continue };
            let Some(key) = key else {
                continues_addresses = false;
                if section != "main" {
                    self.all.push(Repository {
                        file: file.to_owned(),
                        id: section.to_owned(),
                        is_enabled: true,
                        addresses: Vec::new(),
                        has_mirrors: false,
                    });
                }
                continue;
            };
            let Some(repository) = self.all.last_mut().filter(|last| last.id == section) else { continue };
            if key.is_empty() {
                if continues_addresses {
                    repository.addresses.extend(addresses(value));
                }
                continue;
            }
            continues_addresses = key == "baseurl";
            match key {
                "enabled" => repository.is_enabled = is_yes(value),
                "baseurl" => repository.addresses.extend(addresses(value)),
                "mirrorlist" | "metalink" => repository.has_mirrors |= !value.is_empty(),
                _ => {}
            }
        }
    }

    /// Applies what dnf 5 overrides.
    pub(super) fn set(&mut self, text: &str) {
        for (section, key, value) in entries(text) {
            let (Some(section), Some("enabled")) = (section, key) else { continue };
            let glob = Glob::new(section.to_owned());
            for repository in self.all.iter_mut().filter(|repository| glob.matches(&repository.id)) {
                repository.is_enabled = is_yes(value);
            }
        }
    }

    /// Who decides, if anybody is known to: by these repositories, and what registers the machine.
    pub(super) fn upstream(&self, rhsm: &str, suse_connect: &str) -> Option<Upstream> {
        let channels = |repository: &Repository| repository.id.starts_with(CHANNEL);
        if let Some(channel) = self.enabled().find(|repository| channels(repository)) {
            let name = channel.addresses.first().and_then(|address| host(address)).unwrap_or_default();
            return upstream(UpstreamKind::SuseManager, &name, self.has_others(channels));
        }
        if let Some((server, content)) = satellite(rhsm) {
            let is_its = |repository: &Repository| repository.file == REDHAT_REPO && repository.comes_from(&content);
            if self.enabled().any(is_its) {
                return upstream(UpstreamKind::Satellite, &server, self.has_others(is_its));
            }
        }
        let server = rmt(suse_connect)?;
        let is_its = |repository: &Repository| repository.comes_from(&server);
        self.enabled().any(is_its).then(|| upstream(UpstreamKind::Rmt, &server, self.has_others(is_its)))?
    }

    fn enabled(&self) -> impl Iterator<Item = &Repository> {
        self.all.iter().filter(|repository| repository.is_enabled)
    }

    fn has_others(&self, is_its: impl Fn(&Repository) -> bool) -> bool {
        self.is_partial || self.enabled().any(|repository| !is_its(repository))
    }
}

impl Repository {
    /// Whether all of it comes from there.
    fn comes_from(&self, server: &str) -> bool {
        let is_there = |address: &String| host(address).as_deref() == Some(server);
        !self.has_mirrors && !self.addresses.is_empty() && self.addresses.iter().all(is_there)
    }
}

/// The server that a machine is subscribed at, and where its content comes from; nothing where both are Red Hat's.
fn satellite(rhsm: &str) -> Option<(String, String)> {
    let value = |of: &str, wanted: &str| {
        let is_it = |(section, key, value): (Option<&str>, Option<&str>, &str)| {
            (section == Some(of) && key == Some(wanted)).then(|| value.to_owned())
        };
        entries(rhsm).into_iter().rev().find_map(is_it)
    };
    let server = value("server", "hostname")?.to_ascii_lowercase();
    let content = host(&value("rhsm", "baseurl")?)?;
    let is_red_hats = |host: &str| host == "redhat.com" || host.ends_with(".redhat.com");
    (!server.is_empty() && !is_red_hats(&server) && !is_red_hats(&content)).then_some((server, content))
}

/// The server that a machine is registered at, where that is not SUSE's.
fn rmt(suse_connect: &str) -> Option<String> {
    let url = suse_connect.lines().filter(|line| !line.starts_with('#')).find_map(|line| line.strip_prefix("url:"))?;
    let host = host(url.trim().trim_matches(['"', '\'']))?;
    (host != "suse.com" && !host.ends_with(".suse.com")).then_some(host)
}

/// By the address that a policy of Windows names.
pub(super) fn wsus(address: &str) -> Option<Upstream> {
    upstream(UpstreamKind::Wsus, &without_credentials(address), false)
}

fn upstream(kind: UpstreamKind, name: &str, is_partial: bool) -> Option<Upstream> {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    (!name.is_empty()).then(|| Upstream { kind, name: bounded(&name, MAX_UPSTREAM), partial: is_partial })
}

/// The lines of a file with sections: `[section]` is (section, nothing), `key = value` is all three, and a line that goes on with a
/// value has an empty key. Remarks are left out.
fn entries(text: &str) -> Vec<(Option<&str>, Option<&str>, &str)> {
    let mut section = None;
    let mut found = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = Some(name);
            found.push((section, None, ""));
        } else if line.starts_with([' ', '\t']) {
            found.push((section, Some(""), trimmed));
        } else if let Some((key, value)) = trimmed.split_once('=') {
            found.push((section, Some(key.trim()), value.trim()));
        }
    }
    found
}

fn addresses(value: &str) -> impl Iterator<Item = String> {
    value.split([' ', '\t', ',']).filter(|address| !address.is_empty()).map(str::to_owned)
}

/// As dnf and libzypp read it.
fn is_yes(value: &str) -> bool {
    ["1", "yes", "true", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// The host of an address, in small letters; empty for `file:`.
fn host(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once(':')?;
    let Some(rest) = rest.strip_prefix("//") else { return (scheme == "file").then(String::new) };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit('@').next().unwrap_or_default();
    let host = match place.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => place.split(':').next().unwrap_or_default(),
    };
    Some(host.to_ascii_lowercase())
}

/// An address without a user's name and password, and without what follows a question mark.
fn without_credentials(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or_default())
}

/// Whatever configuration may say.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let mut repositories = Repositories::default();
    repositories.add(REDHAT_REPO, text);
    repositories.set(text);
    let is_dated = may_be_dated(text) || text.contains('#');
    for found in [snapshot(text), repositories.upstream(text, text), wsus(text)].into_iter().flatten() {
        assert!(!found.name.is_empty() && found.name.chars().count() <= MAX_UPSTREAM);
        assert!(found.kind != UpstreamKind::Snapshot || is_dated);
    }
}

#[cfg(test)]
mod tests;
