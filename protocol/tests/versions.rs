//! The order of versions agrees with the programs whose order it is: dpkg, and librpm through rpm's Lua.
//!
//! Half of the pairs are real: versions of packages of Debian 12 and its security updates, beside each other in the order of their
//! text, since what is alike is where an order errs. The others are those with one place changed. Always the same ones.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use patchwarden_protocol::versions::{deb, rpm};

/// Real versions, a line each: 1,379 of the 21,631 that Debian's `Packages` have.
const REAL: &str = include_str!("data/debian-versions.txt");

/// Pairs that are compared with each program.
const PAIRS: usize = 10_000;

/// What is put into a version in place of a character.
const PIECES: [&str; 24] = [
    "0", "1", "9", "00", "10", "a", "b", "z", "A", "Z", ".", "..", "+", "-", "~", "~~", "rc", "deb12u1", "+b1", ":",
    "1:", "el9_4", "", "01",
];

/// SplitMix64 (Steele, Lea and Flood 2014): the same numbers everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).expect("it is below a usize")
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Pairs of versions of which `is_valid` takes both.
fn pairs(count: usize, real: &[&str], is_valid: fn(&str) -> bool) -> Vec<(String, String)> {
    let mut numbers = Numbers(20_261_128);
    let mut pairs = Vec::new();
    while pairs.len() < count {
        let at = numbers.below(real.len() - 1);
        let (a, b) = (real[at].to_owned(), real[at + 1].to_owned());
        let pair = match numbers.below(4) {
            0 => (a, b),
            1 => (a, numbers.pick(real).to_owned()),
            _ => {
                let changed = changed(&a, &mut numbers);
                (a, changed)
            }
        };
        if is_valid(&pair.0) && is_valid(&pair.1) {
            pairs.push(pair);
        }
    }
    pairs
}

fn changed(version: &str, numbers: &mut Numbers) -> String {
    let at = numbers.below(version.len());
    let piece = numbers.pick(&PIECES);
    let rest = &version[at + usize::from(numbers.below(2) == 0)..];
    format!("{}{piece}{rest}", &version[..at])
}

fn assert_agrees(pairs: &[(String, String)], theirs: &[Ordering], compare: fn(&str, &str) -> Ordering) {
    assert_eq!(pairs.len(), theirs.len());
    let orders = [Ordering::Less, Ordering::Equal, Ordering::Greater]
        .map(|order| theirs.iter().filter(|it| **it == order).count());
    assert!(orders.iter().all(|count| count * 100 > pairs.len()), "not all answers are tried: {orders:?}");
    for ((a, b), expected) in pairs.iter().zip(theirs) {
        assert_eq!(compare(a, b), *expected, "{a} and {b}");
        assert_eq!(compare(b, a), expected.reverse(), "{b} and {a}");
    }
}

#[test]
fn dpkg_agrees() {
    if Command::new("dpkg").arg("--version").output().is_err() {
        eprintln!("NOT TESTED: there is no dpkg here");
        return;
    }
    let real: Vec<&str> = REAL.lines().collect();
    let pairs = pairs(PAIRS, &real, deb::is_valid);
    let script = r#"while read -r a b; do
        if dpkg --compare-versions "$a" lt "$b"; then echo '<'
        elif dpkg --compare-versions "$a" eq "$b"; then echo '='
        elif dpkg --compare-versions "$a" gt "$b"; then echo '>'
        else echo '?'
        fi
    done"#;
    let mut shell = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = shell.stdin.take().unwrap();
    let lines = pairs.iter().fold(String::new(), |mut lines, (a, b)| {
        writeln!(lines, "{a} {b}").expect("a text takes it");
        lines
    });
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = shell.wait_with_output().unwrap();
    writer.join().unwrap();
    let theirs: Vec<Ordering> = String::from_utf8(output.stdout).unwrap().lines().map(order).collect();
    assert_agrees(&pairs, &theirs, deb::compare);
}

