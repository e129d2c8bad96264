use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::Dependencies;
use patchwarden_protocol::report::{DeviceRef, Tristate};
use patchwarden_protocol::result::{Outcome as ResultOutcome, ResultReason};
use proptest::prelude::*;

use super::*;

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_780_000_000 + second).unwrap()
}

fn device() -> DeviceRef {
    DeviceRef { namespace: "acme".into(), name: "web-1".into() }
}

pub(crate) fn order(number: u32) -> Order {
    Order {
        device: device(),
        device_key: PrivateKey::generate().public().fingerprint(),
        sequence: Sequence { epoch: 1, number },
        actions: vec![],
        dependencies: Dependencies::Strict,
        report_digest: "sha256:r".into(),
        decisions_digest: "sha256:d".into(),
        policy: "p".into(),
        not_before: at(0),
        not_after: at(100),
        limit_seconds: 60,
        restart: patchwarden_protocol::order::RestartRule::never(),
        safeguards: patchwarden_protocol::safeguards::Safeguards::default(),
        site_cache: None,
    }
}

pub(crate) fn accepted(number: u32) -> Record {
    let order = order(number);
    Record::Accepted(Box::new(Accepted { digest: format!("sha256:{number}"), order, at: at(1) }))
}

pub(crate) fn started(number: u32) -> Record {
    Record::Started(Box::new(Started {
        digest: format!("sha256:{number}"),
        attempt: 1,
        nonce: "n".into(),
        at: at(2),
        first_at: None,
        process: Process { pid: 7, start_time: 9, boot_id: "b".into() },
        settled: vec![None],
        tried: [0].into(),
        beside: Vec::new(),
    }))
}

fn guarded(number: u32, run: u32) -> Record {
    let process = Process { pid: 7, start_time: 8, boot_id: "b".into() };
    let running = Some(Script { step: Step::HookBefore, run, process, at: at(3) });
    let digest = format!("sha256:{number}");
    Record::Guarded(Box::new(Guarded { running, ..Guarded::new(digest) }))
}

pub(crate) fn restarting(number: u32, restart: u32) -> Record {
    Record::Restarting(Box::new(Restarting {
        digest: format!("sha256:{number}"),
        boot_id: format!("boot-{restart}"),
        number: restart,
        run: 1,
        granted_at: at(2),
        at: at(3),
        settled: vec![None],
        trial: None,
    }))
}

pub(crate) fn rolling_back(number: u32, has_started: bool) -> Record {
    let Record::Started(started) = started(number) else { unreachable!() };
    Record::RollingBack(Box::new(RollingBack {
        digest: format!("sha256:{number}"),
        at: at(4),
        ending: Ending::nothing_done(ResultOutcome::Failed, ResultReason::CheckFailed, "sick".into()),
        restarts: 1,
        restart_postponed: None,
        restart_reason: None,
        actions: vec![],
        started: has_started.then_some(*started),
        kernel: None,
    }))
}

fn finished(number: u32) -> Record {
    let key = PrivateKey::generate();
    let result = InstallResult {
        device: device(),
        device_key: key.public().fingerprint(),
        sequence: Sequence { epoch: 1, number },
        order_digest: format!("sha256:{number}"),
        outcome: ResultOutcome::Succeeded,
        reason: None,
        message: String::new(),
        actions: vec![],
        started_at: at(1),
        finished_at: at(3),
        restart_required: Tristate::Unknown,
        restarts: 0,
        restart_postponed: String::new(),
        steps: vec![],
        phases: vec![],
    };
    Record::Finished(Box::new(Finished {
        digest: format!("sha256:{number}"),
        sequence: Sequence { epoch: 1, number },
        result: Envelope::seal(&result, &key).unwrap(),
    }))
}

fn recorded(number: u32) -> Record {
    Record::Recorded { digest: format!("sha256:{number}") }
}

fn epoch(epoch: u32) -> Record {
    Record::Highest { sequence: Sequence::start_of(epoch) }
}

