//! Directories of files of every format, whole and broken, and what is made of them for devices.
//!
//! The files in `data/` have the form that the schemas and the publishers describe; they were written for these tests.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use patchwarden_protocol::report::Severity;
use patchwarden_vulnerabilities::directory::{Entry, digest, stamp};
use patchwarden_vulnerabilities::matching::{Answer, Installed, assess, fixes};
use patchwarden_vulnerabilities::statement::{Names, Until};
use patchwarden_vulnerabilities::{Statement, Summary, read};

const OSV: &str = include_str!("data/DEBIAN-CVE-2023-5363.json");
const CSAF: &str = include_str!("data/rhsa-2024_9941.json");

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn all(directory: &Path) -> Result<(Vec<Entry>, Summary), String> {
    let mut entries = Vec::new();
    let summary = read(directory, &mut |entry| {
        entries.push(entry);
        Ok(())
    });
    summary.map(|summary| (entries, summary)).map_err(|error| error.to_string())
}

/// A directory with one file in it, read.
fn one(name: &str, content: &[u8]) -> Result<(Vec<Entry>, Summary), String> {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join(name), content).unwrap();
    all(place.path())
}

fn statements(name: &str, content: &str) -> Vec<Statement> {
    let (entries, _) = one(name, content.as_bytes()).unwrap();
    let statement = |entry| match entry {
        Entry::Statement(statement) => statement,
        other => panic!("{other:?}"),
    };
    entries.into_iter().map(statement).collect()
}

fn refusal(name: &str, content: impl AsRef<[u8]>) -> String {
    one(name, content.as_ref()).map(|(entries, _)| format!("{entries:?}")).expect_err("it is refused")
}

#[test]
fn a_directory_of_every_format_is_read_and_counted() {
    let (entries, summary) = all(&data()).unwrap();
    let expected = Summary {
        files: 6,
        records: 3,
        statements: 6,
        // Once as JSON and once as CSV.
        exploited: 4,
        likelihoods: 3,
        left_out: [
            ("a package of a module stream, which devices do not tell".to_owned(), 1),
            ("a product that is none of the distributions".to_owned(), 1),
        ]
        .into(),
        ..Summary::default()
    };
    assert_eq!(summary, expected);
    assert_eq!(entries.len(), 13);
}

#[test]
fn an_archive_says_what_its_records_say() {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for name in ["DEBIAN-CVE-2023-5363.json", "DSA-5532-1.json"] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(&fs::read(data().join(name)).unwrap()).unwrap();
    }
    let bytes = archive.finish().unwrap().into_inner();
    let (entries, summary) = one("all.zip", &bytes).unwrap();
    assert_eq!((summary.records, summary.statements, entries.len()), (2, 3, 3));

    let said = refusal("all.zip", &bytes[..bytes.len() - 30]);
    assert!(said.contains("all.zip: "), "{said}");
    let mut broken = bytes.clone();
    broken[60] ^= 0xff;
    let said = refusal("all.zip", &broken);
    assert!(said.contains("DEBIAN-CVE-2023-5363.json: "), "{said}");

    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [("good.json", OSV), ("bad.json", r#"{"id": "X-1"}"#)] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content.as_bytes()).unwrap();
    }
    let said = refusal("all.zip", archive.finish().unwrap().into_inner());
    assert!(said.contains("all.zip: bad.json: missing field `modified`"), "{said}");
}

#[test]
fn a_debian_record_is_about_the_source_package_of_a_release() {
    let found = statements("x.json", OSV);
    assert_eq!(found.len(), 2);
    let first = &found[0];
    assert_eq!((first.platform.as_str(), first.package.as_str(), first.names), ("debian:12", "openssl", Names::Source));
    assert_eq!(first.cves, ["CVE-2023-5363"]);
    assert_eq!(first.severity, Severity::Unknown);
    assert_eq!(first.affected.spans[0].until, Until::Fixed("3.0.11-1~deb12u2".into()));
    assert!(first.affected.versions.is_empty(), "the range has them all");
    assert_eq!(found[1].platform.as_str(), "debian:13");
}

