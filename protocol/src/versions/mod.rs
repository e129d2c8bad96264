//! Which of two versions of a package is later, for every package manager that has rules of its own: the agent goes by it on the
//! device, the planner and the vulnerability data in the cluster. Pure.

pub mod deb;
pub mod rpm;
