// SPDX-License-Identifier: GPL-2.0
/*
 * With four connections (CAN_MULTI_CONN) the end of one is no error: what was in flight on it is
 * replayed on the others at once, not at its timeout. Only the last one's end is the session's.
 */
#include <sched.h>

#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_peer.h"

#define END_MS	2000
#define NCONN	4

FIXTURE(multi)
{
	struct peer_session s;
};

FIXTURE_SETUP(multi)
{
	const char *why = peer_init(&self->s, NCONN, PEER_HELD);

	if (why)
		SKIP(return, "%s", why);
	/* Long enough that a replay at the timeout cannot be taken for one at once. */
	self->s.timeout = 20;
}

FIXTURE_TEARDOWN(multi)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

static void expect_all_good(struct __test_metadata *_metadata, struct peer_session *s)
{
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(1, s->sh->client_stage)
		TH_LOG("the session ended although connections are left");
}

static void expect_end(struct __test_metadata *_metadata, struct peer_session *s)
{
	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, END_MS))
		TH_LOG("DO_IT has not returned");
	holder_expect(_metadata, s, EIO);
}

/* One connection with requests in flight goes the given way; the others answer. */
static void one_dies(struct __test_metadata *_metadata, struct peer_session *s, enum peer_kind kind)
{
	struct peer_shared *sh = s->sh;
	int i, victim;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	victim = s->victim;
	sh->kind[victim] = kind;
	if (kind == PEER_HELD)
		sh->close[victim] = 1;
	else
		sh->go[victim] = 1;
	EXPECT_TRUE(WAIT_UNTIL(sh->acted[victim] || exited(s->peer[victim]), END_MS));
	for (i = 0; i < NCONN; i++)
		if (i != victim)
			sh->go[i] = 1;
	expect_all_good(_metadata, s);
	EXPECT_TRUE(WAIT_UNTIL(sh->eof[victim] || exited(s->peer[victim]), END_MS))
		TH_LOG("the dead connection's server does not see its end");
}

TEST_F(multi, one_closes)
{
	one_dies(_metadata, &self->s, PEER_HELD);
}

TEST_F(multi, one_closes_in_a_header)
{
	one_dies(_metadata, &self->s, PEER_CLOSE_HEADER);
}

TEST_F(multi, one_closes_in_a_payload)
{
	one_dies(_metadata, &self->s, PEER_CLOSE_PAYLOAD);
}

TEST_F(multi, one_sends_a_wrong_magic)
{
	one_dies(_metadata, &self->s, PEER_BAD_MAGIC);
}

TEST_F(multi, one_sends_an_unknown_cookie)
{
	one_dies(_metadata, &self->s, PEER_BAD_COOKIE);
}

TEST_F(multi, one_replies_twice)
{
	one_dies(_metadata, &self->s, PEER_TWICE);
}

TEST_F(multi, one_that_never_reads_closes)
{
	struct peer_session *s = &self->s;
	int i, victim;

	s->kind = PEER_DEAF;
	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	victim = s->victim;
	s->sh->close[victim] = 1;
	EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[victim]), END_MS));
	for (i = 0; i < NCONN; i++)
		if (i != victim)
			s->sh->kind[i] = PEER_GOOD;
	expect_all_good(_metadata, s);
}

TEST_F(multi, three_die_at_once)
{
	struct peer_session *s = &self->s;
	int i, survivor;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	survivor = (s->victim + 1) % NCONN;
	for (i = 0; i < NCONN; i++)
		if (i != survivor)
			kill(s->peer[i], SIGKILL);
	s->sh->go[survivor] = 1;
	expect_all_good(_metadata, s);
}

TEST_F(multi, the_last_one_ends_the_session)
{
	struct peer_session *s = &self->s;
	int i;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	for (i = 0; i < NCONN; i++) {
		s->sh->close[i] = 1;
		EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[i]), END_MS));
		if (i < NCONN - 1)
			EXPECT_EQ(1, s->sh->client_stage);
	}
	expect_end(_metadata, s);
}

