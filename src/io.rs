//! Floor 2: one file per outside thing (keys, TLS, sockets, disk). No actors, no decisions.

pub mod addresses;
pub mod beacon;
pub mod clock;
pub mod enrolment;
#[cfg(feature = "gateway")]
mod fetch;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod modes;
pub mod places;
pub mod seals;
pub mod seeds;
pub mod sockets;
pub mod store;
pub mod tcp;
pub mod tls;
pub mod usage;
