use super::*;
use crate::key::PrivateKey;

fn catalogue() -> Catalogue {
    let recipe = |name: &str, path: &str, content, detect| Recipe {
        name: name.into(),
        title: name.into(),
        install: Install { path: path.into(), content },
        detect,
        release: Release {
            version: "1.31.0".into(),
            published: Timestamp::from_second(1_700_000_000).unwrap(),
            classification: Classification::Security,
            severity: Severity::High,
            cves: vec!["CVE-2026-12345".into()],
            artifacts: vec![Artifact {
                arch: "x86_64".into(),
                url: "https://example.org/a%20b?x=1".into(),
                sha256: "ab".repeat(32),
                size: 10,
                unpacked: 10,
            }],
        },
        stateful: false,
    };
    let says = |path: &str| Detect::File { path: path.into(), pattern: "go([0-9.]+)".into() };
    let runs = Detect::Program {
        path: String::new(),
        arguments: vec!["--version".into()],
        pattern: r"version ([0-9.]+)".into(),
    };
    Catalogue {
        publisher: "Example Ltd.".into(),
        serial: 7,
        made: Timestamp::from_second(1_800_000_000).unwrap(),
        expires: Timestamp::from_second(1_800_086_400).unwrap(),
        recipes: vec![
            recipe("go", "/usr/local/go", Content::Tree { strip: 1 }, says("VERSION")),
            recipe("tool", "/usr/local/bin/tool", Content::Member { strip: 1, path: "bin/tool".into() }, runs.clone()),
            recipe("plain", "/opt/plain", Content::File, runs),
        ],
        scripts: ["drain", "undrain.sh"]
            .map(|name| Script { name: name.into(), text: "#!/bin/sh\nexit 0\n".into() })
            .into(),
    }
}

fn signed(catalogue: &Catalogue, key: &PrivateKey) -> Vec<u8> {
    serde_json::to_vec(&Envelope::seal(catalogue, key).unwrap()).unwrap()
}

#[test]
fn what_a_publisher_signed_opens_with_its_key_among_others_only() {
    let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
    let bytes = signed(&catalogue(), &key);
    assert_eq!(Catalogue::open(&bytes, &[other.public(), key.public()]), Ok(catalogue()));
    assert_eq!(Catalogue::open(&bytes, &[other.public()]), Err(CatalogueError::UnknownPublisher));
    assert_eq!(Catalogue::open(&bytes, &[]), Err(CatalogueError::UnknownPublisher));
    let text = String::from_utf8(bytes).unwrap().replace("recipes.v1", "order.v1");
    assert!(matches!(Catalogue::open(text.as_bytes(), &[key.public()]), Err(CatalogueError::Refused(_))));
}

/// What a later version of this program may sign.
#[derive(Serialize, Deserialize)]
struct Later(serde_json::Value);
impl Document for Later {
    const TYPE: &'static str = Catalogue::TYPE;
}

#[test]
fn what_is_no_catalogue_is_refused_with_a_reason() {
    let key = PrivateKey::generate();
    let open = |bytes: &[u8]| Catalogue::open(bytes, &[key.public()]).unwrap_err().to_string();
    for bytes in [&b""[..], b"{", b"[]", b"{\"payloadType\":1}", b"\xff\xff", &vec![b'['; 100_000]] {
        assert!(open(bytes).starts_with("not a signed catalogue: "));
    }
    assert!(open(&vec![b' '; MAX_BYTES + 1]).contains("1000001 bytes"));
    // Signed, and of a later version of this program.
    let mut later = serde_json::to_value(catalogue()).unwrap();
    later["recipes"][0]["script"] = "rm -rf /".into();
    let bytes = serde_json::to_vec(&Envelope::seal(&Later(later), &key).unwrap()).unwrap();
    assert!(open(&bytes).contains("unknown field `script`"), "{}", open(&bytes));
}

