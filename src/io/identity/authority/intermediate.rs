//! Intermediate authorities: a host issues nodes' certificates by day, and the root's key lies elsewhere.
//!
//! Owns three steps, between which an operator carries a file that is no secret: the issuing host makes a key and a request for
//! it (`ca/request.key`, `ca/request`); where the root's key is, the request becomes a certificate and the next trust list, which
//! is the answer; the issuing host takes the list, and the key becomes the one that issues (`ca/key.pem`). The list spreads to
//! all nodes like any other. Invariants: a key stays on the host that made it; of a request the key alone is taken; an intermediate
//! ends no later than its root, signs nodes' certificates, revocation lists and token lists, and neither authorities nor a list of
//! whom to trust; a root that drops an intermediate signs the lists anew that the intermediate may have signed.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, PublicKeyData as _};
use rustls::pki_types::CertificateDer;

use super::rotation::with;
use super::{Authority, ORGANIZATION, RotationError, of_authority, params, refused};
use crate::io::identity::disk::{self, Fix, Layout};
use crate::io::identity::enrol::CsrKey;
use crate::io::identity::key::Key;
use crate::io::identity::pki::{BACKDATE, Certificate, Validity};
use crate::io::identity::pki::{Bundle, MAX_ROOTS, Root};
use crate::io::identity::trust::{MAX_DROPPED, TrustList, Trusted, digest};
use crate::io::identity::{IdentityError, Remedy};
use crate::proto::node::KeyId;

/// How long an intermediate authority issues.
const LIFE: Duration = Duration::from_secs(730 * 24 * 60 * 60);
/// Most bytes of a request.
const MAX_REQUEST: usize = 16 * 1024;
/// The label of a request in PEM (RFC 7468, 7).
const LABEL: &str = "CERTIFICATE REQUEST";

/// Why there is no intermediate authority. Nothing changed; the operator acts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntermediateError {
    /// The directory has a root authority's key.
    #[error(
        "the root authority's key is in this certificate directory: ask on the host that is to issue"
    )]
    HasRoot,
    /// The request is none.
    #[error("this is no request for an intermediate authority: {0}")]
    Request(&'static str),
    /// The answer is none.
    #[error("this is no answer to the request of this certificate directory: {0}")]
    Answer(&'static str),
    /// The root's certificate allows none.
    #[error(
        "the root authority's certificate allows no intermediate ones, for it is of an earlier program: rotate the authority first"
    )]
    NoneAllowed,
    /// There are as many authorities as a cluster may trust.
    #[error(
        "the cluster trusts {MAX_ROOTS} authorities: revoke an intermediate one first, by its serial number"
    )]
    TooMany,
    /// A rotation is under way, or the root's key is elsewhere.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// The files cannot be used or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// An intermediate authority that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intermediate {
    /// Its certificate's serial number in lower-case hexadecimal, by which it is revoked.
    pub serial: String,
    /// SHA-256 of its certificate: `AB:CD:…`.
    pub fingerprint: String,
    /// SHA-256 of its root's certificate, likewise.
    pub root: String,
    /// Until when it issues.
    pub until: SystemTime,
}

impl Intermediate {
    fn of(bundle: &Bundle, key: KeyId) -> Option<Self> {
        let made = bundle.root(key)?;
        let root = bundle.root(made.parent?)?;
        Some(Self {
            serial: made.serial.clone(),
            fingerprint: made.fingerprint(),
            root: root.fingerprint(),
            until: made.validity.not_after,
        })
    }
}

