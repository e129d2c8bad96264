//! Whether there is room for what is to be done, as far as that is known before files are fetched and a grant is asked for.
//!
//! What packages say of themselves is one number, for the root file system and all others together. Where `/usr` or `/var` are file
//! systems of their own ([`platform::parts`]), how much goes to each is known once the files are here: see [`Provider::rehearse`]. Only
//! a new kernel is known by then to need room at one place, where most of what it takes is in no package: its initial ramdisk is made
//! on the machine.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::ResultReason;

use super::prepare::artifact_of;
use super::{Execution, Settled, failed};
use crate::platform::{self, FreeSpace};
use crate::provider::{Artifact, Failure, Provider, Simulation, Space, no_room};

/// Bytes that must stay free beyond what the install needs, on the file systems that are written to beside it.
const SPACE_MARGIN: u64 = 32 << 20;

/// How names of kernels' images begin in the directory that a boot loader starts them from.
const IMAGES: [&str; 3] = ["vmlinuz-", "vmlinux-", "Image-"];

/// There is no room.
#[derive(Debug)]
pub(super) struct Shortage {
    pub(super) failure: Failure,
    /// It is for a new kernel, and so for the actions that bring one alone.
    pub(super) is_kernels: bool,
}

/// What is needed on one file system.
struct Needed {
    path: PathBuf,
    free: u64,
    bytes: u64,
    is_kernels: bool,
}

impl<P: Provider> Execution<'_, P> {
    /// What there is no room for, of these files beside what is there, and of what is to be installed.
    pub(super) async fn check_room(
        &self,
        simulation: &Simulation,
        to_fetch: &[Artifact],
    ) -> Result<Option<Shortage>, Failure> {
        let mut space = self.provider.space(&simulation.changes, to_fetch).await?;
        let installs = self.verb() != Verb::Download;
        if !installs {
            if let Err(failure) = self.agent.keep.check_room(space.download) {
                return Ok(Some(Shortage { failure, is_kernels: false }));
            }
            space = Space { download: space.download, ..Space::default() };
        }
        let boot = platform::BOOT.map(Path::new).filter(|_| installs && self.brings_image(simulation));
        shortage(&self.agent.state, &space, &platform::parts(), boot)
    }

    /// Whether a kernel comes for which none goes.
    fn brings_image(&self, simulation: &Simulation) -> bool {
        let is_image = |name: &String| self.provider.is_image(name);
        simulation.changes.iter().any(|change| is_image(&change.name)) && !simulation.oldest.iter().any(is_image)
    }

    /// The same for files that are fetched beside those of the order.
    pub(super) async fn expect_room(&self, simulation: &Simulation, to_fetch: &[Artifact]) -> Result<(), Failure> {
        match self.check_room(simulation, to_fetch).await? {
            None => Ok(()),
            Some(Shortage { failure, .. }) => Err(failure),
        }
    }

    /// Settles the actions of which each brings a kernel, be it by what it needs.
    pub(super) async fn settle_kernels(
        &self,
        indexes: &[usize],
        artifacts: &[Artifact],
        failure: &Failure,
        settled: &mut Settled,
    ) -> Result<(), Failure> {
        let mut are_found = false;
        for &index in indexes {
            let action = &self.order().actions[index];
            self.check_time()?;
            // One that does nothing alone is not known to bring any.
            let brings_one = match self.provider.simulate(self.direction(), &action.packages).await {
                Ok(alone) => self.brings_image(&alone),
                Err(failure) if failure.is_general => return Err(failure),
                Err(_) => false,
            };
            if brings_one {
                settled[index] = Some(failed(action, failure));
                are_found = true;
            }
        }
        if !are_found {
            self.settle_largest(indexes, artifacts, failure, settled);
        }
        Ok(())
    }

    /// What does not fit is given up from the largest on, so that one large update does not hold up the rest.
    pub(super) fn settle_largest(
        &self,
        indexes: &[usize],
        artifacts: &[Artifact],
        failure: &Failure,
        settled: &mut Settled,
    ) {
        let size = |index: &usize| -> u64 {
            let packages = &self.order().actions[*index].packages;
            packages.iter().filter_map(|package| artifact_of(package, artifacts)).map(|artifact| artifact.size).sum()
        };
        if let Some(largest) = indexes.iter().copied().max_by_key(size) {
            settled[largest] = Some(failed(&self.order().actions[largest], failure));
        }
    }
}

