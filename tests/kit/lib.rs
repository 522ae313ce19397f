//! The kit of the integration tests.
