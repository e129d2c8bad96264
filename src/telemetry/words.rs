//! Every span and every attribute, each once, with what `docs/traces.md` says of it.

use patchwarden_protocol::report::DeviceRef;

use super::Value;

/// A span's name.
#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    /// As traces have it.
    pub name: &'static str,
    /// Whose it is: the service's name.
    pub service: &'static str,
    /// From when to when.
    pub help: &'static str,
}

/// An attribute's name.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// As spans have it.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
}

impl Key {
    /// With a value.
    pub fn is(&'static self, value: impl Into<Value>) -> (&'static Self, Value) {
        (self, value.into())
    }
}

macro_rules! list {
    ($(#[$doc:meta])* $all:ident: $kind:ident; $($name:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        $(#[doc = concat!("See [`", stringify!($all), "`].")] pub static $name: $kind = $kind { $($field: $value),* };)*
        $(#[$doc])*
        pub static $all: &[&$kind] = &[$(&$name),*];
    };
}

/// The agent's spans, which the gateway tells for it.
pub const AGENT: &str = "patchwarden-agent";
const CONTROLLER: &str = "patchwarden-controller";
const GATEWAY: &str = "patchwarden-gateway";
const RUNNER: &str = "patchwarden-runner";

list! {
    /// All spans.
    SPANS: Name;
    INSTALL { name: "install", service: CONTROLLER, help: "the root: from the claim (its second) until what came of it is in the device's status" }
    CLAIM { name: "claim", service: CONTROLLER, help: "from the start of the pass that planned it until the claim is in the device's status" }
    CREATE_JOB { name: "create Job", service: CONTROLLER, help: "the call that makes the Job" }
    RECORD { name: "record", service: CONTROLLER, help: "from the start of the pass that saw the result, or that its time is over, until that is in the device's status" }
    RUN { name: "run order", service: RUNNER, help: "from the start of the Job's pod to its end; a pod that was told to stop leaves the rest to the next" }
    RECEIVE { name: "receive order", service: GATEWAY, help: "the runner's call until it is known who calls, and the order is verified and kept" }
    DELIVER { name: "deliver order", service: GATEWAY, help: "from then on, or from when this gateway has taken the order up, until it is handed to the device's session" }
    KEEP { name: "record result", service: GATEWAY, help: "from the signed result's arrival until it is in the store" }
    ORDER { name: "order", service: AGENT, help: "from when the agent has accepted the order, or refused it, until its result is signed" }
    WAIT { name: "wait", service: AGENT, help: "phase Delivered" }
    SIMULATE { name: "simulate", service: AGENT, help: "phase Verified: the package manager says what it would do, and that is judged" }
    DOWNLOAD { name: "download", service: AGENT, help: "phase Simulated: files are downloaded, verified and tried" }
    AWAIT_GRANT { name: "await grant", service: AGENT, help: "phase Downloaded: the controller is asked whether it may begin" }
    PREPARE { name: "prepare", service: AGENT, help: "phase Granted: the last looks before the package manager, or a restart, begins" }
    GUARD { name: "checks and hooks", service: AGENT, help: "phase Guarding" }
    PACKAGES { name: "install packages", service: AGENT, help: "phase Installing: the package manager is at work" }
    CHECK { name: "check packages", service: AGENT, help: "phase Checking: its database is read, and the device is scanned" }
    RESTART { name: "restart", service: AGENT, help: "phase Restarting: from the warning, or the command, until the agent is back and looks" }
}

list! {
    /// All attributes.
    ATTRIBUTES: Key;
    NAMESPACE { name: "k8s.namespace.name", help: "the client's namespace" }
    JOB { name: "k8s.job.name", help: "the install's Job" }
    DEVICE { name: "patchwarden.device.name", help: "the DeviceInventory" }
    DIGEST { name: "patchwarden.order.digest", help: "the order; its first 32 digits are the trace's id" }
    SEQUENCE { name: "patchwarden.order.sequence", help: "epoch and number" }
    POLICY { name: "patchwarden.policy.name", help: "the PatchPolicy" }
    VERB { name: "patchwarden.verb", help: "Install, Download, Uninstall or Restart" }
    UPDATES { name: "patchwarden.updates", help: "how many updates" }
    OUTCOME { name: "patchwarden.outcome", help: "how it ended; TimedOut and Released where no result came" }
    REASON { name: "patchwarden.reason", help: "why it did not succeed" }
    RESTARTS { name: "patchwarden.restarts", help: "restarts of the machine" }
    SKEW { name: "patchwarden.clock_skew_ms", help: "by how many milliseconds the agent's times were moved to the gateway's clock" }
    EXIT_CODE { name: "process.exit.code", help: "of the runner" }
}

/// Whose install it is.
pub fn device(device: &DeviceRef) -> [(&'static Key, Value); 2] {
    [NAMESPACE.is(device.namespace.as_str()), DEVICE.is(device.name.as_str())]
}
