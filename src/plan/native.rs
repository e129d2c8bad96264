//! Expressions over updates in a form that needs no interpreter: what most rules ask is a comparison of texts.
//!
//! Only what can neither fail nor be of another type is taken over: for these the interpreter would give the same answer,
//! some hundred times slower. All else is left to it.

use cel::common::ast::{Expr, LiteralValue, operators};
use cel::parser::Expression as Ast;
use regex::Regex;

use super::model::{Name, Update};

/// What an update is asked.
#[derive(Debug)]
pub(super) enum Test {
    Not(Box<Test>),
    All(Vec<Test>),
    Any(Vec<Test>),
    Text(Text, Is),
    /// Some element of a list passes.
    Exists(List, Box<Test>),
    /// How many elements a list has, compared with a number.
    Size(List, fn(&i64, &i64) -> bool, i64),
}

/// A text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Text {
    Id,
    Classification,
    Severity,
    /// The element of the list that is asked about.
    Element,
}

/// A list of an update's.
#[derive(Clone, Copy, Debug)]
pub(super) enum List {
    Packages,
    Cves,
}

/// What is asked of a text.
#[derive(Debug)]
pub(super) enum Is {
    OneOf(Vec<String>),
    StartingWith(String),
    EndingWith(String),
    Containing(String),
    Matching(Box<Regex>),
}

/// An update with the texts that expressions know it by.
pub(super) struct Asked<'u> {
    pub update: &'u Update,
    pub classification: &'u str,
    pub severity: &'u str,
}

impl Test {
    /// Of an expression over `update`, if it can be taken over.
    pub(super) fn of(node: &Ast) -> Option<Self> {
        test(node, None)
    }

    /// Whether it holds.
    pub(super) fn holds(&self, asked: &Asked<'_>) -> bool {
        self.holds_of(asked, "")
    }

    fn holds_of(&self, asked: &Asked<'_>, element: &str) -> bool {
        match self {
            Self::Not(test) => !test.holds_of(asked, element),
            Self::All(tests) => tests.iter().all(|test| test.holds_of(asked, element)),
            Self::Any(tests) => tests.iter().any(|test| test.holds_of(asked, element)),
            Self::Text(text, is) => is.holds(match text {
                Text::Id => &asked.update.id,
                Text::Classification => asked.classification,
                Text::Severity => asked.severity,
                Text::Element => element,
            }),
            Self::Exists(list, test) => list.of(asked.update).iter().any(|element| test.holds_of(asked, element)),
            Self::Size(list, compare, size) => {
                i64::try_from(list.of(asked.update).len()).is_ok_and(|found| compare(&found, size))
            }
        }
    }
}

impl Is {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::OneOf(texts) => texts.iter().any(|other| other == text),
            Self::StartingWith(start) => text.starts_with(start.as_str()),
            Self::EndingWith(end) => text.ends_with(end.as_str()),
            Self::Containing(part) => text.contains(part.as_str()),
            Self::Matching(regex) => regex.is_match(text),
        }
    }
}

impl List {
    fn of(self, update: &Update) -> &[Name] {
        match self {
            Self::Packages => &update.packages,
            Self::Cves => &update.cves,
        }
    }
}

