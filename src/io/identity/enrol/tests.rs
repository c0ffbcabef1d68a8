//! A host and an issuer in one process, and what is between them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::io::clock::wall;
use crate::io::identity::pki::Certificate;
use crate::io::identity::{Authority, Identity, Validity};
use crate::io::seeds::Seed;
use crate::proto::capability::Capabilities;
use crate::proto::enrol::{Answer, Host, NamePattern, Proof, Request};
use crate::proto::node::NodeName;

mod capabilities;
mod forged;
mod limits;
#[cfg(feature = "gateway")]
mod machine;
mod names;
mod renewal;
#[cfg(feature = "gateway")]
mod spoken;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn host(text: &str) -> Host {
    text.parse().unwrap()
}

fn seeds() -> Vec<Seed> {
    vec!["10.0.0.1:4697".parse().unwrap()]
}

fn terms() -> Terms {
    Terms {
        names: NamePattern::any(),
        time: DAY,
        uses: 1,
        approval: false,
        capabilities: Capabilities::OPERATE,
        by: "operator".to_owned(),
    }
}

/// A directory with an authority, and its issuer.
fn cluster() -> (tempfile::TempDir, Issuer) {
    let dir = tempfile::tempdir().unwrap();
    Authority::init(dir.path(), wall()).unwrap();
    let issuer = Issuer::open(dir.path(), Rules::default()).unwrap();
    (dir, issuer)
}

/// A new host that is to be this node.
fn joiner(text: &str) -> (tempfile::TempDir, Joiner) {
    let dir = tempfile::tempdir().unwrap();
    let joiner = Joiner::prepare(dir.path(), &name(text), &[], wall()).unwrap();
    (dir, joiner)
}

/// What the issuer answers to this line from this host.
fn ask(issuer: &Issuer, joiner: &Joiner, line: &Line) -> Result<Granted, EnrolError> {
    let asked = joiner.ask(line, wall()).unwrap();
    asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall())
}

fn refusal<T: std::fmt::Debug>(result: Result<T, EnrolError>) -> Refused {
    let error = result.unwrap_err();
    let EnrolError::Refused(refused) = error else { panic!("{error}") };
    refused
}

fn issued_lines(certs: &Path) -> usize {
    let text = fs::read_to_string(certs.join("ca/issued")).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty()).count()
}

