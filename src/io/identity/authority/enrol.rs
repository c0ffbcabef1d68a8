//! What the authority makes for the keys of others, and to whom a name belongs.

use std::time::{Duration, SystemTime};

use rcgen::{PublicKeyData, SerialNumber};
use rustls::pki_types::CertificateDer;

use super::{Authority, refused};
use crate::io::clock::unix_seconds;
use crate::io::identity::disk::Layout;
use crate::io::identity::enrol::CsrKey;
use crate::io::identity::pki::Validity;
use crate::io::identity::revocation::{Dates, Issued, Revoked};
use crate::io::identity::{CertificateVerifier, IdentityError};
use crate::proto::capability::Capabilities;
use crate::proto::codec::hexadecimal;
use crate::proto::enrol::{Host, MAX_HOSTS, Refused};
use crate::proto::node::{KeyId, NodeName};

/// Most certificates for one key within an hour.
const MAX_HOURLY: usize = 12;
const HOUR: u64 = 60 * 60;

/// Bytes of a name and of the hosts and patterns in its certificate, which travels in a beacon, in one packet.
const MAX_NAMED: usize = 280;
/// Bytes around the patterns of an edge (RFC 5280, 4.1.2.4).
const AROUND: usize = 13;

/// The hosts in the certificate of `name`: its host part, then these, each once. A host part that hosts do not have
/// (`x.xpando.internal`) is left out, and what there is no room for beside the patterns of an edge.
pub(super) fn named(name: &NodeName, hosts: &[Host], capabilities: &Capabilities) -> Vec<Host> {
    let mut named: Vec<Host> = Vec::new();
    let mut room = room(name, capabilities);
    for host in name.host().parse().ok().into_iter().chain(hosts.iter().cloned()) {
        // With its tag and length (RFC 5280, 4.2.1.6).
        let size = 2 + match &host {
            Host::Name(name) => name.len(),
            Host::Address(_) => 16,
        };
        if named.len() < MAX_HOSTS && size <= room && !named.contains(&host) {
            room -= size;
            named.push(host);
        }
    }
    named
}

/// What is left for hosts.
fn room(name: &NodeName, capabilities: &Capabilities) -> usize {
    let patterns = capabilities.patterns();
    let taken = if patterns.is_empty() { 0 } else { AROUND + patterns.len() };
    MAX_NAMED.saturating_sub(name.as_str().len() + taken)
}

impl Authority {
    /// Whether a certificate has room for this name beside the patterns of an edge.
    pub(in super::super) fn fits(name: &NodeName, capabilities: &Capabilities) -> bool {
        capabilities.patterns().is_empty() || room(name, capabilities) > 0
    }

    /// What judges by this authority.
    pub(in super::super) fn judge(&self) -> &CertificateVerifier {
        &self.verifier
    }

    /// The certificates of the cluster's authorities (DER), this one first.
    pub(in super::super) fn authorities(&self) -> Vec<Vec<u8>> {
        let trusted = self.verifier.trusted();
        let others = trusted.bundle.roots().iter().filter(|root| root.key != self.root.key);
        std::iter::once(&self.root).chain(others).map(|root| root.der.to_vec()).collect()
    }

