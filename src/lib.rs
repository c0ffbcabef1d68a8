//! The library of `xpando-node`: everything but the command line.
//!
#![doc = include_str!("../README.md")]

pub mod proto;

pub mod io;

pub mod actors;

pub mod gateway;

pub mod node;

// What a service that embeds a node names, at the root.
#[cfg(feature = "testkit")]
pub use node::testkit;
#[cfg(feature = "gateway")]
pub use node::{Admission, Client, Doing, Handler, Push, Reaction};
pub use node::{
    Builder, Bytes, CallError, Claims, Config, DeliveryReport, Door, DoorError, Event, Events,
    Json, Known, Majority, Message, Node, NodeName, Payload, Publisher, QUIET, Reason,
    Received, Reply, Request, Role, Row, SendError, ServeError, Serving, StartError, Status,
    Subscription, Topic, View, Watch,
};
