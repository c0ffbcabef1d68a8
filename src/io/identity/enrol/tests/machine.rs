//! Pods that join by their platform's tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;
use crate::proto::enrol::AuthorityHash;

/// A platform: its key, and the file with the public half.
struct Platform {
    key: rcgen::KeyPair,
    dir: tempfile::TempDir,
}

impl Platform {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let platform = Self { key, dir: tempfile::tempdir().unwrap() };
        platform.publish(&json!({"keys": [platform.jwk("one")]}));
        platform
    }

    fn publish(&self, keys: &Value) {
        fs::write(self.dir.path().join("keys"), keys.to_string()).unwrap();
    }

    fn jwk(&self, kid: &str) -> Value {
        use rcgen::PublicKeyData as _;
        let point = self.key.der_bytes();
        let [x, y] = [&point[1..33], &point[33..]].map(|half| URL_SAFE_NO_PAD.encode(half));
        json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256", "x": x, "y": y})
    }

    fn rules(&self) -> Rules {
        let machine = MachineRules {
            keys: self.dir.path().join("keys"),
            issuer: "https://kubernetes.default.svc".to_owned(),
            audience: "xpando".to_owned(),
            subject: "system:serviceaccount:*:*".to_owned(),
            names: "$2-*@*.$1.example".to_owned(),
        };
        Rules { machine: Some(machine), ..Rules::default() }
    }

    fn sign(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &EncodingKey::from_ec_der(&self.key.serialize_der())).unwrap()
    }

    fn token(&self, claims: &Value) -> String {
        let kid = Some("one".to_owned());
        self.sign(&Header { kid, ..Header::new(Algorithm::ES256) }, claims)
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({
        "iss": "https://kubernetes.default.svc",
        "aud": ["xpando"],
        "sub": "system:serviceaccount:prod:web",
        "exp": seconds(wall() + 10 * MINUTE),
        "nbf": seconds(wall()),
        "kubernetes.io": {"namespace": "prod"},
    })
}

fn hash(certs: &Path) -> AuthorityHash {
    let issuer = Issuer::open(certs, Rules::default()).unwrap();
    issuer.invite(&terms(), &seeds(), wall()).unwrap().authority()
}

/// The refusal's reason.
fn unproven(issuer: &Issuer, joiner: &Joiner, authority: AuthorityHash, token: &str) -> String {
    let asked = joiner.ask_machine(token, Some(authority), wall()).unwrap();
    let refused = refusal(asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall()));
    assert!(matches!(refused, Refused::Unproven { .. } | Refused::RateLimited { .. }), "{refused}");
    refused.to_string()
}

#[test]
fn a_pod_joins_by_its_token_and_its_name_is_made_of_the_subject() {
    let (certs, _) = cluster();
    let platform = Platform::new();
    let issuer = Issuer::open(certs.path(), platform.rules()).unwrap();
    let authority = hash(certs.path());
    let (home, pod) = joiner("web-1@10.prod.example");
    let token = platform.token(&claims());
    let error = pod.ask_machine(&token, None, wall()).unwrap_err();
    assert!(matches!(error, EnrolError::NoAuthority), "{error}");
    let asked = pod.ask_machine(&token, Some(authority), wall()).unwrap();
    let answered = issuer.answer(asked.bytes(), &[], wall());
    assert!(matches!(answered.outcome, Outcome::Issued { means: Means::Machine, .. }));
    pod.write(&asked.check(&answered.bytes, wall()).unwrap()).unwrap();
    Identity::load(home.path(), &name("web-1@10.prod.example"), wall()).unwrap();
    // Another pod of the account has another name, and not this one.
    let (_twin, twin) = joiner("web-1@10.prod.example");
    let asked = twin.ask_machine(&token, Some(authority), wall()).unwrap();
    let taken = refusal(asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall()));
    assert!(matches!(taken, Refused::NameTaken { .. }), "{taken}");
    for other in ["db-1@10.prod.example", "web-1@10.dev.example"] {
        let (_dir, other) = joiner(other);
        assert!(unproven(&issuer, &other, authority, &token).contains("for other names"));
    }
    // An issuer that takes no tokens, and an answer of another cluster.
    let closed = Issuer::open(certs.path(), Rules::default()).unwrap();
    let (_dir, second) = joiner("web-2@10.prod.example");
    let asked = second.ask_machine(&token, Some(authority), wall()).unwrap();
    let refused = refusal(asked.check(&closed.answer(asked.bytes(), &[], wall()).bytes, wall()));
    assert_eq!(refused, Refused::NotTaken);
    let (theirs, _) = cluster();
    let liar = Issuer::open(theirs.path(), platform.rules()).unwrap();
    let forged = second.ask_machine(&token, Some(hash(theirs.path())), wall()).unwrap();
    let forged = liar.answer(forged.bytes(), &[], wall()).bytes;
    assert!(matches!(asked.check(&forged, wall()), Err(EnrolError::Answer(_))));
}

