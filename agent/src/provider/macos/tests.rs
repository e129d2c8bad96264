//! On output in the shape that users of macOS have published: see `agent/tests/data/macos`.

use patchwarden_protocol::report::{Classification, ProblemCode, Severity, Tristate, Update};

use super::updates::ABSENT;
use super::*;

const LIST: &str = include_str!("../../../tests/data/macos/list-26.txt");
const PROFILE: &str = include_str!("../../../tests/data/macos/profile.json");
const INTEL: &str = include_str!("../../../tests/data/macos/profile-intel.json");

fn package(name: &str, installed: &str, candidate: &str) -> PackageChange {
    PackageChange { name: name.into(), arch: "arm64".into(), installed: installed.into(), candidate: candidate.into() }
}

fn listing(list: &str) -> Listing {
    listing::parse(list).unwrap()
}

fn inventory(list: &str, profile: &str) -> Inventory {
    updates::inventory("arm64", &listing(list), &profile::parse(profile).unwrap(), &Downloaded::new())
}

fn update<'a>(inventory: &'a Inventory, title: &str) -> &'a Update {
    inventory.updates.iter().find(|update| update.title.starts_with(title)).unwrap()
}

fn of_lines(lines: &[&str]) -> String {
    format!("Software Update found the following new software:\n{}\n", lines.join("\n"))
}

#[test]
fn an_update_is_a_title_in_a_version_and_only_what_is_recommended_is_missing() {
    let found = inventory(LIST, PROFILE);
    let titles: Vec<&str> = found.updates.iter().map(|update| update.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "Command Line Tools for Xcode 27.0",
            "Safari",
            "macOS 27 [only by a volume owner's password or MDM]",
            "macOS Tahoe 26.7.1 [only by a volume owner's password or MDM]",
            "macOS Tahoe 26.7.1 (a) [only by a volume owner's password or MDM]",
        ]
    );
    let safari = update(&found, "Safari");
    assert_eq!(safari.id, "pkg:generic/apple/Safari@27.0");
    assert_eq!(safari.packages, [package("Safari", "26.6", "27.0")], "what was installed last counts");
    assert_eq!((safari.size_bytes, safari.origin.as_str()), (190_512 * 1024, "Apple Software Update"));
    assert_eq!((safari.classification, safari.severity), (Classification::Unclassified, Severity::Unknown));
    assert_eq!((safari.requires_restart, safari.held), (Tristate::No, false));
    let tools = update(&found, "Command Line Tools");
    assert_eq!(tools.packages, [package("Command_Line_Tools_for_Xcode_27.0", ABSENT, "27.0")]);
    let response = update(&found, "macOS Tahoe 26.7.1 (a)");
    assert_eq!(response.packages, [package("macOS_Tahoe_26.7.1_+28a+29", ABSENT, "26.7.1_+28a+29")]);
    assert_eq!((found.problems.len(), found.restart.required), (0, Tristate::Unknown));
}

#[test]
fn what_ends_with_a_restart_is_held_and_says_by_what_it_can_be_installed() {
    for (profile, why) in [(PROFILE, "by a volume owner's password or MDM"), (INTEL, "restarts the Mac by itself")] {
        let found = inventory(LIST, profile);
        let held: Vec<&Update> = found.updates.iter().filter(|update| update.held).collect();
        assert_eq!(held.len(), 3);
        assert!(held.iter().all(|update| update.title.contains(why)), "{held:?}");
        assert!(held.iter().all(|update| update.requires_restart == Tristate::Yes));
        // Neither is it installed by an order that was made before that was known.
        let profile = profile::parse(profile).unwrap();
        let order = [package("macOS_27", ABSENT, "27")];
        let error = updates::simulation("arm64", &order, &listing(LIST), &profile).unwrap_err();
        assert_eq!(error.reason, ResultReason::PackageManagerFailed);
        assert!(error.message.contains(why), "{error}");
    }
}

