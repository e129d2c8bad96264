//! How much of anything is read. A file that has more is refused, with the limit in the message: nothing is cut silently.

/// Bytes of one OSV record. The largest of Debian's, with all versions of the kernel in it, have some hundred KB.
pub const MAX_RECORD: u64 = 16 << 20;

/// Bytes of one CSAF document, which is in memory as a whole: its vulnerabilities refer to its product tree. The largest VEX files
/// of Red Hat, about vulnerabilities in everything, have more: they are refused.
pub const MAX_DOCUMENT: u64 = 64 << 20;

/// Bytes of a KEV catalogue: CISA's has 2 MB after five years.
pub const MAX_CATALOGUE: u64 = 32 << 20;

/// Bytes of an EPSS list once it is unpacked: FIRST's has 10 MB.
pub const MAX_LIST: u64 = 256 << 20;

/// Bytes of one line of an EPSS list.
pub const MAX_LINE: usize = 256;

/// Bytes of a zip archive.
pub const MAX_ARCHIVE: u64 = 1 << 30;

/// Records of an archive, and files below a directory: their names are in memory.
pub const MAX_RECORDS: usize = 500_000;

/// Directories within each other.
pub const MAX_DEPTH: usize = 8;

/// Characters of an advisory's id, a CVE, a platform.
pub const MAX_ID: usize = 128;

/// Characters of a package's name.
pub const MAX_NAME: usize = 256;

/// Characters of a version.
pub const MAX_VERSION: usize = 256;

/// CVEs of one record: an advisory about a kernel names hundreds.
pub const MAX_CVES: usize = 4_096;

/// Versions and events of one package in one record.
pub const MAX_VERSIONS: usize = 100_000;

/// Statements of one record or document.
pub const MAX_STATEMENTS: usize = 200_000;
