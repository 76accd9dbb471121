/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Expectations that programs share. They are compiled with each, because kselftest_harness.h is
 * for one source file of a program.
 */
#ifndef NBD_EXPECT_H
#define NBD_EXPECT_H

#include "kselftest_harness.h"
#include "nbd_nlpeer.h"

/* Every request of the holder's has ended like this. */
static inline void holder_expect(struct __test_metadata *_metadata, struct peer_session *s,
				 int error)
{
	struct peer_shared *sh = s->sh;
	int i, j;

	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, HOLDER_END_MS))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	for (i = 0; i < HOLDER_THREADS; i++) {
		EXPECT_EQ(error, sh->io_errno[i]);
		for (j = 0; !error && i % 2 == 0 && j < (int)HOLDER_CHUNK; j++)
			if (sh->data[i * HOLDER_CHUNK + j] != 'a' + i)
				break;
		if (!error && i % 2 == 0)
			EXPECT_EQ((int)HOLDER_CHUNK, j) TH_LOG("what was written is not there");
	}
	EXPECT_TRUE(WAIT_UNTIL(sh->late_done == HOLDER_THREADS, HOLDER_END_MS));
	EXPECT_EQ(error ? 0 : HOLDER_THREADS * 4096, sh->late_bytes);
}

/*
 * All rounds of the holder's have ended in this time, and well; each of the first n servers had
 * requests.
 */
static inline void loops_expect(struct __test_metadata *_metadata, struct peer_session *s,
				int rounds, int n, int ms)
{
	int i;

	ASSERT_TRUE(WAIT_UNTIL(s->sh->looped == rounds * HOLDER_THREADS, ms));
	for (i = 0; i < n; i++)
		EXPECT_LT(0, s->sh->requests[i]) TH_LOG("connection %d", i);
	EXPECT_EQ(0, s->sh->loop_errors);
	holder_expect(_metadata, s, 0);
}

/*
 * The refusal says in words why, and blames the attribute at this place in the request, or none.
 * The C driver has its reasons for the log only.
 */
static inline void nl_expect_why(struct __test_metadata *_metadata, const struct nl_answer *r,
				 unsigned int offset, const char *words)
{
	if (!nbd_is_rust())
		return;
	EXPECT_NE(NULL, strstr(r->text, words))
		TH_LOG("'%s' is what it says, not '%s'", r->text, words);
	EXPECT_EQ(offset, r->offset) TH_LOG("'%s' blames another attribute", r->text);
}

/* For nl_msg.before: a request of nobody's. */
static inline int drop_caps(void)
{
	return setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ? -errno : 0;
}

/*
 * Connect and disconnect while another process opens and closes the device. An open from the
 * session before keeps it for a moment, and no longer: until then it is EBUSY, or error.
 */
static inline void nl_connect_while_opened(struct __test_metadata *_metadata, struct nl_session *ns,
					   int error)
{
	pid_t pid = fork_quiet();
	int i, ret;

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			close(open(ns->s.dev.path, O_RDONLY | O_CLOEXEC));
	}
	for (i = 0; i < 20; i++) {
		ASSERT_TRUE(WAIT_UNTIL((ret = nl_connect(ns)) != -EBUSY && ret != -error, 2000));
		ASSERT_EQ(0, ret) TH_LOG("round %d", i);
		ASSERT_EQ(0, nl_disconnect(ns->s.dev.index));
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	}
	kill(pid, SIGKILL);
	EXPECT_TRUE(reap(pid, BOUNDED));
}

/* Connect, and let the holder's requests arrive. */
static inline void nl_with_io(struct __test_metadata *_metadata, struct nl_session *ns)
{
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
}

/* The same, and kill all servers. */
static inline void nl_die_with_io(struct __test_metadata *_metadata, struct nl_session *ns)
{
	int i;

	nl_with_io(_metadata, ns);
	for (i = 0; i < ns->s.npeers; i++)
		ASSERT_TRUE(nl_kill_peer(&ns->s, i));
}

#endif /* NBD_EXPECT_H */
