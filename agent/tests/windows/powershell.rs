//! Stands in for `powershell.exe`, for tests under Wine: answers what the agent's script would, and remembers what was installed.
//!
//! Beside it lie `inventory.json`, what there is at first, and `state.json`, what has become of it: UpdateIDs that wait for a restart
//! and that are installed; and `sddl`, the security descriptor of every file. Each question goes into `questions`. It understands no script: that the one that it was given is the
//! agent's is all that is looked at. Where there is a file `slow` an install takes as many milliseconds as it says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Default, Serialize, Deserialize)]
struct State {
    downloaded: BTreeSet<String>,
    pending: BTreeSet<String>,
    installed: BTreeSet<String>,
    /// How often each was installed.
    #[serde(default)]
    installs: BTreeMap<String, u32>,
}

impl State {
    /// At once, or not at all: this program is killed at any instant.
    fn write(&self) {
        let new = place().join("state.new");
        fs::write(&new, serde_json::to_vec(self).expect("JSON")).expect("state.new");
        fs::rename(new, place().join("state.json")).expect("state.json");
    }
}

fn place() -> PathBuf {
    std::env::current_exe().expect("this program is somewhere").parent().expect("in a directory").to_owned()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, no_profile, not_interactive, encoded, script] = arguments.as_slice() else { panic!("{arguments:?}") };
    if encoded == "-Command" && script.contains("Get-Acl") {
        println!("{}", fs::read_to_string(place().join("sddl")).expect("sddl"));
        return;
    }
    assert_eq!([no_profile, not_interactive, encoded], ["-NoProfile", "-NonInteractive", "-EncodedCommand"]);
    let bytes = base64::engine::general_purpose::STANDARD.decode(script).expect("base64");
    let units: Vec<u16> = bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let script = String::from_utf16(&units).expect("UTF-16");
    assert!(script.contains("Microsoft.Update.Session") && script.contains("$env:PATCHWARDEN_QUESTION"), "{script}");

    let asked = std::env::var("PATCHWARDEN_QUESTION").expect("a question");
    let mut questions =
        fs::OpenOptions::new().create(true).append(true).open(place().join("questions")).expect("questions");
    writeln!(questions, "{asked}").expect("questions");
    let question: Value = serde_json::from_str(&asked).expect("JSON");
    let mut state: State = match fs::read(place().join("state.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("state.json"),
        Err(_) => State::default(),
    };
    let mut inventory: Value =
        serde_json::from_slice(&fs::read(place().join("inventory.json")).expect("inventory.json")).expect("JSON");
    let all: Vec<Value> = ["updates", "installed"]
        .iter()
        .flat_map(|list| inventory[list].as_array().expect("a list").clone())
        .map(|update| marked(update, &state))
        .collect();
    let source = inventory["source"].clone();
    match question["ask"].as_str() {
        Some("inventory") => {
            let (there, offered): (Vec<Value>, Vec<Value>) =
                all.into_iter().partition(|update| update["isInstalled"] == true);
            inventory["updates"] = offered.into();
            inventory["installed"] = there.into();
            inventory["reboot"]["system"] = (!state.pending.is_empty()).into();
            println!("{inventory}");
        }
        Some("state") => {
            let ids = question["ids"].as_array().expect("ids");
            let updates: Vec<Value> = all.into_iter().filter(|update| ids.contains(&update["id"])).collect();
            println!("{}", json!({ "updates": updates, "source": source }));
        }
        Some(verb @ ("download" | "install")) => {
            for wanted in question["updates"].as_array().expect("updates") {
                let found = all.iter().find(|update| update["id"] == wanted["id"]).expect("an update that is offered");
                let id = found["id"].as_str().expect("an id").to_owned();
                assert_eq!(found["revision"].to_string(), wanted["revision"].as_str().expect("a revision"));
                let needs_restart = found["rebootBehavior"] != 0;
                if verb == "install" {
                    if let Ok(milliseconds) = fs::read_to_string(place().join("slow")) {
                        std::thread::sleep(Duration::from_millis(milliseconds.parse().expect("a number")));
                    }
                    assert!(state.downloaded.contains(&id), "it was fetched before the grant");
                    let list = if needs_restart { &mut state.pending } else { &mut state.installed };
                    list.insert(id.clone());
                    *state.installs.entry(id.clone()).or_default() += 1;
                } else {
                    state.downloaded.insert(id.clone());
                }
                state.write();
                let done = json!({
                    "id": id, "revision": found["revision"], "step": verb, "resultCode": 2, "hresult": 0,
                    "rebootRequired": verb == "install" && needs_restart,
                });
                println!("{done}");
            }
            println!("{}", json!({ "done": true }));
        }
        _ => panic!("{asked}"),
    }
}

fn marked(mut update: Value, state: &State) -> Value {
    let id = update["id"].as_str().expect("an id").to_owned();
    update["isDownloaded"] = state.downloaded.contains(&id).into();
    update["rebootRequired"] = state.pending.contains(&id).into();
    let was = update["isInstalled"] == true;
    update["isInstalled"] = (was || state.installed.contains(&id)).into();
    update
}
