//! The renewal of this node's certificate.
//!
//! The request goes to a node that can issue, this one perhaps, over links; where nobody grants it there, because this node's
//! certificate lapsed and with it its links, to the addresses of peers, as one that has no certificate. What is written is the
//! certificate's file alone; that it is in force is for the next look to say.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinError;

use super::Setup;
use crate::io::clock;
use crate::io::enrolment;
use crate::io::identity::enrol::{Asked, EnrolError};
use crate::io::tls::enrol::Expected;

/// How long one address may take.
const EACH: Duration = Duration::from_secs(10);
/// Addresses that are tried in one attempt.
const MAX_ADDRESSES: usize = 16;

/// Why there is no other certificate. Nothing changed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewalError {
    /// The request, the answer or the file.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// What did it has ended.
    #[error("the task ended ({0})")]
    Ended(JoinError),
}

impl From<JoinError> for RenewalError {
    fn from(error: JoinError) -> Self {
        Self::Ended(error)
    }
}

/// Asks for another certificate, and puts it in the place of the one before.
pub(super) async fn renew(setup: Setup) -> Result<(), RenewalError> {
    let identity = setup.identity.clone();
    let asking = tokio::task::spawn_blocking(move || identity.ask_renewal(clock::wall()));
    let asked = Arc::new(asking.await??);
    let answer = setup.enrolment.ask(Bytes::copy_from_slice(asked.bytes())).await;
    let mut refused = match take(&setup, &asked, answer).await {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    if setup.identity.validity().not_after > clock::wall() {
        return Err(refused); // whoever refused is linked with this node, and so are others
    }
    let view = setup.peers.view();
    let addresses = view.iter().filter_map(|row| row.peer.address);
    for address in addresses.take(MAX_ADDRESSES) {
        let asking = enrolment::ask_at(address, Expected::Anyone, asked.bytes());
        // One that does not answer says nothing: another one may.
        let Ok(Ok(answer)) = tokio::time::timeout(EACH, asking).await else { continue };
        match take(&setup, &asked, answer.into()).await {
            Ok(()) => return Ok(()),
            Err(again) => refused = again,
        }
    }
    Err(refused)
}

/// Checks an answer, and writes what it grants.
async fn take(setup: &Setup, asked: &Arc<Asked>, answer: Bytes) -> Result<(), RenewalError> {
    let (certs, asked) = (setup.identity.certs().to_owned(), asked.clone());
    let writing = tokio::task::spawn_blocking(move || {
        let granted = asked.check(&answer, clock::wall())?;
        Ok::<(), EnrolError>(granted.write_certificate(&certs)?)
    });
    Ok(writing.await??)
}
