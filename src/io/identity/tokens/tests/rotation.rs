//! A new key in the place of the one before.

use super::super::super::{RotationError, TokenRotation, disk};
use super::*;
use crate::io::identity::{KeyFault, Remedy};
use crate::proto::token::{MAX_LIFETIME, TokenKeyId};

const SECOND: Duration = Duration::from_secs(1);
/// Longest life of a token, and what clocks may differ.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60 + 60 * 60);

impl Cluster {
    /// What is under way, once the list that lies there is in force.
    fn rotation(&self) -> TokenRotation {
        self.tokens.look().unwrap();
        self.tokens.0.token_rotation(self.now).unwrap()
    }

    fn begin(&self) -> TokenKeyId {
        self.authority.begin_tokens("ann", self.now).unwrap();
        self.rotation().next.unwrap().0
    }

    fn advance(&self) {
        let next = self.begin();
        self.authority.move_tokens(next, self.now).unwrap();
        self.tokens.look().unwrap();
    }

    fn exists(&self, file: &str) -> bool {
        self.path(file).exists()
    }
}

/// What a node judges by that knows the list that lies there alone.
fn fresh(cluster: &Cluster) -> Tokens {
    Tokens::open(cluster.dir.path()).unwrap()
}

#[test]
fn a_new_key_counts_before_it_signs_and_the_one_before_until_its_last_token_ends() {
    let cluster = cluster();
    let (first, old) = (cluster.token(), cluster.rotation().signs);
    cluster.revoke("one");
    let next = cluster.begin();
    let TokenRotation { signs, next: pending, former } = cluster.rotation();
    let (key, began, by) = pending.unwrap();
    assert_eq!((signs, key, began, by.as_str()), (old, next, cluster.now, "ann"));
    assert_eq!(former, []);
    assert_eq!(cluster.tokens.0.token_keys(cluster.now), [old, next]);
    assert_ne!(old, next);
    let second = cluster.token();
    assert_eq!(cluster.tokens.verify_signed(&second, cluster.now).unwrap().1, old);

    let early = fresh(&cluster);
    cluster.authority.move_tokens(next, cluster.now).unwrap();
    let third = cluster.token();
    for tokens in [&early, &fresh(&cluster)] {
        // Who has not heard yet that the new key signs accepts what it signs, too.
        for token in [&first, &second, &third] {
            assert_eq!(tokens.verify(token, cluster.now).unwrap().sub, "alice");
        }
        assert!(tokens.revoked("one"));
    }
    let TokenRotation { signs, next: pending, former } = cluster.rotation();
    assert_eq!((signs, pending), (next, None));
    let until = cluster.now + LONGEST;
    assert_eq!(former, [(old, until)]);
    assert!(!cluster.exists("next-token.key"), "it lies in its place");
    assert_eq!(cluster.key().id(), next, "and the private key of the one before is gone");
    // To the second.
    let tokens = &cluster.tokens;
    assert!(tokens.counts(old, until - SECOND) && !tokens.counts(old, until));
    assert!(tokens.counts(next, until));
    assert!(LONGEST > MAX_LIFETIME, "no token of it lives longer");
    // The next list forgets it.
    let end = cluster.now + LONGEST;
    cluster.authority.revoke_token("two", end + HOUR, end).unwrap();
    assert!(!cluster.list().contains("former "));
}

#[test]
fn a_second_operator_hears_of_the_first_and_an_aborted_key_has_signed_nothing() {
    let cluster = cluster();
    let first = cluster.rotation().signs;
    let nothing = |done: Result<(), RotationError>| {
        assert!(matches!(done, Err(RotationError::NoTokens)), "{done:?}");
    };
    nothing(cluster.authority.abort_tokens(cluster.now));
    nothing(cluster.authority.move_tokens(first, cluster.now));
    cluster.authority.begin_tokens("ann\n@h", cluster.now).unwrap();
    let list = cluster.list();
    let again = cluster.authority.begin_tokens("bob", cluster.now).unwrap_err();
    assert!(again.to_string().starts_with("ann@h began to rotate the key of tokens"), "{again}");
    assert_eq!(cluster.list(), list);
    let aborted = cluster.rotation().next.unwrap().0;
    cluster.authority.abort_tokens(cluster.now).unwrap();
    assert_eq!((cluster.rotation().signs, cluster.rotation().next), (first, None));
    assert!(!cluster.exists("next-token.key") && !cluster.tokens.counts(aborted, cluster.now));
    nothing(cluster.authority.move_tokens(aborted, cluster.now));
    let next = cluster.begin();
    assert_ne!(next, aborted);
    cluster.authority.move_tokens(next, cluster.now).unwrap();
    nothing(cluster.authority.abort_tokens(cluster.now));
}

