//! Replicas whose requests take their time, whose clocks are wrong and that are paused whenever it hurts most.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

/// The time of the simulation in milliseconds.
type Millis = u64;

/// The API server: a lease, and the version of it.
#[derive(Default)]
struct Server {
    lease: Lease,
    version: u64,
}

/// What a replica is at.
enum Doing {
    /// Looks again then.
    Nothing,
    /// Has asked.
    Reads { began: Millis },
    /// Has read a version and been told what to do.
    Writes { began: Millis, version: u64, lease: Box<Lease> },
    /// Has written, or been refused.
    Hears { began: Millis, written: bool },
}

struct Replica {
    election: Election,
    doing: Doing,
    /// When it goes on.
    at: Millis,
    /// Until when it leads.
    leads: Option<Millis>,
    /// What its clock on the wall is off by, in milliseconds.
    skew: i64,
}

struct World {
    random: StdRng,
    start: Instant,
    /// The longest that a request takes on one of its ways.
    latency: Millis,
    server: Server,
    replicas: Vec<Replica>,
    names: u64,
}

impl World {
    fn new(seed: u64, replicas: usize, latency: Millis) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let (start, server) = (Instant::now(), Server::default());
        let mut world = Self { random, start, latency, server, replicas: Vec::new(), names: 0 };
        for _ in 0..replicas {
            let replica = world.replica(0);
            world.replicas.push(replica);
        }
        world
    }

    fn replica(&mut self, at: Millis) -> Replica {
        self.names += 1;
        let skew = self.random.random_range(-7_200_000..=7_200_000);
        Replica { election: Election::new(format!("r{}", self.names)), doing: Doing::Nothing, at, leads: None, skew }
    }

    /// Lets each replica that is due go one step.
    fn step(&mut self, now: Millis) {
        for index in 0..self.replicas.len() {
            while self.replicas[index].at <= now {
                let later = self.random.random_range(1..=self.latency);
                let replica = &mut self.replicas[index];
                let is_late = |began: Millis| Duration::from_millis(now - began) > RENEW_EVERY;
                replica.at = now + later;
                replica.doing = match std::mem::replace(&mut replica.doing, Doing::Nothing) {
                    Doing::Nothing => Doing::Reads { began: now },
                    Doing::Reads { began } if !is_late(began) => {
                        let found = self.server.lease.clone();
                        let at = self.start + Duration::from_millis(now);
                        let since_start = i64::try_from(now).unwrap();
                        let clock =
                            Timestamp::from_millisecond(1_800_000_000_000 + replica.skew + since_start).unwrap();
                        match replica.election.look(found, at, clock) {
                            Next::Write(lease) => Doing::Writes { began, version: self.server.version, lease },
                            Next::Wait => {
                                replica.leads = None;
                                replica.at = now + millis(RETRY_EVERY);
                                Doing::Nothing
                            }
                        }
                    }
                    // It may arrive as late as it likes.
                    Doing::Writes { began, version, lease } => {
                        let written = version == self.server.version;
                        if written {
                            self.server = Server { lease: *lease, version: version + 1 };
                        }
                        Doing::Hears { began, written }
                    }
                    Doing::Hears { began, written: true } if !is_late(began) => {
                        replica.leads = Some(began + millis(DEADLINE));
                        replica.at = now + millis(RENEW_EVERY);
                        Doing::Nothing
                    }
                    Doing::Reads { .. } | Doing::Hears { .. } => {
                        replica.at = now + millis(RETRY_EVERY);
                        Doing::Nothing
                    }
                };
            }
        }
    }

    fn leaders(&self, now: Millis) -> Vec<usize> {
        let leads = |index: &usize| self.replicas[*index].leads.is_some_and(|until| now < until);
        (0..self.replicas.len()).filter(leads).collect()
    }

    /// When the first of them leads, from then on.
    fn until_one_leads(&mut self, from: Millis) -> (usize, Millis) {
        for now in from..from + 120_000 {
            self.step(now);
            if let [leader] = self.leaders(now)[..] {
                return (leader, now);
            }
        }
        panic!("nobody leads");
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap()
}

