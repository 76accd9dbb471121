// SPDX-License-Identifier: GPL-2.0
/*
 * What users see of a session without debugfs: STATUS with its connections, files in sysfs,
 * notifications and uevents.
 */
#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

FIXTURE(seen)
{
	struct nl_session ns;
	struct session io;
	struct genl events;
};

FIXTURE_SETUP(seen)
{
	const char *why = nbd_is_rust() ? nl_init(&self->ns, 1, PEER_GOOD) :
			  "the C driver does not show its sessions";

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, genl_listen(&self->events));
}

FIXTURE_TEARDOWN(seen)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* What a file of the device in sysfs has, nothing if it is not there. */
static const char *file(struct nbd_dev *d, const char *name)
{
	return nbd_sys_text(d, name) ?: "";
}

TEST_F(seen, status_has_the_session)
{
	struct nl_session *ns = &self->ns;
	int index = ns->s.dev.index;
	struct nl_answer *r;

	ns->s.npeers = 2;
	ns->s.timeout = 7;
	ns->dead = 9;
	ns->cflags = NBD_CFLAG_DISCONNECT_ON_CLOSE;
	ns->backend = "some data";
	ASSERT_EQ(0, nl_connect(ns));
	r = nl_status(index, 0);
	ASSERT_EQ(0, r->ret);
	ASSERT_EQ(1, r->ndevs);
	EXPECT_EQ(index, r->dev[0].index);
	EXPECT_EQ(1, r->dev[0].connected);
	EXPECT_EQ((long long)PEER_SIZE, r->param[NBD_ATTR_SIZE_BYTES]);
	EXPECT_EQ(NL_BLKSIZE, r->param[NBD_ATTR_BLOCK_SIZE_BYTES]);
	EXPECT_EQ(7, r->param[NBD_ATTR_TIMEOUT]);
	EXPECT_EQ(9, r->param[NBD_ATTR_DEAD_CONN_TIMEOUT]);
	EXPECT_EQ((long long)(NL_FLAGS | NBD_FLAG_CAN_MULTI_CONN), r->param[NBD_ATTR_SERVER_FLAGS]);
	EXPECT_EQ(NBD_CFLAG_DISCONNECT_ON_CLOSE, r->param[NBD_ATTR_CLIENT_FLAGS]);
	EXPECT_STREQ("some data", r->backend);
	ASSERT_TRUE(r->has_session);
	EXPECT_EQ(NL_LIVE, r->session[NL_SESSION_STATE]);
	EXPECT_EQ(NL_BY_NETLINK, r->session[NL_SESSION_ORIGIN]);
	EXPECT_EQ(ns->answer.tid, r->session[NL_SESSION_PID]);
	EXPECT_LE(0, r->session[NL_SESSION_AGE_MS]);
	EXPECT_GT(BOUNDED, r->session[NL_SESSION_AGE_MS]);
	EXPECT_EQ(2, r->session[NL_SESSION_CONNECTIONS]);
	ASSERT_EQ(2, r->nconns);
	EXPECT_EQ(1, r->conn[1].value[NL_CONN_INDEX]);
	EXPECT_LT(r->conn[0].value[NL_CONN_GENERATION], r->conn[1].value[NL_CONN_GENERATION]);
	EXPECT_EQ(NL_OPEN, r->conn[1].value[NL_CONN_STATE]);
	EXPECT_STREQ("unnamed", r->conn[1].peer);
	EXPECT_STREQ("", r->conn[1].error);
	/* The other end of the pair is the server's. */
	r = nl_status(index, 1);
	ASSERT_EQ(1, r->nconns);
	EXPECT_EQ(1, r->conn[0].value[NL_CONN_INDEX]);
	EXPECT_EQ(2, r->session[NL_SESSION_CONNECTIONS]);
	EXPECT_EQ(0, nl_status(index, 2)->nconns);
}

TEST_F(seen, status_counts)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct nl_answer *r;
	struct nl_conn *c;

	s->kind = PEER_HELD;
	s->tcp = true;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(s));
	r = nl_status(s->dev.index, 0);
	ASSERT_EQ(1, r->nconns);
	c = &r->conn[0];
	EXPECT_EQ(s->sh->held[0], c->value[NL_CONN_IN_FLIGHT]);
	EXPECT_EQ(-1, c->value[NL_CONN_DRAINING]);
	EXPECT_EQ(s->sh->requests[0], c->value[NL_CONN_REQUESTS]);
	EXPECT_LT((long long)HOLDER_CHUNK, c->value[NL_CONN_SENT_BYTES]);
	EXPECT_EQ(0, c->value[NL_CONN_REPLAYED]);
	EXPECT_EQ(0, strncmp(c->local, "127.0.0.1:", 10)) TH_LOG("local address %s", c->local);
	EXPECT_EQ(0, strncmp(c->peer, "127.0.0.1:", 10)) TH_LOG("address %s", c->peer);
	EXPECT_STRNE(c->local, c->peer);
	EXPECT_LT(0, c->value[NL_CONN_ADDED_BY_PID]);
	EXPECT_STREQ("netlink_session", c->comm);
	s->sh->go[0] = 1;
	holder_expect(_metadata, s, 0);
	r = nl_status(s->dev.index, 0);
	EXPECT_LT((long long)HOLDER_CHUNK, r->conn[0].value[NL_CONN_RECEIVED_BYTES]);
	EXPECT_TRUE(WAIT_UNTIL(!nl_conn(s->dev.index, 0, NL_CONN_IN_FLIGHT), SOON));
}

