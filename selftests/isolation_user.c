// SPDX-License-Identifier: GPL-2.0
/*
 * Who has no CAP_SYS_ADMIN in the initial user namespace changes nothing, whatever namespaces it
 * makes and whoever opened its descriptors. Nobody learns an address of the kernel, and neither
 * such a user nor a server can fill the log.
 */
#define _GNU_SOURCE
#include <ftw.h>
#include <grp.h>
#include <sched.h>
#include <stdarg.h>

#include "kselftest_harness.h"
#include "nbd_nlpeer.h"

#define NOBODY	65534
/* Not the name of a device that is there, nor of one that another test makes. */
#define NO_INDEX	444

/* What a user without privilege finds that should not be, for the test to show. */
struct found {
	_Atomic int done;
	int tried, n;
	char text[16][160];
};

static struct found *found;

static void __attribute__((__format__(__printf__, 1, 2))) find(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (found->n < 16)
		vsnprintf(found->text[found->n], sizeof(found->text[0]), fmt, ap);
	found->n++;
	va_end(ap);
}

/* Ways to be without privilege. */

static int be_nobody(void)
{
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		return -errno;
	prctl(PR_SET_DUMPABLE, 1);
	return 0;
}

static int be_root_of(int flags, int uid)
{
	char map[32];

	if (unshare(CLONE_NEWUSER | flags))
		return -errno;
	snprintf(map, sizeof(map), "0 %d 1", uid);
	write_file("/proc/self/setgroups", "deny");
	if (!write_file("/proc/self/uid_map", map) || !write_file("/proc/self/gid_map", map))
		return -EPERM;
	return geteuid() ? -EPERM : 0;
}

static int be_root_of_user_ns(void)
{
	return be_root_of(0, 0);
}

static int be_root_of_user_and_net_ns(void)
{
	return be_root_of(CLONE_NEWNET, 0);
}

static int nobody_be_root_of_user_ns(void)
{
	return be_nobody() ?: be_root_of(0, NOBODY);
}

static int nobody_be_root_of_user_and_net_ns(void)
{
	return be_nobody() ?: be_root_of(CLONE_NEWNET, NOBODY);
}

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

static const char *can_become(int (*become)(void))
{
	int status;
	pid_t pid;

	if (geteuid())
		return "must be run as root";
	fflush(NULL);
	pid = fork();
	if (!pid)
		_exit(become() ? 1 : 0);
	if (waitpid(pid, &status, 0) != pid || status)
		return "the kernel has no user namespaces for this user";
	return NULL;
}

static const char *begin(struct nl_session *ns)
{
	found = shared_memory(sizeof(*found));
	return found ? nl_init(ns, 1, PEER_GOOD) : "no memory";
}

FIXTURE_SETUP(user)
{
	const char *why = can_become(variant->become) ?: begin(&self->ns);

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

static void refused_ioctls(int dev, int sock, const char *whose)
{
	static const unsigned long args[] = { 0, 1, 4096, -1UL };
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(nbd_ioctls); i++) {
		const char *name = nbd_ioctls[i].name;
		unsigned long cmd = nbd_ioctls[i].cmd;

		for (j = 0; j < ARRAY_SIZE(args); j++) {
			unsigned long arg = cmd == NBD_SET_SOCK ? (unsigned long)sock : args[j];

			found->tried++;
			if (ioctl(dev, cmd, arg) >= 0)
				find("%s %lu on %s descriptor: done", name, arg, whose);
			else if (errno != EPERM)
				find("%s %lu on %s descriptor: %s", name, arg, whose,
				     strerrorname_np(errno));
		}
	}
}

static void refused_message(struct genl *g, struct nl_msg *m, const char *name, const char *whose)
{
	struct nl_answer r = {};
	int ret = nl_exchange(g->fd, g->family, m, &r);

	found->tried++;
	if (ret != -EPERM)
		find("%s on %s socket: %s", name, whose, ret ? strerrorname_np(-ret) : "done");
}

