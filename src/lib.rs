//! The library of `xpando-node`: everything but the command line.
//!
#![doc = include_str!("../README.md")]

pub mod proto;

pub mod io;

pub mod actors;

pub mod gateway;

pub mod node;

// What a service that embeds a node names, at the root.
pub use node::{
    Admission, Builder, Bytes, CallError, Claims, Client, Config, DeliveryReport, Doing, Door,
    DoorError, Event, Events, Handler, Json, Known, Majority, Message, Node, NodeName, Payload,
    Publisher, Push, QUIET, Reaction, Reason, Received, Reply, Request, Role, Row, SendError,
    ServeError, Serving, StartError, Status, Subscription, Topic, View, Watch, testkit,
};
