//! The table of events: the label, how long it stays, the level, the node that it is about and the text of each.
//!
//! The log, the command line, the dashboard and the API take their words from here.

use std::fmt;

use super::{Author, Broken, Event, Level, OtherEvent, Reason, Revocable};
use crate::proto::node::NodeName;

/// How long events of a type stay.
enum Class {
    /// What this node and its operators did: it outlasts the rest.
    Lasting,
    /// As long as there is room.
    Passing,
}

macro_rules! table {
    ($($event:ident { $($field:ident),* } $label:literal $class:ident $level:expr, $about:expr, $text:literal $(, $value:expr)*;)*) => {
        impl Event {
            /// The types of events, as the API spells them.
            pub const LABELS: [&str; [$($label),*].len()] = [$($label),*];

            /// The type that is spelt like this, if this program has it.
            pub fn known_label(label: &str) -> Option<&'static str> {
                Self::LABELS.into_iter().find(|known| *known == label)
            }

            /// How they are called in this program.
            #[cfg(test)]
            pub(super) const VARIANTS: [&str; Self::LABELS.len()] = [$(stringify!($event)),*];

            /// The type, as the API spells it.
            pub fn label(&self) -> &str {
                match self {
                    $(Self::$event { .. } => $label,)*
                    Self::Other(other) => &other.event,
                }
            }

            /// How much it matters to an operator.
            #[expect(unused_variables, reason = "few levels depend on a field")]
            pub fn level(&self) -> Level {
                use Level::{Debug, Error, Info, Warn};
                match self {
                    $(Self::$event { $($field,)* .. } => $level,)*
                    Self::Other(_) => Info,
                }
            }

            /// Whether events of this type outlast the others in a trail that is shortened for its size. What a peer can cause
            /// as often as it likes never does.
            pub fn is_lasting(label: &str) -> bool {
                use Class::{Lasting, Passing};
                let class = match label {
                    $($label => $class,)*
                    _ => Passing,
                };
                matches!(class, Lasting)
            }

            /// The node that it is about, when there is one; of a link that of its two ends which sees the other.
            #[expect(unused_variables, reason = "a row names the fields of all its columns")]
            pub fn about(&self) -> Option<&NodeName> {
                match self {
                    $(Self::$event { $($field,)* .. } => $about,)*
                    Self::Other(_) => None,
                }
            }
        }

        /// What happened, for people. Texts of other nodes and of the system stand in it as they came.
        impl fmt::Display for Event {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$event { $($field,)* .. } => write!(f, $text $(, $value)*),)*
                    Self::Other(OtherEvent { event, rest }) => {
                        write!(f, "{event} {}", serde_json::to_string(rest).unwrap_or_default())
                    }
                }
            }
        }
    };
}

