//! Uses of join tokens: one for each device and key.

use jiff::Timestamp;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::report::DeviceRef;

use super::{Store, StoreError, Subject, millis};

/// Who uses a token.
#[derive(Clone, Copy, Debug)]
pub struct TokenUser<'a> {
    /// The key.
    pub key: &'a Fingerprint,
    /// The device that it is to be of.
    pub device: &'a DeviceRef,
    /// Whether the device exists and has this key, accepted or to be accepted. Uses from before migration 14 name no device: by this
    /// such a use is known to be this device's.
    pub is_enrolled: bool,
}

/// What came of using a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// A use was spent.
    Spent,
    /// This device has used the token with this key before: nothing was spent.
    Repeated,
    /// Others have used it up.
    Exhausted,
}

impl Store {
    /// Spends one of the `uses` of `token`.
    pub async fn use_join_token(
        &self,
        token: &str,
        by: TokenUser<'_>,
        uses: u32,
        now: Timestamp,
    ) -> Result<TokenUse, StoreError> {
        let TokenUser { key, device: DeviceRef { namespace, name }, is_enrolled } = by;
        let mut transaction = self.begin(&Subject::Token(token)).await?;
        let spent: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM join_token_use WHERE token = $1")
            .bind(token)
            .fetch_one(&mut *transaction)
            .await?;
        let known: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM join_token_use WHERE token = $1 AND key = $2 AND namespace = $3 AND device = $4",
        )
        .bind(token)
        .bind(key.as_str())
        .bind(namespace)
        .bind(name)
        .fetch_one(&mut *transaction)
        .await?;
        if known > 0 {
            return Ok(TokenUse::Repeated);
        }
        if is_enrolled {
            let named = sqlx::query(
                "UPDATE join_token_use SET namespace = $3, device = $4
                 WHERE token = $1 AND key = $2 AND namespace = '' AND device = ''",
            )
            .bind(token)
            .bind(key.as_str())
            .bind(namespace)
            .bind(name)
            .execute(&mut *transaction)
            .await?;
            if named.rows_affected() > 0 {
                transaction.commit().await?;
                return Ok(TokenUse::Repeated);
            }
        }
        if spent >= i64::from(uses) {
            return Ok(TokenUse::Exhausted);
        }
        sqlx::query("INSERT INTO join_token_use (token, key, namespace, device, time) VALUES ($1, $2, $3, $4, $5)")
            .bind(token)
            .bind(key.as_str())
            .bind(namespace)
            .bind(name)
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

    on_both!(
        a_token_is_spent_once_for_each_device_and_key,
        concurrent_keys_cannot_spend_more_than_there_is,
        one_key_cannot_spend_more_than_there_is,
    );

    fn named(name: &str) -> DeviceRef {
        DeviceRef { namespace: "acme".into(), name: name.into() }
    }

    async fn a_token_is_spent_once_for_each_device_and_key(db: &Temporary) {
        let (a, b) = (Fingerprint::of(b"a"), Fingerprint::of(b"b"));
        let used = async |token: &str, key: &Fingerprint, name: &str, is_enrolled| {
            let user = TokenUser { key, device: &named(name), is_enrolled };
            db.store.use_join_token(token, user, 1, Timestamp::UNIX_EPOCH).await.unwrap()
        };
        assert_eq!(used("t", &a, "web", false).await, TokenUse::Spent);
        assert_eq!(used("t", &a, "web", false).await, TokenUse::Repeated);
        assert_eq!(used("t", &a, "web", true).await, TokenUse::Repeated);
        assert_eq!(used("t", &b, "web", false).await, TokenUse::Exhausted);
        for is_enrolled in [false, true] {
            assert_eq!(used("t", &a, "db", is_enrolled).await, TokenUse::Exhausted, "another name is another device");
        }
        assert_eq!(used("other", &b, "web", false).await, TokenUse::Spent);
    }

    async fn concurrent_keys_cannot_spend_more_than_there_is(db: &Temporary) {
        let uses = (0..20u8).map(|n| {
            let store = db.store.clone();
            async move {
                let (key, device) = (Fingerprint::of(&[n]), named("web"));
                let user = TokenUser { key: &key, device: &device, is_enrolled: false };
                store.use_join_token("t", user, 3, Timestamp::UNIX_EPOCH).await.unwrap()
            }
        });
        let spent = futures::future::join_all(uses).await.into_iter().filter(|u| *u == TokenUse::Spent).count();
        assert_eq!(spent, 3);
    }

    async fn one_key_cannot_spend_more_than_there_is(db: &Temporary) {
        let uses = (0..20u8).map(|n| {
            let store = db.store.clone();
            async move {
                let (key, device) = (Fingerprint::of(b"a"), named(&format!("web-{n}")));
                let user = TokenUser { key: &key, device: &device, is_enrolled: false };
                store.use_join_token("t", user, 3, Timestamp::UNIX_EPOCH).await.unwrap()
            }
        });
        let spent = futures::future::join_all(uses).await.into_iter().filter(|u| *u == TokenUse::Spent).count();
        assert_eq!(spent, 3);
    }

    async fn uses_from_before_are_the_devices_that_the_key_has_already(db: &Temporary) {
        let key = Fingerprint::of(b"a");
        let used = async |name: &str, is_enrolled| {
            let user = TokenUser { key: &key, device: &named(name), is_enrolled };
            db.store.use_join_token("t", user, 1, Timestamp::UNIX_EPOCH).await.unwrap()
        };
        assert_eq!(used("web", false).await, TokenUse::Exhausted, "nobody knows that it was this device");
        assert_eq!(used("db", true).await, TokenUse::Repeated);
        assert_eq!(used("db", false).await, TokenUse::Repeated, "it has its name now");
        assert_eq!(used("web", true).await, TokenUse::Exhausted, "and is no other one's");
    }

    /// A use as it was kept before: of the key alone, here of the one whose fingerprint is SHA-256 of `a`.
    const OLDER: &str = "INSERT INTO join_token_use (token, key, time)
                         VALUES ('t', 'SHA256:ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs', 0)";

    #[tokio::test]
    async fn uses_of_an_older_file_go_on() {
        uses_from_before_are_the_devices_that_the_key_has_already(
            &Temporary::of_an_older_gateway(false, 13, OLDER).await,
        )
        .await;
    }

    #[tokio::test]
    async fn uses_of_an_older_server_go_on() {
        uses_from_before_are_the_devices_that_the_key_has_already(
            &Temporary::of_an_older_gateway(true, 13, OLDER).await,
        )
        .await;
    }
}
