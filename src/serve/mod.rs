//! The API server beside the datastore, and the port of the charts' Service and probes, on which [`health`] answers
//! until the API server does.

pub mod health;
