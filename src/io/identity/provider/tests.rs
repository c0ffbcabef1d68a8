//! Tokens that others have made, changed and forged, held against settings.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::proto::token::mapping::Unmapped;
use crate::proto::token::{Grant, Role};

mod elixir;
mod remote;

const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const ASH: &str = "kind = \"ash\"\nkey_file = \"secret\"\n";
const PHOENIX: &str = "kind = \"phoenix\"\nkey_file = \"secret\"\nsalt = \"user socket\"\n";
const JWT: &str = "kind = \"jwt\"\nissuer = \"https://id.example\"\naudience = \"chat\"\n";

/// A token of the vectors.
fn vector(name: &str) -> String {
    let lines = include_str!("tests/vectors.txt").lines();
    let mut found = lines.filter_map(|line| line.split_once(' ')).filter(|(it, _)| *it == name);
    found.next().expect(name).1.to_owned()
}

/// Settings and what they name, in a directory of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new(settings: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("p.toml", settings);
        files.put("secret", &format!("{SECRET}\n"));
        files.put("rsa.pem", include_str!("tests/rsa.pem"));
        files.put("ec.pem", include_str!("tests/ec.pem"));
        files.put("ed.pem", include_str!("tests/ed.pem"));
        files.put("set.json", include_str!("tests/set.json"));
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        // Another file in its place, so that it is seen to be another.
        fs::write(self.path("new"), text).unwrap();
        fs::set_permissions(self.path("new"), Permissions::from_mode(0o600)).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    fn open(&self) -> Result<Providers, ProviderError> {
        Providers::open(&[self.path("p.toml")], None)
    }

    fn error(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// What a token comes to with these settings in the second 1,000,010.
fn judged(settings: &str, token: &str) -> Option<Result<Claims, TokenError>> {
    let providers = Files::new(settings).open().unwrap();
    let judged = providers.verify(token, at(1_000_010))?;
    Some(judged.map(|(claims, _)| claims))
}

fn sub(settings: &str, token: &str) -> Result<String, TokenError> {
    judged(settings, token).expect("a provider's").map(|claims| claims.sub)
}

#[test]
fn tokens_of_others_are_read() {
    let claims = judged(ASH, &vector("ash")).unwrap().unwrap();
    assert_eq!((claims.sub.as_str(), claims.jti.as_str()), ("user?id=7", "j1"));
    assert_eq!((claims.iat, claims.exp, claims.role), (1_000_000, 1_000_100, Role::User));
    let stripped = format!("{ASH}[subject]\nstrip = \"user?id=\"\nadd = \"app:\"\n");
    assert_eq!(sub(&stripped, &vector("ash")), Ok("app:7".to_owned()));
    let mapped =
        format!("{PHOENIX}[subject]\nclaim = \"id\"\n[topics]\ndefault = [\"room:{{org}}:*\"]\n");
    let claims = judged(&mapped, &vector("phoenix")).unwrap().unwrap();
    assert_eq!((claims.sub.as_str(), claims.exp), ("7", 1_000_100));
    assert_eq!(claims.topics.iter().map(Grant::to_string).collect::<Vec<_>>(), ["room:acme:*"]);
    assert_eq!(sub(PHOENIX, &vector("phoenix-text")), Ok("alice".to_owned()));
    assert_eq!(sub(PHOENIX, &vector("phoenix")), Err(TokenError::Unmapped(Unmapped::Subject)));
    for (algorithm, key) in [
        ("RS256", "key_file = \"rsa.pem\""),
        ("ES256", "key_file = \"ec.pem\""),
        ("EdDSA", "key_file = \"ed.pem\""),
        ("ES256", "key_set_file = \"set.json\""),
        ("EdDSA", "key_set_file = \"set.json\""),
    ] {
        let settings = format!("{JWT}algorithm = \"{algorithm}\"\n{key}\n");
        assert_eq!(sub(&settings, &vector(algorithm)), Ok("alice".to_owned()), "{key}");
    }
}

#[test]
fn a_vector_of_the_standard_is_read() {
    let files = Files::new(
        "kind = \"jwt\"\nissuer = \"joe\"\nany_audience = true\nalgorithm = \"HS256\"\nkey_file = \"rfc\"\n[subject]\nclaim = \"iss\"\n",
    );
    let key =
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    fs::write(files.path("rfc"), BASE64_URL_SAFE_NO_PAD.decode(key).unwrap()).unwrap();
    fs::set_permissions(files.path("rfc"), Permissions::from_mode(0o600)).unwrap();
    let providers = files.open().unwrap();
    let sub = |now| providers.verify(&vector("RFC"), at(now)).unwrap().map(|it| it.0.sub);
    assert_eq!(sub(1_300_819_379), Ok("joe".to_owned()));
    assert_eq!(sub(1_300_819_380), Err(TokenError::Expired));
}

#[test]
fn a_token_has_its_time() {
    for (settings, token) in [(ASH, "ash"), (PHOENIX, "phoenix-text")] {
        let longer = token == "phoenix-text";
        let (first, last) = (1_000_000, if longer { 1_086_399 } else { 1_000_099 });
        let providers = Files::new(settings).open().unwrap();
        let judged = |now| providers.verify(&vector(token), at(now)).unwrap().map(|(it, _)| it.exp);
        assert_eq!(judged(first), Ok(last + 1));
        assert_eq!(judged(last), Ok(last + 1));
        assert_eq!(judged(last + 1), Err(TokenError::Expired));
        if !longer {
            assert_eq!(judged(first - 1), Err(TokenError::NotYetValid));
        }
        let lenient = Files::new(&format!("{settings}leeway = 5\n")).open().unwrap();
        let judged = |now| lenient.verify(&vector(token), at(now)).unwrap().map(drop);
        assert_eq!((judged(last + 5), judged(last + 6)), (Ok(()), Err(TokenError::Expired)));
        assert_eq!(judged(first - 5), Ok(()));
    }
    let short = format!("{PHOENIX}max_age = 9\n");
    assert_eq!(sub(&short, &vector("phoenix-text")), Err(TokenError::Expired));
    let long = format!("{PHOENIX}max_age = 1000\n[subject]\nclaim = \"id\"\n");
    assert_eq!(judged(&long, &vector("phoenix")).unwrap().unwrap().exp, 1_001_000);
}

/// A JSON Web Token with this header and these claims, signed with the secret.
fn jwt(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let algorithm = match header["alg"].as_str() {
        Some("HS512") => aws_lc_rs::hmac::HMAC_SHA512,
        _ => aws_lc_rs::hmac::HMAC_SHA256,
    };
    let key = aws_lc_rs::hmac::Key::new(algorithm, SECRET.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
}

/// The claims of a good token of AshAuthentication with these instead; null takes one away.
fn ash(changes: &serde_json::Value) -> String {
    let mut claims = json!({
        "iss": "AshAuthentication v4.13.7", "aud": "~> 4.13", "sub": "user?id=7", "jti": "j1",
        "iat": 1_000_000, "nbf": 1_000_000, "exp": 1_000_100, "purpose": "user",
    });
    for (claim, value) in changes.as_object().unwrap() {
        claims[claim] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    jwt(&json!({ "alg": "HS256" }), &claims)
}

#[test]
fn ash_counts_for_sessions_of_its_audience_and_tenants() {
    use TokenError::{Malformed, NotForUs, Revoked};
    let of = |settings: &str, changes| sub(&format!("{ASH}{settings}"), &ash(&changes)).map(drop);
    for good in [
        json!({}),
        json!({ "purpose": null }),
        json!({ "aud": "~> 5.0.1" }),
        json!({ "aud": ["x", "~> 4.13"] }),
        json!({ "nbf": null, "iat": null, "jti": null }),
        json!({ "exp": 1_000_099.5 }),
    ] {
        assert_eq!(of("", good.clone()), Ok(()), "{good}");
    }
    for (bad, why) in [
        (json!({ "purpose": "sign_in" }), NotForUs),
        (json!({ "purpose": ["user"] }), NotForUs),
        (json!({ "act": "confirm" }), NotForUs),
        (json!({ "tenant": "acme" }), NotForUs),
        (json!({ "aud": "chat" }), NotForUs),
        (json!({ "aud": null }), NotForUs),
        (json!({ "aud": [] }), NotForUs),
        (json!({ "exp": null }), Malformed),
        (json!({ "exp": "1000100" }), Malformed),
        (json!({ "exp": -1 }), Malformed),
        (json!({ "exp": 1e300 }), Malformed),
        (json!({ "exp": 253_402_300_799_u64 }), Malformed),
        (json!({ "jti": "a b" }), Malformed),
        (json!({ "jti": 7 }), Malformed),
        (json!({ "sub": null }), TokenError::Unmapped(Unmapped::Subject)),
        (json!({ "sub": "x".repeat(300) }), Malformed),
        (json!({ "sub": "a\nb" }), Malformed),
    ] {
        assert_eq!(of("", bad.clone()), Err(why), "{bad}");
    }
    let tenants = "tenants = [\"acme\"]\n";
    assert_eq!(of(tenants, json!({ "tenant": "acme" })), Ok(()));
    assert_eq!(of(tenants, json!({ "tenant": "other" })), Err(NotForUs));
    assert_eq!(of("tenants = \"*\"\n", json!({ "tenant": "other" })), Ok(()));
    assert_eq!(of("purposes = [\"api\"]\n", json!({ "purpose": "api" })), Ok(()));
    assert_eq!(of("purposes = [\"api\"]\n", json!({})), Err(NotForUs));
    assert_eq!(of("audience = \"~> 4.13\"\n", json!({})), Ok(()));
    assert_eq!(of("audience = \"~> 5.0\"\n", json!({})), Err(NotForUs));
    assert!(judged(ASH, &ash(&json!({ "iss": "Ash" }))).is_none(), "nobody's here");
    let files = Files::new(&format!("{ASH}revoked_file = \"gone\"\n"));
    files.put("gone", "# of yesterday\n\nj0\n  j1  \n");
    let providers = files.open().unwrap();
    assert_eq!(providers.verify(&ash(&json!({})), at(1_000_010)), Some(Err(Revoked)));
}

#[test]
fn a_token_does_not_choose_how_it_is_verified() {
    use TokenError::{Algorithm, Malformed, Signature, UnknownKey};
    let good = json!({
        "iss": "https://id.example", "aud": "chat", "sub": "eve", "jti": "j", "exp": 1_000_100
    });
    let of = |settings: &str, token: &str| {
        judged(&format!("{JWT}{settings}"), token).expect("a provider's").map(|it| it.sub)
    };
    let hs = "algorithm = \"HS256\"\nkey_file = \"secret\"\n";
    assert_eq!(of(hs, &jwt(&json!({ "alg": "HS256", "kid": "any" }), &good)), Ok("eve".to_owned()));
    for alg in ["none", "None", "", "HS384", "HS512", "RS256", "EdDSA", "hs256"] {
        assert_eq!(of(hs, &jwt(&json!({ "alg": alg }), &good)), Err(Algorithm), "{alg}");
    }
    let crit = jwt(&json!({ "alg": "HS256", "crit": ["b64"], "b64": false }), &good);
    assert_eq!(of(hs, &crit), Err(Malformed));
    // The public key as a shared secret: its text, and its bytes.
    let text = include_str!("tests/rsa.pem");
    let signed = jwt(&json!({ "alg": "HS256" }), &good);
    let (signed, _) = signed.rsplit_once('.').unwrap();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, text.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    let forged = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag));
    let rs = "algorithm = \"RS256\"\nkey_file = \"rsa.pem\"\n";
    assert_eq!(of(rs, &forged), Err(Algorithm));
    // Keys that are not in the set, or of another algorithm there.
    let set = "algorithm = \"EdDSA\"\nkey_set_file = \"set.json\"\n";
    assert_eq!(of(set, &vector("EdDSA.k1")), Ok("alice".to_owned()));
    assert_eq!(of(set, &vector("EdDSA.k9")), Err(UnknownKey));
    assert_eq!(of(set, &vector("ES256")), Err(Algorithm));
    // A token whose header says another algorithm than it was signed with, under a signature of ours.
    let (_, rest) =
        vector("EdDSA").split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#);
    assert_eq!(of(rs, &format!("{header}.{rest}")), Err(Signature));
    let unsigned = format!("{signed}.");
    assert_eq!(of(hs, &unsigned), Err(Signature));
}

#[test]
fn no_changed_token_counts() {
    for (settings, name) in [
        (ASH.to_owned(), "ash"),
        (PHOENIX.to_owned(), "phoenix-text"),
        (format!("{JWT}algorithm = \"RS256\"\nkey_file = \"rsa.pem\"\n"), "RS256"),
        (format!("{JWT}algorithm = \"ES256\"\nkey_file = \"ec.pem\"\n"), "ES256"),
        (format!("{JWT}algorithm = \"EdDSA\"\nkey_set_file = \"set.json\"\n"), "EdDSA"),
    ] {
        let providers = Files::new(&settings).open().unwrap();
        let (token, now) = (vector(name), at(1_000_010));
        assert!(matches!(providers.verify(&token, now), Some(Ok(_))), "{name}");
        for position in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let judged = providers.verify(&changed, now);
            assert!(!matches!(judged, Some(Ok(_))), "{name}, byte {position}");
            let cut = providers.verify(&token[..position], now);
            assert!(!matches!(cut, Some(Ok(_))), "{name}, first {position}");
        }
        for more in [".", ".x", "=", " ", "\n", "A"] {
            let judged = providers.verify(&format!("{token}{more}"), now);
            assert!(!matches!(judged, Some(Ok(_))), "{name}{more:?}");
        }
    }
    let long = format!("{}.", "x".repeat(MAX_TOKEN));
    assert!(judged(ASH, &long).is_none() && judged(PHOENIX, &long).is_none());
}

