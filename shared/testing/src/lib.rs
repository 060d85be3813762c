//! In-memory log for stage tests and the real stack for integration tests.
