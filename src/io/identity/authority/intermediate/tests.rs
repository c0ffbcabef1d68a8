//! What an intermediate authority can do, what it cannot, and how it ends.

use std::sync::Arc;

use super::super::super::{Identity, LeafOptions, Lists, Revocee, Validity, enrol};
use super::*;
use crate::io::clock::{unix_seconds, wall};
use crate::io::identity::pki::DAY;
use crate::io::identity::revocation::{Revocation, RevocationList};
use crate::io::identity::tokens::list::TokenList;
use crate::io::identity::{CertificateFault, Remedy};
use crate::proto::capability::Capabilities;
use crate::proto::lists::ListKind;
use crate::proto::node::NodeName;
#[cfg(feature = "gateway")]
use crate::proto::token::Role;

/// A cluster whose root is on one host, and whose certificates are issued on another one.
struct Cluster {
    root: tempfile::TempDir,
    host: tempfile::TempDir,
    made: Intermediate,
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn issued(at: &Path, node: &str) -> Identity {
    Authority::open(at)
        .unwrap()
        .reissue(at, &name(node), Validity::leaf(wall()), LeafOptions::default())
        .unwrap()
}

impl Cluster {
    fn new() -> Self {
        let [root, host] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        Authority::init(root.path(), wall()).unwrap();
        let made = more(root.path(), host.path());
        Self { root, host, made }
    }

    fn authority(&self) -> Authority {
        Authority::open(self.root.path()).unwrap()
    }