/// A token of Phoenix.Token whose term has these bytes.
fn phoenix(first: &str, term: &[u8]) -> String {
    use std::num::NonZeroU32;
    let mut key = [0; 32];
    let algorithm = aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256;
    let rounds = NonZeroU32::new(1000).unwrap();
    aws_lc_rs::pbkdf2::derive(algorithm, rounds, b"user socket", SECRET.as_bytes(), &mut key);
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", part(first.as_bytes()), part(term));
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", part(tag.as_ref()))
}

#[test]
fn a_term_that_is_signed_is_bounded_all_the_same() {
    // {"a", 1000000000, …}: the last part decides how long it lasts.
    let of = |age: &[u8]| {
        let term = [&b"\x83h\x03m\x00\x00\x00\x01ab\x3b\x9a\xca\x00"[..], age].concat();
        sub(PHOENIX, &phoenix("HS256", &term)).map(drop)
    };
    assert_eq!(of(b"b\x00\x00\x00\x64"), Ok(()));
    assert_eq!(of(b"F\x40\x59\x00\x00\x00\x00\x00\x00"), Ok(()), "100.0");
    for (age, why) in [
        (&b"a\x00"[..], TokenError::Expired),
        (b"b\xff\xff\xff\xff", TokenError::Expired),
        (b"w\x08infinity", TokenError::Malformed),
        (b"w\x03nil", TokenError::Malformed),
        (b"n\x08\x00\xff\xff\xff\xff\xff\xff\xff\xff", TokenError::Malformed),
    ] {
        assert_eq!(of(age), Err(why), "{age:?}");
    }
    let forever = b"\x83h\x03m\x00\x00\x00\x01ab\x3b\x9a\xca\x00w\x08infinity";
    let year = format!("{PHOENIX}max_age = 3600\n");
    assert_eq!(sub(&year, &phoenix("HS256", forever)), Ok("a".to_owned()), "as it is told here");
    let bomb = [&b"\x83P\xff\xff\xff\xff"[..], &[0x78; 2000]].concat();
    let deep = [&b"\x83"[..], &b"h\x01".repeat(1400), b"j"].concat();
    for term in [&bomb[..], &deep, b"\x83a\x01", b"\x83j", b"\x83h\x01a\x01", b"", b"\x83"] {
        assert_eq!(sub(PHOENIX, &phoenix("HS256", term)), Err(TokenError::Malformed));
    }
    for first in ["HS384", "HS512"] {
        assert_eq!(sub(PHOENIX, &phoenix(first, forever)), Err(TokenError::Algorithm));
    }
    assert!(judged(PHOENIX, &phoenix("none", forever)).is_none());
}

