//! What the bad member says to ractor's sessions: its handshake, and messages that control actors and groups.
//!
//! The layouts are those of `auth.proto` and `control.proto` in ractor_cluster 0.16.

use prost::Message;
use sha2::{Digest, Sha256};
use xpando_node::internals::io::identity::Identity;
use xpando_node::internals::proto::frame::Lane;

use crate::kit::stranger::{Stranger, ractor_name};

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(message, optional, tag = "1")]
    auth: Option<Auth>,
    #[prost(message, optional, tag = "3")]
    control: Option<Control>,
}

#[derive(Clone, PartialEq, Message)]
struct Auth {
    #[prost(message, optional, tag = "4")]
    server_challenge: Option<Challenge>,
    #[prost(message, optional, tag = "5")]
    client_challenge: Option<Reply>,
    #[prost(message, optional, tag = "6")]
    server_ack: Option<Ack>,
}

#[derive(Clone, PartialEq, Message)]
struct Challenge {
    #[prost(uint32, tag = "3")]
    challenge: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(uint32, tag = "1")]
    challenge: u32,
    #[prost(bytes, tag = "2")]
    digest: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Ack {
    #[prost(bytes, tag = "1")]
    digest: Vec<u8>,
}

/// A control message; one of its fields is there.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Control {
    #[prost(message, optional, tag = "1")]
    pub(crate) spawn: Option<Spawn>,
    #[prost(message, optional, tag = "2")]
    pub(crate) terminate: Option<Terminate>,
    #[prost(message, optional, tag = "5")]
    pub(crate) join: Option<Members>,
    #[prost(message, optional, tag = "6")]
    pub(crate) leave: Option<Members>,
    #[prost(message, optional, tag = "9")]
    pub(crate) ready: Option<Ready>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Spawn {
    #[prost(message, repeated, tag = "1")]
    pub(crate) actors: Vec<Actor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Terminate {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Members {
    #[prost(string, tag = "1")]
    pub(crate) group: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) actors: Vec<Actor>,
    #[prost(string, tag = "3")]
    pub(crate) scope: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Actor {
    #[prost(uint64, tag = "1")]
    pub(crate) pid: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ready {}

/// Actors by their numbers.
pub(crate) fn actors(pids: std::ops::Range<u64>) -> Vec<Actor> {
    pids.map(|pid| Actor { pid }).collect()
}

/// A control message as a frame.
pub(crate) fn frame(control: Control) -> Vec<u8> {
    framed(&Network { auth: None, control: Some(control) })
}

fn framed(message: &Network) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&(body.len() as u64).to_be_bytes(), body.as_slice()].concat()
}

/// Goes through the handshake of the one who dials, until the session is ready.
pub(crate) fn enter(stranger: &mut Stranger, identity: &Identity) {
    stranger.piece(Lane::Ractor, &ractor_name(identity.name().as_str()));
    let mut heard = Vec::new();
    let challenge = loop {
        let auth = next(stranger, &mut heard).auth;
        if let Some(challenge) = auth.and_then(|auth| auth.server_challenge) {
            break challenge.challenge;
        }
    };
    let cookie = identity.cluster().to_string();
    let digest = Sha256::new().chain_update(challenge.to_be_bytes()).chain_update(cookie);
    let reply = Reply { challenge: 7, digest: digest.finalize().to_vec() };
    let auth = Auth { client_challenge: Some(reply), ..Auth::default() };
    stranger.piece(Lane::Ractor, &framed(&Network { auth: Some(auth), control: None }));
    while next(stranger, &mut heard).auth.is_none_or(|auth| auth.server_ack.is_none()) {}
    let ready = Control { ready: Some(Ready {}), ..Control::default() };
    stranger.piece(Lane::Ractor, &frame(ready));
}

/// The next frame that the node sends.
fn next(stranger: &mut Stranger, heard: &mut Vec<u8>) -> Network {
    loop {
        if let Some((length, rest)) = heard.split_first_chunk() {
            let length = usize::try_from(u64::from_be_bytes(*length)).unwrap();
            if let Some(body) = rest.get(..length) {
                let message = Network::decode(body).unwrap();
                heard.drain(..8 + length);
                return message;
            }
        }
        let (lane, piece) = stranger.hear_piece().unwrap();
        if lane == Lane::Ractor {
            heard.extend_from_slice(&piece);
        }
    }
}
