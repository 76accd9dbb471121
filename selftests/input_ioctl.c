// SPDX-License-Identifier: GPL-2.0
/*
 * Wrong input to every ioctl, in every state, with and without CAP_SYS_ADMIN, from programs of
 * 64 and of 32 bits: the documented error, and nothing changed.
 */
#define _GNU_SOURCE
#include <kselftest_harness.h>
#include <limits.h>
#include <linux/fs.h>

#include "nbd_test.h"

enum state { IDLE, SETUP, RUNNING, STOPPED };

FIXTURE(input) {
	struct nbd_dev dev;
	struct agent user;	/* whose input is wrong; never in NBD_DO_IT */
	struct agent holder;
	struct session s;
};

FIXTURE_VARIANT(input) {
	enum state state;
	bool compat;
};

FIXTURE_VARIANT_ADD(input, idle) { .state = IDLE };
FIXTURE_VARIANT_ADD(input, setup) { .state = SETUP };
FIXTURE_VARIANT_ADD(input, running) { .state = RUNNING };
FIXTURE_VARIANT_ADD(input, stopped) { .state = STOPPED };
FIXTURE_VARIANT_ADD(input, idle_compat) { .state = IDLE, .compat = true };
FIXTURE_VARIANT_ADD(input, setup_compat) { .state = SETUP, .compat = true };
FIXTURE_VARIANT_ADD(input, running_compat) { .state = RUNNING, .compat = true };
FIXTURE_VARIANT_ADD(input, stopped_compat) { .state = STOPPED, .compat = true };

/* Why there can be no agent of 32 bits, or NULL. */
static const char *no_compat(void)
{
	struct agent a;
	char path[4200];
	long ret;

	snprintf(path, sizeof(path), "%s/helper_agent32", nbd_dir());
	if (access(path, X_OK))
		return "no compiler for 32 bits when this was built";
	ret = agent_start_as(&a, "/dev/null", "helper_agent32");
	if (!ret)
		ret = agent_open_as(&a, 0, O_RDONLY);
	kill(a.pid, SIGKILL);
	close(a.ctl);
	return ret ? "the kernel runs no 32-bit programs" : NULL;
}

static const char *pick(struct nbd_dev *d, bool compat)
{
	const char *why = nbd_pick(d);

	if (why || !compat)
		return why;
	why = no_compat();
	if (why)
		nbd_give_back(d);
	return why;
}

static int start_user(struct agent *user, struct nbd_dev *d, bool compat)
{
	return agent_start_as(user, d->path, compat ? "helper_agent32" : "helper_agent");
}

