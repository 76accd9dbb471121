// SPDX-License-Identifier: GPL-2.0
/*
 * Sockets that others have a descriptor of, too: they set options, hold the socket's lock, connect
 * it to somebody else, or go on with it after the session. None of that may hold up anything but
 * this connection.
 */
#include "kselftest_harness.h"
#include <ctype.h>
#include <dirent.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>

#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS		2000
/* Every call that ends a session has returned by then. */
#define CALL_MS		5000
#define QUEUED		6

/* The number of a socket's inode, by which it is listed for as long as its file exists. */
static unsigned long socket_inode(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

static bool socket_listed(unsigned long inode)
{
	static const struct {
		const char *path, *format;
	} lists[] = {
		{ "/proc/net/tcp", "%*s %*s %*s %*s %*s %*s %*s %*s %*s %lu" },
		{ "/proc/net/unix", "%*s %*s %*s %*s %*s %*s %lu" },
	};
	unsigned long listed;
	char line[512];
	bool found = false;
	size_t i;
	FILE *f;

	for (i = 0; i < ARRAY_SIZE(lists); i++) {
		f = fopen(lists[i].path, "re");
		while (f && fgets(line, sizeof(line), f))
			if (sscanf(line, lists[i].format, &listed) == 1 && listed == inode)
				found = true;
		if (f)
			fclose(f);
	}
	return found;
}

/* Connect by netlink, but keep a descriptor of the first socket. */
static int connect_and_keep(struct nl_session *ns, int *kept)
{
	int ret = nl_peers(ns);

	if (ret)
		return ret;
	*kept = fcntl(ns->s.fd[0], F_DUPFD_CLOEXEC, 0);
	return nl_connect_peers(ns);
}

/*
 * A socket whose close waits until its peer has taken all: its last reference is the kernel's, and
 * one worker closes such files for the whole system.
 */
FIXTURE(linger)
{
	struct nl_session ns, other;
};

FIXTURE_VARIANT(linger)
{
	bool late;		/* in the midst of the session */
	bool dies;		/* the session ends by itself */
};

FIXTURE_VARIANT_ADD(linger, before) { };
FIXTURE_VARIANT_ADD(linger, during) { .late = true };
FIXTURE_VARIANT_ADD(linger, during_and_times_out) { .late = true, .dies = true };

FIXTURE_SETUP(linger)
{
	const char *why = nl_init(&self->ns, 1, PEER_DEAF);

	if (why)
		SKIP(return, "%s", why);
	self->ns.s.tcp = true;
	ASSERT_NULL(nl_init(&self->other, 1, PEER_GOOD));
}

FIXTURE_TEARDOWN(linger)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
	EXPECT_TRUE(nl_cleanup(&self->other));
}

TEST_F(linger, others_are_closed)
{
	struct nl_session *ns = &self->ns, *other = &self->other;
	struct linger linger = { .l_onoff = 1, .l_linger = 30 };
	unsigned long inode, other_inode;
	struct nl_msg m;
	int kept;

	if (variant->dies)
		ns->s.timeout = 1;
	/* In this order: a server forked later would have the first socket open, too. */
	ASSERT_EQ(0, nl_peers(other));
	other_inode = socket_inode(other->s.fd[0]);
	nl_begin_connect(&m, other, other->s.dev.index, other->s.fd, 1);
	ASSERT_EQ(0, nl_finish(other, &m));
	ASSERT_EQ(0, nl_peers(ns));
	inode = socket_inode(ns->s.fd[0]);
	kept = fcntl(ns->s.fd[0], F_DUPFD_CLOEXEC, 0);
	ASSERT_EQ(0, setsockopt(kept, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	nl_begin_connect(&m, ns, ns->s.dev.index, ns->s.fd, 1);
	ASSERT_EQ(0, nl_finish(ns, &m));
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&ns->s.dev) && nbd_running(&other->s.dev), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(&other->s, read_block), BOUNDED));
	if (variant->late)
		ASSERT_EQ(0, setsockopt(kept, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	/* From now on the driver alone has it. */
	close(kept);
	ASSERT_TRUE(socket_listed(inode));
	ASSERT_TRUE(socket_listed(other_inode));
	ASSERT_EQ(0, holder_start(&ns->s));
	if (variant->dies)
		EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->io_done == HOLDER_THREADS, 1000 + END_MS));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(0, nl_disconnect(other->s.dev.index));
	EXPECT_TRUE(WAIT_UNTIL(!socket_listed(other_inode), SOON))
		TH_LOG("another session's socket is not closed");
	EXPECT_TRUE(WAIT_UNTIL(!socket_listed(inode), SOON)) TH_LOG("it is not closed");
}

