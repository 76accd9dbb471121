#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbdctl keep under verified I/O, with one and with four connections: for NBD_KEEP_SECONDS, its server and it itself are
# killed, told to end, and started again, in an order that NBD_SEED decides. No user sees an error or a wrong byte.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require nbdkit fio cmp python3
keep_need
nbd_begin 14
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

seconds=${NBD_KEEP_SECONDS:-20}
seed=${NBD_SEED:-$((${EPOCHREALTIME/./} % 1000000))}
RANDOM=$seed
note "NBD_SEED=$seed NBD_KEEP_SECONDS=$seconds"

disk=$NBD_TMP/disk
uri="nbd+unix:///?socket=$NBD_TMP/sock"
signals=(KILL TERM)

# The process of each, or nothing.
server='' keeper=''
serve() { io_server sock file "$disk" && server=$IO_PID; }
keep() { keep_start -n "$n" -D 120 -b "keep-$n" "$uri" && keeper=$KEEP_PID; }
server_ends() {
	kill -"$1" "$server"
	wait_until 10 nbd_gone "$server" || { echo "the server does not end"; return 1; }
	server=
}
keeper_ends() { keep_kill "$1" && keeper=; }

turn() {
	local signal=${signals[RANDOM % 2]}
	case $((RANDOM % 4)) in
	0 | 1) if [ -n "$server" ]; then server_ends "$signal"; else serve; fi ;;
	2) if [ -n "$keeper" ]; then keeper_ends "$signal"; else keep; fi ;;
	3) [ -z "$server" ] || [ -z "$keeper" ] || keep_flows ;;
	esac
}
turns() {
	local end=$((SECONDS + seconds / 2))
	for ((i = 1; i <= 20 || SECONDS < end; i++)); do
		turn || { echo "in turn $i"; return 1; }
	done
}
come_back() {
	[ -n "$keeper" ] || keep || return
	[ -n "$server" ] || serve || return
	wait_until 20 all_there && keep_flows
}
all_there() { [ "$(keep_status 'v["connections"]["missing"]')" = 0 ]; }

for n in 1 4; do
	truncate -s 0 "$disk"
	truncate -s 16M "$disk"
	serve
	check "kept, $n" keep
	check "verified I/O, $n" keep_load "$seed"
	check "both end and come back at random, $n" turns
	note "$i turns"
	check "they are there again, $n" come_back
	check "no error and no wrong byte, $n" keep_load_ends
	blockdev --flushbufs "$NBD_DEV"
	check "the server's data, $n" io_same "$disk" 8388608
	check "disconnect, $n" ctl disconnect "$NBD_DEV"
	keep_ends || note "the keeper stays"
	kill -9 "$server"
done
nbd_end
