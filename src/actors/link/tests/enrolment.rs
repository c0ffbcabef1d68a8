//! Connections of those who ask for a certificate: what they get, and that they take no place of a link.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::actors::link::enrolment::MAX_REQUEST;
use crate::io::tls::enrol::{ConnectError, Expected, connect};
use crate::proto::enrol::AuthorityHash;
use crate::proto::newcomers::{PER_ADDRESS, RATE};

async fn called(node: &Node, identity: &Identity) -> Result<TlsStream<TcpStream>, ConnectError> {
    let stream = TcpStream::connect(node.address).await.expect("it listens");
    let hash = AuthorityHash::of(&identity.authority_certificate());
    connect(stream, Expected::Authority(hash)).await
}

async fn ask(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_u32(u32::try_from(request.len()).expect("short")).await?;
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut answer = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn refused(node: &Node, reason: &str) -> u64 {
    counted(&node.metrics, "connections_refused", reason)
}

#[tokio::test]
async fn a_request_of_any_allowed_length_gets_one_answer() {
    let identity = cluster(&["asked-a@127.0.0.1"]).remove(0);
    let node = Node::start(&identity).await;
    for request in [vec![], b"csr".to_vec(), vec![7; MAX_REQUEST]] {
        let mut stream = called(&node, &identity).await.expect("heard");
        // The test's answer is the request.
        assert_eq!(ask(&mut stream, &request).await.expect("answered"), request);
        assert_eq!(stream.read(&mut [0; 1]).await.expect("a clean end"), 0);
    }
    let mut stream = called(&node, &identity).await.expect("heard");
    ask(&mut stream, &vec![7; MAX_REQUEST + 1]).await.expect_err("too long");
    assert_eq!(refused(&node, "enrol_too_long"), 1);
}

#[tokio::test]
async fn silent_ones_give_their_places_up_and_links_are_not_touched() {
    let mut identities = cluster(&["silent-a@127.0.0.1", "silent-b@127.0.0.1"]);
    let (b, a) = (identities.remove(1), identities.remove(0));
    let mut node = Node::start(&a).await;
    node.attach(true);
    let mut silent = Vec::new();
    for _ in 0..PER_ADDRESS + 3 {
        silent.push(called(&node, &a).await.expect("heard"));
    }
    let mut stream = called(&node, &a).await.expect("heard");
    assert_eq!(ask(&mut stream, b"csr").await.expect("answered"), b"csr");
    assert_eq!(refused(&node, "enrol_evicted"), 4);
    assert!(silent[0].read_u8().await.is_err(), "the first one is closed");
    let mut other = Node::start(&b).await;
    other.attach(true);
    let attempt = AttemptId::Outbound(1);
    other.link.input(Input::Dial(attempt, node.address));
    assert!(matches!(other.news().await, Report::Ready(..)), "a link comes up");
    assert_eq!(refused(&node, "evicted"), 0);
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_told_and_counted() {
    let identity = cluster(&["often-a@127.0.0.1"]).remove(0);
    let node = Node::start(&identity).await;
    let mut denied = 0;
    for _ in 0..2 * RATE.burst as u32 {
        match called(&node, &identity).await {
            Ok(mut stream) => drop(ask(&mut stream, b"guess").await.expect("answered")),
            Err(ConnectError::Denied) => denied += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(denied > 0 && refused(&node, "enrol_limited") == denied, "{denied}");
}