#[test]
fn settings_are_read_strictly() {
    let refused = |settings: &str, says: &str| {
        let error = Files::new(settings).error();
        assert!(error.contains(says), "{settings}: {error}");
    };
    for (settings, says) in [
        ("", "missing field `kind`"),
        ("kind = \"oidc\"\n", "unknown variant"),
        ("kind = \"ash\"\n", "key_file is missing"),
        ("kind = \"ash\"\nkey_file = \"none\"\n", "none is missing"),
        ("kind = \"ash\"\nkey_file = \"secret\"\nrols = 1\n", "unknown field"),
        ("kind = \"ash\"\nkey_file = \"secret\"\nsalt = \"x\"\n", "of kind = \"phoenix\""),
        ("kind = \"ash\"\nkey_file = \"secret\"\nalgorithm = \"none\"\n", "unknown variant"),
        ("kind = \"ash\"\nkey_file = \"secret\"\nalgorithm = \"RS256\"\n", "no PEM public key"),
        ("kind = \"ash\"\nkey_file = \"rsa.pem\"\n", "is no public key"),
        ("kind = \"ash\"\nkey_set_file = \"set.json\"\n", "a shared secret is no key set"),
        ("kind = \"ash\"\nkey_set_url = \"https://x\"\n", "a shared secret is no key set"),
        (
            "kind = \"ash\"\nkey_file = \"secret\"\nkey_set_ca = \"rsa.pem\"\n",
            "is for a key_set_url",
        ),
        ("kind = \"phoenix\"\nsalt = \"s\"\nkey_set_url = \"https://x\"\n", "key set or audience"),
        ("kind = \"ash\"\nkey_file = \"secret\"\nleeway = 301\n", "leeway"),
        ("kind = \"ash\"\nkey_file = \"secret\"\nrevoked_file = \"none\"\n", "none is missing"),
        ("kind = \"phoenix\"\nkey_file = \"secret\"\n", "salt is missing"),
        ("kind = \"jwt\"\nkey_file = \"secret\"\n", "issuer is missing"),
    ] {
        refused(settings, says);
    }
    for (more, says) in [
        ("key_file = \"secret\"\n", "algorithm is missing"),
        ("algorithm = \"ES256\"\nkey_file = \"ed.pem\"\n", "no PEM public key"),
        ("algorithm = \"RS256\"\nkey_set_file = \"set.json\"\n", "none of its keys"),
        ("algorithm = \"RS256\"\nkey_set_file = \"rsa.pem\"\n", "no JSON Web Key Set"),
        ("algorithm = \"HS256\"\nkey_file = \"secret\"\nkey_set_file = \"set.json\"\n", "exclude"),
        ("algorithm = \"EdDSA\"\nkey_file = \"ed.pem\"\nkey_set_url = \"https://x\"\n", "exclude"),
        ("algorithm = \"EdDSA\"\nkey_set_url = \"http://id.example\"\n", "this machine alone"),
        ("algorithm = \"EdDSA\"\nkey_set_url = \"id.example\"\n", "no URL"),
        (
            "algorithm = \"EdDSA\"\nkey_set_url = \"https://x\"\nkey_set_ca = \"rsa.pem\"\n",
            "no PEM certificates",
        ),
        ("algorithm = \"HS256\"\nkey_file = \"secret\"\ntenants = \"*\"\n", "of kind = \"ash\""),
        ("algorithm = \"HS256\"\nkey_file = \"secret\"\nany_audience = true\n", "exclude"),
    ] {
        refused(&format!("{JWT}{more}"), says);
    }
}

