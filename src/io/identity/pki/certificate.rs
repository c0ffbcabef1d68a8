//! What a certificate says.
//!
//! Owns the rules by which a certificate names a node, or a cluster. Pure: who signed it is for the verifier to judge.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use x509_cert::TbsCertificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::super::key::POINT;
use super::CertificateFault;
use super::signed::{Parts, instant};
use crate::proto::capability::Capabilities;
use crate::proto::codec::hexadecimal;
use crate::proto::enrol::Host;
use crate::proto::node::{ClusterId, Credential, KeyId, NodeId, NodeName};

/// How long certificates are valid before they are made, for hosts whose clocks lag.
pub(in super::super) const BACKDATE: Duration = Duration::from_secs(60 * 60);
pub(in super::super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The object identifiers that a P-256 public key carries (RFC 5480, 2.1.1).
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const PRIME256V1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// Of an organization in a name (RFC 4519, 2.19).
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
/// Of an organizational unit in a name (RFC 4519, 2.20): here what the holder may do.
const UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");
/// Of a description in a name (RFC 4519, 2.5): here the patterns of an edge.
pub(in super::super) const DESCRIPTION: [u64; 4] = [2, 5, 4, 13];
const DESCRIPTION_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.13");

/// The DNS name that every certificate of a cluster carries: `node.<cluster>.xpando.internal`.
///
/// It names no host. It exists because TLS libraries check a server's certificate against a DNS
/// name; which node the certificate belongs to is told by its URI.
pub fn server_name(cluster: ClusterId) -> String {
    format!("node.{cluster}.xpando.internal")
}

/// The cluster whose [`server_name`] this is.
pub(in super::super::super) fn cluster_of_server_name(name: &str) -> Option<ClusterId> {
    KeyId::from_hex(name.strip_prefix("node.")?.strip_suffix(".xpando.internal")?)
}

/// The cluster that a certificate says it belongs to. Nothing is proven by that.
pub(in super::super::super) fn claimed_cluster(leaf: &CertificateDer<'_>) -> Option<ClusterId> {
    let certificate = Certificate::parse(leaf).ok()?;
    let (_, names) = certificate.tbs.get_extension::<SubjectAltName>().ok()??;
    names.0.iter().filter_map(dns).find_map(cluster_of_server_name)
}

fn dns(name: &GeneralName) -> Option<&str> {
    if let GeneralName::DnsName(dns) = name { Some(dns.as_str()) } else { None }
}

/// An address as certificates have it (RFC 5280, 4.2.1.6).
fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

fn uri(name: &GeneralName) -> Option<&str> {
    if let GeneralName::UniformResourceIdentifier(uri) = name { Some(uri.as_str()) } else { None }
}

/// The URI that names a cluster in its authority's certificate.
pub(in super::super) fn cluster_uri(cluster: ClusterId) -> String {
    format!("spiffe://{cluster}")
}

/// The URI that names a node in its certificate: `spiffe://<cluster>/node/<host>/<name>`.
pub(in super::super) fn spiffe_uri(cluster: ClusterId, name: &NodeName) -> String {
    format!("spiffe://{cluster}{}", name.spiffe_path())
}

/// SHA-256 of a certificate's DER as colon-separated upper-case pairs, as `openssl x509
/// -fingerprint -sha256` prints it.
pub(in super::super) fn fingerprint(der: &[u8]) -> String {
    let pairs: Vec<String> =
        digest(&SHA256, der).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// The id and the point of an uncompressed P-256 key.
pub(in super::super) fn p256(key: &SubjectPublicKeyInfoOwned) -> Option<(KeyId, [u8; POINT])> {
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.decode_as().ok());
    let p256 = key.algorithm.oid == EC_PUBLIC_KEY && curve == Some(PRIME256V1);
    let point = key.subject_public_key.as_bytes().and_then(|bytes| bytes.try_into().ok());
    Some((KeyId::of_public_key(&key.to_der().ok()?), point.filter(|_| p256)?))
}

/// A certificate that is sound in form. Nothing is known yet about who signed it.
pub(in super::super) struct Certificate<'a> {
    parts: Parts<'a>,
    tbs: TbsCertificate,
    key: KeyId,
    point: [u8; POINT],
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; the error says in which way it is damaged or foreign.
    pub(in super::super) fn parse(der: &'a [u8]) -> Result<Self, &'static str> {
        let damaged = "it is not an X.509 certificate";
        let (parts, behind) = Parts::cut(der).ok_or(damaged)?;
        let tbs = TbsCertificate::from_der(parts.signed).map_err(|_detail| damaged)?;
        if behind > 0 {
            return Err("bytes follow the certificate");
        }
        // The outer copy of the algorithm is not signed, so it must repeat the inner (RFC 5280, 4.1.1.2).
        if parts.algorithm != *tbs.signature() {
            return Err("its two signature algorithms differ");
        }
        let foreign = "its key is not an uncompressed P-256 key";
        let (key, point) = p256(tbs.subject_public_key_info()).ok_or(foreign)?;
        Ok(Self { parts, tbs, key, point })
    }

    pub(in super::super) fn key_id(&self) -> KeyId {
        self.key
    }

    pub(in super::super) fn point(&self) -> &[u8; POINT] {
        &self.point
    }

    pub(in super::super) fn validity(&self) -> Validity {
        let dates = self.tbs.validity();
        Validity { not_before: instant(dates.not_before), not_after: instant(dates.not_after) }
    }

    /// The serial number in lower-case hexadecimal.
    pub(in super::super) fn serial(&self) -> String {
        hexadecimal(self.tbs.serial_number().as_bytes())
    }

    pub(in super::super) fn is_authority(&self) -> bool {
        let constraints = self.tbs.get_extension::<BasicConstraints>();
        constraints.is_ok_and(|found| found.is_some_and(|(_, constraints)| constraints.ca))
    }

    /// How many authorities may follow below this one's; `None` for any number.
    pub(in super::super) fn path_length(&self) -> Option<u8> {
        let (_, constraints) = self.tbs.get_extension::<BasicConstraints>().ok()??;
        constraints.path_len_constraint
    }

    pub(in super::super) fn subject(&self) -> &Name {
        self.tbs.subject()
    }

    /// By which certificates name the key that signed them.
    pub(in super::super) fn key_identifier(&self) -> Option<Vec<u8>> {
        let (_, id) = self.tbs.get_extension::<SubjectKeyIdentifier>().ok()??;
        Some(id.0.into_bytes().into())
    }

    pub(in super::super) fn organization(&self) -> Option<&str> {
        self.attributes(ORGANIZATION).next()
    }

    /// What the subject's attributes of one kind say.
    fn attributes(&self, kind: ObjectIdentifier) -> impl Iterator<Item = &str> {
        let of_kind = self.subject().iter().filter(move |part| part.oid == kind);
        of_kind.filter_map(|part| std::str::from_utf8(part.value.value()).ok())
    }

    /// What the certificate lets a node do: the words of its organizational units, and of an edge the patterns in its
    /// description. `None` where it says nothing; the error says why it cannot be read.
    pub(in super::super) fn capabilities(&self) -> Result<Option<Capabilities>, &'static str> {
        let said = |kind| self.attributes(kind).collect::<Vec<_>>().join(" ");
        Capabilities::read(&said(UNIT), &said(DESCRIPTION_ID))
            .map_err(|_detail| "its description has no patterns of an edge")
    }

    /// The cluster that an authority's certificate is of: the one that its URI names, `spiffe://<cluster>`, and without
    /// such a URI the one named like its key.
    pub(in super::super) fn cluster(&self) -> ClusterId {
        let names = self.tbs.get_extension::<SubjectAltName>().ok().flatten();
        let named = names.iter().flat_map(|(_, names)| names.0.iter()).filter_map(uri);
        let mut named = named.filter_map(|uri| KeyId::from_hex(uri.strip_prefix("spiffe://")?));
        named.next().unwrap_or(self.key)
    }

    /// The hosts that the certificate names, those of the cluster's own domain apart.
    pub(in super::super) fn hosts(&self) -> Vec<Host> {
        let names = self.tbs.get_extension::<SubjectAltName>().ok().flatten();
        let host = |name: &GeneralName| {
            if let GeneralName::IpAddress(octets) = name {
                return address(octets.as_bytes()).map(Host::Address);
            }
            dns(name)?.parse().ok()
        };
        names.iter().flat_map(|(_, names)| names.0.iter()).filter_map(host).collect()
    }

    /// True when the key with this public point signed the certificate.
    pub(in super::super) fn is_signed_by(&self, point: &[u8; POINT]) -> bool {
        self.parts.is_signed_by(point)
    }

    /// The node of `cluster` that the certificate names; the error says why it names none.
    pub(in super::super) fn node(&self, cluster: ClusterId) -> Result<NodeName, &'static str> {
        let names = match self.tbs.get_extension::<SubjectAltName>() {
            Ok(Some((_, names))) => names.0,
            Ok(None) => return Err("it has no alternative names"),
            Err(_) => return Err("its alternative names are damaged"),
        };
        let expected = server_name(cluster);
        if !names.iter().filter_map(dns).any(|dns| dns == expected) {
            return Err("it lacks the DNS name of this cluster");
        }
        let mut uris = names.iter().filter_map(uri);
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err("it must have exactly one URI");
        };
        let path = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(cluster.to_string().as_str()))
            .ok_or("its URI is not of this cluster")?;
        NodeName::from_spiffe_path(path).ok_or("its URI names no node")
    }
}

