# SPDX-License-Identifier: GPL-2.0
#
# The table of scripts/bench, from the lists of drivers and of rows and from what the guest measured. -v form=counted,
# short or wall; -v tsv=FILE gets every figure; -v recorded=FILE has the ratios that the short form must come near to.

function shown(driver) { return driver == "c" ? "C" : driver == "rust" ? "ours" : driver }

# The rows' values of a driver, in order, in sorted[1..n].
function sort_values(key,    i, j, v, n) {
	n = count[key]
	for (i = 1; i <= n; i++) {
		v = value[key, i]
		for (j = i - 1; j >= 1 && sorted[j] > v; j--)
			sorted[j + 1] = sorted[j]
		sorted[j + 1] = v
	}
	return n
}

# In how many of the pairs of a run of each the first is ahead, in parts of one. Equal ones are half ahead.
function ahead(one, other,    i, j, sum) {
	for (i = 1; i <= count[one]; i++)
		for (j = 1; j <= count[other]; j++)
			sum += value[one, i] > value[other, j] ? 1 : value[one, i] == value[other, j] ? 0.5 : 0
	return sum / count[one] / count[other]
}

# What was never seen is not in the list of what was counted.
function cost(row, driver, what) {
	return (row, driver, what) in costs ? costs[row, driver, what] : (row, driver) in counted ? "0.00" : "-"
}

# note REASON: its number below the table.
function note(reason) {
	if (!(reason in notes)) {
		notes[reason] = ++last_note
		note_text[last_note] = reason
	}
	return "- [" notes[reason] "]"
}

BEGIN { FS = "\t" }
FILENAME != file { file = FILENAME; files++ }
files == 1 { drivers[++n_drivers] = $1 }
files == 2 {
	split($0, f, " ")
	name = f[1]
	for (i = 2; i < 8; i++)
		name = name ":" f[i]
	rows[++n_rows] = name
}
files == 3 {
	gsub(/ /, ":", $2)
	key = $2 SUBSEP $3
}
files == 3 && $1 == "speed" {
	if ($5 == "-")
		reasons[key] = $6
	else
		value[key, ++count[key]] = $5
}
files == 3 && $1 == "cost" {
	if ($4 == "-")
		cost_reasons[key] = $6
	else {
		counted[key]
		costs[key, $4] = $5
	}
}

END {
	reference = drivers[1]
	for (d = 1; d <= n_drivers; d++)
		if (drivers[d] == "c")
			reference = "c"
	for (r = 1; r <= n_rows; r++) {
		for (d = 1; d <= n_drivers; d++) {
			key = rows[r] SUBSEP drivers[d]
			median[key] = lowest[key] = highest[key] = ratio[key] = verdict[key] = "-"
			if (!count[key]) {
				if (!(key in reasons))
					reasons[key] = "it was not measured: the machine ended before"
				continue
			}
			n = sort_values(key)
			median[key] = (sorted[int((n + 1) / 2)] + sorted[int(n / 2) + 1]) / 2
			lowest[key] = sorted[1]
			highest[key] = sorted[n]
		}
		of_reference = rows[r] SUBSEP reference
		for (d = 1; d <= n_drivers; d++) {
			key = rows[r] SUBSEP drivers[d]
			if (median[key] == "-" || median[of_reference] == "-" || !median[of_reference])
				continue
			ratio[key] = sprintf("%.3f", median[key] / median[of_reference])
			if (drivers[d] == reference || count[key] < 3 || count[of_reference] < 3)
				continue
			part = ahead(key, of_reference)
			verdict[key] = part >= 0.92 ? "better" : part <= 0.08 ? "worse" : "same"
		}
	}

	n_whats = split("switches wakeups sends receives", whats, " ")
	printf "row\tdriver\tiops\tmin\tmax\tratio\tverdict" >tsv
	for (w = 1; w <= n_whats; w++)
		printf "\t%s\tserver_%s", whats[w], whats[w] >tsv
	print "\treason" >tsv
	for (r = 1; r <= n_rows; r++)
		for (d = 1; d <= n_drivers; d++) {
			key = rows[r] SUBSEP drivers[d]
			printf "%s\t%s\t%s\t%s\t%s\t%s\t%s", rows[r], drivers[d], median[key], lowest[key], highest[key],
				ratio[key], verdict[key] >tsv
			for (w = 1; w <= n_whats; w++)
				printf "\t%s\t%s", cost(rows[r], drivers[d], whats[w]),
					cost(rows[r], drivers[d], "server_" whats[w]) >tsv
			print "\t" (key in reasons ? reasons[key] : key in cost_reasons ? cost_reasons[key] : "") >tsv
		}

	wide = form == "wall" ? 33 : 14
	printf "\nI/Os in a second%s, and their ratio to %s\n\n", form == "wall" ? " (median, lowest, highest)" : "",
		shown(reference)
	printf "%-40s", "row"
	for (d = 1; d <= n_drivers; d++)
		printf " %" wide "s", shown(drivers[d])
	print ""
	for (r = 1; r <= n_rows; r++) {
		printf "%-40s", rows[r]
		for (d = 1; d <= n_drivers; d++) {
			key = rows[r] SUBSEP drivers[d]
			if (median[key] == "-")
				text = note(reasons[key])
			else {
				text = sprintf("%.0f", median[key])
				if (form == "wall")
					text = text sprintf(" (%d-%d)", lowest[key], highest[key])
				if (drivers[d] != reference)
					text = text (ratio[key] == "-" ? "     -" : sprintf(" %5.2f", ratio[key]))
				if (verdict[key] != "-")
					text = text sprintf(" %-6s", verdict[key])
			}
			printf " %" wide "s", text
		}
		print ""
	}

	if (form == "counted") {
		print "\nFor each I/O, of all but the server / of the server\n"
		printf "%-40s %-8s", "row", "driver"
		for (w = 1; w <= n_whats; w++)
			printf " %12s", whats[w]
		print ""
		for (r = 1; r <= n_rows; r++)
			for (d = 1; d <= n_drivers; d++) {
				key = rows[r] SUBSEP drivers[d]
				printf "%-40s %-8s", rows[r], shown(drivers[d])
				if (key in reasons || key in cost_reasons)
					printf " %12s", note(key in reasons ? reasons[key] : cost_reasons[key])
				else
					for (w = 1; w <= n_whats; w++)
						printf " %12s", cost(rows[r], drivers[d], whats[w]) "/" \
							cost(rows[r], drivers[d], "server_" whats[w])
				print ""
			}
	}
	if (last_note)
		print ""
	for (i = 1; i <= last_note; i++)
		printf "[%d] %s\n", i, note_text[i]

	failed = 0
	while (recorded != "" && (getline line <recorded) > 0) {
		if (line ~ /^#/)
			continue
		split(line, f, "\t")
		key = f[1] SUBSEP "rust"
		now = key in ratio ? ratio[key] : "-"
		bad = now == "-" || now < f[2] * 0.92
		failed += bad
		known++
		if (!bad && now > f[2] * 1.08)
			better++
		printf "%s %-40s %s times C; recorded: %s%s\n", bad ? "FAIL" : "ok  ", f[1], now, f[2],
			bad ? ", and at most 8 % less is let through" : ""
	}
	if (recorded != "" && known != n_rows) {
		printf "FAIL: %d rows were measured, %d are recorded: scripts/bench --short --record\n", n_rows, known
		failed++
	}
	if (better)
		print "note: " better " are faster than recorded by more than 8 %: scripts/bench --short --record"
	exit failed > 0
}
