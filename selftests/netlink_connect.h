/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A device for CONNECT, and room for a pair of sockets.
 */
#ifndef NETLINK_CONNECT_H
#define NETLINK_CONNECT_H

#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

FIXTURE(connect)
{
	struct nl_session ns;
	int pair[2];
};

FIXTURE_SETUP(connect)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->pair[0] = -1;
	self->pair[1] = -1;
}

FIXTURE_TEARDOWN(connect)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

#endif /* NETLINK_CONNECT_H */
