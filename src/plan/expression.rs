//! CEL expressions in groups (<https://cel.dev>), within limits: bounded text, bounded nesting, few comprehensions, no
//! clock. An expression that cannot be evaluated holds for nothing and says why, also where the evaluator panics.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, LiteralValue, operators};
use cel::parser::Expression as Ast;
use cel::{Context, Env, Program, Value};
use serde::Serialize;

use super::model::{Device, DeviceType, Invalid, Name, Os, Update};
use super::native::{Asked, Test};
use super::roster::Numbers;

/// The longest text, in characters.
pub const MAX_CHARS: usize = 1000;

/// The deepest nesting, of brackets in the text and of what it comes to.
pub const MAX_DEPTH: usize = 24;

/// The most opening brackets, of those that follow each other as well. A closing one inside a string or a comment closes
/// nothing, and the parser goes down for each that is open: so deep at most, whatever the text makes of strings.
pub const MAX_BRACKETS: usize = 64;

/// The most comprehensions (`all`, `exists`, `exists_one`, `map`, `filter`), of which one may be inside another.
pub const MAX_COMPREHENSIONS: usize = 4;

const OPENING: [char; 3] = ['(', '[', '{'];

/// How deep comprehensions may be inside one another.
const MAX_COMPREHENSION_DEPTH: usize = 2;

/// An expression that was compiled, with the text that it came from.
#[derive(Clone)]
pub struct Expression {
    text: Name,
    program: Arc<Program>,
    dialect: Arc<Env>,
    reads: Arc<Reads>,
    /// The same without the interpreter, where that can be told.
    native: Option<Arc<Test>>,
}

/// What an expression is about: the only name that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `update`, in a rule.
    Update,
    /// `device`, in a group's members.
    Device,
}

/// A subject with its fields, ready to be asked about.
pub(super) struct Facts {
    subject: Subject,
    value: Value,
}

/// An update with what expressions read of it, made once for all that ask.
pub(super) struct UpdateFacts<'u> {
    update: &'u Update,
    classification: String,
    severity: String,
    /// Once the interpreter has asked.
    interpreted: Option<Result<Facts, String>>,
}

impl<'u> UpdateFacts<'u> {
    pub(super) fn of(update: &'u Update) -> Self {
        let (classification, severity) = (format!("{:?}", update.classification), format!("{:?}", update.severity));
        Self { update, classification, severity, interpreted: None }
    }

    fn asked(&self) -> Asked<'_> {
        Asked { update: self.update, classification: &self.classification, severity: &self.severity }
    }

    fn interpreted(&mut self) -> &Result<Facts, String> {
        self.interpreted.get_or_insert_with(|| Facts::of_update(self.update))
    }
}

impl Expression {
    /// Compiles `text`, and tries it on an example: a field that does not exist is told here, not at night.
    ///
    /// The parser needs some hundred KiB of stack for each level of nesting in a debug build: give it room.
    pub fn compile(text: &str, subject: Subject) -> Result<Self, Invalid> {
        if text.chars().count() > MAX_CHARS {
            return Err(Invalid(format!("longer than {MAX_CHARS} characters")));
        }
        if text.matches(OPENING).count() > MAX_BRACKETS {
            return Err(Invalid(format!("more than {MAX_BRACKETS} opening brackets")));
        }
        if brackets(text) > MAX_DEPTH {
            return Err(Invalid(format!("more than {MAX_DEPTH} brackets inside one another")));
        }
        // Without extensions: their `replace` makes a text of any length from a few characters.
        let dialect = Env::stdlib();
        let program = dialect.compile(text).map_err(|errors| {
            let first = errors.errors.first();
            Invalid(first.map_or("not CEL".to_owned(), |error| format!("character {}: {}", error.pos.1, error.msg)))
        })?;
        let mut size = Size::default();
        size.measure(program.expression(), 0, 0)?;
        let mut reads = Reads::default();
        reads.collect(program.expression());
        let native = Some(&program).filter(|_| subject == Subject::Update).and_then(|it| Test::of(it.expression()));
        let expression = Self {
            text: text.into(),
            program: Arc::new(program),
            dialect: Arc::new(dialect),
            reads: Arc::new(reads),
            native: native.map(Arc::new),
        };
        let labels = expression.reads.fields.iter().filter_map(|field| match field {
            DeviceField::Label(label) => Some((label.as_str(), "example")),
            DeviceField::Type | DeviceField::Os(_) => None,
        });
        let labels = labels.collect();
        expression.holds(&Facts::example(subject, labels)?).map_err(Invalid)?;
        Ok(expression)
    }

