//! What an authority has signed: certificates and revocation lists, cut into their parts.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_cert::der::asn1::BitString;
use x509_cert::der::{Decode as _, Reader as _, SliceReader};
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;

use super::super::key::POINT;

/// Something signed (RFC 5280, 4.1.1 and 5.1.1), cut into its parts and not judged.
pub(in super::super) struct Parts<'a> {
    /// What is signed, as it stands there.
    pub(in super::super) signed: &'a [u8],
    /// The outer copy of the algorithm, which is not signed.
    pub(in super::super) algorithm: AlgorithmIdentifierOwned,
    pub(in super::super) signature: BitString,
}

impl<'a> Parts<'a> {
    /// The parts, and how many bytes follow; `None` for bytes that are nothing signed.
    pub(in super::super) fn cut(der: &'a [u8]) -> Option<(Self, usize)> {
        let mut outer = SliceReader::new(der).ok()?;
        let parts = outer.sequence(|inner| {
            let signed = inner.tlv_bytes()?;
            let algorithm = AlgorithmIdentifierOwned::decode(inner)?;
            x509_cert::der::Result::Ok(Self { signed, algorithm, signature: inner.decode()? })
        });
        Some((parts.ok()?, usize::try_from(outer.remaining_len()).ok()?))
    }

    /// True when the key with this public point signed it.
    pub(in super::super) fn is_signed_by(&self, point: &[u8; POINT]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
        // A signature of whole bytes: how many bits of the last one are unused is not signed.
        let signature = self.signature.as_bytes();
        signature.is_some_and(|signature| key.verify(self.signed, signature).is_ok())
    }
}

/// A date of a certificate or a list.
pub(in super::super) fn instant(date: Time) -> SystemTime {
    UNIX_EPOCH + date.to_unix_duration()
}
