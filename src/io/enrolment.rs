//! Asking a node for a certificate over the network: one connection, one request, one answer.
//!
//! Invariants: every step has a deadline; an answer has a bounded length; what it is worth, the caller judges.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::io::seeds::Seed;
use crate::io::tls::enrol::{ConnectError, Expected, connect};

/// Time to connect, and again for TLS.
const REACH: Duration = Duration::from_secs(4);
/// Time for the answer: the node may have to ask others.
const ANSWERED: Duration = Duration::from_secs(25);
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Why there is no answer from one address. Nothing changed; another address or another attempt may help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The host's name leads nowhere.
    #[error("its name cannot be looked up: {0}")]
    Lookup(io::Error),
    /// Nobody can be reached there.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// Nobody answers in time.
    #[error("no {what} within {} s", within.as_secs())]
    Silent {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        within: Duration,
    },
    /// The handshake failed.
    #[error(transparent)]
    Tls(#[from] ConnectError),
    /// The connection was lost.
    #[error("the connection was lost: {0}")]
    Lost(io::Error),
    /// The answer is longer than any.
    #[error("an answer of {0} bytes, which is none")]
    TooLong(usize),
}

/// Asks at one seed: at each address behind it, until one answers.
///
/// # Errors
/// That of the last address.
pub async fn ask(seed: &Seed, expected: Expected, request: &[u8]) -> Result<Vec<u8>, AskError> {
    let looked_up = timeout(REACH, seed.resolve()).await;
    let late = AskError::Silent { what: "answer of the name service", within: REACH };
    let addresses = looked_up.map_err(|_elapsed| late)?.map_err(AskError::Lookup)?;
    let mut failed = AskError::Lookup(io::ErrorKind::NotFound.into());
    for address in addresses {
        match ask_at(address, expected, request).await {
            Ok(answer) => return Ok(answer),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Asks at one address.
///
/// # Errors
/// [`AskError`].
pub async fn ask_at(
    address: SocketAddr,
    expected: Expected,
    request: &[u8],
) -> Result<Vec<u8>, AskError> {
    let silent = |what, within| move |_elapsed| AskError::Silent { what, within };
    let connected = timeout(REACH, TcpStream::connect(address)).await;
    let stream = connected.map_err(silent("connection", REACH))?.map_err(AskError::Connect)?;
    let shaken = timeout(REACH, connect(stream, expected)).await;
    let mut stream = shaken.map_err(silent("TLS handshake", REACH))??;
    let talk = async {
        let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
        stream.write_u32(length).await.map_err(AskError::Lost)?;
        stream.write_all(request).await.map_err(AskError::Lost)?;
        stream.flush().await.map_err(AskError::Lost)?;
        let length = stream.read_u32().await.map_err(AskError::Lost)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_ANSWER {
            return Err(AskError::TooLong(length));
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await.map_err(AskError::Lost)?;
        Ok(answer)
    };
    timeout(ANSWERED, talk).await.map_err(silent("answer", ANSWERED))?
}
