//! Key sets at a URL, with a server in the test and a clock of its own.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use super::*;
use crate::proto::tests::start;

thread_local! {
    /// Seconds of the test's clock.
    static SECOND: Cell<u64> = const { Cell::new(0) };
}

fn clock() -> Instant {
    start() + Duration::from_secs(SECOND.get())
}

/// A server that answers with this set, or 503 while there is none.
#[derive(Clone, Default)]
struct Issuer {
    set: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicU64>,
}

impl Issuer {
    /// The server, and settings with its URL.
    fn start(set: Option<&str>) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let issuer = Self::default();
        issuer.says(set);
        let serving = issuer.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                serving.asked.fetch_add(1, Ordering::Relaxed);
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let _head = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).count();
                let (status, body) = match serving.set.lock().clone() {
                    Some(set) => ("200 OK", set),
                    None => ("503 Service Unavailable", String::new()),
                };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
                let age = "Cache-Control: max-age=3600\r\n\r\n";
                stream.write_all(format!("{head}{age}{body}").as_bytes()).unwrap();
            }
        });
        (issuer, format!("{JWT}algorithm = \"EdDSA\"\nkey_set_url = \"{url}\"\n"))
    }

    fn says(&self, set: Option<&str>) {
        *self.set.lock() = set.map(str::to_owned);
    }
}

/// Runs what is due; what became of it.
async fn run(providers: &Providers) -> Option<Result<Look<()>, String>> {
    let mut due = providers.due(clock);
    assert!(due.len() <= 1, "one provider");
    Some(due.pop()?.await.found)
}

fn verify(providers: &Providers, name: &str) -> Result<(Claims, KeyMark), TokenError> {
    providers.verify(&vector(name), at(1_000_010)).expect("a provider's")
}

const SET: &str = include_str!("set.json");

#[tokio::test]
async fn a_set_is_fetched_again_for_a_key_that_it_has_not_but_not_for_each_token() {
    SECOND.set(0);
    let (issuer, settings) = Issuer::start(Some(SET));
    let files = Files::new(&settings);
    let providers = files.open().unwrap();
    assert_eq!(verify(&providers, "EdDSA.k1").unwrap_err(), TokenError::NoKeySet);
    assert_eq!(run(&providers).await, Some(Ok(Look::New(()))));
    let (_, key) = verify(&providers, "EdDSA.k1").unwrap();
    let number = providers.number();
    // Ten minutes of tokens with a key that is unknown: one fetch in half a minute.
    for second in 1..=600 {
        SECOND.set(second);
        for _ in 0..10 {
            assert_eq!(verify(&providers, "EdDSA.k9").unwrap_err(), TokenError::UnknownKey);
        }
        assert!(run(&providers).await.is_none_or(|found| found == Ok(Look::Sound)));
    }
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 21);
    assert_eq!(providers.number(), number, "nothing is new");
    // Nothing is missed any more, and the better part of an hour is waited.
    for second in 601..=3800 {
        SECOND.set(second);
        assert_eq!(run(&providers).await, None, "{second}");
    }
    // Another set: what was signed with the keys before counts no more.
    issuer.says(Some(&SET.replace("k1", "k9").replace("Ds47", "Ds48")));
    SECOND.set(4300);
    assert_eq!(run(&providers).await, Some(Ok(Look::New(()))));
    assert!(providers.outlived(key, "j2") && providers.number() != number);
    assert_eq!(verify(&providers, "EdDSA.k1").unwrap_err(), TokenError::UnknownKey);
}

#[tokio::test]
async fn a_key_that_appears_counts_and_one_that_goes_does_not() {
    SECOND.set(0);
    let without = SET.replace("k1", "k0").replace("Ds47", "Ds48");
    let (issuer, settings) = Issuer::start(Some(&without));
    let files = Files::new(&settings);
    let providers = files.open().unwrap();
    assert_eq!(run(&providers).await, Some(Ok(Look::New(()))));
    issuer.says(Some(SET));
    assert_eq!(verify(&providers, "EdDSA.k1").unwrap_err(), TokenError::UnknownKey);
    SECOND.set(29);
    assert_eq!(run(&providers).await, None);
    SECOND.set(30);
    assert_eq!(run(&providers).await, Some(Ok(Look::New(()))));
    let (_, key) = verify(&providers, "EdDSA.k1").unwrap();
    assert!(!providers.outlived(key, "j2"));
    issuer.says(Some(&without));
    SECOND.set(30 + 3600);
    assert_eq!(run(&providers).await, Some(Ok(Look::New(()))));
    assert_eq!(verify(&providers, "EdDSA.k1").unwrap_err(), TokenError::UnknownKey);
    assert!(providers.outlived(key, "j2"));
}

