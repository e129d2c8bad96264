//! On answers in the shape that Microsoft documents: see `agent/tests/data/windows`.

use patchwarden_protocol::report::{Classification, Package, Severity, Tristate, Update};
use patchwarden_protocol::surroundings::UpstreamKind;

use super::updates::ABSENT;
use super::*;
use crate::provider::artifacts_digest;

const INVENTORY: &str = include_str!("../../../tests/data/windows/inventory.json");
const WSUS: &str = include_str!("../../../tests/data/windows/inventory-wsus.json");
const ODD: &str = include_str!("../../../tests/data/windows/inventory-odd.json");
const INSTALL: &str = include_str!("../../../tests/data/windows/install.txt");

fn windows() -> Windows {
    Windows { arch: "amd64".into() }
}

fn inventory(text: &str) -> Inventory {
    updates::inventory("amd64", answer::read(text).unwrap())
}

fn id(number: u32) -> String {
    format!("7a2b8c1d-0000-4000-8000-{number:012}")
}

fn package(number: u32, revision: u32) -> PackageChange {
    PackageChange { name: id(number), arch: "amd64".into(), installed: ABSENT.into(), candidate: revision.to_string() }
}

fn update<'a>(inventory: &'a Inventory, id: &str) -> &'a Update {
    inventory.updates.iter().find(|update| update.id == id).unwrap()
}

#[test]
fn an_update_is_an_article_with_exact_identities_and_what_microsoft_says_of_it() {
    let found = inventory(INVENTORY);
    let ids: Vec<&str> = found.updates.iter().map(|update| update.id.as_str()).collect();
    assert_eq!(ids, ["KB5031364", "KB5031605"], "neither definitions nor previews are missing");
    let cumulative = update(&found, "KB5031364");
    assert_eq!(cumulative.packages, [package(1, 200)]);
    assert_eq!((cumulative.classification, cumulative.severity), (Classification::Security, Severity::Critical));
    assert_eq!(cumulative.cves, ["CVE-2026-36434", "CVE-2026-41773"]);
    assert_eq!(cumulative.published, Some("2026-11-10T18:00:00Z".parse().unwrap()));
    assert_eq!((cumulative.size_bytes, cumulative.origin.as_str()), (421_000_000, "Microsoft Update"));
    assert_eq!((cumulative.requires_restart, cumulative.interrupts_service), (Tristate::Unknown, Tristate::Unknown));
    let expected = artifacts_digest([(id(1).as_str(), "amd64", "200", "")]);
    assert_eq!(cumulative.artifacts_digest, expected, "the digest is that of identities");
    let net = update(&found, "KB5031605");
    assert_eq!(
        (net.severity, net.requires_restart, net.interrupts_service),
        (Severity::High, Tristate::No, Tristate::No)
    );
    assert_eq!((found.problems, found.restart.required), (vec![], Tristate::No));
}

#[test]
fn several_identities_of_one_article_are_one_update() {
    let mut found: answer::Inventory = answer::read(INVENTORY).unwrap();
    let mut twin = found.updates[0].clone();
    (twin.id, twin.revision, twin.severity, twin.reboot_behavior) = (id(7).to_uppercase(), 3, "Low".into(), 1);
    twin.cves = vec!["CVE-2026-00007".into(), "CVE-2026-36434".into(), "no name".into()];
    found.updates.push(twin);
    let found = updates::inventory("amd64", found);
    let both = update(&found, "KB5031364");
    assert_eq!(both.packages, [package(1, 200), package(7, 3)], "ids are in small letters");
    assert_eq!((both.severity, both.requires_restart), (Severity::Critical, Tristate::Yes));
    assert_eq!(both.cves, ["CVE-2026-00007", "CVE-2026-36434", "CVE-2026-41773"]);
}

#[test]
fn installed_things_are_listed_with_where_they_are_from() {
    let found = inventory(INVENTORY);
    let of = |name: &str| -> Vec<&Package> { found.packages.iter().filter(|package| package.name == name).collect() };
    let shown = |name: &str| {
        let all: Vec<String> = of(name).iter().map(|p| format!("{}|{}|{}", p.arch, p.version, p.source)).collect();
        all.join(" ")
    };
    assert_eq!(shown(&id(9)), "amd64|203|KB5030216");
    assert_eq!(shown("7-Zip 24.08 (x64)"), "amd64|24.08|Igor Pavlov");
    let redistributable = "Microsoft Visual C++ 2015-2022 Redistributable (x86) - 14.38.33135";
    assert_eq!(shown(redistributable), "x86|14.38.33135.0|Microsoft Corporation");
    assert_eq!(shown("vmxnet3 Ethernet Adapter"), "amd64|1.9.17.0|driver: VMware, Inc.");
    assert_eq!(shown("BIOS"), "amd64|VMW71.00V.24006586.B64.2404042321|firmware: VMware, Inc.");
    assert_eq!(shown("VMware7,1"), "amd64||model: VMware, Inc.");
    assert_eq!((shown("KB5008882"), shown("File 1")), ("amd64||hotfix".into(), String::new()));
    assert!(found.packages.is_sorted());
}

