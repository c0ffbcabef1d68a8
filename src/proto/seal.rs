//! What proves that a node stated something, no matter who passes it on.
//!
//! A [`Seal`] is the maker's certificate and its signature over the statement: the bytes of what is stated, behind words
//! that name its kind, so that no statement is taken for one of another kind. What came over the maker's own link needs no
//! seal to be believed, and carries it for others. Invariant: a statement travels unchanged, as its maker sealed it.
//!
//! Two statements of one kind, origin, incarnation and version that hold different values are an [`Equivocation`]: proof
//! that the holder of the key states different things to different peers.

use serde::{Deserialize, Serialize};

use crate::proto::codec::{self, hexadecimal, read_hexadecimal};
use crate::proto::event::Event;
use crate::proto::node::{Credential, Incarnation, KeyId, NodeName};

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

/// What is sealed of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// What no statement of another kind begins with.
    head: String,
    /// Of which table the row is.
    pub kind: String,
    /// Whose row it is.
    pub origin: NodeName,
    /// The life it is of.
    pub incarnation: Incarnation,
    /// Its version within that life.
    pub version: u64,
    /// SHA-256 of its value, if it is no tombstone.
    pub value: Option<[u8; 32]>,
    /// Of a tombstone its time and its maker.
    pub end: Option<(u64, NodeName)>,
}

/// What statements of rows begin with.
const HEAD: &str = "xpando row 2";
/// The longest statement of a row.
const MAX_STATEMENT: usize = 1024;

impl Statement {
    /// Of a row of that table, which holds nothing yet.
    pub fn new(kind: &str, origin: NodeName, incarnation: Incarnation, version: u64) -> Self {
        let (head, kind) = (HEAD.to_owned(), kind.to_owned());
        Self { head, kind, origin, incarnation, version, value: None, end: None }
    }

    /// The bytes that are signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        // It has texts and numbers alone; an empty statement would be one of no row.
        codec::encode(self).unwrap_or_default()
    }

    /// The statement of these bytes.
    fn read(bytes: &[u8]) -> Option<Self> {
        codec::decode(bytes, MAX_STATEMENT).ok().filter(|it: &Self| it.head == HEAD)
    }
}

/// A statement of a row, with its seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The bytes that are signed.
    pub statement: Vec<u8>,
    /// What proves them.
    pub seal: Seal,
}

impl Sealed {
    /// The origin of the row.
    pub fn origin(&self) -> Option<NodeName> {
        Statement::read(&self.statement).map(|it| it.origin)
    }
}

/// Two different rows that one node sealed under one mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Equivocation(pub [Sealed; 2]);

impl Equivocation {
    /// The origin, incarnation and version of both, and the table they are of; `None` where they do not contradict each
    /// other. Whether the seals hold is not looked at.
    pub fn subject(&self) -> Option<Statement> {
        let [a, b] = self.0.each_ref().map(|it| Statement::read(&it.statement));
        let (a, b) = (a?, b?);
        let differ = a.value.is_some() && b.value.is_some() && a.value != b.value;
        let same = a == Statement { value: a.value, ..b } && a.end.is_none();
        (differ && same).then_some(a)
    }

    /// As an event, which holds all of it. `key` is the key of both seals.
    pub fn event(&self, key: KeyId) -> Option<Event> {
        let Statement { kind: table, origin: peer, incarnation, version, .. } = self.subject()?;
        let both = |of: fn(&Sealed) -> &[u8]| self.0.each_ref().map(|it| hexadecimal(of(it)));
        Some(Event::Equivocation {
            peer,
            key: key.to_string(),
            table,
            incarnation,
            version,
            statements: both(|it| &it.statement),
            signatures: both(|it| &it.seal.signature),
            certificates: both(|it| &it.seal.certificate),
        })
    }

    /// What an event tells of, unless it is another or was changed.
    pub fn of_event(event: &Event) -> Option<Self> {
        let Event::Equivocation { statements, signatures, certificates, .. } = event else {
            return None;
        };
        let sealed = |at: usize| {
            let bytes = |texts: &[String; 2]| read_hexadecimal(texts.get(at)?);
            let seal = Seal { certificate: bytes(certificates)?, signature: bytes(signatures)? };
            Some(Sealed { statement: bytes(statements)?, seal })
        };
        Some(Self([sealed(0)?, sealed(1)?]))
    }
}

/// Makes this node's seals, and checks those of others.
pub trait Seals: std::fmt::Debug + Send {
    /// This node's seal on a statement; `None` when it cannot sign.
    fn make(&mut self, statement: &[u8]) -> Option<Seal>;

    /// Whether this node would make a seal under the same certificate now.
    fn is_current(&self, seal: &Seal) -> bool;

    /// With which key a seal was made, and since when its certificate counts; where that counts now.
    fn credential(&self, seal: &Seal) -> Option<Credential>;

    /// Whether the certificate of a seal lets its holder rule about other nodes. That the seal is its holder's is not
    /// looked at.
    fn may_operate(&self, seal: &Seal) -> bool;

    /// Whether a seal is of a certificate that is revoked.
    fn is_revoked(&self, seal: &Seal) -> bool;

    /// Whether that node, a member whose certificate counts now, made the statement.
    fn hold(&mut self, maker: &NodeName, statement: &[u8], seal: &Seal) -> bool;
}
