//! `kubectl patchwarden completion`: what a shell completes. kubectl asks a program `kubectl_complete-patchwarden` on the PATH what may
//! follow `kubectl patchwarden`, in the words of cobra's protocol; that program is two lines that ask this one.

use std::fmt::Write as _;

use clap::builder::ValueHint;
use clap::{Arg, Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use super::{Cli, screen};

/// The words of cobra's protocol: what else the shell may propose.
const FILES_AS_WELL: u8 = 0;
const NOTHING_ELSE: u8 = 4;

/// The program that kubectl asks.
const FOR_KUBECTL: &str = "\
#!/bin/sh
# Put this into a file kubectl_complete-patchwarden on the PATH, and make it executable.
exec kubectl-patchwarden __complete -- \"$@\"
";

/// Flags of `completion`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// `kubectl` for the program that completes `kubectl patchwarden` (with kubectl's own completion); a shell for `kubectl-patchwarden`.
    #[arg(value_enum)]
    what: What,
}

/// For what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Kubectl,
    Bash,
    Zsh,
    Fish,
}

/// Flags of `__complete`.
#[derive(Debug, Args)]
pub struct Asked {
    /// The words so far; the last one is being written.
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<String>,
}

/// Prints the script.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let shell = match arguments.what {
        What::Kubectl => return screen::print(FOR_KUBECTL),
        What::Bash => Shell::Bash,
        What::Zsh => Shell::Zsh,
        What::Fish => Shell::Fish,
    };
    screen::print(&script(shell)?)
}

fn script(shell: Shell) -> anyhow::Result<String> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "kubectl-patchwarden", &mut script);
    Ok(String::from_utf8(script)?)
}

/// Answers kubectl.
pub fn complete(asked: &Asked) -> anyhow::Result<()> {
    let mut command = Cli::command();
    command.build();
    screen::print(&answer(&command, &asked.words))
}

fn answer(root: &Command, words: &[String]) -> String {
    let (written, last) = match words.split_last() {
        Some((last, written)) => (written, last.as_str()),
        None => (&[][..], ""),
    };
    let mut command = root;
    let (mut expects, mut positionals): (Option<&Arg>, usize) = (None, 0);
    for word in written {
        if expects.take().is_some() {
            continue;
        }
        if let Some(flag) = option(command, word) {
            expects = Some(flag).filter(|flag| takes_value(flag) && !word.contains('='));
        } else if let Some(inner) = command.find_subcommand(word) {
            command = inner;
        } else if !word.starts_with('-') {
            positionals += 1;
        }
    }
    if let Some(flag) = expects {
        return values(flag, "", last);
    }
    if let Some((name, value)) = last.split_once('=').filter(|(name, _)| name.starts_with("--")) {
        return option(command, name).map_or_else(none, |flag| values(flag, &format!("{name}="), value));
    }
    if last.starts_with('-') {
        let flags = command.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_positional());
        let named = flags.filter_map(|arg| Some((format!("--{}", arg.get_long()?), help(arg.get_help()))));
        return told(named, last, NOTHING_ELSE);
    }
    let commands = command.get_subcommands().filter(|inner| !inner.is_hide_set());
    let mut commands = commands.map(|inner| (inner.get_name().to_owned(), help(inner.get_about()))).peekable();
    if commands.peek().is_some() {
        return told(commands, last, NOTHING_ELSE);
    }
    let all: Vec<&Arg> = command.get_positionals().collect();
    all.get(positionals).or(all.last()).map_or_else(none, |arg| values(arg, "", last))
}

fn none() -> String {
    format!(":{NOTHING_ELSE}\n")
}

fn option<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let name = word.split('=').next().unwrap_or_default();
    command.get_arguments().find(|arg| {
        let long = name.strip_prefix("--").is_some_and(|name| arg.get_long() == Some(name));
        let short = name.strip_prefix('-').is_some_and(|name| {
            let mut letters = name.chars();
            letters.next().is_some_and(|letter| arg.get_short() == Some(letter)) && letters.next().is_none()
        });
        long || short
    })
}

fn takes_value(arg: &Arg) -> bool {
    // A value that must be given with = is no word of its own.
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

fn values(arg: &Arg, prefix: &str, written: &str) -> String {
    let possible = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set());
    let words: Vec<(String, String)> =
        possible.map(|value| (format!("{prefix}{}", value.get_name()), help(value.get_help()))).collect();
    let is_file = matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath);
    told(words.into_iter(), &format!("{prefix}{written}"), if is_file { FILES_AS_WELL } else { NOTHING_ELSE })
}

/// Each proposal and what it is, and what else the shell may do.
fn told(proposals: impl Iterator<Item = (String, String)>, written: &str, directive: u8) -> String {
    let mut text = String::new();
    for (word, help) in proposals.filter(|(word, _)| word.starts_with(written)) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{word}\t{help}");
    }
    let _ = writeln!(text, ":{directive}");
    text
}

