//! A new authority in place of the one before, while the cluster works.
//!
//! Owns the steps, each a trust list of its own:
//!
//! ```text
//! begin    [old, new]   old issues        every node comes to trust both
//! move     [new, old]   new issues        every node has its certificate renewed
//! finish   [new]        old is dropped    what old signed counts no more
//! abort    [old, new]   old issues again; then as above with old and new exchanged
//! ```
//!
//! Invariants: a step changes the list in one write, before which nothing has happened and after which the step is done,
//! whatever becomes of this process; the private key of an authority is on disk before its certificate is trusted, and as long
//! as it may be needed; the lists of revoked certificates and of tokens are signed by the one that issues; only one rotation is
//! under way at a time. When a step may be taken is for the caller to know: `finish` cuts off whoever was not moved.

use std::time::SystemTime;

use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;

use super::super::revocation::RevocationList;
use super::{Authority, ORGANIZATION, certificate, next_number};
use crate::io::clock::rfc3339;
use crate::io::identity::IdentityError;
use crate::io::identity::disk::{self, Layout};
use crate::io::identity::key::Key;
use crate::io::identity::pki::{Bundle, DEVELOPMENT, Root};
use crate::io::identity::tokens::MAX_FORMER;
use crate::io::identity::trust::{MAX_DROPPED, Rotation, RotationStep, TrustList, digest};
use crate::proto::node::KeyId;

