// SPDX-License-Identifier: GPL-2.0
/*
 * A server that says that it is shutting down: that is no error of the request. The connection
 * takes no more, what the server has not done is done elsewhere or later, and it is told to
 * disconnect, so that it can exit.
 *
 * This is one file because all tests have the same way to let a server leave, and the same
 * expectations of what it sees then.
 */
#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#include <linux/fs.h>

#define END_MS		2000
#define DRAIN_MS	1000	/* that requests in flight have, and the least between LINK_DEADs */
#define EARLY_MS	20	/* by which a clock of jiffies may be wrong */
#define SAYS		"the server is shutting down"

/* Is there an NBD_CMD_LINK_DEAD of this device within this time? */
static bool link_dead(struct genl *g, int index, int ms)
{
	long long left = scaled(ms), start;
	int cmd, i;

	do {
		start = now_ms();
		cmd = genl_event(g, left > 0 ? left : 0, &i);
		left -= now_ms() - start;
	} while (cmd >= 0 && (cmd != NBD_CMD_LINK_DEAD || i != index));
	return cmd >= 0;
}

/* Wait until the links of a device that was just connected are not young any more. */
static void grow_old(struct __test_metadata *_metadata)
{
	long long start = now_ms();

	ASSERT_TRUE(WAIT_UNTIL(now_ms() - start > DRAIN_MS + EARLY_MS, 5000));
}

/* The server was told to disconnect, and then saw the end of the stream. */
static void expect_left(struct __test_metadata *_metadata, struct peer_session *s, int n)
{
	struct peer_shared *sh = s->sh;

	ASSERT_TRUE(WAIT_UNTIL(sh->left[n], DRAIN_MS + SOON))
		TH_LOG("server %d: %d NBD_CMD_DISC, then%s the end", n, sh->disc[n],
		       sh->eof[n] ? "" : " not");
	EXPECT_EQ(1, sh->disc[n]);
	EXPECT_NE(-1, sh->left[n]) TH_LOG("more comes after NBD_CMD_DISC");
	EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[n]), SOON));
}

/* So many of the holder's requests have failed, and the others have not. */
static void expect_errors(struct __test_metadata *_metadata, struct peer_session *s, int n)
{
	struct peer_shared *sh = s->sh;
	int i, good = 0, bad = 0;

	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, DRAIN_MS + HOLDER_END_MS))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	for (i = 0; i < HOLDER_THREADS; i++) {
		good += sh->io_errno[i] == 0;
		bad += sh->io_errno[i] == EIO;
	}
	EXPECT_EQ(n, bad);
	EXPECT_EQ(HOLDER_THREADS - n, good);
	EXPECT_TRUE(WAIT_UNTIL(sh->late_done == HOLDER_THREADS, HOLDER_END_MS));
	EXPECT_EQ(0, sh->late_bytes) TH_LOG("later I/O does not fail");
}

/* Connect, and let the holder's requests arrive at servers that hold them. */
static void begin(struct __test_metadata *_metadata, struct nl_session *ns, enum peer_kind kind)
{
	ns->s.kind = kind;
	ASSERT_EQ(0, nl_connect(ns));
	udev_settle();
	ASSERT_EQ(0, holder_start(&ns->s));
}

/* The victim becomes a server that leaves, and does so. */
static void leave(struct __test_metadata *_metadata, struct peer_session *s, int n,
		  enum peer_kind kind, int go)
{
	s->sh->kind[n] = kind;
	s->sh->go[n] = go;
	ASSERT_TRUE(WAIT_UNTIL(s->sh->acted[n], END_MS));
}

/* One request of each type */

static unsigned char block[65536] __aligned(4096);

static int op_write(struct peer_session *s)
{
	int fd = open(s->dev.path, O_RDWR | O_DIRECT);

	memset(block, 'w', sizeof(block));
	return fd < 0 || pwrite(fd, block, sizeof(block), 0) != sizeof(block);
}

static int op_flush(struct peer_session *s)
{
	int fd = open(s->dev.path, O_RDWR);

	return fd < 0 || fsync(fd);
}

static int op_trim(struct peer_session *s)
{
	uint64_t range[2] = { 0, sizeof(block) };
	int fd = open(s->dev.path, O_RDWR);

	return fd < 0 || ioctl(fd, BLKDISCARD, range);
}

