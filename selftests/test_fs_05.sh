#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# xfs over a connection that the kernel encrypts. A socket that encrypts keeps references to what it is
# to send, and much of the metadata of a file system with small sectors is in memory that must have none:
# it is allocated in pieces of pages. A driver that gives one back that it has not taken frees memory that is in
# use, which a kernel with DEBUG_VM says at once, and others after a while.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

ROUNDS=$(nbd_scaled_down 3)
SECTORS=(512 1024 4096)

nbd_require mkfs.xfs xfs_repair xfs_io fsfreeze helper_tls
[ -e /proc/net/tls_stat ] || modprobe -q tls || nbd_skip_all "no TLS in the kernel (CONFIG_TLS)"
nbd_begin $((${#SECTORS[@]} * (7 + ROUNDS)))
nbd_pick

# attach BLKSIZE: IO_CLIENT is the process that serves.
attach() {
	"$NBD_DIR/helper_tls" "$NBD_DEV" "$NBD_TMP/disk" "$1" >"$NBD_TMP/tls.log" 2>&1 &
	IO_CLIENT=$!
	nbd_defer kill -9 $IO_CLIENT
	wait_until 10 nbd_connected
}

# ended: the server has seen whole records to the end, and the message that is the last.
ended() {
	nbd_ioctl DISCONNECT || return
	if ! wait_until 10 nbd_gone "$IO_CLIENT" || ! wait "$IO_CLIENT"; then
		cat "$NBD_TMP/tls.log"
		return 1
	fi
}

# flush DIR: all metadata is written to where it belongs, not to the journal alone.
flush() { within 30 fsfreeze -f "$1" && within 30 fsfreeze -u "$1"; }

# churn DIR ROUND: many small files and directories, some of them removed again, and a large file.
churn() {
	local i
	mkdir -p "$1/$2" || return
	for ((i = 0; i < 60; i++)); do
		mkdir "$1/$2/$i" && echo "$2 $i" >"$1/$2/$i/file" && ln -s file "$1/$2/$i/link" || return
		[ $((i % 6)) -ne 0 ] || flush "$1" || return
	done
	for ((i = 0; i < 60; i += 3)); do
		rm -r "${1:?}/$2/$i" || return
	done
	within 30 xfs_io -f -c "pwrite -q -b 64k 0 4m" -c fsync "$1/$2/large" && flush "$1"
}

# whole DIR: all files that are to be there are, with what was written.
whole() {
	local i round
	for ((round = 0; round < ROUNDS; round++)); do
		for ((i = 0; i < 60; i++)); do
			[ $((i % 3)) -ne 0 ] || continue
			is "$round/$i" "$(cat "$1/$round/$i/link")" "$round $i" || return
		done
	done
}

mnt=$NBD_TMP/mnt
mkdir "$mnt"
nbd_defer umount "$mnt"
for sector in "${SECTORS[@]}"; do
	rm -f "$NBD_TMP/disk"
	truncate -s 320M "$NBD_TMP/disk"
	attach "$sector" || io_failed tls
	check "mkfs, sectors of $sector" within 60 mkfs.xfs -q -f -s size="$sector" "$NBD_DEV"
	check "mount, sectors of $sector" within 30 mount -t xfs "$NBD_DEV" "$mnt"
	for ((round = 0; round < ROUNDS; round++)); do
		check "files, sectors of $sector, round $round" churn "$mnt" $round
	done
	check "unmount, sectors of $sector" within 60 umount "$mnt"
	check "repair finds nothing, sectors of $sector" within 60 xfs_repair -n "$NBD_DEV"
	blockdev --flushbufs "$NBD_DEV"
	within 30 mount -t xfs "$NBD_DEV" "$mnt"
	check "every file is there, sectors of $sector" whole "$mnt"
	check "unmount again, sectors of $sector" within 60 umount "$mnt"
	check "the end, sectors of $sector" ended
done
nbd_end
