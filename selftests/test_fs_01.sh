#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# ext4 on nbdkit over TCP, and on a Unix socket with four connections and blocks of 512.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client mkfs.ext4 e2fsck
nbd_begin 20
nbd_pick

truncate -s 128M "$NBD_TMP/disk"
io_server_tcp file "$NBD_TMP/disk"
attach_tcp() { io_attach_tcp -b 4096; }
io_fs ext4 attach_tcp io_detach

truncate -s 0 "$NBD_TMP/disk"
truncate -s 128M "$NBD_TMP/disk"
io_server sock file "$NBD_TMP/disk"
attach_unix() { io_attach_unix -b 512 -C 4; }
io_fs ext4 attach_unix io_detach
nbd_end
