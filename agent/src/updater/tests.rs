use super::*;

struct World {
    _place: tempfile::TempDir,
    root: PathBuf,
    state: PathBuf,
    updater: Updater,
}

const APT: &str = "etc/apt/apt.conf.d/zz-patchwarden";
const DNF: &str = "etc/systemd/system/dnf-automatic.service.d/zz-patchwarden.conf";

/// A system with apt and dnf-automatic.
fn world() -> World {
    let place = tempfile::tempdir().unwrap();
    let (root, state) = (place.path().join("root"), place.path().join("state"));
    fs::create_dir_all(root.join("etc/apt/apt.conf.d")).unwrap();
    fs::create_dir_all(root.join("usr/lib/systemd/system")).unwrap();
    fs::create_dir_all(root.join("etc/systemd/system")).unwrap();
    fs::create_dir(&state).unwrap();
    fs::write(root.join("usr/lib/systemd/system/dnf-automatic.service"), "").unwrap();
    fs::write(root.join("etc/apt/apt.conf.d/20auto-upgrades"), "APT::Periodic::Unattended-Upgrade \"1\";\n").unwrap();
    let updater = Updater::at(&root, &state);
    World { _place: place, root, state, updater }
}

impl World {
    /// Every file and directory of the root, with its content.
    fn all(&self) -> Vec<(PathBuf, Option<String>)> {
        fn walk(directory: &Path, found: &mut Vec<(PathBuf, Option<String>)>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    found.push((path.clone(), None));
                    walk(&path, found);
                } else {
                    found.push((path.clone(), Some(fs::read_to_string(&path).unwrap())));
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.root, &mut found);
        found.sort();
        found
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.root.join(path), text).unwrap();
    }

    fn book(&self) -> Book {
        self.updater.read().unwrap()
    }

    /// As a crash would have left it.
    fn set_phases(&self, phase: Phase) {
        let mut book = self.book();
        for entry in &mut book.files {
            entry.phase = phase;
        }
        self.updater.write(&book).unwrap();
    }
}

#[tokio::test]
async fn what_is_switched_off_is_given_back_exactly() {
    let w = world();
    let before = w.all();
    assert!(!w.updater.is_touched().unwrap());
    assert_eq!(w.updater.switch_off().await.unwrap(), Vec::<String>::new());
    assert!(w.text(APT).contains("\nAPT::Periodic::Enable \"0\";\n"));
    let condition = format!("[Unit]\nConditionPathExists=!{}\n", w.state.join(FILE).display());
    assert!(w.text(DNF).ends_with(&condition), "{}", w.text(DNF));
    let state = w.updater.state().unwrap();
    assert_eq!((state.off.len(), state.remarks.len(), state.is_unfinished), (2, 0, false));
    let off = w.all();
    w.updater.switch_off().await.unwrap();
    assert_eq!(w.all(), off, "again changes nothing");
    assert_eq!(w.updater.give_back().await.unwrap(), Vec::<String>::new());
    assert_eq!(w.all(), before);
    assert!(!w.updater.is_touched().unwrap());
    assert_eq!(w.updater.give_back().await.unwrap(), Vec::<String>::new(), "again is fine");
}

#[tokio::test]
async fn an_updater_that_is_installed_later_is_switched_off_too() {
    let w = world();
    w.updater.switch_off().await.unwrap();
    w.write("etc/systemd/system/os-update.service", "");
    w.updater.switch_off().await.unwrap();
    assert!(w.text("etc/systemd/system/os-update.service.d/zz-patchwarden.conf").contains("ConditionPathExists=!"));
    assert_eq!(w.book().files.len(), 3);
}

