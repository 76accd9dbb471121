#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A server is killed and started again under verified I/O, several times, with one and with four
# connections: within dead_conn_timeout no user sees an error or a wrong byte.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit fio cmp
nbd_begin 16
nbd_pick

disk=$NBD_TMP/disk
serve() { io_server sock file "$disk"; }
# Enough for all the kills, however fast it is: it is told to end.
load() {
	fio --filename="$NBD_DEV" --thread --output="$NBD_TMP/fio.log" --name=load --rw=randrw \
		--bs=16k --size=8m --ioengine=libaio --iodepth=16 --direct=1 --time_based \
		--runtime=$((60 * NBD_TIME_SCALE)) --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		--verify_backlog=64 --serialize_overlap=1 --randseed="$1" &
	IO_JOB=$!
	nbd_defer kill -9 $IO_JOB
	wait_until 10 io_busy 0
}
kills() {
	local i before
	for i in 1 2 3; do
		before=$(io_requests)
		wait_until 10 io_more "$before" 100 || { echo "no I/O before kill $i"; return 1; }
		kill -9 "$IO_PID"
		wait_until 10 io_said dead $((i * $1)) || { echo "kill $i: not all are dead"; return 1; }
		io_job_runs || { echo "kill $i: I/O has failed"; return 1; }
		serve || return
		wait_until 15 io_said again $((i * $1)) || { echo "kill $i: not all are back"; return 1; }
	done
	before=$(io_requests)
	wait_until 10 io_more "$before" 100 || { echo "no I/O after the last kill"; return 1; }
}
# fio ends well when it is told to end.
load_ends() { io_job_ends && ! grep -E "verify: bad|err= *[1-9]|error=" "$NBD_TMP/fio.log"; }

for n in 1 4; do
	truncate -s 0 "$disk"
	truncate -s 16M "$disk"
	serve
	io_persist 20 -n $n
	check "connected, $n" nbd_connected
	check "verified I/O, $n" load $n
	check "the server is killed and comes back three times, $n" kills $n
	check "no error and no wrong byte, $n" load_ends
	blockdev --flushbufs "$NBD_DEV"
	check "the server's data, $n" io_same "$disk" 8388608
	check "each connection died three times, $n" is dead "$(grep -c dead "$NBD_TMP/persist.log")" $((n * 3))
	check "disconnect, $n" "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
	check "free, $n" wait_until 5 io_gone "$IO_PERSIST"
	kill -9 "$IO_PID"
done
nbd_end
