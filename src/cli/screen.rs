//! What a person sees: colours where somebody looks, and plain text in pipes, files, and where `NO_COLOR` is set.

use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use terminal_size::{Width, terminal_size};
use unicode_width::UnicodeWidthStr as _;

/// Titles.
pub const TITLE: Style = Style::new().bold();
/// As it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Somebody should look.
pub const WARNING: Style = AnsiColor::Yellow.on_default();
/// Somebody must act.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Beside the point.
pub const FAINT: Style = Style::new().dimmed();
/// Everything else.
pub const PLAIN: Style = Style::new();

/// Prints a text. A reader that has gone away, such as `head`, has seen enough.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write"),
    }
}

/// Says something beside what is printed.
pub fn note(text: &str) {
    anstream::eprintln!("{FAINT}#{FAINT:#} {}", safe(text));
}

/// Says what somebody should look at.
pub fn warn(text: &str) {
    anstream::eprintln!("{WARNING}# warning:{WARNING:#} {}", safe(text));
}

/// What devices and objects say cannot drive a terminal.
pub fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text whose words go on under their beginning where the terminal is too narrow for one line. Elsewhere a line is a line, for `grep`.
pub fn wrapped(text: &str, indent: usize) -> String {
    let width =
        std::io::stdout().is_terminal().then(terminal_size).flatten().map(|(Width(width), _)| usize::from(width));
    width.map_or_else(|| text.to_owned(), |width| wrapped_at(text, indent, width.saturating_sub(indent)))
}

fn wrapped_at(text: &str, indent: usize, width: usize) -> String {
    let (mut out, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let wide = word.width();
        if used > 0 && used + 1 + wide > width {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += wide;
    }
    out
}

/// A text in a style.
pub fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

/// A cell in a style; what is empty is a dash.
pub fn cell(style: Style, text: &(impl ToString + ?Sized)) -> Cell {
    let text = safe(&text.to_string());
    Cell { text: if text.is_empty() { "-".to_owned() } else { text }, style }
}

/// A cell as it is.
pub fn plain(text: &(impl ToString + ?Sized)) -> Cell {
    cell(PLAIN, text)
}

/// Cells two spaces apart, for lines of which the next is not known yet.
pub fn line(row: &[Cell]) -> String {
    let cells: Vec<String> = row.iter().map(|Cell { text, style }| styled(*style, text)).collect();
    format!("{}\n", cells.join("  "))
}

/// Columns that are as wide as their content, two spaces apart, under their titles.
pub fn columns(titles: &[&str], rows: &[Vec<Cell>]) -> String {
    let header: Vec<Cell> = titles.iter().map(|title| cell(TITLE, *title)).collect();
    let all: Vec<&Vec<Cell>> = std::iter::once(&header).chain(rows).collect();
    let widths: Vec<usize> = (0..titles.len())
        .map(|column| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.width()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in all {
        for (index, (Cell { text: content, style }, width)) in row.iter().zip(&widths).enumerate() {
            text.push_str(&styled(*style, content));
            if index + 1 < row.len() {
                text.push_str(&" ".repeat(width - content.width() + 2));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_goes_on_under_its_beginning() {
        assert_eq!(wrapped_at("one two three", 2, 7), "one two\n  three");
        assert_eq!(wrapped_at("a-word-too-long for it", 1, 5), "a-word-too-long\n for\n it");
        assert_eq!(wrapped_at("", 2, 7), "");
    }

    #[test]
    fn columns_align_whatever_their_colours_and_nothing_drives_a_terminal() {
        let rows = [vec![cell(BAD, "no"), plain("a\u{1b}[2Jb")], vec![plain("yes, and more"), plain("")]];
        let shown = anstream::adapter::strip_str(&columns(&["READY", "WHY"], &rows)).to_string();
        assert_eq!(shown, "READY          WHY\nno             a [2Jb\nyes, and more  -\n");
        assert!(columns(&["READY", "WHY"], &rows).contains("\u{1b}[31m"), "colours are there for those who look");
    }
}
