// SPDX-License-Identifier: GPL-2.0
/*
 * What CONNECT, DISCONNECT, RECONFIGURE and STATUS need, of the message and of its sender, and that
 * they refuse everything else.
 */
#include <sched.h>

#include "netlink_connect.h"

/* Missing attributes: the kernel says which. */

static bool says_missing(struct nl_answer *r, int type)
{
	return r->ret == -EINVAL && r->missing == type;
}

TEST_F(connect, no_sockets_is_einval)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	EXPECT_TRUE(says_missing(nl_do(&m), NBD_ATTR_SOCKETS));
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
}

TEST_F(connect, no_size_is_einval)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	ASSERT_EQ(0, nl_peers(ns));
	nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
	nl_socks(&m, ns->s.fd, 1);
	ns->answer = *nl_do(&m);
	EXPECT_TRUE(says_missing(&ns->answer, NBD_ATTR_SIZE_BYTES));
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
	nl_close_ends(&ns->s);
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
}

TEST_F(connect, no_index_is_einval)
{
	EXPECT_TRUE(says_missing(nl_simple(NBD_CMD_DISCONNECT, -1), NBD_ATTR_INDEX));
	EXPECT_TRUE(says_missing(nl_simple(NBD_CMD_RECONFIGURE, -1), NBD_ATTR_INDEX));
}

/* What the kernel itself finds is told with the attribute, whichever driver it is. */
TEST_F(connect, short_attribute_is_an_error)
{
	static const struct {
		int type, len;
	} wrong[] = {
		{ NBD_ATTR_INDEX, 2 }, { NBD_ATTR_SIZE_BYTES, 4 },
		{ NBD_ATTR_BLOCK_SIZE_BYTES, 4 }, { NBD_ATTR_TIMEOUT, 7 },
		{ NBD_ATTR_SERVER_FLAGS, 0 }, { NBD_ATTR_CLIENT_FLAGS, 4 },
		{ NBD_ATTR_SOCKETS, 3 }, { NBD_ATTR_DEAD_CONN_TIMEOUT, 1 },
		{ NBD_ATTR_BACKEND_IDENTIFIER, 0 },
	};
	struct nl_answer *r;
	struct nl_msg m;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(wrong); i++) {
		nl_begin(&m, NBD_CMD_DISCONNECT, -1);
		nl_put(&m, wrong[i].type, "\0\0\0\0\0\0\0", wrong[i].len);
		r = nl_do(&m);
		EXPECT_EQ(-ERANGE, r->ret) TH_LOG("attribute %d", wrong[i].type);
		EXPECT_EQ(nl_offset(&m, wrong[i].type), r->offset);
		EXPECT_NE(NULL, strstr(r->text, "policy")) TH_LOG("'%s'", r->text);
	}
}

TEST_F(connect, short_descriptor_is_an_error)
{
	struct nlattr *list, *item, *fd;
	struct nl_answer *r;
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_CONNECT, self->ns.s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	list = nl_nest(&m, NBD_ATTR_SOCKETS);
	item = nl_nest(&m, NBD_SOCK_ITEM);
	fd = nl_put(&m, NBD_SOCK_FD, "\0", 2);
	nl_nest_end(&m, item);
	nl_nest_end(&m, list);
	r = nl_do(&m);
	EXPECT_EQ(-EINVAL, r->ret);
	EXPECT_EQ((char *)fd - m.buf, r->offset);
	EXPECT_NE(NULL, strstr(r->text, "policy")) TH_LOG("'%s'", r->text);
	EXPECT_TRUE(nbd_idle(&self->ns.s.dev));
}

TEST_F(connect, unknown_command)
{
	EXPECT_EQ(-EOPNOTSUPP, nl_simple(NBD_CMD_MAX + 1, 0)->ret);
	EXPECT_EQ(-EOPNOTSUPP, nl_simple(NBD_CMD_LINK_DEAD, 0)->ret);
}

/* Sockets that are none. */

enum bad_fd { BAD_CLOSED, BAD_FILE, BAD_UDP, BAD_DGRAM, BAD_SEQPACKET, BAD_NEGATIVE, BAD_NETLINK };

static int bad_fd(enum bad_fd kind)
{
	switch (kind) {
	case BAD_CLOSED:
		return 999;
	case BAD_FILE:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case BAD_UDP:
		return socket(AF_INET, SOCK_DGRAM, 0);
	case BAD_DGRAM:
		return socket(AF_UNIX, SOCK_DGRAM, 0);
	case BAD_SEQPACKET:
		return socket(AF_UNIX, SOCK_SEQPACKET, 0);
	case BAD_NETLINK:
		return socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
	case BAD_NEGATIVE:
		break;
	}
	return -1;
}

