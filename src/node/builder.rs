//! A node to start, as an embedding service describes it: texts, read when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[cfg(feature = "gateway")]
use crate::gateway::http;
use crate::io::places;
use crate::node::{Config, Node, StartError};
use crate::proto::history::Retentions;
use crate::proto::node::NodeName;
use crate::proto::registry::{Pair, Profile};

/// What [`Node::builder`] begins. What is not said is as on the command line.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it starts"]
pub struct Builder {
    name: String,
    join: Vec<String>,
    certs: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    beacons: bool,
    linked: (usize, Duration),
    specializations: Vec<String>,
    metadata: Vec<(String, String)>,
    history: Vec<String>,
    #[cfg(feature = "gateway")]
    channels: Vec<String>,
    #[cfg(feature = "gateway")]
    http: Option<String>,
}

impl Builder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            join: Vec::new(),
            certs: None,
            data_dir: None,
            listen: None,
            advertise: None,
            beacons: true,
            linked: (0, Duration::ZERO),
            specializations: Vec::new(),
            metadata: Vec::new(),
            history: Vec::new(),
            #[cfg(feature = "gateway")]
            channels: Vec::new(),
            #[cfg(feature = "gateway")]
            http: None,
        }
    }

    /// A node to join at, `HOST` or `HOST:PORT`; may be repeated.
    pub fn join(mut self, seed: impl Into<String>) -> Self {
        self.join.push(seed.into());
        self
    }

    /// The certificate directory. Default: `$XPANDO_CERTS`, else `$XDG_CONFIG_HOME/xpando/certs`.
    pub fn certs(mut self, directory: impl Into<PathBuf>) -> Self {
        self.certs = Some(directory.into());
        self
    }

    /// The data directory. Default: `$XDG_DATA_HOME/xpando/NAME`.
    pub fn data_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(directory.into());
        self
    }

    /// Where to accept links, `ADDR:PORT`. Default: [`Config::listen`].
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// What address to tell others, `ADDR:PORT`. Default: the one listened on.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Whether to send and hear multicast beacons. Default: yes.
    pub fn beacons(mut self, beacons: bool) -> Self {
        self.beacons = beacons;
        self
    }

    /// Has [`Builder::start`] wait until so many other nodes are linked, at most so long. Default: it does not.
    pub fn linked(mut self, min: usize, within: Duration) -> Self {
        self.linked = (min, within);
        self
    }

    /// What this node is good for, as every node shall know: one word, such as `nlp`; may be repeated.
    pub fn specialization(mut self, word: impl Into<String>) -> Self {
        self.specializations.push(word.into());
        self
    }

    /// What else every node shall know of it; may be repeated, with another key. At most 4 KiB in all.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// How much of which topics is kept for clients, `PATTERN=COUNT,AGE[,disk]` such as `room:*=10000,7d,disk`; may be
    /// repeated. Of the patterns that cover a topic the most specific one counts, of equal ones the last.
    pub fn history(mut self, retention: impl Into<String>) -> Self {
        self.history.push(retention.into());
        self
    }

    /// What serves clients on which topics without a [`Channel`](crate::Channel) of the service, `PATTERN=FAMILY`, such as
    /// `realtime:*=room` (or `network`, `node`, `off`), beside `room:*=room`, `network:*=network` and `node:*=node`; may
    /// be repeated. Has no effect without [`Builder::http`].
    #[cfg(feature = "gateway")]
    pub fn channels(mut self, rule: impl Into<String>) -> Self {
        self.channels.push(rule.into());
        self
    }

    /// Where clients reach it over HTTP, `ADDR:PORT`: those with tokens, in the clear on loopback, elsewhere with the
    /// node's own certificate. Default: they do not. [`Config::http`] has the rest.
    #[cfg(feature = "gateway")]
    pub fn http(mut self, address: impl Into<String>) -> Self {
        self.http = Some(address.into());
        self
    }

    /// The configuration, for what the builder has no word for; [`Node::start`] takes it.
    ///
    /// # Errors
    /// [`StartError::Name`], [`StartError::Join`], [`StartError::Address`], [`StartError::Profile`],
    /// [`StartError::History`], [`StartError::Channels`] or [`StartError::Place`].
    pub fn config(self) -> Result<Config, StartError> {
        let name: NodeName = self.name.parse()?;
        let address = |text: String| {
            text.parse::<SocketAddr>().map_err(|_neither_v4_nor_v6| StartError::Address(text))
        };
        let join = self.join.iter().map(|seed| seed.parse());
        let join = join.collect::<Result<_, _>>()?;
        let certs = self.certs.map_or_else(places::certs, Ok)?;
        let data_dir = self.data_dir.map_or_else(|| places::data_dir(&name), Ok)?;
        #[cfg(feature = "gateway")]
        let http = self.http.map(address).transpose()?;
        #[cfg(feature = "gateway")]
        let channels = self.channels.iter().map(|rule| rule.parse());
        #[cfg(feature = "gateway")]
        let channels = channels.collect::<Result<Vec<_>, _>>()?;
        let words = self.specializations.iter().map(|word| word.parse());
        let words = words.collect::<Result<Vec<_>, _>>()?;
        let pairs = self.metadata.into_iter().map(|(key, value)| Pair::new(key, value));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let history = self.history.iter().map(|text| text.parse());
        let history = Retentions::new(history.collect::<Result<_, _>>()?)?;
        Ok(Config {
            history,
            #[cfg(feature = "gateway")]
            http: http.map(|listen| http::Config {
                listen: Some(listen),
                channels,
                ..http::Config::default()
            }),
            listen: self.listen.map(address).transpose()?,
            advertise: self.advertise.map(address).transpose()?,
            join,
            beacons: self.beacons,
            profile: Profile::new(words, pairs, 0)?,
            ..Config::new(name, certs, data_dir)
        })
    }

    /// Starts the node.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(self) -> Result<Node, StartError> {
        let (min, within) = self.linked;
        let node = Node::start(self.config()?).await?;
        match node.linked(min, within).await {
            Ok(()) => Ok(node),
            Err(too_few) => {
                node.shutdown().await;
                Err(too_few.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(name: &str) -> Builder {
        Node::builder(name).certs("c").data_dir("d")
    }

    #[test]
    fn what_is_said_becomes_the_configuration() {
        let config = builder("a@127.0.0.1")
            .join("127.0.0.1:4697")
            .join("db.example:1")
            .listen("127.0.0.1:0")
            .advertise("[::1]:7")
            .beacons(false)
            .specialization("nlp")
            .meta("zone", "eu")
            .http("127.0.0.1:4001")
            .channels("realtime:*=room")
            .config()
            .expect("sound");
        assert_eq!(config.name.as_str(), "a@127.0.0.1");
        let join: Vec<_> = config.join.iter().map(ToString::to_string).collect();
        assert_eq!(join, ["127.0.0.1:4697", "db.example:1"]);
        assert_eq!(config.listen, "127.0.0.1:0".parse().ok());
        assert_eq!(config.advertise, "[::1]:7".parse().ok());
        assert_eq!((config.certs, config.data_dir), ("c".into(), "d".into()));
        let words: Vec<_> = config.profile.specializations().iter().map(|it| it.as_str()).collect();
        assert_eq!((words, config.profile.metadata()["zone"].as_str()), (vec!["nlp"], "eu"));
        let http = config.http.expect("clients");
        assert_eq!(http.listen, "127.0.0.1:4001".parse().ok());
        assert!(
            !http.plain && http.anonymous.is_empty(),
            "clients show tokens, and elsewhere there is TLS"
        );
        let rules: Vec<_> = http.channels.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["realtime:*=room"]);
        let silent = builder("a@h").config().expect("sound");
        assert!(!config.beacons && silent.beacons && silent.http.is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = [
            (builder("nobody"), "node name \"nobody\" has no '@'"),
            (builder("a@h").join("h:0"), "cannot join: \"h:0\" is not HOST or HOST:PORT"),
            (builder("a@h").listen("h:1"), "\"h:1\" is not ADDR:PORT"),
            (builder("a@h").advertise(""), "\"\" is not ADDR:PORT"),
            (builder("a@h").http("4000"), "\"4000\" is not ADDR:PORT"),
            (builder("a@h").channels("x:*=lobby"), "\"lobby\" is no family: room, network, node"),
            (builder("a@h").specialization("n l p"), "\"n l p\" is not a specialization"),
            (builder("a@h").meta("k", "a\nb"), "the value of \"k\" has a control character"),
            (builder("a@h").meta("k", "a").meta("k", "b"), "the key \"k\" is given twice"),
            (builder("a@h").meta("k", "x".repeat(4096)), "4097 bytes of metadata"),
            (builder("a@h").history("room:*=0,1d"), "history \"room:*=0,1d\": the count is 1 to"),
        ];
        for (builder, says) in wrong {
            let error = builder.config().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
