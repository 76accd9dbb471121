// SPDX-License-Identifier: GPL-2.0
/*
 * The processes of a test.
 */
#include <ctype.h>
#include <dirent.h>
#include <libgen.h>

#include "nbd_test.h"

/* Those that are to be gone at the end of the test; 0: none. */
static pid_t children[64];

/* Sockets in the system that are not netlink's, nor ones of TCP that only wait for their end. */
int count_sockets(void)
{
	static const char *const files[] = { "/proc/net/unix", "/proc/net/tcp", "/proc/net/tcp6" };
	char line[512], state[16];
	int n = 0;
	size_t i;
	FILE *f;

	for (i = 0; i < ARRAY_SIZE(files); i++) {
		f = fopen(files[i], "re");
		while (f && fgets(line, sizeof(line), f))
			n += sscanf(line, "%*s %*s %*s %15s", state) == 1 && strcmp(state, "06");
		if (f)
			fclose(f);
	}
	return n;
}

void nbd_child(pid_t pid)
{
	int i;

	for (i = 0; pid > 0 && i < 64; i++) {
		if (!children[i]) {
			children[i] = pid;
			break;
		}
	}
}

/* It is gone, and its number may soon be another one's. */
void nbd_child_gone(pid_t pid)
{
	int i;

	for (i = 0; i < 64; i++)
		if (children[i] == pid)
			children[i] = 0;
}

/* Another process sees to those that there are. */
void nbd_children_forget(void)
{
	memset(children, 0, sizeof(children));
}

/* Kill them; false if one does not end. */
bool nbd_children_end(void)
{
	bool ok = true;
	int i;

	for (i = 0; i < 64; i++)
		if (children[i])
			kill(children[i], SIGKILL);
	for (i = 0; i < 64; i++)
		ok = (!children[i] || reap(children[i], 2000)) && ok;
	nbd_children_forget();
	return ok;
}

/*
 * A child that keeps no descriptor of the test, so that one that is stuck does not hold a pipe
 * open.
 */
pid_t fork_quiet(void)
{
	pid_t pid;
	int null;

	fflush(NULL);
	pid = fork();
	nbd_child(pid);
	if (pid)
		return pid;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	dup2(null, 0);
	dup2(null, 1);
	dup2(null, 2);
	return 0;
}

/* Has the process exited? It stays a zombie until reap(). */
bool exited(pid_t pid)
{
	siginfo_t info = {};

	return waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == pid;
}

bool reap(pid_t pid, int ms)
{
	if (!WAIT_UNTIL(exited(pid), ms))
		return false;
	waitpid(pid, NULL, WNOHANG);
	nbd_child_gone(pid);
	return true;
}

/* The letter for the state of a process, or 0 if there is none. */
char proc_state(pid_t pid)
{
	char path[64], text[512], *p;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file(path, text, sizeof(text)) <= 0)
		return 0;
	p = strrchr(text, ')');
	return p && p[1] == ' ' ? p[2] : 0;
}

/* A task sleeps deep in this function, and in the outer one, if it is not NULL. */
bool somebody_in(const char *function, const char *outer)
{
	char path[300], stack[8192];
	struct dirent *e;
	bool found = false;
	DIR *d = opendir("/proc");

	while (d && !found && (e = readdir(d))) {
		if (!isdigit(e->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stack", e->d_name);
		found = read_file(path, stack, sizeof(stack)) > 0 && strstr(stack, function) &&
			(!outer || strstr(stack, outer));
	}
	if (d)
		closedir(d);
	return found;
}

const char *nbd_dir(void)
{
	static char path[4096], *dir;
	ssize_t n;

	if (!dir) {
		n = readlink("/proc/self/exe", path, sizeof(path) - 1);
		path[n > 0 ? n : 0] = 0;
		dir = dirname(path);
	}
	return dir;
}
