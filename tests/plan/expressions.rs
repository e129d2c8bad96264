//! What expressions may be, and that groups tell apart all devices that an expression tells apart.

use std::sync::Arc;
use std::thread;

use jiff::Timestamp;
use patchwarden_plan::expression::{Expression, MAX_BRACKETS, MAX_CHARS, MAX_COMPREHENSIONS, MAX_DEPTH, Subject};
use patchwarden_plan::model::{Invalid, Os, Snapshot};
use patchwarden_plan::outcome::Decision;
use patchwarden_plan::plan;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;

use crate::properties::config;
use crate::scenario::{Past, World};

/// Why an expression over a device is refused, if it is. The parser needs much stack.
fn refusal(text: &str) -> Option<String> {
    let text = text.to_owned();
    let compiling =
        thread::Builder::new().stack_size(64 << 20).spawn(move || Expression::compile(&text, Subject::Device));
    let compiled = compiling.expect("a thread").join().unwrap_or_else(|_| panic!("it panicked"));
    compiled.err().map(|invalid| invalid.0)
}

/// Puts an expression into another.
type Wrap = fn(&str) -> String;

/// A sum of ones, nested so deep.
fn nested(depth: usize) -> String {
    vec!["1"; depth + 1].join(" + ")
}

#[test]
fn a_text_may_have_a_thousand_characters() {
    let text = |characters: usize| format!(r#"device.name == "{}""#, "ü".repeat(characters - 17));
    assert_eq!(text(MAX_CHARS).chars().count(), 1000);
    assert_eq!(refusal(&text(MAX_CHARS)), None);
    assert_eq!(refusal(&text(MAX_CHARS + 1)).as_deref(), Some("longer than 1000 characters"));
}

#[test]
fn brackets_may_be_inside_one_another_but_not_too_deep() {
    let within = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(refusal(&within(MAX_DEPTH)), None);
    assert_eq!(refusal(&within(MAX_DEPTH + 1)).as_deref(), Some("more than 24 brackets inside one another"));
    // Those that follow each other are not inside one another.
    assert_eq!(refusal(&format!("size([{}]) > 0", vec!["(1)"; 40].join(", "))), None);
}

/// What strings and comments hide closes nothing. Each would go down hundreds of times.
#[test]
fn brackets_in_strings_and_comments_do_not_hide_how_deep_the_others_are() {
    let too_many = Some("more than 64 opening brackets");
    let hidden = |around: &dyn Fn(String) -> String, times: usize| {
        format!("{}{}", "(".repeat(24), around(")".repeat(24))).repeat(times)
    };
    let around: [&dyn Fn(String) -> String; 5] = [
        &|closing| format!("\"{closing}\"+"),
        &|closing| format!("'{closing}'+"),
        &|closing| format!("r\"\"\"{closing}\"\"\"+"),
        &|closing| format!("b'{closing}'+"),
        &|closing| format!("//{closing}\n"),
    ];
    for around in around {
        let text = hidden(around, 17);
        assert!(text.chars().count() <= MAX_CHARS, "{text}");
        assert_eq!(refusal(&text).as_deref(), too_many, "{text}");
    }
    // As many as there may be, all of them open.
    let deepest = format!("{}true{}", hidden(&|closing| format!("\"{closing}\"=="), 2), "(".repeat(16));
    assert!(refusal(&deepest).is_some_and(|why| why.starts_with("character ")));
    assert_eq!(MAX_BRACKETS, 64);
}

/// None of these has brackets that are inside one another.
#[test]
fn a_text_without_brackets_does_not_go_too_deep_either() {
    let parsers = |why: String| why.contains("Recursion limit");
    assert!(refusal(&format!("{}1", "1?1:".repeat(249))).is_some_and(parsers));
    assert!(refusal(&format!("{}1{}", "1?".repeat(249), ":1".repeat(249))).is_some());
    let too_deep = Some("nested more than 24 deep");
    for text in [
        format!("1{}", "+1".repeat(499)),
        format!("1{}", "<1".repeat(499)),
        format!("a{}", ".a".repeat(499)),
        format!("1{}", "*1".repeat(499)),
    ] {
        assert_eq!(refusal(&text).as_deref(), too_deep, "{text}");
    }
    // Each pair of these is nothing.
    assert_eq!(refusal(&format!("{}true", "!".repeat(990))), None);
    assert!(refusal(&format!("{}1", "-".repeat(990))).is_some());
}

#[test]
fn an_expression_may_be_nested_but_not_too_deep_in_whatever_it_is() {
    let too_deep = Some("nested more than 24 deep".to_owned());
    // Each with how deep it has it.
    let wraps: [(Wrap, usize); 8] = [
        (|it| format!("{it} > 0"), 1),
        (|it| format!("size([{it}]) > 0"), 3),
        (|it| format!("string({it}).startsWith('2')"), 2),
        (|it| format!("{{'a': {it}}}.a > 0"), 3),
        (|it| format!("{{{it}: 'a'}}.size() > 0"), 3),
        (|it| format!("[{it}].all(x, x > 0)"), 2),
        (|it| format!("[1].all(x, x < {it})"), 3),
        (|it| format!("[1].all(x, [1].all(y, y < {it}))"), 5),
    ];
    for (wrap, depth) in wraps {
        let text = wrap(&nested(MAX_DEPTH - depth));
        assert_ne!(refusal(&text), too_deep, "{text}");
        let text = wrap(&nested(MAX_DEPTH - depth + 1));
        assert_eq!(refusal(&text), too_deep, "{text}");
    }
}

#[test]
fn only_so_many_questions_are_asked_of_lists() {
    let lists = |count: usize| vec!["[1].all(x, x > 0)"; count].join(" && ");
    assert_eq!(refusal(&lists(MAX_COMPREHENSIONS)), None);
    assert_eq!(refusal(&lists(MAX_COMPREHENSIONS + 1)).as_deref(), Some("more than 4 of all, exists, map and filter"));
    assert_eq!(refusal("[1].all(x, [1].all(y, y > 0))"), None);
    let inside = refusal("[1].all(x, [1].all(y, [1].all(z, z > 0)))");
    assert_eq!(inside.as_deref(), Some("more than one of all, exists, map and filter inside another"));
    // What comes of one may be asked of another.
    assert_eq!(refusal("[1].filter(x, x > 0).map(y, y + 1).all(z, z > 0)"), None);
}

#[test]
fn what_is_neither_true_nor_false_is_refused() {
    assert_eq!(refusal("1 + 1").as_deref(), Some("neither true nor false but of type Int"));
    assert!(refusal("device.nmae == 'web-1'").is_some());
    assert!(refusal("update.id == 'web-1'").is_some());
    assert!(refusal("device.name ==").is_some_and(|why| why.starts_with("character ")));
}

/// Which of the devices the rule has.
fn members(rule: &str, devices: &str, change: impl FnOnce(&mut Snapshot)) -> Vec<bool> {
    let yaml = format!("groups: {{all: {{rule: {rule:?}, default: Approve}}}}\ndevices: {devices}\n");
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut snapshot = world.snapshot(&Past::default(), Timestamp::UNIX_EPOCH);
    change(&mut snapshot);
    let answer = plan(&snapshot, Timestamp::UNIX_EPOCH);
    answer.devices.iter().map(|device| device.group.is_some()).collect()
}

// covers MW-5
#[test]
fn a_rule_tells_devices_apart_by_each_field_of_their_system() {
    for field in ["family", "name", "version", "arch", "kernel"] {
        let members = members(&format!("device.os.{field} == 'x'"), "{a: {}, b: {}, c: {}}", |snapshot| {
            let name = |other: &str| if other == field { "x" } else { "y" }.into();
            let os = Os {
                family: name("family"),
                name: name("name"),
                version: name("version"),
                arch: name("arch"),
                kernel: name("kernel"),
            };
            snapshot.devices[1].report.as_mut().expect("a report").os = Arc::new(os);
        });
        assert_eq!(members, [false, true, false], "{field}");
    }
}

#[test]
fn a_rule_tells_devices_apart_wherever_it_names_what_it_reads() {
    let devices =
        "{a: {labels: {site: berlin}}, b: {labels: {site: paris}, type: Workstation}, c: {labels: {site: paris}}}";
    for (rule, expected) in [
        ("{'a': device.labels.site}['a'] == 'berlin'", [true, false, false]),
        ("{device.labels.site: 1} == {'berlin': 1}", [true, false, false]),
        ("[1, 2].exists(x, device.labels.site == 'berlin' && x == 2)", [true, false, false]),
        ("[device.labels.site].exists(x, x == 'berlin')", [true, false, false]),
        ("device.labels.site.startsWith('be')", [true, false, false]),
        ("device.labels['site'] in ['berlin', 'rome']", [true, false, false]),
        ("device.type == 'Workstation'", [false, true, false]),
        ("device.type == 'Server' && device.labels.site == 'paris'", [false, false, true]),
        ("device.name == 'c'", [false, false, true]),
        ("'site' in device.labels && device.labels.size() == 1 && device.name != 'a'", [false, true, true]),
        ("device == device && device.name == 'b'", [false, true, false]),
        ("device.labels == {'site': 'berlin'}", [true, false, false]),
        // Fields of something else that is called so.
        ("{'type': device.name}.type == 'c'", [false, false, true]),
        ("{'labels': {'site': device.name}}.labels.site == 'c'", [false, false, true]),
        ("{'os': {'name': device.name}}.os.name == 'c'", [false, false, true]),
        ("device.os.size() == 5 && device.name == 'b'", [false, true, false]),
    ] {
        assert_eq!(members(rule, devices, |_| {}), expected, "{rule}");
    }
}

// covers CL-3
#[test]
fn each_rule_goes_by_its_own_expression() {
    let yaml = "groups: {all: {selector: {}, rules: [\
        {name: skip, expression: update.id == 'u-1', action: Ignore}, \
        {name: take, expression: update.id == 'u-2', action: Approve}]}}\n\
        devices: {web-1: {updates: {u-1: {}, u-2: {}, u-3: {}}}}\n";
    let world: World = serde_saphyr::from_str(yaml).expect("a world");
    let answer = plan(&world.snapshot(&Past::default(), Timestamp::UNIX_EPOCH), Timestamp::UNIX_EPOCH);
    let decisions: Vec<Decision> = answer.devices[0].updates.iter().map(|update| update.decision).collect();
    assert_eq!(decisions, [Decision::Ignored, Decision::Approved, Decision::AwaitingApproval]);
}

/// What an expression may be of, with some of each: places for others are `B` (true or false), `N` (a number), `T` (a text), `L`
/// (a list), `M` (a map) and `A` (any of them).
const SHAPES: [(char, &[&str]); 5] = [
    (
        'B',
        &[
            "true",
            "!B",
            "B && B",
            "B || B",
            "B ? B : B",
            "A == A",
            "A != A",
            "N < N",
            "N <= N",
            "T > T",
            "A >= A",
            "A in L",
            "T in M",
            "T.startsWith(T)",
            "T.endsWith(T)",
            "T.contains(T)",
            "T.matches(T)",
            "T.matches('(a+)+$|[^b]{1,99}')",
            "bool(T)",
            "L.all(x, A == x)",
            "L.exists(x, x == A)",
            "L.exists_one(x, B)",
            "L.all(x, x < A)",
            "M.exists(x, x in M)",
            "has(SUBJECT.name)",
            "has(M.a)",
            "type(A) == type(A)",
            "type(A) == int",
            "L == L",
            "M == M",
            "dyn(A) == A",
            "optional.of(A).hasValue()",
            "M.?a.hasValue()",
            "bytes(T) == b'\\xff'",
            "bytes(T) < bytes(T)",
        ],
    ),
    (
        'N',
        &[
            "0",
            "-1",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615u",
            "0u",
            "1.5",
            "-0.0",
            "1e308",
            "1e-320",
            "double('NaN')",
            "double('inf')",
            "2147483648",
            "N + N",
            "N - N",
            "N * N",
            "N / N",
            "N % N",
            "-(N)",
            "size(A)",
            "T.size()",
            "L.size()",
            "size(M)",
            "int(A)",
            "int(N)",
            "uint(N)",
            "double(N)",
            "int(T)",
            "uint(T)",
            "double(T)",
            "L[N]",
            "B ? N : N",
            "optional.of(N).orValue(N)",
            "size(bytes(T))",
        ],
    ),
    (
        'T',
        &[
            "''",
            "'a'",
            "'ü\\U0001F600'",
            "'\\u0000'",
            "'9223372036854775808'",
            "'-1'",
            "'1e999'",
            "'('",
            "'2026-01-01T00:00:00Z'",
            "SUBJECT.name",
            "SUBJECT.id",
            "SUBJECT.labels['long']",
            "SUBJECT.labels.site",
            "SUBJECT.os.version",
            "T + T",
            "string(A)",
            "string(N)",
            "string(bytes(T))",
            "string(b'\\xff')",
            "B ? T : T",
            "L[N]",
            "M[T]",
            "M.a",
            "SUBJECT.type",
            "SUBJECT.severity",
            "T[N]",
        ],
    ),
    (
        'L',
        &[
            "[]",
            "[A]",
            "[A, A]",
            "[N, N, N]",
            "SUBJECT.packages",
            "SUBJECT.cves",
            "L + L",
            "L.map(x, A)",
            "L.map(x, x)",
            "L.map(x, B, x + x)",
            "L.filter(x, B)",
            "L.filter(x, x == A)",
            "[?M.?a]",
            "L[N]",
            "M.map(x, x)",
        ],
    ),
    (
        'M',
        &[
            "{}",
            "{T: A}",
            "{'a': A, T: A}",
            "{N: A}",
            "{B: A}",
            "{A: A}",
            "SUBJECT.labels",
            "SUBJECT.os",
            "SUBJECT",
            "{?'a': M.?b}",
        ],
    ),
];

/// Fills in the places of a shape, so deep at most, by the numbers that are drawn.
fn filled(shape: &str, draw: &mut impl Iterator<Item = usize>, depth: usize) -> String {
    let mut text = String::new();
    for (place, character) in shape.char_indices() {
        // A place stands alone: those of `SUBJECT` and of words are none.
        let beside = |other: Option<char>| other.is_some_and(char::is_alphanumeric);
        let is_alone = !beside(shape[..place].chars().next_back())
            && !beside(shape[place + character.len_utf8()..].chars().next());
        let kind = if character == 'A' { SHAPES[draw.next().unwrap_or(0) % SHAPES.len()].0 } else { character };
        match SHAPES.iter().find(|(other, _)| is_alone && *other == kind) {
            Some((_, shapes)) => {
                // The first that have no places end it.
                let shapes = if depth == 0 { &shapes[..1] } else { shapes };
                let inner = filled(shapes[draw.next().unwrap_or(0) % shapes.len()], draw, depth.saturating_sub(1));
                let parts = if inner.contains(' ') { ["(", &inner, ")"] } else { ["", &inner, ""] };
                text.extend(parts);
            }
            None => text.push(character),
        }
    }
    text
}

/// Devices and updates of what is hardly sensible: without a report, without labels, with texts that are empty, long or odd.
fn odd_fleet() -> Snapshot {
    let long = "x".repeat(100_000);
    let world = serde_json::json!({
        "groups": {
            "by-rule": {"rule": "false", "priority": 1, "rules": [{"name": "one", "expression": "true", "action": "Approve"}]},
            "others": {"selector": {}, "rules": [{"name": "one", "expression": "true", "action": "Approve"}]},
        },
        "devices": {
            "a": {"labels": {"site": "", "long": long}, "updates": {
                "u-1": {"packages": ["", "a", long], "cves": ["CVE-2026-1"]},
                "9223372036854775808": {"packages": vec!["a"; 200], "severity": "High"},
            }},
            "b": {"noReport": "None", "type": "Workstation"},
            "ü": {"labels": {"site": "\u{1f600}", "ü": "\u{0}", "name": "-9223372036854775808"}, "updates": {"": {}, "\u{0}(": {}}},
        },
    });
    let world: World = serde_json::from_value(world).expect("a world");
    world.snapshot(&Past::default(), Timestamp::UNIX_EPOCH)
}

/// Compiled as the controller does it, where there is room; refused as well where the parser panics.
fn compiled(text: &str, subject: Subject) -> Result<Expression, Invalid> {
    let text = text.to_owned();
    let compiling = thread::Builder::new().stack_size(64 << 20).spawn(move || Expression::compile(&text, subject));
    compiling.expect("a thread").join().unwrap_or_else(|_| Err(Invalid("cannot be compiled".to_owned())))
}

#[test]
fn an_expression_tells_which_fields_it_names() {
    let expression = compiled("device.labels[\"tier\"] == \"pilot\"", Subject::Device).expect("it is valid");
    assert!(expression.names("labels") && !expression.names("os"));
}

/// What comes of an expression over `SUBJECT`, as the rule of members and of updates: why it is refused, or of what it fails.
fn whys(text: &str) -> Vec<String> {
    let mut snapshot = odd_fleet();
    let mut whys = vec![];
    let mut compile = |subject, name: &str| {
        let compiled = compiled(&text.replace("SUBJECT", name), subject);
        whys.extend(compiled.as_ref().err().map(|Invalid(why)| why.clone()));
        compiled.ok()
    };
    let (of_device, of_update) = (compile(Subject::Device, "device"), compile(Subject::Update, "update"));
    for group in &mut snapshot.groups {
        if group.members.rule.is_some() {
            group.members.rule = of_device.clone().map(Ok);
        }
        let rules = &mut group.approvals.as_mut().expect("rules").rules;
        for rule in rules {
            rule.matches.expression.clone_from(&of_update);
        }
    }
    let answer = plan(&snapshot, Timestamp::UNIX_EPOCH);
    whys.extend(answer.groups.iter().filter_map(|group| group.failed.as_ref()).map(|failed| failed.error.to_string()));
    whys
}

proptest! {
    #![proptest_config(Config { max_shrink_iters: 2_000, ..config() })]

    /// There is a net below it, but what falls into that is a defect of the interpreter that one wants to know.
    #[test]
    fn whatever_an_expression_asks_there_is_an_answer_or_an_error(
        shape in select(SHAPES[0].1),
        draws in prop::collection::vec(any::<usize>(), 0..40),
        depth in 1..5_usize,
    ) {
        let text = filled(shape, &mut draws.into_iter(), depth);
        let whys = whys(&text);
        prop_assert!(!whys.iter().any(|why| why.contains("made the evaluator panic")), "{}: {:?}", text, whys);
    }
}
