//! What the two simulated disks have in common: that of the log ([`crate::log::simulated`]), and that of the files of
//! snapshots ([`crate::snapshot::simulated`]).
//!
//! ```text
//!  a step ─▶ Decide ─▶ Go ───────▶ it happens, if the volume has the room
//!                   ├─ Fail ─────▶ the error of the system
//!                   └─ CutPower ─▶ this life of the disk is over; what was not durable is lost as Loss says
//! ```
//!
//! A *life* of a disk lasts from one opening to the next loss of power, kill or opening: handles of an earlier one do
//! nothing.
//!
//! Deliberately absent: the steps themselves, which are not the same, and what each disk counts.

use std::{io, time::Duration};

mod volume;

pub use volume::{SimulatedVolume, VolumeCounters};

/// Whether a step happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It does.
    Go,
    /// It fails, with these words of the system. A store of a log is dead then.
    Fail(io::ErrorKind, String),
    /// It does not, nor does any later one: the power is gone. [`Decide::power_is_gone`] follows.
    CutPower,
}

/// How long a batch of a log takes to become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// So long. Zero completes on the caller's stack; anything else needs a runtime and a `LocalSet`, as an actix
    /// system has.
    After(Duration),
    /// Until the disk is [released](crate::log::simulated::SimulatedDisk::release).
    Hang,
}

/// Who decides what a disk with steps of the kind `S` does. `()` lets everything happen at once.
///
/// [`Decide::step`] and [`Decide::latency`] are asked in the middle of the work: they may look at the disk, and not
/// change it.
pub trait Decide<S>: Send + Sync {
    /// Asked before each step.
    fn step(&self, _step: S) -> Decision {
        Decision::Go
    }

    /// Asked for each commit of a log of so many bytes, once it is with the kernel. Files have no latency.
    fn latency(&self, _bytes: u64) -> Latency {
        Latency::After(Duration::ZERO)
    }

    /// The power went, as decided; what of it is lost is for the `crash` of the disk to say. Called outside all locks.
    fn power_is_gone(&self) {}
}

impl<S> Decide<S> for () {}

/// Which of the changes that were made and not synced a power cut takes: batches of a log; names of files, and bytes in
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All.
    All,
    /// All after one of them.
    Prefix,
    /// Any.
    Subset,
    /// Nothing is lost, but a value of the last batch is cut short, or a file contains bytes that were never written.
    /// sled never tears a batch, so a store must refuse this with a specific error.
    Torn,
}

impl Loss {
    /// Whether the `nth` of `count` changes survives, with `rng` where there is a choice.
    pub(crate) fn spares(self, nth: usize, count: usize, rng: u64) -> bool {
        match self {
            Loss::All => false,
            Loss::Prefix => nth < mix(rng) as usize % (count + 1),
            Loss::Subset => mix(rng.wrapping_add(nth as u64)) & 1 == 0,
            Loss::Torn => true,
        }
    }
}

/// How a disk fails that neither hangs nor loses power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// A write or a sync fails.
    Error,
    /// There is no room.
    Full,
}

impl DiskFault {
    /// The step that meets it fails so.
    pub fn decision(self) -> Decision {
        let error = match self {
            DiskFault::Error => io::Error::other("the simulated disk fails"),
            DiskFault::Full => io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"),
        };
        Decision::Fail(error.kind(), error.to_string())
    }
}

/// Why a step did not happen.
pub(crate) enum StepError {
    /// It failed.
    Failed(io::Error),
    /// The power went just now, in the place of this step.
    PowerCut,
    /// The life of the disk that asked was over before.
    LifeOver,
}

impl From<StepError> for io::Error {
    fn from(error: StepError) -> io::Error {
        match error {
            StepError::Failed(error) => error,
            StepError::PowerCut | StepError::LifeOver => io::Error::other("the power is gone"),
        }
    }
}

/// splitmix64's mixing: several choices out of one random number.
pub(crate) fn mix(rng: u64) -> u64 {
    let mut mixed = rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
