//! The renewal of this node's certificate.
//!
//! The request goes to a node that can issue, this one perhaps, over links; where nobody grants it there, because this node's
//! certificate lapsed and with it its links, to the addresses of peers, as one that has no certificate. What is written is the
//! certificate's file alone; that it is in force is for the next look to say.

use std::sync::Arc;

use bytes::Bytes;

use super::Setup;
use crate::io::blocking::{TaskEnded, blocking};
use crate::io::clock;
use crate::io::enrolment::{self, Attempt};
use crate::io::identity::enrol::{Asked, EnrolError};
use crate::io::seeds::Seed;

/// Why there is no other certificate. Nothing changed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewalError {
    /// The request, the answer or the file.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// What did it has ended.
    #[error(transparent)]
    Ended(#[from] TaskEnded),
}

/// Asks for another certificate, and puts it in the place of the one before.
pub(super) async fn renew(setup: Setup) -> Result<(), RenewalError> {
    let identity = setup.identity.clone();
    let asking = blocking(move || identity.ask_renewal(clock::wall()).map_err(RenewalError::Enrol));
    let asked = Arc::new(asking.await?);
    let answer = setup.enrolment.ask(Bytes::copy_from_slice(asked.bytes())).await;
    let refused = match take(&setup, &asked, answer).await {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    if setup.identity.validity().not_after > clock::wall() {
        return Err(refused); // whoever refused is linked with this node, and so are others
    }
    let view = setup.peers.view();
    let addresses = view.iter().filter_map(|row| row.peer.address);
    let places: Vec<Seed> =
        addresses.filter_map(|address| address.to_string().parse().ok()).collect();
    match enrolment::ask_each(places, asked.bytes(), |it| take(&setup, &asked, it.into())).await {
        Ok(_place) => Ok(()),
        Err(attempts) => {
            let all = attempts.into_iter();
            // One that does not answer says nothing.
            let said = all.filter_map(|(_, attempt)| match attempt {
                Attempt::Refused(again) => Some(again),
                Attempt::Unanswered(_) => None,
            });
            Err(said.last().unwrap_or(refused))
        }
    }
}

/// Checks an answer, and writes what it grants.
async fn take(setup: &Setup, asked: &Arc<Asked>, answer: Bytes) -> Result<(), RenewalError> {
    let (certs, asked) = (setup.identity.certs().to_owned(), asked.clone());
    let writing = blocking(move || {
        let granted = asked.check(&answer, clock::wall())?;
        granted.write_certificate(&certs).map_err(|error| RenewalError::Enrol(error.into()))
    });
    writing.await
}
