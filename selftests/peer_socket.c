// SPDX-License-Identifier: GPL-2.0
/*
 * Sockets that others have a descriptor of, too: they set options, connect it to another peer, or
 * go on with it after the session. None of that may hold up anything but this connection.
 */
#include "kselftest_harness.h"
#include <ctype.h>
#include <dirent.h>

#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS		2000

/* The number of a socket's inode, by which it is listed for as long as its file exists. */
static unsigned long socket_inode(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

static bool socket_listed(unsigned long inode)
{
	static const struct {
		const char *path, *format;
	} lists[] = {
		{ "/proc/net/tcp", "%*s %*s %*s %*s %*s %*s %*s %*s %*s %lu" },
		{ "/proc/net/unix", "%*s %*s %*s %*s %*s %*s %lu" },
	};
	unsigned long listed;
	char line[512];
	bool found = false;
	size_t i;
	FILE *f;

	for (i = 0; i < ARRAY_SIZE(lists); i++) {
		f = fopen(lists[i].path, "re");
		while (f && fgets(line, sizeof(line), f))
			if (sscanf(line, lists[i].format, &listed) == 1 && listed == inode)
				found = true;
		if (f)
			fclose(f);
	}
	return found;
}

/*
 * A socket whose close waits until its peer has taken all: its last reference is the kernel's, and
 * one worker closes such files for the whole system.
 */
FIXTURE(linger)
{
	struct nl_session ns, other;
};

FIXTURE_VARIANT(linger)
{
	bool late;		/* in the midst of the session */
	bool dies;		/* the session ends by itself */
};

FIXTURE_VARIANT_ADD(linger, before) { };
FIXTURE_VARIANT_ADD(linger, during) { .late = true };
FIXTURE_VARIANT_ADD(linger, during_and_times_out) { .late = true, .dies = true };

FIXTURE_SETUP(linger)
{
	const char *why = nl_init(&self->ns, 1, PEER_DEAF);

	if (why)
		SKIP(return, "%s", why);
	self->ns.s.tcp = true;
	ASSERT_NULL(nl_init(&self->other, 1, PEER_GOOD));
}

FIXTURE_TEARDOWN(linger)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
	EXPECT_TRUE(nl_cleanup(&self->other));
}

TEST_F(linger, others_are_closed)
{
	struct nl_session *ns = &self->ns, *other = &self->other;
	struct linger linger = { .l_onoff = 1, .l_linger = 30 };
	unsigned long inode, other_inode;
	struct nl_msg m;
	int kept;

	if (variant->dies)
		ns->s.timeout = 1;
	/* In this order: a server forked later would have the first socket open, too. */
	ASSERT_EQ(0, nl_peers(other));
	other_inode = socket_inode(other->s.fd[0]);
	nl_begin_connect(&m, other, other->s.dev.index, other->s.fd, 1);
	ASSERT_EQ(0, nl_finish(other, &m));
	ASSERT_EQ(0, nl_peers(ns));
	inode = socket_inode(ns->s.fd[0]);
	kept = fcntl(ns->s.fd[0], F_DUPFD_CLOEXEC, 0);
	ASSERT_EQ(0, setsockopt(kept, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	nl_begin_connect(&m, ns, ns->s.dev.index, ns->s.fd, 1);
	ASSERT_EQ(0, nl_finish(ns, &m));
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&ns->s.dev) && nbd_running(&other->s.dev), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(&other->s, read_block), BOUNDED));
	if (variant->late)
		ASSERT_EQ(0, setsockopt(kept, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	/* From now on the driver alone has it. */
	close(kept);
	ASSERT_TRUE(socket_listed(inode));
	ASSERT_TRUE(socket_listed(other_inode));
	ASSERT_EQ(0, holder_start(&ns->s));
	if (variant->dies)
		EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->io_done == HOLDER_THREADS, 1000 + END_MS));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(0, nl_disconnect(other->s.dev.index));
	EXPECT_TRUE(WAIT_UNTIL(!socket_listed(other_inode), SOON))
		TH_LOG("another session's socket is not closed");
	EXPECT_TRUE(WAIT_UNTIL(!socket_listed(inode), SOON)) TH_LOG("it is not closed");
}

/* Whether a socket may use the reserves of memory: a probe shows its flags. */
#define TRACING		"/sys/kernel/tracing"
#define SOCK_MEMALLOC	14

