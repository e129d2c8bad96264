//! The boot loader: a new kernel is tried once, and the earlier one is what starts after that.
//!
//! ```text
//!            saved_entry       next_entry
//!   before   as it was         none           starts the new kernel, or whatever the loader would
//!   armed    earlier kernel    new kernel     GRUB itself clears next_entry before it starts the new one ...
//!   tried    earlier kernel    none           ... so whatever becomes of that, the next start is the earlier one's
//!   kept     as it was         none           the checks have passed;   or stays as tried: taken back, with a [`Hold`]
//! ```
//! What is known of GRUB is read from what GRUB reads at the start: `grub.cfg` or the entries of the Boot Loader Specification, and its
//! environment block. Where any of that is not understood, or GRUB could not write its environment, nothing is done.

mod bls;
mod entries;
mod environment;
mod menu;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use patchwarden_protocol::report::{Restart, Tristate};
use serde::{Deserialize, Serialize};

use self::entries::Entry;
use self::environment::Environment;
use self::menu::Menu;
use crate::provider::{CommandLine, words};
use crate::{files, platform};

/// Where GRUB's files are: Debian's and SUSE's, or Fedora's name for it.
const DIRECTORIES: [&str; 2] = ["boot/grub", "boot/grub2"];

/// What tells on which file system they are, and where distributions have it.
const PROBES: [&str; 4] = ["usr/sbin/grub-probe", "usr/sbin/grub2-probe", "usr/bin/grub-probe", "usr/bin/grub2-probe"];

/// Kinds of file systems, by grub-probe's names, on which GRUB writes a block in place: the ones with a list of blocks for each file. Its
/// own templates name those on which it does not (`00_header`: btrfs, zfs and others); what is on neither list is not tried.
const WRITABLE: [&str; 3] = ["ext2", "fat", "xfs"];

/// To look at a file system.
const PROBE_LIMIT: Duration = Duration::from_mins(1);

/// A `grub.cfg` is some 10 KB.
const MAX_MENU: u64 = 1 << 20;

/// Entries in files of their own, and the size of each.
const MAX_ENTRIES: usize = 500;
const MAX_ENTRY: u64 = 16 << 10;

/// Name of the [`Hold`] in the state directory.
const HOLD: &str = "kernel-held.json";

const SAVED: &str = "saved_entry";
const NEXT: &str = "next_entry";

/// A new kernel that is started once, and how to get back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Release of the new kernel.
    pub(crate) kernel: String,
    /// Release of the one that ran before.
    pub(crate) earlier_kernel: String,
    /// The entries of both.
    entry: String,
    earlier_entry: String,
    /// The file with GRUB's environment.
    environment: PathBuf,
    /// The values of `saved_entry` and `next_entry` before anything was done.
    saved_before: Option<String>,
    next_before: Option<String>,
}

/// A kernel that was taken back and stays installed: while `saved_entry` is what was set for that, it is not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hold {
    trial: Trial,
}

/// What the boot loader of this machine is set to.
#[derive(Debug)]
struct Loader {
    path: PathBuf,
    environment: Environment,
    menu: Menu,
    /// Where they are in files of their own.
    files: Vec<Entry>,
}

/// What would be tried if the machine restarted now; or why it could not go back by itself.
pub(crate) async fn plan(state: &Path) -> Result<Trial, String> {
    let root = platform::root();
    if let Some(why) = platform::restart::container(&root) {
        return Err(why);
    }
    let loader = Loader::read(&root).await?;
    loader.trial(&root, &platform::kernel(), Hold::of(state)?)
}

/// Where a kernel that was taken back is not the one any more that the loader would start if it were not held, what was set before is
/// set again. Whether that is so.
pub(crate) async fn release(state: &Path) -> Result<bool, String> {
    let Some(Hold { trial }) = Hold::of(state)? else { return Ok(false) };
    let loader = Loader::read(&platform::root()).await?;
    if loader.starts(trial.saved_before.as_deref())?.release == trial.kernel {
        return Ok(false);
    }
    trial.restore(state)
}

