// SPDX-License-Identifier: GPL-2.0

//! Properties of tag sets.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use crate::{
    bindings,
    impl_flags, //
};

impl_flags! {
    /// A set of properties of a [`TagSet`](super::TagSet).
    ///
    /// C type: `BLK_MQ_F_*`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::block::mq::tag_set::{
    ///     Flag,
    ///     Flags, //
    /// };
    ///
    /// let flags = Flag::Blocking | Flag::NoDefaultScheduler;
    /// assert!(flags.contains(Flag::Blocking));
    /// assert!(!flags.contains(Flag::Stacking));
    /// assert!(Flags::empty() != flags);
    /// ```
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct Flags(u32);

    /// A property of a [`TagSet`](super::TagSet).
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Flag {
        /// The queue functions may sleep.
        Blocking = bindings::BLK_MQ_F_BLOCKING,
        /// Disks have no I/O scheduler unless user space selects one.
        NoDefaultScheduler = bindings::BLK_MQ_F_NO_SCHED_BY_DEFAULT,
        /// Hardware queues are not bound to CPUs: a CPU that goes offline does not wait for the
        /// requests of its queue.
        Stacking = bindings::BLK_MQ_F_STACKING,
    }
}
