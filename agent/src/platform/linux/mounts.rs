//! What is mounted where, as this process sees it: proc_pid_mountinfo(5).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

const MOUNTS: &str = "/proc/self/mountinfo";

/// What packages have most of their files in. Of `/boot` only a kernel's files take much: see [`super::BOOT`].
const PLACES: [&str; 3] = ["/usr", "/var", "/opt"];

/// Kinds of file systems that another machine or a program has, beside all whose name begins with `fuse`. Who asks one how much is free
/// may wait for ever.
const REMOTE: [&str; 12] =
    ["9p", "afs", "autofs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "lustre", "nfs", "nfs4", "smb3"];

/// A mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    /// What its free space is shared in.
    pool: String,
}

/// Where something is mounted.
pub(super) fn points() -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read(MOUNTS).map_err(|error| io::Error::new(error.kind(), format!("{MOUNTS}: {error}")))?;
    Ok(points_of(&mounts))
}

fn points_of(mounts: &[u8]) -> Vec<PathBuf> {
    let points = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(unescaped).collect()
}

/// Places that packages have files in and that have free space of their own, on this machine. None where that cannot be told: all is
/// taken for one file system then.
pub(crate) fn parts() -> Vec<PathBuf> {
    match fs::read(MOUNTS) {
        Ok(mounts) => parts_of(&mounts),
        Err(error) => {
            tracing::warn!("{MOUNTS}: {error}: /usr, /var and /opt are taken for parts of /");
            Vec::new()
        }
    }
}

fn parts_of(mounts: &[u8]) -> Vec<PathBuf> {
    // What was mounted last at a place is what is seen there.
    let mounts: BTreeMap<PathBuf, Mount> = parse(mounts).into_iter().map(|it| (it.point.clone(), it)).collect();
    let mut pools: Vec<&str> = mounts.get(&PathBuf::from("/")).map(|root| root.pool.as_str()).into_iter().collect();
    let mut found = Vec::new();
    for place in PLACES.map(PathBuf::from) {
        let Some(mount) = mounts.get(&place) else { continue };
        let is_remote = REMOTE.contains(&mount.kind.as_str()) || mount.kind.starts_with("fuse");
        if !is_remote && !pools.contains(&mount.pool.as_str()) {
            pools.push(&mount.pool);
            found.push(place);
        }
    }
    found
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`, with any number of fields before the hyphen.
fn parse(mounts: &[u8]) -> Vec<Mount> {
    let read = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let point = unescaped(fields.get(4)?);
        let hyphen = fields.iter().skip(6).position(|field| field == b"-")? + 6;
        let (kind, source) = (text(fields.get(hyphen + 1)?), text(fields.get(hyphen + 2)?));
        // Subvolumes and datasets have a number of their own each, and the room of all.
        let pool = match kind.as_str() {
            "btrfs" => source,
            "zfs" => source.split('/').next().unwrap_or_default().to_owned(),
            _ => text(fields.get(2)?),
        };
        Some(Mount { point, kind, pool })
    };
    mounts.split(|byte| *byte == b'\n').filter_map(read).collect()
}

/// The kernel writes blanks, line ends and backslashes as `\` and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = escaped.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_has_its_place_its_kind_and_where_its_room_comes_from() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
                     37 35 0:31 /@/var /var rw shared:3 - btrfs /dev/sda2 rw,subvol=/@/var\n\
                     38 35 0:32 / /opt rw - zfs rpool/opt rw\nnot a mount\n";
        let mount = |point: &str, kind: &str, pool: &str| Mount {
            point: point.into(),
            kind: kind.to_owned(),
            pool: pool.to_owned(),
        };
        let expected =
            [mount("/mnt 2", "ext3", "98:0"), mount("/var", "btrfs", "/dev/sda2"), mount("/opt", "zfs", "rpool")];
        assert_eq!(parse(text), expected);
        let points = ["/mnt1", "/mnt 2", "/var"].map(PathBuf::from);
        let of_unknown_form = b"1 1 8:1 / /mnt1 rw\n1 1 8:1 / /mnt\\0402\nless\n1 1 8:1 / /var rw - ext4 a rw";
        assert_eq!(points_of(of_unknown_form), points, "whatever else is in a line");
    }

    #[test]
    fn a_part_has_room_of_its_own_on_this_machine() {
        let line = |device: &str, point: &str, kind: &str, source: &str| {
            format!("1 1 {device} / {point} rw - {kind} {source} rw\n")
        };
        let root = line("8:1", "/", "ext4", "/dev/sda1");
        for (mounts, expected) in [
            (String::new(), &[][..]),
            (root.clone(), &[]),
            (line("8:2", "/usr", "ext4", "/dev/sda2"), &["/usr"]),
            (root.clone() + &line("8:2", "/var", "ext4", "/dev/sda2"), &["/var"]),
            (root.clone() + &line("8:1", "/opt", "ext4", "/dev/sda1"), &[]),
            (root.clone() + &line("8:2", "/usr/share", "ext4", "/dev/sda2"), &[]),
            (root.clone() + &line("0:9", "/opt", "nfs4", "nas:/opt"), &[]),
            (root.clone() + &line("0:9", "/opt", "fuse.sshfs", "nas:/opt"), &[]),
            // What is mounted over it counts.
            (root.clone() + &line("0:9", "/opt", "nfs4", "nas:/") + &line("8:3", "/opt", "xfs", "/dev/b"), &["/opt"]),
            // Two places of one.
            (root + &line("8:2", "/usr", "xfs", "/dev/b") + &line("8:2", "/var", "xfs", "/dev/b"), &["/usr"]),
            (line("0:1", "/", "btrfs", "/dev/a") + &line("0:2", "/var", "btrfs", "/dev/a"), &[]),
            (line("0:1", "/", "zfs", "rpool/root") + &line("0:2", "/var", "zfs", "rpool/var"), &[]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(parts_of(mounts.as_bytes()), expected, "{mounts}");
        }
    }
}
