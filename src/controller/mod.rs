//! The operator: from objects to running endpoints.