FIXTURE(op)
{
	struct nl_session ns;
	struct genl events;
};

FIXTURE_VARIANT(op)
{
	int (*run)(struct peer_session *s);
};

FIXTURE_VARIANT_ADD(op, read) { .run = nl_read_other };
FIXTURE_VARIANT_ADD(op, write) { .run = op_write };
FIXTURE_VARIANT_ADD(op, flush) { .run = op_flush };
FIXTURE_VARIANT_ADD(op, trim) { .run = op_trim };

FIXTURE_SETUP(op)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, genl_listen(&self->events));
	self->ns.dead = 10;
	self->ns.s.flags = NBD_FLAG_SEND_TRIM;
}

FIXTURE_TEARDOWN(op)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* What the new server has of it. */
static void op_check(struct __test_metadata *_metadata, struct peer_session *s,
		     int (*run)(struct peer_session *s))
{
	size_t i;

	for (i = 0; run == op_write && i < sizeof(block) && s->sh->data[i] == 'w'; i++)
		;
	EXPECT_EQ(run == op_write ? sizeof(block) : 0, i) TH_LOG("it is not written");
}

TEST_F(op, waits_for_a_new_server)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	pid_t pid;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	s->sh->kind[0] = PEER_LEAVES_ALL;
	s->sh->go[0] = 1;
	pid = other_run(s, variant->run);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->refused[0], END_MS));
	ASSERT_FALSE(WAIT_UNTIL(exited(pid), 200)) TH_LOG("it did not wait");
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	expect_left(_metadata, s, 0);
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	EXPECT_EQ(0, other_wait(pid, END_MS));
	EXPECT_LT(0, s->sh->requests[1]);
	op_check(_metadata, s, variant->run);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 0)) TH_LOG("two for one");
}

TEST_F(op, goes_to_the_other_connection)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;
	int victim;
	pid_t pid;

	s->npeers = 2;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	udev_settle();
	sh->kind[0] = PEER_HELD;
	sh->kind[1] = PEER_HELD;
	pid = other_run(s, variant->run);
	ASSERT_TRUE(WAIT_UNTIL(sum(sh->held), END_MS));
	victim = !sh->held[0];
	leave(_metadata, s, victim, PEER_LEAVES_ALL, 1);
	sh->kind[!victim] = PEER_GOOD;
	EXPECT_EQ(0, other_wait(pid, END_MS));
	op_check(_metadata, s, variant->run);
	expect_left(_metadata, s, victim);
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	EXPECT_EQ(0, sh->eof[!victim]);
}

/* What becomes of the other requests that are in flight */

FIXTURE(rest)
{
	struct nl_session ns;
	struct genl events;
};

FIXTURE_VARIANT(rest)
{
	enum peer_kind kind;
	bool good;			/* they are answered well */
	bool late;			/* they are waited for, in vain */
};

FIXTURE_VARIANT_ADD(rest, answered_well) { .kind = PEER_LEAVES, .good = true };
FIXTURE_VARIANT_ADD(rest, answered_with_eio) { .kind = PEER_LEAVES_EIO };
FIXTURE_VARIANT_ADD(rest, refused) { .kind = PEER_LEAVES_ALL };
FIXTURE_VARIANT_ADD(rest, never_answered) { .kind = PEER_LEAVES_MUTE, .late = true };
FIXTURE_VARIANT_ADD(rest, half_answered) { .kind = PEER_LEAVES_HALF, .late = true };
FIXTURE_VARIANT_ADD(rest, server_closes) { .kind = PEER_LEAVES_CLOSE };

FIXTURE_SETUP(rest)
{
	const char *why = nl_init(&self->ns, 1, variant->kind);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, genl_listen(&self->events));
	self->ns.dead = 10;
}

FIXTURE_TEARDOWN(rest)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* It was told to disconnect when nothing was in flight any more, or when that took too long. */
static void rest_left(struct __test_metadata *_metadata, struct peer_session *s, int n, bool late)
{
	struct peer_shared *sh = s->sh;
	long long took;

	if (sh->kind[n] == PEER_LEAVES_CLOSE)
		return;
	expect_left(_metadata, s, n);
	took = sh->disc_at[n] - sh->refused_at[n];
	if (late)
		EXPECT_LE(DRAIN_MS - EARLY_MS, took);
	EXPECT_GT(scaled(SOON) + (late ? DRAIN_MS : 0), took);
}

