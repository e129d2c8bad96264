//! What the planner must answer, said another way: slowly, by trying everything, and sharing no code with it.

mod approval;
mod eligible;
mod rings;
mod selection;
mod windows;

pub use approval::{approved, deadline, doubtful, glob, missing, removes, shared, update_of, vendors_dates};
pub use eligible::{
    What, allowed, checked, eligible, eligible_by_itself, eligible_within, has_failed, install, may_restart,
    restart_until, starts_alone,
};
pub use rings::{failed_on, has_installed, is_pardoned, places, progress, ring_of, some_of};
pub use selection::{
    certain_group_of, failed, group_of, never_opens, overlap, policy_never_opens, policy_of, remembered_groups_of,
    unknown, unlabelled, unprovable,
};
pub use windows::{goes_by_windows, last_start, open, open_until, openings};
