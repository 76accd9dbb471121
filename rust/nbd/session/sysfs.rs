// SPDX-License-Identifier: GPL-2.0

//! The sysfs files of a disk that has a session.

use kernel::{
    block::mq::Attribute,
    fmt,
    prelude::*,
    str::BStr,
    sync::Arc,
    task, //
};

/// The file `pid`: the id of the thread that has started the session.
pub(crate) struct Pid(task::Pid);

impl Pid {
    pub(crate) fn new(pid: task::Pid) -> Self {
        Self(pid)
    }
}

impl Attribute for Pid {
    const NAME: &'static CStr = c"pid";

    fn show(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(to, "{}", self.0)
    }
}

/// The file `backend`: the backend identifier of a session that netlink has started.
pub(crate) struct Backend(Option<Arc<KVec<u8>>>);

impl Backend {
    pub(crate) fn new(name: Option<Arc<KVec<u8>>>) -> Self {
        Self(name)
    }
}

impl Attribute for Backend {
    const NAME: &'static CStr = c"backend";

    fn show(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        if let Some(backend) = &self.0 {
            match core::str::from_utf8(backend) {
                Ok(text) => to.write_str(text)?,
                Err(_) => to.write_fmt(fmt!("{}", BStr::from_bytes(backend)))?,
            }
        }
        writeln!(to)
    }
}

/// A session, as files show it that can be polled.
pub(crate) trait Shown: Send + Sync + 'static {
    /// Returns the name of the state.
    fn state(&self) -> &'static str;

    /// Returns how many connections are open, and how many there are.
    fn connections(&self) -> (u32, usize);
}

/// The file `state`.
pub(crate) struct State<T>(Arc<T>);

impl<T: Shown> State<T> {
    pub(crate) fn new(session: Arc<T>) -> Self {
        Self(session)
    }
}

impl<T: Shown> Attribute for State<T> {
    const NAME: &'static CStr = c"state";

    fn show(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(to, "{}", self.0.state())
    }
}

/// The file `connections`: how many are open, and how many there are.
pub(crate) struct Connections<T>(Arc<T>);

impl<T: Shown> Connections<T> {
    pub(crate) fn new(session: Arc<T>) -> Self {
        Self(session)
    }
}

impl<T: Shown> Attribute for Connections<T> {
    const NAME: &'static CStr = c"connections";

    fn show(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        let (open, all) = self.0.connections();
        writeln!(to, "{open} {all}")
    }
}
