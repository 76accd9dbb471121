#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The module's parameters: what they are by default, what they do, and which values are refused.

. "$(dirname "$0")/test_common.sh"

PARAMS=/sys/module/nbd/parameters

# load [PARAM=VALUE...]: only with these parameters: modprobe would add those of /etc/modprobe.d.
load() { insmod "$MODULE" "$@" && nbd_settle; }
reload() { nbd_unload && load "$@"; }

# param NAME VALUE: that parameter can be read by all, written by none, and has this value.
param() {
	is "mode of $1" "$(stat -c %a "$PARAMS/$1")" 444 && is "$1" "$(<"$PARAMS/$1")" "$2"
}

devices() {
	local d
	for d in /sys/block/nbd*; do
		[ ! -e "$d" ] || echo "${d##*/}"
	done | sort -V | paste -sd ' '
}

# minors SPACING: the minors of three devices begin at multiples of SPACING.
minors() {
	local i
	is devices "$(devices)" "nbd0 nbd1 nbd2" || return
	for i in 0 1 2; do
		is "number of nbd$i" "$(<"/sys/block/nbd$i/dev")" "43:$((i * $1))" || return
	done
}

has_major() { grep -qE '^ *43 nbd$' /proc/devices; }
first_sixteen() { is devices "$(devices)" "$(printf 'nbd%d ' {0..15} | sed 's/ $//')"; }

# refused PARAM=VALUE...: loading fails with EINVAL and leaves nothing behind.
refused() {
	local message
	nbd_unload || return
	if message=$(LC_ALL=C load "$@" 2>&1); then
		echo "loaded with $*"
		nbd_unload
		return 1
	fi
	echo "$message"
	# That is how insmod calls EINVAL.
	[[ $message == *"Invalid parameters"* ]] || return
	is devices "$(devices)" "" && nbd_not has_major && nbd_not nbd_loaded
}

# hw_queues N: a device has as many hardware queues, or one for each CPU if there are fewer.
hw_queues() {
	local queues cpus
	queues=(/sys/block/nbd0/mq/*)
	cpus=$(nproc --all)
	is "number of hardware queues" "${#queues[@]}" "$(($1 < cpus ? $1 : cpus))"
}

info() { modinfo -F "$1" "$MODULE"; }
has_alias() { info alias | grep -Fx 'block-major-43-*'; }
has_parm() { info parm | grep -E "^$1:.*\(default: $2\) \(int\)$"; }

nbd_require modinfo paste stat
nbd_begin 34
# It is read often, and may be on a slow file system.
if [ "$NBD_DRIVER" = c ]; then MODULE=$(modinfo -n nbd); else MODULE=$NBD_TMP/nbd.ko; cp "$NBD_KO" "$MODULE"; fi
nbd_defer nbd_unload

check "loads without parameters" reload
check "nbds_max is 16" param nbds_max 16
check "max_part of 16 is rounded up to 31" param max_part 31
check "pre_defined_connections is 1" param pre_defined_connections 1
check "nbd0 to nbd15 exist" first_sixteen
check "a device has one hardware queue" hw_queues 1
check "major 43 is taken" has_major
check "unloads" nbd_unload
check "no device is left" is devices "$(devices)" ""
check "major 43 is given back" nbd_not has_major

check "loads with nbds_max=3" reload nbds_max=3
check "nbds_max is 3" param nbds_max 3
check "nbds_max=3: nbd0 to nbd2 with 32 minors each" minors 32
for row in "1 1" "100 127" "255 255"; do
	read -r given used <<<"$row"
	reload nbds_max=3 max_part="$given"
	check "max_part of $given becomes $used" param max_part "$used"
	check "max_part of $given: $((used + 1)) minors each" minors $((used + 1))
done
reload nbds_max=3 max_part=0
check "max_part of 0 stays" param max_part 0
check "max_part of 0: one minor each" minors 1
reload nbds_max=1 pre_defined_connections=2
check "pre_defined_connections is 2" param pre_defined_connections 2
check "pre_defined_connections=2: two hardware queues" hw_queues 2

for params in max_part=256 max_part=-1 "nbds_max=32769 max_part=31" "nbds_max=4097 max_part=255" nbds_max=-1 \
	pre_defined_connections=0 pre_defined_connections=-1; do
	read -ra words <<<"$params"
	check "refused: $params" refused "${words[@]}"
done

check "modinfo shows the alias" has_alias
for row in "nbds_max 16" "max_part 16" "pre_defined_connections 1"; do
	read -ra words <<<"$row"
	check "modinfo shows ${words[0]}" has_parm "${words[@]}"
done
nbd_end
