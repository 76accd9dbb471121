/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Headers that the kernel's own rust/bindings/bindings_helper.h would gain.
 */

#include <linux/blk-mq.h>
#include <linux/eventpoll.h>
#include <linux/moduleparam.h>
#include <linux/nbd.h>
#include <trace/events/nbd.h>
#include <trace/events/nbd_io.h>

/* Bindgen takes constants that are plain numbers only. */
const blk_status_t RUST_CONST_HELPER_BLK_STS_NOTSUPP = BLK_STS_NOTSUPP;
const blk_status_t RUST_CONST_HELPER_BLK_STS_IOERR = BLK_STS_IOERR;
const blk_features_t RUST_CONST_HELPER_BLK_FEAT_WRITE_CACHE = BLK_FEAT_WRITE_CACHE;
const blk_features_t RUST_CONST_HELPER_BLK_FEAT_FUA = BLK_FEAT_FUA;
const blk_opf_t RUST_CONST_HELPER_REQ_FUA = REQ_FUA;
const blk_opf_t RUST_CONST_HELPER_REQ_NOUNMAP = REQ_NOUNMAP;

const __poll_t RUST_CONST_HELPER_EPOLLIN = EPOLLIN;
const __poll_t RUST_CONST_HELPER_EPOLLERR = EPOLLERR;
const __poll_t RUST_CONST_HELPER_EPOLLHUP = EPOLLHUP;
const __poll_t RUST_CONST_HELPER_EPOLLRDHUP = EPOLLRDHUP;
