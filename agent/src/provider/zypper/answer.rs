//! What `zypper --xmlout` prints (its schema is /usr/share/zypper/xml/xmlout.rnc). Pure.

use std::path::PathBuf;

use super::xml::{Node, walk};
use crate::provider::support::MAX_ENTRIES;

/// Everything that the agent wants to know of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Messages of the type `error`.
    pub(super) errors: Vec<String>,
    /// Those of them that came once the transaction was worked out: not of repositories that cannot be used.
    pub(super) failures: Vec<String>,
    /// What the solver would have to be told: zypper's questions, which nobody answers.
    pub(super) problems: Vec<String>,
    pub(super) repositories: Vec<Repository>,
    pub(super) updates: Vec<Version>,
    /// What a transaction would do; nothing where zypper did not come so far.
    pub(super) steps: Option<Vec<Step>>,
    /// Where downloaded files lie.
    pub(super) files: Vec<PathBuf>,
    /// Files that two packages have.
    pub(super) conflicts: Vec<String>,
}

/// A configured repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) alias: String,
    /// The lowest number is taken first.
    pub(super) priority: u32,
    pub(super) is_enabled: bool,
}

/// A package in a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(clippy::struct_field_names, reason = "it is called so everywhere")]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) arch: String,
    /// `[EPOCH:]VERSION-RELEASE`.
    pub(super) version: String,
}

/// A part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) what: What,
    pub(super) package: Version,
}

/// What happens to the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It comes, in whatever place.
    Comes,
    Goes,
    /// It comes from another vendor than the installed one.
    OtherVendor,
}

/// Reads an answer.
pub(super) fn read(document: &str) -> Result<Answer, String> {
    let mut answer = Answer::default();
    let mut part = Part::default();
    let each = |node: Node<'_>| {
        part.take(node, &mut answer)?;
        if answer.entries() > MAX_ENTRIES { Err(format!("more than {MAX_ENTRIES} entries")) } else { Ok(()) }
    };
    walk(document.as_bytes(), each).map_err(|why| format!("zypper's answer, {why}"))?;
    Ok(answer)
}

impl Answer {
    fn entries(&self) -> usize {
        let Self { errors, failures, problems, repositories, updates, steps, files, conflicts } = self;
        let texts = errors.len() + failures.len() + problems.len() + conflicts.len();
        texts + repositories.len() + updates.len() + steps.as_ref().map_or(0, Vec::len) + files.len()
    }
}

/// Where in the document it is.
#[derive(Default)]
struct Part {
    is_error: bool,
    in_prompt: bool,
    section: Option<What>,
    /// A file, and the packages that have it.
    conflict: Option<(String, Vec<String>)>,
}

