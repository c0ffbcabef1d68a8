//! The list of whom the cluster trusts, as it lies in `ca/trust` and travels between nodes.
//!
//! Lines of text, each ended by a line break:
//!
//! ```text
//! xpando trust 1 <the cluster's id>
//! number <grows with each list>
//! authority <an authority's certificate, DER in hexadecimal>
//! dropped <SHA-256 of a certificate that is trusted no more, in hexadecimal>
//! renew <second since 1970: certificates made before are to be renewed now>
//! rotation <second since 1970 when it began> <the id of the key that shall be the only one> <who began it>
//! signature <in hexadecimal>
//! ```
//!
//! with one to eight of `authority`, the issuing root first and intermediates last, any number of `dropped`, `rotation` only while one is under way,
//! and one to eight of `signature`: each ECDSA P-256 with SHA-256 over all bytes before the first of them. There is no list
//! before the first change of trust.
//!
//! Invariants: a list counts only with the signature of a root authority that is trusted already, so that trust is handed on and
//! never begun by it; a list that hands it from one authority to the next has the signatures of both, so that a node that
//! missed the one in between takes it too; a running node never goes back to an older one.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::disk::{self, Fix, Layout};
use super::key::Key;
use super::pki::{BACKDATE, Bundle, CertificateFault, MAX_ROOTS, Signed};
use super::{Identity, IdentityError, Remedy};
use crate::io::clock::unix_seconds;
use crate::proto::codec::{hexadecimal, read_hexadecimal};
use crate::proto::lists::ListKind;
use crate::proto::node::{ClusterId, KeyId, NodeName};

/// Most certificates that a list remembers to be dropped.
pub(super) const MAX_DROPPED: usize = 64;

/// A change of the authority that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// When it began, in whole seconds.
    pub began: SystemTime,
    /// The key of the authority that shall be the only one.
    pub target: KeyId,
    /// Who began it.
    pub by: String,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationStep {
    /// Nodes come to trust the new authority.
    Introduced,
    /// Nodes have their certificates renewed by it.
    Moving,
}

/// Whom the cluster trusts, and what its nodes are to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TrustList {
    pub(super) number: u64,
    /// The issuing one first.
    pub(super) bundle: Bundle,
    pub(super) dropped: BTreeSet<[u8; 32]>,
    /// Certificates of nodes that were made before are to be renewed now.
    pub(super) renew: SystemTime,
    pub(super) rotation: Option<Rotation>,
}

impl TrustList {
    /// The list that says what has counted without one.
    pub(super) fn first(bundle: Bundle) -> Self {
        Self { number: 0, bundle, dropped: BTreeSet::new(), renew: UNIX_EPOCH, rotation: None }
    }

    /// The rotation that is under way, and how far it is.
    pub(super) fn rotation(&self) -> Option<(Rotation, RotationStep)> {
        let rotation = self.rotation.clone()?;
        let moving = self.bundle.first().is_some_and(|root| root.key == rotation.target);
        Some((rotation, if moving { RotationStep::Moving } else { RotationStep::Introduced }))
    }

    /// The list as text, with the signatures of these keys.
    pub(super) fn signed(&self, keys: &[&Key]) -> Result<String, IdentityError> {
        let mut text = format!("{}number {}\n", title(self.bundle.cluster()), self.number);
        let mut line = |word: &str, value: String| {
            // Writing to memory does not fail.
            writeln!(text, "{word} {value}").unwrap_or(());
        };
        self.bundle.roots().iter().for_each(|root| line("authority", hexadecimal(&root.der)));
        self.dropped.iter().for_each(|digest| line("dropped", hexadecimal(digest)));
        line("renew", unix_seconds(self.renew).to_string());
        if let Some(Rotation { began, target, by }) = &self.rotation {
            line("rotation", format!("{} {target} {by}", unix_seconds(*began)));
        }
        let signatures = keys.iter().map(|key| key.signature(text.as_bytes()));
        for signature in signatures.collect::<Result<Vec<_>, _>>()? {
            writeln!(text, "signature {}", hexadecimal(&signature)).unwrap_or(());
        }
        Ok(text)
    }

