# SPDX-License-Identifier: GPL-2.0
#
# Says which tests ran when leaked blocks were allocated. Input: the kernel log with the runner's marks, then
# kmemleak's report. -v hz=CONFIG_HZ.

FNR == NR {
	if (/nbd-selftest: [0-9]+ /) {
		begun[++n] = substr($0, 2) + 0
		name[n] = $NF
	}
	next
}
/^  comm .* jiffies [0-9]+/ {
	# Jiffies begin five minutes before they wrap around.
	at = ($NF - (4294967296 - 300 * hz)) / hz
	i = n
	while (i > 0 && begun[i] > at)
		i--
	blocks[i]++
}
END {
	for (i in blocks)
		printf "       %d block(s) allocated while %s ran\n", blocks[i], (i > 0 ? name[i] : "no test")
}