// covers BY-9
#[test]
fn no_two_lead_at_a_time_whatever_is_late_and_whoever_is_paused() {
    let mut led: BTreeMap<usize, u32> = BTreeMap::new();
    for seed in 0..300 {
        let latency = [5, 150, 1_500][usize::try_from(seed % 3).unwrap()];
        let mut world = World::new(seed, 3, latency);
        for now in (0..300_000).step_by(10) {
            world.step(now);
            let leaders = world.leaders(now);
            assert!(leaders.len() <= 1, "seed {seed}: {leaders:?} lead at {now} ms");
            if let [leader] = leaders[..]
                && now % 1_000 == 0
            {
                *led.entry(leader).or_default() += 1;
            }
            let victim = world.random.random_range(0..3);
            match world.random.random_range(0..4_000) {
                // Stopped in its tracks; it goes on with whatever it was at.
                0..=1 => world.replicas[victim].at += world.random.random_range(0..40_000),
                // Killed, and begun anew.
                2 => {
                    // Half of them under the same name, as a container is.
                    let mut anew = world.replica(now + 1_000);
                    if world.random.random_bool(0.5) {
                        anew.election = Election::new(world.replicas[victim].election.identity.clone());
                    }
                    world.replicas[victim] = anew;
                }
                _ => {}
            }
        }
    }
    // Of 90,000 seconds, in a third of which every second request is late.
    assert!(led.len() == 3 && led.values().all(|seconds| *seconds > 10_000), "{led:?}");
}

#[test]
fn another_leads_within_15_seconds_of_a_leaders_death_and_at_once_when_it_stops() {
    for seed in 0..200 {
        let mut world = World::new(seed, 3, 50);
        let (leader, now) = world.until_one_leads(0);
        let mut now = now + world.random.random_range(0..30_000);
        for earlier in now - 30_000.min(now)..now {
            world.step(earlier);
        }
        let died = now;
        world.replicas[leader].at = Millis::MAX;
        world.replicas[leader].leads = None;
        let (next, at) = world.until_one_leads(now);
        assert_ne!(next, leader);
        assert!(at - died <= 15_000, "seed {seed}: {} ms", at - died);

        now = at + 1;
        let lease = world.server.lease.clone();
        let clock = Timestamp::UNIX_EPOCH;
        assert_eq!(world.replicas[leader].election.release(lease.clone(), clock), None, "it is another's");
        let released = world.replicas[next].election.release(lease, clock).expect("it is ours");
        world.server = Server { lease: released, version: world.server.version + 1 };
        world.replicas[next].at = Millis::MAX;
        world.replicas[next].leads = None;
        let (_, at) = world.until_one_leads(now);
        assert!(at - now <= 1_250, "seed {seed}: {} ms", at - now);
    }
}

#[test]
fn each_new_holder_has_a_token_of_its_own_and_a_renewal_keeps_it() {
    let (now, clock) = (Instant::now(), Timestamp::UNIX_EPOCH);
    let mut first = Election::new("a");
    let Next::Write(taken) = first.look(Lease::default(), now, clock) else { panic!("it is nobody's") };
    assert_eq!(token(&taken), "a/1");
    let later = clock + DURATION;
    let Next::Write(renewed) = first.look(*taken.clone(), now, later) else { panic!("it is ours") };
    assert_eq!(token(&renewed), "a/1");
    let spec = |lease: &Lease| lease.spec.clone().unwrap();
    assert_eq!(spec(&renewed).acquire_time, spec(&taken).acquire_time);
    assert_eq!(spec(&renewed).renew_time, Some(MicroTime(later)));

    let mut second = Election::new("b");
    assert_eq!(second.look(*renewed.clone(), now, clock), Next::Wait);
    assert_eq!(second.look(*renewed.clone(), now + DURATION - Duration::from_millis(1), clock), Next::Wait);
    let Next::Write(taken) = second.look(*renewed, now + DURATION, clock) else { panic!("it is over") };
    assert_eq!(token(&taken), "b/2");
    let Next::Write(back) = first.look(second.release(*taken, clock).unwrap(), now, clock) else { panic!("released") };
    assert_eq!(token(&back), "a/3");

    // A program that was begun anew under the same name: what the one before it had sent does not count any more.
    let Next::Write(anew) = Election::new("a").look(*back.clone(), now, clock) else { panic!("it is of its name") };
    assert_eq!(token(&anew), "a/4");
    // Somebody has deleted the lease: whoever held it knows by its token that it does not any more.
    let Next::Write(made) = first.look(Lease::default(), now, clock) else { panic!("it is nobody's") };
    assert_eq!(token(&made), "a/4");
}
