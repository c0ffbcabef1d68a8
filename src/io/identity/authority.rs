//! The cluster's certificate authority.
//!
//! Owns what is written into the certificates of the authority and of nodes. Invariants: the
//! authority's certificate and key appear on disk together or not at all, and are never replaced
//! here; a node's key outlives its certificates, because the node's id is made of it, until one of
//! them is revoked.

mod enrol;
mod intermediate;
mod lists;
mod rotation;
mod tokens;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use x509_cert::der::{Tag, Tagged as _};

use super::disk::{self, Fix, Layout};
use super::key::Key;
use super::pki::{
    Bundle, Certificate, DESCRIPTION, DEVELOPMENT, PeerIdentity, Root, Validity, cluster_uri,
    server_name, spiffe_uri,
};
use super::revocation::{Dates, Issued};
use super::tokens::{TokenKey, TokenList};
use super::trust::Trusted;
use super::{CertificateVerifier, Identity, IdentityError, KeyFault, Remedy};
use crate::io::clock::{self, unix_seconds};
use crate::proto::capability::Capabilities;
use crate::proto::enrol::Host;
use crate::proto::node::{ClusterId, KeyId, NodeName};
pub use intermediate::{
    Intermediate, IntermediateError, accept_authority, is_authority_answer, request_authority,
};
pub use lists::Revocee;
use rotation::Keys;
pub use rotation::RotationError;
pub use tokens::TokenRotation;

/// Organization in the certificate of an authority that an operator made.
const ORGANIZATION: &str = "xpando";
/// A cluster's certificate authority: its certificate and its private key.
///
/// Anyone who has it can make any node of the cluster, so it stays on one host: a root, or an intermediate that a root signed.
#[derive(Debug)]
pub struct Authority {
    root: Root,
    verifier: CertificateVerifier,
    issuer: Issuer<'static, Key>,
    /// The certificate directory it lies in.
    home: PathBuf,
}

/// What a certificate that is issued by hand says beside its node's name.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeafOptions<'a> {
    /// The hosts that it names beside the name's own host part. Without any, those of the certificate that it replaces stay.
    pub hosts: &'a [Host],
    /// What the node may do: as before where there is a certificate that counts and nothing is said; otherwise everything,
    /// because a node that lies beside the authority's key has its power.
    pub capabilities: Option<&'a Capabilities>,
}

impl Authority {
    /// Makes a new authority in `certs`, valid as [`Validity::authority`].
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when `certs` has an authority or a part of one; nothing is
    /// changed then. [`IdentityError::Io`] when it cannot be written.
    pub fn init(certs: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        Self::create(Layout::new(certs), now, ORGANIZATION)
    }

    /// The authority that a node makes for itself during development.
    pub(super) fn develop(layout: Layout<'_>, now: SystemTime) -> Result<Self, IdentityError> {
        Self::create(layout, now, DEVELOPMENT)
    }

    fn create(
        layout: Layout<'_>,
        now: SystemTime,
        organization: &str,
    ) -> Result<Self, IdentityError> {
        for path in [disk::CERTIFICATE, disk::KEY].map(|file| layout.of_authority(file)) {
            if path.exists() {
                return Err(IdentityError::Exists { path, remedy: Remedy::MoveAuthority });
            }
        }
        disk::make_directory(layout.certs())?;
        disk::check_directory(layout.certs())?;
        let key = Key::generate()?;
        let mut cluster = [0; 16];
        aws_lc_rs::rand::fill(&mut cluster)
            .map_err(|_unspecified| IdentityError::Crypto("draw random bytes"))?;
        let cluster = KeyId(cluster);
        let made = certificate(cluster, &key, organization, now)?;
        let token_key = TokenKey::generate()?;
        let tokens = TokenList::first(token_key.id(), now).signed(cluster, &key)?;
        disk::write_directory(
            &layout.authority(),
            &[
                (disk::KEY, key.to_pem()?.as_bytes(), disk::PRIVATE),
                (disk::CERTIFICATE, made.pem().as_bytes(), disk::PUBLIC),
                (disk::TOKEN_KEY, token_key.to_pem()?.as_bytes(), disk::PRIVATE),
                (disk::TOKENS, tokens.as_bytes(), disk::PUBLIC),
            ],
        )?;
        let bundle = Bundle::of(vec![made.der().clone()])
            .map_err(|_unsound| IdentityError::Crypto("make a sound certificate"))?;
        Self::assemble(layout, CertificateVerifier::of(Trusted::of(bundle)), key)
    }