/// Makes the key of an intermediate authority, unless one waits for its certificate already, and the request for it: PEM
/// (RFC 2986), which is written beside the key too.
///
/// # Errors
/// [`IntermediateError::HasRoot`]; [`IdentityError`] about the directory.
pub fn request_authority(certs: &Path) -> Result<String, IntermediateError> {
    let layout = Layout::new(certs);
    disk::make_directory(certs)?;
    [certs, &layout.authority()].into_iter().try_for_each(disk::check_directory)?;
    let _lock = layout.lock()?;
    if layout.of_authority(disk::KEY).exists()
        && Authority::open(certs).is_ok_and(|it| it.root.parent.is_none())
    {
        return Err(IntermediateError::HasRoot);
    }
    disk::make_directory(&layout.authority())?;
    let path = layout.of_authority(disk::REQUEST_KEY);
    let key = match disk::read_key(&path, own_key()) {
        Ok(key) => key,
        Err(IdentityError::Missing { .. }) => {
            let key = Key::generate()?;
            disk::write(&path, key.to_pem()?.as_bytes(), disk::PRIVATE)?;
            key
        }
        Err(other) => return Err(other.into()),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "xpando intermediate authority");
    let request = params.serialize_request(&key).and_then(|request| request.pem());
    let request = request.map_err(refused)?;
    disk::write(&layout.of_authority(disk::REQUEST), request.as_bytes(), disk::PUBLIC)?;
    Ok(request)
}

/// What to do about the key of a request.
fn own_key() -> Fix {
    Fix { missing: Remedy::OtherDirectory, damaged: Remedy::Remove }
}

/// True for what [`Authority::sign_authority`] answers.
pub fn is_authority_answer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"xpando trust ")
}

/// Takes the answer to the request of this directory: from now on its key issues here. Where the directory has no authority
/// yet, the one in the answer counts, for an operator carried it: the root's fingerprint is to be compared.
///
/// # Errors
/// [`IntermediateError::Answer`]; [`IdentityError`] about the directory.
pub fn accept_authority(certs: &Path, answer: &[u8]) -> Result<Intermediate, IntermediateError> {
    let layout = Layout::new(certs);
    let _lock = layout.lock()?;
    let path = layout.of_authority(disk::REQUEST_KEY);
    let key = disk::read_key(&path, own_key())?;
    let known = match Trusted::read(layout, Remedy::Nothing) {
        Ok(known) => Some(known),
        Err(IdentityError::Missing { .. }) => None,
        Err(other) => return Err(other.into()),
    };
    let trusted = match &known {
        Some(known) => known.bundle.clone(),
        None => TrustList::roots(answer).map_err(IntermediateError::Answer)?,
    };
    let signed = TrustList::parse(answer, &trusted).map_err(IntermediateError::Answer)?;
    // A later list has come over a link meanwhile, which counts.
    let later = known.filter(|known| known.list.number > signed.mark.number);
    let bundle = later.as_ref().map_or(&signed.list.bundle, |known| &known.bundle);
    let id = KeyId::of_public_key(&key.subject_public_key_info());
    let absent = IntermediateError::Answer("it has no certificate for the key of that request");
    let made = Intermediate::of(bundle, id).ok_or(absent)?;
    if later.is_none() {
        let in_force = signed.list.in_force(&trusted).map_err(IntermediateError::Answer)?;
        disk::write(&layout.of_authority(disk::TRUST), &signed.bytes, disk::PUBLIC)?;
        let pem = in_force.bundle.to_pem();
        disk::write(&layout.of_authority(disk::CERTIFICATE), pem.as_bytes(), disk::PUBLIC)?;
    }
    // The key goes last: what issues is whole.
    disk::rename(&path, &layout.of_authority(disk::KEY))?;
    disk::remove(&layout.of_authority(disk::REQUEST))?;
    Ok(made)
}

