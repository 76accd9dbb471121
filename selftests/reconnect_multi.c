// SPDX-License-Identifier: GPL-2.0
/*
 * One of several connections dies: the others take over at once, and fairly, until it is replaced.
 */
#include "kselftest_harness.h"
#include "nbd_expect.h"
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

	for (i = 0; i < s->npeers; i++)
		s->sh->go[i] = 1;
}

TEST_F(multi, one_dies)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	nl_with_io(_metadata, ns);
	ASSERT_TRUE(nl_kill_peer(s, s->victim));
	let_go(s);
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(1, nl_link_dead(&self->events, s->dev.index, 300));
}

/* The time for a reconnect is not waited for while there are others. */
TEST_F(multi, one_dies_with_time_to_wait)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	ns->dead = 15;
	nl_with_io(_metadata, ns);
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
	nl_with_io(_metadata, ns);
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

	nl_with_io(_metadata, ns);
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
		/* Until the driver knows there is no place for a new one. */
		ASSERT_TRUE(WAIT_UNTIL(nl_link_dead(&self->events, s->dev.index, 0) == 1, BOUNDED));
		ASSERT_EQ(0, nl_reconnect(ns, i));
	}
	loops_expect(_metadata, s, rounds, NCONN, 15000);
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
	ASSERT_EQ(2, nl_link_dead(&self->events, s->dev.index, scaled(500)));
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
 * A server that is too slow is given up at the timeout, and its requests are replayed on the
 * others, without waiting for it. Whatever it says in the end does no harm.
 */
FIXTURE(slow)
{
	struct nl_session ns;
	struct genl events;
};

FIXTURE_VARIANT(slow)
{
	int npeers;
	bool tcp;
	bool ioctl;
	bool half;	/* it has sent half of a reply */
	bool never;	/* it answers nothing, ever */
};

FIXTURE_VARIANT_ADD(slow, answers_late) { .npeers = NCONN };
FIXTURE_VARIANT_ADD(slow, answers_late_over_tcp) { .npeers = NCONN, .tcp = true };
FIXTURE_VARIANT_ADD(slow, never_answers) { .npeers = NCONN, .never = true };
FIXTURE_VARIANT_ADD(slow, sent_half_a_reply) { .npeers = NCONN, .half = true };
FIXTURE_VARIANT_ADD(slow, ioctl_answers_late) { .npeers = 2, .ioctl = true };
FIXTURE_VARIANT_ADD(slow, ioctl_never_answers) { .npeers = 2, .ioctl = true, .never = true };

FIXTURE_SETUP(slow)
{
	const char *why = nl_init(&self->ns, variant->npeers, PEER_LATE);

	if (why)
		SKIP(return, "%s", why);
	self->ns.s.tcp = variant->tcp;
	/* In seconds. A slow kernel must not give the other ones up. */
	self->ns.s.timeout = scaled(2);
	ASSERT_EQ(0, genl_listen(&self->events));
}

FIXTURE_TEARDOWN(slow)
{
	struct peer_session *s = &self->ns.s;

	/* Its peers answer, if they still can. */
	if (s->sh)
		let_go(s);
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

TEST_F(slow, is_given_up_at_the_timeout)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct peer_shared *sh = s->sh;
	int deaths = 0, before = 0, after = 0, held, i;
	long long start;

	if (variant->ioctl) {
		ASSERT_EQ(0, peer_start(s));
		memset(s->fd, 0, sizeof(s->fd));
	} else {
		ASSERT_EQ(0, nl_connect(ns));
	}
	start = now_ms();
	ASSERT_EQ(0, holder_start(s));
	while (variant->half && !sh->held_reads[s->victim])
		s->victim++;
	held = sh->held[s->victim];
	if (variant->never)
		sh->kind[s->victim] = PEER_MUTE;
	if (variant->half) {
		sh->kind[s->victim] = PEER_HALF_PAYLOAD;
		sh->go[s->victim] = 1;
	}
	for (i = 0; i < s->npeers; i++) {
		if (i == s->victim)
			continue;
		before += sh->requests[i];
		sh->go[i] = 1;
	}

	ASSERT_TRUE(WAIT_UNTIL((deaths += nl_link_dead(&self->events, s->dev.index, 0)), 6000))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	EXPECT_LE(scaled(2000), now_ms() - start);
	EXPECT_EQ((int)variant->half, sh->acted[s->victim]);
	holder_expect(_metadata, s, 0);
	for (i = 0; i < s->npeers; i++)
		after += i == s->victim ? 0 : sh->requests[i];
	EXPECT_LE(held, after - before);
	EXPECT_TRUE(WAIT_UNTIL(sh->eof[s->victim], SOON)) TH_LOG("its connection stays");

	if (!variant->never && !variant->half) {
		ASSERT_FALSE(sh->acted[s->victim]);
		sh->go[s->victim] = 1;
		ASSERT_TRUE(WAIT_UNTIL(sh->acted[s->victim], SOON));
	}
	EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[s->victim]), SOON));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	EXPECT_TRUE(nbd_running(&s->dev));
	EXPECT_EQ(1, deaths + nl_link_dead(&self->events, s->dev.index, 300));
}

TEST_HARNESS_MAIN
