//! A log of limited size: a file, and the one before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The log.
const FILE: &str = "agent.log";

/// What was the log before.
const BEFORE: &str = "agent.1.log";

/// Writes into `agent.log`, which becomes `agent.1.log` before it is larger than `most`. Each write is one entry: it is not torn apart.
#[derive(Debug)]
pub(crate) struct Log {
    directory: PathBuf,
    /// Bytes of one file.
    most: usize,
    /// With its size. None after an error: the next entry opens it again.
    file: Option<(File, usize)>,
}

impl Log {
    /// Goes on with the log in `directory`, which is there. At most twice `most` bytes are used.
    pub(crate) fn open(directory: &Path, most: usize) -> io::Result<Self> {
        let mut log = Self { directory: directory.to_owned(), most, file: None };
        log.file = Some(log.reopen()?);
        Ok(log)
    }

    fn reopen(&self) -> io::Result<(File, usize)> {
        let file = OpenOptions::new().append(true).create(true).open(self.directory.join(FILE))?;
        let size = file.metadata()?.len();
        Ok((file, usize::try_from(size).unwrap_or(usize::MAX)))
    }

    /// Begins a new file. Where the old one cannot be put aside (somebody has it open) it is emptied: the limit holds.
    fn turn(&self) -> io::Result<(File, usize)> {
        let path = self.directory.join(FILE);
        if fs::rename(&path, self.directory.join(BEFORE)).is_err() {
            File::create(&path)?;
        }
        self.reopen()
    }
}

impl Write for Log {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let kept = &entry[..entry.len().min(self.most)];
        let (mut file, mut size) = match self.file.take() {
            Some(opened) => opened,
            None => self.reopen()?,
        };
        if size > 0 && size.saturating_add(kept.len()) > self.most {
            // Not while it is open here, too.
            drop(file);
            (file, size) = self.turn()?;
        }
        file.write_all(kept)?;
        self.file = Some((file, size + kept.len()));
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join(name)).unwrap_or_default()
    }

    #[test]
    fn the_newest_entries_are_kept_whole_and_the_limit_holds_after_each() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path(), 100).unwrap();
        for number in 0..1000 {
            if number % 7 == 0 {
                log = Log::open(directory.path(), 100).unwrap();
            }
            log.write_all(format!("entry {number:04}\n").as_bytes()).unwrap();
            let (now, before) = (read(directory.path(), FILE), read(directory.path(), BEFORE));
            assert!(now.len() <= 100 && before.len() <= 100, "{now}{before}");
            let all = before + &now;
            let first = if number < 9 { 0 } else { number - number % 9 - 9 };
            let expected: String =
                (first..=number).map(|number| format!("entry {number:04}\n")).collect::<Vec<_>>().concat();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn an_entry_that_is_too_large_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path(), 100).unwrap();
        for letter in ["a", "b", "c"] {
            log.write_all(letter.repeat(1000).as_bytes()).unwrap();
        }
        assert_eq!(read(directory.path(), FILE), "c".repeat(100));
        assert_eq!(read(directory.path(), BEFORE), "b".repeat(100));
    }

    #[test]
    fn a_log_that_cannot_be_put_aside_does_not_grow() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join(BEFORE).join("full")).unwrap();
        let mut log = Log::open(directory.path(), 100).unwrap();
        for number in 0..20 {
            log.write_all(format!("entry {number:04}\n").as_bytes()).unwrap();
        }
        assert_eq!(read(directory.path(), FILE), "entry 0018\nentry 0019\n");
    }
}
