#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The unit tests that are in the module itself where the kernel has KUnit: runs each suite and passes the results of
# its tests on.

. "$(dirname "$0")/test_common.sh"

KUNIT=/sys/kernel/debug/kunit
SUITES=(nbd_changes nbd_connections nbd_feed nbd_link_stats nbd_params nbd_protocol nbd_receive_side nbd_sender
	nbd_session_state nbd_set_sock nbd_state nbd_transitions rust_block_mq rust_block_mq_cursor rust_block_mq_phase
	rust_bvec rust_net_skbuff rust_page_ring rust_task_process)

RESULT='^    (not )?ok [0-9]+ '

# planned SUITE: how many tests it says that it has.
planned() { sed -n 's/^    1\.\.//p' "$KUNIT/$1/results"; }

# ran SUITE: whether it ran every test that it has.
ran() {
	[ -e "$KUNIT/$1/results" ] || { echo "there is no suite $1"; return 1; }
	local planned
	planned=$(planned "$1")
	[ "${planned:-0}" -gt 0 ] || { echo "it has no tests"; return 1; }
	is "number of tests that ran" "$(grep -cE "$RESULT" "$KUNIT/$1/results")" "$planned"
}

# report SUITE: one test for each of the suite's.
report() {
	local line name said=()
	while IFS= read -r line; do
		if ! [[ $line =~ $RESULT ]]; then
			said+=("$line")
			continue
		fi
		name=${line#*ok }
		name=$1.${name#* }
		case $line in
		*"# SKIP"*) ktap_test_skip "${name%% \# SKIP*}" ;;
		*" not ok "*)
			printf '#   %s\n' "${said[@]}"
			ktap_test_fail "$name"
			;;
		*) ktap_test_pass "$name" ;;
		esac
		said=()
	done <"$KUNIT/$1/results"
}

# The kernel's own crate may have suites that begin with rust_.
suites() { find "$KUNIT" -mindepth 1 -maxdepth 1 -name 'nbd_*' -printf '%f\n' | sort; }

[ "$NBD_DRIVER" = rust ] || nbd_skip_all "the C driver has no unit tests"
nbd_require find
[ "$(id -u)" = 0 ] || nbd_skip_all "must be run as root"
[ -d $KUNIT ] || nbd_skip_all "the kernel has no CONFIG_KUNIT=y with CONFIG_KUNIT_DEBUGFS"
! grep -qE "kunit\.enable=(0|n|N)" /proc/cmdline || nbd_skip_all "the kernel was started with kunit.enable=0"
nbd_ensure >/dev/null 2>&1

tests=0
for suite in "${SUITES[@]}"; do
	# Whether or not the loading of the module has run it, too.
	[ ! -e "$KUNIT/$suite/run" ] || echo 1 >"$KUNIT/$suite/run"
	tests=$((tests + $(planned "$suite" 2>/dev/null || echo 0)))
done
echo "# counted: $tests unit tests"
nbd_begin $((1 + ${#SUITES[@]} + tests))
check "the module has these suites" is suites "$(suites)" "$(printf '%s\n' "${SUITES[@]}" | grep ^nbd_)"
for suite in "${SUITES[@]}"; do
	check "$suite: every test ran" ran "$suite"
	[ ! -e "$KUNIT/$suite/results" ] || report "$suite"
done
nbd_end
