//! The key and the list: made, read, carried, damaged.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use super::super::super::Identity;
use super::super::super::disk;
use super::*;
use crate::io::identity::{KeyFault, ListFault, Remedy};
use crate::proto::node::NodeName;

#[test]
fn what_ended_is_forgotten_when_the_list_is_rewritten() {
    let cluster = cluster();
    let revoke = |jti: &str, ends, now| cluster.authority.revoke_token(jti, ends, now).unwrap();
    revoke("short", cluster.now + HOUR, cluster.now);
    revoke("long", cluster.now + 9 * HOUR, cluster.now);
    // An hour more is for hosts whose clocks lag.
    assert_eq!(revoke("x", cluster.now + 9 * HOUR, cluster.now + 2 * HOUR).total, 3);
    let later = cluster.now + 2 * HOUR + Duration::from_secs(1);
    assert_eq!(revoke("y", cluster.now + 9 * HOUR, later).total, 3);
    let names = cluster.list();
    assert!(!names.contains("short") && names.contains("revoked long "), "{names}");
    assert!(!revoke("gone", cluster.now, later).added, "it ended by itself");
    // Revoked for longer is news.
    assert!(revoke("y", cluster.now + 10 * HOUR, later).added);
    assert!(!revoke("y", cluster.now + 9 * HOUR, later).added);
}

#[test]
fn a_node_without_a_list_refuses_all_until_it_has_one() {
    let cluster = cluster();
    let token = cluster.token();
    let away = cluster.path("away");
    fs::rename(cluster.path("tokens"), &away).unwrap();
    let tokens = Tokens::open(cluster.dir.path()).unwrap();
    let verify = || tokens.verify(&token, cluster.now).map(|claims| claims.sub);
    assert_eq!(verify(), Err(TokenError::NoKey));
    assert_eq!((tokens.look().unwrap(), verify()), (None, Err(TokenError::NoKey)));
    fs::write(cluster.path("tokens"), "rubbish").unwrap();
    assert!(tokens.look().is_err());
    assert_eq!(verify(), Err(TokenError::NoKey));
    fs::rename(&away, cluster.path("tokens")).unwrap();
    assert_eq!((tokens.look().unwrap(), verify()), (Some(0), Ok("alice".to_owned())));
    assert!(!tokens.revoked("x"));
}

#[test]
fn a_running_node_keeps_the_newest_good_list() {
    let ours = cluster();
    let (tokens, path) = (&ours.tokens, ours.path("tokens"));
    let first = ours.list();
    ours.revoke("one");
    assert_eq!(tokens.look().unwrap(), Some(1));
    assert_eq!(tokens.look().unwrap(), None, "told once");
    let second = ours.list();
    let written = |text: &str| {
        // In a new file each time, so that it is looked at.
        fs::write(ours.path("new"), text).unwrap();
        fs::rename(ours.path("new"), &path).unwrap();
        let error = tokens.look().unwrap_err().to_string();
        assert_eq!(tokens.look().unwrap(), None, "the same file is not judged twice");
        assert!(tokens.revoked("one"), "{error}");
        error
    };
    let refused = |text: &str| {
        let error = written(text);
        assert!(error.contains("ca/tokens cannot be used") && error.contains("copy it anew"));
        error
    };
    assert!(written(&first).contains("than the list in force"));
    assert!(refused(&second[..second.len() / 2]).contains("not a whole list"));
    assert!(refused("").contains("not a whole list"));
    let unsigned = second.rsplit_once("signature").unwrap().0;
    refused(unsigned);
    let foreign = cluster();
    foreign.revoke("one");
    assert!(refused(&foreign.list()).contains("has not signed it"));
    fs::remove_file(&path).unwrap();
    assert!(matches!(tokens.look(), Err(IdentityError::Missing { .. })));
    assert!(tokens.revoked("one"));
    fs::write(&path, &second).unwrap();
    assert_eq!(tokens.look().unwrap(), None, "the same list again");
    ours.revoke("two");
    assert_eq!(tokens.look().unwrap(), Some(2));
}

