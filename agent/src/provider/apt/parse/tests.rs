use super::*;

/// Recorded on a Debian 12 host with 123 updates outstanding.
const DIST_UPGRADE: &str = include_str!("../../../../tests/data/dist-upgrade.txt");

fn change(name: &str, arch: &str, old: Option<&str>, new: &str, origin: &str) -> Change {
    Change { name: name.into(), arch: arch.into(), old: old.map(Into::into), new: new.into(), origin: origin.into() }
}

#[test]
fn a_recorded_simulation_is_read_whole() {
    let simulation = simulation(DIST_UPGRADE).unwrap();
    assert_eq!(simulation.changes.len(), DIST_UPGRADE.lines().filter(|line| line.starts_with("Inst ")).count());
    assert_eq!((simulation.removals.len(), simulation.configures.len()), (0, 0));
    assert_eq!(
        simulation.changes[2],
        change(
            "libperl5.36",
            "amd64",
            Some("5.36.0-7+deb12u2"),
            "5.36.0-7+deb12u4",
            "Debian-Security:12/oldstable-security"
        )
    );
    let security = simulation.changes.iter().filter(|c| classification(&c.origin) == Classification::Security).count();
    assert_eq!(security, DIST_UPGRADE.lines().filter(|l| l.starts_with("Inst ") && l.contains("-security")).count());
}

#[test]
fn each_form_of_a_line_is_read() {
    let text = "Inst new (1:2.0-1 Debian:12.15/oldstable [all]) []\n\
                Inst libx:i386 [1] (2 Debian:12/stable, Debian-Security:12/stable-security [i386]) [liby:amd64 ]\n\
                Inst own [1] (2 [amd64])\n\
                Inst vendor [1] (2 Some Vendor LLC:1.0/stable [amd64])\n\
                Remv old [3] [x:amd64 ]\nPurg older [4]\n\
                Conf new (1:2.0-1 Debian:12.15/oldstable [all])\nConf waiting (7 Debian:12/stable [amd64])\n";
    let simulation = simulation(text).unwrap();
    assert_eq!(
        simulation.changes,
        [
            change("new", "all", None, "1:2.0-1", "Debian:12.15/oldstable"),
            change("libx", "i386", Some("1"), "2", "Debian:12/stable, Debian-Security:12/stable-security"),
            change("own", "amd64", Some("1"), "2", ""),
            change("vendor", "amd64", Some("1"), "2", "Some Vendor LLC:1.0/stable"),
        ]
    );
    assert_eq!(simulation.removals, ["old", "older"]);
    assert_eq!(simulation.configures, ["waiting"]);
}

#[test]
fn a_line_that_cannot_be_read_is_an_error_and_not_left_out() {
    for bad in ["Inst x", "Inst x [1]", "Inst x [1] (2 Debian:12/stable)", "Inst x [1 (2 [amd64])"] {
        assert!(simulation(bad).is_err(), "{bad}");
    }
}

#[test]
fn security_is_what_the_repository_says() {
    for (origins, expected) in [
        ("Debian-Security:12/oldstable-security", Classification::Security),
        ("Debian:12/stable, Debian-Security:12/stable-security", Classification::Security),
        ("Ubuntu:24.04/noble-security", Classification::Security),
        ("UbuntuESMApps:22.04/jammy-apps-security", Classification::Security),
        ("UbuntuESM:18.04/bionic-infra", Classification::Security),
        ("Debian:12.15/oldstable", Classification::Updates),
        ("Some Vendor:1.0/stable", Classification::Updates),
        ("1/stable-security", Classification::Security),
        ("1/stable", Classification::Updates),
        ("Patchwarden:patchwarden-security", Classification::Security),
        ("Patchwarden:1.0", Classification::Updates),
        (":/", Classification::Unclassified),
        ("", Classification::Unclassified),
    ] {
        assert_eq!(classification(origins), expected, "{origins}");
    }
}

