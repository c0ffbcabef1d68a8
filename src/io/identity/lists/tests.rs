//! Lists of running nodes: from files, from peers, from earlier runs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::io::clock::wall;
use crate::io::identity::{Authority, RevocationReason, Revocee, Validity};
use crate::io::identity::{CertificateFault, ListFault};
use crate::proto::node::NodeName;

const CRL: ListKind = ListKind::Revocations;

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

/// What another host has of the directory: the authority's certificate and a node's own files.
fn elsewhere(from: &Path, node: &str) -> (tempfile::TempDir, Identity) {
    let dir = tempfile::tempdir().unwrap();
    for file in ["ca/cert.pem", "cert.pem", "key.pem"] {
        let file = if file.contains('/') { file.to_owned() } else { format!("{node}/{file}") };
        let to = dir.path().join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to).unwrap();
    }
    let identity = Identity::load(dir.path(), &name(node), wall()).unwrap();
    (dir, identity)
}

fn crl(certs: &Path) -> PathBuf {
    certs.join("ca/crl.pem")
}

fn verdict(of: &Identity, by: &Identity) -> Result<NodeName, CertificateFault> {
    by.verifier().peer(&of.certificate(), wall()).map(|peer| peer.name)
}

fn latest(lists: &Lists, kind: ListKind) -> Document {
    lists.in_force().get(kind).cloned().unwrap()
}

#[test]
fn a_running_node_takes_a_new_list_and_keeps_the_last_good_one() {
    let (dir, authority, a, b) = cluster();
    let lists = a.lists();
    let look = || lists.look(CRL);
    assert_eq!(look().unwrap(), None, "no list, no news");
    authority.revoke(&name("b@h"), wall()).unwrap();
    assert_eq!(look().unwrap(), Some(1));
    assert_eq!(look().unwrap(), None, "told once");
    assert!(matches!(verdict(&b, &a), Err(CertificateFault::Revoked(_))));
    assert!(!a.is_revoked() && b.verifier().peer(&b.certificate(), wall()).is_ok());

    let first = fs::read(crl(dir.path())).unwrap();
    fs::write(crl(dir.path()), "rubbish").unwrap();
    assert!(matches!(
        look(),
        Err(IdentityError::List { kind: ListKind::Revocations, fault: ListFault::Unusable(_), .. })
    ));
    assert_eq!(look().unwrap(), None, "the same rubbish is not judged twice");
    fs::remove_file(crl(dir.path())).unwrap();
    assert!(matches!(look(), Err(IdentityError::Missing { .. })));
    assert!(verdict(&b, &a).is_err(), "the last good list is in force");

    fs::write(crl(dir.path()), &first).unwrap();
    assert_eq!(look().unwrap(), None, "the same list again");
    authority.revoke(&name("a@h"), wall()).unwrap();
    assert_eq!(look().unwrap(), Some(2));
    assert!(a.is_revoked() && a.check_revoked().is_err());
    fs::write(crl(dir.path()), &first).unwrap();
    let error = look().unwrap_err();
    assert!(matches!(error, IdentityError::List { fault: ListFault::Older { .. }, .. }), "{error}");
    assert!(a.is_revoked());
    let second = latest(&lists, CRL);
    lists.settle(CRL, wall()).unwrap();
    assert_eq!(fs::read(crl(dir.path())).unwrap(), *second.bytes, "the file follows");
    assert_eq!((look().unwrap(), latest(&lists, CRL).mark), (None, second.mark));
}

#[test]
fn a_list_of_a_peer_is_judged_and_reaches_the_file() {
    let (dir, authority, a, b) = cluster();
    let ours = a.lists();
    authority.revoke(&name("b@h"), wall()).unwrap();
    ours.look(CRL).unwrap();
    let sent = latest(&ours, CRL);
    assert!(sent.here);

    let (there, of_b) = elsewhere(dir.path(), "b@h");
    let theirs = of_b.lists();
    let offer = |mark, bytes: &[u8]| theirs.offered(CRL, mark, bytes);
    let other = Mark { number: sent.mark.number + 1, ..sent.mark };
    assert_eq!(offer(other, &sent.bytes), Err(ListRefused::Other));
    assert!(matches!(offer(sent.mark, b"rubbish"), Err(ListRefused::Damaged(_))));
    let (foreign, of_others, ..) = cluster();
    of_others.revoke(&name("b@h"), wall()).unwrap();
    let bytes = fs::read(crl(foreign.path())).unwrap();
    assert!(
        matches!(offer(sent.mark, &bytes), Err(ListRefused::Damaged(why)) if why.contains("signed"))
    );
    assert_eq!(theirs.marks(), Marks::default(), "nothing changed");

    // What is not signed of it goes no further.
    let padded = [b"what nobody signed\n".as_slice(), &sent.bytes].concat();
    assert_eq!(offer(sent.mark, &padded), Ok(Some(1)));
    assert!(of_b.is_revoked() && verdict(&b, &of_b).is_err());
    let taken = latest(&theirs, CRL);
    assert_eq!((taken.mark, &taken.bytes, taken.here), (sent.mark, &sent.bytes, false));
    assert_eq!(offer(sent.mark, &sent.bytes), Ok(None));
    theirs.settle(CRL, wall()).unwrap();
    assert_eq!(fs::read(crl(there.path())).unwrap(), *sent.bytes);
    assert_eq!(theirs.look(CRL).unwrap(), None);
    // An older one, and one of an earlier run.
    let recalled = of_b.lists();
    assert_eq!(recalled.recalled(CRL, &sent.bytes), Ok(None), "the identity has read it");
    authority.revoke(&name("a@h"), wall()).unwrap();
    ours.look(CRL).unwrap();
    let next = latest(&ours, CRL);
    assert_eq!(offer(next.mark, &next.bytes), Ok(Some(2)));
    assert_eq!(offer(sent.mark, &sent.bytes), Err(ListRefused::Older));
    assert!(recalled.recalled(CRL, b"damaged").is_err());
}

