//! What programs of macOS say of the machine. Pure.
//!
//! Their output is not described anywhere but in their manual pages, which say no more than what they are asked; what is not of the form
//! that is known here is no answer.

use jiff::Timestamp;
use patchwarden_protocol::report::Power;

use super::OsRelease;

/// When the machine started, by `sysctl -n kern.boottime`: `{ sec = 1764313200, usec = 123456 } Fri Nov 28 07:00:00 2025`.
pub(crate) fn boot_time(text: &str) -> Option<Timestamp> {
    let fields = text.trim().strip_prefix('{')?.split_once('}')?.0;
    let seconds = fields.split(',').find_map(|field| field.trim().strip_prefix("sec ="))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

/// The id of the current boot, by `sysctl -n kern.bootsessionuuid`: a random UUID.
pub(crate) fn boot_id(text: &str) -> Option<String> {
    let text = text.trim();
    let groups = text.split('-').map(str::len);
    let is_uuid = groups.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    is_uuid.then(|| text.to_lowercase())
}

/// Which system it is, by `sw_vers`. `ProductVersionExtra` is that of a security response: `(a)`.
pub(crate) fn os_release(text: &str) -> Option<OsRelease> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '))
    };
    // Before macOS 11 it was "Mac OS X".
    field("ProductName").filter(|name| name.starts_with("mac") || name.starts_with("Mac"))?;
    let version = field("ProductVersion").filter(|version| version.starts_with(|c: char| c.is_ascii_digit()))?;
    let version = field("ProductVersionExtra").map_or(version.to_owned(), |extra| format!("{version} {extra}"));
    Some(OsRelease { id: "macos".to_owned(), like: String::new(), version })
}

/// What the machine runs on, by `pmset -g batt`: `Now drawing from 'AC Power'`.
pub(crate) fn power(text: &str) -> Power {
    match text.lines().find_map(|line| line.trim().strip_prefix("Now drawing from ")) {
        Some("'AC Power'") => Power::Mains,
        Some("'Battery Power'" | "'UPS Power'") => Power::Battery,
        _ => Power::Unknown,
    }
}

/// State of a service, by `launchctl print system/LABEL`: a line `state = running`, of which the first is the service's own.
pub(crate) fn service_state(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim().strip_prefix("state = "))
}

/// Any text in the place of each.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let _ = (boot_time(text), power(text), service_state(text), os_release(text));
    if let Some(id) = boot_id(text) {
        assert_eq!(id.len(), 36, "{id}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_told_by_its_time_and_its_id() {
        let text = "{ sec = 1764313200, usec = 123456 } Fri Nov 28 07:00:00 2025\n";
        assert_eq!(boot_time(text), Some("2025-11-28T07:00:00Z".parse().unwrap()));
        for bad in
            ["", "1764313200", "{ sec = , usec = 1 }", "{ usec = 1 }", "{ sec = 99999999999999999999 }", "{ sec = 1"]
        {
            assert_eq!(boot_time(bad), None, "{bad:?}");
        }
        let id = "5E6FFEBE-8C4F-4C0A-9B1D-0123456789AB";
        assert_eq!(boot_id(&format!("{id}\n")), Some(id.to_lowercase()));
        for bad in ["", "5E6FFEBE", &id[1..], &format!("{id} {id}"), &id.replace('A', "é"), &id.replace('A', "G")] {
            assert_eq!(boot_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_system_is_told_by_its_version() {
        let of = |version: &str| OsRelease { id: "macos".into(), like: String::new(), version: version.into() };
        let tahoe = "ProductName:\t\tmacOS\nProductVersion:\t\t26.7\nBuildVersion:\t\t25G227\n";
        assert_eq!(os_release(tahoe), Some(of("26.7")));
        let response = tahoe.replace("BuildVersion", "ProductVersionExtra:\t(a)\nBuildVersion");
        assert_eq!(os_release(&response), Some(of("26.7 (a)")));
        let mojave = "ProductName:\tMac OS X\nProductVersion:\t10.14.6\nBuildVersion:\t18G103\n";
        assert_eq!(os_release(mojave), Some(of("10.14.6")));
        for bad in ["", "ProductVersion: 26.7", "ProductName: macOS", "ProductName: macOS\nProductVersion: \u{1b}[2J"] {
            assert_eq!(os_release(bad), None, "{bad:?}");
        }
        assert_eq!(os_release(&tahoe.replace("26.7", "x")), None);
        assert_eq!(os_release(&tahoe.replace("macOS", "Windows")), None);
    }

    #[test]
    fn what_it_runs_on_is_unknown_where_it_is_not_told() {
        let battery =
            "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t82%; discharging; 5:12 remaining\n";
        assert_eq!(power(battery), Power::Battery);
        assert_eq!(power("Now drawing from 'AC Power'\n"), Power::Mains);
        assert_eq!(power("Now drawing from 'UPS Power'\n"), Power::Battery);
        assert_eq!((power(""), power("Now drawing from 'Sun'")), (Power::Unknown, Power::Unknown));
    }

    #[test]
    fn a_services_own_state_is_the_first() {
        let text = "system/com.example.web = {\n\tactive count = 1\n\tstate = running\n\n\tendpoints = {\n\t\tstate = x\n\t}\n}\n";
        assert_eq!(service_state(text), Some("running"));
        assert_eq!(service_state("Could not find service"), None);
    }
}