#[test]
fn what_is_forced_leaves_one_key_whatever_list_comes_later() {
    let cluster = cluster();
    let (first, lists) = (cluster.token(), cluster.list());
    let refused = |token: &str| cluster.verify(token) == Err(TokenError::Signature);
    // Nothing is under way: a new key.
    cluster.authority.drop_tokens(cluster.now).unwrap();
    let second = (cluster.rotation().signs, cluster.token());
    assert!(refused(&first) && cluster.verify(&second.1).is_ok());
    // A key is on its way, and a former one counts: the one that comes remains.
    cluster.advance();
    let next = cluster.begin();
    assert!(cluster.verify(&second.1).is_ok());
    cluster.authority.drop_tokens(cluster.now).unwrap();
    assert_eq!((cluster.rotation().signs, cluster.rotation().former), (next, vec![]));
    assert!(refused(&second.1) && !cluster.tokens.counts(second.0, cluster.now));
    // A former key counts, and none is on its way: the one that signs remains.
    let third = cluster.token();
    cluster.advance();
    let (signs, fourth) = (cluster.rotation().signs, cluster.token());
    cluster.authority.drop_tokens(cluster.now).unwrap();
    assert_eq!(cluster.rotation().signs, signs);
    assert!(refused(&third) && cluster.verify(&fourth).is_ok());
    assert!(!cluster.exists("next-token.key"));

    // Another host with the authority's key has not heard of all that, and makes a later list.
    let beside = tempfile::tempdir().unwrap();
    fs::create_dir_all(beside.path().join("ca")).unwrap();
    for file in ["cert.pem", "key.pem"] {
        fs::copy(cluster.path(file), beside.path().join("ca").join(file)).unwrap();
    }
    fs::write(beside.path().join("ca/tokens"), lists).unwrap();
    let other = Authority::open(beside.path()).unwrap();
    other.revoke_token("two", cluster.now + 9 * HOUR, cluster.now + HOUR).unwrap();
    fs::copy(beside.path().join("ca/tokens"), cluster.path("tokens")).unwrap();
    assert_eq!(cluster.tokens.look().unwrap(), Some(1));
    assert!(refused(&first) && refused(&third) && cluster.verify(&fourth).is_ok());
    assert!(cluster.tokens.0.lacks(ListKind::Tokens));
    cluster.tokens.0.settle(ListKind::Tokens, cluster.now).unwrap();
    let all = fresh(&cluster);
    assert!(all.verify(&first, cluster.now).is_err() && all.verify(&fourth, cluster.now).is_ok());
    assert!(all.revoked("two"));
    assert!(
        cluster.verify(&cluster.token()).is_ok(),
        "the key that signs is the one that lies here"
    );
    // It has not heard of that either.
    other.revoke_token("three", cluster.now + 9 * HOUR, cluster.now + 2 * HOUR).unwrap();
    fs::copy(beside.path().join("ca/tokens"), cluster.path("tokens")).unwrap();
    assert_eq!(cluster.tokens.look().unwrap(), Some(2));
    assert!(refused(&first) && refused(&third) && cluster.verify(&fourth).is_ok());
}

#[test]
fn an_interrupted_step_is_done_or_was_never_begun() {
    let cluster = cluster();
    let first = cluster.rotation().signs;
    let lay = |file: &str, bytes: &[u8]| {
        disk::write(&cluster.path(file), bytes, disk::PRIVATE).unwrap();
    };
    let read = |file: &str| fs::read(cluster.path(file)).unwrap();
    let (key, list) = (read("token.key"), read("tokens"));
    // The key was written, and no list.
    cluster.begin();
    let stray = read("next-token.key");
    fs::write(cluster.path("tokens"), &list).unwrap();
    let tokens = fresh(&cluster);
    assert!(tokens.verify(&cluster.token(), cluster.now).is_ok());
    assert_eq!(tokens.0.token_rotation(cluster.now).unwrap().next, None);
    cluster.authority.begin_tokens("bob", cluster.now + HOUR).unwrap();
    assert_ne!(read("next-token.key"), stray, "a key that nobody was told of is made anew");

    // The list was written, and the key not put in its place.
    let next = cluster.rotation().next.unwrap().0;
    let moved = read("next-token.key");
    cluster.authority.move_tokens(next, cluster.now).unwrap();
    lay("token.key", &key);
    lay("next-token.key", &moved);
    let token = cluster.token();
    assert_eq!(fresh(&cluster).verify_signed(&token, cluster.now).unwrap().1, next);
    assert_eq!(cluster.rotation().former[0].0, first);
    // The next rotation does not overwrite the key that signs.
    let third = cluster.begin();
    assert_eq!(read("token.key"), moved);
    assert!(cluster.verify(&cluster.token()).is_ok());
    cluster.authority.move_tokens(third, cluster.now).unwrap();
    let former: Vec<_> = cluster.rotation().former.into_iter().map(|(key, _)| key).collect();
    assert_eq!(former, [next, first]);
}

