use std::os::unix::fs::PermissionsExt as _;

use patchwarden_protocol::report::{Classification, Severity};

use super::*;
use crate::provider::Change;
use crate::scan;

fn limits(text: &str) -> Result<Limits, String> {
    let zone = || Ok(TimeZone::get("Europe/Berlin").unwrap());
    Limits::parse(Path::new("/etc/patchwarden/limits.toml"), text, zone).map_err(|error| error.to_string())
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn change(name: &str, origin: &str) -> Change {
    Change { name: name.into(), arch: "amd64".into(), old: None, new: "2".into(), origin: origin.into() }
}

fn changes(changes: &[Change]) -> Simulation {
    Simulation { changes: changes.to_vec(), ..Simulation::default() }
}

/// The message, if it is refused for the device's sake.
fn refused(result: Result<(), Failure>) -> String {
    let failure = result.unwrap_err();
    assert_eq!(failure.reason, ResultReason::LimitedByDevice);
    failure.message
}

#[test]
fn without_a_file_or_with_an_empty_one_nothing_is_limited() {
    let directory = tempfile::tempdir().unwrap();
    for none in [Limits::load(&directory.path().join(FILE)).unwrap(), limits("").unwrap()] {
        assert!(none.is_none());
        assert_eq!(none.check(Verb::Restart, at("2026-12-24T12:00:00Z")), Ok(()));
        assert_eq!(none.check_changes(&changes(&[change("bash", "")])), Ok(()));
    }
    assert!(!limits("verbs = []").unwrap().is_none());
}

#[test]
fn only_the_verbs_that_are_named_may_begin() {
    let limits = limits("verbs = ['Download', 'Install']").unwrap();
    let check = |verb| limits.check(verb, at("2026-12-24T12:00:00Z"));
    assert_eq!((check(Verb::Download), check(Verb::Install)), (Ok(()), Ok(())));
    let said = refused(check(Verb::Restart));
    assert!(said.starts_with("/etc/patchwarden/limits.toml does not allow it: verbs: Restart"), "{said}");
    refused(check(Verb::Uninstall));
}

#[test]
fn no_more_comes_along_than_the_owner_says_whatever_the_policy_does() {
    let ordered =
        PackageChange { name: "a".into(), arch: "amd64".into(), installed: "1".into(), candidate: "2".into() };
    let named = Change { old: Some("1".into()), ..change("a", "") };
    let upgrade = Change { old: Some("1".into()), ..change("x", "") };
    let removal = Simulation { changes: vec![named.clone()], removals: vec!["y".into()], ..Simulation::default() };
    let check = |text: &str, simulation: &Simulation| {
        limits(text).unwrap().check_dependencies(simulation, std::slice::from_ref(&ordered))
    };
    let upgrade = changes(&[named.clone(), upgrade]);
    let install = changes(&[named, change("n", "")]);
    for all in ["", "dependencies = 'AllowAll'"] {
        assert_eq!([&removal, &upgrade, &install].map(|it| check(all, it)), [Ok(()), Ok(()), Ok(())]);
    }
    let installs = "dependencies = 'AllowInstalls'";
    assert_eq!(check(installs, &install), Ok(()));
    assert!(refused(check(installs, &removal)).ends_with("dependencies: AllowInstalls: it would also remove y"));
    assert!(refused(check(installs, &upgrade)).ends_with("it would also change x from 1 to 2"));
    assert!(refused(check("dependencies = 'Strict'", &install)).ends_with("Strict: it would also install n 2"));
    assert!(!limits(installs).unwrap().is_none());
    assert!(limits("dependencies = 'All'").unwrap_err().contains("unknown variant `All`"));
}

#[test]
fn services_that_are_excluded_are_not_restarted() {
    let check = |text: &str, unit| limits(text).unwrap().check_service(unit);
    assert_eq!(check("", "nginx.service"), Ok(()));
    assert_eq!(check("exclude_services = ['postgresql*']", "nginx.service"), Ok(()));
    let said = refused(check("exclude_services = ['nginx', 'postgresql*']", "postgresql@15-main.service"));
    assert!(said.ends_with("exclude_services: postgresql@15-main.service"), "{said}");
    refused(check("exclude_services = ['*']", "nginx.service"));
    // As people call them, and all of a template.
    for pattern in ["nginx", "nginx.service", "ngin?"] {
        refused(check(&format!("exclude_services = ['{pattern}']"), "nginx.service"));
        assert_eq!(check(&format!("exclude_services = ['{pattern}']"), "nginx-proxy.service"), Ok(()), "{pattern}");
    }
    for pattern in ["db@", "db@.service", "db@a", "db@a.service"] {
        refused(check(&format!("exclude_services = ['{pattern}']"), "db@a.service"));
        assert_eq!(check(&format!("exclude_services = ['{pattern}']"), "db.service"), Ok(()), "{pattern}");
    }
    assert_eq!(check("exclude_services = ['db']", "db@a.service"), Ok(()));
    assert!(limits("exclude_services = ['']").unwrap_err().contains("exclude_services: a pattern must not be empty"));
}

#[test]
fn scripts_of_publishers_are_those_that_are_named() {
    let check = |text: &str, name| limits(text).unwrap().check_script(name);
    assert_eq!(check("", "drain"), Ok(()));
    assert_eq!(check("publishers_scripts = ['drain', 'web-*']", "web-check"), Ok(()));
    let said = refused(check("publishers_scripts = []", "drain"));
    assert!(said.ends_with("publishers_scripts: drain is not among those that are allowed"), "{said}");
    refused(check("publishers_scripts = ['drain']", "undrain"));
    assert!(
        limits("publishers_scripts = ['']").unwrap_err().contains("publishers_scripts: a pattern must not be empty")
    );
}

#[test]
fn a_freeze_says_on_the_machines_clock_until_when_nothing_begins() {
    let text = "[[freezes]]\nfrom = 2026-12-20\nto = 2026-12-25\n[[freezes]]\nfrom = 08:00:00\nto = 18:00:00\n";
    let limits = limits(text).unwrap();
    assert_eq!(limits.check(Verb::Install, at("2026-12-19T20:00:00Z")), Ok(()));
    let said = refused(limits.check(Verb::Download, at("2026-12-24T12:00:00Z")));
    assert!(said.ends_with("freezes: nothing begins until 2026-12-26 00:00:00 CET"), "{said}");
}

#[test]
fn an_excluded_package_is_not_touched_whatever_brings_it() {
    let limits = limits("exclude_packages = ['postgresql-*', 'linux-image-?']").unwrap();
    let touches = |simulation| limits.check_changes(&simulation);
    assert_eq!(touches(changes(&[change("bash", ""), change("postgresql", "")])), Ok(()));
    let said = refused(touches(changes(&[change("bash", ""), change("postgresql-15", "")])));
    assert!(said.ends_with("exclude_packages: postgresql-15"), "{said}");
    refused(touches(Simulation { removals: vec!["linux-image-7".into()], ..Simulation::default() }));
    refused(touches(Simulation { configures: vec!["postgresql-16".into()], ..Simulation::default() }));
}

#[test]
fn a_package_comes_from_an_origin_that_is_allowed_or_not_at_all() {
    let some = limits("origins = ['Debian:12*/stable', 'Debian-Security:*']").unwrap();
    let from = |origin| some.check_changes(&changes(&[change("bash", "Debian:12.11/stable"), change("x", origin)]));
    for good in ["Debian:12.11/stable", "Debian-Security:12/stable-security", "Other:1/x, Debian:12.11/stable"] {
        assert_eq!(from(good), Ok(()), "{good}");
    }
    for bad in ["Debian:13.1/testing", "Other:1/x", "debian:12.11/stable", "xDebian-Security:1/x"] {
        assert!(refused(from(bad)).ends_with(&format!("origins: x 2 comes from {bad}")));
    }
    assert!(refused(from("")).ends_with("origins: x 2 comes from an unknown origin"));
    let nothing = self::limits("origins = []").unwrap();
    refused(nothing.check_changes(&changes(&[change("x", "Debian:12.11/stable")])));
}

#[test]
fn files_come_through_a_proxy_that_is_allowed() {
    let some = limits("site_caches = ['http://10.*', 'http://cache:3142']").unwrap();
    for good in ["http://10.0.0.1:3142", "http://cache:3142"] {
        assert_eq!(some.check_site_cache(good), Ok(()), "{good}");
    }
    let said = refused(some.check_site_cache("http://cache:3143"));
    assert!(said.ends_with("site_caches: http://cache:3143 is not among those that are allowed"), "{said}");
    refused(limits("site_caches = []").unwrap().check_site_cache("http://cache:3142"));
    assert_eq!(limits("").unwrap().check_site_cache("http://cache:3142"), Ok(()));
}

#[test]
fn what_no_order_may_install_is_held_by_the_device() {
    let update = |package: &str, origin: &str| {
        let mut update = scan::tests::update(package, Severity::High, Classification::Security, 1);
        (update.packages[0].name, update.origin) = (package.into(), origin.into());
        update
    };
    let mut inventory = scan::tests::inventory(vec![
        update("bash", "Debian:12/stable"),
        update("nginx", "Debian:12/stable"),
        update("x", "Own:1/x"),
    ]);
    limits("exclude_packages = ['nginx']\norigins = ['Debian:*']").unwrap().mark(&mut inventory, |_| false);
    let held: Vec<bool> = inventory.updates.iter().map(|update| update.held).collect();
    assert_eq!(held, [false, true, true]);
    Limits::none(Path::new("x")).mark(&mut inventory, |_| false);
    assert!(inventory.updates[1].held, "what the package manager holds stays held");
}

#[test]
fn errors_name_the_file_and_the_field() {
    for (text, words) in [
        ("verb = ['Install']", "unknown field `verb`"),
        ("verbs = ['install']", "unknown variant `install`"),
        ("verbs = 'Install'", "verbs"),
        ("exclude_packages = ['']", "exclude_packages: a pattern must not be empty"),
        ("origins = [' ']", "origins: a pattern must not be empty"),
        ("[[freezes]]\nfrom = 08:00:00\nto = 2026-12-24", "freezes: number 1: from and to"),
        ("[freezes]\nfrom = 08:00:00", "freezes"),
        ("verbs = [", "line 1"),
    ] {
        let error = limits(text).unwrap_err();
        assert!(error.contains("/etc/patchwarden/limits.toml") && error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_file_that_others_could_have_written_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    std::fs::write(&path, "verbs = ['Install']\n").unwrap();
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let load = || Limits::load(&path).map_err(|error| error.to_string());
    set(directory.path(), 0o755);
    for (mode, good) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false), (0o666, false)] {
        set(&path, mode);
        assert_eq!(load().is_ok(), good, "{mode:o}");
    }
    assert!(load().unwrap_err().contains("limits.toml: others than root can write it (mode 0666)"));
    set(&path, 0o644);
    set(directory.path(), 0o775);
    let error = load().unwrap_err();
    assert!(error.starts_with(&format!("{}: others", directory.path().display())), "{error}");
    set(directory.path(), 0o755);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(load().is_err(), "a directory in its place");
    std::fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(load().is_err(), "a link to itself");
}

#[test]
fn a_link_counts_where_what_it_leads_to_is_roots_and_there() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, target) = (directory.path().join(FILE), elsewhere.path().join("shared.toml"));
    std::os::unix::fs::symlink(&target, &path).unwrap();
    let load = || Limits::load(&path).map_err(|error| error.to_string());
    let error = load().unwrap_err();
    assert!(error.contains("No such file"), "a link to nothing is no absent file: {error}");
    std::fs::write(&target, "verbs = ['Install']\n").unwrap();
    load().unwrap();
    std::fs::set_permissions(elsewhere.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = load().unwrap_err();
    assert!(error.contains(elsewhere.path().to_str().unwrap()) && error.contains("others than root"), "{error}");
}

