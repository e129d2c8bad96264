//! What it takes to read a set as large as Debian's: 60,000 records, 300 MB of JSON (benches/RESULTS.md).
//!
//!     cargo run --release -p patchwarden-vulnerabilities --example full_set -- generate DIRECTORY
//!     cargo run --release -p patchwarden-vulnerabilities --example full_set -- read DIRECTORY

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Instant;

use patchwarden_vulnerabilities::read;
use serde_json::json;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Records of the set.
const RECORDS: usize = 60_000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["generate", directory] => generate(Path::new(directory)),
        ["read", directory] => measure(Path::new(directory)),
        _ => Err("full_set generate|read DIRECTORY".into()),
    }
}

/// The same records each time: a vulnerability in one package of three releases, with every affected version, and now and then one
/// of the kernel, with thousands.
fn generate(directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut archive = ZipWriter::new(BufWriter::new(File::create(directory.join("all.zip"))?));
    let mut bytes = 0;
    for number in 0..RECORDS {
        let id = format!("DEBIAN-CVE-{}-{:04}", 2000 + number % 27, 1000 + number);
        let is_kernel = number % 50 == 0;
        let count = if is_kernel { 1500 } else { 80 };
        let affected: Vec<_> = (11..14)
            .map(|release| {
                let versions: Vec<_> = (0..count).map(|it| format!("{release}.{}.{}-{}", it / 20, it % 20, it % 7)).collect();
                json!({
                    "package": {
                        "ecosystem": format!("Debian:{release}"),
                        "name": if is_kernel { "linux".to_owned() } else { format!("package-{}", number % 9_000) },
                        "purl": "pkg:deb/debian/package?arch=source",
                    },
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": format!("{release}.{count}.0-1+deb{release}u1")}]}],
                    "versions": versions,
                    "ecosystem_specific": {"urgency": "not yet assigned"},
                })
            })
            .collect();
        let record = json!({
            "schema_version": "1.7.3", "id": id, "upstream": [id.trim_start_matches("DEBIAN-")],
            "modified": "2026-01-01T00:00:00Z", "published": "2025-01-01T00:00:00Z",
            "details": "A flaw in the handling of input was found. ".repeat(20), "affected": affected,
        });
        let text = serde_json::to_vec(&record)?;
        bytes += text.len();
        archive.start_file(format!("{id}.json"), SimpleFileOptions::default())?;
        archive.write_all(&text)?;
    }
    archive.finish()?.flush()?;
    println!("{RECORDS} records, {} MB of JSON", bytes / 1_000_000);
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a measurement")]
fn measure(directory: &Path) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let summary = read(directory, &mut |_| Ok(()))?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("VmHWM: unknown");
    println!(
        "{} records, {} statements, {:.1} s, {peak}",
        summary.records,
        summary.statements,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}
