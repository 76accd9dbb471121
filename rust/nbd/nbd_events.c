// SPDX-License-Identifier: GPL-2.0
/*
 * The trace events nbd:*, defined for Rust to call.
 */

#include <linux/blk-mq.h>
#include <linux/nbd.h>

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/nbd.h>
#include <trace/events/nbd_io.h>