#[test]
fn settings_of_phoenix_and_secrets_are_read_strictly() {
    let refused = |settings: &str, says: &str| {
        let error = Files::new(settings).error();
        assert!(error.contains(says), "{settings}: {error}");
    };
    for (more, says) in [
        ("issuer = \"x\"\n", "have no issuer"),
        ("key_iterations = 0\n", "key_iterations"),
        ("key_length = 1\n", "key_length"),
        ("key_digest = \"md5\"\n", "key_digest"),
        ("max_age = 0\n", "max_age"),
        ("[role]\nclaim = \"role\"\n", "role.values"),
        ("[role]\ndefault = \"root\"\n", "root"),
        (
            "[role]\nclaim = \"r\"\nvalues = { a = \"admin\" }\ndefault = \"admin\"\n",
            "role.default",
        ),
        ("[topics]\n", "topics needs"),
        ("[topics]\ndefault = [\"room*\"]\n", "is no grant"),
    ] {
        refused(&format!("{PHOENIX}{more}"), says);
    }
    let files = Files::new(ASH);
    for short in ["", "x", &SECRET[..31]] {
        files.put("secret", short);
        assert!(files.error().contains("32 bytes at least"), "{}", files.error());
    }
    files.put("secret", SECRET);
    fs::set_permissions(files.path("secret"), Permissions::from_mode(0o644)).unwrap();
    assert!(files.error().contains("0644"), "{}", files.error());
    let many = vec![files.path("p.toml"); MAX_PROVIDERS + 1];
    assert!(matches!(Providers::open(&many, None), Err(ProviderError::TooMany(_))));
}

