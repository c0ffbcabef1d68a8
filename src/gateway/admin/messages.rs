//! Publishing, subscribing and calling through the admin socket.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Answer, Line, PATIENCE, Request, say};
use crate::actors::pubsub::{PubSub, Received};
use crate::proto::outbox::MAX_MESSAGE;
use crate::proto::topic::{Address, Pattern, Topic};

/// Answers one request and what belongs to it.
pub(super) async fn talk(
    pubsub: &PubSub,
    request: Request,
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> Result<()> {
    match request {
        Request::Publish { topic, bytes } => {
            let payload = payload(&mut reader, bytes).await?;
            let answer = publish(pubsub, &topic, payload).await;
            say(&mut writer, &answer.unwrap_or_else(Answer::Error)).await
        }
        Request::Call { to, within, bytes } => {
            let payload = payload(&mut reader, bytes).await?;
            match call(pubsub, &to, payload, Duration::from_millis(within)).await {
                Ok(reply) => {
                    say(&mut writer, &Answer::Replied { bytes: reply.len() }).await?;
                    tokio::time::timeout(PATIENCE, writer.write_all(&reply)).await?
                }
                Err(error) => say(&mut writer, &Answer::Error(error)).await,
            }
        }
        Request::Subscribe { pattern } => match pattern.parse::<Pattern>() {
            Ok(pattern) => subscribe(pubsub, pattern, reader, writer).await,
            Err(error) => say(&mut writer, &Answer::Error(error.to_string())).await,
        },
        Request::Status
        | Request::Topology
        | Request::Metrics
        | Request::Watch
        | Request::Kill { .. } => Ok(()), // answered elsewhere
    }
}

/// The bytes that follow a request.
async fn payload(reader: &mut BufReader<OwnedReadHalf>, bytes: usize) -> Result<Bytes> {
    if bytes > MAX_MESSAGE {
        return Err(Error::new(ErrorKind::InvalidInput, "a payload over 16 MiB"));
    }
    let mut payload = vec![0; bytes];
    tokio::time::timeout(PATIENCE, reader.read_exact(&mut payload)).await??;
    Ok(payload.into())
}

async fn publish(
    pubsub: &PubSub,
    topic: &str,
    payload: Bytes,
) -> std::result::Result<Answer, String> {
    let topic: Topic = topic.parse().map_err(|_text| format!("{topic:?} is no topic"))?;
    let spread = pubsub.broadcast(&topic, payload).await.map_err(|error| error.to_string())?;
    Ok(Answer::Sent { local: spread.local, peers: spread.peers, missed: spread.missed })
}

async fn call(
    pubsub: &PubSub,
    to: &str,
    payload: Bytes,
    within: Duration,
) -> std::result::Result<Bytes, String> {
    let address: Address = to.parse().map_err(|error| format!("{to:?}: {error}"))?;
    let reply = pubsub.call(&address, payload, within).await;
    reply.map_err(|error| format!("{to}: {error}"))
}

async fn subscribe(
    pubsub: &PubSub,
    pattern: Pattern,
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> Result<()> {
    let mut subscription = match pubsub.subscribe(pattern) {
        Ok(subscription) => subscription,
        Err(error) => return say(&mut writer, &Answer::Error(error.to_string())).await,
    };
    say(&mut writer, &Answer::Subscribed(pubsub.name().clone())).await?;
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
