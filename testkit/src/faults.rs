//! The faults of a simulation: their kinds, each with a weight, and how often one begins.

use std::time::Duration;

/// The kinds of faults and their weights: a kind of weight 4 is chosen twice as often as one of weight 2; 0 never.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// Virtual time from the beginning of one fault to that of the next, on average.
    pub every: Duration,
    /// One direction of a link loses up to 30 % of its messages, for a while.
    pub loss: u32,
    /// Up to 10 % of the Raft messages of a direction arrive twice, for a while.
    pub duplication: u32,
    /// A link takes up to half a second, and another time for each parcel: lanes and streams overtake each other.
    pub delay: u32,
    /// Everything to and from one node is slow, for a while.
    pub slow_peer: u32,
    /// Nothing passes in one direction of one link.
    pub one_way_cut: u32,
    /// The nodes are split into two halves, or one node is alone.
    pub partition: u32,
    /// A connection breaks: what is under way is lost, both ways.
    pub reset: u32,
    /// The power of one node is cut, sometimes of all. Of the unsynced writes a suffix, a subset, or all are lost. It
    /// may happen at a message or at any step of a write.
    pub power_cut: u32,
    /// A process is killed.
    pub kill: u32,
    /// A process stands still for a while and goes on; its clock went on meanwhile.
    pub pause: u32,
    /// The calendar of a node jumps, in either direction.
    pub clock_jump: u32,
    /// The calendar of one node is wrong by a year, in either direction, for a while. Never of two at a time.
    pub wrong_year: u32,
    /// A disk takes up to 200 ms for a sync, for a while.
    pub slow_disk: u32,
    /// A disk does not answer at all, for a while.
    pub hung_disk: u32,
    /// A write or a sync fails: the node stops.
    pub disk_error: u32,
    /// The disk is full: the node stops, and comes back when there is room.
    pub full_disk: u32,
    /// Hardly any room is left on a disk, for a while. If its node leads, it transfers leadership and answers
    /// `LowSpace`.
    pub low_space: u32,
    /// Other programs fill the volume of one node, to the last byte or nearly, and make room again. Only if volumes
    /// have a size.
    pub filled_volume: u32,
    /// A bit flips on the disk of a node that is down. The directory is then intact, or refused with a specific error.
    pub flipped_bit: u32,
    /// The last write of a disk is torn when the power is cut. The directory is then intact, or refused with a specific
    /// error.
    pub torn_write: u32,
    /// A store is swapped for an older copy, but its watermark is not. It is refused with a specific error.
    pub old_copy: u32,
    /// A whole directory is put back from a copy made before the last opening, or while its node ran: refused by every
    /// peer that met what came later.
    pub rolled_back: u32,
    /// A copy of a node's directory runs beside the node: the copy is refused by every peer that met what came later,
    /// and ends with a specific error; the node goes on.
    pub twin: u32,
    /// A directory is swapped for another node's: refused with a specific error.
    pub swapped_directory: u32,
    /// A disk is wiped and its node started under the old id: refused by its peers, and without a vote.
    pub wiped_disk: u32,
    /// A node is away for so long that it may need a snapshot when it comes back.
    pub absence: u32,
    /// A write of a snapshot's file fails, or the disk is full there: that snapshot is not built, or not received; the
    /// node goes on.
    pub snapshot_error: u32,
    /// A bit flips in a snapshot's file, under a node that goes on for a while: a node that fetches the file refuses
    /// it, and the node itself starts from the older one, or is refused with a specific error.
    pub rotten_snapshot: u32,
    /// The state machine fails or panics while its state is captured: that snapshot is not built. Or it fails while it
    /// restores a snapshot: that node stops, and restores again when it starts.
    pub failing_snapshot: u32,
    /// The state machine of one node panics: that node stops.
    pub panic: u32,
    /// The state machine of one node answers wrongly for a while: that node notices it by its hash and stops.
    pub wrong_answers: u32,
    /// The state machine of one node takes long for one command.
    pub slow_machine: u32,
    /// Members are added, promoted, demoted and removed.
    pub membership: u32,
    /// A node asks for votes without a reason.
    pub campaign: u32,
    /// A subscriber reads slowly or not at all.
    pub subscription: u32,
    /// A node is asked for a snapshot.
    pub take_snapshot: u32,
    /// A node is shut down in order, and comes back.
    pub shutdown: u32,
    /// A node starts with the program before its own: it goes on with it, or stops with the error that says to upgrade
    /// if the cluster uses what that program lacks. Then it has the newer one again.
    pub put_back: u32,
}

impl Faults {
    /// No faults at all: begin with this to choose your own faults.
    ///
    /// ```
    /// # use actorum_testkit::Faults;
    /// let mut faults = Faults::none();
    /// faults.partition = 2;
    /// faults.power_cut = 1;
    /// ```
    pub fn none() -> Faults {
        Faults {
            every: Duration::from_millis(500),
            loss: 0,
            duplication: 0,
            delay: 0,
            slow_peer: 0,
            one_way_cut: 0,
            partition: 0,
            reset: 0,
            power_cut: 0,
            kill: 0,
            pause: 0,
            clock_jump: 0,
            wrong_year: 0,
            slow_disk: 0,
            hung_disk: 0,
            disk_error: 0,
            full_disk: 0,
            low_space: 0,
            filled_volume: 0,
            flipped_bit: 0,
            torn_write: 0,
            old_copy: 0,
            rolled_back: 0,
            twin: 0,
            swapped_directory: 0,
            wiped_disk: 0,
            absence: 0,
            snapshot_error: 0,
            rotten_snapshot: 0,
            failing_snapshot: 0,
            panic: 0,
            wrong_answers: 0,
            slow_machine: 0,
            membership: 0,
            campaign: 0,
            subscription: 0,
            take_snapshot: 0,
            shutdown: 0,
            put_back: 0,
        }
    }

    /// The faults of a good data centre in a bad week: connections break, nodes crash and come back, disks are slow.
    pub fn gentle() -> Faults {
        Faults {
            every: Duration::from_millis(800),
            delay: 2,
            reset: 3,
            partition: 1,
            kill: 2,
            power_cut: 2,
            pause: 1,
            slow_disk: 2,
            absence: 1,
            take_snapshot: 1,
            campaign: 1,
            shutdown: 1,
            ..Faults::none()
        }
    }

    /// All kinds of faults, as often as possible while the cluster can still do work.
    pub fn harsh() -> Faults {
        Faults {
            every: Duration::from_millis(450),
            loss: 6,
            duplication: 3,
            delay: 5,
            slow_peer: 2,
            one_way_cut: 6,
            partition: 8,
            reset: 6,
            power_cut: 10,
            kill: 4,
            pause: 4,
            clock_jump: 2,
            wrong_year: 3,
            slow_disk: 5,
            hung_disk: 4,
            disk_error: 2,
            full_disk: 1,
            low_space: 2,
            filled_volume: 3,
            flipped_bit: 2,
            torn_write: 2,
            old_copy: 2,
            rolled_back: 4,
            twin: 6,
            swapped_directory: 1,
            wiped_disk: 6,
            absence: 6,
            snapshot_error: 3,
            rotten_snapshot: 3,
            failing_snapshot: 2,
            panic: 1,
            wrong_answers: 2,
            slow_machine: 2,
            membership: 7,
            campaign: 3,
            subscription: 2,
            take_snapshot: 4,
            shutdown: 3,
            put_back: 5,
        }
    }
}