/// A restart that is required for nothing but a kernel that was taken back would not bring it.
pub(crate) fn without_held(state: &Path, restart: Restart) -> Restart {
    let Ok(Some(Hold { trial })) = Hold::of(state) else { return restart };
    leave_out(restart, &trial.kernel, &platform::kernel())
}

fn leave_out(mut restart: Restart, held: &str, running: &str) -> Restart {
    let ends = format!(" is installed, {running} is running");
    // By its release (apt), or its version, which begins the release (rpm).
    let is_held = |reason: &String| {
        let version = reason.strip_suffix(&ends).and_then(|rest| rest.rsplit(' ').next());
        version.is_some_and(|version| !version.is_empty() && held.starts_with(version))
    };
    let before = restart.reasons.len();
    restart.reasons.retain(|reason| !is_held(reason));
    if restart.reasons.is_empty() && before > 0 {
        restart.required = Tristate::Unknown;
    }
    restart
}

impl Trial {
    /// Sets what is started next, and what from then on. Nothing changes where that is so already.
    pub(crate) fn arm(&self) -> Result<(), String> {
        self.set(Some(&self.earlier_entry), Some(&self.entry))
    }

    /// The new kernel is to be started from now on, or whatever was set before all this. Whether it is: somebody who has set something
    /// else meanwhile has the last word.
    pub(crate) fn restore(&self, state: &Path) -> Result<bool, String> {
        let found = read_environment(&self.environment)?;
        let is_own = self.is_own(&found);
        if is_own {
            self.set(self.saved_before.as_deref(), self.next_before.as_deref())?;
        }
        Hold::forget(state)?;
        Ok(is_own)
    }

    /// The earlier kernel is to be started from now on, and the new one is held.
    pub(crate) fn keep_earlier(&self, state: &Path) -> Result<(), String> {
        Hold { trial: self.clone() }.write(state)?;
        self.set(Some(&self.earlier_entry), self.next_before.as_deref())
    }

    /// Whether everything is as one of the steps of this trial has left it.
    fn is_own(&self, environment: &Environment) -> bool {
        let saved = environment.get(SAVED);
        let next = environment.get(NEXT).unwrap_or_default();
        (saved == Some(&self.earlier_entry) || saved == self.saved_before.as_deref())
            && (next.is_empty() || next == self.entry)
    }

    fn set(&self, saved: Option<&str>, next: Option<&str>) -> Result<(), String> {
        let found = read_environment(&self.environment)?;
        if !self.is_own(&found) {
            let path = self.environment.display();
            return Err(format!("{path}: somebody else has set meanwhile what is started next"));
        }
        let wanted = found.with(SAVED, saved).with(NEXT, next);
        if wanted == found {
            return Ok(());
        }
        write_environment(&self.environment, &wanted)
    }
}

impl Hold {
    /// The one that counts: what it has set is still set.
    fn of(state: &Path) -> Result<Option<Self>, String> {
        let path = state.join(HOLD);
        let failed = |why: String| format!("{}: {why}", path.display());
        let Some(bytes) = files::read_if_exists(&path).map_err(|error| failed(error.to_string()))? else {
            return Ok(None);
        };
        let hold: Self = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        let environment = read_environment(&hold.trial.environment)?;
        Ok((environment.get(SAVED) == Some(&hold.trial.earlier_entry)).then_some(hold))
    }

    fn write(&self, state: &Path) -> Result<(), String> {
        let path = state.join(HOLD);
        let bytes = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        files::write_atomic(&path, &bytes, files::PRIVATE).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn forget(state: &Path) -> Result<(), String> {
        let path = state.join(HOLD);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
            _ => Ok(()),
        }
    }
}