#[test]
fn one_line_makes_a_whole_certificate_directory() {
    let (certs, issuer) = cluster();
    let authority = Authority::open(certs.path()).unwrap();
    authority.issue(certs.path(), &name("old@h"), Validity::leaf(wall())).unwrap();
    authority.revoke(&name("old@h"), wall()).unwrap();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let line: Line = line.to_string().parse().unwrap();
    assert_eq!(line.addresses(), seeds());

    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("deep/certs");
    let joiner = Joiner::prepare(&home, &name("c@10.0.0.3"), &[host("c.example")], wall()).unwrap();
    let asked = joiner.ask(&line, wall()).unwrap();
    let peers = ["10.0.0.1:4697".parse().unwrap()];
    let answered = issuer.answer(asked.bytes(), &peers, wall());
    let Outcome::Issued { name: whose, means, .. } = &answered.outcome else {
        panic!("{:?}", answered.outcome)
    };
    assert_eq!((whose, *means), (&name("c@10.0.0.3"), Means::Invitation(line.id())));
    let granted = asked.check(&answered.bytes, wall()).unwrap();
    assert_eq!(granted.peers(), peers);
    assert_eq!(granted.authority_fingerprint().unwrap(), authority.fingerprint());
    assert!(!home.join("ca").exists(), "nothing is written before it is checked");
    joiner.write(&granted).unwrap();

    let identity = Identity::load(&home, &name("c@10.0.0.3"), wall()).unwrap();
    assert_eq!(identity.cluster(), authority.cluster());
    assert_eq!(
        crate::io::identity::Tokens::of(&crate::io::identity::Lists::new(
            home.clone(),
            identity.verifier()
        ))
        .look()
        .unwrap(),
        Some(0)
    );
    for file in ["ca/cert.pem", "ca/tokens", "ca/crl.pem"] {
        let [theirs, ours] = [certs.path(), &home].map(|at| fs::read(at.join(file)).unwrap());
        assert_eq!(theirs, ours, "{file}");
    }
    let mode = |path: &str| fs::metadata(home.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["", "ca", "c@10.0.0.3"].map(mode), [0o700; 3]);
    assert_eq!(mode("c@10.0.0.3/key.pem"), 0o600);
    assert_eq!(["ca/cert.pem", "ca/crl.pem", "c@10.0.0.3/cert.pem"].map(mode), [0o644; 3]);
    assert!(!home.join("ca/key.pem").exists() && !home.join("ca/token.key").exists());
    assert_eq!(mode_of(&certs.path().join("ca/invitations")), 0o600);

    let again = Joiner::prepare(&home, &name("c@10.0.0.3"), &[], wall()).unwrap_err();
    assert!(matches!(again, EnrolError::AlreadyJoined { .. }), "{again}");
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_lost_answer_is_given_again_to_the_same_key_and_to_nobody_else() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (home, first) = joiner("c@h");
    let asked = first.ask(&line, wall()).unwrap();
    let lost = issuer.answer(asked.bytes(), &[], wall());
    assert!(matches!(lost.outcome, Outcome::Issued { .. }));
    // The same bytes again, and the same host that was started anew.
    asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall()).unwrap();
    let again = Joiner::prepare(home.path(), &name("c@h"), &[], wall()).unwrap();
    let granted = ask(&issuer, &again, &line).unwrap();
    again.write(&granted).unwrap();
    Identity::load(home.path(), &name("c@h"), wall()).unwrap();

    let (_other, stranger) = joiner("d@h");
    assert_eq!(refusal(ask(&issuer, &stranger, &line)), Refused::UsedUp);
    let (_twin, twin) = joiner("c@h");
    let taken = refusal(ask(&issuer, &twin, &line));
    assert!(matches!(taken, Refused::NameTaken { .. }), "{taken}");
    assert_eq!(issued_lines(certs.path()), 3);
    let late = again.ask(&line, wall() + 2 * DAY).unwrap();
    let late = late.check(&issuer.answer(late.bytes(), &[], wall() + 2 * DAY).bytes, wall());
    assert!(matches!(refusal(late), Refused::Expired { .. }));
}

#[test]
fn an_interrupted_join_is_completed_with_the_same_key() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (home, first) = joiner("c@h");
    let granted = ask(&issuer, &first, &line).unwrap();
    let key = fs::read(home.path().join("c@h/key.pem")).unwrap();
    // The certificate cannot be written: a directory is in its place.
    fs::create_dir(home.path().join("c@h/cert.pem")).unwrap();
    assert!(first.write(&granted).is_err());
    assert!(home.path().join("ca/cert.pem").exists());
    fs::remove_dir(home.path().join("c@h/cert.pem")).unwrap();
    let again = Joiner::prepare(home.path(), &name("c@h"), &[], wall()).unwrap();
    again.write(&ask(&issuer, &again, &line).unwrap()).unwrap();
    assert_eq!(fs::read(home.path().join("c@h/key.pem")).unwrap(), key);
    Identity::load(home.path(), &name("c@h"), wall()).unwrap();
}

