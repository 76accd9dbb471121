// SPDX-License-Identifier: GPL-2.0

//! The functions of the work items. They are the only place where a link finds its session.

use crate::{
    device::Device,
    link::{
        Link,
        Report,
        Sent, //
    },
    netlink,
    session::{
        Phase,
        Session, //
    }, //
};
use kernel::{
    net::ready::ReadReady,
    sync::{
        Arc,
        ArcBorrow, //
    },
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
                this.requeue(claim);
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
                    session.start_clock();
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

    /// Sends one message for each link error and for each new link, wakes the tasks that poll the
    /// files in sysfs, and sends a uevent.
    fn run(this: Arc<Self>) {
        let index = this.info().index();
        let dead = this.take_link_dead();
        for _ in 0..dead {
            netlink::notify_link_dead(index);
        }
        let mut up = 0;
        for connection in this.connections() {
            let count = connection.take_link_up();
            for _ in 0..count {
                netlink::notify_link_up(index, connection.index());
            }
            up += count;
        }
        this.notify_files();
        // A uevent has udev read from the device, which must therefore answer.
        if this.phase() == Phase::Live && (dead > 0 || up > 0) {
            this.disk().notify_change_with(match up {
                0 => c"NBD_EVENT=link-dead",
                _ => c"NBD_EVENT=link-up",
            });
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

impl WorkItem<4> for Session {
    type Pointer = Arc<Self>;

    /// Sends the last messages of a session that has ended.
    fn run(this: Arc<Self>) {
        let index = this.info().index();
        for _ in 0..this.take_link_dead() {
            netlink::notify_link_dead(index);
        }
        if let Some(reason) = this.end_reason() {
            netlink::notify_session_end(index, reason);
        }
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