FIXTURE_SETUP(input)
{
	const char *why = pick(&self->dev, variant->compat);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, start_user(&self->user, &self->dev, variant->compat));
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));
	ASSERT_EQ(0, agent_open(&self->holder));
	ASSERT_EQ(0, agent_open(&self->user));
	switch (variant->state) {
	case IDLE:
		/* What is set while nothing is set up must not be changed either. */
		ASSERT_EQ(0, agent_start(&self->s.client, self->dev.path));
		ASSERT_EQ(0, agent_open(&self->s.client));
		ASSERT_EQ(0, agent_ioctl(&self->s.client, NBD_SET_BLKSIZE, 1024));
		ASSERT_EQ(0, agent_ioctl(&self->s.client, NBD_SET_SIZE, SESSION_SIZE));
		ASSERT_EQ(0, agent_ioctl(&self->s.client, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS));
		break;
	case SETUP:
		ASSERT_EQ(0, session_setup(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
		break;
	case RUNNING:
		ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
		break;
	case STOPPED:
		ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
		ASSERT_EQ(0, session_stop(&self->s));
		break;
	}
}

FIXTURE_TEARDOWN(input)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

/* Are the size, the block size, the flags and the sockets as FIXTURE_SETUP() left them? */
static void unchanged(struct __test_metadata *_metadata, struct nbd_dev *dev, struct session *s,
		      struct agent *holder, enum state state)
{
	if (state == STOPPED) {
		EXPECT_GE(0, agent_read(holder, 0, 4096));
		return;
	}
	if (state == IDLE) {
		int fd[2];

		EXPECT_FALSE(nbd_sys_exists(dev, "pid"));
		ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
		ASSERT_EQ(0, toy_start(&s->toy, fd[1], TOY_OBEDIENT));
		s->dev = dev;
		ASSERT_EQ(0, agent_set_sock(&s->client, &fd[0]));
	}
	EXPECT_TRUE(no_eof(s->toy.fd));
	ASSERT_EQ(0, state == RUNNING ? 0 : session_run(s));
	EXPECT_EQ(SESSION_SIZE / 512, nbd_sys(dev, "size"));
	EXPECT_EQ(1024, nbd_sys(dev, "queue/logical_block_size"));
	EXPECT_EQ(0, nbd_sys(dev, "ro"));
	EXPECT_EQ(0, nbd_sys(dev, "queue/rotational"));
	EXPECT_EQ(4096, agent_read(holder, 0, 4096));
	EXPECT_EQ(0, session_stop(s));
}

TEST_F(input, without_cap_sys_admin_is_eperm)
{
	int fd[2];
	size_t i;

	ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
	ASSERT_LE(0, agent_take(&self->user, 1, &fd[0]));
	ASSERT_EQ(0, agent_call(&self->user, AGENT_DROP_CAPS, 0, 0, 0, 0));
	EXPECT_EQ(-EPERM, agent_call(&self->user, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1));
	for (i = 0; i < ARRAY_SIZE(nbd_ioctls); i++) {
		EXPECT_EQ(-EPERM, agent_ioctl(&self->user, nbd_ioctls[i].cmd, 0)) {
			TH_LOG("%s", nbd_ioctls[i].name);
		}
		EXPECT_EQ(-EPERM, agent_ioctl(&self->user, nbd_ioctls[i].cmd, 4096)) {
			TH_LOG("%s 4096", nbd_ioctls[i].name);
		}
	}
	agent_call(&self->user, AGENT_CLOSE, 0, 1, 0, 0);
	EXPECT_TRUE(saw_eof(fd[1], SOON));
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, wrong_block_size_is_einval)
{
	static const unsigned long bad[] = {
		1, 2, 256, 511, 513, 1000, 1023, 1025, 1536, 4095, 65535, 65537, 131072, 1UL << 31,
		INT_MAX, UINT_MAX,
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_BLKSIZE, bad[i])) {
			TH_LOG("block size %lu", bad[i]);
		}
	}
	if (!variant->compat) {
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_BLKSIZE, (1UL << 32) + 512));
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 1UL << 32));
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 1UL << 63));
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_BLKSIZE, -1UL));
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_BLKSIZE, -512UL));
	}
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, size_past_2_to_the_63_is_einval)
{
	static const unsigned long bad[] = {
		1UL << 63, (1UL << 63) + 4096, ULONG_MAX, ULONG_MAX - 511,
	};
	/* Of 1024 bytes each. */
	static const unsigned long blocks[] = {
		1UL << 53, (1UL << 53) + 1, 1UL << 54, 1UL << 62, 1UL << 63, ULONG_MAX,
	};
	size_t i;

	if (variant->compat)
		SKIP(return, "an argument of 32 bits is no such size");
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_SIZE, bad[i])) {
			TH_LOG("size %lu", bad[i]);
		}
	}
	for (i = 0; i < ARRAY_SIZE(blocks); i++) {
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_SIZE_BLOCKS, blocks[i])) {
			TH_LOG("%lu blocks", blocks[i]);
		}
	}
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, unknown_nbd_ioctl_is_enotty)
{
	static const unsigned long bad[] = {
		_IO(0xab, 11), _IO(0xab, 12), _IO(0xab, 255),
		_IOW(0xab, 0, int), _IOR(0xab, 3, int), _IOWR(0xab, 4, unsigned long),
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-ENOTTY, agent_ioctl(&self->user, bad[i], 0)) {
			TH_LOG("ioctl %#lx", bad[i]);
		}
	}
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, foreign_ioctl_is_refused)
{
	static const unsigned long bad[] = {
		0, 1, 0x5331 /* CDROMEJECT */, 0x4c00 /* LOOP_SET_FD */,
		_IO('x', 0), _IO(0xaa, 0), _IO(0xac, 4),
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		long ret = agent_ioctl(&self->user, bad[i], 0);

		EXPECT_TRUE(ret == -EINVAL || ret == -ENOTTY) {
			TH_LOG("ioctl %#lx: %ld", bad[i], ret);
		}
	}
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, set_sock_without_a_socket_changes_nothing)
{
	long want = variant->state == RUNNING ? -EBUSY : -EBADF;
	long ret;

	/* Which of two reasons is given is not laid down, only that nothing happens. */
	ret = agent_ioctl(&self->user, NBD_SET_SOCK, 999);
	EXPECT_TRUE(ret == want || (variant->state != IDLE && (ret == -EBUSY || ret == -EBADF))) {
		TH_LOG("SET_SOCK: %ld", ret);
	}
	EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_SOCK, -1UL));
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, timeout_beyond_the_clock_is_einval)
{
	/* Past UINT_MAX / HZ seconds for every HZ from 100 on. */
	static const unsigned long bad[] = { UINT_MAX / 100 + 1, INT_MAX, UINT_MAX };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_TIMEOUT, bad[i])) {
			TH_LOG("timeout %lu", bad[i]);
		}
	}
	if (!variant->compat) {
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_TIMEOUT, ULONG_MAX));
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_TIMEOUT, 1UL << 32));
		EXPECT_EQ(-EINVAL, agent_ioctl(&self->user, NBD_SET_TIMEOUT, (1UL << 62) + 1));
	}
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_TIMEOUT, 0));
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, timeout_in_range_succeeds)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_TIMEOUT, UINT_MAX / 1000));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_TIMEOUT, 1));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_TIMEOUT, 0));
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, clear_que_and_print_debug_do_nothing)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_CLEAR_QUE, 0));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_PRINT_DEBUG, 0));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_CLEAR_QUE, -1UL));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_PRINT_DEBUG, -1UL));
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

