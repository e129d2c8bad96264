use patchwarden_protocol::Envelope;
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::Classification;
use serde_json::json;

use super::*;
use crate::gateway::testing;

struct World {
    object: DeviceInventory,
    order_key: PrivateKey,
    held: Option<SignedSettings>,
    report: Report,
    policy: Option<(&'static str, Option<OsUpdater>)>,
    applications: Vec<Application>,
    settles: Option<Timestamp>,
    epoch: u32,
    delegated: i64,
}

fn at(day: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + day * 86_400).unwrap()
}

/// A device that was never told anything, and whose policy wants its updater off.
fn world() -> World {
    let key = PrivateKey::generate().public().fingerprint();
    let mut object = DeviceInventory::new("web", serde_json::from_value(json!({"acceptedKey": key.as_str()})).unwrap());
    object.metadata.namespace = Some("acme".into());
    World {
        object,
        order_key: PrivateKey::generate(),
        held: None,
        report: testing::report("acme", "web"),
        policy: Some(("servers", Some(OsUpdater::Disable))),
        applications: vec![],
        settles: None,
        epoch: 0,
        delegated: 90,
    }
}

impl World {
    fn step(&self, now: Timestamp) -> Step {
        let facts = Facts {
            held: self.held.as_ref(),
            report: Some(&self.report),
            policy: self.policy.map(|(name, os_updater)| (name, Said { os_updater, applications: &self.applications })),
            settles: self.settles,
            epoch: self.epoch,
            order_key: &self.order_key.public().fingerprint(),
            delegated_until: at(self.delegated),
            now,
        };
        step(&self.object, &facts)
    }

    /// What is signed then; it lies in status afterwards.
    fn signs(&mut self, now: Timestamp) -> Settings {
        let Step::Sign(settings) = self.step(now) else { panic!("{:?}", self.step(now)) };
        let (root, delegation) = (PrivateKey::generate(), self.order_key.public());
        let delegation = Delegation { order_key: delegation, not_before: at(0), not_after: at(90) };
        self.held = Some(SignedSettings {
            settings: Envelope::seal(&*settings, &self.order_key).unwrap(),
            delegation: Envelope::seal(&delegation, &root).unwrap(),
        });
        *settings
    }

    fn tells(&mut self, state: UpdaterState, by: UpdaterChoice, settings: Option<Timestamp>, message: &str) {
        let told = UpdaterReport { state, by, updaters: vec!["apt".into()], settings, message: message.into() };
        self.report.os_updater = Some(told);
    }

    fn condition(&self) -> Option<(&'static str, &'static str, String)> {
        condition(self.held.as_ref(), Some(&self.report))
    }
}

#[test]
fn a_choice_is_signed_once_and_again_when_it_is_another() {
    let mut world = world();
    let first = world.signs(at(1));
    assert_eq!((first.os_updater, first.policy.as_str()), (OsUpdater::Disable, "servers"));
    assert_eq!((first.issued_at, first.not_after), (at(1), at(46)));
    assert_eq!(world.step(at(1)), Step::Keep);
    world.policy = Some(("servers", Some(OsUpdater::Leave)));
    let second = world.signs(at(1));
    assert_eq!(second.os_updater, OsUpdater::Leave);
    assert_eq!(second.issued_at, at(1) + SignedDuration::from_secs(1), "later, also within a second");
    world.policy = Some(("others", Some(OsUpdater::Leave)));
    assert_eq!(world.signs(at(2)).policy, "others");
    world.order_key = PrivateKey::generate();
    assert_eq!(world.signs(at(3)).policy, "others", "signed with another key");
    world.object.spec.accepted_key = Some(PrivateKey::generate().public().fingerprint().into());
    assert_eq!(world.signs(at(4)).issued_at, at(4), "for another key");
    assert_eq!(world.step(at(4)), Step::Keep);
}

#[test]
fn a_device_whose_policies_never_said_anything_is_told_nothing() {
    let mut world = world();
    for policy in [None, Some(("servers", None))] {
        world.policy = policy;
        assert_eq!(world.step(at(1)), Step::Keep);
        assert_eq!(world.condition(), None);
    }
    world.policy = Some(("servers", Some(OsUpdater::Disable)));
    world.object.spec.lifecycle = Lifecycle::Retired;
    assert_eq!(world.step(at(1)), Step::Keep, "it is retired");
    world.object.spec.lifecycle = Lifecycle::Active;
    world.object.spec.accepted_key = None;
    assert_eq!(world.step(at(1)), Step::Keep, "no key is accepted");
}

