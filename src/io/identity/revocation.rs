//! Which certificates the authority has revoked.
//!
//! Owns `ca/crl.pem`, a revocation list (RFC 5280, 5) that the authority signed, and `ca/issued`, in
//! which the authority writes down every certificate it makes. Invariants: a list counts only with
//! the authority's own signature, and whole; a running node never goes back to an older list, nor to
//! none; a key whose certificate was revoked is never certified again.
//!
//! `nextUpdate` of a list is not enforced: a list that nobody renewed must not end every link of the cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::crl::{RevokedCert, TbsCertList};
use x509_cert::der::Decode as _;
use x509_cert::der::oid::AssociatedOid as _;
use x509_cert::ext::pkix::{CrlNumber, CrlReason};

use super::IdentityError;
use super::disk::{self, Layout};
use super::pki::{Bundle, Parts, Signed, instant};
use crate::io::clock;
use crate::proto::codec::{hexadecimal, read_hexadecimal};
use crate::proto::lists::ListKind;
use crate::proto::node::NodeName;

/// Why a certificate was revoked, as far as a revocation list says it (RFC 5280, 5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationReason {
    /// Somebody else may have the key.
    KeyCompromise,
    /// The node belongs to somebody else.
    AffiliationChanged,
    /// Another certificate took its place.
    Superseded,
    /// The node is needed no more.
    CessationOfOperation,
    /// What it was for, the node may do no more.
    PrivilegeWithdrawn,
}

impl RevocationReason {
    /// Each with its word.
    const TABLE: [(Self, &str); 5] = [
        (Self::KeyCompromise, "key-compromise"),
        (Self::AffiliationChanged, "affiliation-changed"),
        (Self::Superseded, "superseded"),
        (Self::CessationOfOperation, "cessation-of-operation"),
        (Self::PrivilegeWithdrawn, "privilege-withdrawn"),
    ];

    /// The reason of which this is the word, with blanks or hyphens in it.
    pub fn of(text: &str) -> Option<Self> {
        let word = text.trim().to_ascii_lowercase().replace([' ', '_'], "-");
        Self::TABLE.iter().find(|(_, known)| *known == word).map(|(reason, _)| *reason)
    }

    fn of_code(code: CrlReason) -> Option<Self> {
        match code {
            CrlReason::KeyCompromise => Some(Self::KeyCompromise),
            CrlReason::AffiliationChanged => Some(Self::AffiliationChanged),
            CrlReason::Superseded => Some(Self::Superseded),
            CrlReason::CessationOfOperation => Some(Self::CessationOfOperation),
            CrlReason::PrivilegeWithdrawn => Some(Self::PrivilegeWithdrawn),
            CrlReason::Unspecified
            | CrlReason::CaCompromise
            | CrlReason::CertificateHold
            | CrlReason::RemoveFromCRL
            | CrlReason::AaCompromise => None,
        }
    }
}

/// When a certificate was revoked, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Revocation {
    pub(super) at: SystemTime,
    pub(super) reason: Option<RevocationReason>,
}

/// The serial numbers that the authority has revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RevocationList {
    /// Grows with each list of one authority.
    pub(super) number: u64,
    /// By serial number in lower-case hexadecimal.
    pub(super) entries: BTreeMap<String, Revocation>,
}

