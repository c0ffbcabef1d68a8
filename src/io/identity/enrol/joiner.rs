//! A host that joins a cluster: its key, and its certificate directory.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::asked::{Asked, Granted, Prover};
use super::{EnrolError, Line};
use crate::io::identity::disk::{self, Fix, Layout};
use crate::io::identity::key::Key;
use crate::io::identity::trust::Trusted;
use crate::io::identity::{Identity, IdentityError, Remedy};
use crate::proto::enrol::{AuthorityHash, Host, MAX_HOSTS};
use crate::proto::node::NodeName;

/// A host that is to become a node. It has a key, the same each time that the same join is tried.
#[derive(Debug)]
pub struct Joiner {
    certs: PathBuf,
    name: NodeName,
    hosts: Vec<Host>,
    key: Key,
    /// The authorities that the directory has already.
    known: Vec<AuthorityHash>,
}

impl Joiner {
    /// Makes what a request needs: the directory, and in it the key of this name, unless there is one.
    ///
    /// # Errors
    /// [`EnrolError::AlreadyJoined`]; [`EnrolError::TooManyHosts`]; [`IdentityError`] about what is there.
    pub fn prepare(
        certs: &Path,
        name: &NodeName,
        hosts: &[Host],
        now: SystemTime,
    ) -> Result<Self, EnrolError> {
        let layout = Layout::new(certs);
        if hosts.len() >= MAX_HOSTS {
            return Err(EnrolError::TooManyHosts);
        }
        if NodeName::from_spiffe_path(&name.spiffe_path()).as_ref() != Some(name) {
            return Err(IdentityError::UnusableName(name.clone()).into());
        }
        for directory in [certs, &layout.authority(), &layout.node(name)] {
            disk::check_directory(directory)?;
        }
        let _lock = layout.lock()?;
        if let Ok(identity) = Identity::load(certs, name, now)
            && !identity.is_revoked()
        {
            let (path, until) = (layout.certificate(name), identity.validity().not_after);
            return Err(EnrolError::AlreadyJoined { path, until });
        }
        let known = known(layout)?;
        let path = layout.key(name);
        let fix = Fix { missing: Remedy::Nothing, damaged: Remedy::Remove };
        let key = match disk::read_key(&path, fix) {
            Ok(key) => key,
            Err(IdentityError::Missing { .. }) => {
                let key = Key::generate()?;
                disk::make_directory(&layout.node(name))?;
                disk::write(&path, key.to_pem()?.as_bytes(), disk::PRIVATE)?;
                key
            }
            Err(other) => return Err(other.into()),
        };
        let (certs, name, hosts) = (certs.to_owned(), name.clone(), hosts.to_vec());
        Ok(Self { certs, name, hosts, key, known })
    }

    /// Asks with an invitation.
    ///
    /// # Errors
    /// [`EnrolError::OtherCluster`]; [`IdentityError::Crypto`].
    pub fn ask(&self, line: &Line, now: SystemTime) -> Result<Asked, EnrolError> {
        self.check_known(line.authority())?;
        let prover = Prover::Invitation(line);
        Asked::make(&self.key, &self.name, &self.hosts, &prover, None, now)
    }

    /// Begins to ask with a spoken invitation.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    #[cfg(feature = "gateway")]
    pub fn ask_spoken(
        &self,
        code: &super::Code,
        now: SystemTime,
    ) -> Result<super::AskedSpoken, EnrolError> {
        super::AskedSpoken::make(&self.key, &self.name, &self.hosts, code, now)
    }

    /// Goes on with what the issuer answered to that.
    ///
    /// # Errors
    /// [`EnrolError::Refused`]; [`EnrolError::Answer`] when it is no answer to that.
    #[cfg(feature = "gateway")]
    pub fn go_on(
        &self,
        begun: super::AskedSpoken,
        answer: &[u8],
        now: SystemTime,
    ) -> Result<Asked, EnrolError> {
        begun.go_on(&self.key, answer, now)
    }

    /// Asks with a token of the platform that this host runs on. `authority` is one of the cluster; `None` for one that the
    /// directory has.
    ///
    /// # Errors
    /// [`EnrolError::NoAuthority`] when neither says which cluster is meant; [`EnrolError::OtherCluster`] when they differ.
    pub fn ask_machine(
        &self,
        token: &str,
        authority: Option<AuthorityHash>,
        now: SystemTime,
    ) -> Result<Asked, EnrolError> {
        let known = self.known.first().copied();
        let meant = authority.or(known).ok_or(EnrolError::NoAuthority)?;
        self.check_known(meant)?;
        let prover = Prover::Machine(token);
        Asked::make(&self.key, &self.name, &self.hosts, &prover, Some(meant), now)
    }

    /// Refuses another cluster than that of the directory.
    fn check_known(&self, meant: AuthorityHash) -> Result<(), EnrolError> {
        if self.known.is_empty() || self.known.contains(&meant) {
            return Ok(());
        }
        let path = Layout::new(&self.certs).of_authority(disk::CERTIFICATE);
        Err(EnrolError::OtherCluster { path, invited: meant })
    }

    /// Asks the operator who holds the authority's key, by a file that is carried there.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn ask_operator(&self, now: SystemTime) -> Result<Asked, EnrolError> {
        Asked::make(
            &self.key,
            &self.name,
            &self.hosts,
            &Prover::Operator,
            self.known.first().copied(),
            now,
        )
    }

    /// Writes the certificate directory: the authority, its lists, and the certificate. When that is interrupted, the same
    /// join completes it.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn write(&self, granted: &Granted) -> Result<(), EnrolError> {
        Ok(granted.write(&self.certs)?)
    }

    /// Whose certificate is asked for.
    pub fn name(&self) -> &NodeName {
        &self.name
    }
}

/// The authorities in the directory, if there are any.
fn known(layout: Layout<'_>) -> Result<Vec<AuthorityHash>, IdentityError> {
    match Trusted::read(layout, Remedy::Nothing) {
        Ok(known) => {
            Ok(known.bundle.roots().iter().map(|root| AuthorityHash::of(&root.der)).collect())
        }
        Err(IdentityError::Missing { .. }) => Ok(Vec::new()),
        Err(other) => Err(other),
    }
}
