# SPDX-License-Identifier: GPL-2.0
#
# Pass a kernel log on without those reports of the race detector that our module has no part in: the kernel has
# many races that it knows of.

/======================/ {
	if (open) {
		flush($0)
		next
	}
	open = 1
}
open { text = text $0 "\n"; ours = ours || /\[nbd\]/; race = race || /KCSAN:/; next }
{ print }
END { if (open) flush("") }

function flush(last) {
	if (!race || ours)
		printf "%s%s\n", text, last
	open = ours = race = 0
	text = ""
}
