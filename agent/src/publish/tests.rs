use patchwarden_protocol::key::PublicKey;

use super::*;

const RULE_OF_GO: &str = "name = 'go'\ntitle = 'Go'\n[install]\npath = '/usr/local/go'\ncontent = { tree = { strip = 1 } }\n\
     [detect.file]\npath = 'VERSION'\npattern = 'go([0-9.]+)'\n\
     [source]\nurl = 'https://example.org/go{version}.linux-{arch}.tar.gz'\narch = { x86_64 = 'amd64', aarch64 = 'arm64' }\n";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn pinned() -> String {
    let rule: Rule = toml::from_str(RULE_OF_GO).unwrap();
    let release = Release {
        version: "1.22.3+b1".into(),
        published: now(),
        classification: Classification::Security,
        severity: Severity::High,
        cves: vec!["CVE-2026-12345".into()],
        artifacts: rule.artifacts("1.22.3+b1"),
    };
    toml::to_string(&release).unwrap()
}

fn said(result: anyhow::Result<()>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn what_is_pinned_is_signed_and_opens_with_the_key_that_was_printed() {
    let place = tempfile::tempdir().unwrap();
    let (key, out) = (place.path().join("key.pem"), place.path().join("recipes.json"));
    make_key(&key).unwrap();
    assert!(said(make_key(&key)).contains("key.pem"), "a key is not overwritten");
    let directory = place.path().join("recipes");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("go.toml"), RULE_OF_GO).unwrap();
    let sign = |publisher: &str| {
        let (directory, key, out) = (directory.clone(), key.clone(), out.clone());
        sign(&Sign { directory, key, publisher: publisher.into(), days: 30, out }, now())
    };
    assert!(said(sign("Example")).contains("no rule is pinned"));
    fs::write(directory.join("go.pin.toml"), pinned()).unwrap();
    fs::write(directory.join("README.md"), "no rule").unwrap();
    assert!(said(sign("a, b")).contains("publisher: must be"));
    assert!(!out.exists());
    sign("Example").unwrap();
    let public: PublicKey = PrivateKey::from_pem(&fs::read_to_string(&key).unwrap()).unwrap().public();
    let catalogue = Catalogue::open(&fs::read(&out).unwrap(), &[public]).unwrap();
    assert_eq!((catalogue.serial, catalogue.publisher.as_str()), (1_800_000_000, "Example"));
    assert_eq!(catalogue.expires.duration_since(catalogue.made), SignedDuration::from_hours(720));
    let [recipe] = &catalogue.recipes[..] else { panic!("{catalogue:?}") };
    let urls: Vec<&str> = recipe.release.artifacts.iter().map(|artifact| artifact.url.as_str()).collect();
    let url = |arch: &str| format!("https://example.org/go1.22.3%2Bb1.linux-{arch}.tar.gz");
    assert_eq!(urls, [url("arm64"), url("amd64")]);
}

#[test]
fn scripts_are_signed_as_they_are_also_without_a_recipe() {
    let place = tempfile::tempdir().unwrap();
    let (key, out, scripts) =
        (place.path().join("key.pem"), place.path().join("recipes.json"), place.path().join("rules/scripts"));
    make_key(&key).unwrap();
    fs::create_dir_all(&scripts).unwrap();
    let sign = || {
        let (directory, key, out) = (place.path().join("rules"), key.clone(), out.clone());
        sign(&Sign { directory, key, publisher: "Example".into(), days: 30, out }, now())
    };
    assert!(said(sign()).contains("nor are there scripts"));
    let text = "#!/usr/bin/env python3\nprint('ü')\n";
    for name in ["undrain", "drain"] {
        fs::write(scripts.join(name), text).unwrap();
    }
    sign().unwrap();
    let public = PrivateKey::from_pem(&fs::read_to_string(&key).unwrap()).unwrap().public();
    let catalogue = Catalogue::open(&fs::read(&out).unwrap(), &[public]).unwrap();
    let found: Vec<(&str, &str)> =
        catalogue.scripts.iter().map(|script| (script.name.as_str(), script.text.as_str())).collect();
    assert_eq!((found, catalogue.recipes.len()), (vec![("drain", text), ("undrain", text)], 0));
    run(Publish::Check { directory: place.path().join("rules") }, now()).unwrap();
    // What is wrong with one of them is told with its file, and nothing is signed.
    fs::remove_file(&out).unwrap();
    let long = vec![b'#'; 70_000];
    for (name, bytes, words) in [
        ("drain~", &b"#!/bin/sh\n"[..], "name: must be 1 to 63"),
        ("shell", b"echo x\n", "text: must begin with the line of an interpreter"),
        ("windows", b"#!/bin/sh\r\n", "plain line ends"),
        ("binary", b"\xff\xff", "UTF-8"),
        ("long", &long, "has 70000 bytes, at most 65536"),
    ] {
        fs::write(scripts.join(name), bytes).unwrap();
        let said = said(sign());
        assert!(said.contains(&format!("scripts/{name}: ")) && said.contains(words), "{said}");
        fs::remove_file(scripts.join(name)).unwrap();
    }
    fs::create_dir(scripts.join("more")).unwrap();
    assert!(said(sign()).contains("scripts/more: is not a regular file"));
    assert!(!out.exists());
}

