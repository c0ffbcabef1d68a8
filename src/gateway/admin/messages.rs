//! Publishing, subscribing and calling through the admin socket.

use std::io::Result;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Answer, Line, PATIENCE, say};
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
    let Some(payload) = payload(&mut reader, bytes).await? else {
        return say(&mut writer, &too_long(bytes)).await;
    };
    let answer = published(exchange, topic, payload).await;
    say(&mut writer, &answer.unwrap_or_else(Answer::Error)).await
}

/// Answers [`Request::Call`](super::Request::Call).
pub(super) async fn call(
    view: &NodeView,
    to: &str,
    within: Duration,
    bytes: usize,
    (mut reader, mut writer): Asker,
) -> Result<()> {
    let Some(payload) = payload(&mut reader, bytes).await? else {
        return say(&mut writer, &too_long(bytes)).await;
    };
    match replied(view, to, payload, within).await {
        Ok(reply) => {
            say(&mut writer, &Answer::Replied { bytes: reply.len() }).await?;
            tokio::time::timeout(PATIENCE, writer.write_all(&reply)).await?
        }
        Err(error) => say(&mut writer, &Answer::Error(error)).await,
    }
}

fn too_long(bytes: usize) -> Answer {
    Answer::Error(format!("{bytes} bytes are over 16 MiB"))
}

/// The bytes that follow a request, unless they are too many.
async fn payload(reader: &mut BufReader<OwnedReadHalf>, bytes: usize) -> Result<Option<Bytes>> {
    if bytes > MAX_MESSAGE {
        return Ok(None);
    }
    let mut payload = vec![0; bytes];
    tokio::time::timeout(PATIENCE, reader.read_exact(&mut payload)).await??;
    Ok(Some(payload.into()))
}

async fn published(
    exchange: &Exchange,
    topic: &str,
    payload: Bytes,
) -> std::result::Result<Answer, String> {
    let topic: Topic = topic.parse().map_err(|_text| format!("{topic:?} is no topic"))?;
    // Who asks is told before it takes this node for hung.
    let report = tokio::time::timeout(PATIENCE / 2, exchange.publish(&topic, payload)).await;
    let report = report.map_err(|_elapsed| {
        "overloaded: a node takes less than it is sent; others may have got it".to_owned()
    })?;
    let report = report.map_err(|error| error.to_string())?;
    Ok(Answer::Sent { local: report.local, peers: report.peers, missed: report.missed })
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
        Err(error) => return say(&mut writer, &Answer::Error(error)).await,
    };
    say(&mut writer, &Answer::Subscribed(exchange.name().clone())).await?;
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
                say(&mut writer, &line).await?;
                tokio::time::timeout(PATIENCE, writer.write_all(&message.payload)).await??;
            }
            Some(Received::Missed(many)) => say(&mut writer, &Line::Missed(many)).await?,
            None => return Ok(()),
        }
    }
}
