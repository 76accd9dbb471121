/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Ways to have a task not run.
 */
#ifndef HOLD_H
#define HOLD_H

#include "nbd_test.h"

#define CGROUPS	"/sys/fs/cgroup"

enum how {
	BY_STOP,		/* SIGSTOP */
	BY_TSTP,		/* SIGTSTP, as by a terminal */
	BY_FREEZER,		/* of control groups */
	BY_ATTACH,		/* a debugger */
	BY_SEIZE,		/* a debugger that sends no signal */
	BY_STRACE,		/* stops at each system call */
	BY_TRACED_SIGNALS,	/* a debugger hears of signals that do nothing */
	BY_NOTHING,		/* signals that do nothing */
};

bool in_ioctl(pid_t pid, unsigned long cmd);
bool in_send(pid_t pid);
bool cgroup_remove(pid_t pid);
const char *hold(pid_t pid, enum how how);
const char *let_go(pid_t pid, enum how how);
void hold_none(pid_t pid);

#endif /* HOLD_H */
