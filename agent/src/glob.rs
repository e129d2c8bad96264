//! Names with `*` and `?`.

/// A pattern with `*` and `?`, for the whole of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob(String);

impl Glob {
    pub(crate) fn new(pattern: String) -> Self {
        Self(pattern)
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        // Which beginnings of the pattern match the text so far: one pass over the text, whatever the pattern.
        let mut reached = vec![false; pattern.len() + 1];
        reached[0] = true;
        let skip_stars = |reached: &mut [bool]| {
            for (index, wanted) in pattern.iter().enumerate() {
                reached[index + 1] |= reached[index] && *wanted == '*';
            }
        };
        skip_stars(&mut reached);
        for found in text.chars() {
            let mut next = vec![false; pattern.len() + 1];
            for (index, wanted) in pattern.iter().enumerate().filter(|(index, _)| reached[*index]) {
                match wanted {
                    '*' => next[index] = true,
                    '?' => next[index + 1] = true,
                    literal => next[index + 1] |= *literal == found,
                }
            }
            skip_stars(&mut next);
            reached = next;
        }
        reached[pattern.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_is_for_the_whole_text() {
        for (pattern, text, expected) in [
            ("bash", "bash", true),
            ("bash", "bash-doc", false),
            ("bash", "rbash", false),
            ("*", "", true),
            ("*", "x", true),
            ("?", "", false),
            ("lib*-dev", "libc6-dev", true),
            ("lib*-dev", "lib-dev-x-dev", true),
            ("lib*-dev", "libc6-devel", false),
            ("a**b?", "axxbc", true),
            ("a**b?", "ab", false),
            ("*a*a*a*a*a*a*a*a*b", &"a".repeat(500), false),
            ("é?", "éü", true),
        ] {
            assert_eq!(Glob::new(pattern.into()).matches(text), expected, "{pattern} {text}");
        }
    }
}