    /// Whether its text names a field: told once too often rather than not.
    pub fn names(&self, field: &str) -> bool {
        self.text.contains(field)
    }

    /// What it was compiled from.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What it reads of a device.
    pub(super) fn reads(&self) -> &Reads {
        &self.reads
    }

    /// Whether it holds for an update, or why that cannot be told.
    pub(super) fn holds_for(&self, facts: &mut UpdateFacts<'_>) -> Result<bool, String> {
        match &self.native {
            Some(native) => Ok(native.holds(&facts.asked())),
            None => self.interpret(facts),
        }
    }

    /// The same, by the interpreter.
    pub(super) fn interpret(&self, facts: &mut UpdateFacts<'_>) -> Result<bool, String> {
        self.holds(facts.interpreted().as_ref().map_err(Clone::clone)?)
    }

    /// Whether the interpreter is not needed.
    #[cfg(test)]
    pub(super) fn is_native(&self) -> bool {
        self.native.is_some()
    }

    /// Whether it holds, or why that cannot be told.
    pub(super) fn holds(&self, facts: &Facts) -> Result<bool, String> {
        caught(|| {
            let mut context = Context::with_env(self.dialect.clone());
            context.add_variable_from_value(facts.subject.name(), facts.value.clone());
            match self.program.execute(&context) {
                Ok(Value::Bool(holds)) => Ok(holds),
                Ok(other) => Err(format!("neither true nor false but of type {:?}", other.type_of())),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

/// What evaluating comes to. A panic of the evaluator is an error like any other: it ends neither the plan of this client nor
/// those of the others.
///
/// That is sound to go on after: all that the evaluator changes is made inside `evaluate` and gone with it, and what it reads
/// (the program, the dialect, the facts) has nothing that can be changed through a shared reference. Every profile of the
/// workspace unwinds. What is no panic, as a stack that is full, is kept off by the limits of `compile`.
fn caught(evaluate: impl FnOnce() -> Result<bool, String>) -> Result<bool, String> {
    catch_unwind(AssertUnwindSafe(evaluate)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(format!("the expression made the evaluator panic: {}", text.unwrap_or("it does not say why")))
    })
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl PartialOrd for Expression {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Expression {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Device => "device",
        }
    }
}

fn type_of(device_type: DeviceType) -> &'static str {
    match device_type {
        DeviceType::Server => "Server",
        DeviceType::Workstation => "Workstation",
    }
}

/// `update` in a rule's expression.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UpdateFields<'a> {
    id: &'a str,
    classification: String,
    severity: String,
    packages: Vec<&'a str>,
    cves: Vec<&'a str>,
}

/// `device` in the expression of a group's members.
#[derive(Serialize)]
struct DeviceFields<'a> {
    #[serde(rename = "type")]
    device_type: &'a str,
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    os: OsFields<'a>,
}

/// Empty where the device has not reported.
#[derive(Default, Serialize)]
struct OsFields<'a> {
    family: &'a str,
    name: &'a str,
    version: &'a str,
    arch: &'a str,
    kernel: &'a str,
}

impl Facts {
    /// Of an update.
    fn of_update(update: &Update) -> Result<Self, String> {
        let fields = UpdateFields {
            id: &update.id,
            classification: format!("{:?}", update.classification),
            severity: format!("{:?}", update.severity),
            packages: update.packages.iter().map(|name| &**name).collect(),
            cves: update.cves.iter().map(|name| &**name).collect(),
        };
        Self::of(Subject::Update, fields)
    }

