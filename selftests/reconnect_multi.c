// SPDX-License-Identifier: GPL-2.0
/*
 * One of several connections dies: the others take over at once, and fairly, until it is replaced.
 */
#include "kselftest_harness.h"
#include "nbd_nlpeer.h"

#define END_MS	2000
#define NCONN	4

FIXTURE(multi)
{
	struct nl_session ns;
	struct genl events;
};

FIXTURE_SETUP(multi)
{
	const char *why = nl_init(&self->ns, NCONN, PEER_HELD);

	if (why)
		SKIP(return, "%s", why);
	/* Long enough that a replay at the timeout cannot be taken for one at once. */
	self->ns.s.timeout = 20;
	ASSERT_EQ(0, genl_listen(&self->events));
}

FIXTURE_TEARDOWN(multi)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

static void let_go(struct peer_session *s)
{
	int i;

	for (i = 0; i < NCONN; i++)
		s->sh->go[i] = 1;
}

TEST_F(multi, one_dies)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(s));
	ASSERT_TRUE(nl_kill_peer(s, s->victim));
	let_go(s);
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(1, nl_deaths(&self->events, s->dev.index, 300));
}

/* The time for a reconnect is not waited for while there are others. */
TEST_F(multi, one_dies_with_time_to_wait)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	ns->dead = 15;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(s));
	ASSERT_TRUE(nl_kill_peer(s, s->victim));
	let_go(s);
	holder_expect(_metadata, s, 0);
}

TEST_F(multi, three_die)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int i, survivor;

	ns->dead = 15;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(s));
	survivor = (s->victim + 1) % NCONN;
	for (i = 0; i < NCONN; i++)
		if (i != survivor)
			ASSERT_TRUE(nl_kill_peer(s, i));
	s->sh->go[survivor] = 1;
	holder_expect(_metadata, s, 0);
}

/* What one had in flight is not all given to the same other one. */
TEST_F(multi, replays_are_shared)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int before[NCONN], held, takers = 0, i, j;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(s));
	/* Two deaths, so that what there is to share is more than one request. */
	for (j = 0; j < 2; j++) {
		int victim = -1;

		for (i = 0; i < NCONN; i++)
			if (!exited(s->peer[i]) &&
			    (victim < 0 || s->sh->held[i] > s->sh->held[victim]))
				victim = i;
		held = s->sh->held[victim];
		for (i = 0; i < NCONN; i++)
			before[i] = s->sh->requests[i];
		takers = 0;
		ASSERT_TRUE(nl_kill_peer(s, victim));
		ASSERT_TRUE(WAIT_UNTIL(({
			int got = 0;

			for (i = 0; i < NCONN; i++)
				got += s->sh->requests[i] - before[i];
			got >= held;
		}), END_MS)) TH_LOG("not all are replayed");
		for (i = 0; i < NCONN; i++)
			takers += s->sh->requests[i] > before[i];
	}
	EXPECT_LE(2, held);
	EXPECT_LE(2, takers) TH_LOG("%d requests went to %d connections", held, takers);
	let_go(s);
	holder_expect(_metadata, s, 0);
}

/* Nor is all that comes later: each that is left has its part. */
TEST_F(multi, later_requests_are_shared)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int before[NCONN], rounds = 30, total = 0, i;

	s->kind = PEER_SHUFFLE;
	s->sh->loop = rounds;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(s, 1));
	for (i = 0; i < NCONN; i++)
		before[i] = s->sh->requests[i];
	ASSERT_EQ(0, holder_begin(s));
	ASSERT_TRUE(WAIT_UNTIL(s->sh->looped == rounds * HOLDER_THREADS, 15000));
	for (i = 0; i < NCONN; i++)
		total += s->sh->requests[i] - before[i];
	for (i = 0; i < NCONN; i++)
		if (i != 1)
			EXPECT_LT(total / 20, s->sh->requests[i] - before[i])
				TH_LOG("connection %d of %d requests", i, total);
	EXPECT_EQ(0, s->sh->loop_errors);
	holder_expect(_metadata, s, 0);
}

/* One that is replaced gets its part of the requests again. */
TEST_F(multi, replaced_while_others_work)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int rounds = 40, i;

	s->kind = PEER_SHUFFLE;
	s->sh->loop = rounds;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(s));
	for (i = 0; i < NCONN; i++) {
		ASSERT_TRUE(WAIT_UNTIL(s->sh->looped > i * rounds, 10000));
		ASSERT_TRUE(nl_kill_peer(s, i));
		ASSERT_EQ(0, nl_reconnect(ns, i));
	}
	ASSERT_TRUE(WAIT_UNTIL(s->sh->looped == rounds * HOLDER_THREADS, 15000));
	for (i = 0; i < NCONN; i++)
		EXPECT_LT(0, s->sh->requests[i]) TH_LOG("connection %d", i);
	EXPECT_EQ(0, s->sh->loop_errors);
	holder_expect(_metadata, s, 0);
}

TEST_F(multi, two_are_replaced_by_one_message)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int fd[3], rounds = 30, i;
	struct nl_msg m;

	s->kind = PEER_SHUFFLE;
	s->sh->loop = rounds;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(s, 0));
	ASSERT_TRUE(nl_kill_peer(s, 2));
	ASSERT_EQ(2, nl_deaths(&self->events, s->dev.index, scaled(500)));
	ASSERT_EQ(0, nl_peer(s, 0));
	ASSERT_EQ(0, nl_peer(s, 2));
	nl_begin(&m, NBD_CMD_RECONFIGURE, s->dev.index);
	fd[0] = s->fd[0];
	fd[1] = s->fd[2];
	nl_socks(&m, fd, 2);
	ASSERT_EQ(0, nl_finish(ns, &m));
	ASSERT_EQ(0, holder_begin(s));
	ASSERT_TRUE(WAIT_UNTIL(s->sh->looped == rounds * HOLDER_THREADS, 15000));
	for (i = 0; i < NCONN; i++)
		EXPECT_LT(0, s->sh->requests[i]) TH_LOG("connection %d", i);
	EXPECT_EQ(0, s->sh->loop_errors);
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	for (i = 0; i < NCONN; i++)
		EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[i]), SOON)) TH_LOG("connection %d", i);
}

/*
 * A server that is too slow is given up, its requests are replayed, and what it says in the end
 * does no harm.
 */
TEST_F(multi, late_replies_after_a_replay)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int i;

	s->timeout = 1;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(s));
	for (i = 0; i < NCONN; i++)
		if (i != s->victim)
			s->sh->go[i] = 1;
	WAIT_UNTIL(s->sh->io_done == HOLDER_THREADS, 990);
	s->sh->go[s->victim] = 1;
	ASSERT_TRUE(WAIT_UNTIL(s->sh->io_done == HOLDER_THREADS, 4000));
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	EXPECT_TRUE(nbd_running(&s->dev));
}

TEST_HARNESS_MAIN
