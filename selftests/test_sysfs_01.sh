#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What sysfs says of a connected device: its session, its size, and what the server can do.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_client_common.sh"

SIZE=4194304
# The largest number of bytes in an unsigned int, in sectors.
MAX_RANGE=4294966784

unused() { nbd_is_free "$NBD_INDEX" && closed; }

# session SERVER-ARGUMENTS -- CLIENT-ARGUMENTS: a server, and the device connected to it.
session() {
	local args=()
	while [ "$1" != -- ]; do args+=("$1"); shift; done
	shift
	serve "${args[@]}" && connect "$@"
}

end_session() {
	[ ! -e "$NBD_SYS/pid" ] || disconnect
	wait_until 5 unused || note "$NBD_DEV is still in use"
	end_server
}

# attr FILE VALUE: that file of the device has this value.
attr() { is "$1" "$(<"$NBD_SYS/$1")" "$2"; }

# attrs FILE VALUE...: as attr for each. _ stands for a space.
attrs() {
	while [ $# -gt 0 ]; do
		attr "$1" "${2//_/ }" || return
		shift 2
	done
}

pid_file() { [ -e "$NBD_SYS/pid" ]; }
write_block() { dd if=/dev/zero of="$NBD_DEV" bs=4096 count=1 oflag=direct conv=notrunc 2>&1; }

# A server of zeroes whose device another thread than the main one has running; prints that thread's id.
zeroes() {
	python3 - "$NBD_DEV" $SIZE <<-'END'
	import fcntl, os, socket, struct, sys, threading

	SET_SOCK, SET_SIZE, DO_IT = 0xab00, 0xab02, 0xab03
	fd = os.open(sys.argv[1], os.O_RDWR)
	kernel, ours = socket.socketpair()
	fcntl.ioctl(fd, SET_SOCK, kernel.fileno())
	fcntl.ioctl(fd, SET_SIZE, int(sys.argv[2]))
	kernel.close()

	def do_it():
	    print(os.getpid(), threading.get_native_id(), flush=True)
	    fcntl.ioctl(fd, DO_IT, 0)

	runner = threading.Thread(target=do_it)
	runner.start()
	while len(request := ours.recv(28, socket.MSG_WAITALL)) == 28:
	    magic, flags, kind, cookie, start, length = struct.unpack(">IHHQQI", request)
	    if kind == 2:
	        break
	    ours.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(length if kind == 0 else 0))
	ours.close()
	runner.join()
	END
}

# Writes each uevent of a disk to a file, as "change nbd5".
listen() {
	python3 - >"$NBD_TMP/uevents" <<-'END' &
	import socket

	s = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
	s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
	s.bind((0, 1))
	print("ready", flush=True)
	while True:
	    words = s.recv(1 << 16).split(b"\0")
	    about = dict(w.decode().split("=", 1) for w in words[1:] if b"=" in w)
	    if about.get("SUBSYSTEM") == "block":
	        print(about["ACTION"], about["DEVPATH"].rpartition("/")[2], flush=True)
	END
	nbd_defer kill $!
	wait_until 10 grep -q ready "$NBD_TMP/uevents"
}
changed() { tail -n +$((events + 1)) "$NBD_TMP/uevents" | grep -Fx "change nbd$NBD_INDEX"; }
count_events() { events=$(wc -l <"$NBD_TMP/uevents"); }

nbd_require nbdkit nbd-client python3 blockdev
nbd_begin 29
nbd_pick
nbd_defer stop_server
nbd_defer disconnect
listen

check "no pid before a session" nbd_not pid_file
zeroes >"$NBD_TMP/tid" 2>"$NBD_TMP/log" &
client=$!
wait_until 10 nbd_connected || sed 's/^/# /' "$NBD_TMP/log"
read -r pid tid <"$NBD_TMP/tid"
check "the thread of the session is not the process's first" nbd_not [ "$pid" = "$tid" ]
check "pid is the thread that called NBD_DO_IT" attr pid "$tid"
check "pid can be read by all" is mode "$(stat -c %a "$NBD_SYS/pid")" 444
check "without flags the disk has none of the features" attrs queue/write_cache write_through queue/fua 0 \
	queue/discard_max_bytes 0 queue/write_zeroes_max_bytes 0 queue/rotational 0 ro 0
check "disconnects" disconnect
check "pid is gone after the session" wait_until 5 nbd_not pid_file
wait_until 5 unused
wait $client
check "the size is 0 after the session" attr size 0

count_events
session memory $SIZE --
check "connects" nbd_connected
check "a change uevent tells of the session" wait_until 5 changed
check "pid is nbd-client's" attr pid "$client"
check "size is the server's" attr size $((SIZE / 512))
check "blockdev sees the same size" is size "$(blockdev --getsize64 "$NBD_DEV")" $SIZE
check "a memory disk: write cache and FUA" attrs queue/write_cache write_back queue/fua 1
check "a memory disk: not rotational" attr queue/rotational 0
check "a memory disk: discard and write zeroes" \
	attrs queue/discard_max_bytes $MAX_RANGE queue/write_zeroes_max_bytes $MAX_RANGE
check "nbd-client's block size of 512" attrs queue/logical_block_size 512 queue/physical_block_size 512
check "a writable export" write_block
count_events
end_session
check "a change uevent tells of the end" wait_until 5 changed

session --filter=fua --filter=nozero --filter=rotational memory $SIZE -- -b 4096
check "no FUA: the write cache is there, FUA is not" attrs queue/write_cache write_back queue/fua 0
check "no write zeroes" attrs queue/write_zeroes_max_bytes 0 queue/discard_max_bytes $MAX_RANGE
check "rotational" attr queue/rotational 1
check "block size of 4096" attrs queue/logical_block_size 4096 queue/physical_block_size 4096 \
	size $((SIZE / 512))
end_session

session -r memory $SIZE --
check "a read-only export: ro is 1" attr ro 1
check "a read-only export: blockdev says so" is ro "$(blockdev --getro "$NBD_DEV")" 1
check "a read-only export cannot be written" nbd_not write_block
check "a read-only export can be read" \
	within 5 dd if="$NBD_DEV" of=/dev/null bs=$SIZE count=1 iflag=direct
end_session

session memory $SIZE --
check "a writable export after a read-only one: ro is 0, all features are back" attrs ro 0 queue/fua 1 \
	queue/rotational 0 queue/logical_block_size 512 queue/write_zeroes_max_bytes $MAX_RANGE
check "a writable export after a read-only one can be written" write_block
end_session
nbd_end