    /// True when there is a private key of an authority in `certs`. Whether it is sound, [`Authority::open`] tells.
    pub fn is_in(certs: &Path) -> bool {
        Layout::new(certs).of_authority(disk::KEY).exists()
    }

    /// Reads the authority of `certs`, certificate and key.
    ///
    /// # Errors
    /// [`IdentityError::Missing`] where there is none, or where only its certificate is;
    /// [`IdentityError::Key`], [`IdentityError::Certificate`] or [`IdentityError::List`] when a file is not fit for use.
    pub fn open(certs: &Path) -> Result<Self, IdentityError> {
        let layout = Layout::new(certs);
        let missing = Remedy::MakeAuthority;
        let verifier = CertificateVerifier::read(layout, missing)?;
        verifier.load_revocations(layout)?;
        let keys = Keys::read(layout)?;
        let trusted = verifier.trusted();
        let root = trusted.list.bundle.first().ok_or_else(|| mismatch(layout))?.key;
        // The root's key where it is, and otherwise that of one of its intermediates.
        let of_root = trusted.bundle.roots().iter().filter(|it| it.top() == root);
        let here =
            |it: &&Root| keys.has(it.key) && (it.key == root || !verifier.is_revoked(&it.serial));
        let issuing = of_root.filter(here).min_by_key(|it| it.parent.is_some()).map(|it| it.key);
        let issuing = issuing.and_then(|key| keys.take(key)).ok_or_else(|| mismatch(layout))?;
        Self::assemble(layout, verifier, issuing)
    }

    fn assemble(
        layout: Layout<'_>,
        verifier: CertificateVerifier,
        key: Key,
    ) -> Result<Self, IdentityError> {
        let id = KeyId::of_public_key(&key.subject_public_key_info());
        let root = verifier.trusted().bundle.root(id).cloned().ok_or_else(|| mismatch(layout))?;
        let unnamed = IdentityError::Crypto("name the issuer of certificates");
        let params = issuer(&root.der).ok_or(unnamed)?;
        let issuer = Issuer::new(params, key);
        Ok(Self { root, verifier, issuer, home: layout.certs().to_owned() })
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.verifier.cluster()
    }

    /// SHA-256 of the authority's certificate, for comparing it by eye: `AB:CD:…`.
    pub fn fingerprint(&self) -> String {
        self.root.fingerprint()
    }

    /// True for an authority that a node on loopback made for itself.
    pub fn is_development(&self) -> bool {
        self.root.development
    }

    /// Writes a certificate for `name` under `certs`, with a new key unless there is a sound one
    /// already. The certificate ends no later than the authority's own. Whether an earlier one has
    /// expired is judged by the wall clock.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when `certs` has a certificate for `name` that has neither
    /// expired nor been revoked, sound or not: nothing is changed, and [`Authority::reissue`]
    /// replaces it.
    /// [`IdentityError::UnusableName`] when a certificate cannot spell the name.
    /// [`KeyFault::Exposed`] when the key that is there can be read by others.
    pub fn issue(
        &self,
        certs: &Path,
        name: &NodeName,
        validity: Validity,
    ) -> Result<Identity, IdentityError> {
        self.issue_with(certs, name, validity, LeafOptions::default())
    }

    /// As [`Authority::issue`], with the hosts that the certificate names and what the node may do.
    ///
    /// # Errors
    /// As [`Authority::issue`]; [`IdentityError::UnusableName`] also when name and patterns are too long together.
    pub fn issue_with(
        &self,
        certs: &Path,
        name: &NodeName,
        validity: Validity,
        options: LeafOptions<'_>,
    ) -> Result<Identity, IdentityError> {
        let layout = Layout::new(certs);
        let _lock = layout.lock()?;
        let path = layout.certificate(name);
        let worthless = || {
            let der = disk::read_certificate(&path, layout.leaf_fix(name)).ok()?;
            let certificate = Certificate::parse(&der).ok()?;
            let revoked = self.verifier.is_revoked(&certificate.serial());
            Some(revoked || certificate.validity().not_after < clock::wall())
        };
        if path.exists() && worthless() != Some(true) {
            return Err(IdentityError::Exists { path, remedy: layout.leaf_fix(name).damaged });
        }
        self.renew(layout, name, validity, options)
    }

