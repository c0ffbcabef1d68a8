//! Requests, answers and their parts, as bytes and as texts.

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn request(proof: Proof) -> Request {
    Request {
        csr: vec![1; 300],
        name: name("a@h"),
        hosts: vec!["h.example".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        time: 1_700_000_000_000,
        authority: AuthorityHash([3; 32]),
        proof,
    }
}

fn proofs() -> Vec<Proof> {
    vec![
        Proof::Invitation { id: InvitationId([7; 16]), mac: [9; 32] },
        Proof::Certificate { der: vec![4; 900], signature: vec![5; 71] },
        Proof::Operator,
        Proof::SpokenStart { number: 7, share: vec![1; 33] },
        Proof::Spoken { session: [2; 16], mac: [3; 32] },
        Proof::Machine { jwt: "a.b.c".to_owned() },
    ]
}

fn refusals() -> Vec<Refused> {
    let reason = || "why".to_owned();
    vec![
        Refused::Malformed { reason: reason() },
        Refused::OtherAuthority { ours: AuthorityHash([1; 32]) },
        Refused::UnknownInvitation,
        Refused::Expired { ended: 5 },
        Refused::UsedUp,
        Refused::NameNotAllowed { pattern: "web-*@*".to_owned() },
        Refused::NameTaken { holder: KeyId([1; 16]), requested: KeyId([2; 16]) },
        Refused::KeyTaken { name: name("b@h") },
        Refused::UnusableName,
        Refused::Clock { ahead: -400_000 },
        Refused::Waiting { request: "00c0ffee".parse().unwrap() },
        Refused::Denied,
        Refused::Lapsed { ended: 5, grace: 86_400 },
        Refused::Revoked,
        Refused::Unproven { reason: reason() },
        Refused::Burnt,
        Refused::NotTaken,
        Refused::RateLimited { after: 1001 },
        Refused::CannotIssue { reason: reason() },
    ]
}

fn issued() -> Issued {
    Issued {
        certificate: vec![1; 800],
        authorities: vec![vec![2; 600]],
        trust: Some(b"xpando trust 1".to_vec()),
        tokens: Some(b"xpando tokens 1".to_vec()),
        revocations: None,
        peers: vec!["10.0.0.1:4697".parse().unwrap(), "[2001:db8::1]:4697".parse().unwrap()],
        seal: Some([6; 32]),
    }
}

#[test]
fn requests_and_answers_mean_the_same_as_bytes() {
    for proof in proofs() {
        let request = request(proof);
        let bytes = request.encode().unwrap();
        assert_eq!(Request::decode(&bytes).unwrap(), request);
        assert_eq!(bytes[0], VERSION);
    }
    let refused = refusals().into_iter().map(Answer::Refused);
    let share = Answer::SpokenShare { session: [1; 16], share: vec![2; 33] };
    for answer in refused.chain([Answer::Issued(Box::new(issued())), share]) {
        assert_eq!(Answer::decode(&answer.encode().unwrap()).unwrap(), answer);
    }
}

#[test]
fn what_is_beyond_the_bounds_is_not_read() {
    let host = |n: usize| format!("h{n}.example").parse::<Host>().unwrap();
    let fails = |change: &dyn Fn(&mut Request)| {
        let mut request = request(Proof::Operator);
        change(&mut request);
        let bytes = codec::encode_versioned(VERSION, &request).unwrap();
        Request::decode(&bytes).unwrap_err()
    };
    assert_eq!(fails(&|it| it.csr = vec![0; MAX_DER + 1]), CodecError::Malformed);
    assert_eq!(fails(&|it| it.hosts = (0..=MAX_HOSTS).map(host).collect()), CodecError::Malformed);
    let long = |der, signature| Proof::Certificate { der, signature };
    assert_eq!(fails(&|it| it.proof = long(vec![0; MAX_DER + 1], vec![])), CodecError::Malformed);
    assert_eq!(fails(&|it| it.proof = long(vec![], vec![0; 129])), CodecError::Malformed);
    let share = Proof::SpokenStart { number: 1, share: vec![0; 65] };
    assert_eq!(fails(&|it| it.proof = share.clone()), CodecError::Malformed);
    let jwt = "x".repeat(MAX_JWT + 1);
    assert_eq!(fails(&|it| it.proof = Proof::Machine { jwt: jwt.clone() }), CodecError::Malformed);
    let too_long = fails(&|it| it.csr = vec![0; MAX_MESSAGE]);
    assert!(matches!(too_long, CodecError::TooLong { .. }), "{too_long}");
    let mut request = request(Proof::Operator);
    request.csr = vec![0; MAX_MESSAGE];
    assert!(matches!(request.encode(), Err(CodecError::TooLong { .. })));
    let bytes = |answer: &Answer| codec::encode_versioned(VERSION, answer).unwrap();
    let long = Refused::CannotIssue { reason: "x".repeat(MAX_REASON + 1) };
    assert!(Answer::decode(&bytes(&Answer::Refused(long))).is_err());
    let most = Issued { authorities: vec![vec![]; 9], ..issued() };
    assert!(Answer::decode(&bytes(&Answer::Issued(Box::new(most)))).is_err());
    let peers = vec!["10.0.0.1:1".parse().unwrap(); MAX_PEERS + 1];
    let most = Issued { peers, ..issued() };
    assert!(Answer::decode(&bytes(&Answer::Issued(Box::new(most)))).is_err());
    assert_eq!(Request::decode(&[2, 0]).unwrap_err(), CodecError::Version(2));
}

#[test]
fn a_proof_is_over_each_part_of_the_request() {
    let sound = request(Proof::Operator);
    let statement = sound.statement().unwrap();
    let changes: [fn(&mut Request); 5] = [
        |it| it.csr[0] ^= 1,
        |it| it.name = name("b@h"),
        |it| drop(it.hosts.pop()),
        |it| it.time += 1,
        |it| it.authority = AuthorityHash::ANY,
    ];
    for change in changes {
        let mut other = sound.clone();
        change(&mut other);
        assert_ne!(other.statement().unwrap(), statement);
    }
    for proof in proofs() {
        assert_eq!(request(proof).statement().unwrap(), statement);
    }
    let sealed = issued().statement(b"request").unwrap();
    assert_ne!(issued().statement(b"other").unwrap(), sealed);
    let changes: [fn(&mut Issued); 6] = [
        |it| it.trust = None,
        |it| it.certificate[0] ^= 1,
        |it| it.authorities.push(vec![]),
        |it| it.tokens = None,
        |it| it.revocations = Some(vec![]),
        |it| it.peers.truncate(1),
    ];
    for change in changes {
        let mut other = issued();
        change(&mut other);
        assert_ne!(other.statement(b"request").unwrap(), sealed);
    }
}

#[test]
fn refusals_say_what_to_do() {
    let labels: std::collections::BTreeSet<_> = refusals().iter().map(Refused::label).collect();
    assert_eq!(labels.len(), refusals().len());
    for (refused, part) in [
        (Refused::Clock { ahead: -400_000 }, "clock is 400 s behind the issuer's"),
        (Refused::Clock { ahead: 301_000 }, "clock is 301 s ahead of the issuer's"),
        (Refused::RateLimited { after: 1001 }, "in 2 s"),
        (Refused::Lapsed { ended: 5, grace: 180 * 86_400 }, "more than 180 days ago"),
    ] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    let taken = Refused::NameTaken { holder: KeyId([1; 16]), requested: KeyId([2; 16]) };
    let taken = taken.to_string();
    assert!(taken.contains(&"01".repeat(16)) && taken.contains(&"02".repeat(16)), "{taken}");
}

#[test]
fn hosts_are_names_or_addresses_and_nothing_else() {
    for (text, shown) in [
        ("DB.Example", "db.example"),
        ("localhost", "localhost"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("notxpando.internal", "notxpando.internal"),
        ("xpando.internal.example", "xpando.internal.example"),
    ] {
        assert_eq!(text.parse::<Host>().unwrap().to_string(), shown);
    }
    let long = format!("{}.example", "x".repeat(64));
    for bad in [
        "",
        "*",
        "*.example",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a@b",
        "10.0.0.256",
        "-a",
        "a/b",
        "ä",
        &long,
        "[::1]",
        "a\0",
    ] {
        assert!(matches!(bad.parse::<Host>(), Err(HostError::Neither(_))), "{bad}");
    }
    for reserved in ["xpando.internal", "node.00.XPANDO.internal", "x.xpando.internal"] {
        assert!(matches!(reserved.parse::<Host>(), Err(HostError::Reserved(_))), "{reserved}");
    }
}

#[test]
fn patterns_are_names_with_stars() {
    let matches = |pattern: &str, text: &str| {
        let pattern: NamePattern = pattern.parse().unwrap();
        pattern.matches(&name(text))
    };
    for (pattern, yes, no) in [
        ("*@*", "a@h", None),
        ("a@h", "a@h", Some("b@h")),
        ("web-*@*", "web-1@10.0.0.1", Some("web@10.0.0.1")),
        ("*@10.0.0.*", "a@10.0.0.7", Some("a@10.0.1.7")),
        ("*@H.Example", "a@h.example", Some("a@i.example")),
        ("*-b-*@*.x", "a-b-c@h.x", Some("a-b@h.x")),
        ("*ab@*", "aab@h", Some("abc@h")),
        ("*@2001:db8::*", "a@2001:db8::1", Some("a@2001:db9::1")),
    ] {
        assert!(matches(pattern, yes), "{pattern} {yes}");
        no.into_iter().for_each(|no| assert!(!matches(pattern, no), "{pattern} {no}"));
    }
    let stars = format!("{}@h", "*a".repeat(MAX_STARS_BEYOND));
    for bad in ["", "*", "a", "a@", "@h", "*@*@*", "a b@*", "*@h/x", "*@h\n", stars.as_str()] {
        assert!(bad.parse::<NamePattern>().is_err(), "{bad}");
    }
    // Stars of one part do not reach into the other.
    assert!(!matches("a*@h", "ab@x.h"));
    let worst: NamePattern = "*a*a*a*a*a*a*a@h".parse().unwrap();
    assert!(
        !worst.matches(&name(&format!("{}@h", "ab".repeat(31)))) || "ab".repeat(31).ends_with('a')
    );
}

const MAX_STARS_BEYOND: usize = 9;

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let versioned: Vec<u8> = [&[VERSION][..], &bytes].concat();
        for bytes in [&bytes, &versioned] {
            if let Ok(request) = Request::decode(bytes) {
                prop_assert_eq!(Request::decode(&request.encode().unwrap()).unwrap(), request);
            }
            if let Ok(answer) = Answer::decode(bytes) {
                prop_assert_eq!(Answer::decode(&answer.encode().unwrap()).unwrap(), answer);
            }
        }
    }

    #[test]
    fn a_pattern_matches_as_a_regular_expression_would(
        pattern in "[ab*]{1,8}", text in "[ab]{1,10}"
    ) {
        fn like(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern, text) {
                ([], text) => text.is_empty(),
                ([b'*', rest @ ..], text) => (0..=text.len()).any(|n| like(rest, &text[n..])),
                ([one, rest @ ..], [other, text @ ..]) => one == other && like(rest, text),
                (_, []) => false,
            }
        }
        let parsed: NamePattern = format!("{pattern}@h").parse().unwrap();
        let expected = like(pattern.as_bytes(), text.as_bytes());
        prop_assert_eq!(parsed.matches(&name(&format!("{text}@h"))), expected);
    }

    #[test]
    fn any_text_is_a_host_with_one_spelling_or_none(text in ".{0,80}") {
        if let Ok(host) = text.parse::<Host>() {
            let shown = host.to_string();
            prop_assert_eq!(shown.parse::<Host>().unwrap(), host);
            let lower = shown.to_ascii_lowercase();
            prop_assert!(!lower.ends_with("xpando.internal") || lower.ends_with("xxpando.internal") || !lower.contains(".xpando."));
        }
    }
}
