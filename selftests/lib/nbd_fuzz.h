/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the fuzzers share. The test forks a worker, which does all the work and says in shared
 * memory how far it is and what is wrong, and watches it: a driver that hangs leaves a stuck
 * worker, and a test that says where it hangs.
 */
#ifndef NBD_FUZZ_H
#define NBD_FUZZ_H

#include <stdatomic.h>

#include "nbd_genl.h"

struct fuzz_shared {
	_Atomic long beat;		/* moves as long as the worker does */
	_Atomic long count[16];		/* what was done, for the test to print */
	_Atomic long long stood;	/* for how long the machine stood still, in ms */
	_Atomic int done, failed;
	_Atomic int len;
	char doing[128];		/* now */
	char text[24576];		/* what is to be told, in lines */
};

extern struct fuzz_shared *fuzz;

void fuzz_init(void);
__attribute__((__format__(__printf__, 1, 2)))
void fuzz_say(const char *fmt, ...);

#define fuzz_fail(...)				\
	do {					\
		fuzz->failed = 1;		\
		fuzz_say(__VA_ARGS__);		\
	} while (0)

__attribute__((__format__(__printf__, 1, 2)))
void fuzz_doing(const char *fmt, ...);

/* Numbers that a seed decides. */
struct fuzz_random {
	uint64_t x;
};

uint64_t fuzz_next(struct fuzz_random *r);
unsigned int fuzz_pick(struct fuzz_random *r, unsigned int n);
unsigned long fuzz_env(const char *name, unsigned long otherwise);
unsigned long fuzz_seed(void);
bool fuzz_log_clean(int fd);
int fuzz_ask(struct genl *g, struct nl_msg *m, struct nl_answer *r);
bool fuzz_eof(int fd, int ms);

/* The test's side */

pid_t fuzz_fork(void);
void fuzz_stacks(pid_t pid);
void fuzz_autopsy(int index);
const char *fuzz_watch(pid_t pid, int stall_ms, bool quiet);

#endif /* NBD_FUZZ_H */
