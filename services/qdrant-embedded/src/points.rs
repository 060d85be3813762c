//! The service `Points`.

use std::sync::Arc;
use std::time::Instant;

use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::points_server::Points;
use qdrant_client::qdrant::{
    BatchResult, ClearPayloadPoints, CountPoints, CountResponse, CountResult, CreateFieldIndexCollection,
    CreateVectorNameRequest, DeleteFieldIndexCollection, DeletePayloadPoints, DeletePointVectors, DeletePoints,
    DeleteVectorNameRequest, DiscoverBatchPoints, DiscoverBatchResponse, DiscoverPoints, DiscoverResponse, FacetCounts,
    FacetResponse, GetPoints, GetResponse, PointsOperationResponse, PointsSelector, QueryBatchPoints,
    QueryBatchResponse, QueryGroupsResponse, QueryPointGroups, QueryPoints, QueryResponse, RecommendBatchPoints,
    RecommendBatchResponse, RecommendGroupsResponse, RecommendPointGroups, RecommendPoints, RecommendResponse,
    RetrievedPoint, ScoredPoint as ScoredMessage, ScrollPoints, ScrollResponse, SearchBatchPoints, SearchBatchResponse,
    SearchGroupsResponse, SearchMatrixOffsetsResponse, SearchMatrixPairsResponse, SearchMatrixPoints,
    SearchPointGroups, SearchPoints, SearchResponse, SetPayloadPoints, UpdateBatchPoints, UpdateBatchResponse,
    UpdateMode as ModeMessage, UpdatePointVectors, UpdateResult, UpdateStatus, UpsertPoints,
};
use qdrant_edge::{
    ConditionalInsertOperation, CountRequest, CreateIndex, FieldIndexOperations, Filter, PayloadOps, PointId,
    PointInsertOperations, PointOperations, Record, ScoredPoint, ScrollRequest, SetPayloadOp, UpdateMode,
    UpdateOperation, WithPayloadInterface,
};
use tonic::{Request, Response, Status};

use crate::catalog::Catalog;
use crate::collection::Collection;
use crate::convert::{config, filter, path, payload, point_id, point_id_out, point_ids, query, vector};
use crate::refusal::{internal, invalid, only_if, unsupported};
use crate::writer::Taken;

/// Answers calls about points.
pub struct PointsApi {
    /// The collections.
    pub catalog: Arc<Catalog>,
}

/// Which points are meant.
enum Selected {
    Ids(Vec<PointId>),
    Filter(Filter),
}

fn selected(selector: Option<PointsSelector>) -> Result<Selected, Status> {
    match selector.and_then(|selector| selector.points_selector_one_of) {
        Some(PointsSelectorOneOf::Points(ids)) => point_ids(ids.ids).map(Selected::Ids),
        Some(PointsSelectorOneOf::Filter(message)) => filter::filter(message).map(Selected::Filter),
        None => Err(invalid("no points are selected")),
    }
}

fn record_out(record: Record) -> RetrievedPoint {
    RetrievedPoint {
        id: Some(point_id_out(record.id)),
        payload: payload::payload_out(record.payload),
        vectors: vector::vectors_out(record.vector),
        shard_key: None,
        order_value: None,
    }
}

fn scored_out(point: ScoredPoint) -> ScoredMessage {
    ScoredMessage {
        id: Some(point_id_out(point.id)),
        payload: payload::payload_out(point.payload),
        score: point.score,
        version: point.version,
        vectors: vector::vectors_out(point.vector),
        shard_key: None,
        order_value: None,
    }
}

