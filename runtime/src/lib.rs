//! The hull OCI runtime.