/// Why a rotation does not begin or go on. Nothing changed; the operator acts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// The authority is being replaced already: it goes on by itself, or is aborted.
    #[error("{by} began to rotate the authority at {}: wait for its end, or abort it", rfc3339(*began))]
    UnderWay {
        /// Who began it.
        by: String,
        /// When.
        began: SystemTime,
    },
    /// The authority is not being replaced.
    #[error("no rotation of the authority is under way")]
    None,
    /// Another key for tokens is on its way already.
    #[error("{by} began to rotate the key of tokens at {}: wait for its end, or abort it", rfc3339(*began))]
    TokensUnderWay {
        /// Who began it.
        by: String,
        /// When.
        began: SystemTime,
    },
    /// No other key for tokens is on its way.
    #[error(
        "no rotation of the key of tokens is under way: one that signs already is replaced by another rotation"
    )]
    NoTokens,
    /// The tokens of as many former keys count as may.
    #[error(
        "the tokens of {MAX_FORMER} former keys count still, the earliest until {}: wait, or have them refused at once",
        rfc3339(*until)
    )]
    TokenKeysFull {
        /// Until when those of the earliest count.
        until: SystemTime,
    },
    /// The key that is here is an intermediate authority's, which signs no list of whom to trust.
    #[error("the authority's key here is an intermediate's: do it where the root's key is")]
    NoRoot,
    /// The authority's files cannot be used or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Authority {
    /// The rotation that is under way, and how far it is.
    pub fn rotation(&self) -> Option<(Rotation, RotationStep)> {
        self.verifier.trusted().list.rotation()
    }

    /// Makes a new authority that the cluster is to trust beside the present one.
    ///
    /// # Errors
    /// [`RotationError::UnderWay`] when there is a rotation already: who began it, and when. Nothing is changed then.
    pub fn begin_rotation(&self, by: &str, now: SystemTime) -> Result<(), RotationError> {
        self.change(now, |authority, list| {
            if let Some(Rotation { began, by, .. }) = &list.rotation {
                return Err(RotationError::UnderWay { by: by.clone(), began: *began });
            }
            let layout = Layout::new(&authority.home);
            // The key that issues may still lie where the next one comes.
            authority.put_key(layout)?;
            let organization = if authority.root.development { DEVELOPMENT } else { ORGANIZATION };
            let key = Key::generate()?;
            let made = certificate(authority.cluster(), &key, organization, now)?;
            let pem = key.to_pem()?;
            disk::write(&layout.of_authority(disk::NEXT_KEY), pem.as_bytes(), disk::PRIVATE)?;
            let target = KeyId::of_public_key(&key.subject_public_key_info());
            let by = by.chars().filter(|c| !c.is_control()).take(200).collect();
            list.bundle = with(&list.bundle, Some(made.der().clone()), |_| false)?;
            list.rotation = Some(Rotation { began: now, target, by });
            Ok(())
        })
    }

    /// Has the new authority issue. Every node should trust it by now.
    ///
    /// # Errors
    /// [`RotationError::None`]. Nothing is changed then.
    pub fn move_rotation(&self, now: SystemTime) -> Result<(), RotationError> {
        self.change(now, |_, list| {
            let target = list.rotation.as_ref().ok_or(RotationError::None)?.target;
            list.bundle = with(&list.bundle, None, |key| key == target)?;
            Ok(())
        })
    }

    /// Drops every authority but the one that the rotation leads to and its intermediates, which is `to` if that is given. Every node should have a
    /// certificate of it by now: what has none is cut off.
    ///
    /// # Errors
    /// [`RotationError::None`], also when the rotation leads to another one meanwhile. Nothing is changed then.
    pub fn finish_rotation(&self, to: Option<KeyId>, now: SystemTime) -> Result<(), RotationError> {
        self.change(now, |_, list| {
            let target = list.rotation.take().ok_or(RotationError::None)?.target;
            if to.is_some_and(|to| to != target) {
                return Err(RotationError::None);
            }
            let (kept, dropped): (Vec<_>, Vec<_>) =
                list.bundle.roots().iter().cloned().partition(|root| root.top() == target);
            while list.dropped.len() + dropped.len() > MAX_DROPPED {
                list.dropped.pop_first();
            }
            list.dropped.extend(dropped.iter().map(|root| digest(&root.der)));
            let kept = kept.into_iter().map(|root| root.der).collect();
            list.bundle = Bundle::of(kept).map_err(|_none| RotationError::None)?;
            Ok(())
        })?;
        Ok(self.tidy_keys()?)
    }

    /// Goes back to the authority that the rotation began with: it issues again, and certificates of the new one are
    /// replaced. Ends like a rotation, with [`Authority::finish_rotation`].
    ///
    /// # Errors
    /// [`RotationError::None`]. Nothing is changed then.
    pub fn abort_rotation(&self, now: SystemTime) -> Result<(), RotationError> {
        self.change(now, |_, list| {
            let rotation = list.rotation.as_mut().ok_or(RotationError::None)?;
            let is_other = |root: &&Root| root.parent.is_none() && root.key != rotation.target;
            let other = list.bundle.roots().iter().find(is_other);
            let target = other.ok_or(RotationError::None)?.key;
            rotation.target = target;
            list.bundle = with(&list.bundle, None, |key| key == target)?;
            Ok(())
        })
    }

    /// Has every node renew its certificate.
    ///
    /// # Errors
    /// [`RotationError::Identity`]; nothing is changed then.
    pub fn renew_nodes(&self, now: SystemTime) -> Result<(), RotationError> {
        self.change(now, |_, list| {
            list.renew = now;
            Ok(())
        })
    }

    /// Writes the next trust list, under the directory's lock, and has the lists signed by whoever issues then.
    pub(super) fn change(
        &self,
        now: SystemTime,
        change: impl FnOnce(&Self, &mut TrustList) -> Result<(), RotationError>,
    ) -> Result<(), RotationError> {
        let layout = Layout::new(&self.home);
        let _lock = layout.lock()?;
        // Another process may have changed it since this authority was opened.
        let present = Self::open(&self.home)?;
        if present.root.parent.is_some() {
            return Err(RotationError::NoRoot);
        }
        let mut list = present.verifier.trusted().list.clone();
        change(&present, &mut list)?;
        list.number = next_number(list.number, now);
        // The new key, too, which is there by now.
        let keys = Keys::read(layout)?;
        let text = list.signed(&keys.all())?;
        disk::write(&layout.of_authority(disk::TRUST), text.as_bytes(), disk::PUBLIC)?;
        let pem = list.bundle.to_pem();
        disk::write(&layout.of_authority(disk::CERTIFICATE), pem.as_bytes(), disk::PUBLIC)?;
        let changed = Self::open(&self.home)?;
        // What an authority signed that is there no more is signed anew.
        let kept = changed.verifier.trusted();
        let stays = |root: &Root| kept.bundle.root(root.key).is_some();
        let all_stay = present.verifier.trusted().bundle.roots().iter().all(stays);
        if changed.root.key != present.root.key || !all_stay {
            changed.sign_lists(layout, now)?;
        }
        Ok(())
    }

    /// Signs the lists with the key that issues now.
    fn sign_lists(&self, layout: Layout<'_>, now: SystemTime) -> Result<(), IdentityError> {
        let mut list = RevocationList::clone(&self.verifier.list());
        if !list.entries.is_empty() {
            list.number = next_number(list.number, now);
            let path = layout.of_authority(disk::REVOCATIONS);
            disk::write(&path, self.signed(&list, now)?.as_bytes(), disk::PUBLIC)?;
        }
        self.sign_tokens(layout, now)
    }

    /// Puts the key that issues in its place, and removes the one that nobody trusts any more.
    fn tidy_keys(&self) -> Result<(), IdentityError> {
        let layout = Layout::new(&self.home);
        let _lock = layout.lock()?;
        Self::open(&self.home)?.put_key(layout)
    }

    /// [`Authority::tidy_keys`] for a caller that holds the lock, while no rotation is under way.
    fn put_key(&self, layout: Layout<'_>) -> Result<(), IdentityError> {
        let [key, next] = [disk::KEY, disk::NEXT_KEY].map(|file| layout.of_authority(file));
        let first = disk::read_key(&key, super::key_fix())?;
        if first.point() == self.issuer.key().point() {
            return disk::remove(&next);
        }
        disk::rename(&next, &key)
    }
}