#[test]
fn errors_name_the_file_and_the_field() {
    let place = tempfile::tempdir().unwrap();
    let check = |rule: &str, pin: Option<&str>| {
        fs::write(place.path().join("go.toml"), rule).unwrap();
        let pin_file = place.path().join("go.pin.toml");
        let _ = fs::remove_file(&pin_file);
        if let Some(pin) = pin {
            fs::write(&pin_file, pin).unwrap();
        }
        run(Publish::Check { directory: place.path().to_owned() }, now())
    };
    check(RULE_OF_GO, None).unwrap();
    check(RULE_OF_GO, Some(&pinned())).unwrap();
    for (from, to, words) in [
        ("/usr/local/go", "/usr/bin", "go.toml: install.path: must be below"),
        ("VERSION", "../VERSION", "go.toml: detect.file.path: "),
        ("go([0-9.]+)", "go", "go.toml: detect.file.pattern: must have a group"),
        ("{version}", "1.0", "go.toml: source.url: must have {version}"),
        ("https:", "http:", "release.artifacts.aarch64.url: must be an address that begins with https://"),
        ("'go'", "'golang'", "go.toml: name: must be the file's own"),
        ("strip = 1", "script = 'rm'", "script"),
        ("[detect.file]", "[detect.shell]", "unknown variant `shell`"),
        ("title = 'Go'\n", "", "missing field `title`"),
    ] {
        let said = said(check(&RULE_OF_GO.replace(from, to), None));
        assert!(said.contains("go.toml") && said.contains(words), "{said}");
    }
    for (from, to, words) in [
        ("1.22.3+b1", "latest", "release.version: must be numbers"),
        ("CVE-2026-12345", "x", "release.cves: "),
        ("size = 1", "size = 0", "size: must be from 1"),
        ("size = 1", "length = 0", "unknown field `length`"),
    ] {
        let said = said(check(RULE_OF_GO, Some(&pinned().replace(from, to))));
        assert!(said.contains("go.pin.toml") && said.contains(words), "{said}");
    }
    let long = format!("{RULE_OF_GO}{}", "#".repeat(70_000));
    assert!(said(check(&long, None)).contains("at most 65536"));
}

/// Of this repository: `recipes/`.
#[test]
fn the_starter_library_is_sound() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let found = read_all(&library).unwrap();
    assert!(found.len() >= 10, "{found:?}");
    // Nobody here has downloaded what they name: whoever signs them has to.
    assert!(found.iter().all(|found| found.pin.is_none()));
    let recipes = found.iter().map(|found| {
        let artifacts = found.rule.artifacts("1.2.3");
        assert!(artifacts.iter().all(|artifact| !artifact.url.contains(['{', '}'])), "{artifacts:?}");
        found.rule.recipe(Release { version: "1.2.3".into(), artifacts, ..toml::from_str(&pinned()).unwrap() })
    });
    let catalogue = Catalogue {
        publisher: "library".into(),
        serial: 1,
        made: now(),
        expires: now() + SignedDuration::from_hours(1),
        recipes: recipes.collect(),
        scripts: Vec::new(),
    };
    assert_eq!(catalogue.check(), Ok(()), "all of them together");
}
