//! The gRPC server: which services there are, and who may call them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::{Qdrant, QdrantServer};
use qdrant_client::qdrant::{HealthCheckReply, HealthCheckRequest};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::catalog::Catalog;
use crate::collections::CollectionsApi;
use crate::points::PointsApi;

/// Time that calls get to finish when the server stops.
const GRACE: Duration = Duration::from_secs(3);
/// Largest request, bytes.
const LARGEST_REQUEST: usize = 64 << 20;
/// The version of Qdrant whose gRPC this server speaks, for clients that look at it.
const SPOKEN_VERSION: &str = "1.17.0";

/// The key clients must bring.
#[derive(Clone)]
pub struct ApiKey(Arc<str>);

impl ApiKey {
    /// This key.
    pub fn new(key: String) -> Self {
        Self(key.into())
    }
}

/// Lets calls through that bring the key.
#[derive(Clone)]
struct Gate(Option<ApiKey>);

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(ApiKey(key)) = &self.0 else { return Ok(request) };
        let header = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let given =
            header("api-key").or_else(|| header("authorization").and_then(|value| value.strip_prefix("Bearer ")));
        match given {
            Some(given) if given == key.as_ref() => Ok(request),
            Some(_) => Err(Status::permission_denied("Invalid API key or JWT")),
            None => Err(Status::unauthenticated("Must provide an API key or an Authorization bearer token")),
        }
    }
}

/// Anyone may ask whether the server lives.
struct Health;

#[tonic::async_trait]
impl Qdrant for Health {
    async fn health_check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckReply>, Status> {
        Ok(Response::new(HealthCheckReply {
            title: "qdrant-embedded - a part of Qdrant's gRPC for Weir".to_owned(),
            version: SPOKEN_VERSION.to_owned(),
            commit: None,
        }))
    }
}

/// Serves until `stop`; calls that are under way are finished, but a client that keeps its connection is not waited for.
pub async fn serve(
    listener: TcpListener,
    catalog: &Arc<Catalog>,
    key: Option<ApiKey>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let gate = Gate(key);
    let points = PointsServer::new(PointsApi { catalog: catalog.clone() }).max_decoding_message_size(LARGEST_REQUEST);
    let collections = CollectionsServer::new(CollectionsApi { catalog: catalog.clone() });
    let stopping = Notify::new();
    let serving = Server::builder()
        .add_service(QdrantServer::new(Health))
        .add_service(InterceptedService::new(points, gate.clone()))
        .add_service(InterceptedService::new(collections, gate))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            stop.await;
            stopping.notify_one();
        });
    let patience = async {
        stopping.notified().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving => served,
        () = patience => Ok(()),
    }
}
