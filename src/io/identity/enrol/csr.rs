//! Certificate signing requests (PKCS #10, RFC 2986): made for our key, and read for theirs.

use rcgen::{CertificateParams, DistinguishedName, DnType, PublicKeyData};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::request::CertReqInfo;

use crate::io::identity::IdentityError;
use crate::io::identity::key::{Key, POINT};
use crate::io::identity::pki::Parts;
use crate::io::identity::pki::p256;
use crate::proto::node::{KeyId, NodeName};

/// ECDSA with SHA-256 (RFC 5758, 3.2).
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// A request for this key, as DER. The name in it is for people who look at it.
pub(super) fn make(key: &Key, name: &NodeName) -> Result<Vec<u8>, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.short());
    let request = params.serialize_request(key);
    let request =
        request.map_err(|_refused| IdentityError::Crypto("make a certificate request"))?;
    Ok(request.der().to_vec())
}

/// The key of a request whose holder signed it. All else that the request says is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct CsrKey {
    id: KeyId,
    point: [u8; POINT],
}

impl CsrKey {
    /// Reads a request; the error says in which way it is damaged or foreign.
    pub(in super::super) fn of(der: &[u8]) -> Result<Self, &'static str> {
        let damaged = "it is no certificate signing request";
        let (parts, behind) = Parts::cut(der).ok_or(damaged)?;
        let info = CertReqInfo::from_der(parts.signed).map_err(|_detail| damaged)?;
        if behind > 0 {
            return Err("bytes follow the certificate signing request");
        }
        if parts.algorithm.oid != ECDSA_WITH_SHA256 {
            return Err("the signing request is not signed with ECDSA and SHA-256");
        }
        let (id, point) =
            p256(&info.public_key).ok_or("its key is not an uncompressed P-256 key")?;
        if !parts.is_signed_by(&point) {
            return Err("the signing request's signature is not its key's");
        }
        Ok(Self { id, point })
    }

    pub(in super::super) fn id(&self) -> KeyId {
        self.id
    }

    pub(in super::super) fn point(&self) -> &[u8; POINT] {
        &self.point
    }
}

impl PublicKeyData for CsrKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_key_of_its_maker() {
        let key = Key::generate().unwrap();
        let csr = make(&key, &"a@h".parse().unwrap()).unwrap();
        let read = CsrKey::of(&csr).unwrap();
        assert_eq!(read.point().as_slice(), key.point());
        assert_eq!(read.id(), KeyId::of_public_key(&key.subject_public_key_info()));
    }

    #[test]
    fn no_changed_byte_of_a_request_makes_another_request() {
        let key = Key::generate().unwrap();
        let csr = make(&key, &"a@h".parse().unwrap()).unwrap();
        let sound = CsrKey::of(&csr).unwrap();
        for at in 0..csr.len() {
            for bit in [0x01, 0x40] {
                let mut changed = csr.clone();
                changed[at] ^= bit;
                // How many bits of the signature's last byte are unused is not signed.
                if let Ok(read) = CsrKey::of(&changed) {
                    assert_eq!(read, sound, "byte {at}");
                }
            }
            assert!(CsrKey::of(&csr[..at]).is_err());
        }
        assert!(CsrKey::of(&[csr.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn a_request_with_a_key_of_another_kind_is_refused() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let csr = CertificateParams::default().serialize_request(&key).unwrap();
            assert!(CsrKey::of(csr.der()).is_err(), "{algorithm:?}");
        }
    }
}
