//! Seals without keys, for machines under test.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Credential, KeyId, NodeName, Seal, Seals};

/// The seals of a node of that name.
#[derive(Debug)]
pub(crate) struct Toy(pub(crate) NodeName);

/// As the maker's own.
pub(crate) fn seal(maker: &NodeName, statement: &[u8]) -> Seal {
    let mut hash = DefaultHasher::new();
    (maker, statement).hash(&mut hash);
    Seal { certificate: maker.as_str().into(), signature: hash.finish().to_be_bytes().into() }
}

impl Seals for Toy {
    fn make(&mut self, statement: &[u8]) -> Option<Seal> {
        Some(seal(&self.0, statement))
    }

    fn is_current(&self, seal: &Seal) -> bool {
        seal.certificate == self.0.as_str().as_bytes()
    }

    fn credential(&self, seal: &Seal) -> Option<Credential> {
        let mut hash = DefaultHasher::new();
        seal.certificate.hash(&mut hash);
        let key = KeyId(u128::from(hash.finish()).to_be_bytes());
        Some(Credential { key, since: 0 })
    }

    fn may_operate(&self, seal: &Seal) -> bool {
        !seal.certificate.starts_with(b"edge")
    }

    fn is_revoked(&self, seal: &Seal) -> bool {
        seal.certificate.starts_with(b"revoked")
    }

    fn hold(&mut self, maker: &NodeName, statement: &[u8], found: &Seal) -> bool {
        *found == seal(maker, statement)
    }
}