static bool probe_sockets(void)
{
	write_file(TRACING "/events/nbd_socket/enable", "0");
	write_file(TRACING "/kprobe_events", "-:nbd_socket/flags");
	return write_file(TRACING "/kprobe_events",
			  "p:nbd_socket/flags sk_getsockopt flags=sk->__sk_common.skc_flags:u64") &&
	       write_file(TRACING "/events/nbd_socket/enable", "1");
}

static void unprobe_sockets(void)
{
	write_file(TRACING "/events/nbd_socket/enable", "0");
	write_file(TRACING "/kprobe_events", "-:nbd_socket/flags");
}

/* 1, 0, or -1 if the probe has not seen it. */
static int may_use_reserves(int fd)
{
	int value, mine = getpid(), found = -1;
	unsigned long long flags;
	socklen_t len = sizeof(value);
	char line[512], *p;
	FILE *f;

	/* This empties the trace. */
	close(open(TRACING "/trace", O_WRONLY | O_TRUNC | O_CLOEXEC));
	if (getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &value, &len))
		return -1;
	f = fopen(TRACING "/trace", "re");
	while (f && fgets(line, sizeof(line), f)) {
		p = strstr(line, "flags=");
		if (!p || sscanf(p, "flags=%llu", &flags) != 1)
			continue;
		/* Lines begin with the name and the number of the task, and the CPU in brackets. */
		p = strstr(line, " [");
		while (p && p > line && *p == ' ')
			p--;
		while (p && p > line && isdigit(p[-1]))
			p--;
		if (p && atoi(p) == mine)
			found = flags >> SOCK_MEMALLOC & 1;
	}
	if (f)
		fclose(f);
	return found;
}

FIXTURE(kept)
{
	struct nl_session ns;
	int fd;
};

FIXTURE_VARIANT(kept)
{
	bool tcp;
};

FIXTURE_VARIANT_ADD(kept, unix) { };
FIXTURE_VARIANT_ADD(kept, tcp) { .tcp = true };

FIXTURE_SETUP(kept)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->fd = -1;
	self->ns.s.tcp = variant->tcp;
	if (!probe_sockets())
		SKIP(return, "the kernel has no probes that know its types");
}

FIXTURE_TEARDOWN(kept)
{
	unprobe_sockets();
	close(self->fd);
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

static int send_room(int fd)
{
	int room = -1;
	socklen_t len = sizeof(room);

	return getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, &len) ? -1 : room;
}

/* A process that keeps a socket for something else must not eat up what block I/O needs. */
TEST_F(kept, memory_reserves_are_for_the_session)
{
	struct nl_session *ns = &self->ns;
	int fresh[2], round;

	ASSERT_EQ(0, make_pair(variant->tcp ? KIND_TCP : KIND_UNIX, fresh));
	EXPECT_EQ(0, may_use_reserves(fresh[0]));
	for (round = 0; round < 2; round++) {
		ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
		EXPECT_EQ(1, may_use_reserves(self->fd));
		EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
		/* The second dies, and is not the session's any more at its end. */
		if (round)
			EXPECT_TRUE(nl_kill_peer(&ns->s, 0));
		EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
		EXPECT_EQ(0, may_use_reserves(self->fd)) TH_LOG("round %d", round);
		close(self->fd);
	}
}

/* One that was only set up, and that is refused. */
TEST_F(kept, memory_reserves_after_a_setup)
{
	struct nbd_dev *d = &self->ns.s.dev;
	struct agent a, b;
	int pair[2], copy;

	ASSERT_EQ(0, agent_start(&a, d->path));
	ASSERT_EQ(0, agent_start(&b, d->path));
	ASSERT_EQ(0, agent_open(&a));
	ASSERT_EQ(0, agent_open(&b));
	ASSERT_EQ(0, make_pair(variant->tcp ? KIND_TCP : KIND_UNIX, pair));
	self->fd = dup(pair[0]);
	ASSERT_EQ(0, agent_set_sock(&a, &pair[0]));
	copy = dup(self->fd);
	EXPECT_EQ(-EBUSY, agent_set_sock(&b, &copy));
	EXPECT_EQ(0, agent_ioctl(&a, NBD_CLEAR_SOCK, 0));
	EXPECT_EQ(0, may_use_reserves(self->fd));
	EXPECT_EQ(0, agent_close(&b));
	EXPECT_EQ(0, agent_close(&a));
}

