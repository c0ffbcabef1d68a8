//! Whose a name is, and what hosts a certificate names.

use super::*;

#[test]
fn a_name_belongs_to_its_key_until_it_is_released() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&Terms { uses: 9, ..terms() }, &seeds(), wall()).unwrap();
    let ((_a, first), (b, second)) = (joiner("c@h"), joiner("c@h"));
    ask(&issuer, &first, &line).unwrap();
    let Refused::NameTaken { holder, requested } = refusal(ask(&issuer, &second, &line)) else {
        panic!()
    };
    let id = |joiner: &Joiner| {
        let request = joiner.ask(&line, wall()).unwrap();
        CsrKey::of(&Request::decode(request.bytes()).unwrap().csr).unwrap().id()
    };
    assert_eq!((holder, requested), (id(&first), id(&second)));
    assert_eq!(issuer.invitations(wall()).unwrap()[0].left, 8, "a refusal uses nothing up");

    let authority = Authority::open(certs.path()).unwrap();
    assert_eq!(authority.release(&name("c@h"), wall()).unwrap().added.len(), 1);
    second.write(&ask(&issuer, &second, &line).unwrap()).unwrap();
    Identity::load(b.path(), &name("c@h"), wall()).unwrap();
    // The key before it is revoked for good, under this name and any other.
    assert_eq!(refusal(ask(&issuer, &first, &line)), Refused::Revoked);
}

#[test]
fn a_name_that_the_operator_issued_by_hand_belongs_to_that_key_too() {
    let (certs, issuer) = cluster();
    let authority = Authority::open(certs.path()).unwrap();
    let by_hand = authority.issue(certs.path(), &name("c@h"), Validity::leaf(wall())).unwrap();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    let Refused::NameTaken { holder, .. } = refusal(ask(&issuer, &first, &line)) else { panic!() };
    assert_eq!(holder, by_hand.id());
    // Lines of earlier versions have no end: they count until they are revoked.
    let record = certs.path().join("ca/issued");
    let text = fs::read_to_string(&record).unwrap();
    let short: Vec<String> =
        text.lines().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
    fs::write(&record, short.join("\n")).unwrap();
    fs::remove_dir_all(certs.path().join("c@h")).unwrap();
    assert!(matches!(refusal(ask(&issuer, &first, &line)), Refused::NameTaken { .. }));
    authority.revoke(&name("c@h"), wall()).unwrap();
    ask(&issuer, &first, &line).unwrap();
}

#[test]
fn a_name_is_free_when_its_certificate_ended_long_ago() {
    let (_certs, issuer) = cluster();
    let terms = Terms { uses: 9, time: 366 * DAY, ..terms() };
    let line = issuer.invite(&terms, &seeds(), wall()).unwrap();
    let ((_a, first), (_b, second)) = (joiner("c@h"), joiner("c@h"));
    ask(&issuer, &first, &line).unwrap();
    let at = |days: u32| {
        let now = wall() + days * DAY;
        let asked = second.ask(&line, now).unwrap();
        asked.check(&issuer.answer(asked.bytes(), &[], now).bytes, now)
    };
    assert!(matches!(refusal(at(269)), Refused::NameTaken { .. }));
    at(271).unwrap();
}

#[test]
fn a_name_that_the_invitation_is_not_for_is_refused() {
    let (_certs, issuer) = cluster();
    let terms = Terms { names: "web-*@10.0.0.*".parse().unwrap(), ..terms() };
    let line = issuer.invite(&terms, &seeds(), wall()).unwrap();
    let Refused::NameNotAllowed { pattern } = refusal(ask(&issuer, &joiner("db@h").1, &line))
    else {
        panic!()
    };
    assert_eq!(pattern, "web-*@10.0.0.*");
    ask(&issuer, &joiner("web-1@10.0.0.7").1, &line).unwrap();
}

#[test]
fn a_key_has_one_name() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&Terms { uses: 9, ..terms() }, &seeds(), wall()).unwrap();
    let (home, first) = joiner("c@h");
    ask(&issuer, &first, &line).unwrap();
    fs::create_dir(home.path().join("d@h")).unwrap();
    fs::copy(home.path().join("c@h/key.pem"), home.path().join("d@h/key.pem")).unwrap();
    let second = Joiner::prepare(home.path(), &name("d@h"), &[], wall()).unwrap();
    let refused = refusal(ask(&issuer, &second, &line));
    assert_eq!(refused, Refused::KeyTaken { name: name("c@h") });
}

#[test]
fn names_that_no_certificate_spells_are_refused() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    let sound = Request::decode(first.ask(&line, wall()).unwrap().bytes()).unwrap();
    for bad in ["a@1-2-3-4-5-6-7-8", "a@node.00.xpando.internal"] {
        let mut request = Request { name: name(bad), ..sound.clone() };
        let mac = line.key().code(&request.statement().unwrap());
        request.proof = Proof::Invitation { id: line.id(), mac };
        let outcome = issuer.answer(&request.encode().unwrap(), &[], wall()).outcome;
        assert!(matches!(outcome, Outcome::Refused(Refused::UnusableName)), "{bad} {outcome:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Joiner::prepare(dir.path(), &name("a@1-2-3-4-5-6-7-8"), &[], wall()).unwrap_err();
    assert!(matches!(error, EnrolError::Identity(IdentityError::UnusableName(_))), "{error}");
}

#[test]
fn a_certificate_names_the_hosts_that_were_asked_for_once_each() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hosts = ["db.example", "10.0.0.3", "2001:db8::3", "DB.example", "10.0.0.3"].map(host);
    let joiner = Joiner::prepare(dir.path(), &name("c@10.0.0.3"), &hosts, wall()).unwrap();
    joiner.write(&ask(&issuer, &joiner, &line).unwrap()).unwrap();
    let cluster = Identity::load(dir.path(), &name("c@10.0.0.3"), wall()).unwrap().cluster();
    assert_eq!(
        sans(dir.path(), "c@10.0.0.3"),
        [
            format!("URI(spiffe://{cluster}/node/10.0.0.3/c)"),
            format!("DNSName(node.{cluster}.xpando.internal)"),
            "IPAddress(0a:00:00:03)".to_owned(),
            "DNSName(db.example)".to_owned(),
            "IPAddress(20:01:0d:b8:00:00:00:00:00:00:00:00:00:00:00:03)".to_owned(),
        ]
    );
    let many: Vec<Host> = (0..16).map(|n| host(&format!("h{n}.example"))).collect();
    let error = Joiner::prepare(dir.path(), &name("d@h"), &many, wall()).unwrap_err();
    assert!(matches!(error, EnrolError::TooManyHosts), "{error}");
    let other = tempfile::tempdir().unwrap();
    Joiner::prepare(other.path(), &name("d@h"), &many[1..], wall()).unwrap();
}
