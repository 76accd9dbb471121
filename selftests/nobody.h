/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A user without privilege, and what it tries.
 */
#ifndef NOBODY_H
#define NOBODY_H

#include "nbd_nlpeer.h"

/* Not the name of a device that is there, nor of one that another test makes. */
#define NO_INDEX	444

/* What it finds that should not be, for the test to show. */
struct found {
	_Atomic int done;
	int tried, n;
	char text[16][160];
};

extern struct found *found;

void __attribute__((__format__(__printf__, 1, 2))) find(const char *fmt, ...);
int be_nobody(void);
int be_root_of_user_ns(void);
int be_root_of_user_and_net_ns(void);
int nobody_be_root_of_user_ns(void);
int nobody_be_root_of_user_and_net_ns(void);
const char *can_become(int (*become)(void));
const char *nobody_init(struct nl_session *ns);
void refused_ioctls(int dev, int sock, const char *whose);
void refused_messages(struct genl *g, struct nl_session *ns, int sock, const char *whose);
bool user_done(pid_t pid);

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

#endif /* NOBODY_H */
