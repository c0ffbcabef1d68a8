//! The library of `xpando-node`: everything but the command line.
//!
#![doc = include_str!("../README.md")]

pub mod proto;

pub mod io;

pub mod actors;

pub mod gateway;

pub mod node;
