//! What the controller, which makes the install Job, and the runner, which is its pod, agree on.

/// URL of the gateways' runners' door.
pub const ENV_GATEWAY: &str = "PATCHWARDEN_GATEWAY";
/// The CA of the gateways, PEM.
pub const ENV_CA: &str = "PATCHWARDEN_CA";
/// Name of the Job.
pub const ENV_JOB: &str = "PATCHWARDEN_JOB";
/// File with the pod's projected service-account token.
pub const ENV_TOKEN_FILE: &str = "PATCHWARDEN_TOKEN_FILE";

/// The device did everything it was ordered to.
pub const EXIT_SUCCEEDED: i32 = 0;
/// The device's answer is final (failed, refused, withdrawn, expired): the controller decides what follows.
pub const EXIT_FINAL: i32 = 10;
/// The gateway refused this pod.
pub const EXIT_REFUSED: i32 = 11;
/// The gateway could not be reached (`EX_TEMPFAIL` of sysexits.h): try again.
pub const EXIT_RETRY: i32 = 75;
