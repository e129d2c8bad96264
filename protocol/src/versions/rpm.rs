//! The order of versions, as rpm sees it (rpm-version(7)).

use std::cmp::Ordering;

/// Compares `[EPOCH:]VERSION[-RELEASE]`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    // An absent epoch is the same as 0. A release that only one side names says nothing.
    let release = || match (a.2, b.2) {
        (Some(a), Some(b)) => part(a, b),
        _ => Ordering::Equal,
    };
    part(a.0, b.0).then_with(|| part(a.1, b.1)).then_with(release)
}

/// Whether rpm takes it for `[EPOCH:]VERSION[-RELEASE]`: an epoch of 32 bits, and letters, digits and `._+~^` in the others (what
/// rpmbuild allows in a package's Version and Release: rpm-version(7)). Some build systems put a `-` into a version: it then
/// belongs to all before the last one.
pub fn is_valid(version: &str) -> bool {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (Some(epoch), rest),
        None => (None, version),
    };
    let is_epoch = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u32>().is_ok();
    let is_of = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    let (version, release) = match rest.rsplit_once('-') {
        Some((version, release)) => (version, Some(release)),
        None => (rest, None),
    };
    epoch.is_none_or(is_epoch) && is_of(version, b"._+~^-") && release.is_none_or(|it| is_of(it, b"._+~^"))
}

fn parts(version: &str) -> (&str, &str, Option<&str>) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    match rest.rsplit_once('-') {
        Some((version, release)) => (epoch, version, Some(release)),
        None => (epoch, rest, None),
    }
}

/// Segments of digits and of letters in turns; what is neither only separates them. `~` sorts before everything, even
/// before the end; `^` after the end, and before everything else.
fn part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (without_separators(a), without_separators(b));
        match (a.first(), b.first()) {
            (Some(b'~'), Some(b'~')) | (Some(b'^'), Some(b'^')) => (a, b) = (&a[1..], &b[1..]),
            (Some(b'~'), _) => return Ordering::Less,
            (_, Some(b'~')) => return Ordering::Greater,
            (None, None) => return Ordering::Equal,
            (None | Some(b'^'), Some(_)) => return Ordering::Less,
            (Some(_), None | Some(b'^')) => return Ordering::Greater,
            (Some(first), Some(other)) => {
                let is_number = first.is_ascii_digit();
                if is_number != other.is_ascii_digit() {
                    // A number is later than letters.
                    return if is_number { Ordering::Greater } else { Ordering::Less };
                }
                let (segment_a, rest_a) = segment(a, is_number);
                let (segment_b, rest_b) = segment(b, is_number);
                let ordering = if is_number { numbers(segment_a, segment_b) } else { segment_a.cmp(segment_b) };
                if ordering.is_ne() {
                    return ordering;
                }
                (a, b) = (rest_a, rest_b);
            }
        }
    }
}

fn without_separators(text: &[u8]) -> &[u8] {
    let is_separator = |byte: &u8| !byte.is_ascii_alphanumeric() && !matches!(byte, b'~' | b'^');
    let start = text.iter().position(|byte| !is_separator(byte)).unwrap_or(text.len());
    &text[start..]
}

fn segment(text: &[u8], is_number: bool) -> (&[u8], &[u8]) {
    let belongs = |byte: &u8| if is_number { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() };
    text.split_at(text.iter().position(|byte| !belongs(byte)).unwrap_or(text.len()))
}

/// Of any length.
fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let bare = |text: &[u8]| {
        let zeros = text.iter().take_while(|digit| **digit == b'0').count();
        text[zeros..].to_vec()
    };
    let (a, b) = (bare(a), bare(b));
    a.len().cmp(&b.len()).then_with(|| a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_rpms_order() {
        let rising = [
            "1.0~rc1~git3-1",
            "1.0~rc1-1",
            "1.0~rc1^20260101-1",
            "1.0~rc2-1",
            "1.0-1",
            "1.0-1.el9",
            "1.0-1.el9_4.2",
            "1.0-2",
            "1.0-10",
            "1.0^20260101-1",
            "1.0^20260102-1",
            "1.0.a-1",
            "1.0.1-1",
            "1.2-1",
            "1.10-1",
            "1.10a-1",
            "1.10.1-1",
            "99999999999999999999999-1",
            "1:0.1-1",
            "2:0-1",
            "10:0-1",
        ];
        for (at, a) in rising.iter().enumerate() {
            for (other, b) in rising.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} and {b}");
            }
        }
        for (a, b) in [("1.0-1", "0:1.0-1"), ("1.01-1", "1.1-1"), ("1_0-1", "1.0-1"), ("1.0", "1.0-7"), ("1.", "1")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} and {b}");
        }
    }

    #[test]
    fn what_rpm_takes_for_no_version_is_none() {
        for good in ["1", "0:3.0.7-27.el9_4", "1.0~rc1^git1-1", "1_0-1", "2147483647:1", "4.18.0-553.el8_10"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", ":1", "1:", "x:1", "-1", "1-", "4294967296:1", "+1:1", "1 2", "1/2", "1:2:3", "1-2:3", "1é"] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
