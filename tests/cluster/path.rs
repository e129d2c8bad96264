//! The whole path: YAML in, a machine patched by a Job, compliance out.

use patchwarden_protocol::result::Outcome;

use crate::Test;
use crate::world::{World, eventually};

pub const TESTS: &[Test] =
    &[("approved_updates_are_installed_and_others_are_not", approved_updates_are_installed_and_others_are_not)];

// covers MW-4, RM-5, EM-18
fn approved_updates_are_installed_and_others_are_not(world: &World) {
    let repository = world.repository("path", &["alpha=1.0", "alpha=1.1", "beta=1.0", "beta=1.1"]);
    let device = world.device("path-1", &repository, &[]);
    device.install(&["alpha=1.0", "beta=1.0"]);
    let before = device.packages();
    let tenant = world.tenant();
    tenant.apply(crate::world::OPEN_WINDOW);
    tenant.apply(crate::world::POLICY);
    tenant.apply(
        "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: everybody}
spec:
  members: {selector: {}}
  decisions: [{update: 'pkg:deb/debian/alpha@1.1', action: Approve}]
",
    );
    tenant.join(&device);
    let done = tenant.wait_for("path-1", "alpha is installed", |device| {
        let compliance = device.status.as_ref().and_then(|status| status.compliance.as_ref());
        compliance.is_some_and(|c| {
            c.current.is_none() && c.last.first().is_some_and(|past| past.outcome == Some(Outcome::Succeeded))
        })
    });
    assert_eq!(device.version("alpha"), "1.1");
    assert_eq!(device.packages(), before.replace("alpha 1.0", "alpha 1.1"), "nothing else changed");
    assert_eq!(device.run(&["find", "/var/lib/patchwarden/orders", "-name", "*.deb"]), "");
    let compliance = done.status.unwrap().compliance.unwrap();
    assert_eq!((compliance.counts.missing, compliance.counts.awaiting_approval), (0, 1));
    let jobs = tenant.jobs();
    assert_eq!(jobs.len(), 1);
    world.kubectl(&["wait", "-n", &tenant.name, "--for=condition=Complete", "--timeout=600s", "job/path-1-0-1"]);
    let log = world.kubectl(&["logs", "-n", &tenant.name, "job/path-1-0-1"]);
    assert!(log.contains("alpha") && log.contains("1.1"), "{log}");
    eventually("the policy tells of it", || {
        (tenant.get(&["pp", "everything"])["status"]["compliant"] == "1/1").then_some(())
    })
    .unwrap();
    let of = format!("namespace=\"{}\"", tenant.name);
    let shown = [
        format!("condition{{kind=\"ApprovalGroup\",name=\"everybody\",{of},status=\"True\",type=\"Ready\"}}"),
        format!("condition{{kind=\"PatchPolicy\",name=\"everything\",{of},status=\"True\",type=\"Ready\"}}"),
        format!("devices{{compliance=\"UpToDate\",{of}}}"),
        format!("install_duration_seconds_count{{{of}}}"),
        format!("policy_info{{mode=\"Install\",{of},policy=\"everything\",suspended=\"false\"}}"),
        format!("updates_missing{{{of},severity=\"Unknown\"}}"),
        format!("window_open{{{of},window=\"anytime\"}}"),
    ];
    for sample in shown {
        let value = || world.metric("controller", &format!("patchwarden_{sample}"));
        eventually(&format!("{sample} is 1"), || ((value() - 1.0).abs() < 0.1).then_some(())).unwrap();
    }
    let oldest = format!("patchwarden_updates_oldest_missing_timestamp_seconds{{{of},severity=\"Unknown\"}}");
    let age = jiff::Timestamp::now().duration_since(jiff::Timestamp::UNIX_EPOCH).as_secs_f64()
        - world.metric("controller", &oldest);
    assert!((0.0..600.0).contains(&age), "it has been known for {age} s");
}
