//! What `softwareupdate --list` prints, in each of its forms. Pure.
//!
//! ```text
//! since macOS 10.15     * Label: Safari27.0TahoeAuto-27.0
//!                           Title: Safari, Version: 27.0, Size: 190512KiB, Recommended: YES, Action: restart,
//! until macOS 10.14        * macOS 10.14.1 Update
//!                           macOS 10.14.1 Update (10.14.1), 199140K [recommended] [restart]
//! softwareupdate(8)        - iCal-1.0.2
//!                           iCal, 1.0.2, 6520K
//! ```
//! It is text for people, and not described anywhere. So what is not of one of these forms is counted, and never guessed at.

use patchwarden_protocol::order::{MAX_NAME, MAX_VERSION};

use super::updates::encoded;

/// Longest label that is taken, in bytes.
const MAX_LABEL: usize = 256;

/// Longest line of an entry, in bytes.
const MAX_LINE: usize = 1024;

/// Most entries.
const MAX_OFFERS: usize = 500;

/// Fields of the newer form that are known; the others are passed over.
const FIELDS: [&str; 6] = ["Title", "Version", "Size", "Recommended", "Action", "Deferred"];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) offers: Vec<Offer>,
    /// Entries that are not of a known form, or more than are listed.
    pub(super) unread: usize,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// How it is called to install it.
    pub(super) label: String,
    /// How it is called when it is installed.
    pub(super) title: String,
    pub(super) version: String,
    /// Bytes to download; 0 where it is not said.
    pub(super) size: u64,
    pub(super) recommended: bool,
    /// What the machine does at the end of the install.
    pub(super) after: After,
    /// A profile of the organisation delays it.
    pub(super) deferred: bool,
}

/// The end of an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It goes on.
    Nothing,
    /// It restarts, shuts down, or does something that is not known here.
    Restart,
}

/// Reads it; or why it is no list.
pub(super) fn parse(output: &str) -> Result<Listing, String> {
    let mut lines = output.lines().map(str::trim).filter(|line| !line.is_empty());
    let (mut listing, mut is_list) = (Listing::default(), false);
    let mut line = lines.next();
    while let Some(current) = line {
        line = lines.next();
        let Some(head) = head(current) else {
            is_list |= current.starts_with("No new software available")
                || current.starts_with("Software Update found the following");
            continue;
        };
        // Without its second line an entry says nothing, and the next one is not that.
        let details = line.filter(|next| self::head(next).is_none());
        if details.is_some() {
            line = lines.next();
        }
        match details.and_then(|details| offer(head, details)) {
            Some(offer) if is_list && listing.offers.len() < MAX_OFFERS => listing.offers.push(offer),
            _ => listing.unread += 1,
        }
    }
    if is_list { Ok(listing) } else { Err("softwareupdate prints no list".to_owned()) }
}

/// First line of an entry.
#[derive(Clone, Copy)]
enum Head<'a> {
    New { label: &'a str },
    Old { label: &'a str, recommended: bool },
}

fn head(line: &str) -> Option<Head<'_>> {
    if let Some(rest) = line.strip_prefix("* ") {
        let rest = rest.trim_start();
        return Some(match rest.strip_prefix("Label:") {
            Some(label) => Head::New { label: label.trim() },
            None => Head::Old { label: rest, recommended: true },
        });
    }
    line.strip_prefix("- ").map(|rest| Head::Old { label: rest.trim_start(), recommended: false })
}

fn offer(head: Head<'_>, details: &str) -> Option<Offer> {
    if details.len() > MAX_LINE {
        return None;
    }
    let offer = match head {
        Head::New { label } => new_form(label, details),
        Head::Old { label, recommended } => old_form(label, recommended, details),
    }?;
    // A label is a word of a command: none may pass for an option of it.
    let is_word = !offer.label.starts_with('-');
    let is_text =
        |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER);
    let is_short = offer.label.len() <= MAX_LABEL
        && encoded(&offer.title).len() <= MAX_NAME
        && encoded(&offer.version).len() <= MAX_VERSION;
    let are_texts = is_text(&offer.label) && is_text(&offer.title) && is_text(&offer.version);
    (is_word && is_short && are_texts).then_some(offer)
}

/// `Title: X, Version: 1, Size: 5KiB, Recommended: YES, Action: restart, `. A title may have commas of its own.
fn new_form(label: &str, details: &str) -> Option<Offer> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    for part in details.trim_end_matches([',', ' ']).split(", ") {
        let named = part.split_once(':').map(|(name, value)| (name.trim(), value.trim()));
        let is_past_title = fields.iter().any(|(name, _)| *name == "Version");
        match (named, fields.last_mut()) {
            (Some((name, value)), _) if FIELDS.contains(&name) || is_past_title => {
                fields.push((name, value.to_owned()));
            }
            (_, Some((_, before))) => {
                before.push_str(", ");
                before.push_str(part);
            }
            (_, None) => return None,
        }
    }
    // Twice the same: which of them counts is not known.
    if FIELDS.iter().any(|field| fields.iter().filter(|(name, _)| name == field).count() > 1) {
        return None;
    }
    let field = |name: &str| fields.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str());
    Some(Offer {
        label: label.to_owned(),
        title: field("Title")?.to_owned(),
        version: field("Version")?.to_owned(),
        size: field("Size").map_or(Some(0), size)?,
        recommended: yes(field("Recommended")?)?,
        after: match field("Action") {
            None | Some("" | "none") => After::Nothing,
            Some(_) => After::Restart,
        },
        deferred: field("Deferred").map_or(Some(false), yes)?,
    })
}

