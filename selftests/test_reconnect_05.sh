#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A device in use moves to another server, several times, and gets more and fewer connections meanwhile: two nbdkit
# serve the same file, one after the other. No request fails, no byte is wrong, and none waits for a timeout. The
# connections are added and removed for NBD_CHANGE_SECONDS.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit fio cmp
[ "$NBD_DRIVER" = rust ] || nbd_skip_all "the C driver knows no connections by their number"
nbd_begin 14
nbd_pick

disk=$NBD_TMP/disk
genl() { within 10 "$NBD_DIR/helper_genl" "$@"; }
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
truncate -s 16M "$disk"
seconds=${NBD_CHANGE_SECONDS:-10}

attach() { genl connect -i "$NBD_INDEX" -u "$IO_SOCK" -n "$1" -b 4096 -D 20 -t 20; }
connections() { cat "$NBD_SYS/connections"; }

# Until it is told to end, or fails.
load() {
	fio --filename="$NBD_DEV" --thread --output-format=json --output="$NBD_TMP/fio.log" --name=load --rw=randrw \
		--bs=16k --size=8m --ioengine=libaio --iodepth=16 --direct=1 --time_based \
		--runtime=$((120 * NBD_TIME_SCALE + seconds)) --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		--verify_backlog=64 --serialize_overlap=1 --continue_on_error=none 2>"$NBD_TMP/fio.err" &
	IO_JOB=$!
	nbd_defer kill -9 $IO_JOB
	wait_until 30 io_busy 0
}
load_ends() {
	io_job_ends || return
	! grep -E "verify: bad|error=" "$NBD_TMP/fio.err" && ! grep -E '"error" : [1-9]' "$NBD_TMP/fio.log"
}
# The longest time of a request, in milliseconds.
longest() {
	grep -A 2 '"lat_ns"' "$NBD_TMP/fio.log" |
		awk -F '[ :,]+' '/"max"/ && $3 > m { m = $3 } END { print int(m / 1000000) }'
}
# How late a process was that sleeps 20 ms at a time, at most, in milliseconds: the machine may have stood still.
watch() {
	local before=${EPOCHREALTIME/./} now most=0
	echo 0 >"$NBD_TMP/late"
	while nbd_pause; do
		now=${EPOCHREALTIME/./}
		[ $((now - before)) -le $most ] || { most=$((now - before)); echo $((most / 1000)) >"$NBD_TMP/late"; }
		before=$now
	done
}
# A request that waits for more than its turn waits for the timeout, 20 seconds. It passes through five processes and
# threads, each of which the machine may keep waiting.
no_stall() {
	local ms=$1 late=$2
	[ "$ms" -gt 0 ] && [ "$ms" -lt $((1000 * NBD_TIME_SCALE + 2 * late)) ]
}

# moves TIMES CONNECTIONS: the other server takes over, and the old one can be stopped.
moves() {
	local i old
	for ((i = 1; i <= $1; i++)); do
		wait_until 15 io_more "$(io_requests)" || { echo "no I/O before move $i"; return 1; }
		old=$IO_PID
		io_server "sock.$i.$2" file "$disk" || return
		genl reconfigure -i "$NBD_INDEX" -u "$IO_SOCK" -n "$2" -k 0 || return
		# It ends when its last connection has.
		kill -TERM "$old"
		wait_until 5 nbd_exited "$old" || { echo "move $i: the old server does not end"; return 1; }
		io_job_runs || { echo "move $i: I/O has failed"; return 1; }
		is connections "$(connections)" "$2 $2" || return
	done
	wait_until 15 io_more "$(io_requests)" || { echo "no I/O after the last move"; return 1; }
	io_job_runs
}

# changes: three more, and three fewer.
changes() {
	local k end=$((SECONDS + seconds))
	for ((i = 1; i <= 4 || SECONDS < end; i++)); do
		genl reconfigure -i "$NBD_INDEX" -u "$IO_SOCK" -n 3 -k 4 || return
		is connections "$(connections)" "7 7" || return
		wait_until 15 io_more "$(io_requests)" || { echo "no I/O with 7"; return 1; }
		for k in $((i % 4)) 5 6; do genl remove "$NBD_INDEX" $k || return; done
		is connections "$(connections)" "4 4" || return
		# The next three get the lowest numbers: they are 0 to 3 again.
		genl reconfigure -i "$NBD_INDEX" -u "$IO_SOCK" -n 1 -k $((i % 4)) || return
		genl remove "$NBD_INDEX" 4 || return
		io_job_runs || { echo "turn $i: I/O has failed"; return 1; }
	done
	wait_until 15 io_more "$(io_requests)" || { echo "no I/O after the last turn"; return 1; }
	io_job_runs
}
end() {
	check "no error and no wrong byte, $1" load_ends
	kill "$watcher"
	late=$(<"$NBD_TMP/late")
	ms=$(longest)
	note "the longest request took $ms ms, and the machine was up to $late ms late"
	check "no stall, $1" no_stall "$ms" "$late"
	blockdev --flushbufs "$NBD_DEV"
	check "the server's data, $1" io_same "$disk" 8388608
	check "disconnect, $1" genl disconnect "$NBD_INDEX"
	kill -9 "$IO_PID" 2>/dev/null
}

for n in 1 4; do
	io_server "sock.0.$n" file "$disk"
	attach $n >/dev/null
	check "verified I/O, $n" load
	watch &
	watcher=$!
	disown
	nbd_defer kill -9 $watcher
	check "another server takes over five times, $n" moves 5 $n
	if [ $n != 1 ]; then
		check "connections are added and removed, $n" changes
		note "$((i - 1)) turns"
	fi
	end $n
done
check "nothing was lost" wait_until 5 nbd_is_free "$NBD_INDEX"

nbd_end
