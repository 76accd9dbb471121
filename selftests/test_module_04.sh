#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Many devices that are not used: what they cost, also compared with the other driver, and that they work.
# NBD_MANY_DEVICES is how many, 256 by default: to remove one, the kernel waits for RCU for some 50 ms.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_mem_common.sh"

MANY=${NBD_MANY_DEVICES:-$([ "$NBD_TIME_SCALE" -gt 1 ] && echo 64 || echo 256)}
# Threads that the kernel may have more for other reasons, its workers for one.
THREADS=32

threads() { ps --no-headers --ppid 2 | wc -l; }
devices() { find /sys/block -name 'nbd*' | wc -l; }
genl() { within 10 "$NBD_DIR/helper_genl" "$@"; }

# load FILE: that module with all these devices. Sets load, the time in microseconds; memory, what they take
# in KiB, and more, how many threads there are more.
load() {
	local before start
	before=$(threads)
	mem_free
	memory=$MEM_FREE
	start=${EPOCHREALTIME/./}
	insmod "$1" nbds_max="$MANY" max_part=1 || return
	load=$((${EPOCHREALTIME/./} - start))
	nbd_settle
	mem_free
	memory=$((memory - MEM_FREE))
	more=$(($(threads) - before))
}

# status_of_all: all are listed, unless that is more than a message can hold: 64 KiB of 20 bytes each.
status_of_all() {
	genl status >"$NBD_TMP/status"
	if [ "$MANY" -gt 3200 ]; then
		grep EMSGSIZE "$NBD_TMP/status" >/dev/null
	else
		is devices "$(wc -l <"$NBD_TMP/status")" "$MANY" && nbd_not grep -v ' 0$' "$NBD_TMP/status"
	fi || { head -n 3 "$NBD_TMP/status"; return 1; }
}
readable() { within 5 dd if="/dev/nbd$1" of=/dev/null bs=4096 count=1 iflag=direct status=none; }
# Whether the kernel watches over memory: it takes some for all that is allocated, and gives it back late.
watched() { [ -e /sys/kernel/debug/kmemleak ]; }
# check_unwatched WHY NAME UNIT GOT LIMIT
check_unwatched() {
	if watched; then
		ktap_test_skip "$2: $1"
	else
		check "$2" at_most "${@:3}"
	fi
}
check_memory() {
	check_unwatched "KASAN and kmemleak take as much as the devices; kmemleak finds what is lost" "$@"
}
check_time() { check_unwatched "most of the time is that of KASAN, kmemleak and lockdep" "$@"; }
# at_most UNIT GOT LIMIT
at_most() { [ "$2" -le "$3" ] || { echo "$2 $1, more than $3"; return 1; }; }

nbd_require ps find
nbd_begin 14
nbd_unload || ktap_exit_fail_msg "the module cannot be unloaded"
nbd_defer nbd_unload
mem_exact

# Not an installed one, which may be the Rust driver.
c=$(find "/lib/modules/$(uname -r)/kernel/drivers/block" -name 'nbd.ko*' 2>/dev/null)
[ -z "$c" ] || nbd_plain "$c" >"$NBD_TMP/c.ko"
[ ! -r "$NBD_KO" ] || cp "$NBD_KO" "$NBD_TMP/rust.ko"
if [ "$NBD_DRIVER" = c ]; then other=rust; else other=c; fi

# In any case the kernel has had as many disks before.
if [ ! -e "$NBD_TMP/$other.ko" ]; then
	load "$NBD_TMP/$NBD_DRIVER.ko" && nbd_unload
else
	load "$NBD_TMP/$other.ko" || ktap_exit_fail_msg "the other driver cannot be loaded"
	note "the other driver: $MANY devices in $((load / 1000)) ms, $((memory / MANY)) KiB each, $more threads"
	others_load=$load others_memory=$memory
	nbd_unload || ktap_exit_fail_msg "the other driver cannot be unloaded"
fi

mem_free
free=$MEM_FREE
check "loads" load "$NBD_TMP/$NBD_DRIVER.ko"
note "$MANY devices in $((load / 1000)) ms, $((memory / MANY)) KiB each, $more threads"
check "all devices are there" is devices "$(devices)" "$MANY"
check_memory "a device takes at most 200 KiB" "KiB a device" $((memory / MANY)) 200
check "no device has a thread" at_most threads "$more" "$THREADS"
if [ -e "$NBD_TMP/$other.ko" ]; then
	check_memory "less than half of what the other driver takes" KiB $((memory * 2)) "$others_memory"
	check_time "loading takes no longer than with the other driver" microseconds "$load" "$others_load"
else
	ktap_test_skip "less than half of what the other driver takes: there is no other one"
	ktap_test_skip "loading takes no longer than with the other driver: there is no other one"
fi

last=$((MANY - 1))
check "STATUS of all" status_of_all
check "STATUS of the last one" is status "$(genl status $last)" "$last 0"
check "the last one is connected" genl connect -i $last
check "and read" readable $last
check "and disconnected" genl disconnect $last
start=${EPOCHREALTIME/./}
check "unloads" within $((MANY / 8)) rmmod nbd
note "unloaded in $(((${EPOCHREALTIME/./} - start) / 1000)) ms"
check "no device is left" is devices "$(devices)" 0
mem_free
note "$((free - MEM_FREE)) KiB are kept"
check_memory "memory is where it was" "KiB kept" $((free - MEM_FREE)) $((MANY * 8))
nbd_end
