//! Invitations that people say to each other.

use super::*;
use crate::io::identity::enrol::spoken::{Half, Sessions};

fn spoken() -> Terms {
    Terms { time: 10 * MINUTE, ..terms() }
}

/// Another code of the same number.
fn wrong(code: &Code) -> Code {
    let other = if code.to_string().ends_with("oak-oak") { "owl-owl" } else { "oak-oak" };
    format!("{}-{other}", code.number()).parse().unwrap()
}

/// Both steps with this issuer.
fn join(issuer: &Issuer, joiner: &Joiner, code: &Code) -> Result<Granted, EnrolError> {
    let begun = joiner.ask_spoken(code, wall()).unwrap();
    let share = issuer.answer(begun.bytes(), &[], wall());
    assert!(matches!(share.outcome, Outcome::Continued | Outcome::Refused(_)));
    let asked = joiner.go_on(begun, &share.bytes, wall())?;
    asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall())
}

#[test]
fn a_few_words_make_a_whole_certificate_directory() {
    let (certs, issuer) = cluster();
    let code = issuer.invite_spoken(&spoken(), wall()).unwrap();
    let code: Code = code.to_string().to_uppercase().parse().unwrap();
    assert_eq!(code.number(), 1);
    let (home, first) = joiner("c@h");
    first.write(&join(&issuer, &first, &code).unwrap()).unwrap();
    let node = Identity::load(home.path(), &name("c@h"), wall()).unwrap();
    assert_eq!(node.cluster(), Authority::open(certs.path()).unwrap().cluster());
    // The answer was lost: the same words again, by the same key and by another one.
    join(&issuer, &first, &code).unwrap();
    assert_eq!(refusal(join(&issuer, &joiner("d@h").1, &code)), Refused::UsedUp);
    assert_eq!(issuer.invite_spoken(&spoken(), wall()).unwrap().number(), 2);
    let later = wall() + 20 * MINUTE;
    assert_eq!(issuer.invite_spoken(&spoken(), later).unwrap().number(), 1, "numbers come again");
}

#[test]
fn one_wrong_guess_burns_the_code() {
    let (certs, issuer) = cluster();
    let code = issuer.invite_spoken(&spoken(), wall()).unwrap();
    let (_thief, thief) = joiner("c@h");
    assert_eq!(refusal(join(&issuer, &thief, &wrong(&code))), Refused::Burnt);
    let elsewhere = Issuer::open(certs.path(), Rules::default()).unwrap();
    for issuer in [&issuer, &elsewhere] {
        assert_eq!(refusal(join(issuer, &joiner("d@h").1, &code)), Refused::Burnt);
    }
    assert_eq!(issued_lines(certs.path()), 0);
    assert!(issuer.guesses() >= 1);
    let other = format!("{}-oak-oak", code.number() + 1).parse().unwrap();
    assert_eq!(refusal(join(&issuer, &thief, &other)), Refused::UnknownInvitation);
}

#[test]
fn many_sessions_are_one_guess() {
    let (_certs, issuer) = cluster();
    let code = issuer.invite_spoken(&spoken(), wall()).unwrap();
    let (_dir, thief) = joiner("c@h");
    let begin = |code: &Code| {
        let begun = thief.ask_spoken(code, wall()).unwrap();
        let share = issuer.answer(begun.bytes(), &[], wall());
        thief.go_on(begun, &share.bytes, wall()).unwrap()
    };
    // Three guesses are begun before the first is tried; the last one would be right.
    let guesses = [begin(&wrong(&code)), begin(&wrong(&code)), begin(&code)];
    for guess in guesses {
        let answer = issuer.answer(guess.bytes(), &[], wall()).bytes;
        assert_eq!(refusal(guess.check(&answer, wall())), Refused::Burnt);
    }
}

