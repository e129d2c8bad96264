//! What the commands over the API print: tables for people, JSON, YAML and CSV for programs.

use std::fmt::Write as _;

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Value, json};

use super::screen::{self, print};

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    Table,
    /// A table with more columns.
    Wide,
    /// As the API answers.
    Json,
    /// The same.
    Yaml,
    /// All columns, with a line of their names (RFC 4180).
    Csv,
}

/// A column: its title, the place of its value (RFC 6901), and whether it is in wide tables only.
pub type Column = (&'static str, &'static str, bool);

/// Prints a list.
pub fn list(columns: &[Column], items: &[Value], output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Table | Output::Wide => table(columns, items, output == Output::Wide),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&json!({ "items": items }))?),
        Output::Yaml => serde_saphyr::to_string(&json!({ "items": items }))?,
        Output::Csv => csv(columns, items)?,
    };
    print(&text)
}

/// Prints one thing, for programs.
pub fn one(item: &Value, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Yaml => print(&serde_saphyr::to_string(item)?),
        _ => print(&format!("{}\n", serde_json::to_string_pretty(item)?)),
    }
}

/// Columns that are as wide as their content: for people, `cut` and `awk`.
pub fn table(columns: &[Column], items: &[Value], is_wide: bool) -> String {
    if items.is_empty() {
        return "Nothing found.\n".to_owned();
    }
    let shown: Vec<&Column> = columns.iter().filter(|(_, _, only_wide)| is_wide || !only_wide).collect();
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(shown.iter().map(|(title, _, _)| *title));
    for item in items {
        table.add_row(shown.iter().map(|(_, place, _)| {
            let text = cell(item.pointer(place));
            if text.is_empty() { "-".to_owned() } else { text }
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n", lines.join("\n"))
}

/// A line for each of the fields of one thing, with the values at its places; `-` where there is nothing.
pub fn fields(item: &Value, fields: &[(&str, &[&str])]) -> String {
    let mut text = String::new();
    for (name, places) in fields {
        let value: Vec<String> = places.iter().map(|place| cell(item.pointer(place))).collect();
        let value = value.join(" ");
        let value = value.trim();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<12} {}", format!("{name}:"), if value.is_empty() { "-" } else { value });
    }
    text
}

fn csv(columns: &[Column], items: &[Value]) -> anyhow::Result<String> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(columns.iter().map(|(title, _, _)| *title))?;
    for item in items {
        writer.write_record(columns.iter().map(|(_, place, _)| cell(item.pointer(place))))?;
    }
    Ok(String::from_utf8(writer.into_inner().context("CSV")?)?)
}

/// What devices say cannot drive a terminal.
pub fn cell(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(all)) => all.iter().map(|one| cell(Some(one))).collect::<Vec<_>>().join(","),
        Some(Value::Bool(true)) => "yes".to_owned(),
        Some(Value::Bool(false)) => "no".to_owned(),
        Some(other @ (Value::Number(_) | Value::Object(_))) => other.to_string(),
    };
    screen::safe(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[("NAME", "/name", false), ("OS", "/report/os/name", false), ("KEYS", "/keys", true)];

    fn items() -> Vec<Value> {
        vec![
            json!({ "name": "web", "report": { "os": { "name": "debian" } }, "keys": ["a", "b"] }),
            json!({ "name": "pc\u{1b}[2J", "report": null, "keys": [] }),
        ]
    }

    #[test]
    fn a_table_has_what_fits_and_drives_no_terminal() {
        assert_eq!(table(COLUMNS, &items(), false), "NAME    OS\nweb     debian\npc [2J  -\n");
        assert!(table(COLUMNS, &items(), true).starts_with("NAME    OS      KEYS\nweb     debian  a,b\n"));
        assert_eq!(table(COLUMNS, &[], true), "Nothing found.\n");
    }

    // covers MW-10, RM-7
    #[test]
    fn csv_has_all_columns_and_quotes() {
        let mut items = items();
        items[0]["name"] = json!("a,\"b\"");
        let text = csv(COLUMNS, &items).unwrap();
        assert_eq!(text, "NAME,OS,KEYS\r\n\"a,\"\"b\"\"\",debian,\"a,b\"\r\npc [2J,,\r\n");
    }
}
