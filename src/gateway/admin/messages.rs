//! Publishing, subscribing and calling through the admin socket.

use std::io::Result;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Line, PATIENCE, Sent, answer, refuse, send_line, tried};
use crate::actors::exchange::{CallError, Exchange, Received};
use crate::gateway::view::NodeView;
use crate::proto::outbox::MAX_MESSAGE;
use crate::proto::topic::{Address, Pattern, Topic};

/// The two ways of the connection that asks.
pub(super) type Asker = (BufReader<OwnedReadHalf>, OwnedWriteHalf);

/// Answers [`Request::Publish`](super::Request::Publish).
pub(super) async fn publish(
    exchange: &Exchange,
    topic: &str,
    bytes: usize,
    (mut reader, mut writer): Asker,
) -> Result<()> {
    let sent = match payload(&mut reader, bytes).await? {
        Ok(payload) => published(exchange, topic, payload).await,
        Err(too_long) => Err(too_long),
    };
    tried(&mut writer, sent).await
}

/// Answers [`Request::Call`](super::Request::Call).
pub(super) async fn call(
    view: &NodeView,
    to: &str,
    within: Duration,
    bytes: usize,
    (mut reader, mut writer): Asker,
) -> Result<()> {
    let reply = match payload(&mut reader, bytes).await? {
        Ok(payload) => replied(view, to, payload, within).await,
        Err(too_long) => Err(too_long),
    };
    tried(&mut writer, reply.as_ref().map(Bytes::len)).await?;
    tokio::time::timeout(PATIENCE, writer.write_all(&reply.unwrap_or_default())).await?
}

/// The bytes that follow a request, unless they are too many.
async fn payload(
    reader: &mut BufReader<OwnedReadHalf>,
    bytes: usize,
) -> Result<std::result::Result<Bytes, String>> {
    if bytes > MAX_MESSAGE {
        return Ok(Err(format!("{bytes} bytes are over 16 MiB")));
    }
    let mut payload = vec![0; bytes];
    tokio::time::timeout(PATIENCE, reader.read_exact(&mut payload)).await??;
    Ok(Ok(payload.into()))
}

async fn published(
    exchange: &Exchange,
    topic: &str,
    payload: Bytes,
) -> std::result::Result<Sent, String> {
    let topic: Topic = topic.parse().map_err(|_text| format!("{topic:?} is no topic"))?;
    // Who asks is told before it takes this node for hung.
    let report = tokio::time::timeout(PATIENCE / 2, exchange.publish(&topic, payload)).await;
    let report = report.map_err(|_elapsed| {
        "overloaded: a node takes less than it is sent; others may have got it".to_owned()
    })?;
    let report = report.map_err(|error| error.to_string())?;
    Ok(Sent { local: report.local, peers: report.peers, missed: report.missed })
}

async fn replied(
    view: &NodeView,
    to: &str,
    payload: Bytes,
    within: Duration,
) -> std::result::Result<Bytes, String> {
    let address: Address = to.parse().map_err(|error| format!("{to:?}: {error}"))?;
    let reply = view.bus.exchange().call(&address, payload, within).await;
    reply.map_err(|error| unanswered(view, &address, &error))
}

/// Why a call brought no reply: the name, the node or the link to it is what is missing.
fn unanswered(view: &NodeView, to: &Address, error: &CallError) -> String {
    let Address { name, node } = to;
    match (error, node) {
        (CallError::NoSuchName, Some(node)) => format!("{node} serves no {name}"),
        (CallError::NoSuchName, None) => {
            format!("no node that {} is linked with serves {name}", view.name)
        }
        (CallError::NotConnected, Some(node)) => match view.peer(node) {
            None => format!("no node {node} is known; `xpando-node nodes` lists those that are"),
            Some(peer) => {
                let status = peer.status.label();
                format!("{node} is not linked: {status}; `xpando-node why {node}` says why")
            }
        },
        (error, _) => format!("{to}: {error}"),
    }
}

/// Answers [`Request::Subscribe`](super::Request::Subscribe).
pub(super) async fn subscribe(
    exchange: &Exchange,
    pattern: &str,
    (mut reader, mut writer): Asker,
) -> Result<()> {
    let pattern = pattern.parse::<Pattern>().map_err(|error| error.to_string());
    let subscribed =
        pattern.and_then(|to| exchange.subscribe(to).map_err(|error| error.to_string()));
    let mut subscription = match subscribed {
        Ok(subscription) => subscription,
        Err(error) => return refuse(&mut writer, error).await,
    };
    answer(&mut writer, exchange.name()).await?;
    loop {
        let mut more = [0; 1];
        let received = tokio::select! {
            received = subscription.recv() => received,
            // Nothing is asked on this connection any more: it ends, or is to be ended.
            _ = reader.read(&mut more) => return Ok(()),
        };
        match received {
            Some(Received::Message(message)) => {
                let bytes = message.payload.len();
                let line = Line::Message { topic: message.topic, from: message.from, bytes };
                send_line(&mut writer, &line).await?;
                tokio::time::timeout(PATIENCE, writer.write_all(&message.payload)).await??;
            }
            Some(Received::Missed(many)) => send_line(&mut writer, &Line::Missed(many)).await?,
            None => return Ok(()),
        }
    }
}
