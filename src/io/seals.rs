//! This node's seals on what it states, and the check of others'.
//!
//! Invariant: a seal holds only under a certificate that counts now, of a node of that name; that of a certificate which was
//! examined before costs one signature check.

use std::sync::Arc;

use crate::io::clock;
use crate::io::identity::{CertificateDer, CertificateVerifier, Identity};
use crate::proto::node::{Credential, NodeName};
use crate::proto::seal::{Seal, Seals};

/// Checks seals.
#[derive(Debug)]
pub struct SealChecker {
    verifier: CertificateVerifier,
}

impl SealChecker {
    /// A checker that trusts the cluster's CA.
    pub fn new(verifier: CertificateVerifier) -> Self {
        Self { verifier }
    }

    /// What this certificate is of, when its holder, a node of that name, signed the message.
    pub fn proves(
        &self,
        maker: &NodeName,
        certificate: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Option<Credential> {
        let peer = self.verifier.peer(&CertificateDer::from(certificate), clock::wall()).ok()?;
        (peer.name == *maker && peer.verify(message, signature)).then(|| peer.credential())
    }
}

/// The seals of a node.
#[derive(Debug)]
pub struct NodeSeals {
    identity: Arc<Identity>,
    checker: SealChecker,
}

impl NodeSeals {
    /// Those of this node.
    pub fn new(identity: Arc<Identity>) -> Self {
        let checker = SealChecker::new(identity.verifier());
        Self { identity, checker }
    }
}

impl Seals for NodeSeals {
    fn make(&mut self, statement: &[u8]) -> Option<Seal> {
        let certificate = self.identity.certificate().to_vec();
        let signature = self.identity.sign(statement).ok()?;
        Some(Seal { certificate, signature })
    }

    fn is_current(&self, seal: &Seal) -> bool {
        *self.identity.certificate() == *seal.certificate
    }

    fn credential(&self, seal: &Seal) -> Option<Credential> {
        let certificate = CertificateDer::from(seal.certificate.as_slice());
        self.checker.verifier.peer(&certificate, clock::wall()).ok().map(|peer| peer.credential())
    }

    fn may_operate(&self, seal: &Seal) -> bool {
        let certificate = CertificateDer::from(seal.certificate.as_slice());
        let peer = self.checker.verifier.peer(&certificate, clock::wall());
        peer.is_ok_and(|peer| peer.capabilities.may_operate())
    }

    fn is_revoked(&self, seal: &Seal) -> bool {
        let certificate = CertificateDer::from(seal.certificate.as_slice());
        self.checker.verifier.revoked(&certificate).is_some()
    }

    fn hold(&mut self, maker: &NodeName, statement: &[u8], seal: &Seal) -> bool {
        let Seal { certificate, signature } = seal;
        self.checker.proves(maker, certificate, statement, signature).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::identity::{Authority, Validity};
    use crate::proto::codec;
    use crate::proto::event::{Author, Operator, Status};
    use crate::proto::lists::ListKind;
    use crate::proto::node::Incarnation;
    use crate::proto::registry::{Profile, Profiles};
    use crate::proto::rows::tests::sealed_by;
    use crate::proto::rows::{Row, Ruling, State, Table, statement};
    use crate::proto::seal::{Equivocation, Sealed};
    use crate::proto::topology::{Cell, Links};

    struct Cluster {
        dir: tempfile::TempDir,
        authority: Authority,
    }

    impl Cluster {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let authority = Authority::init(dir.path(), clock::wall()).expect("a CA");
            Self { dir, authority }
        }

        fn member(&self, name: &str) -> NodeSeals {
            let (name, valid) = (name.parse().expect("valid"), Validity::leaf(clock::wall()));
            let identity = self.authority.issue(self.dir.path(), &name, valid).expect("a leaf");
            NodeSeals::new(Arc::new(identity))
        }
    }

    fn holds<T: Table>(checker: &mut NodeSeals, row: &Row<T::Value>) -> bool {
        let seal = row.seal.as_ref();
        seal.is_some_and(|seal| checker.hold(row.maker(), &statement::<T>(row), seal))
    }

    fn row<V>(value: V) -> Row<V> {
        let (origin, incarnation) = ("b@h".parse().expect("valid"), Incarnation(7));
        Row { origin, incarnation, version: 300, state: State::Live(value), seal: None }
    }

    fn profile() -> Row<Profile> {
        let word = "nlp".parse().expect("a word");
        row(Profile::new([word], ["zone=eu".parse().expect("a pair")], 7).expect("sound"))
    }

    fn cells() -> Row<<Links as Table>::Value> {
        let status = Status::Online;
        let cell =
            Cell { state: status, suspect: true, rtt: Some(9), phi: 1, since: 5, reason: None };
        row([("a@h".parse().expect("valid"), cell)].into())
    }

    fn gone(by: &str) -> Row<Profile> {
        let author = Author::new(by.parse().expect("valid"), Operator::local(1000));
        let ruling = Ruling { forgotten: true, at: 70_000, author, last: None };
        Row { state: State::Ruled(Box::new(ruling)), ..profile() }
    }

