#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the block layer's fault injection can do to a device: replies that get lost, requests and bios that
# fail before the driver has them. fault_alloc.c does the same with memory.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

DEBUG=/sys/kernel/debug

# inject NAME TIMES: the next TIMES of what fail NAME is about fail. quiet NAME: no more do.
inject() {
	echo 0 >"$DEBUG/$1/verbose" && echo 1 >"$DEBUG/$1/interval" && echo 0 >"$DEBUG/$1/space" &&
		echo 100 >"$DEBUG/$1/probability" && echo "$2" >"$DEBUG/$1/times"
}
quiet() { echo 0 >"$DEBUG/$1/probability"; }
# used_up NAME: as many failed as were to.
used_up() { is "what is left of $1" "$(<"$DEBUG/$1/times")" 0; }

read_block() { within 30 dd if="$NBD_DEV" of=/dev/null bs=4096 count=1 iflag=direct status=none; }
# Only EIO is what was injected.
read_fails() {
	local message
	message=$(LC_ALL=C read_block 2>&1) && { echo "it was read"; return 1; }
	[[ $message == *"Input/output error"* ]] || { echo "$message"; return 1; }
}
write_block() {
	within 30 dd if="$NBD_TMP/data" of="$NBD_DEV" bs=64k count=1 oflag=direct status=none
}
data_is_there() {
	within 30 dd if="$NBD_DEV" bs=64k count=1 iflag=direct status=none | cmp - "$NBD_TMP/data"
}

connect() {
	"$NBD_DIR/helper_genl" connect -i "$NBD_INDEX" -u "$IO_SOCK" "$@" && wait_until 10 nbd_connected
}
disconnect() { "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX" && wait_until 10 nbd_is_free "$NBD_INDEX"; }

lost_reply_costs_a_connection() {
	inject fail_io_timeout 1 || return
	write_block || { echo "the write failed"; return 1; }
	used_up fail_io_timeout || return
	nbd_log | grep -q "timed out" || { echo "the log has no timeout"; return 1; }
}
lost_reply_fails_without_another() {
	inject fail_io_timeout 1 || return
	read_fails && used_up fail_io_timeout
}
bio_fails() {
	inject fail_make_request 1 || return
	read_fails && used_up fail_make_request
}

[ -e "$DEBUG/fail_io_timeout" ] || nbd_skip_all "this kernel has no CONFIG_FAIL_IO_TIMEOUT"
[ -e "$DEBUG/fail_make_request" ] || nbd_skip_all "this kernel has no CONFIG_FAIL_MAKE_REQUEST"
nbd_require nbdkit cmp
nbd_begin 8
nbd_pick
head -c 65536 /dev/urandom >"$NBD_TMP/data"
io_server sock --filter=noextents memory 8M
for name in fail_io_timeout fail_make_request; do nbd_defer quiet $name; done
nbd_log_mark

connect -n 2 -t $((1 * NBD_TIME_SCALE))
read_block
echo 1 >"$NBD_SYS/io-timeout-fail"
check "a lost reply costs a connection, not the write" lost_reply_costs_a_connection
quiet fail_io_timeout
check "what was written then is there" data_is_there
check "a lost reply on the last connection fails the read" lost_reply_fails_without_another
quiet fail_io_timeout
check "disconnect after lost replies" disconnect

connect -t 30
# The first opener looks for partitions, with a bio of its own.
read_block
echo 1 >"$NBD_SYS/make-it-fail"
check "a bio that fails above the driver" bio_fails
quiet fail_make_request
check "the session goes on after it" read_block
echo 0 >"$NBD_SYS/make-it-fail"
check "what was written is there still" data_is_there
check "disconnect" disconnect
nbd_end