/* Whether a socket may use the reserves of memory: a probe shows its flags. */
#define TRACING		"/sys/kernel/tracing"
#define SOCK_MEMALLOC	14

static bool probe_sockets(void)
{
	write_file(TRACING "/events/nbd_socket/enable", "0");
	write_file(TRACING "/kprobe_events", "-:nbd_socket/flags");
	return write_file(TRACING "/kprobe_events",
			  "p:nbd_socket/flags sk_getsockopt flags=sk->__sk_common.skc_flags:u64") &&
	       write_file(TRACING "/events/nbd_socket/enable", "1");
}

static void unprobe_sockets(void)
{
	write_file(TRACING "/events/nbd_socket/enable", "0");
	write_file(TRACING "/kprobe_events", "-:nbd_socket/flags");
}

/* 1, 0, or -1 if the probe has not seen it. */
static int may_use_reserves(int fd)
{
	int value, mine = getpid(), found = -1;
	unsigned long long flags;
	socklen_t len = sizeof(value);
	char line[512], *p;
	FILE *f;

	/* This empties the trace. */
	close(open(TRACING "/trace", O_WRONLY | O_TRUNC | O_CLOEXEC));
	if (getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &value, &len))
		return -1;
	f = fopen(TRACING "/trace", "re");
	while (f && fgets(line, sizeof(line), f)) {
		p = strstr(line, "flags=");
		if (!p || sscanf(p, "flags=%llu", &flags) != 1)
			continue;
		/* Lines begin with the name and the number of the task, and the CPU in brackets. */
		p = strstr(line, " [");
		while (p && p > line && *p == ' ')
			p--;
		while (p && p > line && isdigit(p[-1]))
			p--;
		if (p && atoi(p) == mine)
			found = flags >> SOCK_MEMALLOC & 1;
	}
	if (f)
		fclose(f);
	return found;
}

FIXTURE(kept)
{
	struct nl_session ns;
	int fd;
};

FIXTURE_VARIANT(kept)
{
	bool tcp;
};

FIXTURE_VARIANT_ADD(kept, unix) { };
FIXTURE_VARIANT_ADD(kept, tcp) { .tcp = true };

FIXTURE_SETUP(kept)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->fd = -1;
	self->ns.s.tcp = variant->tcp;
	if (!probe_sockets())
		SKIP(return, "the kernel has no probes that know its types");
}

