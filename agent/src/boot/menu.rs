//! `grub.cfg`, as grub-mkconfig writes it: which entries there are, and how GRUB chooses. Pure.
//!
//! GRUB's language has conditions, loops and functions. What is read here is what grub-mkconfig makes of its own templates; what is
//! anything else, and could change which entry is started, is refused and never guessed.

use super::entries::{Entry, file_name, is_plain_id, only, release_of};

/// Menu entries and submenus; Debian's has two for each kernel.
const MAX_NODES: usize = 2000;

/// What grub-mkconfig makes of `GRUB_DEFAULT=saved`.
const SAVED: &str = "\"${saved_entry}\"";

/// What it looks at before.
const NEXT: &str = "\"${next_entry}\"";

/// Where Fedora counts starts (`08_fallback_counting`); it does nothing while the environment has no `boot_counter`.
const COUNTER: &str = "\"${boot_counter}\"";

/// Where Ubuntu tries a start without an initial ramdisk before one with it; it does nothing while the environment has no `initrdfail`,
/// and entries that would set it are none ([`Node::is_retried`]).
const RETRY: &str = "\"${initrdfail}\"";

/// A `grub.cfg` that was understood, and that starts `next_entry` once and else `saved_entry`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Menu {
    nodes: Vec<Node>,
    /// Whether the entries are in files of their own (`blscfg`).
    pub(super) has_entry_files: bool,
    /// Names of files beside it that it would read: nothing is known of what is in them.
    pub(super) sources: Vec<String>,
}

/// An entry or a submenu.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    /// The submenu that it is in, by its number.
    parent: Option<usize>,
    title: String,
    id: String,
    is_submenu: bool,
    /// Inside of an `if`: whether it is there is known at the start alone.
    is_conditional: bool,
    images: Vec<String>,
    ramdisks: Vec<String>,
    /// Whether GRUB may start it more than once for one `next_entry`.
    is_retried: bool,
}

/// What a line may be inside of.
#[derive(Debug)]
enum Block {
    Function,
    /// A menu entry or a submenu.
    Node(usize),
    /// An `if`, with its first line.
    If(String),
}

