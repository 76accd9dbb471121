#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the tests with real servers share: start nbdkit or qemu-nbd, attach nbd-client, verify with
# fio. A test sources test_common.sh, then this.

# io_failed PROGRAM: show the last words of the program that failed.
io_failed() {
	note "$1: $(tail -n 1 "$NBD_TMP/$1.log")"
	return 1
}

# io_server NAME ARGS...: start nbdkit on the Unix socket $NBD_TMP/NAME and set IO_PID and
# IO_SOCK.
io_server() {
	IO_SOCK=$NBD_TMP/$1
	rm -f "$IO_SOCK"
	shift
	nbdkit -f -U "$IO_SOCK" "$@" >>"$NBD_TMP/nbdkit.log" 2>&1 &
	IO_PID=$!
	disown
	nbd_defer kill -9 $IO_PID
	wait_until 10 [ -S "$IO_SOCK" ] || io_failed nbdkit
}

# io_server_tcp ARGS...: the same on a free TCP port of the loopback address; sets IO_PORT.
io_server_tcp() {
	local try
	for try in 1 2 3 4 5; do
		IO_PORT=$((20000 + RANDOM % 10000 + try))
		nbdkit -f -i 127.0.0.1 -p $IO_PORT -P "$NBD_TMP/nbdkit.$IO_PORT" "$@" \
			>>"$NBD_TMP/nbdkit.log" 2>&1 &
		IO_PID=$!
		disown
		nbd_defer kill -9 $IO_PID
		wait_until 10 io_up_or_dead "$NBD_TMP/nbdkit.$IO_PORT"
		[ ! -s "$NBD_TMP/nbdkit.$IO_PORT" ] || return 0
	done
	io_failed nbdkit
}
io_up_or_dead() { [ -s "$1" ] || nbd_gone "$IO_PID"; }

# io_attach ARGS...: nbd-client with the ioctl interface, staying in the foreground of a job of
# its own.
io_attach() {
	nbd-client -L -n "$@" >>"$NBD_TMP/nbd-client.log" 2>&1 &
	IO_CLIENT=$!
	disown
	nbd_defer kill -9 $IO_CLIENT
	wait_until 10 nbd_connected || io_failed nbd-client
}

io_attach_unix() { io_attach -u "$IO_SOCK" "$NBD_DEV" "$@"; }
io_attach_tcp() { io_attach 127.0.0.1 "$IO_PORT" "$NBD_DEV" "$@"; }

# io_persist SECONDS ARGS...: connect to IO_SOCK by netlink, and again as soon as the server is back,
# if that is within this time. Sets IO_PERSIST. io_said WORD N: it has reported that N times.
io_persist() {
	"$NBD_DIR/helper_genl" persist -i "$NBD_INDEX" -u "$IO_SOCK" -b 4096 -D "$1" -t "$1" "${@:2}" \
		>"$NBD_TMP/persist.log" 2>&1 &
	IO_PERSIST=$!
	disown
	nbd_defer kill -9 $IO_PERSIST
	wait_until 10 nbd_connected || io_failed persist
}
io_said() { [ "$(grep -c "$1" "$NBD_TMP/persist.log")" -ge "$2" ]; }

# io_gone [PID]: the process (default: the client) has ended and the device is free.
io_gone() { nbd_gone "${1:-$IO_CLIENT}" && nbd_is_free "$NBD_INDEX"; }

io_detach() {
	within 10 nbd-client -L -d "$NBD_DEV" >>"$NBD_TMP/nbd-client.log" 2>&1 &&
		wait_until 10 io_gone "$IO_CLIENT"
}

# io_attach_qemu ARGS...: qemu-nbd -c with these arguments. It goes to the background when it is
# attached; IO_PID is the process that serves.
io_attach_qemu() {
	rm -f "$NBD_TMP/qemu-nbd.pid"
	within 20 qemu-nbd -c "$NBD_DEV" --pid-file="$NBD_TMP/qemu-nbd.pid" "$@" </dev/null \
		>"$NBD_TMP/qemu-nbd.log" 2>&1 || io_failed qemu-nbd || return
	IO_PID=$(<"$NBD_TMP/qemu-nbd.pid")
	nbd_defer kill -9 "$IO_PID"
	wait_until 10 nbd_connected
}

io_detach_qemu() {
	within 10 qemu-nbd -d "$NBD_DEV" >>"$NBD_TMP/qemu-nbd.log" 2>&1 &&
		wait_until 10 io_gone "$IO_PID"
}

# io_load N CMD...: run CMD, which does I/O, until it ends; then its exit status is in $NBD_TMP/load.
# Returns when more than N requests are in flight.
io_load() {
	local n=$1
	shift
	rm -f "$NBD_TMP/load"
	(
		"$@" 2>"$NBD_TMP/fio"
		echo $? >"$NBD_TMP/load"
	) &
	disown
	wait_until 10 io_busy "$n"
}
io_loaded() { [ -s "$NBD_TMP/load" ]; }
# io_busy N: more than N requests are in flight; io_still: none is.
io_in_flight() { awk '{print $1 + $2}' "$NBD_SYS/inflight"; }
io_busy() { [ "$(io_in_flight)" -gt "$1" ]; }
io_still() { [ "$(io_in_flight)" = 0 ]; }

# A test that has fio verify I/O in the background puts its process into IO_JOB. io_job_runs: it has not
# ended, as it would after an error. io_job_ends: it ends when it is told to; how it went is in its output.
# shellcheck disable=SC2153
io_job_runs() { ! nbd_gone "$IO_JOB"; }
io_job_ends() {
	io_job_runs || return
	kill -INT "$IO_JOB"
	wait_until 20 nbd_exited "$IO_JOB" || return
	# fio says that it was interrupted.
	wait "$IO_JOB" || :
}