#[tokio::test]
async fn a_set_is_kept_and_what_fails_changes_nothing() {
    SECOND.set(0);
    let (issuer, settings) = Issuer::start(Some(SET));
    let (files, data) = (Files::new(&settings), tempfile::tempdir().unwrap());
    let open = || Providers::open(&[files.path("p.toml")], Some(data.path())).unwrap();
    let providers = open();
    assert_eq!(run(&providers).await, Some(Ok(Look::New(()))));
    issuer.says(None);
    let later = open();
    assert!(verify(&later, "EdDSA").is_ok(), "from disk");
    let error = run(&later).await.unwrap().unwrap_err();
    assert!(error.contains("503"), "{error}");
    assert!(verify(&later, "EdDSA").is_ok());
    let state = later.key_sets().remove(0);
    assert_eq!((state.keys, state.fetched, state.error), (1, None, Some(error)));
    // Settings that change go on with it, also where it is not on disk.
    std::fs::remove_dir_all(data.path().join("key-sets")).unwrap();
    files.put("p.toml", &format!("{settings}leeway = 1\n"));
    assert!(matches!(later.look(), Ok(Look::New(()))) && verify(&later, "EdDSA").is_ok());
    files.put("p.toml", &settings.replace("EdDSA", "ES256"));
    assert!(later.look().is_ok());
    assert_eq!(verify(&later, "ES256").unwrap_err(), TokenError::NoKeySet, "other keys of it");
    // What cannot be kept is in force all the same, and tried again.
    issuer.says(Some(SET));
    std::fs::write(data.path().join("key-sets"), "").unwrap();
    let providers = open();
    for (second, found) in [(1, Look::New(())), (5000, Look::Sound)] {
        SECOND.set(second);
        let fetched = providers.due(clock).pop().unwrap().await;
        assert_eq!(fetched.found, Ok(found));
        assert!(fetched.not_kept.unwrap().contains("key-sets"));
    }
    assert!(verify(&providers, "ES256").is_ok());
    // What lies there in its place is no set.
    std::fs::remove_file(data.path().join("key-sets")).unwrap();
    SECOND.set(10_000);
    assert_eq!(providers.due(clock).pop().unwrap().await.not_kept, None);
    let kept = std::fs::read_dir(data.path().join("key-sets")).unwrap().next().unwrap().unwrap();
    assert!(verify(&open(), "ES256").is_ok());
    let text = fs::read_to_string(kept.path()).unwrap();
    for damaged in ["", "{}", &text[..text.len() - 1], &text.replace("http://", "https://")] {
        fs::write(kept.path(), damaged).unwrap();
        assert_eq!(verify(&open(), "ES256").unwrap_err(), TokenError::NoKeySet, "{damaged}");
    }
}

#[test]
fn keys_of_a_set_that_are_for_something_else_are_not_used() {
    let good = r#"{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": "Ds47MQ5fLgurS4p9LQgdL9LJ37jv5_SGkd5owf8AtXU""#;
    let other = r#"{"kty": "OKP", "crv": "Ed25519", "kid": "k2", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let settings = format!("{JWT}algorithm = \"EdDSA\"\nkey_set_file = \"s.json\"\n");
    let files = Files::new(&settings);
    let of = |key: &str| {
        files.put("s.json", &format!(r#"{{"keys": [{key}, {other}]}}"#));
        verify(&files.open().unwrap(), "EdDSA.k1").map(drop)
    };
    for more in ["}", r#", "use": "sig"}"#, r#", "alg": "EdDSA", "key_ops": ["verify"]}"#] {
        assert_eq!(of(&format!("{good}{more}")), Ok(()), "{more}");
    }
    let unused = Err(TokenError::UnknownKey);
    for more in [
        r#", "use": "enc"}"#,
        r#", "use": "tls"}"#,
        r#", "alg": "ES256"}"#,
        r#", "alg": "ML-DSA-44"}"#,
        r#", "key_ops": ["sign"]}"#,
        r#", "key_ops": ["encrypt", "wrapKey"]}"#,
    ] {
        assert_eq!(of(&format!("{good}{more}")), unused, "{more}");
    }
    // A shared secret, of which anyone who reads the set could make tokens, and kinds that are not known here.
    for key in [
        r#"{"kty": "oct", "kid": "k1", "alg": "HS256", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}"#,
        r#"{"kty": "oct", "kid": "k1", "alg": "EdDSA", "k": "Ds47MQ5fLgurS4p9LQgdL9LJ37jv5_SGkd5owf8AtXU"}"#,
        r#"{"kty": "AKP", "kid": "k1", "alg": "ML-DSA-44", "pub": "AAAA"}"#,
        r#"{"kty": "OKP", "crv": "X448", "kid": "k1", "x": "AAAA"}"#,
        r#"{"kid": "k1"}"#,
    ] {
        assert_eq!(of(key), unused, "{key}");
    }
    let many = format!("{}{good}}}", format!("{other}, ").repeat(62));
    assert_eq!(of(&many), Ok(()));
    files.put("s.json", &format!(r#"{{"keys": [{many}, {other}, {other}]}}"#));
    assert!(files.error().contains("1 to 64 keys"), "{}", files.error());
}