    /// Reads a list that one of these authorities signed; the error says in which way it is not one.
    pub(super) fn parse(text: &[u8], trusted: &Bundle) -> Result<Signed<Self>, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_binary| "it is not a text")?;
        let end = text.find("\nsignature ").ok_or("it does not end with a signature")?;
        let (body, signatures) = text.split_at(end + 1);
        let signatures = signatures.strip_suffix('\n').ok_or("it is not a whole list")?;
        let signatures: Vec<Vec<u8>> = signatures
            .split('\n')
            .take(MAX_ROOTS + 1)
            .map(|line| read_hexadecimal(line.strip_prefix("signature ")?))
            .collect::<Option<_>>()
            .ok_or("a line behind the signature is none")?;
        if signatures.len() > MAX_ROOTS {
            return Err("it has more than eight signatures");
        }
        let by_root = |signature: &Vec<u8>| {
            let signer = trusted.signer_of(body.as_bytes(), signature);
            signer.is_some_and(|it| it.parent.is_none())
        };
        if !signatures.iter().any(by_root) {
            return Err("no root authority that this cluster trusts has signed it");
        }
        let list = Self::read_body(body, trusted.cluster())?;
        let number = list.number;
        Ok(Signed::by_root((list, number), body.as_bytes(), text.as_bytes().to_vec()))
    }

    fn read_body(body: &str, cluster: ClusterId) -> Result<Self, &'static str> {
        let lines = body.strip_prefix(&title(cluster)).map(str::lines);
        let mut lines = lines.ok_or("it is not a list of trust of this cluster")?;
        let number = lines.next().and_then(|line| line.strip_prefix("number ")?.parse().ok());
        let number = number.ok_or("it has no number")?;
        let (mut authorities, mut dropped) = (Vec::new(), BTreeSet::new());
        let (mut renew, mut rotation) = (UNIX_EPOCH, None);
        for line in lines {
            let (word, value) = line.split_once(' ').ok_or("a line has no value")?;
            match word {
                "authority" => authorities.push(CertificateDer::from(
                    read_hexadecimal(value).ok_or("an authority is no certificate")?,
                )),
                "dropped" => {
                    let digest = read_hexadecimal(value).and_then(|bytes| bytes.try_into().ok());
                    dropped.insert(digest.ok_or("it drops nothing")?);
                }
                "renew" => renew = instant(value).ok_or("it renews at no time")?,
                "rotation" => rotation = Some(read_rotation(value).ok_or("its rotation is none")?),
                // Of a later version, which an authority of ours has signed.
                _ => {}
            }
        }
        let bundle = Bundle::of(authorities)?;
        if bundle.cluster() != cluster {
            return Err("its authorities are of another cluster");
        }
        if dropped.len() > MAX_DROPPED {
            return Err("it drops too many certificates");
        }
        Ok(Self { number, bundle, dropped, renew, rotation })
    }

    /// The authorities that a list says to trust, whoever signed it: for a host that trusts nobody yet.
    pub(super) fn roots(text: &[u8]) -> Result<Bundle, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_binary| "it is not a text")?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("authority "));
        let lines = lines.take(MAX_ROOTS + 1);
        Bundle::of(lines.filter_map(read_hexadecimal).map(CertificateDer::from).collect())
    }

    /// The list in a certificate directory, whose authorities are `trusted`; `None` when there is none.
    pub(super) fn read(
        layout: Layout<'_>,
        trusted: &Bundle,
    ) -> Result<Option<Self>, IdentityError> {
        let path = layout.of_authority(disk::TRUST);
        let Some(text) = disk::read_list(&path)? else { return Ok(None) };
        let damaged = |reason| IdentityError::unusable(ListKind::Trust, path, reason);
        Self::parse(&text, trusted).map(|signed| Some(signed.list)).map_err(damaged)
    }

    /// What is in force where this list is, beside these authorities.
    pub(super) fn in_force(self, file: &Bundle) -> Result<Trusted, &'static str> {
        Ok(Trusted { bundle: self.beside(file)?, list: self })
    }

    /// Whom a node trusts that has this list and these authorities in its file: those of the list, and of the others those
    /// that it has not dropped, for an operator may have put one there by hand.
    fn beside(&self, file: &Bundle) -> Result<Bundle, &'static str> {
        let kept = file.roots().iter().map(|root| root.der.clone());
        let kept = kept.filter(|der| !self.dropped.contains(&digest(der)));
        let listed = self.bundle.roots().iter().map(|root| root.der.clone());
        Bundle::of(listed.chain(kept).collect())
    }
}

