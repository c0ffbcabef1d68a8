//! What the authority revokes.
//!
//! Owns `ca/crl.pem` where the authority's key is, and the order in which it changes. Invariants: it changes only under the
//! directory's lock; each list names all that the one before did, and has a higher number; a list that cannot be read is
//! not replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason as Code, RevokedCertParams,
    SerialNumber,
};

use super::super::IdentityError;
use super::super::disk::{self, Layout};
use super::super::revocation::{Issued, Revocation, RevocationList, RevocationReason, Revoked};
use super::super::tokens::TokenList;
use super::{Authority, next_number};
use crate::io::clock::{self, unix_seconds};
use crate::proto::codec::read_hexadecimal;
use crate::proto::node::{KeyId, NodeName};

/// What is revoked: every certificate of a node, or one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocee {
    /// Of this node all.
    Node(NodeName),
    /// The one with this serial number, in lower-case hexadecimal.
    Serial(String),
}

impl FromStr for Revocee {
    type Err = &'static str;

    /// A name, or a serial number in hexadecimal, with or without colons.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('@') {
            let name = text.parse().map_err(|_detail| "it is no node's name");
            return name.map(Self::Node);
        }
        let digits: String = text.trim().to_ascii_lowercase().replace(':', "");
        let sound = (2..=40).contains(&digits.len())
            && digits.len().is_multiple_of(2)
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let wrong = "it is neither NAME@HOST nor a serial number in hexadecimal";
        sound.then_some(Self::Serial(digits)).ok_or(wrong)
    }
}

impl fmt::Display for Revocee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "{name}"),
            Self::Serial(serial) => write!(f, "the certificate {serial}"),
        }
    }
}

impl Authority {
    /// Adds every certificate that was issued to `name` to the revocation list beside the
    /// authority. What is on the list already stays as it is; without news the file stays too.
    ///
    /// # Errors
    /// [`IdentityError::NeverIssued`] when there is no such certificate;
    /// [`IdentityError::List`] when the list that is there cannot be extended.
    /// Nothing is changed then.
    pub fn revoke(&self, name: &NodeName, now: SystemTime) -> Result<Revoked, IdentityError> {
        self.revoke_for(&Revocee::Node(name.clone()), None, now)
    }

    /// As [`Authority::revoke`], of a node or of one certificate, for a reason that the list names. Of an intermediate authority's
    /// certificate all that it issued is refused from then on, and where the root's key is, it is no longer trusted either.
    ///
    /// # Errors
    /// As [`Authority::revoke`].
    pub fn revoke_for(
        &self,
        what: &Revocee,
        reason: Option<RevocationReason>,
        now: SystemTime,
    ) -> Result<Revoked, IdentityError> {
        let revoked = self.list_revoked(what, reason, now)?;
        if let Revocee::Serial(serial) = what {
            self.drop_intermediate(serial, now)?;
        }
        Ok(revoked)
    }

    fn list_revoked(
        &self,
        what: &Revocee,
        reason: Option<RevocationReason>,
        now: SystemTime,
    ) -> Result<Revoked, IdentityError> {
        let layout = Layout::new(&self.home);
        let _lock = layout.lock()?;
        self.verifier.load_revocations(layout)?;
        let issued = match what {
            Revocee::Node(name) => self.issued(layout, name)?,
            Revocee::Serial(serial) => {
                let mut all = Issued::all(layout)?;
                all.retain(|issued| issued.serial == *serial);
                all
            }
        };
        let mut serials: BTreeSet<String> =
            issued.into_iter().map(|issued| issued.serial).collect();
        if let Revocee::Serial(serial) = what {
            serials.extend(self.intermediate(serial).map(|it| it.serial));
        }
        if serials.is_empty() {
            let list = layout.of_authority(disk::ISSUED);
            return Err(IdentityError::NeverIssued { what: what.to_string(), list });
        }
        self.list_serials(layout, serials, reason, now)
    }

    /// Revokes what was issued to a name with other keys than this one, for a caller that holds the lock: from then on that
    /// key is the name's.
    pub(super) fn revoke_other_keys(
        &self,
        layout: Layout<'_>,
        name: &NodeName,
        key: KeyId,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let others = self.other_keys(layout, name, key)?;
        if !others.is_empty() {
            let serials = others.into_iter().map(|issued| issued.serial).collect();
            self.list_serials(Layout::new(&self.home), serials, None, now)?;
        }
        Ok(())
    }

    /// What counts of a name with other keys than this one.
    pub(super) fn other_keys(
        &self,
        layout: Layout<'_>,
        name: &NodeName,
        key: KeyId,
    ) -> Result<Vec<Issued>, IdentityError> {
        self.verifier.load_revocations(Layout::new(&self.home))?;
        let (key, now) = (key.to_string(), unix_seconds(clock::wall()));
        let counts = |one: &Issued| {
            let ended = one.dates.is_some_and(|dates| dates.until < now);
            one.key != key && !ended && !self.verifier.is_revoked(&one.serial)
        };
        let mut others = self.issued(layout, name)?;
        others.retain(counts);
        Ok(others)
    }