#[test]
fn what_cannot_be_told_apart_or_is_there_already_or_is_delayed_is_held() {
    let line = |label: &str, title: &str, version: &str, more: &str| {
        format!("* Label: {label}\n\tTitle: {title}, Version: {version}, Size: 1KiB, Recommended: YES, {more}")
    };
    let profile = r#"{"SPInstallHistoryDataType": [{"_name": "C", "install_version": "3.0"}, {"_name": "D", "install_version": "3.0"}]}"#;
    let list = of_lines(&[
        &line("A-1", "A", "1", ""),
        &line("A2-1", "A", "1", ""),
        &line("B-1", "B", "1", "Deferred: YES, "),
        &line("C-3", "C", "3.0", ""),
        &line("D-2", "D", "2.0", ""),
        &line("E-9", "E", "9.9", ""),
        &line("E-10", "E", "9.10", ""),
        &line("F-1", "F", "1", "Action: none, "),
        &line("F-1", "F", "1", ""),
    ]);
    let found = inventory(&list, profile);
    let told: Vec<(&str, bool)> = found.updates.iter().map(|update| (update.title.as_str(), update.held)).collect();
    assert_eq!(
        told,
        [
            ("A [offered twice under the same name: by a person]", true),
            ("B [delayed by a profile]", true),
            ("C [offered although it is installed: by a person]", true),
            ("D [offered although it is installed: by a person]", true),
            ("E", false),
            ("F", false),
        ]
    );
    assert_eq!(update(&found, "E").packages, [package("E", ABSENT, "9.10")], "the latest version of a title");
}

#[test]
fn security_is_what_apple_calls_so() {
    let list = include_str!("../../../tests/data/macos/list-manual.txt");
    let found = inventory(list, PROFILE);
    assert_eq!(update(&found, "StuffIt Expander Security Update").classification, Classification::Security);
    assert_eq!(update(&found, "iPhoto").classification, Classification::Unclassified);
}

#[test]
fn entries_that_cannot_be_read_are_a_problem_of_the_report() {
    let found = inventory(&LIST.replace("Version: 27.0,", ""), PROFILE);
    assert_eq!(found.updates.len(), 3);
    assert_eq!(found.problems.len(), 1);
    assert_eq!(found.problems[0].code, ProblemCode::RepositoryUnavailable);
    assert!(found.problems[0].message.contains("lists 2 entries that cannot be read"), "{:?}", found.problems);
}

#[test]
fn the_software_list_has_each_title_once_with_system_firmware_and_model() {
    let found = inventory(LIST, PROFILE);
    let told: Vec<String> =
        found.packages.iter().map(|p| format!("{} {} {} {}", p.name, p.arch, p.version, p.source)).collect();
    assert_eq!(
        told,
        [
            "Command_Line_Tools_for_Xcode arm64 16.4 apple",
            "Example_Agent arm64 8.2.1 other",
            "Safari arm64 26.6 apple",
            "XProtectPlistConfigData arm64 5325 apple",
            "firmware arm64 18000.120.36 firmware: Apple",
            "macOS_26.7 arm64 26.7 apple",
            "model arm64 Mac16,1 model: Apple",
            "system arm64 macOS 26.7 (25G227) system",
        ]
    );
}

#[test]
fn an_order_is_for_exactly_what_is_offered() {
    let (listing, profile) = (listing(LIST), profile::parse(PROFILE).unwrap());
    let safari = package("Safari", "26.6", "27.0");
    let done = updates::simulation("arm64", std::slice::from_ref(&safari), &listing, &profile).unwrap();
    assert_eq!((done.changes.len(), done.changes[0].old.as_deref()), (1, Some("26.6")));
    for gone in [package("Safari", "26.6", "26.9"), package("Pages", ABSENT, "1")] {
        let error = updates::simulation("arm64", std::slice::from_ref(&gone), &listing, &profile).unwrap_err();
        assert_eq!(error.reason, ResultReason::Superseded, "{error}");
        assert_eq!(updates::artifacts("arm64", &[gone], &listing), []);
    }
    let found = inventory(LIST, PROFILE);
    let files = updates::artifacts("arm64", std::slice::from_ref(&safari), &listing);
    let digest = super::super::artifacts_digest(files.iter().map(Artifact::line));
    assert_eq!(digest, update(&found, "Safari").artifacts_digest, "the order's digest is the offer's");
}

#[test]
fn an_update_is_installed_by_its_label_as_one_word() {
    let macos = Macos { arch: "arm64".into(), downloaded: Rc::default() };
    let tools = package("Command_Line_Tools_for_Xcode_27.0", ABSENT, "27.0");
    let files = updates::artifacts("arm64", std::slice::from_ref(&tools), &listing(LIST));
    let command = macos.install_command(Direction::Forward, &[tools], &files, Path::new("/x"));
    let expected = words_of([SOFTWARE_UPDATE, "--install", "Command Line Tools for Xcode 27.0-27.0"]);
    assert_eq!(command.words, expected);
}

