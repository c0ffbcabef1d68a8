//! Requests that prove nothing, and answers that somebody on the way has made or changed.

use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType};

use super::*;
use crate::io::identity::enrol::mac::MacKey;
use crate::proto::codec;
use crate::proto::enrol::{AuthorityHash, InvitationId};

/// A part of a request, and a change of it.
type Change<'a> = (&'static str, &'a dyn Fn(&mut Request));

/// The refusal of this request, and that nothing was issued for it.
fn refused(issuer: &Issuer, request: &Request) -> Refused {
    let outcome = issuer.answer(&request.encode().unwrap(), &[], wall()).outcome;
    let Outcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
    refused
}

#[test]
fn no_part_of_a_request_can_be_changed_on_the_way() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&Terms { uses: 9, ..terms() }, &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    let (_mine, mine) = joiner("c@h");
    let of = |joiner: &Joiner| Request::decode(joiner.ask(&line, wall()).unwrap().bytes()).unwrap();
    let sound = of(&first);
    let changes: [Change<'_>; 6] = [
        ("key", &|it| it.csr = of(&mine).csr),
        ("name", &|it| it.name = name("d@h")),
        ("hosts", &|it| it.hosts = vec![host("bank.example")]),
        ("time", &|it| it.time += 1),
        ("authority", &|it| it.authority = AuthorityHash::ANY),
        ("invitation", &|it| {
            let Proof::Invitation { id, .. } = &mut it.proof else { panic!() };
            *id = InvitationId([0; 16]);
        }),
    ];
    for (what, change) in changes {
        let mut changed = sound.clone();
        change(&mut changed);
        assert_eq!(refused(&issuer, &changed), Refused::UnknownInvitation, "{what}");
    }
    assert_eq!(issued_lines(certs.path()), 0);
    assert_eq!(issuer.guesses(), 6);
}

#[test]
fn a_line_of_another_cluster_is_refused_on_both_sides() {
    let ((_a, ours), (b, theirs)) = (cluster(), cluster());
    let line = theirs.invite(&terms(), &seeds(), wall()).unwrap();
    let (home, first) = joiner("c@h");
    let Refused::OtherAuthority { ours: hash } = refusal(ask(&ours, &first, &line)) else {
        panic!()
    };
    let own = ours.invite(&terms(), &seeds(), wall()).unwrap();
    assert_eq!(hash, own.authority());
    // The directory has an authority already.
    std::fs::create_dir(home.path().join("ca")).unwrap();
    std::fs::copy(b.path().join("ca/cert.pem"), home.path().join("ca/cert.pem")).unwrap();
    let again = Joiner::prepare(home.path(), &name("c@h"), &[], wall()).unwrap();
    let error = again.ask(&own, wall()).unwrap_err();
    assert!(matches!(error, EnrolError::OtherCluster { .. }), "{error}");
    ask(&theirs, &again, &line).unwrap();
}

#[test]
fn an_answer_that_somebody_on_the_way_has_made_or_changed_is_not_taken() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (home, first) = joiner("c@h");
    let asked = first.ask(&line, wall()).unwrap();
    let sound = issuer.answer(asked.bytes(), &[], wall()).bytes;
    let Answer::Issued(issued) = Answer::decode(&sound).unwrap() else { panic!() };
    let not_taken = |answer: &Issued| {
        let bytes = Answer::Issued(Box::new(answer.clone())).encode().unwrap();
        let error = asked.check(&bytes, wall()).unwrap_err();
        assert!(matches!(error, EnrolError::Answer(_)), "{error}");
        error.to_string()
    };
    // A member in the middle: an authority of its own beside the true one, other peers, no list.
    let (other, liar) = cluster();
    let own = std::fs::read(other.path().join("ca/cert.pem")).unwrap();
    let changes: [&dyn Fn(&mut Issued); 5] = [
        &|it| it.authorities.push(own.clone()),
        &|it| it.peers = vec!["10.6.6.6:1".parse().unwrap()],
        &|it| it.tokens = None,
        &|it| it.revocations = Some(vec![]),
        &|it| it.seal = None,
    ];
    for change in changes {
        let mut changed = (*issued).clone();
        change(&mut changed);
        assert!(not_taken(&changed).contains("seal"));
    }
    for at in 0..sound.len() {
        let mut changed = sound.clone();
        changed[at] ^= 1;
        assert!(asked.check(&changed, wall()).is_err(), "byte {at}");
        assert!(asked.check(&sound[..at], wall()).is_err());
    }
    // A whole cluster that answers in the place of the one that invited.
    let theirs = liar.invite(&terms(), &seeds(), wall()).unwrap();
    let forged = first.ask(&theirs, wall()).unwrap();
    let forged = liar.answer(forged.bytes(), &[], wall()).bytes;
    let Answer::Issued(forged) = Answer::decode(&forged).unwrap() else { panic!() };
    assert!(not_taken(&forged).contains("seal"));
    // The answer to an earlier request.
    let later = first.ask(&line, wall()).unwrap();
    assert!(later.check(&sound, wall()).is_err());
    assert!(asked.check(&sound, wall() + 91 * DAY).is_err(), "it has expired");
    assert!(!home.path().join("ca").exists() && !home.path().join("c@h/cert.pem").exists());
    asked.check(&sound, wall()).unwrap();
}