fn order(sign: &str) -> Ordering {
    match sign {
        "<" | "-1" => Ordering::Less,
        "=" | "0" => Ordering::Equal,
        ">" | "1" => Ordering::Greater,
        other => panic!("{other:?} is no answer"),
    }
}

/// `rpm.vercmp` compares one part, a Version or a Release.
#[test]
fn rpm_agrees() {
    let parts: Vec<&str> = REAL
        .lines()
        .flat_map(|version| {
            let bare = version.split_once(':').map_or(version, |(_, rest)| rest);
            bare.rsplit_once('-').map_or(vec![bare], |(version, release)| vec![version, release])
        })
        .collect();
    let is_part = |part: &str| rpm::is_valid(part) && !part.contains(['-', ':']);
    let pairs = with_carets(pairs(PAIRS, &parts, is_part));
    let theirs = by_lua(&pairs, |a, b| format!("print(rpm.vercmp('{a}', '{b}'), ' ')"));
    assert_agrees(&pairs, &theirs, rpm::compare);
}

/// `rpm.ver` reads all of `[EPOCH:]VERSION[-RELEASE]`. It takes a release that only one side names for more, where rpm's dependencies,
/// and we, take it to say nothing: here both have one, or neither.
#[test]
fn rpm_agrees_on_whole_versions() {
    let real: Vec<&str> = REAL.lines().collect();
    let pairs = with_carets(pairs(PAIRS, &real, rpm::is_valid));
    let pairs: Vec<_> = pairs.into_iter().filter(|(a, b)| a.contains('-') == b.contains('-')).collect();
    assert!(pairs.len() * 10 > PAIRS * 9, "{} are left", pairs.len());
    let theirs = by_lua(&pairs, |a, b| {
        format!("a, b = rpm.ver('{a}'), rpm.ver('{b}') print(a < b and -1 or (a == b and 0 or 1), ' ')")
    });
    assert_agrees(&pairs, &theirs, rpm::compare);
}

/// Some of which have what only rpm knows.
fn with_carets(pairs: Vec<(String, String)>) -> Vec<(String, String)> {
    let changed = |(at, (a, b)): (usize, (String, String))| if at % 3 == 0 { (a, b.replace('+', "^")) } else { (a, b) };
    pairs.into_iter().enumerate().map(changed).collect()
}

/// What rpm's Lua prints of each pair.
fn by_lua(pairs: &[(String, String)], call: impl Fn(&str, &str) -> String) -> Vec<Ordering> {
    let mut theirs = Vec::new();
    // As many as fit into one argument.
    for some in pairs.chunks(500) {
        let calls: Vec<String> = some.iter().map(|(a, b)| call(a, b)).collect();
        let output = Command::new("rpm").args(["--eval", &format!("%{{lua: {}}}", calls.join(" "))]).output();
        let output = output.expect("rpm is there: hack/prerequisites installs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        theirs.extend(String::from_utf8(output.stdout).expect("rpm answers in UTF-8").split_whitespace().map(order));
    }
    theirs
}

/// dpkg refuses what [`deb::is_valid`] refuses, and takes what it takes.
#[test]
fn dpkg_takes_the_same_for_a_version() {
    let texts = [
        "1",
        "a",
        "1:1",
        "1:2:3-4",
        "",
        ":1",
        "1:",
        "x:1",
        "1-",
        "-1",
        "2147483648:1",
        "1_2",
        "1-2_3",
        "1 2",
        "1/2",
        "1~",
    ];
    for text in texts {
        let Ok(output) = Command::new("dpkg").args(["--validate-version", text]).output() else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Its warnings are about what should begin with a digit, which is taken here, and signs that have no place in it.
        let is_refused = said.contains("error:") || said.contains("invalid character");
        assert_eq!(deb::is_valid(text), !is_refused, "{text:?}: {said}");
    }
}
