//! A node that is drained: its clients go one after another, and stay when that is undone.

use serde_json::json;

use crate::kit::client::runtime;
use crate::kit::socket::ClientSocket;
use crate::kit::{Cluster, until};

const ROOM: &str = "room:1";
const CLIENTS: usize = 40;

#[test]
fn clients_go_in_waves_and_stay_when_it_is_undone() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--allow-anonymous").arg("room:*").arg("--drain-time").arg("30d");
    let a = a.start();
    runtime().block_on(async {
        let mut sockets = Vec::new();
        for _ in 0..CLIENTS {
            let mut socket = ClientSocket::open(&a, None).await;
            assert_eq!(socket.asks(1, ROOM, "phx_join", json!({})).await, "ok");
            sockets.push(socket);
        }
        a.ask(&["drain"]).unwrap();
        let status = a.status().unwrap();
        assert_eq!((&status["draining"], &status["clients"]), (&json!(true), &json!(CLIENTS)));
        let left = status["drain_left_s"].as_u64().expect("a time");
        assert!((29 * 86_400..=30 * 86_400).contains(&left), "{left}");
        let words = a.ask(&["status"]).unwrap();
        assert!(words.contains(&format!("draining: {CLIENTS} clients are left")), "{words}");
        // Who is here is served until its turn has come; nobody new is.
        for socket in &mut sockets {
            assert_eq!(socket.asks(1, ROOM, "say", json!({})).await, "ok");
        }
        assert_eq!(ClientSocket::refused(&a).await, 503);
        a.ask(&["drain", "--undo"]).unwrap();
        assert_eq!(a.status().unwrap()["drain_left_s"], json!(null));
        for socket in &mut sockets {
            assert_eq!(socket.asks(1, ROOM, "say", json!({})).await, "ok");
        }
        drop(ClientSocket::open(&a, None).await);
        // Over another time than the node's own, after which nobody is left.
        a.ask(&["drain", "--drain-time", "1s"]).unwrap();
        for socket in &mut sockets {
            let closed = loop {
                if let Err(closed) = socket.hears().await {
                    break closed;
                }
            };
            assert_eq!(closed, (1012, "the node is stopping".to_owned()));
        }
    });
    until("nobody is left", || match &a.status().unwrap()["clients"] {
        none if *none == json!(0) => Ok(()),
        some => Err(some.to_string()),
    });
}