#[test]
fn a_certificate_for_another_key_or_name_is_not_taken_from_whoever_knows_the_secret() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&Terms { uses: 9, ..terms() }, &seeds(), wall()).unwrap();
    let ((_a, first), (_b, other), (_c, twin)) = (joiner("c@h"), joiner("d@h"), joiner("e@h"));
    let asked = first.ask(&line, wall()).unwrap();
    for wrong in [&other, &twin] {
        let theirs = wrong.ask(&line, wall()).unwrap();
        let answer = issuer.answer(theirs.bytes(), &[], wall()).bytes;
        let Answer::Issued(mut issued) = Answer::decode(&answer).unwrap() else { panic!() };
        let statement = issued.statement(asked.bytes()).unwrap();
        issued.seal = Some(line.key().code(&statement));
        let answer = Answer::Issued(issued).encode().unwrap();
        assert!(matches!(asked.check(&answer, wall()), Err(EnrolError::Answer(_))));
    }
}

#[test]
fn a_signing_request_gains_nothing_by_its_wishes() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut wishes = CertificateParams::new(vec!["bank.example".to_owned()]).unwrap();
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.subject_alt_names.push(SanType::URI("spiffe://x/node/h/boss".try_into().unwrap()));
    let csr = wishes.serialize_request(&key).unwrap().der().to_vec();
    let (_home, first) = joiner("c@h");
    let asked = first.ask(&line, wall()).unwrap();
    let mut request = Request::decode(asked.bytes()).unwrap();
    request.csr = csr;
    let mac = line.key().code(&request.statement().unwrap());
    request.proof = Proof::Invitation { id: line.id(), mac };
    let answer = issuer.answer(&request.encode().unwrap(), &[], wall()).bytes;
    let Answer::Issued(issued) = Answer::decode(&answer).unwrap() else { panic!() };
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, x509) = X509Certificate::from_der(&issued.certificate).unwrap();
    assert!(!x509.is_ca());
    let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[0].ends_with("/node/h/c)") && names[2] == "DNSName(h)", "{names:?}");
    assert!(!names.concat().contains("bank") && !names.concat().contains("boss"));
    assert_eq!(x509.subject().to_string(), "CN=c, OU=member operate");
}

#[test]
fn a_damaged_signing_request_is_refused_and_uses_nothing_up() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    let sound = Request::decode(first.ask(&line, wall()).unwrap().bytes()).unwrap();
    let with = |csr: Vec<u8>| {
        let mut request = Request { csr, ..sound.clone() };
        let mac = line.key().code(&request.statement().unwrap());
        request.proof = Proof::Invitation { id: line.id(), mac };
        refused(&issuer, &request)
    };
    let mut unsigned = sound.csr.clone();
    *unsigned.last_mut().unwrap() ^= 1;
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default().serialize_request(&p384).unwrap().der().to_vec();
    for csr in [vec![], vec![0x30; 100], unsigned, p384] {
        assert!(matches!(with(csr), Refused::Malformed { .. }));
    }
    ask(&issuer, &first, &line).unwrap();
}

#[test]
fn a_request_that_proves_nothing_is_refused() {
    let (_certs, issuer) = cluster();
    let (_home, first) = joiner("c@h");
    let asked = first.ask_operator(wall()).unwrap();
    let answered = issuer.answer(asked.bytes(), &[], wall());
    assert_eq!(refusal(asked.check(&answered.bytes, wall())), Refused::NotTaken);
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[1; 100], &[0; 70_000]] {
        let outcome = issuer.answer(bytes, &[], wall()).outcome;
        assert!(matches!(outcome, Outcome::Refused(Refused::Malformed { .. })), "{outcome:?}");
    }
    let later = codec::encode_versioned(2, &"later").unwrap();
    let outcome = issuer.answer(&later, &[], wall()).outcome;
    let Outcome::Refused(refused) = outcome else { panic!() };
    assert!(refused.to_string().contains("version 2"), "{refused}");
}

#[test]
fn the_secret_is_in_no_file_and_in_no_debug_text() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let text = line.to_string();
    let secret = text.split(['.', '@']).nth(1).unwrap();
    let kept = std::fs::read_to_string(certs.path().join("ca/invitations")).unwrap();
    assert!(!kept.contains(secret));
    let (_home, first) = joiner("c@h");
    let asked = first.ask(&line, wall()).unwrap();
    let hash = codec::hexadecimal(line.key().bytes());
    assert!(kept.contains(&hash), "what is kept is its hash");
    let shown = format!("{issuer:?} {asked:?} {first:?} {line:?}");
    assert!(!shown.contains(secret) && !shown.contains(&hash));
    let sent = codec::hexadecimal(asked.bytes());
    let raw: MacKey = line.key();
    assert!(!sent.contains(&hash) && raw.verify(b"m", &raw.code(b"m")));
}

use crate::proto::enrol::Issued;