#[test]
fn somebody_in_the_middle_learns_nothing_and_burns_the_code() {
    let (certs, issuer) = cluster();
    let code = issuer.invite_spoken(&spoken(), wall()).unwrap();
    let (_home, first) = joiner("c@h");
    let begun = first.ask_spoken(&code, wall()).unwrap();
    // In the middle: a cluster of its own, which answers with words that it guesses.
    let guess = wrong(&code);
    let asked = Request::decode(begun.bytes()).unwrap();
    let Proof::SpokenStart { share, .. } = &asked.proof else { panic!() };
    let (session, ours) = Sessions::default().begin(&guess, share, wall()).unwrap();
    let forged = Answer::SpokenShare { session, share: ours }.encode().unwrap();
    let second = first.go_on(begun, &forged, wall()).unwrap();
    // What the host then says does not verify under the key of the one in the middle, nor of any issuer.
    let (half, share) = Half::begin(&guess);
    let start =
        Request { proof: Proof::SpokenStart { number: code.number(), share }, ..asked.clone() };
    let answer = issuer.answer(&start.encode().unwrap(), &[], wall()).bytes;
    let Answer::SpokenShare { session, share } = Answer::decode(&answer).unwrap() else { panic!() };
    let key = half.finish(&share).unwrap();
    let mut passed = Request::decode(second.bytes()).unwrap();
    let Proof::Spoken { mac, .. } = passed.proof else { panic!() };
    assert!(!key.verify(&passed.statement().unwrap(), &mac));
    passed.proof = Proof::Spoken { session, mac };
    let outcome = issuer.answer(&passed.encode().unwrap(), &[], wall()).outcome;
    assert!(matches!(outcome, Outcome::Refused(Refused::Burnt)), "{outcome:?}");
    // Nor does the host take a certificate that the one in the middle makes.
    let (_own, liar) = cluster();
    let line = liar.invite(&terms(), &seeds(), wall()).unwrap();
    let theirs = first.ask(&line, wall()).unwrap();
    let answer = liar.answer(theirs.bytes(), &[], wall()).bytes;
    let error = second.check(&answer, wall()).unwrap_err();
    assert!(error.to_string().contains("seal"), "{error}");
    assert_eq!(refusal(join(&issuer, &first, &code)), Refused::Burnt);
    assert_eq!(issued_lines(certs.path()), 0);
}

#[test]
fn no_part_of_the_second_step_can_be_changed_on_the_way() {
    let changes: [&dyn Fn(&mut Request); 3] =
        [&|it| it.name = name("boss@h"), &|it| it.hosts = vec![host("bank.example")], &|it| {
            it.time += 1
        }];
    for change in changes {
        let (_certs, issuer) = cluster();
        let code = issuer.invite_spoken(&spoken(), wall()).unwrap();
        let (_home, first) = joiner("c@h");
        let begun = first.ask_spoken(&code, wall()).unwrap();
        let share = issuer.answer(begun.bytes(), &[], wall()).bytes;
        let asked = first.go_on(begun, &share, wall()).unwrap();
        let mut changed = Request::decode(asked.bytes()).unwrap();
        change(&mut changed);
        let outcome = issuer.answer(&changed.encode().unwrap(), &[], wall()).outcome;
        assert!(matches!(outcome, Outcome::Refused(Refused::Burnt)), "{outcome:?}");
    }
}

#[test]
fn sessions_are_bounded_and_end() {
    let code: Code = "7-oak-owl".parse().unwrap();
    let (_, share) = Half::begin(&code);
    let mut sessions = Sessions::default();
    let now = wall();
    let first = sessions.begin(&code, &share, now).unwrap().0;
    (0..4).for_each(|_| drop(sessions.begin(&code, &share, now).unwrap()));
    assert!(sessions.get(&first).is_none() && sessions.len() == 4);
    for number in 100..200 {
        let code = format!("{number}-oak-owl").parse().unwrap();
        let (_, share) = Half::begin(&code);
        sessions.begin(&code, &share, now).unwrap();
    }
    assert_eq!(sessions.len(), 64);
    sessions.begin(&code, &share, now + 3 * MINUTE).unwrap();
    assert_eq!(sessions.len(), 1, "they end");
}

#[test]
fn spoken_invitations_have_bounds_and_their_words_are_in_no_debug_text() {
    let (certs, issuer) = cluster();
    for terms in [Terms { uses: 2, ..spoken() }, Terms { time: 61 * MINUTE, ..spoken() }] {
        let error = issuer.invite_spoken(&terms, wall()).unwrap_err();
        assert!(matches!(error, EnrolError::Terms(_)), "{error}");
    }
    let code = issuer.invite_spoken(&spoken(), wall()).unwrap();
    issuer.invitations(wall()).unwrap();
    let words = code.to_string();
    let (_, words) = words.split_once('-').unwrap();
    let (_home, first) = joiner("c@h");
    let begun = first.ask_spoken(&code, wall()).unwrap();
    let shown = format!("{issuer:?} {code:?} {begun:?}");
    assert!(!shown.contains(words), "{shown}");
    assert_eq!(mode_of(&certs.path().join("ca/invitations")), 0o600);
    let late = first.ask_spoken(&code, wall()).unwrap();
    let share = issuer.answer(late.bytes(), &[], wall()).bytes;
    let later = wall() + 11 * MINUTE;
    let asked = first.go_on(late, &share, later).unwrap();
    let answer = issuer.answer(asked.bytes(), &[], later).bytes;
    assert!(matches!(refusal(asked.check(&answer, later)), Refused::Expired { .. }));
}
