#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Loading and unloading: again and again, with the device open, with a session, and right after one.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_client_common.sh"

SIZE=1048576

load_unload() {
	local i n
	n=$(nbd_scaled_down 20)
	for ((i = 1; i <= n; i++)); do
		nbd_load nbds_max=2 || { echo "cannot load, round $i"; return 1; }
		[ -e /sys/block/nbd1 ] || { echo "no nbd1, round $i"; return 1; }
		nbd_unload || { echo "cannot unload, round $i"; return 1; }
		[ ! -e /sys/block/nbd0 ] || { echo "nbd0 is left, round $i"; return 1; }
	done
}

# use INDEX: the device that all is about.
use() { export NBD_INDEX=$1 NBD_DEV=/dev/nbd$1; }
# A server that ends with its client.
serve_client() { serve --filter=exitlast memory $SIZE; }
session_over() { [ ! -e /sys/block/nbd0/pid ]; }

# unload_at_once SECONDS: does not sleep between its tries, so as to hit the earliest moment.
unload_at_once() {
	local end=$((${EPOCHREALTIME/./} + $1 * NBD_TIME_SCALE * 1000000))
	until nbd_try_unload; do
		[ "${EPOCHREALTIME/./}" -lt "$end" ] || { holders; return 1; }
	done
	nbd_not nbd_loaded
}

# refused: rmmod fails because of a user, and the device is still there.
refused() { nbd_in_use && [ -e /sys/block/nbd0 ]; }

# at_once CMD...: it succeeds within a second.
at_once() {
	local start=${EPOCHREALTIME/./}
	"$@" && [ $((${EPOCHREALTIME/./} - start)) -lt $((NBD_TIME_SCALE * 1000000)) ]
}

# The file stays open.
read_debug() {
	exec 6</sys/kernel/debug/nbd/nbd0/flags && read -r _ <&6
}

in_flight() { [ "$(awk '{ print $1 + $2 }' /sys/block/nbd0/inflight)" -gt 0 ]; }
# silent deaf|mute: 3 tests: the client of such a server, with a write in flight that a socket has no room
# for, is killed. With lockdep the module stays for the lock class of the socket, and the socket for what its peer
# has not read.
silent() {
	nbd_load nbds_max=1
	# It has read the partition table when it becomes so.
	serve --filter=exitlast --filter=delay memory 64M wdelay=1000
	check "connects to a server that becomes $1" connect
	[ "$1" != deaf ] || kill -STOP "$server"
	dd if=/dev/zero of=/dev/nbd0 bs=16M count=1 oflag=direct conv=notrunc status=none 2>/dev/null &
	disown
	check "it leaves a write without an answer, $1" wait_until 5 in_flight
	kill -9 "$client"
	[ "$1" != deaf ] || [ ! -e /proc/lockdep ] || stop_server
	check "can be unloaded when its client is killed, $1" unload_at_once 3
	stop_server
	nbd_unload
}

# session_round INDEX: a session, its end, and the end of the module without a pause. Sets $failed if not.
session_round() {
	use "$1"
	nbd_load nbds_max=2 || { failed="cannot load"; return; }
	serve_client || { failed="no server"; return; }
	connect || { failed="not connected"; return; }
	within 5 dd if="$NBD_DEV" of=/dev/null bs=64k count=4 iflag=direct status=none || { failed="cannot read"; return; }
	disconnect || { failed="not disconnected: $(<"$NBD_TMP/client")"; return; }
	unload_at_once 5 || { failed="cannot unload"; return; }
	wait_until 1 nbd_gone "$server" || failed="the server saw no end of the connection within a second"
}

rounds() {
	local i n failed=
	n=$(nbd_scaled_down 10)
	for ((i = 1; i <= n; i++)); do
		session_round $((i % 2))
		[ -z "$failed" ] || { echo "round $i: $failed"; return 1; }
	done
}

nbd_require nbdkit nbd-client
nbd_begin 26
# It is read often, and may be on a slow file system.
[ "$NBD_DRIVER" = c ] || { cp "$NBD_KO" "$NBD_TMP/nbd.ko"; NBD_KO=$NBD_TMP/nbd.ko; }
nbd_defer nbd_unload
nbd_defer stop_server
server="" client=""

use 0
nbd_unload
check "loads and unloads 20 times" load_unload

nbd_load nbds_max=2
exec 5</dev/nbd0
sleep 100 &
holder=$!
exec 5<&-
check "cannot be unloaded while a process has a device open" refused
kill $holder
wait $holder 2>/dev/null
check "can be unloaded when that process is gone" nbd_unload

nbd_load nbds_max=2
serve_client
check "connects" connect
check "cannot be unloaded while a session runs" refused
check "the session is not disturbed by that" \
	within 5 dd if=/dev/nbd0 of=/dev/null bs=$SIZE count=1 iflag=direct
exec 5</dev/nbd0
check "disconnects" disconnect
check "the server sees the end of the connection" wait_until 1 nbd_gone "$server"
check "the session ends" wait_until 5 session_over
check "cannot be unloaded while a process has the device of the ended session open" refused
exec 5<&-
check "can be unloaded when that process has closed it" nbd_unload

nbd_load nbds_max=1
serve_client
connect
kill -9 "$server"
check "can be unloaded right after the server went away" unload_at_once 5
nbd_unload

check "can be unloaded right after a disconnect, 10 times" rounds
use 0

nbd_load nbds_max=1
check "connects by netlink" within 5 "$NBD_DIR/helper_genl" connect -i 0
check "rmmod is refused at once while that session runs" at_once refused
check "disconnects by netlink" within 5 "$NBD_DIR/helper_genl" disconnect 0
nbd_unload

# Closing a file of debugfs calls the driver, whether or not the file is still there.
nbd_load nbds_max=1
serve_client
connect
check "a file of debugfs is open" read_debug
check "disconnects with that" disconnect
check "cannot be unloaded until it is closed" eval "wait_until 5 session_over && refused"
exec 6<&-
check "can be unloaded then" nbd_unload

silent mute
silent deaf
nbd_end
