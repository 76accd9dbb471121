#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Replies out of order: reads that take longer than writes, many of both at a time, on one
# connection and on four.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio
nbd_begin 4
nbd_pick

# Verifies each block soon after it was written, so that reads and writes are mixed.
mixed() {
	within 60 fio --name=mixed --filename="$NBD_DEV" --direct=1 --ioengine=libaio --iodepth=32 \
		--rw=randwrite --bsrange=4k-64k --blockalign=4k --size=6m --output=/dev/null \
		--verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		--verify_backlog=8 --verify_backlog_batch=4
}
for connections in 1 4; do
	start() {
		io_server "sock$connections" -t 16 --filter=delay memory 64M \
			delay-read=20ms delay-write=3ms &&
			io_attach_unix -b 4096 -C $connections
	}
	start
	check "mixed reads and writes, $connections connection(s)" mixed
	check "detach" io_detach
done
nbd_end
