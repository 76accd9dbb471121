// SPDX-License-Identifier: GPL-2.0
/*
 * How long a graceful disconnect takes: as long as the server needs for what is in flight, or a
 * second; not longer for a process that keeps the device open, and long enough for a process that
 * has only looked at it.
 */
#include "kselftest_harness.h"
#include "nbd_nlpeer.h"

/* What is at once, for a netlink message, which a new process sends, and for an ioctl. */
#define ONCE_MS		400
#define IOCTL_MS	200
/* The driver does not wait for an opener that has the device open for longer than this. */
#define OLD_MS		1200
/* How long a process that looks at the device has it open, and how long a server takes. */
#define LOOK_MS		300
/* What a server has that never answers, and what comes on top of it. */
#define MUTE_MS		1600

/* The driver's second is no longer there. */
#define TOO_SLOW	(scaled(1) > 1)

/* Let time pass. What is tested is how long something takes: there is nothing to wait for. */
static void pass(int ms)
{
	long long left = ms;

	poll_while(NULL, 0, &left);
}

FIXTURE(held)
{
	struct nl_session ns;
	struct agent a;
};

FIXTURE_SETUP(held)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, agent_start(&self->a, self->ns.s.dev.path));
}

FIXTURE_TEARDOWN(held)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* Nothing of the session is left, not even for a moment: the device can be had at once. */
static void expect_free(struct __test_metadata *_metadata, struct nl_session *ns)
{
	EXPECT_FALSE(nbd_sys_exists(&ns->s.dev, "pid"));
	EXPECT_EQ(0, nbd_sys(&ns->s.dev, "size"));
	EXPECT_EQ(0, nl_connected(ns->s.dev.index));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the server sees no end");
	EXPECT_EQ(0, nl_connect(ns)) TH_LOG("it cannot be connected again: %s", ns->answer.text);
}

TEST_F(held, by_nobody)
{
	struct nl_session *ns = &self->ns;
	int i;

	ASSERT_EQ(0, nl_connect(ns));
	for (i = 0; i < 10; i++) {
		long long start;

		udev_settle();
		start = now_ms();
		ASSERT_EQ(0, nl_disconnect(ns->s.dev.index)) TH_LOG("round %d", i);
		EXPECT_GT(scaled(ONCE_MS), now_ms() - start) TH_LOG("round %d", i);
		expect_free(_metadata, ns);
	}
}

/* It keeps it open whatever happens, as a mount does. */
TEST_F(held, for_long)
{
	struct nl_session *ns = &self->ns;
	long long start;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, agent_open(&self->a));
	pass(OLD_MS);
	start = now_ms();
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_GT(scaled(ONCE_MS), now_ms() - start);
	EXPECT_FALSE(nbd_sys_exists(&ns->s.dev, "pid"));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the server sees no end");
	EXPECT_EQ(0, agent_close(&self->a));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
}

/* Since before the session: it is not for this one that it has come. */
TEST_F(held, since_before_the_session)
{
	struct nl_session *ns = &self->ns;
	long long start;

	/* The C driver has no such session. */
	ASSERT_EQ(0, agent_open(&self->a));
	pass(OLD_MS);
	ASSERT_EQ(0, nl_connect(ns));
	start = now_ms();
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_GT(scaled(ONCE_MS), now_ms() - start);
	EXPECT_EQ(0, agent_close(&self->a));
}

/* As udev does, which is told of the device and looks at it. */
TEST_F(held, for_a_moment)
{
	struct nl_session *ns = &self->ns;
	struct nl_answer *r;
	struct nl_call call;
	struct nl_msg m;

	if (TOO_SLOW)
		SKIP(return, "a second is too short for this on a slow kernel");
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, agent_open(&self->a));
	nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
	call = nl_start(&m);
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), BOUNDED)) TH_LOG("the server sees no end");
	pass(LOOK_MS);
	EXPECT_EQ(0, __atomic_load_n(&call.answer->done, __ATOMIC_SEQ_CST))
		TH_LOG("it has not waited");
	EXPECT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 0, 0, 0));
	r = nl_wait(call, ONCE_MS);
	EXPECT_EQ(0, r->ret);
	expect_free(_metadata, ns);
}

/* One comes, one is there: an opener that stays is no reason not to wait for one that leaves. */
TEST_F(held, for_long_and_for_a_moment)
{
	struct nl_session *ns = &self->ns;
	long long start;
	struct agent b;

	ASSERT_EQ(0, agent_start(&b, ns->s.dev.path));
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, agent_open(&self->a));
	pass(OLD_MS);
	ASSERT_EQ(0, agent_open(&b));
	start = now_ms();
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	/* Whether it waits for the second is not said, only that it is not for long. */
	EXPECT_GT(scaled(SOON + ONCE_MS), now_ms() - start);
	EXPECT_EQ(0, agent_close(&b));
	EXPECT_EQ(0, agent_close(&self->a));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
}

/*
 * The server itself disconnects: it cannot take the message, nor close its end, before the
 * call returns.
 */
FIXTURE(own)
{
	struct nbd_dev dev;
	struct agent a;
	int pair[2];
	uint32_t do_it;
};

FIXTURE_VARIANT(own)
{
	enum sock_kind kind;
	bool netlink;
};

FIXTURE_VARIANT_ADD(own, unix) { .kind = KIND_UNIX };
FIXTURE_VARIANT_ADD(own, tcp) { .kind = KIND_TCP };
FIXTURE_VARIANT_ADD(own, unix_by_netlink) { .kind = KIND_UNIX, .netlink = true };