/* Without CAP_SYS_ADMIN, addresses and processes are not shown, and everything else is. */
TEST_F(seen, status_for_users)
{
	struct nl_session *ns = &self->ns;
	struct nl_answer *r;
	struct nl_msg m;

	ns->s.tcp = true;
	ns->backend = "secret of none";
	ASSERT_EQ(0, nl_connect(ns));
	nl_begin(&m, NBD_CMD_STATUS, ns->s.dev.index);
	nl_u32(&m, NBD_ATTR_FIRST_CONNECTION, 0);
	m.before = drop_caps;
	r = nl_do(&m);
	ASSERT_EQ(0, r->ret);
	ASSERT_EQ(1, r->nconns);
	EXPECT_EQ(NL_LIVE, r->session[NL_SESSION_STATE]);
	EXPECT_EQ(NL_OPEN, r->conn[0].value[NL_CONN_STATE]);
	EXPECT_LE(0, r->conn[0].value[NL_CONN_REQUESTS]);
	EXPECT_STREQ("secret of none", r->backend);
	EXPECT_EQ(-1, r->session[NL_SESSION_PID]);
	EXPECT_EQ(-1, r->conn[0].value[NL_CONN_ADDED_BY_PID]);
	EXPECT_STREQ("", r->conn[0].comm);
	EXPECT_STREQ("", r->conn[0].local);
	EXPECT_STREQ("", r->conn[0].peer);
}

/* A program that does not ask for more gets what it got. */
TEST_F(seen, old_requests_have_the_old_answer)
{
	struct nl_session *ns = &self->ns;
	size_t item = NLA_HDRLEN + NLA_HDRLEN + 4 + NLA_ALIGN(NLA_HDRLEN + 1);
	struct nl_answer *r;

	ASSERT_EQ(0, nl_connect(ns));
	r = nl_simple(NBD_CMD_STATUS, ns->s.dev.index);
	ASSERT_EQ(0, r->ret);
	EXPECT_FALSE(r->has_session);
	EXPECT_EQ(NLMSG_HDRLEN + GENL_HDRLEN + NLA_HDRLEN + item, r->bytes);
	EXPECT_EQ(1, r->ndevs);
}

TEST_F(seen, status_without_a_session)
{
	struct nl_session *ns = &self->ns;
	struct nl_answer *r = nl_status(ns->s.dev.index, 0);
	struct nl_msg m;

	EXPECT_EQ(0, r->ret);
	EXPECT_EQ(1, r->ndevs);
	EXPECT_EQ(0, r->dev[0].connected);
	EXPECT_FALSE(r->has_session);
	/* There is no such device. */
	r = nl_status(100000, 0);
	EXPECT_EQ(0, r->ret);
	EXPECT_EQ(0, r->ndevs);
	/* One device only. */
	nl_begin(&m, NBD_CMD_STATUS, -1);
	nl_u32(&m, NBD_ATTR_FIRST_CONNECTION, 0);
	r = nl_do(&m);
	EXPECT_EQ(-EINVAL, r->ret);
	nl_expect_why(_metadata, r, nl_offset(&m, NBD_ATTR_FIRST_CONNECTION), "give its index");
}

TEST_F(seen, status_of_an_ioctl_session)
{
	struct nl_session *ns = &self->ns;
	struct nl_answer *r;

	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_FALSE(nl_status(ns->s.dev.index, 0)->has_session);
	ASSERT_EQ(0, session_run(&self->io));
	r = nl_status(ns->s.dev.index, 0);
	ASSERT_TRUE(r->has_session);
	EXPECT_EQ(NL_BY_IOCTL, r->session[NL_SESSION_ORIGIN]);
	EXPECT_EQ(NL_LIVE, r->session[NL_SESSION_STATE]);
	EXPECT_EQ(nbd_sys(&ns->s.dev, "pid"), r->session[NL_SESSION_PID]);
	EXPECT_STREQ("helper_agent", r->conn[0].comm);
	EXPECT_STREQ("live\n", file(&ns->s.dev, "state"));
	EXPECT_STREQ("1 1\n", file(&ns->s.dev, "connections"));
	EXPECT_EQ(0, agent_ioctl(&self->io.client, NBD_DISCONNECT, 0));
	EXPECT_TRUE(nl_event(&self->events, ns->s.dev.index, NBD_CMD_SESSION_END,
			     NBD_ATTR_END_REASON, NL_REQUESTED));
}

