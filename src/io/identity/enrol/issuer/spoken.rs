//! Spoken invitations, on the side that issues.
//!
//! Invariant: of all proofs of one code that are wrong only the first is looked at: under the lock of the directory the code
//! is burnt before the answer goes out, so that many sessions, or many processes, are no more than one guess.

use std::time::{Duration, SystemTime};

use super::{Answered, Issuer, Means, Proven};
use crate::io::identity::disk::Layout;
use crate::io::identity::enrol::invitations::{Invitations, Terms};
use crate::io::identity::enrol::mac::MacKey;
use crate::io::identity::enrol::spoken::Code;
use crate::io::identity::enrol::{EnrolError, Line};
use crate::proto::enrol::{AuthorityHash, Refused};

/// Longest time of a spoken invitation.
const MAX_TIME: Duration = Duration::from_secs(60 * 60);

impl Issuer {
    /// Makes an invitation to be spoken, for one certificate, for up to an hour.
    ///
    /// # Errors
    /// As [`Issuer::invite`].
    pub fn invite_spoken(&self, terms: &Terms, now: SystemTime) -> Result<Code, EnrolError> {
        if terms.uses != 1 || terms.time > MAX_TIME {
            return Err(EnrolError::Terms(
                "a spoken one is for one certificate, and lasts up to an hour",
            ));
        }
        // The id and the secret of a line stand behind it; nobody knows that secret.
        let line = Line::draw(&[], AuthorityHash::ANY)?;
        self.change(|invitations| {
            let code = Code::draw(invitations.free_number(now))?;
            invitations.add(line.id(), line.key(), terms, now)?;
            invitations.speak(code.number(), code.words());
            Ok(code)
        })
    }

    /// The first step: agrees on a key with whoever asks.
    pub(super) fn begin_spoken(
        &self,
        number: u32,
        share: &[u8],
        now: SystemTime,
    ) -> Result<Answered, EnrolError> {
        let snapshot = self.snapshot()?;
        let code = match snapshot.invitations.spoken(number) {
            Ok((_, words)) => Code::of(number, words),
            Err(refused) => return Err(self.guessed(refused, now).into()),
        };
        let (session, share) = self.state.lock().sessions.begin(&code, share, now)?;
        Ok(Answered::share(session, share))
    }

    /// The second step: whether the key is the same, which it is with the right words only. A wrong one burns the code.
    pub(super) fn prove_spoken(
        &self,
        session: &[u8; 16],
        mac: &[u8; 32],
        statement: &[u8],
    ) -> Result<Proven, EnrolError> {
        let found = self.state.lock().sessions.get(session);
        let (number, key): (u32, MacKey) = found.ok_or(Refused::UnknownInvitation)?;
        let layout = Layout::new(&self.certs);
        let _lock = layout.lock()?;
        let mut invitations = Invitations::read(layout)?;
        let (id, words) = invitations.spoken(number)?;
        if !self.state.lock().sessions.is_of(session, &Code::of(number, words)) {
            return Err(Refused::UnknownInvitation.into());
        }
        if key.verify(statement, mac) {
            let capabilities = invitations.capabilities(id);
            return Ok(Proven { means: Means::Invitation(id), seal: Some(key), capabilities });
        }
        invitations.burn(number);
        invitations.write(layout)?;
        self.state.lock().snapshot = None;
        Err(Refused::Burnt.into())
    }
}
