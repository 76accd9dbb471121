# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts/deb and scripts/check-deb: roots of their own, for the tests' root must stay as it is.

deb_version() { sed -n '1s/.*(\(.*\)).*/\1/p' "$TOP/packaging/debian/changelog"; }

# What nbdctl and its package are made with.
nbdctl_tools="cargo rustc rustfmt rust-clippy libnbd-dev pkgconf debhelper dpkg-dev lintian"

deb_tools="debhelper dh-dkms dpkg-dev lintian"

# make_deb_root DIRECTORY PACKAGES: a Debian root with lists of packages, made beside its place and moved there.
make_deb_root() {
	local dir=$1 mirror
	[ ! -d "$dir" ] || return 0
	mirror=$(debian_mirror)
	exec 7>"$NBD_CACHE/deb-lock"
	flock 7
	if [ -d "$dir" ]; then
		exec 7>&-
		return
	fi
	[ "$(id -u)" = 0 ] || die "root is needed to make a Debian root"
	command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: run scripts/setup, or apt install mmdebstrap"
	run_step "Debian $SUITE with $2" mmdebstrap --variant=apt --mode=root --skip=cleanup/apt/lists \
		--include="${2// /,}" "$SUITE" "$dir.tmp.$$" \
		"deb $mirror $SUITE main" "deb $mirror $SUITE-backports main"
	mv -T "$dir.tmp.$$" "$dir"
	exec 7>&-
}

# copy_root FROM TO: what is written to the copy is in TO.rw, where the file system can do that.
copy_root() {
	mkdir -p "$2" "$2.rw/upper" "$2.rw/work"
	mount -t overlay -o "lowerdir=$1,upperdir=$2.rw/upper,workdir=$2.rw/work" overlay "$2" 2>/dev/null ||
		run_step "a copy of $1" cp -a --reflink=auto "$1/." "$2"
}
drop_root() {
	! mountpoint -q "$1" || umount "$1"
	rm -rf --one-file-system "$1" "$1.rw"
}

# are_here PACKAGES: this machine is a Debian 13 and has them.
are_here() {
	local p
	[ "$ROOT" = / ] || return 1
	for p in $1; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || return 1
	done
}

deb_tools_root=/
need_deb_tools() {
	! are_here "$deb_tools" || return 0
	deb_tools_root=$NBD_CACHE/deb-root-$(echo "$SUITE $deb_tools" | sha256sum | cut -c 1-12)
	make_deb_root "$deb_tools_root" "$deb_tools"
}
with_deb_tools() { ROOT=$deb_tools_root in_root "$@"; }

nbdctl_tools_root=/
need_nbdctl_tools() {
	! are_here "$nbdctl_tools" || return 0
	nbdctl_tools_root=$NBD_CACHE/nbdctl-root-$(echo "$SUITE $nbdctl_tools" | sha256sum | cut -c 1-12)
	make_deb_root "$nbdctl_tools_root" "$nbdctl_tools"
}
with_nbdctl_tools() { ROOT=$nbdctl_tools_root in_root "$@"; }