    /// As [`Authority::issue_with`], but replaces whatever certificate is there.
    ///
    /// A sound key stays, so the node keeps its id. A damaged key is replaced, and one whose
    /// certificate was revoked; to replace a sound one, remove the node's directory first. What was issued to the name with
    /// another key is revoked.
    ///
    /// # Errors
    /// As [`Authority::issue_with`], without [`IdentityError::Exists`].
    pub fn reissue(
        &self,
        certs: &Path,
        name: &NodeName,
        validity: Validity,
        options: LeafOptions<'_>,
    ) -> Result<Identity, IdentityError> {
        let layout = Layout::new(certs);
        let _lock = layout.lock()?;
        let identity = self.renew(layout, name, validity, options)?;
        self.revoke_other_keys(layout, name, identity.id(), clock::wall())?;
        Ok(identity)
    }

    /// How many certificates count that were issued to a name with another key than this one.
    ///
    /// # Errors
    /// [`IdentityError::List`] when the revocation list cannot be used; [`IdentityError::Io`].
    pub fn others_of(&self, name: &NodeName, key: KeyId) -> Result<usize, IdentityError> {
        Ok(self.other_keys(Layout::new(&self.home), name, key)?.len())
    }

    /// [`Authority::reissue`] for a caller that holds the directory's lock.
    pub(super) fn renew(
        &self,
        layout: Layout<'_>,
        name: &NodeName,
        validity: Validity,
        options: LeafOptions<'_>,
    ) -> Result<Identity, IdentityError> {
        if NodeName::from_spiffe_path(&name.spiffe_path()).as_ref() != Some(name) {
            return Err(IdentityError::UnusableName(name.clone()));
        }
        let from = validity.not_before.max(self.root.validity.not_before);
        self.root.validity.check(from).map_err(layout.authority_error())?;
        let (key, is_new) = match disk::read_key(&layout.key(name), layout.leaf_fix(name)) {
            Ok(key) if self.is_condemned(layout, name, &key)? => (Key::generate()?, true),
            Ok(key) => (key, false),
            Err(
                IdentityError::Missing { .. } | IdentityError::Key { fault: KeyFault::Damaged, .. },
            ) => (Key::generate()?, true),
            Err(other) => return Err(other),
        };
        let before = disk::read_certificate(&layout.certificate(name), layout.leaf_fix(name)).ok();
        let before = before.as_ref().and_then(|der| Certificate::parse(der).ok());
        let hosts = match (options.hosts, &before) {
            ([], Some(before)) => before.hosts(),
            (hosts, _) => hosts.to_vec(),
        };
        let capabilities = options.capabilities.cloned().or_else(|| {
            let before = before.filter(|it| !self.verifier.is_revoked(&it.serial()))?;
            before.capabilities().ok().flatten()
        });
        let says = (hosts.as_slice(), &capabilities.unwrap_or(Capabilities::ALL));
        let made = self.certify(name, &key, says, validity, clock::wall())?;
        disk::make_directory(&layout.node(name))?;
        // The key goes first: a key without a certificate is a state that the next issue completes.
        if is_new {
            disk::write(&layout.key(name), key.to_pem()?.as_bytes(), disk::PRIVATE)?;
        }
        disk::write(&layout.certificate(name), made.pem().as_bytes(), disk::PUBLIC)?;
        // What this authority revokes later reaches a node by the file alone.
        Identity::assemble(layout, name, self.verifier.apart(), made.der().clone(), key)
    }

