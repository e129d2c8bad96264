//! The archive of an OCI image layout, unpacked.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::stdout;

pub(crate) struct Layout {
    place: TempDir,
}

impl Layout {
    pub(crate) fn open(archive: &Path) -> Self {
        let place = tempfile::tempdir().unwrap();
        stdout(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(place.path()));
        let version = std::fs::read_to_string(place.path().join("oci-layout")).unwrap();
        assert_eq!(version, "{\"imageLayoutVersion\":\"1.0.0\"}\n");
        Self { place }
    }

    /// The index of images, and its descriptor: a tool that is asked for no name finds this one.
    pub(crate) fn only_index(&self) -> (Value, Value) {
        let layout: Value =
            serde_json::from_slice(&std::fs::read(self.place.path().join("index.json")).unwrap()).unwrap();
        let [descriptor] = layout["manifests"].as_array().unwrap().as_slice() else { panic!("{layout}") };
        (self.json(descriptor), descriptor.clone())
    }

    /// What a descriptor describes.
    pub(crate) fn blob(&self, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap();
        let hash = digest.strip_prefix("sha256:").unwrap();
        let bytes = std::fs::read(self.place.path().join("blobs/sha256").join(hash)).unwrap();
        assert_eq!((sha256(&bytes).as_str(), Some(bytes.len() as u64)), (digest, descriptor["size"].as_u64()));
        bytes
    }

    pub(crate) fn json(&self, descriptor: &Value) -> Value {
        let found: Value = serde_json::from_slice(&self.blob(descriptor)).unwrap();
        if let Some(type_) = found.get("mediaType") {
            assert_eq!(*type_, descriptor["mediaType"]);
        }
        found
    }

    /// A compressed layer: the digest of what it is uncompressed, and its files.
    pub(crate) fn unpack(&self, descriptor: &Value) -> (String, TempDir) {
        let root = tempfile::tempdir().unwrap();
        let layer = self.place.path().join("layer.tar");
        std::fs::write(layer.with_extension("tar.gz"), self.blob(descriptor)).unwrap();
        stdout(Command::new("gunzip").arg("--force").arg(layer.with_extension("tar.gz")));
        stdout(Command::new("tar").arg("-xpf").arg(&layer).arg("-C").arg(root.path()));
        (sha256(&std::fs::read(&layer).unwrap()), root)
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// All files and directories below, with their modes; directories end with `/`.
pub(crate) fn files(root: &Path) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let is_directory = entry.file_type().unwrap().is_dir();
            let path = entry.path();
            let shown =
                path.strip_prefix(root).unwrap().to_str().unwrap().to_owned() + if is_directory { "/" } else { "" };
            found.insert((format!("{:o}", entry.metadata().unwrap().permissions().mode() & 0o7777), shown));
            if is_directory {
                directories.push(path);
            }
        }
    }
    found
}