#[test]
fn an_invitation_is_used_as_often_as_it_says_by_any_number_of_issuers() {
    let (certs, issuer) = cluster();
    let line = Arc::new(issuer.invite(&Terms { uses: 3, ..terms() }, &seeds(), wall()).unwrap());
    let hosts: Vec<_> = (0..8).map(|n| joiner(&format!("n{n}@h"))).collect();
    let granted: usize = std::thread::scope(|scope| {
        let work = |(_, joiner): &(tempfile::TempDir, Joiner)| {
            let issuer = Issuer::open(certs.path(), Rules::default()).unwrap();
            match ask(&issuer, joiner, &line) {
                Ok(_) => 1,
                Err(EnrolError::Refused(Refused::UsedUp)) => 0,
                Err(other) => panic!("{other}"),
            }
        };
        let threads: Vec<_> = hosts.iter().map(|host| scope.spawn(move || work(host))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((granted, issued_lines(certs.path())), (3, 3));
}

#[test]
fn a_use_is_counted_before_anything_is_issued() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    // What a crash between the two leaves: the record of certificates can be read, and not be written by anybody.
    let record = certs.path().join("ca/issued");
    std::os::unix::fs::symlink("/proc/self/timers", &record).unwrap();
    let asked = first.ask(&line, wall()).unwrap();
    let answered = issuer.answer(asked.bytes(), &[], wall());
    assert!(matches!(answered.outcome, Outcome::Failed(_)), "{:?}", answered.outcome);
    let refused = refusal(asked.check(&answered.bytes, wall()));
    assert!(!refused.to_string().contains("ca/issued"), "no path goes out: {refused}");
    fs::remove_file(&record).unwrap();
    let (_other, other) = joiner("d@h");
    assert_eq!(refusal(ask(&issuer, &other, &line)), Refused::UsedUp);
    ask(&issuer, &first, &line).unwrap();
}

#[test]
fn what_is_to_be_approved_waits_and_is_given_once_it_is() {
    let (_certs, issuer) = cluster();
    let terms = Terms { approval: true, uses: 2, ..terms() };
    let line = issuer.invite(&terms, &seeds(), wall()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let first = Joiner::prepare(dir.path(), &name("c@h"), &[host("c.example")], wall()).unwrap();
    let (_other, second) = joiner("d@h");
    let Refused::Waiting { request } = refusal(ask(&issuer, &first, &line)) else { panic!() };
    assert_eq!(refusal(ask(&issuer, &first, &line)), Refused::Waiting { request }, "the same id");
    let Refused::Waiting { request: denied } = refusal(ask(&issuer, &second, &line)) else {
        panic!()
    };
    let pending = issuer.requests(wall()).unwrap();
    assert_eq!(pending.len(), 2);
    let one = pending.iter().find(|one| one.id == request).unwrap();
    assert_eq!((&one.name, &one.hosts[..]), (&name("c@h"), &[host("c.example")][..]));
    issuer.deny(denied, wall()).unwrap();
    // Another issuer of the same directory approves.
    let elsewhere = Issuer::open(_certs.path(), Rules::default()).unwrap();
    assert_eq!(elsewhere.approve(request, wall()).unwrap().name, name("c@h"));
    assert!(matches!(issuer.approve(request, wall()), Err(EnrolError::NoSuchRequest(_))));
    assert_eq!(refusal(ask(&issuer, &second, &line)), Refused::Denied);
    assert!(issuer.requests(wall()).unwrap().is_empty());

    // After approval the host may not ask for other hosts than those that were shown.
    let greedy =
        Joiner::prepare(dir.path(), &name("c@h"), &[host("bank.example")], wall()).unwrap();
    let granted = ask(&issuer, &greedy, &line).unwrap();
    greedy.write(&granted).unwrap();
    assert_eq!(sans(dir.path(), "c@h")[2..], ["DNSName(h)", "DNSName(c.example)"]);
    assert_eq!(refusal(ask(&issuer, &joiner("e@h").1, &line)), Refused::UsedUp);
}

/// The alternative names of a node's certificate.
fn sans(certs: &Path, node: &str) -> Vec<String> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let der = Identity::load(certs, &name(node), wall()).unwrap().certificate();
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
    names.iter().map(ToString::to_string).collect()
}