FIXTURE_TEARDOWN(kept)
{
	unprobe_sockets();
	close(self->fd);
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* Whoever keeps a socket for something else must not eat up what block I/O needs. */
TEST_F(kept, memory_reserves_are_for_the_session)
{
	struct nl_session *ns = &self->ns;
	int fresh[2], round;

	ASSERT_EQ(0, make_pair(variant->tcp ? KIND_TCP : KIND_UNIX, fresh));
	EXPECT_EQ(0, may_use_reserves(fresh[0]));
	for (round = 0; round < 2; round++) {
		ASSERT_EQ(0, connect_and_keep(ns, &self->fd));
		EXPECT_EQ(1, may_use_reserves(self->fd));
		EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
		/* The second dies, and is not the session's any more at its end. */
		if (round)
			EXPECT_TRUE(nl_kill_peer(&ns->s, 0));
		EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
		EXPECT_EQ(0, may_use_reserves(self->fd)) TH_LOG("round %d", round);
		close(self->fd);
	}
}

/* One that was only set up, and that is refused. */
TEST_F(kept, memory_reserves_after_a_setup)
{
	struct nbd_dev *d = &self->ns.s.dev;
	struct agent a, b;
	int pair[2], copy;

	ASSERT_EQ(0, agent_start(&a, d->path));
	ASSERT_EQ(0, agent_start(&b, d->path));
	ASSERT_EQ(0, agent_open(&a));
	ASSERT_EQ(0, agent_open(&b));
	ASSERT_EQ(0, make_pair(variant->tcp ? KIND_TCP : KIND_UNIX, pair));
	self->fd = dup(pair[0]);
	ASSERT_EQ(0, agent_set_sock(&a, &pair[0]));
	copy = dup(self->fd);
	EXPECT_EQ(-EBUSY, agent_set_sock(&b, &copy));
	EXPECT_EQ(0, agent_ioctl(&a, NBD_CLEAR_SOCK, 0));
	EXPECT_EQ(0, may_use_reserves(self->fd));
	EXPECT_EQ(0, agent_close(&b));
	EXPECT_EQ(0, agent_close(&a));
}

/*
 * A process that holds a socket's lock: it sends, or receives, with memory that another of its
 * threads is to fill, and does not before it is told to.
 */
struct locker {
	pid_t pid;
	int fd;
	bool recv;
	struct {
		_Atomic int error, stuck, answer, done;
	} *sh;
};

static void *locker_fill(void *arg)
{
	struct locker *l = arg;
	struct pollfd p = { .fd = l->fd, .events = POLLIN };
	struct uffdio_zeropage zero = {};
	struct uffd_msg msg;

	while (poll(&p, 1, -1) != 1 || read(l->fd, &msg, sizeof(msg)) != sizeof(msg))
		;
	l->sh->stuck = 1;
	while (!l->sh->answer)
		usleep(1000);
	zero.range.start = msg.arg.pagefault.address & ~4095UL;
	zero.range.len = 4096;
	ioctl(l->fd, UFFDIO_ZEROPAGE, &zero);
	return NULL;
}

static void locker_main(struct locker *l, int sock)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	pthread_t thread;
	void *page;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	l->fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	reg.range.start = (uintptr_t)page;
	reg.range.len = 4096;
	if (page == MAP_FAILED || l->fd < 0 || ioctl(l->fd, UFFDIO_API, &api) ||
	    ioctl(l->fd, UFFDIO_REGISTER, &reg) ||
	    pthread_create(&thread, NULL, locker_fill, l)) {
		l->sh->error = errno;
		_exit(1);
	}
	/* Who receives must come in between the driver's receiver and what it waits for. */
	while (!l->sh->stuck && !l->sh->answer) {
		if (l->recv)
			recv(sock, page, 1, MSG_PEEK);
		else
			send(sock, page, 1, MSG_NOSIGNAL);
	}
	l->sh->done = 1;
	_exit(0);
}

/* There is I/O, which goes on until it is stuck, too, or until the socket is not. */
static int traffic(struct peer_session *s)
{
	static unsigned char buf[4096] __aligned(4096);
	int fd = open(s->dev.path, O_RDONLY | O_DIRECT);

	while (fd >= 0 && pread(fd, buf, 4096, 0) == 4096)
		;
	return 0;
}

static int locker_start(struct locker *l, int sock, bool recv)
{
	memset(l, 0, sizeof(*l));
	l->recv = recv;
	l->sh = shared_memory(4096);
	if (!l->sh)
		return -ENOMEM;
	l->pid = fork_quiet();
	if (!l->pid)
		locker_main(l, sock);
	return 0;
}

/* The lock is held: 0 or -errno. */
static int locker_wait(struct locker *l)
{
	if (!WAIT_UNTIL(l->sh->stuck || l->sh->error, 2 * BOUNDED))
		return -ETIME;
	return -l->sh->error;
}

/* It lets go of the lock. */
static bool locker_answer(struct locker *l)
{
	l->sh->answer = 1;
	return reap(l->pid, BOUNDED);
}

