//! Floor 4: what speaks to people and programs outside the cluster.

pub mod admin;
pub mod channels;
pub mod http;
pub mod status;
