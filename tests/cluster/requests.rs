//! Requests at the edge: which are refused and how, before anything of them but the head is read.

use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::kit::http::{Answer, head, token};
use crate::kit::stranger::dial;
use crate::kit::{Cluster, Node, linked};

/// What asks for a WebSocket.
const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
const SOCKET: &str = "/socket/websocket?vsn=2.0.0";
const POLL: &str = "/socket/longpoll?vsn=2.0.0";

/// Sends a head as it is; the stream.
fn sends(node: &Node, head: &str) -> TcpStream {
    let mut stream = dial(node.http());
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// The answer to a head, with its body.
#[track_caller]
fn ask(node: &Node, head_of_request: &str) -> Answer {
    let mut reader = BufReader::new(sends(node, head_of_request));
    let answer = head(&mut reader);
    let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Answer { body: String::from_utf8(body).unwrap(), ..answer }
}

fn cause(answer: &Answer) -> Value {
    assert!(answer.json()["remedy"].is_string(), "{answer:?}");
    answer.json()["cause"].clone()
}

#[test]
fn a_page_of_another_host_or_port_gets_nothing_but_the_reason() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--allow-anonymous").arg("network:updates,room:*").start();
    let own = a.http().to_string();
    for path in ["/", "/api/status", "/metrics", "/health/live", "/nowhere", SOCKET, POLL] {
        let with =
            |headers: &str| ask(&a, &format!("GET {path} HTTP/1.1\r\n{headers}{UPGRADE}\r\n"));
        let evil = with("Host: evil.example\r\nOrigin: http://evil.example\r\n");
        // Clients that poll go by the status in the body.
        let status = |is: u16| if path == POLL { 200 } else { is };
        assert_eq!((evil.status, cause(&evil)), (status(421), "host".into()), "{path}");
        for host in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: a@localhost\r\n"] {
            let answer = with(host);
            assert_eq!(
                (answer.status, cause(&answer)),
                (status(400), "bad_host".into()),
                "{path} {host}"
            );
        }
        let other = with(&format!("Host: {own}\r\nOrigin: http://127.0.0.1:1\r\n"));
        assert_eq!((other.status, cause(&other)), (status(403), "origin".into()), "{path}");
        let read = other.header("access-control-allow-origin");
        assert_eq!(read, Some("http://127.0.0.1:1"), "the page may read why");
    }
    for (cause, why) in
        [("host", "--http-origin"), ("origin", "--http-origin"), ("bad_host", "proxy")]
    {
        assert!(a.counter("xpando_clients_refused_total", cause) >= 7, "{cause}");
        a.logged("client refused", &[("cause", cause), ("remedy", why), ("from", "127.0.0.1")]);
    }
    assert_eq!(a.count_logged("client refused", &[("cause", "origin")]), 1, "one line a minute");
    let line = a.logged("client refused", &[("cause", "origin")]);
    assert!(line.to_string().contains("http://127.0.0.1:1"), "{line}");
}

#[test]
fn a_page_that_is_allowed_reads_the_api() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--http-origin").arg("https://app.example").start();
    let token = token(&cluster, "node_operator");
    let page = ("Origin", "https://app.example");
    for path in ["/api/status", "/metrics", "/health/ready", POLL] {
        let asks = [page, ("Access-Control-Request-Method", "GET")];
        let may = a.asks(&format!("OPTIONS {path}"), &asks);
        assert_eq!((may.status, may.header("access-control-allow-origin")), (204, Some(page.1)));
        assert!(may.header("access-control-allow-headers").unwrap().contains("authorization"));
        let bearer = format!("Bearer {token}");
        let answer = a.asks(&format!("GET {path}"), &[page, ("Authorization", &bearer)]);
        let shared = answer.header("access-control-allow-origin");
        assert_eq!((answer.status, shared), (200, Some(page.1)), "{answer:?}");
        assert_eq!(answer.header("vary"), Some("origin"));
        let other = [("Origin", "https://app.example:8443"), asks[1]];
        let may = a.asks(&format!("OPTIONS {path}"), &other);
        assert_eq!(may.header("access-control-allow-origin"), None, "another port");
    }
}

#[test]
fn what_a_client_would_repeat_is_refused_before_101() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let opens = |version: &str, path: &str, more: &str| {
        ask(&a, &format!("GET {path} HTTP/{version}\r\nHost: localhost\r\n{UPGRADE}{more}\r\n"))
    };
    assert_eq!(opens("1.1", SOCKET, "").status, 101);
    let old = opens("1.0", SOCKET, "");
    assert_eq!((old.problem(426).is_empty(), cause(&old)), (false, "no_upgrade".into()));
    for (path, status, why) in [
        ("/socket/websocket?vsn=3.0.0", 403, "serializer"),
        ("/socket/websocket?vsn=2.0.0&token=a.b.c", 403, "token"),
    ] {
        let answer = opens("1.1", path, "");
        answer.problem(status);
        assert_eq!(cause(&answer), why, "{path}");
    }
    let version =
        format!("GET {SOCKET} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", UPGRADE.replace("13", "8"));
    let answer = ask(&a, &version);
    answer.problem(426);
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));

    // A token in `Authorization`; a proxy's own scheme is none of ours.
    let good = token(&cluster, "user");
    for (value, status) in [
        (format!("Bearer {good}"), 101),
        ("Bearer a.b.c".to_owned(), 403),
        ("Basic eDp5".to_owned(), 101),
    ] {
        let authorization = format!("Authorization: {value}\r\n");
        assert_eq!(opens("1.1", SOCKET, &authorization).status, status, "{value}");
        let polled =
            ask(&a, &format!("GET {POLL} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n"));
        let wanted = if status == 101 { 410 } else { 403 };
        assert_eq!(polled.json()["status"], wanted, "{value}");
    }
    a.counts("xpando_clients_refused_total", "no_upgrade", 0);
    a.counts("xpando_clients_refused_total", "token", 0);
}