#[test]
fn files_are_followed_and_what_is_wrong_changes_nothing() {
    let files = Files::new(&format!("{ASH}revoked_file = \"gone\"\n"));
    files.put("gone", "j0\n");
    let (providers, token) = (files.open().unwrap(), vector("ash"));
    let judged = || providers.verify(&token, at(1_000_010)).unwrap();
    let (_, key) = judged().unwrap();
    assert!(matches!(providers.look(), Ok(Look::Unchanged)));
    assert!(!providers.outlived(key, "j1") && providers.outlived(key, "j0"));
    let number = providers.number();
    files.put("gone", "j0\nj1\n");
    assert!(matches!(providers.look(), Ok(Look::New(()))));
    assert_ne!(providers.number(), number);
    assert_eq!(judged(), Err(TokenError::Revoked));
    assert!(providers.outlived(key, "j1"));
    assert!(providers.notes().is_empty() && providers.trouble().is_none());
    files.put("gone", "not an id\nj1\n");
    assert!(matches!(providers.look(), Ok(Look::New(()))));
    assert_eq!(judged(), Err(TokenError::Revoked), "one line of two counts");
    let notes = providers.notes();
    assert!(matches!(notes.as_slice(), [it] if it.contains("the first is line 1")), "{notes:?}");
    assert!(providers.notes().is_empty() && providers.trouble().is_none(), "said once");
    assert!(files.open().is_ok(), "a node starts");
    files.put("gone", "");
    assert!(providers.look().is_ok() && judged().is_ok());
    files.put("secret", &SECRET.replace('0', "x"));
    assert!(providers.look().is_ok() && providers.outlived(key, "j1"), "the key is gone");
    assert_eq!(judged(), Err(TokenError::Signature));
    fs::remove_file(files.path("p.toml")).unwrap();
    assert!(providers.look().is_err());
    assert_eq!(judged(), Err(TokenError::Signature), "as before");
}