FIXTURE(refuse)
{
	struct nl_session ns;
	int fd[2];
};

FIXTURE_VARIANT(refuse)
{
	enum bad_fd kind;
	int error;
};

FIXTURE_VARIANT_ADD(refuse, closed) { .kind = BAD_CLOSED, .error = EBADF };
FIXTURE_VARIANT_ADD(refuse, file) { .kind = BAD_FILE, .error = ENOTSOCK };
FIXTURE_VARIANT_ADD(refuse, udp) { .kind = BAD_UDP, .error = EINVAL };
FIXTURE_VARIANT_ADD(refuse, dgram) { .kind = BAD_DGRAM, .error = EINVAL };
FIXTURE_VARIANT_ADD(refuse, seqpacket) { .kind = BAD_SEQPACKET, .error = EINVAL };
FIXTURE_VARIANT_ADD(refuse, netlink) { .kind = BAD_NETLINK, .error = EINVAL };
FIXTURE_VARIANT_ADD(refuse, negative) { .kind = BAD_NEGATIVE, .error = EINVAL };

static bool is_refusal(int kind, int error, int ret)
{
	return ret == -error || (kind == BAD_NEGATIVE && ret == -EBADF);
}

FIXTURE_SETUP(refuse)
{
	const char *why = nl_init(&self->ns, 2, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(refuse)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* A good socket and a bad one: neither is kept, and the device is as it was. */
TEST_F(refuse, connect)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	int fd[2];

	ns->s.npeers = 1;
	ASSERT_EQ(0, nl_peers(ns));
	fd[0] = ns->s.fd[0];
	fd[1] = bad_fd(variant->kind);
	nl_begin_connect(&m, ns, ns->s.dev.index, fd, 2);
	nl_str(&m, NBD_ATTR_BACKEND_IDENTIFIER, "not to stay");
	EXPECT_TRUE(is_refusal(variant->kind, variant->error, nl_finish(ns, &m)))
		TH_LOG("%d", ns->answer.ret);
	nl_expect_why(_metadata, &ns->answer, nl_sock_offset(&m, 1), "stream socket");
	EXPECT_EQ(-1, ns->answer.index) TH_LOG("a reply although it failed");
	if (fd[1] >= 0)
		close(fd[1]);
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
	EXPECT_FALSE(nbd_sys_exists(&ns->s.dev, "backend"));
	EXPECT_EQ(0, nl_connected(ns->s.dev.index));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the good socket is kept");
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

/* The same while it runs. */
TEST_F(refuse, reconfigure)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	int fd;

	ns->dead = 5;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 1));
	fd = bad_fd(variant->kind);
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_socks(&m, &fd, 1);
	ns->answer = *nl_do(&m);
	EXPECT_TRUE(is_refusal(variant->kind, variant->error, ns->answer.ret))
		TH_LOG("%d", ns->answer.ret);
	nl_expect_why(_metadata, &ns->answer, nl_sock_offset(&m, 0), "stream socket");
	if (fd >= 0)
		close(fd);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_reconnect(ns, 1));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), BOUNDED));
}

TEST_F(connect, a_socket_list_without_sockets_is_einval)
{
	struct nl_session *ns = &self->ns;
	struct nlattr *list, *item;
	struct nl_answer *r;
	struct nl_msg m;

	nl_begin_connect(&m, ns, ns->s.dev.index, NULL, 0);
	r = nl_do(&m);
	EXPECT_EQ(-EINVAL, r->ret) TH_LOG("empty");
	nl_expect_why(_metadata, r, nl_offset(&m, NBD_ATTR_SOCKETS), "at least one socket");
	nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	list = nl_nest(&m, NBD_ATTR_SOCKETS);
	item = nl_nest(&m, NBD_SOCK_ITEM);
	nl_nest_end(&m, item);
	nl_nest_end(&m, list);
	r = nl_do(&m);
	EXPECT_EQ(-EINVAL, r->ret) TH_LOG("an item without a socket");
	nl_expect_why(_metadata, r, nl_offset(&m, NBD_ATTR_SOCKETS), "at least one socket");
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->pair));
	nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	list = nl_nest(&m, NBD_ATTR_SOCKETS);
	item = nl_nest(&m, NBD_SOCK_ITEM + 1);
	nl_u32(&m, NBD_SOCK_FD, self->pair[0]);
	nl_nest_end(&m, item);
	nl_nest_end(&m, list);
	r = nl_do(&m);
	EXPECT_EQ(-EINVAL, r->ret) TH_LOG("no item");
	nl_expect_why(_metadata, r, (char *)item - m.buf, "not a socket item");
	close(self->pair[0]);
	EXPECT_TRUE(saw_eof(self->pair[1], SOON));
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
	EXPECT_EQ(0, nl_connected(ns->s.dev.index));
}