TEST_F(rest, wait_for_a_new_server)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;
	int before, again = variant->good ? 1 : HOLDER_THREADS;

	begin(_metadata, ns, variant->kind);
	before = sh->requests[0];
	leave(_metadata, s, 0, variant->kind, 2);
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS - again, SOON));
	ASSERT_EQ(0, nl_reconnect_as(ns, 1, PEER_HELD));
	ASSERT_TRUE(WAIT_UNTIL(sh->held[1] == again, END_MS));
	EXPECT_FALSE(WAIT_UNTIL(sh->held[1] != again, 200))
		TH_LOG("%d are replayed, not %d", sh->held[1], again);
	rest_left(_metadata, s, 0, variant->late);
	EXPECT_EQ(before, sh->requests[0]) TH_LOG("it got a new one");
	sh->go[1] = 1;
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 0)) TH_LOG("two for one");
}

TEST_F(rest, go_to_other_connections)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;
	int i, victim, before, again;

	s->npeers = 4;
	begin(_metadata, ns, PEER_HELD);
	/* One that has others in flight, too: there are more requests than connections. */
	for (victim = 0, i = 1; i < 4; i++)
		if (sh->held[i] > sh->held[victim])
			victim = i;
	again = variant->good ? 1 : sh->held[victim];
	before = sum(sh->requests);
	leave(_metadata, s, victim, variant->kind, 2);
	ASSERT_TRUE(WAIT_UNTIL(sum(sh->requests) == before + again, END_MS));
	EXPECT_FALSE(WAIT_UNTIL(sum(sh->requests) != before + again, 200))
		TH_LOG("%d are replayed, not %d", sum(sh->requests) - before, again);
	rest_left(_metadata, s, victim, variant->late);
	for (i = 0; i < 4; i++)
		if (i != victim)
			sh->go[i] = 1;
	holder_expect(_metadata, s, 0);
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100)) TH_LOG("two for one");
}

/* No time, no other connection: what the server has not done fails. */
TEST_F(rest, fail_without_time_to_wait)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	ns->dead = 0;
	begin(_metadata, ns, variant->kind);
	leave(_metadata, s, 0, variant->kind, 2);
	expect_errors(_metadata, s, variant->good ? 1 : HOLDER_THREADS);
	rest_left(_metadata, s, 0, variant->late);
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	EXPECT_TRUE(nbd_running(&s->dev)) TH_LOG("the session is gone");
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
}

/* The last connection of a client that waits in NBD_DO_IT: it is to connect again. */
TEST_F(rest, fail_with_the_clients_session)
{
	struct peer_session *s = &self->ns.s;
	const char *why;

	ASSERT_EQ(0, peer_start(s));
	udev_settle();
	ASSERT_EQ(0, holder_start(s));
	leave(_metadata, s, 0, variant->kind, 2);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, DRAIN_MS + END_MS))
		TH_LOG("DO_IT has not returned");
	EXPECT_EQ(EIO, s->sh->client_errno);
	expect_errors(_metadata, s, variant->good ? 1 : HOLDER_THREADS);
	rest_left(_metadata, s, 0, variant->late);
	why = peer_works_again(s);
	ASSERT_NULL(why)
		TH_LOG("the device cannot be used again: %s", why);
}

FIXTURE(leave)
{
	struct nl_session ns;
	struct genl events;
	int log;
};

FIXTURE_SETUP(leave)
{
	const char *why = nl_init(&self->ns, 1, PEER_HELD);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, genl_listen(&self->events));
	self->log = log_open();
	ASSERT_LE(0, self->log);
	self->ns.dead = 10;
}

FIXTURE_TEARDOWN(leave)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
	close(self->log);
}

/* Connect, all servers of this kind from the first request on. */
static void connect_to(struct __test_metadata *_metadata, struct nl_session *ns,
		       enum peer_kind kind)
{
	struct peer_session *s = &ns->s;
	struct nl_msg m;
	int i;

