//! End-to-end tests on a real cluster, one file per behaviour.
