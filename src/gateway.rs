//! Floor 4: what speaks to people and programs outside the cluster.

pub mod admin;
pub mod channels;
pub mod clients;
mod gauges;
pub mod history;
pub mod http;
mod places;
mod refusal;
pub mod sight;
pub mod status;
pub mod view;