	ASSERT_EQ(0, nl_peers(ns));
	for (i = 0; i < s->npeers; i++) {
		s->sh->kind[i] = kind;
		s->sh->go[i] = 1;
	}
	nl_begin_connect(&m, ns, s->dev.index, s->fd, s->npeers);
	ASSERT_EQ(0, nl_finish(ns, &m));
}

/* The first open of the device, which reads the partition table, waits. */
TEST_F(leave, before_the_partition_scan)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	connect_to(_metadata, ns, PEER_LEAVES_ALL);
	s->holder = fork_quiet();
	if (!s->holder)
		holder_main(s);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->refused[0], END_MS));
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	expect_left(_metadata, s, 0);
	EXPECT_EQ(0, s->sh->holder_open) TH_LOG("it did not wait");
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	ASSERT_TRUE(WAIT_UNTIL(s->sh->holder_open, END_MS));
	s->sh->write_go = 1;
	s->sh->io_go = 1;
	holder_expect(_metadata, s, 0);
}

/* Others work on while requests are in flight on the one that leaves, which gets no new one. */
TEST_F(leave, takes_no_new_request)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;
	int victim, before, others;

	s->npeers = 2;
	begin(_metadata, ns, PEER_HELD);
	victim = s->victim;
	before = sh->requests[victim];
	others = sh->held[!victim];
	leave(_metadata, s, victim, PEER_LEAVES, 1);
	sh->go[!victim] = 1;
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == others + 1, END_MS));
	EXPECT_EQ(0, other_wait(other_run(s, nl_read_other), END_MS));
	sh->go[victim] = 2;
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	expect_left(_metadata, s, victim);
	EXPECT_EQ(before, sh->requests[victim]);
	EXPECT_EQ(0, sh->eof[!victim]);
}

/* A new socket in its place, at once. The old one's replies still count, as long as it has time. */
TEST_F(leave, reconnect_while_it_drains)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;

	begin(_metadata, ns, PEER_LEAVES);
	grow_old(_metadata);
	leave(_metadata, s, 0, PEER_LEAVES, 1);
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, SOON));
	ASSERT_EQ(0, nl_reconnect_as(ns, 1, PEER_HELD));
	ASSERT_TRUE(WAIT_UNTIL(sh->held[1], END_MS));
	sh->go[0] = 2;
	ASSERT_TRUE(WAIT_UNTIL(sh->acted[0] == 2 || exited(s->peer[0]), END_MS));
	/* On a machine that is too slow they are replayed. */
	if (now_ms() - sh->refused_at[0] < DRAIN_MS * 3 / 4) {
		EXPECT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS - 1, SOON));
		EXPECT_EQ(1, sh->held[1]);
	}
	expect_left(_metadata, s, 0);
	sh->go[1] = 1;
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100)) TH_LOG("two for one");
}

/* The same, but what it does not answer is sent again to the new one when its time is over. */
TEST_F(leave, reconnect_while_it_drains_in_vain)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;
	long long took;

	begin(_metadata, ns, PEER_LEAVES_MUTE);
	grow_old(_metadata);
	leave(_metadata, s, 0, PEER_LEAVES_MUTE, 1);
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, SOON));
	ASSERT_EQ(0, nl_reconnect_as(ns, 1, PEER_HELD));
	ASSERT_TRUE(WAIT_UNTIL(sh->held[1], END_MS));
	ASSERT_TRUE(WAIT_UNTIL(sh->held[1] > 1, DRAIN_MS + SOON));
	took = now_ms() - sh->refused_at[0];
	EXPECT_LE(DRAIN_MS - EARLY_MS, took) TH_LOG("replayed while it could still be answered");
	ASSERT_TRUE(WAIT_UNTIL(sh->held[1] == HOLDER_THREADS, SOON));
	expect_left(_metadata, s, 0);
	sh->go[1] = 1;
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100)) TH_LOG("two for one");
}

