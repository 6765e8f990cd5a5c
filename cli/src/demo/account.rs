//! The output for a person: lines with the time in front, and a progress bar while the demo waits, if there is a
//! terminal.

use std::{
    fmt::Arguments,
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Deadline, LOOK};
use crate::{Failure, output::say};

/// The account of one run.
pub(super) struct Account {
    began: Instant,
}

impl Account {
    /// The clock starts.
    pub(super) fn begin() -> Account {
        Account { began: Instant::now() }
    }

    /// One line of the story.
    pub(super) fn line(&self, text: Arguments<'_>) {
        say!("[{:>5.1} s] {text}", self.began.elapsed().as_secs_f64());
    }

    /// Follows a number until it reaches a goal or the time is up, with a bar if there is a terminal. Returns the last
    /// number: a caller that needs the goal must compare.
    pub(super) fn follow(
        &self,
        what: &'static str,
        total: u64,
        time: Duration,
        deadline: &Deadline,
        goal: u64,
        mut now: impl FnMut() -> Result<u64, Failure>,
    ) -> Result<u64, Failure> {
        let bar = bar(total, "{pos}/{len} {msg}");
        bar.set_message(what);
        let until = Instant::now() + time;
        let followed = loop {
            if let Err(e) = deadline.check(what) {
                break Err(e);
            }
            match now() {
                Ok(position) => {
                    bar.set_position(position);
                    if position >= goal || Instant::now() > until {
                        break Ok(position);
                    }
                }
                Err(e) => break Err(e),
            }
            thread::sleep(LOOK);
        };
        bar.finish_and_clear();
        followed
    }

    /// A bar for bytes, whose number may come late.
    pub(super) fn bytes(&self) -> ProgressBar {
        bar(0, "{bytes}/{total_bytes}, {msg}/s")
    }
}

/// Draws nothing when standard error is no terminal.
fn bar(total: u64, tail: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(&format!("          {{bar:40}} {tail}")).expect("a valid template");
    bar.with_style(style)
}
