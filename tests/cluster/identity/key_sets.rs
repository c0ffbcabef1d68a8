//! An issuer whose key set is at a URL: a server of the test's own, over TLS, that serves, rotates, lies, stalls and is away.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use parking_lot::Mutex;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::{Caller, Files, ok, seconds};
use crate::kit::{Cluster, Node, PATIENCE, until, within};

/// A key of the issuer.
struct Key {
    kid: &'static str,
    pair: Ed25519KeyPair,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        Self { kid, pair: Ed25519KeyPair::generate().unwrap() }
    }

    fn public(&self) -> Value {
        let x = BASE64_URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "use": "sig", "alg": "EdDSA", "x": x })
    }

    /// A token of the user `sub`, for an hour.
    fn token(&self, sub: &str) -> String {
        let claims = json!({
            "iss": "https://id.example", "aud": "chat", "sub": sub, "exp": seconds() + 3600,
        });
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.to_owned());
        let key = EncodingKey::from_ed_der(self.pair.to_pkcs8v1().unwrap().as_ref());
        encode(&header, &claims, &key).unwrap()
    }
}

/// The answer with a key set.
fn set(keys: &[&Key]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    answer("200 OK", "Cache-Control: max-age=86400\r\n", &json!({ "keys": keys }).to_string())
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// The server: what it answers may change at any time; with nothing to say it hangs up.
struct Issuer {
    url: String,
    certificate: String,
    says: Arc<Mutex<String>>,
}

impl Issuer {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}/keys", listener.local_addr().unwrap().port());
        let says = Arc::new(Mutex::new(String::new()));
        let answer = says.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, answer) = (config.clone(), answer.clone());
                // Who does not trust it, or has heard enough, hangs up.
                thread::spawn(move || drop(serve(stream, config, &answer)));
            }
        });
        Self { url, certificate: made.cert.pem(), says }
    }

    fn says(&self, answer: impl Into<String>) {
        *self.says.lock() = answer.into();
    }
}

