// SPDX-License-Identifier: GPL-2.0
/*
 * A user without CAP_SYS_ADMIN in the initial user namespace changes nothing, in whatever
 * namespaces it is, and no matter what user has opened its descriptors.
 */
#include "kselftest_harness.h"
#include "nobody.h"

enum state { IDLE, SETUP, BY_IOCTL, BY_NETLINK };

FIXTURE(user)
{
	struct nl_session ns;
	struct session io;
	int dev;		/* opened by root */
	struct genl genl;	/* opened by root */
	int pair[2];
};

FIXTURE_VARIANT(user)
{
	int (*become)(void);
};

FIXTURE_VARIANT_ADD(user, nobody) { .become = be_nobody };
FIXTURE_VARIANT_ADD(user, root_of_user_ns) { .become = be_root_of_user_ns };
FIXTURE_VARIANT_ADD(user, root_of_user_and_net_ns) { .become = be_root_of_user_and_net_ns };
FIXTURE_VARIANT_ADD(user, nobody_in_user_ns) { .become = nobody_be_root_of_user_ns };
FIXTURE_VARIANT_ADD(user, nobody_in_user_and_net_ns) {
	.become = nobody_be_root_of_user_and_net_ns,
};

FIXTURE_SETUP(user)
{
	const char *why = can_become(variant->become) ?: nobody_init(&self->ns);

	if (why)
		SKIP(return, "%s", why);
	self->dev = open(self->ns.s.dev.path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->dev);
	ASSERT_EQ(0, genl_open(&self->genl));
}

FIXTURE_TEARDOWN(user)
{
	close(self->dev);
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* What one of them does. */

/* All that can be seen of a device. */
struct seen {
	long long pid, size, blksize, ro, timeout;
	int connected, ndevs;
};

static struct seen look(struct nbd_dev *d)
{
	struct seen s;

	memset(&s, 0, sizeof(s));
	s.pid = nbd_sys(d, "pid");
	s.size = nbd_sys(d, "size");
	s.blksize = nbd_sys(d, "queue/logical_block_size");
	s.ro = nbd_sys(d, "ro");
	s.timeout = nbd_sys(d, "queue/io_timeout");
	s.connected = nl_connected(d->index);
	s.ndevs = nl_simple(NBD_CMD_STATUS, -1)->ndevs;
	return s;
}

static void bring_to(struct __test_metadata *_metadata, FIXTURE_DATA(user) * self, enum state state)
{
	struct nl_session *ns = &self->ns;

	if (state == SETUP)
		ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	if (state == BY_IOCTL)
		ASSERT_EQ(0, session_start(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	if (state == BY_NETLINK)
		ASSERT_EQ(0, nl_connect(ns));
}

/* It is as it was, and goes on from there. */
static void goes_on(struct __test_metadata *_metadata, FIXTURE_DATA(user) * self, enum state state)
{
	struct nl_session *ns = &self->ns;

	switch (state) {
	case IDLE:
		EXPECT_TRUE(nbd_idle(&ns->s.dev));
		ASSERT_EQ(0, nl_connect(ns));
		EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
		break;
	case SETUP:
		EXPECT_TRUE(no_eof(self->io.toy.fd));
		ASSERT_EQ(0, session_run(&self->io));
		EXPECT_EQ(SESSION_SIZE / 512, nbd_sys(&ns->s.dev, "size"));
		EXPECT_EQ(1024, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
		EXPECT_EQ(0, session_stop(&self->io));
		break;
	case BY_IOCTL:
		EXPECT_TRUE(no_eof(self->io.toy.fd));
		EXPECT_EQ(4096, agent_read(&self->io.client, 0, 4096));
		EXPECT_EQ(0, session_stop(&self->io));
		break;
	case BY_NETLINK:
		EXPECT_FALSE(exited(ns->s.peer[0]));
		EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
		break;
	}
}

static void as_user(struct __test_metadata *_metadata, FIXTURE_DATA(user) * self,
		    const FIXTURE_VARIANT(user) * variant, enum state state)
{
	struct nl_session *ns = &self->ns;
	struct seen before, after;
	char path[64];

	bring_to(_metadata, self, state);
	/* Now, for a server keeps what it inherits. */
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->pair));
	before = look(&ns->s.dev);
	AS_USER(variant->become, BOUNDED, {
		struct genl own;
		int dev;

		refused_ioctls(self->dev, self->pair[0], "root's");
		/* Such a user cannot open it, or else may do no more than with root's. */
		dev = open(ns->s.dev.path, O_RDWR | O_CLOEXEC);
		if (dev < 0)
			dev = open(ns->s.dev.path, O_RDONLY | O_CLOEXEC);
		if (dev >= 0) {
			refused_ioctls(dev, self->pair[0], "its own");
			close(dev);
		}
		refused_messages(&self->genl, ns, self->pair[0], "root's");
		if (genl_open(&own))
			find("cannot find the family");
		else
			refused_messages(&own, ns, self->pair[0], "its own");
	});
	EXPECT_LT(50, found->tried);
	after = look(&ns->s.dev);
	EXPECT_EQ(0, memcmp(&before, &after, sizeof(before))) TH_LOG("something has changed");
	snprintf(path, sizeof(path), "/sys/block/nbd%d", NO_INDEX);
	EXPECT_NE(0, access(path, F_OK)) TH_LOG("a device was made");
	/* The socket that was offered is not kept. */
	close(self->pair[0]);
	EXPECT_TRUE(saw_eof(self->pair[1], SOON));
	goes_on(_metadata, self, state);
}

TEST_F(user, changes_nothing_idle)
{
	as_user(_metadata, self, variant, IDLE);
}

TEST_F(user, changes_nothing_set_up)
{
	as_user(_metadata, self, variant, SETUP);
}

TEST_F(user, changes_nothing_connected_by_ioctl)
{
	as_user(_metadata, self, variant, BY_IOCTL);
}

TEST_F(user, changes_nothing_connected_by_netlink)
{
	as_user(_metadata, self, variant, BY_NETLINK);
}

/* A socket that a user without privilege has opened is no better in root's hands. */
TEST_F(user, root_is_no_deputy)
{
	struct nl_session *ns = &self->ns;
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u;
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf,
			     .msg_controllen = sizeof(u.buf) };
	struct genl theirs = { .fd = -1 };
	static struct nl_answer r;
	static struct nl_msg m;
	struct cmsghdr *c;
	int ctl[2];
	pid_t pid;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ctl));
	pid = fork_quiet();
	if (!pid) {
		struct genl own = { .fd = -1 };

		if (variant->become() || genl_open(&own))
			_exit(1);
		send_msg(ctl[1], "x", 1, own.fd);
		pause();
	}
	close(ctl[1]);
	ASSERT_EQ(1, recvmsg(ctl[0], &mh, MSG_CMSG_CLOEXEC));
	c = CMSG_FIRSTHDR(&mh);
	ASSERT_NE(NULL, c);
	memcpy(&theirs.fd, CMSG_DATA(c), sizeof(int));
	theirs.family = self->genl.family;
	nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
	EXPECT_EQ(-EPERM, nl_exchange(theirs.fd, theirs.family, &m, &r));
	EXPECT_TRUE(nbd_running(&ns->s.dev));
	/* And it is the socket that makes the difference. */
	EXPECT_EQ(0, nl_exchange(self->genl.fd, self->genl.family, &m, &r));
	EXPECT_FALSE(nbd_running(&ns->s.dev));
	kill(pid, SIGKILL);
	reap(pid, BOUNDED);
	close(theirs.fd);
	close(ctl[0]);
}

TEST_HARNESS_MAIN
