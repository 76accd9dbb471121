// SPDX-License-Identifier: GPL-2.0
/*
 * Others that hold the lock of the socket of a connection. They may hold up this connection, and
 * nothing else.
 */
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>

#include "kselftest_harness.h"
#include "nbd_nlpeer.h"

#define END_MS		2000
/* Every call that ends a session has returned by then. */
#define CALL_MS		5000
#define QUEUED		6

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
	/* A receive must come in between the driver's receiver and what it waits for. */
	while (!l->sh->stuck && !l->sh->answer) {
		if (l->recv)
			recv(sock, page, 1, MSG_PEEK);
		else
			send(sock, page, 1, MSG_NOSIGNAL);
	}
	l->sh->done = 1;
	_exit(0);
}

/*
 * There is I/O, which goes on until it is stuck, too, or until the socket is not. Short replies are
 * received where they arrive, and are gone before a process could receive them.
 */
static int traffic(struct peer_session *s)
{
	static unsigned char buf[256 << 10] __aligned(4096);
	int fd = open(s->dev.path, O_RDONLY | O_DIRECT);

	while (fd >= 0 && pread(fd, buf, sizeof(buf), 0) == (ssize_t)sizeof(buf))
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

/* Have the locker take the lock of the first connection's socket. */
static void lock(struct __test_metadata *_metadata, struct _test_data_locked *self, bool recv)
{
	struct peer_session *s = &self->ns.s;
	int cpus = sysconf(_SC_NPROCESSORS_ONLN), before = 0, ret;

	/* The first open of the device reads its partition table, by way of any CPU. */
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
	/* For the socket's lock. Not every driver has to wait there. */
	WAIT_UNTIL(somebody_in("__lock_sock", NULL) && in_flight(s) > 0, SOON);
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
	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
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
	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
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
	/* The place can be taken by another one, of which the lock is free. */
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

/* A call that ends the session returns, and the log says what is still to be done. */
static void end_locked(struct __test_metadata *_metadata, struct _test_data_locked *self, bool recv,
		       unsigned long cmd)
{
	static const char *const words[] = { "waits for", NULL };
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	int i, log;

	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
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

TEST_HARNESS_MAIN