/* A session of many connections needs several replies, none too large for anybody's buffer. */
TEST_F(seen, status_of_many_connections)
{
	enum { MANY = 60 };
	struct nl_session *ns = &self->ns;
	int ours[MANY], theirs[MANY], next = 0, replies = 0, i, j;
	struct nl_answer *r;
	struct nl_msg m;

	for (i = 0; i < MANY; i++) {
		int pair[2];

		ASSERT_EQ(0, make_pair(KIND_TCP, pair));
		ours[i] = pair[0];
		theirs[i] = pair[1];
	}
	nl_begin_connect(&m, ns, ns->s.dev.index, ours, MANY);
	ASSERT_EQ(0, nl_do(&m)->ret);
	for (i = 0; i < MANY; i++)
		close(ours[i]);
	while (next < MANY) {
		r = nl_status(ns->s.dev.index, next);
		ASSERT_EQ(0, r->ret);
		EXPECT_GE(8192UL, r->bytes);
		EXPECT_EQ(MANY, r->session[NL_SESSION_CONNECTIONS]);
		ASSERT_LT(10, r->nconns);
		for (j = 0; j < r->nconns; j++)
			EXPECT_EQ(next + j, r->conn[j].value[NL_CONN_INDEX]);
		next += r->nconns;
		replies++;
	}
	EXPECT_EQ(MANY, next);
	EXPECT_LT(1, replies);
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	for (i = 0; i < MANY; i++)
		close(theirs[i]);
}

TEST_F(seen, loss_and_return)
{
	struct nl_session *ns = &self->ns;
	struct nbd_dev *d = &ns->s.dev;
	struct pollfd p = { .events = POLLPRI };
	int fd = uevents(), i;
	struct nl_answer *r;
	char buf[64];

	ASSERT_LE(0, fd);
	ns->s.npeers = 2;
	ns->dead = 20;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_STREQ("live\n", file(d, "state"));
	EXPECT_STREQ("2 2\n", file(d, "connections"));
	snprintf(buf, sizeof(buf), "/sys/block/nbd%d/connections", d->index);
	p.fd = open(buf, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, p.fd);
	ASSERT_LT(0, read(p.fd, buf, sizeof(buf)));

	ASSERT_TRUE(nl_kill_peer(&ns->s, 1));
	EXPECT_TRUE(nl_event(&self->events, d->index, NBD_CMD_LINK_DEAD, 0, -1));
	EXPECT_TRUE(uevent_with(fd, "change", d, "NBD_EVENT=link-dead"));
	EXPECT_EQ(1, poll_for(&p, 1, SOON)) TH_LOG("connections cannot be polled");
	EXPECT_STREQ("live\n", file(d, "state"));
	EXPECT_STREQ("1 2\n", file(d, "connections"));
	r = nl_status(d->index, 0);
	EXPECT_EQ(NL_OPEN, r->conn[0].value[NL_CONN_STATE]);
	EXPECT_EQ(NL_VACANT, r->conn[1].value[NL_CONN_STATE]);
	EXPECT_EQ(-1, r->conn[1].value[NL_CONN_GENERATION]);
	EXPECT_NE(NULL, strstr(r->conn[1].error, "closed by the server"));
	EXPECT_LE(0, r->conn[1].value[NL_CONN_AGE_MS]);
	EXPECT_GT(BOUNDED, r->conn[1].value[NL_CONN_AGE_MS]);
	EXPECT_STREQ("", r->conn[1].peer);

	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	EXPECT_TRUE(nl_event(&self->events, d->index, NBD_CMD_LINK_DEAD, 0, -1));
	EXPECT_TRUE(WAIT_UNTIL(!strcmp(file(d, "state"), "waiting\n"), SOON));
	EXPECT_STREQ("0 2\n", file(d, "connections"));
	EXPECT_EQ(NL_WAITING, nl_status(d->index, 0)->session[NL_SESSION_STATE]);

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, nl_reconnect(ns, i));
		EXPECT_TRUE(nl_event(&self->events, d->index, NBD_CMD_LINK_UP,
				     NBD_ATTR_CONNECTION_INDEX, i));
		EXPECT_TRUE(uevent_with(fd, "change", d, "NBD_EVENT=link-up"));
	}
	EXPECT_STREQ("2 2\n", file(d, "connections"));
	r = nl_status(d->index, 0);
	EXPECT_EQ(NL_LIVE, r->session[NL_SESSION_STATE]);
	EXPECT_EQ(NL_OPEN, r->conn[1].value[NL_CONN_STATE]);
	EXPECT_LT(2, r->conn[1].value[NL_CONN_GENERATION]);
	close(p.fd);
	close(fd);

	EXPECT_EQ(0, nl_disconnect(d->index));
	EXPECT_TRUE(nl_event(&self->events, d->index, NBD_CMD_SESSION_END, NBD_ATTR_END_REASON,
			     NL_REQUESTED));
	EXPECT_FALSE(nbd_sys_exists(d, "state"));
	EXPECT_FALSE(nbd_sys_exists(d, "connections"));
}

TEST_F(seen, dead_is_shown)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	EXPECT_TRUE(WAIT_UNTIL(!strcmp(file(&ns->s.dev, "state"), "dead\n"), SOON));
	EXPECT_EQ(NL_DEAD, nl_status(ns->s.dev.index, 0)->session[NL_SESSION_STATE]);
}

TEST_HARNESS_MAIN