TEST_F(input, do_it_at_the_wrong_time_fails)
{
	long ret;

	if (variant->state == SETUP)
		SKIP(return, "this is the right time");
	ret = agent_ioctl(&self->user, NBD_DO_IT, 0);
	EXPECT_TRUE((ret == -EINVAL && variant->state != RUNNING) ||
		    (ret == -EBUSY && variant->state != IDLE)) {
		TH_LOG("NBD_DO_IT: %ld", ret);
	}
	unchanged(_metadata, &self->dev, &self->s, &self->holder, variant->state);
}

/* What must be taken, and what it does. */

FIXTURE(valid) {
	struct nbd_dev dev;
	struct agent user, holder;
	struct toy toy;
	int sock[2];
	uint32_t do_it;
};

FIXTURE_VARIANT(valid) {
	bool compat;
};

FIXTURE_VARIANT_ADD(valid, native) { };
FIXTURE_VARIANT_ADD(valid, compat) { .compat = true };

FIXTURE_SETUP(valid)
{
	const char *why = pick(&self->dev, variant->compat);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->sock));
	ASSERT_EQ(0, start_user(&self->user, &self->dev, variant->compat));
	ASSERT_EQ(0, agent_open(&self->user));
	ASSERT_EQ(0, agent_set_sock(&self->user, &self->sock[0]));
	ASSERT_EQ(0, toy_start(&self->toy, self->sock[1], TOY_OBEDIENT));
}

FIXTURE_TEARDOWN(valid)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

#define START() do {								\
	self->do_it = agent_do_it(&self->user);					\
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));		\
} while (0)

TEST_F(valid, a_whole_session)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE_BLOCKS, SESSION_SIZE / 4096));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_TIMEOUT, 10));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_FLAGS,
				 NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_CLEAR_QUE, 0));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_PRINT_DEBUG, 0));
	START();
	EXPECT_EQ(SESSION_SIZE / 512, nbd_sys(&self->dev, "size"));
	EXPECT_EQ(4096, nbd_sys(&self->dev, "queue/logical_block_size"));
	EXPECT_EQ(4096, agent_read(&self->user, 0, 4096));
	EXPECT_EQ(4096, agent_call(&self->user, AGENT_WRITE, 0, 0, 4096, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->user, self->do_it, BOUNDED));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(self->sock[1], SOON));
}