#[test]
fn an_advisory_without_upstream_has_its_cves_in_related() {
    let found = statements("x.json", include_str!("data/DSA-5532-1.json"));
    assert_eq!(
        (found[0].advisory.as_str(), found[0].cves.as_slice()),
        ("DSA-5532-1", &["CVE-2023-5363".to_owned()][..])
    );
}

#[test]
fn words_of_severity_are_the_vendors() {
    for (from, to, expected) in [
        ("\"not yet assigned\"", "\"high\"", Severity::High),
        ("\"not yet assigned\"", "\"unimportant\"", Severity::Low),
        (
            "\"details\"",
            "\"severity\": [{\"type\": \"Ubuntu\", \"score\": \"critical\"}], \"details\"",
            Severity::Critical,
        ),
        (
            "\"details\"",
            "\"severity\": [{\"type\": \"CVSS_V3\", \"score\": \"CVSS:3.1/AV:N\"}], \"details\"",
            Severity::Unknown,
        ),
    ] {
        assert_eq!(statements("x.json", &OSV.replacen(from, to, 1))[0].severity, expected, "{to}");
    }
}

#[test]
fn what_is_no_osv_record_is_refused_with_its_id() {
    for (from, to, expected) in [
        (
            "\"schema_version\": \"1.7.3\"",
            "\"schema_version\": \"2.0.0\"",
            "record DEBIAN-CVE-2023-5363: schema_version: 2.0.0",
        ),
        ("{\"introduced\": \"0\"}, ", "", "affected[0]: ranges[0].events: none is an introduction"),
        ("{\"introduced\": \"0\"}", "{\"introduced\": \"0\", \"fixed\": \"1\"}", "each must have one of"),
        ("\"type\": \"ECOSYSTEM\"", "\"type\": \"OTHER\"", "ranges[0].type: OTHER"),
        ("\"name\": \"openssl\"", "\"name\": \"\"", "package.name: `` is empty"),
        ("\"name\": \"openssl\"", "\"name\": \"a\\u0000b\"", "control characters"),
        ("2025-11-19T02:02:11.110533Z", "yesterday", "at line 5 column 25"),
        ("\"id\": \"DEBIAN-CVE-2023-5363\"", "\"id\": \"\"", "id: `` is empty"),
        (
            "\"id\": \"DEBIAN-CVE-2023-5363\",",
            "",
            "is none of OSV (id, modified), CSAF (document) and KEV (catalogVersion)",
        ),
        ("]\n}", "]\n", "EOF"),
    ] {
        let text = OSV.replacen(from, to, 1);
        assert_ne!(text, OSV, "{from}");
        let said = refusal("x.json", &text);
        assert!(said.contains(expected) && said.contains("x.json: "), "{to}: {said}");
    }
    let said = refusal("x.json", "[".repeat(100_000));
    assert!(said.contains("x.json: "), "{said}");
}

#[test]
fn what_cannot_be_told_is_left_out_and_counted() {
    let (entries, summary) = one("x.json", OSV.replacen("Debian:12", "Debian:sid", 1).as_bytes()).unwrap();
    assert_eq!((entries.len(), summary.left_out.get("Debian:sid")), (1, Some(&1)));
    let (entries, summary) = one("x.json", OSV.replace("3.0.12-1", "<end-of-life>").as_bytes()).unwrap();
    assert_eq!((entries.len(), summary.unreadable), (1, 1));
    let withdrawn = OSV.replacen("\"details\"", "\"withdrawn\": \"2025-11-19T02:02:11Z\", \"details\"", 1);
    let (entries, summary) = one("x.json", withdrawn.as_bytes()).unwrap();
    assert_eq!((entries.len(), summary.records, summary.withdrawn), (0, 1, 1));
}

