// SPDX-License-Identifier: GPL-2.0
/*
 * Connections that are replaced, added and removed by their number while the session runs: no
 * request fails, and none is sent twice while the server that has it may answer.
 */
#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS	2000

FIXTURE(place)
{
	struct nl_session ns;
	struct session io;
	struct genl events;
};

FIXTURE_SETUP(place)
{
	const char *why = nbd_is_rust() ? nl_init(&self->ns, 1, PEER_GOOD) :
			  "the C driver knows no connections by their number";

	if (why)
		SKIP(return, "%s", why);
	self->ns.dead = 20;
	ASSERT_EQ(0, genl_listen(&self->events));
}

FIXTURE_TEARDOWN(place)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* RECONFIGURE with a socket for one connection, or -1 to remove it. */
static int change(struct nl_session *ns, int index, int fd)
{
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_conns(&m, &index, &fd, 1);
	return nl_finish(ns, &m);
}

/* Give a connection a new server of this kind, which is number n here. */
static int put(struct nl_session *ns, int index, int n, enum peer_kind kind)
{
	int ret = nl_peer(&ns->s, n);

	ns->s.sh->kind[n] = kind;
	return ret ?: change(ns, index, ns->s.fd[n]);
}

static long long conn(struct nl_session *ns, int index, int attr)
{
	return nl_conn(ns->s.dev.index, index, attr);
}

static int connections(struct nl_session *ns)
{
	return nl_status(ns->s.dev.index, 0)->session[NL_SESSION_CONNECTIONS];
}

/* The server was told that no requests follow, and then saw the end. */
static void expect_left(struct __test_metadata *_metadata, struct peer_session *s, int n)
{
	ASSERT_TRUE(WAIT_UNTIL(s->sh->eof[n], SOON))
		TH_LOG("server %d: %d NBD_CMD_DISC, but not the end", n, s->sh->disc[n]);
	EXPECT_EQ(1, s->sh->disc[n]);
}

/* Replaced */

TEST_F(place, idle_is_replaced)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	long long before;
	int i;

	ASSERT_EQ(0, nl_connect(ns));
	for (i = 1; i < 4; i++) {
		before = conn(ns, 0, NL_CONN_GENERATION);
		ASSERT_EQ(0, put(ns, 0, i, PEER_GOOD));
		expect_left(_metadata, s, i - 1);
		EXPECT_TRUE(nl_event(&self->events, s->dev.index, NBD_CMD_LINK_UP,
				     NBD_ATTR_CONNECTION_INDEX, 0));
		EXPECT_LT(before, conn(ns, 0, NL_CONN_GENERATION));
		EXPECT_EQ(NL_OPEN, conn(ns, 0, NL_CONN_STATE));
		EXPECT_TRUE(WAIT_UNTIL(conn(ns, 0, NL_CONN_DRAINING) == -1, SOON));
		EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
		EXPECT_LT(0, s->sh->requests[i]);
	}
	EXPECT_EQ(1, connections(ns));
	EXPECT_EQ(0, conn(ns, 0, NL_CONN_REPLAYED));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
}

/* What is in flight is answered by the server that has it, which may take its time. */
TEST_F(place, in_flight_is_answered)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	long long start;
	int held, before;

	s->kind = PEER_HELD;
	nl_with_io(_metadata, ns);
	held = s->sh->held[0];
	before = s->sh->requests[0];
	ASSERT_LT(0, held);
	ASSERT_EQ(0, put(ns, 0, 1, PEER_GOOD));
	EXPECT_EQ(0, other_wait(other_run(s, read_block), BOUNDED)) TH_LOG("a new request waits");
	/* Longer than a server has that shuts down. */
	start = now_ms();
	EXPECT_TRUE(WAIT_UNTIL(now_ms() - start > 1500, 5000));
	EXPECT_EQ(held, conn(ns, 0, NL_CONN_DRAINING));
	EXPECT_EQ(held, conn(ns, 0, NL_CONN_IN_FLIGHT));
	EXPECT_EQ(0, s->sh->disc[0]);
	EXPECT_EQ(0, conn(ns, 0, NL_CONN_REPLAYED)) TH_LOG("a request was sent twice");
	s->sh->go[0] = 1;
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, conn(ns, 0, NL_CONN_REPLAYED)) TH_LOG("a request was sent twice");
	expect_left(_metadata, s, 0);
	/* There may be one more, NBD_CMD_DISC. */
	EXPECT_GE(before + 1, s->sh->requests[0]) TH_LOG("it gets new requests");
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
}