#[test]
fn descriptions_name_the_source() {
    let text = "Package: bash\nSource: bash (5.2.15-2)\nVersion: 5.2.15-2+b13\nInstalled-Size: 7164\n\
                Architecture: amd64\nFilename: pool/main/b/bash/bash_5.2.15-2+b13_amd64.deb\nSize: 1490652\n\
                SHA256: 8213\nDescription: x\n SHA256: no\n\n\
                Package: perl-base\nSource: perl\nVersion: 5.36\nArchitecture: amd64\n\n\
                Package: sed\nVersion: 4.9-1\nArchitecture: amd64\n\n";
    let found = descriptions(text);
    let sources: Vec<_> = found.iter().map(|d| (d.source.as_str(), d.source_version.as_str())).collect();
    assert_eq!(sources, [("bash", "5.2.15-2"), ("perl", "5.36"), ("sed", "4.9-1")]);
    assert_eq!((found[0].sha256.as_str(), found[0].size, found[0].installed_size), ("8213", 1_490_652, 7164 * 1024));
}

#[test]
fn only_whole_packages_count_as_installed() {
    let text = "ii \tbash\tamd64\t5\tbash\t5\t10\nrc \told\tamd64\t1\told\t1\t1\niF \tbroken\tamd64\t2\tbroken\t2\t\n\
                hi \theld\tall\t3\theld\t3\t1\niHR\thalf\tamd64\t4\thalf\t4\t1\n";
    let installed: Vec<_> =
        rows(text).unwrap().into_iter().filter_map(Row::into_installed).map(|i| (i.name, i.complete)).collect();
    let expected = [("bash", true), ("broken", false), ("held", true), ("half", false)];
    assert_eq!(installed, expected.map(|(name, complete)| (name.to_owned(), complete)));
    assert!(rows("ii \tbash").is_err());
}

#[test]
fn a_source_version_is_told_also_where_it_is_the_same() {
    let text = "ii \tlibdevmapper\tamd64\t2:1.02.185-2\tlvm2\t2.03.16-2\t10\nii \tlvm2\tamd64\t2.03.16-2\tlvm2\t2.03.16-2\t10\n";
    let found = rows(text).unwrap().into_iter().filter_map(Row::into_package).map(|it| it.source_version);
    assert_eq!(found.collect::<Vec<_>>(), vec![Some("2.03.16-2".to_owned()); 2]);
}

#[test]
fn what_is_held_is_named_as_apt_takes_it() {
    let text = "hi \theld\tamd64\t5\theld\t5\t10\nhi \tforeign\ti386\t1\tforeign\t1\t1\nhi \tcommon\tall\t3\tcommon\t3\t1\n\
                ii \tfree\tamd64\t1\tfree\t1\t1\nhc \tremoved\tamd64\t1\tremoved\t1\t1\nhU \tunpacked\tall\t1\tunpacked\t1\t1\n";
    let rows = rows(text).unwrap();
    let held: Vec<String> = rows.iter().filter(|it| it.is_held()).map(|it| qualified(&it.name, &it.arch)).collect();
    assert_eq!(held, ["held:amd64", "foreign:i386", "common", "unpacked"]);
}