impl Authority {
    /// Makes an intermediate authority for the key of a request (PEM), and the trust list that hands it to the cluster, which
    /// is the answer. What else the request says counts nothing. Intermediates that have ended are dropped.
    ///
    /// # Errors
    /// [`IntermediateError::Request`]; [`IntermediateError::NoneAllowed`]; [`IntermediateError::TooMany`];
    /// [`RotationError::UnderWay`] and [`RotationError::NoRoot`].
    pub fn sign_authority(
        &self,
        request: &[u8],
        now: SystemTime,
    ) -> Result<(Intermediate, Vec<u8>), IntermediateError> {
        let key = read(request)?;
        let root = Certificate::parse(&self.root.der).map_err(IntermediateError::Request)?;
        if root.path_length() == Some(0) {
            return Err(IntermediateError::NoneAllowed);
        }
        if self.root.key == key.id() {
            return Err(IntermediateError::Request("its key is the root authority's"));
        }
        let lives = |it: &Root| it.parent.is_none() || it.validity.not_after >= now;
        let others =
            self.verifier.trusted().list.bundle.keeping(|it| it.key != key.id() && lives(it));
        if others.is_none_or(|others| others.roots().len() >= MAX_ROOTS) {
            return Err(IntermediateError::TooMany);
        }
        self.change(now, |authority, list| {
            if let Some(rotation) = &list.rotation {
                let (began, by) = (rotation.began, rotation.by.clone());
                return Err(RotationError::UnderWay { by, began });
            }
            let made = authority.intermediate_for(&key, now)?;
            drop_of(list, |it| it.key == key.id() || !lives(it))?;
            list.bundle = with(&list.bundle, Some(made), |_| false)?;
            Ok(())
        })?;
        let layout = Layout::new(&self.home);
        let answer = disk::read_list(&layout.of_authority(disk::TRUST))?.unwrap_or_default();
        let trusted = Trusted::read(layout, Remedy::Nothing)?;
        let made = Intermediate::of(&trusted.list.bundle, key.id())
            .ok_or(IdentityError::Crypto("make a sound certificate"))?;
        Ok((made, answer))
    }

    /// The certificate of an intermediate authority with this key.
    fn intermediate_for(
        &self,
        key: &CsrKey,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        self.root.validity.check(now).map_err(Layout::new(&self.home).authority_error())?;
        let root = self.root.validity.not_after;
        let validity = Validity { not_before: now - BACKDATE, not_after: root.min(now + LIFE) };
        let short: String = key.id().to_string().chars().take(8).collect();
        let mut params = params(validity, format!("xpando intermediate {short}"))?;
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params.use_authority_key_identifier_extension = true;
        let params = of_authority(self.cluster(), params, 0)?;
        Ok(params.signed_by(key, &self.issuer).map_err(refused)?.der().clone())
    }

    /// The intermediate authority whose certificate has this serial number.
    pub(super) fn intermediate(&self, serial: &str) -> Option<Root> {
        let trusted = self.verifier.trusted();
        let of = |it: &&Root| it.parent.is_some() && it.serial == serial;
        trusted.bundle.roots().iter().find(of).cloned()
    }

    /// Takes trust from an intermediate authority, where the root's key is.
    pub(super) fn drop_intermediate(
        &self,
        serial: &str,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        if self.intermediate(serial).is_none() || self.root.parent.is_some() {
            return Ok(());
        }
        let of = |it: &Root| it.parent.is_some() && it.serial == serial;
        // Anything else says that another process was faster.
        if let Err(RotationError::Identity(error)) = self.change(now, |_, list| drop_of(list, of)) {
            return Err(error);
        }
        Ok(())
    }
}

/// The key of a request in PEM.
fn read(request: &[u8]) -> Result<CsrKey, IntermediateError> {
    let no_pem = IntermediateError::Request("it is no PEM text of a certificate signing request");
    if request.len() > MAX_REQUEST {
        return Err(no_pem);
    }
    match pem::parse(request) {
        Ok(pem) if pem.tag() == LABEL => {
            CsrKey::of(pem.contents()).map_err(IntermediateError::Request)
        }
        Ok(_) | Err(_) => Err(no_pem),
    }
}

/// Drops authorities of a list, and remembers them as dropped.
fn drop_of(list: &mut TrustList, drops: impl Fn(&Root) -> bool) -> Result<(), RotationError> {
    let dropped: Vec<_> =
        list.bundle.roots().iter().filter(|it| drops(it)).map(|it| digest(&it.der)).collect();
    while list.dropped.len() + dropped.len() > MAX_DROPPED {
        list.dropped.pop_first();
    }
    list.dropped.extend(dropped);
    list.bundle = list.bundle.keeping(|it| !drops(it)).ok_or(RotationError::None)?;
    Ok(())
}

#[cfg(test)]
mod tests;
