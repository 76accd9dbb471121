#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The commands of nbdctl: connect, list, status, resize and disconnect, what they say of what cannot be done, and their
# exit codes.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require nbdkit qemu-nbd python3 cmp
keep_need
nbd_begin 44
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

disk=$NBD_TMP/disk
head -c 8M /dev/urandom >"$disk"
io_server sock file "$disk"
uri="nbd+unix:///?socket=$IO_SOCK"

free() { wait_until 5 nbd_is_free "$NBD_INDEX"; }
prints() { is "the output" "$(ctl "${@:2}")" "$1"; }
lists() { ctl list | grep -qE "^nbd$NBD_INDEX +$1 +$2 "; }
lists_none() { ctl list | nbd_not grep "^nbd$NBD_INDEX "; }
shows() { ctl status "$NBD_DEV" | grep -qF -- "$1"; }

check "connect" prints "$NBD_DEV" connect -b a-backend "$uri" "$NBD_DEV"
check "the server's data" io_same "$disk" 8388608
check "the backend in sysfs" is backend "$(cat "$NBD_SYS/backend")" a-backend
check "the block size is 512" is blocks "$(cat "$NBD_SYS/queue/logical_block_size")" 512
check "list" lists "8 MiB" read-write
check "status says the server" shows "$uri"
check "status says that nobody keeps it" shows "nobody"
check "JSON: connected" status 'v["connected"]' True
check "JSON: size" status 'v["size"]' 8388608
check "JSON: backend" status 'v["backend"]' a-backend
check "JSON: server" status 'v["uri"]' "$uri"
check "JSON: keeper" status 'v["keeper_pid"]' None
check "JSON: one connection" status 'v["connections"]["total"]' 1
check "JSON: version" status 'd["version"]' 1
check "JSON: flags" status '"flush" in v["flags"] and not v["read_only"]' True
check "JSON: the list has it, too" is devices "$(keep_json 'sum(x["index"] == '"$NBD_INDEX"' for x in d["devices"])' list)" 1

check "connect again is refused" keep_says 1 "the kernel refuses" connect "$uri" "$NBD_DEV"
check "the device is named" grep -q "^nbdctl: nbd$NBD_INDEX: " "$NBD_TMP/said"

mkfs.ext4 -q -F "$NBD_DEV" && mkdir "$NBD_TMP/mnt" && mount "$NBD_DEV" "$NBD_TMP/mnt"
nbd_defer umount "$NBD_TMP/mnt"
check "a mounted device stays" keep_says 1 "mounted on $NBD_TMP/mnt" disconnect "$NBD_DEV"
umount "$NBD_TMP/mnt"

check "smaller is refused" keep_says 1 "--shrink" resize "$NBD_DEV" 4M
check "no whole block is refused" keep_says 2 "multiple" resize "$NBD_DEV" 1000
truncate -s 16M "$disk"
check "resize to a size" ctl resize "$NBD_DEV" 16M
check "is what it has" is size "$(cat "$NBD_SYS/size")" 32768
check "the backend has not changed" is backend "$(cat "$NBD_SYS/backend")" a-backend
kill -9 "$IO_PID"
truncate -s 24M "$disk"
io_server sock file "$disk"
check "resize to what the server says" ctl resize "$NBD_DEV"
check "is what it says" is size "$(cat "$NBD_SYS/size")" 49152
check "shrink" ctl resize --shrink "$NBD_DEV" 8M
check "disconnect" ctl disconnect "$NBD_DEV"
check "it is free" free
check "it is not listed" lists_none
check "disconnect of what is not connected" keep_says 4 "not connected" disconnect "nbd$NBD_INDEX"
check "status of what is not connected" shows "not connected"
check "no such device" keep_says 4 "no such device" status nbd9999
check "no device" keep_says 2 "not the name" status sda

# A device that the kernel chooses, and a server that cannot write.
kill -9 "$IO_PID"
io_server sock -r file "$disk"
chosen=$(ctl connect -n 2 --block-size 4096 "$uri") || chosen=/dev/none
nbd_defer "$NBD_DIR/helper_genl" disconnect "${chosen#/dev/nbd}"
check "the kernel chooses" [ -b "$chosen" ]
both() { keep_json '(v["read_only"], v["block_size"], v["connections"]["total"])' status "$chosen"; }
check "read-only, blocks, connections" is it "$(both)" "(True, 4096, 2)"
check "disconnect it" ctl disconnect "$chosen"

check "TLS is refused" keep_says 2 "TLS" connect nbds://localhost/ "$NBD_DEV"
check "no URI" keep_says 2 "not the URI" connect localhost "$NBD_DEV"
kill -9 "$IO_PID"
check "no server" keep_says 3 "Connection refused" connect "$uri" "$NBD_DEV"

# qemu-nbd without --shared does not offer multi-conn, and knows its exports by their names.
qemu-nbd -f raw -k "$NBD_TMP/qemu" -t -x disk "$disk" </dev/null >"$NBD_TMP/qemu.log" 2>&1 &
nbd_defer kill -9 $!
wait_until 10 [ -S "$NBD_TMP/qemu" ]
check "several connections need multi-conn" keep_says 3 "multi-conn" connect -n 2 "nbd+unix:///disk?socket=$NBD_TMP/qemu" "$NBD_DEV"
check "no such export" keep_says 3 "export" connect "nbd+unix:///other?socket=$NBD_TMP/qemu" "$NBD_DEV"
check "the device was left alone" nbd_is_free "$NBD_INDEX"
sleep_server() { within 20 python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
s.accept()[0].recv(1)' "$1"; }
sleep_server "$NBD_TMP/silent" &
wait_until 10 [ -S "$NBD_TMP/silent" ]
check "a server that says nothing" keep_says 3 "no answer within 1 s" connect --connect-timeout 1 \
	"nbd+unix:///?socket=$NBD_TMP/silent" "$NBD_DEV"
nbd_end
