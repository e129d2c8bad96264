use super::*;

#[allow(clippy::unnecessary_wraps, reason = "it is compared with such")]
fn found(kind: UpstreamKind, name: &str, partial: bool) -> Option<Upstream> {
    Some(Upstream { kind, name: name.into(), partial })
}

#[test]
fn an_archive_of_a_certain_time_is_named_and_any_other_is_not() {
    use UpstreamKind::Snapshot;
    let debian = "http://snapshot.debian.org/archive/debian/20260301T024500Z/ \n\
                  http://snapshot.debian.org/archive/debian-security/20260301T024500Z/ $(SHADOWED)\n";
    assert_eq!(snapshot(debian), found(Snapshot, "snapshot.debian.org 20260301T024500Z", false));
    // apt 2.7 with `Snapshot: 20260301T030400Z`: the source itself is still brought up to date, and not used.
    let ubuntu = "http://archive.ubuntu.com/ubuntu/ yes\nhttps://snapshot.ubuntu.com/ubuntu/20260301T030400Z/ \n";
    assert_eq!(snapshot(ubuntu), found(Snapshot, "snapshot.ubuntu.com 20260301T030400Z", false));
    let beside = format!("{debian}https://download.docker.com/linux/debian/ \n");
    assert_eq!(snapshot(&beside), found(Snapshot, "snapshot.debian.org 20260301T024500Z", true));
    assert_eq!(snapshot("file:/srv/mirror/20260301/debian/ \n"), found(Snapshot, "20260301", false));
    for none in ["", "http://deb.debian.org/debian/ $(SHADOWED)\n", "http://mirror/12345678/debian/ \n", "x\n"] {
        assert_eq!(snapshot(none), None, "{none}");
    }
    let secret = "https://me:secret@mirror.example:8443/20260301T000000Z/ \n";
    assert_eq!(snapshot(secret), found(Snapshot, "mirror.example 20260301T000000Z", false));
}

#[test]
fn apt_is_asked_only_where_its_files_speak_of_a_time() {
    for yes in [
        "deb [check-valid-until=no] http://snapshot.debian.org/archive/debian/20260301T024500Z/ bookworm main",
        "Snapshot: 20260301T030400Z",
        "APT::Snapshot \"20260301T030400Z\";",
        "deb [snapshot=20260301T030400Z] http://archive.ubuntu.com/ubuntu noble main",
    ] {
        assert!(may_be_dated(yes), "{yes}");
    }
    for no in [
        "# deb cdrom:[Debian GNU/Linux 12.0.0 NETINST 20230610-10:21]/ bookworm main",
        "deb http://deb.debian.org/debian bookworm main",
        "20261301T000000Z",
        "20260301T0245Z",
        "é0260301",
    ] {
        assert!(!may_be_dated(no), "{no}");
    }
}

/// As subscription-manager writes it on a machine that is registered at a Satellite.
const RHSM: &str = "# Red Hat Subscription Manager Configuration File:\n\n\
[server]\n# Server hostname:\nhostname = Satellite.example.com\n\n# Server prefix:\nprefix = /rhsm\nport = 443\n\n\
[rhsm]\n# Content base URL:\nbaseurl = https://satellite.example.com/pulp/content\n\nrepo_ca_cert = %(ca_cert_dir)skatello-server-ca.pem\n";

const RED_HATS: &str = "[server]\nhostname = subscription.rhsm.redhat.com\n[rhsm]\nbaseurl = https://cdn.redhat.com\n";

const REDHAT: &str = "#\n# Certificate-Based Repositories\n# Managed by (rhsm) subscription-manager\n#\n\n\
[rhel-9-for-x86_64-baseos-rpms]\nname = Red Hat Enterprise Linux 9 for x86_64 - BaseOS (RPMs)\n\
baseurl = https://satellite.example.com/pulp/content/ACME/Prod/rhel9/content/dist/rhel9/9/x86_64/baseos/os\n\
enabled = 1\ngpgcheck = 1\n\n\
[rhel-9-for-x86_64-supplementary-rpms]\n\
baseurl = https://satellite.example.com/pulp/content/ACME/Prod/rhel9/content/dist/rhel9/9/x86_64/supplementary/os\nenabled = 0\n";

const EPEL: &str =
    "[epel]\nname=Extra Packages\nmetalink=https://mirrors.fedoraproject.org/metalink?repo=epel-9\nenabled=1\n";

fn repositories(files: &[(&str, &str)]) -> Repositories {
    let mut all = Repositories::default();
    for (name, text) in files {
        all.add(name, text);
    }
    all
}

