#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Data through nbdkit and nbd-client on a Unix socket, one connection: every block size, order and
# way of access, checked through the device and in the server's file.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio
nbd_begin 8
nbd_pick

truncate -s "$IO_SIZE" "$NBD_TMP/disk"
start() { io_server sock file "$NBD_TMP/disk" && io_attach_unix -b 4096; }
start
check "attach" nbd_connected
io_rounds "$NBD_TMP/disk" "Unix, 1 connection"
check "detach" io_detach
nbd_end
