//! Uses of join tokens: one for each distinct key.

use jiff::Timestamp;
use patchwarden_protocol::key::Fingerprint;

use super::{Store, StoreError, Subject, millis};

/// What came of using a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// A use was spent.
    Spent,
    /// This key has used the token before: nothing was spent.
    Repeated,
    /// Other keys have used it up.
    Exhausted,
}

impl Store {
    /// Spends one of the `uses` of `token` for `key`.
    pub async fn use_join_token(
        &self,
        token: &str,
        key: &Fingerprint,
        uses: u32,
        now: Timestamp,
    ) -> Result<TokenUse, StoreError> {
        let mut transaction = self.begin(&Subject::Token(token)).await?;
        let spent: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM join_token_use WHERE token = $1")
            .bind(token)
            .fetch_one(&mut *transaction)
            .await?;
        let known: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM join_token_use WHERE token = $1 AND key = $2")
            .bind(token)
            .bind(key.as_str())
            .fetch_one(&mut *transaction)
            .await?;
        if known > 0 {
            return Ok(TokenUse::Repeated);
        }
        if spent >= i64::from(uses) {
            return Ok(TokenUse::Exhausted);
        }
        sqlx::query("INSERT INTO join_token_use (token, key, time) VALUES ($1, $2, $3)")
            .bind(token)
            .bind(key.as_str())
            .bind(millis(now))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(TokenUse::Spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Temporary, on_both};

    on_both!(a_token_is_spent_once_for_each_distinct_key, concurrent_keys_cannot_spend_more_than_there_is);

    async fn a_token_is_spent_once_for_each_distinct_key(db: &Temporary) {
        let now = Timestamp::UNIX_EPOCH;
        let (a, b) = (Fingerprint::of(b"a"), Fingerprint::of(b"b"));
        assert_eq!(db.store.use_join_token("t", &a, 1, now).await.unwrap(), TokenUse::Spent);
        assert_eq!(db.store.use_join_token("t", &a, 1, now).await.unwrap(), TokenUse::Repeated);
        assert_eq!(db.store.use_join_token("t", &b, 1, now).await.unwrap(), TokenUse::Exhausted);
        assert_eq!(db.store.use_join_token("other", &b, 1, now).await.unwrap(), TokenUse::Spent);
    }

    async fn concurrent_keys_cannot_spend_more_than_there_is(db: &Temporary) {
        let uses = (0..20u8).map(|n| {
            let store = db.store.clone();
            async move { store.use_join_token("t", &Fingerprint::of(&[n]), 3, Timestamp::UNIX_EPOCH).await.unwrap() }
        });
        let spent = futures::future::join_all(uses).await.into_iter().filter(|u| *u == TokenUse::Spent).count();
        assert_eq!(spent, 3);
    }
}
