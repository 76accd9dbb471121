// SPDX-License-Identifier: GPL-2.0
/*
 * The descriptors of sockets: what their user does with them before the session, after they were
 * given away, and what is no socket for the driver.
 */
#include <linux/netlink.h>

#include "setup_sock.h"

/* Descriptors */

TEST_F(sock, descriptor_recycled)
{
	struct toy toy[2];
	uint32_t do_it;
	int cpu;

	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_LE(0, agent_take(&self->a, 1, &self->a_sock[0]));
	ASSERT_LE(0, agent_take(&self->a, 2, &self->b_sock[0]));
	/* Number 200 is first the one socket, then the other. */
	ASSERT_LE(0, agent_call(&self->a, AGENT_DUP, 0, 3, 200, 1));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_IOCTL, 0, 0, NBD_SET_SOCK, 200));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 3, 0, 0));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 1, 0, 0));
	EXPECT_TRUE(no_eof(A_PEER));
	ASSERT_LE(0, agent_call(&self->a, AGENT_DUP, 0, 3, 200, 2));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_IOCTL, 0, 0, NBD_SET_SOCK, 200));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 3, 0, 0));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 2, 0, 0));

	ASSERT_EQ(0, toy_start(&toy[0], A_PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, toy_start(&toy[1], B_PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, MULTI_CONN));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	ASSERT_EQ(0, agent_open_as(&self->a, 4, O_RDONLY | O_DIRECT));
	/* Which of them a request takes depends on the CPU. */
	for (cpu = 0; cpu < 2; cpu++) {
		agent_call(&self->a, AGENT_CPU, 0, 0, cpu, 0);
		EXPECT_EQ(4096, agent_call(&self->a, AGENT_READ, 0, 4, 8192 * cpu, 4096));
	}
	if (sysconf(_SC_NPROCESSORS_ONLN) > 1) {
		EXPECT_LE(1, toy_requests(&toy[0]));
		EXPECT_LE(1, toy_requests(&toy[1]));
	}
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	EXPECT_TRUE(saw_eof(B_PEER, SOON));
}

TEST_F(sock, descriptor_the_same_socket_twice)
{
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_LE(0, agent_take(&self->a, 1, &self->a_sock[0]));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1));
	/* Whatever it says, no reference may be left behind. */
	agent_call(&self->a, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1);
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 1, 0, 0));
	EXPECT_TRUE(no_eof(A_PEER));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
}

TEST_F(sock, descriptor_open_elsewhere_is_shut_down_too)
{
	int dup_fd = dup(self->a_sock[0]);

	/* A copy in another process must not keep the peer waiting. */
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_set_sock(&self->a, &dup_fd));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
}

TEST_F(sock, descriptor_listening_or_unconnected_does_not_hang)
{
	struct sockaddr_in in = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int i;

	ASSERT_EQ(0, agent_open(&self->a));
	for (i = 0; i < 2; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		long ret;

		if (!i) {
			ASSERT_EQ(0, bind(fd, (struct sockaddr *)&in, sizeof(in)));
			ASSERT_EQ(0, listen(fd, 1));
		}
		ret = agent_set_sock(&self->a, &fd);
		/* The C driver takes them; to refuse them is as good. */
		if (ret) {
			EXPECT_EQ(-EINVAL, ret);
			continue;
		}
		EXPECT_NE(-ETIME, agent_wait(&self->a, agent_do_it(&self->a), BOUNDED));
		EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
		ASSERT_EQ(0, agent_close(&self->a));
		ASSERT_EQ(0, agent_open(&self->a));
	}
}

/* What is refused leaves no trace. */

FIXTURE(bad) {
	struct nbd_dev dev;
	struct agent a, b;
};

FIXTURE_VARIANT(bad) {
	int family, type, protocol;	/* of a socket to make, or */
	const char *file;		/* a file to open, or */
	unsigned long number;		/* a number that is no descriptor */
	int error;
};

FIXTURE_VARIANT_ADD(bad, minus_one) { .number = -1UL, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, past_int_max) { .number = 1UL << 31, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, past_32_bits) { .number = 1UL << 32, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, closed) { .number = 999, .error = EBADF };
FIXTURE_VARIANT_ADD(bad, int_max) { .number = 0x7fffffff, .error = EBADF };
FIXTURE_VARIANT_ADD(bad, file) { .file = "/dev/null", .error = ENOTSOCK };
FIXTURE_VARIANT_ADD(bad, directory) { .file = "/", .error = ENOTSOCK };
FIXTURE_VARIANT_ADD(bad, the_device_itself) { .file = "device", .error = ENOTSOCK };
FIXTURE_VARIANT_ADD(bad, udp) { .family = AF_INET, .type = SOCK_DGRAM, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, udp6) { .family = AF_INET6, .type = SOCK_DGRAM, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, unix_dgram) { .family = AF_UNIX, .type = SOCK_DGRAM, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, unix_seqpacket) {
	.family = AF_UNIX, .type = SOCK_SEQPACKET, .error = EINVAL,
};

FIXTURE_VARIANT_ADD(bad, netlink) { .family = AF_NETLINK, .type = SOCK_RAW, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, raw) {
	.family = AF_INET, .type = SOCK_RAW, .protocol = IPPROTO_ICMP, .error = EINVAL,
};

