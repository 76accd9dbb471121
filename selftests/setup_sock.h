/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Two processes that want to set a device up, a and b, each with a socket.
 */
#ifndef SETUP_SOCK_H
#define SETUP_SOCK_H

#include "kselftest_harness.h"
#include "nbd_test.h"

FIXTURE(sock) {
	struct nbd_dev dev;
	struct agent a, b, holder;
	/* Sockets for a and b, and what is at their other end. */
	int a_sock[2], b_sock[2];
	struct session s;
};

FIXTURE_SETUP(sock)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->a_sock));
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->b_sock));
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->b, self->dev.path));
}

FIXTURE_TEARDOWN(sock)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

#define A_PEER self->a_sock[1]
#define B_PEER self->b_sock[1]

/* Another process keeps the device open, so that nothing happens by a last close. */
#define HOLD() do {								\
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));		\
	ASSERT_EQ(0, agent_open_as(&self->holder, 0, O_RDONLY));		\
} while (0)

#endif /* SETUP_SOCK_H */
