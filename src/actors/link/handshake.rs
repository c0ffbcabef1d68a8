//! One attempt, from the socket to the confirmed hello: the steps of `proto::hello` over TLS.
//!
//! Each function is one task. At each step it reports and waits for a decision; the whole has a
//! deadline. Whatever goes wrong ends in exactly one report.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;

use crate::actors::link::refusals::RefusalLog;
use crate::actors::link::{AttemptId, Established, Msg, Myself, send};
use crate::actors::supervisor::Address;
use crate::io::identity::PeerIdentity;
use crate::io::tcp;
use crate::io::tls::{Cause, Tls, cause_of_io};
use crate::proto::hello::{Greeting, Hello, MAX_GREETING, Refusal};
use crate::proto::link::{CONNECT, Decision, HANDSHAKE, Input, Proven, Report};
use crate::proto::membership::Failure;

type Stream = Box<TlsStream<TcpStream>>;

/// Where an attempt reports, and what it is told.
pub(super) struct Steps {
    attempt: AttemptId,
    link: Address<Msg>,
    decisions: mpsc::Receiver<Decision>,
}

impl Steps {
    pub(super) fn new(
        attempt: AttemptId,
        link: Address<Msg>,
        decisions: mpsc::Receiver<Decision>,
    ) -> Self {
        Self { attempt, link, decisions }
    }

    /// Both sides agreed.
    fn established(&self, stream: TlsStream<TcpStream>, hello: Hello, peer: PeerIdentity) {
        let (credential, serials) = (peer.credential(), peer.serials());
        let proven = Proven { hello, credential, serials, capabilities: peer.capabilities };
        send(&self.link, Msg::Established(self.attempt, Box::new(Established { stream, proven })));
    }

    /// Reports a step and waits for what to do.
    async fn ask(&mut self, report: Report) -> Result<(), Stop> {
        send(&self.link, Msg::Input(Input::Step(self.attempt, report)));
        match self.decisions.recv().await {
            Some(Decision::Proceed) => Ok(()),
            Some(Decision::Refuse(refusal)) => Err(Stop::Refuse(refusal)),
            None => Err(Stop::Failed(Failure::Closed)),
        }
    }

    fn failed(&self, failure: Failure) {
        let failed = Report::Failed(self.attempt, failure);
        send(&self.link, Msg::Input(Input::Step(self.attempt, failed)));
    }
}

/// Why an attempt goes no further.
enum Stop {
    /// We refuse the other side.
    Refuse(Refusal),
    Failed(Failure),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(failure_of(cause_of_io(&error), &error))
    }
}

/// Dials, greets, and hands the stream over once both sides agreed.
pub(super) async fn dial(address: SocketAddr, tls: Tls, myself: Myself, mut steps: Steps) {
    let stream = match connect(address).await {
        Ok(stream) => stream,
        Err(failure) => return steps.failed(failure),
    };
    let tls = tokio::time::timeout(HANDSHAKE, tls.connect(stream)).await;
    let (stream, peer) = match tls {
        Ok(Ok((stream, peer))) => (Box::new(TlsStream::from(stream)), peer),
        Ok(Err(error)) => {
            let revoked = error.revoked().cloned().map(Failure::Revoked);
            return steps.failed(revoked.unwrap_or_else(|| failure_of(error.cause(), &error)));
        }
        Err(_elapsed) => return steps.failed(not_in_time("TLS")),
    };
    match tokio::time::timeout(HANDSHAKE, greet(stream, &peer, &myself, &mut steps)).await {
        Ok(Ok((stream, hello))) => steps.established(*stream, hello, peer),
        Ok(Err(Stop::Failed(failure))) => steps.failed(failure),
        // The one that decided knows; the task's end still has to be told.
        Ok(Err(Stop::Refuse(refusal))) => {
            steps.failed(Failure::Rejected(format!("refused here: {refusal}")));
        }
        Err(_elapsed) => steps.failed(not_in_time("hello")),
    }
}

async fn greet(
    mut stream: Stream,
    peer: &PeerIdentity,
    myself: &Myself,
    steps: &mut Steps,
) -> Result<(Stream, Hello), Stop> {
    let connected = Report::Connected(steps.attempt, peer.name.clone(), peer.credential());
    steps.ask(connected).await?;
    write(&mut stream, &Greeting::Hello(myself.hello()), myself).await?;
    let hello = match read(&mut stream).await? {
        Greeting::Welcome(hello) => hello,
        Greeting::Refuse(refusal) => return Err(Stop::Failed(Failure::RefusedBy(refusal))),
        Greeting::Hello(_) | Greeting::Confirm => {
            write(&mut stream, &Greeting::Refuse(Refusal::Unexpected), myself).await?;
            return Err(Stop::Refuse(Refusal::Unexpected));
        }
    };
    let judged = match hello.check(&peer.name, myself.cluster) {
        Ok(()) => steps.ask(Report::Welcomed(steps.attempt, hello.clone())).await,
        Err(refusal) => Err(Stop::Refuse(refusal)),
    };
    if let Err(Stop::Refuse(refusal)) = &judged {
        write(&mut stream, &Greeting::Refuse(*refusal), myself).await?;
    }
    judged?;
    write(&mut stream, &Greeting::Confirm, myself).await?;
    Ok((stream, hello))
}

