//! The service `Collections`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use qdrant_client::qdrant::collections_server::Collections;
use qdrant_client::qdrant::{
    ChangeAliases, CollectionClusterInfoRequest, CollectionClusterInfoResponse, CollectionConfig,
    CollectionDescription, CollectionExists, CollectionExistsRequest, CollectionExistsResponse, CollectionInfo,
    CollectionOperationResponse, CollectionParams, CollectionStatus, CreateCollection, CreateShardKeyRequest,
    CreateShardKeyResponse, DeleteCollection, DeleteShardKeyRequest, DeleteShardKeyResponse, GetCollectionInfoRequest,
    GetCollectionInfoResponse, ListAliasesRequest, ListAliasesResponse, ListCollectionAliasesRequest,
    ListCollectionsRequest, ListCollectionsResponse, ListShardKeysRequest, ListShardKeysResponse, OptimizerStatus,
    UpdateCollection, UpdateCollectionClusterSetupRequest, UpdateCollectionClusterSetupResponse,
};
use tonic::{Request, Response, Status};

use crate::catalog::Catalog;
use crate::convert::config;
use crate::refusal::{internal, invalid, unsupported};

/// Answers calls about collections and aliases.
pub struct CollectionsApi {
    /// The collections.
    pub catalog: Arc<Catalog>,
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(f).await.map_err(|error| internal(format!("a call failed: {error}")))?
}

#[allow(deprecated)]
fn describe(catalog: &Catalog, name: &str) -> Result<CollectionInfo, Status> {
    let collection = catalog.get(name)?;
    let info = collection.info()?;
    let created = collection.created().clone();
    let points = u64::try_from(info.points_count).map_err(internal)?;
    let payload_schema: HashMap<_, _> =
        info.payload_schema.iter().map(|(path, info)| (path.to_string(), config::field_schema_out(info))).collect();
    Ok(CollectionInfo {
        status: CollectionStatus::Green.into(),
        optimizer_status: Some(OptimizerStatus { ok: true, error: String::new() }),
        segments_count: u64::try_from(info.segments_count).map_err(internal)?,
        config: Some(CollectionConfig {
            params: Some(CollectionParams {
                shard_number: 1,
                on_disk_payload: true,
                vectors_config: created.vectors_config,
                replication_factor: Some(1),
                write_consistency_factor: Some(1),
                sparse_vectors_config: created.sparse_vectors_config,
                ..CollectionParams::default()
            }),
            hnsw_config: Some(config::hnsw(created.hnsw_config)),
            optimizer_config: Some(config::optimizers()),
            wal_config: Some(config::log()),
            metadata: created.metadata,
            ..CollectionConfig::default()
        }),
        payload_schema,
        points_count: Some(points),
        indexed_vectors_count: u64::try_from(info.indexed_vectors_count).ok(),
        ..CollectionInfo::default()
    })
}

#[tonic::async_trait]
impl Collections for CollectionsApi {
    async fn get(
        &self,
        request: Request<GetCollectionInfoRequest>,
    ) -> Result<Response<GetCollectionInfoResponse>, Status> {
        let started = Instant::now();
        let catalog = self.catalog.clone();
        let name = request.into_inner().collection_name;
        let info = blocking(move || describe(&catalog, &name)).await?;
        Ok(Response::new(GetCollectionInfoResponse { result: Some(info), time: started.elapsed().as_secs_f64() }))
    }

    async fn list(&self, _: Request<ListCollectionsRequest>) -> Result<Response<ListCollectionsResponse>, Status> {
        let started = Instant::now();
        let collections = self.catalog.collections().into_iter().map(|name| CollectionDescription { name }).collect();
        Ok(Response::new(ListCollectionsResponse { collections, time: started.elapsed().as_secs_f64() }))
    }

    async fn create(
        &self,
        request: Request<CreateCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let started = Instant::now();
        let catalog = self.catalog.clone();
        blocking(move || catalog.create(request.into_inner())).await?;
        Ok(Response::new(CollectionOperationResponse { result: true, time: started.elapsed().as_secs_f64() }))
    }

    async fn delete(
        &self,
        request: Request<DeleteCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let started = Instant::now();
        let catalog = self.catalog.clone();
        let result = blocking(move || catalog.delete(&request.into_inner().collection_name)).await?;
        Ok(Response::new(CollectionOperationResponse { result, time: started.elapsed().as_secs_f64() }))
    }

    async fn update_aliases(
        &self,
        request: Request<ChangeAliases>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let started = Instant::now();
        let actions = request.into_inner().actions.into_iter().map(|operation| operation.action);
        let actions = actions.collect::<Option<Vec<_>>>().ok_or_else(|| invalid("an alias operation is empty"))?;
        let catalog = self.catalog.clone();
        blocking(move || catalog.change_aliases(actions)).await?;
        Ok(Response::new(CollectionOperationResponse { result: true, time: started.elapsed().as_secs_f64() }))
    }

    async fn list_collection_aliases(
        &self,
        request: Request<ListCollectionAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let started = Instant::now();
        let collection = self.catalog.get(&request.into_inner().collection_name)?;
        let aliases = self.catalog.aliases(Some(collection.name()));
        Ok(Response::new(ListAliasesResponse { aliases, time: started.elapsed().as_secs_f64() }))
    }

    async fn list_aliases(&self, _: Request<ListAliasesRequest>) -> Result<Response<ListAliasesResponse>, Status> {
        let started = Instant::now();
        let aliases = self.catalog.aliases(None);
        Ok(Response::new(ListAliasesResponse { aliases, time: started.elapsed().as_secs_f64() }))
    }

    async fn collection_exists(
        &self,
        request: Request<CollectionExistsRequest>,
    ) -> Result<Response<CollectionExistsResponse>, Status> {
        let started = Instant::now();
        let exists = self.catalog.get(&request.into_inner().collection_name).is_ok();
        Ok(Response::new(CollectionExistsResponse {
            result: Some(CollectionExists { exists }),
            time: started.elapsed().as_secs_f64(),
        }))
    }

    async fn update(&self, _: Request<UpdateCollection>) -> Result<Response<CollectionOperationResponse>, Status> {
        Err(unsupported("changes of a collection's parameters"))
    }

    async fn collection_cluster_info(
        &self,
        _: Request<CollectionClusterInfoRequest>,
    ) -> Result<Response<CollectionClusterInfoResponse>, Status> {
        Err(unsupported("clusters"))
    }

    async fn update_collection_cluster_setup(
        &self,
        _: Request<UpdateCollectionClusterSetupRequest>,
    ) -> Result<Response<UpdateCollectionClusterSetupResponse>, Status> {
        Err(unsupported("clusters"))
    }

    async fn create_shard_key(
        &self,
        _: Request<CreateShardKeyRequest>,
    ) -> Result<Response<CreateShardKeyResponse>, Status> {
        Err(unsupported("shard keys"))
    }

    async fn delete_shard_key(
        &self,
        _: Request<DeleteShardKeyRequest>,
    ) -> Result<Response<DeleteShardKeyResponse>, Status> {
        Err(unsupported("shard keys"))
    }

    async fn list_shard_keys(
        &self,
        _: Request<ListShardKeysRequest>,
    ) -> Result<Response<ListShardKeysResponse>, Status> {
        Err(unsupported("shard keys"))
    }
}