/* What a socket has room for while it is the session's is not what its user has asked for. */
TEST_F(kept, room_to_send_is_for_the_session)
{
	struct nl_session *ns = &self->ns;
	int asked = 64 << 10, fresh[2], before, own;

	ASSERT_EQ(0, make_pair(variant->tcp ? KIND_TCP : KIND_UNIX, fresh));
	before = send_room(fresh[0]);
	ASSERT_LT(0, before);
	ns->s.room = -1;
	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
	if (!variant->tcp)
		EXPECT_LE(1 << 20, send_room(self->fd));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	if (!variant->tcp)
		EXPECT_EQ(before, send_room(self->fd));
	close(self->fd);
	/* What a user asks for in between stays. */
	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
	ASSERT_EQ(0, setsockopt(self->fd, SOL_SOCKET, SO_SNDBUF, &asked, sizeof(asked)));
	own = send_room(self->fd);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(own, send_room(self->fd));
}

/* A process that has a descriptor can connect the socket to another peer. */
FIXTURE(elsewhere)
{
	struct nl_session ns;
	struct genl events;
	int fd, listener;
	struct sockaddr_in addr;
};

FIXTURE_SETUP(elsewhere)
{
	const char *why = nl_init(&self->ns, 2, PEER_DEAF);
	socklen_t len = sizeof(self->addr);

	if (why)
		SKIP(return, "%s", why);
	self->fd = -1;
	self->ns.s.tcp = true;
	ASSERT_EQ(0, genl_listen(&self->events));
	self->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	self->addr.sin_family = AF_INET;
	self->addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ASSERT_EQ(0, bind(self->listener, (struct sockaddr *)&self->addr, len));
	ASSERT_EQ(0, listen(self->listener, 1));
	ASSERT_EQ(0, getsockname(self->listener, (struct sockaddr *)&self->addr, &len));
}

FIXTURE_TEARDOWN(elsewhere)
{
	close(self->fd);
	EXPECT_TRUE(nl_cleanup(&self->ns));
	close(self->listener);
}

static int disconnect_socket(int fd)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };

	return connect(fd, &none, sizeof(none)) ? -errno : 0;
}

/* Whatever was to be sent before, not a byte of it goes there. */
static void expect_silence(struct __test_metadata *_metadata, struct _test_data_elsewhere *self)
{
	struct pollfd p = { .events = POLLIN };
	char byte;

	ASSERT_EQ(0, disconnect_socket(self->fd));
	ASSERT_EQ(0, connect(self->fd, (struct sockaddr *)&self->addr, sizeof(self->addr)));
	p.fd = accept4(self->listener, NULL, NULL, SOCK_CLOEXEC);
	ASSERT_LE(0, p.fd);
	if (poll_for(&p, 1, 1500))
		EXPECT_GE(0, recv(p.fd, &byte, 1, MSG_DONTWAIT)) TH_LOG("it got bytes");
	close(p.fd);
}

/* In the middle of a request: it costs the connection, and the other one takes over. */
TEST_F(elsewhere, disconnected_in_the_middle_of_a_request)
{
	struct nl_session *ns = &self->ns;
	int i;

	ns->s.timeout = scaled(8);
	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_EQ(0, disconnect_socket(self->fd));
	for (i = 0; i < 2; i++)
		ns->s.sh->kind[i] = PEER_GOOD;
	/* At once, not at their timeout. */
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(1, nl_link_dead(&self->events, ns->s.dev.index, scaled(500)));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), SOON));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
}

/* The moment that the driver has given the connection up. */
TEST_F(elsewhere, after_a_timeout)
{
	struct nl_session *ns = &self->ns;

	ns->s.timeout = 1;
	ns->dead = scaled(20);
	ns->s.npeers = 1;
	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_EQ(1, nl_link_dead(&self->events, ns->s.dev.index, scaled(1000 + END_MS)));
	expect_silence(_metadata, self);
	EXPECT_EQ(0, nl_reconnect(ns, 0));
	holder_expect(_metadata, &ns->s, 0);
}

TEST_F(elsewhere, after_a_disconnect)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect_and_keep(ns, &self->fd));
	ASSERT_EQ(0, holder_start(&ns->s));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	expect_silence(_metadata, self);
	holder_expect(_metadata, &ns->s, EIO);
}

TEST_HARNESS_MAIN