#[tokio::test]
async fn a_crash_at_any_step_of_switching_off_is_gone_on_from_or_undone() {
    for made in [vec![], vec![APT], vec![APT, DNF]] {
        for goes_on in [true, false] {
            let w = world();
            let before = w.all();
            w.updater.switch_off().await.unwrap();
            let off = w.all();
            w.set_phases(Phase::Intended);
            for path in [APT, DNF].iter().filter(|path| !made.contains(path)) {
                fs::remove_file(w.root.join(path)).unwrap();
            }
            // What a crash in the middle of a write leaves.
            w.write("etc/apt/apt.conf.d/.zz-patchwarden.new", "half");
            assert!(w.updater.state().unwrap().is_unfinished);
            let remarks = if goes_on { w.updater.switch_off().await } else { w.updater.give_back().await };
            assert_eq!(remarks.unwrap(), Vec::<String>::new(), "{made:?}");
            if goes_on {
                w.updater.give_back().await.unwrap();
            } else {
                assert_ne!(before, off);
            }
            assert_eq!(w.all(), before, "{made:?} {goes_on}");
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_giving_back_is_gone_on_from_or_switched_off_again() {
    for left in [vec![], vec![APT], vec![APT, DNF]] {
        for goes_on in [true, false] {
            let w = world();
            let before = w.all();
            w.updater.switch_off().await.unwrap();
            let off = w.all();
            w.set_phases(Phase::Restoring);
            for path in [APT, DNF].iter().filter(|path| !left.contains(path)) {
                fs::remove_file(w.root.join(path)).unwrap();
            }
            if left.is_empty() {
                fs::remove_dir(w.root.join(DNF).parent().unwrap()).unwrap();
            }
            let remarks = if goes_on { w.updater.give_back().await } else { w.updater.switch_off().await };
            assert_eq!(remarks.unwrap(), Vec::<String>::new(), "{left:?}");
            assert_eq!(w.all(), if goes_on { before.clone() } else { off }, "{left:?} {goes_on}");
            w.updater.give_back().await.unwrap();
            assert_eq!(w.all(), before, "{left:?} {goes_on}");
        }
    }
}

#[tokio::test]
async fn what_somebody_else_has_changed_is_left_and_spoken_of() {
    let w = world();
    w.updater.switch_off().await.unwrap();
    w.write(APT, "APT::Periodic::Enable \"1\";\n");
    let remarks = w.updater.switch_off().await.unwrap();
    assert!(remarks.len() == 1 && remarks[0].ends_with("changed by somebody else and is left as it is"), "{remarks:?}");
    assert_eq!(w.updater.state().unwrap().remarks, remarks);
    let remarks = w.updater.give_back().await.unwrap();
    assert!(remarks.len() == 1 && remarks[0].contains(APT), "{remarks:?}");
    assert_eq!(w.text(APT), "APT::Periodic::Enable \"1\";\n");
    assert_eq!(w.text(DNF), "");
}

#[tokio::test]
async fn what_somebody_else_has_removed_is_not_made_again() {
    let w = world();
    w.updater.switch_off().await.unwrap();
    fs::remove_file(w.root.join(APT)).unwrap();
    let remarks = w.updater.switch_off().await.unwrap();
    assert!(
        remarks.len() == 1 && remarks[0].ends_with("removed by somebody else and is not made again"),
        "{remarks:?}"
    );
    assert_eq!(w.text(APT), "");
    let remarks = w.updater.give_back().await.unwrap();
    assert!(remarks.len() == 1 && remarks[0].ends_with("had been removed by somebody else"), "{remarks:?}");
}

#[tokio::test]
async fn a_file_of_our_name_that_is_not_ours_is_left() {
    let w = world();
    w.write(APT, "// an administrator's\n");
    let before = w.all();
    let remarks = w.updater.switch_off().await.unwrap();
    assert!(remarks.len() == 1 && remarks[0].ends_with("is there already and is not this agent's"), "{remarks:?}");
    w.updater.give_back().await.unwrap();
    assert_eq!(w.all(), before);
    let link = w.root.join("etc/elsewhere");
    fs::write(&link, "// an administrator's\n").unwrap();
    fs::remove_file(w.root.join(APT)).unwrap();
    std::os::unix::fs::symlink(&link, w.root.join(APT)).unwrap();
    assert_eq!(w.updater.switch_off().await.unwrap().len(), 1);
    w.updater.give_back().await.unwrap();
    assert!(w.root.join(APT).is_symlink());
}

#[tokio::test]
async fn a_directory_that_was_there_or_holds_something_else_stays() {
    let w = world();
    let directory = w.root.join(DNF).parent().unwrap().to_owned();
    fs::create_dir(&directory).unwrap();
    w.updater.switch_off().await.unwrap();
    w.updater.give_back().await.unwrap();
    assert!(directory.is_dir(), "it was there");
    fs::remove_dir(&directory).unwrap();
    w.updater.switch_off().await.unwrap();
    fs::write(directory.join("own.conf"), "").unwrap();
    w.updater.give_back().await.unwrap();
    assert!(directory.join("own.conf").exists() && !w.updater.is_touched().unwrap());
}

#[tokio::test]
async fn a_book_that_cannot_be_read_changes_nothing_and_says_where_to_look() {
    let w = world();
    w.updater.switch_off().await.unwrap();
    fs::write(w.state.join(FILE), "{").unwrap();
    let before = w.all();
    for error in [w.updater.switch_off().await.unwrap_err(), w.updater.give_back().await.unwrap_err()] {
        assert!(
            error.to_string().contains("os-updater.json") && error.to_string().contains("zz-patchwarden"),
            "{error}"
        );
    }
    assert_eq!(w.all(), before);
}
