#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The size of a running device changes; partitions come with a session and go with it.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_client_common.sh"

SIZE=16777216
SET_BLKSIZE=1 SET_SIZE=2 SET_SIZE_BLOCKS=7

end_session() {
	[ ! -e "$NBD_SYS/pid" ] || disconnect
	wait_until 5 closed || note "$NBD_DEV is still open"
	end_server
}

fails_with() {
	local wanted=$1
	shift
	is error "$("$@" 2>&1)" "$wanted"
}

# sized BYTES: sysfs and the device itself both say so.
sized() {
	is "size in sysfs" "$(<"$NBD_SYS/size")" $(($1 / 512)) &&
		is "size of the device" "$(blockdev --getsize64 "$NBD_DEV")" "$1"
}

# read_at BYTES: one sector can be read there.
read_at() { within 5 dd if="$NBD_DEV" of=/dev/null bs=512 skip=$(($1 / 512)) count=1 iflag=direct 2>&1; }
# whole_sector BYTES: as above, and something was there.
whole_sector() { read_at "$1" | grep -E '^1\+0 records in'; }

# One process, since starting Python takes long: it writes each uevent of a disk to a file, as "change nbd5",
# with "resize" after it if that is what it tells, and makes the ioctls that it reads, as "NUMBER ARGUMENT".
start_agent() {
	mkfifo "$NBD_TMP/ioctls" "$NBD_TMP/answers"
	python3 -c '
import ctypes, errno, os, socket, sys, threading

def listen():
    while True:
        words = events.recv(1 << 16).split(b"\0")
        about = dict(w.decode().split("=", 1) for w in words[1:] if b"=" in w)
        if about.get("SUBSYSTEM") == "block":
            name = about["DEVPATH"].rpartition("/")[2]
            print(about["ACTION"], name, *["resize"] * ("RESIZE" in about), file=log, flush=True)

log = open(sys.argv[2], "w")
events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
events.bind((0, 1))
threading.Thread(target=listen, daemon=True).start()
libc = ctypes.CDLL(None, use_errno=True)
for line in sys.stdin:
    number, argument = line.split()
    fd = os.open(sys.argv[1], os.O_RDWR)
    failed = libc.ioctl(fd, ctypes.c_ulong(0xab00 + int(number)), ctypes.c_ulong(int(argument)))
    print(errno.errorcode[ctypes.get_errno()] if failed else "done", flush=True)
    os.close(fd)
' "$NBD_DEV" "$NBD_TMP/uevents" <"$NBD_TMP/ioctls" >"$NBD_TMP/answers" 2>"$NBD_TMP/agent" &
	nbd_defer kill $!
	exec 7>"$NBD_TMP/ioctls" 8<"$NBD_TMP/answers"
	wait_until 10 [ -e "$NBD_TMP/uevents" ]
}

# nbd_ioctl NUMBER ARGUMENT: prints the name of its error, if any.
nbd_ioctl() {
	local answer
	echo "$@" >&7
	read -r -t $((5 * NBD_TIME_SCALE)) answer <&8 || { cat "$NBD_TMP/agent"; return 1; }
	[ "$answer" = "done" ] || { echo "$answer"; return 1; }
}

count_events() { events=$(wc -l <"$NBD_TMP/uevents"); }
# event TEXT: there was one since count_events.
event() { tail -n +$((events + 1)) "$NBD_TMP/uevents" | grep -Fx "$1"; }

# partition START SECTORS: nbdNp1 is there like this.
partition() {
	local p="$NBD_SYS/nbd${NBD_INDEX}p1" numbers
	[ -d "$p" ] || { echo "no $p"; return 1; }
	IFS=: read -r -a numbers <"$NBD_SYS/dev"
	is start "$(<"$p/start")" "$1" && is size "$(<"$p/size")" "$2" &&
		is "device number" "$(<"$p/dev")" "43:$((numbers[1] + 1))"
}
no_partition() { [ ! -e "$NBD_SYS/nbd${NBD_INDEX}p1" ]; }
# The kernel looks at the partitions again when the device is opened, as udev does after the change uevent.
reopen() { : <"$NBD_DEV" && "$@"; }
same_data() { cmp <(dd if="$IMAGE" bs=512 skip=2048 count=8 status=none) <(dd if="${NBD_DEV}p1" bs=4096 count=1 status=none); }

