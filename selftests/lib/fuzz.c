// SPDX-License-Identifier: GPL-2.0
/*
 * What the fuzzers share.
 */
#include <dirent.h>
#include <stdarg.h>

#include "nbd_fuzz.h"

struct fuzz_shared *fuzz;

void fuzz_init(void)
{
	fuzz = shared_memory(sizeof(*fuzz));
	if (!fuzz)
		exit(1);
}

__attribute__((__format__(__printf__, 1, 2)))
void fuzz_say(const char *fmt, ...)
{
	int room = sizeof(fuzz->text) - 1 - fuzz->len, n;
	va_list ap;

	if (room < 2)
		return;
	va_start(ap, fmt);
	n = vsnprintf(fuzz->text + fuzz->len, room, fmt, ap);
	va_end(ap);
	fuzz->len += n < room ? n : room - 1;
	fuzz->text[fuzz->len++] = '\n';
}

__attribute__((__format__(__printf__, 1, 2)))
void fuzz_doing(const char *fmt, ...)
{
	va_list ap;

	fuzz->beat++;
	va_start(ap, fmt);
	vsnprintf(fuzz->doing, sizeof(fuzz->doing), fmt, ap);
	va_end(ap);
}

uint64_t fuzz_next(struct fuzz_random *r)
{
	uint64_t z = r->x += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

unsigned int fuzz_pick(struct fuzz_random *r, unsigned int n)
{
	return (fuzz_next(r) >> 33) % n;
}

/* A number from the environment. */
unsigned long fuzz_env(const char *name, unsigned long otherwise)
{
	const char *s = getenv(name);

	return s && *s ? strtoul(s, NULL, 0) : otherwise;
}

unsigned long fuzz_seed(void)
{
	return fuzz_env("NBD_SEED", (now_ms() * 1000003UL ^ getpid()) % 1000000000UL);
}

/* True if nothing that has come since is a splat; says what is. */
bool fuzz_log_clean(int fd)
{
	static const char * const splats[] = {
		"BUG:", "WARNING:", "KASAN:", "Oops", "general protection", "circular locking",
		"inconsistent lock state", "possible recursive locking", "irq lock inversion",
		"suspicious RCU", "blocked for more than", "refcount_t", "ODEBUG:",
		"rust_kernel: panicked", "Call Trace", "Kernel panic",
	};
	const char *text;
	bool clean = true;
	size_t i;

	while ((text = log_next(fd))) {
		for (i = 0; i < ARRAY_SIZE(splats); i++) {
			if (strstr(text, splats[i])) {
				fuzz_fail("the kernel says: %s", text);
				clean = false;
				break;
			}
		}
	}
	return clean;
}

/* Netlink from the worker itself: any thread may send, one at a time on each socket. */
int fuzz_ask(struct genl *g, struct nl_msg *m, struct nl_answer *r)
{
	char buf[8192] __aligned(8);
	ssize_t n;

	m->h.nlmsg_type = g->family;
	r->ret = 0;
	r->index = -1;
	r->ndevs = 0;
	r->nconns = 0;
	r->text[0] = 0;
	if (send(g->fd, m->buf, m->h.nlmsg_len, 0) != (ssize_t)m->h.nlmsg_len)
		return r->ret = -errno;
	while ((n = recv(g->fd, buf, sizeof(buf), 0)) > 0)
		if (nl_take(r, buf, n))
			return r->ret;
	return r->ret = n < 0 ? -errno : -EPIPE;
}

/* The other side closes this connection within this time; what it has sent is thrown away. */
bool fuzz_eof(int fd, int ms)
{
	long long left = scaled(ms);
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLRDHUP };
	static char sink[65536];
	ssize_t n = 1;

	while (n > 0) {
		if (poll_while(&p, 1, &left) != 1)
			return false;
		n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN && !(p.revents & (POLLRDHUP | POLLHUP | POLLERR)))
			n = 1;
	}
	return true;
}

pid_t fuzz_fork(void)
{
	pid_t pid = fork_quiet();

	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

static void fuzz_tell(void)
{
	char *line, *rest = fuzz->text;

	while ((line = strsep(&rest, "\n")))
		if (*line)
			fprintf(stderr, "#   %s\n", line);
	fuzz->text[0] = 0;
	fuzz->len = 0;
}

/* Where the threads of a process are in the kernel. */
void fuzz_stacks(pid_t pid)
{
	char path[300], line[256];
	struct dirent *e;
	DIR *d;
	FILE *f;
	int n;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	d = opendir(path);
	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/stack", pid, e->d_name);
		f = fopen(path, "re");
		for (n = 0; f && n < 7 && fgets(line, sizeof(line), f); n++)
			fuzz_say("thread %s: %.*s", e->d_name, (int)strcspn(line, "\n"), line);
		if (f)
			fclose(f);
	}
	if (d)
		closedir(d);
}

static void fuzz_show(const char *dir, const char *name)
{
	char path[600], line[512];
	int n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	for (; f && n < 20 && fgets(line, sizeof(line), f); n++)
		fprintf(stderr, "#   %s: %s", path + strlen("/sys/kernel/debug/"), line);
	if (f)
		fclose(f);
}

/* What debugfs has about a device and its queue. */
void fuzz_autopsy(int index)
{
	static const char * const of_queue[] = { "state", "requeue_list", "pm_only" };
	static const char * const of_hctx[] = { "state", "flags", "dispatch", "busy" };
	char dir[128], sub[400];
	struct dirent *e;
	size_t i;
	DIR *d;

	snprintf(dir, sizeof(dir), "/sys/kernel/debug/nbd/nbd%d", index);
	d = opendir(dir);
	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.')
			fuzz_show(dir, e->d_name);
	if (d)
		closedir(d);
	snprintf(dir, sizeof(dir), "/sys/kernel/debug/block/nbd%d", index);
	for (i = 0; i < ARRAY_SIZE(of_queue); i++)
		fuzz_show(dir, of_queue[i]);
	d = opendir(dir);
	while (d && (e = readdir(d))) {
		if (strncmp(e->d_name, "hctx", 4))
			continue;
		snprintf(sub, sizeof(sub), "%s/%s", dir, e->d_name);
		for (i = 0; i < ARRAY_SIZE(of_hctx); i++)
			fuzz_show(sub, of_hctx[i]);
	}
	if (d)
		closedir(d);
}

/* Wait for the worker: NULL if it has ended well, or what is wrong. */
const char *fuzz_watch(pid_t pid, int stall_ms, bool quiet)
{
	long long moved = now_ms(), before = moved, now;
	static char found[256];
	long beat = -1;

	while (!exited(pid)) {
		if (fuzz->beat != beat) {
			beat = fuzz->beat;
			moved = now_ms();
		} else if (now_ms() - moved > scaled(stall_ms)) {
			fuzz_say("stuck while: %s", fuzz->doing);
			fuzz_stacks(pid);
			if (!quiet)
				fuzz_tell();
			kill(pid, SIGKILL);
			return "the worker hangs";
		}
		usleep(5000);
		now = now_ms();
		if (now - before > NAP_MOST_MS) {
			fuzz->stood += now - before - NAP_MOST_MS;
			moved += now - before - NAP_MOST_MS;
		}
		before = now;
	}
	if (!fuzz->failed && !fuzz->done)
		fuzz_say("it ended while: %s", fuzz->doing);
	snprintf(found, sizeof(found), "%.*s", (int)strcspn(fuzz->text, "\n"), fuzz->text);
	if (!quiet)
		fuzz_tell();
	if (fuzz->failed)
		return found;
	return fuzz->done ? NULL : "the worker ended early";
}
