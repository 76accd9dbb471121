#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbd-client as it works by default, with netlink.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio
nbd_begin 31
nbd_pick

SIZE=16777216
client() { within 15 nbd-client "$@" </dev/null >"$NBD_TMP/client" 2>&1 || { cat "$NBD_TMP/client"; false; }; }
verify() {
	within 40 fio --filename="$NBD_DEV" --thread --output=/dev/null --name=v --rw=randwrite \
		--bs=16k --size=4m --ioengine=libaio --iodepth=8 --direct=1 \
		--verify=crc32c --verify_fatal=1 --verify_state_save=0
}
free() { nbd_is_free "$NBD_INDEX"; }
sys() { cat "$NBD_SYS/$1"; }
connections() { grep -c "Connect" "$NBD_TMP/log"; }
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

io_server sock --filter=log memory $SIZE logfile="$NBD_TMP/log"
check "connects and returns" client -u "$IO_SOCK" "$NBD_DEV" -b 4096 -t 20
check "the device is there" wait_until 5 nbd_connected
check "its size" is size "$(sys size)" $((SIZE / 512))
check "its block size" is "block size" "$(sys queue/logical_block_size)" 4096
check "its timeout" is timeout "$(sys queue/io_timeout)" 20000
check "-c says that it is connected" client -c "$NBD_DEV"
check "-c says the pid" is pid "$(<"$NBD_TMP/client")" "$(sys pid)"
check "data" verify
check "a second client is refused" nbd_not client -u "$IO_SOCK" "$NBD_DEV" -b 4096
check "which leaves the first one's session" nbd_connected
check "-d disconnects" client -d "$NBD_DEV"
check "the device is free" wait_until 2 free
check "-c says that it is not connected" nbd_not client -c "$NBD_DEV"
check "-d on a free device" client -d "$NBD_DEV"

: >"$NBD_TMP/log"
check "four connections" client -u "$IO_SOCK" "$NBD_DEV" -b 4096 -C 4
check "the server has four" is connections "$(connections)" 4
check "data on four connections" verify
check "-d disconnects all four" client -d "$NBD_DEV"
closed() { [ "$(grep -c "Disconnect" "$NBD_TMP/log")" -ge 4 ]; }
check "the server sees four ends" wait_until 5 closed

check "a read-only session" client -u "$IO_SOCK" "$NBD_DEV" -R
check "the device is read-only" is ro "$(sys ro)" 1
held() { exec 5<"$NBD_DEV" && client -d "$NBD_DEV"; }
check "-d while another process has it open" held
exec 5<&-
check "free when it is closed" wait_until 2 free

# The client is gone, so that only the kernel sees the server die.
check "a session without a client" client -u "$IO_SOCK" "$NBD_DEV" -b 4096 -persist
kill -9 "$IO_PID"
check "the server dies: I/O fails" wait_until 3 nbd_not io_read_one 10
check "the device stays connected" nbd_connected
check "-d ends it" client -d "$NBD_DEV"
check "free" wait_until 2 free

io_server_tcp --filter=delay --filter=rate memory $SIZE rdelay=100ms rate=100M
check "over TCP, with a slow server" client 127.0.0.1 "$IO_PORT" "$NBD_DEV" -b 4096
check "it is slow, but it works" io_read_one 10
check "-d ends that" client -d "$NBD_DEV"
nbd_end