/* The new one leaves as well, while the old one's time is not over. */
TEST_F(leave, two_in_one_place)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;

	begin(_metadata, ns, PEER_LEAVES_MUTE);
	grow_old(_metadata);
	leave(_metadata, s, 0, PEER_LEAVES_MUTE, 1);
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, SOON));
	ASSERT_EQ(0, nl_reconnect_as(ns, 1, PEER_LEAVES_MUTE));
	sh->go[1] = 1;
	ASSERT_TRUE(WAIT_UNTIL(sh->refused[1], SOON));
	ASSERT_EQ(0, nl_reconnect(ns, 2));
	holder_expect(_metadata, s, 0);
	EXPECT_TRUE(WAIT_UNTIL(sh->eof[0], SOON));
	expect_left(_metadata, s, 1);
	EXPECT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 200)) TH_LOG("more than two");
}

/* A server that does not read cannot be told to disconnect, but sees the end. */
TEST_F(leave, without_reading)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	begin(_metadata, ns, PEER_DEAF);
	leave(_metadata, s, 0, PEER_LEAVES_DEAF, 1);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->eof[0], DRAIN_MS + SOON));
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, SOON));
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100)) TH_LOG("two for one");
}

/* No new server comes in time. */
TEST_F(leave, time_is_over)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	long long start;

	ns->dead = 2;
	begin(_metadata, ns, PEER_LEAVES_ALL);
	start = now_ms();
	leave(_metadata, s, 0, PEER_LEAVES_ALL, 1);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->io_done == HOLDER_THREADS, 3500))
		TH_LOG("%d of %d requests are finished", s->sh->io_done, HOLDER_THREADS);
	EXPECT_LT(1500, now_ms() - start);
	holder_expect(_metadata, s, EIO);
	expect_left(_metadata, s, 0);
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
}

/* A disconnect does not wait for the rest. */
TEST_F(leave, disconnect_while_it_drains)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	begin(_metadata, ns, PEER_LEAVES_MUTE);
	leave(_metadata, s, 0, PEER_LEAVES_MUTE, 1);
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	holder_expect(_metadata, s, EIO);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->eof[0], SOON));
	s->sh->holder_stop = 1;
	EXPECT_TRUE(reap(s->holder, END_MS));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&s->dev), SOON));
}

TEST_F(leave, client_killed_while_it_drains)
{
	struct peer_session *s = &self->ns.s;

	s->kind = PEER_LEAVES_MUTE;
	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	leave(_metadata, s, 0, PEER_LEAVES_MUTE, 1);
	kill(s->client, SIGKILL);
	EXPECT_TRUE(WAIT_UNTIL(exited(s->client), END_MS));
	holder_expect(_metadata, s, EIO);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->eof[0], SOON));
	EXPECT_NULL(peer_works_again(s));
}

/* Two connections of a client: only with the last one the session ends. */
TEST_F(leave, one_of_two_of_a_client)
{
	struct peer_session *s = &self->ns.s;
	struct peer_shared *sh = s->sh;
	int victim;

	s->npeers = 2;
	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	victim = s->victim;
	leave(_metadata, s, victim, PEER_LEAVES_ALL, 1);
	sh->go[!victim] = 1;
	holder_expect(_metadata, s, 0);
	expect_left(_metadata, s, victim);
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	EXPECT_EQ(1, sh->client_stage);
	sh->kind[!victim] = PEER_LEAVES_ALL;
	EXPECT_EQ(1, other_wait(other_run(s, nl_read_other), END_MS));
	EXPECT_TRUE(WAIT_UNTIL(sh->client_stage == 2, END_MS));
	EXPECT_EQ(EIO, sh->client_errno);
	expect_left(_metadata, s, !victim);
}

/* A listener is told of each at once, and once. */
TEST_F(leave, link_dead_is_sent_once)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int n, i;

	s->npeers = 4;
	begin(_metadata, ns, PEER_HELD);
	grow_old(_metadata);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 0));
	for (n = 0; n < 4; n++) {
		/* What is replayed may go to some of the others only. */
		for (i = 0; i < 4 && (s->sh->acted[i] || !s->sh->held[i]); i++)
			;
		if (i == 4)
			break;
		leave(_metadata, s, i, PEER_LEAVES_ALL, 1);
		ASSERT_EQ(1, nl_link_dead(&self->events, s->dev.index, scaled(500)))
			TH_LOG("server %d", i);
		expect_left(_metadata, s, i);
		WAIT_UNTIL(sum(s->sh->held) >= HOLDER_THREADS, SOON);
	}
	EXPECT_LT(0, n);
	for (i = 0; i < 4; i++) {
		if (!s->sh->acted[i])
			s->sh->kind[i] = PEER_GOOD;
		else
			EXPECT_EQ(0, nl_reconnect(ns, i));
	}
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 200)) TH_LOG("more than %d", n);
}

