//! What a policy says of hooks, checks and downloads, which goes into an order as it is.

use jiff::SignedDuration;
use patchwarden_protocol::safeguards::{Check, Hook, OnFailure, Probe, Rollback, Safeguards};
use patchwarden_protocol::site_cache::SiteCache;

use crate::api;
use crate::api::safeguards::RollbackWhen;
use crate::plan::model::Invalid;

/// For an install, for which the policy gives `limit` as a whole.
pub fn safeguards(spec: &api::PatchPolicySpec, limit: SignedDuration) -> Result<Safeguards, Invalid> {
    let invalid = |why: String| Invalid(format!("spec.{why}"));
    let checks = spec.checks.iter().enumerate().map(|(index, check)| read(&format!("checks[{index}]"), check));
    let hooks = spec.hooks.clone().unwrap_or_default();
    let read = |hooks: &[api::safeguards::Hook], otherwise: OnFailure| -> Vec<Hook> {
        let read = |hook: &api::safeguards::Hook| Hook {
            name: hook.name.clone(),
            timeout_seconds: hook.timeout_seconds,
            on_failure: hook.on_failure.unwrap_or(otherwise),
        };
        hooks.iter().map(read).collect()
    };
    let safeguards = Safeguards {
        before: read(&hooks.before, OnFailure::Abort),
        after: read(&hooks.after, OnFailure::Continue),
        checks: checks.collect::<Result<_, _>>().map_err(invalid)?,
        rollback: spec.rollback.as_ref().and_then(|rollback| match rollback.when {
            RollbackWhen::Never => None,
            RollbackWhen::CheckFailed => Some(Rollback { exclude_packages: rollback.exclude_packages.clone() }),
        }),
    };
    safeguards.validate().map_err(invalid)?;
    let seconds = i64::from(safeguards.seconds());
    if seconds > 0 && limit.as_secs() < seconds.saturating_add(60) {
        return Err(Invalid(format!(
            "spec.installLimit: hooks and checks may take {seconds} s of it, and at least 60 s must be left for the packages"
        )));
    }
    Ok(safeguards)
}

/// The cache that its devices download through.
pub fn site_cache(cache: &api::site_cache::SiteCache) -> Result<SiteCache, Invalid> {
    let api::site_cache::SiteCache { url, when_down } = cache.clone();
    let cache = SiteCache { url, when_down };
    cache.validate().map_err(|why| Invalid(format!("spec.{why}")))?;
    Ok(cache)
}

fn read(field: &str, check: &api::safeguards::Check) -> Result<Check, String> {
    let api::safeguards::Check { name, service_active, tcp, http, file_exists, command, .. } = check;
    let probe = match (service_active, tcp, http, file_exists, command) {
        (Some(service), None, None, None, None) => Probe::ServiceActive { unit: service.unit.clone() },
        (None, Some(tcp), None, None, None) => Probe::Tcp { port: tcp.port },
        (None, None, Some(http), None, None) => {
            Probe::Http { port: http.port, path: http.path.clone(), status: http.status }
        }
        (None, None, None, Some(file), None) => Probe::FileExists { path: file.path.clone() },
        (None, None, None, None, Some(command)) => Probe::Command { name: command.name.clone() },
        _ => return Err(format!("{field}: give exactly one of serviceActive, tcp, http, fileExists and command")),
    };
    let (timeout_seconds, settle_seconds) = (check.timeout_seconds, check.settle_seconds);
    Ok(Check { name: name.clone(), probe, timeout_seconds, settle_seconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use patchwarden_protocol::site_cache::WhenDown;
    use serde_json::json;

    fn of(spec: serde_json::Value) -> Result<Safeguards, String> {
        let spec: api::PatchPolicySpec = serde_json::from_value(spec).unwrap();
        let limit = super::super::duration("spec.installLimit", &spec.install_limit).unwrap();
        safeguards(&spec, limit).map_err(|invalid| invalid.0)
    }

    #[test]
    fn a_policy_that_says_nothing_of_it_has_neither_hooks_nor_checks() {
        assert_eq!(of(json!({})), Ok(Safeguards::default()));
    }

    #[test]
    fn what_is_left_out_is_five_minutes_ten_seconds_and_a_minute() {
        let found = of(json!({
            "hooks": {"before": [{"name": "drain"}], "after": [{"name": "drain"}]},
            "checks": [{"name": "web", "http": {"port": 80}}],
        }))
        .unwrap();
        let hook = |on_failure| Hook { name: "drain".into(), timeout_seconds: 300, on_failure };
        assert_eq!((&found.before, &found.after), (&vec![hook(OnFailure::Abort)], &vec![hook(OnFailure::Continue)]));
        let probe = Probe::Http { port: 80, path: "/".into(), status: 200 };
        assert_eq!(found.checks, [Check { name: "web".into(), probe, timeout_seconds: 10, settle_seconds: 60 }]);
    }

    #[test]
    fn a_policy_says_whether_what_a_check_finds_is_taken_back() {
        let check = json!([{"name": "web", "tcp": {"port": 80}}]);
        let found = |rollback| of(json!({"checks": check, "rollback": rollback})).map(|found| found.rollback);
        assert_eq!(found(json!(null)), Ok(None));
        assert_eq!(found(json!({"when": "Never", "excludePackages": ["x"]})), Ok(None));
        let exclude_packages = vec!["postgresql-*".into()];
        let rollback = json!({"when": "CheckFailed", "excludePackages": exclude_packages});
        assert_eq!(found(rollback), Ok(Some(Rollback { exclude_packages })));
        let error = of(json!({"rollback": {"when": "CheckFailed"}})).unwrap_err();
        assert!(error.starts_with("spec.rollback: there is no check"), "{error}");
    }

    #[test]
    fn a_cache_is_used_if_it_is_one() {
        let cache = |cache| site_cache(&serde_json::from_value(cache).unwrap()).map_err(|invalid| invalid.0);
        let found = cache(json!({"url": "http://cache:3142"}));
        assert_eq!(found, Ok(SiteCache { url: "http://cache:3142".into(), when_down: WhenDown::Direct }));
        // What the API server lets pass.
        let error = cache(json!({"url": "http://cache:99999", "whenDown": "Wait"})).unwrap_err();
        assert!(error.starts_with("spec.siteCache.url: must be http://HOST:PORT"), "{error}");
    }

    #[test]
    fn what_cannot_be_meant_names_its_field() {
        let wrong = |spec| of(spec).unwrap_err();
        let check = wrong(json!({"checks": [{"name": "a", "tcp": {"port": 1}, "http": {"port": 1}}]}));
        assert!(check.starts_with("spec.checks[0]: give exactly one of"), "{check}");
        // Ten seconds before, and after them for as long as the whole limit.
        let slow = json!({"checks": [{"name": "a", "tcp": {"port": 1}, "settleSeconds": 1800}]});
        assert!(wrong(slow.clone()).starts_with("spec.installLimit: hooks and checks may take 1820 s"));
        let mut enough = slow;
        enough["installLimit"] = "31m".into();
        assert!(wrong(enough.clone()).contains("installLimit"));
        enough["installLimit"] = "32m".into();
        assert!(of(enough).is_ok());
    }
}
