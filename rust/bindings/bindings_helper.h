/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Headers that the kernel's own rust/bindings/bindings_helper.h would gain.
 */

#include <linux/blk-mq.h>
#include <linux/moduleparam.h>
#include <linux/nbd.h>
#include <trace/events/nbd.h>