/* The server that was replaced ends before it has answered. */
TEST_F(place, replaced_server_dies)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int held;

	s->kind = PEER_HELD;
	nl_with_io(_metadata, ns);
	held = s->sh->held[0];
	ASSERT_EQ(0, put(ns, 0, 1, PEER_GOOD));
	ASSERT_TRUE(nl_kill_peer(s, 0));
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(held, conn(ns, 0, NL_CONN_REPLAYED));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
	EXPECT_EQ(NL_OPEN, conn(ns, 0, NL_CONN_STATE));
}

/* It stands still: until the timeout it may answer, then what it has goes to the new one. */
TEST_F(place, replaced_server_stands_still)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	long long start = now_ms();
	int held;

	s->kind = PEER_MUTE;
	s->timeout = 3;
	nl_with_io(_metadata, ns);
	held = in_flight(s);
	ASSERT_EQ(0, put(ns, 0, 1, PEER_GOOD));
	EXPECT_TRUE(WAIT_UNTIL(now_ms() - start > 1500, 5000));
	EXPECT_EQ(0, conn(ns, 0, NL_CONN_REPLAYED)) TH_LOG("sent twice before the timeout");
	ASSERT_TRUE(WAIT_UNTIL(s->sh->io_done == HOLDER_THREADS, 15000));
	EXPECT_LE(2900, now_ms() - start);
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(held, conn(ns, 0, NL_CONN_REPLAYED));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
}

/* What a server that was replaced cannot do, the new one does. */
TEST_F(place, replaced_server_has_an_error)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	s->kind = PEER_HELD;
	nl_with_io(_metadata, ns);
	ASSERT_EQ(0, put(ns, 0, 1, PEER_HELD));
	s->sh->error = EIO;
	s->sh->go[0] = 1;
	expect_left(_metadata, s, 0);
	s->sh->error = 0;
	s->sh->go[1] = 1;
	holder_expect(_metadata, s, 0);
}

TEST_F(place, replaced_twice_with_requests_in_flight)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	pid_t other;
	int held;

	s->kind = PEER_HELD;
	nl_with_io(_metadata, ns);
	held = s->sh->held[0];
	ASSERT_EQ(0, put(ns, 0, 1, PEER_HELD));
	other = other_run(s, read_block);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->held[1], END_MS));
	held += s->sh->held[1];
	ASSERT_EQ(0, put(ns, 0, 2, PEER_GOOD));
	EXPECT_EQ(held, conn(ns, 0, NL_CONN_DRAINING));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	s->sh->go[1] = 1;
	EXPECT_EQ(0, other_wait(other, BOUNDED));
	expect_left(_metadata, s, 1);
	s->sh->go[0] = 1;
	holder_expect(_metadata, s, 0);
	expect_left(_metadata, s, 0);
	EXPECT_EQ(0, conn(ns, 0, NL_CONN_REPLAYED));
}

/* Two programs replace the connection at the same time: the one or the other is used then. */
TEST_F(place, replaced_by_two)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int rounds = 30, i, j, zero = 0;

	s->sh->loop = rounds;
	s->npeers = 2;
	s->flags = NBD_FLAG_CAN_MULTI_CONN;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(s));
	for (i = 0; i < 10; i++) {
		struct nl_call call[2];
		struct nl_msg m;

		for (j = 0; j < 2; j++)
			ASSERT_EQ(0, nl_peer(s, 2 + j));
		for (j = 0; j < 2; j++) {
			nl_begin(&m, NBD_CMD_RECONFIGURE, s->dev.index);
			nl_conns(&m, &zero, &s->fd[2 + j], 1);
			call[j] = nl_start(&m);
		}
		for (j = 0; j < 2; j++)
			EXPECT_EQ(0, nl_wait(call[j], BOUNDED)->ret);
		nl_close_ends(s);
		/* One of them was replaced by the other. */
		ASSERT_TRUE(WAIT_UNTIL(s->sh->eof[2] || s->sh->eof[3], SOON));
		EXPECT_EQ(NL_OPEN, conn(ns, 0, NL_CONN_STATE));
		/* Leave room for the next two. */
		expect_left(_metadata, s, 0);
		EXPECT_TRUE(reap(s->peer[0], BOUNDED));
		ASSERT_EQ(0, put(ns, 0, 0, PEER_GOOD));
		ASSERT_TRUE(WAIT_UNTIL(s->sh->eof[2] && s->sh->eof[3], SOON));
		EXPECT_TRUE(reap(s->peer[2], BOUNDED));
		EXPECT_TRUE(reap(s->peer[3], BOUNDED));
	}
	loops_expect(_metadata, s, rounds, 0, 15000);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
}

