// SPDX-License-Identifier: GPL-2.0
/*
 * A server that breaks off or breaks the protocol costs its connection, and so, being the only
 * one, the session: all at once, with no help from user space and no timeout set.
 */
#include "kselftest_harness.h"
#include "nbd_peer.h"

#define END_MS	2000

FIXTURE(broken)
{
	struct peer_session s;
};

FIXTURE_VARIANT(broken)
{
	enum peer_kind kind;
	int answered;			/* requests that the server did answer */
};

FIXTURE_VARIANT_ADD(broken, closes_in_header) { .kind = PEER_CLOSE_HEADER };
FIXTURE_VARIANT_ADD(broken, closes_in_payload) { .kind = PEER_CLOSE_PAYLOAD };
FIXTURE_VARIANT_ADD(broken, wrong_magic) { .kind = PEER_BAD_MAGIC };
FIXTURE_VARIANT_ADD(broken, unknown_cookie) { .kind = PEER_BAD_COOKIE };
FIXTURE_VARIANT_ADD(broken, replies_twice) { .kind = PEER_TWICE, .answered = 1 };

FIXTURE_SETUP(broken)
{
	const char *why = peer_init(&self->s, 1, variant->kind);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(broken)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

static void break_check(struct __test_metadata *_metadata, struct peer_session *s, int answered)
{
	struct peer_shared *sh = s->sh;
	int i, good = 0;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	sh->go[0] = 1;
	EXPECT_TRUE(WAIT_UNTIL(sh->client_stage == 2, END_MS))
		TH_LOG("DO_IT has not returned");
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, END_MS))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	for (i = 0; i < HOLDER_THREADS; i++) {
		if (!sh->io_errno[i])
			good++;
		else
			EXPECT_EQ(EIO, sh->io_errno[i]);
	}
	EXPECT_EQ(answered, good);
	EXPECT_TRUE(WAIT_UNTIL(sh->eof[0] || exited(s->peer[0]), END_MS))
		TH_LOG("the server does not see the end of its connection");
	EXPECT_TRUE(WAIT_UNTIL(sh->late_done == HOLDER_THREADS, END_MS))
		TH_LOG("I/O after the session's end hangs");
	EXPECT_EQ(0, sh->late_bytes);
}

TEST_F(broken, ends_the_session)
{
	break_check(_metadata, &self->s, variant->answered);
}

TEST_F(broken, leaves_the_device_usable)
{
	struct peer_session *s = &self->s;
	const char *why;

	break_check(_metadata, s, variant->answered);
	ASSERT_TRUE(peer_end(s));
	ASSERT_EQ(0, peer_prepare(s, 1, variant->kind));
	break_check(_metadata, s, variant->answered);
	why = peer_works_again(s);
	ASSERT_NULL(why)
		TH_LOG("the device cannot be used again: %s", why);
}

TEST_HARNESS_MAIN