fn upsert_operation(message: UpsertPoints, collection: &Collection) -> Result<UpdateOperation, Status> {
    let points = message
        .points
        .into_iter()
        .map(|point| vector::point(point, collection.config()))
        .collect::<Result<Vec<_>, _>>()?;
    let points = PointInsertOperations::PointsList(points);
    let condition = filter::optional(message.update_filter)?;
    let mode = match message.update_mode.map(ModeMessage::try_from) {
        None | Some(Ok(ModeMessage::Upsert)) => UpdateMode::Upsert,
        Some(Ok(ModeMessage::InsertOnly)) => UpdateMode::InsertOnly,
        Some(Ok(ModeMessage::UpdateOnly)) => UpdateMode::UpdateOnly,
        Some(Err(_)) => return Err(invalid("an update mode that does not exist")),
    };
    let operation = match (condition, mode) {
        (None, UpdateMode::Upsert) => PointOperations::UpsertPoints(points),
        (condition, mode) => PointOperations::UpsertPointsConditional(ConditionalInsertOperation {
            points_op: points,
            condition: condition.unwrap_or_default(),
            update_mode: Some(mode),
        }),
    };
    Ok(UpdateOperation::PointOperation(operation))
}

fn set_payload_operation(message: SetPayloadPoints) -> Result<SetPayloadOp, Status> {
    only_if(message.shard_key_selector.is_none(), "shard keys")?;
    let (points, filter) = match selected(message.points_selector)? {
        Selected::Ids(ids) => (Some(ids), None),
        Selected::Filter(filter) => (None, Some(filter)),
    };
    Ok(SetPayloadOp {
        payload: payload::payload(message.payload)?,
        points,
        filter,
        key: message.key.as_deref().map(path).transpose()?,
    })
}

async fn write(
    collection: &Collection,
    operation: UpdateOperation,
    wait: Option<bool>,
) -> Result<Response<PointsOperationResponse>, Status> {
    let started = Instant::now();
    let (number, status) = match collection.write(operation, wait.unwrap_or_default()).await? {
        Taken::Completed(number) => (number, UpdateStatus::Completed),
        Taken::Acknowledged(number) => (number, UpdateStatus::Acknowledged),
    };
    Ok(Response::new(PointsOperationResponse {
        result: Some(UpdateResult { operation_id: Some(number), status: status.into() }),
        time: started.elapsed().as_secs_f64(),
        usage: None,
    }))
}

async fn run_query(collection: &Arc<Collection>, message: QueryPoints) -> Result<Vec<ScoredMessage>, Status> {
    let mut request = query::request(message, collection.config())?;
    // The engine leaves the offset to the layer above it.
    let offset = std::mem::take(&mut request.offset);
    request.limit = request.limit.saturating_add(offset);
    let points = collection.read(move |shard| shard.query(request)).await?;
    Ok(points.into_iter().skip(offset).map(scored_out).collect())
}

#[tonic::async_trait]
impl Points for PointsApi {
    async fn upsert(&self, request: Request<UpsertPoints>) -> Result<Response<PointsOperationResponse>, Status> {
        let message = request.into_inner();
        only_if(message.shard_key_selector.is_none(), "shard keys")?;
        let collection = self.catalog.get(&message.collection_name)?;
        let wait = message.wait;
        write(&collection, upsert_operation(message, &collection)?, wait).await
    }

    async fn delete(&self, request: Request<DeletePoints>) -> Result<Response<PointsOperationResponse>, Status> {
        let message = request.into_inner();
        only_if(message.shard_key_selector.is_none(), "shard keys")?;
        let collection = self.catalog.get(&message.collection_name)?;
        let operation = match selected(message.points)? {
            Selected::Ids(ids) => PointOperations::DeletePoints { ids },
            Selected::Filter(filter) => PointOperations::DeletePointsByFilter(filter),
        };
        write(&collection, UpdateOperation::PointOperation(operation), message.wait).await
    }

    async fn set_payload(
        &self,
        request: Request<SetPayloadPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let message = request.into_inner();
        let collection = self.catalog.get(&message.collection_name)?;
        let wait = message.wait;
        let operation = PayloadOps::SetPayload(set_payload_operation(message)?);
        write(&collection, UpdateOperation::PayloadOperation(operation), wait).await
    }