/// Two whole orders, one refused without being accepted, and one at work.
fn story() -> Vec<Record> {
    let mut records = vec![];
    for number in [1, 2] {
        records.extend([accepted(number), started(number), started(number), restarting(number, 1)]);
        records.extend([finished(number), recorded(number)]);
    }
    records.extend([finished(4), accepted(5), started(5), restarting(5, 1), restarting(5, 2)]);
    records.extend([rolling_back(5, false), rolling_back(5, true)]);
    records
}

fn bytes_of(records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(|record| encode(record).unwrap()).collect()
}

fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<Journal, JournalError>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    fs::write(&path, bytes).unwrap();
    let journal = Journal::open(&path);
    (directory, journal)
}

#[test]
fn what_was_appended_is_there_after_opening_again() {
    let (directory, journal) = open(b"");
    let mut journal = journal.unwrap();
    for record in story() {
        journal.append(record).unwrap();
    }
    let history = journal.history().clone();
    assert_eq!(history.highest, Some(Sequence { epoch: 1, number: 5 }));
    assert_eq!(history.unrecorded().count(), 1);
    drop(journal);
    assert_eq!(*Journal::open(&directory.path().join("journal")).unwrap().history(), history);
}

#[test]
fn records_that_cannot_follow_each_other_are_refused_and_leave_the_file_alone() {
    for (before, bad) in [
        (vec![], started(1)),
        (vec![], recorded(1)),
        (vec![], restarting(1, 1)),
        (vec![accepted(2)], rolling_back(1, false)),
        (vec![accepted(2)], restarting(1, 1)),
        (vec![accepted(1), finished(1)], restarting(1, 1)),
        (vec![], guarded(1, 1)),
        (vec![accepted(2)], guarded(1, 1)),
        (vec![accepted(1), finished(1)], guarded(1, 1)),
        (vec![accepted(1)], accepted(2)),
        (vec![accepted(2), finished(2)], accepted(1)),
        (vec![accepted(2), finished(2)], finished(2)),
        (vec![accepted(2)], finished(3)),
    ] {
        let (directory, journal) = open(&bytes_of(&before));
        let mut journal = journal.unwrap();
        let history = journal.history().clone();
        assert!(matches!(journal.append(bad), Err(JournalError::Impossible { .. })));
        assert_eq!(Journal::read(&directory.path().join("journal")).unwrap(), history);
    }
}

#[test]
fn in_a_new_epoch_results_are_told_again_and_orders_of_earlier_ones_are_none() {
    let mut history = History::default();
    for record in [accepted(1), started(1), finished(1), recorded(1), epoch(2)] {
        history.apply(record).unwrap();
    }
    assert_eq!((history.highest, history.unrecorded().count()), (Some(Sequence::start_of(2)), 1));
    assert!(history.apply(accepted(2)).is_err(), "it is of epoch 1");
    history.apply(recorded(1)).unwrap();
    let compacted = replay(&bytes_of(&history.compact())).unwrap().history;
    assert_eq!((compacted.unrecorded().count(), &compacted), (0, &history), "once is enough");
}

#[test]
fn compacting_changes_nothing_but_the_oldest_recorded_results() {
    let mut history = History::default();
    for number in 1..=30 {
        for record in [accepted(number), started(number), finished(number), recorded(number)] {
            history.apply(record).unwrap();
        }
    }
    for tail in [
        vec![],
        vec![finished(31)],
        vec![epoch(2)],
        vec![accepted(31), started(31)],
        vec![accepted(31), started(31), restarting(31, 1), restarting(31, 2)],
        vec![accepted(31), restarting(31, 1)],
        vec![accepted(31), started(31), rolling_back(31, false), rolling_back(31, true)],
        vec![accepted(31), guarded(31, 1), started(31), guarded(31, 2), restarting(31, 1)],
    ] {
        let mut history = history.clone();
        for record in tail {
            history.apply(record).unwrap();
        }
        let told_again = history.highest == Some(Sequence::start_of(2));
        let bytes = bytes_of(&history.compact());
        let recorded = history.outcomes.iter().filter(|o| o.recorded).count();
        assert_eq!(recorded, if told_again { 0 } else { KEEP_RESULTS });
        assert_eq!(replay(&bytes).unwrap().history, history);
    }
}

