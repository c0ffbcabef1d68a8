//! Clients that stop: in the middle of a body, or before they have read their answers. Each is let go in time.

use std::io::{BufReader, Read as _, Write as _};

use crate::kit::http::{head, token};
use crate::kit::stranger::dial;
use crate::kit::{Cluster, until};

#[test]
fn a_client_that_stops_is_let_go() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let poll = "/socket/longpoll?vsn=2.0.0";
    // With a right: a client without one is let go before its body is due.
    let user = token(&cluster, "user");
    let opened = a.asks(&format!("GET {poll}&token={user}"), &[]).json();
    let token = opened["token"].as_str().unwrap();

    // One stops in its body, another reads none of its answers.
    let mut stalled = dial(a.http());
    let request = format!(
        "POST {poll}&token={token} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n[\"half"
    );
    stalled.write_all(request.as_bytes()).unwrap();
    let mut unread = dial(a.http());
    unread.set_nonblocking(true).unwrap();
    let many = "GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    until("the node takes no more, and hangs up", || match unread.write(many.as_bytes()) {
        Ok(_) => Err("it reads on".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err("it waits".to_owned()),
        Err(_gone) => Ok(()),
    });
    a.counts("xpando_clients_refused_total", "unread", 0);
    a.logged("client refused", &[("cause", "unread")]);

    let mut answer = BufReader::new(stalled);
    assert_eq!(head(&mut answer).status, 408);
    let mut body = String::new();
    answer.read_to_string(&mut body).unwrap();
    assert!(body.contains("body_stalled"), "{body}");
    a.logged("client refused", &[("cause", "body_stalled")]);
}