    async fn overwrite_payload(
        &self,
        request: Request<SetPayloadPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let message = request.into_inner();
        only_if(message.key.is_none(), "overwriting a part of a payload")?;
        let collection = self.catalog.get(&message.collection_name)?;
        let wait = message.wait;
        let operation = PayloadOps::OverwritePayload(set_payload_operation(message)?);
        write(&collection, UpdateOperation::PayloadOperation(operation), wait).await
    }

    async fn create_field_index(
        &self,
        request: Request<CreateFieldIndexCollection>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let message = request.into_inner();
        let collection = self.catalog.get(&message.collection_name)?;
        let operation = FieldIndexOperations::CreateIndex(CreateIndex {
            field_name: path(&message.field_name)?,
            field_schema: Some(config::field_schema(&message)?),
        });
        write(&collection, UpdateOperation::FieldIndexOperation(operation), message.wait).await
    }

    async fn delete_field_index(
        &self,
        request: Request<DeleteFieldIndexCollection>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let message = request.into_inner();
        let collection = self.catalog.get(&message.collection_name)?;
        let operation = FieldIndexOperations::DeleteIndex(path(&message.field_name)?);
        write(&collection, UpdateOperation::FieldIndexOperation(operation), message.wait).await
    }

    async fn get(&self, request: Request<GetPoints>) -> Result<Response<GetResponse>, Status> {
        let started = Instant::now();
        let message = request.into_inner();
        only_if(message.shard_key_selector.is_none(), "shard keys")?;
        let collection = self.catalog.get(&message.collection_name)?;
        let ids = point_ids(message.ids)?;
        let with_payload = payload::with_payload(message.with_payload)?;
        let with_vectors = vector::with_vectors(message.with_vectors);
        let records =
            collection.read(move |shard| shard.retrieve(&ids, Some(with_payload), Some(with_vectors))).await?;
        Ok(Response::new(GetResponse {
            result: records.into_iter().map(record_out).collect(),
            time: started.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn scroll(&self, request: Request<ScrollPoints>) -> Result<Response<ScrollResponse>, Status> {
        let started = Instant::now();
        let message = request.into_inner();
        only_if(message.shard_key_selector.is_none(), "shard keys")?;
        only_if(message.order_by.is_none(), "order_by")?;
        let collection = self.catalog.get(&message.collection_name)?;
        let limit = message.limit.unwrap_or(10);
        if limit == 0 {
            return Err(invalid("the limit of a scroll is at least 1"));
        }
        let request = ScrollRequest {
            offset: message.offset.map(|id| point_id(Some(id))).transpose()?,
            limit: Some(usize::try_from(limit).map_err(internal)?),
            filter: filter::optional(message.filter)?,
            // Unlike the other reads a scroll brings payloads when nothing is said, as in Qdrant.
            with_payload: match message.with_payload {
                None => Some(WithPayloadInterface::Bool(true)),
                selector => Some(payload::with_payload(selector)?),
            },
            with_vector: vector::with_vectors(message.with_vectors),
            order_by: None,
        };
        let (records, next) = collection.read(move |shard| shard.scroll(request)).await?;
        Ok(Response::new(ScrollResponse {
            next_page_offset: next.map(point_id_out),
            result: records.into_iter().map(record_out).collect(),
            time: started.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn count(&self, request: Request<CountPoints>) -> Result<Response<CountResponse>, Status> {
        let started = Instant::now();
        let message = request.into_inner();
        only_if(message.shard_key_selector.is_none(), "shard keys")?;
        let collection = self.catalog.get(&message.collection_name)?;
        let request = CountRequest { filter: filter::optional(message.filter)?, exact: message.exact.unwrap_or(true) };
        let count = collection.read(move |shard| shard.count(request)).await?;
        Ok(Response::new(CountResponse {
            result: Some(CountResult { count: u64::try_from(count).map_err(internal)? }),
            time: started.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn query(&self, request: Request<QueryPoints>) -> Result<Response<QueryResponse>, Status> {
        let started = Instant::now();
        let message = request.into_inner();
        let collection = self.catalog.get(&message.collection_name)?;
        let result = run_query(&collection, message).await?;
        Ok(Response::new(QueryResponse { result, time: started.elapsed().as_secs_f64(), usage: None }))
    }

    async fn query_batch(&self, request: Request<QueryBatchPoints>) -> Result<Response<QueryBatchResponse>, Status> {
        let started = Instant::now();
        let message = request.into_inner();
        let collection = self.catalog.get(&message.collection_name)?;
        let mut result = Vec::with_capacity(message.query_points.len());
        for query in message.query_points {
            result.push(BatchResult { result: run_query(&collection, query).await? });
        }
        Ok(Response::new(QueryBatchResponse { result, time: started.elapsed().as_secs_f64(), usage: None }))
    }

    async fn update_vectors(
        &self,
        _: Request<UpdatePointVectors>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        Err(unsupported("updates of vectors alone"))
    }

    async fn delete_vectors(
        &self,
        _: Request<DeletePointVectors>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        Err(unsupported("deletions of vectors alone"))
    }

    async fn delete_payload(
        &self,
        _: Request<DeletePayloadPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        Err(unsupported("deletions of payload fields"))
    }

    async fn clear_payload(&self, _: Request<ClearPayloadPoints>) -> Result<Response<PointsOperationResponse>, Status> {
        Err(unsupported("clearing of payloads"))
    }

    async fn create_vector_name(
        &self,
        _: Request<CreateVectorNameRequest>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        Err(unsupported("new vectors in a collection"))
    }

    async fn delete_vector_name(
        &self,
        _: Request<DeleteVectorNameRequest>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        Err(unsupported("the removal of vectors from a collection"))
    }

    async fn search(&self, _: Request<SearchPoints>) -> Result<Response<SearchResponse>, Status> {
        Err(unsupported("Search (use Query)"))
    }

    async fn search_batch(&self, _: Request<SearchBatchPoints>) -> Result<Response<SearchBatchResponse>, Status> {
        Err(unsupported("SearchBatch (use QueryBatch)"))
    }

    async fn search_groups(&self, _: Request<SearchPointGroups>) -> Result<Response<SearchGroupsResponse>, Status> {
        Err(unsupported("groups"))
    }

    async fn recommend(&self, _: Request<RecommendPoints>) -> Result<Response<RecommendResponse>, Status> {
        Err(unsupported("recommendations"))
    }

    async fn recommend_batch(
        &self,
        _: Request<RecommendBatchPoints>,
    ) -> Result<Response<RecommendBatchResponse>, Status> {
        Err(unsupported("recommendations"))
    }

    async fn recommend_groups(
        &self,
        _: Request<RecommendPointGroups>,
    ) -> Result<Response<RecommendGroupsResponse>, Status> {
        Err(unsupported("recommendations"))
    }

    async fn discover(&self, _: Request<DiscoverPoints>) -> Result<Response<DiscoverResponse>, Status> {
        Err(unsupported("discovery"))
    }

    async fn discover_batch(&self, _: Request<DiscoverBatchPoints>) -> Result<Response<DiscoverBatchResponse>, Status> {
        Err(unsupported("discovery"))
    }

    async fn update_batch(&self, _: Request<UpdateBatchPoints>) -> Result<Response<UpdateBatchResponse>, Status> {
        Err(unsupported("UpdateBatch"))
    }

    async fn query_groups(&self, _: Request<QueryPointGroups>) -> Result<Response<QueryGroupsResponse>, Status> {
        Err(unsupported("groups"))
    }

    async fn facet(&self, _: Request<FacetCounts>) -> Result<Response<FacetResponse>, Status> {
        Err(unsupported("facets"))
    }

    async fn search_matrix_pairs(
        &self,
        _: Request<SearchMatrixPoints>,
    ) -> Result<Response<SearchMatrixPairsResponse>, Status> {
        Err(unsupported("matrices of distances"))
    }

    async fn search_matrix_offsets(
        &self,
        _: Request<SearchMatrixPoints>,
    ) -> Result<Response<SearchMatrixOffsetsResponse>, Status> {
        Err(unsupported("matrices of distances"))
    }
}