#[test]
fn every_link_on_the_way_lies_where_root_alone_can_change_it() {
    let places = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [path, link, target] = [FILE, "link", "shared.toml"];
    let [path, link, target] =
        [places[0].path().join(path), places[1].path().join(link), places[2].path().join(target)];
    std::fs::write(&target, "verbs = ['Install']\n").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    std::os::unix::fs::symlink(&link, &path).unwrap();
    Limits::load(&path).unwrap();
    std::fs::set_permissions(places[1].path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Limits::load(&path).unwrap_err().to_string();
    assert!(error.contains(places[1].path().to_str().unwrap()) && error.contains("others than root"), "{error}");
}

#[test]
fn a_file_of_another_user_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    std::fs::write(&path, "").unwrap();
    // Only root can give a file away: elsewhere the tests on a real root say it.
    if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
        let error = Limits::load(&path).unwrap_err().to_string();
        assert!(error.contains("belongs to user 12345, not to root"), "{error}");
    }
}

#[test]
fn a_file_that_is_too_large_or_no_text_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    std::fs::write(&path, vec![b'#'; 65 << 10]).unwrap();
    assert!(Limits::load(&path).unwrap_err().to_string().contains("larger than 65536 bytes"));
    std::fs::write(&path, b"# \xff\n").unwrap();
    assert!(Limits::load(&path).unwrap_err().to_string().contains("not UTF-8"));
}
