//! Qdrant access: collections, points, heads, hybrid retrieval, the tenant filter.