#[test]
fn a_large_journal_compacts_itself() {
    let (directory, journal) = open(b"");
    let mut journal = journal.unwrap();
    for number in 1..=400 {
        for record in [accepted(number), started(number), finished(number), recorded(number)] {
            journal.append(record).unwrap();
        }
    }
    let path = directory.path().join("journal");
    assert!(fs::metadata(&path).unwrap().len() <= COMPACT_ABOVE);
    assert_eq!(Journal::read(&path).unwrap(), *journal.history());
    assert_eq!(journal.history().highest, Some(Sequence { epoch: 1, number: 400 }));
}

#[test]
fn a_record_counts_although_the_journal_cannot_be_made_shorter() {
    let (directory, journal) = open(b"");
    let mut journal = journal.unwrap();
    let path = directory.path().join("journal");
    let in_the_way = files::temporary(&path).unwrap();
    fs::create_dir(&in_the_way).unwrap();
    let mut number = 0;
    let mut append = |journal: &mut Journal| {
        number += 1;
        for record in [accepted(number), started(number), finished(number), recorded(number)] {
            journal.append(record).unwrap();
        }
        (fs::metadata(&path).unwrap().len(), Journal::read(&path).unwrap().highest == journal.history().highest)
    };
    while append(&mut journal).0 <= COMPACT_ABOVE {}
    let (length, is_whole) = append(&mut journal);
    assert!(length > COMPACT_ABOVE && is_whole, "{length}");
    fs::remove_dir(in_the_way).unwrap();
    let (length, is_whole) = append(&mut journal);
    assert!(length < COMPACT_ABOVE / 2 && is_whole, "{length}");
}

#[test]
fn a_reset_keeps_a_copy_and_the_highest_sequence() {
    let mut bytes = bytes_of(&story());
    bytes[20] ^= 1;
    let (directory, journal) = open(&bytes);
    let path = directory.path().join("journal");
    let error = journal.unwrap_err().to_string();
    assert!(error.contains("journal: line 1 cannot be read") && error.contains("journal reset"), "{error}");
    let aside = reset(&path, salvage_highest(&bytes), at(0)).unwrap();
    assert_eq!(fs::read(aside).unwrap(), bytes);
    let history = Journal::open(&path).unwrap().history().clone();
    assert_eq!(history, History { highest: Some(Sequence { epoch: 1, number: 5 }), ..History::default() });
}

#[test]
fn a_start_of_an_earlier_version_is_read() {
    let Record::Started(started) = started(1) else { unreachable!() };
    let json = serde_json::to_string(&Record::Started(started.clone())).unwrap();
    assert!(!json.contains("first_at"), "{json}");
    assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), Record::Started(started));
}

#[test]
fn a_record_of_a_later_version_is_not_taken_for_a_torn_one() {
    let json = br#"{"record":"Novelty"}"#;
    let mut bytes = format!("{:08x} ", crc32fast::hash(json)).into_bytes();
    bytes.extend_from_slice(json);
    bytes.push(b'\n');
    assert!(replay(&bytes).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_cut_anywhere_recovers_the_whole_lines_before_the_cut(cut in any::<prop::sample::Index>()) {
        let records = story();
        let bytes = bytes_of(&records);
        let cut = cut.index(bytes.len() + 1);
        let lines = bytes[..cut].split(|byte| *byte == b'\n').count() - 1;
        let mut expected = History::default();
        for record in &records[..lines] {
            expected.apply(record.clone()).unwrap();
        }
        let (directory, journal) = open(&bytes[..cut]);
        prop_assert_eq!(journal.unwrap().history().clone(), expected);
        let path = directory.path().join("journal");
        prop_assert_eq!(fs::read(&path).unwrap(), bytes_of(&records[..lines]));
    }

    #[test]
    fn a_flipped_bit_before_the_last_line_is_noticed(place in any::<prop::sample::Index>(), bit in 0..8u8) {
        let records = story();
        let mut bytes = bytes_of(&records);
        let before = bytes.len() - encode(records.last().unwrap()).unwrap().len();
        bytes[place.index(before)] ^= 1 << bit;
        let noticed = matches!(open(&bytes).1, Err(JournalError::Corrupt { .. }));
        prop_assert!(noticed);
    }
}