/* Somebody sleeps for a socket's lock, deep in one of its functions. */
static bool somebody_waits(void)
{
	char path[300], stack[8192];
	struct dirent *e;
	bool found = false;
	DIR *d = opendir("/proc");

	while (d && !found && (e = readdir(d))) {
		if (!isdigit(e->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stack", e->d_name);
		found = read_file(path, stack, sizeof(stack)) > 0 && strstr(stack, "__lock_sock");
	}
	if (d)
		closedir(d);
	return found;
}

/* One request, by way of this CPU's queue. */
static int cpu_write(struct peer_session *s, int cpu, int n)
{
	static unsigned char buf[4096] __aligned(4096);
	cpu_set_t set;
	int fd;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	fd = open(s->dev.path, O_RDWR | O_DIRECT);
	if (fd < 0 || sched_setaffinity(0, sizeof(set), &set))
		return 255;
	memset(buf, 'a' + n, sizeof(buf));
	if (pwrite(fd, buf, sizeof(buf), n * 4096L) != (ssize_t)sizeof(buf))
		return errno;
	return 0;
}

static pid_t start_write(struct peer_session *s, int cpu, int n)
{
	pid_t pid = fork_quiet();

	if (!pid)
		_exit(cpu_write(s, cpu, n));
	return pid;
}

static bool all_exited(pid_t *pid, int n)
{
	while (n > 0 && exited(pid[n - 1]))
		n--;
	return !n;
}

FIXTURE(locked)
{
	struct nl_session ns;
	struct locker l;
	int fd, cpu;			/* the first connection's */
	pid_t first, queued[QUEUED], traffic;
};

FIXTURE_VARIANT(locked)
{
	bool recv;
};

FIXTURE_VARIANT_ADD(locked, by_send) { };
FIXTURE_VARIANT_ADD(locked, by_recv) { .recv = true };

FIXTURE_SETUP(locked)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);
	int probe = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (why)
		SKIP(return, "%s", why);
	if (probe < 0)
		SKIP(return, "this kernel has no userfaultfd");
	close(probe);
	self->fd = -1;
	self->ns.s.tcp = true;
}

FIXTURE_TEARDOWN(locked)
{
	if (self->l.sh)
		self->l.sh->answer = 1;
	close(self->fd);
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* Somebody has the lock of the first connection's socket. */
static void lock(struct __test_metadata *_metadata, struct _test_data_locked *self, bool recv)
{
	struct peer_session *s = &self->ns.s;
	int cpus = sysconf(_SC_NPROCESSORS_ONLN), before = 0, ret;

	/* The first who opens the device reads its partition table, by way of any CPU. */
	ASSERT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	for (self->cpu = 0; self->cpu < cpus; self->cpu++) {
		before = s->sh->requests[0];
		ASSERT_EQ(0, other_wait(start_write(s, self->cpu, 0), BOUNDED));
		if (s->sh->requests[0] > before)
			break;
	}
	ASSERT_LT(before, s->sh->requests[0]) TH_LOG("no CPU uses the first connection");
	if (recv) {
		self->traffic = fork_quiet();
		if (!self->traffic) {
			cpu_write(s, self->cpu, 0);
			_exit(traffic(s));
		}
	}
	ASSERT_EQ(0, locker_start(&self->l, self->fd, recv));
	ret = locker_wait(&self->l);
	ASSERT_EQ(0, ret) TH_LOG("it is free: %s", strerror(-ret));
}

/*
 * One request, which the socket may have in its hands, and after it more for the same connection,
 * of which it has none.
 */
static void queue_requests(struct _test_data_locked *self)
{
	struct peer_session *s = &self->ns.s;
	int i;

	self->first = start_write(s, self->cpu, 0);
	/* Not every driver has to wait there. */
	WAIT_UNTIL(somebody_waits() && in_flight(s) > 0, SOON);
	for (i = 0; i < QUEUED; i++)
		self->queued[i] = start_write(s, self->cpu, i + 1);
	WAIT_UNTIL(in_flight(s) >= QUEUED, SOON);
}

TEST_F(locked, others_go_on)
{
	struct nl_session *ns = &self->ns;
	int i, before;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "one CPU uses all connections");
	ns->s.npeers = 2;
	ns->s.timeout = scaled(20);
	ASSERT_EQ(0, connect_and_keep(ns, &self->fd));
	lock(_metadata, self, variant->recv);
	queue_requests(self);
	before = ns->s.sh->requests[1];
	for (i = 0; i < 20; i++)
		ASSERT_EQ(0, other_wait(start_write(&ns->s, !self->cpu, 20 + i), SOON))
			TH_LOG("%d", i);
	EXPECT_LE(before + 20, ns->s.sh->requests[1]);
	EXPECT_TRUE(locker_answer(&self->l));
	/* What comes out of the locker is no header: the rest is replayed. */
	EXPECT_TRUE(WAIT_UNTIL(all_exited(self->queued, QUEUED), BOUNDED));
	for (i = 0; i < QUEUED; i++)
		EXPECT_EQ(0, other_wait(self->queued[i], SOON));
	EXPECT_EQ(0, other_wait(self->first, SOON));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), SOON));
}

