// SPDX-License-Identifier: GPL-2.0
/*
 * What fuzz_model looks at after each step, on all devices: sysfs, debugfs, STATUS, the sockets and
 * the I/O that waits.
 */
#include "model.h"

/* Where a device can be seen; not open (0) while it is not there. */
static struct {
	int dir, size;
} sys[DEVS];
int debugfs;

static bool read_text(int dir, const char *name, char *text, size_t size)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t n = -1;

	if (fd >= 0) {
		n = read(fd, text, size - 1);
		close(fd);
	}
	text[n > 0 ? n : 0] = 0;
	return n >= 0;
}

static void sys_close(int d)
{
	if (!sys[d].dir)
		return;
	close(sys[d].size);
	close(sys[d].dir);
	sys[d].dir = 0;
}

/* In sectors, or -1. */
static long long sys_size(int d)
{
	char text[32];
	int again;

	for (again = 0; again < 2; again++) {
		if (!sys[d].dir) {
			snprintf(text, sizeof(text), "/sys/block/nbd%d", devs[d].dev.index);
			sys[d].dir = open(text, O_PATH | O_CLOEXEC);
			sys[d].size = openat(sys[d].dir, "size", O_RDONLY | O_CLOEXEC);
		}
		if (pread(sys[d].size, text, sizeof(text), 0) > 0)
			return atoll(text);
		/* It may have been made anew. */
		sys_close(d);
	}
	return -1;
}

static void see_nothing(int d)
{
	sys_close(d);
	if (!WAIT_UNTIL(!nbd_sys_exists(&devs[d].dev, "size"), 1000))
		fuzz_fail("nbd%d is still there", devs[d].dev.index);
}

static void see_sysfs(int d)
{
	struct mdev *m = &devs[d];
	bool running = m->state == RUNNING, has_pid;
	char text[32] = "";
	long long size;

	if (m->state == ABSENT) {
		see_nothing(d);
		return;
	}
	size = sys_size(d);
	if (size != (long long)(running ? m->params.size : m->shown) / 512 &&
	    !(m->state == STOPPED && !size))
		fuzz_fail("nbd%d: the size is %lld sectors", m->dev.index, size);
	has_pid = read_text(sys[d].dir, "pid", text, sizeof(text));
	if (running != has_pid)
		fuzz_fail("nbd%d: the file pid is %sthere", m->dev.index, has_pid ? "" : "not ");
	else if (running && atoi(text) != m->pid)
		fuzz_fail("nbd%d: pid is %d, not %d", m->dev.index, atoi(text), m->pid);
}

/* What debugfs must say of the state. */
static void state_text(int d, char *text, size_t size)
{
	struct mdev *m = &devs[d];
	struct sock *own[SOCKS];
	char comm[] = "fuzz_model";

	switch (m->state) {
	case SETUP:
		/* Of one that is gone the model does not know the pid. */
		if (m->owner < 0)
			snprintf(text, size, "setup of %d socket(s) by process",
				 kept_socks(d, own));
		else
			snprintf(text, size,
				 "setup of %d socket(s) by process %d (%s), which is alive",
				 kept_socks(d, own), users[m->owner].pid, comm);
		break;
	case RUNNING:
		snprintf(text, size, "%s, session of task %d,",
			 m->alive ? "running" :
			 io_flows(m) ? "without connection" : "waiting for a connection", m->pid);
		break;
	case STOPPED:
		snprintf(text, size, "stopped, ");
		break;
	default:
		snprintf(text, size, "idle, ");
	}
}

