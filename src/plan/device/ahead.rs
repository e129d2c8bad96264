//! What will block a device's updates at a later instant, should nothing happen until then but what the clock does.

use std::sync::Arc;

use patchwarden_protocol::order::Verb;

use crate::gates::Refusal;
use crate::look::Look;
use crate::model::{Device, DeviceReport};
use crate::outcome::Blocked;

use super::looked::Asking;
use super::{Examiner, Governed, Reign};

/// What blocks an update, and when the clock alone could lift it; none for one that nothing blocks.
pub(crate) type Obstacle = Option<Refusal>;

impl Examiner<'_> {
    /// What blocks those of a device's updates whose places in its report are given, in their order; none for what is no update of its
    /// plan. `held` is what the device is told that a person must confirm. Neither turns are asked for, nor what is at work on the device,
    /// nor what it would do beside: no clock ends these.
    pub(crate) fn obstacles(
        &mut self,
        number: usize,
        (device, reign): (&Device, &Reign),
        held: Option<&Arc<Blocked>>,
        places: impl Iterator<Item = usize>,
    ) -> Vec<Option<Obstacle>> {
        let Self { around, memory, .. } = self;
        let Ok(report) = &device.report else { return vec![] };
        let governed = Governed::of(number, device, reign);
        let opening = memory.opening(around, &governed, None);
        let asked = around.asked(&governed, report, false, None, opening);
        let verb = around.verb_of_offers(&governed);
        let mut look = Look::after(around.now);
        let obstacles = places.map(|place| {
            let looked = memory.look_at(around, &governed, &asked, asking(report, verb, place)?, &mut look)?;
            let soaks = |blocked: &Blocked| match blocked {
                // Of a later ring than the next: not before that has it.
                Blocked::RingWaits { until: None, .. } => around.rings.soaks_until(reign.place?.policy, looked.id),
                _ => None,
            };
            let refusal = looked.plan.blocked.map(|blocked| {
                let lifted = looked.plan.eligible_at.or_else(|| soaks(&blocked));
                (blocked, lifted)
            });
            let yields = refusal.as_ref().is_none_or(|(blocked, _)| blocked.yields_to_blast_limit());
            Some(held.filter(|_| yields).map(|held| (held.clone(), None)).or(refusal))
        });
        obstacles.collect()
    }
}

/// What is asked about at a place in a report: what it offers, then what can be taken back, then a restart that is due.
fn asking(report: &DeviceReport, verb: Verb, place: usize) -> Option<Asking<'_>> {
    let offered = report.offers.iter().map(|offer| Asking::Offered(offer, verb));
    let installed = report.removable.iter().map(|update| Asking::Installed(*update));
    offered.chain(installed).chain(report.restart.map(Asking::Restart)).nth(place)
}
