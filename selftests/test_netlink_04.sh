#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Partitions of a session that has no opener of its own: they are looked for once, and stay the same
# block devices however often the disk is opened and closed.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client sfdisk
nbd_begin 6
nbd_pick

part=nbd${NBD_INDEX}p1
truncate -s 16M "$NBD_TMP/disk"
printf 'start=2048,size=4096\nstart=8192,size=4096\n' | sfdisk -q --label gpt "$NBD_TMP/disk" >/dev/null
io_server sock file "$NBD_TMP/disk"
nbd_defer nbd-client -d "$NBD_DEV"
check "connects" within 10 nbd-client -u "$IO_SOCK" "$NBD_DEV"
blockdev --getsize64 "$NBD_DEV" >/dev/null
check "partitions are found" wait_until 5 [ -d "$NBD_SYS/$part" ]

which_one() { stat -c %i "$NBD_SYS/$part"; }
before=$(which_one)
for _ in 1 2 3; do
	head -c 512 "/dev/$part" >/dev/null
done
check "an open of the partition keeps it" is inode "$(which_one)" "$before"
for _ in 1 2 3; do
	head -c 512 "$NBD_DEV" >/dev/null
done
check "an open of the disk keeps it" is inode "$(which_one)" "$before"
check "disconnects" within 10 nbd-client -d "$NBD_DEV"
blockdev --getsize64 "$NBD_DEV" >/dev/null
check "no partition is left" wait_until 5 [ ! -d "$NBD_SYS/$part" ]
nbd_end
