//! Another token for a join that goes on.
//!
//! # Protocol
//! The node tells a join [`EXPIRING`] when its token ends within [`WARNING`]; the client pushes [`RENEWAL`] with another token
//! of the same subject, and is answered. A token that is refused changes nothing: the join has the right that it had.
//!
//! # Invariants
//! 1. A token that is pushed is for this node alone: no member and no handler hears of it, whether or not it counts.
//! 2. A join stays whose it was, on a topic that its token lets it join. Its channel's next callback has the new claims.
//! 3. One token of a join is judged at a time, and its frame takes a place among those that wait.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;

use super::super::entrance::{Live, News};
use super::super::{Bearer, Refusal, SLOWED};
use super::{ClientTask, empty};
use crate::io::clock;
use crate::io::metrics::Count;
use crate::proto::channel::session::{EXPIRING, Join};
use crate::proto::channel::{Frame, Json, Outcome, Payload, Ref, Say, reason};

/// The event by which a client renews a join.
pub(super) const RENEWAL: &str = "access_token";
/// How long before.
const WARNING: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Renewal {
    access_token: String,
}

/// When a join has to be looked at for its right: to warn, or to end it.
pub(super) fn due(live: &Live) -> Option<SystemTime> {
    let ends = live.claims.as_ref()?.expires();
    let warns = ends.checked_sub(WARNING).filter(|_| !live.warned);
    Some(warns.unwrap_or(ends))
}

impl ClientTask {
    /// Warns of rights that end soon.
    pub(super) fn warn(&mut self) {
        let now = clock::wall();
        let mut soon = Vec::new();
        for live in self.live.values_mut().filter(|live| !live.warned) {
            if let Some(claims) = live.claims.as_ref().filter(|it| it.expires() <= now + WARNING) {
                live.warned = true;
                let left = claims.expires().duration_since(now).unwrap_or_default();
                soon.push((live.join.clone(), claims.exp, left.as_secs()));
            }
        }
        for (join, exp, left) in soon {
            let told = json!({ "expires_at": exp, "expires_in": left });
            let told = Payload::Json(Json::of(&told));
            self.send(join.topic.as_str(), &Say::Push(join.join_ref.as_ref(), EXPIRING, &told));
        }
    }

    /// Judges another token for a join, in a task of its own.
    pub(super) fn renew(&mut self, frame: &Frame, join: &Join) {
        if let Err(why) = self.try_renew(frame, join) {
            self.reply(join, frame.reference.as_ref(), Outcome::Error, &reason(why));
        }
    }

    fn try_renew(&mut self, frame: &Frame, join: &Join) -> Result<(), Refusal> {
        let asked = match &frame.payload {
            Payload::Json(json) => json.decode::<Renewal>().ok(),
            Payload::Binary(_) => None,
        };
        let Renewal { access_token } = asked.ok_or("push {\"access_token\": TOKEN}")?;
        let room = self.room(&frame.payload).ok_or("overloaded")?;
        let live = self.live.get_mut(&join.number).ok_or("unmatched topic")?;
        if live.claims.is_none() {
            return Err("this join has no token: join with one");
        }
        if std::mem::replace(&mut live.renewing, true) {
            return Err("another token is being judged");
        }
        let (channels, herald, from) =
            (self.channels.clone(), self.herald.clone(), self.place.address());
        let (join, reference) = (join.clone(), frame.reference.clone());
        tokio::spawn(async move {
            let granted = channels.grant(&access_token, &join.topic, from).await;
            drop(access_token);
            if granted.as_ref().is_err_and(|denied| denied.late) {
                channels.hold_back(SLOWED).await;
            }
            let judged = granted.map_err(|denied| denied.reason);
            drop(room);
            herald.send(News::Renewed(join, reference, judged));
        });
        Ok(())
    }

    /// A token was judged: it takes the place of the one before, or nothing changes.
    pub(super) fn renewed(
        &mut self,
        join: &Join,
        reference: Option<&Ref>,
        judged: Result<Bearer, Refusal>,
    ) {
        let Some(live) = self.live.get_mut(&join.number) else { return };
        live.renewing = false;
        let judged = judged.and_then(|bearer| match &live.claims {
            Some(before) if before.sub == bearer.sub && before.iss == bearer.iss => Ok(bearer),
            Some(_) | None => Err("the token is somebody else's"),
        });
        let (outcome, response) = match judged {
            Ok(bearer) => {
                let role = bearer.role;
                live.seat.renewed(&bearer.claims);
                (live.claims, live.warned) = (Some(bearer), false);
                self.rise(Some(role));
                self.channels.metrics.count(Count::Channels, "renewed");
                (Outcome::Ok, empty())
            }
            Err(why) => (Outcome::Error, reason(why)),
        };
        self.reply(join, reference, outcome, &response);
    }
}