static void refused_messages(struct genl *g, struct nl_session *ns, int sock, const char *whose)
{
	static struct nl_msg m;
	static struct nl_answer r;
	int index = ns->s.dev.index;

	nl_begin_connect(&m, ns, index, &sock, 1);
	refused_message(g, &m, "CONNECT", whose);
	nl_begin_connect(&m, ns, -1, &sock, 1);
	refused_message(g, &m, "CONNECT to any", whose);
	nl_begin_connect(&m, ns, NO_INDEX, &sock, 1);
	refused_message(g, &m, "CONNECT to a new one", whose);
	nl_begin(&m, NBD_CMD_CONNECT, -1);
	refused_message(g, &m, "CONNECT without anything", whose);
	nl_begin(&m, NBD_CMD_RECONFIGURE, index);
	refused_message(g, &m, "RECONFIGURE of nothing", whose);
	nl_begin(&m, NBD_CMD_RECONFIGURE, index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2);
	nl_u64(&m, NBD_ATTR_TIMEOUT, 7);
	nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 512);
	nl_u64(&m, NBD_ATTR_CLIENT_FLAGS, NBD_CFLAG_DISCONNECT_ON_CLOSE);
	nl_socks(&m, &sock, 1);
	refused_message(g, &m, "RECONFIGURE", whose);
	nl_begin(&m, NBD_CMD_DISCONNECT, index);
	refused_message(g, &m, "DISCONNECT", whose);
	nl_begin(&m, NBD_CMD_DISCONNECT, NO_INDEX);
	refused_message(g, &m, "DISCONNECT of none", whose);

	nl_begin(&m, NBD_CMD_STATUS, index);
	memset(&r, 0, sizeof(r));
	if (nl_exchange(g->fd, g->family, &m, &r) || r.ndevs != 1 || r.dev[0].index != index)
		find("STATUS on %s socket: %s", whose, strerrorname_np(-r.ret));
}

static bool user_done(pid_t pid)
{
	return found->done || exited(pid);
}

/* Do this as such a user; EXPECT that it finds nothing. */
#define AS_USER(become, ms, statement) do {					\
	pid_t __pid;							\
	int __i;							\
									\
	memset(found, 0, sizeof(*found));				\
	__pid = fork_quiet();						\
	if (!__pid) {							\
		if (become())						\
			find("cannot become that user");		\
		else							\
			statement;					\
		found->done = 1;					\
		_exit(0);						\
	}								\
	EXPECT_TRUE(WAIT_UNTIL(user_done(__pid), ms))			\
		TH_LOG("it hangs");					\
	EXPECT_TRUE(found->done) TH_LOG("it died");			\
	kill(__pid, SIGKILL);						\
	reap(__pid, BOUNDED);						\
	EXPECT_EQ(0, found->n) {					\
		for (__i = 0; __i < found->n && __i < 16; __i++)	\
			TH_LOG("%s", found->text[__i]);			\
	}								\
} while (0)

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
		/* Nobody can open it; and who can may not do more than with root's. */
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
	/* Nobody has kept the socket that was offered. */
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

/* A socket that somebody without privilege has opened is no better in root's hands. */
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

/* The log and debugfs */

struct log {
	int fd;
	int lines;		/* since log_start() */
	int addresses;
	long long start;
	char last[512];
};

/* 16 hexadecimal digits in a row, as an address of the kernel has, or what is printed for one. */
static bool has_address(const char *text)
{
	int run = 0;

	for (; *text; text++) {
		run = isxdigit((unsigned char)*text) ? run + 1 : 0;
		if (run >= 16)
			return true;
	}
	return false;
}

static int log_start(struct log *l)
{
	memset(l, 0, sizeof(*l));
	l->fd = log_open();
	l->start = now_ms();
	return l->fd < 0 ? l->fd : 0;
}

/* Count all lines, whoever they are from: nothing else runs here. */
static void log_read(struct log *l)
{
	const char *text;

	while ((text = log_next(l->fd))) {
		l->lines++;
		if (!has_address(text))
			continue;
		l->addresses++;
		snprintf(l->last, sizeof(l->last), "%s", text);
	}
}

/* Some lines, and some more for every five seconds, which is how the kernel limits messages. */
static int log_bound(struct log *l)
{
	return 30 + 30 * (now_ms() - l->start) / 5000;
}

static void expect_quiet(struct __test_metadata *_metadata, struct log *l, const char *what)
{
	log_read(l);
	ksft_print_msg("%s: %d lines in the log, in %lld ms\n", what, l->lines,
		       now_ms() - l->start);
	EXPECT_GE(log_bound(l), l->lines);
	EXPECT_EQ(0, l->addresses) TH_LOG("%s", l->last);
	close(l->fd);
}

FIXTURE(quiet)
{
	struct nl_session ns;
	struct log log;
};

FIXTURE_SETUP(quiet)
{
	const char *why = begin(&self->ns);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, log_start(&self->log));
}

FIXTURE_TEARDOWN(quiet)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