impl RevocationList {
    /// Reads a list that the key with this public point signed; the error says in which way it is
    /// not one.
    pub(super) fn parse(
        pem: &[u8],
        bundle: &Bundle,
        now: SystemTime,
    ) -> Result<Signed<Self>, &'static str> {
        let der = CertificateRevocationListDer::from_pem_slice(pem)
            .map_err(|_not_pem| "it holds no PEM revocation list")?;
        let damaged = "it is not an X.509 revocation list";
        let (parts, behind) = Parts::cut(&der).ok_or(damaged)?;
        if behind > 0 {
            return Err("bytes follow the list");
        }
        // Before what is signed is read: a list of others costs no more than its bytes.
        let signer = bundle.signer(|point| parts.is_signed_by(point));
        let signer = signer.ok_or("this cluster's authority has not signed it")?;
        let list: TbsCertList = TbsCertList::from_der(parts.signed).map_err(|_detail| damaged)?;
        // As in a certificate: the outer copy of the algorithm is not signed.
        if parts.algorithm != list.signature {
            return Err("its two signature algorithms differ");
        }
        let mut extensions = list.crl_extensions.iter().flatten();
        let number = extensions.find(|one| one.extn_id == CrlNumber::OID);
        let number = number.and_then(|one| u64::from_der(one.extn_value.as_bytes()).ok());
        let number = number.ok_or("it has no number")?;
        let entry = |revoked: &RevokedCert| {
            let extensions = revoked.crl_entry_extensions.iter().flatten();
            let mut codes = extensions.filter(|one| one.extn_id == CrlReason::OID);
            let code =
                codes.next().and_then(|one| CrlReason::from_der(one.extn_value.as_bytes()).ok());
            let reason = code.and_then(RevocationReason::of_code);
            let at = instant(revoked.revocation_date);
            (hexadecimal(revoked.serial_number.as_bytes()), Revocation { at, reason })
        };
        let entries = list.revoked_certificates.iter().flatten().map(entry).collect();
        Signed::new((Self { number, entries }, number), (parts.signed, signer), to_pem(&der), now)
    }

    /// The list in `certs`; `None` when there is none, because nothing was ever revoked.
    pub(super) fn read(layout: Layout<'_>, bundle: &Bundle) -> Result<Option<Self>, IdentityError> {
        let path = layout.of_authority(disk::REVOCATIONS);
        let Some(pem) = disk::read_list(&path)? else { return Ok(None) };
        let damaged = |reason| IdentityError::unusable(ListKind::Revocations, path, reason);
        Self::parse(&pem, bundle, clock::wall()).map(|signed| Some(signed.list)).map_err(damaged)
    }
}

/// A revocation list as the one text that there is of its DER (RFC 7468).
fn to_pem(der: &[u8]) -> Vec<u8> {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("X509 CRL", der), lines).into_bytes()
}

/// One line of `ca/issued`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issued {
    /// The certificate's serial number in lower-case hexadecimal.
    pub(super) serial: String,
    /// The id of the key it was made for.
    pub(super) key: String,
    /// Whose it is.
    pub(super) name: NodeName,
    /// Its last valid second, and when it was made, in seconds since 1970; `None` in lines of earlier versions.
    pub(super) dates: Option<Dates>,
}

/// When a certificate ends, and when it was made, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dates {
    pub(super) until: u64,
    pub(super) made: u64,
}

impl Issued {
    /// Writes it down beside the authority. This comes before the certificate itself: one that was
    /// never used does no harm in the record, one that is missing there could not be revoked.
    pub(super) fn record(&self, home: Layout<'_>) -> Result<(), IdentityError> {
        let Self { serial, key, name, dates } = self;
        let dates = dates.map_or(String::new(), |it| format!(" {} {}", it.until, it.made));
        // The line break before it keeps a line that a crash tore apart from this one.
        disk::append(
            &home.of_authority(disk::ISSUED),
            format!("\n{serial} {key} {name}{dates}\n").as_bytes(),
        )
    }

    /// Every certificate that the authority has written down.
    pub(super) fn all(home: Layout<'_>) -> Result<Vec<Self>, IdentityError> {
        let bytes = disk::read_list(&home.of_authority(disk::ISSUED))?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).lines().filter_map(Self::parse).collect())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (serial, key, name) = (words.next()?, words.next()?, words.next()?);
        read_hexadecimal(serial)?;
        let (until, made) = (words.next(), words.next());
        let dates = || Some(Dates { until: until?.parse().ok()?, made: made?.parse().ok()? });
        let (serial, key) = (serial.to_owned(), key.to_owned());
        Some(Self { serial, key, name: name.parse().ok()?, dates: dates() })
    }
}

