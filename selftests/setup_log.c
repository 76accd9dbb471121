// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel log says when a device is refused: enough for an operator to know whom to ask
 * and what to wait for, without a crash dump.
 */
#define _GNU_SOURCE
#include <kselftest_harness.h>

#include "nbd_test.h"

FIXTURE(log) {
	struct nbd_dev dev;
	struct agent a, b, holder;
	int log;
};

FIXTURE_SETUP(log)
{
	const char *why;

	if (!nbd_is_rust())
		SKIP(return, "the C driver's messages are not ours");
	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->b, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));
	self->log = log_open();
	ASSERT_LE(0, self->log);
}

FIXTURE_TEARDOWN(log)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

/*
 * Messages are rate-limited: what was said of another device just now may have used this one's
 * share.
 */
#define LOGGED(refused, ...) ({							\
	const char *const __words[] = { __VA_ARGS__, NULL };			\
	long long __end = now_ms() + 12000;					\
	bool __found = logged(self->log, &self->dev, __words);			\
	while (!__found && now_ms() < __end) {					\
		usleep(500000);							\
		refused;							\
		__found = logged(self->log, &self->dev, __words);		\
	}									\
	__found;								\
})

static long refuse(struct agent *b)
{
	int fd[2];
	long ret;

	if (make_pair(KIND_UNIX, fd))
		return -errno;
	ret = agent_set_sock(b, &fd[0]);
	close(fd[1]);
	return ret;
}

TEST_F(log, other_owner_is_named)
{
	char pid[16];
	int fd[2];

	ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_set_sock(&self->a, &fd[0]));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, refuse(&self->b));
	snprintf(pid, sizeof(pid), "%d", self->a.pid);
	EXPECT_TRUE(LOGGED(refuse(&self->b), pid, "helper_agent"));
}

TEST_F(log, previous_session_and_its_openers)
{
	struct session s;

	ASSERT_EQ(0, agent_open(&self->holder));
	ASSERT_EQ(0, session_start(&s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&s));
	ASSERT_TRUE(agent_kill(&s.client));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, refuse(&self->b));
	/* It waits for one: the holder. */
	EXPECT_TRUE(LOGGED(refuse(&self->b), "previous session", "but 1 opener"));
}

TEST_F(log, running)
{
	static const char *const any[] = { "", NULL };
	struct session s;

	ASSERT_EQ(0, session_start(&s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_open(&self->b));
	usleep(10000);
	logged(self->log, &self->dev, any);
	EXPECT_EQ(-EBUSY, refuse(&self->b));
	EXPECT_TRUE(LOGGED(refuse(&self->b), "NBD_SET_SOCK", "session is running"));
}

TEST_F(log, wrong_kind_of_socket)
{
	ASSERT_EQ(0, agent_open(&self->a));
	EXPECT_TRUE(LOGGED(({
		int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		EXPECT_EQ(-EINVAL, agent_set_sock(&self->a, &fd));
	}), "TCP"));
}

TEST_F(log, two_sockets_without_multi_conn)
{
	ASSERT_EQ(0, agent_open(&self->a));
	EXPECT_TRUE(LOGGED(({
		EXPECT_EQ(0, refuse(&self->a));
		EXPECT_EQ(0, refuse(&self->a));
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->a, NBD_DO_IT, 0));
	}), "multi"));
}

TEST_F(log, refusals_are_rate_limited)
{
	int fd[2], i, lines = 0;
	const char *text;
	char name[32];

	ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_set_sock(&self->a, &fd[0]));
	ASSERT_EQ(0, agent_open(&self->b));
	for (i = 0; i < 100; i++)
		ASSERT_EQ(-EBUSY, refuse(&self->b));
	snprintf(name, sizeof(name), "nbd%d:", self->dev.index);
	while ((text = log_next(self->log)))
		lines += !!strstr(text, name);
	EXPECT_GT(50, lines);
}

/* State changes are told even when nothing is wrong; again, until neither is left out. */
TEST_F(log, session_begins_and_ends)
{
	static const char *const begin[] = { "session started by task", "1 connection", NULL };
	static const char *const end[] = { "session ended", NULL };
	long long until = now_ms() + 12000;
	bool begun, ended;

	do {
		struct session s;

		ASSERT_EQ(0, session_start(&s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
		begun = WAIT_UNTIL(logged(self->log, &self->dev, begin), SOON / 2);
		ASSERT_EQ(0, session_stop(&s));
		ended = WAIT_UNTIL(logged(self->log, &self->dev, end), SOON / 2);
		ASSERT_TRUE(agent_kill(&s.client));
	} while (!(begun && ended) && now_ms() < until);
	EXPECT_TRUE(begun);
	EXPECT_TRUE(ended);
}

#define LEVEL_INFO	6

/*
 * The level of a new message about this device with these words: the number at the beginning of
 * its line; -1 if there is none.
 */
static int level(int kmsg, struct nbd_dev *d, const char *words)
{
	char line[8192], name[32];
	int found = -1;
	ssize_t n;

	snprintf(name, sizeof(name), "nbd%d:", d->index);
	while ((n = read(kmsg, line, sizeof(line) - 1)) > 0 || (n < 0 && errno == EPIPE)) {
		if (n < 0)
			continue;
		line[n] = 0;
		if (strstr(line, name) && strstr(line, words))
			found = atoi(line) % 8;
	}
	return found;
}

static int open_log(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	lseek(fd, 0, SEEK_END);
	return fd;
}

/* Changes of the state are information, neither errors nor only for debugging. */
TEST_F(log, state_changes_have_level_info)
{
	int begun = -1, lost = -1, ended = -1, dropped = -1, fd[2], again[2];
	int kmsg[4] = { open_log(), open_log(), open_log(), open_log() };
	long long until = now_ms() + 12000;

	ASSERT_LE(0, kmsg[3]);
	/* Again, until none was left out because of the others. */
	do {
		struct agent owner;
		struct session s;

		ASSERT_EQ(0, session_start(&s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
		ASSERT_EQ(0, session_stop(&s));
		ASSERT_TRUE(agent_kill(&s.client));
		ASSERT_EQ(0, agent_open(&self->b));
		ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
		ASSERT_EQ(0, make_pair(KIND_UNIX, again));
		ASSERT_EQ(0, agent_start(&owner, self->dev.path));
		ASSERT_EQ(0, agent_open(&owner));
		ASSERT_EQ(0, agent_set_sock(&owner, &fd[0]));
		ASSERT_TRUE(agent_kill(&owner));
		ASSERT_EQ(0, agent_set_sock(&self->b, &again[0]));
		ASSERT_EQ(0, agent_close(&self->b));
		close(fd[1]);
		close(again[1]);
		if (begun < 0)
			begun = level(kmsg[0], &self->dev, "session started");
		if (lost < 0)
			lost = level(kmsg[1], &self->dev, "lost: closed by the server");
		if (ended < 0)
			ended = level(kmsg[2], &self->dev, "session ended");
		if (dropped < 0)
			dropped = level(kmsg[3], &self->dev, "whose owner has exited");
	} while ((begun < 0 || lost < 0 || ended < 0 || dropped < 0) && now_ms() < until);
	EXPECT_EQ(LEVEL_INFO, begun) TH_LOG("a session begins");
	EXPECT_EQ(LEVEL_INFO, lost) TH_LOG("a connection is lost");
	EXPECT_EQ(LEVEL_INFO, ended) TH_LOG("it ends");
	EXPECT_EQ(LEVEL_INFO, dropped) TH_LOG("a setup is dropped");
}

TEST_HARNESS_MAIN
