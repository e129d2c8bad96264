//! The machine that is restarted: by which command, and who is told before.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::{PATH, desktop};
use crate::config::Config;
use crate::provider::{CommandLine, words};

/// To write on some terminals; one that blocks must not hold up the rest.
const TELLING_LIMIT: Duration = Duration::from_secs(10);

/// What container managers leave behind: Docker, Podman, and systemd in whatever container.
const CONTAINER_FILES: [&str; 3] = [".dockerenv", "run/.containerenv", "run/systemd/container"];

/// The command that restarts this machine in its own orderly way, which stops services gently; or why it cannot.
pub(crate) fn command(config: &Config) -> Result<CommandLine, String> {
    if let Some(configured) = &config.restart_command {
        return Ok(line(configured.iter().map(Into::into).collect()));
    }
    if let Some(why) = why_never(Path::new("/")) {
        return Err(format!("this machine cannot restart itself: {why}; restart_command in agent.toml says how else"));
    }
    let (program, arguments) = if Path::new("/run/systemd/system").exists() {
        ("systemctl", words(["reboot"]))
    } else {
        ("shutdown", words(["-r", "now"]))
    };
    let path = find(program).ok_or_else(|| {
        format!("this machine cannot restart itself: it has no {program}; restart_command in agent.toml says how else")
    })?;
    Ok(line(std::iter::once(path.into_os_string()).chain(arguments).collect()))
}

pub(super) fn line(words: Vec<std::ffi::OsString>) -> CommandLine {
    CommandLine { words, environment: vec![("LC_ALL", "C".into()), ("HOME", "/root".into()), ("PATH", PATH.into())] }
}

fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}

/// Why this is a container, if it is one. What cannot be read says nothing.
pub(crate) fn container(root: &Path) -> Option<String> {
    if let Some(file) = CONTAINER_FILES.iter().find(|file| root.join(file).exists()) {
        return Some(format!("it is a container (/{file} exists)"));
    }
    let environment = fs::read(root.join("proc/1/environ")).unwrap_or_default();
    if environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(b"container=")) {
        return Some("it is a container (by the environment of its first process)".to_owned());
    }
    None
}

/// A container's restart is its manager's, and its boot id the host's: nothing would prove it. A chroot has no init
/// system of its own. What cannot be read says nothing.
fn why_never(root: &Path) -> Option<String> {
    if let Some(why) = container(root) {
        return Some(why);
    }
    let (own, first) = (fs::metadata(root).ok()?, fs::metadata(root.join("proc/1/root")).ok()?);
    ((own.dev(), own.ino()) != (first.dev(), first.ino())).then(|| "the agent runs in a chroot".to_owned())
}

/// Tells everybody who is logged in, at terminals and on desktops.
pub(crate) async fn tell_users(message: &str) -> Result<(), String> {
    let (terminals, desktops) = tokio::join!(tell_terminals(message), desktop::tell(message));
    if desktops > 0 {
        tracing::info!("the restart is shown on {desktops} desktops");
        return Ok(());
    }
    terminals
}

async fn tell_terminals(message: &str) -> Result<(), String> {
    let told = async {
        let mut command = line(words(["wall"])).command();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        // On its input: on the command line a message could be taken for an option or a file.
        if let Some(mut input) = child.stdin.take() {
            input.write_all(message.as_bytes()).await?;
            input.write_all(b"\n").await?;
        }
        child.wait().await
    };
    match tokio::time::timeout(TELLING_LIMIT, told).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("wall: {status}")),
        Ok(Err(error)) => Err(format!("wall: {error}")),
        Err(_) => Err(format!("wall did not end within {} s", TELLING_LIMIT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root whose first process has the same root.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/systemd")).unwrap();
        fs::create_dir_all(root.path().join("proc/1")).unwrap();
        fs::write(root.path().join("proc/1/environ"), "PATH=/bin\0xcontainer=1\0").unwrap();
        std::os::unix::fs::symlink(root.path(), root.path().join("proc/1/root")).unwrap();
        root
    }

    #[test]
    fn neither_a_container_nor_a_chroot_restarts_itself() {
        let machine = root();
        assert_eq!(why_never(machine.path()), None);
        for file in CONTAINER_FILES {
            let root = root();
            fs::write(root.path().join(file), "").unwrap();
            assert!(why_never(root.path()).unwrap().contains(file));
        }
        let container = root();
        fs::write(container.path().join("proc/1/environ"), "PATH=/bin\0container=lxc\0").unwrap();
        assert!(why_never(container.path()).unwrap().contains("container"));
        let chroot = root();
        fs::remove_file(chroot.path().join("proc/1/root")).unwrap();
        assert_eq!(why_never(chroot.path()), None, "what cannot be read says nothing");
        std::os::unix::fs::symlink(machine.path(), chroot.path().join("proc/1/root")).unwrap();
        assert!(why_never(chroot.path()).unwrap().contains("chroot"));
    }
}
