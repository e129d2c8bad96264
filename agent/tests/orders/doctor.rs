//! `doctor`, `status`, `history` and `changes`: what a person on the device sees.

use patchwarden_protocol::order::Verb;
use serde_json::Value;

use crate::world::World;

const CONFIGURATION: &str = "etc/patchwarden/agent.toml";

/// The exit code, and how each check stands: the worst of those with the same name.
fn doctor(world: &World) -> (i32, Vec<(String, String, String)>) {
    let output = world.device.agent(&["doctor", "--json"]).output().unwrap();
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let findings = found
        .iter()
        .map(|finding| (text(finding, "check"), text(finding, "health"), text(finding, "message")))
        .collect();
    (output.status.code().unwrap(), findings)
}

/// Exactly these checks have found something.
fn assert_found(world: &World, code: i32, expected: &[(&str, &str, &str)]) {
    let (found_code, findings) = doctor(world);
    let bad: Vec<_> = findings.iter().filter(|(_, health, _)| health != "ok").collect();
    let fits = bad.len() == expected.len()
        && bad
            .iter()
            .zip(expected)
            .all(|((check, health, message), (a, b, words))| check == a && health == b && message.contains(words));
    assert!(fits && found_code == code, "{found_code}: {findings:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_finds_what_is_wrong_and_nothing_on_a_device_that_is_well() {
    let world = World::new().await;
    let joined = world.device.read(CONFIGURATION);
    assert_found(&world, 2, &[("agent", "problem", "does not run"), ("restart", "warning", "cannot restart itself")]);
    let configuration = format!("restart_command = ['true']\n{joined}");
    world.device.write(CONFIGURATION, &configuration);
    let (mut running, _) = world.run().await;
    assert_found(&world, 0, &[]);
    let (_, findings) = doctor(&world);
    let checks: Vec<&str> = findings.iter().map(|(check, _, _)| check.as_str()).collect();
    for check in
        ["configuration", "limits", "identity", "agent", "gateway", "clock", "packages", "journal", "os updater"]
    {
        assert!(checks.contains(&check), "{check} in {checks:?}");
    }
    world.gateway.connected().await;

    world.device.write("etc/patchwarden/limits.toml", "verbs = ['Instal']\n");
    let found = [("limits", "problem", "Instal"), ("os updater", "warning", "see `limits`")];
    assert_found(&world, 2, &found);
    world.device.write("etc/patchwarden/limits.toml", "verbs = ['Download']\n");
    assert_found(&world, 1, &[("limits", "warning", "verbs: Install")]);
    world
        .device
        .chroot("rm /etc/patchwarden/limits.toml; mkdir -p /var/lib/dpkg/updates; touch /var/lib/dpkg/updates/0001");
    assert_found(&world, 2, &[("packages", "problem", "interrupted")]);
    world.device.chroot("rm /var/lib/dpkg/updates/0001; chmod 666 /etc/patchwarden/agent.toml");
    assert_found(&world, 2, &[("configuration", "problem", "others than root can write it")]);
    world.device.chroot("chmod 644 /etc/patchwarden/agent.toml");
    let elsewhere = configuration.replace(&world.gateway.address.to_string(), "127.0.0.1:9");
    world.device.write(CONFIGURATION, &elsewhere);
    assert_found(&world, 2, &[("gateway", "problem", "127.0.0.1:9"), ("clock", "warning", "not compared")]);
    world.device.write(CONFIGURATION, &configuration.replace("gateway.test", "another.test"));
    assert_found(&world, 2, &[("gateway", "problem", "certificate"), ("clock", "warning", "not compared")]);
    world.device.write(CONFIGURATION, &configuration);

    running.kill();
    let journal = "var/lib/patchwarden/journal";
    world.device.write(journal, "gibberish\ngibberish\n");
    assert_found(&world, 2, &[("agent", "problem", "does not run"), ("journal", "problem", "line 1")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_a_table_for_people_and_json_for_programs() {
    let world = World::new().await;
    let (_running, _) = world.run().await;
    world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    world.carry_out_all(2, Verb::Install, &["pw-bad"]).await;
    let said = |arguments: &[&str]| String::from_utf8(world.device.agent(arguments).output().unwrap().stdout).unwrap();
    let table = said(&["history"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 4 && lines[0].starts_with("ORDER"), "{table}");
    assert!(lines[1].starts_with("1-1") && lines[1].contains("install  Succeeded  1 of 1"), "{table}");
    assert!(lines[2].starts_with("1-2") && lines[2].contains("Failed     0 of 1"), "{table}");
    assert!(lines[3].contains("PackageManagerFailed: "), "{table}");
    let lines: Vec<Value> =
        said(&["history", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["reason"]), (2, &"PackageManagerFailed".into()));
    let status = said(&["status"]);
    for words in ["device       acme/device-1", "limits       none", "os updater   left to itself", "agent        runs"]
    {
        assert!(status.contains(words), "{words} in {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_told_with_the_order_that_made_it_or_that_somebody_else_did() {
    let world = World::new().await;
    let (mut running, before) = world.run().await;
    let said = |arguments: &[&str]| String::from_utf8(world.device.agent(arguments).output().unwrap().stdout).unwrap();
    assert_eq!(said(&["changes"]), "no changes yet\n", "what was there when it joined has not changed");
    world.carry_out_all(1, Verb::Install, &["pw-a", "pw-needs"]).await;
    running.kill();
    world.device.chroot("apt-get -qq install -y pw-b >/dev/null 2>&1; dpkg -r pw-victim >/dev/null");
    running = world.device.start();
    world.gateway.report(|report| report.counts.packages == before.counts.packages).await;
    let found = |lines: &str| -> Vec<[String; 4]> {
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let packages = lines.flat_map(|line| line["packages"].as_array().unwrap().clone());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        packages
            .map(|one| [text(&one["name"]), text(&one["before"]), text(&one["after"]), one["by"].to_string()])
            .collect()
    };
    let order = |kind: &str| format!(r#"{{"{kind}":{{"epoch":1,"number":1}}}}"#);
    let expected = [
        ["pw-a", "1.0", "2.0", &order("order")],
        ["pw-needs", "1.0", "2.0", &order("order")],
        ["pw-new", "", "1.0", &order("besideOrder")],
        ["pw-b", "1.0", "2.0", r#""somebodyElse""#],
        ["pw-victim", "1.0", "", r#""somebodyElse""#],
    ];
    let lines = said(&["changes", "--json"]);
    assert_eq!(found(&lines), expected.map(|row| row.map(str::to_owned)), "{lines}");
    let table = said(&["changes"]);
    assert!(table.lines().nth(1).unwrap().ends_with("pw-a:all       1.0     2.0    order 1-1"), "{table}");
    // Nothing is told twice.
    let known = world.scans();
    running.kill();
    let _running = world.device.start();
    world.gateway.until("scan", |_| (world.scans() > known).then_some(())).await;
    assert_eq!(said(&["changes", "--json"]), lines);
}
