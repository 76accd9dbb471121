#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Requests of 32 MiB arrive whole, and larger ones in pieces of that size.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client cmp
nbd_begin 7
nbd_pick

head -c 80M /dev/urandom >"$NBD_TMP/data"
truncate -s 80M "$NBD_TMP/disk"
start() {
	io_server sock --filter=log file "$NBD_TMP/disk" logfile="$NBD_TMP/log" &&
		io_attach_unix -b 4096
}
start
check "max_hw_sectors_kb" is max_hw_sectors_kb "$(<"$NBD_SYS/queue/max_hw_sectors_kb")" 32768
echo 32768 >"$NBD_SYS/queue/max_sectors_kb"
got=$(<"$NBD_SYS/queue/max_sectors_kb")
check "max_sectors_kb can be 32 MiB" is max_sectors_kb "$got" 32768

# largest TYPE: the largest request of this type that the server has seen.
largest() {
	local h max=0
	while read -r h; do [ $((h)) -le $max ] || max=$((h)); done \
		< <(grep " $1 " "$NBD_TMP/log" | grep -o 'count=0x[0-9a-f]*' | cut -d= -f2)
	echo $max
}

one() { within 60 dd bs=80M count=1 status=none "$@"; }
write_all() { one if="$NBD_TMP/data" of="$NBD_DEV" iflag=fullblock oflag=direct; }
read_all() { one if="$NBD_DEV" of="$NBD_TMP/back" iflag=fullblock,direct; }

check "write 80 MiB at once" write_all
check "the backend's data" cmp "$NBD_TMP/data" "$NBD_TMP/disk"
check "read 80 MiB at once" read_all
check "the data read" cmp "$NBD_TMP/data" "$NBD_TMP/back"
got="$(largest Write), $(largest Read)"
check "the largest requests" is "write, read" "$got" "33554432, 33554432"
nbd_end
