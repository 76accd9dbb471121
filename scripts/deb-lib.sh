# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For what makes and checks packages: roots of their own, for the tests' root must stay as it is; and how packages are
# made.

deb_version() { sed -n '1s/.*(\(.*\)).*/\1/p' "$TOP/packaging/debian/changelog"; }

# What the driver's package is made with, and what nbdctl and its package are.
declare -A tools_of=(
	[deb]="debhelper dh-dkms dpkg-dev lintian"
	[nbdctl]="cargo rustc rustfmt rust-clippy libnbd-dev pkgconf debhelper dpkg-dev lintian"
)
declare -A root_of=()

# root_for NAME PACKAGES: where the cache has such a root.
root_for() { echo "$NBD_CACHE/$1-$(echo "$SUITE $2" | sha256sum | cut -c 1-12)"; }

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

# need_tools deb|nbdctl: this machine's if it has them, else those of a root.
need_tools() {
	root_of[$1]=/
	! are_here "${tools_of[$1]}" || return 0
	root_of[$1]=$(root_for "$1-root" "${tools_of[$1]}")
	make_deb_root "${root_of[$1]}" "${tools_of[$1]}"
}
# with_tools deb|nbdctl CMD...
with_tools() { ROOT=${root_of[$1]} in_root "${@:2}"; }

# copy_sources FROM TO [PATH...]: what belongs to the sources below FROM, not what an earlier build has left.
copy_sources() {
	local from=$1 to=$2
	shift 2
	git -C "$from" -c safe.directory="$TOP" ls-files -z --cached --others --exclude-standard -- "$@" |
		(cd "$from" && while IFS= read -r -d '' f; do [ ! -f "$f" ] || printf '%s\0' "$f"; done |
			xargs -0 cp -a --parents -t "$to/")
}

# build_deb deb|nbdctl TITLE DIRECTORY [NAME=VALUE...]: the package of the sources there, beside them. Who builds the
# same commit gets the same package.
build_deb() {
	local tools=$1 title=$2 dir=$3 date
	shift 3
	date=$(git -C "$TOP" -c safe.directory="$TOP" log -1 --format=%ct 2>/dev/null || date +%s)
	(
		cd "$dir" || exit
		run_step "$title" with_tools "$tools" env SOURCE_DATE_EPOCH="$date" "$@" \
			dpkg-buildpackage --build=binary --no-sign -d
	)
}

# lint_deb deb|nbdctl FILE
lint_deb() {
	with_tools "$1" lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "$2" ||
		die "lintian has found something"
}