/* Nothing is said of a device that nothing is to be said of. */
static void see_debugfs(int d)
{
	struct mdev *m = &devs[d];
	bool silent = m->state == IDLE, there;
	char name[32], text[4096], wanted[128], word[32], *p, *line;
	int n = -1, open = 0, closed = 0;

	if (debugfs < 0 || m->state == ABSENT)
		return;
	snprintf(name, sizeof(name), "nbd%d/state", m->dev.index);
	there = read_text(debugfs, name, text, sizeof(text));
	if (!there && silent)
		return;
	if (!there)
		fuzz_fail("nbd%d: there is no debugfs file", m->dev.index);
	state_text(d, wanted, sizeof(wanted));
	if (strncmp(text, wanted, strlen(wanted)) ||
	    (m->state == SETUP && m->owner < 0 && !strstr(text, "has exited")))
		fuzz_fail("nbd%d: the state is \"%s\", not \"%s\"", m->dev.index, text, wanted);
	p = strstr(text, " opener(s)");
	while (p && p > text && p[-1] != ' ')
		p--;
	if (p)
		n = atoi(p);
	if (n != openers(d))
		fuzz_fail("%d openers, not %d: %s", n, openers(d), text);
	snprintf(name, sizeof(name), "nbd%d/connections", m->dev.index);
	if (!read_text(debugfs, name, text, sizeof(text)))
		fuzz_fail("nbd%d: there is no debugfs file", m->dev.index);
	for (line = text; *line; line += strcspn(line, "\n") + 1) {
		if (sscanf(line, "%*d: %31s", word) != 1)
			continue;
		if (!strcmp(word, "open"))
			open++;
		else
			closed++;
	}
	if (m->state == RUNNING ? open != m->alive || open + closed != m->conns : open + closed)
		fuzz_fail("nbd%d: %d of %d connections are open, not %d of %d", m->dev.index, open,
			  open + closed, m->state == RUNNING ? m->alive : 0,
			  m->state == RUNNING ? m->conns : 0);
}

/* What STATUS says of a device, or -1. */
int status_of(int d)
{
	struct nl_answer r;
	struct nl_msg msg;

	nl_begin(&msg, NBD_CMD_STATUS, devs[d].dev.index);
	want(fuzz_ask(&genl, &msg, &r), 0, "STATUS");
	return r.ndevs == 1 ? r.dev[0].connected : -1;
}

void see_status(int d)
{
	want(status_of(d), devs[d].state == ABSENT ? -1 : devs[d].state == RUNNING,
	     "connected in STATUS");
}

/* Those that are to be closed are, and the others are not. */
static void see_socks(void)
{
	struct pollfd p[SOCKS];
	struct sock *of[SOCKS];
	int i, n = 0;

	for (i = 0; i < SOCKS; i++) {
		if (socks[i].state != SOCK_KEPT && socks[i].state != SOCK_DROPPED)
			continue;
		of[n] = &socks[i];
		p[n++] = (struct pollfd) { .fd = socks[i].fd, .events = POLLRDHUP };
	}
	poll(p, n, 0);
	for (i = 0; i < n; i++) {
		struct sock *s = of[i];

		if (s->state == SOCK_KEPT && !p[i].revents)
			continue;
		if (s->state == SOCK_KEPT)
			fuzz_fail("nbd%d: a socket was closed", devs[s->dev].dev.index);
		else if (!p[i].revents && !saw_eof(s->fd, 1000))
			fuzz_fail("nbd%d: a socket is still held", devs[s->dev].dev.index);
		sock_close(s);
	}
}

void see_pending(void)
{
	int i;

	for (i = 0; i < PENDING; i++) {
		struct mpending *p = &pending[i];
		struct user_thread *t = &shared->pending[i];
		struct mdev *m = &devs[p->dev];

		if (!p->busy)
			continue;
		if (!io_flows(m)) {
			if (t->done)
				fuzz_fail("nbd%d: I/O has ended with %ld, for no reason",
					  m->dev.index, t->ret);
			continue;
		}
		if (!WAIT_UNTIL(t->done, 1000))
			fuzz_fail("nbd%d: I/O is not finished", m->dev.index);
		else if (t->ret != (m->state == RUNNING && m->alive ? (long)BLOCK : -EIO))
			fuzz_fail("nbd%d: I/O has ended with %ld", m->dev.index, t->ret);
		p->busy = false;
	}
}

void see(void)
{
	int d;

	see_socks();
	see_pending();
	for (d = 0; d < DEVS; d++) {
		see_sysfs(d);
		see_debugfs(d);
		see_status(d);
	}
}