#[test]
fn every_field_over_its_limit_is_named() {
    assert_eq!(catalogue().check(), Ok(()));
    let field = |change: &dyn Fn(&mut Catalogue)| {
        let mut catalogue = catalogue();
        change(&mut catalogue);
        catalogue.check().expect_err("it is over a limit").field
    };
    let of_go = |change: &dyn Fn(&mut Recipe)| {
        let found = field(&|catalogue| change(&mut catalogue.recipes[0]));
        found.strip_prefix("recipes.go.").unwrap_or(&found).to_owned()
    };
    let of_file = |change: &dyn Fn(&mut Artifact)| {
        let found = of_go(&|recipe| change(&mut recipe.release.artifacts[0]));
        found.rsplit_once('.').unwrap().1.to_owned()
    };
    for publisher in ["", " a", "a, b", "a:b", "é", &"x".repeat(64)] {
        assert_eq!(field(&|c| c.publisher = publisher.into()), "publisher");
    }
    assert_eq!(field(&|c| c.serial = 0), "serial");
    assert_eq!(field(&|c| c.serial = (1 << 53) + 1), "serial");
    assert_eq!(field(&|c| c.expires = c.made), "expires");
    assert_eq!(field(&|c| c.expires = Timestamp::MAX), "expires");
    assert_eq!(field(&|c| c.recipes = vec![c.recipes[0].clone(); MAX_RECIPES + 1]), "recipes");
    assert_eq!(field(&|c| c.recipes[1].name = "go".into()), "recipes.go");
    assert_eq!(field(&|c| c.recipes[1].install.path = "/usr/local/go/bin/x".into()), "recipes.tool.install.path");
    assert_eq!(field(&|c| c.recipes[2].install.path = "/usr/local/go".into()), "recipes.plain.install.path");
    for name in ["", "Go", "-go", "go/x", "go x", &"x".repeat(64)] {
        let found = field(&|c| c.recipes[0].name = name.into());
        assert_eq!(found.rsplit('.').next(), Some("name"), "{found}");
    }
    for title in ["", "a\nb", &"x".repeat(101)] {
        assert_eq!(of_go(&|r| r.title = title.into()), "title");
    }
    let paths = [
        "",
        "go",
        "/",
        "/etc/passwd",
        "/usr/bin/go",
        "/usr/local",
        "/usr/local/",
        "/usr/local/bin",
        "/usr/local/lib",
        "/opt/",
        "/opt/../etc",
        "/opt/a/../../etc",
        "/opt/./a",
        "/opt//a",
        "/opt/a/",
        "/opt/a b",
        "/opt/a\n",
        "/usr/localx/a",
    ];
    for path in paths.into_iter().chain([format!("/opt/{}", "x".repeat(200)).as_str()]) {
        assert_eq!(of_go(&|r| r.install.path = path.into()), "install.path", "{path}");
    }
    assert_eq!(of_go(&|r| r.install.content = Content::Tree { strip: 9 }), "install.content.strip");
    for path in ["", "../x", "/x", "a/../b", "a//b"] {
        let member = Content::Member { strip: 0, path: path.into() };
        assert_eq!(of_go(&|r| r.install.content = member.clone()), "install.content.path", "{path}");
    }
    for path in ["", "../x", "/x", "a/"] {
        let file = Detect::File { path: path.into(), pattern: "(x)".into() };
        assert_eq!(of_go(&|r| r.detect = file.clone()), "detect.file.path", "{path}");
    }
    let of_a_file = Detect::File { path: "x".into(), pattern: "(x)".into() };
    assert_eq!(field(&|c| c.recipes[2].detect = of_a_file.clone()), "recipes.plain.detect.file.path");
    for pattern in ["", "go", "(", "(?:x)", "(x{1000}){1000}", &format!("({})", "x".repeat(200))] {
        let file = Detect::File { path: "x".into(), pattern: pattern.into() };
        assert_eq!(of_go(&|r| r.detect = file.clone()), "detect.file.pattern", "{pattern}");
    }
    for arguments in [vec![String::new(); 9], vec!["x".repeat(101)], vec!["a\nb".into()]] {
        let program = |arguments| Detect::Program { path: "x".into(), arguments, pattern: "(x)".into() };
        assert_eq!(of_go(&|r| r.detect = program(arguments.clone())), "detect.program.arguments");
    }
    assert_eq!(of_go(&|r| r.release.version = "1.0-rc1".into()), "release.version");
    assert_eq!(of_go(&|r| r.release.published = Timestamp::UNIX_EPOCH), "release.published");
    for cve in ["", "CVE-1", "CVE-2026-123", "cve-2026-12345", "CVE-2026-12345678901234", "CVE-2026-12345-1"] {
        assert_eq!(of_go(&|r| r.release.cves = vec![cve.into()]), "release.cves", "{cve}");
    }
    assert_eq!(of_go(&|r| r.release.cves = vec!["CVE-2026-12345".into(); 65]), "release.cves");
    assert_eq!(of_go(&|r| r.release.artifacts.clear()), "release.artifacts");
    assert_eq!(of_go(&|r| r.release.artifacts = vec![r.release.artifacts[0].clone(); 2]), "release.artifacts.x86_64");
    for arch in ["", "X", "a b", &"x".repeat(21)] {
        assert_eq!(of_file(&|file| file.arch = arch.into()), "arch");
    }
    for url in ["", "http://x/", "https://", "https:///x", "https://a@b/", "https://x/ y", "https://x/\"", "file:///x"]
    {
        assert_eq!(of_file(&|file| file.url = url.into()), "url", "{url}");
    }
    for sha256 in ["", "ab", &"AB".repeat(32), &"ag".repeat(32)] {
        assert_eq!(of_file(&|file| file.sha256 = sha256.into()), "sha256");
    }
    assert_eq!(of_file(&|file| file.size = 0), "size");
    assert_eq!(of_file(&|file| file.size = MAX_SIZE + 1), "size");
    assert_eq!(of_file(&|file| file.unpacked = 0), "unpacked");
    assert_eq!(of_file(&|file| file.unpacked = MAX_UNPACKED + 1), "unpacked");
    assert_eq!(
        field(&|c| c.recipes[2].release.artifacts[0].unpacked = 11),
        "recipes.plain.release.artifacts.x86_64.unpacked"
    );
}

