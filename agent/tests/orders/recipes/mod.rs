//! Third-party applications, by recipes: from a server with TLS, on a device that has apt beside it.

mod back;
mod guests;
mod interrupted;
mod kills;
mod scripts;
mod updates;
mod wanted;

use std::io::Write as _;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::recipes::{Artifact, Catalogue, Content, Detect, Install, Recipe, Release, Script};
use patchwarden_protocol::report::{Classification, Report, Severity};
use sha2::{Digest as _, Sha256};

use crate::device::{self, CONFIGURATION, Package, Running, Served, hex};
use crate::world::World;

/// The catalogue that the device keeps.
const KEPT: &str = "var/lib/patchwarden/recipes.json";

/// A world whose device believes one publisher, and the server that his recipes name.
struct Shop {
    world: World,
    key: PrivateKey,
    served: Served,
    place: PathBuf,
}

impl Shop {
    async fn new() -> Self {
        Self::of(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]).await
    }

    async fn of(installed: &[Package], offered: &[Package]) -> Self {
        let world = World::of(installed, offered).await;
        let key = PrivateKey::generate();
        let configuration = world.device.read(CONFIGURATION);
        let publisher = String::from(key.public());
        world.device.write(CONFIGURATION, &format!("recipe_publishers = ['{publisher}']\n{configuration}"));
        let place = world.device.root.join("srv/shop");
        std::fs::create_dir_all(&place).unwrap();
        let (served, authority) = device::serve_with_tls(place.clone()).await;
        world.device.write("etc/hosts", "127.0.0.1 localhost\n");
        std::fs::create_dir_all(world.device.root.join("etc/ssl/certs")).unwrap();
        world.device.write("etc/ssl/certs/ca-certificates.crt", &authority);
        Self { world, key, served, place }
    }

    /// What the server has under this name, as a recipe says it.
    fn artifact(&self, name: &str, bytes: &[u8], unpacked: u64) -> Artifact {
        std::fs::write(self.place.join(name), bytes).unwrap();
        Artifact {
            arch: std::env::consts::ARCH.into(),
            url: format!("https://localhost:{}/{name}", self.served.address.port()),
            sha256: hex(&Sha256::digest(bytes)),
            size: bytes.len() as u64,
            unpacked,
        }
    }

    /// A program, at its path in version 1.0, and its recipe for version 2.0.
    fn tool(&self, name: &str) -> Recipe {
        self.install(&format!("usr/local/bin/{name}"), &program("1.0"));
        self.recipe(name, &program("2.0"))
    }

    /// The recipe of a program for version 2.0, whatever `bytes` are.
    fn recipe(&self, name: &str, bytes: &[u8]) -> Recipe {
        let install = Install { path: format!("/usr/local/bin/{name}"), content: Content::File };
        recipe(name, install, String::new(), self.artifact(name, bytes, bytes.len() as u64))
    }

    /// A directory, at its path in version 1.0, and its recipe for version 2.0.
    fn tree(&self, name: &str, files: usize) -> Recipe {
        self.tree_of(name, files, program)
    }

    /// The same with another program.
    fn tree_of(&self, name: &str, files: usize, program: impl Fn(&str) -> Vec<u8>) -> Recipe {
        self.install(&format!("opt/{name}/bin/app"), &program("1.0"));
        for number in 0..files {
            self.install(&format!("opt/{name}/part-{number}"), b"1.0");
        }
        let mut entries = vec![(format!("{name}-2.0/bin/app"), 0o755, program("2.0"))];
        entries.extend((0..files).map(|number| (format!("{name}-2.0/part-{number}"), 0o644, b"2.0".to_vec())));
        let unpacked = entries.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
        let artifact = self.artifact(&format!("{name}.tar.gz"), &archive(&entries), unpacked);
        let install = Install { path: format!("/opt/{name}"), content: Content::Tree { strip: 1 } };
        recipe(name, install, "bin/app".into(), artifact)
    }

    fn install(&self, path: &str, bytes: &[u8]) {
        let path = self.world.device.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        self.world
            .device
            .chroot(&format!("chmod 755 /{}", path.strip_prefix(&self.world.device.root).unwrap().display()));
    }

    fn sign(&self, serial: u64, recipes: &[Recipe]) -> Vec<u8> {
        signed(&self.key, serial, Timestamp::now() + SignedDuration::from_hours(1), recipes)
    }

    async fn run(&self, serial: u64, recipes: &[Recipe]) -> (Running, Report) {
        self.world.gateway.offer_recipes(self.sign(serial, recipes)).await;
        let running = self.world.device.start();
        let has_recipes = |report: &Report| report.updates.iter().any(|update| update.id.starts_with("pkg:generic/"));
        let report = self.world.gateway.report(has_recipes).await;
        (running, report)
    }

    /// The version that a program says, whoever runs it.
    fn says(&self, program: &str) -> String {
        let said = self.world.device.chroot(&format!("{program} --version"));
        said.trim().rsplit_once(' ').unwrap().1.to_owned()
    }

    /// Directories that an install has left beside an application.
    fn left(&self) -> String {
        self.world.device.chroot("ls -d /opt/.patchwarden-* /usr/local/bin/.patchwarden-* 2>/dev/null || true")
    }

    /// Earlier versions that are kept.
    fn kept(&self) -> String {
        self.world.device.chroot("ls -d /opt/.patchwarden~* /usr/local/bin/.patchwarden~* 2>/dev/null || true")
    }
}

/// Says its version and who runs it: a recipe's pattern wants to see nobody.
fn program(version: &str) -> Vec<u8> {
    format!("#!/bin/sh\necho \"run by $(id -u):$(id -G) version {version}\"\n").into_bytes()
}

fn recipe(name: &str, install: Install, path: String, artifact: Artifact) -> Recipe {
    Recipe {
        name: name.into(),
        title: format!("The application {name}"),
        install,
        detect: Detect::Program {
            path,
            arguments: vec!["--version".into()],
            pattern: "run by 65534:65534 version ([0-9.]+)".into(),
        },
        release: Release {
            version: "2.0".into(),
            published: "2026-11-01T00:00:00Z".parse().unwrap(),
            classification: Classification::Security,
            severity: Severity::High,
            cves: vec!["CVE-2026-12345".into()],
            artifacts: vec![artifact],
        },
        stateful: false,
    }
}

fn signed(key: &PrivateKey, serial: u64, expires: Timestamp, recipes: &[Recipe]) -> Vec<u8> {
    signed_with(key, serial, expires, recipes, &[])
}

fn signed_with(
    key: &PrivateKey,
    serial: u64,
    expires: Timestamp,
    recipes: &[Recipe],
    scripts: &[(&str, &str)],
) -> Vec<u8> {
    let made = expires - SignedDuration::from_hours(24);
    let script = |(name, body): &(&str, &str)| Script { name: (*name).into(), text: format!("#!/bin/sh\n{body}\n") };
    let (recipes, scripts) = (recipes.to_vec(), scripts.iter().map(script).collect());
    let catalogue = Catalogue { publisher: "Shop".into(), serial, made, expires, recipes, scripts };
    assert_eq!(catalogue.check(), Ok(()));
    serde_json::to_vec(&Envelope::seal(&catalogue, key).unwrap()).unwrap()
}

/// Names as they are: the library would refuse to write some of them.
fn archive(entries: &[(String, u32, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, mode, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, &bytes[..]).unwrap();
    }
    let mut encoder = builder.into_inner().unwrap();
    encoder.flush().unwrap();
    encoder.finish().unwrap()
}