FIXTURE_SETUP(own)
{
	const char *why = nbd_pick(&self->dev);

	if (why)
		SKIP(return, "%s", why);
	self->pair[1] = -1;
	ASSERT_EQ(0, make_pair(variant->kind, self->pair));
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_set_sock(&self->a, &self->pair[0]));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS));
	self->do_it = agent_do_it(&self->a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	/* A process that looks at the device, as udev does, would get no answer. */
	ASSERT_EQ(0, in_flight(&(struct peer_session){ .dev = self->dev }));
}

FIXTURE_TEARDOWN(own)
{
	close(self->pair[1]);
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

TEST_F(own, server_disconnects_itself)
{
	struct pollfd p = { .fd = self->pair[1], .events = POLLIN };
	struct nbd_request h = {};
	long long start;
	long ret;

	/* So that it is not for its own process that netlink waits. */
	if (variant->netlink)
		pass(OLD_MS);
	start = now_ms();
	if (variant->netlink)
		ret = nl_disconnect(self->dev.index);
	else
		ret = agent_ioctl(&self->a, NBD_DISCONNECT, 0);
	EXPECT_GT(scaled(variant->netlink ? ONCE_MS : IOCTL_MS), now_ms() - start);
	EXPECT_EQ(0, ret);
	ASSERT_EQ(1, poll_for(&p, 1, SOON));
	ASSERT_EQ(sizeof(h), (size_t)recv(p.fd, &h, sizeof(h), MSG_WAITALL));
	EXPECT_EQ((uint32_t)NBD_REQUEST_MAGIC, be32toh(h.magic));
	EXPECT_EQ((uint32_t)NBD_CMD_DISC, be32toh(h.type));
	/* Nothing else closes the server's end for it. */
	EXPECT_TRUE(saw_eof(p.fd, SOON));
	EXPECT_EQ(0, recv(p.fd, &h, sizeof(h), MSG_DONTWAIT));
	EXPECT_EQ(0, agent_wait(&self->a, self->do_it, SOON)) TH_LOG("DO_IT");
}

/* Requests in flight, and a server that is slow to answer them and does not close its end. */
FIXTURE(late)
{
	struct nl_session ns;
};

FIXTURE_VARIANT(late)
{
	bool netlink, tcp;
};

FIXTURE_VARIANT_ADD(late, ioctl) { };
FIXTURE_VARIANT_ADD(late, ioctl_tcp) { .tcp = true };
FIXTURE_VARIANT_ADD(late, netlink) { .netlink = true };

FIXTURE_SETUP(late)
{
	struct peer_session *s = &self->ns.s;
	const char *why = nl_init(&self->ns, 1, PEER_PATIENT);

	if (why)
		SKIP(return, "%s", why);
	s->tcp = variant->tcp;
	ASSERT_EQ(0, variant->netlink ? nl_connect(&self->ns) : peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	/* The holder is not waited for. */
	if (variant->netlink)
		pass(OLD_MS);
}

FIXTURE_TEARDOWN(late)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

static pid_t late_disconnect(struct nl_session *ns, bool netlink)
{
	pid_t pid;

	if (!netlink)
		return other_ioctl(&ns->s, NBD_DISCONNECT);
	pid = fork_quiet();
	if (!pid)
		_exit(!!nl_disconnect(ns->s.dev.index));
	return pid;
}

/* Every request of the holder's has ended like this, and later ones end, too. */
static void late_expect(struct __test_metadata *_metadata, struct peer_shared *sh, int error)
{
	int i;

	EXPECT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, HOLDER_END_MS))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_EQ(error, sh->io_errno[i]);
}

TEST_F(late, answers)
{
	struct peer_session *s = &self->ns.s;
	struct peer_shared *sh = s->sh;
	pid_t pid;

	if (TOO_SLOW)
		SKIP(return, "a second is too short for this on a slow kernel");
	pid = late_disconnect(&self->ns, variant->netlink);
	EXPECT_TRUE(WAIT_UNTIL(sh->disc[0], SOON)) TH_LOG("the server is not told");
	pass(LOOK_MS);
	EXPECT_FALSE(exited(pid)) TH_LOG("it has not waited");
	EXPECT_EQ(0, sh->io_done);
	sh->go[0] = 1;
	late_expect(_metadata, sh, 0);
	EXPECT_EQ(0, other_wait(pid, ONCE_MS)) TH_LOG("it waits for longer than for the answers");
	EXPECT_TRUE(WAIT_UNTIL(!nbd_sys_exists(&s->dev, "pid"), SOON));
	EXPECT_TRUE(WAIT_UNTIL(sh->late_done == HOLDER_THREADS, SOON));
	EXPECT_EQ(0, sh->late_bytes);
}

TEST_F(late, never_answers)
{
	struct peer_session *s = &self->ns.s;
	struct peer_shared *sh = s->sh;
	long long start = now_ms();
	pid_t pid = late_disconnect(&self->ns, variant->netlink);

	EXPECT_EQ(0, other_wait(pid, BOUNDED));
	EXPECT_GT(scaled(MUTE_MS), now_ms() - start);
	/* It has had its time. */
	EXPECT_LT(500, now_ms() - start);
	EXPECT_TRUE(sh->disc[0]);
	late_expect(_metadata, sh, EIO);
	EXPECT_TRUE(WAIT_UNTIL(!nbd_sys_exists(&s->dev, "pid"), SOON));
}

TEST_HARNESS_MAIN