/// Answers a dialer that showed a certificate of this cluster.
pub(super) async fn welcome(
    stream: Stream,
    peer: PeerIdentity,
    from: SocketAddr,
    myself: Myself,
    mut steps: Steps,
    log: std::sync::Arc<RefusalLog>,
) {
    let name = peer.name.clone();
    match tokio::time::timeout(HANDSHAKE, answer(stream, &peer, &myself, &mut steps)).await {
        Ok(Ok((stream, hello))) => steps.established(*stream, hello, peer),
        Ok(Err(Stop::Refuse(refusal))) => {
            // NodeManager's own refusals are announced by it; these two it never hears of.
            if matches!(refusal, Refusal::Name | Refusal::Cluster | Refusal::Unexpected) {
                log.refused(refusal.label(), Some(from), &format!("{name}: {refusal}"));
            }
            steps.failed(Failure::Rejected(refusal.to_string()));
        }
        Ok(Err(Stop::Failed(failure))) => {
            if matches!(failure, Failure::Rejected(_)) {
                log.refused("hello", Some(from), &format!("{name}: {failure}"));
            }
            steps.failed(failure);
        }
        Err(_elapsed) => {
            log.refused("silent", Some(from), &format!("{name}: no hello within the deadline"));
            steps.failed(not_in_time("hello"));
        }
    }
}

async fn answer(
    mut stream: Stream,
    peer: &PeerIdentity,
    myself: &Myself,
    steps: &mut Steps,
) -> Result<(Stream, Hello), Stop> {
    let judged = match read(&mut stream).await? {
        Greeting::Hello(hello) => match hello.check(&peer.name, myself.cluster) {
            Ok(()) => {
                let greeted = Report::Greeted(steps.attempt, hello.clone(), peer.credential());
                steps.ask(greeted).await.map(|()| hello)
            }
            Err(refusal) => Err(Stop::Refuse(refusal)),
        },
        Greeting::Welcome(_) | Greeting::Confirm | Greeting::Refuse(_) => {
            Err(Stop::Refuse(Refusal::Unexpected))
        }
    };
    if let Err(Stop::Refuse(refusal)) = &judged {
        write(&mut stream, &Greeting::Refuse(*refusal), myself).await?;
    }
    let hello = judged?;
    write(&mut stream, &Greeting::Welcome(myself.hello()), myself).await?;
    match read(&mut stream).await? {
        Greeting::Confirm => {}
        Greeting::Refuse(refusal) => return Err(Stop::Failed(Failure::RefusedBy(refusal))),
        Greeting::Hello(_) | Greeting::Welcome(_) => return Err(Stop::Refuse(Refusal::Unexpected)),
    }
    steps.ask(Report::Confirmed(steps.attempt)).await?;
    Ok((stream, hello))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
    let stream = connected.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
    let stream = stream.map_err(unconnected)?;
    tcp::tune(&stream).map_err(unconnected)?;
    Ok(stream)
}

/// A process that is being torn down may reset what waited in its socket: it was there a moment ago.
fn unconnected(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        Failure::Refused
    } else if matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    ) {
        Failure::Closed
    } else {
        Failure::Unreachable(error.to_string())
    }
}

fn failure_of(cause: Cause, detail: &dyn std::fmt::Display) -> Failure {
    if cause == Cause::Closed {
        Failure::Closed
    } else if cause == Cause::OtherCluster {
        Failure::OtherCluster(detail.to_string())
    } else if cause == Cause::RefusedAsRevoked {
        Failure::RefusedAsRevoked
    } else if cause == Cause::RefusedByPeer {
        Failure::Rejected("the other side refused our certificate".to_owned())
    } else {
        Failure::Rejected(detail.to_string())
    }
}

fn not_in_time(what: &str) -> Failure {
    Failure::Unreachable(format!("no {what} within {} s", HANDSHAKE.as_secs()))
}

async fn write(stream: &mut Stream, greeting: &Greeting, myself: &Myself) -> Result<(), Stop> {
    let bytes = greeting
        .encode_as(myself.offer)
        .map_err(|error| Stop::Failed(Failure::Rejected(error.to_string())))?;
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

async fn read(stream: &mut Stream) -> Result<Greeting, Stop> {
    let length = usize::from(stream.read_u16().await?);
    let rejected = |text: String| Stop::Failed(Failure::Rejected(text));
    if length > MAX_GREETING {
        return Err(rejected(format!(
            "a hello of {length} bytes, at most {MAX_GREETING} are allowed"
        )));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Greeting::decode(&body).map_err(|error| rejected(format!("bad hello: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_at_connecting_says_that_somebody_was_there() {
        let failure = |kind: io::ErrorKind| unconnected(kind.into());
        assert_eq!(failure(io::ErrorKind::ConnectionRefused), Failure::Refused);
        assert_eq!(failure(io::ErrorKind::ConnectionReset), Failure::Closed);
        assert_eq!(failure(io::ErrorKind::ConnectionAborted), Failure::Closed);
        assert!(matches!(failure(io::ErrorKind::TimedOut), Failure::Unreachable(_)));
    }
}