fn help(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(|text| text.to_string().lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(words: &[&str]) -> (Vec<String>, String) {
        let mut command = Cli::command();
        command.build();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut lines: Vec<String> = answer(&command, &words).lines().map(str::to_owned).collect();
        let directive = lines.pop().unwrap();
        (lines.iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect(), directive)
    }

    #[test]
    fn kubectl_is_told_commands_flags_and_values() {
        let (commands, directive) = completed(&["ra"]);
        assert_eq!((commands, directive.as_str()), (vec!["raise-epoch".to_owned()], ":4"));
        assert!(completed(&[""]).0.contains(&"status".to_owned()));
        assert!(!completed(&["_"]).0.iter().any(|word| word == "__complete"), "nobody types that");
        assert_eq!(completed(&["status", "--out"]).0, ["--output"]);
        assert_eq!(completed(&["status", "-o", "w"]).0, ["wide"]);
        assert_eq!(completed(&["status", "--output=y"]).0, ["--output=yaml"]);
        assert_eq!(completed(&["status", "--output", "json", "-n", "acme", "--all"]).0, ["--all-namespaces"]);
        assert_eq!(completed(&["rotate", "r"]).0, ["root"]);
        assert_eq!(completed(&["explain", ""]), (vec![], ":4".to_owned()), "no files of this directory are devices");
        assert_eq!(completed(&["preview", "-f", ""]), (vec![], ":0".to_owned()), "files");
        assert_eq!(completed(&["no-such-command", "x"]).1, ":4");
    }

    #[test]
    fn each_shell_gets_a_script_of_all_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell).unwrap();
            assert!(script.contains("raise-epoch") && script.contains("kubectl-patchwarden"), "{shell}");
        }
    }

    /// What a real shell prints, on both its streams, and whether it succeeds. It has a home of its own, with nothing in it.
    fn asked(shell: &str, arguments: &[&str]) -> (bool, String) {
        let home = tempfile::TempDir::new().unwrap();
        let output = std::process::Command::new(shell).args(arguments).env("HOME", home.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{shell}: {error}: hack/prerequisites installs it"));
        let said = [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
        (output.status.success(), said)
    }

    #[test]
    fn each_shell_understands_its_script() {
        let directory = tempfile::TempDir::new().unwrap();
        let scripts = [Shell::Bash, Shell::Zsh, Shell::Fish].map(|shell| (shell.to_string(), script(shell).unwrap()));
        for (shell, script) in scripts.into_iter().chain([("sh".to_owned(), FOR_KUBECTL.to_owned())]) {
            let file = directory.path().join(&shell);
            let path = file.to_str().unwrap();
            std::fs::write(&file, &script).unwrap();
            assert_eq!(asked(&shell, &["-n", path]), (true, String::new()), "{shell}");
            // That it looks at it.
            std::fs::write(&file, format!("{script}\nif (\n")).unwrap();
            let (accepted, said) = asked(&shell, &["-n", path]);
            assert!(!accepted && !said.is_empty(), "{shell} accepts what is wrong: {said}");
        }
    }

    #[test]
    fn bash_and_fish_complete_by_their_scripts_and_zsh_finds_its_own() {
        let directory = tempfile::TempDir::new().unwrap();
        // By this name zsh finds it.
        let file = directory.path().join("_kubectl-patchwarden");
        let (directory, path) = (directory.path().to_str().unwrap(), file.to_str().unwrap());
        let write = |shell| std::fs::write(&file, script(shell).unwrap()).unwrap();

        write(Shell::Bash);
        let bash = "source \"$0\" && COMP_WORDS=(kubectl-patchwarden rai) COMP_CWORD=1 &&
            $(complete -p kubectl-patchwarden | sed 's/.* -F \\([^ ]*\\) .*/\\1/') kubectl-patchwarden rai kubectl-patchwarden;
            echo \"${COMPREPLY[*]}\"";
        assert_eq!(asked("bash", &["--norc", "-c", bash, path]), (true, "raise-epoch\n".to_owned()));

        write(Shell::Fish);
        let fish = format!("source {path}; complete --do-complete 'kubectl-patchwarden rai'");
        let (succeeded, said) = asked("fish", &["--no-config", "-c", &fish]);
        assert!(succeeded && said.starts_with("raise-epoch\tAfter etcd"), "{said}");

        write(Shell::Zsh);
        let zsh = format!(
            "fpath=({directory} $fpath); autoload -Uz compinit; compinit -D -u; echo $_comps[kubectl-patchwarden]"
        );
        assert_eq!(asked("zsh", &["-f", "-c", &zsh]), (true, "_kubectl-patchwarden\n".to_owned()));
    }
}