/* A link that is young is not announced as dead before a second is over. */
TEST_F(leave, link_dead_of_a_young_link)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	long long start = now_ms();
	pid_t pid;

	connect_to(_metadata, ns, PEER_LEAVES_ALL);
	pid = other_run(s, nl_read_other);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->refused[0], END_MS));
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	EXPECT_LE(DRAIN_MS - EARLY_MS, now_ms() - start);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 200)) TH_LOG("two for one");
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	EXPECT_EQ(0, other_wait(pid, END_MS));
}

/* A client that knows already may connect it again before. */
TEST_F(leave, reconnect_before_link_dead)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	pid_t pid;

	connect_to(_metadata, ns, PEER_LEAVES_ALL);
	pid = other_run(s, nl_read_other);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->left[0], END_MS));
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	EXPECT_EQ(0, other_wait(pid, SOON));
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 200)) TH_LOG("two for one");
}

/* A server that refuses every client: one that is quick to connect again is no busy loop. */
TEST_F(leave, refused_again_and_again)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	long long end = now_ms() + 4000;
	int n = 0, ret = 0;
	pid_t pid;

	connect_to(_metadata, ns, PEER_LEAVES_ALL);
	pid = other_run(s, nl_read_other);
	while (now_ms() < end && !ret) {
		if (!link_dead(&self->events, s->dev.index, 100))
			continue;
		n++;
		EXPECT_TRUE(reap(s->peer[0], SOON));
		ret = nl_reconnect_as(ns, 0, PEER_LEAVES_ALL);
		s->sh->go[0] = 1;
	}
	EXPECT_EQ(0, ret);
	EXPECT_LE(2, n);
	EXPECT_GE(6, n) TH_LOG("connected again %d times in 4 s", n);
	EXPECT_FALSE(exited(pid)) TH_LOG("it did not wait");
	ASSERT_TRUE(link_dead(&self->events, s->dev.index, DRAIN_MS + SOON));
	ASSERT_TRUE(reap(s->peer[0], SOON));
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(pid, END_MS));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
}

/* What the kernel says about it */

#define NEW_INDEX	242

static bool last_error(struct nbd_dev *d, int n, const char *says)
{
	char path[64], text[4096], mark[16], *line;

	snprintf(path, sizeof(path), "/sys/kernel/debug/nbd/nbd%d/connections", d->index);
	if (read_file(path, text, sizeof(text)) <= 0)
		return false;
	snprintf(mark, sizeof(mark), "%d: ", n);
	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (!strncmp(line, mark, strlen(mark)) && strstr(line, " last-error ") &&
		    !strcmp(strstr(line, " last-error ") + strlen(" last-error "), says))
			return true;
	}
	return false;
}

TEST_F(leave, words)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int victim, picked = s->dev.index;
	const char *words[2] = {};
	char text[128];

	/* A device that nothing was logged about yet: of the other, no more may be for a while. */
	nl_use(ns, NEW_INDEX);
	ns->cflags = NBD_CFLAG_DESTROY_ON_DISCONNECT;
	s->npeers = 2;
	begin(_metadata, ns, PEER_HELD);
	victim = s->victim;
	EXPECT_FALSE(last_error(&s->dev, victim, SAYS));
	leave(_metadata, s, victim, PEER_LEAVES_ALL, 1);
	snprintf(text, sizeof(text), "connection %d lost: " SAYS "; 1 of 2 left", victim);
	words[0] = text;
	EXPECT_TRUE(WAIT_UNTIL(logged(self->log, &s->dev, words), SOON));
	EXPECT_TRUE(WAIT_UNTIL(last_error(&s->dev, victim, SAYS), SOON));
	EXPECT_FALSE(last_error(&s->dev, !victim, SAYS));
	s->sh->go[!victim] = 1;
	holder_expect(_metadata, s, 0);
	expect_left(_metadata, s, victim);
	/* Its end is not logged as another one. */
	words[0] = " lost: ";
	EXPECT_FALSE(logged(self->log, &s->dev, words));
	EXPECT_TRUE(last_error(&s->dev, victim, SAYS));
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	nl_use(ns, picked);
}

