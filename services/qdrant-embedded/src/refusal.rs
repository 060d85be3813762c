//! How the server says no.

use qdrant_edge::OperationError;
use tonic::Status;

/// A call, a field or a value this server does not know. Never left out silently: the client would take a wrong
/// result for a right one.
pub fn unsupported(what: impl std::fmt::Display) -> Status {
    Status::unimplemented(format!("qdrant-embedded does not support {what}; use a Qdrant server"))
}

/// A request that makes no sense.
pub fn invalid(what: impl std::fmt::Display) -> Status {
    Status::invalid_argument(what.to_string())
}

/// Something that is not the client's fault.
pub fn internal(what: impl std::fmt::Display) -> Status {
    Status::internal(what.to_string())
}

/// What Qdrant says of a collection that is not there.
pub fn no_collection(name: &str) -> Status {
    Status::not_found(format!("Not found: Collection `{name}` doesn't exist!"))
}

/// Refuses a request with a field that is not supported.
pub fn only_if(supported: bool, field: &str) -> Result<(), Status> {
    if supported { Ok(()) } else { Err(unsupported(field)) }
}

/// The engine's error as a status: what the client did wrong is told from what went wrong here.
pub fn of_engine(error: &OperationError) -> Status {
    match error {
        OperationError::WrongVectorDimension { .. }
        | OperationError::VectorNameNotExists { .. }
        | OperationError::TypeError { .. }
        | OperationError::TypeInferenceError { .. }
        | OperationError::ValidationError { .. }
        | OperationError::WrongSparse
        | OperationError::WrongMulti
        | OperationError::MissingRangeIndexForOrderBy { .. }
        | OperationError::MissingMapIndexForFacet { .. }
        | OperationError::VariableTypeError { .. }
        | OperationError::NonFiniteNumber { .. } => invalid(error),
        OperationError::PointIdError { .. } => Status::not_found(error.to_string()),
        OperationError::ServiceError { description, .. } => internal(description),
        _ => internal(error),
    }
}
