/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A device for RECONFIGURE, with a process and a program that use it.
 */
#ifndef NETLINK_RECONF_H
#define NETLINK_RECONF_H

#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS	2000

FIXTURE(reconf)
{
	struct nl_session ns;
	struct session io;
	struct agent a;
	int pair[2];
};

FIXTURE_SETUP(reconf)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(reconf)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

#endif /* NETLINK_RECONF_H */
