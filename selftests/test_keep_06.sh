#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbdctl replace, add and remove under verified I/O: a device moves to another server while both run, and gets more and
# fewer connections, while nbdctl keep looks after it. A driver that cannot do that is told from one that can.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require nbdkit fio cmp python3
keep_need
nbd_begin 27
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

disk=$NBD_TMP/disk
truncate -s 16M "$disk"
uri() { echo "nbd+unix:///?socket=$NBD_TMP/$1"; }
counts() { is "total and missing" "$(keep_status '(v["connections"]["total"], v["connections"]["missing"])')" "($1, $2)"; }
numbers() { is numbers "$(keep_status '[c["index"] for c in v["connections"]["list"]]')" "$1"; }
# Where the open connections lead to.
at() {
	is servers "$(keep_status 'sorted({c["peer"].rpartition("/")[2] for c in v["connections"]["list"]
		if c["state"] == "open"})')" "['$1']"
}
serve() { io_server "$1" file "$disk"; }

serve blue
blue=$IO_PID
check "kept" keep_start -D 120 "$(uri blue)"
can=$(keep_status 'v["state"] is not None')
if [ "$can" != True ]; then
	for command in "replace $NBD_DEV $(uri blue)" "add $NBD_DEV" "remove $NBD_DEV 0"; do
		# shellcheck disable=SC2086 # these are several words
		check "${command%% *} says that the driver cannot" keep_says 6 "this driver cannot" $command
	done
	check "nothing has changed" status 'v["connections"]["missing"]' 0
	for ((i = 6; i <= 27; i++)); do ktap_test_skip "the driver cannot change connections, $i"; done
	nbd_end
fi

check "verified I/O" keep_load 9
serve green
green=$IO_PID
check "it moves to another server" ctl replace "$NBD_DEV" "$(uri green)"
check "and is there" wait_until 5 at green
check "I/O goes on" keep_flows
kill -9 "$blue"
check "the first server is not needed any more" keep_flows
check "no connection was lost" nbd_not keep_logged "lost"
check "status says where it is" status 'v["uri"]' "$(uri green)"

check "three more connections" ctl add -n 3 "$NBD_DEV"
check "make four" counts 4 0
check "all there" wait_until 5 at green
check "I/O goes on, with four" keep_flows
check "one is removed" ctl remove "$NBD_DEV" 1
check "the others keep their numbers" wait_until 5 numbers "[0, 2, 3]"
check "the first free number is used" ctl add "$NBD_DEV"
check "in its place" numbers "[0, 1, 2, 3]"
check "one moves, and the others stay" ctl replace -c 2 "$NBD_DEV" "$(uri green)"
check "I/O goes on, with one that moved" keep_flows
check "no such connection" keep_says 4 "no connection 7" remove "$NBD_DEV" 7

io_server other memory 8M
check "another export is refused" keep_says 5 "shrunk" replace "$NBD_DEV" "$(uri other)"

kill -9 "$green"
check "the server dies" keep_log "cannot connect again"
check "all four are missing" counts 4 4
: >"$NBD_TMP/keep.log"
serve green
check "and are brought back to where it is now" keep_log "connected again"
check "all four" counts 4 0
check "I/O goes on after that" keep_flows
check "no error and no wrong byte" keep_load_ends
blockdev --flushbufs "$NBD_DEV"
check "the server's data" io_same "$disk" 8388608
nbd_end
