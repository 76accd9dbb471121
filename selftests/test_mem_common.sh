#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the tests with little memory share: groups with a limit, a process that takes what is left,
# and waiting for processes that may be stuck. And how much is free. A test sources test_common.sh,
# then this.

# mem_groups: find the cgroup tree and have its groups count memory. False if that cannot be.
# Sets MEM_ROOT, where the groups are, and MEM_HOME, the group that the test is in.
mem_groups() {
	MEM_ROOT=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)
	[ -n "$MEM_ROOT" ] || return
	MEM_HOME=$MEM_ROOT$(sed -n 's/^0:://p' /proc/self/cgroup)
	grep -qw memory "$MEM_ROOT/cgroup.controllers" || return
	# It stays on: others may have come to use it by the time that the test ends.
	echo +memory 2>/dev/null >"$MEM_ROOT/cgroup.subtree_control"
	grep -qw memory "$MEM_ROOT/cgroup.subtree_control"
}

# mem_group NAME [FILE=VALUE...]: make a group, set MEM_GROUP to its directory, and write those
# files of it.
mem_group() {
	local setting
	MEM_GROUP=$MEM_ROOT/nbd-selftest-$$-$1
	mkdir "$MEM_GROUP" || return
	nbd_defer mem_ungroup "$MEM_GROUP"
	shift
	for setting; do
		echo "${setting#*=}" >"$MEM_GROUP/${setting%%=*}" || return
	done
}
mem_ungroup() {
	echo 1 >"$1/cgroup.kill"
	wait_until 5 rmdir "$1"
}

# mem_enter GROUP; mem_leave: the calling shell and what it starts from now on.
mem_enter() { echo "$BASHPID" >"$1/cgroup.procs"; }
mem_leave() { mem_enter "$MEM_HOME"; }

# mem_event GROUP NAME: how often that has happened.
mem_event() { sed -n "s/^$2 //p" "$1/memory.events"; }

# mem_stat NAME...: the sum of these counters of the whole system.
mem_stat() {
	local pattern
	pattern=$(IFS='|'; echo "$*")
	awk -v pattern="^($pattern)\$" '$1 ~ pattern { sum += $2 } END { print sum + 0 }' /proc/vmstat
}

# mem_last PID: this process is the last that is killed for lack of memory; mem_first: the first.
mem_last() { echo -1000 >"/proc/$1/oom_score_adj"; }
mem_first() { echo 1000 >"/proc/$1/oom_score_adj"; }

# mem_hog MIB: take memory until so little is available, and keep it there: more is taken when
# others give some back, and given back when they have taken half of the rest. Sets MEM_HOG.
mem_hog() {
	python3 - "$1" >"$NBD_TMP/hog" 2>&1 <<-'END' &
		import mmap, sys, time
		mib = 1 << 20
		floor = int(sys.argv[1]) * mib
		info = open("/proc/meminfo", "rb", buffering=0)
		taken, full = [], False
		def available():
		    info.seek(0)
		    for line in info.read(4096).splitlines():
		        if line.startswith(b"MemAvailable:"):
		            return int(line.split()[1]) * 1024
		def take(size):
		    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
		    # Much quicker, where there are huge pages.
		    try:
		        memory.madvise(mmap.MADV_HUGEPAGE)
		    except OSError:
		        pass
		    memory.madvise(23)	# MADV_POPULATE_WRITE
		    taken.append(memory)
		while True:
		    spare = available() - floor
		    if spare > 128 * mib:
		        take(64 * mib)
		    elif spare > 4 * mib:
		        take(4 * mib)
		    elif spare < -floor / 2 and taken:
		        taken.pop().close()
		    else:
		        if not full:
		            print("full", flush=True)
		        full = True
		        time.sleep(0.05)
	END
	MEM_HOG=$!
	disown
	nbd_defer kill -9 $MEM_HOG
	mem_first $MEM_HOG
	wait_until 30 grep -q full "$NBD_TMP/hog" || { cat "$NBD_TMP/hog"; return 1; }
}
mem_hog_end() {
	kill -9 "$MEM_HOG"
	wait_until 10 nbd_gone "$MEM_HOG"
}

# mem_ends SECONDS PID...: all of these children end in that time, and well. "within" alone would
# wait for ever for a process that the kernel does not let go.
mem_ends() {
	local pid rc=0 seconds=$1
	shift
	# One process that looks: many short ones would take what the others need.
	# shellcheck disable=SC2016
	if ! within "$seconds" bash -c 'for pid; do tail -s 0.1 --pid="$pid" -f /dev/null; done' \
		bash "$@"; then
		for pid; do
			nbd_gone "$pid" || mem_stuck "$pid"
		done
		return 1
	fi
	for pid; do
		wait "$pid" || { echo "process $pid: exit status $?"; rc=1; }
	done
	return $rc
}

# mem_stuck PID: where it and its children are.
mem_stuck() {
	local pid
	for pid in "$1" $(pgrep -P "$1"); do
		echo "process $pid ($(<"/proc/$pid/comm")) has not ended:"
		cat "/proc/$pid/stack"
	done 2>&1
}

# mem_exact: from now on until the test ends, what is free is not kept for a CPU, which can be many MiB. For
# mem_free.
mem_exact() {
	local file=/proc/sys/vm/percpu_pagelist_high_fraction was
	was=$(<$file)
	nbd_defer eval "echo $was >$file"
	echo 1000000 >$file
}

# mem_free: set MEM_FREE to the free memory, in KiB, without the caches, once it does not change any more:
# some is freed late.
mem_free() {
	MEM_FREE=0 MEM_SAME=0
	wait_until 5 mem_settled
}
mem_settled() {
	local was=$MEM_FREE
	echo 3 >/proc/sys/vm/drop_caches
	MEM_FREE=$(awk '/^MemFree:/ { print $2 }' /proc/meminfo)
	if [ $((was - MEM_FREE)) -lt 256 ] && [ $((MEM_FREE - was)) -lt 256 ]; then
		MEM_SAME=$((MEM_SAME + 1))
	else
		MEM_SAME=0
	fi
	[ $MEM_SAME = 3 ]
}
