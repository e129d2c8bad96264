//! The order of versions, as dpkg sees it (Debian policy 5.6.12).

use std::cmp::Ordering;

/// Compares `[EPOCH:]UPSTREAM[-REVISION]`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    // An absent epoch or revision is the same as "0", and so is an empty text here.
    part(a.0, b.0).then_with(|| part(a.1, b.1)).then_with(|| part(a.2, b.2))
}

/// Whether dpkg takes it for a version (`parseversion` in its lib/dpkg/parsehelp.c; deb-version(7)): `[EPOCH:]UPSTREAM[-REVISION]`
/// with an epoch of at most 2^31 - 1, and nothing but letters, digits and `.+~` in the revision, `-` and `:` besides in the
/// upstream version. That the upstream version should begin with a digit dpkg only recommends.
pub fn is_valid(version: &str) -> bool {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (Some(epoch), rest),
        None => (None, version),
    };
    let (upstream, revision) = match rest.rsplit_once('-') {
        Some((upstream, revision)) => (upstream, Some(revision)),
        None => (rest, None),
    };
    let is_epoch =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<i32>().is_ok_and(|it| it >= 0);
    let is_of = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    epoch.is_none_or(is_epoch) && is_of(upstream, b".+~-:") && revision.is_none_or(|it| is_of(it, b".+~"))
}

fn parts(version: &str) -> (&str, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// In turns: what is not a digit, byte by byte; then a number, of any length.
fn part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        while starts_with_other(a) || starts_with_other(b) {
            let ordering = weight(a.first()).cmp(&weight(b.first()));
            if ordering.is_ne() {
                return ordering;
            }
            (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
        }
        let (number_a, rest_a) = number(a);
        let (number_b, rest_b) = number(b);
        let ordering = number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b));
        if ordering.is_ne() {
            return ordering;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

fn starts_with_other(text: &[u8]) -> bool {
    text.first().is_some_and(|byte| !byte.is_ascii_digit())
}

/// "~" before the end of the part, that before letters, those before everything else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        None => 0,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(b'~') => -1,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    }
}

/// The digits in front, without leading zeros, and what follows them.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    (&digits[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_dpkgs_order() {
        let rising = [
            "0~~",
            "0~~a",
            "0~",
            "0",
            "1.0~rc1",
            "1.0~rc1+b1",
            "1.0",
            "1.0-1~deb12u1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-1+deb12u1",
            "1.0-2",
            "1.0-10",
            "1.0a",
            "1.0+x",
            "1.0.1",
            "1.9",
            "1.10",
            "99999999999999999999999",
            "1:0.1",
            "2:0",
            "10:0",
        ];
        for (at, a) in rising.iter().enumerate() {
            for (other, b) in rising.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} and {b}");
            }
        }
        for (a, b) in [("1.0", "0:1.0"), ("1.0", "1.0-0"), ("1.01", "1.1"), ("1.0-00", "1.0")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} and {b}");
        }
    }

    #[test]
    fn what_dpkg_takes_for_no_version_is_none() {
        for good in ["1", "0", "1:2:3-4", "1.0-1-2", "2147483647:1", "1.0~rc1+b1-1~x.y", "r12"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "",
            ":1",
            "1:",
            "x:1",
            "-1",
            "1-",
            "2147483648:1",
            "+1:1",
            "1 2",
            "1_2",
            "1-2_3",
            "1/2",
            "1é",
            "<end-of-life>",
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