impl Loader {
    /// Reads GRUB's own files, and asks whether it can write its environment where that lies.
    async fn read(root: &Path) -> Result<Self, String> {
        let found: Vec<PathBuf> =
            DIRECTORIES.iter().map(|name| root.join(name)).filter(|path| path.join("grub.cfg").exists()).collect();
        let [directory] = &found[..] else {
            return Err("its boot loader is not known: there is not exactly one grub.cfg in /boot/grub or /boot/grub2"
                .to_owned());
        };
        let (menu, path) = (directory.join("grub.cfg"), directory.join("grubenv"));
        let said = |path: &Path, why: String| format!("{}: {why}", path.display());
        let text = String::from_utf8_lossy(&read_plain(&menu, MAX_MENU)?).into_owned();
        let menu = Menu::parse(&text).map_err(|why| said(&menu, why))?;
        if let Some(source) = menu.sources.iter().map(|name| directory.join(name)).find(|source| source.exists()) {
            return Err(said(&source, "GRUB reads it, too, and what is in it is not known".to_owned()));
        }
        let environment = read_environment(&path)?;
        for name in [NEXT, "prev_saved_entry", "boot_counter", "initrdfail", "prev_entry"] {
            if let Some(value) = environment.get(name).filter(|value| !value.is_empty()) {
                return Err(said(&path, format!("somebody else has set {name}={value}")));
            }
        }
        probe(root, &path).await?;
        let files = if menu.has_entry_files { read_entries(&root.join("boot/loader/entries"))? } else { Vec::new() };
        Ok(Self { path, environment, menu, files })
    }

    /// What is started by itself with this `saved_entry`.
    fn starts(&self, saved: Option<&str>) -> Result<Entry, String> {
        let saved = saved.unwrap_or_default();
        if self.menu.has_entry_files { bls::starts(&self.files, saved).cloned() } else { self.menu.starts(saved) }
    }

    fn of_kernel(&self, release: &str) -> Result<Entry, String> {
        if self.menu.has_entry_files {
            bls::of_kernel(&self.files, release).cloned()
        } else {
            self.menu.of_kernel(release)
        }
    }

    fn trial(&self, root: &Path, running: &str, hold: Option<Hold>) -> Result<Trial, String> {
        let get = |name| self.environment.get(name).map(str::to_owned);
        let (saved_before, taken_back) = match hold {
            Some(Hold { trial }) => (trial.saved_before, Some(trial.kernel)),
            None => (get(SAVED), None),
        };
        let kernel = self.starts(saved_before.as_deref())?.release;
        if kernel == running {
            return Err(format!(
                "no other kernel than {running} would be started: it was replaced itself, or is set to be"
            ));
        }
        if taken_back.as_ref() == Some(&kernel) {
            return Err(format!("the kernel {kernel} was taken back before, and is held"));
        }
        let (new, earlier) = (self.of_kernel(&kernel)?, self.of_kernel(running)?);
        check_started(root, &earlier)?;
        for entry in [&new, &earlier] {
            check_files(root, entry)?;
        }
        Ok(Trial {
            kernel,
            earlier_kernel: running.to_owned(),
            entry: new.path,
            earlier_entry: earlier.path,
            environment: self.path.clone(),
            saved_before,
            next_before: get(NEXT),
        })
    }
}

/// That the running kernel was started by this loader and from this entry: GRUB says so on the kernel's command line, also with the
/// device in front, `(hd0,gpt2)/vmlinuz-6.11`.
fn check_started(root: &Path, earlier: &Entry) -> Result<(), String> {
    let path = root.join("proc/cmdline");
    let line = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let image = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("BOOT_IMAGE="));
    let image = image.map(|image| image.rsplit(')').next().unwrap_or(image));
    if image == Some(&earlier.image) {
        return Ok(());
    }
    Err(format!("the running kernel was not started by GRUB's entry for it ({} is not its BOOT_IMAGE)", earlier.image))
}

/// That everything is there that its start needs, modules too.
fn check_files(root: &Path, entry: &Entry) -> Result<(), String> {
    let boot = root.join("boot");
    let image = boot.join(entries::file_name(&entry.image));
    let modules = root.join("lib/modules").join(&entry.release);
    let ramdisks = entry.ramdisks.iter().map(|name| boot.join(name));
    match [image, modules].into_iter().chain(ramdisks).find(|path| !path.exists()) {
        None => Ok(()),
        Some(path) => Err(format!("the kernel {} is not whole: there is no {}", entry.release, path.display())),
    }
}