/// From when until when a certificate is valid, in whole seconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first valid second.
    pub not_before: SystemTime,
    /// The last valid second.
    pub not_after: SystemTime,
}

impl Validity {
    /// A node's certificate made at `now`: 90 days, and the hour before.
    pub fn leaf(now: SystemTime) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + 90 * DAY }
    }

    /// An authority's certificate made at `now`: 3,650 days, and the hour before.
    pub fn authority(now: SystemTime) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + 3650 * DAY }
    }
    /// Refuses `now` outside of it, whose both ends are included (RFC 5280, 4.1.2.5).
    pub(in super::super) fn check(self, now: SystemTime) -> Result<(), CertificateFault> {
        if now < self.not_before {
            return Err(CertificateFault::NotYetValid(self.not_before));
        }
        // Dates have whole seconds: a certificate lasts to the end of its last one.
        if now >= self.not_after + Duration::from_secs(1) {
            return Err(CertificateFault::Expired(self.not_after));
        }
        Ok(())
    }
}

/// Who a verified certificate belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node that the certificate names.
    pub name: NodeName,
    /// The id of its key.
    pub id: NodeId,
    /// From when until when the certificate is valid.
    pub validity: Validity,
    /// The certificate's serial number in lower-case hexadecimal.
    pub serial: String,
    /// Likewise that of the intermediate authority that signed it; `None` where a root did.
    pub(in super::super) issuer: Option<String>,
    /// The id of the key of the authority that signed it.
    pub authority: KeyId,
    /// What the node may do.
    pub capabilities: Capabilities,
    pub(in super::super) point: [u8; POINT],
}

impl PeerIdentity {
    /// The key, and since when the certificate counts.
    pub fn credential(&self) -> Credential {
        let since = self.validity.not_before.duration_since(SystemTime::UNIX_EPOCH);
        Credential { key: self.id, since: since.unwrap_or_default().as_secs() }
    }

    /// The serial numbers of which each ends it when it is revoked, in lower-case hexadecimal: its own, and that of the
    /// intermediate authority that signed it, if one did.
    #[must_use]
    pub fn serials(&self) -> Vec<String> {
        [&self.serial].into_iter().chain(&self.issuer).cloned().collect()
    }

    /// True when the certificate was made for the key with this public point.
    pub(in super::super) fn has_key(&self, point: &[u8]) -> bool {
        self.point == *point
    }

    /// True when `signature` is this node's over `message`: ECDSA P-256 with SHA-256, ASN.1, as
    /// [`Identity::sign`](super::super::Identity::sign) makes it. Says nothing about when it was made.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(message, signature)
            .is_ok()
    }
}
