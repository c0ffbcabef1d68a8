//! Certificates and lists as they are signed: read and judged, pure.
//!
//! Owns what a certificate has to say to be a node's or an authority's, and what makes authorities the bundle of one
//! cluster. No file, no clock, nothing that changes: what is in force is the verifier's, where files lie the layout's.
//!
//! ```text
//! signed ← certificate ← bundle ← list
//! ```

mod bundle;
mod certificate;
mod error;
mod list;
mod signed;

pub(super) use self::bundle::{Bundle, DEVELOPMENT, MAX_ROOTS, Root, pem_of};
#[cfg(test)]
pub(super) use self::certificate::DAY;
pub(super) use self::certificate::{
    BACKDATE, Certificate, DESCRIPTION, cluster_uri, fingerprint, p256, spiffe_uri,
};
pub use self::certificate::{PeerIdentity, Validity, server_name};
pub(in super::super) use self::certificate::{claimed_cluster, cluster_of_server_name};
pub use self::error::CertificateFault;
pub(super) use self::list::Signed;
pub(super) use self::signed::{Parts, instant};