impl Menu {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut menu = Self::default();
        let mut blocks: Vec<Block> = Vec::new();
        let mut defaults: Vec<&str> = Vec::new();
        let (mut is_next_unset, mut clears_next) = (false, false);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let at = |why: &str| format!("line {}: {why}", number + 1);
            let (word, rest) = line.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((line, ""));
            let node = blocks.iter().rev().find_map(|block| match block {
                Block::Node(node) => Some(*node),
                _ => None,
            });
            let is_top = blocks.iter().all(|block| matches!(block, Block::If(_)));
            match word {
                "" => {}
                _ if word.starts_with('#') => {}
                "menuentry" | "submenu" => {
                    let is_inside = node.is_some_and(|node| !menu.nodes[node].is_submenu);
                    if is_inside || blocks.iter().any(|block| matches!(block, Block::Function)) {
                        return Err(at("an entry inside of another"));
                    }
                    let is_conditional = blocks.iter().any(|block| matches!(block, Block::If(_)));
                    let (title, id) = header(rest).ok_or_else(|| at("an entry whose title or id is not understood"))?;
                    let is_submenu = word == "submenu";
                    menu.nodes.push(Node { parent: node, title, id, is_submenu, is_conditional, ..Node::default() });
                    if menu.nodes.len() > MAX_NODES {
                        return Err(at("more entries than can be"));
                    }
                    blocks.push(Block::Node(menu.nodes.len() - 1));
                }
                "function" if line.ends_with('{') => blocks.push(Block::Function),
                "}" => match blocks.pop() {
                    Some(Block::Function | Block::Node(_)) if rest.is_empty() => {}
                    _ => return Err(at("} of nothing")),
                },
                "if" => {
                    if !line.ends_with("fi") {
                        blocks.push(Block::If(line.to_owned()));
                    }
                }
                "elif" | "else" => {
                    if !matches!(blocks.last(), Some(Block::If(_))) {
                        return Err(at("else of nothing"));
                    }
                }
                "fi" => match blocks.pop() {
                    Some(Block::If(_)) if rest.is_empty() => {}
                    _ => return Err(at("fi of nothing")),
                },
                "while" | "until" | "for" => return Err(at("a loop")),
                "linux" | "linuxefi" | "linux16" => match node.filter(|node| !menu.nodes[*node].is_submenu) {
                    Some(node) => {
                        menu.nodes[node].images.extend(rest.split_ascii_whitespace().next().map(str::to_owned));
                    }
                    None => return Err(at("a kernel outside of an entry")),
                },
                "initrd" | "initrdefi" | "initrd16" => {
                    if let Some(node) = node {
                        let names = rest.split_ascii_whitespace().map(|path| file_name(path).to_owned());
                        menu.nodes[node].ramdisks.extend(names);
                    }
                }
                "blscfg" if is_top => menu.has_entry_files = true,
                "save_env" if is_top && rest == "next_entry" => clears_next = is_next_unset && defaults == [NEXT],
                "initrdfail" => {
                    if let Some(node) = node {
                        menu.nodes[node].is_retried = true;
                    }
                }
                "source" | "configfile" | "normal" | "." if node.is_none() => {
                    menu.sources.push(beside(rest).ok_or_else(|| at("another configuration"))?);
                }
                _ => {
                    let assigned = line.strip_prefix("set ").unwrap_or(line).trim_start();
                    let is_inside =
                        |of: &str| blocks.iter().any(|block| matches!(block, Block::If(first) if first.contains(of)));
                    match assigned.split_once('=').filter(|_| node.is_none()) {
                        Some(("default", value)) if !is_inside(COUNTER) => defaults.push(value),
                        Some(("next_entry", "")) => is_next_unset = true,
                        Some(("next_entry", _)) if !is_inside(RETRY) => {
                            return Err(at("something else sets what GRUB starts next"));
                        }
                        _ => {}
                    }
                }
            }
        }
        if !blocks.is_empty() {
            return Err("it ends in the middle of something".to_owned());
        }
        match defaults[..] {
            [NEXT, SAVED] if clears_next => Ok(menu),
            [NEXT, other] if other != SAVED => Err(format!(
                "GRUB starts {other} and not what is saved: set GRUB_DEFAULT=saved in /etc/default/grub and make grub.cfg anew"
            )),
            _ => Err("how GRUB chooses what it starts is not understood".to_owned()),
        }
    }

    /// What GRUB starts by itself where `saved_entry` has this value.
    pub(super) fn starts(&self, saved: &str) -> Result<Entry, String> {
        let saved = if saved.is_empty() { "0" } else { saved };
        let mut parent = None;
        let parts: Vec<&str> = saved.split('>').collect();
        for (depth, part) in parts.iter().enumerate() {
            let inside = || self.nodes.iter().enumerate().filter(move |(_, node)| node.parent == parent);
            let what = format!("saved_entry={saved}");
            let (number, node) = if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
                let index: usize = part.parse().map_err(|_| format!("{what} is no number of an entry"))?;
                if inside().take(index.saturating_add(1)).any(|(_, node)| node.is_conditional) {
                    return Err(format!("{what}: which one that is depends on a condition"));
                }
                only(&what, inside().nth(index).into_iter())?
            } else {
                only(&what, inside().filter(|(_, node)| node.id == *part || node.title == *part))?
            };
            let is_last = depth + 1 == parts.len();
            match (is_last, node.is_submenu) {
                (true, false) => {
                    return self.entry(number).ok_or_else(|| format!("{what} is no installed kernel's entry"));
                }
                (false, true) => parent = Some(number),
                (true, true) => return Err(format!("{what} is a submenu")),
                (false, false) => return Err(format!("{what}: {part} is no submenu")),
            }
        }
        Err(format!("saved_entry={saved} is no entry"))
    }

    /// The entry of this kernel alone, by the id that grub-mkconfig gives it: `gnulinux-RELEASE-advanced-FILESYSTEM`.
    pub(super) fn of_kernel(&self, release: &str) -> Result<Entry, String> {
        let prefix = format!("gnulinux-{release}-advanced-");
        let own = (0..self.nodes.len()).filter(|node| self.nodes[*node].id.starts_with(&prefix));
        let own = own.filter_map(|node| self.entry(node)).filter(|entry| entry.release == release);
        only(&format!("the kernel {release}"), own)
    }

    /// An entry that starts one kernel, whatever is true at the start.
    fn entry(&self, number: usize) -> Option<Entry> {
        let node = &self.nodes[number];
        let [image] = &node.images[..] else { return None };
        if node.is_retried {
            return None;
        }
        let release = release_of(image)?.to_owned();
        let mut ids = Vec::new();
        let mut above = Some(number);
        while let Some(number) = above {
            let Node { parent, id, is_conditional, .. } = &self.nodes[number];
            if *is_conditional || !is_plain_id(id) {
                return None;
            }
            ids.push(id.as_str());
            above = *parent;
        }
        ids.reverse();
        Some(Entry { path: ids.join(">"), release, image: image.clone(), ramdisks: node.ramdisks.clone() })
    }
}

