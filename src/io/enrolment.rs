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
/// Time for one place among several: its node may ask four others, for four seconds each.
const EACH: Duration = Duration::from_secs(20);
/// Places that are asked for one certificate.
const MAX_PLACES: usize = 16;
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

/// What came of asking at one place. Another one may help.
#[derive(Debug, thiserror::Error)]
pub enum Attempt<E> {
    /// There is no answer.
    #[error(transparent)]
    Unanswered(#[from] AskError),
    /// The answer is not taken.
    #[error("{0}")]
    Refused(E),
}

/// Asks anyone at these places, of which the first 16 count, one after another, until the answer of one is taken: that one.
///
/// # Errors
/// What came of each place.
pub async fn ask_each<E, F>(
    places: impl IntoIterator<Item = Seed>,
    request: &[u8],
    mut take: impl FnMut(Vec<u8>) -> F,
) -> Result<Seed, Vec<(Seed, Attempt<E>)>>
where
    F: Future<Output = Result<(), E>>,
{
    let mut attempts = Vec::new();
    for place in places.into_iter().take(MAX_PLACES) {
        let silent = AskError::Silent { what: "answer", within: EACH };
        let asked = timeout(EACH, ask(&place, Expected::Anyone, request)).await;
        let attempt = match asked.unwrap_or(Err(silent)) {
            Ok(answer) => match take(answer).await {
                Ok(()) => return Ok(place),
                Err(refused) => Attempt::Refused(refused),
            },
            Err(unanswered) => Attempt::Unanswered(unanswered),
        };
        attempts.push((place, attempt));
    }
    Err(attempts)
}

/// Asks at one address.
///
/// # Errors
/// [`AskError`].
async fn ask_at(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_several_places_each_is_asked_and_no_more_than_so_many() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let places = vec![gone.to_string().parse::<Seed>().unwrap(); MAX_PLACES + 3];
        let taken = ask_each(places, b"request", async |_| Ok::<_, String>(())).await;
        let attempts = taken.unwrap_err();
        assert_eq!(attempts.len(), MAX_PLACES);
        let refused = |attempt: &Attempt<_>| {
            matches!(attempt, Attempt::Unanswered(AskError::Connect(_) | AskError::Silent { .. }))
        };
        assert!(attempts.iter().all(|(_, attempt)| refused(attempt)), "{attempts:?}");
    }
}
