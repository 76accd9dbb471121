// SPDX-License-Identifier: GPL-2.0
/*
 * Netlink, ioctls and openers of one device: what each may do when, and what each is told.
 */
#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS	2000
/* What is at once, while something else takes a second. */
#define OTHERS_MS	300

FIXTURE(state)
{
	struct nl_session ns;
	struct session io;
	struct agent a;
	int pair[2];
};

FIXTURE_SETUP(state)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(state)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* A process that has the device open. */
static int holder(struct agent *a, struct nbd_dev *d)
{
	return agent_start(a, d->path) ?: agent_open(a);
}

TEST_F(state, connect_while_another_process_has_it_open)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(4096, agent_read(&self->a, 0, 4096));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, agent_close(&self->a));
}

TEST_F(state, connect_while_somebody_opens_and_closes_it)
{
	nl_connect_while_opened(_metadata, &self->ns, EBUSY);
}

TEST_F(state, connect_while_an_ioctl_setup_lives_is_ebusy)
{
	struct nl_session *ns = &self->ns;
	char owner[64];

	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(-EBUSY, nl_connect(ns));
	snprintf(owner, sizeof(owner), "process %d (\"helper_agent\")", self->io.client.pid);
	nl_expect_why(_metadata, &ns->answer, 0, owner);
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the refused socket is kept");
	/* The setup is as good as before. */
	ASSERT_EQ(0, session_run(&self->io));
	EXPECT_EQ(0, agent_ioctl(&self->io.client, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->io.client, self->io.do_it, BOUNDED));
	EXPECT_EQ(0, agent_close(&self->io.client));
	ASSERT_EQ(0, nl_connect(ns));
}

TEST_F(state, connect_after_the_owner_of_a_setup_died)
{
	struct nl_session *ns = &self->ns;

	/* The device stays open all the time. */
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_TRUE(agent_kill(&self->io.client));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_TRUE(saw_eof(self->io.toy.fd, SOON)) TH_LOG("the dead setup's socket is kept");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, agent_close(&self->a));
}

TEST_F(state, connect_while_an_ioctl_session_runs_is_ebusy)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_run(&self->io));
	EXPECT_EQ(-EBUSY, nl_connect(ns));
	nl_expect_why(_metadata, &ns->answer, 0, "a session is running");
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	EXPECT_EQ(1024, agent_read(&self->io.client, 0, 1024));
}

TEST_F(state, set_sock_on_a_connected_device_is_ebusy)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->pair));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->a, &self->pair[0]));
	EXPECT_TRUE(saw_eof(self->pair[1], SOON)) TH_LOG("the refused socket is kept");
	EXPECT_EQ(4096, agent_read(&self->a, 0, 4096));
	EXPECT_EQ(0, agent_close(&self->a));
}

/* The ioctls that configure have no say while netlink has the device. */
TEST_F(state, other_ioctls_on_a_connected_device_change_nothing)
{
	static const struct {
		unsigned long cmd, arg;
	} calls[] = {
		{ NBD_SET_SIZE, 1 << 20 }, { NBD_SET_BLKSIZE, 512 }, { NBD_SET_SIZE_BLOCKS, 1 },
		{ NBD_SET_FLAGS, NBD_FLAG_READ_ONLY }, { NBD_SET_TIMEOUT, 3 }, { NBD_DO_IT, 0 },
	};
	struct nl_session *ns = &self->ns;
	size_t i;
	long ret;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		ret = agent_ioctl(&self->a, calls[i].cmd, calls[i].arg);
		EXPECT_TRUE(ret == -EINVAL || ret == -EBUSY)
			TH_LOG("ioctl %#lx: %ld", calls[i].cmd, ret);
	}
	EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
	EXPECT_EQ(NL_BLKSIZE, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
	EXPECT_NE(3000, nbd_sys(&ns->s.dev, "queue/io_timeout"));
	EXPECT_EQ(0, nbd_sys(&ns->s.dev, "ro"));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, agent_close(&self->a));
}

FIXTURE(end)
{
	struct nl_session ns;
	struct agent a;
};

FIXTURE_VARIANT(end)
{
	unsigned long cmd;	/* 0: netlink */
};

FIXTURE_VARIANT_ADD(end, clear_sock) { .cmd = NBD_CLEAR_SOCK };
FIXTURE_VARIANT_ADD(end, disconnect) { .cmd = NBD_DISCONNECT };
FIXTURE_VARIANT_ADD(end, netlink) { .cmd = 0 };

