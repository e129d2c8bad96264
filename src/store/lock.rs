//! SQLite serves one gateway: who has the database says so, and nobody else opens it.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;

/// A lock on `<database>.lock` (`flock(2)`: the kernel gives it up when the process ends, however it ends), with the name of
/// its holder in it. Tools that make backups do not mind it.
#[derive(Clone, Debug)]
pub(super) struct Lock(Arc<File>);

impl Lock {
    /// Takes it, or says who has it.
    pub(super) fn take(database: &Path, replica: &str) -> Result<Self, StoreError> {
        let path = path_of(database);
        let failed = |source| StoreError::Lock { path: path.clone(), source };
        let options = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options().map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed)?;
                return Err(StoreError::InUse { path: database.to_owned(), holder: holder.trim_end().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{replica} (process {})", std::process::id()).map_err(failed)?;
        Ok(Self(Arc::new(file)))
    }

    /// Lets the next one have it.
    pub(super) fn release(&self) {
        // Where it fails, the end of the process does it.
        let _ = self.0.unlock();
    }
}

fn path_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}
