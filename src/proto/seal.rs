//! What proves that a node stated something, no matter who passes it on.
//!
//! A [`Seal`] is the maker's certificate and its signature over the statement: the bytes of what is stated, behind words
//! that name its kind, so that no statement is taken for one of another kind. What came over the maker's own link needs no
//! seal to be believed, and carries it for others. Invariant: a statement travels unchanged, as its maker sealed it.

use serde::{Deserialize, Serialize};

use crate::proto::node::NodeName;

/// Bytes of a certificate and a signature, at most.
pub const MAX_SEAL: usize = 1400;

/// The proof of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The maker's certificate, DER.
    pub certificate: Vec<u8>,
    /// Its signature over the statement: ECDSA P-256 with SHA-256, ASN.1.
    pub signature: Vec<u8>,
}

impl Seal {
    /// Whether it is within [`MAX_SEAL`].
    pub(super) fn is_short(&self) -> bool {
        self.certificate.len() + self.signature.len() <= MAX_SEAL
    }

    /// What it needs on the wire, at most.
    pub(super) fn size(&self) -> usize {
        self.certificate.len() + self.signature.len() + 6
    }
}

/// Makes this node's seals, and checks those of others.
pub trait Seals: std::fmt::Debug + Send {
    /// This node's seal on a statement; `None` when it cannot sign.
    fn make(&mut self, statement: &[u8]) -> Option<Seal>;

    /// Whether this node would make a seal under the same certificate now.
    fn is_current(&self, seal: &Seal) -> bool;

    /// Whether a seal is of a certificate that is revoked.
    fn is_revoked(&self, seal: &Seal) -> bool;

    /// Whether that node, a member whose certificate counts now, made the statement.
    fn hold(&mut self, maker: &NodeName, statement: &[u8], seal: &Seal) -> bool;
}
