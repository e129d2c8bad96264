//! Tests of the images and SBOMs that are shipped, made of small programs in the place of ours: `make images-tests`. That ours run in
//! such images is seen by the tests in a cluster.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod layout;
mod lock;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use layout::Layout;
use lock::Crate;

const PROGRAMS: [&str; 3] = ["patchwarden-controller", "patchwarden-gateway", "patchwarden-runner"];

/// As the kernel, and as images call them.
const ARCHITECTURES: [(&str, &str); 2] = [("x86_64", "amd64"), ("aarch64", "arm64")];

/// Made once, for all tests.
static IMAGES: LazyLock<Images> = LazyLock::new(|| Images::new("022"));

struct Images {
    place: TempDir,
    /// What was printed.
    said: String,
}

impl Images {
    /// By somebody with this umask, of programs of his own.
    fn new(umask: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-c", "umask $0; exec \"$@\"", umask])
            .arg(source("packaging/images"))
            .arg(place.path().join("images"));
        command.args(["--registry", "registry.example.com/team", "--tag", "1.2.3"]);
        for (architecture, _) in ARCHITECTURES {
            let programs = place.path().join(architecture);
            std::fs::create_dir(&programs).unwrap();
            for name in PROGRAMS {
                compile(architecture, &programs.join(name));
            }
            command.arg("--programs").arg(format!("{architecture}={}", programs.display()));
        }
        Self { said: stdout(&mut command), place }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.path().join("images").join(name)
    }
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"))
}

fn stdout(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A static program that says one word.
fn compile(architecture: &str, to: &Path) {
    let from = to.with_extension("rs");
    std::fs::write(&from, "fn main() { println!(\"well\"); }").unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args([
        "--target",
        &format!("{architecture}-unknown-linux-musl"),
        "--crate-name",
        "program",
        "-Cstrip=symbols",
    ]);
    if architecture != std::env::consts::ARCH {
        rustc.arg("-Clinker=rust-lld");
    }
    stdout(rustc.arg("-o").arg(to).arg(&from));
    std::fs::remove_file(from).unwrap();
}

#[test]
fn who_makes_an_image_and_where_leaves_no_trace_in_it() {
    let others = Images::new("077");
    assert_eq!(IMAGES.said, others.said);
    let mut names: Vec<_> = std::fs::read_dir(IMAGES.file("")).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), PROGRAMS.len() * (1 + ARCHITECTURES.len()), "{names:?}");
    for name in names {
        let name = name.to_str().unwrap();
        assert!(
            std::fs::read(IMAGES.file(name)).unwrap() == std::fs::read(others.file(name)).unwrap(),
            "{name} differs"
        );
    }
}

#[test]
fn an_image_is_one_static_program_for_each_architecture_and_for_a_user_without_rights() {
    for program in PROGRAMS {
        let image = Layout::open(&IMAGES.file(&format!("{program}.oci.tar")));
        let name = format!("registry.example.com/team/{program}:1.2.3");
        let (index, named) = image.only_index();
        assert_eq!(named["annotations"]["io.containerd.image.name"], name);
        assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
        assert!(IMAGES.said.contains(&format!("{name}@{}\n", named["digest"].as_str().unwrap())), "{}", IMAGES.said);
        let platforms: Vec<_> =
            index["manifests"].as_array().unwrap().iter().map(|it| it["platform"].clone()).collect();
        assert_eq!(platforms, ARCHITECTURES.map(|(_, it)| json!({"os": "linux", "architecture": it})));
        for ((kernels, architecture), descriptor) in ARCHITECTURES.iter().zip(index["manifests"].as_array().unwrap()) {
            let manifest = image.json(descriptor);
            let config = image.json(&manifest["config"]);
            assert_eq!((&config["os"], &config["architecture"]), (&"linux".into(), &(*architecture).into()));
            assert_eq!(config["config"]["User"], "65532:65532");
            assert_eq!(config["config"]["Entrypoint"], json!([format!("/{program}")]));
            let labels = &config["config"]["Labels"];
            assert_eq!(labels["org.opencontainers.image.title"], program);
            assert_eq!(labels["org.opencontainers.image.version"], "1.2.3");
            assert_eq!(labels["org.opencontainers.image.created"], config["created"]);
            let [layer] = manifest["layers"].as_array().unwrap().as_slice() else { panic!("{manifest}") };
            assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
            let (digest, root) = image.unpack(layer);
            assert_eq!(config["rootfs"]["diff_ids"], json!([digest]));
            let sbom = format!("var/lib/db/sbom/{program}.cdx.json");
            let expected = [("755", program), ("644", &sbom), ("1777", "tmp/")];
            let expected: BTreeSet<_> = expected.map(|(mode, path)| (mode.to_owned(), path.to_owned())).into();
            let found = layout::files(root.path());
            assert_eq!(
                found
                    .into_iter()
                    .filter(|(mode, path)| !(mode == "755" && path.ends_with('/')))
                    .collect::<BTreeSet<_>>(),
                expected
            );
            let beside = IMAGES.file(&format!("{program}-{architecture}.cdx.json"));
            assert_eq!(std::fs::read(root.path().join(sbom)).unwrap(), std::fs::read(beside).unwrap());
            if *kernels == std::env::consts::ARCH {
                assert_eq!(stdout(&mut Command::new(root.path().join(program))), "well\n");
            }
        }
    }
}

