//! Shared pieces of the cases: bundles, network namespaces, and the leak check.