/// What there is no room for: downloads in the state directory, what is unpacked, and one more kernel in `boot`. What is not known of
/// another place than the root and the state directory refuses nothing.
fn shortage(state: &Path, space: &Space, parts: &[PathBuf], boot: Option<&Path>) -> Result<Option<Shortage>, Failure> {
    let look = |path: &Path| {
        let failed = |error| Failure::new(ResultReason::DiskFull, format!("{}: {error}", path.display()));
        platform::free_space(path).map_err(failed)
    };
    let root = platform::root();
    let mut needed: BTreeMap<u64, Needed> = BTreeMap::new();
    let mut need = |path: &Path, FreeSpace { device, bytes: free }, bytes| {
        let fresh = || Needed { path: path.to_owned(), free, bytes: SPACE_MARGIN, is_kernels: false };
        let needed = needed.entry(device).or_insert_with(fresh);
        needed.bytes = needed.bytes.saturating_add(bytes);
    };
    need(state, look(state)?, space.download);
    let on_root = look(&root)?;
    need(&root, on_root, if parts.is_empty() { space.unpacked } else { 0 });
    if !parts.is_empty() {
        let free = |part: &PathBuf| platform::free_space(part).map_or(0, |free| free.bytes);
        let together = parts.iter().map(free).fold(on_root.bytes, u64::saturating_add);
        let all = space.unpacked.saturating_add(SPACE_MARGIN);
        if together < all {
            let names: Vec<String> = parts.iter().map(|part| part.display().to_string()).collect();
            let failure = no_room(&format!("{} with {}", root.display(), names.join(", ")), all, together);
            return Ok(Some(Shortage { failure, is_kernels: false }));
        }
    }
    if let Some(boot) = boot {
        let known = largest_kernel(boot).and_then(|kernel| Ok((kernel, platform::free_space(boot)?)));
        match known {
            Ok((bytes, FreeSpace { device, bytes: free })) => match needed.entry(device) {
                Entry::Occupied(mut beside) => beside.get_mut().bytes = beside.get().bytes.saturating_add(bytes),
                Entry::Vacant(own) => {
                    own.insert(Needed { path: boot.to_owned(), free, bytes, is_kernels: true });
                }
            },
            Err(error) => tracing::warn!("{}: what a kernel needs is not known: {error}", boot.display()),
        }
    }
    let short = needed.into_values().find(|it| it.free < it.bytes);
    Ok(short.map(|Needed { path, free, bytes, is_kernels }| {
        let mounted = platform::mount_point(&path).unwrap_or(path);
        let mut failure = no_room(&mounted.display().to_string(), bytes, free);
        if is_kernels {
            failure
                .message
                .push_str(" (a kernel is expected to take as much as the largest there; remove one that is not used)");
        }
        Shortage { failure, is_kernels }
    }))
}

/// Bytes of the largest kernel in this directory with all that is of its release: `initrd.img-RELEASE`, `initramfs-RELEASE.img`,
/// `System.map-RELEASE`, and so on. None where there is no such kernel: what another one needs is not known then.
fn largest_kernel(boot: &Path) -> io::Result<u64> {
    let mut files = Vec::new();
    let entries = match fs::read_dir(boot) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // Not followed: `vmlinuz-6.4.0-1-default` may have a link beside it.
        let about = entry.metadata()?;
        if about.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), about.len()));
        }
    }
    let releases = files.iter().filter_map(|(name, _)| IMAGES.iter().find_map(|image| name.strip_prefix(image)));
    // That one has all drivers, and is made once.
    let largest = releases.filter(|release| !release.contains("rescue")).map(|release| {
        let is_its = |name: &str| {
            let after = name.split_once(release).filter(|(before, _)| before.ends_with('-')).map(|(_, after)| after);
            // `kdump` is made by a service of its own, when the kernel has been started.
            after.is_some_and(|after| after.is_empty() || after.starts_with('.')) && !name.contains("kdump")
        };
        files.iter().filter(|(name, _)| is_its(name)).map(|(_, bytes)| bytes).sum()
    });
    Ok(largest.max().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_kernel_takes_what_the_largest_one_does_with_all_that_is_of_its_release() {
        let boot = tempfile::tempdir().unwrap();
        assert_eq!(largest_kernel(&boot.path().join("none")).unwrap(), 0);
        let put = |name: &str, bytes: u64| fs::File::create(boot.path().join(name)).unwrap().set_len(bytes).unwrap();
        put("initrd.img-6.1.0-37-amd64", 1 << 20);
        assert_eq!(largest_kernel(boot.path()).unwrap(), 0, "nothing is known of kernels");
        for (name, bytes) in [
            ("vmlinuz-6.1.0-37-amd64", 10),
            ("System.map-6.1.0-37-amd64", 2),
            ("initrd.img-6.1.0-37-amd64", 30),
            ("initrd.img-6.1.0-37-amd64.bak", 1),
            ("vmlinuz-6.1.0-3", 20),
            ("initrd-6.1.0-3kdump", 900),
            ("vmlinuz-5.14.0-1.el9.x86_64", 14),
            ("initramfs-5.14.0-1.el9.x86_64.img", 40),
            ("initramfs-5.14.0-1.el9.x86_64kdump.img", 900),
            ("symvers-5.14.0-1.el9.x86_64.gz", 3),
            ("vmlinuz-0-rescue-77", 14),
            ("initramfs-0-rescue-77.img", 900),
            ("grub.img", 900),
        ] {
            put(name, bytes);
        }
        assert_eq!(largest_kernel(boot.path()).unwrap(), 57);
    }

    #[test]
    fn what_does_not_fit_on_any_file_system_is_told_and_what_it_needs() {
        let state = tempfile::tempdir().unwrap();
        let told = |space: Space, parts: &[PathBuf]| {
            shortage(state.path(), &space, parts, None).unwrap().map(|shortage| shortage.failure)
        };
        let (none, parts) = (&[][..], &["/proc".into()][..]);
        assert_eq!(told(Space::default(), none), None);
        assert_eq!(told(Space::default(), parts), None);
        let much = 1 << 60;
        for (space, parts) in [
            (Space { download: much, ..Space::default() }, none),
            (Space { unpacked: much, ..Space::default() }, none),
            (Space { unpacked: much, ..Space::default() }, parts),
        ] {
            let failure = told(space, parts).unwrap();
            assert_eq!(failure.reason, ResultReason::DiskFull);
            assert!(failure.message.contains("1152921504640.5 MB are needed"), "{failure}");
        }
    }
}
