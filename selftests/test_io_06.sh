#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A read-only export: reads work, every kind of write is refused and none gets to the server.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client blkdiscard
nbd_begin 8
nbd_pick

head -c 1M /dev/urandom >"$NBD_TMP/disk"
start() {
	io_server sock -r --filter=log file "$NBD_TMP/disk" logfile="$NBD_TMP/log" &&
		io_attach_unix -b 4096
}
start
check "attach" nbd_connected
check "the device is read-only" is ro "$(<"$NBD_SYS/ro")" 1
check "read" cmp -n 1048576 "$NBD_DEV" "$NBD_TMP/disk"
write() { within 5 dd if=/dev/zero of="$NBD_DEV" bs=4k count=1 oflag=direct status=none; }
check "opening for writing" nbd_not write
# Even with the block layer talked over: the server's word counts.
blockdev --setrw "$NBD_DEV"
check "writing" nbd_not write
check "discarding" nbd_not within 5 blkdiscard "$NBD_DEV"
check "no write at the server" is writes "$(grep -cE ' (Write|Zero|Trim) ' "$NBD_TMP/log")" 0
check "reading goes on" cmp -n 1048576 "$NBD_DEV" "$NBD_TMP/disk"
nbd_end