/// What [`Authority::revoke`](super::Authority::revoke) has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The serial numbers that were not on the list before, in lower-case hexadecimal.
    pub added: Vec<String>,
    /// How many certificates the list names now.
    pub total: usize,
    /// The list's file.
    pub path: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::io::clock::wall;
    use crate::io::identity::CertificateFault;
    use crate::io::identity::Remedy;
    use crate::io::identity::{Authority, Identity, LeafOptions, Validity};

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    /// An authority that has issued a certificate to `a@h` and to `b@h`.
    fn cluster() -> (tempfile::TempDir, Authority, Identity, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), wall()).unwrap();
        let [a, b] = ["a@h", "b@h"]
            .map(|node| authority.issue(dir.path(), &name(node), Validity::leaf(wall())).unwrap());
        (dir, authority, a, b)
    }

    fn crl(certs: &Path) -> PathBuf {
        certs.join("ca/crl.pem")
    }

    fn verdict(of: &Identity, by: &Identity) -> Result<NodeName, CertificateFault> {
        by.verifier().peer(&of.certificate(), wall()).map(|peer| peer.name)
    }

    #[test]
    fn a_revoked_node_is_refused_and_nobody_else() {
        let (dir, authority, _, b) = cluster();
        assert!(!crl(dir.path()).exists(), "nothing was revoked yet");
        let revoked = authority.revoke(&name("b@h"), wall()).unwrap();
        assert_eq!((revoked.added.len(), revoked.total), (1, 1));
        assert_eq!(revoked.path, crl(dir.path()));
        let a = Identity::load(dir.path(), &name("a@h"), wall()).unwrap();
        let error = verdict(&b, &a).unwrap_err();
        let CertificateFault::Revoked(whose) = &error else { panic!("{error}") };
        assert_eq!(whose, &name("b@h"));
        assert_eq!(verdict(&a, &a).unwrap(), name("a@h"));
        let error = Identity::load(dir.path(), &name("b@h"), wall()).unwrap_err();
        assert!(error.to_string().contains("b@h/cert.pem of b@h is revoked"), "{error}");
        assert_eq!(error.remedy(), Remedy::Issue(name("b@h")));
    }

    #[test]
    fn a_second_revocation_changes_nothing() {
        let (dir, authority, ..) = cluster();
        authority.revoke(&name("b@h"), wall()).unwrap();
        let list = fs::read(crl(dir.path())).unwrap();
        let again = Authority::open(dir.path()).unwrap().revoke(&name("b@h"), wall()).unwrap();
        assert_eq!((again.added, again.total), (vec![], 1));
        assert_eq!(fs::read(crl(dir.path())).unwrap(), list);
        let both = authority.revoke(&name("a@h"), wall()).unwrap();
        assert_eq!((both.added.len(), both.total), (1, 2), "the list grows");
    }

    #[test]
    fn who_never_had_a_certificate_cannot_be_revoked() {
        let (dir, authority, ..) = cluster();
        let error = authority.revoke(&name("c@h"), wall()).unwrap_err();
        assert!(error.to_string().contains("c@h was never issued a certificate"), "{error}");
        assert_eq!(error.remedy(), Remedy::Show);
        assert!(!crl(dir.path()).exists());
    }

    #[test]
    fn every_certificate_of_the_name_is_revoked_wherever_it_lies() {
        let (dir, authority, ..) = cluster();
        let apart = tempfile::tempdir().unwrap();
        let valid = Validity::leaf(wall());
        let elsewhere = authority.issue(apart.path(), &name("b@h"), valid).unwrap();
        let replaced =
            authority.reissue(dir.path(), &name("b@h"), valid, LeafOptions::default()).unwrap();
        // To replace it has revoked the one of another key.
        assert_eq!(authority.revoke(&name("b@h"), wall()).unwrap().added.len(), 2);
        let a = Identity::load(dir.path(), &name("a@h"), wall()).unwrap();
        for revoked in [&elsewhere, &replaced] {
            assert!(matches!(verdict(revoked, &a), Err(CertificateFault::Revoked(_))));
        }
    }

    #[test]
    fn a_certificate_from_before_the_record_is_revoked_too() {
        let (dir, authority, _, b) = cluster();
        fs::write(dir.path().join("ca/issued"), "\n3f").unwrap(); // a torn line, and nothing else
        authority.revoke(&name("b@h"), wall()).unwrap();
        let a = Identity::load(dir.path(), &name("a@h"), wall()).unwrap();
        assert!(matches!(verdict(&b, &a), Err(CertificateFault::Revoked(_))));
    }

    #[test]
    fn a_fresh_certificate_is_accepted_and_has_a_new_key() {
        let (dir, authority, _, b) = cluster();
        authority.revoke(&name("b@h"), wall()).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        // A revoked certificate is in nobody's way: no `--replace` is needed.
        let fresh = authority.issue(dir.path(), &name("b@h"), Validity::leaf(wall())).unwrap();
        let a = Identity::load(dir.path(), &name("a@h"), wall()).unwrap();
        assert_eq!(verdict(&fresh, &a).unwrap(), name("b@h"));
        assert_ne!(
            fresh.id(),
            b.id(),
            "anyone who stole the old key has no use for the certificate"
        );
        assert!(verdict(&b, &a).is_err(), "the old one stays revoked");
        let again = authority
            .reissue(dir.path(), &name("b@h"), Validity::leaf(wall()), LeafOptions::default())
            .unwrap();
        assert_eq!(again.id(), fresh.id(), "an honest key stays");
        // The key is known by the record, wherever its certificate went.
        authority.revoke(&name("b@h"), wall()).unwrap();
        fs::remove_file(dir.path().join("b@h/cert.pem")).unwrap();
        let last = authority.issue(dir.path(), &name("b@h"), Validity::leaf(wall())).unwrap();
        assert_ne!(last.id(), fresh.id());
    }

    #[test]
    fn a_damaged_or_foreign_list_is_an_error_at_start() {
        let (dir, authority, ..) = cluster();
        authority.revoke(&name("b@h"), wall()).unwrap();
        let (theirs, other, ..) = cluster();
        other.revoke(&name("b@h"), wall()).unwrap();
        let foreign = fs::read(crl(theirs.path())).unwrap();
        let sound = fs::read(crl(dir.path())).unwrap();
        for (bytes, says) in [
            (foreign.as_slice(), "this cluster's authority has not signed it"),
            (&sound[..sound.len() / 2], "no PEM revocation list"),
            (b"", "no PEM revocation list"),
            (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "not an X.509"),
        ] {
            fs::write(crl(dir.path()), bytes).unwrap();
            let error = Identity::load(dir.path(), &name("a@h"), wall()).unwrap_err().to_string();
            assert!(error.contains("ca/crl.pem") && error.contains(says), "{error}");
            assert!(error.contains("copy it anew"), "{error}");
            // An authority does not extend, and so replace, what it cannot read.
            assert!(Authority::open(dir.path()).is_err());
        }
    }

    #[test]
    fn no_changed_byte_of_a_list_makes_another_list() {
        let (dir, authority, a, _) = cluster();
        authority.revoke(&name("b@h"), wall()).unwrap();
        let pem = fs::read(crl(dir.path())).unwrap();
        let verifier = a.verifier();
        let ours = RevocationList::parse(&pem, &verifier.trusted().bundle, wall()).unwrap();
        assert_eq!(ours.bytes, pem, "its one text");
        for at in 0..pem.len() {
            let mut changed = pem.clone();
            changed[at] ^= 0x04;
            if let Ok(list) = RevocationList::parse(&changed, &verifier.trusted().bundle, wall()) {
                assert_eq!(list, ours, "byte {at}");
            }
        }
    }
}
