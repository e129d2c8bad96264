//! Entries in files of their own, as Fedora and Red Hat Enterprise Linux have them below `/boot/loader/entries` ("The Boot Loader
//! Specification", uapi-group.org; GRUB's `blscfg` is Fedora's). Pure.

use super::entries::{Entry, file_name, is_plain_id, only, release_of};

/// Reads `ID.conf`. Nothing, if it is no entry of an installed kernel: another system, or one for rescue.
pub(super) fn parse(id: &str, text: &str) -> Option<Entry> {
    if !is_plain_id(id) {
        return None;
    }
    let field = |name: &str| {
        let mut found = text.lines().filter_map(|line| {
            let (key, value) = line.trim().split_once(|c: char| c.is_ascii_whitespace())?;
            (key == name).then(|| value.trim())
        });
        found.next().filter(|_| found.next().is_none())
    };
    let (image, version) = (field("linux")?, field("version")?);
    let release = release_of(image).filter(|release| *release == version)?.to_owned();
    // Several of them may be in one line, and variables of GRUB's among them (`$tuned_initrd`).
    let words =
        text.lines().filter_map(|line| line.trim().strip_prefix("initrd")).flat_map(str::split_ascii_whitespace);
    let ramdisks = words.filter(|word| !word.starts_with('$')).map(|word| file_name(word).to_owned()).collect();
    Some(Entry { path: id.to_owned(), release, image: image.to_owned(), ramdisks })
}

/// The one that `saved_entry` names. GRUB sorts them by rules of its own: what names none, or a number, is not looked at.
pub(super) fn starts<'a>(entries: &'a [Entry], saved: &str) -> Result<&'a Entry, String> {
    if saved.is_empty() || saved.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("saved_entry in GRUB's environment does not name an entry".to_owned());
    }
    only(&format!("saved_entry={saved}"), entries.iter().filter(|entry| entry.path == saved))
}

/// That of this kernel.
pub(super) fn of_kernel<'a>(entries: &'a [Entry], release: &str) -> Result<&'a Entry, String> {
    only(&format!("the kernel {release}"), entries.iter().filter(|entry| entry.release == release))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Fedora's kernel-install writes it (systemd's 90-loaderentry.install, and grubby's variables).
    const FEDORA: &str = "title Fedora Linux (6.11.4-301.fc41.x86_64) 41 (Server Edition)\nversion 6.11.4-301.fc41.x86_64\n\
        linux /vmlinuz-6.11.4-301.fc41.x86_64\ninitrd /initramfs-6.11.4-301.fc41.x86_64.img $tuned_initrd\n\
        options root=UUID=0f5b ro rhgb quiet $tuned_params\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n";
    const MACHINE: &str = "4f5a7f9a1c7b4b0fb6f0c2a6b6a0d5e1";

    #[test]
    fn an_entry_is_known_by_its_files_name_and_by_a_version_that_is_that_of_its_image() {
        let entry = parse(&format!("{MACHINE}-6.11.4-301.fc41.x86_64"), FEDORA).unwrap();
        assert_eq!(entry.path, format!("{MACHINE}-6.11.4-301.fc41.x86_64"));
        assert_eq!(
            (entry.release.as_str(), entry.image.as_str()),
            ("6.11.4-301.fc41.x86_64", "/vmlinuz-6.11.4-301.fc41.x86_64")
        );
        assert_eq!(entry.ramdisks, ["initramfs-6.11.4-301.fc41.x86_64.img"]);
        let other = FEDORA.replace("version 6.11.4", "version 6.11.5");
        let rescue = FEDORA.replace("vmlinuz-6.11.4-301.fc41.x86_64", &format!("vmlinuz-0-rescue-{MACHINE}"));
        let twice = format!("{FEDORA}linux /vmlinuz-6.11.4-301.fc41.x86_64\n");
        for text in [other.as_str(), rescue.as_str(), twice.as_str(), "", "linux"] {
            assert_eq!(parse("a", text), None, "{text}");
        }
        assert_eq!(parse("a b", FEDORA), None);
    }

    #[test]
    fn what_is_not_named_exactly_is_no_default() {
        let newer = FEDORA.replace("6.11.4-301", "6.11.5-300");
        let entries = [parse("a-1", FEDORA).unwrap(), parse("a-2", &newer).unwrap()];
        assert_eq!(starts(&entries, "a-2").unwrap().release, "6.11.5-300.fc41.x86_64");
        assert_eq!(of_kernel(&entries, "6.11.4-301.fc41.x86_64").unwrap().path, "a-1");
        for saved in ["", "0", "a-3", "Fedora Linux"] {
            assert!(starts(&entries, saved).is_err(), "{saved}");
        }
        let twins = [entries[0].clone(), Entry { path: "b-1".into(), ..entries[0].clone() }];
        assert!(of_kernel(&twins, "6.11.4-301.fc41.x86_64").unwrap_err().contains("several"));
    }
}
