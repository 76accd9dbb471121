// SPDX-License-Identifier: GPL-2.0

//! Flags of requests.
//!
//! C header: [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::{
    bindings,
    impl_flags, //
};

impl_flags! {
    /// The flags of a request. There may be others than those that [`Flag`] has.
    ///
    /// C type: `blk_opf_t`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::block::mq::{
    ///     request::Flag,
    ///     Operations,
    ///     StartedRequest, //
    /// };
    ///
    /// fn must_be_durable<T: Operations>(rq: &StartedRequest<T>) -> bool {
    ///     rq.flags().contains(Flag::ForcedUnitAccess)
    /// }
    /// ```
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct Flags(u32);

    /// A flag of a request.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Flag {
        /// The data must be durable before the request is finished.
        ForcedUnitAccess = bindings::REQ_FUA,
        /// Zeroes must be allocated rather than deallocated.
        NoUnmap = bindings::REQ_NOUNMAP,
    }
}

impl Flags {
    #[inline]
    pub(super) fn from_raw(flags: bindings::blk_opf_t) -> Self {
        Self(flags)
    }
}