#[test]
fn a_key_that_lies_elsewhere_signs_there_and_is_replaced_from_anywhere() {
    let cluster = cluster();
    let (key, old) = (fs::read(cluster.path("token.key")).unwrap(), cluster.token());
    cluster.begin();
    let list = cluster.list();
    // As on another host of the authority, which has the list and its own copy of the first key.
    let next = fs::read(cluster.path("next-token.key")).unwrap();
    fs::remove_file(cluster.path("next-token.key")).unwrap();
    let elsewhere = |done: Result<(), RotationError>| match done {
        Err(RotationError::Identity(error)) => error.to_string(),
        done => panic!("{done:?}"),
    };
    let id = cluster.rotation().next.unwrap().0;
    for done in
        [cluster.authority.move_tokens(id, cluster.now), cluster.authority.drop_tokens(cluster.now)]
    {
        let said = elsewhere(done);
        assert!(said.contains("token.key is not the key that signs tokens now"), "{said}");
    }
    assert_eq!(cluster.list(), list, "nothing changed");
    assert!(cluster.verify(&cluster.token()).is_ok(), "the first one signs still");
    disk::write(&cluster.path("next-token.key"), &next, disk::PRIVATE).unwrap();
    cluster.authority.move_tokens(id, cluster.now).unwrap();
    disk::write(&cluster.path("token.key"), &key, disk::PRIVATE).unwrap();
    let make = || cluster.authority.token("a", Role::User, vec![], HOUR, cluster.now);
    assert!(matches!(make().unwrap_err(), IdentityError::Key { fault: KeyFault::Replaced, .. }));
    // Whoever has the authority's key may rotate.
    cluster.advance();
    assert!(cluster.verify(&make().unwrap()).is_ok() && cluster.verify(&old).is_ok());
}

#[test]
fn a_list_names_so_many_keys_and_no_more() {
    let cluster = cluster();
    let oldest = cluster.token();
    for _ in 0..MAX_FORMER {
        cluster.advance();
    }
    let list = cluster.list();
    let full = cluster.authority.begin_tokens("ann", cluster.now).unwrap_err();
    assert!(matches!(full, RotationError::TokenKeysFull { .. }), "{full}");
    assert_eq!(cluster.list(), list);
    assert!(cluster.verify(&oldest).is_ok(), "each of them counts");
    // Once the earliest has ended, another one has room.
    cluster.authority.begin_tokens("ann", cluster.now + LONGEST).unwrap();
    cluster.authority.drop_tokens(cluster.now).unwrap();
    cluster.rotation();
    for _ in 0..80 {
        cluster.authority.drop_tokens(cluster.now).unwrap();
    }
    let list = cluster.list();
    let dropped = list.lines().filter(|line| line.starts_with("dropped ")).count();
    assert_eq!(dropped, 64, "those of the longest ago are forgotten");
    assert!(fresh(&cluster).verify(&cluster.token(), cluster.now).is_ok());

    // Signed by the authority, and yet none.
    let layout = Layout::new(cluster.dir.path());
    let authority = disk::read_key(
        &layout.of_authority(disk::KEY),
        disk::Fix { missing: Remedy::Nothing, damaged: Remedy::Nothing },
    );
    let authority = authority.unwrap();
    let body = list.rsplit_once("signature ").unwrap().0;
    let key = "ab".repeat(32);
    let signed = |more: &str| {
        let text = format!("{body}{more}");
        let signature = authority.signature(text.as_bytes()).unwrap();
        let signature = crate::proto::codec::hexadecimal(&signature);
        fs::write(cluster.path("tokens"), format!("{text}signature {signature}\n")).unwrap();
        TokenList::read(layout, cluster.tokens.0.verifier()).map(drop)
    };
    assert!(signed("").is_ok());
    let former = |n: usize| format!("former {key} 99999999999\n").repeat(n);
    assert!(signed(&former(MAX_FORMER)).is_ok());
    let next = format!("next {key} 1 ann on a@h\n");
    assert!(signed(&next).is_ok());
    for bad in [
        former(MAX_FORMER + 1),
        next.repeat(2),
        format!("dropped {key}\n"),
        "former ab 1\n".to_owned(),
        format!("former {key}\n"),
        format!("former {key} soon\n"),
        format!("next {key} 1\n"),
        "dropped \n".to_owned(),
        "key\n".to_owned(),
    ] {
        assert!(signed(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_list_of_an_earlier_version_is_read() {
    let cluster = cluster();
    let list = cluster.list();
    let lines: Vec<&str> = list.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(lines, ["xpando", "number", "key", "signature"], "as before there were more keys");
}
