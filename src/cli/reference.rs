//! All commands, from the same definitions that parse them: as manual pages, and as `docs/plugin.md`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, Args, Command, CommandFactory as _};

use super::{Cli, screen};

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where the pages go, such as /usr/local/share/man/man1.
    directory: PathBuf,
}

/// Writes the manual pages.
pub fn man(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { directory } = arguments;
    let named = || directory.display().to_string();
    std::fs::create_dir_all(directory).with_context(named)?;
    clap_mangen::generate_to(command("kubectl-patchwarden"), directory).with_context(named)?;
    screen::print(&format!("manual pages are in {}: man -l {0}/kubectl-patchwarden.1\n", named()))
}

/// As it is called. Pages and sections are named by that.
fn command(name: &'static str) -> Command {
    let command = Cli::command().name(name).bin_name("kubectl patchwarden");
    command.disable_help_subcommand(true)
}

/// Sections of `docs/plugin.md`: each command with its arguments and flags.
pub fn markdown() -> String {
    let mut root = command("kubectl patchwarden");
    root.build();
    let commands: Vec<&Command> = root.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let mut text = String::from("| command | what |\n|---|---|\n");
    for command in &commands {
        let name = command.get_name();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| [`{name}`](#{name}) | {} |", line(command.get_about()));
    }
    for command in commands {
        section(&mut text, command);
    }
    text
}

fn section(text: &mut String, command: &Command) {
    let name = command.get_name();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let _ = writeln!(text, "\n### {name}\n\n{}\n\n```text\n{usage}\n```\n", line(command.get_about()));
    if let Some(more) = command.get_long_about().map(ToString::to_string) {
        let more = more.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        if !more.is_empty() {
            let _ = writeln!(text, "{more}\n");
        }
    }
    let shown: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .collect();
    if shown.is_empty() {
        return;
    }
    text.push_str("| argument | meaning |\n|---|---|\n");
    for arg in shown {
        let _ = writeln!(text, "| {} | {} |", spelled(arg), meaning(arg));
    }
}

fn spelled(arg: &Arg) -> String {
    let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let mut names = vec![];
    names.extend(arg.get_short().map(|short| format!("`-{short}`")));
    let with_value = match (arg.get_action().takes_values(), arg.is_require_equals_set()) {
        (false, _) => String::new(),
        (true, false) => format!(" {value}"),
        (true, true) => format!("[={value}]"),
    };
    names.extend(arg.get_long().map(|long| format!("`--{long}{with_value}`")));
    if names.is_empty() {
        let repeated =
            if arg.get_action().takes_values() && arg.get_num_args().is_some_and(|range| range.max_values() > 1) {
                "..."
            } else {
                ""
            };
        names.push(format!("`{value}{repeated}`"));
    }
    names.join(", ")
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    // clap takes the last one away.
    if !text.is_empty() && !text.ends_with(['.', ')']) {
        text.push('.');
    }
    let values = arg.get_possible_values();
    let values: Vec<String> =
        values.iter().filter(|value| !value.is_hide_set()).map(|value| format!("`{}`", value.get_name())).collect();
    if !values.is_empty() && arg.get_action().takes_values() {
        let _ = write!(text, " One of {}.", values.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        let _ = write!(text, " Default: {}.", defaults.join(", "));
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(text, " Variable: `{}`.", variable.to_string_lossy());
    }
    text.replace('|', "\\|")
}

fn line(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(|text| text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_agree_with_themselves() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_command_has_a_section_and_a_page() {
        let text = markdown();
        let directory = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(command("kubectl-patchwarden"), directory.path()).unwrap();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(text.contains(&format!("\n### {name}\n")), "{name}");
            let page = directory.path().join(format!("kubectl-patchwarden-{name}.1"));
            let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
        assert!(text.contains("`-o`, `--output OUTPUT`") && text.contains("Default: `text`."), "{text}");
    }
}
