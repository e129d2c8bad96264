//! How much of one kind peers may have at a time: in all, and each address. So one address that takes what it gets does not keep the others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What there is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places {
    in_all: usize,
    common: usize,
    of_address: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    of_address: HashMap<IpAddr, Share>,
}

#[derive(Debug)]
struct Share {
    taken: usize,
    turns: Arc<Semaphore>,
}

/// One of them; dropping it gives it up.
#[derive(Debug)]
pub struct Place {
    network: IpAddr,
    turns: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    /// So many in all, and so many of one address (IPv6: of one /64, of which a single machine may have every address).
    pub fn new(in_all: usize, of_address: usize) -> Self {
        Self { in_all, common: 0, of_address, taken: Arc::default() }
    }

    /// The first so many of all are whoever's comes first: beyond that an address has no more than its own.
    pub fn with_common(self, common: usize) -> Self {
        Self { common, ..self }
    }

    /// A place for a peer, if there is one.
    pub fn take(&self, address: IpAddr) -> Option<Place> {
        let network = network(address);
        let mut taken = lock(&self.taken);
        let of_address = taken.of_address.get(&network).map_or(0, |share| share.taken);
        if taken.in_all >= self.in_all || (of_address >= self.of_address && taken.in_all >= self.common) {
            return None;
        }
        taken.in_all += 1;
        let new = || Share { taken: 0, turns: Arc::new(Semaphore::new(self.of_address)) };
        let share = taken.of_address.entry(network).or_insert_with(new);
        share.taken += 1;
        Some(Place { network, turns: share.turns.clone(), taken: self.taken.clone() })
    }
}

impl Place {
    /// Waits until the address has no more than its own at work. Nothing: there are no turns any more.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone().acquire_owned().await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.in_all -= 1;
        if let Some(share) = taken.of_address.get_mut(&self.network) {
            share.taken -= 1;
            if share.taken == 0 {
                taken.of_address.remove(&self.network);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // Nothing that can panic is done with it.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_gets_no_more_than_its_share_and_all_no_more_than_there_is() {
        let places = Places::new(3, 2);
        let (one, two) = (places.take(address("192.0.2.1")), places.take(address("::ffff:192.0.2.1")));
        assert!(one.is_some() && two.is_some());
        assert!(places.take(address("192.0.2.1")).is_none());
        let three = places.take(address("192.0.2.2"));
        assert!(three.is_some());
        assert!(places.take(address("192.0.2.3")).is_none(), "there are no more");
        drop(one);
        assert!(places.take(address("192.0.2.1")).is_some(), "given up");
        drop((two, three));
        let taken = places.taken.lock().unwrap();
        assert!(taken.in_all == 0 && taken.of_address.is_empty(), "nobody is remembered: {taken:?}");
    }

    #[test]
    fn what_is_common_is_anybodys_and_beyond_it_each_has_its_own() {
        let places = Places::new(6, 1).with_common(4);
        let greedy: Vec<_> = (0..10).filter_map(|_| places.take(address("192.0.2.1"))).collect();
        assert_eq!(greedy.len(), 4);
        let others: Vec<_> = (2..10).filter_map(|n| places.take(address(&format!("192.0.2.{n}")))).collect();
        assert_eq!(others.len(), 2, "one each, as long as there are any");
    }

    #[test]
    fn all_addresses_of_a_network_of_version_6_are_one() {
        let places = Places::new(10, 1);
        let _held = places.take(address("2001:db8:0:1::1")).unwrap();
        assert!(places.take(address("2001:db8:0:1:ffff::2")).is_none());
        assert!(places.take(address("2001:db8:0:2::1")).is_some());
    }
}
