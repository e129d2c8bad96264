//! What is known of vulnerabilities: read from files in the formats in which it is published, and asked of a device's packages.
//!
//! ```text
//!   OSV    *.json, *.zip          \
//!   CSAF   *.json                  \   directory::read -> Entry, one after another -> the gateway's store
//!   KEV    *.json, *.csv           /
//!   EPSS   *.csv, *.csv.gz        /
//!
//!   Statements about a device's packages, from the store -> matching -> open vulnerabilities
//!   Statements of Debian and Ubuntu -> advisories, in the controller's memory -> what an update fixes
//! ```
//!
//! Files come from outside: what is not as its format says is refused with the file, the place in it and the reason, and every
//! size has a limit ([`limits`]). What cannot be said of a device with certainty is not said: a statement about a product that is
//! none of [`platform`]'s, or with a version that its package manager would not take, is counted and left out; a package whose
//! version is not known is [`matching::Answer::Unknown`].
//!
//! Nothing here has a clock, a network or a log.

pub mod advisories;
mod csaf;
pub mod directory;
mod epss;
#[doc(hidden)]
pub mod fuzzing;
mod kev;
pub mod limits;
pub mod matching;
mod osv;
pub mod platform;
mod reading;
pub mod statement;

pub use advisories::Advisories;
pub use directory::{Entry, Summary, read};
pub use platform::Platform;
pub use reading::{ReadError, Refused};
pub use statement::Statement;
