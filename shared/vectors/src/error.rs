//! What can go wrong with the vector store.

use qdrant_client::QdrantError;
use tonic::Code;

/// Why a call of the vector store failed.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// Qdrant did not answer, or could not do it now. The same call may succeed later.
    #[error("qdrant can't {call} now: {reason}")]
    Unavailable {
        /// What was asked for.
        call: &'static str,
        /// What happened.
        reason: String,
    },
    /// The collection does not exist (any more).
    #[error("qdrant has no collection {collection:?}")]
    NoCollection {
        /// Its name.
        collection: String,
    },
    /// Qdrant understood the call and refuses it; it will do so again.
    #[error("qdrant refuses to {call}: {reason}")]
    Refused {
        /// What was asked for.
        call: &'static str,
        /// What Qdrant says.
        reason: String,
    },
    /// The collection was made for other vectors.
    #[error(
        "collection {collection:?} holds {found}, but the vectors at hand are {wanted}: name a new collection in \
         qdrant.collection and rebuild it from the documents"
    )]
    Mismatch {
        /// Its name.
        collection: String,
        /// What it holds.
        found: String,
        /// What was to be written or searched.
        wanted: String,
    },
    /// A record that can't become points.
    #[error("{0}")]
    Invalid(String),
    /// A point that Weir did not write, or that was damaged.
    #[error("point {id} is not one of Weir's: {reason}")]
    Foreign {
        /// Its id.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl VectorError {
    /// Whether the same call may succeed later without anyone changing a record.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NoCollection { .. })
    }

    pub(crate) fn of_call(call: &'static str, collection: &str, error: QdrantError) -> Self {
        let (code, reason) = match &error {
            QdrantError::ResponseError { status } | QdrantError::ResourceExhaustedError { status, .. } => {
                (status.code(), status.message().to_owned())
            }
            QdrantError::Io(io) => (Code::Unavailable, io.to_string()),
            QdrantError::InvalidUri(uri) => (Code::InvalidArgument, uri.to_string()),
            other => (Code::InvalidArgument, other.to_string()),
        };
        match code {
            // A client that can't connect says Internal, and so does a server whose disk is full. Rights are the
            // operator's to mend, not the record's: nothing may be dead-lettered for them.
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Unauthenticated
            | Code::PermissionDenied => Self::Unavailable { call, reason },
            Code::NotFound => Self::NoCollection { collection: collection.to_owned() },
            _ => Self::Refused { call, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tonic::Status;

    use super::*;

    fn of(status: Status) -> VectorError {
        VectorError::of_call("upsert", "weir", QdrantError::ResponseError { status })
    }

    #[test]
    fn a_server_that_is_away_is_unavailable_and_a_refusal_is_not() {
        assert!(of(Status::internal("Failed to connect to http://127.0.0.1:1/")).is_unavailable());
        assert!(of(Status::deadline_exceeded("late")).is_unavailable());
        assert!(of(Status::permission_denied("key")).is_unavailable());
        assert!(of(Status::not_found("no collection")).is_unavailable());
        assert!(!of(Status::invalid_argument("dimension")).is_unavailable());
        assert!(!of(Status::unimplemented("no")).is_unavailable());
    }
}