/// `Title (1.0), 5K [recommended] [restart]`, also with a comma before the brackets or the version, and without parentheses.
fn old_form(label: &str, recommended: bool, details: &str) -> Option<Offer> {
    let (text, marks) = details.split_at(details.find('[').unwrap_or(details.len()));
    let marks: Vec<&str> = marks.split(['[', ']']).map(str::trim).filter(|mark| !mark.is_empty()).collect();
    let text = text.trim_end_matches([',', ' ']);
    let (named, amount) = text.rsplit_once(", ")?;
    let (title, version) = match named.strip_suffix(')') {
        Some(open) => open.rsplit_once('(')?,
        None => named.rsplit_once(", ")?,
    };
    Some(Offer {
        label: label.to_owned(),
        title: title.trim_end_matches([',', ' ']).to_owned(),
        version: version.trim().to_owned(),
        size: size(amount)?,
        recommended: recommended || marks.contains(&"recommended"),
        after: if marks.iter().all(|mark| *mark == "recommended") { After::Nothing } else { After::Restart },
        deferred: false,
    })
}

fn yes(word: &str) -> Option<bool> {
    match word {
        "YES" => Some(true),
        "NO" => Some(false),
        _ => None,
    }
}

/// `5K`, `5KB`, `5KiB`: units of 1024 bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.trim().strip_prefix(digits)?.trim();
    let amount: u64 = digits.trim().parse().ok()?;
    ["K", "KB", "KiB"].contains(&unit).then(|| amount.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAHOE: &str = include_str!("../../../tests/data/macos/list-26.txt");
    const CATALINA: &str = include_str!("../../../tests/data/macos/list-10.15.txt");
    const MOJAVE: &str = include_str!("../../../tests/data/macos/list-10.14.txt");
    const MANUAL: &str = include_str!("../../../tests/data/macos/list-manual.txt");
    const NONE: &str = include_str!("../../../tests/data/macos/list-none.txt");

    fn of(label: &str, title: &str, version: &str, kib: u64) -> Offer {
        Offer {
            label: label.into(),
            title: title.into(),
            version: version.into(),
            size: kib * 1024,
            recommended: true,
            after: After::Nothing,
            deferred: false,
        }
    }

    fn offers(text: &str) -> Vec<Offer> {
        let listing = parse(text).unwrap();
        assert_eq!(listing.unread, 0, "{listing:?}");
        listing.offers
    }

    fn restarts(offer: Offer) -> Offer {
        Offer { after: After::Restart, ..offer }
    }

    #[test]
    fn the_form_since_macos_10_15_is_read() {
        let expected = [
            of("Safari27.0TahoeAuto-27.0", "Safari", "27.0", 190_512),
            restarts(of("macOS Tahoe 26.7.1-25H300", "macOS Tahoe 26.7.1", "26.7.1", 1_843_200)),
            restarts(of("macOS Tahoe 26.7.1 (a)-25H300a", "macOS Tahoe 26.7.1 (a)", "26.7.1 (a)", 90_112)),
            of("Command Line Tools for Xcode 27.0-27.0", "Command Line Tools for Xcode 27.0", "27.0", 903_421),
            Offer { recommended: false, ..of("Voices, Extra-1.1", "Voices, Extra", "1.1", 12) },
            Offer { deferred: true, ..restarts(of("macOS 27-26A428", "macOS 27", "27", 11_728_377)) },
        ];
        assert_eq!(offers(TAHOE), expected);
        let expected = [
            of("Command Line Tools beta 5 for Xcode-11.0", "Command Line Tools beta 5 for Xcode", "11.0", 224_804),
            restarts(of("macOS Catalina Developer Beta-6", "macOS Catalina Public Beta", "5", 3_084_292)),
            restarts(of("BridgeOSUpdateCustomer", "BridgeOSUpdateCustomer", "10.15.0.1.1.1560926689", 390_674)),
            Offer { recommended: false, ..of("iCal-1.0.2", "iCal", "1.0.2", 6520) },
        ];
        assert_eq!(offers(CATALINA), expected);
    }

    #[test]
    fn the_older_forms_are_read() {
        let tools = "Command Line Tools (macOS Mojave version 10.14) for Xcode";
        let expected = [
            of(&format!("{tools}-10.3"), tools, "10.3", 199_140),
            restarts(of("macOS 10.14.1 Update", "macOS 10.14.1 Update", "10.14.1", 199_140)),
            restarts(of("BridgeOSUpdateCustomer", "BridgeOSUpdateCustomer", "10.14.4.1.1.1555388607", 328_394)),
            Offer { recommended: false, ..of("iCal-1.0.2", "iCal", "1.0.2", 6520) },
        ];
        assert_eq!(offers(MOJAVE), expected);
        let expected = [
            of("iPhoto-2.0", "iPhoto", "2.0", 34_100),
            of("StuffItExpander7-7.0", "StuffIt Expander Security Update", "7.0", 4420),
            Offer { recommended: false, ..of("iCal-1.0.2", "iCal", "1.0.2", 6520) },
            restarts(of("AirPortSW-4.1", "AirPort Software", "4.1", 13_880)),
        ];
        assert_eq!(offers(MANUAL), expected);
    }

    #[test]
    fn no_updates_is_not_the_same_as_no_answer() {
        assert_eq!(parse(NONE), Ok(Listing::default()));
        for no_list in
            ["", "Software Update Tool\n\nFinding available software\n", "\u{fffd}\u{fffd}", "* Label: x-1\n"]
        {
            assert!(parse(no_list).is_err(), "{no_list:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_of_no_known_form_is_counted_and_not_guessed_at() {
        let list =
            |entries: &str| parse(&format!("Software Update found the following new software:\n{entries}")).unwrap();
        let good = "* Label: a-1\n\tTitle: a, Version: 1, Size: 1K, Recommended: YES, \n";
        for bad in [
            "* Label: b-1\n",
            "* Label: b-1\n\tTitle: b, Vers",
            "* Label: b-1\n\tTitle: b, Version: 1, Size: 1K",
            "* Label: b-1\n\tTitle: b, Version: 1, Size: 1K, Recommended: PERHAPS, ",
            "* Label: b-1\n\tTitle: b, Version: 1, Size: 1MB, Recommended: YES, ",
            "* Label: b-1\n\tTitle: b, Version: 1, Size: -1K, Recommended: YES, ",
            "* Label: b-1\n\tTitle: b, Version: 1, Version: 2, Size: 1K, Recommended: YES, ",
            "* Label: b-1\n\tVersion: 1, Size: 1K, Recommended: YES, ",
            "* Label: b-1\n\tTitle: , Version: 1, Size: 1K, Recommended: YES, ",
            "* Label: \n\tTitle: b, Version: 1, Size: 1K, Recommended: YES, ",
            "* Label: --all\n\tTitle: b, Version: 1, Size: 1K, Recommended: YES, ",
            "* Label: b\u{1b}[2J-1\n\tTitle: b, Version: 1, Size: 1K, Recommended: YES, ",
            "* Label: b\u{fffd}-1\n\tTitle: b, Version: 1, Size: 1K, Recommended: YES, ",
            "* Label: b-1\n\tTitle: b\u{0}, Version: 1, Size: 1K, Recommended: YES, ",
            "* b-1\n\tb, 1K [recommended]",
            "* b-1\n\tb (1, 1K [recommended]",
            "* b-1\n\t1K",
        ] {
            let found = list(&format!("{good}{bad}"));
            assert_eq!((found.offers.len(), found.unread), (1, 1), "{bad:?}: {found:?}");
            let found = list(&format!("{bad}\n{good}"));
            assert!(found.unread >= 1 && found.offers.len() <= 1, "{bad:?}: {found:?}");
            assert!(found.offers.iter().all(|offer| offer.label == "a-1"), "{bad:?}: {found:?}");
        }
        let long = "x".repeat(MAX_LABEL + 1);
        let wide = good.replace("YES", &format!("YES{}", ", x: 1".repeat(MAX_LINE)));
        assert_eq!((list(&wide).offers.len(), list(&wide).unread), (0, 1));
        let found = list(&format!("* Label: {long}\n\tTitle: b, Version: 1, Size: 1K, Recommended: YES, \n{good}"));
        assert_eq!((found.offers.len(), found.unread), (1, 1));
        for (field, length) in [("Title: a", MAX_NAME), ("Version: 1", MAX_VERSION)] {
            // Each takes six characters of an order.
            for (count, expected) in [(length / 6, (1, 0)), (length / 6 + 1, (0, 1))] {
                let found = list(&good.replace(field, &format!("{field}{}", "é".repeat(count))));
                assert_eq!((found.offers.len(), found.unread), expected, "{field} and {count} more");
            }
        }
        // Larger than any number, and more than any machine is offered.
        let huge = format!("* Label: a-1\n\tTitle: a, Version: 1, Size: {}K, Recommended: YES, \n", u64::MAX);
        assert_eq!(list(&huge).offers[0].size, u64::MAX);
        let found = list(&good.repeat(MAX_OFFERS + 7));
        assert_eq!((found.offers.len(), found.unread), (MAX_OFFERS, 7));
    }

    #[test]
    fn fields_that_are_not_known_are_passed_over_and_an_action_that_is_not_known_counts_as_a_restart() {
        let text = "Software Update found the following new software:\n* Label: a-1\n\
                    \tTitle: a, Version: 1, Size: 1KiB, Recommended: YES, Channel: x, Action: logout, \n";
        assert_eq!(offers(text), [restarts(of("a-1", "a", "1", 1))]);
    }
}
