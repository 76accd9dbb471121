// SPDX-License-Identifier: GPL-2.0

//! Lines on the standard error, for people and for systemd's journal.

use crate::process::is_ready;
use rustix::event::PollFlags;
use rustix::fs::{fstat, FileType};
use std::fmt::Arguments;
use std::io::{IsTerminal, Stderr, Write};

/// Writes a line, unless that would have to wait: who reads the lines may wait for the device that
/// this process is about to connect again.
fn line(priority: u8, text: Arguments<'_>) {
    let stderr = std::io::stderr();
    if would_wait(&stderr) {
        return;
    }
    // The journal takes the priority from the line, see sd-daemon(3).
    let line = if std::env::var_os("JOURNAL_STREAM").is_some() {
        format!("<{priority}>{text}\n")
    } else {
        format!("nbdctl: {text}\n")
    };
    // There is nowhere to report that nothing can be reported.
    let _ = stderr.lock().write_all(line.as_bytes());
}

/// Files take what is written without waiting for a reader; so does the kernel log, which cannot be
/// polled for that.
fn would_wait(stderr: &Stderr) -> bool {
    let has_reader = stderr.is_terminal()
        || fstat(stderr).is_ok_and(|s| {
            matches!(
                FileType::from_raw_mode(s.st_mode),
                FileType::Fifo | FileType::Socket
            )
        });
    has_reader && !is_ready(stderr, PollFlags::OUT)
}

pub fn error(text: Arguments<'_>) {
    line(3, text);
}

pub fn warn(text: Arguments<'_>) {
    line(4, text);
}

pub fn info(text: Arguments<'_>) {
    line(6, text);
}