TEST_F(locked, what_was_queued_is_replayed)
{
	struct nl_session *ns = &self->ns;
	int i;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "one CPU uses all connections");
	ns->s.npeers = 2;
	ns->s.timeout = scaled(2);
	ASSERT_EQ(0, connect_and_keep(ns, &self->fd));
	lock(_metadata, self, variant->recv);
	queue_requests(self);
	EXPECT_TRUE(WAIT_UNTIL(all_exited(self->queued, QUEUED), 2000 + END_MS));
	for (i = 0; i < QUEUED; i++) {
		EXPECT_EQ(0, other_wait(self->queued[i], 0)) TH_LOG("request %d", i);
		EXPECT_EQ('a' + i + 1, ns->s.sh->data[4096 * (i + 1)]);
	}
	EXPECT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), SOON));
	EXPECT_TRUE(locker_answer(&self->l));
	EXPECT_EQ(0, other_wait(self->first, END_MS)) TH_LOG("the first");
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the server sees no end");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), SOON));
	/* The place can be taken by another one, of which nobody has the lock. */
	EXPECT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(start_write(&ns->s, self->cpu, 30), SOON));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
}

/* There is no other connection. */
TEST_F(locked, what_was_queued_fails)
{
	struct peer_session *s = &self->ns.s;
	const char *why;
	int i;

	s->keep = true;
	s->timeout = scaled(1);
	ASSERT_EQ(0, peer_start(s)) TH_LOG("%s", strerror(errno));
	self->fd = s->fd[0];
	lock(_metadata, self, variant->recv);
	queue_requests(self);
	EXPECT_TRUE(WAIT_UNTIL(all_exited(self->queued, QUEUED), 1000 + END_MS));
	for (i = 0; i < QUEUED; i++)
		EXPECT_EQ(EIO, other_wait(self->queued[i], 0)) TH_LOG("request %d", i);
	EXPECT_TRUE(locker_answer(&self->l));
	EXPECT_EQ(EIO, other_wait(self->first, END_MS)) TH_LOG("the first");
	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, END_MS)) TH_LOG("DO_IT");
	EXPECT_EQ(ETIMEDOUT, s->sh->client_errno);
	EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[0]), SOON)) TH_LOG("the server sees no end");
	close(self->fd);
	self->fd = -1;
	s->keep = false;
	why = peer_works_again(s);
	EXPECT_NULL(why) TH_LOG("the device cannot be used again: %s", why);
}

/* Whoever ends the session comes back, and the log says what is still to be done. */
static void end_locked(struct __test_metadata *_metadata, struct _test_data_locked *self, bool recv,
		       unsigned long cmd)
{
	static const char *const words[] = { "waits for", NULL };
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	int i, log;

	ASSERT_EQ(0, connect_and_keep(ns, &self->fd));
	lock(_metadata, self, recv);
	queue_requests(self);
	log = log_open();
	ASSERT_LE(0, log);
	if (cmd) {
		/* Whatever it says: it comes back. */
		EXPECT_LE(0, other_wait(other_ioctl(&ns->s, cmd), CALL_MS)) TH_LOG("the ioctl");
	} else {
		nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
		EXPECT_NE(-ETIME, nl_wait(nl_start(&m), CALL_MS)->ret) TH_LOG("the message");
	}
	EXPECT_TRUE(WAIT_UNTIL(logged(log, &ns->s.dev, words), SOON)) TH_LOG("nothing is logged");
	close(log);
	EXPECT_TRUE(locker_answer(&self->l));
	EXPECT_TRUE(WAIT_UNTIL(all_exited(self->queued, QUEUED) && exited(self->first), END_MS));
	EXPECT_TRUE(self->traffic <= 0 || reap(self->traffic, END_MS));
	for (i = 0; i < QUEUED; i++)
		EXPECT_LT(0, other_wait(self->queued[i], 0)) TH_LOG("request %d", i);
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the server sees no end");
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), END_MS));
	ASSERT_EQ(0, nl_connect(ns)) TH_LOG("%s", ns->answer.text);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

