//! The database's answers do not take for ever: a server whose host has vanished, or that is stuck, says nothing at all, and TCP alone
//! finds that out after a quarter of an hour (<https://www.kernel.org/doc/html/latest/networking/ip-sysctl.html>, `tcp_retries2`).
//!
//! Each statement on PostgreSQL has 20 s on the server, which says so itself (`database`), and [`ANSWER`] here, for a server that
//! cannot. What waits is ended with an error: whether it was carried out is not known then, as after any connection that breaks. The
//! connection is tested before it is used again, in [`PING`], and cut where the server does not answer. A file (SQLite) has no such
//! limits: its own waits are bounded.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use sqlx::any::{AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Describe, Either, Execute, Executor, SqlStr, Transaction};

/// How long a caller waits for a connection.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// Of a statement: after the server would have said that it took too long.
pub(super) const ANSWER: Duration = Duration::from_secs(25);

/// Of a connection that is tested, and of the question whether the database answers at all: they wait for nothing but the server.
pub(super) const PING: Duration = Duration::from_secs(5);

/// Connections whose statements end.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    connections: AnyPool,
    /// For a statement, from its connection to its answer.
    pub(super) limit: Option<Duration>,
}

/// A transaction whose statements end.
#[derive(Debug)]
pub(super) struct Writing {
    connection: Connection,
}

/// A transaction's connection.
#[derive(Debug)]
pub(super) struct Connection {
    transaction: Transaction<'static, Any>,
    limit: Option<Duration>,
}

impl Pool {
    /// Of a file.
    pub(super) fn unlimited(connections: AnyPool) -> Self {
        Self { connections, limit: None }
    }

    /// Of a server that may vanish.
    pub(super) fn limited(connections: AnyPool) -> Self {
        Self { connections, limit: Some(ANSWER) }
    }

    /// Whether the database answers.
    pub(super) async fn ping(&self) -> Result<(), sqlx::Error> {
        in_time(self.limit.map(|_| PING), sqlx::query("SELECT 1").execute(self)).await?;
        Ok(())
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self) -> Result<Writing, sqlx::Error> {
        Ok(self.started(in_time(self.limit, self.connections.begin()).await?))
    }

    /// The same by a statement of its own.
    pub(super) async fn begin_with(&self, statement: &'static str) -> Result<Writing, sqlx::Error> {
        Ok(self.started(in_time(self.limit, self.connections.begin_with(statement)).await?))
    }

    /// Waits for what is under way and closes all connections; those that do not answer are left to the system.
    pub(super) async fn close(&self) {
        let closed = async {
            self.connections.close().await;
            Ok(())
        };
        if let Err(error) = in_time(self.limit, closed).await {
            tracing::warn!(%error, "connections to the database are cut");
        }
    }

    fn started(&self, transaction: Transaction<'static, Any>) -> Writing {
        Writing { connection: Connection { transaction, limit: self.limit } }
    }

    async fn acquire(&self) -> Result<PoolConnection<Any>, sqlx::Error> {
        in_time(None, self.connections.acquire()).await
    }
}

impl Writing {
    /// Commits it.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        let Connection { transaction, limit } = self.connection;
        in_time(limit, transaction.commit()).await
    }
}

impl Deref for Writing {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Writing {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// What a connection that is being made gives, if it is there in time.
pub(super) async fn connected<T>(connecting: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    tokio::time::timeout(CONNECT, connecting).await.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(in_words)
}

/// What `answer` gives within the limit.
async fn in_time<T>(
    limit: Option<Duration>,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let answer = match limit {
        None => answer.await,
        Some(limit) => tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
            let seconds = limit.as_secs();
            Err(late(format!(
                "the server has not answered for {seconds} s; whether it has done what it was asked is not known"
            )))
        }),
    };
    answer.map_err(in_words)
}

fn in_words(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::PoolTimedOut => {
            let seconds = CONNECT.as_secs();
            late(format!("no connection within {seconds} s: the server does not answer, or all connections are in use"))
        }
        other => other,
    }
}

fn late(words: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, words))
}

impl<'c> Executor<'c> for &'c Pool {
    type Database = Any;

    /// All rows are read before the first is handed on.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<AnyQueryResult, AnyRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let (pool, limit) = (self.clone(), self.limit);
        let all = async move {
            let mut connection = pool.acquire().await?;
            let connection: &mut AnyConnection = &mut connection;
            let rows: Vec<_> = in_time(limit, connection.fetch_many(query).try_collect()).await?;
            Ok::<_, sqlx::Error>(stream::iter(rows.into_iter().map(Ok::<_, sqlx::Error>)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let (pool, limit) = (self.clone(), self.limit);
        Box::pin(async move {
            let mut connection = pool.acquire().await?;
            let connection: &mut AnyConnection = &mut connection;
            in_time(limit, connection.fetch_optional(query)).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Any>, sqlx::Error>>
    where
        'c: 'e,
    {
        let (pool, limit) = (self.clone(), self.limit);
        Box::pin(async move {
            let mut connection = pool.acquire().await?;
            let connection: &mut AnyConnection = &mut connection;
            in_time(limit, connection.describe(sql)).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [AnyTypeInfo],
    ) -> BoxFuture<'e, Result<AnyStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        let (pool, limit) = (self.clone(), self.limit);
        Box::pin(async move {
            let mut connection = pool.acquire().await?;
            let connection: &mut AnyConnection = &mut connection;
            in_time(limit, connection.prepare_with(sql, parameters)).await
        })
    }
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<AnyQueryResult, AnyRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let limit = self.limit;
        let connection: &mut AnyConnection = &mut self.transaction;
        let all = async move {
            let rows: Vec<_> = in_time(limit, connection.fetch_many(query).try_collect()).await?;
            Ok::<_, sqlx::Error>(stream::iter(rows.into_iter().map(Ok::<_, sqlx::Error>)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let limit = self.limit;
        let connection: &mut AnyConnection = &mut self.transaction;
        Box::pin(async move { in_time(limit, connection.fetch_optional(query)).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Any>, sqlx::Error>>
    where
        'c: 'e,
    {
        let limit = self.limit;
        let connection: &mut AnyConnection = &mut self.transaction;
        Box::pin(async move { in_time(limit, connection.describe(sql)).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [AnyTypeInfo],
    ) -> BoxFuture<'e, Result<AnyStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        let limit = self.limit;
        let connection: &mut AnyConnection = &mut self.transaction;
        Box::pin(async move { in_time(limit, connection.prepare_with(sql, parameters)).await })
    }
}
