// SPDX-License-Identifier: GPL-2.0
/*
 * Every way to end a session ends it within two seconds and finishes the holder's I/O with EIO,
 * whatever the server does or does not do, and the device can be used again once the holder has
 * closed it.
 */
#include "kselftest_harness.h"
#include "nbd_peer.h"

#define END_MS	2000

FIXTURE(stop)
{
	struct peer_session s;
};

FIXTURE_VARIANT(stop)
{
	enum peer_kind kind;
	bool tcp;
};

FIXTURE_VARIANT_ADD(stop, never_reads) { .kind = PEER_DEAF };
FIXTURE_VARIANT_ADD(stop, never_reads_tcp) { .kind = PEER_DEAF, .tcp = true };
FIXTURE_VARIANT_ADD(stop, never_answers) { .kind = PEER_MUTE };
FIXTURE_VARIANT_ADD(stop, half_a_header) { .kind = PEER_HALF_HEADER };
FIXTURE_VARIANT_ADD(stop, half_a_payload) { .kind = PEER_HALF_PAYLOAD };

FIXTURE_SETUP(stop)
{
	const char *why = peer_init(&self->s, 1, variant->kind);

	if (why)
		SKIP(return, "%s", why);
	self->s.tcp = variant->tcp;
}

FIXTURE_TEARDOWN(stop)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

/* A session with I/O in flight, and the server where this variant wants it. */
static int stop_begin(struct peer_session *s)
{
	if (peer_start(s) || holder_start(s))
		return -1;
	s->sh->go[0] = 1;
	if (s->kind == PEER_HALF_HEADER || s->kind == PEER_HALF_PAYLOAD)
		return WAIT_UNTIL(s->sh->acted[0], 5000) ? 0 : -1;
	return 0;
}

/*
 * The client, all I/O and, if there is one, the process that does an ioctl: have they come to
 * their ends?
 */
static bool stop_ended(struct peer_session *s, pid_t other)
{
	return (s->sh->client_stage == 2 || exited(s->client)) && (other <= 0 || exited(other)) &&
	       s->sh->io_done == HOLDER_THREADS && s->sh->late_done == HOLDER_THREADS;
}

static void stop_check(struct __test_metadata *_metadata, struct peer_session *s, pid_t other,
		       int ms)
{
	struct peer_shared *sh = s->sh;
	const char *why;
	bool ended;
	int i;

	ended = WAIT_UNTIL(stop_ended(s, other), ms);
	EXPECT_TRUE(ended);
	if (!ended) {
		if (other > 0 && !exited(other))
			TH_LOG("the ioctl has not returned after %d ms", ms);
		if (sh->client_stage != 2 && !exited(s->client))
			TH_LOG("DO_IT has not returned after %d ms", ms);
		TH_LOG("of %d requests %d are finished, and %d of as many later ones",
		       HOLDER_THREADS, sh->io_done, sh->late_done);
	}
	for (i = 0; i < HOLDER_THREADS && sh->io_done == HOLDER_THREADS; i++)
		EXPECT_EQ(EIO, sh->io_errno[i]);
	EXPECT_EQ(0, sh->late_bytes);

	/* On TCP the end of the connection comes after all that was sent: now read it. */
	for (i = 0; s->kind == PEER_DEAF && i < s->npeers; i++)
		sh->kind[i] = PEER_MUTE;
	ASSERT_TRUE(WAIT_UNTIL(sh->eof[0] || exited(s->peer[0]), END_MS))
		TH_LOG("the server does not see the end of its connection");
	ASSERT_TRUE(ended);

	why = peer_works_again(s);
	ASSERT_NULL(why)
		TH_LOG("the device cannot be used again: %s", why);
}

TEST_F(stop, server_closes)
{
	ASSERT_EQ(0, stop_begin(&self->s));
	self->s.sh->close[0] = 1;
	stop_check(_metadata, &self->s, 0, END_MS);
}

TEST_F(stop, server_killed)
{
	ASSERT_EQ(0, stop_begin(&self->s));
	kill(self->s.peer[0], SIGKILL);
	stop_check(_metadata, &self->s, 0, END_MS);
}

TEST_F(stop, disconnect)
{
	ASSERT_EQ(0, stop_begin(&self->s));
	stop_check(_metadata, &self->s, other_ioctl(&self->s, NBD_DISCONNECT), END_MS);
}

TEST_F(stop, clear_sock)
{
	ASSERT_EQ(0, stop_begin(&self->s));
	stop_check(_metadata, &self->s, other_ioctl(&self->s, NBD_CLEAR_SOCK), END_MS);
}

TEST_F(stop, sigterm)
{
	ASSERT_EQ(0, stop_begin(&self->s));
	kill(self->s.client, SIGTERM);
	stop_check(_metadata, &self->s, 0, END_MS);
}

TEST_F(stop, sigint)
{
	ASSERT_EQ(0, stop_begin(&self->s));
	kill(self->s.client, SIGINT);
	stop_check(_metadata, &self->s, 0, END_MS);
}

TEST_F(stop, sigkill)
{
	ASSERT_EQ(0, stop_begin(&self->s));
	kill(self->s.client, SIGKILL);
	stop_check(_metadata, &self->s, 0, END_MS);
}

TEST_F(stop, timeout)
{
	const char *driver = getenv("NBD_DRIVER");
	int ms = 1000 + END_MS;

	/* The C driver takes two to four seconds, as it happens: that is not what is compared. */
	if (driver && !strcmp(driver, "c"))
		ms += 6000;
	self->s.timeout = 1;
	ASSERT_EQ(0, stop_begin(&self->s));
	EXPECT_TRUE(WAIT_UNTIL(self->s.sh->client_stage == 2, ms));
	EXPECT_EQ(ETIMEDOUT, self->s.sh->client_errno);
	stop_check(_metadata, &self->s, 0, ms);
}

/*
 * A server that is mute from the start: the first opener is stuck while it reads the partition
 * table.
 */
FIXTURE(scan)
{
	struct peer_session s;
};

FIXTURE_SETUP(scan)
{
	const char *why = peer_init(&self->s, 1, PEER_MUTE);

	if (why)
		SKIP(return, "%s", why);
	self->s.sh->kind[0] = PEER_MUTE;
	ASSERT_EQ(0, peer_start(&self->s));
	self->s.holder = fork_quiet();
	if (!self->s.holder)
		holder_main(&self->s);
	ASSERT_TRUE(WAIT_UNTIL(in_flight(&self->s) > 0, BOUNDED));
}

FIXTURE_TEARDOWN(scan)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

static void scan_check(struct __test_metadata *_metadata, struct peer_session *s)
{
	const char *why;

	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2 || exited(s->client), END_MS))
		TH_LOG("DO_IT has not returned");
	ASSERT_TRUE(WAIT_UNTIL(s->sh->holder_open || exited(s->holder), END_MS))
		TH_LOG("a process that opened the device is stuck");
	why = peer_works_again(s);
	ASSERT_NULL(why)
		TH_LOG("the device cannot be used again: %s", why);
}

TEST_F(scan, server_closes)
{
	self->s.sh->close[0] = 1;
	scan_check(_metadata, &self->s);
}

TEST_F(scan, sigterm)
{
	kill(self->s.client, SIGTERM);
	scan_check(_metadata, &self->s);
}

TEST_F(scan, sigkill)
{
	kill(self->s.client, SIGKILL);
	scan_check(_metadata, &self->s);
}

TEST_HARNESS_MAIN
