#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A server is stopped properly and started again, several times, under verified I/O and under a mounted file
# system: nbdkit says to each request that it is shutting down, and exits when its last connection has been ended.
# Within dead_conn_timeout no user sees an error or a wrong byte; else it is EIO, in time.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio cmp mkfs.ext4 e2fsck
nbd_begin 70
nbd_pick

disk=$NBD_TMP/disk mnt=$NBD_TMP/mnt
mkdir "$mnt"
# nbdkit says nothing if each of its threads has a request when it is stopped, so it has more of them than fio requests.
serve() { io_server sock -t 32 file "$disk"; }
new_disk() { truncate -s 0 "$disk" && truncate -s "$1" "$disk"; }
genl() { within 10 "$NBD_DIR/helper_genl" "$@"; }
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
nbd_defer umount "$mnt"

# stop: it exits by itself.
stop() {
	kill -TERM "$IO_PID"
	wait_until 5 nbd_exited "$IO_PID" || { echo "the server does not exit"; return 1; }
}
# Until it is told to end, or fails. It comes to the same block again, and must not have two writes of one in flight.
FIO=(fio --filename="$NBD_DEV" --thread --output="$NBD_TMP/fio.log" --name=load --rw=randrw --bs=16k --size=8m
	--ioengine=libaio --iodepth=16 --direct=1 --time_based --runtime=$((90 * NBD_TIME_SCALE))
	--verify=crc32c --verify_fatal=1 --verify_state_save=0 --verify_backlog=64 --serialize_overlap=1
	--continue_on_error=none)
load() {
	"${FIO[@]}" &
	IO_JOB=$!
	nbd_defer kill -9 $IO_JOB
	wait_until 10 io_busy 0
}
load_ends() { io_job_ends && ! grep -E "verify: bad|err= *[1-9]|error=" "$NBD_TMP/fio.log"; }
# stops TIMES CONNECTIONS RUNS: stop and start, as long as RUNS is true.
stops() {
	local i
	for ((i = 1; i <= $1; i++)); do
		wait_until 15 io_more "$(io_requests)" || { echo "no I/O before stop $i"; return 1; }
		stop || return
		wait_until 10 io_said dead $((i * $2)) || { echo "stop $i: not all are dead"; return 1; }
		"$3" || { echo "stop $i: I/O has failed"; return 1; }
		serve || return
		wait_until 15 io_said again $((i * $2)) || { echo "stop $i: not all are back"; return 1; }
	done
	wait_until 15 io_more "$(io_requests)" || { echo "no I/O after the last stop"; return 1; }
	"$3"
}
deaths() { grep -c dead "$NBD_TMP/persist.log"; }
end() {
	check "disconnect, $1" genl disconnect "$NBD_INDEX"
	check "free, $1" wait_until 5 io_gone "$IO_PERSIST"
	kill -9 "$IO_PID" 2>/dev/null
}

for n in 1 4; do
	new_disk 16M
	serve
	io_persist 20 -n $n
	check "verified I/O, $n" load
	check "the server is stopped and comes back three times, $n" stops 3 $n io_job_runs
	check "no error and no wrong byte, $n" load_ends
	blockdev --flushbufs "$NBD_DEV"
	check "the server's data, $n" io_same "$disk" 8388608
	check "each connection was lost three times, $n" is dead "$(deaths)" $((n * 3))
	end $n
done

# Writers of files that are on the disk before the next one is begun: files N I says which.
text() { yes "writer $1, file $2" | head -c $((4567 + $2 % 9 * 3456)); }
writer() {
	local i=0
	until [ -e "$NBD_TMP/enough" ]; do
		text "$1" $i >"$mnt/$1.$i" && sync "$mnt/$1.$i" || return
		echo $i >"$NBD_TMP/writer.$1"
		i=$((i + 1))
	done
}
write_files() {
	local w
	rm -f "$NBD_TMP/enough"
	writers=()
	for w in 1 2 3; do
		writer $w &
		writers+=($!)
		nbd_defer kill -9 $!
	done
}
writers_run() {
	local pid
	for pid in "${writers[@]}"; do ! nbd_gone "$pid" || return; done
}
writers_end() {
	local pid
	touch "$NBD_TMP/enough"
	for pid in "${writers[@]}"; do
		wait_until 20 nbd_exited "$pid" && wait "$pid" || return
	done
}
files_are_there() {
	local w i
	for w in 1 2 3; do
		for ((i = $(<"$NBD_TMP/writer.$w"); i >= 0; i--)); do
			text $w "$i" | cmp - "$mnt/$w.$i" || return
		done
	done
}