TEST_F_TIMEOUT(quiet, thousands_of_refused_ioctls, 200)
{
	int dev = open(self->ns.s.dev.path, O_RDWR | O_CLOEXEC), pair[2];

	ASSERT_LE(0, dev);
	ASSERT_EQ(0, make_pair(KIND_UNIX, pair));
	AS_USER(be_nobody, 20000, {
		while (found->tried < scaled_down(10000))
			refused_ioctls(dev, pair[0], "root's");
	});
	EXPECT_LE(scaled_down(10000), found->tried);
	expect_quiet(_metadata, &self->log, "thousands of refused ioctls");
	close(dev);
}

TEST_F_TIMEOUT(quiet, thousands_of_refused_messages, 200)
{
	int pair[2];

	ASSERT_EQ(0, make_pair(KIND_UNIX, pair));
	AS_USER(be_nobody, 20000, {
		struct genl own;

		if (genl_open(&own))
			find("cannot find the family");
		while (!found->n && found->tried < scaled_down(1000))
			refused_messages(&own, &self->ns, pair[0], "its own");
	});
	EXPECT_LE(scaled_down(1000), found->tried);
	expect_quiet(_metadata, &self->log, "a thousand refused messages");
}

static int read_one_file(const char *path, const struct stat *st __maybe_unused, int type,
			 struct FTW *ftw __maybe_unused)
{
	char buf[4096];
	int fd;

	if (type != FTW_F)
		return 0;
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (read(fd, buf, sizeof(buf)) >= 0)
		found->tried++;
	close(fd);
	return found->tried >= scaled_down(10000);
}

TEST_F_TIMEOUT(quiet, thousands_of_files_read, 200)
{
	struct nl_session *ns = &self->ns;
	char path[64];

	ns->backend = "a backend";
	ASSERT_EQ(0, nl_connect(ns));
	/* What /sys/block/nbdN links to. */
	snprintf(path, sizeof(path), "/sys/devices/virtual/block/nbd%d", ns->s.dev.index);
	AS_USER(be_nobody, 25000, {
		int before = -1;

		while (found->tried > before && found->tried < scaled_down(10000)) {
			before = found->tried;
			nftw(path, read_one_file, 8, FTW_PHYS);
		}
	});
	EXPECT_LE(scaled_down(10000), found->tried);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	expect_quiet(_metadata, &self->log, "thousands of files read");
}

/* Each read is refused by the server, in all the ways that there are. */
static int thousand_errors(struct peer_session *s)
{
	static const uint32_t errors[] = {
		EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ENODEV, 255, 0xffffffff,
	};
	static unsigned char buf[4096] __aligned(4096);
	int fd = open(s->dev.path, O_RDONLY | O_DIRECT), max = scaled_down(1000), i, n = 0;

	for (i = 0; i < max; i++) {
		s->sh->error = errors[i % ARRAY_SIZE(errors)];
		n += pread(fd, buf, sizeof(buf), (off_t)i * sizeof(buf)) < 0;
	}
	s->sh->error = 0;
	return n != max;
}

TEST_F_TIMEOUT(quiet, a_thousand_errors_from_the_server, 120)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, thousand_errors), 20000));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), BOUNDED));
	EXPECT_FALSE(exited(ns->s.peer[0]));
	expect_quiet(_metadata, &self->log, "a thousand errors from the server");
}

/* What is no reply costs the connection, and with it the only way to say more. */
TEST_F_TIMEOUT(quiet, lies_of_four_servers, 120)
{
	static const enum peer_kind kinds[] = {
		PEER_BAD_MAGIC, PEER_BAD_COOKIE, PEER_TWICE, PEER_CLOSE_PAYLOAD,
	};
	struct nl_session *ns = &self->ns;
	int i;

	ns->s.npeers = 4;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(&ns->s));
	for (i = 0; i < 4; i++) {
		ns->s.sh->kind[i] = kinds[i];
		ns->s.sh->go[i] = 1;
	}
	EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->io_done == HOLDER_THREADS, 10000));
	usleep(100000);
	expect_quiet(_metadata, &self->log, "the lies of four servers");
}

/* A server that is gone as soon as it is there: the socket to it. */
static int gone_server(int *fd, int *end)
{
	int pair[2], ret = make_pair(KIND_UNIX, pair);

	if (ret)
		return ret;
	*fd = pair[0];
	*end = pair[1];
	return shutdown(pair[1], SHUT_WR) ? -errno : 0;
}