#[test]
fn a_server_that_is_away_is_a_problem_and_a_wsus_is_named() {
    let found = inventory(WSUS);
    let wsus = found.upstream.as_ref().map(|upstream| (upstream.kind, upstream.name.as_str()));
    assert_eq!(wsus, Some((UpstreamKind::Wsus, "http://wsus.example:8530")));
    let asks = update(&found, "KB5040000");
    assert!(asks.held, "what may ask a person is not forced");
    assert_eq!(
        (asks.origin.as_str(), asks.classification),
        ("WSUS:http://wsus.example:8530", Classification::Unclassified)
    );
    assert_eq!(found.updates.len(), 1, "what waits for a restart is not offered again");
    assert!(found.packages.iter().any(|package| package.name == id(1) && package.version == "200"));
    assert_eq!(found.restart.required, Tristate::Yes);
    assert_eq!(found.restart.reasons.len(), 4);
    let [problem] = found.problems.as_slice() else { panic!("{:?}", found.problems) };
    assert_eq!(problem.code, ProblemCode::RepositoryUnavailable);
    assert!(problem.message.contains("0x8024402c: the name of the server cannot be resolved"), "{}", problem.message);
}

#[test]
fn marks_of_a_restart_that_mean_little_do_not_ask_for_one() {
    let required = |system: bool, servicing: bool, renames: bool| {
        let mut found: answer::Inventory = answer::read(INVENTORY).unwrap();
        found.reboot = Some(answer::Reboot { system, update_key: false, servicing, file_renames: renames });
        updates::inventory("amd64", found).restart
    };
    assert_eq!(required(true, false, false).required, Tristate::Yes);
    assert_eq!(required(false, true, true).required, Tristate::Unknown);
    let left = required(false, false, true);
    assert_eq!((left.required, left.reasons), (Tristate::No, vec![]));
}

#[test]
fn what_powershell_makes_of_short_lists_and_what_is_new_do_not_hide_the_rest() {
    let found = inventory(ODD);
    let odd = update(&found, &id(6));
    assert_eq!((odd.title.as_str(), odd.cves.as_slice()), (id(6).as_str(), &["CVE-2026-00001".to_owned()][..]));
    assert_eq!((odd.severity, odd.classification), (Severity::Unknown, Classification::Unclassified));
    assert_eq!((odd.origin.as_str(), odd.published), ("Windows Update", None));
    assert_eq!(found.packages.len(), 1, "{:?}", found.packages);
    assert_eq!(found.restart.required, Tristate::Unknown, "not said is not no");
    let [problem] = found.problems.as_slice() else { panic!("{:?}", found.problems) };
    assert!(problem.message.contains("ended with code 3: 0x8024001e"), "{}", problem.message);
}

#[test]
fn what_is_no_answer_is_an_error_and_what_is_no_identity_is_left_out() {
    for nothing in ["", "words\n", "{", "[1]", "{\"updates\": 7}"] {
        assert!(answer::read::<answer::Inventory>(nothing).is_err(), "{nothing}");
    }
    let bad = INVENTORY.replace(&id(1), "../../calc").replace(&id(2), "7a2b8c1d-0000-4000-8000-00000000000g");
    assert_eq!(inventory(&bad).updates.len(), 0);
    let long = INVENTORY.replace("7-Zip 24.08 (x64)", &"x".repeat(100_000));
    assert!(inventory(&long).packages.iter().all(|package| package.name.len() <= 128));
}