#[test]
fn files_to_fetch_are_read() {
    let text = "Need to get 1491 kB of archives.\n\
        'http://deb.example/pool/o/openssh-client_9.2p1-2%2bdeb12u10_amd64.deb' openssh-client_1%3a9.2p1-2+deb12u10_amd64.deb 993532 SHA256:42c2\n\
        'file:/srv/repo/a%20b/x_1_all.deb' x_1_all.deb 7 \n";
    let found = artifacts(text).unwrap();
    assert_eq!(found[0].version, "1:9.2p1-2+deb12u10");
    assert_eq!((found[0].sha256.as_str(), found[0].size, &found[0].local), ("42c2", 993_532, &None));
    assert_eq!(found[1].local.as_deref(), Some(std::path::Path::new("/srv/repo/a b/x_1_all.deb")));
    assert_eq!(found[1].sha256, "");
    for bad in ["'x", "'x' y", "'x' y_1_all 3", "'x' ../y_1_all.deb 3 SHA256:0", "'x' y_1_z_all.deb 3"] {
        assert!(artifacts(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_repositories_that_failed_are_unavailable() {
    let text = "Hit:1 http://deb.example bookworm InRelease\n\
        W: http://deb.example/dists/x/InRelease: Key is stored in legacy trusted.gpg keyring\n\
        W: Failed to fetch http://deb.example/dists/bookworm/InRelease  Could not resolve 'deb.example'\n\
        W: Some index files failed to download. They have been ignored, or old ones used instead.\n\
        E: The repository 'http://x bookworm Release' does not have a Release file.\n";
    assert_eq!(unavailable(text).len(), 3);
}

#[test]
fn error_lines_of_a_package_come_first_and_are_bounded() {
    let text = "Unpacking x\ndpkg: error processing package other (--configure):\n other is sad\n\
        dpkg: error processing package foo (--configure):\n installed foo package post-installation script \
        subprocess returned error exit status 1\nErrors were encountered while processing:\n foo\n\
        E: Sub-process /usr/bin/dpkg returned an error code (1)\n";
    let lines = error_lines(text, &["foo"], 1000);
    assert!(lines.starts_with("dpkg: error processing package foo (--configure):\n installed foo"), "{lines}");
    assert!(lines.contains("E: Sub-process"), "{lines}");
    assert!(error_lines(text, &["foo"], 50).len() <= 50);
}

#[test]
fn what_apt_finds_no_way_for_comes_before_its_last_word() {
    let text = "Some packages could not be installed. This may mean that ...\nThe following packages have unmet dependencies:\n \
                foo : Depends: bar (>= 2) but 1 is to be installed\n       Depends: baz but it is not installable\n\
                E: Unable to correct problems, you have held broken packages.\n";
    assert_eq!(
        error_lines(text, &[], 1000),
        "foo : Depends: bar (>= 2) but 1 is to be installed\nDepends: baz but it is not installable\n\
         E: Unable to correct problems, you have held broken packages."
    );
}

#[test]
fn who_has_failed_is_told_by_dpkgs_words() {
    let text = "dpkg: error processing archive /var/lib/a_b/archives/libx2_1%3a2.0+b1_amd64.deb (--unpack):\n trying to \
                overwrite '/x'\ndpkg: error processing package foo (--configure):\n installed foo package post-installation \
                script\ndpkg: error processing package bar:i386 (--configure):\nErrors were encountered while processing:\n \
                other\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n";
    assert_eq!(culprits(text), BTreeSet::from(["libx2", "foo", "bar"]));
    for bad in ["", "dpkg: error processing", "dpkg: error processing package", "dpkg: error: x", "E: package x"] {
        assert_eq!(culprits(bad), BTreeSet::new(), "{bad}");
    }
}

#[test]
fn only_what_was_never_tried_is_left_to_be_configured() {
    let row = |status: &str, arch: &str| Row {
        status: status.into(),
        name: "a".into(),
        arch: arch.into(),
        version: "1".into(),
        source: "a".into(),
        source_version: "1".into(),
        installed_size: 0,
    };
    let found = [
        ("iU ", "all"),
        ("hU ", "amd64"),
        ("iUR", "i386"),
        ("ii ", "all"),
        ("iF ", "all"),
        ("it ", "all"),
        ("U", "all"),
    ]
    .map(|(status, arch)| row(status, arch).unpacked());
    let expected = ["a", "a:amd64", "a:i386"].map(|name| Some(name.to_owned()));
    assert_eq!(found[..3], expected);
    assert_eq!(found[3..], [const { None }; 4]);
}

#[test]
fn kernel_releases_compare_by_number() {
    use std::cmp::Ordering::{Equal, Less};
    assert_eq!(compare_releases("6.1.0-9-amd64", "6.1.0-10-amd64"), Less);
    assert_eq!(compare_releases("6.1.0-38-amd64", "6.12.0-1-amd64"), Less);
    assert_eq!(compare_releases("6.1.0-9-amd64", "6.1.0-9-amd64"), Equal);
}