#[test]
fn settings_are_signed_anew_between_half_and_three_quarters_of_their_life() {
    let mut days = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let mut world = world();
        world.signs(at(0));
        let due = (1..60).find(|day| world.step(at(*day)) != Step::Keep).unwrap();
        assert!((23..=34).contains(&due), "{due}");
        days.insert(due);
        assert_eq!(world.signs(at(due)).issued_at, at(due));
        assert_eq!(world.step(at(due + 1)), Step::Keep);
    }
    assert!(days.len() > 3, "not all on one day: {days:?}");
    // A delegation that ends soon limits both: nothing would be gained.
    let mut world = world();
    world.delegated = 10;
    assert_eq!(world.signs(at(0)).not_after, at(10));
    assert_eq!(world.step(at(9)), Step::Keep);
    world.delegated = 100;
    assert_eq!(world.signs(at(9)).not_after, at(54));
}

#[test]
fn a_device_that_loses_its_policy_is_told_to_give_the_updater_back_once_it_has_settled() {
    let mut world = world();
    world.signs(at(0));
    world.tells(UpdaterState::Off, UpdaterChoice::Policy, Some(at(0)), "");
    for policy in [None, Some(("servers", None))] {
        world.policy = policy;
        world.settles = Some(at(2));
        assert_eq!(world.step(at(1)), Step::Wait(at(2)), "it may come back");
        let Step::Sign(leave) = world.step(at(2)) else { panic!() };
        assert_eq!((leave.os_updater, leave.policy.as_str()), (OsUpdater::Leave, ""));
    }
    world.signs(at(2));
    assert_eq!(world.step(at(2)), Step::Keep);
    let (status, reason, _) = world.condition().unwrap();
    assert_eq!((status, reason), ("Unknown", c::REASON_NOT_TOLD_YET));
    world.tells(UpdaterState::Left, UpdaterChoice::Policy, Some(at(2)), "");
    assert_eq!(world.condition(), None);
    assert_eq!(world.step(at(80)), Step::Keep, "nothing is renewed that nobody wants");
}

#[test]
fn what_has_said_nothing_for_a_while_is_dropped() {
    let mut world = world();
    world.signs(at(0));
    world.policy = None;
    assert_eq!(world.step(at(46)), Step::Drop);
}

#[test]
fn a_status_that_was_set_back_or_lost_is_caught_up_with() {
    let mut world = world();
    world.signs(at(1));
    world.tells(UpdaterState::Left, UpdaterChoice::Policy, Some(at(5)), "");
    assert_eq!(world.signs(at(5)).issued_at, at(5) + SignedDuration::from_secs(1), "after those that the device has");
    assert_eq!(world.step(at(5)), Step::Keep);
    // A device whose clock is wrong makes nobody sign for years to come, nor again and again.
    world.tells(UpdaterState::Left, UpdaterChoice::Policy, Some(at(500)), "");
    assert_eq!(world.step(at(6)), Step::Keep);
    world.policy = Some(("servers", Some(OsUpdater::Leave)));
    assert_eq!(world.signs(at(6)).issued_at, at(6));
    world.tells(UpdaterState::Off, UpdaterChoice::Policy, Some(at(1)), "");
    (world.held, world.policy) = (None, None);
    assert_eq!(world.signs(at(7)).os_updater, OsUpdater::Leave);
}