#[test]
fn a_script_begins_with_its_interpreter_and_has_the_name_of_a_file() {
    let wrong = |change: &dyn Fn(&mut Script)| {
        let mut catalogue = catalogue();
        change(&mut catalogue.scripts[0]);
        catalogue.check().expect_err("it is over a limit").to_string()
    };
    for name in ["", "a/b", "../a", ".a", "-a", "a b", "a\n", &"x".repeat(64)] {
        let found = wrong(&|script| script.name = name.into());
        assert!(found.starts_with("scripts.") && found.contains(".name: must be 1 to 63"), "{name:?}: {found}");
    }
    for text in ["", "echo x\n", "\n#!/bin/sh\n", "#!sh\n", "#!\n/bin/sh", "\u{feff}#!/bin/sh\n", "\x7fELF"] {
        let found = wrong(&|script| script.text = text.into());
        assert!(found.starts_with("scripts.drain.text: must begin with the line"), "{text:?}: {found}");
    }
    for text in ["#!/bin/sh\r\nexit\r\n", "#!/bin/sh\n\0"] {
        assert!(wrong(&|script| script.text = text.into()).contains("plain line ends"));
    }
    let found = wrong(&|script| script.text = format!("#!/bin/sh\n{}", "x".repeat(MAX_SCRIPT)));
    assert_eq!(found, "scripts.drain.text: has 65546 bytes, at most 65536 are allowed");
    assert_eq!(
        wrong(&|script| script.name = "undrain.sh".into()),
        "scripts.undrain.sh: there is another script of this name"
    );
    let mut many = catalogue();
    many.scripts = vec![many.scripts[0].clone(); MAX_SCRIPTS + 1];
    assert_eq!(many.check().unwrap_err().field, "scripts");
    many.scripts = vec![Script { name: "ps1".into(), text: "#! /usr/bin/env python3".into() }];
    assert_eq!(many.check(), Ok(()));
}

#[test]
fn a_catalogue_without_scripts_is_what_earlier_versions_read() {
    let mut without = catalogue();
    without.scripts.clear();
    let json = serde_json::to_value(&without).unwrap();
    assert!(json.get("scripts").is_none(), "{json}");
    assert_eq!(serde_json::from_value::<Catalogue>(json).unwrap(), without);
}

#[test]
fn a_version_is_found_in_what_a_program_says() {
    let [go, tool, _] = &catalogue().recipes[..] else { panic!("three recipes") };
    assert_eq!(go.detect.version_in("go1.22.3\ntime 2026").as_deref(), Some("1.22.3"));
    assert_eq!(tool.detect.version_in("tool version 1.8.2 (abc)").as_deref(), Some("1.8.2"));
    assert_eq!(tool.detect.version_in("no"), None);
    // A group that took no part is no version.
    let either = Detect::File { path: "x".into(), pattern: "a|(b)".into() };
    assert_eq!(either.version_in("a"), None);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let key = PrivateKey::generate();
        assert!(Catalogue::open(&bytes, &[key.public()]).is_err());
        // What is in the signed payload is the publisher's, and may be anything as well.
        if let Ok(catalogue) = serde_json::from_slice::<Catalogue>(&bytes) {
            let _ = catalogue.check();
        }
    }
}

#[test]
fn no_release_passes_for_what_only_a_policy_asks_for() {
    for kind in [Classification::FirstInstall, Classification::Removal] {
        let mut catalogue = catalogue();
        catalogue.recipes[0].release.classification = kind;
        assert_eq!(catalogue.check().unwrap_err().field, "recipes.go.release.classification");
    }
}
