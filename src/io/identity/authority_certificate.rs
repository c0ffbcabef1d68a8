//! The public half of a cluster's authority, and how long certificates are valid.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::certificate::{Certificate, Verifier, check_time};
use super::disk::{self, Layout};
use super::revocation::RevocationList;
use super::{IdentityError, Subject};

/// How long certificates are valid before they are made, for hosts whose clocks lag.
pub(super) const BACKDATE: Duration = Duration::from_secs(60 * 60);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Organization in the certificate of an authority that a node on loopback made for itself.
pub(super) const DEVELOPMENT: &str = "xpando development";

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
    #[must_use]
    pub fn leaf(now: SystemTime) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + 90 * DAY }
    }

    /// An authority's certificate made at `now`: 3,650 days, and the hour before.
    #[must_use]
    pub fn authority(now: SystemTime) -> Self {
        Self { not_before: now - BACKDATE, not_after: now + 3650 * DAY }
    }
}

/// The public half of an authority, as every node has it.
#[derive(Clone, Debug)]
pub(super) struct AuthorityCertificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) verifier: Verifier,
    pub(super) validity: Validity,
    pub(super) serial: String,
    pub(super) development: bool,
}

impl AuthorityCertificate {
    /// Reads ca/cert.pem; `missing` says what to do when it is not there.
    pub(super) fn read(layout: Layout<'_>, missing: String) -> Result<Self, IdentityError> {
        [layout.certs(), &layout.authority()].into_iter().try_for_each(disk::check_directory)?;
        let path = layout.authority_certificate();
        let der = disk::read_certificate(&path, layout.authority_fix(missing))?;
        let fix = layout.authority_fix(String::new()).damaged;
        Self::of(der).map_err(|reason| IdentityError::DamagedCertificate {
            subject: Subject::File { path, fix },
            reason,
        })
    }

    pub(super) fn of(der: CertificateDer<'static>) -> Result<Self, &'static str> {
        let certificate = Certificate::parse(&der)?;
        if !certificate.is_authority() {
            return Err("it is not an authority's certificate");
        }
        if !certificate.is_signed_by(certificate.point()) {
            return Err("its signature is not its own");
        }
        let verifier = Verifier::of(&certificate);
        let validity =
            Validity { not_before: certificate.not_before(), not_after: certificate.not_after() };
        let serial = certificate.serial();
        let development = certificate.organization() == Some(DEVELOPMENT);
        Ok(Self { verifier, validity, serial, development, der })
    }

    /// Puts the revocation list in `certs` in force, if there is one.
    pub(super) fn load_revocations(&self, layout: Layout<'_>) -> Result<(), IdentityError> {
        let found = RevocationList::read(layout, self.verifier.authority())?;
        found.into_iter().for_each(|list| self.verifier.replace_list(list));
        Ok(())
    }

    pub(super) fn check_time(
        &self,
        layout: Layout<'_>,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let fix = format!(
            "move {} away, make a new authority with {} and issue every node's certificate anew",
            layout.authority().display(),
            layout.init()
        );
        let subject = Subject::File { path: layout.authority_certificate(), fix };
        check_time((self.validity.not_before, self.validity.not_after), now, &subject)
    }
}