#[test]
fn a_list_of_what_is_revoked_that_cannot_be_read_takes_nothing_back() {
    let files = Files::new(&format!("{ASH}revoked_file = \"gone\"\n"));
    files.put("gone", "j1\n");
    let (providers, token) = (files.open().unwrap(), vector("ash"));
    let judged = || providers.verify(&token, at(1_000_010)).unwrap().map(drop);
    let gone = files.path("gone");
    let damage: [(&dyn Fn(), &str); 4] = [
        (&|| fs::remove_file(&gone).unwrap(), "is missing"),
        (&|| mkfifo(&gone), "it is no regular file"),
        (&|| files.put("gone", "\u{0}"), ""),
        (&|| fs::write(&gone, b"\xff\xfej\x001\x00").unwrap(), "UTF-16"),
    ];
    for (damage, why) in damage {
        damage();
        assert!(providers.look().is_ok());
        if why.is_empty() {
            assert!(providers.trouble().is_none() && judged().is_ok(), "it is read again");
            files.put("gone", "j1");
            assert!(providers.look().is_ok());
            continue;
        }
        assert!(providers.trouble().unwrap().contains(why), "{why}: {:?}", providers.trouble());
        assert_eq!(judged(), Err(TokenError::Revoked), "{why}");
        assert!(files.error().contains(why), "no node starts with it");
        assert!(matches!(providers.look(), Ok(Look::Unchanged)), "{why}");
    }
    let long = fs::File::create(&gone).unwrap();
    long.set_len(64 * 1024 * 1024 + 1).unwrap();
    assert!(providers.look().is_ok());
    assert!(providers.trouble().unwrap().contains("longer than 64 MiB"));
    // Other files of the same provider are followed meanwhile.
    files.put("secret", &SECRET.replace('0', "x"));
    assert!(providers.look().is_ok() && judged() == Err(TokenError::Signature));
    files.put("secret", SECRET);
    files.put("gone", "j2");
    assert!(matches!(providers.look(), Ok(Look::New(()))));
    assert!(providers.trouble().is_none() && judged().is_ok());
}

