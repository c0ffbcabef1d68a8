//! The public half of a cluster's authority.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::certificate::{Certificate, CertificateVerifier};
use super::disk::{self, Layout};
use super::revocation::RevocationList;
use super::{IdentityError, Subject};

/// Organization in the certificate of an authority that a node on loopback made for itself.
pub(super) const DEVELOPMENT: &str = "xpando development";

/// The public half of an authority, as every node has it.
#[derive(Clone, Debug)]
pub(super) struct AuthorityCertificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) verifier: CertificateVerifier,
    pub(super) development: bool,
}

impl AuthorityCertificate {
    /// Reads ca/cert.pem; `missing` says what to do when it is not there.
    pub(super) fn read(layout: Layout<'_>, missing: String) -> Result<Self, IdentityError> {
        [layout.certs(), &layout.authority()].into_iter().try_for_each(disk::check_directory)?;
        let path = layout.of_authority(disk::CERTIFICATE);
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
        let verifier = CertificateVerifier::of(&certificate);
        let development = certificate.organization() == Some(DEVELOPMENT);
        Ok(Self { verifier, development, der })
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
            layout.command("init")
        );
        let subject = Subject::File { path: layout.of_authority(disk::CERTIFICATE), fix };
        self.verifier.validity.check(now, &subject)
    }
}