#[test]
fn a_satellite_is_named_where_repositories_come_from_it() {
    let named = |partial| found(UpstreamKind::Satellite, "satellite.example.com", partial);
    assert_eq!(repositories(&[("redhat.repo", REDHAT)]).upstream(RHSM, ""), named(false));
    assert_eq!(repositories(&[("epel.repo", EPEL), ("redhat.repo", REDHAT)]).upstream(RHSM, ""), named(true));
    let mut overridden = repositories(&[("epel.repo", EPEL), ("redhat.repo", REDHAT)]);
    overridden.set("[epel*]\nenabled=0\n");
    assert_eq!(overridden.upstream(RHSM, ""), named(false), "dnf 5 was told to leave it");
    let mut more = repositories(&[("redhat.repo", REDHAT)]);
    more.is_partial = true;
    assert_eq!(more.upstream(RHSM, ""), named(true), "there are files that were not read");
    // Registered there, and nothing comes from it; or it is Red Hat's own.
    let off = REDHAT.replace("enabled = 1", "enabled = 0");
    assert_eq!(repositories(&[("redhat.repo", &off)]).upstream(RHSM, ""), None);
    let cdn = REDHAT.replace("satellite.example.com", "cdn.redhat.com");
    assert_eq!(repositories(&[("redhat.repo", &cdn)]).upstream(RHSM, ""), None);
    assert_eq!(repositories(&[("redhat.repo", &cdn)]).upstream(RED_HATS, ""), None);
    assert_eq!(repositories(&[("redhat.repo", REDHAT)]).upstream("", ""), None);
}

#[test]
fn the_channels_of_suse_manager_are_told_by_their_names_and_no_token_is_told() {
    let channels = "# Channels managed by SUSE Manager\n\
        [susemanager:sle-product-sles15-sp6-pool-x86_64]\nname=SLE-Product-SLES15-SP6-Pool for x86_64\nenabled=1\nautorefresh=1\n\
        baseurl=https://suma.example:443/rhn/manager/download/sle-product-sles15-sp6-pool-x86_64?eyJhbGciOi.secret\n";
    let own = "[own]\nname=own\nbaseurl=https://own.example/repo\nenabled=0\n";
    let name = "susemanager:channels.repo";
    let named = |partial| found(UpstreamKind::SuseManager, "suma.example", partial);
    assert_eq!(repositories(&[("own.repo", own), (name, channels)]).upstream("", ""), named(false));
    let own = own.replace("enabled=0", "enabled=1");
    assert_eq!(repositories(&[("own.repo", &own), (name, channels)]).upstream("", ""), named(true));
}

#[test]
fn an_rmt_is_named_where_repositories_come_from_it() {
    let connect =
        "## SUSEConnect configuration file\n# url: https://scc.suse.com\nurl: https://rmt.example\ninsecure: false\n";
    let repo = "[SLES15-SP6:SLE-Product-SLES15-SP6-Updates]\nname=SLE-Product-SLES15-SP6-Updates\nenabled=1\nautorefresh=1\n\
        baseurl=https://rmt.example/repo/SUSE/Updates/SLE-Product-SLES/15-SP6/x86_64/update/?credentials=SLES\ntype=rpm-md\n";
    let all = repositories(&[("sles.repo", repo)]);
    assert_eq!(all.upstream("", connect), found(UpstreamKind::Rmt, "rmt.example", false));
    assert_eq!(all.upstream("", "url: https://scc.suse.com\n"), None);
    assert_eq!(all.upstream("", "# url: https://rmt.example\n"), None);
    assert_eq!(repositories(&[("epel.repo", EPEL)]).upstream("", connect), None, "nothing comes from there");
}

#[test]
fn addresses_of_several_lines_all_count() {
    let two = "[a]\nbaseurl=https://rmt.example/a\n  https://elsewhere.example/a\nname=a\n  https://rmt.example\n";
    assert_eq!(repositories(&[("a.repo", two)]).upstream("", "url: https://rmt.example\n"), None);
    let both = two.replace("elsewhere.example", "rmt.example");
    assert!(repositories(&[("a.repo", &both)]).upstream("", "url: https://rmt.example\n").is_some());
}

#[test]
fn a_wsus_is_named_without_credentials() {
    assert_eq!(wsus("http://wsus.example:8530"), found(UpstreamKind::Wsus, "http://wsus.example:8530", false));
    let name = wsus("https://me:secret@wsus.example/x?token=1").unwrap().name;
    assert_eq!(name, "https://wsus.example/x");
    assert_eq!(wsus(""), None);
    assert_eq!(wsus(&"x".repeat(500)).unwrap().name.len(), MAX_UPSTREAM);
}