/// The private keys of authorities that lie in a certificate directory.
pub(super) struct Keys(Vec<Key>);

impl Keys {
    /// Those that are there: one, and during a rotation two.
    pub(super) fn read(layout: Layout<'_>) -> Result<Self, IdentityError> {
        let mut keys = vec![disk::read_key(&layout.of_authority(disk::KEY), super::key_fix())?];
        match disk::read_key(&layout.of_authority(disk::NEXT_KEY), super::key_fix()) {
            Ok(next) => keys.push(next),
            Err(IdentityError::Missing { .. }) => {}
            Err(other) => return Err(other),
        }
        Ok(Self(keys))
    }

    fn all(&self) -> Vec<&Key> {
        self.0.iter().collect()
    }

    /// Whether the one with this id is there.
    pub(super) fn has(&self, id: KeyId) -> bool {
        let of = |key: &Key| KeyId::of_public_key(&key.subject_public_key_info()) == id;
        self.0.iter().any(of)
    }

    /// The one with this id.
    pub(super) fn take(self, id: KeyId) -> Option<Key> {
        let of = |key: &Key| KeyId::of_public_key(&key.subject_public_key_info()) == id;
        self.0.into_iter().find(of)
    }
}

/// The bundle with one more authority, and with those first that are to be.
pub(super) fn with(
    bundle: &Bundle,
    more: Option<CertificateDer<'static>>,
    first: impl Fn(KeyId) -> bool,
) -> Result<Bundle, IdentityError> {
    let (front, back): (Vec<_>, Vec<_>) =
        bundle.roots().iter().cloned().partition(|root| first(root.key));
    let roots = front.into_iter().chain(back).map(|root| root.der).chain(more);
    Bundle::of(roots.collect()).map_err(|_unsound| IdentityError::Crypto("make a sound bundle"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::clock::wall;
    use crate::io::identity::CertificateFault;
    use crate::io::identity::{Identity, LeafOptions, Validity};
    use crate::proto::node::NodeName;
    use crate::proto::token::Role;

    const SECOND: Duration = Duration::from_secs(1);

    struct Cluster {
        dir: tempfile::TempDir,
        now: SystemTime,
    }

    impl Cluster {
        fn new() -> Self {
            let cluster = Self { dir: tempfile::tempdir().unwrap(), now: wall() };
            Authority::init(cluster.dir.path(), cluster.now).unwrap();
            cluster
        }

        fn authority(&self) -> Authority {
            Authority::open(self.dir.path()).unwrap()
        }

        fn load(&self, name: &NodeName) -> Result<Identity, IdentityError> {
            Identity::load(self.dir.path(), name, wall())
        }

        fn trust(&self) -> Vec<u8> {
            std::fs::read(self.dir.path().join("ca/trust")).unwrap()
        }
    }

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn a_cluster_moves_to_a_new_authority_and_keeps_its_id_its_tokens_and_its_revocations() {
        let cluster = Cluster::new();
        let (authority, now) = (cluster.authority(), cluster.now);
        let id = authority.cluster();
        let [a, b, c] = ["a@h", "b@h", "c@h"].map(name);
        let issue = |name: &NodeName| {
            cluster
                .authority()
                .reissue(cluster.dir.path(), name, Validity::leaf(wall()), LeafOptions::default())
                .unwrap()
        };
        let [old_a, old_b, old_c] = [&a, &b, &c].map(issue);
        authority.revoke(&c, now).unwrap();
        let token = authority.token("alice", Role::User, vec![], 3600 * SECOND, now).unwrap();
        let before = cluster.load(&a).unwrap();
        let files = std::sync::Arc::new(before).files(cluster.dir.path());
        let (tokens, running) = (
            crate::io::identity::Tokens::of(&crate::io::identity::Lists::new(
                cluster.dir.path().to_owned(),
                old_a.verifier(),
            )),
            old_b.verifier(),
        );

        authority.begin_rotation("ann", now).unwrap();
        assert_eq!(cluster.authority().rotation().unwrap().1, RotationStep::Introduced);
        let fresh = issue(&b);
        assert!(running.peer(&fresh.certificate(), wall()).is_ok(), "the old one issues");
        assert!(files.look(wall()).is_ok());

        cluster.authority().move_rotation(now).unwrap();
        assert_eq!(cluster.authority().rotation().unwrap().1, RotationStep::Moving);
        let new_b = issue(&b);
        assert_ne!(new_b.authority_fingerprint(), old_b.authority_fingerprint());
        assert!(running.peer(&new_b.certificate(), wall()).is_err(), "it knows the old one alone");
        let both = cluster.load(&a).unwrap();
        for identity in [&old_a, &old_b, &new_b] {
            assert!(both.verifier().peer(&identity.certificate(), wall()).is_ok());
        }
        assert!(both.verifier().peer(&old_c.certificate(), wall()).is_err(), "it stays revoked");
        let new_a = issue(&a);

        cluster.authority().finish_rotation(None, now).unwrap();
        let after = cluster.load(&a).unwrap();
        assert_eq!((after.cluster(), cluster.authority().cluster()), (id, id));
        assert!(cluster.authority().rotation().is_none());
        assert!(!cluster.dir.path().join("ca/next.key").exists());
        for identity in [&new_a, &new_b] {
            assert!(after.verifier().peer(&identity.certificate(), wall()).is_ok());
        }
        let dropped = after.verifier().peer(&old_b.certificate(), wall()).unwrap_err();
        assert!(matches!(dropped, CertificateFault::Untrusted), "{dropped}");
        assert!(after.verifier().is_revoked(&serial(&old_c)));
        #[cfg(feature = "gateway")]
        {
            let list = crate::io::identity::Tokens::of(&crate::io::identity::Lists::new(
                cluster.dir.path().to_owned(),
                after.verifier(),
            ));
            list.look().unwrap();
            assert_eq!(list.verify(&token, now).unwrap().sub, "alice");
        }
        let _unused_without_a_gateway = (token, tokens);
    }

    fn serial(identity: &Identity) -> String {
        let peer = identity.verifier().examine(&identity.certificate());
        peer.unwrap().serial
    }

    #[test]
    fn a_second_rotation_hears_of_the_first_and_an_aborted_one_leaves_the_old_authority() {
        let cluster = Cluster::new();
        let now = cluster.now;
        let (a, first) = (name("a@h"), cluster.authority());
        let print = first.fingerprint();
        let old = first.issue(cluster.dir.path(), &a, Validity::leaf(now)).unwrap();
        assert!(matches!(first.abort_rotation(now), Err(RotationError::None)));
        first.begin_rotation("ann\n@h", now).unwrap();
        let error = cluster.authority().begin_rotation("bob", now + SECOND).unwrap_err();
        let RotationError::UnderWay { by, .. } = &error else { panic!("{error}") };
        assert_eq!(by, "ann@h");
        cluster.authority().move_rotation(now).unwrap();
        let moved = cluster.authority();
        assert_ne!(moved.fingerprint(), print);
        let new = moved
            .reissue(cluster.dir.path(), &a, Validity::leaf(now), LeafOptions::default())
            .unwrap();

        moved.abort_rotation(now).unwrap();
        let back = cluster.authority();
        assert_eq!((back.fingerprint(), back.rotation().unwrap().1), (print, RotationStep::Moving));
        let again = back
            .reissue(cluster.dir.path(), &a, Validity::leaf(now), LeafOptions::default())
            .unwrap();
        back.finish_rotation(None, now).unwrap();
        let after = cluster.load(&a).unwrap();
        assert!(after.verifier().peer(&old.certificate(), wall()).is_ok());
        assert!(after.verifier().peer(&again.certificate(), wall()).is_ok());
        assert!(after.verifier().peer(&new.certificate(), wall()).is_err());
        assert!(!cluster.dir.path().join("ca/next.key").exists());
        cluster.authority().begin_rotation("bob", now).expect("the next one may begin");
    }

    #[test]
    fn a_list_counts_with_the_signature_of_a_trusted_authority_alone() {
        let (ours, theirs) = (Cluster::new(), Cluster::new());
        for cluster in [&ours, &theirs] {
            cluster.authority().begin_rotation("ann", cluster.now).unwrap();
        }
        let bundle = |cluster: &Cluster| cluster.authority().verifier.trusted().bundle.clone();
        let trusted = bundle(&ours);
        let list = TrustList::parse(&ours.trust(), &trusted).unwrap().list;
        assert_eq!(list.bundle, trusted);
        assert!(TrustList::parse(&theirs.trust(), &trusted).is_err());
        let text = ours.trust();
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 0x04;
            if let Ok(read) = TrustList::parse(&changed, &trusted) {
                // One of the two signatures may be spoiled.
                assert_eq!(read.list, list, "byte {at}");
            }
            let cut = TrustList::parse(&text[..at], &trusted);
            assert!(cut.is_err() || cut.is_ok_and(|read| read.list == list), "first {at}");
        }
    }

    #[test]
    fn who_missed_the_step_in_between_takes_the_last_list_too() {
        let cluster = Cluster::new();
        let old = cluster.authority().verifier.trusted().bundle.clone();
        cluster.authority().begin_rotation("ann", cluster.now).unwrap();
        cluster.authority().move_rotation(cluster.now).unwrap();
        cluster.authority().finish_rotation(None, cluster.now).unwrap();
        let signed = TrustList::parse(&cluster.trust(), &old);
        let list = signed.expect("the old one has signed it, too").list;
        let trusted = cluster.authority().verifier.trusted();
        assert_eq!(list.in_force(&old).unwrap().bundle, trusted.bundle);
    }

    #[test]
    fn a_crash_between_two_writes_leaves_an_authority_that_goes_on() {
        let cluster = Cluster::new();
        let file = |name: &str| cluster.dir.path().join("ca").join(name);
        let before = std::fs::read(file("cert.pem")).unwrap();
        let old = std::fs::read(file("key.pem")).unwrap();
        cluster.authority().begin_rotation("ann", cluster.now).unwrap();
        cluster.authority().move_rotation(cluster.now).unwrap();
        // As after a crash before the certificates' file was written.
        std::fs::write(file("cert.pem"), &before).unwrap();
        assert_eq!(cluster.authority().rotation().unwrap().1, RotationStep::Moving);
        let next = std::fs::read(file("next.key")).unwrap();
        cluster.authority().finish_rotation(None, cluster.now).unwrap();
        // As after a crash before the key was put in its place.
        let issuing = std::fs::read(file("key.pem")).unwrap();
        assert_eq!(issuing, next);
        let authority = cluster.authority();
        let print = authority.fingerprint();
        std::fs::write(file("key.pem"), old).unwrap();
        disk::write(&file("next.key"), &next, disk::PRIVATE).unwrap();
        assert_eq!(cluster.authority().fingerprint(), print);
        cluster.authority().begin_rotation("bob", cluster.now).unwrap();
        assert_eq!(std::fs::read(file("key.pem")).unwrap(), next, "the only copy is safe");
        assert_eq!(cluster.authority().fingerprint(), print);
        cluster.authority().abort_rotation(cluster.now).unwrap();
        cluster.authority().finish_rotation(None, cluster.now).unwrap();
        let authority = cluster.authority();
        assert_eq!(authority.fingerprint(), print);
        assert!(authority.issue(cluster.dir.path(), &name("z@h"), Validity::leaf(wall())).is_ok());
    }
}
