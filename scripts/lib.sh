# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What every script here shares: where things are, how progress and failure are reported, and how a
# command is run where the tools are.

set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${NBD_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-rust}"
export TOP NBD_CACHE

SUITE=trixie
KERNEL_SERIES=7.3

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The mirror of Debian that the apt of this machine uses. NBD_MIRROR names another.
debian_mirror() {
	local mirror=${NBD_MIRROR:-}
	# shellcheck disable=SC2016 # for apt
	[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' \
		'Component: main' 2>/dev/null | awk '$1 !~ /-/ && !n++ { print $2 }') || :
	[ -n "$mirror" ] || die "apt knows no mirror of Debian: set NBD_MIRROR to the URL of one"
	echo "${mirror%/}"
}

# run_step TITLE CMD...: run a long command with its output in a log, and show that it is alive.
run_step() {
	local title=$1 log start pid last=0 now rc=0
	shift
	mkdir -p "$NBD_CACHE/log"
	log=$NBD_CACHE/log/$(printf '%s' "$title" | tr -cs 'a-zA-Z0-9' '-')$$.log
	start=$SECONDS
	say "    $title ..."
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		now=$((SECONDS - start))
		if [ $((now - last)) -ge 20 ]; then
			last=$now
			printf '    %s: %d s, %s\n' "$title" "$now" \
				"$(tail -n 1 "$log" | tr -d '\r' | cut -c 1-80)"
		fi
	done
	wait "$pid" || rc=$?
	if [ "$rc" -ne 0 ]; then
		tail -n 25 "$log" >&2
		die "$title failed (exit $rc); the whole log is $log"
	fi
	say "    $title: done in $((SECONDS - start)) s"
	rm -f "$log"
}

# What the root is made from; a change of any of it makes a new root.
root_packages() { sed 's/#.*//' "$TOP/scripts/packages" | tr -s ' ' '\n' | sed '/^$/d'; }
root_key() { { echo "$SUITE $KERNEL_SERIES 1"; root_packages; } | sha256sum | cut -c 1-12; }

# Debian 13 with every package present needs no root of our own.
host_is_native() {
	[ "${NBD_NATIVE:-auto}" != no ] || return 1
	# shellcheck disable=SC1091
	[ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = "$SUITE" ] || return 1
	local p
	for p in $(root_packages) "linux-source-$KERNEL_SERIES"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || return 1
	done
	compgen -G "/usr/src/linux-headers-$KERNEL_SERIES.*-amd64" >/dev/null
}

if host_is_native; then ROOT=/; else ROOT=$NBD_CACHE/root-$(root_key); fi
export ROOT

# The newest kernel release that the root has, as the headers packages state it.
stock_release() {
	local best
	best=$(cat "$ROOT"/usr/src/linux-headers-"$KERNEL_SERIES".*-amd64/include/config/kernel.release 2>/dev/null |
		grep -x '[^-]*-amd64' | sort -V | tail -n 1) || true
	[ -n "$best" ] || die "no linux-headers-$KERNEL_SERIES.*-amd64 in $ROOT: run scripts/setup"
	echo "$best"
}

# check TITLE CMD...: say in a line whether it succeeded, with the last $check_lines lines of what it said if not, and
# count it in $passed or add it to $bad.
check() {
	local title=$1 output start=$SECONDS
	shift
	if output=$("$@" 2>&1 </dev/null); then
		passed=$((passed + 1))
		say "    ok    $title ($((SECONDS - start)) s)"
	else
		bad+=("$title")
		say "    FAIL  $title ($((SECONDS - start)) s)"
		[ -z "$output" ] || tail -n "${check_lines:-+1}" <<<"$output" | sed 's/^/          /'
	fi
}

# build_nbdctl: build nbdctl and set NBD_CTL, or NBD_CTL_MISSING to the reason why there is none: without a network
# there may be no crates. That it cannot be built is a failure.
build_nbdctl() {
	local output
	say "==> building nbdctl"
	if output=$("$TOP/scripts/nbdctl" fetch 2>&1); then
		"$TOP/scripts/nbdctl" build || die "nbdctl was not built"
		NBD_CTL=$("$TOP/scripts/nbdctl" path)
		export NBD_CTL
	else
		say "$output"
		NBD_CTL_MISSING=$(tail -n 1 <<<"$output")
		export NBD_CTL_MISSING
	fi
}

# fetch_nbd_server: sets NBD_SERVER to the program nbd-server, unless that is set. The root has none; it is small, and
# runs with the root's libraries.
fetch_nbd_server() {
	local tools=$NBD_CACHE/bench-tools
	[ -z "${NBD_SERVER:-}" ] || return 0
	export NBD_SERVER=/usr/bin/nbd-server
	[ ! -x "$ROOT$NBD_SERVER" ] || return 0
	NBD_SERVER=$tools$NBD_SERVER
	[ ! -x "$NBD_SERVER" ] || return 0
	mkdir -p "$tools.$$" "$TOP/build"
	(cd "$tools.$$" && in_root apt-get -q download nbd-server && in_root sh -c 'dpkg -x nbd-server_*.deb .') \
		>"$TOP/build/bench-tools.log" 2>&1 || say "    nbd-server cannot be had: build/bench-tools.log"
	mv -T "$tools.$$" "$tools" 2>/dev/null || rm -rf "$tools.$$"
}

# other_kernel_runs CONSEQUENCE: says so in a line if the kernel that runs is not the one that the cache is for.
other_kernel_runs() {
	local stock
	stock=$(stock_release 2>/dev/null) || return 0
	[ "$stock" = "$(uname -r)" ] || say "note: the cache is for kernel $stock, this machine runs $(uname -r): $1"
}

source_version() {
	dpkg-query --root="$ROOT" -W -f '${Version}' "linux-source-$KERNEL_SERIES" 2>/dev/null ||
		die "no linux-source-$KERNEL_SERIES in $ROOT: run scripts/setup"
}

stock_kdir() { echo "$NBD_CACHE/kernel-$(stock_release)-$(source_version | sha256sum | cut -c 1-8)"; }
# Debian's other builds of the same kernel, rt and cloud: its packages, unpacked, and Rust metadata made from them.
flavour_release() {
	local release
	release=$(stock_release)
	echo "${release%-amd64}-$1-amd64"
}
flavour_dir() { echo "$NBD_CACHE/kernel-$(flavour_release "$1")-$(source_version | sha256sum | cut -c 1-8)"; }
flavour_kdir() { echo "$(flavour_dir "$1")/rust/$(flavour_release "$1")/build"; }
rt_kdir() { flavour_kdir rt; }
cloud_kdir() { flavour_kdir cloud; }
# The stock kernel's tree again, for the newest rustc that there is, if that is another one.
newest_rustc() { in_root apt-cache madison rustc | awk '{ print $3 }' | sort -V | tail -n 1; }
rustc_kdir() {
	local newest
	newest=$(newest_rustc)
	[ -n "$newest" ] || die "apt knows no rustc in $ROOT: run make setup"
	if [ "$newest" = "$(dpkg-query --root="$ROOT" -W -f '${Version}' rustc)" ]; then
		stock_kdir
		return
	fi
	echo "$NBD_CACHE/kernel-rustc-$({ source_version; echo "$newest"; } | sha256sum | cut -c 1-12)"
}
debug_kdir() { own_kdir debug; }
kcsan_kdir() { own_kdir kcsan; }
own_kdir() {
	local key
	key=$({ source_version; own_config "$1"; } | sha256sum | cut -c 1-12)
	echo "$NBD_CACHE/kernel-$1-$key"
}

# prepared KERNEL: whether the cache has its tree, complete.
prepared() { [ -e "$("${1}_kdir")/.nbd-make-args" ]; }

# own_config debug|kcsan: what a kernel of our own has on top of tinyconfig.
own_config() {
	local more=$TOP/.config.fragment.$1 symbols
	if [ ! -e "$more" ]; then
		cat "$TOP/.config.fragment"
		return
	fi
	symbols=$(grep -oE 'CONFIG_[A-Z0-9_]+' "$more" | paste -sd '|')
	grep -vE "^($symbols)=" "$TOP/.config.fragment"
	cat "$more"
}

# in_root CMD...: run a command where the tools are, with this checkout and the cache at their own paths.
in_root() {
	if [ "$ROOT" = / ]; then
		"$@"
		return
	fi
	[ -d "$ROOT" ] || die "no Debian root at $ROOT: run scripts/setup"
	# shellcheck disable=SC2016
	unshare --mount --propagation private -- bash -c '
		set -e
		root=$1 cwd=$2; shift 2
		mount --rbind /dev "$root/dev"
		mount --rbind /sys "$root/sys"
		mount -t proc proc "$root/proc"
		mount -t tmpfs tmpfs "$root/tmp"
		mount -t tmpfs tmpfs "$root/run"
		for d in "$TOP" "$NBD_CACHE" ${KDIR:+"$KDIR"}; do
			mkdir -p "$root$d"
			mount --rbind "$d" "$root$d"
		done
		exec chroot "$root" /usr/bin/env -u LD_LIBRARY_PATH \
			PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
			sh -c "cd \"\$0\" && exec \"\$@\"" "$cwd" "$@"
	' in_root "$ROOT" "$PWD" "$@"
}