for n in 1 4; do
	new_disk 64M
	serve
	io_persist 20 -n $n
	check "mkfs, $n" io_mkfs ext4
	check "mount, $n" within 30 mount -t ext4 "$NBD_DEV" "$mnt"
	write_files
	check "the server is stopped and comes back twice under ext4, $n" stops 2 $n writers_run
	check "no writer has failed, $n" writers_end
	check "unmount, $n" within 30 umount "$mnt"
	check "fsck, $n" io_fsck ext4
	check "mount again, $n" within 30 mount -t ext4 "$NBD_DEV" "$mnt"
	check "every file is there, $n" files_are_there
	check "unmount again, $n" within 30 umount "$mnt"
	end "ext4, $n"
done

# What fio says of the error that it ended with: no other one, nor a wrong byte.
errors() { grep -oE 'error=[^)]*|verify: bad.*' "$NBD_TMP/fio.log" | sort -u; }
fails() {
	io_read_one 5 2>"$NBD_TMP/dd"
	grep ': Input/output error$' "$NBD_TMP/dd" || { cat "$NBD_TMP/dd"; return 1; }
}
# A device without a session can be read, too: there is nothing.
works() { [ "$(within 5 dd if="$NBD_DEV" bs=4096 count=1 iflag=direct status=none | wc -c)" = 4096 ]; }
now() { echo $((${EPOCHREALTIME/./} / 1000)); }

again() { genl reconfigure -i "$NBD_INDEX" -u "$IO_SOCK" && works; }

# It does not come back in time.
new_disk 16M
for n in 1 4; do
	serve
	check "connected with less time, $n" genl connect -i "$NBD_INDEX" -u "$IO_SOCK" -b 4096 -n $n -D 2
	wait_until 5 nbd_connected
	check "I/O, $n" io_load 0 "${FIO[@]}"
	start=$(now)
	check "the server is stopped, $n" stop
	check "the I/O ends, $n" wait_until 5 io_loaded
	took=$(($(now) - start))
	check "not before its time, $n" [ $took -gt 1500 ]
	check "with EIO and no wrong byte, $n" is error "$(errors)" "error=Input/output error"
	check "later I/O fails, too, $n" fails
	serve
	check "it works again, $n" again
	check "disconnect, less time, $n" genl disconnect "$NBD_INDEX"
	wait_until 3 nbd_is_free "$NBD_INDEX"
	kill -9 "$IO_PID"
done

# A client with the ioctl interface ends, or connects again. It must not find the old server, which accepts no one.
pid() { cat "$NBD_SYS/pid" 2>/dev/null; }
stop_client() {
	rm "$IO_SOCK"
	stop
}
serve
io_attach_unix -b 4096
check "I/O of a client" io_load 0 "${FIO[@]}"
check "the client's server is stopped" stop_client
check "the client's I/O ends" wait_until 5 io_loaded
check "with EIO" is error "$(errors)" "error=Input/output error"
check "the client ends, and the device is free" wait_until 5 io_gone "$IO_CLIENT"

reconnected() { [ "$(grep -c "^bs=" "$NBD_TMP/nbd-client.log")" -gt "$1" ] && nbd_connected; }
serve
sessions=$(grep -c "^bs=" "$NBD_TMP/nbd-client.log")
io_attach_unix -b 4096 -persist -t 3
for round in 1 2; do
	io_load 0 "${FIO[@]}"
	check "the server of a persistent client is stopped, $round" stop_client
	check "its I/O ends, $round" wait_until 5 io_loaded
	serve
	check "the client has a session again, $round" wait_until 10 reconnected $((sessions + round))
	check "it is the same client, $round" is pid "$(pid)" "$IO_CLIENT"
	check "it can be used, $round" works
done
check "-d ends it" io_detach
kill -9 "$IO_PID"
nbd_end