    /// Of a device.
    pub(super) fn of_device(device: &Device) -> Result<Self, String> {
        let os = device.report.as_ref().map(|report| report.os.as_ref());
        let labels = device.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        Self::of_device_fields(&device.name, device.device_type, labels, os.ok())
    }

    fn of_device_fields(
        name: &str,
        device_type: DeviceType,
        labels: BTreeMap<&str, &str>,
        os: Option<&Os>,
    ) -> Result<Self, String> {
        let fields = DeviceFields {
            device_type: type_of(device_type),
            name,
            labels,
            os: os.map_or_else(OsFields::default, |os| OsFields {
                family: &os.family,
                name: &os.name,
                version: &os.version,
                arch: &os.arch,
                kernel: &os.kernel,
            }),
        };
        Self::of(Subject::Device, fields)
    }

    fn of(subject: Subject, fields: impl Serialize) -> Result<Self, String> {
        let value = cel::to_value(fields).map_err(|error| error.to_string())?;
        Ok(Self { subject, value })
    }

    /// One that a sensible expression can be tried on, with the labels that it asks for.
    fn example(subject: Subject, labels: BTreeMap<&str, &str>) -> Result<Self, Invalid> {
        use patchwarden_protocol::report::{Classification, Severity};
        let facts = match subject {
            Subject::Update => Self::of_update(&Update {
                id: "pkg:deb/debian/openssl@3.0.17-1~deb12u3".into(),
                classification: Classification::Security,
                severity: Severity::High,
                packages: vec!["openssl".into(), "libssl3".into()],
                cves: vec!["CVE-2026-0001".into()],
                published: None,
            }),
            Subject::Device => {
                let os = Os {
                    family: "linux".into(),
                    name: "debian".into(),
                    version: "12".into(),
                    arch: "amd64".into(),
                    kernel: "6.1.0-40-amd64".into(),
                };
                Self::of_device_fields("web-1", DeviceType::Server, labels, Some(&os))
            }
        };
        facts.map_err(Invalid)
    }
}

/// What an expression reads of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    pub fields: BTreeSet<DeviceField>,
    /// More than these.
    pub more: bool,
}

/// A field of a device that many have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeviceField {
    Type,
    /// `device.os.version` and the like.
    Os(String),
    /// `device.labels.site`, `device.labels["site"]`, `"site" in device.labels`.
    Label(String),
}

impl DeviceField {
    /// A number that is the same for devices with the same value of it; none if there is no such field, or the device has not
    /// told it.
    pub(super) fn number(&self, device: &Device, numbers: &mut Numbers) -> Option<usize> {
        let value = match self {
            Self::Type => return Some(usize::from(device.device_type == DeviceType::Workstation)),
            Self::Label(label) => device.labels.get(label)?,
            Self::Os(field) => {
                let os = &device.report.as_ref().ok()?.os;
                match field.as_str() {
                    "family" => &os.family,
                    "name" => &os.name,
                    "version" => &os.version,
                    "arch" => &os.arch,
                    "kernel" => &os.kernel,
                    _ => return None,
                }
            }
        };
        let next = numbers.len();
        Some(numbers.of(value, || next))
    }
}

impl Reads {
    fn collect(&mut self, node: &Ast) {
        match &node.expr {
            Expr::Select(select) if is_field(&select.operand, "labels") => {
                self.fields.insert(DeviceField::Label(select.field.clone()));
            }
            Expr::Select(select) if is_field(&select.operand, "os") => {
                self.fields.insert(DeviceField::Os(select.field.clone()));
            }
            Expr::Select(select) if is_device(&select.operand) && select.field == "type" => {
                self.fields.insert(DeviceField::Type);
            }
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::INDEX, [map, Ast { expr: Expr::Literal(LiteralValue::String(label)), .. }])
                | (operators::IN, [Ast { expr: Expr::Literal(LiteralValue::String(label)), .. }, map])
                    if is_field(map, "labels") =>
                {
                    self.fields.insert(DeviceField::Label(label.inner().to_owned()));
                }
                _ => for_each_part(node, &mut |part| self.collect(part)),
            },
            Expr::Ident(_) if is_device(node) => self.more = true,
            _ => for_each_part(node, &mut |part| self.collect(part)),
        }
    }
}

