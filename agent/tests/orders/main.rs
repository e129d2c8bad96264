//! Orders on a real apt, a real dnf 4 and 5, a real zypper, a real systemd and the programs of a real GRUB: root file systems
//! (`PATCHWARDEN_DEVICE_ROOT`, `PATCHWARDEN_DNF_ROOT`, `PATCHWARDEN_DNF5_ROOT`, `PATCHWARDEN_ZYPPER_ROOT`, `PATCHWARDEN_SYSTEMD_ROOT`,
//! `PATCHWARDEN_GRUB_ROOT`) and a gateway that is a test: `make agent-tests`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "what is tested here runs on the real clock")]

mod agent;
mod apt;
mod beside;
mod changes;
mod crashes;
mod device;
mod dnf;
mod doctor;
mod downloads;
mod gateway;
mod guards;
mod host;
mod hostile;
mod install;
mod inventory;
mod kept;
mod kernels;
mod kills;
mod limits;
mod locks;
mod macos;
mod package;
mod recipes;
mod restarts;
mod room;
mod rpm;
mod site_cache;
mod sources;
mod systemd;
mod take_back;
mod updater;
mod upstream;
mod world;
mod zypper;