TEST_F(locked, disconnect_returns)
{
	end_locked(_metadata, self, variant->recv, NBD_DISCONNECT);
}

TEST_F(locked, clear_sock_returns)
{
	end_locked(_metadata, self, variant->recv, NBD_CLEAR_SOCK);
}

TEST_F(locked, netlink_disconnect_returns)
{
	end_locked(_metadata, self, variant->recv, 0);
}

/* Whoever has a descriptor can connect the socket to somebody else. */
FIXTURE(elsewhere)
{
	struct nl_session ns;
	struct genl events;
	int fd, listener;
	struct sockaddr_in addr;
};

FIXTURE_SETUP(elsewhere)
{
	const char *why = nl_init(&self->ns, 2, PEER_DEAF);
	socklen_t len = sizeof(self->addr);

	if (why)
		SKIP(return, "%s", why);
	self->fd = -1;
	self->ns.s.tcp = true;
	ASSERT_EQ(0, genl_listen(&self->events));
	self->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	self->addr.sin_family = AF_INET;
	self->addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ASSERT_EQ(0, bind(self->listener, (struct sockaddr *)&self->addr, len));
	ASSERT_EQ(0, listen(self->listener, 1));
	ASSERT_EQ(0, getsockname(self->listener, (struct sockaddr *)&self->addr, &len));
}

FIXTURE_TEARDOWN(elsewhere)
{
	close(self->fd);
	EXPECT_TRUE(nl_cleanup(&self->ns));
	close(self->listener);
}

static int disconnect_socket(int fd)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };

	return connect(fd, &none, sizeof(none)) ? -errno : 0;
}

/* Whatever was to be sent before, not a byte of it goes there. */
static void expect_silence(struct __test_metadata *_metadata, struct _test_data_elsewhere *self)
{
	struct pollfd p = { .events = POLLIN };
	char byte;

	ASSERT_EQ(0, disconnect_socket(self->fd));
	ASSERT_EQ(0, connect(self->fd, (struct sockaddr *)&self->addr, sizeof(self->addr)));
	p.fd = accept4(self->listener, NULL, NULL, SOCK_CLOEXEC);
	ASSERT_LE(0, p.fd);
	if (poll_for(&p, 1, 1500))
		EXPECT_GE(0, recv(p.fd, &byte, 1, MSG_DONTWAIT)) TH_LOG("it got bytes");
	close(p.fd);
}

/* In the middle of a request: it costs the connection, and the other one takes over. */
TEST_F(elsewhere, disconnected_in_the_middle_of_a_request)
{
	struct nl_session *ns = &self->ns;
	int i;

	ns->s.timeout = scaled(8);
	ASSERT_EQ(0, connect_and_keep(ns, &self->fd));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_EQ(0, disconnect_socket(self->fd));
	for (i = 0; i < 2; i++)
		ns->s.sh->kind[i] = PEER_GOOD;
	/* At once, not at their timeout. */
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(1, nl_deaths(&self->events, ns->s.dev.index, scaled(500)));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), SOON));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
}

/* The moment that the driver has given the connection up. */
TEST_F(elsewhere, after_a_timeout)
{
	struct nl_session *ns = &self->ns;

	ns->s.timeout = 1;
	ns->dead = scaled(20);
	ns->s.npeers = 1;
	ASSERT_EQ(0, connect_and_keep(ns, &self->fd));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_EQ(1, nl_deaths(&self->events, ns->s.dev.index, scaled(1000 + END_MS)));
	expect_silence(_metadata, self);
	EXPECT_EQ(0, nl_reconnect(ns, 0));
	holder_expect(_metadata, &ns->s, 0);
}

TEST_F(elsewhere, after_a_disconnect)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, connect_and_keep(ns, &self->fd));
	ASSERT_EQ(0, holder_start(&ns->s));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	expect_silence(_metadata, self);
	holder_expect(_metadata, &ns->s, EIO);
}

TEST_HARNESS_MAIN