#[test]
fn a_condition_says_whether_it_is_as_the_policy_says() {
    use UpdaterChoice as By;
    use UpdaterState::{Left, Off, Partly};
    let mut world = world();
    world.signs(at(0));
    let (status, reason, message) = world.condition().unwrap();
    assert_eq!((status, reason), ("Unknown", c::REASON_NOT_TOLD_YET));
    assert!(message.contains("agent may be too old"), "{message}");
    for (state, by, message, expected) in [
        (Off, By::Policy, "", ("True", c::REASON_AS_POLICY_SAYS, "PatchPolicy/servers says Disable: off are apt")),
        (Left, By::Nobody, "", ("Unknown", c::REASON_NOT_TOLD_YET, "does not know it yet")),
        (Left, By::Owner, "agent.toml is Leave", ("False", c::REASON_REFUSED_BY_DEVICE, "agent.toml is Leave")),
        (Left, By::Limits, "limits.toml", ("False", c::REASON_REFUSED_BY_DEVICE, "limits.toml")),
        (Off, By::Owner, "", ("True", c::REASON_AS_POLICY_SAYS, "says Disable")),
        (Left, By::Unsupported, "by WSUS", ("False", c::REASON_UNSUPPORTED, "by WSUS")),
        (Left, By::NoContact, "30 days", ("False", c::REASON_GIVEN_BACK, "30 days")),
        (Partly, By::Policy, "was changed", ("False", c::REASON_CHANGED_ON_DEVICE, "was changed")),
    ] {
        world.tells(state, by, None, message);
        let (status, reason, said) = world.condition().unwrap();
        assert_eq!((status, reason), (expected.0, expected.1), "{state:?} {by:?}");
        assert!(said.contains(expected.2), "{said}");
    }
    world.policy = Some(("servers", Some(OsUpdater::Leave)));
    world.signs(at(1));
    world.tells(Off, By::Owner, None, "agent.toml is Disable");
    assert_eq!(world.condition().unwrap().1, c::REASON_REFUSED_BY_DEVICE);
    world.tells(Left, By::Policy, None, "");
    assert_eq!(world.condition().unwrap().0, "True");
}

#[test]
fn applications_are_told_and_that_none_are_wanted_any_more_is_told_too() {
    let mut world = world();
    world.policy = Some(("servers", None));
    let kubectl = |ensure| Application { name: "kubectl".into(), ensure };
    world.applications = vec![kubectl(Ensure::Installed)];
    let first = world.signs(at(1));
    assert_eq!((first.os_updater, &first.applications), (OsUpdater::Leave, &vec![kubectl(Ensure::Installed)]));
    assert_eq!(world.step(at(1)), Step::Keep);
    world.applications = vec![kubectl(Ensure::Absent)];
    let second = world.signs(at(2));
    assert_eq!((second.issued_at, &second.applications), (at(2), &vec![kubectl(Ensure::Absent)]));
    world.settles = Some(at(3));
    world.policy = Some(("others", None));
    assert_eq!(world.step(at(2)), Step::Wait(at(3)), "another policy has to settle first");
    world.settles = None;
    world.applications = vec![];
    let third = world.signs(at(3));
    assert_eq!((third.policy.as_str(), &third.applications), ("", &vec![]));
    assert_eq!(world.step(at(3)), Step::Keep);
    // Status was lost, and the device still asks.
    world.held = None;
    assert_eq!(world.step(at(4)), Step::Keep);
    let mut first = testing::update("pkg:generic/kubectl@1.0");
    first.classification = Classification::FirstInstall;
    world.report.updates.push(first);
    assert_eq!(world.signs(at(4)).policy, "");
}

#[test]
fn every_device_is_told_an_epoch_at_once_and_none_is_taken_back() {
    let mut world = world();
    world.policy = Some(("servers", None));
    assert_eq!(world.step(at(1)), Step::Keep);
    world.epoch = 7;
    world.settles = Some(at(2));
    let told = world.signs(at(1));
    assert_eq!((told.epoch, told.os_updater, told.policy.as_str()), (7, OsUpdater::Leave, ""));
    assert_eq!(world.step(at(1)), Step::Keep);
    // A policy's word waits until the device has settled, and the epoch does not.
    world.policy = Some(("servers", Some(OsUpdater::Disable)));
    assert_eq!(world.step(at(1)), Step::Wait(at(2)));
    world.epoch = 8;
    let told = world.signs(at(1));
    assert_eq!((told.epoch, told.os_updater), (8, OsUpdater::Leave));
    assert_eq!(world.step(at(1)), Step::Wait(at(2)));
    assert_eq!(world.signs(at(2)).os_updater, OsUpdater::Disable);
    // The Secret was restored, too.
    world.epoch = 0;
    assert_eq!(world.step(at(2)), Step::Keep);
    world.policy = None;
    world.settles = None;
    assert_eq!(world.signs(at(100)).epoch, 8, "what counted before has ended, and the epoch goes on");
}