#[test]
fn a_body_is_not_read_for_somebody_without_a_session() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let post = |path: &str, more: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n{more}\r\n")
    };
    // Nothing of the body is sent: anyone who waits for it does not answer.
    let gone = ask(&a, &post(&format!("{POLL}&token=00ff"), ""));
    assert_eq!(gone.json()["status"], 410);
    assert_eq!(ask(&a, &post(POLL, "Origin: http://evil.example\r\n")).json()["cause"], "origin");
    for path in ["/api/drain", "/api/status", "/", "/nowhere"] {
        let answer = ask(&a, &post(path, ""));
        assert!((401..=405).contains(&answer.status), "{path} {answer:?}");
    }
    let long = post(&session(&a), "").replace("2000000", "3000000");
    assert_eq!(cause(&ask(&a, &long)), "body_too_long");
}

/// Where a new session is polled.
fn session(node: &Node) -> String {
    let token = node.asks(&format!("GET {POLL}"), &[]).json()["token"].as_str().unwrap().to_owned();
    format!("{POLL}&token={token}")
}

#[test]
fn the_node_is_served_below_a_path() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--http-prefix").arg("/a/b/").start();
    let get = |path: &str| a.asks(&format!("GET {path}"), &[]);
    let redirect = get("/a/b");
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("b/")));
    for path in ["/a/b/", "/", "/a/b/health/live", "/health/live"] {
        assert_eq!(get(path).status, 200, "{path}");
    }
    assert_eq!(get("/a/b/api/openapi.json").json()["servers"][0]["url"], "/a/b");
    for path in ["/a/bc", "/a/b/a/b/health/live", "/c/health/live"] {
        a.asks(&format!("GET {path}"), &[("X-Forwarded-Prefix", "/c")]).problem(404);
    }
    let bad = cluster.node("b").arg("--http-prefix").arg("/../x").ends();
    bad.fails_with(2, &["is no prefix of paths"]);
}

#[test]
fn a_good_token_that_is_not_enough_is_told_what_is_missing() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let user = token(&cluster, "user");
    let words = a.gets("/api/status", &user).problem(403);
    assert_eq!(words, "the token's role is user: reading needs node_operator or admin");
    let operator = format!("Bearer {}", token(&cluster, "node_operator"));
    let words = a.asks("POST /api/drain", &[("Authorization", &operator)]).problem(403);
    assert_eq!(words, "the token's role is node_operator: changes need admin");
    let create = ["token", "create", "--sub", "x", "--role", "node_operator", "--topics", "room:*"];
    let narrow = cluster.print(&[&create[..], &["--certs", "certs"]].concat());
    let words = a.gets("/api/status", narrow.trim()).problem(403);
    assert_eq!(words, "the token's topics do not include network:updates");
    assert_eq!(cause(&a.asks("GET /api/status", &[])), "no_token");
    assert_eq!(cause(&a.gets("/api/status", "a.b.c")), "token");
    a.logged("client refused", &[("cause", "role"), ("about", "role is user")]);
}

#[test]
fn a_session_is_no_other_users() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--allow-anonymous").arg("room:*").start();
    let b = cluster.node("b").join(a.listen().to_string()).start();
    linked(&[&a, &b]);
    let of = |sub: &str| {
        let args = ["token", "create", "--sub", sub, "--certs", "certs"];
        cluster.print(&args).trim().to_owned()
    };
    let [ann, later, bob] = ["ann", "ann", "bob"].map(of);
    let asks = |node: &Node, session: &str, token: Option<&str>, post: bool| {
        let bearer = token.map_or_else(String::new, |it| format!("Authorization: Bearer {it}\r\n"));
        let body = r#"["1","1","room:1","phx_join",{}]"#;
        let (method, body) = if post { ("POST", body) } else { ("GET", "") };
        let head = format!(
            "{method} {POLL}&token={session} HTTP/1.1\r\nHost: localhost\r\n{bearer}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        ask(node, &head).json()
    };
    let open = |token| asks(&a, "", token, false)["token"].as_str().unwrap().to_owned();
    let session = open(Some(&ann));
    for post in [true, false] {
        let refused = asks(&a, &session, Some(&bob), post);
        assert_eq!(
            (&refused["status"], &refused["cause"]),
            (&403.into(), &"others_session".into())
        );
        assert_eq!(asks(&b, &session, Some(&bob), true)["status"], 410, "there is none for him");
    }
    for token in [Some(ann.as_str()), Some(&later), None, Some("x.y.z")] {
        assert_eq!(asks(&a, &session, token, true)["status"], 200, "{token:?}");
    }
    assert_eq!(asks(&b, &session, Some(&later), true)["status"], 200);
    let nobodys = open(None);
    assert_eq!(asks(&a, &nobodys, Some(&bob), true)["status"], 200, "whose it is nobody said");
}