#[test]
fn only_what_is_offered_in_the_ordered_revision_is_simulated() {
    let mut state = State { updates: answer::read::<answer::Inventory>(INVENTORY).unwrap().updates, source: None };
    let simulated = |state: &State, packages: &[PackageChange]| {
        let simulation = updates::simulation("amd64", packages, state);
        simulation
            .map(|found| found.changes.into_iter().map(|c| (c.name, c.new)).collect::<Vec<_>>())
            .map_err(|f| f.reason)
    };
    assert_eq!(simulated(&state, &[package(1, 200)]), Ok(vec![(id(1), "200".into())]));
    assert_eq!(simulated(&state, &[package(1, 200), package(2, 200)]), Err(ResultReason::Superseded));
    assert_eq!(simulated(&state, &[package(8, 200)]), Err(ResultReason::Superseded));
    state.updates[0].asks_user = true;
    assert_eq!(simulated(&state, &[package(1, 200)]), Err(ResultReason::PackageManagerFailed));
    state.updates[0].is_hidden = true;
    assert_eq!(simulated(&state, &[package(1, 200)]), Err(ResultReason::Superseded));
    state.updates[0].is_installed = true;
    assert_eq!(simulated(&state, &[package(1, 200)]), Ok(vec![]), "it is there already");
}

#[test]
fn a_row_says_which_revision_is_there_and_what_waits_for_a_restart_is_there() {
    let mut found = answer::read::<answer::Inventory>(INVENTORY).unwrap().updates;
    let at = |found: &[Found], package: &PackageChange| {
        updates::rows("amd64", std::slice::from_ref(package), found).first().map(|row| row.version.clone())
    };
    assert_eq!(at(&found, &package(1, 200)).as_deref(), Some(ABSENT));
    assert_eq!(at(&found, &package(8, 200)), None, "what Windows does not know has no row");
    found[0].reboot_required = true;
    assert_eq!(at(&found, &package(1, 200)).as_deref(), Some("200"));
    let newer = Found { revision: 201, reboot_required: false, ..found[0].clone() };
    found.push(newer);
    assert_eq!(at(&found, &package(1, 201)).as_deref(), Some("200"), "a new revision is offered, the old one is there");
    assert!(windows().is_later("201", "200") && windows().is_later("1000", "999") && !windows().is_later("200", "200"));
}

#[test]
fn each_update_of_an_install_has_its_own_end() {
    let explain = |package: PackageChange| windows().explain(INSTALL, Some(0), &[package]);
    let failure = explain(package(2, 201));
    assert_eq!(failure.reason, ResultReason::PackageManagerFailed);
    assert_eq!(failure.message, "install: 0x80070643: its installer failed");
    let failure = explain(package(6, 1));
    assert_eq!(
        (failure.reason, failure.message.starts_with("download: 0x8024402c")),
        (ResultReason::DownloadFailed, true)
    );
    assert_eq!(
        explain(package(1, 200)).reason,
        ResultReason::NotInstalled,
        "Windows says that it is, its database not"
    );
    assert_eq!(windows().remarks(INSTALL, &[package(1, 200)]), "a restart completes it");
    assert_eq!(windows().remarks(INSTALL, &[package(2, 201)]), "");
    let failed = "{\"failure\":{\"hresult\":-2147024784,\"message\":\"There is not enough space on the disk.\"}}";
    assert_eq!(windows().explain(failed, Some(1), &[package(1, 200)]).reason, ResultReason::DiskFull);
    assert_eq!(windows().explain("", None, &[]).message, "powershell.exe was ended before it was done");
}

#[test]
fn codes_of_windows_have_words_and_a_reason() {
    let of = |code: u32, message: &str| {
        let failure = words::failure_of(i64::from(i32::from_ne_bytes(code.to_ne_bytes())), message);
        (failure.reason, failure.message)
    };
    assert_eq!(of(0x8024_0016, "").0, ResultReason::Locked);
    assert_eq!(of(0x8024_4018, "Forbidden").0, ResultReason::DownloadFailed);
    assert_eq!(of(0x8024_5000, "x \r\n y"), (ResultReason::PackageManagerFailed, "0x80245000: x y".into()));
    assert_eq!(words::of(-1, ""), "0xffffffff");
}

#[test]
fn a_script_that_came_to_nothing_is_a_general_failure() {
    let output = |code, stdout: &str| Output { code: Some(code), stdout: stdout.into(), stderr: "bad".into() };
    let failed = answered(output(1, "{\"failure\":{\"hresult\":-2145124322,\"message\":\"m\"}}\r\n")).unwrap_err();
    assert!(failed.is_general && failed.message.contains("the service of Windows Update was stopped"), "{failed}");
    assert!(answered(output(3, "")).unwrap_err().message.contains("code Some(3): bad"));
    assert_eq!(answered(output(0, "{}")), Ok("{}".into()));
}

#[tokio::test]
async fn nothing_is_taken_back() {
    let failure = windows().simulate(Direction::Back, &[package(1, 200)]).await.unwrap_err();
    assert!(failure.message.contains("takes back no update"), "{failure}");
    assert!(!windows().goes_back("x", "y"));
}