/* There is no such request: that is a broken server. */
TEST_F(leave, with_a_wrong_cookie)
{
	static const char *const words[] = { SAYS, NULL };
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	begin(_metadata, ns, PEER_LEAVES_COOKIE);
	leave(_metadata, s, 0, PEER_LEAVES_COOKIE, 1);
	EXPECT_EQ(1, nl_link_dead(&self->events, s->dev.index, scaled(SOON)));
	EXPECT_TRUE(WAIT_UNTIL(s->sh->eof[0], SOON));
	EXPECT_EQ(0, s->sh->disc[0]);
	EXPECT_FALSE(logged(self->log, &s->dev, words));
	ASSERT_EQ(0, nl_reconnect(ns, 1));
	holder_expect(_metadata, s, 0);
}

/* A server that has got a request, or -1. */
static int served(struct peer_session *s, int first)
{
	int i, n;

	for (i = 0; i < s->npeers; i++) {
		n = (first + i) % s->npeers;
		if (s->sh->held[n])
			return n;
	}
	return -1;
}

/* One server after the other leaves, and a new one comes, under verified load. */
static void under_load(struct __test_metadata *_metadata, struct nl_session *ns,
		       struct genl *events, int conns)
{
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;
	int i, n, before;

	s->npeers = conns;
	s->kind = PEER_SHUFFLE;
	/* Until it is told to end: with several connections it goes on while one is replaced. */
	sh->loop = 1 << 30;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(s));
	for (i = 1; i <= 6; i++) {
		before = sh->looped;
		ASSERT_TRUE(WAIT_UNTIL(sh->looped > before + 20, 10000))
			TH_LOG("I/O stalls with server %d: %d rounds", i, sh->looped);
		ASSERT_TRUE(WAIT_UNTIL((n = served(s, i)) >= 0, BOUNDED));
		leave(_metadata, s, n, PEER_LEAVES_ALL, 1);
		ASSERT_TRUE(link_dead(events, s->dev.index, DRAIN_MS + SOON));
		expect_left(_metadata, s, n);
		ASSERT_EQ(0, nl_reconnect_as(ns, n, PEER_SHUFFLE));
	}
	sh->loop = 0;
	ASSERT_TRUE(WAIT_UNTIL(sh->io_started == HOLDER_THREADS, 10000));
	EXPECT_EQ(0, sh->loop_errors);
	holder_expect(_metadata, s, 0);
}

TEST_F(leave, one_after_the_other)
{
	under_load(_metadata, &self->ns, &self->events, 1);
}

TEST_F(leave, one_after_the_other_of_four)
{
	under_load(_metadata, &self->ns, &self->events, 4);
}

/*
 * A server that says so and closes at once, as nbdkit does: what is being sent then fails, often
 * before the driver has looked what the server said. Its client is told to connect again all the
 * same.
 */
TEST_F_TIMEOUT(leave, closes_at_once_under_load, 120)
{
	struct peer_session *s = &self->ns.s;
	struct peer_shared *sh;
	int round, wrong = 0;

	for (round = 0; round < scaled_down(20); round++) {
		ASSERT_TRUE(peer_end(s));
		ASSERT_EQ(0, peer_prepare(s, 1, PEER_SHUFFLE));
		s->holder = 0;
		sh = s->sh;
		sh->loop = 1 << 30;
		ASSERT_EQ(0, peer_start(s));
		ASSERT_EQ(0, holder_begin(s));
		ASSERT_TRUE(WAIT_UNTIL(sh->looped > 20, 10000));
		leave(_metadata, s, 0, PEER_LEAVES_CLOSE, 1);
		ASSERT_TRUE(WAIT_UNTIL(sh->client_stage == 2, END_MS));
		wrong += sh->client_errno != EIO;
		sh->loop = 0;
	}
	EXPECT_EQ(0, wrong) TH_LOG("%d of %d clients were not told", wrong, round);
}

TEST_HARNESS_MAIN
