// SPDX-License-Identifier: GPL-2.0
/*
 * Ways to have a task not run.
 */
#include <sys/ptrace.h>

#include "hold.h"

/* What the kernel continues a system call with that it has interrupted in some ways. */
#define NR_RESTART	SYS_restart_syscall

/* The system call that a process sleeps in, or -1. */
static long sleeps_in(pid_t pid, unsigned long *arg2)
{
	char path[64], text[256];
	long nr;

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	if (read_file(path, text, sizeof(text)) <= 0 ||
	    sscanf(text, "%ld %*x %lx", &nr, arg2) != 2)
		return -1;
	return nr;
}

bool in_ioctl(pid_t pid, unsigned long cmd)
{
	unsigned long arg2 = 0;
	long nr = sleeps_in(pid, &arg2);

	return nr == NR_RESTART || (nr == SYS_ioctl && arg2 == cmd);
}

bool in_send(pid_t pid)
{
	unsigned long arg2;

	return sleeps_in(pid, &arg2) == SYS_sendto;
}

/* Control groups */

static void cgroup_file(char *path, size_t len, pid_t pid, const char *name)
{
	snprintf(path, len, CGROUPS "/nbd-selftest.%d/%s", pid, name);
}

static bool cgroup_write(pid_t pid, const char *name, const char *text)
{
	char path[128];

	cgroup_file(path, sizeof(path), pid, name);
	return write_file(path, text);
}

static bool cgroup_frozen(pid_t pid)
{
	char path[128], text[256];

	cgroup_file(path, sizeof(path), pid, "cgroup.events");
	return read_file(path, text, sizeof(text)) > 0 && strstr(text, "frozen 1");
}

bool cgroup_remove(pid_t pid)
{
	char path[128];

	cgroup_file(path, sizeof(path), pid, "");
	return !rmdir(path) || errno == ENOENT;
}

static const char *cgroup_hold(pid_t pid)
{
	char path[128], text[16];

	cgroup_file(path, sizeof(path), pid, "");
	snprintf(text, sizeof(text), "%d", pid);
	if (mkdir(path, 0755) || !cgroup_write(pid, "cgroup.procs", text) ||
	    !cgroup_write(pid, "cgroup.freeze", "1"))
		return "no control group";
	return WAIT_UNTIL(cgroup_frozen(pid), BOUNDED) ? NULL : "it does not freeze";
}

static const char *cgroup_let_go(pid_t pid)
{
	char text[16];

	if (!cgroup_write(pid, "cgroup.freeze", "0") ||
	    !WAIT_UNTIL(!cgroup_frozen(pid), BOUNDED))
		return "it does not thaw";
	/* A process that has exited is in none. */
	snprintf(text, sizeof(text), "%d", pid);
	write_file(CGROUPS "/cgroup.procs", text);
	return WAIT_UNTIL(cgroup_remove(pid), BOUNDED) ? NULL : "the control group stays";
}

/* A debugger */

/* Wait for a stop: its status, or -1. */
static int trace_stop(pid_t pid)
{
	int status;

	if (!WAIT_UNTIL(waitpid(pid, &status, WNOHANG | __WALL) == pid, BOUNDED) ||
	    !WIFSTOPPED(status))
		return -1;
	return status;
}

static bool trace_interrupt(pid_t pid)
{
	return !ptrace(PTRACE_INTERRUPT, pid, 0, 0) && trace_stop(pid) >= 0;
}

/* Interrupt it, and go on from stop to stop until it makes a system call. */
static const char *strace(pid_t pid)
{
	struct __ptrace_syscall_info info;
	int round, stops;

	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD))
		return "PTRACE_SEIZE";
	for (round = 0; round < 3; round++) {
		if (ptrace(PTRACE_INTERRUPT, pid, 0, 0))
			return "PTRACE_INTERRUPT";
		for (stops = 0; stops < 10; stops++) {
			info.op = 0;
			if (trace_stop(pid) < 0)
				return "it does not stop";
			ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info);
			if (ptrace(PTRACE_SYSCALL, pid, 0, 0))
				return "PTRACE_SYSCALL";
			if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
				break;
		}
		if (stops == 10)
			return "it makes no system call";
	}
	return trace_interrupt(pid) ? NULL : "it does not stop again";
}

static const int nothing[] = { SIGUSR1, SIGUSR2, SIGCHLD, SIGWINCH, SIGURG, SIGCONT };

static const char *traced_signals(pid_t pid)
{
	int status;
	size_t i;

	if (ptrace(PTRACE_SEIZE, pid, 0, 0))
		return "PTRACE_SEIZE";
	/* The last, SIGCONT, would also end a stop, which is another event. */
	for (i = 0; i < ARRAY_SIZE(nothing) - 1; i++) {
		kill(pid, nothing[i]);
		/* This one is blocked. */
		if (nothing[i] == SIGUSR2)
			continue;
		status = trace_stop(pid);
		if (status < 0 || WSTOPSIG(status) != nothing[i])
			return "the debugger does not hear of a signal";
		if (ptrace(PTRACE_CONT, pid, 0, nothing[i]))
			return "PTRACE_CONT";
	}
	return trace_interrupt(pid) ? NULL : "it does not stop";
}

/* Have the process not run: NULL, or what is wrong. */
const char *hold(pid_t pid, enum how how)
{
	size_t i;

	switch (how) {
	case BY_STOP:
		kill(pid, SIGSTOP);
		return WAIT_UNTIL(proc_state(pid) == 'T', BOUNDED) ? NULL : "it does not stop";
	case BY_TSTP:
		/* In a process group whose parent may continue it. */
		setpgid(pid, pid);
		kill(pid, SIGTSTP);
		return WAIT_UNTIL(proc_state(pid) == 'T', BOUNDED) ? NULL : "it does not stop";
	case BY_FREEZER:
		return cgroup_hold(pid);
	case BY_ATTACH:
		if (ptrace(PTRACE_ATTACH, pid, 0, 0))
			return "PTRACE_ATTACH";
		return trace_stop(pid) >= 0 ? NULL : "it does not stop";
	case BY_SEIZE:
		if (ptrace(PTRACE_SEIZE, pid, 0, 0))
			return "PTRACE_SEIZE";
		return trace_interrupt(pid) ? NULL : "it does not stop";
	case BY_STRACE:
		return strace(pid);
	case BY_TRACED_SIGNALS:
		return traced_signals(pid);
	case BY_NOTHING:
		for (i = 0; i < ARRAY_SIZE(nothing); i++)
			kill(pid, nothing[i]);
	}
	return NULL;
}

const char *let_go(pid_t pid, enum how how)
{
	switch (how) {
	case BY_STOP:
	case BY_TSTP:
		return kill(pid, SIGCONT) ? "SIGCONT" : NULL;
	case BY_FREEZER:
		return cgroup_let_go(pid);
	case BY_NOTHING:
		return NULL;
	default:
		return ptrace(PTRACE_DETACH, pid, 0, 0) ? "PTRACE_DETACH" : NULL;
	}
}

/* Let the process go, however it is held. */
void hold_none(pid_t pid)
{
	cgroup_write(pid, "cgroup.freeze", "0");
	ptrace(PTRACE_DETACH, pid, 0, 0);
	kill(pid, SIGCONT);
}
