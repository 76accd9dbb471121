// SPDX-License-Identifier: GPL-2.0

//! The callbacks of blk-mq.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    gen_disk::{
        DiskOperations,
        GenDisk, //
    },
    request::{
        set_timeout,
        IdleRequest,
        OwnedRequest,
        Rejected,
        Request, //
    },
};
use crate::{
    bindings,
    error::VTABLE_DEFAULT_ERROR,
    ffi,
    macros::vtable,
    prelude::*,
    sync::ArcBorrow,
    time::Jiffies, //
};
use core::{
    marker::PhantomData,
    mem,
    ptr::{
        self,
        NonNull, //
    }, //
};

/// What blk-mq does about a request after [`Operations::timeout`].
///
/// C type: `enum blk_eh_timer_return`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::TimerReturn,
///     time::Jiffies, //
/// };
///
/// fn timed_out(waited: Jiffies, limit: Jiffies) -> TimerReturn {
///     if waited < limit {
///         TimerReturn::ResetTimerTo(limit - waited)
///     } else {
///         TimerReturn::Done
///     }
/// }
///
/// assert!(matches!(timed_out(30, 100), TimerReturn::ResetTimerTo(70)));
/// ```
pub enum TimerReturn {
    /// blk-mq does nothing: the driver makes the request finish or has requeued it.
    Done,
    /// blk-mq waits for the queue's timeout again.
    ResetTimer,
    /// blk-mq waits for so many jiffies or longer: up to a second longer, and with other requests
    /// in flight up to the queue's timeout.
    ResetTimerTo(Jiffies),
}