static int opened;

static int read_opened(struct peer_session *s)
{
	return nl_read_other_by(s, opened);
}

/* The number of sockets that may wait for their servers is limited. */
TEST_F(place, too_many_wait)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	pid_t other[5];
	int pair[6][2], i;
	char request[28];

	for (i = 0; i < 6; i++)
		ASSERT_EQ(0, make_pair(KIND_UNIX, pair[i]));
	ASSERT_EQ(0, nl_connect(ns));
	/* An open would wait for others that have it open, and read. */
	opened = open(s->dev.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	ASSERT_LE(0, opened);
	for (i = 0; i < 5; i++) {
		ASSERT_EQ(0, change(ns, 0, pair[i][0]));
		close(pair[i][0]);
		if (!i)
			expect_left(_metadata, s, 0);
		/* udev may read, too. */
		other[i] = other_run(s, read_opened);
		ASSERT_TRUE(read_full(pair[i][1], request, sizeof(request)));
	}
	EXPECT_LE(4, conn(ns, 0, NL_CONN_DRAINING));
	EXPECT_EQ(-EBUSY, change(ns, 0, pair[5][0]));
	nl_expect_why(_metadata, &ns->answer, 0, "requests wait on 4 earlier sockets");
	close(pair[5][0]);
	EXPECT_TRUE(saw_eof(pair[5][1], SOON));
	/* One ends, and there is room again. The readers have the other ends open, too. */
	shutdown(pair[2][1], SHUT_RDWR);
	ASSERT_TRUE(WAIT_UNTIL(conn(ns, 0, NL_CONN_REPLAYED), SOON));
	EXPECT_TRUE(reap(s->peer[0], BOUNDED));
	ASSERT_TRUE(WAIT_UNTIL(!put(ns, 0, 0, PEER_GOOD), SOON));
	for (i = 0; i < 5; i++)
		if (i != 2)
			shutdown(pair[i][1], SHUT_RDWR);
	for (i = 0; i < 5; i++)
		EXPECT_EQ(0, other_wait(other[i], BOUNDED)) TH_LOG("reader %d", i);
	for (i = 0; i < 5; i++)
		close(pair[i][1]);
	EXPECT_LE(6, conn(ns, 0, NL_CONN_REPLAYED));
	close(opened);
}

TEST_F(place, while_requests_wait_for_a_connection)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	s->kind = PEER_HELD;
	nl_die_with_io(_metadata, ns);
	EXPECT_EQ(1, nl_link_dead(&self->events, s->dev.index, 300));
	EXPECT_EQ(NL_VACANT, conn(ns, 0, NL_CONN_STATE));
	ASSERT_EQ(0, put(ns, 0, 1, PEER_GOOD));
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(NL_LIVE, nl_status(s->dev.index, 0)->session[NL_SESSION_STATE]);
}

/* The server shuts down by itself while it is replaced, or has just begun to. */
TEST_F(place, while_the_server_shuts_down)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	s->kind = PEER_LEAVES;
	nl_with_io(_metadata, ns);
	s->sh->go[0] = 1;
	ASSERT_TRUE(WAIT_UNTIL(s->sh->refused[0], END_MS));
	ASSERT_EQ(0, put(ns, 0, 1, PEER_GOOD));
	s->sh->go[0] = 2;
	holder_expect(_metadata, s, 0);
	expect_left(_metadata, s, 0);
}

TEST_F(place, before_the_server_shuts_down)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;

	s->kind = PEER_LEAVES;
	nl_with_io(_metadata, ns);
	ASSERT_EQ(0, put(ns, 0, 1, PEER_GOOD));
	s->sh->go[0] = 1;
	ASSERT_TRUE(WAIT_UNTIL(s->sh->refused[0], END_MS));
	s->sh->go[0] = 2;
	holder_expect(_metadata, s, 0);
	expect_left(_metadata, s, 0);
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
}

