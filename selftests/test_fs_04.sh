#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Writeback to a server in the same machine, when memory is short: ext4 written through the page
# cache, through mappings and with fsync by several processes that are in a group with less memory
# than they write, or with little left in all of the machine, while others sync and drop caches.
# It comes to an end, every byte is right, and the file system is clean; also if the server is
# killed in the middle of it and comes back.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_mem_common.sh"

# A slow kernel does less, and one that watches over memory needs more of it at once. fio itself takes
# 10 MiB. If the group has room for few dirty pages besides, the kernel may kill for memory before
# they are written.
if [ "$NBD_TIME_SCALE" -gt 1 ]; then
	LIMIT=24 FLOOR=64 SIZE=12
else
	LIMIT=32	# MiB that the group may have, and
	FLOOR=32	# that are available in all of the machine, for
	SIZE=16		# in each of three files.
fi

nbd_require nbdkit nbd-client qemu-nbd fio python3 mkfs.ext4 e2fsck
nbd_begin 28
nbd_pick

mnt=$NBD_TMP/mnt disk=$NBD_TMP/disk
mkdir "$mnt"
nbd_defer umount "$mnt"
group=
if mem_groups && mem_group writers memory.max=${LIMIT}M; then
	group=$MEM_GROUP
else
	note "groups cannot be limited here: all of the machine is"
fi

# fio_write; fio_read: three processes. Each block carries its place and checksum, so that reading
# needs no order and can be quick.
round=0 MEM_HOG=
fio_files() {
	# shellcheck disable=SC2016
	exec fio --directory="$mnt" --filename_format='$jobname' --output="$NBD_TMP/fio.log" \
		--randseed=$round --verify=crc32c --verify_state_save=0 --verify_fatal=1 "$@"
}
fio_write() {
	# Else fio writes them first, one after the other.
	truncate -s ${SIZE}M "$mnt"/{seq,rand,mapped} || return
	fio_files --do_verify=0 --end_fsync=1 \
		--name=seq --rw=write --bs=64k --size=${SIZE}M --ioengine=psync --fsync=64 \
		--name=rand --rw=randwrite --bs=16k --size=${SIZE}M --ioengine=psync --fsync=256 \
		--name=mapped --rw=randwrite --bs=16k --size=${SIZE}M --ioengine=mmap --fsync=256
}
fio_read() {
	fio_files --rw=read --size=${SIZE}M --name=seq --bs=64k --name=rand --bs=16k \
		--name=mapped --bs=16k --ioengine=mmap
}
# small_files: each is on the disk before the next.
small_file() { yes "round $round, file $1" | head -c $(($1 * 4567)); }
small_files() {
	local i
	for ((i = 0; i < 16; i++)); do
		small_file $i >"$mnt/small.$i" || return
		sync "$mnt/small.$i" || return
	done
}
# syncs PID...: now and then until all of these have ended. If all of the machine is to be short of memory,
# caches are dropped only when it has been, for it would not be.
syncs() {
	local before
	while true; do
		before=$(written)
		until [ "$(written)" -ge $((before + 8)) ]; do
			! nbd_gone "$@" || return 0
			sleep 0.1
		done
		[ "$where" != group ] && [ "$(scanned)" = "$scanned" ] || echo 3 >/proc/sys/vm/drop_caches
		sync -f "$mnt" || return
	done
}
# written: MiB.
written() { awk '{print int($7 / 2048)}' "$NBD_SYS/stat"; }
# limited CMD...: in the group, if it is the group that has little memory.
limited() {
	[ "$where" = machine ] || mem_enter "$group" || return
	"$@"
}
write_all() {
	limited fio_write &
	fio=$! writers=($!)
	limited small_files &
	writers+=($!)
	syncs "${writers[@]}" &
	writers+=($!)
	local pid
	for pid in "${writers[@]}"; do nbd_defer kill -9 "$pid"; done
}
read_all() {
	echo 3 >/proc/sys/vm/drop_caches
	limited fio_read &
	mem_ends 60 $! || { cat "$NBD_TMP/fio.log"; return 1; }
	local i
	for ((i = 0; i < 16; i++)); do
		small_file $i | cmp - "$mnt/small.$i" || return
	done
}
scanned() { mem_stat pgscan_kswapd pgscan_direct; }
felt() {
	if [ "$where" != machine ]; then
		cat "$group/memory.events"
		[ "$(mem_event "$group" max)" -gt "$limited" ] || return
	fi
	if [ "$where" != group ]; then
		echo "scanned: $scanned, $(scanned)"
		[ "$(scanned)" -gt "$scanned" ] || return
	fi
}

# start WHERE TITLE: a file system on the device, and little memory in the group, in the machine,
# or in both.
start() {
	round=$((round + 1))
	where=$1 title=$2
	[ -n "$group" ] || where=machine
	mem_last "$IO_PID"
	check "mkfs, $title" io_mkfs ext4
	check "mount, $title" within 30 mount -t ext4 "$NBD_DEV" "$mnt"
	killed=$(mem_stat oom_kill)
	[ "$where" = group ] || [ -n "$MEM_HOG" ] || mem_hog $FLOOR
	[ "$where" = machine ] || limited=$(mem_event "$group" max)
	scanned=$(scanned)
	write_all
}
finish() {
	check "writers end, $title" mem_ends 90 "${writers[@]}"
	check "memory was short, $title" felt
	check "every byte is right, $title" read_all
	check "unmount, $title" within 60 umount "$mnt"
	check "nobody was killed for memory, $title" is oom_kill "$(mem_stat oom_kill)" "$killed"
	check "fsck, $title" io_fsck ext4
}
empty_disk() {
	rm -f "$disk"
	truncate -s 96M "$disk"
}

empty_disk
io_server_tcp file "$disk"
io_attach_tcp -b 4096
start group "in a group"
finish
io_detach
kill -9 "$IO_PID"

empty_disk
io_attach_qemu -f raw --cache=writeback "$disk"
start machine "in the machine"
finish
io_detach_qemu

# The server is killed in the middle of that, and is back when all wait for it.
serve() { io_server sock file "$disk"; }
# far N: so much has been written, and more is on its way.
far() { [ "$(written)" -ge "$1" ] && [ "$(awk '{print $2}' "$NBD_SYS/inflight")" -gt 0 ]; }
all_wait() {
	local pid state
	for pid in $(pgrep -P "$fio"); do
		read -r _ _ state _ <"/proc/$pid/stat" || continue
		[ "$state" = D ] || return
	done 2>/dev/null
	# Requests that wait for a connection are not in flight.
	[ "$(mem_stat nr_writeback)" -gt 0 ]
}
kills() {
	local i
	for i in 1 2; do
		wait_until 30 far $(($(written) + 8)) || { echo "no I/O before kill $i"; return 1; }
		kill -9 "$IO_PID"
		wait_until 20 io_said dead $i || { echo "kill $i: not dead"; return 1; }
		wait_until 30 all_wait || { echo "kill $i: nobody waits for it"; return 1; }
		serve || return
		mem_last "$IO_PID"
		wait_until 30 io_said again $i || { echo "kill $i: not back"; return 1; }
		! nbd_gone "$fio" || { echo "kill $i: writers have ended"; return 1; }
	done
}

empty_disk
serve
io_persist $((60 * NBD_TIME_SCALE))
start both "server killed"
mem_last "$IO_PERSIST"
check "the server is killed and comes back twice" kills
finish
check "disconnect" "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
check "free" wait_until 5 io_gone "$IO_PERSIST"
check "memory was taken all the time" kill -0 "$MEM_HOG"
nbd_end