/// Whether GRUB can write its environment: as its own grub-reboot asks, but for what is known to work.
async fn probe(root: &Path, environment: &Path) -> Result<(), String> {
    let program = PROBES.iter().map(|name| root.join(name)).find(|path| path.is_file());
    let Some(program) = program else {
        return Err("there is no grub-probe that would tell where GRUB's files lie".to_owned());
    };
    for (target, good) in [("abstraction", &[""][..]), ("fs", &WRITABLE[..])] {
        let found = ask(&program, target, environment).await?;
        if !good.contains(&found.as_str()) {
            return Err(format!(
                "GRUB cannot write {} at the start, so it would start the new kernel again and again: it lies on {found}",
                environment.display()
            ));
        }
    }
    Ok(())
}

async fn ask(program: &Path, target: &str, path: &Path) -> Result<String, String> {
    let mut line = vec![program.as_os_str().to_owned()];
    line.extend(words([format!("--target={target}").as_str()]));
    line.push(path.as_os_str().to_owned());
    let environment = vec![("LC_ALL", "C".into()), ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into())];
    let mut command = CommandLine { words: line, environment }.command();
    command.stdin(Stdio::null()).kill_on_drop(true);
    let failed = |why: &str| format!("{} --target={target} {}: {why}", program.display(), path.display());
    match tokio::time::timeout(PROBE_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(Ok(output)) => Err(failed(String::from_utf8_lossy(&output.stderr).trim())),
        Ok(Err(error)) => Err(failed(&error.to_string())),
        Err(_) => Err(failed("it does not end")),
    }
}

fn read_entries(directory: &Path) -> Result<Vec<Entry>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut entries = Vec::new();
    for (number, file) in fs::read_dir(directory).map_err(failed)?.enumerate() {
        if number >= MAX_ENTRIES {
            return Err(format!("{} has more than {MAX_ENTRIES} files", directory.display()));
        }
        let path = file.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(id) = name.strip_suffix(".conf") {
            let text = read_plain(&path, MAX_ENTRY)?;
            entries.extend(bls::parse(id, &String::from_utf8_lossy(&text)));
        }
    }
    Ok(entries)
}

/// A regular file and no link, up to this size: a link may lead to where GRUB does not look.
fn read_plain(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let failed = |why: &str| format!("{}: {why}", path.display());
    let found = path.symlink_metadata().map_err(|error| failed(&error.to_string()))?;
    if !found.is_file() {
        return Err(failed("is not a plain file"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    let length = read.map_err(|error| failed(&error.to_string()))?;
    if length as u64 > limit { Err(failed("is larger than it can be")) } else { Ok(bytes) }
}

fn read_environment(path: &Path) -> Result<Environment, String> {
    let bytes = read_plain(path, environment::SIZE as u64)?;
    Environment::parse(&bytes).map_err(|why| format!("{}: {why}", path.display()))
}

/// Overwrites the block where it lies, as GRUB does: the file is never empty or elsewhere, and GRUB, which knows nothing of the file
/// system's journal, reads the new one from then on.
fn write_environment(path: &Path, environment: &Environment) -> Result<(), String> {
    let failed = |why: String| format!("{}: {why}", path.display());
    let bytes = environment.bytes().map_err(failed)?;
    let write = || {
        let mut file = File::options().write(true).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(|error| failed(error.to_string()))?;
    if read_environment(path)? == *environment {
        return Ok(());
    }
    Err(failed("it does not hold what was written".to_owned()))
}

/// `grub.cfg`, entries and the environment block.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    environment::fuzz(bytes);
    let text = String::from_utf8_lossy(bytes);
    menu::fuzz(&text);
    if let Some(entry) = bls::parse("a", &text) {
        assert!(entries::release_of(&entry.image).is_some_and(|release| release == entry.release));
    }
}

#[cfg(test)]
mod tests;