/// Title and id of an entry's first line, behind its first word.
fn header(text: &str) -> Option<(String, String)> {
    let mut words = words(text.strip_suffix('{')?)?.into_iter();
    let title = words.next()?;
    let mut id = title.clone();
    while let Some(word) = words.next() {
        if matches!(word.as_str(), "$menuentry_id_option" | "${menuentry_id_option}" | "--id") {
            id = words.next()?;
        }
    }
    Some((title, id))
}

/// As GRUB's shell splits a line: `'it'\''s'` is one word.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// The name of a file in GRUB's own directory.
fn beside(path: &str) -> Option<String> {
    let places = ["${config_directory}/", "$prefix/", "${prefix}/"];
    let name = places.iter().find_map(|place| path.strip_prefix(place))?;
    is_plain_id(name).then(|| name.to_owned())
}

/// Of whatever it reads it names entries only as GRUB finds them again.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let Ok(menu) = Menu::parse(text) else { return };
    for number in 0..menu.nodes.len() {
        let Some(entry) = menu.entry(number) else { continue };
        if let Ok(found) = menu.of_kernel(&entry.release) {
            assert_eq!(found.release, entry.release);
            if let Ok(again) = menu.starts(&found.path) {
                assert_eq!(again, found);
            }
        }
    }
    let _ = (menu.starts(""), menu.starts(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Debian 12's grub-mkconfig (2.06-13+deb12u2) writes for two kernels with `GRUB_DEFAULT=saved`.
    pub(super) const DEBIAN: &str = include_str!("../../tests/data/boot/debian-12-grub.cfg");

    /// In the form of Fedora's templates (grub2 2.06: 00_header, 01_users, 08_fallback_counting, 10_linux); not recorded on one.
    pub(super) const FEDORA: &str = include_str!("../../tests/data/boot/fedora-like-grub.cfg");

    const ID: &str = "0f5b1a0e-6f7c-4f3a-9b0e-3f2c58f7a111";

    fn changed(from: &str, to: &str) -> Result<Menu, String> {
        let text = DEBIAN.replacen(from, to, 1);
        assert_ne!(text, DEBIAN, "{from}");
        Menu::parse(&text)
    }

    #[test]
    fn a_kernels_entry_is_found_by_its_id_and_the_default_as_grub_finds_it() {
        let menu = Menu::parse(DEBIAN).unwrap();
        assert!(!menu.has_entry_files && menu.sources.iter().all(|name| name == "custom.cfg"));
        let path = |release: &str| format!("gnulinux-advanced-{ID}>gnulinux-{release}-advanced-{ID}");
        let old = menu.of_kernel("6.1.0-37-amd64").unwrap();
        assert_eq!((&old.path, old.image.as_str()), (&path("6.1.0-37-amd64"), "/boot/vmlinuz-6.1.0-37-amd64"));
        assert_eq!(old.ramdisks, ["initrd.img-6.1.0-37-amd64"]);
        assert!(menu.of_kernel("6.1.0-3").is_err() && menu.of_kernel("6.1.0-36-amd64").is_err());
        let release = |saved: &str| menu.starts(saved).map(|entry| entry.release);
        let (new, old) = (Ok("6.1.0-38-amd64".to_owned()), Ok("6.1.0-37-amd64".to_owned()));
        for saved in ["", "0", "Debian GNU/Linux", &format!("gnulinux-simple-{ID}"), "1>0", &path("6.1.0-38-amd64")] {
            assert_eq!(release(saved), new, "{saved}");
        }
        let title = "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-37-amd64";
        for saved in ["1>2", title, &path("6.1.0-37-amd64")] {
            assert_eq!(release(saved), old, "{saved}");
        }
        for saved in ["1", "2", "1>9", "0>0", "x", ">", "1>", "99999999999999999999999", "-1"] {
            assert!(release(saved).is_err(), "{saved}");
        }
    }

    #[test]
    fn what_starts_anything_else_than_what_is_saved_is_refused() {
        let why = |found: Result<Menu, String>| found.unwrap_err();
        let fixed = why(changed(SAVED, "\"0\""));
        assert!(fixed.contains("GRUB starts \"0\"") && fixed.contains("GRUB_DEFAULT=saved"), "{fixed}");
        let never_cleared = "how GRUB chooses what it starts is not understood";
        assert_eq!(why(changed("save_env next_entry", "true")), never_cleared);
        assert_eq!(why(changed("set next_entry=\n", "true\n")), never_cleared);
        assert_eq!(why(changed("### BEGIN /etc/grub.d/40", "set default=2\n### BEGIN /etc/grub.d/40")), never_cleared);
        assert_eq!(why(Menu::parse("")), never_cleared);
        assert!(
            why(changed("### BEGIN /etc/grub.d/40", "source /boot/other.cfg\n#")).contains("another configuration")
        );
        assert!(why(changed("### BEGIN /etc/grub.d/40", "for x in a b; do\n#")).contains("a loop"));
        assert!(why(changed("### BEGIN /etc/grub.d/40", "if true; then\n#")).contains("in the middle"));
        assert!(why(changed("### BEGIN /etc/grub.d/40", "}\n#")).contains("} of nothing"));
        assert!(why(changed("### BEGIN /etc/grub.d/40", "menuentry 'a {\n}\n#")).contains("not understood"));
    }

    #[test]
    fn an_entry_that_may_not_be_there_or_is_not_one_kernel_is_none() {
        let first = "menuentry 'Debian GNU/Linux' ";
        let conditional = changed(first, &format!("if true; then\nmenuentry 'Other' {{\n}}\nfi\n{first}")).unwrap();
        assert!(conditional.starts("").unwrap_err().contains("depends on a condition"));
        assert!(conditional.starts(&format!("gnulinux-simple-{ID}")).is_ok());
        let before = changed(first, &format!("menuentry 'Windows' {{\n\tchainloader +1\n}}\n{first}")).unwrap();
        assert!(before.starts("").unwrap_err().contains("no installed kernel's entry"));
        assert_eq!(before.starts("1").unwrap().release, "6.1.0-38-amd64");
        let two = changed("\tlinux\t/boot/vmlinuz-6.1.0-38-amd64", "\tlinux /x\n\tlinux\t/boot/vmlinuz-6.1.0-38-amd64");
        assert!(two.unwrap().starts("").is_err());
        let quoted = words(r#"'it'\''s' "a \"b" c\ d --id"#).unwrap();
        assert_eq!(quoted, ["it's", "a \"b", "c d", "--id"]);
    }

    #[test]
    fn entries_in_files_are_told_and_a_counter_of_starts_is_not_taken_for_the_default() {
        let menu = Menu::parse(FEDORA).unwrap();
        assert!(menu.has_entry_files && menu.of_kernel("6.11.4-301.fc41.x86_64").is_err());
        assert_eq!(menu.sources, ["user.cfg", "custom.cfg", "custom.cfg"]);
        let plain = FEDORA.replace(COUNTER, "\"${other}\"");
        assert!(Menu::parse(&plain).is_err(), "{plain}");
    }

    #[test]
    fn what_ubuntu_starts_twice_is_no_entry_and_its_retries_are_not_taken_for_anothers_choice() {
        let header = "if [ \"${initrdfail}\" = 2 ]; then\n   set initrdfail=\nelif [ \"${initrdfail}\" = 1 ]; then\n   \
                      set next_entry=\"${prev_entry}\"\n   set prev_entry=\n   save_env prev_entry\nfi\nif [ \"${next_entry}\" ]";
        let plain = changed("if [ \"${next_entry}\" ]", header).unwrap();
        assert!(plain.of_kernel("6.1.0-38-amd64").is_ok());
        let other = changed("if [ \"${next_entry}\" ]", &header.replace("initrdfail", "other"));
        assert!(other.unwrap_err().contains("something else sets what GRUB starts next"));
        let entry = "\t\tlinux\t/boot/vmlinuz-6.1.0-38-amd64 root=/dev/vda1 ro  quiet\n";
        let retried = changed(entry, &format!("{entry}\t\tinitrdfail\n")).unwrap();
        assert!(retried.of_kernel("6.1.0-38-amd64").is_err() && retried.of_kernel("6.1.0-37-amd64").is_ok());
    }

    #[test]
    fn spoiled_menus_are_read_without_harm() {
        for text in [DEBIAN, FEDORA] {
            fuzz(text);
            for cut in (0..text.len()).step_by(37).filter(|cut| text.is_char_boundary(*cut)) {
                fuzz(&text[..cut]);
                fuzz(&format!("{}{}", &text[..cut], text.get(cut + 23..).unwrap_or_default()));
            }
        }
    }
}
