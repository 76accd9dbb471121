// SPDX-License-Identifier: GPL-2.0

//! The bodies of work items, which reach from a link up to its session.

use crate::{
    device::Device,
    link::{Link, Sent, Told},
    session::Session, //
};
use kernel::{
    net::ready::ReadReady,
    sync::{Arc, ArcBorrow},
    workqueue::WorkItem, //
};

/// The session of a link. Without one, its end has seen to everything but what [`give_up`] does.
fn session_of(link: &Link) -> Option<Arc<Session>> {
    link.disk().data().session()
}

/// Sends nothing on a link any more, and shuts its socket down.
fn give_up(link: &Arc<Link>) {
    drop(link.close());
    link.shut_down();
}

impl WorkItem<0> for Link {
    type Pointer = Arc<Self>;

    /// Receives what is there.
    fn run(this: Arc<Self>) {
        let error = this.receive(|told| {
            let session = session_of(&this);
            if let Told::Refused(claim) = told {
                if let Some(session) = &session {
                    session.leave(&this);
                }
                // Not before it can go elsewhere.
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

    /// Goes on sending where a task found no room.
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

    /// Gives the socket back.
    fn run(this: Arc<Self>) {
        this.socket().give_back();
    }
}

impl WorkItem<0> for Session {
    type Pointer = Arc<Self>;

    /// Makes the end.
    fn run(this: Arc<Self>) {
        this.make_end(&*this.disk().data());
    }
}

impl WorkItem<1> for Session {
    type Pointer = Arc<Self>;

    /// Does what is due, until nothing has its time any more.
    fn run(this: Arc<Self>) {
        this.run_clock();
    }
}

impl WorkItem<2> for Session {
    type Pointer = Arc<Self>;

    /// Tells who listens which device has lost a link, once for each.
    fn run(this: Arc<Self>) {
        for _ in 0..this.take_link_dead() {
            crate::netlink::notify_link_dead(this.disk().data().info().index());
        }
    }
}

impl WorkItem<3> for Session {
    type Pointer = Arc<Self>;

    /// Waits for a task that is away to come back or to exit.
    fn run(this: Arc<Self>) {
        this.watch_absence();
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

    /// Drops the last of what a disk held.
    fn run(this: Arc<Self>) {
        drop(this);
    }
}