#[test]
fn what_is_installed_is_what_the_history_has_last() {
    let profile = profile::parse(PROFILE).unwrap();
    let asked = [package("Safari", "26.5", "26.6"), package("Command_Line_Tools_for_Xcode_27.0", ABSENT, "27.0")];
    let rows = updates::rows("arm64", &asked, &profile);
    let versions: Vec<&str> = rows.iter().map(|row| row.version.as_str()).collect();
    assert_eq!(versions, ["26.6", ABSENT]);
}

#[test]
fn names_are_words_of_an_order_and_no_two_are_the_same() {
    let titles = ["a b", "a_b", "a+b", "a  b", "A b", "-a", "x--a", "_a", "é", "a/b", "a%2Fb", "=", "*"];
    let names: std::collections::BTreeSet<String> = titles.iter().map(|title| updates::encoded(title)).collect();
    assert_eq!(names.len(), titles.len() - 1, "all but that which has another's beginning: {names:?}");
    for name in names {
        assert!(name.starts_with(|first: char| first.is_ascii_alphanumeric()), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "+-._".contains(c)), "{name}");
    }
}

#[test]
fn what_was_downloaded_is_told() {
    let downloaded: Downloaded = [("Safari".to_owned(), "27.0".to_owned())].into();
    let profile = profile::parse(PROFILE).unwrap();
    let found = updates::inventory("arm64", &listing(LIST), &profile, &downloaded);
    let told: Vec<&str> =
        found.updates.iter().filter(|update| update.downloaded).map(|update| update.title.as_str()).collect();
    assert_eq!(told, ["Safari"]);
}

#[test]
fn a_command_that_fails_or_says_nothing_is_no_empty_list() {
    let output = |code: Option<i32>, stdout: &str, stderr: &str| Output {
        code,
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
    };
    let none = include_str!("../../../tests/data/macos/list-none.txt");
    assert_eq!(listing_of(&output(Some(0), "Software Update Tool\n", none)), Ok(Listing::default()));
    for (code, stdout, stderr, reason, message) in [
        (Some(0), "Software Update Tool\n", "", ResultReason::PackageManagerFailed, "prints no list"),
        (Some(1), LIST, "", ResultReason::PackageManagerFailed, "ended with code 1"),
        (None, LIST, "", ResultReason::PackageManagerFailed, "was ended before"),
        (
            Some(0),
            "",
            "Can't connect to the Apple Software Update server\n",
            ResultReason::DownloadFailed,
            "Can't connect",
        ),
    ] {
        let failure = listing_of(&output(code, stdout, stderr)).unwrap_err();
        assert_eq!((failure.reason, failure.is_general), (reason, true), "{failure}");
        assert!(failure.message.contains(message), "{failure}");
    }
    let failure = profile_of(&output(Some(1), PROFILE, "no such type")).unwrap_err();
    assert!(failure.message.contains("code Some(1): no such type"), "{failure}");
    assert!(profile_of(&output(Some(0), PROFILE, "warning")).is_ok());
}

/// Answers, each a list and what is installed after a zero byte.
fn sample(number: usize) -> Vec<u8> {
    let list = [
        LIST,
        include_str!("../../../tests/data/macos/list-10.15.txt"),
        include_str!("../../../tests/data/macos/list-10.14.txt"),
        include_str!("../../../tests/data/macos/list-manual.txt"),
    ][number % 4];
    format!("{list}\0{PROFILE}").into_bytes()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]
    #[test]
    fn a_spoiled_answer_does_no_harm(
        number in 0_usize..4,
        changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0_u8..4, proptest::prelude::any::<u8>()), 1..20),
    ) {
        let mut bytes = sample(number);
        for (place, how, byte) in changes {
            let at = place.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => {
                    bytes.remove(at);
                }
                // A piece of it once more, elsewhere.
                _ => {
                    let piece = bytes[at..bytes.len().min(at + usize::from(byte))].to_vec();
                    bytes.splice(at / 2..at / 2, piece);
                }
            }
        }
        fuzz(&String::from_utf8_lossy(&bytes));
    }
}