    /// Every certificate that was issued to `name`: those written down, and the one in `layout`,
    /// which may be from before there was a record.
    fn issued(&self, layout: Layout<'_>, name: &NodeName) -> Result<Vec<Issued>, IdentityError> {
        let mut issued = Issued::all(Layout::new(&self.home))?;
        issued.retain(|issued| issued.name == *name);
        let der = disk::read_certificate(&layout.certificate(name), layout.leaf_fix(name)).ok();
        let verifier = &self.verifier;
        let present = der.and_then(|der| verifier.examine_of(&der, name).ok());
        let issue = |p: PeerIdentity| {
            let dates = Dates { until: unix_seconds(p.validity.not_after), made: 0 };
            Issued { serial: p.serial, key: p.id.to_string(), name: p.name, dates: Some(dates) }
        };
        issued.extend(present.map(issue));
        Ok(issued)
    }

    /// True when a certificate for this key was revoked: the key may be in other hands, and a new
    /// certificate for it would be theirs too.
    fn is_condemned(
        &self,
        layout: Layout<'_>,
        name: &NodeName,
        key: &Key,
    ) -> Result<bool, IdentityError> {
        let key = KeyId::of_public_key(&key.subject_public_key_info()).to_string();
        let verifier = &self.verifier;
        let revoked = |issued: &Issued| issued.key == key && verifier.is_revoked(&issued.serial);
        Ok(self.issued(layout, name)?.iter().any(revoked))
    }