#[test]
fn of_two_lists_of_the_same_number_both_count() {
    let cluster = cluster();
    let first = cluster.list();
    cluster.revoke("one");
    let second = cluster.list();
    fs::write(cluster.path("tokens"), &first).unwrap();
    cluster.revoke("two");
    let third = cluster.list();
    let number = |text: &str| text.lines().nth(1).map(str::to_owned);
    assert_eq!(number(&second), number(&third), "two copies of one authority");
    for (text, found) in [(&second, 1), (&third, 2)] {
        fs::write(cluster.path("new"), text).unwrap();
        fs::rename(cluster.path("new"), cluster.path("tokens")).unwrap();
        assert_eq!(cluster.tokens.look().unwrap(), Some(found));
    }
    assert!(cluster.tokens.revoked("one") && cluster.tokens.revoked("two"));
}

#[test]
fn no_changed_byte_of_a_list_makes_another_list() {
    let cluster = cluster();
    cluster.revoke("one");
    let text = cluster.list();
    let layout = Layout::new(cluster.dir.path());
    let read = || TokenList::read(layout, cluster.tokens.0.verifier());
    let ours = read().unwrap().unwrap();
    for at in 0..text.len() {
        for bit in [1, 4, 32] {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= bit;
            fs::write(cluster.path("tokens"), &changed).unwrap();
            if let Ok(list) = read() {
                // The signature itself may be spelled in capitals.
                assert_eq!(list, Some(ours.clone()), "byte {at} ^ {bit}");
            }
        }
    }
    for line in ["revoked two 9999999999\n", "x\n", "\n"] {
        let at = text.find("signature").unwrap();
        fs::write(cluster.path("tokens"), [&text[..at], line, &text[at..]].concat()).unwrap();
        assert!(read().is_err(), "{line:?}");
    }
}

#[test]
fn a_huge_file_is_not_read_to_its_end() {
    let cluster = cluster();
    let mut huge = "x".repeat(usize::try_from(disk::MAX_LIST).unwrap());
    huge.push('\n');
    huge.push_str(&cluster.list());
    fs::write(cluster.path("tokens"), huge).unwrap();
    let error = Tokens::open(cluster.dir.path()).unwrap_err();
    assert!(error.to_string().contains("not a whole list"), "{error}");
    // Nor does an authority replace what it cannot read.
    assert!(cluster.authority.revoke_token("x", cluster.now + HOUR, cluster.now).is_err());
    let make = cluster.authority.token("a", Role::User, vec![], HOUR, cluster.now);
    assert!(matches!(
        make,
        Err(IdentityError::List { kind: ListKind::Tokens, fault: ListFault::Unusable(_), .. })
    ));
}

