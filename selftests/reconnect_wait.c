// SPDX-License-Identifier: GPL-2.0
/*
 * While requests wait for a connection: what listeners are told of its end, what can end the wait,
 * and what must not be stuck.
 */
#include <sched.h>

#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS	2000

FIXTURE(wait)
{
	struct nl_session ns;
	struct genl events;
};

FIXTURE_SETUP(wait)
{
	const char *why = nl_init(&self->ns, 1, PEER_HELD);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, genl_listen(&self->events));
}

FIXTURE_TEARDOWN(wait)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* LINK_DEAD: one each. */

TEST_F(wait, link_dead_is_sent_once)
{
	struct nl_session *ns = &self->ns;
	int index = ns->s.dev.index, i;

	ns->s.npeers = 4;
	ns->dead = 10;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	EXPECT_EQ(0, nl_link_dead(&self->events, index, 0));
	for (i = 0; i < 4; i++) {
		ASSERT_TRUE(nl_kill_peer(&ns->s, i));
		EXPECT_EQ(1, nl_link_dead(&self->events, index, scaled(500))) TH_LOG("death %d", i);
	}
	for (i = 0; i < 4; i++)
		ASSERT_EQ(0, nl_reconnect(ns, i));
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(0, nl_link_dead(&self->events, index, 200)) TH_LOG("without any death");
	ASSERT_TRUE(nl_kill_peer(&ns->s, 1));
	EXPECT_EQ(1, nl_link_dead(&self->events, index, scaled(500))) TH_LOG("the new one's death");
}

/* A listener in a network namespace of its own. */
static int listen_elsewhere(struct genl *g)
{
	int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), ret;

	if (here < 0 || unshare(CLONE_NEWNET))
		return -errno;
	ret = genl_listen(g);
	if (setns(here, CLONE_NEWNET))
		ret = -errno;
	close(here);
	return ret;
}

TEST_F(wait, link_dead_in_other_network_namespaces)
{
	struct nl_session *ns = &self->ns;
	int index = ns->s.dev.index, i;
	struct genl far[3];

	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, listen_elsewhere(&far[i]));
	/* The one in the middle has the family, but no listener. */
	ASSERT_EQ(0, setsockopt(far[1].fd, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &far[1].group,
				sizeof(far[1].group)));
	ns->s.npeers = 4;
	ns->dead = 10;
	ASSERT_EQ(0, nl_connect(ns));
	for (i = 0; i < 4; i++) {
		bool here = i < 3;

		/* At the last one there is no listener where the device was connected. */
		if (!here)
			ASSERT_EQ(0, setsockopt(self->events.fd, SOL_NETLINK,
						NETLINK_DROP_MEMBERSHIP, &self->events.group,
						sizeof(self->events.group)));
		ASSERT_TRUE(nl_kill_peer(&ns->s, i));
		EXPECT_EQ(1, nl_link_dead(&far[2], index, scaled(500))) TH_LOG("death %d", i);
		EXPECT_EQ(1, nl_link_dead(&far[0], index, 0)) TH_LOG("death %d", i);
		EXPECT_EQ(0, nl_link_dead(&far[1], index, 0)) TH_LOG("death %d, no listener", i);
		EXPECT_EQ(here, nl_link_dead(&self->events, index, 0)) TH_LOG("death %d, here", i);
	}
	EXPECT_EQ(0, nl_disconnect(index));
	EXPECT_EQ(0, nl_link_dead(&far[2], index, 200)) TH_LOG("without any death");
	EXPECT_EQ(0, nl_link_dead(&far[0], index, 0)) TH_LOG("without any death");
}

TEST_F(wait, disconnect_is_no_death)
{
	struct nl_session *ns = &self->ns;
	int index = ns->s.dev.index;

	ns->s.npeers = 2;
	ns->s.kind = PEER_GOOD;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(index));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]) && exited(ns->s.peer[1]), SOON));
	EXPECT_EQ(0, nl_link_dead(&self->events, index, 300));
}

TEST_F(wait, broken_reply_is_a_death)
{
	struct nl_session *ns = &self->ns;

	ns->s.kind = PEER_BAD_MAGIC;
	ns->dead = 10;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	ns->s.sh->go[0] = 1;
	EXPECT_EQ(1, nl_link_dead(&self->events, ns->s.dev.index, scaled(1000)));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the server sees no end");
	EXPECT_EQ(0, ns->s.sh->io_done);
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	holder_expect(_metadata, &ns->s, 0);
}

/* No kernel thread sleeps while requests wait. */
TEST_F(wait, no_kernel_thread_sleeps)
{
	struct nl_session *ns = &self->ns;
	int before[64], nbefore, stuck = 0;
	long long end;
	pid_t pid;

	nbefore = nl_sleepers(before, 64);
	ns->dead = 15;
	ns->s.timeout = 1;
	nl_die_with_io(_metadata, ns);
	pid = other_run(&ns->s, nl_read_other);
	end = now_ms() + 4000;
	while (!stuck && now_ms() < end)
		stuck = nl_stuck(before, nbefore, 1000);
	EXPECT_EQ(0, stuck);
	EXPECT_FALSE(exited(pid));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(1, other_wait(pid, END_MS));
}

/* Timeouts of requests */

TEST_F(wait, timeout_is_a_death)
{
	struct nl_session *ns = &self->ns;

	ns->s.kind = PEER_MUTE;
	ns->s.timeout = 1;
	ns->dead = scaled(10);
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	EXPECT_EQ(1, nl_link_dead(&self->events, ns->s.dev.index, scaled(3500)));
	EXPECT_EQ(0, ns->s.sh->io_done);
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the server sees no end");
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	holder_expect(_metadata, &ns->s, 0);
}