/* The size and the socket change in one message, under load. */
TEST_F(place, with_another_size)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int rounds = 20, i, zero = 0;

	s->sh->loop = rounds;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(s));
	for (i = 1; i <= 6; i++) {
		struct nl_msg m;

		ASSERT_EQ(0, nl_peer(s, i % 2));
		nl_begin(&m, NBD_CMD_RECONFIGURE, s->dev.index);
		nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE << i % 2);
		nl_conns(&m, &zero, &s->fd[i % 2], 1);
		ASSERT_EQ(0, nl_finish(ns, &m));
		EXPECT_EQ(NL_SECTORS << i % 2, nbd_sys(&s->dev, "size"));
		expect_left(_metadata, s, (i + 1) % 2);
		EXPECT_TRUE(reap(s->peer[(i + 1) % 2], BOUNDED));
	}
	loops_expect(_metadata, s, rounds, 0, 15000);
}

/* A disconnect while a server that was replaced still has requests. */
TEST_F(place, disconnect_while_one_drains)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct nl_call call;
	struct nl_msg m;

	s->kind = PEER_HELD;
	nl_with_io(_metadata, ns);
	ASSERT_EQ(0, put(ns, 0, 1, PEER_GOOD));
	nl_begin(&m, NBD_CMD_DISCONNECT, s->dev.index);
	call = nl_start(&m);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->disc[1], SOON));
	/* It waits for what can still be answered. */
	EXPECT_EQ(0, s->sh->io_done);
	s->sh->go[0] = 1;
	EXPECT_EQ(0, nl_wait(call, BOUNDED)->ret);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->io_done == HOLDER_THREADS, HOLDER_END_MS));
	EXPECT_EQ(0, s->sh->io_errno[0]);
	EXPECT_EQ(0, s->sh->io_errno[1]);
}

/* Added and removed */

static void connect_multi(struct __test_metadata *_metadata, struct nl_session *ns, int n,
			  enum peer_kind kind)
{
	ns->s.npeers = n;
	ns->s.kind = kind;
	ns->s.flags = NBD_FLAG_CAN_MULTI_CONN;
	ASSERT_EQ(0, nl_connect(ns));
}

TEST_F(place, added_is_used)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int rounds = 30, i;

	s->sh->loop = rounds;
	connect_multi(_metadata, ns, 1, PEER_SHUFFLE);
	ASSERT_EQ(0, holder_begin(s));
	for (i = 1; i < 4; i++) {
		ASSERT_EQ(0, put(ns, i, i, PEER_SHUFFLE));
		EXPECT_TRUE(nl_event(&self->events, s->dev.index, NBD_CMD_LINK_UP,
				     NBD_ATTR_CONNECTION_INDEX, i));
		EXPECT_EQ(i + 1, connections(ns));
		EXPECT_EQ(NL_OPEN, conn(ns, i, NL_CONN_STATE));
	}
	loops_expect(_metadata, s, rounds, 4, 15000);
}

TEST_F(place, removed_is_drained)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	struct nl_answer *r;
	int before, i;

	connect_multi(_metadata, ns, 3, PEER_HELD);
	ASSERT_EQ(0, holder_start(s));
	before = s->sh->requests[1];
	ASSERT_EQ(0, change(ns, 1, -1));
	r = nl_status(s->dev.index, 0);
	EXPECT_EQ(2, r->session[NL_SESSION_CONNECTIONS]);
	ASSERT_EQ(2, r->nconns);
	EXPECT_EQ(0, r->conn[0].value[NL_CONN_INDEX]);
	EXPECT_EQ(2, r->conn[1].value[NL_CONN_INDEX]) TH_LOG("the others keep their numbers");
	for (i = 0; i < 3; i++)
		s->sh->go[i] = 1;
	holder_expect(_metadata, s, 0);
	expect_left(_metadata, s, 1);
	EXPECT_GE(before + 1, s->sh->requests[1]) TH_LOG("it gets new requests");
	EXPECT_EQ(0, conn(ns, 0, NL_CONN_REPLAYED));
	EXPECT_EQ(0, conn(ns, 2, NL_CONN_REPLAYED));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
	/* Its number is free for the next one. */
	EXPECT_EQ(-EINVAL, put(ns, 3, 3, PEER_GOOD));
	nl_expect_why(_metadata, &ns->answer, 0, "number 1");
	EXPECT_TRUE(reap(s->peer[3], BOUNDED));
	ASSERT_EQ(0, put(ns, 1, 3, PEER_GOOD));
	EXPECT_EQ(3, connections(ns));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	/* A connection that is not there is no place for a socket without a number. */
	ASSERT_EQ(0, change(ns, 1, -1));
	EXPECT_TRUE(reap(s->peer[3], BOUNDED));
	ASSERT_EQ(0, nl_reconnect(ns, 3));
	EXPECT_EQ(2, connections(ns));
	EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[3]), SOON));
}