/// Inside a comprehension over a list `element` is what it calls the elements.
fn test(node: &Ast, element: Option<&str>) -> Option<Test> {
    match &node.expr {
        Expr::Call(call) => match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            (operators::LOGICAL_NOT, None, [it]) => Some(Test::Not(Box::new(test(it, element)?))),
            (operators::LOGICAL_AND, None, parts) => Some(Test::All(tests(parts, element)?)),
            (operators::LOGICAL_OR, None, parts) => Some(Test::Any(tests(parts, element)?)),
            (operators::EQUALS, None, [a, b]) => equals(a, b, element),
            (operators::NOT_EQUALS, None, [a, b]) => Some(Test::Not(Box::new(equals(a, b, element)?))),
            (operators::IN, None, [it, among]) => is_in(it, among, element),
            (compare, None, [list, size]) => size_of(list, compare, size, element),
            (asked, Some(text), [literal]) => {
                let literal = literal_text(literal)?;
                let is = match asked {
                    "startsWith" => Is::StartingWith(literal),
                    "endsWith" => Is::EndingWith(literal),
                    "contains" => Is::Containing(literal),
                    "matches" => Is::Matching(Box::new(Regex::new(&literal).ok()?)),
                    _ => return None,
                };
                Some(Test::Text(text_of(text, element)?, is))
            }
            _ => None,
        },
        Expr::Comprehension(over) => {
            let (Expr::Call(step), Expr::Literal(LiteralValue::Boolean(init))) =
                (&over.loop_step.expr, &over.accu_init.expr)
            else {
                return None;
            };
            let [_, asked] = step.args.as_slice() else { return None };
            if element.is_some() || over.iter_var2.is_some() {
                return None;
            }
            let list = list_of(&over.iter_range, None)?;
            let asked = test(asked, Some(&over.iter_var))?;
            match (step.func_name.as_str(), *init.inner()) {
                (operators::LOGICAL_OR, false) => Some(Test::Exists(list, Box::new(asked))),
                (operators::LOGICAL_AND, true) => {
                    Some(Test::Not(Box::new(Test::Exists(list, Box::new(Test::Not(Box::new(asked)))))))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn tests(parts: &[Ast], element: Option<&str>) -> Option<Vec<Test>> {
    parts.iter().map(|part| test(part, element)).collect()
}

fn equals(a: &Ast, b: &Ast, element: Option<&str>) -> Option<Test> {
    let (text, literal) = match literal_text(b) {
        Some(literal) => (a, literal),
        None => (b, literal_text(a)?),
    };
    if let Some(text) = text_of(text, element) {
        return Some(Test::Text(text, Is::OneOf(vec![literal])));
    }
    None
}

fn is_in(it: &Ast, among: &Ast, element: Option<&str>) -> Option<Test> {
    if let Expr::List(list) = &among.expr {
        let texts = list.elements.iter().map(literal_text).collect::<Option<_>>()?;
        return Some(Test::Text(text_of(it, element)?, Is::OneOf(texts)));
    }
    let is = Is::OneOf(vec![literal_text(it)?]);
    Some(Test::Exists(list_of(among, element)?, Box::new(Test::Text(Text::Element, is))))
}

fn size_of(list: &Ast, compare: &str, size: &Ast, element: Option<&str>) -> Option<Test> {
    let compare: fn(&i64, &i64) -> bool = match compare {
        operators::GREATER => i64::gt,
        operators::GREATER_EQUALS => i64::ge,
        operators::LESS => i64::lt,
        operators::LESS_EQUALS => i64::le,
        _ => return None,
    };
    let (Expr::Call(call), Expr::Literal(LiteralValue::Int(size))) = (&list.expr, &size.expr) else { return None };
    let list = match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
        ("size", Some(list), []) | ("size", None, [list]) => list_of(list, element)?,
        _ => return None,
    };
    Some(Test::Size(list, compare, *size.inner()))
}

fn literal_text(node: &Ast) -> Option<String> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
        _ => None,
    }
}

fn text_of(node: &Ast, element: Option<&str>) -> Option<Text> {
    match (&node.expr, field_of(node, element)) {
        (Expr::Ident(name), _) if Some(name.as_str()) == element => Some(Text::Element),
        (_, Some("id")) => Some(Text::Id),
        (_, Some("classification")) => Some(Text::Classification),
        (_, Some("severity")) => Some(Text::Severity),
        _ => None,
    }
}

fn list_of(node: &Ast, element: Option<&str>) -> Option<List> {
    match field_of(node, element)? {
        "packages" => Some(List::Packages),
        "cves" => Some(List::Cves),
        _ => None,
    }
}

/// The field of `update` that is read, unless the elements of a list are called so.
fn field_of<'n>(node: &'n Ast, element: Option<&str>) -> Option<&'n str> {
    let Expr::Select(select) = &node.expr else { return None };
    let is_update = matches!(&select.operand.expr, Expr::Ident(name) if name == "update") && element != Some("update");
    (is_update && !select.test).then_some(&select.field)
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::report::{Classification, Severity};

    use super::super::expression::{Expression, Subject, UpdateFacts};
    use super::*;

    #[test]
    fn what_is_taken_over_says_what_the_interpreter_says() {
        let taken_over = [
            r#"update.id == "a@1""#,
            r#""a@1" != update.id"#,
            r#"update.id.startsWith("a") && update.id.endsWith("2")"#,
            r#"update.id.contains("@") || update.severity == "High""#,
            r#"update.id.matches("^[ab]@[0-9]$")"#,
            r#"!(update.classification in ["Security", "Updates"])"#,
            "update.severity in []",
            r#""lib" in update.packages"#,
            r#"update.packages.exists(it, it.startsWith("l") && it != "lib")"#,
            r#"update.packages.all(it, it.contains("i") || update.id == "a@1")"#,
            r#"update.cves.exists(update, update == "CVE-2")"#,
            "update.cves.size() > 1 || size(update.packages) <= 1",
            "update.cves.size() < 2",
            r#"update.packages.exists(it, update.cves.size() >= 1 && "lib" in update.packages)"#,
        ];
        let left_alone = [
            r#"update.packages.exists_one(it, it == "lib")"#,
            r#"update.packages.filter(it, it == "lib").size() > 0"#,
            r#"update.packages[0] == "lib" || update.id == "a@1""#,
            "update.packages.exists(a, update.cves.exists(b, a == b))",
            r#"update.packages.exists(a, update.cves.exists(b, b == "CVE-2"))"#,
            "has(update.id) && update.id.size() > 3",
            "update.id == update.severity",
            r#"{"id": "a@1"}.id == "a@1""#,
            r#"update == "a@1" || update.id == "a@2""#,
            r#"update.id.matches("a") ? true : false"#,
        ];
        let update = |id: &str, packages: &[&str], cves: &[&str]| Update {
            id: id.into(),
            classification: if id.starts_with('a') { Classification::Security } else { Classification::Updates },
            severity: if id.ends_with('1') { Severity::High } else { Severity::Unknown },
            packages: packages.iter().map(|name| Name::from(*name)).collect(),
            cves: cves.iter().map(|name| Name::from(*name)).collect(),
            published: None,
        };
        let updates = [
            update("a@1", &[], &[]),
            update("a@2", &["lib", "libx"], &["CVE-1", "CVE-2"]),
            update("b@1", &["lib"], &["CVE-2"]),
            update("c@12", &["x", "linux"], &["CVE-3"]),
        ];
        for (text, is_taken_over) in
            taken_over.iter().map(|it| (it, true)).chain(left_alone.iter().map(|it| (it, false)))
        {
            let expression = Expression::compile(text, Subject::Update).unwrap_or_else(|why| panic!("{text}: {why:?}"));
            assert_eq!(expression.is_native(), is_taken_over, "{text}");
            for update in &updates {
                let mut facts = UpdateFacts::of(update);
                let interpreted = expression.interpret(&mut facts);
                assert_eq!(expression.holds_for(&mut facts), interpreted, "{text} of {}", update.id);
            }
        }
    }
}
