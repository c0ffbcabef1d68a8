//! Tokens as clients and forgers bring them.

mod files;
mod rotation;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Authority, IdentityError};
use super::*;
use crate::io::clock::wall;
use crate::proto::token::{Claims, Grant, Role};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A cluster's authority, and what its nodes judge tokens by.
struct Cluster {
    dir: tempfile::TempDir,
    authority: Authority,
    tokens: Tokens,
    now: SystemTime,
}

fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    // Whole seconds: what a token says begins and ends with one.
    let since = wall().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let now = UNIX_EPOCH + Duration::from_secs(since);
    let authority = Authority::init(dir.path(), now).unwrap();
    let tokens = Tokens::open(dir.path()).unwrap();
    Cluster { dir, authority, tokens, now }
}

impl Cluster {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("ca").join(name)
    }

    fn token(&self) -> String {
        self.authority.token("alice", Role::User, vec![], HOUR, self.now).unwrap()
    }

    fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.tokens.verify(token, self.now)
    }

    fn key(&self) -> TokenKey {
        TokenKeys::read(Layout::new(self.dir.path())).unwrap().first().unwrap()
    }

    /// What a sound token says, as JSON.
    fn payload(&self) -> Value {
        serde_json::to_value(self.verify(&self.token()).unwrap()).unwrap()
    }

    /// A token with this header and payload, signed with the cluster's key as EdDSA is.
    fn forged(&self, header: &Value, payload: &Value) -> String {
        let [header, payload] = [header, payload].map(|part| coded(part.to_string().as_bytes()));
        self.signed(format!("{header}.{payload}"))
    }

    fn signed(&self, message: String) -> String {
        let key = EncodingKey::from_ed_der(&pkcs8(&self.key()));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).unwrap();
        format!("{message}.{signature}")
    }

    /// The verdict on a token whose payload is a sound one with this claim.
    fn with(&self, claim: &str, value: Value) -> Result<Claims, TokenError> {
        let mut payload = self.payload();
        payload[claim] = value;
        self.verify(&self.forged(&json!({"alg": "EdDSA", "typ": "JWT"}), &payload))
    }

    fn revoke(&self, jti: &str) -> RevokedToken {
        self.authority.revoke_token(jti, self.now + HOUR, self.now).unwrap()
    }

    fn list(&self) -> String {
        fs::read_to_string(self.path("tokens")).unwrap()
    }
}

fn pkcs8(key: &TokenKey) -> Vec<u8> {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::pki_types::pem::PemObject;
    let pem = key.to_pem().unwrap();
    PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap().secret_pkcs8_der().to_vec()
}