#[test]
fn a_csaf_document_is_about_packages_of_distributions() {
    let found = statements("x.json", CSAF);
    let mut told: Vec<_> = found
        .iter()
        .map(|it| {
            (it.platform.as_str(), it.package.as_str(), it.names, it.arches.clone(), it.affected.spans[0].until.clone())
        })
        .collect();
    told.sort_by(|a, b| a.1.cmp(b.1));
    let x86 = vec!["x86_64".to_owned()];
    assert_eq!(
        told,
        [
            ("rhel:9", "mailman", Names::Source, vec![], Until::Open),
            ("rhel:9", "other", Names::Binary, x86.clone(), Until::Fixed("1:2.0-1.el9".into())),
            ("rhel:9", "pam", Names::Binary, x86, Until::Fixed("1.5.1-21.el9_5".into())),
        ]
    );
    assert!(found.iter().all(|it| it.advisory == "RHSA-2024:9941" && it.severity == Severity::Medium));
    assert!(found.iter().all(|it| it.cves == ["CVE-2024-10041"]));
}

#[test]
fn what_is_no_csaf_document_is_refused_with_its_id() {
    for (from, to, expected) in [
        ("\"csaf_version\": \"2.0\"", "\"csaf_version\": \"2.1\"", "document RHSA-2024:9941: csaf_version: 2.1"),
        ("\"status\": \"final\"", "\"status\": \"draft\"", "a draft is not to be used"),
        ("\"cve\": \"CVE-2024-10041\"", "\"cve\": \"CVE-1\"", "vulnerabilities[0].cve: `CVE-1` is no CVE"),
        (
            "\"BaseOS-9.2.0.Z.EUS:pam\",\n          \"BaseOS",
            "\"nothing\",\n          \"BaseOS",
            "product_status.fixed: nothing is no product",
        ),
        (
            "\"relates_to_product_reference\": \"BaseOS-9.2.0.Z.EUS\"",
            "\"relates_to_product_reference\": \"x\"",
            "refers to x, which is not there",
        ),
        (
            "\"product_id\": \"mailman\"",
            "\"product_id\": \"BaseOS-9.2.0.Z.EUS\"",
            "product_id BaseOS-9.2.0.Z.EUS is there twice",
        ),
        ("pkg:rpm/redhat/mailman?arch=src", "mailman", "purl mailman: "),
    ] {
        let text = CSAF.replacen(from, to, 1);
        assert_ne!(text, CSAF, "{from}");
        let said = refusal("x.json", &text);
        assert!(said.contains(expected), "{to}: {said}");
    }
}

#[test]
fn a_file_of_no_format_is_refused() {
    assert!(refusal("README.txt", "x").contains("README.txt: is none of .json"));
    assert!(refusal("x.csv", "a,b\n1,2\n").contains("line 1: has no column cveID"));
    assert!(refusal("x.csv.gz", "a,b\n1,2\n").contains("x.csv.gz: "));
    assert!(refusal("x.json", "{}").contains("is none of OSV"));
    assert!(refusal(".hidden", "x").contains("has no files"), "names with a dot are not looked at");
}

#[test]
fn a_packed_list_is_read_and_a_torn_one_is_refused() {
    let text = fs::read(data().join("epss_scores-2025-03-17.csv")).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&text).unwrap();
    let packed = encoder.finish().unwrap();
    assert_eq!(one("epss.csv.gz", &packed).unwrap(), {
        let (entries, summary) = one("epss.csv", &text).unwrap();
        assert_eq!(summary.likelihoods, 3);
        (entries, summary)
    });
    assert!(refusal("epss.csv.gz", &packed[..packed.len() - 9]).contains("epss.csv.gz: line"));
}

#[test]
fn a_directory_has_another_digest_when_a_file_changes() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.json");
    fs::write(&path, "1").unwrap();
    let (before, stamped) = (digest(place.path()).unwrap(), stamp(place.path()).unwrap());
    assert_eq!(digest(place.path()).unwrap(), before);
    fs::write(&path, "22").unwrap();
    assert_ne!(digest(place.path()).unwrap(), before);
    assert_ne!(stamp(place.path()).unwrap(), stamped);
    fs::write(&path, "1").unwrap();
    assert_eq!(digest(place.path()).unwrap(), before);
    fs::rename(&path, place.path().join("b.json")).unwrap();
    assert_ne!(digest(place.path()).unwrap(), before, "the name counts");
}

