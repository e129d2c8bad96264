//! FIRST's list of how likely vulnerabilities are exploited in the next 30 days, as CSV, also packed with gzip
//! (<https://www.first.org/epss/data_stats>).

use std::io::{BufRead, Read};

use crate::limits::{MAX_LINE, MAX_LIST};
use crate::reading::{Fault, Halt, is_cve, shown};

/// `#model_version:v2025.03.14,score_date:2025-03-17T12:55:00Z`, which the oldest lists do not have, then `cve,epss,percentile`, then a
/// line for each. Returns how many there are.
pub(crate) fn csv(source: impl BufRead, take: &mut dyn FnMut(String, u32) -> Result<(), Halt>) -> Result<u64, Halt> {
    let mut lines = Lines { source: source.take(MAX_LIST + 1), number: 0, buffer: Vec::new(), read: 0 };
    let first = lines.next()?.unwrap_or_default();
    let header = if first.starts_with('#') {
        if !first.starts_with("#model_version:") {
            return Err(Fault::at("line 1", format!("`{}` is not `#model_version:...`", shown(&first))).into());
        }
        lines.next()?.unwrap_or_default()
    } else {
        first
    };
    if header != "cve,epss,percentile" {
        let found = shown(&header);
        return Err(lines.fault(format!("`{found}` is not `cve,epss,percentile`: this is no EPSS list")).into());
    }
    let mut count = 0;
    while let Some(line) = lines.next()? {
        let (cve, likelihood) = row(&line).map_err(|reason| lines.fault(reason))?;
        take(cve.to_owned(), likelihood)?;
        count += 1;
    }
    if count == 0 {
        return Err(Fault::whole("has no vulnerabilities: get it again").into());
    }
    Ok(count)
}

fn row(line: &str) -> Result<(&str, u32), String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [cve, epss, percentile] = *fields.as_slice() else {
        return Err(format!("`{}` has not three fields", shown(line)));
    };
    if !is_cve(cve) {
        return Err(format!("cve: `{}` is no CVE", shown(cve)));
    }
    probability(percentile).ok_or_else(|| format!("percentile: `{}` is not from 0 to 1", shown(percentile)))?;
    let likelihood = probability(epss).ok_or_else(|| format!("epss: `{}` is not from 0 to 1", shown(epss)))?;
    Ok((cve, likelihood))
}

/// In units of 10^-5, what is smaller cut off: so it is at least a limit of five digits exactly where the whole number is.
/// `1`, `0.94334`, `9.4e-05` (which some lists have).
fn probability(text: &str) -> Option<u32> {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok().filter(|it| (-20..=0).contains(it))?),
        None => (text, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |text: &str| (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || whole.len() > 1 {
        return None;
    }
    // The digits before and after where the point is once it was moved.
    let zeros = "0".repeat(exponent.unsigned_abs() as usize);
    let digits = format!("{zeros}{whole}{fraction}00000");
    let (before, after) = digits.split_at(1);
    let (kept, rest) = after.split_at(5);
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    match before {
        "0" => kept.parse().ok(),
        "1" if is_zero(kept) && is_zero(rest) => Some(100_000),
        _ => None,
    }
}

/// Lines of bounded length.
struct Lines<R> {
    source: std::io::Take<R>,
    number: u64,
    buffer: Vec<u8>,
    read: u64,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<String>, Fault> {
        self.buffer.clear();
        self.number += 1;
        let limit = MAX_LINE as u64 + 1;
        let read = (&mut self.source).take(limit).read_until(b'\n', &mut self.buffer);
        let read = read.map_err(|error| self.fault(error.to_string()))?;
        self.read += read as u64;
        if self.read > MAX_LIST {
            return Err(self.fault(format!("has more than {MAX_LIST} bytes, which are allowed")));
        }
        if read as u64 == limit && self.buffer.last() != Some(&b'\n') {
            return Err(self.fault(format!("is longer than {MAX_LINE} bytes")));
        }
        if read == 0 {
            return Ok(None);
        }
        let line = std::str::from_utf8(&self.buffer).map_err(|error| self.fault(error.to_string()))?;
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }

    fn fault(&self, reason: String) -> Fault {
        Fault::at(format!("line {}", self.number), reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<(String, u32)>, String> {
        let mut rows = Vec::new();
        let read = csv(text.as_bytes(), &mut |cve, likelihood| {
            rows.push((cve, likelihood));
            Ok(())
        });
        match read {
            Ok(_) => Ok(rows),
            Err(Halt::Fault(fault)) => Err(format!("{}{}", fault.place, fault.reason)),
            Err(Halt::Stopped) => Err("stopped".to_owned()),
        }
    }

    #[test]
    fn a_likelihood_is_cut_to_five_digits() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(100_000)),
            ("1.00000", Some(100_000)),
            ("0.94334", Some(94_334)),
            ("0.000430000", Some(43)),
            ("0.1", Some(10_000)),
            ("0.999999", Some(99_999)),
            ("9.4e-05", Some(9)),
            ("1e-1", Some(10_000)),
            ("1.00001", None),
            ("1.0000001", None),
            ("2", None),
            ("-0.1", None),
            ("10e-1", None),
            ("", None),
            (".5", None),
            ("NaN", None),
            ("1e-999999999", None),
        ] {
            assert_eq!(probability(text), expected, "{text}");
        }
    }

    #[test]
    fn a_list_begins_with_its_model_or_with_its_columns() {
        let rows = "CVE-1999-0001,0.01141,0.77824\r\nCVE-2021-44228,0.94358,0.99958\n";
        let expected = [("CVE-1999-0001".to_owned(), 1_141), ("CVE-2021-44228".to_owned(), 94_358)];
        for head in ["#model_version:v2025.03.14,score_date:2025-03-17T12:55:00Z\n", ""] {
            assert_eq!(list(&format!("{head}cve,epss,percentile\n{rows}")).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_as_it_must_be_is_refused_with_its_line() {
        let long = format!("cve,epss,percentile\n{}\n", "x".repeat(300));
        for (text, expected) in [
            ("", "no EPSS list"),
            ("cveID,dateAdded\n", "line 1: `cveID,dateAdded` is not"),
            ("# epss\ncve,epss,percentile\n", "line 1: "),
            ("cve,epss,percentile\n", "has no vulnerabilities"),
            ("cve,epss,percentile\nCVE-1999-0001,0.1\n", "line 2: `CVE-1999-0001,0.1` has not three fields"),
            ("cve,epss,percentile\nCVE-1999-0001,0.1,0.2\nCVE-1,0.1,0.1\n", "line 3: cve: "),
            ("cve,epss,percentile\nCVE-1999-0001,1.1,0.2\n", "line 2: epss: `1.1`"),
            ("cve,epss,percentile\nCVE-1999-0001,0.1,\n", "line 2: percentile: "),
            (&long, "line 2: is longer than 256 bytes"),
        ] {
            let said = list(text).unwrap_err();
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }
}
