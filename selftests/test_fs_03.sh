#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# ext4 and xfs in qcow2 images of qemu-nbd, which stay sound.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require qemu-nbd qemu-img mkfs.ext4 e2fsck mkfs.xfs xfs_repair
nbd_begin 22
nbd_pick

for fs in ext4 xfs; do
	image=$NBD_TMP/$fs.qcow2
	qemu-img create -q -f qcow2 "$image" 320M
	attach() { io_attach_qemu --discard=unmap -f qcow2 "$image"; }
	io_fs $fs attach io_detach_qemu
	check "the image is sound, $fs" qemu-img check -q "$image"
done
nbd_end
