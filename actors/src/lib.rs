//! The actors under the front door: what decides, what writes, what applies.
//!
//! Read in this order: [`machine`] is the contract with the application, [`entry`] what a log entry says,
//! [`consensus`] the pure core that decides, [`log`] where entries live; then the thin actors around them.
//!
//! Deliberately absent: sockets (see `actorum-transport`) and the public API (see `actorum`).

pub mod log;