    fn leaf(
        &self,
        name: &NodeName,
        (hosts, capabilities): (&[Host], &Capabilities),
        validity: Validity,
    ) -> Result<CertificateParams, IdentityError> {
        if !Self::fits(name, capabilities) {
            return Err(IdentityError::UnusableName(name.clone()));
        }
        let not_after = validity.not_after.min(self.root.validity.not_after);
        // The host part can be longer than a common name may be (64, RFC 5280 appendix A.1).
        let mut params = params(Validity { not_after, ..validity }, name.short().to_owned())?;
        let subject = &mut params.distinguished_name;
        subject.push(DnType::OrganizationalUnitName, capabilities.words());
        let patterns = capabilities.patterns();
        if !patterns.is_empty() {
            subject.push(DnType::CustomDnType(DESCRIPTION.to_vec()), patterns);
        }
        let text = |text: String| text.try_into().map_err(refused);
        params.subject_alt_names = vec![
            SanType::URI(text(spiffe_uri(self.cluster(), name))?),
            SanType::DnsName(text(server_name(self.cluster()))?),
        ];
        for host in enrol::named(name, hosts, capabilities) {
            params.subject_alt_names.push(match host {
                Host::Name(name) => SanType::DnsName(text(name)?),
                Host::Address(address) => SanType::IpAddress(address),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params)
    }
}

fn key_fix() -> Fix {
    Fix { missing: Remedy::AskAuthority, damaged: Remedy::Restore }
}

fn mismatch(layout: Layout<'_>) -> IdentityError {
    let remedy = Remedy::RestorePair;
    IdentityError::Key { path: layout.of_authority(disk::KEY), fault: KeyFault::Mismatch, remedy }
}

/// The number of the list after the one with this number. Seconds since 1970 keep rising even if a
/// list and its number are lost.
fn next_number(number: u64, now: SystemTime) -> u64 {
    unix_seconds(now).max(number.saturating_add(1))
}

/// What all certificates have in common: dates, a common name and a random serial number.
fn params(validity: Validity, common_name: String) -> Result<CertificateParams, IdentityError> {
    let mut serial = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_unspecified| IdentityError::Crypto("draw random bytes"))?;
    // A positive number of constant length: the top bits are 01 (RFC 5280, 4.1.2.2).
    if let Some(top) = serial.first_mut() {
        *top = *top & 0x3f | 0x40;
    }
    let mut params = CertificateParams::default();
    params.not_before = clock::utc(validity.not_before);
    params.not_after = clock::utc(validity.not_after);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// The certificate of an authority of this cluster, with this key.
fn certificate(
    cluster: ClusterId,
    key: &Key,
    organization: &str,
    now: SystemTime,
) -> Result<rcgen::Certificate, IdentityError> {
    let short: String = cluster.to_string().chars().take(8).collect();
    let mut params = params(Validity::authority(now), format!("xpando cluster {short}"))?;
    params.distinguished_name.push(DnType::OrganizationName, organization);
    // Itself, and intermediates that make no others.
    let params = of_authority(cluster, params, 1)?;
    params.self_signed(key).map_err(refused)
}

/// What makes a certificate an authority's, below which there may be so many others.
fn of_authority(
    cluster: ClusterId,
    mut params: CertificateParams,
    below: u8,
) -> Result<CertificateParams, IdentityError> {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names =
        vec![SanType::URI(cluster_uri(cluster).try_into().map_err(refused)?)];
    Ok(params)
}

/// What certificates say of their issuer, as its own certificate says it: name and key identifier.
fn issuer(authority: &CertificateDer<'_>) -> Option<CertificateParams> {
    let authority = Certificate::parse(authority).ok()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for part in authority.subject().iter() {
        let kind = DnType::from_oid(&part.oid.arcs().map(u64::from).collect::<Vec<_>>());
        let text = std::str::from_utf8(part.value.value()).ok()?;
        let value = if part.value.tag() == Tag::Utf8String {
            DnValue::Utf8String(text.to_owned())
        } else if part.value.tag() == Tag::PrintableString {
            DnValue::PrintableString(text.try_into().ok()?)
        } else {
            return None;
        };
        params.distinguished_name.push(kind, value);
    }
    if let Some(id) = authority.key_identifier() {
        params.key_identifier_method = KeyIdMethod::PreSpecified(id);
    }
    Some(params)
}

fn refused(_detail: rcgen::Error) -> IdentityError {
    IdentityError::Crypto("make a certificate")
}

#[cfg(test)]
mod tests {
    use super::super::pki::{BACKDATE, DAY};
    use super::*;
    use crate::io::clock::wall;
    use crate::io::identity::CertificateFault;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn authority() -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), wall()).unwrap();
        (dir, authority)
    }

    /// What the verifier says of a certificate whose parameters were changed before signing.
    fn verdict(
        authority: &Authority,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<NodeName, CertificateFault> {
        let mut params = authority
            .leaf(&name("a@h"), (&[], &Capabilities::ALL), Validity::leaf(wall()))
            .unwrap();
        change(&mut params);
        let made = params.signed_by(&Key::generate().unwrap(), &authority.issuer).unwrap();
        authority.verifier.peer(made.der(), wall()).map(|peer| peer.name)
    }

    #[test]
    fn an_authority_is_what_it_should_be() {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (_dir, authority) = authority();
        let (_, x509) = X509Certificate::from_der(&authority.root.der).unwrap();
        let basic = x509.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && basic.value.ca);
        assert_eq!(basic.value.path_len_constraint, Some(1));
        let usage = x509.key_usage().unwrap().unwrap();
        assert!(usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
        let cluster = authority.cluster().to_string();
        assert_eq!(
            x509.subject().to_string(),
            format!("CN=xpando cluster {}, O=xpando", &cluster[..8])
        );
        assert!(!authority.is_development());
    }

    #[test]
    fn a_leaf_is_what_it_should_be() {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (dir, authority) = authority();
        let now = wall();
        let leaf = |n: &str| authority.issue(dir.path(), &name(n), Validity::leaf(now)).unwrap();
        let (a, b) = (leaf("web.1@fe80::1"), leaf("b@h"));
        let leaf_of_a = a.certificate();
        let (_, x509) = X509Certificate::from_der(&leaf_of_a).unwrap();
        let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let cluster = authority.cluster();
        assert_eq!(
            names,
            [
                format!("URI(spiffe://{cluster}/node/fe80--1/web.1)"),
                format!("DNSName(node.{cluster}.xpando.internal)"),
                "IPAddress(fe:80:00:00:00:00:00:00:00:00:00:00:00:00:00:01)".to_owned(),
            ]
        );
        let extended = x509.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any);
        let usage = x509.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        assert!(!x509.is_ca());
        let life = a.validity().not_after.duration_since(a.validity().not_before).unwrap();
        assert_eq!(life, 90 * DAY + BACKDATE);
        assert_ne!(a.leaf.load().peer.serial, b.leaf.load().peer.serial);
        assert_ne!(a.id(), b.id());
    }

    #[test]
    fn a_leaf_ends_no_later_than_its_authority() {
        let (dir, authority) = authority();
        let late = Validity { not_before: wall(), not_after: wall() + 5000 * DAY };
        let leaf = authority.issue(dir.path(), &name("a@h"), late).unwrap();
        assert_eq!(leaf.validity().not_after, authority.root.validity.not_after);
    }

    #[test]
    fn nothing_is_issued_after_the_authority_expired() {
        let dir = tempfile::tempdir().unwrap();
        let past = wall() - 4000 * DAY;
        let authority = Authority::init(dir.path(), past).unwrap();
        let error = authority.issue(dir.path(), &name("a@h"), Validity::leaf(wall())).unwrap_err();
        assert!(error.is_expired(), "{error}");
        assert!(error.to_string().contains("ca/cert.pem"), "{error}");
        assert!(!dir.path().join("a@h").exists());
    }

    #[test]
    fn only_a_certificate_with_exactly_our_names_is_a_nodes() {
        let (_dir, authority) = authority();
        let cluster = authority.cluster();
        let uri = |text: String| SanType::URI(text.try_into().unwrap());
        let refused = |change: &dyn Fn(&mut Vec<SanType>)| {
            let error =
                verdict(&authority, |params| change(&mut params.subject_alt_names)).unwrap_err();
            assert!(matches!(error, CertificateFault::NotANode(_)), "{error}");
            error.to_string()
        };
        assert_eq!(verdict(&authority, |_| {}).unwrap(), name("a@h"));
        let second = format!("spiffe://{cluster}/node/h/b");
        assert!(refused(&|names| names.push(uri(second.clone()))).contains("exactly one URI"));
        assert!(refused(&|names| drop(names.remove(0))).contains("exactly one URI"));
        assert!(refused(&|names| drop(names.remove(1))).contains("DNS name"));
        assert!(refused(&|names| names.clear()).contains("no alternative names"));
        for foreign in [
            format!("spiffe://{}/node/h/a", KeyId([7; 16])),
            format!("https://{cluster}/node/h/a"),
            format!("spiffe://{cluster}0/node/h/a"),
            format!("spiffe://{cluster}/node/H/a"),
            format!("spiffe://{cluster}"),
        ] {
            let text = refused(&|names| names[0] = uri(foreign.clone()));
            assert!(text.contains("its URI"), "{foreign}: {text}");
        }
    }

    #[test]
    fn the_authority_itself_is_no_node() {
        let (_dir, authority) = authority();
        let error = authority.verifier.peer(&authority.root.der, wall());
        assert!(matches!(error, Err(CertificateFault::NotANode(_))));
    }

    #[test]
    fn names_that_certificates_confuse_are_refused() {
        let (dir, authority) = authority();
        let twin = name("a@1-2-3-4-5-6-7-8");
        let error = authority.issue(dir.path(), &twin, Validity::leaf(wall())).unwrap_err();
        assert!(matches!(error, IdentityError::UnusableName(_)), "{error}");
        assert!(!dir.path().join(twin.as_str()).exists());
    }

    #[test]
    fn an_authority_is_never_replaced() {
        let (dir, first) = authority();
        let again = Authority::init(dir.path(), wall()).unwrap_err();
        assert!(matches!(again, IdentityError::Exists { .. }), "{again}");
        assert_eq!(Authority::open(dir.path()).unwrap().cluster(), first.cluster());
        std::fs::remove_file(dir.path().join("ca/cert.pem")).unwrap();
        assert!(Authority::init(dir.path(), wall()).is_err());
    }

    #[test]
    fn a_certificate_is_replaced_on_request_or_when_expired_and_the_id_stays() {
        let (dir, authority) = authority();
        let a = name("a@h");
        let first = authority.issue(dir.path(), &a, Validity::leaf(wall())).unwrap();
        let error = authority.issue(dir.path(), &a, Validity::leaf(wall())).unwrap_err();
        assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
        assert_eq!(error.remedy(), Remedy::Reissue(a.clone()), "{error}");
        let past = Validity { not_before: wall() - 9 * DAY, not_after: wall() - DAY };
        let second = authority.reissue(dir.path(), &a, past, LeafOptions::default()).unwrap();
        let third = authority.issue(dir.path(), &a, Validity::leaf(wall())).unwrap();
        assert_eq!((first.id(), second.id()), (second.id(), third.id()));
        assert_ne!(first.fingerprint(), third.fingerprint());
    }

    #[test]
    fn hosts_that_are_asked_for_are_named_and_stay_when_a_certificate_is_replaced() {
        let (dir, authority) = authority();
        let a = name("a@10.0.0.7");
        let hosts = ["web.example", "2001:db8::7", "10.0.0.7"].map(|host| host.parse().unwrap());
        let of = |identity: &Identity| {
            let certificate = identity.certificate();
            let hosts = Certificate::parse(&certificate).unwrap().hosts();
            hosts.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let valid = Validity::leaf(wall());
        fn with(hosts: &[Host]) -> LeafOptions<'_> {
            LeafOptions { hosts, capabilities: None }
        }
        let first = authority.issue_with(dir.path(), &a, valid, with(&hosts)).unwrap();
        assert_eq!(of(&first), ["10.0.0.7", "web.example", "2001:db8::7"]);
        let same = authority.reissue(dir.path(), &a, valid, with(&[])).unwrap();
        assert_eq!(of(&same), of(&first));
        let fewer = authority.reissue(dir.path(), &a, valid, with(&hosts[..1])).unwrap();
        assert_eq!(of(&fewer), ["10.0.0.7", "web.example"]);
    }

    #[test]
    fn a_key_that_is_replaced_on_request_ends_the_one_before() {
        let (dir, authority) = authority();
        let (a, valid) = (name("a@h"), Validity::leaf(wall()));
        let first = authority.issue(dir.path(), &a, valid).unwrap();
        std::fs::remove_dir_all(dir.path().join("a@h")).unwrap();
        let second = authority.issue(dir.path(), &a, valid).unwrap();
        let judged = |it: &Identity| authority.verifier.peer(&it.certificate(), wall());
        assert!(judged(&first).is_ok() && judged(&second).is_ok(), "nobody said what is meant");
        assert_eq!(authority.others_of(&a, second.id()).unwrap(), 1);
        let third = authority.reissue(dir.path(), &a, valid, LeafOptions::default()).unwrap();
        assert_eq!(third.id(), second.id());
        assert!(matches!(judged(&first), Err(CertificateFault::Revoked(_))));
        assert!(judged(&second).is_ok() && judged(&third).is_ok());
        assert_eq!(authority.others_of(&a, third.id()).unwrap(), 0);
        // A name that has one key only is none of that list.
        authority.issue(dir.path(), &name("b@h"), valid).unwrap();
        authority.reissue(dir.path(), &name("b@h"), valid, LeafOptions::default()).unwrap();
        assert_eq!(authority.verifier.list().entries.len(), 1);
    }

    #[test]
    fn a_damaged_key_is_replaced_and_an_exposed_one_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, authority) = authority();
        let a = name("a@h");
        let first = authority.issue(dir.path(), &a, Validity::leaf(wall())).unwrap();
        let path = dir.path().join("a@h/key.pem");
        std::fs::write(&path, "rubbish").unwrap();
        let second = authority
            .reissue(dir.path(), &a, Validity::leaf(wall()), LeafOptions::default())
            .unwrap();
        assert_ne!(first.id(), second.id());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = authority
            .reissue(dir.path(), &a, Validity::leaf(wall()), LeafOptions::default())
            .unwrap_err();
        assert!(matches!(error, IdentityError::Key { fault: KeyFault::Exposed(_), .. }), "{error}");
    }

    #[test]
    fn an_authority_with_another_key_is_refused() {
        let ((one, _), (two, _)) = (authority(), authority());
        std::fs::copy(two.path().join("ca/key.pem"), one.path().join("ca/key.pem")).unwrap();
        let error = Authority::open(one.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Key { fault: KeyFault::Mismatch, .. }), "{error}");
    }
}