TEST_F(valid, every_block_size)
{
	unsigned long size, max = sysconf(_SC_PAGESIZE);

	/* Up to the page size always, beyond where the kernel's page cache can. */
	for (size = 512; size <= max; size *= 2) {
		EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, size)) {
			TH_LOG("block size %lu", size);
		}
	}
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 512));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE, SESSION_SIZE));
	START();
	EXPECT_EQ(512, nbd_sys(&self->dev, "queue/logical_block_size"));
}

TEST_F(valid, block_size_64_KiB)
{
	if (agent_ioctl(&self->user, NBD_SET_BLKSIZE, 65536))
		SKIP(return, "no blocks larger than pages in this kernel");
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE_BLOCKS, SESSION_SIZE / 65536));
	START();
	EXPECT_EQ(65536, nbd_sys(&self->dev, "queue/logical_block_size"));
	EXPECT_EQ(SESSION_SIZE / 512, nbd_sys(&self->dev, "size"));
	EXPECT_EQ(65536, agent_read(&self->user, 0, 65536));
}

TEST_F(valid, block_size_0_and_default_are_1024)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE_BLOCKS, 1024));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 0));
	START();
	EXPECT_EQ(2048, nbd_sys(&self->dev, "size"));
	EXPECT_EQ(1024, nbd_sys(&self->dev, "queue/logical_block_size"));
}

TEST_F(valid, block_size_does_not_change_the_size)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 512));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE_BLOCKS, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 4096));
	START();
	EXPECT_EQ(4096, nbd_sys(&self->dev, "size"));
}

TEST_F(valid, size_not_of_whole_blocks)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 512));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE, SESSION_SIZE + 511));
	START();
	EXPECT_EQ(SESSION_SIZE / 512, nbd_sys(&self->dev, "size"));
}

TEST_F(valid, size_0)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE, 0));
	self->do_it = agent_do_it(&self->user);
	ASSERT_TRUE(WAIT_UNTIL(nbd_sys_exists(&self->dev, "pid"), BOUNDED));
	EXPECT_EQ(0, nbd_sys(&self->dev, "size"));
	EXPECT_EQ(0, agent_read(&self->user, 0, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->user, self->do_it, BOUNDED));
}

TEST_F(valid, size_of_4_TiB_by_blocks)
{
	/* What a 32-bit program has SET_SIZE_BLOCKS for. */
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE_BLOCKS, 1UL << 30));
	START();
	EXPECT_EQ(1LL << 33, nbd_sys(&self->dev, "size"));
	EXPECT_EQ(4096, agent_read(&self->user, (1ULL << 42) - 4096, 4096));
}

TEST_F(valid, largest_size)
{
	if (variant->compat)
		SKIP(return, "an argument of 32 bits is no such size");
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_BLKSIZE, 512));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE, LLONG_MAX));
	START();
	EXPECT_EQ(LLONG_MAX >> 9, nbd_sys(&self->dev, "size"));
	toy_hang_up(&self->toy);
	EXPECT_EQ(0, agent_wait(&self->user, self->do_it, BOUNDED));
}

TEST_F(valid, unknown_flags_are_taken)
{
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_FLAGS, 0xffffffff & ~NBD_FLAG_READ_ONLY));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_FLAGS, 0));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_FLAGS, 0xfe00 | NBD_FLAG_HAS_FLAGS));
	EXPECT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE, SESSION_SIZE));
	START();
	EXPECT_EQ(4096, agent_read(&self->user, 0, 4096));
}

TEST_F(valid, block_device_ioctls_still_work)
{
	struct { char guard[8]; uint64_t bytes; } dummy;
	int fd;

	ASSERT_EQ(0, agent_ioctl(&self->user, NBD_SET_SIZE, SESSION_SIZE));
	START();
	/* The test's own, for once: an argument in memory cannot be sent to an agent. */
	fd = open(self->dev.path, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, ioctl(fd, BLKGETSIZE64, &dummy.bytes));
	EXPECT_EQ((uint64_t)SESSION_SIZE, dummy.bytes);
	EXPECT_EQ(0, ioctl(fd, BLKFLSBUF, 0));
	close(fd);
	EXPECT_EQ(0, agent_ioctl(&self->user, BLKFLSBUF, 0));
}

TEST_HARNESS_MAIN