    /// Adds serial numbers to the revocation list that is in force, for a caller that holds the lock.
    fn list_serials(
        &self,
        layout: Layout<'_>,
        serials: BTreeSet<String>,
        reason: Option<RevocationReason>,
        now: SystemTime,
    ) -> Result<Revoked, IdentityError> {
        let list = self.verifier.list();
        let new = serials.into_iter().filter(|serial| !list.entries.contains_key(serial));
        let added: Vec<String> = new.collect();
        let path = layout.of_authority(disk::REVOCATIONS);
        let mut list = RevocationList::clone(&list);
        if !added.is_empty() {
            let revocation = Revocation { at: now, reason };
            list.entries.extend(added.iter().map(|serial| (serial.clone(), revocation)));
            list.number = next_number(list.number, now);
            self.write_revocations(layout, &list, now)?;
        }
        let total = list.entries.len();
        self.verifier.replace_list(list);
        Ok(Revoked { added, total, path })
    }

    /// Makes a list of all that this one and the one beside the authority name, after both.
    pub(in super::super) fn merge_revocations(
        &self,
        known: &RevocationList,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let layout = Layout::new(&self.home);
        let _lock = layout.lock()?;
        let own = RevocationList::read(layout, &self.verifier.trusted().bundle)?;
        let own = own.unwrap_or_default();
        let has = |serial: &String| own.entries.contains_key(serial);
        if own.number > known.number && known.entries.keys().all(has) {
            return Ok(()); // another process has made it
        }
        let number = next_number(own.number.max(known.number), now);
        let mut entries: BTreeMap<_, _> = known.entries.clone();
        entries.extend(own.entries);
        self.write_revocations(layout, &RevocationList { number, entries }, now)
    }

    /// Likewise of tokens. The keys are those of the later one.
    pub(in super::super) fn merge_tokens(
        &self,
        known: &TokenList,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let layout = Layout::new(&self.home);
        let _lock = layout.lock()?;
        let own = self.token_list(layout)?.unwrap_or_else(|| known.clone());
        let (seconds, later) = (unix_seconds(now), own.number > known.number);
        let all = if later {
            own.clone().with(known, seconds)
        } else {
            known.clone().with(&own, seconds)
        };
        if later && all.judges_as(&own) {
            return Ok(());
        }
        let number = next_number(all.number, now);
        self.write_tokens(layout, &all.after(number, seconds))
    }

    fn write_revocations(
        &self,
        layout: Layout<'_>,
        list: &RevocationList,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let path = layout.of_authority(disk::REVOCATIONS);
        disk::write(&path, self.signed(list, now)?.as_bytes(), disk::PUBLIC)
    }

    /// A revocation list as PEM.
    pub(super) fn signed(
        &self,
        list: &RevocationList,
        now: SystemTime,
    ) -> Result<String, IdentityError> {
        let revoked = |(serial, revocation): (&String, &Revocation)| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&read_hexadecimal(serial)?),
                revocation_time: clock::utc(revocation.at),
                reason_code: revocation.reason.map(code),
                invalidity_date: None,
            })
        };
        let failed = || IdentityError::Crypto("make a revocation list");
        let revoked_certs = list.entries.iter().map(revoked).collect::<Option<_>>();
        let list = CertificateRevocationListParams {
            this_update: clock::utc(now),
            next_update: clock::utc(self.root.validity.not_after),
            crl_number: SerialNumber::from(list.number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.ok_or_else(failed)?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).and_then(|list| list.pem());
        pem.map_err(|_detail| failed())
    }
}

fn code(reason: RevocationReason) -> Code {
    match reason {
        RevocationReason::KeyCompromise => Code::KeyCompromise,
        RevocationReason::AffiliationChanged => Code::AffiliationChanged,
        RevocationReason::Superseded => Code::Superseded,
        RevocationReason::CessationOfOperation => Code::CessationOfOperation,
        RevocationReason::PrivilegeWithdrawn => Code::PrivilegeWithdrawn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_or_a_serial_number_is_named() {
        let node = Revocee::Node("a@h".parse().unwrap());
        assert_eq!("a@h".parse(), Ok(node));
        assert_eq!("4F:0a".parse(), Ok(Revocee::Serial("4f0a".to_owned())));
        for bad in ["", "a", "a@", "4f0", "0x4f", "zz", &"0a".repeat(21)] {
            assert!(bad.parse::<Revocee>().is_err(), "{bad:?}");
        }
    }
}