FIXTURE_SETUP(end)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(end)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

static int end_it(struct peer_session *s, unsigned long cmd)
{
	if (cmd)
		return other_wait(other_ioctl(s, cmd), END_MS);
	return nl_disconnect(s->dev.index);
}

static void expect_ended(struct __test_metadata *_metadata, struct nl_session *ns)
{
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the server sees no end");
	EXPECT_TRUE(WAIT_UNTIL(!nbd_sys_exists(&ns->s.dev, "pid"), SOON));
	EXPECT_TRUE(WAIT_UNTIL(nl_connected(ns->s.dev.index) == 0, SOON));
}

TEST_F(end, idle_session)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, end_it(&ns->s, variant->cmd));
	expect_ended(_metadata, ns);
	ASSERT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

/* An opener of the old session never finds itself on the new one's data. */
TEST_F(end, while_it_is_open)
{
	struct nl_session *ns = &self->ns;
	int i;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	EXPECT_EQ(4096, agent_read(&self->a, 0, 4096));
	EXPECT_EQ(0, end_it(&ns->s, variant->cmd));
	expect_ended(_metadata, ns);
	/* Not 0, which would be the end of the disk: a copy of it would look complete. */
	EXPECT_EQ(-EIO, agent_read(&self->a, 8192, 4096)) TH_LOG("data after the end");
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(-EBUSY, nl_connect(ns));
		nl_expect_why(_metadata, &ns->answer, 0, "previous session ended, but 1 opener");
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON))
			TH_LOG("the refused socket is kept");
	}
	EXPECT_EQ(0, agent_close(&self->a));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

/* What is in flight ends, in bounded time, whatever the server does. */
static void with_io(struct __test_metadata *_metadata, struct nl_session *ns, enum peer_kind kind,
		    unsigned long cmd)
{
	struct peer_shared *sh = ns->s.sh;
	long long start;

	ns->s.kind = kind;
	ns->dead = 8;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	sh->go[0] = 1;
	if (kind == PEER_HALF_PAYLOAD)
		ASSERT_TRUE(WAIT_UNTIL(sh->acted[0], END_MS));
	start = now_ms();
	EXPECT_EQ(0, end_it(&ns->s, cmd));
	EXPECT_GT(scaled(END_MS), now_ms() - start);
	holder_expect(_metadata, &ns->s, EIO);
	EXPECT_TRUE(WAIT_UNTIL(!nbd_sys_exists(&ns->s.dev, "pid"), SOON));
	if (kind != PEER_DEAF)
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	sh->holder_stop = 1;
	EXPECT_TRUE(reap(ns->s.holder, END_MS));
	ASSERT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), END_MS));
	kill(ns->s.peer[0], SIGKILL);
	reap(ns->s.peer[0], END_MS);
	ns->s.kind = PEER_GOOD;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

TEST_F(end, with_a_mute_server)
{
	with_io(_metadata, &self->ns, PEER_MUTE, variant->cmd);
}

TEST_F(end, with_half_a_reply)
{
	with_io(_metadata, &self->ns, PEER_HALF_PAYLOAD, variant->cmd);
}

TEST_F(end, with_a_deaf_server)
{
	with_io(_metadata, &self->ns, PEER_DEAF, variant->cmd);
}

/* A process that asks another generic netlink family, again and again. */
struct asker {
	pid_t pid;
	struct {
		_Atomic int asked, longest, stop;
		_Atomic long long since;	/* of the question that is not answered yet, or 0 */
	} *sh;
};

static void ask(struct asker *a)
{
	struct nl_answer *answer = calloc(1, sizeof(*answer));
	struct genl g;
	struct nl_msg m;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!answer || genl_open(&g))
		_exit(1);
	while (!a->sh->stop) {
		int took;

		nl_begin(&m, CTRL_CMD_GETFAMILY, -1);
		nl_str(&m, CTRL_ATTR_FAMILY_NAME, "nlctrl");
		a->sh->since = now_ms();
		if (nl_exchange(g.fd, GENL_ID_CTRL, &m, answer))
			_exit(1);
		took = now_ms() - a->sh->since;
		a->sh->since = 0;
		if (took > a->sh->longest)
			a->sh->longest = took;
		a->sh->asked++;
		usleep(1000);
	}
	_exit(0);
}

