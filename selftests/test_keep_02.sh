#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbdctl keep under verified I/O, with one and with four connections: its server is killed or told to end, and started
# again; it is killed itself, and finds the session again. No user sees an error or a wrong byte.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require nbdkit fio cmp python3
keep_need
nbd_begin 36
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

disk=$NBD_TMP/disk
uri="nbd+unix:///?socket=$NBD_TMP/sock"
serve() { io_server sock file "$disk"; }
# What the server's end costs: nothing but time.
restart() {
	kill -"$1" "$IO_PID"
	keep_back serve
}
# The keeper dies, and so does the server while nobody looks.
killed() {
	keep_kill KILL || return
	kill -9 "$IO_PID"
	wait_until 10 io_still_waits || return
	keep_start "${keep[@]}" || return
	keep_back serve
}
io_still_waits() { local n; n=$(io_requests); nbd_pause; [ "$n" = "$(io_requests)" ]; }
gone() { [ ! -e "/run/nbdctl/nbd$NBD_INDEX.json" ]; }

for n in 1 4; do
	truncate -s 0 "$disk"
	truncate -s 16M "$disk"
	serve
	keep=(-n "$n" -D 120 -b "keep-$n" "$uri")
	check "kept, $n" keep_start "${keep[@]}"
	check "status says by whom, $n" status 'v["keeper_pid"]' "$KEEP_PID"
	check "and how, $n" status '(v["connections"]["total"], v["connections"]["missing"])' "($n, 0)"
	check "verified I/O, $n" keep_load $n
	check "the server is killed and comes back, $n" restart KILL
	check "once more, $n" restart KILL
	check "it is told to end and comes back, $n" restart TERM
	check "all are back, $n" status '(v["connections"]["total"], v["connections"]["missing"])' "($n, 0)"
	check "another one cannot keep it, $n" keep_says 1 "another nbdctl" keep "${keep[@]}" "$NBD_DEV"
	check "the keeper is killed, $n" keep_kill KILL
	check "nobody keeps it, $n" status 'v["keeper_pid"]' None
	check "the next one finds it, $n" keep_start "${keep[@]}"
	check "and keeps it, $n" restart KILL
	check "the keeper and the server are killed, $n" killed
	check "no error and no wrong byte, $n" keep_load_ends
	blockdev --flushbufs "$NBD_DEV"
	check "the server's data, $n" io_same "$disk" 8388608
	"$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
	check "the keeper ends with the session, $n" keep_ends
	check "and with it what was known of it, $n" wait_until 5 gone
	kill -9 "$IO_PID"
done
nbd_end
