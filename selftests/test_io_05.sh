#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Discard, write zeroes, flush and FUA, as the server and its file see them.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client blkdiscard fallocate
nbd_begin 21
nbd_pick

log=$NBD_TMP/log disk=$NBD_TMP/disk
ones() { tr '\0' '\377' </dev/zero | head -c "$1"; }
ones 8M >"$disk"
start() { io_server sock --filter=log file "$disk" logfile="$log" && io_attach_unix -b 4096; }
start || exit 1

# seen: what the server was asked for since the last call, as "type offset count flags" lines.
seen() {
	local new
	new=$(wc -l <"$log")
	sed -n "$(($(<"$NBD_TMP/mark") + 1)),${new}p" "$log" |
		sed -nE 's/.* (Write|Zero|Trim|Flush) id=[0-9]* ?(.*)\.\.\.$/\1 \2/p' |
		sed 's/ *$//'
	echo "$new" >"$NBD_TMP/mark"
}
echo 0 >"$NBD_TMP/mark"
seen >/dev/null
# The same without flushes, which fallocate adds.
seen_data() { seen | grep -v Flush; }
blocks() { stat -c %b "$disk"; }

check "discard is offered" [ "$(<"$NBD_SYS/queue/discard_max_bytes")" -gt 0 ]
check "write zeroes is offered" [ "$(<"$NBD_SYS/queue/write_zeroes_max_bytes")" -gt 0 ]
got=$(<"$NBD_SYS/queue/write_cache")
check "the cache is one to be flushed" is write_cache "$got" "write back"
check "FUA is offered" is fua "$(<"$NBD_SYS/queue/fua")" 1

check "discard" blkdiscard -o 1M -l 1M "$NBD_DEV"
got=$(seen_data)
check "discard: a trim request" is request "$got" "Trim offset=0x100000 count=0x100000 fua=0"
check "discard: a hole in the file" is blocks "$(blocks)" $((7 * 2048))

check "write zeroes without holes" fallocate -z -n -o 3M -l 1M "$NBD_DEV"
got=$(seen_data)
want="Zero offset=0x300000 count=0x100000 trim=0 fua=0 fast=0"
check "write zeroes without holes: NO_HOLE" is request "$got" "$want"
check "write zeroes without holes: no hole" is blocks "$(blocks)" $((7 * 2048))
check "blkdiscard -z" blkdiscard -z -o 4M -l 1M "$NBD_DEV"
got=$(seen_data)
want="Zero offset=0x400000 count=0x100000 trim=0 fua=0 fast=0"
check "blkdiscard -z: NO_HOLE" is request "$got" "$want"
check "write zeroes with holes" fallocate -p -n -o 5M -l 1M "$NBD_DEV"
got=$(seen_data)
want="Zero offset=0x500000 count=0x100000 trim=1 fua=0 fast=0"
check "write zeroes with holes: no NO_HOLE" is request "$got" "$want"
check "write zeroes with holes: a hole" is blocks "$(blocks)" $((6 * 2048))
zeroed() {
	{ ones 1M; head -c 1M /dev/zero; ones 1M; head -c 3M /dev/zero; ones 2M; } | cmp - "$1"
}
check "the file's data" zeroed "$disk"
blockdev --flushbufs "$NBD_DEV"
check "the device's data" zeroed "$NBD_DEV"

seen >/dev/null
dd if=/dev/zero of="$NBD_DEV" bs=64k count=1 oflag=direct,dsync status=none
got=$(seen_data)
check "a synchronous write is FUA" is request "$got" "Write offset=0x0 count=0x10000 fua=1"
dd if=/dev/zero of="$NBD_DEV" bs=64k count=1 oflag=direct conv=fsync status=none
got=$(seen | tr '\n' ';')
check "fsync is a flush" is requests "$got" "Write offset=0x0 count=0x10000 fua=0;Flush;"
io_detach

# A server that can flush but not FUA, and one that can do nothing at all.
# shellcheck disable=SC2016
plain=(eval get_size='echo 8M' pread='head -c $3 /dev/zero' pwrite='cat >/dev/null')
start_flush() {
	io_server sock2 --filter=log "${plain[@]}" logfile="$log" flush='exit 0' \
		can_flush='exit 0' can_fua='echo none' && io_attach_unix -b 4096
}
start_flush
echo 0 >"$NBD_TMP/mark"
seen >/dev/null
dd if=/dev/zero of="$NBD_DEV" bs=64k count=1 oflag=direct,dsync status=none
got=$(seen | head -n 2 | tr '\n' ';')
want="Write offset=0x0 count=0x10000 fua=0;Flush;"
check "without FUA, a write and a flush" is requests "$got" "$want"
io_detach
start_none() {
	io_server sock3 --filter=nozero "${plain[@]}" zeromode=none && io_attach_unix -b 4096
}
start_none
none() {
	is discard_max_bytes "$(<"$NBD_SYS/queue/discard_max_bytes")" 0 &&
		is write_zeroes_max_bytes "$(<"$NBD_SYS/queue/write_zeroes_max_bytes")" 0 &&
		is write_cache "$(<"$NBD_SYS/queue/write_cache")" "write through"
}
check "what the server cannot is not offered" none
nbd_end