static bool asker_start(struct asker *a)
{
	a->sh = mmap(NULL, sizeof(*a->sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (a->sh == MAP_FAILED)
		return false;
	a->pid = fork_quiet();
	if (!a->pid)
		ask(a);
	if (!WAIT_UNTIL(a->sh->asked, BOUNDED))
		return false;
	a->sh->asked = 0;
	a->sh->longest = 0;
	return true;
}

/* How long it has had to wait for an answer, one that has not come yet included, in ms. */
static int asker_longest(struct asker *a)
{
	long long since = a->sh->since;
	int waits = since ? now_ms() - since : 0;

	return waits > a->sh->longest ? waits : a->sh->longest;
}

/* Do something slow, and see that nothing else has to wait for it. */
static void others_do_not_wait(struct __test_metadata *_metadata, struct nl_msg *m, int index,
			       int error)
{
	struct asker a = {};
	struct nl_call call;
	struct nl_answer *r;
	long long start;

	ASSERT_TRUE(asker_start(&a));
	start = now_ms();
	call = nl_start(m);
	/* While that is on its way. */
	EXPECT_LE(0, nl_connected(index));
	EXPECT_GT(scaled(OTHERS_MS), now_ms() - start) TH_LOG("STATUS of another device");
	r = nl_wait(call, END_MS);
	EXPECT_EQ(error, r->ret);
	/* Or nothing is shown. */
	EXPECT_LT(OTHERS_MS, now_ms() - start);
	EXPECT_GT(scaled(OTHERS_MS), asker_longest(&a)) TH_LOG("another family");
	EXPECT_LT(0, a.sh->asked);
	a.sh->stop = 1;
}

/* Other families, and STATUS of other devices, do not wait for a slow end. */
TEST_F(state, others_do_not_wait_for_a_slow_end)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	ns->s.kind = PEER_DEAF;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
	others_do_not_wait(_metadata, &m, NBD_DEVICES - 1, 0);
}

/* Nor for another block size, which waits for requests that are not answered. */
TEST_F(state, others_do_not_wait_for_a_slow_change)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	ns->s.kind = PEER_HELD;
	/* So that a driver that waits for the server comes back one day. */
	ns->s.timeout = scaled(4);
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 512);
	others_do_not_wait(_metadata, &m, NBD_DEVICES - 1, -EBUSY);
	ns->s.sh->go[0] = 1;
	holder_expect(_metadata, &ns->s, 0);
}

/* Netlink ends what ioctls have started. */
TEST_F(state, disconnect_ends_an_ioctl_session)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_run(&self->io));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(0, agent_wait(&self->io.client, self->io.do_it, END_MS)) TH_LOG("DO_IT");
	EXPECT_TRUE(saw_eof(self->io.toy.fd, SOON));
	EXPECT_TRUE(WAIT_UNTIL(nl_connected(ns->s.dev.index) == 0, SOON));
	EXPECT_EQ(0, agent_close(&self->io.client));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
	ASSERT_EQ(0, nl_connect(ns));
}

TEST_F(state, disconnect_ends_an_ioctl_session_with_a_mute_server)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_MUTE));
	ASSERT_EQ(0, session_run(&self->io));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(0, agent_wait(&self->io.client, self->io.do_it, END_MS)) TH_LOG("DO_IT");
	EXPECT_TRUE(saw_eof(self->io.toy.fd, SOON));
}

/* No socket survives its session, and a setup by ioctls works after one by netlink. */
TEST_F(state, netlink_and_ioctls_in_turn)
{
	struct nl_session *ns = &self->ns;
	int i;

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, nl_connect(ns)) TH_LOG("round %d", i);
		ASSERT_EQ(0, nl_disconnect(ns->s.dev.index));
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
		ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
		ASSERT_EQ(0, session_run(&self->io));
		EXPECT_EQ(1024, agent_read(&self->io.client, 0, 1024));
		EXPECT_EQ(0, agent_ioctl(&self->io.client, NBD_DISCONNECT, 0));
		EXPECT_EQ(0, agent_wait(&self->io.client, self->io.do_it, BOUNDED));
		EXPECT_TRUE(saw_eof(self->io.toy.fd, SOON));
		ASSERT_EQ(0, agent_close(&self->io.client));
		ASSERT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
	}
}

TEST_HARNESS_MAIN