#[test]
fn a_token_that_proves_nothing_is_refused() {
    let (certs, _) = cluster();
    let (platform, other) = (Platform::new(), Platform::new());
    let issuer = Issuer::open(certs.path(), platform.rules()).unwrap();
    let authority = hash(certs.path());
    let (_home, pod) = joiner("web-1@10.prod.example");
    let with = |key: &str, value: Value| {
        let mut claims = claims();
        claims[key] = value;
        platform.token(&claims)
    };
    let without = |key: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(key);
        platform.token(&claims)
    };
    let unknown = "no key of the platform has signed";
    let secret = EncodingKey::from_secret(&platform.key.serialize_der()).unwrap();
    let shared = encode(&Header::new(Algorithm::HS256), &claims(), &secret).unwrap();
    let sound = platform.token(&claims());
    let (_, body) = sound.split_once('.').unwrap();
    let none = format!("{}.{body}", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
    let crit = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::ES256) };
    for (token, reason) in [
        (other.token(&claims()), unknown),
        (with("iss", json!("https://else.example")), unknown),
        (with("aud", json!(["else"])), unknown),
        (without("aud"), unknown),
        (without("exp"), unknown),
        (without("sub"), unknown),
        (with("exp", json!(seconds(wall() - 2 * MINUTE))), "expired"),
        (with("exp", json!(u64::MAX)), "expired"),
        (with("nbf", json!(seconds(wall() + 5 * MINUTE))), "not valid yet"),
        (with("sub", json!("system:node:prod:web")), "none that may join"),
        (with("sub", json!("system:serviceaccount:prod:*")), "none that may join"),
        (
            platform.sign(
                &Header { kid: Some("two".to_owned()), ..Header::new(Algorithm::ES256) },
                &claims(),
            ),
            unknown,
        ),
        (platform.sign(&crit, &claims()), "extensions"),
        (shared, "private key"),
        (none, "no token"),
        (sound[..sound.len() - 2].to_owned(), unknown),
        (String::new(), "no token"),
        ("a.b.c".to_owned(), "no token"),
    ] {
        let refused = unproven(&issuer, &pod, authority, &token);
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
    assert_eq!(issued_lines(certs.path()), 0);
}

#[test]
fn the_keys_of_the_platform_are_read_again_when_their_file_changes() {
    let (certs, _) = cluster();
    let platform = Platform::new();
    let issuer = Issuer::open(certs.path(), platform.rules()).unwrap();
    let authority = hash(certs.path());
    let (_home, pod) = joiner("web-1@10.prod.example");
    let token = platform.token(&claims());
    platform.publish(&json!({"keys": [platform.jwk("later")]}));
    unproven(&issuer, &pod, authority, &token);
    platform.publish(&json!({"keys": [platform.jwk("later"), platform.jwk("one")]}));
    let asked = pod.ask_machine(&token, Some(authority), wall()).unwrap();
    asked.check(&issuer.answer(asked.bytes(), &[], wall()).bytes, wall()).unwrap();
    for bad in ["", "{}", r#"{"keys": []}"#, &"x".repeat(300_000)] {
        fs::write(platform.dir.path().join("keys"), bad).unwrap();
        let asked = pod.ask_machine(&token, Some(authority), wall()).unwrap();
        let outcome = issuer.answer(asked.bytes(), &[], wall()).outcome;
        let Outcome::Failed(error) = outcome else { panic!("{outcome:?}") };
        assert!(error.to_string().contains("JSON Web Key Set"), "{error}");
    }
}
