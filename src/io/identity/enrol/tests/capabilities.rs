//! What a certificate lets its holder do is the issuer's decision, and stays as it is.

use super::*;
use crate::io::identity::{CertificateDer, LeafOptions};

fn edge() -> Capabilities {
    Capabilities::edge(vec!["sensor:*".parse().unwrap()]).unwrap()
}

/// What a certificate says, as everybody reads it who trusts the authority in `certs`.
fn says(certs: &Path, der: &CertificateDer<'_>) -> Capabilities {
    let authority = Authority::open(certs).unwrap();
    authority.judge().peer(der, wall()).unwrap().capabilities
}

#[test]
fn an_invitation_says_what_its_certificates_let_do() {
    let (certs, issuer) = cluster();
    for (n, capabilities) in
        [Capabilities::MEMBER, Capabilities::OPERATE, Capabilities::ALL, edge()]
            .into_iter()
            .enumerate()
    {
        let terms = Terms { capabilities: capabilities.clone(), ..terms() };
        let line = issuer.invite(&terms, &seeds(), wall()).unwrap();
        let (home, joiner) = joiner(&format!("n{n}@h"));
        let granted = ask(&issuer, &joiner, &line).unwrap();
        joiner.write(&granted).unwrap();
        let node = Identity::load(home.path(), &name(&format!("n{n}@h")), wall()).unwrap();
        assert_eq!((node.capabilities(), says(certs.path(), &node.certificate())), {
            (capabilities.clone(), capabilities.clone())
        });
        // It is renewed as it is.
        let asked = node.ask_renewal(wall()).unwrap();
        let renewed =
            asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall()).unwrap();
        renewed.write_certificate(home.path()).unwrap();
        let renewed = Identity::load(home.path(), &name(&format!("n{n}@h")), wall()).unwrap();
        assert_ne!(renewed.certificate(), node.certificate());
        assert_eq!(renewed.capabilities(), capabilities);
    }
}

#[test]
fn what_a_signing_request_wishes_to_do_is_not_granted() {
    use rcgen::{CertificateParams, DnType};
    let (certs, issuer) = cluster();
    let terms = Terms { capabilities: Capabilities::MEMBER, ..terms() };
    let line = issuer.invite(&terms, &seeds(), wall()).unwrap();
    let (_home, joiner) = joiner("c@h");
    let asked = joiner.ask(&line, wall()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::default();
    wishes.distinguished_name.push(DnType::OrganizationalUnitName, "member operate issue");
    let mut request = Request::decode(asked.bytes()).unwrap();
    request.csr = wishes.serialize_request(&key).unwrap().der().to_vec();
    let Proof::Invitation { mac, .. } = &mut request.proof else { panic!() };
    *mac = [0; 32];
    let statement = request.statement().unwrap();
    let Proof::Invitation { mac, .. } = &mut request.proof else { panic!() };
    *mac = line.key().code(&statement);
    let answered = issuer.answer(&request.encode().unwrap(), &[], wall());
    let Answer::Issued(issued) = Answer::decode(&answered.bytes).unwrap() else { panic!() };
    assert_eq!(says(certs.path(), &CertificateDer::from(issued.certificate)), Capabilities::MEMBER);
}

#[test]
fn an_operator_says_it_for_requests_that_are_carried_and_for_what_lies_beside_the_authority() {
    let (certs, issuer) = cluster();
    let (_home, joiner) = joiner("c@h");
    let asked = joiner.ask_operator(wall()).unwrap();
    let answered = issuer.sign(asked.bytes(), edge(), wall());
    let Answer::Issued(issued) = Answer::decode(&answered.bytes).unwrap() else { panic!() };
    assert_eq!(says(certs.path(), &CertificateDer::from(issued.certificate)), edge());

    let authority = Authority::open(certs.path()).unwrap();
    let (a, valid) = (name("a@h"), Validity::leaf(wall()));
    let first = authority.issue(certs.path(), &a, valid).unwrap();
    assert_eq!(first.capabilities(), Capabilities::ALL, "it lies beside the key");
    let member = Capabilities::MEMBER;
    let less = authority
        .reissue(certs.path(), &a, valid, LeafOptions { hosts: &[], capabilities: Some(&member) })
        .unwrap();
    let same = authority.reissue(certs.path(), &a, valid, LeafOptions::default()).unwrap();
    assert_eq!([less, same].map(|it| it.capabilities()), [member.clone(), member]);
}

#[test]
fn patterns_that_leave_no_room_for_the_name_are_refused() {
    let (certs, issuer) = cluster();
    let long: String = "p".repeat(120);
    let capabilities = Capabilities::edge(vec![long.parse().unwrap()]).unwrap();
    let terms = Terms { capabilities: capabilities.clone(), ..terms() };
    let line = issuer.invite(&terms, &seeds(), wall()).unwrap();
    let text = format!("{0}@{1}.{1}", "n".repeat(60), "h".repeat(60));
    let (_home, joiner) = joiner(&text);
    assert_eq!(refusal(ask(&issuer, &joiner, &line)), Refused::UnusableName);
    let authority = Authority::open(certs.path()).unwrap();
    let valid = Validity::leaf(wall());
    let error = authority.issue_with(
        certs.path(),
        &name(&text),
        valid,
        LeafOptions { hosts: &[], capabilities: Some(&capabilities) },
    );
    assert!(error.is_err());
    assert_eq!(issued_lines(certs.path()), 0);
}