TEST_F(connect, wrong_sizes_are_einval)
{
	static const struct {
		uint64_t size, blksize;
	} wrong[] = {
		{ 1ULL << 63, 4096 }, { ~0ULL, 4096 }, { PEER_SIZE, 1000 }, { PEER_SIZE, 256 },
		{ PEER_SIZE, 1ULL << 32 }, { PEER_SIZE, (1ULL << 32) + 4096 },
	};
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	size_t i;

	ASSERT_EQ(0, nl_peers(ns));
	for (i = 0; i < ARRAY_SIZE(wrong); i++) {
		nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
		nl_u64(&m, NBD_ATTR_SIZE_BYTES, wrong[i].size);
		nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, wrong[i].blksize);
		nl_u64(&m, NBD_ATTR_SERVER_FLAGS, NL_FLAGS);
		nl_socks(&m, ns->s.fd, 1);
		ns->answer = *nl_do(&m);
		EXPECT_EQ(-EINVAL, ns->answer.ret) TH_LOG("number %zu", i);
		nl_expect_why(_metadata, &ns->answer, 0, "out of range");
		EXPECT_TRUE(nbd_idle(&ns->s.dev));
		nl_disconnect(ns->s.dev.index);
	}
}

/* Privilege */

static int new_user_ns(void)
{
	return unshare(CLONE_NEWUSER) ? -errno : 0;
}

static int new_user_and_net_ns(void)
{
	return unshare(CLONE_NEWUSER | CLONE_NEWNET) ? -errno : 0;
}

static int new_net_ns(void)
{
	return unshare(CLONE_NEWNET) ? -errno : 0;
}

FIXTURE(privilege)
{
	struct nl_session ns;
};

FIXTURE_VARIANT(privilege)
{
	int (*before)(void);
	int error;
};

FIXTURE_VARIANT_ADD(privilege, nobody) { .before = drop_caps, .error = EPERM };
FIXTURE_VARIANT_ADD(privilege, user_ns) { .before = new_user_ns, .error = EPERM };
FIXTURE_VARIANT_ADD(privilege, user_and_net_ns) { .before = new_user_and_net_ns, .error = EPERM };
FIXTURE_VARIANT_ADD(privilege, net_ns) { .before = new_net_ns };

FIXTURE_SETUP(privilege)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(privilege)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

TEST_F(privilege, connect)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	ASSERT_EQ(0, nl_peers(ns));
	nl_begin_connect(&m, ns, ns->s.dev.index, ns->s.fd, 1);
	m.before = variant->before;
	EXPECT_EQ(-variant->error, nl_finish(ns, &m));
	EXPECT_EQ(!variant->error, nbd_running(&ns->s.dev));
	if (!variant->error)
		EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

TEST_F(privilege, disconnect)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	ASSERT_EQ(0, nl_connect(ns));
	nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
	m.before = variant->before;
	EXPECT_EQ(-variant->error, nl_do(&m)->ret);
	EXPECT_EQ(!!variant->error, nbd_running(&ns->s.dev));
}

TEST_F(privilege, reconfigure)
{
	struct nl_session *ns = &self->ns;
	struct nl_answer *r;
	struct nl_msg m;

	ASSERT_EQ(0, nl_connect(ns));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2);
	m.before = variant->before;
	r = nl_do(&m);
	EXPECT_EQ(-variant->error, r->ret);
	if (variant->error)
		nl_expect_why(_metadata, r, 0, "CAP_SYS_ADMIN");
	EXPECT_EQ(NL_SECTORS / (variant->error ? 1 : 2), nbd_sys(&ns->s.dev, "size"));
}

TEST_F(privilege, status)
{
	struct nl_session *ns = &self->ns;
	struct nl_answer *r;
	struct nl_msg m;

	ASSERT_EQ(0, nl_connect(ns));
	nl_begin(&m, NBD_CMD_STATUS, ns->s.dev.index);
	m.before = variant->before;
	r = nl_do(&m);
	EXPECT_EQ(0, r->ret);
	EXPECT_EQ(1, r->ndevs);
	EXPECT_EQ(1, r->dev[0].connected);
}

TEST_HARNESS_MAIN
