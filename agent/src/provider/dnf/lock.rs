//! dnf's own locks: files that name the process which holds them (dnf's `lock.py`).

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;

use crate::provider::Failure;
use crate::provider::support::broken;

/// Longest number of a process, and more.
const MAX_PID: u64 = 32;

/// Whether the process that the file names holds the lock. dnf takes any process of that number for it, for ever: a file that
/// outlasted its process, whose number another one has now, is emptied, which is free to dnf, under the lock (flock) that it
/// takes for as long as it reads and writes the file.
pub(super) fn is_held(path: &Path) -> Result<bool, Failure> {
    held(path).map_err(|error| broken(format!("{}: {error}", path.display())))
}

fn held(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if file.try_lock().is_err() {
        // dnf writes it at this moment.
        return Ok(true);
    }
    let mut text = String::new();
    (&file).take(MAX_PID).read_to_string(&mut text)?;
    let Ok(pid) = text.trim().parse::<u32>() else { return Ok(false) };
    if !fs::exists(format!("/proc/{pid}/stat"))? {
        return Ok(false);
    }
    if is_python(pid) {
        return Ok(true);
    }
    tracing::warn!("{}: process {pid} is another one than dnf; emptied", path.display());
    file.set_len(0)?;
    Ok(false)
}

/// Whatever holds a lock of dnf 4 is a Python program. A process that has ended, or is the kernel's own, has no program.
fn is_python(pid: u32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().is_some_and(|name| name.to_string_lossy().contains("python"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_lock_counts_while_a_python_program_of_its_number_is_alive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock.pid");
        assert_eq!(is_held(&path), Ok(false), "no file, no lock");
        let mut command = Command::new("python3");
        command.args(["-c", "import sys; print('x', flush=True); sys.stdin.read()"]);
        let mut python = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is there");
        io::Read::read_exact(python.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let (own, other) = (std::process::id().to_string(), python.id().to_string());
        for (text, expected, left) in
            [(other.as_str(), true, other.as_str()), ("4194305", false, "4194305"), ("x", false, "x"), ("", false, "")]
        {
            fs::write(&path, text).unwrap();
            assert_eq!(is_held(&path), Ok(expected), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), left);
        }
        // Another process has its number since: dnf would wait for that.
        fs::write(&path, &own).unwrap();
        assert_eq!(is_held(&path), Ok(false));
        assert_eq!(fs::read_to_string(&path).unwrap(), "", "free to dnf");
        drop(python.stdin.take());
        python.wait().unwrap();
    }
}
