#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Servers that die for good or are slow: I/O ends with an error, in time, and nothing is stuck.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio
nbd_begin 29
nbd_pick

genl() { within 10 "$NBD_DIR/helper_genl" "$@"; }
connect() { genl connect >/dev/null -i "$NBD_INDEX" -u "$IO_SOCK" -b 4096 "$@" && wait_until 5 nbd_connected; }
disconnect() { genl disconnect "$NBD_INDEX" && wait_until 3 nbd_is_free "$NBD_INDEX"; }
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

# load: fio, which verifies, until an error.
load() {
	io_load 0 fio --filename="$NBD_DEV" --thread --output="$NBD_TMP/fio.log" --name=load --rw=randrw --bs=16k \
		--size=8m --ioengine=libaio --iodepth=16 --direct=1 --time_based --runtime=60 \
		--verify=crc32c --verify_fatal=1 --verify_state_save=0 --verify_backlog=64 --serialize_overlap=1 \
		--continue_on_error=none
}
now() { echo $((${EPOCHREALTIME/./} / 1000)); }
# fails_within MS: reading fails with EIO, and soon.
fails_within() {
	local start
	start=$(now)
	if io_read_one 5 2>"$NBD_TMP/dd" || [ $(($(now) - start)) -ge $(($1 * NBD_TIME_SCALE)) ] ||
		! grep -q ': Input/output error$' "$NBD_TMP/dd"; then
		cat "$NBD_TMP/dd"
		return 1
	fi
}
# What fio says of the error that it ended with: no other one, nor a wrong byte.
errors() { grep -oE 'error=[^)]*|verify: bad.*' "$NBD_TMP/fio.log" | sort -u; }

# dead_conn_timeout is over
for n in 1 4; do
	io_server sock memory 16M
	check "connected, $n" connect -n $n -D 2
	check "I/O, $n" load
	start=$(now)
	kill -9 "$IO_PID"
	check "it ends, $n" wait_until 4 io_loaded
	took=$(($(now) - start))
	check "not before its time, $n" [ $took -gt 1500 ]
	check "with EIO and no wrong byte, $n" is error "$(errors)" "error=Input/output error"
	check "no request is left, $n" wait_until 1 io_still
	check "nobody is stuck, $n" wait_until 2 io_none_stuck
	check "later I/O fails at once, $n" fails_within 1500
	check "the device stays, $n" nbd_connected
	io_server sock memory 16M
	check "it works again, $n" eval "genl reconfigure -i $NBD_INDEX -u $IO_SOCK && io_read_one 5"
	check "disconnect, $n" disconnect
	kill -9 "$IO_PID"
done

# A server that has been told to leave does so when the last connection has been ended properly.
io_server sock --filter=exitwhen memory 16M exit-when-file-created="$NBD_TMP/leave" \
	exit-when-poll=1
connect -n 2 -D 0
touch "$NBD_TMP/leave"
check "a server that is about to leave" io_read_one 5
check "disconnect from it" disconnect
check "it leaves" wait_until 10 nbd_exited "$IO_PID"
kill -9 "$IO_PID" 2>/dev/null

# The server's own errors are no deaths.
io_server sock --filter=error memory 16M error-pread=EIO error-pread-rate=100% \
	error-file="$NBD_TMP/errors"
connect -D 10
touch "$NBD_TMP/errors"
check "an error from the server is one at once" fails_within 1500
rm "$NBD_TMP/errors"
check "and the connection goes on" io_read_one 5
disconnect
kill -9 "$IO_PID"

# Too slow for the timeout: the connection is given up.
io_server sock --filter=delay memory 16M rdelay=30
connect -t 1
check "a server that is too slow" fails_within 5000
check "the end of that" disconnect
nbd_end
