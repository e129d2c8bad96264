//! krew's manifest, as a release makes it: the rules are those of krew's own validation and of its index.

use std::fmt::Write as _;

use serde_json::Value;

const TEMPLATE: &str = include_str!("../../packaging/krew/patchwarden.yaml");

/// As krew-release-bot does: a digest of 64 hexadecimal digits, six spaces in.
fn rendered(tag: &str) -> Value {
    let mut text = String::new();
    for line in TEMPLATE.lines() {
        let uri = line.trim().strip_prefix("{{addURIAndSha \"").and_then(|rest| rest.strip_suffix("\" .TagName }}"));
        match uri {
            Some(uri) => writeln!(text, "      uri: {uri}\n      sha256: {}", "0f".repeat(32)).unwrap(),
            None => writeln!(text, "{line}").unwrap(),
        }
    }
    let text = text.replace("{{ .TagName }}", tag);
    assert!(!text.contains("{{"), "{text}");
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn krews_manifest_has_the_fields_that_krew_asks_for() {
    let tag = format!("v{}", env!("CARGO_PKG_VERSION"));
    let manifest = rendered(&tag);
    assert_eq!(manifest["apiVersion"], "krew.googlecontainertools.github.com/v1alpha2");
    assert_eq!(manifest["kind"], "Plugin");
    assert_eq!(manifest["metadata"]["name"], "patchwarden");
    let spec = &manifest["spec"];
    assert_eq!(spec["version"], tag.as_str());
    assert_eq!(spec["homepage"], env!("CARGO_PKG_REPOSITORY"));
    let short = spec["shortDescription"].as_str().unwrap();
    assert!(!short.is_empty() && short.len() <= 50 && !short.contains('\n') && !short.ends_with('.'), "{short}");
    for text in ["description", "caveats"] {
        let text = spec[text].as_str().unwrap();
        assert!(
            text.lines().all(|line| line.len() <= 80),
            "krew's index asks for lines of at most 80 columns:\n{text}"
        );
    }
    let platforms = spec["platforms"].as_array().unwrap();
    let mut seen = vec![];
    for platform in platforms {
        let labels = &platform["selector"]["matchLabels"];
        let (os, arch) = (labels["os"].as_str().unwrap(), labels["arch"].as_str().unwrap());
        assert!(["linux", "darwin", "windows"].contains(&os) && ["amd64", "arm64"].contains(&arch), "{os} {arch}");
        assert!(!seen.contains(&(os, arch)), "{os} {arch} twice");
        seen.push((os, arch));
        let uri = platform["uri"].as_str().unwrap();
        assert!(uri.starts_with(&format!("{}/releases/download/{tag}/", env!("CARGO_PKG_REPOSITORY"))), "{uri}");
        assert!(uri.ends_with(".tar.gz"), "{uri}");
        let sha256 = platform["sha256"].as_str().unwrap();
        assert!(sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(platform["bin"], "kubectl-patchwarden", "kubectl finds it by this name");
    }
    assert_eq!(seen, [("linux", "amd64"), ("linux", "arm64")]);
}
