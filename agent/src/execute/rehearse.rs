//! Before the grant, with the files there: whether the package manager would take all of them.

use super::prepare::Prepared;
use super::{Execution, Settled, archives, failed, open};
use crate::provider::{Failure, Provider};

impl<P: Provider> Execution<'_, P> {
    /// Where something stands against it: what is known of the actions then, with one more settled at least. One bad file does
    /// not hold up the others. A failure that is none of the actions' is not looked for among them.
    pub(super) async fn rehearse(&self, prepared: &Prepared) -> Result<Option<Settled>, Failure> {
        let indexes = open(&prepared.settled);
        let Err(together) = self.try_files(&indexes).await else { return Ok(None) };
        if together.is_general {
            return Err(together);
        }
        let mut settled = prepared.settled.clone();
        let blamed = self.blame(&indexes, &together).await?;
        for (index, failure) in blamed {
            settled[index] = Some(failed(&self.order().actions[index], &failure));
        }
        Ok(Some(settled))
    }

    async fn try_files(&self, indexes: &[usize]) -> Result<(), Failure> {
        let place = archives(&self.place());
        self.provider.rehearse(self.direction(), &self.packages_of(indexes), &place).await
    }

    /// [`Self::try_files`], within the order's time; whether that would do, and if not why.
    async fn would_do(&self, indexes: &[usize]) -> Result<Result<(), Failure>, Failure> {
        self.check_time()?;
        match self.try_files(indexes).await {
            Err(failure) if failure.is_general => Err(failure),
            tried => Ok(tried),
        }
    }

    /// At least one of these actions, which do not do together. First the one without which all others do: one that only
    /// needs it is not blamed then. Where there are several, those that do not fit with the ones before, each tried again
    /// once more are there: it may need one that came after it.
    async fn blame(&self, indexes: &[usize], together: &Failure) -> Result<Vec<(usize, Failure)>, Failure> {
        let mut bad: Vec<(usize, Failure)> = indexes.iter().map(|index| (*index, together.clone())).collect();
        if bad.len() == 1 {
            return Ok(bad);
        }
        for index in indexes {
            let others: Vec<usize> = indexes.iter().copied().filter(|other| other != index).collect();
            if self.would_do(&others).await?.is_ok() {
                return Ok(vec![(*index, together.clone())]);
            }
        }
        let mut good: Vec<usize> = Vec::new();
        loop {
            let before = bad.len();
            let mut still_bad = Vec::new();
            for (index, _) in bad {
                let mut tried = good.clone();
                tried.push(index);
                match self.would_do(&tried).await? {
                    Ok(()) => good = tried,
                    Err(failure) => still_bad.push((index, failure)),
                }
            }
            bad = still_bad;
            if bad.is_empty() || bad.len() == before {
                break;
            }
        }
        // The package manager contradicts itself: each more would do, all together not.
        if bad.is_empty() {
            bad.extend(indexes.last().map(|last| (*last, together.clone())));
        }
        Ok(bad)
    }
}
