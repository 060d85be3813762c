//! Filters of points.

use std::collections::BTreeMap;

use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::{Condition, FieldCondition, Filter, Match, Range};
use weir_contracts::{DocumentId, Revision, TenantId};

use crate::collection::DENSE;
use crate::payload::{field, kind, meta_entry};

/// A tenant's points that meet these conditions. The one place where a tenant's points are told from others': whatever
/// reads or removes points by a filter goes through here.
pub(crate) fn scope(tenant: &TenantId, conditions: impl IntoIterator<Item = Condition>) -> Filter {
    Filter::must(std::iter::once(keyword(field::TENANT, tenant.as_str())).chain(conditions))
}

/// A tenant's chunks whose document has all of these metadata.
pub(crate) fn chunks_with(tenant: &TenantId, metadata: &BTreeMap<String, String>) -> Filter {
    scope(tenant, metadata.iter().map(|(key, value)| keyword(field::META, &meta_entry(key, value))))
}

/// All chunks of a tenant, or of one of its documents.
pub(crate) fn chunks_in(tenant: &TenantId, document: Option<&DocumentId>) -> Filter {
    let document = document.map(|document| keyword(field::DOCUMENT, document.as_str()));
    scope(tenant, std::iter::once(keyword(field::KIND, kind::CHUNK)).chain(document))
}

/// The chunks of one build of one revision.
pub(crate) fn set(tenant: &TenantId, document: &DocumentId, revision: Revision, build: &str) -> Filter {
    scope(
        tenant,
        [
            keyword(field::DOCUMENT, document.as_str()),
            keyword(field::KIND, kind::CHUNK),
            integer(field::REVISION, revision.ordinal()),
            keyword(field::BUILD, build),
        ],
    )
}

/// The chunks of a document that meet one of these conditions.
pub(crate) fn chunks_of(tenant: &TenantId, document: &DocumentId, any: impl IntoIterator<Item = Condition>) -> Filter {
    scope(
        tenant,
        [keyword(field::DOCUMENT, document.as_str()), keyword(field::KIND, kind::CHUNK), Filter::should(any).into()],
    )
}

/// Chunks of all tenants, for the sweep: the points that have a vector, which heads do not.
pub(crate) fn all_chunks() -> Filter {
    Filter::must([Condition::has_vector(DENSE)])
}

/// `field == value`. By hand: the client's own conversion makes a search for words of a value with a space in it.
pub(crate) fn keyword(field: &str, value: &str) -> Condition {
    let wanted = Match { match_value: Some(MatchValue::Keyword(value.to_owned())) };
    FieldCondition { key: field.to_owned(), r#match: Some(wanted), ..FieldCondition::default() }.into()
}

pub(crate) fn integer(field: &str, value: i64) -> Condition {
    Condition::matches(field, value)
}

/// `field < value`. Qdrant compares as doubles, which hold every revision and every offset below 2^53 exactly.
pub(crate) fn below(field: &str, value: i64) -> Condition {
    #[allow(clippy::cast_precision_loss)]
    let lt = value as f64;
    Condition::range(field, Range { lt: Some(lt), ..Range::default() })
}