    /// Likewise, the root that issues first.
    pub(in super::super) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        self.verifier.trusted().bundle.roots().iter().map(|root| root.der.clone()).collect()
    }

    /// Makes a certificate of `name` for a key and writes it down in `ca/issued`, for a caller that holds the lock.
    pub(super) fn certify(
        &self,
        name: &NodeName,
        key: &impl PublicKeyData,
        (hosts, capabilities): (&[Host], &Capabilities),
        validity: Validity,
        now: SystemTime,
    ) -> Result<rcgen::Certificate, IdentityError> {
        let params = self.leaf(name, (hosts, capabilities), validity)?;
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let dates = Dates {
            until: params.not_after.unix_timestamp().try_into().unwrap_or_default(),
            made: unix_seconds(now),
        };
        let issued = Issued {
            serial: hexadecimal(&serial),
            key: KeyId::of_public_key(&key.subject_public_key_info()).to_string(),
            name: name.clone(),
            dates: Some(dates),
        };
        let made = params.signed_by(key, &self.issuer).map_err(refused)?;
        issued.record(Layout::new(&self.home))?;
        Ok(made)
    }

    /// Makes a certificate that somebody asked for, for a caller that holds the lock and has judged the request; the
    /// certificate and its last second.
    pub(in super::super) fn grant(
        &self,
        name: &NodeName,
        key: &CsrKey,
        (hosts, capabilities): (&[Host], &Capabilities),
        life: Duration,
        now: SystemTime,
    ) -> Result<(CertificateDer<'static>, SystemTime), IdentityError> {
        self.root.validity.check(now).map_err(Layout::new(&self.home).authority_error())?;
        let validity = Validity { not_after: now + life, ..Validity::leaf(now) };
        let made = self.certify(name, key, (hosts, capabilities), validity, now)?;
        let until = validity.not_after.min(self.root.validity.not_after);
        Ok((made.der().clone(), until))
    }

    /// Whether this key may have this name: the name has no other key, and the key no other name, whose certificate counts
    /// or ended less than `grace` ago; and no certificate of the key was revoked. For a caller that holds the lock.
    pub(in super::super) fn may_have(
        &self,
        name: &NodeName,
        key: KeyId,
        grace: Duration,
        now: SystemTime,
    ) -> Result<Result<(), Refused>, IdentityError> {
        if NodeName::from_spiffe_path(&name.spiffe_path()).as_ref() != Some(name) {
            return Ok(Err(Refused::UnusableName));
        }
        if name.host().parse::<Host>().is_err() {
            return Ok(Err(Refused::UnusableName));
        }
        let home = Layout::new(&self.home);
        self.verifier.load_revocations(home)?;
        let verifier = &self.verifier;
        let now = unix_seconds(now);
        let counts = |one: &&Issued| {
            let ended = one.dates.is_some_and(|it| it.until.saturating_add(grace.as_secs()) < now);
            !ended && !verifier.is_revoked(&one.serial)
        };
        let (text, all) = (key.to_string(), Issued::all(home)?);
        let of_key: Vec<&Issued> = all.iter().filter(|one| one.key == text).collect();
        if of_key.iter().any(|one| verifier.is_revoked(&one.serial)) {
            return Ok(Err(Refused::Revoked));
        }
        if let Some(other) = of_key.iter().find(|one| one.name != *name && counts(one)) {
            return Ok(Err(Refused::KeyTaken { name: other.name.clone() }));
        }
        let of_name = self.issued(home, name)?;
        let holders: Vec<&Issued> = of_name.iter().filter(counts).collect();
        let holder = holders.last().and_then(|one| KeyId::from_hex(&one.key));
        if let Some(holder) = holder.filter(|_| !holders.iter().any(|one| one.key == text)) {
            return Ok(Err(Refused::NameTaken { holder, requested: key }));
        }
        let made = of_key.iter().filter_map(|one| one.dates).map(|dates| dates.made);
        let mut recent: Vec<u64> = made.filter(|made| made.saturating_add(HOUR) > now).collect();
        recent.sort_unstable();
        if let Some(first) = recent.len().checked_sub(MAX_HOURLY).and_then(|at| recent.get(at)) {
            let after = first.saturating_add(HOUR).saturating_sub(now).saturating_mul(1000);
            return Ok(Err(Refused::RateLimited { after }));
        }
        Ok(Ok(()))
    }

    /// Frees a name: revokes what was issued to it, so that another key may have it.
    ///
    /// # Errors
    /// As [`Authority::revoke`].
    pub fn release(&self, name: &NodeName, now: SystemTime) -> Result<Revoked, IdentityError> {
        self.revoke(name, now)
    }
}