#[test]
fn the_private_key_is_the_owners_alone_and_not_shown() {
    let cluster = cluster();
    let mode = |path: &str| fs::metadata(cluster.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("token.key"), mode("tokens")), (0o600, 0o644));
    fs::remove_file(cluster.path("token.key")).unwrap();
    cluster.token();
    assert_eq!(mode("token.key"), 0o600, "one that is made later, too");
    let key = cluster.key();
    assert_eq!(format!("{key:?}"), "TokenKey(secret)");
    assert!(key.to_pem().unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    fs::set_permissions(cluster.path("token.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = cluster.authority.token("a", Role::User, vec![], HOUR, cluster.now).unwrap_err();
    assert!(matches!(error, IdentityError::Key { fault: KeyFault::Exposed(_), .. }), "{error}");
    fs::set_permissions(cluster.path("token.key"), fs::Permissions::from_mode(0o600)).unwrap();
    // A key of another kind signs no token, and is not replaced by itself.
    fs::copy(cluster.path("key.pem"), cluster.path("token.key")).unwrap();
    let error = cluster.authority.token("a", Role::User, vec![], HOUR, cluster.now).unwrap_err();
    assert!(matches!(error, IdentityError::Key { fault: KeyFault::Damaged, .. }), "{error}");
}

#[test]
fn an_older_authority_gets_its_files_with_the_first_token() {
    let cluster = cluster();
    fs::remove_file(cluster.path("token.key")).unwrap();
    fs::remove_file(cluster.path("tokens")).unwrap();
    let token = cluster.token();
    let tokens = Tokens::open(cluster.dir.path()).unwrap();
    assert!(tokens.verify(&token, cluster.now).is_ok());
}

#[test]
fn a_lost_key_is_made_anew_and_another_one_signs_nothing() {
    let cluster = cluster();
    let old = cluster.token();
    cluster.revoke("one");
    // As after a crash between the two, or when the operator wants every token refused.
    fs::remove_file(cluster.path("token.key")).unwrap();
    let new = cluster.token();
    assert_eq!(cluster.tokens.look().unwrap(), Some(1), "a newer list");
    assert_eq!(cluster.verify(&old), Err(TokenError::Signature));
    assert!(cluster.verify(&new).is_ok() && cluster.tokens.revoked("one"));
    // A key that the list does not name, as from an old backup, signs nothing and changes nothing.
    let (other, list) = (super::cluster(), cluster.list());
    let own = fs::read(cluster.path("token.key")).unwrap();
    fs::copy(other.path("token.key"), cluster.path("token.key")).unwrap();
    let make = || cluster.authority.token("a", Role::User, vec![], HOUR, cluster.now);
    let error = make().unwrap_err();
    assert!(matches!(error, IdentityError::Key { fault: KeyFault::Replaced, .. }), "{error}");
    assert_eq!(cluster.list(), list);
    // What is revoked is revoked all the same.
    assert!(cluster.revoke("two").added);
    fs::write(cluster.path("token.key"), own).unwrap();
    let latest = make().unwrap();
    // The list alone is lost: the key stays.
    fs::remove_file(cluster.path("tokens")).unwrap();
    cluster.token();
    assert!(Tokens::open(cluster.dir.path()).unwrap().verify(&latest, cluster.now).is_ok());
}

#[test]
fn tokens_that_are_made_together_are_all_good() {
    let cluster = cluster();
    fs::remove_file(cluster.path("token.key")).unwrap();
    fs::remove_file(cluster.path("tokens")).unwrap();
    let barrier = Barrier::new(8);
    let make = |i: usize| {
        let authority = Authority::open(cluster.dir.path()).unwrap();
        barrier.wait();
        if i % 4 == 3 {
            let (jti, ends) = (i.to_string(), cluster.now + HOUR);
            authority.revoke_token(&jti, ends, cluster.now).unwrap();
        }
        authority.token(&format!("u{i}"), Role::User, vec![], HOUR, cluster.now).unwrap()
    };
    let made: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || make(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let tokens = Tokens::open(cluster.dir.path()).unwrap();
    for token in made {
        assert!(tokens.verify(&token, cluster.now).is_ok());
    }
    assert!(tokens.revoked("3") && tokens.revoked("7"), "no list is lost between two");
}

#[test]
fn nodes_that_start_together_agree_on_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let barrier = Barrier::new(6);
    let start = |i: usize| {
        let name: NodeName = format!("n{i}@127.0.0.1").parse().unwrap();
        barrier.wait();
        let (identity, _) = Identity::load_or_develop(dir.path(), &name, wall()).unwrap();
        let tokens = Tokens::of(&identity.lists());
        assert_eq!(tokens.look().unwrap(), Some(0), "the list is there with the authority");
        let authority = Authority::open(dir.path()).unwrap();
        (tokens, authority.token("a", Role::User, vec![], HOUR, wall()).unwrap())
    };
    let started: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|i| scope.spawn(move || start(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (tokens, _) in &started {
        for (_, token) in &started {
            assert!(tokens.verify(token, wall()).is_ok());
        }
    }
}

#[test]
fn a_list_grows_no_longer_than_nodes_read() {
    let cluster = cluster();
    let layout = Layout::new(cluster.dir.path());
    let fix = disk::Fix { missing: Remedy::Nothing, damaged: Remedy::Nothing };
    let authority = disk::read_key(&layout.of_authority(disk::KEY), fix).unwrap();
    let ends = seconds(cluster.now + HOUR);
    let mut list = TokenList::first(cluster.key().id(), cluster.now);
    let line = "revoked  1234567890\n".len() + 64;
    let most = usize::try_from(disk::MAX_LIST).unwrap() / line;
    list.revoked = (0..most - 8).map(|i| (format!("{i:064}"), ends)).collect();
    let text = list.signed(cluster.authority.cluster(), &authority).unwrap();
    fs::write(cluster.path("tokens"), &text).unwrap();
    let revoke = |i: usize| {
        let jti = format!("x{i:063}");
        cluster.authority.revoke_token(&jti, cluster.now + HOUR, cluster.now)
    };
    let full = (0..8).find_map(|i| revoke(i).err()).unwrap();
    assert!(matches!(full, IdentityError::List { fault: ListFault::Full, .. }), "{full}");
    // What is there can still be read, and so revokes.
    assert!(cluster.tokens.look().unwrap().unwrap() >= most - 8);
}
