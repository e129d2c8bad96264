//! Orders on a real apt and a real dnf: root file systems (`PATCHWARDEN_DEVICE_ROOT`, `PATCHWARDEN_DNF_ROOT`) and a gateway that is
//! a test: `make agent-tests`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "what is tested here runs on the real clock")]

mod agent;
mod crashes;
mod device;
mod dnf;
mod doctor;
mod downloads;
mod gateway;
mod install;
mod limits;
mod package;
mod restarts;
mod take_back;
mod updater;
mod world;
