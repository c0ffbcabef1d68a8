//! Floor 4: what speaks to people and programs outside the cluster. Clients over HTTP have the feature `gateway`; the
//! admin socket is always there.

pub mod admin;
mod askers;
#[cfg(feature = "gateway")]
pub mod channels;
pub mod clients;
mod gauges;
pub mod history;
#[cfg(feature = "gateway")]
pub mod http;
pub mod issue;
#[cfg(feature = "gateway")]
mod memory;
#[cfg(feature = "gateway")]
mod places;
#[cfg(feature = "gateway")]
mod refusal;
pub mod rotation;
pub mod sight;
pub mod status;
pub mod view;