# io_requests: how many have been completed; io_more N [MORE]: more than MORE (50) after these N.
io_requests() { awk '{print $1 + $5}' "$NBD_SYS/stat"; }
io_more() { [ "$(io_requests)" -gt $(($1 + ${2:-50})) ]; }

# io_same FILE BYTES: the first bytes of the device are those of the file.
io_same() { within 20 cmp -n "$2" "$NBD_DEV" "$1"; }

# io_read_one SECONDS: read a block that is in no cache.
io_read_one() { within "$1" dd if="$NBD_DEV" of=/dev/null bs=4096 count=1 iflag=direct status=none; }

# io_none_stuck: no process that does I/O is in uninterruptible sleep.
io_none_stuck() { [ -z "$(ps -eo pid,stat,comm | awk '$2 ~ /^D/ && $3 ~ /^(fio|dd|kworker|nbd)/')" ]; }

# Sequential and random, 4 KiB to 1 MiB, each in a region of its own.
IO_SIZE=13M
IO_JOBS=(
	--name=seq4k --rw=write --bs=4k --offset=0 --size=512k
	--stonewall --name=rand4k --rw=randwrite --bs=4k --offset=512k --size=512k
	--stonewall --name=seq64k --rw=write --bs=64k --offset=1m --size=2m
	--stonewall --name=rand64k --rw=randwrite --bs=64k --offset=3m --size=2m
	--stonewall --name=seq1m --rw=write --bs=1m --offset=5m --size=4m
	--stonewall --name=rand1m --rw=randwrite --bs=1m --offset=9m --size=4m
)

# io_fio FILE ARGS...: write all that with checksums into FILE. io_fio_check: read and check it.
io_fio() {
	local file=$1
	shift
	within 60 fio --filename="$file" --thread --output=/dev/null \
		--randseed=42 --allrandrepeat=1 \
		--verify=crc32c --verify_state_save=0 --do_verify=0 \
		"$@" "${IO_JOBS[@]}"
}
io_fio_check() {
	local file=$1
	shift
	within 60 fio --filename="$file" --thread --output=/dev/null \
		--randseed=42 --allrandrepeat=1 \
		--verify=crc32c --verify_state_save=0 --verify_only --verify_fatal=1 \
		"$@" "${IO_JOBS[@]}"
}

io_wipe() {
	within 20 dd if=/dev/zero of="$1" bs=4M iflag=count_bytes count=$IO_SIZE conv=notrunc \
		status=none
}

# io_rounds BACKEND WHAT: 3 tests for each way of access. What was written through the device is
# read back through it with an empty cache, and is in the backend. BACKEND is a file of IO_SIZE,
# or - for none.
io_rounds() {
	local way args
	for way in direct buffered; do
		args=(--direct=1 --ioengine=libaio --iodepth=8)
		[ $way = direct ] || args=(--direct=0 --ioengine=psync)
		check "$2, $way: write" io_fio "$NBD_DEV" "${args[@]}" --end_fsync=1
		blockdev --flushbufs "$NBD_DEV"
		check "$2, $way: read back" io_fio_check "$NBD_DEV" "${args[@]}"
		[ "$1" != - ] || continue
		check "$2, $way: the backend's data" io_fio_check "$1" --direct=0 --ioengine=psync
		io_wipe "$1"
		blockdev --flushbufs "$NBD_DEV"
	done
}

# io_files DIR: some MiB of files of all kinds of sizes, the same for each call; io_sums DIR:
# their checksums.
io_files() {
	local i
	for i in 1 2 3 4; do
		mkdir -p "$1/dir$i/sub" || return
		head -c $((i * 333333)) /dev/urandom >"$1/dir$i/large" || return
		split -n 8 "$1/dir$i/large" "$1/dir$i/sub/part." || return
		ln -s large "$1/dir$i/link" || return
	done
}
io_sums() { (cd "$1" && find . \( -type f -o -type l \) -print0 | sort -z | xargs -0 sha256sum); }

# io_fsck FS: the file system on the device has no flaw.
io_fsck() {
	case $1 in
	ext4) within 60 e2fsck -fn "$NBD_DEV" ;;
	xfs) within 60 xfs_repair -n "$NBD_DEV" ;;
	esac
}
io_mkfs() {
	case $1 in
	ext4) within 60 mkfs.ext4 -q -F "$NBD_DEV" ;;
	xfs) within 60 mkfs.xfs -q -f "$NBD_DEV" ;;
	esac
}

# io_fs FS ATTACH DETACH: 10 tests: make a file system, use it, and find all of it after another
# attach.
io_fs() {
	local mnt=$NBD_TMP/mnt
	mkdir -p "$mnt"
	nbd_defer umount "$mnt"
	$2
	check "mkfs, $1" io_mkfs "$1"
	check "mount, $1" within 30 mount -t "$1" "$NBD_DEV" "$mnt"
	check "write files, $1" io_files "$mnt"
	io_sums "$mnt" >"$NBD_TMP/sums"
	check "unmount, $1" within 60 umount "$mnt"
	check "fsck, $1" io_fsck "$1"
	check "detach, $1" "$3"
	$2
	check "mount again, $1" within 30 mount -t "$1" "$NBD_DEV" "$mnt"
	io_sums "$mnt" >"$NBD_TMP/sums.again"
	check "every file's checksum, $1" cmp "$NBD_TMP/sums" "$NBD_TMP/sums.again"
	rm -rf "$mnt"/dir[24]
	within 30 fstrim "$mnt" >/dev/null 2>&1
	check "delete, trim and unmount, $1" within 60 umount "$mnt"
	check "fsck after that, $1" io_fsck "$1"
	$3
}
