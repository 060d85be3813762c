//! Between Qdrant's messages and its engine's types.

pub mod config;
pub mod filter;
pub mod payload;
pub mod query;
pub mod vector;

use std::str::FromStr;

use qdrant_client::qdrant::PointId as Id;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_edge::{JsonPath, PointId};
use tonic::Status;
use uuid::Uuid;

use crate::refusal::invalid;

/// The id of a point.
pub fn point_id(id: Option<Id>) -> Result<PointId, Status> {
    match id.and_then(|id| id.point_id_options) {
        Some(PointIdOptions::Num(number)) => Ok(PointId::NumId(number)),
        Some(PointIdOptions::Uuid(text)) => {
            Uuid::parse_str(&text).map(PointId::Uuid).map_err(|_| invalid(format!("Unable to parse UUID: {text}")))
        }
        None => Err(invalid("a point has no id")),
    }
}

/// The ids of points.
pub fn point_ids(ids: Vec<Id>) -> Result<Vec<PointId>, Status> {
    ids.into_iter().map(|id| point_id(Some(id))).collect()
}

/// The id of a point, to be sent.
pub fn point_id_out(id: PointId) -> Id {
    let id = match id {
        PointId::NumId(number) => PointIdOptions::Num(number),
        PointId::Uuid(uuid) => PointIdOptions::Uuid(uuid.to_string()),
    };
    Id { point_id_options: Some(id) }
}

/// The path of a payload field.
pub fn path(key: &str) -> Result<JsonPath, Status> {
    JsonPath::from_str(key).map_err(|()| invalid(format!("{key:?} is not the path of a payload field")))
}