# The only opener, which has a partition open, gives a socket.
set_sock_5() {
	within 10 python3 -c '
import errno, fcntl, socket
pair = socket.socketpair()
try:
    fcntl.ioctl(5, 0xab00, pair[0].fileno())
except OSError as error:
    print(errno.errorcode[error.errno])
    raise SystemExit(1)
'
}

nbd_require nbdkit nbd-client qemu-nbd sfdisk python3 blockdev
nbd_begin 36
IMAGE=$NBD_TMP/image
truncate -s $SIZE "$IMAGE"
printf 'start=2048, size=8192\n' | sfdisk --quiet --label gpt "$IMAGE" >"$NBD_TMP/log" 2>&1 || note "$(<"$NBD_TMP/log")"
head -c 4096 /dev/urandom | dd of="$IMAGE" bs=512 seek=2048 conv=notrunc status=none

nbd_pick
nbd_defer stop_server
nbd_defer disconnect
start_agent

serve memory $SIZE
connect
check "connects" sized $SIZE
count_events
check "NBD_SET_SIZE makes a running device smaller" nbd_ioctl $SET_SIZE 1048576
check "the new size is there" sized 1048576
check "a change uevent tells of the new size" wait_until 5 event "change nbd$NBD_INDEX resize"
check "the last sector can be read" whole_sector $((1048576 - 512))
check "there is nothing past the new end" nbd_not whole_sector 1048576
count_events
check "NBD_SET_SIZE makes a running device larger" nbd_ioctl $SET_SIZE $SIZE
check "the larger size is there" sized $SIZE
check "a change uevent tells of the larger size" wait_until 5 event "change nbd$NBD_INDEX resize"
check "the sectors past the old end can be read" whole_sector $((SIZE - 512))
count_events
check "NBD_SET_BLKSIZE on a running device" nbd_ioctl $SET_BLKSIZE 4096
check "a change uevent tells of the block size" wait_until 5 event "change nbd$NBD_INDEX"
check "the new block size is there" is block "$(<"$NBD_SYS/queue/logical_block_size")" 4096
check "the block size leaves the size alone" sized $SIZE
check "NBD_SET_SIZE_BLOCKS counts in that" nbd_ioctl $SET_SIZE_BLOCKS 512
check "the size is that many blocks" sized $((512 * 4096))
check "a negative size is refused" fails_with EINVAL nbd_ioctl $SET_SIZE $((1 << 63))
check "so many blocks are refused" fails_with EINVAL nbd_ioctl $SET_SIZE_BLOCKS $((1 << 51))
check "a block size that is no power of two is refused" fails_with EINVAL nbd_ioctl $SET_BLKSIZE 1536
check "the refusals changed nothing" sized $((512 * 4096))
end_session
check "the size is 0 after the session" sized 0

serve file "$IMAGE"
connect
check "a session has the partition of its image" wait_until 5 reopen partition 2048 8192
check "the partition is where the image has it" same_data
check "the table can be read again" wait_until 2 blockdev --rereadpt "$NBD_DEV"
check "the partition is there after that" partition 2048 8192
count_events
end_session
check "a change uevent tells of the end" wait_until 5 event "change nbd$NBD_INDEX"
check "the partition is gone after the session" wait_until 2 reopen no_partition
serve memory $SIZE
connect
check "the next session has no partition" wait_until 2 reopen no_partition
end_session

serve file "$IMAGE"
connect
wait_until 5 reopen partition 2048 8192
exec 5<"$NBD_DEV"
disconnect
check "the partition is gone, though somebody has the device open" wait_until 5 reopen no_partition
exec 5<&-
end_session

within 10 qemu-nbd -c "$NBD_DEV" -f raw "$IMAGE" </dev/null >"$NBD_TMP/log" 2>&1 || note "$(<"$NBD_TMP/log")"
check "qemu-nbd connects" wait_until 5 nbd_connected
check "the partition is there with qemu-nbd" wait_until 5 reopen partition 2048 8192
exec 5<"${NBD_DEV}p1"
within 10 qemu-nbd -d "$NBD_DEV" >"$NBD_TMP/log" 2>&1
check "qemu-nbd disconnects" wait_until 5 [ ! -e "$NBD_SYS/pid" ]
check "an open partition fails to be read after that" nbd_not dd bs=4096 count=1 iflag=direct of=/dev/null <&5
check "nor can it be set up with what is cached of the partition" fails_with EBUSY set_sock_5
exec 5<&-
check "its last opener gone, the device is free" wait_until 5 nbd_is_free "$NBD_INDEX"
check "the partition is gone when it was closed" wait_until 2 reopen no_partition
nbd_end