#[test]
fn a_program_that_would_not_run_in_an_image_or_tells_of_this_machine_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let refused = |architecture: &str, what: &str| {
        let mut command = Command::new(source("packaging/images"));
        let programs = format!("{architecture}={}", place.path().display());
        let output = output(command.arg(place.path().join("images")).arg(architecture).args(["--programs", &programs]));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(what), "{said}");
    };
    refused("aarch64", "patchwarden-controller: no such program");
    let program = place.path().join("patchwarden-controller");
    std::fs::copy("/bin/true", &program).unwrap();
    refused(std::env::consts::ARCH, "is not static");
    compile("x86_64", &program);
    refused("aarch64", "is not for aarch64");
    compile("aarch64", &program);
    let mut bytes = std::fs::read(&program).unwrap();
    bytes.extend_from_slice(source("src/lib.rs").to_str().unwrap().as_bytes());
    std::fs::write(&program, bytes).unwrap();
    refused("aarch64", "has paths of this machine in it");
}

/// By cargo itself: what is compiled into a program, without macros, which the compiler runs.
fn built_in(package: &str, target: &str) -> BTreeSet<Crate> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "tree",
        "--locked",
        "--edges=no-build,no-dev,no-proc-macro",
        "--prefix=none",
        "--no-dedupe",
        "--format={p}",
        "--target",
        target,
        "--package",
        package,
    ]);
    let tree = stdout(cargo.current_dir(source("")));
    tree.lines().map(Crate::of_tree).filter(|it| it.name != package).collect()
}

fn named(sbom: &Value) -> BTreeSet<Crate> {
    let components = sbom["components"].as_array().unwrap().iter().filter(|it| it["scope"] == "required");
    components.map(|it| Crate::new(it["name"].as_str().unwrap(), it["version"].as_str().unwrap())).collect()
}

fn is_complete(sbom: &Path, program: &str, package: &str, target: &str) {
    let sbom: Value = serde_json::from_slice(&std::fs::read(sbom).unwrap()).unwrap();
    assert_eq!(sbom["bomFormat"], "CycloneDX");
    let about = &sbom["metadata"]["component"];
    assert_eq!((&about["type"], &about["name"]), (&"application".into(), &program.into()));
    assert_eq!(sbom["metadata"]["properties"], json!([{"name": "cdx:rustc:sbom:target:triple", "value": target}]));
    let (named, built) = (named(&sbom), built_in(package, target));
    assert_eq!(built.difference(&named).collect::<Vec<_>>(), Vec::<&Crate>::new(), "not in the SBOM of {program}");
    let locked = lock::read(&source("Cargo.lock"));
    for component in sbom["components"].as_array().unwrap() {
        let of = Crate::new(component["name"].as_str().unwrap(), component["version"].as_str().unwrap());
        let checksum = locked.get(&of).unwrap_or_else(|| panic!("{of:?} is not in Cargo.lock"));
        let hashes = checksum.as_ref().map(|sha256| json!([{"alg": "SHA-256", "content": sha256}]));
        assert_eq!(component.get("hashes"), hashes.as_ref(), "{of:?}");
        if checksum.is_some() {
            assert_eq!(component["purl"], format!("pkg:cargo/{}@{}", of.name, of.version));
            assert!(!component["licenses"].as_array().unwrap().is_empty(), "{of:?}");
        }
    }
}

