//! Where log entries live.
//!
//! [`store`] is the seam. Behind it stand [`sled`] (the default: a directory on a real disk) and [`memory`] (for tests,
//! with crashes on demand), and `simulated` (the feature `testkit`: a disk with faults, in virtual time); `faulty` (the
//! feature `faults`) decorates sled's engine with faults; [`conformance`] is what any other must pass. Over an
//! [`engine`], sled's or a simulated one, stand the same plans, the same order of steps and the same checks at opening.
//! [`record`], [`watermark`] and [`directory`] are what lies on the disk, each with its own checks, [`space`] asks that
//! disk how it is, [`reserve`] keeps room on it for making room, and [`inspect`] reads a stopped node's directory
//! without touching it, [`compact`] makes it smaller.

pub mod store;

pub mod memory;
pub mod sled;
#[cfg(any(test, feature = "testkit"))]
pub mod simulated;
mod worker;
mod commit;
mod plan;
mod recovery;
mod rewrite;
#[cfg(any(test, feature = "faults"))]
pub mod faulty;
pub mod compact;
pub mod engine;
pub mod record;
pub mod watermark;
pub mod directory;
pub(crate) mod lives;
pub mod space;
mod presence;
pub mod reserve;
pub mod conformance;
pub mod inspect;
