#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Swap on a device, with the server in the same machine: processes in a group with a third of the
# memory that they use find every page as they left it, also after some were written anew, and when
# the swap is gone.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_mem_common.sh"

LIMIT=12	# MiB that the group may have, for
SIZE=16		# MiB in each of two processes.

nbd_require nbdkit nbd-client python3 mkswap swapon swapoff
[ -e /proc/swaps ] || nbd_skip_all "the kernel has no CONFIG_SWAP"
nbdkit --help | grep -q -e --swap || nbd_skip_all "nbdkit has no --swap"
mem_groups || nbd_skip_all "the kernel has no CONFIG_MEMCG, or its controller is not to be had"
nbd_begin 22
nbd_pick

# The server must never need what only it can write: it is locked in memory, and what it allocates
# for others, in a group without swap.
mem_group server memory.swap.max=0
server=$MEM_GROUP
mem_group pages memory.max=${LIMIT}M
pages=$MEM_GROUP
serve() {
	mem_enter "$server"
	"$@" --swap memory 256M
	mem_leave
	mem_last "$IO_PID"
}

# Two processes with SIZE each, which obey commands, a line each: "fill N" writes the pages of turn
# N, "half N" only every other 16 of them, "check N M" compares those with turn N and the rest with
# turn M. The answer is a line: "ok", or what is wrong. A page has its number, its turn, and what
# does not compress.
cat >"$NBD_TMP/pages.py" <<-'END'
	import mmap, os, sys
	size, page = int(sys.argv[1]) << 20, mmap.PAGESIZE
	noise = os.urandom(2 * page)
	def content(number, turn):
	    shift = number * 7 % page
	    return b"%015d.%015d." % (number, turn) + noise[shift:shift + page - 32]
	def work(commands, answers):
	    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
	    for line in commands:
	        what, *turns = line.split()
	        turns = [int(t) for t in turns]
	        wrong = 0
	        for number in range(size // page):
	            at, half = number * page, number // 16 % 2
	            if what == "check":
	                wrong += memory[at:at + page] != content(number, turns[half])
	            elif what == "fill" or not half:
	                memory[at:at + page] = content(number, turns[0])
	        answers.write(f"{wrong} pages are wrong\n" if wrong else "ok\n")
	        answers.flush()
	workers = []
	for i in range(2):
	    down, up = os.pipe(), os.pipe()
	    if os.fork() == 0:
	        os.close(up[0])
	        os.close(down[1])
	        work(os.fdopen(down[0]), os.fdopen(up[1], "w"))
	        os._exit(0)
	    os.close(up[1])
	    os.close(down[0])
	    workers.append((os.fdopen(down[1], "w"), os.fdopen(up[0])))
	for line in sys.stdin:
	    for down, _ in workers:
	        down.write(line)
	        down.flush()
	    answers = {up.readline().strip() or "a process has died" for _, up in workers}
	    print("; ".join(sorted(answers)), flush=True)
END
# What Python itself consists of shall not take the group's memory.
python3 -c "import mmap, os, sys"
start_pages() {
	coproc PAGES {
		mem_enter "$pages" && mem_first "$BASHPID" &&
			exec python3 "$NBD_TMP/pages.py" $SIZE
	}
	nbd_defer kill_pages
}
kill_pages() { echo 1 >"$pages/cgroup.kill"; }
# pages COMMAND...: within a time, a deadlock is to be seen.
pages() {
	local answer=
	echo "$*" >&"${PAGES[1]}"
	read -r -t $((60 * NBD_TIME_SCALE)) answer <&"${PAGES[0]}" || answer="no answer"
	is "$*" "$answer" ok
}

# used: KiB of the swap.
used() { awk -v dev="$NBD_DEV" '$1 == dev { print $4 }' /proc/swaps; }
# moved NAME FROM: what does not fit has gone that way.
moved() {
	local got=$(($(mem_stat "$1") - $2)) pages
	pages=$(((2 * SIZE - LIMIT) * 1048576 / $(getconf PAGESIZE)))
	echo "$1: $got of $pages"
	[ "$got" -ge "$pages" ]
}
swap_off() {
	within 90 swapoff "$NBD_DEV" && is "what is used" "$(used)" ""
}

# round TITLE: 11 tests.
round() {
	local out in killed pid
	check "mkswap, $1" within 30 mkswap -q "$NBD_DEV"
	nbd_defer swapoff "$NBD_DEV"
	check "swapon, $1" within 30 swapon --discard -p 32767 "$NBD_DEV"
	out=$(mem_stat pswpout) in=$(mem_stat pswpin) killed=$(mem_stat oom_kill)
	echo ${LIMIT}M >"$pages/memory.max"
	start_pages
	pid=$PAGES_PID
	check "write, $1" pages fill 1
	check "pages are on the device, $1" [ "$(used)" -ge $(((2 * SIZE - LIMIT) * 1024)) ]
	check "write half of them, $1" pages half 2
	check "every page is right, $1" pages check 2 1
	check "pages went out, $1" moved pswpout "$out"
	check "pages came in, $1" moved pswpin "$in"
	echo max >"$pages/memory.max"
	check "swapoff, $1" swap_off
	check "every page is right without swap, $1" pages check 2 1
	check "nobody was killed for memory, $1" is oom_kill "$(mem_stat oom_kill)" "$killed"
	kill_pages
	wait "$pid" 2>/dev/null
}

serve io_server sock
io_attach_unix -b 4096 -swap
round "Unix socket"
io_detach

serve io_server_tcp
io_attach_tcp -b 4096 -swap
round "TCP"
io_detach
nbd_end
