//! The beacon: one UDP datagram that says "this node is here".
//!
//! ```text
//! bytes 0–3   "xpb" and the version, 1
//! then        postcard of Beacon, then postcard of Seal (certificate and signature)
//! ```
//!
//! The node signs the datagram up to the seal with its own key and carries the certificate, so a
//! receiver needs nothing but the cluster's CA. Invariants: a datagram over [`MAX_BEACON`] bytes is
//! never decoded; decoding borrows, it allocates only names.

use serde::{Deserialize, Serialize};

use crate::proto::codec::{self, CodecError};
use crate::proto::node::{ClusterId, Contact};

/// Largest beacon, in bytes: one Ethernet frame without fragments.
pub const MAX_BEACON: usize = 1400;

const MAGIC: [u8; 4] = *b"xpb\x01";

/// What a node announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its name, address and life.
    pub contact: Contact,
    /// Counts the beacons of this life, from 1.
    pub sequence: u64,
    /// When it was signed: milliseconds since the Unix epoch.
    pub sent: u64,
}

#[derive(Serialize, Deserialize)]
struct Seal<'a> {
    certificate: &'a [u8],
    signature: &'a [u8],
}

/// A decoded datagram, not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// What it announces.
    pub beacon: Beacon,
    /// The bytes that are signed.
    pub signed: &'a [u8],
    /// The sender's certificate, DER.
    pub certificate: &'a [u8],
    /// The signature over `signed`.
    pub signature: &'a [u8],
}

impl Beacon {
    /// The datagram up to the seal: the bytes to sign.
    ///
    /// # Errors
    /// As [`codec::encode`].
    pub fn to_sign(&self) -> Result<Vec<u8>, CodecError> {
        Ok([MAGIC.as_slice(), &codec::encode(self)?].concat())
    }

    /// The whole datagram, from the signed bytes.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when it would not fit one packet.
    pub fn seal(
        mut signed: Vec<u8>,
        certificate: &[u8],
        signature: &[u8],
    ) -> Result<Vec<u8>, CodecError> {
        signed.extend(codec::encode(&Seal { certificate, signature })?);
        let length = signed.len();
        if length > MAX_BEACON {
            return Err(CodecError::TooLong { length, cap: MAX_BEACON });
        }
        Ok(signed)
    }

    /// Takes a datagram apart.
    ///
    /// # Errors
    /// Any [`CodecError`]; the datagram is dropped and counted.
    pub fn decode(datagram: &[u8]) -> Result<Sealed<'_>, CodecError> {
        if datagram.len() > MAX_BEACON {
            return Err(CodecError::TooLong { length: datagram.len(), cap: MAX_BEACON });
        }
        let body = match datagram.strip_prefix(&MAGIC) {
            Some(body) => body,
            None => {
                return Err(match datagram {
                    [b'x', b'p', b'b', version, ..] => CodecError::Version(*version),
                    _ => CodecError::Malformed,
                });
            }
        };
        let malformed = |_detail: postcard::Error| CodecError::Malformed;
        let (beacon, seal): (Beacon, _) = postcard::take_from_bytes(body).map_err(malformed)?;
        let signed = datagram.get(..datagram.len() - seal.len()).ok_or(CodecError::Malformed)?;
        let (Seal { certificate, signature }, rest) =
            postcard::take_from_bytes(seal).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(CodecError::Trailing(rest.len()));
        }
        Ok(Sealed { beacon, signed, certificate, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::node::{Incarnation, KeyId};
    use proptest::prelude::*;

    fn beacon() -> Beacon {
        Beacon {
            cluster: KeyId([1; 16]),
            contact: Contact {
                name: "a@127.0.0.1".parse().expect("valid"),
                address: "127.0.0.1:4697".parse().expect("valid"),
                incarnation: Incarnation(2),
            },
            sequence: 7,
            sent: 1_700_000_000_000,
        }
    }

    fn datagram() -> Vec<u8> {
        Beacon::seal(beacon().to_sign().expect("encodes"), &[5; 600], &[6; 72]).expect("fits")
    }

    #[test]
    fn a_beacon_round_trips() {
        let bytes = datagram();
        let sealed = Beacon::decode(&bytes).expect("its own bytes");
        assert_eq!(sealed.beacon, beacon());
        assert_eq!(sealed.signed, beacon().to_sign().expect("encodes"));
        assert_eq!((sealed.certificate, sealed.signature), (&[5; 600][..], &[6; 72][..]));
    }

    #[test]
    fn truncated_long_and_foreign_datagrams_are_refused() {
        let bytes = datagram();
        for cut in 0..bytes.len() {
            assert!(Beacon::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let long = [bytes.clone(), vec![0]].concat();
        assert_eq!(Beacon::decode(&long), Err(CodecError::Trailing(1)));
        assert!(matches!(Beacon::decode(&vec![0; 1401]), Err(CodecError::TooLong { .. })));
        let mut newer = bytes;
        newer[3] = 2;
        assert_eq!(Beacon::decode(&newer), Err(CodecError::Version(2)));
        let too_big = Beacon::seal(beacon().to_sign().expect("encodes"), &[5; 1400], &[]);
        assert!(matches!(too_big, Err(CodecError::TooLong { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let _either = Beacon::decode(&bytes);
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0_usize..740, to in any::<u8>()) {
            let mut bytes = datagram();
            if let Some(byte) = bytes.get_mut(at) { *byte = to; }
            let _either = Beacon::decode(&bytes);
        }
    }
}
