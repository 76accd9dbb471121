// SPDX-License-Identifier: GPL-2.0
/*
 * How the kernel is told which allocation is to fail, or more.
 */
#include "alloc.h"

#define FAULT_DEBUG	"/sys/kernel/debug/"

/* How it is told what is to fail; what was there before is put back. */
static const struct {
	const char *name, *value;
} settings[] = {
	{ "failslab/ignore-gfp-wait", "N" },
	{ "failslab/verbose", "0" },
	{ "failslab/task-filter", "N" },
	{ "failslab/probability", "0" },
	{ "failslab/interval", "1" },
	{ "failslab/times", "1" },
	{ "failslab/space", "0" },
	{ "failslab/require-start", "0" },
	{ "failslab/require-end", "0xffffffffffffffff" },
	{ "failslab/reject-start", NULL },
	{ "failslab/reject-end", NULL },
	{ "fail_page_alloc/ignore-gfp-wait", "N" },
	{ "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ "fail_page_alloc/min-order", "0" },
	{ "fail_page_alloc/verbose", "0" },
	{ "fail_page_alloc/probability", "0" },
	{ "fail_page_alloc/reject-start", NULL },
	{ "fail_page_alloc/reject-end", NULL },
};

static char settings_before[ARRAY_SIZE(settings)][64];

static bool get_text(const char *name, char *text, size_t len)
{
	char path[128];

	snprintf(path, sizeof(path), FAULT_DEBUG "%s", name);
	return read_file(path, text, len) > 0;
}

static bool put_text(const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), FAULT_DEBUG "%s", name);
	return write_file(path, text);
}

/* Where a function of the kernel begins and ends. */
static bool function_range(const char *name, char from[32], char to[32])
{
	unsigned long start = 0, end = -1UL, at;
	char line[512], symbol[256];
	FILE *f;
	int i;

	f = fopen("/proc/kallsyms", "re");
	if (!f)
		return false;
	/* They are in no order. */
	for (i = 0; i < 2; i++) {
		while (fgets(line, sizeof(line), f)) {
			if (sscanf(line, "%lx %*c %255s", &at, symbol) != 2)
				continue;
			if (!i && !strcmp(symbol, name))
				start = at;
			if (i && at > start && at < end)
				end = at;
		}
		rewind(f);
	}
	fclose(f);
	snprintf(from, 32, "0x%lx", start);
	snprintf(to, 32, "0x%lx", end);
	return start;
}

/* Where vmalloc is; once, for it takes seconds on a slow kernel. */
static char vmalloc_from[32], vmalloc_to[32];
static bool vmalloc_found;

static void __attribute__((constructor)) find_vmalloc(void)
{
	if (!access(FAULT_NTH, W_OK))
		vmalloc_found = function_range("__vmalloc_node_range_noprof", vmalloc_from,
					       vmalloc_to);
}

/* NULL, or why the test is to be skipped. */
const char *faults_on(void)
{
	size_t i;

	if (access(FAULT_NTH, W_OK))
		return "the kernel has no " FAULT_NTH " (CONFIG_FAULT_INJECTION)";
	if (access(FAULT_DEBUG "failslab", F_OK) || access(FAULT_DEBUG "fail_page_alloc", F_OK))
		return "no failslab or fail_page_alloc in debugfs";
	/* It prints its stack when it has no memory, which looks like a bug in the log. */
	if (!vmalloc_found)
		return "cannot tell vmalloc from others in /proc/kallsyms";
	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		const char *value = settings[i].value;

		if (!value)
			value = strstr(settings[i].name, "start") ? vmalloc_from : vmalloc_to;
		/* Some files depend on the configuration. */
		if (get_text(settings[i].name, settings_before[i], sizeof(settings_before[i])))
			put_text(settings[i].name, value);
	}
	return NULL;
}

void faults_off(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		if (settings_before[i][0])
			put_text(settings[i].name, settings_before[i]);
}

static bool module_range(unsigned long *from, unsigned long *to)
{
	unsigned long size = 0, at = 0;
	bool found = false;
	char line[512];
	FILE *f;

	f = fopen("/proc/modules", "re");
	while (f && !found && fgets(line, sizeof(line), f))
		found = sscanf(line, "nbd %lu %*s %*s %*s %lx", &size, &at) == 2;
	if (f)
		fclose(f);
	*from = at;
	*to = at + size;
	return found && at;
}

/* Can the kernel be told that only allocations of the module fail? */
bool can_filter_faults(void)
{
	unsigned long from, to;
	char text[64];

	return module_range(&from, &to) && get_text("failslab/require-start", text, sizeof(text));
}

/* Only allocations of the module fail, whatever task makes them. */
bool faults_in_module(void)
{
	unsigned long from, to;
	char start[64], end[64];

	if (!module_range(&from, &to))
		return false;
	snprintf(start, sizeof(start), "0x%lx", from);
	snprintf(end, sizeof(end), "0x%lx", to);
	return put_text("failslab/require-start", start) && put_text("failslab/require-end", end);
}

/* The nth allocation from now on fails, and no other. */
bool fault_begin(int n)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", n);
	return put_text("failslab/interval", text) && put_text("failslab/times", "1") &&
	       put_text("failslab/probability", "100");
}

/* None fails any more: true if one has. */
bool fault_end(void)
{
	char text[64];

	put_text("failslab/probability", "0");
	get_text("failslab/times", text, sizeof(text));
	return atoi(text) == 0;
}