FIXTURE_SETUP(bad)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->b, self->dev.path));
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_open(&self->b));
}

FIXTURE_TEARDOWN(bad)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

static int bad_fd(const struct _fixture_variant_bad *v, const char *dev)
{
	if (v->file)
		return open(strcmp(v->file, "device") ? v->file : dev, O_RDONLY | O_CLOEXEC);
	return socket(v->family, v->type | SOCK_CLOEXEC, v->protocol);
}

static long set_bad(struct agent *a, const struct _fixture_variant_bad *v, const char *dev)
{
	int fd;

	if (v->number)
		return agent_ioctl(a, NBD_SET_SOCK, v->number);
	fd = bad_fd(v, dev);
	return fd < 0 ? -errno : agent_set_sock(a, &fd);
}

TEST_F(bad, refused_and_no_owner)
{
	int fd[2];

	EXPECT_EQ(-variant->error, set_bad(&self->a, variant, self->dev.path));
	/* a is not the owner: b can be it, and then a cannot. */
	ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
	EXPECT_EQ(0, agent_set_sock(&self->b, &fd[0]));
	EXPECT_TRUE(no_eof(fd[1]));
	EXPECT_EQ(-EBUSY, agent_set_new_sock(&self->a));
}

TEST_F(bad, refused_in_a_setup_and_not_counted)
{
	int good[2];
	struct toy toy;
	uint32_t do_it;

	ASSERT_EQ(0, make_pair(KIND_UNIX, good));
	ASSERT_EQ(0, agent_set_sock(&self->a, &good[0]));
	EXPECT_EQ(-variant->error, set_bad(&self->a, variant, self->dev.path));
	EXPECT_TRUE(no_eof(good[1]));
	/* Were it counted, this would be two connections. */
	ASSERT_EQ(0, toy_start(&toy, good[1], TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->a);
	EXPECT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	toy_hang_up(&toy);
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
}

/*
 * go-nbd gives the socket away first and negotiates then, over its own descriptor: until the
 * session begins the driver neither reads nor writes.
 */
static void negotiate(struct __test_metadata *_metadata, int client, int server)
{
	static char sent[16384], got[sizeof(sent)];
	size_t len;
	int round;

	for (round = 0; round < 6; round++) {
		int from = round % 2 ? client : server, to = round % 2 ? server : client;

		len = 1 << (2 * round + 4);
		memset(sent, 'a' + round, len);
		ASSERT_EQ((ssize_t)len, send(from, sent, len, MSG_NOSIGNAL));
		ASSERT_EQ((ssize_t)len, recv(to, got, len, MSG_WAITALL)) TH_LOG("round %d", round);
		ASSERT_EQ(0, memcmp(sent, got, len));
	}
}

FIXTURE(negotiated) {
	struct nbd_dev dev;
	struct session s;
};

FIXTURE_VARIANT(negotiated) {
	enum sock_kind kind;
	bool nonblock;		/* as a Go program has its sockets */
};

FIXTURE_VARIANT_ADD(negotiated, unix) { .kind = KIND_UNIX };
FIXTURE_VARIANT_ADD(negotiated, tcp) { .kind = KIND_TCP };
FIXTURE_VARIANT_ADD(negotiated, tcp_nonblock) { .kind = KIND_TCP, .nonblock = true };

FIXTURE_SETUP(negotiated)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(negotiated)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

TEST_F(negotiated, after_set_sock)
{
	struct agent *a = &self->s.client;
	struct timeval tv = { .tv_sec = 10 };
	int fd[2], client;
	uint32_t do_it;

	ASSERT_EQ(0, make_pair(variant->kind, fd));
	client = dup(fd[0]);
	ASSERT_LE(0, client);
	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	setsockopt(fd[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	ASSERT_EQ(0, agent_start(a, self->dev.path));
	ASSERT_EQ(0, agent_open(a));
	ASSERT_EQ(0, agent_set_sock(a, &fd[0]));
	negotiate(_metadata, client, fd[1]);
	ASSERT_EQ(0, agent_ioctl(a, NBD_SET_BLKSIZE, 1024));
	ASSERT_EQ(0, agent_ioctl(a, NBD_SET_SIZE, SESSION_SIZE));
	negotiate(_metadata, client, fd[1]);
	ASSERT_EQ(0, agent_ioctl(a, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS));
	if (variant->nonblock)
		ASSERT_EQ(0, fcntl(client, F_SETFL, O_NONBLOCK));
	setsockopt(fd[1], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval) {}, sizeof(tv));
	ASSERT_EQ(0, toy_start(&self->s.toy, fd[1], TOY_OBEDIENT));
	do_it = agent_do_it(a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(262144, agent_read(a, 0, 262144));
	EXPECT_EQ(4096, agent_call(a, AGENT_WRITE, 0, 0, 0, 4096));
	EXPECT_EQ(0, agent_ioctl(a, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(a, do_it, BOUNDED));
	EXPECT_TRUE(saw_eof(fd[1], SOON)) TH_LOG("the client's own descriptor keeps it open");
}

TEST_HARNESS_MAIN
