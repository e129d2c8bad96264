//! The gRPC services: thin, each call goes to the file that answers it.

use std::sync::Arc;

use http::Extensions;
use patchwarden_protocol::agent_v1::agents_server::Agents;
use patchwarden_protocol::agent_v1::{EnrollRequest, EnrollResponse, FromAgent, RenewRequest, RenewResponse, ToAgent};
use patchwarden_protocol::record_v1::record_server::Record;
use patchwarden_protocol::record_v1::{ReadRequest, ReadResponse, WriteRequest, WriteResponse};
use patchwarden_protocol::runner_v1::runner_server::Runner;
use patchwarden_protocol::runner_v1::{RunEvent, RunRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::identity::{Identity, NotIdentified};
use super::runner::Attached;
use super::{Shared, enrol, record, runner, session, traces};
use crate::shell;

/// Messages on the way to a peer that reads slowly.
const QUEUE: usize = 16;

/// Pages of a record on the way: the next is read while one is sent.
const PAGES: usize = 1;

/// The agents' door.
pub struct AgentsDoor(pub Arc<Shared>);

#[tonic::async_trait]
impl Agents for AgentsDoor {
    type SessionStream = ReceiverStream<Result<ToAgent, Status>>;

    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let peer = peer(request.extensions());
        enrol::enroll(&self.0, request.into_inner(), &peer).await.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let (peer, identity) = (peer(request.extensions()), identity(&request));
        enrol::renew(&self.0, identity, request.get_ref(), &peer).await.map(Response::new)
    }

    async fn session(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::SessionStream>, Status> {
        let (peer, identity) = (peer(request.extensions()), identity(&request));
        let admitted = enrol::admit_session(&self.0, identity, &peer).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let session = session::run(self.0.clone(), admitted, peer, request.into_inner(), sender);
        tokio::spawn(session.in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The install Jobs' door.
pub struct RunnersDoor(pub Arc<Shared>);

#[tonic::async_trait]
impl Runner for RunnersDoor {
    type RunStream = ReceiverStream<Result<RunEvent, Status>>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let since = shell::now();
        let token = runner::bearer(request.metadata());
        let attached = runner::attach(&self.0, token, &request.get_ref().job).await?;
        if let Attached::Running(run) = &attached {
            traces::received(&self.0.traces, run, traces::context(request.metadata()), since);
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(runner::follow(self.0.clone(), attached, sender).in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The record, on the same door.
pub struct RecordDoor(pub Arc<Shared>);

#[tonic::async_trait]
impl Record for RecordDoor {
    type ReadStream = ReceiverStream<Result<ReadResponse, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let token = runner::bearer(request.metadata());
        let namespace = record::admit_read(&self.0, token, request.get_ref()).await?;
        let (sender, receiver) = mpsc::channel(PAGES);
        tokio::spawn(record::read(self.0.clone(), namespace, sender).in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let token = runner::bearer(request.metadata());
        record::write(&self.0, token, request.into_inner()).await.map(Response::new)
    }
}

type Connection = TlsConnectInfo<TcpConnectInfo>;

/// The address of whoever has sent a request.
pub fn peer(extensions: &Extensions) -> String {
    let address = extensions.get::<Connection>().and_then(|connection| connection.get_ref().remote_addr());
    address.map_or_else(|| "unknown".to_owned(), |address| address.ip().to_string())
}

fn identity<T>(request: &Request<T>) -> Result<Identity, NotIdentified> {
    let certificates = request.extensions().get::<Connection>().and_then(TlsConnectInfo::peer_certs);
    let leaf = certificates.as_ref().and_then(|chain| chain.first()).ok_or(NotIdentified::NoCertificate)?;
    Identity::of_certificate(leaf)
}
