// SPDX-License-Identifier: GPL-2.0

//! Networking.

pub(crate) mod addr;
pub(crate) mod netlink;
pub(crate) mod ready;
pub(crate) mod socket;
