// SPDX-License-Identifier: GPL-2.0

//! The functions of the work items. They are the only place where a link finds its session.

use crate::{
    device::Device,
    link::{Link, Report, Sent},
    session::Session, //
};
use kernel::{
    net::ready::ReadReady,
    sync::{Arc, ArcBorrow},
    workqueue::WorkItem, //
};

/// Returns the session of a link. If there is none, its end has done everything but [`give_up`].
fn session_of(link: &Link) -> Option<Arc<Session>> {
    link.disk().data().session()
}

/// Stops sending on a link, and has its socket shut down.
fn give_up(link: &Arc<Link>) {
    drop(link.close());
    link.shut_down();
}

impl WorkItem<0> for Link {
    type Pointer = Arc<Self>;

    /// Receives what the socket has.
    fn run(this: Arc<Self>) {
        let error = this.receive(|report| {
            let session = session_of(&this);
            if let Report::Refused(claim) = report {
                if let Some(session) = &session {
                    session.start_drain(&this);
                }
                // The link was taken out before this, so that the request does not return to it.
                claim.requeue();
            }
            if let Some(session) = session {
                session.request_finished(&this);
            }
        });
        let Some(error) = error else {
            return;
        };
        match session_of(&this) {
            Some(session) => session.link_failed(&this, error),
            None => give_up(&this),
        }
    }
}

impl ReadReady for Link {
    fn read_ready(this: ArcBorrow<'_, Self>) {
        Arc::from(this).receive_later();
    }
}

impl WorkItem<1> for Link {
    type Pointer = Arc<Self>;

    /// Continues a send for which the socket had no room.
    fn run(this: Arc<Self>) {
        match this.run_deferred() {
            Ok(Sent::Requests) => {}
            Ok(Sent::Disconnect) => {
                if let Some(session) = session_of(&this) {
                    session.wake_all();
                }
            }
            Err(broken) => match session_of(&this) {
                Some(session) => session.send_failed(&this, broken),
                None => give_up(&this),
            },
        }
    }
}

impl WorkItem<2> for Link {
    type Pointer = Arc<Self>;

    /// Shuts the socket down.
    fn run(this: Arc<Self>) {
        this.finish();
    }
}

impl WorkItem<3> for Link {
    type Pointer = Arc<Self>;

    /// Restores the settings that the socket had before.
    fn run(this: Arc<Self>) {
        this.socket().give_back();
    }
}

impl WorkItem<0> for Session {
    type Pointer = Arc<Self>;

    /// Ends the session.
    fn run(this: Arc<Self>) {
        this.run_end(&*this.disk().data());
    }
}

impl WorkItem<1> for Session {
    type Pointer = Arc<Self>;

    /// Handles the time limits of the session until there are none.
    fn run(this: Arc<Self>) {
        this.run_clock();
    }
}

impl WorkItem<2> for Session {
    type Pointer = Arc<Self>;

    /// Sends one `NBD_CMD_LINK_DEAD` message for each link error.
    fn run(this: Arc<Self>) {
        for _ in 0..this.take_link_dead() {
            crate::netlink::notify_link_dead(this.info().index());
        }
    }
}

impl WorkItem<3> for Session {
    type Pointer = Arc<Self>;

    /// Waits until the task that has left `NBD_DO_IT` comes back or exits.
    fn run(this: Arc<Self>) {
        this.watch_do_it_exit();
    }
}

impl WorkItem<0> for Device {
    type Pointer = Arc<Self>;

    /// Removes the device.
    fn run(this: Arc<Self>) {
        this.remove();
    }
}

impl WorkItem<1> for Device {
    type Pointer = Arc<Self>;

    /// Drops the last reference to the device.
    fn run(this: Arc<Self>) {
        drop(this);
    }
}