fn openssl<'a>(version: &'a str, source_version: Option<&'a str>) -> Installed<'a> {
    Installed { name: "libssl3", arch: "amd64", version, source: "openssl", source_version }
}

#[test]
fn a_package_is_open_to_what_is_fixed_later() {
    let mut known = statements("x.json", OSV);
    known.extend(statements("x.json", include_str!("data/DSA-5532-1.json")));
    known.retain(|it| it.platform.as_str() == "debian:12");
    let old = assess(&known, &openssl("3.0.9-1", Some("3.0.9-1")));
    let open = &old.open["CVE-2023-5363"];
    assert_eq!(open.advisories, ["DEBIAN-CVE-2023-5363", "DSA-5532-1"]);
    assert_eq!(open.fixed_in, Some("3.0.11-1~deb12u2"));
    let new = assess(&known, &openssl("3.0.11-1~deb12u2", Some("3.0.11-1~deb12u2")));
    assert!(new.open.is_empty() && new.unknown.is_empty());
}

#[test]
fn without_the_sources_version_nothing_is_said() {
    let known = statements("x.json", OSV);
    let found = assess(&known[..1], &openssl("3.0.9-1", None));
    assert!(found.open.is_empty() && found.unknown.contains("CVE-2023-5363"));
    let found = assess(&known[..1], &openssl("3.0.9-1", Some("3.0 9")));
    assert!(found.open.is_empty() && found.unknown.contains("CVE-2023-5363"), "a version that is none");
    let other = Installed { source: "other", ..openssl("1", Some("1")) };
    assert_eq!(known[0].of(&other), None);
}

#[test]
fn an_update_fixes_what_is_open_before_it_and_not_after() {
    let known = &statements("x.json", OSV)[..1];
    let at = |version| openssl(version, Some(version));
    let found = fixes(known, &at("3.0.9-1"), &at("3.0.11-1~deb12u2"));
    assert_eq!(found.fixed.into_iter().collect::<Vec<_>>(), ["CVE-2023-5363"]);
    assert!(fixes(known, &at("3.0.9-1"), &at("3.0.11-1~deb12u1")).fixed.is_empty());
    assert!(fixes(known, &at("3.0.11-1~deb12u2"), &at("3.0.12-1")).fixed.is_empty());
    let unknown = fixes(known, &openssl("3.0.9-1", None), &at("3.0.12-1"));
    assert!(unknown.fixed.is_empty() && unknown.unknown.contains("CVE-2023-5363"));
}

#[test]
fn an_rpm_is_known_by_its_own_name_and_architecture() {
    let known = statements("x.json", CSAF);
    let pam = known.iter().find(|it| it.package == "pam").unwrap();
    let at = |version, arch| Installed { name: "pam", arch, version, source: "pam", source_version: None };
    assert_eq!(pam.of(&at("1.5.1-20.el9", "x86_64")), Some(Answer::Affected { fixed_in: Some("1.5.1-21.el9_5") }));
    assert_eq!(pam.of(&at("1.5.1-21.el9_5", "x86_64")), Some(Answer::NotAffected));
    assert_eq!(pam.of(&at("1.5.1-20.el9", "s390x")), None);
    let mailman = known.iter().find(|it| it.package == "mailman").unwrap();
    let mut installed = Installed { name: "mailman", source: "mailman", ..at("1-1", "x86_64") };
    assert_eq!(mailman.of(&installed), Some(Answer::Unknown));
    installed.source_version = Some("1-1");
    assert_eq!(mailman.of(&installed), Some(Answer::Affected { fixed_in: None }));
}

#[test]
fn a_signed_kernel_is_the_kernel() {
    let known = statements("x.json", &OSV.replace("\"openssl\"", "\"linux\"").replace("3.0.11-1~deb12u2", "6.1.99-1"));
    let kernel = Installed {
        name: "linux-image-6.1.0-18-amd64",
        arch: "amd64",
        version: "6.1.76-1",
        source: "linux-signed-amd64",
        source_version: Some("6.1.76+1"),
    };
    assert_eq!(known[0].of(&kernel), Some(Answer::Affected { fixed_in: Some("6.1.99-1") }));
}
