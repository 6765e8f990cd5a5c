//! How nodes find out that they applied different entries: the [`hash`]es that each keeps, and how they [`compare`] at
//! marks.
//!
//! Pure: the consistency checker, an actor, asks the other members and acts on what is found.

pub mod compare;
pub mod hash;
#[cfg(test)]
mod replica_tests;
