//! The agent's package for Windows Installer, made by `packaging/build` and installed by Wine's `msiexec`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::task::block_in_place;

use crate::joined;
use crate::machine::Machine;
use crate::service::{in_state, is_registered, said};

/// A package in this version, of the program under test with `more` at its end.
fn package(place: &Path, version: &str, more: &[u8]) -> PathBuf {
    let program = place.join("program.exe");
    let stripped = Command::new("x86_64-w64-mingw32-strip").arg("-o").arg(&program).arg(Machine::built()).status();
    assert!(stripped.unwrap().success());
    fs::write(&program, [&fs::read(&program).unwrap(), more].concat()).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(source.join("packaging/build"));
    let output = command.args(["--version", version, "msi"]).arg(&program).arg(place).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn msiexec(machine: &Machine, verb: &str, package: &Path) {
    let (is_done, said) = block_in_place(|| machine.windows(&["msiexec.exe", verb, package.to_str().unwrap(), "/qn"]));
    assert!(is_done, "msiexec {verb}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_registers_the_service_a_later_one_takes_its_place_and_it_is_gone_once_removed() {
    let (machine, gateway) = joined().await;
    let _session = machine.log_in();
    fs::remove_file(machine.program()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let first = package(place.path(), "0.1.0", b"");
    msiexec(&machine, "/i", &first);
    gateway.report(|report| report.counts.updates > 0).await;
    in_state(&machine, &gateway, "RUNNING").await;
    let size = fs::metadata(machine.program()).unwrap().len();

    let second = package(place.path(), "0.1.1", b"another");
    gateway.forget_session();
    msiexec(&machine, "/i", &second);
    gateway.connected().await;
    in_state(&machine, &gateway, "RUNNING").await;
    assert_eq!(fs::metadata(machine.program()).unwrap().len(), size + 7);
    let text = said(&machine, &["service", "install"]);
    assert!(text.contains("nothing has changed"), "{text}");

    msiexec(&machine, "/x", &second);
    assert!(!is_registered(&machine) && !machine.program().exists());
    assert!(machine.state("key.pem").exists());
}