    #[test]
    fn a_seal_holds_for_its_maker_in_its_cluster_until_it_is_revoked() {
        let cluster = Cluster::new();
        let [mut a, mut b, mut c] = ["a@h", "b@h", "c@h"].map(|name| cluster.member(name));
        let genuine = sealed_by::<Profiles>(profile(), &mut b);
        assert!(holds::<Profiles>(&mut a, &genuine) && holds::<Profiles>(&mut b, &genuine));
        let links = sealed_by::<Links>(cells(), &mut b);
        assert!(holds::<Links>(&mut a, &links));
        assert!(holds::<Profiles>(&mut a, &sealed_by::<Profiles>(gone("c@h"), &mut c)));
        // Another's key, and another cluster.
        assert!(!holds::<Profiles>(&mut a, &sealed_by::<Profiles>(profile(), &mut c)));
        assert!(!holds::<Links>(&mut a, &sealed_by::<Links>(cells(), &mut c)));
        assert!(!holds::<Profiles>(&mut a, &sealed_by::<Profiles>(gone("b@h"), &mut c)));
        let mut foreign = Cluster::new().member("b@h");
        assert!(!holds::<Profiles>(&mut a, &sealed_by::<Profiles>(profile(), &mut foreign)));
        // A seal on a row of one table does not hold for a row of the other.
        let empty = || row(<Links as Table>::Value::new());
        let other = Row { state: State::Live(Profile::default()), ..profile() };
        let seal = sealed_by::<Links>(empty(), &mut b).seal;
        assert!(!holds::<Profiles>(&mut a, &Row { seal, ..other }));

        let seal = genuine.seal.clone().expect("sealed");
        assert!(!a.is_revoked(&seal));
        let name = "b@h".parse().expect("valid");
        cluster.authority.revoke(&name, clock::wall()).expect("revoked");
        let lists = a.identity.lists();
        assert_eq!(lists.look(ListKind::Revocations).expect("a list"), Some(1));
        assert!(a.is_revoked(&seal) && !holds::<Profiles>(&mut a, &genuine));
    }

    #[test]
    fn two_rows_under_one_mark_are_proof_with_one_key_and_an_event_has_all_of_it() {
        let cluster = Cluster::new();
        let [a, mut b] = ["a@h", "b@h"].map(|name| cluster.member(name));
        let sealed = |row: Row<_>| Sealed {
            statement: statement::<Links>(&row),
            seal: row.seal.expect("sealed"),
        };
        let mut with = |row| sealed(sealed_by::<Links>(row, &mut b));
        let [one, same, other] = [cells(), cells(), row([].into())].map(&mut with);
        assert!(one.statement == same.statement && one.seal != same.seal);
        let keys = [&one, &other].map(|it| a.credential(&it.seal).map(|it| it.key));
        assert!(keys[0].is_some() && keys[0] == keys[1]);
        assert_eq!(Equivocation([one.clone(), same]).subject(), None);
        let proof = Equivocation([one, other]);
        let event = proof.event(keys[0].expect("its key")).expect("a proof");
        let text = serde_json::to_string(&event).expect("plain");
        let read = serde_json::from_str(&text).expect("its own");
        assert_eq!(Equivocation::of_event(&read), Some(proof));
    }

    /// With one byte of the encoded row changed, it is no row, or not what was sealed.
    fn changed<T: Table>(
        row: &Row<T::Value>,
        at: prop::sample::Index,
        to: u8,
    ) -> Option<Row<T::Value>>
    where
        T::Value: serde::de::DeserializeOwned,
    {
        let mut bytes = codec::encode(row).expect("plain");
        let at = at.index(bytes.len());
        let byte = bytes.get_mut(at).filter(|byte| **byte != to)?;
        *byte = to;
        codec::decode(&bytes, 1 << 16).ok().filter(|read| read != row)
    }

    #[test]
    fn no_byte_of_a_statement_can_be_changed() {
        let cluster = Cluster::new();
        let [a, mut b] = ["a@h", "b@h"].map(|name| cluster.member(name));
        let left = State::Gone { at: 0, by: "b@h".parse().expect("valid") };
        let left = Row { state: left, ..cells() };
        let rows = (
            sealed_by::<Links>(cells(), &mut b),
            sealed_by::<Profiles>(profile(), &mut b),
            sealed_by::<Profiles>(gone("b@h"), &mut b),
            sealed_by::<Links>(left, &mut b),
        );
        let checker = std::cell::RefCell::new(a);
        proptest!(ProptestConfig::with_cases(1000), |(at: prop::sample::Index, to: u8)| {
            for row in [&rows.0, &rows.3] {
                // The time of a final tombstone is each node's own.
                let ends = |row: &Row<_>| matches!(row.state, State::Gone { at: 1.., .. });
                if let Some(forged) = changed::<Links>(row, at, to).filter(|it| !ends(it)) {
                    prop_assert!(!holds::<Links>(&mut checker.borrow_mut(), &forged), "{forged:?}");
                }
            }
            for row in [&rows.1, &rows.2] {
                if let Some(forged) = changed::<Profiles>(row, at, to) {
                    prop_assert!(!holds::<Profiles>(&mut checker.borrow_mut(), &forged), "{forged:?}");
                }
            }
        });
    }
}
