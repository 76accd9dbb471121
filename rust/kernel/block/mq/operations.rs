// SPDX-License-Identifier: GPL-2.0

//! The callbacks of blk-mq.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    gen_disk::{DiskOperations, GenDisk},
    request::{OwnedRequest, Pdu, Request}, //
};
use crate::{bindings, ffi, macros::vtable, sync::ArcBorrow, time::Jiffies, transmute::AsBytes};
use core::{marker::PhantomData, ptr::NonNull};

/// What blk-mq does about a request after [`Operations::timeout`].
pub enum TimeoutAction {
    /// Nothing: the driver has seen to it that the request finishes or is requeued.
    Done,
    /// Wait for another timeout.
    Rearm,
    /// Wait for so many jiffies, or longer: up to a second, and with other requests in flight up to
    /// the queue's timeout.
    RearmFor(Jiffies),
}

/// A driver for requests.
#[vtable]
pub trait Operations: Sized + 'static {
    /// The driver's own data in each request. It is never dropped: it may be looked at until the
    /// request's memory goes.
    type RequestData: Send + Sync;

    /// What goes over the wire in front of a request's data.
    type Header: AsBytes + Copy + Default + Send + Sync;

    /// The disks that the requests are for.
    type Disk: DiskOperations<Queue = Self>;

    /// What the queue functions of a disk get to see, for as long as the disk has it.
    type QueueData: Send + Sync + 'static;

    /// Makes the data of one request.
    fn new_request_data() -> Self::RequestData;

    /// Takes a request that hardware queue `hctx` hands out. `data` is what the disk was given by
    /// [`GenDisk::set_queue_data`], if it has that just now. With `last` unset, more follow or
    /// [`Self::commit_rqs`] is called. May sleep; may run in the task that submitted the I/O, with
    /// signals pending.
    fn queue_rq(
        data: Option<ArcBorrow<'_, Self::QueueData>>,
        hctx: u32,
        rq: OwnedRequest<Self>,
        last: bool,
    );

    /// No further request follows those that `hctx` announced. May sleep.
    fn commit_rqs(data: Option<ArcBorrow<'_, Self::QueueData>>, hctx: u32);

    /// A request has not finished within the queue's timeout. May sleep. `rq` may be published or
    /// not, and may change under the function.
    fn timeout(disk: &GenDisk<Self::Disk>, rq: &Request<Self>) -> TimeoutAction;
}

/// The C vtable of `T`.
pub(super) struct OperationsVTable<T: Operations>(PhantomData<T>);

impl<T: Operations> OperationsVTable<T> {
    /// # Safety
    ///
    /// Called by blk-mq only, with a live `hctx` of a disk of `T` and a request that it hands to
    /// the driver.
    unsafe extern "C" fn queue_rq(
        hctx: *mut bindings::blk_mq_hw_ctx,
        bd: *const bindings::blk_mq_queue_data,
    ) -> bindings::blk_status_t {
        // SAFETY: blk-mq passes valid pointers, and requests go to queues of added disks only.
        let (disk, hctx, rq, last) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*hctx).queue).disk),
                (*hctx).queue_num,
                NonNull::new((*bd).rq),
                (*bd).last,
            )
        };
        if let Some(rq) = rq {
            // SAFETY: blk-mq hands the request to the driver with this call.
            let rq = unsafe { OwnedRequest::start(rq) };
            // SAFETY: This is a queue function.
            T::queue_rq(unsafe { disk.queue_data() }, hctx, rq, last);
        }
        // The request has an owner who will finish it: there is nothing to hand back.
        bindings::BLK_STS_OK as bindings::blk_status_t
    }

    /// # Safety
    ///
    /// Called by blk-mq only, with a live `hctx` of a disk of `T`.
    unsafe extern "C" fn commit_rqs(hctx: *mut bindings::blk_mq_hw_ctx) {
        // SAFETY: As in `queue_rq`.
        let (disk, hctx) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*hctx).queue).disk),
                (*hctx).queue_num,
            )
        };
        // SAFETY: This is a queue function.
        T::commit_rqs(unsafe { disk.queue_data() }, hctx);
    }

    /// # Safety
    ///
    /// Called by blk-mq only, with a started request of a disk of `T` that it holds a reference to.
    unsafe extern "C" fn timeout(rq: *mut bindings::request) -> bindings::blk_eh_timer_return {
        // SAFETY: blk-mq passes a valid request, which it keeps from being reused meanwhile.
        let (disk, rq) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*rq).q).disk),
                Request::<T>::from_raw(rq),
            )
        };
        let patience = match T::timeout(disk, rq) {
            TimeoutAction::Done => return bindings::blk_eh_timer_return_BLK_EH_DONE,
            // The queue's.
            TimeoutAction::Rearm => 0,
            TimeoutAction::RearmFor(jiffies) => {
                ffi::c_uint::try_from(jiffies).unwrap_or(ffi::c_uint::MAX)
            }
        };
        rq.set_timeout(patience);
        bindings::blk_eh_timer_return_BLK_EH_RESET_TIMER
    }

    /// # Safety
    ///
    /// Called by blk-mq only, with a request just allocated with room for a `Pdu<T>`.
    unsafe extern "C" fn init_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx: ffi::c_uint,
        _node: ffi::c_int,
    ) -> ffi::c_int {
        // SAFETY: The tag set's `cmd_size` leaves room for a `Pdu<T>` behind the request.
        unsafe {
            bindings::blk_mq_rq_to_pdu(rq)
                .cast::<Pdu<T>>()
                .write(Pdu::new())
        };
        0
    }

    /// The vtable for a tag set.
    pub(super) const VTABLE: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq),
        commit_rqs: Some(Self::commit_rqs),
        timeout: Some(Self::timeout),
        init_request: Some(Self::init_request),
        ..pin_init::zeroed()
    };
}