TEST_F_TIMEOUT(quiet, client_that_reconnects_for_ever, 120)
{
	struct nl_session *ns = &self->ns;
	int i, fd, end;
	char c;

	ns->dead = 10;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	for (i = 0; i < scaled_down(200); i++) {
		struct nl_msg m;

		ASSERT_EQ(0, gone_server(&fd, &end));
		nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
		nl_socks(&m, &fd, 1);
		ASSERT_EQ(0, nl_do(&m)->ret);
		/* The connection is lost when the driver closes it. */
		ASSERT_EQ(0, read(end, &c, 1));
		close(fd);
		close(end);
	}
	expect_quiet(_metadata, &self->log, "many connections lost and replaced");
}

TEST_F_TIMEOUT(quiet, client_that_restarts_for_ever, 120)
{
	int dev = open(self->ns.s.dev.path, O_RDWR | O_CLOEXEC), i, fd, end;

	ASSERT_LE(0, dev);
	for (i = 0; i < scaled_down(200); i++) {
		ASSERT_EQ(0, gone_server(&fd, &end));
		ASSERT_EQ(0, ioctl(dev, NBD_SET_SOCK, fd));
		ASSERT_EQ(0, ioctl(dev, NBD_DO_IT));
		ASSERT_EQ(0, ioctl(dev, NBD_CLEAR_SOCK));
		close(fd);
		close(end);
	}
	close(dev);
	expect_quiet(_metadata, &self->log, "many sessions that the server ended");
}

/* No device is there before. */
#define NEW_INDEX	240

static int debug_bad, debug_files;

/* Everybody may read it by its mode, nobody may write it, and it shows no addresses. */
static int look_at_debug(const char *path, const struct stat *st, int type,
			 struct FTW *ftw __maybe_unused)
{
	char buf[65536];
	ssize_t n;

	if (type != FTW_F)
		return 0;
	debug_files++;
	if (st->st_mode & 0333) {
		ksft_print_msg("%s has mode %o\n", path, st->st_mode & 07777);
		debug_bad++;
	}
	n = read_file(path, buf, sizeof(buf));
	if (n < 0 || has_address(buf)) {
		ksft_print_msg("%s: %s\n", path, n < 0 ? "cannot be read" : buf);
		debug_bad++;
	}
	return 0;
}

static int cannot_read_debug(const char *path, const struct stat *st __maybe_unused,
			     int type __maybe_unused, struct FTW *ftw __maybe_unused)
{
	find("%s can be found", path);
	return 1;
}

TEST_F(quiet, no_addresses)
{
	struct nl_session *ns = &self->ns;
	int i, picked = ns->s.dev.index;
	struct stat st;
	char path[64];

	if (stat("/sys/kernel/debug/nbd", &st))
		SKIP(return, "no debugfs");
	/* A device that nothing was logged about yet. */
	nl_use(ns, NEW_INDEX);
	ns->cflags = NBD_CFLAG_DESTROY_ON_DISCONNECT;
	ns->s.npeers = 4;
	ns->s.tcp = true;
	ns->backend = "a backend";
	ASSERT_EQ(0, nl_connect(ns));
	snprintf(path, sizeof(path), "/sys/kernel/debug/nbd/nbd%d", ns->s.dev.index);
	/* With all connections, then with three that were lost, each in another way. */
	for (i = 0; i < 2; i++) {
		debug_files = 0;
		debug_bad = 0;
		nftw(path, look_at_debug, 8, FTW_PHYS);
		EXPECT_LE(5, debug_files);
		EXPECT_EQ(0, debug_bad);
		if (i)
			break;
		ASSERT_EQ(0, holder_begin(&ns->s));
		ns->s.sh->kind[0] = PEER_BAD_MAGIC;
		ns->s.sh->kind[1] = PEER_BAD_COOKIE;
		ns->s.sh->go[0] = 1;
		ns->s.sh->go[1] = 1;
		kill(ns->s.peer[2], SIGKILL);
		EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->io_done == HOLDER_THREADS, 10000));
	}
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nl_use(ns, picked);
	usleep(100000);
	log_read(&self->log);
	EXPECT_LT(3, self->log.lines) TH_LOG("the log says nothing of all that");
	expect_quiet(_metadata, &self->log, "a session with lost connections");
	/* That is for the mode of the mount, which is root's alone unless root changes it. */
	if (!stat("/sys/kernel/debug", &st) && !(st.st_mode & 077))
		AS_USER(be_nobody, BOUNDED,
			nftw("/sys/kernel/debug/nbd", cannot_read_debug, 8, FTW_PHYS));
}

TEST_HARNESS_MAIN
