//! Why a certificate does not count.

use std::time::SystemTime;

use crate::io::clock::rfc3339;
use crate::proto::node::NodeName;

/// Why a certificate does not count, whoever shows it. Its text goes on where the certificate is named: `the peer's
/// certificate …`. Nothing changed; its owner acts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateFault {
    /// It is not one that a node can use; in which way.
    #[error("is damaged ({0})")]
    Damaged(&'static str),
    /// No authority of this cluster signed it, or it was altered since.
    #[error("is not signed by this cluster's authority")]
    Untrusted,
    /// It is of this cluster and belongs to no node; what is wrong with its names.
    #[error("names no node of this cluster ({0})")]
    NotANode(&'static str),
    /// It belongs to this node, and another one is meant.
    #[error("belongs to {0}, another node than the one meant")]
    WrongName(NodeName),
    /// The authority has revoked it: anyone who shows it is no node of this cluster, whatever name it has.
    #[error("of {0} is revoked")]
    Revoked(NodeName),
    /// Its time is over; its last valid second.
    #[error("expired at {}", rfc3339(*.0))]
    Expired(SystemTime),
    /// Its time has not come; its first valid second. A clock is wrong, here or where it was made.
    #[error(
        "is not valid before {}: set this host's clock, or the one where it was made",
        rfc3339(*.0)
    )]
    NotYetValid(SystemTime),
}