#[test]
fn two_lists_that_lack_each_other_are_merged_where_the_key_is() {
    let (dir, authority, ..) = cluster();
    authority.issue(dir.path(), &name("c@h"), Validity::leaf(wall())).unwrap();
    // Two hosts have the authority, and each revokes a node that the other does not.
    let there = tempfile::tempdir().unwrap();
    fs::create_dir_all(there.path().join("ca")).unwrap();
    for file in ["cert.pem", "key.pem", "issued", "tokens", "token.key"] {
        let file = format!("ca/{file}");
        fs::copy(dir.path().join(&file), there.path().join(&file)).unwrap();
        let mode = fs::metadata(dir.path().join(&file)).unwrap().permissions();
        fs::set_permissions(there.path().join(&file), mode).unwrap();
    }
    let second = Authority::open(there.path()).unwrap();
    let a = second.issue(there.path(), &name("a@h"), Validity::leaf(wall())).unwrap();
    let later = wall() + Duration::from_secs(5);
    authority.revoke(&name("b@h"), wall()).unwrap();
    second.revoke(&name("c@h"), later).unwrap();
    let node = Identity::load(dir.path(), &name("a@h"), wall()).unwrap();
    let (first, other) = (node.lists(), a.lists());
    first.look(CRL).unwrap();
    other.look(CRL).unwrap();
    let sent = latest(&other, CRL);
    assert!(sent.mark > latest(&first, CRL).mark);
    assert_eq!(first.offered(CRL, sent.mark, &sent.bytes), Ok(Some(2)), "both count at once");
    assert!(first.lacks(CRL));
    first.settle(CRL, wall()).unwrap();
    let both = latest(&first, CRL);
    assert!(both.mark > sent.mark && both.here && !first.lacks(CRL));
    assert_eq!(other.offered(CRL, both.mark, &both.bytes), Ok(Some(2)));
    assert!(!other.lacks(CRL), "it lacks nothing");
    // Once more changes nothing.
    first.settle(CRL, wall()).unwrap();
    assert_eq!(latest(&first, CRL).mark, both.mark);

    // A list that is made where the clock lags counts, too.
    second.issue(there.path(), &name("d@h"), Validity::leaf(wall())).unwrap();
    fs::remove_file(crl(there.path())).unwrap();
    let lagging = Authority::open(there.path()).unwrap();
    lagging.revoke(&name("d@h"), wall() - Duration::from_secs(900)).unwrap();
    assert_eq!(other.look(CRL).unwrap(), Some(3));
    other.settle(CRL, wall()).unwrap();
    let all = latest(&other, CRL);
    assert!(all.mark > both.mark);
    assert_eq!(first.offered(CRL, all.mark, &all.bytes), Ok(Some(3)));
}

#[test]
fn tokens_are_merged_likewise() {
    let (dir, authority, a, _) = cluster();
    let lists = a.lists();
    lists.look(ListKind::Tokens).unwrap();
    let path = dir.path().join("ca/tokens");
    let first = fs::read(&path).unwrap();
    let ends = wall() + Duration::from_secs(3600);
    authority.revoke_token("one", ends, wall()).unwrap();
    assert_eq!(lists.look(ListKind::Tokens).unwrap(), Some(1));
    fs::write(&path, &first).unwrap();
    authority.revoke_token("two", ends, wall() + Duration::from_secs(5)).unwrap();
    assert_eq!(lists.look(ListKind::Tokens).unwrap(), Some(2), "both count at once");
    assert!(lists.lacks(ListKind::Tokens));
    lists.settle(ListKind::Tokens, wall()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("revoked one ") && text.contains("revoked two "), "{text}");
    assert_eq!(*latest(&lists, ListKind::Tokens).bytes, *text.as_bytes());
}

#[test]
fn a_certificate_is_revoked_by_its_number_and_for_a_reason() {
    let (dir, authority, a, b) = cluster();
    let serial = b.verifier().peer(&b.certificate(), wall()).unwrap().serial;
    let reason = RevocationReason::of("Key compromise");
    assert_eq!(reason, Some(RevocationReason::KeyCompromise));
    assert_eq!(RevocationReason::of("the laptop was stolen"), None);
    let what = Revocee::Serial(serial.clone());
    assert_eq!(
        authority.revoke_for(&what, reason, wall()).unwrap().added,
        *std::slice::from_ref(&serial)
    );
    let list =
        RevocationList::read(Layout::new(dir.path()), &a.verifier().trusted().bundle).unwrap();
    assert_eq!(list.unwrap().entries[&serial].reason, reason);
    let unknown = Revocee::Serial("0a".to_owned());
    let error = authority.revoke_for(&unknown, None, wall()).unwrap_err().to_string();
    assert!(error.contains("certificate 0a was never issued"), "{error}");
}
