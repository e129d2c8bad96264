//! Versions of third-party applications, and which of two is later.

use std::cmp::Ordering;

/// At most so many numbers.
const MAX_NUMBERS: usize = 6;

/// Longest build suffix, in characters.
const MAX_SUFFIX: usize = 40;

/// `1.31.0`, or with a build `1.29.3+k3s1`, `21.0.2+13`. Pre-releases have no place here: nobody is brought to one.
#[derive(Clone, Debug)]
pub struct Version {
    numbers: Vec<u64>,
    /// The build in runs of digits and of other characters.
    build: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Text(String),
    Number(u64),
}

impl Version {
    /// Numbers with dots between them, at most 6 of at most 15 digits, and perhaps `+` and a build of letters, digits and dots.
    /// Nothing for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (numbers, build) = match text.split_once('+') {
            Some((numbers, build)) => (numbers, Some(build)),
            None => (text, None),
        };
        let numbers: Vec<u64> = numbers.split('.').map(number).collect::<Option<_>>()?;
        let build = match build {
            Some(build) => parts(build)?,
            None => Vec::new(),
        };
        (numbers.len() <= MAX_NUMBERS).then_some(Self { numbers, build })
    }

    /// Whether this one comes after the other: by the numbers, of which a missing one is 0, then by the build.
    pub fn is_later_than(&self, other: &Self) -> bool {
        let length = self.numbers.len().max(other.numbers.len());
        let at = |version: &Self, index: usize| version.numbers.get(index).copied().unwrap_or_default();
        let by_numbers =
            (0..length).map(|index| at(self, index).cmp(&at(other, index))).find(|order| *order != Ordering::Equal);
        by_numbers.unwrap_or_else(|| self.build.cmp(&other.build)) == Ordering::Greater
    }
}

/// `u64` holds 15 digits.
fn number(text: &str) -> Option<u64> {
    let is_number = (1..=15).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn parts(build: &str) -> Option<Vec<Part>> {
    let is_build = (1..=MAX_SUFFIX).contains(&build.len())
        && build.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    if !is_build {
        return None;
    }
    let runs = build.as_bytes().chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit());
    runs.map(|run| {
        let run = std::str::from_utf8(run).ok()?;
        if run.starts_with(|c: char| c.is_ascii_digit()) {
            number(run).map(Part::Number)
        } else {
            Some(Part::Text(run.to_owned()))
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_is_by_numbers_then_by_build() {
        let later = |a: &str, b: &str| Version::parse(a).unwrap().is_later_than(&Version::parse(b).unwrap());
        for (earlier, one) in [
            ("1.9.0", "1.10.0"),
            ("1.2", "1.2.1"),
            ("9", "10"),
            ("1.29.3", "1.29.3+k3s1"),
            ("1.29.3+k3s9", "1.29.3+k3s10"),
            ("1.29.3+k3s2", "1.29.4+k3s1"),
            ("21.0.2+13", "21.0.2.1+1"),
        ] {
            assert!(later(one, earlier) && !later(earlier, one), "{one} is later than {earlier}");
        }
        assert!(!later("1.2", "1.2.0") && !later("1.2.0", "1.2"), "a missing number is 0");
    }

    #[test]
    fn what_is_no_version_is_told() {
        for bad in [
            "",
            "v1",
            "1.",
            ".1",
            "1..2",
            "1.2-rc.1",
            "1+",
            "1+a b",
            "1+a+b",
            "1.2.3.4.5.6.7",
            "1234567890123456",
            "1\n",
        ] {
            assert!(Version::parse(bad).is_none(), "{bad:?}");
        }
        assert!(Version::parse(&format!("1+{}", "x".repeat(41))).is_none());
    }
}
