// SPDX-License-Identifier: GPL-2.0

//! Synchronisation primitives.

pub(crate) mod wait;
