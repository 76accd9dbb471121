#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Many devices are made, connected, disconnected and destroyed in turn, and one is connected and
# disconnected often: memory is where it was. NBD_ROUNDS is how many, 500 by default; on slow kernels, less.

. "$(dirname "$0")/test_common.sh"

nbd_begin 6
ROUNDS=${NBD_ROUNDS:-$([ "$NBD_TIME_SCALE" -gt 1 ] && nbd_scaled_down 150 || echo 500)}
nbd_pick

# turns FIRST LAST ROUNDS [FLAGS]: 55 s for 150 of them.
turns() { within $((55 * ($3 + 149) / 150)) "$NBD_DIR/helper_genl" turns "$@"; }
# used: what the kernel has of its own, in KiB, once what was freed late is free.
used() {
	for _ in 1 2 3; do
		# The debug kernel takes its time with RCU.
		echo 2 >/proc/sys/vm/drop_caches
		"$NBD_DIR/helper_genl" status >/dev/null
	done
	awk '/^(Slab|Percpu|KernelStack|PageTables):/ { n += $2 } END { print n }' /proc/meminfo
}
# settled LIMIT: it is at most that much.
settled() { now=$(used) && [ "$now" -le "$1" ]; }
# stable: it is what it was the time before.
stable() {
	local was=$last
	last=$(used)
	[ $((last - was)) -lt 128 ] && [ $((was - last)) -lt 128 ]
}
threads() { pgrep -c '^nbd'; }
devices() { find /sys/block -name 'nbd*' | wc -l; }

had=$(devices)
# What is there only after the first ones.
check "a few turns first" turns 300 319 20 1
turns "$NBD_INDEX" "$NBD_INDEX" 10
last=0
wait_until 5 stable
before=$last
workers=$(threads)
start=$SECONDS
check "devices in turn" turns 300 $((299 + ROUNDS)) "$ROUNDS" 1
note "$ROUNDS devices in $((SECONDS - start)) s"
check "one device again and again" turns "$NBD_INDEX" "$NBD_INDEX" "$ROUNDS"
grown() { wait_until 10 settled $((before + 2048)) || { echo "from $before to $now KiB"; false; }; }
check "memory is where it was" grown
check "no thread is left" wait_until 5 eval "[ \"\$(threads)\" -le $workers ]"
check "no device is left" wait_until 5 eval "[ \"\$(devices)\" = $had ]"
nbd_end