/// One request, as the server answers then.
fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    says: &Mutex<String>,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let answer = says.lock().clone();
    if answer.is_empty() {
        return Err(ErrorKind::ConnectionReset.into());
    }
    stream.write_all(answer.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// The settings, which name the issuer's URL. `mark` makes them others, so that the set is fetched at once.
fn settings(issuer: &Issuer, mark: &str) -> String {
    let url = &issuer.url;
    format!(
        "# {mark}\nkind = \"jwt\"\nissuer = \"https://id.example\"\naudience = \"chat\"\nalgorithm = \"EdDSA\"\n\
         key_set_url = \"{url}\"\nkey_set_ca = \"ca.pem\"\n"
    )
}

/// Waits until the node tells this of its key set.
#[track_caller]
fn key_set(node: &Node, what: impl Fn(&Value) -> bool) -> Value {
    until("the state of the key set", || {
        let set = node.status().map_err(|error| format!("{error:?}"))?["key_sets"][0].clone();
        if what(&set) { Ok(set) } else { Err(set.to_string()) }
    })
}

fn error(set: &Value) -> &str {
    set["error"].as_str().unwrap_or_default()
}

fn connect(node: &Node, token: &str) -> Option<u16> {
    Caller::connect(node, &format!("&token={token}"), None).err()
}

/// An issuer that is away, a node that is to follow it, and keys.
struct World {
    cluster: Cluster,
    files: Files,
    issuer: Issuer,
    keys: [Key; 3],
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::new();
        cluster.print(&["token", "create", "--sub", "x", "--certs", "certs"]);
        let (files, issuer) = (Files::new(&cluster), Issuer::start());
        files.put("ca.pem", &issuer.certificate);
        files.put("web.toml", &settings(&issuer, ""));
        Self { cluster, files, issuer, keys: ["k1", "k2", "k3"].map(Key::new) }
    }

    fn start(&self) -> Node {
        self.cluster.node("a").arg("--identity").arg(&self.files.path("web.toml")).start()
    }

    /// Whether an operator finds that a token counts, or else what is said of it.
    fn verify(&self, token: &str) -> (bool, String) {
        let toml = self.files.path("web.toml");
        let args = ["token", "verify", token, "--certs", "certs", "--identity", &toml];
        let output = self.cluster.run(&args);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn a_node_runs_before_its_first_key_set_and_keeps_the_last_good_one() {
    let world = World::new();
    let World { files, issuer, keys: [first, second, _], .. } = &world;
    let node = world.start();

    // Nobody answers: the node runs, says what is missing, and refuses these tokens without a guess.
    let told = key_set(&node, |set| !error(set).is_empty());
    assert_eq!((&told["keys"], &told["fetched"]), (&json!(0), &Value::Null), "{told}");
    assert_eq!(node.asks("GET /health/ready", &[]).problem(503), "not ready: key_sets");
    let degraded = node.status().unwrap()["degraded"].as_str().unwrap().to_owned();
    assert!(
        degraded.contains(&issuer.url) && degraded.contains("tokens are refused"),
        "{degraded}"
    );
    let before = node.counter("xpando_tokens_refused_total", "no_key");
    assert_eq!(connect(&node, &first.token("7")), Some(403));
    node.counts("xpando_tokens_refused_total", "no_key", before);
    node.logged("client refused", &[("cause", "no_key_set"), ("remedy", "names the key set")]);
    node.logged("an issuer's key set is not fetched", &[("url", &issuer.url)]);
    let (counts, why) = world.verify(&first.token("7"));
    assert!(!counts && why.contains("(no_key)") && why.contains(&issuer.url), "{why}");

    // It recovers by itself.
    issuer.says(set(&[first]));
    key_set(&node, |set| set["keys"] == 1 && set["error"].is_null());
    assert_eq!(node.asks("GET /health/ready", &[]).status, 200);
    assert_eq!(node.status().unwrap()["degraded"], Value::Null);
    let mut caller = Caller::with(&node, &first.token("7"));
    assert_eq!(caller.ask("room:1", "phx_join", &json!({})), ok());
    assert_eq!(connect(&node, &second.token("7")), Some(403), "a key that the set has not");
    assert_eq!(world.verify(&first.token("7")), (true, String::new()));
    assert!(world.verify(&second.token("7")).1.contains("(unknown_key)"));

    // What is no key set changes nothing, and is said.
    let body = "x".repeat(300 * 1024);
    for (says, why) in [
        (
            answer("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
            "redirects are not followed",
        ),
        (answer("200 OK", "", "{\"keys\": []}"), "no JSON Web Key Set"),
        (answer("200 OK", "", "<html>"), "no JSON Web Key Set"),
        (answer("200 OK", "", &body), "longer than"),
        (answer("503 Service Unavailable", "", ""), "503"),
        (
            answer("200 OK", "", r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}]}"#),
            "none of the keys there is for the algorithm",
        ),
        (String::new(), "no whole answer"),
    ] {
        issuer.says(says);
        files.put("web.toml", &settings(issuer, why));
        let told = key_set(&node, |set| error(set).contains(why));
        assert_eq!(told["keys"], 1, "{told}");
        assert_eq!(connect(&node, &first.token("7")), None, "{why}");
    }
    assert_ne!(node.counter("xpando_files_total", "key_set_refused"), 0);
    assert_eq!(caller.ask("room:1", "say", &json!({})), ok());
    let stranger = Issuer::start();
    files.put("ca.pem", &stranger.certificate);
    key_set(&node, |set| error(set).starts_with("TLS failed"));
    files.put("ca.pem", &issuer.certificate);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_key_that_the_issuer_gives_up_ends_and_the_set_outlasts_a_restart() {
    let world = World::new();
    let World { issuer, files, keys: [first, second, third], .. } = &world;
    issuer.says(set(&[first]));
    let node = world.start();
    key_set(&node, |set| set["keys"] == 1);
    let mut caller = Caller::with(&node, &first.token("7"));
    assert_eq!(caller.ask("room:1", "phx_join", &json!({})), ok());
    issuer.says(set(&[second]));
    files.put("web.toml", &settings(issuer, "at once"));
    assert_eq!(caller.next("phx_error"), json!({ "reason": "token revoked" }));
    assert_eq!(connect(&node, &first.token("7")), Some(403));
    assert_eq!(connect(&node, &second.token("7")), None);
    assert_eq!(node.terminate(), Some(0));

    // A node that starts while the issuer is away serves its users, and follows it once it is back.
    issuer.says(answer("503 Service Unavailable", "", ""));
    let node = world.start();
    let told = key_set(&node, |set| error(set).contains("503"));
    assert_eq!((&told["keys"], &told["fetched"]), (&json!(1), &Value::Null), "{told}");
    assert_eq!(node.asks("GET /health/ready", &[]).status, 200);
    let mut caller = Caller::with(&node, &second.token("7"));
    assert_eq!(caller.ask("room:1", "phx_join", &json!({})), ok());
    issuer.says(set(&[third]));
    assert_eq!(caller.next("phx_error"), json!({ "reason": "token revoked" }));
    assert_eq!(connect(&node, &third.token("7")), None);
    let data = node.data_dir.clone();
    assert_eq!(node.terminate(), Some(0));

    // What is kept is of its URL alone.
    let kept = std::fs::read_dir(data.join("key-sets")).unwrap().next().unwrap().unwrap();
    let text = std::fs::read_to_string(kept.path()).unwrap();
    std::fs::write(kept.path(), text.replace("/keys\"", "/other\"")).unwrap();
    issuer.says("");
    let node = world.start();
    assert_eq!(connect(&node, &third.token("7")), Some(403));
    key_set(&node, |set| set["keys"] == 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_key_that_appears_in_the_set_counts_and_one_that_goes_does_not_without_a_restart() {
    let world = World::new();
    let World { issuer, keys: [first, second, _], .. } = &world;
    issuer.says(set(&[first]));
    let node = world.start();
    key_set(&node, |set| set["keys"] == 1);
    let mut caller = Caller::with(&node, &first.token("7"));
    assert_eq!(caller.ask("room:1", "phx_join", &json!({})), ok());
    issuer.says(set(&[second]));
    // Who shows a token of a key that the set has not has it fetched, half a minute after the last time.
    within(2 * PATIENCE, "user of the key that appeared", || {
        connect(&node, &second.token("8")).map_or(Ok(()), |status| Err(status.to_string()))
    });
    assert_eq!(caller.next("phx_error"), json!({ "reason": "token revoked" }));
    assert_eq!(connect(&node, &first.token("7")), Some(403));
    assert_eq!(node.terminate(), Some(0));
}