impl Part {
    fn take(&mut self, node: Node<'_>, answer: &mut Answer) -> Result<(), String> {
        match node {
            Node::Open(tag) => match tag.name() {
                "message" => self.is_error = tag.attribute("type")? == "error",
                "prompt" => self.in_prompt = true,
                "repo" => answer.repositories.push(Repository {
                    alias: tag.attribute("alias")?,
                    priority: number(&tag.attribute("priority")?)?,
                    is_enabled: tag.attribute("enabled")? == "1",
                }),
                "update" if tag.attribute("kind")? == "package" => answer.updates.push(version_of(&tag)?),
                "install-summary" => answer.steps = Some(Vec::new()),
                "solvable" if tag.attribute("type")? == "package" => {
                    if let (Some(what), Some(steps)) = (self.section, &mut answer.steps) {
                        steps.push(Step { what, package: version_of(&tag)? });
                    }
                }
                "localfile" => answer.files.push(tag.attribute("path")?.into()),
                "fileconflict" => self.conflict = Some((String::new(), Vec::new())),
                "to-remove" => self.section = Some(What::Goes),
                "to-upgrade-change-vendor" | "to-downgrade-change-vendor" | "to-change-vendor" => {
                    self.section = Some(What::OtherVendor);
                }
                "to-install"
                | "to-upgrade"
                | "to-downgrade"
                | "to-reinstall"
                | "to-change-arch"
                | "to-upgrade-change-arch"
                | "to-downgrade-change-arch" => self.section = Some(What::Comes),
                // To guess what is new would be to do what nobody ordered.
                unknown if unknown.starts_with("to-") => return Err(format!("unknown section <{unknown}>")),
                _ => {}
            },
            Node::Close { name: "message", text } if self.is_error && !text.is_empty() => {
                if answer.steps.is_some() {
                    answer.failures.push(text.to_owned());
                }
                answer.errors.push(text.to_owned());
            }
            Node::Close { name: "text", text } if self.in_prompt => {
                answer.errors.extend(doubt(text).filter(|doubt| answer.errors.last() != Some(doubt)));
            }
            Node::Close { name: "description", text } if self.in_prompt && !text.is_empty() => {
                answer.problems.push(text.to_owned());
            }
            Node::Close { name: "fileconflict", .. } => {
                if let Some((file, packages)) = self.conflict.take() {
                    answer.conflicts.push(format!("file {file} is in {}", packages.join(" and in ")));
                }
            }
            Node::Close { name: "file", text } => {
                if let Some((file, _)) = &mut self.conflict {
                    text.clone_into(file);
                }
            }
            Node::Close { name: "name", text } => {
                if let Some((_, packages)) = self.conflict.as_mut().filter(|(_, packages)| packages.len() < MAX_ENTRIES)
                {
                    packages.push(text.to_owned());
                }
            }
            Node::Close { name: "prompt", .. } => self.in_prompt = false,
            Node::Close { name, .. } if name.starts_with("to-") => self.section = None,
            Node::Close { .. } => {}
        }
        Ok(())
    }
}

/// What stands against a file or a key about which zypper asks: nobody says yes, and its error does not say why.
fn doubt(question: &str) -> Option<String> {
    let within = |element: &str| {
        let (_, rest) = question.split_once(&format!("<{element}>"))?;
        Some(rest.split_once("</")?.0)
    };
    if let (Some(repository), Some(key)) = (within("repository"), within("key-fingerprint")) {
        let remedy = "`rpm --import` it if it is the right one";
        return Some(format!(
            "repository '{repository}' is signed with the key {key}, which nobody has accepted: {remedy}"
        ));
    }
    let about = question.starts_with("File '") || question.starts_with("Signature verification failed");
    let statement = question.strip_suffix(", continue?").or(question.strip_suffix(" Continue?"));
    statement.filter(|_| about).map(str::to_owned)
}