TEST_F(multi, all_die_at_once)
{
	struct peer_session *s = &self->s;
	int i;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	for (i = 0; i < NCONN; i++)
		kill(s->peer[i], SIGKILL);
	expect_end(_metadata, s);
}

TEST_F(multi, disconnect)
{
	struct peer_session *s = &self->s;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), END_MS))
		TH_LOG("DISCONNECT does not return");
	expect_end(_metadata, s);
}

TEST_F(multi, client_killed)
{
	struct peer_session *s = &self->s;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	kill(s->client, SIGKILL);
	EXPECT_TRUE(WAIT_UNTIL(exited(s->client), END_MS));
	s->sh->client_stage = 2;
	expect_end(_metadata, s);
}

/* Three of four connections die one after another while every byte that is read is compared. */
TEST_F(multi, die_under_load)
{
	struct peer_session *s = &self->s;
	int i, rounds = 60;

	s->kind = PEER_SHUFFLE;
	s->sh->loop = rounds;
	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_begin(s));
	for (i = 0; i < NCONN - 1; i++) {
		int enough = (i + 1) * rounds * HOLDER_THREADS / NCONN;

		ASSERT_TRUE(WAIT_UNTIL(s->sh->looped > enough, 10000))
			TH_LOG("I/O stalls with %d of %d connections: %d rounds", NCONN - i, NCONN,
			       s->sh->looped);
		kill(s->peer[i], SIGKILL);
	}
	ASSERT_TRUE(WAIT_UNTIL(s->sh->looped == rounds * HOLDER_THREADS, 10000));
	EXPECT_EQ(0, s->sh->loop_errors);
	expect_all_good(_metadata, s);
}

/* Requests that come one at a time do not wake up one server after the other. */
TEST_F(multi, one_at_a_time_stay_together)
{
	struct peer_session *s = &self->s;
	int before[NCONN], takers = 0, sum = 0, fd, i;
	cpu_set_t one;
	void *buf;

	s->kind = PEER_GOOD;
	ASSERT_EQ(0, peer_start(s));
	udev_settle();
	/* Of a hardware queue. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(one), &one));
	fd = open(s->dev.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, posix_memalign(&buf, 4096, 4096));
	for (i = 0; i < NCONN; i++)
		before[i] = s->sh->requests[i];
	for (i = 0; i < 64; i++)
		ASSERT_EQ(4096, pread(fd, buf, 4096, i * 4096));
	close(fd);
	free(buf);
	for (i = 0; i < NCONN; i++) {
		sum += s->sh->requests[i] - before[i];
		takers += s->sh->requests[i] > before[i];
	}
	EXPECT_LE(64, sum);
	EXPECT_EQ(1, takers) TH_LOG("%d requests went to %d connections", sum, takers);
}

FIXTURE(order)
{
	struct peer_session s;
};

FIXTURE_VARIANT(order)
{
	int npeers;
	bool tcp;
};

FIXTURE_VARIANT_ADD(order, unix_1) { .npeers = 1 };
FIXTURE_VARIANT_ADD(order, unix_4) { .npeers = 4 };
FIXTURE_VARIANT_ADD(order, tcp_1) { .npeers = 1, .tcp = true };

FIXTURE_SETUP(order)
{
	const char *why = peer_init(&self->s, variant->npeers, PEER_SHUFFLE);

	if (why)
		SKIP(return, "%s", why);
	self->s.tcp = variant->tcp;
}

FIXTURE_TEARDOWN(order)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

/* Replies in random order go to the requests that they are for. */
TEST_F(order, shuffled_replies)
{
	struct peer_session *s = &self->s;
	int rounds = 40;

	s->sh->loop = rounds;
	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_begin(s));
	ASSERT_TRUE(WAIT_UNTIL(s->sh->looped == rounds * HOLDER_THREADS, 15000))
		TH_LOG("%d of %d rounds", s->sh->looped, rounds * HOLDER_THREADS);
	EXPECT_EQ(0, s->sh->loop_errors);
	expect_all_good(_metadata, s);
}

TEST_HARNESS_MAIN
