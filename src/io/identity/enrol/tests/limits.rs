//! How often, how many, how long.

use super::*;
use crate::proto::enrol::InvitationId;

#[test]
fn ten_thousand_guesses_are_refused_and_slowed_and_counted_and_nobody_else_is() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    let now = wall();
    let asked = first.ask(&line, now).unwrap();
    let mut request = Request::decode(asked.bytes()).unwrap();
    let mut slowed = 0;
    for guess in 0..10_000_u32 {
        let mut mac = [0; 32];
        mac[..4].copy_from_slice(&guess.to_be_bytes());
        let id = if guess % 2 == 0 { line.id() } else { InvitationId([guess as u8; 16]) };
        request.proof = Proof::Invitation { id, mac };
        let outcome = issuer.answer(&request.encode().unwrap(), &[], now).outcome;
        let Outcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
        if let Refused::RateLimited { after } = refused {
            assert!((1..=60_000).contains(&after));
            slowed += 1;
        } else {
            assert_eq!(refused, Refused::UnknownInvitation);
        }
    }
    assert_eq!((issuer.guesses(), slowed), (10_000, 10_000 - 32));
    // Nothing of them is kept, in memory or on disk.
    assert!(format!("{issuer:?}").len() < 20_000);
    assert_eq!(issuer.invitations(now).unwrap()[0].left, 1);
    assert_eq!(issued_lines(certs.path()), 0);
    asked.check(&issuer.answer(asked.bytes(), &[], now).bytes, now).unwrap();
    // A minute later a guess is just wrong again.
    let later = issuer.answer(&request.encode().unwrap(), &[], now + MINUTE).outcome;
    assert!(matches!(later, Outcome::Refused(Refused::UnknownInvitation)), "{later:?}");
}

#[test]
fn a_clock_that_is_off_is_told_by_how_much_and_uses_nothing_up() {
    let (_certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    let now = wall();
    let at = |time| {
        let asked = first.ask(&line, time).unwrap();
        asked.check(&issuer.answer(asked.bytes(), &[], now).bytes, now)
    };
    let second = Duration::from_secs(1);
    let Refused::Clock { ahead } = refusal(at(now - 5 * MINUTE - second)) else { panic!() };
    assert_eq!(ahead, -301_000);
    let Refused::Clock { ahead } = refusal(at(now + 3600 * second)) else { panic!() };
    assert_eq!(ahead, 3_600_000);
    at(now - 5 * MINUTE).unwrap();
    at(now + 5 * MINUTE).unwrap();
}

#[test]
fn an_invitation_ends_and_may_be_withdrawn() {
    let (_certs, issuer) = cluster();
    let now = wall();
    let line = issuer.invite(&terms(), &seeds(), now).unwrap();
    let (_home, first) = joiner("c@h");
    let at = |line: &Line, now| {
        let asked = first.ask(line, now).unwrap();
        asked.check(&issuer.answer(asked.bytes(), &[], now).bytes, now)
    };
    let Refused::Expired { ended } = refusal(at(&line, now + DAY + MINUTE)) else { panic!() };
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(ended, since + DAY.as_secs());
    assert!(issuer.invitations(now + DAY + MINUTE).unwrap().is_empty());
    issuer.withdraw(line.id()).unwrap();
    assert_eq!(refusal(at(&line, now)), Refused::UnknownInvitation);
    assert!(matches!(issuer.withdraw(line.id()), Err(EnrolError::NoSuchInvitation)));
}

#[test]
fn terms_have_bounds_and_so_has_the_number_of_invitations() {
    let (certs, issuer) = cluster();
    let refused = |terms: Terms| {
        let error = issuer.invite(&terms, &seeds(), wall()).unwrap_err();
        assert!(matches!(error, EnrolError::Terms(_)), "{error}");
    };
    refused(Terms { uses: 0, ..terms() });
    refused(Terms { uses: 1001, ..terms() });
    refused(Terms { time: Duration::ZERO, ..terms() });
    refused(Terms { time: 367 * DAY, ..terms() });
    refused(Terms { by: "x".repeat(265), ..terms() });
    refused(Terms { by: "a\nb".to_owned(), ..terms() });

    let layout = Layout::new(certs.path());
    let mut all = invitations::Invitations::default();
    let add = |all: &mut invitations::Invitations, n: u32, now| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        all.add(InvitationId(id), mac::MacKey::of_secret(&id), &terms(), now)
    };
    let now = wall();
    (0..1024).for_each(|n| add(&mut all, n, now).unwrap());
    assert!(matches!(add(&mut all, 1024, now), Err(EnrolError::Full)));
    all.write(layout).unwrap();
    assert!(matches!(issuer.invite(&terms(), &seeds(), now), Err(EnrolError::Full)));
    issuer.invite(&terms(), &seeds(), now + 2 * DAY).unwrap();
    assert_eq!(issuer.invitations(now + 2 * DAY).unwrap().len(), 1, "those that ended make room");
}

#[test]
fn requests_that_wait_are_bounded() {
    let mut all = invitations::Invitations::default();
    let (id, now) = (InvitationId([1; 16]), wall());
    let terms = Terms { uses: 1000, approval: true, ..terms() };
    all.add(id, mac::MacKey::of_secret(b"s"), &terms, now).unwrap();
    let mut redeem = |n: u8, name: &str| {
        let key = crate::proto::node::KeyId([n; 16]);
        all.redeem(id, key, &name.parse().unwrap(), &[], now)
    };
    for n in 0..=255 {
        let waits = redeem(n, "c@h").unwrap();
        assert!(matches!(waits, invitations::Redeemed::Waits(_, true)), "{waits:?}");
    }
    assert!(matches!(redeem(0, "d@h"), Err(Refused::CannotIssue { .. })));
    assert!(matches!(redeem(0, "c@h"), Ok(invitations::Redeemed::Waits(_, false))));
}

#[test]
fn a_damaged_file_of_invitations_is_an_error_that_says_what_to_do() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    fs::write(certs.path().join("ca/invitations"), "rubbish").unwrap();
    let (_home, first) = joiner("c@h");
    let asked = first.ask(&line, wall()).unwrap();
    let answered = issuer.answer(asked.bytes(), &[], wall());
    let Outcome::Failed(error) = &answered.outcome else { panic!() };
    assert!(error.to_string().contains("ca/invitations is damaged: remove it"), "{error}");
    let told = refusal(asked.check(&answered.bytes, wall()));
    assert!(matches!(&told, Refused::CannotIssue { reason } if !reason.contains("invitations")));
    fs::remove_file(certs.path().join("ca/invitations")).unwrap();
    assert_eq!(refusal(ask(&issuer, &first, &line)), Refused::UnknownInvitation);
}

#[test]
fn one_key_gets_so_many_certificates_an_hour() {
    let (certs, issuer) = cluster();
    let line = issuer.invite(&terms(), &seeds(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    (0..12).for_each(|_| drop(ask(&issuer, &first, &line).unwrap()));
    let Refused::RateLimited { after } = refusal(ask(&issuer, &first, &line)) else { panic!() };
    assert!((3_500_000..=3_600_000).contains(&after), "{after}");
    assert_eq!(issued_lines(certs.path()), 12);
    let later = wall() + Duration::from_secs(3601);
    let asked = first.ask(&line, later).unwrap();
    asked.check(&issuer.answer(asked.bytes(), &[], later).bytes, later).unwrap();
}

use super::super::super::disk::Layout;
