//! A machine's files, below a directory.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

const DEBIAN: &str = include_str!("../../tests/data/boot/debian-12-grub.cfg");
const FEDORA: &str = include_str!("../../tests/data/boot/fedora-like-grub.cfg");
const OLD: &str = "6.1.0-37-amd64";
const NEW: &str = "6.1.0-38-amd64";

/// A machine with both kernels, of which the old one runs.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for directory in ["boot/grub", "usr/sbin", "proc", "state"] {
            fs::create_dir_all(machine.path(directory)).unwrap();
        }
        for kernel in [OLD, NEW] {
            fs::create_dir_all(machine.path(&format!("lib/modules/{kernel}"))).unwrap();
            machine.write(&format!("boot/vmlinuz-{kernel}"), "");
            machine.write(&format!("boot/initrd.img-{kernel}"), "");
        }
        machine.write("boot/grub/grub.cfg", DEBIAN);
        machine.write("proc/cmdline", &format!("BOOT_IMAGE=/boot/vmlinuz-{OLD} root=/dev/vda1 ro quiet\n"));
        machine.set(&[]);
        machine.probe("ext2", "");
        machine
    }

    /// The same with entries in files.
    fn with_entry_files() -> Self {
        let machine = Self::new();
        fs::rename(machine.path("boot/grub"), machine.path("boot/grub2")).unwrap();
        fs::create_dir_all(machine.path("boot/loader/entries")).unwrap();
        machine.write("boot/grub2/grub.cfg", FEDORA);
        for kernel in [OLD, NEW] {
            let text = format!(
                "title x\nversion {kernel}\nlinux /vmlinuz-{kernel}\ninitrd /initrd.img-{kernel} $tuned_initrd\n"
            );
            machine.write(&format!("boot/loader/entries/4f5a-{kernel}.conf"), &text);
        }
        machine.write("proc/cmdline", &format!("BOOT_IMAGE=(hd0,gpt2)/vmlinuz-{OLD} root=/dev/vda1\n"));
        machine.set(&[(SAVED, &format!("4f5a-{NEW}")), ("boot_success", "1")]);
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        fs::write(self.path(path), content).unwrap();
    }

    fn replace(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(path)).unwrap();
        assert!(text.contains(from), "{from}");
        self.write(path, &text.replace(from, to));
    }

    /// What grub-probe says.
    fn probe(&self, file_system: &str, abstraction: &str) {
        let script =
            format!("#!/bin/sh\ncase $1 in --target=fs) echo {file_system} ;; *) echo {abstraction} ;; esac\n");
        self.write("usr/sbin/grub-probe", &script);
        fs::set_permissions(self.path("usr/sbin/grub-probe"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn grubenv(&self) -> PathBuf {
        let name = if self.path("boot/grub").exists() { "boot/grub/grubenv" } else { "boot/grub2/grubenv" };
        self.path(name)
    }

    fn set(&self, values: &[(&str, &str)]) {
        let mut block = b"# GRUB Environment Block\n".to_vec();
        block.extend(values.iter().flat_map(|(name, value)| format!("{name}={value}\n").into_bytes()));
        block.resize(environment::SIZE, b'#');
        fs::write(self.grubenv(), block).unwrap();
    }

    fn get(&self, name: &str) -> Option<String> {
        read_environment(&self.grubenv()).unwrap().get(name).map(str::to_owned)
    }

    fn values(&self) -> (Option<String>, Option<String>) {
        (self.get(SAVED), self.get(NEXT))
    }

    /// As GRUB does at the start.
    fn start(&self) {
        let found = read_environment(&self.grubenv()).unwrap();
        if found.get(NEXT).is_some_and(|next| !next.is_empty()) {
            write_environment(&self.grubenv(), &found.with(NEXT, Some(""))).unwrap();
        }
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    async fn plan(&self) -> Result<Trial, String> {
        let loader = Loader::read(self.0.path()).await?;
        loader.trial(self.0.path(), OLD, Hold::of(&self.state())?)
    }

    async fn refusal(&self) -> String {
        self.plan().await.unwrap_err()
    }
}

fn path(kernel: &str) -> String {
    let id = "0f5b1a0e-6f7c-4f3a-9b0e-3f2c58f7a111";
    format!("gnulinux-advanced-{id}>gnulinux-{kernel}-advanced-{id}")
}

#[tokio::test]
async fn a_trial_starts_the_new_kernel_once_and_what_was_set_before_comes_back_exactly() {
    for before in [&[][..], &[(SAVED, "0")], &[(SAVED, ""), (NEXT, "")], &[("x", "1"), (SAVED, "1>0"), ("y", "2")]] {
        let machine = Machine::new();
        machine.set(before);
        let whole = fs::read(machine.grubenv()).unwrap();
        let trial = machine.plan().await.unwrap();
        assert_eq!((trial.kernel.as_str(), trial.earlier_kernel.as_str()), (NEW, OLD));
        // Before it has begun there is nothing to undo.
        assert_eq!(trial.restore(&machine.state()), Ok(true));
        assert_eq!(fs::read(machine.grubenv()).unwrap(), whole);
        for _ in 0..2 {
            trial.arm().unwrap();
            assert_eq!(machine.values(), (Some(path(OLD)), Some(path(NEW))));
        }
        machine.start();
        assert_eq!(machine.values(), (Some(path(OLD)), Some(String::new())), "and then the earlier one");
        for _ in 0..2 {
            assert_eq!(trial.restore(&machine.state()), Ok(true));
            assert_eq!(fs::read(machine.grubenv()).unwrap(), whole, "{before:?}");
        }
    }
}

/// The kernels that a real GRUB starts with these files, so many times one after the other; it changes its environment.
fn starts(machine: &Machine, times: usize) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/boot-grub");
    let output = std::process::Command::new(script).arg(machine.0.path()).arg(times.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
#[ignore = "needs qemu-system-x86 and grub-pc-bin: make test-long"]
async fn a_real_grub_starts_what_is_tried_once_and_then_the_earlier_kernel() {
    let machine = Machine::new();
    let before = fs::read(machine.grubenv()).unwrap();
    assert_eq!(starts(&machine, 1), [NEW], "by itself the first entry");
    let trial = machine.plan().await.unwrap();
    trial.arm().unwrap();
    assert_eq!(starts(&machine, 3), [NEW, OLD, OLD]);
    assert_eq!(machine.values(), (Some(path(OLD)), Some(String::new())), "cleared by GRUB");
    trial.keep_earlier(&machine.state()).unwrap();
    assert_eq!(starts(&machine, 2), [OLD, OLD]);
    assert_eq!(trial.restore(&machine.state()), Ok(true));
    assert_eq!(fs::read(machine.grubenv()).unwrap(), before);
    assert_eq!(starts(&machine, 1), [NEW]);
}

#[tokio::test]
async fn entries_in_files_are_tried_in_the_same_way() {
    let machine = Machine::with_entry_files();
    let trial = machine.plan().await.unwrap();
    trial.arm().unwrap();
    assert_eq!(machine.values(), (Some(format!("4f5a-{OLD}")), Some(format!("4f5a-{NEW}"))));
    machine.start();
    trial.keep_earlier(&machine.state()).unwrap();
    assert_eq!(machine.values(), (Some(format!("4f5a-{OLD}")), None));
    // kernel-install makes what it installs the default.
    machine.set(&[(SAVED, &format!("4f5a-{NEW}"))]);
    assert_eq!(Hold::of(&machine.state()), Ok(None));
    machine.set(&[]);
    assert!(machine.refusal().await.contains("does not name an entry"));
    machine.set(&[(SAVED, &format!("4f5a-{NEW}")), ("boot_counter", "2")]);
    assert!(machine.refusal().await.contains("somebody else has set boot_counter=2"));
}

#[tokio::test]
async fn a_kernel_that_is_held_is_not_tried_again_and_the_next_one_is() {
    let machine = Machine::new();
    let trial = machine.plan().await.unwrap();
    trial.arm().unwrap();
    machine.start();
    trial.keep_earlier(&machine.state()).unwrap();
    trial.keep_earlier(&machine.state()).unwrap();
    assert_eq!(machine.values(), (Some(path(OLD)), None));
    assert!(machine.refusal().await.contains("was taken back before, and is held"));
    // One more kernel, which the order of the menu puts first.
    let newer = "6.1.0-39-amd64";
    machine.replace("boot/grub/grub.cfg", NEW, newer);
    fs::rename(machine.path(&format!("boot/vmlinuz-{NEW}")), machine.path(&format!("boot/vmlinuz-{newer}"))).unwrap();
    fs::rename(machine.path(&format!("boot/initrd.img-{NEW}")), machine.path(&format!("boot/initrd.img-{newer}")))
        .unwrap();
    fs::create_dir(machine.path(&format!("lib/modules/{newer}"))).unwrap();
    let next = machine.plan().await.unwrap();
    assert_eq!((next.kernel.as_str(), &next.saved_before), (newer, &None), "as it was before all this");
    next.arm().unwrap();
    machine.start();
    assert_eq!(next.restore(&machine.state()), Ok(true));
    assert_eq!(machine.values(), (None, None));
    assert!(!machine.path("state/kernel-held.json").exists());
}

#[tokio::test]
async fn somebody_else_has_the_last_word() {
    let machine = Machine::new();
    let trial = machine.plan().await.unwrap();
    trial.arm().unwrap();
    for values in [[(SAVED, "2"), (NEXT, "")], [(SAVED, &path(OLD)), (NEXT, "2")]] {
        machine.set(&values);
        let whole = fs::read(machine.grubenv()).unwrap();
        assert!(trial.arm().unwrap_err().contains("somebody else has set meanwhile"));
        assert!(trial.keep_earlier(&machine.state()).is_err());
        assert_eq!(trial.restore(&machine.state()), Ok(false));
        assert_eq!(fs::read(machine.grubenv()).unwrap(), whole);
    }
    assert_eq!(Hold::of(&machine.state()), Ok(None));
}

#[tokio::test]
async fn what_is_not_understood_or_could_not_be_undone_is_refused_with_its_reason() {
    type Change = fn(&Machine);
    let changes: [(&str, Change); 18] = [
        ("its boot loader is not known", |machine| fs::remove_file(machine.path("boot/grub/grub.cfg")).unwrap()),
        ("its boot loader is not known", |machine| {
            fs::create_dir(machine.path("boot/grub2")).unwrap();
            machine.write("boot/grub2/grub.cfg", DEBIAN);
        }),
        ("set GRUB_DEFAULT=saved", |machine| machine.replace("boot/grub/grub.cfg", "\"${saved_entry}\"", "\"0\"")),
        ("it lies on btrfs", |machine| machine.probe("btrfs", "")),
        ("it lies on lvm", |machine| machine.probe("ext2", "lvm")),
        ("it lies on diskfilter", |machine| machine.probe("ext2", "diskfilter mdraid1x")),
        ("it lies on overlay", |machine| machine.probe("overlay", "")),
        ("there is no grub-probe", |machine| fs::remove_file(machine.path("usr/sbin/grub-probe")).unwrap()),
        ("somebody else has set next_entry=2", |machine| machine.set(&[(NEXT, "2")])),
        ("somebody else has set prev_saved_entry=2", |machine| machine.set(&[("prev_saved_entry", "2")])),
        ("grubenv: it has 0 bytes", |machine| fs::write(machine.grubenv(), "").unwrap()),
        ("grubenv: is not a plain file", |machine| {
            fs::rename(machine.grubenv(), machine.path("grubenv")).unwrap();
            symlink(machine.path("grubenv"), machine.grubenv()).unwrap();
        }),
        ("custom.cfg: GRUB reads it, too", |machine| machine.write("boot/grub/custom.cfg", "")),
        ("no other kernel than 6.1.0-37-amd64", |machine| machine.set(&[(SAVED, &path(OLD))])),
        ("no entry for the kernel 6.1.0-37-amd64", |machine| {
            machine.replace("boot/grub/grub.cfg", "gnulinux-6.1.0-37-amd64-advanced", "other");
        }),
        ("was not started by GRUB's entry", |machine| machine.write("proc/cmdline", "root=/dev/vda1\n")),
        ("is not whole: there is no", |machine| {
            fs::remove_file(machine.path(&format!("boot/initrd.img-{OLD}"))).unwrap();
        }),
        ("is not whole: there is no", |machine| {
            fs::remove_dir(machine.path(&format!("lib/modules/{OLD}"))).unwrap();
        }),
    ];
    assert!(Machine::new().plan().await.is_ok());
    for (why, change) in changes {
        let machine = Machine::new();
        change(&machine);
        let found = machine.refusal().await;
        assert!(found.contains(why), "{why}: {found}");
    }
}

#[test]
fn a_restart_for_a_held_kernel_alone_is_not_required() {
    let restart = |reasons: &[&str]| Restart {
        required: Tristate::Yes,
        reasons: reasons.iter().map(|&reason| reason.to_owned()).collect(),
    };
    let apt = "kernel 6.1.0-38-amd64 is installed, 6.1.0-37-amd64 is running";
    let left = |reasons: &[&str], held: &str, running: &str| leave_out(restart(reasons), held, running);
    assert_eq!(left(&[apt], NEW, OLD).required, Tristate::Unknown);
    let other = left(&["libc6", apt], NEW, OLD);
    assert_eq!((other.required, other.reasons), (Tristate::Yes, vec!["libc6".to_owned()]));
    assert_eq!(left(&[apt], "6.1.0-36-amd64", OLD).required, Tristate::Yes, "a later one than what is held");
    assert_eq!(left(&[apt], NEW, NEW).required, Tristate::Yes);
    let (held, running) = ("5.14.0-10.el9.x86_64", "5.14.0-9.el9.x86_64");
    let rpm = format!("kernel-core 5.14.0-10.el9 is installed, {running} is running");
    assert_eq!(left(&[&rpm], held, running).required, Tristate::Unknown);
    assert_eq!(left(&[&rpm], "5.14.0-1.el9.x86_64", running).required, Tristate::Yes);
}