/// Whom a node trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trusted {
    /// The authorities in force.
    pub(super) bundle: Bundle,
    /// The list that they come from; where there is none, what that would say.
    pub(super) list: TrustList,
}

impl Trusted {
    /// Exactly these authorities, without a list.
    pub(super) fn of(bundle: Bundle) -> Self {
        Self { list: TrustList::first(bundle.clone()), bundle }
    }

    /// As a node's files say: ca/cert.pem, and ca/trust where there is one. `missing` says what to do when there is no
    /// ca/cert.pem.
    pub(super) fn read(layout: Layout<'_>, missing: Remedy) -> Result<Self, IdentityError> {
        let file = Bundle::read(layout, missing)?;
        let Some(list) = TrustList::read(layout, &file)? else { return Ok(Self::of(file)) };
        let damaged = |reason| {
            IdentityError::unusable(ListKind::Trust, layout.of_authority(disk::TRUST), reason)
        };
        list.in_force(&file).map_err(damaged)
    }
}

impl Bundle {
    fn read(layout: Layout<'_>, missing: Remedy) -> Result<Self, IdentityError> {
        [layout.certs(), &layout.authority()].into_iter().try_for_each(disk::check_directory)?;
        let path = layout.of_authority(disk::CERTIFICATE);
        let fix = Fix { missing, damaged: Remedy::CopyAuthority };
        let pem = disk::read_certificates(&path, fix)?;
        Self::of_pem(&pem).map_err(|reason| {
            let (fault, remedy) = (CertificateFault::Damaged(reason), Remedy::CopyAuthority);
            IdentityError::Certificate { path, fault, remedy }
        })
    }
}

impl Identity {
    /// The identity of `name` whose certificate has ended, which may ask for another one and nothing else; `None` when its
    /// certificate has not ended.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn load_ended(
        certs: &Path,
        name: &NodeName,
        now: SystemTime,
    ) -> Result<Option<Self>, IdentityError> {
        let identity = Self::read(certs, name)?;
        let ended = identity.validity().not_after < now;
        Ok(ended.then_some(identity))
    }

    /// The number of the trust list that this node follows; 0 while there has been none.
    pub fn trust_list(&self) -> u64 {
        self.verifier.trusted().list.number
    }

    /// The rotation of the cluster's authority that is under way, and how far it is.
    pub fn rotation(&self) -> Option<(Rotation, RotationStep)> {
        self.verifier.trusted().list.rotation()
    }

    /// The id of the key of the root authority that signed this node's certificate, itself or through an intermediate.
    pub fn authority(&self) -> KeyId {
        self.leaf.load().root.top()
    }

    /// True when the cluster wants this node's certificate replaced: another authority issues than the one that signed it,
    /// or all that were made before a time are to be renewed.
    pub fn is_outdated(&self) -> bool {
        let (leaf, trusted) = (self.leaf.load(), self.verifier.trusted());
        let made = leaf.peer.validity.not_before + BACKDATE;
        let issuing = trusted.list.bundle.first().map(|root| root.key);
        made < trusted.list.renew || issuing != Some(leaf.root.top())
    }
}

/// By which a list names a certificate that it dropped.
pub(super) fn digest(der: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(der).into()
}

fn read_rotation(value: &str) -> Option<Rotation> {
    let mut words = value.splitn(3, ' ');
    let (began, target, by) = (words.next()?, words.next()?, words.next()?);
    Some(Rotation { began: instant(began)?, target: KeyId::from_hex(target)?, by: by.to_owned() })
}

/// The first line: what is signed, and for which cluster.
fn title(cluster: ClusterId) -> String {
    format!("xpando trust 1 {cluster}\n")
}

fn instant(value: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(value.parse().ok()?))
}
