//! Orders on a real apt: a Debian root (`PATCHWARDEN_DEVICE_ROOT`) and a gateway that is a test: `make agent-tests`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "what is tested here runs on the real clock")]

mod agent;
mod crashes;
mod device;
mod downloads;
mod gateway;
mod install;
mod restarts;
mod take_back;
mod world;
