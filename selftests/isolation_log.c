// SPDX-License-Identifier: GPL-2.0
/*
 * The log and debugfs show no address of the kernel, and neither a user without privilege nor a
 * server can fill the log.
 */
#include <ftw.h>

#include "kselftest_harness.h"
#include "nobody.h"

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

/* Count all lines, no matter what they are from: nothing else runs here. */
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
	const char *why = nobody_init(&self->ns);

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

/* By its mode all users may read it and none may write it, and it shows no addresses. */
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
