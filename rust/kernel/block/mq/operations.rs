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
    /// blk-mq does nothing: the driver makes the request finish or has requeued it.
    Done,
    /// blk-mq waits for the queue's timeout again.
    Rearm,
    /// blk-mq waits for so many jiffies or longer: up to a second longer, and with other requests
    /// in flight up to the queue's timeout.
    RearmFor(Jiffies),
}

/// A driver for requests.
#[vtable]
pub trait Operations: Sized + 'static {
    /// The driver's own data in each request. It is never dropped, since a task may read it until
    /// the request's memory is freed.
    type RequestData: Send + Sync;

    /// The header that the driver sends in front of a request's data.
    type Header: AsBytes + Copy + Default + Send + Sync;

    /// The type of the disks that the requests are for.
    type Disk: DiskOperations<Queue = Self>;

    /// The data that the queue functions get, from [`GenDisk::set_queue_data`] to
    /// [`GenDisk::take_queue_data`].
    type QueueData: Send + Sync + 'static;

    /// Creates the data of one request, when the request is allocated.
    ///
    /// Context: may sleep.
    fn new_request_data() -> Self::RequestData;

    /// Takes over a request that hardware queue `hctx` dispatches. `data` is what
    /// [`GenDisk::set_queue_data`] has set, if it is set now. If `last` is false, more requests or
    /// a call of [`Self::commit_rqs`] follow.
    ///
    /// Context: may sleep, under the read side of the SRCU that [`GenDisk::take_queue_data`] waits
    /// for. It runs in a work item or in the task that submits the I/O, which may have signals
    /// pending, hold locks of a file system and reclaim memory.
    fn queue_rq(
        data: Option<ArcBorrow<'_, Self::QueueData>>,
        hctx: u32,
        rq: OwnedRequest<Self>,
        last: bool,
    );

    /// Tells the driver that no more requests follow those that `hctx` has announced.
    ///
    /// Context: that of [`Self::queue_rq`].
    fn commit_rqs(data: Option<ArcBorrow<'_, Self::QueueData>>, hctx: u32);

    /// Called when a request has not finished within its timeout. `rq` may be published or not, and
    /// other tasks may change its state or finish it during the call.
    ///
    /// Context: may sleep; runs in a work item that holds a count of the queue's usage counter, so
    /// that it must not wait for a freeze of the queue.
    fn timeout(disk: &GenDisk<Self::Disk>, rq: &Request<Self>) -> TimeoutAction;
}

/// The C vtable of `T`.
pub(super) struct OperationsVTable<T: Operations>(PhantomData<T>);

impl<T: Operations> OperationsVTable<T> {
    /// # Safety
    ///
    /// Only blk-mq may call this, with a live `hctx` of a disk that was made for `T`, and with a
    /// request of that disk that it hands to the driver.
    unsafe extern "C" fn queue_rq(
        hctx: *mut bindings::blk_mq_hw_ctx,
        bd: *const bindings::blk_mq_queue_data,
    ) -> bindings::blk_status_t {
        // SAFETY: By the safety requirements the pointers are valid, and the disk was made for `T`.
        // It stays referenced: only an added disk gets requests, and its removal waits for this
        // one.
        let (disk, hctx, rq, last) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*hctx).queue).disk),
                (*hctx).queue_num,
                NonNull::new((*bd).rq),
                (*bd).last,
            )
        };
        if let Some(rq) = rq {
            // SAFETY: By the safety requirements the request belongs to a disk of `T`, and blk-mq
            // has just handed it to the driver, which has not started it.
            let rq = unsafe { OwnedRequest::start(rq) };
            // SAFETY: The result is used during this call of `queue_rq` only.
            T::queue_rq(unsafe { disk.queue_data() }, hctx, rq, last);
        }
        // The driver owns the request and finishes it, so that there is no error for blk-mq to act
        // on.
        bindings::BLK_STS_OK as bindings::blk_status_t
    }

    /// # Safety
    ///
    /// Only blk-mq may call this, with a live `hctx` of a disk that was made for `T`.
    unsafe extern "C" fn commit_rqs(hctx: *mut bindings::blk_mq_hw_ctx) {
        // SAFETY: By the safety requirements the pointers are valid, and the disk was made for `T`.
        // It stays referenced: blk-mq dispatches under a reference to the queue, and its removal
        // waits for the end of dispatches.
        let (disk, hctx) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*hctx).queue).disk),
                (*hctx).queue_num,
            )
        };
        // SAFETY: The result is used during this call of `commit_rqs` only.
        T::commit_rqs(unsafe { disk.queue_data() }, hctx);
    }

    /// # Safety
    ///
    /// Only blk-mq may call this, with a started request of a disk that was made for `T`, and with
    /// a reference to the request held.
    unsafe extern "C" fn timeout(rq: *mut bindings::request) -> bindings::blk_eh_timer_return {
        // SAFETY: By the safety requirements the request is valid, belongs to a disk made for `T`,
        // and is neither freed nor reused while blk-mq holds its reference. The disk outlives its
        // requests.
        let (disk, rq) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*rq).q).disk),
                Request::<T>::from_raw(rq),
            )
        };
        let patience = match T::timeout(disk, rq) {
            TimeoutAction::Done => return bindings::blk_eh_timer_return_BLK_EH_DONE,
            // 0 stands for the queue's timeout.
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
    /// Only blk-mq may call this, with a request that it has just allocated from a tag set whose
    /// `cmd_size` is the size of a `Pdu<T>`.
    unsafe extern "C" fn init_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx: ffi::c_uint,
        _node: ffi::c_int,
    ) -> ffi::c_int {
        // SAFETY: By the safety requirements there is room for a `Pdu<T>` behind the request, which
        // nothing else uses yet. `TagSet::new` asserts that the alignment of a request suffices
        // for it.
        unsafe {
            bindings::blk_mq_rq_to_pdu(rq)
                .cast::<Pdu<T>>()
                .write(Pdu::new())
        };
        0
    }

    /// The operations for a tag set.
    pub(super) const VTABLE: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq),
        commit_rqs: Some(Self::commit_rqs),
        timeout: Some(Self::timeout),
        init_request: Some(Self::init_request),
        ..pin_init::zeroed()
    };
}