/// A driver for requests.
///
/// C struct: `struct blk_mq_ops`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::{
///         mq::{
///             DiskOperations,
///             GenDisk,
///             IdleRequest,
///             Operations,
///             OwnedRequest,
///             Rejected,
///             Request,
///             TimerReturn, //
///         },
///         BlkStatus, //
///     },
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         ArcBorrow, //
///     }, //
/// };
///
/// struct Queue;
///
/// #[vtable]
/// impl Operations for Queue {
///     /// How often the request was handed to the driver.
///     type RequestData = Atomic<u32>;
///     type Disk = Disk;
///     /// How many requests the driver may still start.
///     type QueueData = Atomic<i32>;
///
///     fn new_request_data() -> impl PinInit<Atomic<u32>> {
///         Atomic::new(0)
///     }
///
///     fn queue_rq(
///         room: Option<ArcBorrow<'_, Atomic<i32>>>,
///         _hctx: u32,
///         rq: IdleRequest<Self>,
///         _is_last: bool,
///     ) -> Result<(), Rejected<Self>> {
///         let Some(room) = room else {
///             return Err(rq.reject(EIO));
///         };
///         if room.fetch_sub(1, Relaxed) <= 0 {
///             room.fetch_add(1, Relaxed);
///             return Err(rq.reject(ENOMEM));
///         }
///         let rq = rq.start();
///         rq.data().fetch_add(1, Relaxed);
///         rq.complete();
///         Ok(())
///     }
///
///     fn complete(rq: OwnedRequest<Self>) {
///         rq.end(BlkStatus::OK);
///     }
///
///     fn timeout(_disk: &GenDisk<Disk>, _rq: &Request<Self>) -> TimerReturn {
///         TimerReturn::ResetTimer
///     }
/// }
///
/// struct Disk;
///
/// #[vtable]
/// impl DiskOperations for Disk {
///     type Data = ();
///     type Queue = Queue;
/// }
/// ```
#[vtable]
pub trait Operations: Sized + 'static {
    /// The driver's own data in each request, from its allocation until it is freed.
    type RequestData: Send + Sync;

    /// The type of the disks that the requests are for.
    type Disk: DiskOperations<Queue = Self>;

    /// The data that the queue functions get, from [`GenDisk::set_queue_data`] to
    /// [`GenDisk::take_queue_data`].
    type QueueData: Send + Sync + 'static;

    /// Creates the data of one request, when the request is allocated.
    ///
    /// Context: may sleep.
    fn new_request_data() -> impl PinInit<Self::RequestData>;

    /// Takes over a request that hardware queue `hctx` dispatches, or gives it back
    /// [rejected](IdleRequest::reject). `data` is what [`GenDisk::set_queue_data`] has set, if it
    /// is set now. If `is_last` is false, more requests or a call of [`Self::commit_rqs`] follow.
    ///
    /// Context: does not sleep, unless the tag set is
    /// [`Blocking`](super::tag_set::Flag::Blocking). It runs under the read side of the RCU or SRCU
    /// that [`GenDisk::take_queue_data`] waits for, in a work item or in the task that submits the
    /// I/O, which may have signals pending, hold locks of a file system and reclaim memory.
    fn queue_rq(
        data: Option<ArcBorrow<'_, Self::QueueData>>,
        hctx: u32,
        rq: IdleRequest<Self>,
        is_last: bool,
    ) -> Result<(), Rejected<Self>>;

    /// Tells the driver that no more requests follow those that `hctx` has announced.
    ///
    /// Context: that of [`Self::queue_rq`].
    fn commit_rqs(_data: Option<ArcBorrow<'_, Self::QueueData>>, _hctx: u32) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Finishes a request that was [completed](OwnedRequest::complete).
    ///
    /// Context: any, often that of a softirq.
    fn complete(_rq: OwnedRequest<Self>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called when a request has not finished within its timeout. Other tasks may change its state
    /// or finish it during the call. Without this function the timer is reset.
    ///
    /// Context: may sleep; runs in a work item that holds a count of the queue's usage counter, so
    /// that it must not wait for a freeze of the queue.
    fn timeout(_disk: &GenDisk<Self::Disk>, _rq: &Request<Self>) -> TimerReturn {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
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
        // one. The request is not null.
        let (disk, hctx, rq, is_last) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*hctx).queue).disk),
                (*hctx).queue_num,
                NonNull::new_unchecked((*bd).rq),
                (*bd).last,
            )
        };
        // SAFETY: By the safety requirements the request belongs to a disk of `T`, and blk-mq has
        // just handed it to the driver, which has not started it.
        let idle = unsafe { IdleRequest::from_raw(rq) };
        // SAFETY: The result is used during this call of `queue_rq` only.
        match T::queue_rq(unsafe { disk.queue_data() }, hctx, idle, is_last) {
            Ok(()) => bindings::BLK_STS_OK as bindings::blk_status_t,
            Err(rejected) => rejected.into_raw_status(rq),
        }
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
    /// Only blk-mq may call this, with a request that [`OwnedRequest::complete`] has passed to it.
    unsafe extern "C" fn complete(rq: *mut bindings::request) {
        // SAFETY: By the safety requirements the request is started, and the value for it was given
        // up for the one that is made here. It is not null.
        T::complete(unsafe { OwnedRequest::from_raw(NonNull::new_unchecked(rq)) });
    }

    /// # Safety
    ///
    /// Only blk-mq may call this, with a started request of a disk that was made for `T`, and with
    /// a reference to the request held.
    unsafe extern "C" fn timeout(rq: *mut bindings::request) -> bindings::blk_eh_timer_return {
        // SAFETY: By the safety requirements the request is started and belongs to a disk made for
        // `T`. It is neither freed nor reused while blk-mq holds its reference, and its data is not
        // dropped while blk-mq holds the queue's usage count. The disk outlives its requests.
        let (disk, request) = unsafe {
            (
                GenDisk::<T::Disk>::from_raw((*(*rq).q).disk),
                Request::<T>::from_raw(rq),
            )
        };
        let patience = match T::timeout(disk, request) {
            TimerReturn::Done => return bindings::blk_eh_timer_return_BLK_EH_DONE,
            // 0 stands for the queue's timeout.
            TimerReturn::ResetTimer => 0,
            TimerReturn::ResetTimerTo(jiffies) => {
                ffi::c_uint::try_from(jiffies).unwrap_or(ffi::c_uint::MAX)
            }
        };
        // SAFETY: By the safety requirements the request is valid.
        unsafe { set_timeout(rq, patience) };
        bindings::blk_eh_timer_return_BLK_EH_RESET_TIMER
    }

    /// # Safety
    ///
    /// Only blk-mq may call this, with a request that it has just allocated from a tag set whose
    /// `cmd_size` is the size of a `T::RequestData`.
    unsafe extern "C" fn init_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx: ffi::c_uint,
        _node: ffi::c_int,
    ) -> ffi::c_int {
        // SAFETY: By the safety requirements there is room for a `T::RequestData` behind the
        // request, which nothing else uses yet, and which stays there until `exit_request`.
        // `TagSet::new` asserts that the alignment of a request suffices for it.
        unsafe { pin_init::raw_init(bindings::blk_mq_rq_to_pdu(rq).cast(), T::new_request_data()) };
        0
    }

    /// # Safety
    ///
    /// Only blk-mq may call this, once, with a request that was passed to [`Self::init_request`]
    /// and is about to be freed. No [`Request`] that was made for it may be left.
    unsafe extern "C" fn exit_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx: ffi::c_uint,
    ) {
        // SAFETY: `init_request` has initialised the data. By the safety requirements there is no
        // reference to it, and it is dropped once.
        unsafe { ptr::drop_in_place(bindings::blk_mq_rq_to_pdu(rq).cast::<T::RequestData>()) };
    }

    /// The operations for a tag set.
    pub(super) const VTABLE: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq),
        commit_rqs: if T::HAS_COMMIT_RQS {
            Some(Self::commit_rqs)
        } else {
            None
        },
        complete: if T::HAS_COMPLETE {
            Some(Self::complete)
        } else {
            None
        },
        timeout: if T::HAS_TIMEOUT {
            Some(Self::timeout)
        } else {
            None
        },
        init_request: Some(Self::init_request),
        exit_request: if mem::needs_drop::<T::RequestData>() {
            Some(Self::exit_request)
        } else {
            None
        },
        ..pin_init::zeroed()
    };
}
