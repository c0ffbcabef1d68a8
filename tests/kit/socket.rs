//! A client's WebSocket, frame by frame.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Node, PATIENCE};

/// A client's socket, and a reference for each of its frames.
pub(crate) struct ClientSocket(WebSocketStream<TcpStream>, u64);

impl ClientSocket {
    /// Of a client with this token, or without one.
    pub(crate) async fn open(node: &Node, token: Option<&str>) -> Self {
        let stream = TcpStream::connect(node.http()).await.unwrap();
        let token = token.map(|token| format!("&token={token}")).unwrap_or_default();
        let url = format!("ws://{}/socket/websocket?vsn=2.0.0{token}", node.http());
        Self(client_async(url, stream).await.unwrap().0, 0)
    }

    /// The status with which a client without a token is refused before its socket opens.
    pub(crate) async fn refused(node: &Node) -> u16 {
        let stream = TcpStream::connect(node.http()).await.unwrap();
        let url = format!("ws://{}/socket/websocket?vsn=2.0.0", node.http());
        match client_async(url, stream).await {
            Err(Error::Http(answer)) => answer.status().as_u16(),
            other => panic!("{:?}", other.map(|(_, answer)| answer)),
        }
    }

    /// Says something, and does not wait for the answer; its reference.
    pub(crate) async fn says(
        &mut self,
        join: u64,
        topic: &str,
        event: &str,
        payload: &Value,
    ) -> String {
        self.1 += 1;
        let reference = self.1.to_string();
        let frame = json!([join.to_string(), reference, topic, event, payload]);
        self.0.send(Message::text(frame.to_string())).await.unwrap();
        reference
    }

    /// What comes next: a frame, or the code and the reason with which the socket is closed.
    pub(crate) async fn hears(&mut self) -> Result<Value, (u16, String)> {
        loop {
            let said = tokio::time::timeout(PATIENCE, self.0.next()).await.unwrap();
            match said {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err((close.code.into(), close.reason.to_string()));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The answer to what has this reference: `ok`, or the reason.
    pub(crate) async fn answered(&mut self, reference: &str) -> Result<String, (u16, String)> {
        loop {
            let frame = self.hears().await?;
            if frame[1] == reference && frame[3] == "phx_reply" {
                let reason = frame[4]["response"]["reason"].as_str().unwrap_or_default();
                let ok = frame[4]["status"] == "ok";
                return Ok(if ok { "ok".to_owned() } else { reason.to_owned() });
            }
        }
    }

    /// What is answered to a frame: `ok`, or the reason.
    pub(crate) async fn asks(
        &mut self,
        join: u64,
        topic: &str,
        event: &str,
        payload: Value,
    ) -> String {
        let reference = self.says(join, topic, event, &payload).await;
        self.answered(&reference).await.unwrap()
    }
}