table! {
    PeerDiscovered { peer, address, source } "peer_discovered" Passing Debug, Some(peer),
        "{peer} discovered at {address} ({})", source.label();
    PeerConnecting { peer } "peer_connecting" Passing Info, Some(peer), "{peer} connecting";
    PeerSyncing { peer, incarnation, address } "peer_syncing" Passing Debug, Some(peer),
        "{peer} syncing at {address}, incarnation {incarnation}";
    PeerOnline { peer, incarnation, address } "peer_online" Passing Info, Some(peer),
        "{peer} online at {address}, incarnation {incarnation}";
    PeerOffline { peer, reason } "peer_offline" Passing Info, Some(peer), "{peer} offline ({})", reason.label();
    PeerForgotten { peer, author } "peer_forgotten" Passing Info, Some(peer), "{peer} forgotten{}", By(author.as_ref());
    PeerRestored { peer, author } "peer_restored" Passing Info, Some(peer), "{peer} known again{}", By(author.as_ref());
    PeerSuspected { peer, phi, missed } "peer_suspected" Passing Warn, Some(peer),
        "{peer} suspect: missed {missed} beats (phi {phi:.1})";
    PeerCleared { peer } "peer_cleared" Passing Info, Some(peer), "{peer} heard again";
    PeerSilent { peer, phi, missed, heard_by, confirmed_by, broken } "peer_silent" Passing Warn, Some(peer),
        "{peer} given up after {missed} missed beats (phi {phi:.1}){}{}{}",
        Names("; still heard by ", heard_by), Names("; not heard either by ", confirmed_by), cut(*broken);
    Paused { millis } "paused" Passing Warn, None,
        "this node was paused for {:.1} s; its timeouts are longer for a while", *millis as f64 / 1e3;
    LinkReplaced { peer, incarnation } "link_replaced" Passing Info, Some(peer),
        "{peer} link replaced by a newer one, incarnation {incarnation}";
    LinkLost { peer, cause } "link_lost" Passing Info, Some(peer), "{peer} link lost: {cause}";
    LinkChanged { from, to, state, suspect, reason } "link_changed" Passing Debug, Some(from),
        "{from} sees {to} {}{}", state.label(), Because(reason.map(Reason::label).or(suspect.then_some("suspect")));
    LinksChanged { from, links } "links_changed" Passing Debug, Some(from), "{from} links changed: {links}";
    LinkRefused { peer, refusal } "link_refused" Passing Warn, Some(peer), "{peer} link refused: {refusal}";
    // That another process has this node's name is an event of its own.
    RefusedBy { peer, refusal } "refused_by" Passing if refusal.is_of_namesake() { Debug } else { Warn }, Some(peer),
        "refused by {peer}: {refusal}";
    CertificateRefused { peer } "certificate_refused" Passing Warn, Some(peer),
        "refused by {peer}: this node's certificate is revoked. Issue a new one and restart this node";
    DialFailed { peer, address, cause } "dial_failed" Passing if peer.is_some() { Info } else { Warn }, peer.as_ref(),
        "{} at {address}: {cause}; will try again", Dialed(peer.as_ref());
    SeedIsMyself { address } "seed_is_myself" Passing Warn, None, "to join at {address} is ignored: it is this node itself";
    NameInUse { address } "name_in_use" Passing Warn, None,
        "another process uses this node's name at {address}: peers link with one of the two only. \
         Stop one, or give it another name";
    IncarnationRaised { to } "incarnation_raised" Passing Warn, None,
        "this node goes on as incarnation {to}: peers know a later incarnation than its data directory does";
    NodeStarted { version } "node_started" Lasting Info, None, "this node starts, version {version}";
    NodeStopping {} "node_stopping" Lasting Info, None, "this node says goodbye and stops";
    ActorEnded { actor, why, restarted } "actor_ended" Passing if *restarted { Warn } else { Error }, None,
        "actor {actor} ended {}: {why}",
        if *restarted { "and is restarted" } else { "too often, and its supervisor gives up" };
    IdentityLoaded { id, cluster, development } "identity_loaded" Lasting Info, None,
        "identity {id} of {}cluster {cluster}", if *development { "development " } else { "" };
    Equivocation { peer, key, table, incarnation, version } "equivocation" Lasting Warn, Some(peer),
        "{peer} (key {key}) sealed two different rows of the {table} as version {version} of incarnation {incarnation}: what \
         that key states is taken no more. Revoke its certificate, and issue it a new key";
    CertificateRenewed { purpose, until } "certificate_renewed" Lasting Info, None,
        "{} was renewed: the new one is in force{}",
        if purpose == "http" { "the certificate for clients" } else { "this node's certificate" }, Until(until.as_deref());
    CertificateIssued { peer, key, until, by } "certificate_issued" Lasting Info, Some(peer),
        "a certificate was issued to {peer}, key {key}, until {until}, by {by}";
    CertificateRequested { peer, key, request } "certificate_requested" Passing Warn, Some(peer),
        "{peer}, key {key}, asks for a certificate: `xpando-node requests approve {request}`, or deny";
    // Events about a node are limited in number, and peers do not cause this one: it is about none.
    OperatorActed { deed, operator, via } "operator_acted" Lasting Info, None, "{operator} ({via}) {deed}";
    CertificatesRevoked { certificates, own } "certificates_revoked" Lasting if *own { Warn } else { Info }, None,
        "a new list of revoked certificates is in force, {certificates} in all{}",
        if *own { ": this node's certificate is revoked. Issue a new one and restart this node" } else { "" };
    TrustChanged { authorities } "trust_changed" Lasting Info, None,
        "a new list of trusted authorities is in force, {authorities} in all";
    TokensRevoked { tokens } "tokens_revoked" Lasting Info, None,
        "a new list of revoked tokens is in force, {tokens} in all";
    RevocationsRefused { list, why } "revocations_refused" Passing Warn, None,
        "list of {} refused, the one before stays in force: {why}",
        match list {
            Revocable::Certificates => "revoked certificates",
            Revocable::Tokens => "revoked tokens",
            Revocable::Trust => "trusted authorities",
        };
    StoreSetAside { path } "store_set_aside" Lasting Error, None,
        "the store was damaged and begins anew; it is kept as {path}";
    StoreFailing { why } "store_failing" Passing Error, None, "nothing is remembered, and that is tried again: {why}";
    StoreRecovered {} "store_recovered" Passing Info, None, "the store can be written again";
    HistorySetAside { path } "history_set_aside" Lasting Error, None,
        "the topics' history was damaged and begins anew; it is kept as {path}";
    HistoryFailing { why } "history_failing" Passing Error, None,
        "the topics' history is kept in memory alone, and writing it is tried again: {why}";
    HistoryRecovered {} "history_recovered" Passing Info, None, "the topics' history can be written again";
    EventsLost { count } "events_lost" Lasting Error, None,
        "{count} events before this one are in no trail: the store could not be written";
    EventsMissed { count } "events_missed" Passing Warn, None, "{count} events came faster than they were read";
    EventsOmitted { count, kind, peer } "events_omitted" Passing Warn, None, "{count} more events {kind}{} within a short time",
        About(peer.as_ref());
}

/// Names after these words; nothing without names.
struct Names<'a>(&'static str, &'a [NodeName]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(words, names) = self;
        let before = std::iter::once(words).chain(std::iter::repeat(&", "));
        names.iter().zip(before).try_for_each(|(name, before)| write!(f, "{before}{name}"))
    }
}

/// The author of it.
struct By<'a>(Option<&'a Author>);

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |author| write!(f, ", {author}"))
    }
}

/// A point in time.
struct Until<'a>(Option<&'a str>);

impl fmt::Display for Until<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |until| write!(f, ", until {until}"))
    }
}

/// A reason in parentheses.
struct Because(Option<&'static str>);

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

/// The node that events are about.
struct About<'a>(Option<&'a NodeName>);

impl fmt::Display for About<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |peer| write!(f, " about {peer}"))
    }
}

/// Who does not answer.
struct Dialed<'a>(Option<&'a NodeName>);

impl fmt::Display for Dialed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => write!(f, "{peer} cannot be dialed"),
            None => f.write_str("no node answers"),
        }
    }
}

fn cut(broken: Option<Broken>) -> &'static str {
    match broken {
        None => "",
        Some(Broken::WayThere) => "; the way there is cut",
        Some(Broken::WayBack) => "; the way back is cut",
        Some(Broken::Process) => "; its machine answers, the process does not",
    }
}
