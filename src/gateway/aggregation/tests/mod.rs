//! The aggregation layer's door: who gets in over real TLS, and what is answered, with an API server of the tests' own.

mod answers;
mod door;

use k8s_openapi::api::core::v1::ConfigMap;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;

use super::*;

/// A request-header CA.
struct FrontProxy {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate of it, with its key.
struct Client {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl FrontProxy {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "front-proxy-ca");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn client(&self, name: &str) -> Client {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        Client { certificate: params.signed_by(&key, &self.issuer).unwrap().der().clone(), key }
    }

    /// What the API server publishes.
    fn config_map(&self) -> ConfigMap {
        let list = |texts: &[&str]| json!(texts).to_string();
        let data = [
            ("requestheader-client-ca-file", self.pem.clone()),
            ("requestheader-allowed-names", list(&["front-proxy-client"])),
            ("requestheader-username-headers", list(&["X-Remote-User"])),
            ("requestheader-uid-headers", list(&["X-Remote-Uid"])),
            ("requestheader-group-headers", list(&["X-Remote-Group"])),
            ("requestheader-extra-headers-prefix", list(&["X-Remote-Extra-"])),
        ];
        let data = data.into_iter().map(|(key, text)| (key.to_owned(), text));
        ConfigMap { data: Some(data.collect()), ..ConfigMap::default() }
    }

    fn anchors(&self) -> Arc<Anchors> {
        Arc::new(Anchors::of(&self.config_map()).unwrap())
    }
}

impl Client {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

#[test]
fn the_config_map_is_read_or_what_is_wrong_is_named() {
    let proxy = FrontProxy::new();
    let anchors = Anchors::of(&proxy.config_map()).unwrap();
    assert_eq!(anchors.allowed_names, ["front-proxy-client"]);
    assert_eq!((anchors.username[0].as_str(), anchors.extra[0].as_str()), ("x-remote-user", "x-remote-extra-"));
    assert!(anchors.clients.client_auth_mandatory(), "a certificate must be shown");
    for (key, text, problem) in [
        ("requestheader-client-ca-file", None, "is missing"),
        ("requestheader-client-ca-file", Some(""), "no root"),
        ("requestheader-allowed-names", Some("front-proxy-client"), "is no JSON list"),
        ("requestheader-username-headers", Some("[]"), "names no header"),
        ("requestheader-group-headers", Some("[\"X Remote\"]"), "no name of a header"),
    ] {
        let mut map = proxy.config_map();
        let data = map.data.as_mut().unwrap();
        match text {
            Some(text) => drop(data.insert(key.to_owned(), text.to_owned())),
            None => drop(data.remove(key)),
        }
        let error = Anchors::of(&map).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(problem), "{key} {text:?}: {error}");
    }
}