fn is_device(node: &Ast) -> bool {
    matches!(&node.expr, Expr::Ident(name) if name == Subject::Device.name())
}

fn is_field(node: &Ast, field: &str) -> bool {
    matches!(&node.expr, Expr::Select(select) if select.field == field && is_device(&select.operand))
}

/// Calls `visit` with every part of a node.
fn for_each_part(node: &Ast, visit: &mut dyn FnMut(&Ast)) {
    match &node.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).for_each(visit),
        Expr::List(list) => list.elements.iter().for_each(visit),
        Expr::Select(select) => visit(&select.operand),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).for_each(visit),
        Expr::Struct(whole) => whole.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).for_each(visit),
        Expr::Comprehension(over) => {
            let parts = [&over.iter_range, &over.accu_init, &over.loop_cond, &over.loop_step, &over.result];
            parts.into_iter().for_each(visit);
        }
    }
}

/// How many brackets are open at most, those in strings among them.
fn brackets(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for character in text.chars() {
        match character {
            _ if OPENING.contains(&character) => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// What was counted of an expression.
#[derive(Default)]
struct Size {
    comprehensions: usize,
}

impl Size {
    fn measure(&mut self, node: &Ast, depth: usize, comprehensions: usize) -> Result<(), Invalid> {
        if depth > MAX_DEPTH {
            return Err(Invalid(format!("nested more than {MAX_DEPTH} deep")));
        }
        let mut measure = |node: &Ast| self.measure(node, depth + 1, comprehensions);
        match &node.expr {
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Ok(()),
            Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).try_for_each(measure),
            Expr::List(list) => list.elements.iter().try_for_each(measure),
            Expr::Select(select) => measure(&select.operand),
            Expr::Map(map) => {
                map.entries.iter().try_for_each(|entry| entry_parts(&entry.expr).try_for_each(&mut measure))
            }
            Expr::Struct(whole) => {
                whole.entries.iter().try_for_each(|entry| entry_parts(&entry.expr).try_for_each(&mut measure))
            }
            Expr::Comprehension(over) => {
                self.comprehensions += 1;
                if self.comprehensions > MAX_COMPREHENSIONS {
                    return Err(Invalid(format!("more than {MAX_COMPREHENSIONS} of all, exists, map and filter")));
                }
                if comprehensions >= MAX_COMPREHENSION_DEPTH {
                    return Err(Invalid("more than one of all, exists, map and filter inside another".to_owned()));
                }
                self.measure(&over.iter_range, depth + 1, comprehensions)?;
                [&over.accu_init, &over.loop_cond, &over.loop_step, &over.result]
                    .into_iter()
                    .try_for_each(|part| self.measure(part, depth + 1, comprehensions + 1))
            }
        }
    }
}

fn entry_parts(entry: &EntryExpr) -> impl Iterator<Item = &Ast> {
    match entry {
        EntryExpr::StructField(field) => [Some(&field.value), None],
        EntryExpr::MapEntry(entry) => [Some(&entry.key), Some(&entry.value)],
    }
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_evaluator_is_an_error_that_says_so() {
        let nothing: Vec<i64> = vec![];
        let whys = [
            caught(|| panic!("as it is")),
            caught(|| Ok(nothing[3] > 0)),
            caught(|| std::panic::resume_unwind(Box::new(3))),
        ];
        let whys = whys.map(|why| why.expect_err("an error"));
        assert_eq!(
            whys,
            [
                "the expression made the evaluator panic: as it is",
                "the expression made the evaluator panic: index out of bounds: the len is 0 but the index is 3",
                "the expression made the evaluator panic: it does not say why",
            ]
        );
        assert_eq!(caught(|| Ok(true)), Ok(true));
        assert_eq!(caught(|| Err("no such key".to_owned())), Err("no such key".to_owned()));
    }
}
