#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Data through qemu-nbd -c: a raw file and a qcow2 image.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require qemu-nbd qemu-img fio
nbd_begin 10
nbd_pick

# shellcheck disable=SC2034
IO_JOBS=(
	--name=rand4k --rw=randwrite --bs=4k --offset=0 --size=1m
	--stonewall --name=rand64k --rw=randwrite --bs=64k --offset=1m --size=4m
	--stonewall --name=seq1m --rw=write --bs=1m --offset=5m --size=8m
)
args=(--direct=1 --ioengine=libaio --iodepth=8)
for format in raw qcow2; do
	image=$NBD_TMP/disk.$format
	qemu-img create -q -f $format "$image" 32M
	io_attach_qemu -f $format "$image"
	check "attach, $format" is size "$(<"$NBD_SYS/size")" 65536
	check "write, $format" io_fio "$NBD_DEV" "${args[@]}"
	check "read back, $format" io_fio_check "$NBD_DEV" "${args[@]}"
	check "detach, $format" io_detach_qemu
	if [ $format = raw ]; then
		check "the image's data, raw" io_fio_check "$image" --direct=0 --ioengine=psync
	else
		check "the image is sound, qcow2" qemu-img check -q "$image"
	fi
done
nbd_end