fn coded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn seconds(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_token_says_what_it_was_made_for() {
    let cluster = cluster();
    let grants: Vec<Grant> = ["room:*", "a=b=join"].map(|text| text.parse().unwrap()).to_vec();
    let make = |sub| cluster.authority.token(sub, Role::Admin, grants.clone(), HOUR, cluster.now);
    let token = make("ä lice").unwrap();
    let claims = cluster.verify(&token).unwrap();
    assert_eq!(
        (claims.sub.as_str(), claims.role, &claims.topics),
        ("ä lice", Role::Admin, &grants)
    );
    assert_eq!(claims.iss, cluster.authority.cluster().to_string());
    assert_eq!((claims.aud.as_str(), claims.jti.len()), ("xpando", 32));
    assert_eq!((claims.iat, claims.exp), (seconds(cluster.now), seconds(cluster.now + HOUR)));
    let other = cluster.verify(&make("ä lice").unwrap()).unwrap();
    assert_ne!(claims.jti, other.jti);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    assert!(token.chars().all(plain), "{token}");
    let header = token.split_once('.').unwrap().0;
    assert_eq!(URL_SAFE_NO_PAD.decode(header).unwrap(), br#"{"typ":"JWT","alg":"EdDSA"}"#);
}

#[test]
fn the_json_is_that_of_a_jwt() {
    let text = r#"{"iss":"c","aud":"xpando","sub":"alice","jti":"1","iat":100,"exp":200,"role":"node_operator","topics":["room:*","room:1=join"]}"#;
    let read: Claims = serde_json::from_str(text).unwrap();
    assert_eq!((read.role, read.topics.len()), (Role::NodeOperator, 2));
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    let bare = text.replace(r#","topics":["room:*","room:1=join"]"#, "");
    let read: Claims = serde_json::from_str(&bare).unwrap();
    assert_eq!((&read.topics, serde_json::to_string(&read).unwrap()), (&vec![], bare));
}

#[test]
fn what_no_token_may_say_is_not_signed() {
    let cluster = cluster();
    let make = |sub: &str, topics, lifetime| {
        cluster.authority.token(sub, Role::User, topics, lifetime, cluster.now)
    };
    for (sub, many, lifetime) in
        [("", 0, HOUR), ("a\n", 0, HOUR), ("a", 65, HOUR), ("a", 0, 367 * 24 * HOUR)]
    {
        let topics = vec!["room:1".parse().unwrap(); many];
        assert!(matches!(make(sub, topics, lifetime), Err(IdentityError::Claims(_))), "{sub:?}");
    }
    assert!(make("a", vec![], Duration::ZERO).is_err());
    let long = vec![format!("{}:*", "x".repeat(200)).parse().unwrap(); 60];
    assert!(matches!(make("a", long, HOUR), Err(IdentityError::TokenTooLong(_))));
}

#[test]
fn a_token_counts_until_its_last_second() {
    let cluster = cluster();
    let token = cluster.token();
    let at = |t| cluster.tokens.verify(&token, t).map(|claims| claims.sub);
    let second = Duration::from_secs(1);
    assert_eq!(at(cluster.now + HOUR - Duration::from_nanos(1)), Ok("alice".to_owned()));
    assert_eq!(at(cluster.now + HOUR), Err(TokenError::Expired));
    assert_eq!(at(cluster.now + 9 * HOUR), Err(TokenError::Expired));
    assert!(at(cluster.now - second).is_ok(), "iat binds nobody: clocks differ");
    let begins = cluster.now + 5 * second;
    let mut payload = cluster.payload();
    payload["nbf"] = json!(seconds(begins));
    let token = cluster.forged(&json!({"alg": "EdDSA"}), &payload);
    let at = |t| cluster.tokens.verify(&token, t).map(|claims| claims.sub);
    assert_eq!(at(begins - second), Err(TokenError::NotYetValid));
    assert!(at(begins).is_ok());
    assert_eq!(cluster.with("nbf", json!(u64::MAX)), Err(TokenError::NotYetValid));
    // What it says can be read whenever that is.
    assert_eq!(cluster.tokens.claims(&token, cluster.now).unwrap().sub, "alice");
}

#[test]
fn every_claim_must_be_there_and_be_sound() {
    let cluster = cluster();
    assert!(cluster.with("more", json!({"of": ["this"]})).is_ok(), "unknown claims are left alone");
    for claim in ["iss", "aud", "sub", "jti", "iat", "exp", "role"] {
        let mut payload = cluster.payload();
        payload.as_object_mut().unwrap().remove(claim);
        let token = cluster.forged(&json!({"alg": "EdDSA"}), &payload);
        assert_eq!(cluster.verify(&token), Err(TokenError::Malformed), "without {claim}");
        assert_eq!(cluster.with(claim, Value::Null), Err(TokenError::Malformed), "{claim}");
    }
    for (claim, value) in [
        ("sub", json!("")),
        ("sub", json!("a\u{0}")),
        ("jti", json!("a b")),
        ("role", json!("root")),
        ("topics", json!(["room*"])),
        ("topics", json!("room:*")),
        ("topics", json!(vec!["a"; 65])),
        ("exp", json!("tomorrow")),
        ("exp", json!(-1)),
        ("exp", json!(u64::MAX)),
        ("exp", json!(1e300)),
        ("nbf", json!("now")),
    ] {
        assert_eq!(
            cluster.with(claim, value.clone()),
            Err(TokenError::Malformed),
            "{claim}: {value}"
        );
    }
    assert_eq!(cluster.with("aud", json!("other")), Err(TokenError::NotForUs));
    assert_eq!(cluster.with("iss", json!("other")), Err(TokenError::NotForUs));
}

#[test]
fn audiences_and_times_are_read_as_the_standard_writes_them() {
    let cluster = cluster();
    for aud in [json!(["xpando"]), json!(["other", "xpando"])] {
        assert!(cluster.with("aud", aud.clone()).is_ok(), "{aud}");
    }
    for aud in [json!(["other"]), json!([]), json!(["xpando "])] {
        let verdict = cluster.with("aud", aud.clone());
        assert_eq!(verdict, Err(TokenError::NotForUs), "{aud}");
    }
    let (now, half) = (seconds(cluster.now), 0.5);
    assert!(cluster.with("exp", json!(now as f64 + 1.5)).is_ok());
    assert_eq!(cluster.with("exp", json!(now as f64 + half)), Err(TokenError::Malformed));
    assert!(cluster.with("iat", json!(now as f64 + half)).is_ok());
    assert!(cluster.with("nbf", json!(now as f64 - half)).is_ok());
    assert_eq!(cluster.with("nbf", json!(now as f64 + half)), Err(TokenError::NotYetValid));
}

#[test]
fn only_ed25519_counts() {
    let cluster = cluster();
    let payload = cluster.payload();
    let good = json!({"alg": "EdDSA"});
    assert!(cluster.verify(&cluster.forged(&good, &payload)).is_ok());
    for alg in ["none", "None", "", "HS256", "HS512", "ES256", "RS256", "PS256", "eddsa", "Ed448"] {
        // Even with a sound EdDSA signature below it.
        let token = cluster.forged(&json!({"alg": alg}), &payload);
        let error = cluster.verify(&token).unwrap_err();
        assert!(matches!(error, TokenError::Malformed | TokenError::Signature), "{alg}: {error}");
        let bare = token.rsplit_once('.').unwrap().0;
        assert!(cluster.verify(&format!("{bare}.")).is_err() && cluster.verify(bare).is_err());
    }
    for header in [json!({"typ": "JWT"}), json!({}), json!([]), json!("EdDSA"), json!(null)] {
        assert_eq!(cluster.verify(&cluster.forged(&header, &payload)), Err(TokenError::Malformed));
    }
    // The public key as a shared secret: raw, and as the list spells it.
    let public = cluster.key().id().0;
    let spelled = cluster.list().lines().find_map(|l| l.strip_prefix("key ").map(str::to_owned));
    for secret in [&public[..], spelled.unwrap().as_bytes()] {
        for alg in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let key = EncodingKey::from_secret(secret).unwrap();
            let token = jsonwebtoken::encode(&jsonwebtoken::Header::new(alg), &payload, &key);
            assert_eq!(cluster.verify(&token.unwrap()), Err(TokenError::Signature));
        }
    }
}

#[test]
fn a_header_brings_no_key() {
    let (ours, theirs) = (cluster(), cluster());
    let payload = ours.payload();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": coded(&theirs.key().id().0)});
    for (field, value) in [
        ("jwk", jwk),
        ("x5c", json!(["AAAA"])),
        ("jku", json!("https://127.0.0.1:1/keys")),
        ("x5u", json!("https://127.0.0.1:1/keys")),
        ("kid", json!("../../ca/token.key")),
        ("more", json!({"x": 1})),
    ] {
        let header = json!({"alg": "EdDSA", field: value});
        assert_eq!(
            ours.verify(&theirs.forged(&header, &payload)),
            Err(TokenError::Signature),
            "{field}"
        );
        // Nor does it take ours away.
        assert!(ours.verify(&ours.forged(&header, &payload)).is_ok(), "{field}");
    }
    let header = json!({"alg": "EdDSA", "crit": ["exp"]});
    assert_eq!(ours.verify(&ours.forged(&header, &payload)), Err(TokenError::Malformed));
}

#[test]
fn no_changed_part_passes() {
    let cluster = cluster();
    let token = cluster.token();
    for at in 0..token.len() {
        for bit in [1, 2, 4, 32] {
            let mut changed = token.clone().into_bytes();
            changed[at] ^= bit;
            let Ok(changed) = String::from_utf8(changed) else { continue };
            assert!(cluster.verify(&changed).is_err(), "byte {at} ^ {bit}");
        }
        assert!(cluster.verify(&token[..at]).is_err(), "first {at}");
    }
    let mut payload = cluster.payload();
    payload["role"] = json!("admin");
    let parts: Vec<&str> = token.split('.').collect();
    let promoted = [parts[0], &coded(payload.to_string().as_bytes()), parts[2]].join(".");
    assert_eq!(cluster.verify(&promoted), Err(TokenError::Signature));
    for around in
        [format!(" {token}"), format!("{token}\n"), format!("{token}="), format!("{token}.")]
    {
        assert!(cluster.verify(&around).is_err(), "{around:?}");
    }
    // A claim that is said twice is no claim.
    let twice = cluster.payload().to_string().replacen('{', r#"{"role":"admin","#, 1);
    let header = coded(br#"{"alg":"EdDSA"}"#);
    let token = cluster.signed(format!("{header}.{}", coded(twice.as_bytes())));
    assert_eq!(cluster.verify(&token), Err(TokenError::Malformed));
}

#[test]
fn a_token_of_another_cluster_is_refused() {
    let (ours, theirs) = (cluster(), cluster());
    assert_eq!(ours.verify(&theirs.token()), Err(TokenError::UnknownIssuer));
    // The same key in two clusters, as after a copied directory.
    fs::copy(ours.path("token.key"), theirs.path("token.key")).unwrap();
    fs::remove_file(theirs.path("tokens")).unwrap();
    assert_eq!(ours.verify(&theirs.token()), Err(TokenError::NotForUs));
}

#[test]
fn a_token_has_at_most_four_kibibytes() {
    let cluster = cluster();
    let fits = |filler: usize| {
        let mut payload = cluster.payload();
        payload["x"] = json!("x".repeat(filler));
        cluster.forged(&json!({"alg": "EdDSA"}), &payload)
    };
    let longest = (2700..2900).rev().map(fits).find(|token| token.len() <= MAX_TOKEN).unwrap();
    assert!(longest.len() > MAX_TOKEN - 4 && cluster.verify(&longest).is_ok());
    assert_eq!(cluster.verify(&fits(4096)), Err(TokenError::Malformed));
}

#[test]
fn a_revoked_token_is_refused_and_no_other() {
    let cluster = cluster();
    let [one, other] = [cluster.token(), cluster.token()];
    let jti = cluster.verify(&one).unwrap().jti;
    let revoked = cluster.revoke(&jti);
    assert_eq!(revoked, RevokedToken { added: true, total: 1, path: cluster.path("tokens") });
    assert!(cluster.verify(&one).is_ok(), "not before the list is read");
    assert_eq!(cluster.tokens.clone().look().unwrap(), Some(1));
    assert_eq!(cluster.verify(&one), Err(TokenError::Revoked));
    assert!(cluster.tokens.revoked(&jti) && cluster.verify(&other).is_ok());
    let list = cluster.list();
    let again = cluster.revoke(&jti);
    assert_eq!((again.added, again.total, cluster.list()), (false, 1, list), "nothing to write");
}

#[test]
fn every_refusal_has_its_word() {
    use TokenError as E;
    let all = [
        (E::Malformed, "malformed"),
        (E::Signature, "signature"),
        (E::Expired, "expired"),
        (E::NotYetValid, "not_yet_valid"),
        (E::NotForUs, "not_for_us"),
        (E::Revoked, "revoked"),
        (E::Algorithm, "algorithm"),
        (E::UnknownIssuer, "unknown_issuer"),
        (E::UnknownKey, "unknown_key"),
        (E::Unmapped(Unmapped::Role), "unmapped"),
        (E::NoKeySet, "no_key"),
        (E::NoKey, "no_key"),
    ];
    for (error, word) in all {
        assert_eq!(error.label(), word);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_bytes_make_a_panic(
        texts in proptest::collection::vec("\\PC{0,200}", 8),
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 3),
        cut in 0_usize..300,
    ) {
        let cluster = cluster();
        for text in texts {
            prop_assert!(cluster.verify(&text).is_err());
        }
        let token = parts.iter().map(|part| coded(part)).collect::<Vec<_>>().join(".");
        prop_assert!(cluster.verify(&token).is_err());
        // Whatever is said with a sound signature.
        let payload = coded(&parts[0]);
        let header = coded(br#"{"alg":"EdDSA"}"#);
        let signed = cluster.signed([header, payload].join("."));
        prop_assert!(cluster.verify(&signed).is_err());
        let mut sound = cluster.token();
        sound.truncate(cut);
        prop_assert!(cluster.verify(&sound).is_err());
        fs::write(cluster.path("tokens"), &parts[1]).unwrap();
        prop_assert!(cluster.tokens.look().is_err());
    }
}