fn version_of(tag: &super::xml::Tag<'_>) -> Result<Version, String> {
    Ok(Version { name: tag.attribute("name")?, arch: tag.attribute("arch")?, version: tag.attribute("edition")? })
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// Names and architectures of the locked packages in the table of `zypper list-updates --all`, which the XML does not tell:
/// `S | Repository | Name | Current Version | Available Version | Arch`, with an `l` in the first column.
pub(super) fn locked(table: &str) -> Vec<(String, String)> {
    let cells = |line: &str| -> Option<(String, String)> {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        // A repository may have a `|` in its name.
        let [status, .., name, _, _, arch] = cells.as_slice() else { return None };
        (status.contains('l') && status.len() <= 3).then(|| ((*name).to_owned(), (*arch).to_owned()))
    };
    table.lines().filter_map(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What zypper printed: see `tests/data/zypper/README.md`.
    macro_rules! recorded {
        ($name:literal) => {
            include_str!(concat!("../../../tests/data/zypper/", $name))
        };
    }

    fn steps(answer: &Answer) -> Vec<(What, String)> {
        let steps = answer.steps.as_ref().unwrap().iter();
        steps.map(|s| (s.what, format!("{} {}", s.package.name, s.package.version))).collect()
    }

    #[test]
    fn a_transaction_is_read_with_all_its_parts() {
        let answer = read(recorded!("plan.xml")).unwrap();
        assert_eq!((answer.errors.len(), answer.problems.len()), (0, 0));
        let expected = [
            (What::Comes, "pw-a 3.0-1"),
            (What::Comes, "pw-epoch 1:2.0~rc1-1"),
            (What::Comes, "pw-greedy 2.0-1"),
            (What::Comes, "pw-needs 2.0-1"),
            (What::Comes, "kernel-default 5.14.1-1"),
            (What::Comes, "pw-new 1.0-1"),
            (What::Goes, "pw-victim 1.0-1"),
        ];
        assert_eq!(steps(&answer), expected.map(|(what, text)| (what, text.to_owned())));
        let summary = |section: &str| {
            let solvable = "<solvable type='package' name='x' edition='2-1' arch='noarch'/>";
            read(&format!("<stream><install-summary><{section}>{solvable}</{section}></install-summary></stream>"))
        };
        assert_eq!(steps(&summary("to-change-vendor").unwrap()), [(What::OtherVendor, "x 2-1".to_owned())]);
        assert_eq!(summary("to-be-seen").unwrap_err(), "zypper's answer, byte 25: unknown section <to-be-seen>");
        assert_eq!(read("<stream/>").unwrap().steps, None);
    }

    #[test]
    fn what_is_wrong_is_read_from_messages_and_questions() {
        let answer = read(recorded!("locked.xml")).unwrap();
        assert!(answer.problems[0].contains("remove lock to allow installation of pw-a-3.0-1.noarch"), "{answer:?}");
        assert_eq!(answer.steps, None);
        let answer = read(recorded!("refresh-down.xml")).unwrap();
        assert!(answer.errors[0].starts_with("Problem retrieving files from 'Test'."), "{answer:?}");
        let key = "repository 'Test' is signed with the key 6F74577AC4EB4CE1E16B68478BEEF0818866846A, which nobody has accepted: \
                   `rpm --import` it if it is the right one";
        for (document, first, second) in [
            (recorded!("refresh-unsigned.xml"), "File 'repomd.xml' from repository 'Test' is unsigned", "Repository"),
            (recorded!("refresh-other-key.xml"), key, "Repository"),
            (
                recorded!("refresh-modified.xml"),
                "Signature verification failed for file 'repomd.xml' from repository 'Test'.",
                "Repository",
            ),
        ] {
            let errors = read(document).unwrap().errors;
            assert!(errors[0] == first && errors[1].starts_with(second), "{errors:#?}");
        }
    }

    #[test]
    fn repositories_and_updates_are_listed() {
        let answer = read(recorded!("repos.xml")).unwrap();
        let second = Repository { alias: "second".into(), priority: 99, is_enabled: true };
        assert_eq!(answer.repositories[0], second);
        let answer = read(recorded!("list-updates.xml")).unwrap();
        let names: Vec<&str> = answer.updates.iter().map(|update| update.name.as_str()).collect();
        assert_eq!(names.len(), 11, "{names:?}");
        let a = Version { name: "pw-a".into(), arch: "noarch".into(), version: "3.0-1".into() };
        assert_eq!(answer.updates[1], a);
    }

    #[test]
    fn locked_packages_are_those_with_an_l() {
        let found = locked(recorded!("list-updates-all.txt"));
        assert_eq!(found, [("pw-a".to_owned(), "noarch".to_owned())]);
        assert_eq!(locked("vl | A|B | x | 1-1 | 2-1 | x86_64\n"), [("x".to_owned(), "x86_64".to_owned())]);
    }

    #[test]
    fn files_of_two_packages_are_told_with_both() {
        let answer = read(recorded!("clash.xml")).unwrap();
        assert_eq!(answer.conflicts, ["file /usr/share/pw-b-1/1.0 is in pw-clash and in pw-b"]);
    }

    #[test]
    fn downloaded_files_are_where_zypper_says() {
        let answer = read(recorded!("download.xml")).unwrap();
        assert_eq!(answer.files, [PathBuf::from("/srv/cache/test/pw-b-2.0-1.noarch.rpm")]);
    }
}