TEST_F(place, added_and_removed_under_load)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int rounds = 40, turns = 12, i;

	s->sh->loop = rounds;
	connect_multi(_metadata, ns, 2, PEER_SHUFFLE);
	ASSERT_EQ(0, holder_begin(s));
	for (i = 0; i < turns; i++) {
		ASSERT_EQ(0, put(ns, 2, 2, PEER_SHUFFLE));
		ASSERT_EQ(0, put(ns, i % 2, 3, PEER_SHUFFLE));
		expect_left(_metadata, s, i % 2);
		EXPECT_TRUE(reap(s->peer[i % 2], BOUNDED));
		ASSERT_EQ(0, put(ns, i % 2, i % 2, PEER_SHUFFLE));
		expect_left(_metadata, s, 3);
		EXPECT_TRUE(reap(s->peer[3], BOUNDED));
		ASSERT_EQ(0, change(ns, 2, -1));
		expect_left(_metadata, s, 2);
		EXPECT_TRUE(reap(s->peer[2], BOUNDED));
	}
	loops_expect(_metadata, s, rounds, 0, 30000);
	EXPECT_EQ(2, connections(ns));
	EXPECT_EQ(0, nl_link_dead(&self->events, s->dev.index, 100));
}

/* The whole set in one message: the old ones go, new ones come, and one is always there. */
TEST_F(place, all_in_one_message)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	int index[] = { 1, 0, 2 }, fd[3];
	struct nl_msg m;

	connect_multi(_metadata, ns, 2, PEER_HELD);
	ASSERT_EQ(0, holder_start(s));
	ASSERT_EQ(0, nl_peer(s, 2));
	ASSERT_EQ(0, nl_peer(s, 3));
	fd[0] = -1;
	fd[1] = s->fd[2];
	fd[2] = s->fd[3];
	nl_begin(&m, NBD_CMD_RECONFIGURE, s->dev.index);
	nl_conns(&m, index, fd, 3);
	ASSERT_EQ(0, nl_finish(ns, &m));
	EXPECT_EQ(2, connections(ns));
	EXPECT_EQ(-1, conn(ns, 1, NL_CONN_STATE));
	s->sh->go[0] = 1;
	s->sh->go[1] = 1;
	holder_expect(_metadata, s, 0);
	expect_left(_metadata, s, 0);
	expect_left(_metadata, s, 1);
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
}

/* Refused, each with words, and nothing is changed */

/* The message is refused, and its sockets are dropped. */
static void expect_refused(struct __test_metadata *_metadata, struct nl_session *ns,
			   const int *index, int n, bool sockets, int error, const char *words)
{
	int pair[4][2], fd[4] = { -1, -1, -1, -1 }, i;
	struct nl_msg m;

	for (i = 0; sockets && i < n; i++) {
		ASSERT_EQ(0, make_pair(KIND_UNIX, pair[i]));
		fd[i] = pair[i][0];
	}
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_conns(&m, index, fd, n);
	ns->answer = *nl_do(&m);
	EXPECT_EQ(-error, ns->answer.ret) TH_LOG("%s", words);
	EXPECT_NE(NULL, strstr(ns->answer.text, words))
		TH_LOG("'%s' is what it says, not '%s'", ns->answer.text, words);
	for (i = 0; sockets && i < n; i++) {
		close(pair[i][0]);
		EXPECT_TRUE(saw_eof(pair[i][1], SOON)) TH_LOG("%s: a socket is kept", words);
		close(pair[i][1]);
	}
}