#[test]
fn an_sbom_has_every_crate_that_is_built_in_with_the_checksum_of_the_lock_file() {
    for program in PROGRAMS {
        for (architecture, images) in ARCHITECTURES {
            let sbom = IMAGES.file(&format!("{program}-{images}.cdx.json"));
            is_complete(&sbom, program, "patchwarden", &format!("{architecture}-unknown-linux-musl"));
        }
    }
}

#[test]
fn the_plugins_archives_are_those_that_krew_asks_for_and_whoever_makes_them_the_same() {
    let program = "kubectl-patchwarden";
    let made = |umask: &str| {
        let place = tempfile::tempdir().unwrap();
        let mut command = Command::new("bash");
        command.args(["-c", "umask $0; exec \"$@\"", umask]);
        command.arg(source("packaging/plugin")).arg(place.path().join("plugin"));
        for (architecture, _) in ARCHITECTURES {
            std::fs::create_dir(place.path().join(architecture)).unwrap();
            compile(architecture, &place.path().join(architecture).join(program));
            let directory = place.path().join(architecture);
            command.arg("--programs").arg(format!("{architecture}={}", directory.display()));
        }
        stdout(&mut command);
        place
    };
    let (one, other) = (made("022"), made("077"));
    let krew = std::fs::read_to_string(source("packaging/krew/patchwarden.yaml")).unwrap();
    for (architecture, _) in ARCHITECTURES {
        let name = format!("{program}-{architecture}-linux");
        let archive = one.path().join(format!("plugin/{name}.tar.gz"));
        assert!(krew.contains(&format!("/{{{{ .TagName }}}}/{name}.tar.gz\"")), "krew fetches {name}");
        assert!(
            std::fs::read(&archive).unwrap()
                == std::fs::read(other.path().join(format!("plugin/{name}.tar.gz"))).unwrap(),
            "{name} differs"
        );
        let list = stdout(Command::new("tar").args(["--numeric-owner", "-tvzf"]).arg(&archive));
        let list: Vec<(&str, &str, &str)> = list
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                (words[0], words[1], words[words.len() - 1])
            })
            .collect();
        assert_eq!(list, [("-rw-r--r--", "0/0", "LICENSE"), ("-rwxr-xr-x", "0/0", program)]);
        let sbom = one.path().join(format!("plugin/{name}.cdx.json"));
        is_complete(&sbom, program, "patchwarden", &format!("{architecture}-unknown-linux-musl"));
        if architecture == std::env::consts::ARCH {
            let unpack = "tar -xzf \"$0\" -C \"$1\" && exec \"$1/kubectl-patchwarden\"";
            let said = stdout(Command::new("bash").args(["-c", unpack]).arg(&archive).arg(one.path()));
            assert_eq!(said, "well\n");
        }
    }
}

#[test]
fn the_agents_packages_bring_their_sbom() {
    let place = tempfile::tempdir().unwrap();
    let sbom = place.path().join("agent.cdx.json");
    for target in ["x86_64-pc-windows-gnu", "aarch64-unknown-linux-musl"] {
        stdout(Command::new(source("packaging/sbom")).args(["patchwarden-agent", target]).arg(&sbom));
        is_complete(&sbom, "patchwarden-agent", "patchwarden-agent", target);
    }
    let program = place.path().join("program");
    compile("aarch64", &program);
    let pack = |kind: &str| {
        let mut command = Command::new(source("packaging/build"));
        command.arg(kind).arg(&program).arg(place.path()).arg("--sbom").arg(&sbom);
        stdout(&mut command).trim().to_owned()
    };
    let brought = "./usr/share/doc/patchwarden-agent/patchwarden-agent.cdx.json";
    let of_deb = "dpkg-deb --fsys-tarfile \"$0\" | tar -xO \"$1\"";
    let of_rpm = "rpm2archive - <\"$0\" | tar -xzO \"$1\"";
    for (kind, read) in [("deb", of_deb), ("rpm", of_rpm)] {
        let found = output(Command::new("bash").args(["-c", read, &pack(kind), brought]));
        assert!(found.stdout == std::fs::read(&sbom).unwrap(), "{kind}: {}", String::from_utf8_lossy(&found.stderr));
    }
}
