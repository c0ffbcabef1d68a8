//! Clients with tokens of systems that are there already: made by Python, judged by a node's `--identity` files.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::{IntoClientRequest, client};
use tokio_tungstenite::tungstenite::{Error, HandshakeError, Message, WebSocket};
use xpando_node::internals::io::clock;

use crate::kit::{Cluster, Node, during, skip, until};

mod key_sets;

const SECRET: &str = "a secret of the application that has more than 32 bytes";
const ASH: &str = r#"
kind = "ash"
key_file = "secret"
revoked_file = "revoked"
tenants = ["acme"]

[subject]
strip = "user?id="

[role]
claim = "role"
values = { staff = "node_operator", chief = "admin" }
default = "user"
"#;
const PHOENIX: &str = r#"
kind = "phoenix"
key_file = "base"
salt = "user socket"

[subject]
claim = "id"

[topics]
default = ["room:{org}:*"]
"#;

fn seconds() -> u64 {
    clock::wall().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Files of settings, and what they name.
struct Files(PathBuf);

impl Files {
    fn new(cluster: &Cluster) -> Self {
        let files = Self(cluster.path("identities"));
        std::fs::create_dir(&files.0).unwrap();
        std::fs::set_permissions(&files.0, std::fs::Permissions::from_mode(0o700)).unwrap();
        for (name, text) in [
            ("ash.toml", ASH),
            ("phoenix.toml", PHOENIX),
            ("secret", SECRET),
            ("base", SECRET),
            ("revoked", ""),
        ] {
            files.put(name, text);
        }
        files
    }

    fn put(&self, name: &str, text: &str) {
        let new = self.0.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(new, self.0.join(name)).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

/// What `identity.py` makes of these; nothing where there is no Python.
fn made(tokens: &[Value]) -> Option<Vec<String>> {
    let python = Command::new("python3")
        .args(["-c", include_str!("identity.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        skip("python3", "python3 is not installed, which makes the tokens");
        return None;
    };
    let asked = serde_json::to_vec(tokens).unwrap();
    python.stdin.take().unwrap().write_all(&asked).unwrap();
    let printed = python.wait_with_output().unwrap();
    assert!(printed.status.success());
    let lines = String::from_utf8(printed.stdout).unwrap();
    Some(lines.lines().map(str::to_owned).collect())
}

/// The claims of a good token of AshAuthentication, with these too.
fn ash(jti: &str, exp: u64, more: &Value) -> Value {
    let now = seconds();
    let mut claims = json!({
        "iss": "AshAuthentication v4.13.7", "aud": "~> 4.13", "sub": "user?id=7", "jti": jti,
        "iat": now - 10, "nbf": now - 10, "exp": exp, "purpose": "user", "tenant": "acme",
    });
    for (claim, value) in more.as_object().unwrap() {
        claims[claim] = value.clone();
    }
    json!({ "jwt": claims, "secret": SECRET })
}

/// A token of Phoenix.Token, made so many seconds ago.
fn phoenix(ago: u64) -> Value {
    let data = json!({ "id": 7, "org": "acme" });
    let signed_at = (seconds() - ago) * 1000;
    json!({ "phoenix": data, "secret": SECRET, "salt": "user socket", "signed_at": signed_at })
}

/// The same with something else in it.
fn with(mut token: Value, name: &str, value: Value) -> Value {
    token[name] = value;
    token
}

/// A client that hears everything.
struct Caller {
    socket: WebSocket<TcpStream>,
    early: Vec<Value>,
    refs: u64,
}

impl Caller {
    /// The status of the answer where it is refused.
    fn connect(node: &Node, params: &str, bearer: Option<&str>) -> Result<Self, u16> {
        let stream = TcpStream::connect(node.http()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let url = format!("ws://{}/socket/websocket?vsn=2.0.0{params}", node.http());
        let mut request = url.into_client_request().unwrap();
        if let Some(token) = bearer {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        match client(request, stream) {
            Ok((socket, _)) => Ok(Self { socket, early: Vec::new(), refs: 0 }),
            Err(HandshakeError::Failure(Error::Http(answer))) => Err(answer.status().as_u16()),
            Err(other) => panic!("{other}"),
        }
    }

    fn with(node: &Node, token: &str) -> Self {
        Self::connect(node, &format!("&token={token}"), None).unwrap()
    }

    fn read(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.socket.read().unwrap() {
                return serde_json::from_str(text.as_str()).unwrap();
            }
        }
    }

    /// The answer to an event on a topic: its status, and its reason if it has one.
    fn ask(&mut self, topic: &str, event: &str, payload: &Value) -> (String, String) {
        self.refs += 1;
        let reference = self.refs.to_string();
        let join = if event == "phx_join" { json!(reference) } else { Value::Null };
        let frame = json!([join, reference, topic, event, payload]);
        self.socket.send(Message::text(frame.to_string())).unwrap();
        loop {
            let frame = self.read();
            if frame[1] == json!(reference) && frame[3] == "phx_reply" {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return (text(&frame[4]["status"]), text(&frame[4]["response"]["reason"]));
            }
            self.early.push(frame);
        }
    }

    /// The payload of the next event of this name.
    fn next(&mut self, event: &str) -> Value {
        loop {
            if let Some(at) = self.early.iter().position(|frame| frame[3] == event) {
                return self.early.remove(at)[4].clone();
            }
            let frame = self.read();
            self.early.push(frame);
        }
    }
}

fn ok() -> (String, String) {
    ("ok".to_owned(), String::new())
}

fn refused(why: &str) -> (String, String) {
    ("error".to_owned(), why.to_owned())
}

/// Tokens that are refused, and why.
fn bad() -> Vec<(Value, &'static str)> {
    let hour = seconds() + 3600;
    let user = ash("j1", hour, &json!({}));
    let bomb = format!("8350ffffffff{}", "78".repeat(1000));
    vec![
        (ash("b0", hour, &json!({ "iss": "https://other.example" })), "unknown_issuer"),
        (ash("b1", seconds() - 5, &json!({})), "expired"),
        (with(user.clone(), "secret", json!(SECRET.replace('a', "b"))), "signature"),
        (with(user.clone(), "alg", json!("HS512")), "algorithm"),
        (with(user.clone(), "alg", json!("none")), "algorithm"),
        (ash("b2", hour, &json!({ "purpose": "sign_in" })), "not_for_us"),
        (ash("b3", hour, &json!({ "act": "reset" })), "not_for_us"),
        (ash("b4", hour, &json!({ "tenant": "other" })), "not_for_us"),
        (ash("b5", hour, &json!({ "aud": "other" })), "not_for_us"),
        (ash("b6", hour, &json!({ "nbf": hour })), "not_yet_valid"),
        (ash("b7", hour, &json!({ "sub": "admin?id=1" })), "unmapped"),
        (ash("b8", hour, &json!({ "jti": "x y" })), "malformed"),
        (phoenix(100_000), "expired"),
        (with(phoenix(5), "secret", json!(SECRET.replace('a', "b"))), "signature"),
        (with(phoenix(5), "salt", json!("session")), "signature"),
        (with(phoenix(5), "alg", json!("HS384")), "algorithm"),
        (with(phoenix(5), "phoenix", json!({ "id": 7, "org": "*" })), "unmapped"),
        (with(phoenix(5), "phoenix", json!({ "id": 7 })), "unmapped"),
        (with(phoenix(5), "term", json!(bomb)), "malformed"),
    ]
}

/// The settings that the docs show for this kind.
fn documented(kind: &str) -> &'static str {
    let blocks = include_str!("../../docs/CHANNELS.md").split("```toml\n").skip(1);
    let mut blocks = blocks.map(|block| block.split("```").next().unwrap());
    blocks.find(|block| block.starts_with(&format!("kind = \"{kind}\""))).unwrap()
}

#[test]
fn the_settings_of_the_docs_let_users_in() {
    let hour = seconds() + 3600;
    let asked = [ash("d1", hour, &json!({})), phoenix(5)];
    let Some(tokens) = made(&asked) else { return };
    let cluster = Cluster::new();
    let files = Files::new(&cluster);
    for (name, text) in [("signing_secret", SECRET), ("secret_key_base", SECRET)] {
        files.put(name, text);
    }
    let mut node = cluster.node("a");
    for kind in ["ash", "phoenix"] {
        files.put(&format!("{kind}.toml"), documented(kind));
        node = node.arg("--identity").arg(&files.path(&format!("{kind}.toml")));
    }
    let node = node.start();
    for (token, topics) in tokens.iter().zip([&["room:acme:1", "user:7"][..], &["room:acme:1"]]) {
        let mut caller = Caller::with(&node, token);
        for topic in topics {
            let expected =
                if topic.starts_with("room:") { ok() } else { refused("unmatched topic") };
            assert_eq!(caller.ask(topic, "phx_join", &json!({})), expected, "{topic}");
        }
        let other = caller.ask("room:other:1", "phx_join", &json!({}));
        assert_eq!(other, refused("unauthorized"));
    }
}

#[test]
fn clients_with_tokens_of_other_systems_are_let_in_narrowed_and_refused() {
    let hour = seconds() + 3600;
    let good = [
        ash("j1", hour, &json!({})),
        ash("j2", hour, &json!({ "role": "staff" })),
        ash("j3", hour, &json!({ "role": "admin" })),
        ash("j4", hour, &json!({ "role": "chief" })),
        phoenix(5),
    ];
    let bad = bad();
    let asked: Vec<Value> = good.iter().chain(bad.iter().map(|(it, _)| it)).cloned().collect();
    let Some(tokens) = made(&asked) else { return };
    let (good, bad) = (&tokens[..good.len()], tokens[good.len()..].iter().zip(bad));
    let [user, staff, pretender, chief, phoenix] = good else { panic!("five") };

    let cluster = Cluster::new();
    let files = Files::new(&cluster);
    let node = cluster.node("a").arg("--identity").arg(&files.path("ash.toml"));
    let node = node.arg("--identity").arg(&files.path("phoenix.toml")).start();
    // Every way to show it, and what its role lets it join.
    let protocols = |token: &str| {
        Caller::connect(&node, "", Some(token)).unwrap_or_else(|status| panic!("{status}"))
    };
    for (name, mut caller, network) in [
        ("user", Caller::with(&node, user), false),
        ("pretender", Caller::with(&node, pretender), false),
        ("staff", protocols(staff), true),
        ("chief", Caller::with(&node, chief), true),
    ] {
        assert_eq!(caller.ask("room:1", "phx_join", &json!({})), ok(), "{name}");
        assert_eq!(caller.ask("room:1", "say", &json!({})), ok(), "{name}");
        let joined = caller.ask("network:updates", "phx_join", &json!({}));
        assert_eq!(joined, if network { ok() } else { refused("unauthorized") }, "{name}");
    }
    let mut caller = Caller::with(&node, phoenix);
    assert_eq!(caller.ask("room:acme:1", "phx_join", &json!({})), ok());
    for topic in ["room:other:1", "room:acme", "Room:acme:1", "network:updates", "node:heartbeat"] {
        assert_eq!(caller.ask(topic, "phx_join", &json!({})), refused("unauthorized"), "{topic}");
    }
    assert!(caller.next("presence_state")["7"].is_object(), "the subject is the presence's key");
    let api = |token: &str| {
        node.asks("GET /api/status", &[("Authorization", &format!("Bearer {token}"))]).status
    };
    assert_eq!((api(user), api(staff), api(phoenix)), (403, 200, 403));
    // A join may bring a token of its own.
    let mut guest = Caller::connect(&node, "", None).unwrap_or_else(|status| panic!("{status}"));
    assert_eq!(guest.ask("room:1", "phx_join", &json!({ "access_token": user })), ok());

    // An operator judges a token as the node does.
    let (ours, theirs) = (files.path("ash.toml"), files.path("phoenix.toml"));
    let judged = |token: &str| {
        let settings = ["--identity", &ours, "--identity", &theirs];
        let verify = ["token", "verify", token, "--certs", "certs"];
        let output = cluster.run(&[&verify[..], &settings].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for token in [user, phoenix] {
        assert_eq!(judged(token), (true, String::new()));
    }
    for (token, (what, reason)) in bad {
        let (counts, why) = judged(token);
        assert!(!counts && why.contains(&format!("({reason})")), "{what}: {why}");
        let before = node.counter("xpando_tokens_refused_total", reason);
        let answer = Caller::connect(&node, &format!("&token={token}"), None).err();
        assert_eq!(answer, Some(403), "{what}");
        node.counts("xpando_tokens_refused_total", reason, before);
        let why = guest.ask("room:2", "phx_join", &json!({ "token": token }));
        assert_eq!(why.0, "error", "{what}");
    }
    assert!(!node.log_text().contains(SECRET), "no secret is logged");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_join_is_renewed_in_place_until_its_token_or_key_is_gone() {
    let end = seconds() + 25;
    let hour = seconds() + 3600;
    let asked = [
        ash("k1", end, &json!({})),
        // The application was updated meanwhile.
        ash("k2", hour, &json!({ "iss": "AshAuthentication v4.14.0", "aud": "~> 4.14" })),
        ash("k3", hour, &json!({ "sub": "user?id=8" })),
        ash("k4", end - 100, &json!({})),
        with(ash("k5", hour, &json!({})), "secret", json!(SECRET.replace('a', "b"))),
        ash("k6", hour, &json!({})),
        phoenix(5),
    ];
    let Some(tokens) = made(&asked) else { return };
    let [first, second, other, late, forged, third, phoenix] = &tokens[..] else { panic!("seven") };
    let cluster = Cluster::new();
    let files = Files::new(&cluster);
    let node = cluster.node("a").arg("--identity").arg(&files.path("ash.toml"));
    let node = node.arg("--identity").arg(&files.path("phoenix.toml")).start();
    let (mut one, mut witness) = (Caller::with(&node, first), Caller::with(&node, third));
    for caller in [&mut one, &mut witness] {
        assert_eq!(caller.ask("room:1", "phx_join", &json!({})), ok());
    }
    let told = one.next("token_expiring");
    assert_eq!(told["expires_at"], json!(end));
    assert!(told["expires_in"].as_u64().unwrap() <= 25, "{told}");
    let renew = |caller: &mut Caller, token: &str| {
        caller.ask("room:1", "access_token", &json!({ "access_token": token }))
    };
    assert_eq!(renew(&mut one, other), refused("the token is somebody else's"));
    assert_eq!(renew(&mut one, late), refused("token expired"));
    assert_eq!(renew(&mut one, forged), refused("unauthorized"));
    assert_eq!(node.counter("xpando_clients_refused_total", "not_granted"), 0, "it is forged");
    assert_eq!(one.ask("room:1", "access_token", &json!({})).0, "error");
    assert_eq!(renew(&mut one, second), ok());
    // Past the end of the first token it is where it was, and nobody heard of a token.
    let left = Duration::from_secs((end + 2).saturating_sub(seconds()));
    during(left, || {});
    assert_eq!(one.ask("room:1", "say", &json!({ "text": "still here" })), ok());
    assert_eq!(witness.next("say")["text"], "still here");
    let heard = |event: &str| witness.early.iter().any(|frame| frame[3] == event);
    assert!(!heard("access_token") && !heard("presence_diff"), "{:?}", witness.early);

    // A file of theirs revokes one, the cluster's own list another; a key that is replaced ends the rest.
    files.put("revoked", "k2\n");
    assert_eq!(one.next("phx_error"), json!({ "reason": "token revoked" }));
    cluster.print(&["token", "revoke", "k6", "--certs", "certs"]);
    assert_eq!(witness.next("phx_error"), json!({ "reason": "token revoked" }));
    let mut caller = Caller::with(&node, phoenix);
    assert_eq!(caller.ask("room:acme:1", "phx_join", &json!({})), ok());
    files.put("base", &SECRET.replace('a', "b"));
    assert_eq!(caller.next("phx_error"), json!({ "reason": "token revoked" }));
    let refused = || Caller::connect(&node, &format!("&token={phoenix}"), None).err();
    assert_eq!(refused(), Some(403));
    // What cannot be used changes nothing, and is said.
    files.put("ash.toml", "kind = \"ash\"\n");
    node.logged("identity provider refused: it stays as it was", &[]);
    let degraded = node.status().unwrap()["degraded"].to_string();
    assert!(degraded.contains("key_file is missing"), "{degraded}");
    until("refusal that is counted", || {
        match node.counter("xpando_files_total", "identity_refused") {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(node.terminate(), Some(0));
}

/// A node whose clients have tokens of another system needs none of the cluster's own.
#[test]
fn a_node_without_a_token_list_is_ready_for_tokens_of_other_systems() {
    let Some(tokens) = made(&[ash("n1", seconds() + 3600, &json!({}))]) else { return };
    let cluster = Cluster::new();
    std::fs::remove_file(cluster.certs().join("ca/tokens")).unwrap();
    let files = Files::new(&cluster);
    let node = cluster.node("a").arg("--identity").arg(&files.path("ash.toml")).start();
    assert_eq!(node.asks("GET /health/ready", &[]).status, 200);
    let status = node.status().unwrap();
    assert_eq!((&status["token_list"], &status["identities"]), (&json!(false), &json!(1)));
    let told = node.ask(&["status"]).unwrap();
    assert!(told.contains("clients with tokens of this cluster are refused"), "{told}");
    let mut caller = Caller::with(&node, &tokens[0]);
    assert_eq!(caller.ask("room:1", "phx_join", &json!({})), ok());
    let before = node.counter("xpando_clients_refused_total", "no_token_list");
    assert_eq!(Caller::connect(&node, "&token=a.b.c", None).err(), Some(403));
    node.counts("xpando_clients_refused_total", "no_token_list", before);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_node_does_not_start_with_settings_that_cannot_be_used() {
    let cluster = Cluster::new();
    let files = Files::new(&cluster);
    let fails = |name: &str, words: &[&str]| {
        let node = cluster.node("a").arg("--identity").arg(&files.path(name));
        node.ends().fails_with(1, words);
    };
    fails("none.toml", &["none.toml is missing"]);
    files.put("bad.toml", "kind = \"ash\"\nkey_file = \"secret\"\nrols = 1\n");
    fails("bad.toml", &["bad.toml is no identity provider", "rols"]);
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(files.0.join("secret"), open).unwrap();
    fails("ash.toml", &["secret", "chmod 600"]);
}
