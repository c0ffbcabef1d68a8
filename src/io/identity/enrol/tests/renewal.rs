//! A node renews its certificate by the one that it has.

use super::*;

/// A cluster and a node of it, whose certificate ends after so many days.
fn member(days: u32) -> (tempfile::TempDir, Issuer, tempfile::TempDir, Identity) {
    let (certs, issuer) = cluster();
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::open(certs.path()).unwrap();
    let valid = Validity { not_after: wall() + days * DAY, ..Validity::leaf(wall()) };
    let identity = authority.issue(home.path(), &name("c@h"), valid).unwrap();
    (certs, issuer, home, identity)
}

fn hosts(node: &Identity) -> Vec<Host> {
    Certificate::parse(&node.certificate()).unwrap().hosts()
}

fn renew(issuer: &Issuer, node: &Identity, now: SystemTime) -> Result<Granted, EnrolError> {
    let asked = node.ask_renewal(now).unwrap();
    asked.check(&issuer.answer(asked.bytes(), &[], now).bytes, now)
}

#[test]
fn a_node_renews_with_its_own_key() {
    let (certs, issuer, home, node) = member(1);
    std::fs::copy(certs.path().join("ca/cert.pem"), home.path().join("ca-cert")).unwrap();
    let asked = node.ask_renewal(wall()).unwrap();
    let answered = issuer.answer(asked.bytes(), &[], wall());
    let Outcome::Issued { means: Means::Renewal, key, .. } = answered.outcome else { panic!() };
    assert_eq!(key, node.id());
    assert_eq!(hosts(&node), [host("h")], "as before, and no others");
    let granted = asked.check(&answered.bytes, wall()).unwrap();
    assert!(granted.validity().not_after > wall() + 89 * DAY);
    granted.write_certificate(home.path()).unwrap();
    std::fs::create_dir(home.path().join("ca")).unwrap();
    std::fs::rename(home.path().join("ca-cert"), home.path().join("ca/cert.pem")).unwrap();
    let renewed = Identity::load(home.path(), &name("c@h"), wall()).unwrap();
    assert_eq!((renewed.id(), renewed.validity()), (node.id(), granted.validity()));
    assert_eq!(hosts(&renewed), hosts(&node));
}

#[test]
fn a_lapsed_certificate_is_renewed_within_its_grace_only() {
    let (certs, issuer, _home, node) = member(1);
    renew(&issuer, &node, wall() + 180 * DAY).unwrap();
    let (certs_two, _, _home, _) = member(1);
    drop(certs_two);
    let Refused::Lapsed { grace, .. } = refusal(renew(&issuer, &node, wall() + 182 * DAY)) else {
        panic!()
    };
    assert_eq!(grace, 180 * DAY.as_secs());
    let strict = Rules { grace: Duration::ZERO, ..Rules::default() };
    let strict = Issuer::open(certs.path(), strict).unwrap();
    assert!(matches!(refusal(renew(&strict, &node, wall() + 2 * DAY)), Refused::Lapsed { .. }));
    renew(&strict, &node, wall()).unwrap();
}

#[test]
fn a_revoked_certificate_is_not_renewed() {
    let (certs, issuer, _home, node) = member(1);
    Authority::open(certs.path()).unwrap().revoke(&name("c@h"), wall()).unwrap();
    assert_eq!(refusal(renew(&issuer, &node, wall())), Refused::Revoked);
}

#[test]
fn a_certificate_renews_nothing_but_its_own_name_and_key() {
    let (certs, issuer, _home, node) = member(1);
    let authority = Authority::open(certs.path()).unwrap();
    let other = authority.issue(certs.path(), &name("d@h"), Validity::leaf(wall())).unwrap();
    let (theirs, foreign, ..) = member(1);
    drop(theirs);
    let bytes = |node: &Identity| node.ask_renewal(wall()).unwrap().bytes().to_vec();
    let sound = Request::decode(&bytes(&node)).unwrap();
    let others = Request::decode(&bytes(&other)).unwrap();
    let refused = |request: &Request| {
        let outcome = issuer.answer(&request.encode().unwrap(), &[], wall()).outcome;
        let Outcome::Refused(Refused::Unproven { reason }) = outcome else { panic!("{outcome:?}") };
        reason
    };
    // Whoever forwards it: another key, name, host or time.
    let changes: [&dyn Fn(&mut Request); 4] = [
        &|it| it.csr = others.csr.clone(),
        &|it| it.hosts = vec![host("bank.example")],
        &|it| it.time += 1,
        &|it| it.name = name("d@h"),
    ];
    for change in changes {
        let mut changed = sound.clone();
        change(&mut changed);
        refused(&changed);
    }
    // The holder of a key asks for another key under its name.
    let (_dir, stranger) = joiner("c@h");
    let mut moved = sound.clone();
    moved.csr = Request::decode(stranger.ask_operator(wall()).unwrap().bytes()).unwrap().csr;
    let signature = node.sign(&moved.statement().unwrap()).unwrap();
    moved.proof = Proof::Certificate { der: node.certificate().to_vec(), signature };
    assert!(refused(&moved).contains("another key"));
    // Another's certificate, with one's own signature.
    let mut stolen = sound.clone();
    let signature = other.sign(&stolen.statement().unwrap()).unwrap();
    stolen.proof = Proof::Certificate { der: node.certificate().to_vec(), signature };
    assert!(refused(&stolen).contains("not signed with the certificate's key"));
    // A certificate of another cluster.
    let (_c, _i, _h, foreigner) = member(1);
    let mut foreign_request = sound.clone();
    let signature = foreigner.sign(&foreign_request.statement().unwrap()).unwrap();
    foreign_request.proof = Proof::Certificate { der: foreigner.certificate().to_vec(), signature };
    assert!(refused(&foreign_request).contains("not signed by this cluster's authority"));
    drop(foreign);
    assert!(issuer.guesses() >= 7);
    renew(&issuer, &node, wall()).unwrap();
}

#[test]
fn a_renewal_answer_of_another_cluster_or_for_another_key_is_not_taken() {
    let (_certs, issuer, _home, node) = member(1);
    let (other_certs, other, _h, _) = member(1);
    let asked = node.ask_renewal(wall()).unwrap();
    let line = other.invite(&terms(), &seeds(), wall()).unwrap();
    let (_dir, stranger) = joiner("e@h");
    let theirs = stranger.ask(&line, wall()).unwrap();
    let answer = other.answer(theirs.bytes(), &[], wall()).bytes;
    assert!(matches!(asked.check(&answer, wall()), Err(EnrolError::Answer(_))));
    drop(other_certs);
    let sound = issuer.answer(asked.bytes(), &[], wall()).bytes;
    asked.check(&sound, wall()).unwrap();
}
