//! A node whose certificate ended while it was off: another one is asked for before it starts.

use crate::io::clock;
use crate::io::enrolment;
use crate::io::identity::Identity;
use crate::io::identity::enrol::{Asked, EnrolError};
use crate::io::seeds::Seed;
use crate::io::tls::enrol::Expected;
use crate::node::Config;

/// Addresses that are tried.
const MAX_ADDRESSES: usize = 16;

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
    for place in config.join.iter().cloned().chain(places).take(MAX_ADDRESSES) {
        let answer = match enrolment::ask(&place, Expected::Anyone, asked.bytes()).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%place, %error, "no answer to the request for another certificate");
                continue;
            }
        };
        match take(config, &asked, &answer) {
            Ok(()) => {
                tracing::info!(%place, "this node's certificate had ended, and was renewed");
                return;
            }
            Err(error) => tracing::warn!(%place, %error, "no other certificate"),
        }
    }
}

fn take(config: &Config, asked: &Asked, answer: &[u8]) -> Result<(), EnrolError> {
    Ok(asked.check(answer, clock::wall())?.write_certificate(&config.certs)?)
}
