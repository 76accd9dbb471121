// SPDX-License-Identifier: GPL-2.0
/*
 * Allocations that fail: each operation is repeated with its first allocation failing, then its
 * second, and so on until there is none left. It succeeds or fails with an errno that says so,
 * leaves nothing behind, and works when it is tried again.
 */
#include "kselftest_harness.h"
#include "alloc.h"

#define MANY_SITES	3000
#define WALK_SECONDS	1200
#define NEW_INDEX	333

FIXTURE(alloc)
{
	struct nl_session ns;
	struct try t, again;
	struct tally tally;
	int n, ret;		/* which allocation has failed, and what the try has returned */
	int sockets;
};

#define AT_SITE(fmt, ...)	TH_LOG("site %d" fmt, self->n, ##__VA_ARGS__)

FIXTURE_SETUP(alloc)
{
	const char *why = geteuid() ? "must be run as root" : faults_on();

	if (!why) {
		why = nl_init(&self->ns, 1, PEER_GOOD);
		if (why)
			faults_off();
	}
	if (why)
		SKIP(return, "%s", why);
	srandom(now_ms());
	self->sockets = count_sockets();
}

FIXTURE_TEARDOWN(alloc)
{
	faults_off();
	if (self->t.pid)
		nbd_child(self->t.pid);
	if (self->again.pid)
		nbd_child(self->again.pid);
	if (self->ns.s.sh)
		EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* There are so many more sockets than at the start. */
static void more_sockets(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, int more)
{
	ASSERT_TRUE(WAIT_UNTIL(count_sockets() == self->sockets + more, SOON))
		AT_SITE(": %d sockets, not %d", count_sockets(), self->sockets + more);
}

/* Nothing is left of what was tried. */
static void nothing_left(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	struct peer_session *s = &self->ns.s;
	int i;

	for (i = 0; i < s->npeers; i++) {
		ASSERT_TRUE(WAIT_UNTIL(exited(s->peer[i]), SOON))
			AT_SITE(": server %d sees no end", i);
		reap(s->peer[i], SOON);
		s->peer[i] = 0;
	}
	ASSERT_TRUE(WAIT_UNTIL(nbd_idle(&s->dev), SOON)) AT_SITE(": not idle");
	more_sockets(_metadata, self, 0);
}

/* The device can be read, and is disconnected. */
static void ends_well(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	ASSERT_EQ(0, other_wait(other_run(&self->ns.s, read_block), BOUNDED)) AT_SITE(": reading");
	ASSERT_EQ(0, nl_disconnect(self->ns.s.dev.index)) AT_SITE("");
}

static void goes_on(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	ASSERT_EQ(0, other_wait(other_run(&self->ns.s, nl_read_other), BOUNDED))
		AT_SITE(": %d", self->ret);
}

/* A session that works, from its connection to its end. */
static void works(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	ASSERT_EQ(0, nl_connect(&self->ns)) AT_SITE(": %s", self->ns.answer.text);
	ends_well(_metadata, self);
	nothing_left(_metadata, self);
}

/* What the operation has returned. Its process is still there. */
static int try_once(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, struct try *t,
		    const struct operation *op, int n)
{
	const char *wrong = NULL;

	try_start(t, &self->ns, op, n);
	if (op->meanwhile)
		wrong = op->meanwhile(t);
	EXPECT_EQ(NULL, wrong) AT_SITE(": %s", wrong);
	return try_result(t);
}

/*
 * On a machine so slow that a walk takes longer than NBD_FAULT_SECONDS (0: no limit), some of the
 * rest are left out by chance.
 */
static int skip_sites(FIXTURE_DATA(alloc) * self)
{
	const char *seconds = getenv("NBD_FAULT_SECONDS");
	int limit = seconds ? atoi(seconds) : 40, range = 11;
	long long over = limit ? (now_ms() - self->tally.start) / (limit * 1000) : 0;

	if (!over)
		return 0;
	/* More and more, so that it comes to an end. */
	while (--over > 0 && range < 1000)
		range *= 4;
	return random() % range;
}

/*
 * A walk is a loop while this is true: for n = 1, 2, ... until nothing was injected. Each round
 * prepares what the operation needs and tries it; the loop's body looks at what has come of it.
 */
static bool next_site(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op, int (*prepare)(FIXTURE_DATA(alloc) * self))
{
	struct tally *t = &self->tally;

	if (self->t.pid)
		ASSERT_TRUE(try_end(&self->t));
	if (self->n && self->t.sh->left) {
		/* The last round was without a fault. */
		EXPECT_EQ(0, self->ret) TH_LOG("without a fault");
		t->tried--;
		t->fine--;
		tally_show(t, _metadata->name, self->n - self->t.sh->left);
		report_count(t->tried, "sites");
		return false;
	}
	if (!self->n)
		t->start = now_ms();
	self->n += 1 + skip_sites(self);
	EXPECT_GT(MANY_SITES, self->n);
	if (self->n >= MANY_SITES)
		return false;

	if (op->npeers)
		self->ns.s.npeers = op->npeers;
	if (prepare)
		ASSERT_EQ(0, prepare(self)) AT_SITE("");
	self->ret = try_once(_metadata, self, &self->t, op, self->n);
	tally_add(t, self->ret);
	EXPECT_TRUE(!self->ret || self->ret == -op->also || (is_clean(self->ret) && !op->must))
		AT_SITE(": %s", strerrorname_np(-self->ret));
	if (!op->stays)
		ASSERT_TRUE(try_end(&self->t));
	return true;
}

static int servers(FIXTURE_DATA(alloc) * self)
{
	return nl_peers(&self->ns);
}

static int connection(FIXTURE_DATA(alloc) * self)
{
	return nl_connect(&self->ns);
}

/* Once more, without a fault. */
static void try_again(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op)
{
	ASSERT_EQ(0, servers(self));
	ASSERT_EQ(0, try_once(_metadata, self, &self->again, op, 0)) AT_SITE(": again");
}

/* A test that is nothing but this walk of an operation. */
#define WALK(test, walk)							\
static const struct operation test##_op;					\
TEST_F_TIMEOUT(alloc, test, WALK_SECONDS)					\
{										\
	walk(_metadata, self, &test##_op);					\
}										\
static const struct operation test##_op =

/* Opening and closing */

static void walk_idle(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op)
{
	while (next_site(_metadata, self, op, NULL))
		;
	works(_metadata, self);
}

/* With two connections, for a fault may cost one: a request that could not be sent. */
static void walk_connected(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
			   const struct operation *op)
{
	while (next_site(_metadata, self, op, connection)) {
		ends_well(_metadata, self);
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

/* The operation leaves nothing of a setup, while its process still has the device open, too. */
static void walk_setup(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		       const struct operation *op)
{
	while (next_site(_metadata, self, op, servers))
		nothing_left(_metadata, self);
	works(_metadata, self);
}

WALK(open_idle, walk_idle) { .act = op_open, .after = op_close_after };
WALK(open_connected, walk_connected) { .act = op_open, .after = op_close_after, .npeers = 2 };
WALK(close_idle, walk_idle) { .before = op_open, .act = op_close };
WALK(close_connected, walk_connected) { .before = op_open, .act = op_close, .npeers = 2 };
/* The last close drops the setup. */
WALK(close_setup, walk_setup) { .before = op_setup, .act = op_close, .stays = true };
WALK(clear_sock_of_a_setup, walk_setup) {
	.before = op_setup, .act = op_ioctl, .cmd = NBD_CLEAR_SOCK, .stays = true, .must = true,
};

/* Setting up */

TEST_F_TIMEOUT(alloc, set_sock, WALK_SECONDS)
{
	static const struct operation op = { .before = op_open, .act = op_set_sock, .stays = true };
	struct peer_session *s = &self->ns.s;

	while (next_site(_metadata, self, &op, servers)) {
		if (self->ret) {
			nothing_left(_metadata, self);
			/* The first one still has the device open, and is not its owner. */
			try_again(_metadata, self, &op);
			EXPECT_FALSE(exited(s->peer[0]));
			ASSERT_TRUE(try_end(&self->again));
		} else {
			EXPECT_FALSE(exited(s->peer[0])) AT_SITE(": not kept");
		}
		ASSERT_TRUE(try_end(&self->t));
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

TEST_F_TIMEOUT(alloc, set_second_sock, WALK_SECONDS)
{
	static const struct operation op = {
		.before = op_open_and_set_sock, .act = op_set_second_sock, .npeers = 2,
		.stays = true
	};
	struct peer_session *s = &self->ns.s;

	while (next_site(_metadata, self, &op, servers)) {
		EXPECT_EQ(!!self->ret, WAIT_UNTIL(exited(s->peer[1]), self->ret ? SOON : 0))
			AT_SITE(": %d", self->ret);
		EXPECT_FALSE(exited(s->peer[0])) AT_SITE(": the first socket is gone");
		ASSERT_TRUE(try_end(&self->t));
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

/* A session by ioctl */

/* A disconnect from elsewhere, if it comes so far. */
static const char *end_session(struct try *t)
{
	struct peer_session *s = &t->ns->s;

	if (!WAIT_UNTIL(t->sh->done || nbd_running(&s->dev), BOUNDED))
		return "neither running nor refused";
	if (t->sh->done)
		return NULL;
	if (other_wait(other_run(s, read_block), BOUNDED))
		return "reading";
	return other_wait(other_ioctl(s, NBD_DISCONNECT), BOUNDED) ? "NBD_DISCONNECT" : NULL;
}

static const struct operation do_it = {
	.before = op_setup, .act = op_ioctl, .cmd = NBD_DO_IT, .meanwhile = end_session
};

TEST_F_TIMEOUT(alloc, do_it, WALK_SECONDS)
{
	while (next_site(_metadata, self, &do_it, servers)) {
		nothing_left(_metadata, self);
		if (self->ret) {
			try_again(_metadata, self, &do_it);
			ASSERT_TRUE(try_end(&self->again));
			nothing_left(_metadata, self);
		}
	}
}

static int running(FIXTURE_DATA(alloc) * self)
{
	int ret = servers(self);

	if (ret)
		return ret;
	try_start(&self->again, &self->ns, &do_it, 0);
	return WAIT_UNTIL(nbd_running(&self->ns.s.dev), BOUNDED) ? 0 : -ETIME;
}

static void walk_end(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		     const struct operation *op)
{
	while (next_site(_metadata, self, op, running)) {
		EXPECT_EQ(0, try_result(&self->again)) AT_SITE(": DO_IT");
		ASSERT_TRUE(try_end(&self->t));
		ASSERT_TRUE(try_end(&self->again));
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

WALK(clear_sock_of_a_session, walk_end) {
	.before = op_open, .act = op_ioctl, .cmd = NBD_CLEAR_SOCK, .stays = true, .must = true,
};

WALK(ioctl_disconnect, walk_end) {
	.before = op_open, .act = op_ioctl, .cmd = NBD_DISCONNECT, .stays = true, .must = true,
};

/* Netlink */

/* CONNECT was tried; whatever it has done, nothing is connected after this. */
static void end_connect(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	struct nbd_dev *d = &self->ns.s.dev;

	/* It is not undone when its listeners cannot be told. */
	if (!self->ret)
		EXPECT_TRUE(nbd_running(d)) AT_SITE(": not running");
	if (self->ret == -ENOMEM)
		EXPECT_FALSE(nbd_running(d)) AT_SITE(": running");
	if (nbd_running(d))
		ends_well(_metadata, self);
}

static int servers_with_a_name(FIXTURE_DATA(alloc) * self)
{
	self->ns.backend = "a backend whose name is copied";
	return servers(self);
}

static void walk_connect(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
			 const struct operation *op)
{
	struct nl_session *ns = &self->ns;

	while (next_site(_metadata, self, op, servers_with_a_name)) {
		end_connect(_metadata, self);
		nothing_left(_metadata, self);
		/* So that the next one has another number of queues again. */
		ns->s.npeers = 1;
		ns->backend = NULL;
		if (self->ret || op->npeers > 1)
			works(_metadata, self);
	}
}

WALK(connect, walk_connect) { .message = msg_connect, .npeers = 1 };
WALK(connect_with_four_sockets, walk_connect) { .message = msg_connect, .npeers = 4 };

static bool new_exists(struct nbd_dev *d)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/nbd%d", d->index);
	return !access(path, F_OK) || !access(d->path, F_OK);
}

static int servers_without_a_device(FIXTURE_DATA(alloc) * self)
{
	return new_exists(&self->ns.s.dev) ? -EEXIST : servers(self);
}

/* The device is made for it. */
TEST_F_TIMEOUT(alloc, connect_to_a_new_device, WALK_SECONDS)
{
	/* device_add_disk() does not look whether there was memory for its name. */
	static const struct operation op = { .message = msg_connect, .also = EINVAL };
	struct nl_session *ns = &self->ns;
	int picked = ns->s.dev.index;

	nl_use(ns, NEW_INDEX);
	ns->cflags = NBD_CFLAG_DESTROY_ON_DISCONNECT;
	while (next_site(_metadata, self, &op, servers_without_a_device)) {
		end_connect(_metadata, self);
		/* With the device that was made for it. */
		EXPECT_FALSE(new_exists(&ns->s.dev)) AT_SITE("");
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
		reap(ns->s.peer[0], SOON);
		EXPECT_EQ(-ENODEV, nl_connected(NEW_INDEX)) AT_SITE("");
		if (!self->ret)
			continue;
		ASSERT_EQ(0, nl_connect(ns)) AT_SITE(": again: %s", ns->answer.text);
		ends_well(_metadata, self);
		ASSERT_TRUE(reap(ns->s.peer[0], BOUNDED));
		more_sockets(_metadata, self, 0);
	}
	ns->cflags = 0;
	nl_use(ns, picked);
	works(_metadata, self);
}

static int new_server(FIXTURE_DATA(alloc) * self)
{
	struct peer_session *s = &self->ns.s;

	return nl_kill_peer(s, 0) ? nl_peer(s, 0) : -ETIME;
}

TEST_F_TIMEOUT(alloc, reconfigure_with_a_new_socket, WALK_SECONDS)
{
	static const struct operation op = { .message = msg_reconnect };
	struct nl_session *ns = &self->ns;

	ns->dead = 300;
	ASSERT_EQ(0, nl_connect(ns));
	while (next_site(_metadata, self, &op, new_server)) {
		ASSERT_EQ(1, nl_connected(ns->s.dev.index)) AT_SITE("");
		/* It is not undone when its listeners cannot be told. */
		if (self->ret &&
		    WAIT_UNTIL(exited(ns->s.peer[0]), self->ret == -ENOBUFS ? 200 : SOON)) {
			reap(ns->s.peer[0], SOON);
			ASSERT_EQ(0, nl_reconnect(ns, 0)) AT_SITE(": again");
		}
		goes_on(_metadata, self);
		more_sockets(_metadata, self, 2);
	}
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nothing_left(_metadata, self);
	works(_metadata, self);
}

TEST_F_TIMEOUT(alloc, reconfigure_other_values, WALK_SECONDS)
{
	static const struct operation op = { .message = msg_resize };
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	while (next_site(_metadata, self, &op, NULL)) {
		/* Back again, with all that was not changed. */
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE));
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, NL_BLKSIZE));
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_TIMEOUT, 0));
		EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
		EXPECT_EQ(NL_BLKSIZE, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
		goes_on(_metadata, self);
	}
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nothing_left(_metadata, self);
}

TEST_F_TIMEOUT(alloc, disconnect, WALK_SECONDS)
{
	static const struct operation op = { .message = msg_disconnect };
	struct nl_session *ns = &self->ns;

	while (next_site(_metadata, self, &op, connection)) {
		if (!self->ret)
			EXPECT_FALSE(nbd_running(&ns->s.dev)) AT_SITE("");
		ASSERT_EQ(0, nl_disconnect(ns->s.dev.index)) AT_SITE("");
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

/* Reading and writing: two connections, of which a fault may cost one, but never the request. */

/*
 * New servers for those that have lost their connection; they are counted. One that cannot be given
 * to the driver ends, and the next call sees that.
 */
static int mend(struct nl_session *ns, int *lost)
{
	int i, err, ret = 0;

	for (i = 0; i < ns->s.npeers; i++) {
		if (!exited(ns->s.peer[i]))
			continue;
		reap(ns->s.peer[i], SOON);
		err = nl_reconnect(ns, i);
		ret = ret ?: err;
		*lost += 1;
	}
	return ret;
}

static void walk_io(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		    const struct operation *op)
{
	struct nl_session *ns = &self->ns;
	int lost = 0;

	ns->s.tcp = op->tcp;
	ns->s.npeers = 2;
	ns->dead = 60;
	ASSERT_EQ(0, nl_connect(ns));
	while (next_site(_metadata, self, op, NULL)) {
		goes_on(_metadata, self);
		ASSERT_EQ(0, mend(ns, &lost)) AT_SITE("");
	}
	ksft_print_msg("of these, %d cost a connection\n", lost);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
}

/* A task that writes to a cache gets every error as EIO. */
WALK(read_direct, walk_io) { .before = op_open, .act = op_read, .oflags = O_DIRECT, .also = EIO };
WALK(write_direct, walk_io) { .before = op_open, .act = op_write, .oflags = O_DIRECT, .also = EIO };
WALK(write_direct_over_tcp, walk_io) {
	.before = op_open, .act = op_write, .oflags = O_DIRECT, .also = EIO, .tcp = true,
};

WALK(read_cached, walk_io) { .before = op_open, .act = op_read, .also = EIO };
WALK(write_cached, walk_io) { .before = op_open, .act = op_write, .also = EIO };

/*
 * Workers: any allocation that is made by or for the module, wherever, one at a time. Which one
 * it is cannot be walked, but every interval meets another one.
 */

#define WORKER_ROUNDS	60
#define WORKER_IOS	24

static int worker_io(struct peer_session *s)
{
	static unsigned char buf[65536] __aligned(4096);
	int fd[2], i, n = 0;

	fd[0] = open(s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	fd[1] = open(s->dev.path, O_RDWR | O_CLOEXEC);
	for (i = 0; i < WORKER_IOS; i++) {
		off_t off = PEER_SIZE / 2 + i * sizeof(buf);

		memcpy(buf, s->sh->data + off, sizeof(buf));
		n += pwrite(fd[i % 2], buf, sizeof(buf), off) == sizeof(buf);
		n += pread(fd[0], buf, sizeof(buf), off - PEER_SIZE / 4) == sizeof(buf) &&
		     !memcmp(buf, s->sh->data + off - PEER_SIZE / 4, sizeof(buf));
	}
	n += !fsync(fd[1]);
	return n == 2 * WORKER_IOS + 1 ? 0 : 1;
}

TEST_F_TIMEOUT(alloc, workers, WALK_SECONDS)
{
	struct nl_session *ns = &self->ns;
	const int rounds = scaled(1) > 1 ? WORKER_ROUNDS / 2 : WORKER_ROUNDS;
	int round, i, injected = 0, lost = 0, bad = 0;
	long long end;
	pid_t pid;

	if (!can_filter_faults())
		SKIP(return, "no stack filter (CONFIG_FAULT_INJECTION_STACKTRACE_FILTER)");
	ns->s.npeers = 2;
	ns->dead = 60;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(faults_in_module());
	for (round = 0; round < rounds; round++) {
		ASSERT_TRUE(fault_begin(round * 7 % 61 + 1));
		pid = other_run(&ns->s, worker_io);
		/* One in three loses a connection meanwhile, and gives all to the other. */
		if (round % 3 == 0)
			kill(ns->s.peer[round % 2], SIGKILL);
		for (end = now_ms() + scaled(20000); !exited(pid) && now_ms() < end; usleep(5000))
			mend(ns, &lost);
		i = other_wait(pid, 0);
		injected += fault_end();
		ASSERT_LE(0, i) TH_LOG("round %d: I/O does not end", round);
		bad += i;
		ASSERT_EQ(1, nl_connected(ns->s.dev.index)) TH_LOG("round %d", round);
		mend(ns, &lost);
		i = other_wait(other_run(&ns->s, nl_read_other), BOUNDED);
		ASSERT_EQ(0, i) TH_LOG("round %d: it does not go on", round);
	}
	ksft_print_msg("%d rounds: %d allocations failed, %d connections lost, %d with errors\n",
		       rounds, injected, lost, bad);
	EXPECT_LT(0, injected);
	EXPECT_EQ(0, bad) TH_LOG("a connection that is lost is no error");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	self->n = round;
	nothing_left(_metadata, self);
}

TEST_HARNESS_MAIN