fn mkfifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
}

#[test]
fn providers_stand_beside_each_other() {
    let files = Files::new(ASH);
    files.put("q.toml", &ASH.replace("secret", "other"));
    files.put("other", &SECRET.replace('0', "x"));
    files.put("r.toml", PHOENIX);
    let paths = ["q.toml", "p.toml", "r.toml"].map(|name| files.path(name));
    let providers = Providers::open(&paths, None).unwrap();
    let judged = |token: &str, now| providers.verify(token, at(now)).unwrap().map(|it| it.0.sub);
    assert_eq!(judged(&vector("ash"), 1_000_010), Ok("user?id=7".to_owned()));
    assert_eq!(judged(&vector("phoenix-text"), 1_000_010), Ok("alice".to_owned()));
    assert_eq!(judged(&vector("ash"), 1_000_100), Err(TokenError::Expired), "not another's");
    assert!(!format!("{providers:?}").contains(SECRET));
    assert!(Providers::default().verify(&vector("ash"), at(1_000_010)).is_none());
}

proptest! {
    #[test]
    fn any_text_is_refused(text in "[A-Za-z0-9_.-]{0,200}|\\PC{0,100}", term in prop::collection::vec(any::<u8>(), 0..200)) {
        let files = Files::new(ASH);
        files.put("q.toml", PHOENIX);
        let providers = Providers::open(&[files.path("p.toml"), files.path("q.toml")], None).unwrap();
        let judged = providers.verify(&text, at(1_000_010));
        prop_assert!(!matches!(judged, Some(Ok(_))));
        let _either = providers.verify(&phoenix("HS256", &term), at(1_000_010));
    }
}
