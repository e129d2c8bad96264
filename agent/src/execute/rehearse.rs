//! Before the grant, with the files there: whether the package manager would take all of them.

use super::prepare::Prepared;
use super::{Execution, Settled, archives, failed, open};
use crate::provider::Provider;

impl<P: Provider> Execution<'_, P> {
    /// Where something stands against it: what is known of the actions then, with one more settled at least. One bad file does
    /// not hold up the others.
    pub(super) async fn rehearse(&self, prepared: &Prepared) -> Option<Settled> {
        let place = archives(self.agent, self.order().sequence);
        let direction = self.direction();
        let Err(together) = self.provider.rehearse(direction, &prepared.packages, &place).await else { return None };
        let indexes = open(&prepared.settled);
        let mut settled = prepared.settled.clone();
        let mut good: Vec<usize> = Vec::new();
        for &index in &indexes {
            good.push(index);
            // A single action has been tried already.
            let tried = if indexes.len() == 1 {
                Err(together.clone())
            } else {
                self.provider.rehearse(direction, &self.packages_of(&good), &place).await
            };
            if let Err(failure) = tried {
                good.pop();
                settled[index] = Some(failed(&self.order().actions[index], &failure));
            }
        }
        // The package manager contradicts itself: each more would do, all together not.
        if good.len() == indexes.len()
            && let Some(last) = indexes.last()
        {
            settled[*last] = Some(failed(&self.order().actions[*last], &together));
        }
        Some(settled)
    }
}
