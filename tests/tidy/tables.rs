//! Whom outside crates belong to, and what is ahead of its callers.

/// Outside crates have owners: only these modules, and the modules inside them, name the crate.
pub(crate) const OWNERS: &[(&str, &[&str])] = &[
    ("anyhow", &["main", "cli"]),
    ("axum", &["gateway"]),
    ("futures_util", &["gateway"]),
    ("hyper", &["gateway", "io::fetch"]),
    ("hyper_util", &["gateway", "io::fetch"]),
    ("clap", &["main", "cli"]),
    ("comfy_table", &["cli::output"]),
    ("jsonwebtoken", &["io::identity"]),
    ("mimalloc", &["main"]),
    ("opentelemetry", &["cli::logs"]),
    ("opentelemetry_appender_tracing", &["cli::logs"]),
    ("opentelemetry_otlp", &["cli::logs"]),
    ("opentelemetry_sdk", &["cli::logs"]),
    ("prometheus_client", &["io::metrics"]),
    ("prost", &["proto::gate"]), // the gate reads ractor's frames with ractor's own decoder
    ("ractor", &["actors", "node", "lib"]),
    ("ratatui", &["cli::top"]),
    ("ractor_cluster", &["actors::link"]),
    ("rcgen", &["io::identity"]),
    ("redb", &["io::store"]),
    ("rustls", &["io::tls", "io::identity", "io::fetch", "actors::link"]),
    ("socket2", &["io"]),
    ("tokio_tungstenite", &["gateway"]),
    ("rustls_native_certs", &["io::fetch"]),
    ("tokio_rustls", &["io::tls", "io::identity", "io::fetch", "actors::link"]),
    ("spake2", &["io::identity"]),
    ("x509_cert", &["io::identity", "io::tls"]),
];

/// The only outside crates `proto` may name, and what it may not take from `std`.
pub(crate) const PROTO_CRATES: &[&str] = &[
    "bytes",
    "postcard",
    "postcard_schema",
    "prost",
    "rand",
    "serde",
    "serde_json",
    "sha2",
    "strum",
    "thiserror",
];
pub(crate) const PROTO_NEVER: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process",
    "std::thread",
];

/// Public functions that nobody outside their floor calls yet: (file, name).
pub(crate) const AHEAD: &[(&str, &str)] = &[
    ("src/io/identity/enrol/issuer.rs", "invitations"),
    ("src/io/identity/enrol/issuer.rs", "guesses"),
];