    fn revoke(&self, at: &Path) {
        let serial = Revocee::Serial(self.made.serial.clone());
        Authority::open(at).unwrap().revoke_for(&serial, None, wall()).unwrap();
    }
}

/// An intermediate authority of the root in one directory, for the other one.
fn more(root: &Path, host: &Path) -> Intermediate {
    let request = request_authority(host).unwrap();
    let authority = Authority::open(root).unwrap();
    let (made, answer) = authority.sign_authority(request.as_bytes(), wall()).unwrap();
    assert!(is_authority_answer(&answer));
    assert_eq!(accept_authority(host, &answer).unwrap(), made);
    made
}

fn verdict(of: &Identity, by: &Identity) -> Result<NodeName, CertificateFault> {
    by.verifier().peer(&of.certificate(), wall()).map(|peer| peer.name)
}

#[test]
fn what_an_intermediate_issues_is_accepted_by_all_who_trust_the_root() {
    let cluster = Cluster::new();
    let (a, b) = (issued(cluster.root.path(), "a@h"), issued(cluster.host.path(), "b@h"));
    assert_eq!(verdict(&b, &a).unwrap(), name("b@h"));
    assert_eq!(verdict(&a, &b).unwrap(), name("a@h"));
    assert_eq!((a.cluster(), a.authority()), (b.cluster(), b.authority()));
    assert_ne!(a.authority_fingerprint(), b.authority_fingerprint());
    assert_eq!(b.authority_fingerprint(), cluster.made.fingerprint);
    assert!(!a.is_outdated() && !b.is_outdated(), "nobody renews because of it");
    // A node that runs takes it by the list.
    let before = tempfile::tempdir().unwrap();
    Authority::init(before.path(), wall()).unwrap();
    let running = issued(before.path(), "r@h");
    let lists = Lists::new(before.path().to_owned(), running.verifier());
    let host = tempfile::tempdir().unwrap();
    more(before.path(), host.path());
    lists.look(ListKind::Trust).unwrap();
    let late = issued(host.path(), "l@h");
    assert_eq!(verdict(&late, &running).unwrap(), name("l@h"));
    assert!(verdict(&late, &a).is_err(), "it is of another cluster");
}

#[test]
fn an_intermediate_ends_with_all_that_it_issued_when_the_root_revokes_it() {
    let cluster = Cluster::new();
    let b = issued(cluster.host.path(), "b@h");
    let [by_list, by_trust] = [(); 2].map(|()| issued(cluster.root.path(), "a@h"));
    let of_root = issued(cluster.root.path(), "c@h");
    cluster.revoke(cluster.root.path());
    let lists = |of: &Identity| Lists::new(cluster.root.path().to_owned(), of.verifier());
    lists(&by_list).look(ListKind::Revocations).unwrap();
    let error = verdict(&b, &by_list).unwrap_err();
    assert!(matches!(error, CertificateFault::Revoked(_)), "{error}");
    assert!(by_list.verifier().revoked(&b.certificate()).is_some(), "TLS and seals");
    lists(&by_trust).look(ListKind::Trust).unwrap();
    let error = verdict(&b, &by_trust).unwrap_err();
    assert!(matches!(error, CertificateFault::Untrusted), "{error}");
    for by in [&by_list, &by_trust] {
        assert!(verdict(&of_root, by).is_ok());
    }
    // What the root starts with now is whole, and another intermediate may come.
    let after = Identity::load(cluster.root.path(), &name("a@h"), wall()).unwrap();
    assert!(verdict(&b, &after).is_err() && verdict(&of_root, &after).is_ok());
    let next = tempfile::tempdir().unwrap();
    more(cluster.root.path(), next.path());
    let d = issued(next.path(), "d@h");
    let after = Identity::load(cluster.root.path(), &name("a@h"), wall()).unwrap();
    assert!(verdict(&d, &after).is_ok() && verdict(&b, &after).is_err());
}

#[test]
fn an_intermediate_that_its_own_host_revokes_is_out_and_issues_no_more() {
    let cluster = Cluster::new();
    let b = issued(cluster.host.path(), "b@h");
    let lists = Lists::new(cluster.host.path().to_owned(), b.verifier());
    cluster.revoke(cluster.host.path());
    assert!(!b.is_revoked());
    lists.look(ListKind::Revocations).unwrap();
    assert!(b.is_revoked() && b.check_revoked().is_err());
    let error = Authority::open(cluster.host.path()).unwrap_err();
    assert_eq!(error.remedy(), Remedy::RestorePair, "{error}");
    let error = Identity::load(cluster.host.path(), &name("b@h"), wall()).unwrap_err();
    assert!(
        matches!(&error, IdentityError::Certificate { fault: CertificateFault::Revoked(_), .. }),
        "{error}"
    );
    // Its host may ask for another one.
    more(cluster.root.path(), cluster.host.path());
    let fresh = issued(cluster.host.path(), "b@h");
    assert!(!fresh.is_revoked() && verdict(&fresh, &b).is_err(), "it has not the list yet");
}

#[test]
fn an_intermediate_makes_no_authority_and_no_list_of_whom_to_trust() {
    let cluster = Cluster::new();
    let host = Authority::open(cluster.host.path()).unwrap();
    let third = tempfile::tempdir().unwrap();
    let request = request_authority(third.path()).unwrap();
    for error in [
        host.begin_rotation("ann", wall()).unwrap_err().to_string(),
        host.renew_nodes(wall()).unwrap_err().to_string(),
        host.sign_authority(request.as_bytes(), wall()).unwrap_err().to_string(),
    ] {
        let allowed = ["is an intermediate's", "allows no intermediate ones"];
        assert!(allowed.iter().any(|part| error.contains(part)), "{error}");
    }
    // What its key signs by hand counts as little.
    let key = Key::generate().unwrap();
    let params = params(Validity::authority(wall()), "evil".to_owned()).unwrap();
    let params = of_authority(host.cluster(), params, 0).unwrap();
    let below = params.signed_by(&key, &host.issuer).unwrap().der().clone();
    let trusted = host.verifier.trusted();
    let mut list = trusted.list.clone();
    assert!(with(&list.bundle, Some(below), |_| false).is_err());
    list.number += 1;
    let text = list.signed(&[host.issuer.key()]).unwrap();
    let error = TrustList::parse(text.as_bytes(), &trusted.bundle).unwrap_err();
    assert!(error.contains("no root authority"), "{error}");
    let root = cluster.authority();
    let text = list.signed(&[root.issuer.key()]).unwrap();
    assert!(TrustList::parse(text.as_bytes(), &trusted.bundle).is_ok());
}

#[test]
fn the_lists_of_an_intermediate_count_until_it_is_revoked() {
    let cluster = Cluster::new();
    let a = issued(cluster.root.path(), "a@h");
    issued(cluster.host.path(), "b@h");
    let host = Authority::open(cluster.host.path()).unwrap();
    host.revoke(&name("b@h"), wall()).unwrap();
    let crl = std::fs::read(cluster.host.path().join("ca/crl.pem")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let lists = Lists::new(home.path().to_owned(), a.verifier());
    assert_eq!(lists.recalled(ListKind::Revocations, &crl), Ok(Some(1)));
    // A number that leaves no room for a later one is refused.
    let entries = RevocationList::clone(&host.verifier.list()).entries;
    let number = unix_seconds(wall()) + 3 * 86_400;
    let far = host.signed(&RevocationList { number, entries: entries.clone() }, wall()).unwrap();
    let refused = lists.recalled(ListKind::Revocations, far.as_bytes()).unwrap_err();
    assert!(refused.to_string().contains("of a time to come"), "{refused}");
    let root = cluster.authority();
    let far = root.signed(&RevocationList { number, entries }, wall()).unwrap();
    assert!(lists.recalled(ListKind::Revocations, far.as_bytes()).is_ok());
    // Revoked, it takes nothing back.
    let mut list = RevocationList::clone(&host.verifier.list());
    let at = Revocation { at: wall(), reason: None };
    list.entries.insert(cluster.made.serial.clone(), at);
    list.number = number + 1;
    let own = root.signed(&list, wall()).unwrap();
    assert!(lists.recalled(ListKind::Revocations, own.as_bytes()).is_ok());
    let late = RevocationList { number: unix_seconds(wall()) + 60, entries: [].into() };
    let late = host.signed(&late, wall()).unwrap();
    let refused = lists.recalled(ListKind::Revocations, late.as_bytes()).unwrap_err();
    assert!(refused.to_string().contains("has not signed it"), "{refused}");
}

#[test]
fn tokens_are_made_where_their_key_is() {
    let cluster = Cluster::new();
    let host = Authority::open(cluster.host.path()).unwrap();
    let at = wall() + DAY;
    let error = host.revoke_token("1", at, wall()).unwrap_err().to_string();
    assert!(error.contains("ca/token.key is missing"), "{error}");
    #[cfg(feature = "gateway")]
    assert!(host.token("alice", Role::User, vec![], DAY, wall()).is_err());
    for file in ["token.key", "tokens"] {
        let [from, to] = [&cluster.root, &cluster.host].map(|it| it.path().join("ca").join(file));
        std::fs::copy(from, to).unwrap();
    }
    host.revoke_token("1", at, wall()).unwrap();
    let a = issued(cluster.root.path(), "a@h");
    let text = std::fs::read(cluster.host.path().join("ca/tokens")).unwrap();
    let lists = Lists::new(cluster.root.path().to_owned(), a.verifier());
    assert_eq!(lists.recalled(ListKind::Tokens, &text), Ok(Some(1)));
}

#[test]
fn a_rotation_drops_the_intermediates_of_the_root_that_goes() {
    let cluster = Cluster::new();
    let (root, host) = (cluster.root.path(), cluster.host.path());
    let now = wall();
    let b = issued(host, "b@h");
    cluster.authority().begin_rotation("ann", now).unwrap();
    let carry = || {
        for file in ["trust", "cert.pem"] {
            std::fs::copy(root.join("ca").join(file), host.join("ca").join(file)).unwrap();
        }
    };
    carry();
    let third = tempfile::tempdir().unwrap();
    let request = request_authority(third.path()).unwrap();
    let error = cluster.authority().sign_authority(request.as_bytes(), now).unwrap_err();
    assert!(error.to_string().contains("ann began to rotate"), "{error}");
    assert!(Authority::open(host).is_ok(), "it issues until nodes are moved");
    cluster.authority().move_rotation(now).unwrap();
    carry();
    assert!(Authority::open(host).is_err(), "its root issues no more");
    let node = Identity::load(host, &name("b@h"), wall()).unwrap();
    assert!(node.is_outdated(), "it asks the new root");
    let a = issued(root, "a@h");
    assert!(verdict(&b, &a).is_ok());
    cluster.authority().finish_rotation(None, now).unwrap();
    carry();
    let a = Identity::load(root, &name("a@h"), wall()).unwrap();
    assert!(matches!(verdict(&b, &a), Err(CertificateFault::Untrusted)));
    // The host asks again, and issues for the new root.
    more(root, host);
    let again = issued(host, "b@h");
    let a = Identity::load(root, &name("a@h"), wall()).unwrap();
    assert_eq!(verdict(&again, &a).unwrap(), name("b@h"));
    assert!(!again.is_outdated());
}

#[test]
fn an_aborted_rotation_keeps_them() {
    let cluster = Cluster::new();
    let b = issued(cluster.host.path(), "b@h");
    let now = wall();
    cluster.authority().begin_rotation("ann", now).unwrap();
    cluster.authority().move_rotation(now).unwrap();
    cluster.authority().abort_rotation(now).unwrap();
    cluster.authority().finish_rotation(None, now).unwrap();
    let a = issued(cluster.root.path(), "a@h");
    assert_eq!(verdict(&b, &a).unwrap(), name("b@h"));
}

#[test]
fn requests_and_answers_that_are_none_are_refused_and_change_nothing() {
    let cluster = Cluster::new();
    let root = cluster.authority();
    let trust = || std::fs::read(cluster.root.path().join("ca/trust")).unwrap();
    let before = trust();
    let own = CertificateParams::default().serialize_request(root.issuer.key()).unwrap();
    let own = own.pem().unwrap();
    let sound = request_authority(tempfile::tempdir().unwrap().path()).unwrap();
    let long = sound.clone() + &"\n".repeat(MAX_REQUEST);
    let label = sound.replace(LABEL, "CERTIFICATE");
    for bad in ["", "rubbish", &own, &long, &label, &sound[..sound.len() / 2]] {
        assert!(root.sign_authority(bad.as_bytes(), wall()).is_err(), "{bad}");
    }
    assert_eq!(trust(), before);
    assert!(matches!(request_authority(cluster.root.path()), Err(IntermediateError::HasRoot)));
    // An answer to another host, and of another cluster.
    let third = tempfile::tempdir().unwrap();
    assert!(accept_authority(third.path(), &before).is_err(), "nothing was asked");
    request_authority(third.path()).unwrap();
    let error = accept_authority(third.path(), &before).unwrap_err().to_string();
    assert!(error.contains("no certificate for the key"), "{error}");
    let other = Cluster::new();
    let request = request_authority(cluster.host.path()).unwrap();
    let (_, foreign) = other.authority().sign_authority(request.as_bytes(), wall()).unwrap();
    let error = accept_authority(cluster.host.path(), &foreign).unwrap_err().to_string();
    assert!(error.contains("no root authority that this cluster trusts"), "{error}");
    assert!(Authority::open(cluster.host.path()).is_ok(), "the one before issues on");
    for text in [&b"xpando trust 1 00\n"[..], b"xpando trust ", &before[..before.len() / 2]] {
        assert!(accept_authority(third.path(), text).is_err());
    }
}

#[test]
fn a_root_of_an_earlier_program_allows_none() {
    let dir = tempfile::tempdir().unwrap();
    let root = Authority::init(dir.path(), wall()).unwrap();
    let params = params(Validity::authority(wall()), "before".to_owned()).unwrap();
    let params = of_authority(root.cluster(), params, 0).unwrap();
    let made = params.self_signed(root.issuer.key()).unwrap();
    std::fs::write(dir.path().join("ca/cert.pem"), made.pem()).unwrap();
    let request = request_authority(tempfile::tempdir().unwrap().path()).unwrap();
    let root = Authority::open(dir.path()).unwrap();
    let error = root.sign_authority(request.as_bytes(), wall()).unwrap_err();
    assert!(matches!(error, IntermediateError::NoneAllowed), "{error}");
}

#[test]
fn a_host_joins_by_an_invitation_of_an_intermediate_and_trusts_the_root() {
    let cluster = Cluster::new();
    let issuer = enrol::Issuer::open(cluster.host.path(), enrol::Rules::default()).unwrap();
    let terms = enrol::Terms {
        names: "*@*".parse().unwrap(),
        time: DAY,
        uses: 1,
        approval: false,
        by: "ann".to_owned(),
        capabilities: Capabilities::OPERATE,
    };
    let at = "10.0.0.1:4369".parse().unwrap();
    let line = issuer.invite(&terms, &[at], wall()).unwrap();
    let machine = tempfile::tempdir().unwrap();
    let joiner = enrol::Joiner::prepare(machine.path(), &name("m@10.0.0.9"), &[], wall()).unwrap();
    let asked = joiner.ask(&line, wall()).unwrap();
    let granted = asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall()).unwrap();
    joiner.write(&granted).unwrap();
    let m = Arc::new(Identity::load(machine.path(), &name("m@10.0.0.9"), wall()).unwrap());
    let a = issued(cluster.root.path(), "a@h");
    assert!(verdict(&m, &a).is_ok() && verdict(&a, &m).is_ok());
    assert!(m.verifier().examine(&m.certificate()).is_ok());
    // It renews where the root issues, too.
    let asked = m.ask_renewal(wall()).unwrap();
    let root = enrol::Issuer::open(cluster.root.path(), enrol::Rules::default()).unwrap();
    let renewed = root.answer(asked.bytes(), &[], wall());
    assert!(asked.check(&renewed.bytes, wall()).is_ok());
    // By a file, where the directory has no authority yet.
    let by_file = tempfile::tempdir().unwrap();
    let joiner = enrol::Joiner::prepare(by_file.path(), &name("f@10.0.0.9"), &[], wall()).unwrap();
    let asked = joiner.ask_operator(wall()).unwrap();
    let answer = issuer.sign(asked.bytes(), Capabilities::OPERATE, wall());
    enrol::accept(by_file.path(), &answer.bytes, wall()).unwrap();
    let f = Identity::load(by_file.path(), &name("f@10.0.0.9"), wall()).unwrap();
    assert!(verdict(&a, &f).is_ok() && verdict(&m, &f).is_ok());
}

#[test]
fn no_list_of_an_intermediate_is_numbered_so_that_the_root_has_no_later_number() {
    let cluster = Cluster::new();
    let a = issued(cluster.root.path(), "a@h");
    issued(cluster.host.path(), "b@h");
    let (host, root) = (Authority::open(cluster.host.path()).unwrap(), cluster.authority());
    let home = tempfile::tempdir().unwrap();
    let now = unix_seconds(wall());
    let tokens = |by: &Authority, number| {
        let list = TokenList::read(Layout::new(cluster.root.path()), &root.verifier).unwrap();
        let list = list.expect("there from the start").after(number, now);
        list.signed(a.cluster(), by.issuer.key()).unwrap()
    };
    let revocations = |by: &Authority, number| {
        by.signed(&RevocationList { number, entries: [].into() }, wall()).unwrap()
    };
    let lists = Lists::new(home.path().to_owned(), a.verifier());
    let take = |kind, list: String| lists.recalled(kind, list.as_bytes()).map(drop);
    for number in [now + 2 * 86_400, u64::MAX] {
        for (kind, far) in [
            (ListKind::Tokens, tokens(&host, number)),
            (ListKind::Revocations, revocations(&host, number)),
        ] {
            let refused = take(kind, far).unwrap_err();
            assert!(refused.to_string().contains("of a time to come"), "{kind:?}: {refused}");
        }
    }
    // A clock that is a little ahead does no harm; the root's numbers are its own.
    take(ListKind::Tokens, tokens(&host, now + 60)).unwrap();
    take(ListKind::Tokens, tokens(&root, now + 2 * 86_400)).unwrap();
}