/*
 * Without a timeout a server may take as long as it likes: after 30 s, the block layer's own
 * timeout, the log says so, and nothing else happens until it answers.
 */
TEST_F(wait, no_timeout_is_no_death)
{
	static const char *const words[] = { "there is no timeout", NULL };
	struct nl_session *ns = &self->ns;
	int log = log_open(), i;
	long long start;

	ASSERT_LE(0, log);
	ns->s.npeers = 2;
	ASSERT_EQ(0, nl_connect(ns));
	start = now_ms();
	ASSERT_EQ(0, holder_start(&ns->s));
	while (!logged(log, &ns->s.dev, words)) {
		ASSERT_GT(36000 + scaled(BOUNDED), now_ms() - start) TH_LOG("nothing is logged");
		ASSERT_EQ(0, ns->s.sh->io_done) TH_LOG("a request has ended by itself");
		usleep(10000);
	}
	EXPECT_LT(29000, now_ms() - start) TH_LOG("too early");
	EXPECT_EQ(0, nl_link_dead(&self->events, ns->s.dev.index, 0));
	EXPECT_EQ(0, ns->s.sh->io_done);
	for (i = 0; i < 2; i++)
		ns->s.sh->go[i] = 1;
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_link_dead(&self->events, ns->s.dev.index, 200));
	close(log);
}

TEST_F(wait, timeout_and_no_time_to_wait)
{
	struct nl_session *ns = &self->ns;
	long long start;

	ns->s.kind = PEER_MUTE;
	ns->s.timeout = 1;
	ASSERT_EQ(0, nl_connect(ns));
	start = now_ms();
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_TRUE(WAIT_UNTIL(ns->s.sh->io_done == HOLDER_THREADS, 4000));
	EXPECT_LT(700, now_ms() - start);
	holder_expect(_metadata, &ns->s, EIO);
	EXPECT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

/* The server answers just when it is given up. */
TEST_F(wait, old_server_answers_late)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	long long start;

	ns->s.timeout = 1;
	ns->dead = scaled(10);
	ASSERT_EQ(0, nl_connect(ns));
	start = now_ms();
	ASSERT_EQ(0, holder_start(&ns->s));
	/* Whether it is too late differs from run to run; what follows does not. */
	WAIT_UNTIL(now_ms() - start > 1000 || exited(ns->s.peer[0]), 3000);
	sh->go[0] = 1;
	if (!WAIT_UNTIL(sh->late_done == HOLDER_THREADS, 3000)) {
		EXPECT_EQ(1, nl_link_dead(&self->events, ns->s.dev.index, 0));
		ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
		ASSERT_EQ(0, nl_reconnect(ns, 0));
	}
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

/* Server after server dies under verified load. */
TEST_F_TIMEOUT(wait, one_server_after_the_other, 40)
{
	struct nl_session *ns = &self->ns;
	int rounds = 25, i, enough;

	ns->s.kind = PEER_SHUFFLE;
	ns->dead = 10;
	ns->s.sh->loop = rounds;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(&ns->s));
	for (i = 1; i <= 8; i++) {
		enough = i * rounds * HOLDER_THREADS / 10;
		ASSERT_TRUE(WAIT_UNTIL(ns->s.sh->looped > enough, 10000))
			TH_LOG("I/O stalls with server %d: %d rounds", i, ns->s.sh->looped);
		ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
		/* A socket that comes while the old one is not known to be dead is not needed. */
		ASSERT_TRUE(WAIT_UNTIL(nl_link_dead(&self->events, ns->s.dev.index, 0), 5000));
		ASSERT_EQ(0, nl_reconnect(ns, 0));
		ns->s.sh->kind[0] = PEER_SHUFFLE;
	}
	loops_expect(_metadata, &ns->s, rounds, 0, 10000);
}

/* The end of the session fails the requests that wait, whatever ends it. */
FIXTURE(told)
{
	struct nl_session ns;
};

FIXTURE_VARIANT(told)
{
	unsigned long cmd;
};

FIXTURE_VARIANT_ADD(told, netlink) { .cmd = 0 };
FIXTURE_VARIANT_ADD(told, disconnect) { .cmd = NBD_DISCONNECT };
FIXTURE_VARIANT_ADD(told, clear_sock) { .cmd = NBD_CLEAR_SOCK };

FIXTURE_SETUP(told)
{
	const char *why = nl_init(&self->ns, 1, PEER_HELD);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(told)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

TEST_F(told, by_the_end)
{
	struct nl_session *ns = &self->ns;
	pid_t pid, ender = 0;
	struct nl_call call = {};
	struct nl_msg m;

	ns->dead = 20;
	nl_die_with_io(_metadata, ns);
	pid = other_run(&ns->s, nl_read_other);
	EXPECT_FALSE(WAIT_UNTIL(ns->s.sh->io_done || exited(pid), 300)) TH_LOG("it did not wait");
	/* The call itself may wait for the openers a little longer. */
	if (variant->cmd) {
		ender = other_ioctl(&ns->s, variant->cmd);
	} else {
		nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
		call = nl_start(&m);
	}
	EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->io_done == HOLDER_THREADS && exited(pid), SOON))
		TH_LOG("%d of %d requests are finished", ns->s.sh->io_done, HOLDER_THREADS);
	EXPECT_EQ(1, other_wait(pid, SOON));
	holder_expect(_metadata, &ns->s, EIO);
	EXPECT_EQ(0, variant->cmd ? other_wait(ender, BOUNDED) : nl_wait(call, BOUNDED)->ret);
	EXPECT_TRUE(WAIT_UNTIL(!nbd_sys_exists(&ns->s.dev, "pid"), SOON));
	ns->s.sh->holder_stop = 1;
	EXPECT_TRUE(reap(ns->s.holder, END_MS));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
}

TEST_HARNESS_MAIN