TEST_F(place, refused_with_one_connection)
{
	struct nl_session *ns = &self->ns;
	long long before;

	ASSERT_EQ(0, nl_connect(ns));
	before = conn(ns, 0, NL_CONN_GENERATION);
	expect_refused(_metadata, ns, (int[]){ 1 }, 1, true, EINVAL,
		       "does not support multiple connections");
	expect_refused(_metadata, ns, (int[]){ 0, 1 }, 2, true, EINVAL,
		       "does not support multiple connections");
	expect_refused(_metadata, ns, (int[]){ 0 }, 1, false, EBUSY, "no other connection is open");
	EXPECT_EQ(before, conn(ns, 0, NL_CONN_GENERATION)) TH_LOG("a message was done in part");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

TEST_F(place, refused_with_several)
{
	struct nl_session *ns = &self->ns;
	struct peer_session *s = &ns->s;
	long long before[2];
	int fd[2], zero = 0, i;
	struct nl_msg m;

	connect_multi(_metadata, ns, 2, PEER_GOOD);
	for (i = 0; i < 2; i++)
		before[i] = conn(ns, i, NL_CONN_GENERATION);
	expect_refused(_metadata, ns, (int[]){ 3 }, 1, true, EINVAL, "number 2");
	expect_refused(_metadata, ns, (int[]){ 0, 3 }, 2, true, EINVAL, "number 2");
	expect_refused(_metadata, ns, (int[]){ 0, 256 }, 2, true, EINVAL, "number 2");
	expect_refused(_metadata, ns, (int[]){ -1 }, 1, true, EINVAL, "number 2");
	expect_refused(_metadata, ns, (int[]){ 0, 0 }, 2, true, EINVAL, "given twice");
	expect_refused(_metadata, ns, (int[]){ 2 }, 1, false, EINVAL, "no connection 2");
	expect_refused(_metadata, ns, (int[]){ 1, 2 }, 2, false, EINVAL, "no connection 2");
	expect_refused(_metadata, ns, (int[]){ 0, 1 }, 2, false, EBUSY, "no other connection");
	for (i = 0; i < 2; i++)
		EXPECT_EQ(before[i], conn(ns, i, NL_CONN_GENERATION)) TH_LOG("connection %d", i);
	/* Another one that is lost is no reason to remove this one. */
	ASSERT_TRUE(nl_kill_peer(s, 1));
	ASSERT_TRUE(WAIT_UNTIL(conn(ns, 1, NL_CONN_STATE) == NL_VACANT, SOON));
	expect_refused(_metadata, ns, (int[]){ 0 }, 1, false, EBUSY, "no other connection");
	/* But one that is lost can be removed. */
	EXPECT_EQ(0, change(ns, 1, -1));
	EXPECT_EQ(1, connections(ns));

	/* With an index and without one. */
	ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
	nl_begin(&m, NBD_CMD_RECONFIGURE, s->dev.index);
	{
		struct nlattr *list = nl_nest(&m, NBD_ATTR_SOCKETS), *item;

		item = nl_nest(&m, NBD_SOCK_ITEM);
		nl_u32(&m, NBD_SOCK_FD, fd[0]);
		nl_nest_end(&m, item);
		item = nl_nest(&m, NBD_SOCK_ITEM);
		nl_u32(&m, NBD_SOCK_FD, fd[1]);
		nl_u32(&m, NBD_SOCK_INDEX, 0);
		nl_nest_end(&m, item);
		nl_nest_end(&m, list);
	}
	ns->answer = *nl_do(&m);
	EXPECT_EQ(-EINVAL, ns->answer.ret);
	nl_expect_why(_metadata, &ns->answer, nl_offset(&m, NBD_ATTR_SOCKETS), "or for none");

	/* With another block size. */
	nl_begin(&m, NBD_CMD_RECONFIGURE, s->dev.index);
	nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 512);
	nl_conns(&m, &zero, &fd[0], 1);
	ns->answer = *nl_do(&m);
	EXPECT_EQ(-EINVAL, ns->answer.ret);
	nl_expect_why(_metadata, &ns->answer, 0, "block size");
	close(fd[0]);
	close(fd[1]);
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
}

TEST_F(place, refused_without_a_session)
{
	struct nl_session *ns = &self->ns;
	int pair[2], zero = 0;
	struct nl_msg m;

	expect_refused(_metadata, ns, (int[]){ 0 }, 1, true, EINVAL, "no session made by netlink");
	ASSERT_EQ(0, make_pair(KIND_UNIX, pair));
	nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	nl_conns(&m, &zero, &pair[0], 1);
	ns->answer = *nl_do(&m);
	EXPECT_EQ(-EINVAL, ns->answer.ret);
	nl_expect_why(_metadata, &ns->answer, nl_offset(&m, NBD_ATTR_SOCKETS), "give no index");
	close(pair[0]);
	EXPECT_TRUE(saw_eof(pair[1], SOON));
	close(pair[1]);
	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_run(&self->io));
	expect_refused(_metadata, ns, (int[]){ 0 }, 1, true, EINVAL, "no session made by netlink");
	EXPECT_EQ(1024, agent_read(&self->io.client, 0, 1024));
}

TEST_HARNESS_MAIN
