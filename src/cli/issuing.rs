//! By what a node issues that has the authority's key.
//!
//! Owns the words of these options.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use xpando_node::internals::io::identity::enrol::{MachineRules, Rules};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Args)]
pub(super) struct IssuingArgs {
    /// Days after its end in which a node's certificate is renewed by its own key, and its name is kept for that key;
    /// 0: none
    #[arg(long, value_name = "DAYS", env = "XPANDO_RENEWAL_GRACE", default_value_t = 180, value_parser = clap::value_parser!(u32).range(0..=3650))]
    renewal_grace: u32,

    /// Public keys of the platform whose tokens machines join with (JSON Web Key Set), such as those of Kubernetes' service
    /// accounts
    #[arg(long, value_name = "FILE", env = "XPANDO_MACHINE_KEYS", requires_all = ["machine_issuer", "machine_audience", "machine_subject", "machine_names"])]
    machine_keys: Option<PathBuf>,

    /// Who makes these tokens (`iss`)
    #[arg(long, value_name = "TEXT", env = "XPANDO_MACHINE_ISSUER", requires = "machine_keys")]
    machine_issuer: Option<String>,

    /// Whom they are for (`aud`)
    #[arg(long, value_name = "TEXT", env = "XPANDO_MACHINE_AUDIENCE", requires = "machine_keys")]
    machine_audience: Option<String>,

    /// Which subjects count (`sub`), * for any characters but a colon: 'system:serviceaccount:prod:*'
    #[arg(long, value_name = "PATTERN", env = "XPANDO_MACHINE_SUBJECT", requires = "machine_keys")]
    machine_subject: Option<String>,

    /// The names that such a machine may take, $1 for what the first * of the subject stood for: '$1-*@*.example'
    #[arg(long, value_name = "PATTERN", env = "XPANDO_MACHINE_NAMES", requires = "machine_keys")]
    machine_names: Option<String>,
}

impl IssuingArgs {
    pub(super) fn rules(self) -> Rules {
        let machine = self.machine_keys.map(|keys| MachineRules {
            keys,
            issuer: self.machine_issuer.unwrap_or_default(),
            audience: self.machine_audience.unwrap_or_default(),
            subject: self.machine_subject.unwrap_or_default(),
            names: self.machine_names.unwrap_or_default(),
        });
        Rules { grace: self.renewal_grace * DAY, machine, ..Rules::default() }
    }
}
