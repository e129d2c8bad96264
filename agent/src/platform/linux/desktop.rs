//! Desktops of users who are logged in: each is told over its user's own session bus (Desktop Notifications Specification 1.2,
//! `org.freedesktop.Notifications.Notify`).
//!
//! systemd-logind keeps `/run/user/UID` as long as a user is logged in, and the bus of the session listens there. It takes nobody but
//! its user, so busctl(1) is run as that user, with nothing of root's.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::task::JoinSet;

use super::restart::line;
use crate::provider::{CommandLine, words};

/// Where logind keeps what belongs to the sessions of users.
const SESSIONS: &str = "/run/user";

/// Most desktops that are told: a machine with more of them is no desktop's.
const MAX_DESKTOPS: usize = 64;

/// For a bus that does not answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Shown above the text.
const SUMMARY: &str = "This machine will restart";

/// The urgency "critical": the notification stays until the user takes note of it.
const CRITICAL: &str = "2";

/// Shows the message on every desktop, and says how many have taken it.
pub(super) async fn tell(message: &str) -> usize {
    let mut asked = JoinSet::new();
    for desktop in desktops(Path::new(SESSIONS)) {
        let mut command = desktop.notification(message).command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        asked.spawn(async move {
            let why = match tokio::time::timeout(LIMIT, command.output()).await {
                Ok(Ok(output)) if output.status.success() => return true,
                Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Ok(Err(error)) => format!("setpriv: {error}"),
                Err(_) => format!("did not answer within {} s", LIMIT.as_secs()),
            };
            tracing::info!("the session of user {} has shown nothing: {why}", desktop.user);
            false
        });
    }
    asked.join_all().await.into_iter().filter(|is_told| *is_told).count()
}

/// A user's session bus.
#[derive(Debug, PartialEq, Eq)]
struct Desktop {
    user: u32,
    group: u32,
    bus: PathBuf,
}

impl Desktop {
    fn notification(&self, message: &str) -> CommandLine {
        let mut line = line(words(["setpriv", "--clear-groups", "--no-new-privs"]));
        let user = [format!("--reuid={}", self.user), format!("--regid={}", self.group)];
        line.words.extend(user.map(Into::into));
        line.words.extend(words(["--", "busctl", "--timeout=4"]));
        line.words.push(format!("--address=unix:path={}", self.bus.display()).into());
        let to = "org.freedesktop.Notifications";
        line.words.extend(words(["--", "call", to, "/org/freedesktop/Notifications", to, "Notify", "susssasa{sv}i"]));
        // The name of who tells it, what it replaces, its icon, its texts, no buttons, one hint, and that it never goes by itself.
        line.words.extend(words(["Patchwarden", "0", "system-reboot", SUMMARY, &plain(message)]));
        line.words.extend(words(["0", "1", "urgency", "y", CRITICAL, "0"]));
        line
    }
}

/// The sessions with a bus of their own, by user.
fn desktops(sessions: &Path) -> Vec<Desktop> {
    let Ok(entries) = fs::read_dir(sessions) else { return Vec::new() };
    let desktop = |entry: fs::DirEntry| {
        let user = entry.file_name().to_str()?.parse().ok()?;
        let directory = entry.metadata().ok()?;
        let bus = entry.path().join("bus");
        let is_bus = fs::symlink_metadata(&bus).is_ok_and(|bus| bus.file_type().is_socket());
        (directory.is_dir() && directory.uid() == user && is_bus).then(|| Desktop { user, group: directory.gid(), bus })
    };
    let mut desktops: Vec<Desktop> = entries.flatten().filter_map(desktop).take(MAX_DESKTOPS).collect();
    desktops.sort_by_key(|desktop| desktop.user);
    desktops
}

/// A text without markup, which the body of a notification may have.
fn plain(message: &str) -> String {
    message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_desktop_is_what_has_a_bus_of_the_user_whose_directory_it_is_in() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str, owner: u32| {
            let directory = place.path().join(name);
            fs::create_dir(&directory).unwrap();
            chown(&directory, Some(owner), Some(7)).unwrap();
            directory
        };
        let bus = |directory: &Path| drop(UnixListener::bind(directory.join("bus")).unwrap());
        let [right, others, none, named] =
            [("1001", 1001), ("1002", 1003), ("1004", 1004), ("user", 1005)].map(|(name, owner)| make(name, owner));
        for directory in [&right, &others, &named] {
            bus(directory);
        }
        fs::write(none.join("bus"), "").unwrap();
        std::os::unix::fs::symlink(&right, place.path().join("1006")).unwrap();
        assert_eq!(desktops(place.path()), [Desktop { user: 1001, group: 7, bus: right.join("bus") }]);
        assert!(desktops(&place.path().join("missing")).is_empty());
    }

    #[test]
    fn a_message_is_neither_an_option_nor_markup() {
        let desktop = Desktop { user: 1001, group: 7, bus: "/run/user/1001/bus".into() };
        let words = desktop.notification("--help <b>&").words;
        let place = |word: &str| words.iter().rposition(|found| found == word);
        assert!(place("--").unwrap() < place("--help &lt;b&gt;&amp;").unwrap());
        let user = words.iter().position(|word| word == "--reuid=1001").unwrap();
        assert!(words[user + 1] == "--regid=7" && user < words.iter().position(|word| word == "busctl").unwrap());
    }
}
