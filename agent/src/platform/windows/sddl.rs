//! Who may change a file, by its security descriptor as text ("Security Descriptor String Format", "ACE Strings", "SID Strings": Win32's
//! pages on authorization). Pure.
//!
//! What is not understood counts as a right to write, and whoever is not known as nobody to be trusted.

/// The system, administrators and TrustedInstaller, by alias and by identifier; and the rights of the owner, who is one of these.
const TRUSTED: [&str; 7] = [
    "SY",
    "S-1-5-18",
    "BA",
    "S-1-5-32-544",
    "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
    "OW",
    "S-1-3-4",
];

/// Rights that change nothing: to read, to execute, to read this list, and the directory's "list", "traverse" and "read".
const HARMLESS: [&str; 5] = ["FR", "FX", "GR", "GX", "RC"];

/// Bits of an access mask by which a file or directory, what is in it, or its list can be changed ("File Access Rights Constants",
/// "Access Mask Format").
const WRITING: u32 = 0x0000_0002 // FILE_WRITE_DATA, FILE_ADD_FILE
    | 0x0000_0004 // FILE_APPEND_DATA, FILE_ADD_SUBDIRECTORY
    | 0x0000_0010 // FILE_WRITE_EA
    | 0x0000_0040 // FILE_DELETE_CHILD
    | 0x0000_0100 // FILE_WRITE_ATTRIBUTES
    | 0x0001_0000 // DELETE
    | 0x0004_0000 // WRITE_DAC
    | 0x0008_0000 // WRITE_OWNER
    | 0x1000_0000 // GENERIC_ALL
    | 0x4000_0000; // GENERIC_WRITE

/// Whether it is the system's or administrators', and nobody else's to change; if not, why not.
pub(crate) fn check(descriptor: &str) -> Result<(), String> {
    let owner = part(descriptor, "O:").unwrap_or_default();
    if !TRUSTED[..5].contains(&owner) {
        return Err(format!("belongs to {owner:?}, not to administrators: icacls FILE /setowner *S-1-5-32-544"));
    }
    // None, and one of this kind, lets everybody do everything.
    let list = part(descriptor, "D:").filter(|list| !list.contains("NO_ACCESS_CONTROL"));
    let list = list.ok_or("has no access control list: everybody can write it")?;
    let entries = list.split('(').skip(1);
    for entry in entries {
        let fields: Vec<&str> = entry.trim_end_matches(')').split(';').collect();
        let [kind, flags, rights, _, _, who, ..] = fields.as_slice() else {
            return Err(format!("has an entry in its access control list that is not understood: ({entry}"));
        };
        // Who is denied something may not do more by that. What only what is made below inherits counts like the rest, but for what
        // that grants whoever makes it.
        let is_denial = kind.ends_with('D');
        let is_for_makers = ["CO", "S-1-3-0"].contains(who) && pairs(flags).any(|flag| flag == "IO");
        if is_denial || is_for_makers || TRUSTED.contains(who) {
            continue;
        }
        if writes(rights) {
            return Err(format!(
                "others than administrators can write it ({who}): icacls FILE /inheritance:r removes them"
            ));
        }
    }
    Ok(())
}

/// What follows `mark`, until the next part.
fn part<'a>(descriptor: &'a str, mark: &str) -> Option<&'a str> {
    let at = descriptor.find(mark)? + mark.len();
    let rest = &descriptor[at..];
    let end = ["O:", "G:", "D:", "S:"].iter().filter_map(|next| rest.find(next)).min();
    Some(rest[..end.unwrap_or(rest.len())].trim())
}

fn pairs(text: &str) -> impl Iterator<Item = &str> {
    (0..text.len()).step_by(2).map(|at| text.get(at..at + 2).unwrap_or_default())
}

fn writes(rights: &str) -> bool {
    let mask = match rights.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => rights.parse().ok(),
    };
    match mask {
        Some(mask) => mask & WRITING != 0,
        None => pairs(rights).any(|right| !HARMLESS.contains(&right)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_administrators_alone_can_change_is_trusted() {
        for good in [
            "O:BAG:SYD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)",
            "O:SYG:SYD:AI(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;0x1200a9;;;BU)(A;OICIIO;GA;;;CO)",
            "O:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464G:SYD:(A;;FRFX;;;WD)(D;;FA;;;BG)",
            "O:BAG:BAD:P(A;;FA;;;OW)(A;;1179785;;;AU)S:AI(AU;SAFA;FA;;;WD)",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_somebody_else_owns_or_can_change_is_not() {
        for (bad, why) in [
            ("O:S-1-5-21-1-2-3-1001G:SYD:P(A;;FA;;;SY)", "belongs to \"S-1-5-21-1-2-3-1001\""),
            ("G:SYD:P(A;;FA;;;SY)", "belongs to \"\""),
            ("O:BUG:SYD:P(A;;FA;;;SY)", "belongs to \"BU\""),
            ("O:OWG:SYD:P(A;;FA;;;SY)", "belongs to"),
            ("O:BAG:SY", "everybody"),
            ("O:BAG:SYD:NO_ACCESS_CONTROL", "everybody"),
            // What a directory below %ProgramData% inherits: users may make files in it.
            ("O:BAG:SYD:AI(A;OICIID;FA;;;BA)(A;OICIID;0x1200a9;;;BU)(A;CIID;DCLCRPCR;;;BU)", "(BU)"),
            ("O:BAG:SYD:(A;OICIIO;GA;;;BU)", "(BU)"),
            ("O:BAG:SYD:(A;;GA;;;CO)", "(CO)"),
            ("O:BAG:SYD:(A;;0x100116;;;BU)", "(BU)"),
            ("O:BAG:SYD:(A;;FR;;;BU)(A;;FW;;;S-1-1-0)", "(S-1-1-0)"),
            ("O:BAG:SYD:(A;;SD;;;AU)", "(AU)"),
            ("O:BAG:SYD:(XA;;FA;;;WD;(@User.x))", "(WD)"),
            ("O:BAG:SYD:(A;;F;;;WD)", "(WD)"),
            ("O:BAG:SYD:(A;;FA", "not understood"),
            ("", "belongs to"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn each_bit_of_a_mask_that_changes_something_counts_and_no_other() {
        let writing = [1, 2, 4, 6, 8, 16, 18, 19, 28, 30];
        for bit in 0..32 {
            let descriptor = format!("O:BAG:SYD:(A;;{:#x};;;BU)", 1_u32 << bit);
            assert_eq!(check(&descriptor).is_err(), writing.contains(&bit), "bit {bit}");
        }
    }
}
