//! A node whose certificate ended while it was off: another one is asked for before it starts.

use crate::io::clock;
use crate::io::enrolment;
use crate::io::identity::Identity;
use crate::io::identity::enrol::{Asked, EnrolError};
use crate::io::seeds::Seed;
use crate::node::Config;

/// Asks at each of these places for another certificate, where this node's has ended, until one grants it.
pub(super) async fn renew(config: &Config, places: Vec<Seed>) {
    let ended = Identity::load_ended(&config.certs, &config.name, clock::wall());
    let Ok(Some(identity)) = ended else { return };
    let asked = match identity.ask_renewal(clock::wall()) {
        Ok(asked) => asked,
        Err(error) => {
            tracing::warn!(%error, "no other certificate can be asked for");
            return;
        }
    };
    let places = config.join.iter().cloned().chain(places);
    let take = async |answer: Vec<u8>| take(config, &asked, &answer);
    match enrolment::ask_each(places, asked.bytes(), take).await {
        Ok(place) => tracing::info!(%place, "this node's certificate had ended, and was renewed"),
        Err(attempts) => {
            for (place, attempt) in attempts {
                tracing::warn!(%place, %attempt, "no other certificate");
            }
        }
    }
}

fn take(config: &Config, asked: &Asked, answer: &[u8]) -> Result<(), EnrolError> {
    Ok(asked.check(answer, clock::wall())?.write_certificate(&config.certs)?)
}
