#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# xfs on nbdkit over a Unix socket with four connections.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client mkfs.xfs xfs_repair
nbd_begin 10
nbd_pick

truncate -s 320M "$NBD_TMP/disk"
io_server sock file "$NBD_TMP/disk"
attach() { io_attach_unix -b 4096 -C 4; }
io_fs xfs attach io_detach
nbd_end
